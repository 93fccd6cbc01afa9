//! The environment of a command beyond its file system: agents, caches, hosts, limits, volumes,
//! capabilities.

use std::process::Command;

use crate::lab::{Lab, base, exists, is_bare};

fn read_o(lab: &Lab, instruction: &str, args: &[&str]) -> String {
    let args = [&["--no-cache"], args].concat();
    let out = lab.build_local(&format!("FROM busybox\n{instruction}\n"), &args);
    std::fs::read_to_string(out.join("o")).unwrap()
}

#[test]
fn hosts_limits_shared_memory_and_host_name_are_set() {
    let lab = Lab::new();
    let hosts = read_o(&lab, "RUN cp /etc/hosts /o", &["--add-host", "db:10.1.2.3", "--add-host=six=[::5]"]);
    assert!(hosts.contains("10.1.2.3\tdb\n") && hosts.contains("::5\tsix\n"), "{hosts}");
    let limits = read_o(&lab, "RUN ulimit -n > /o; ulimit -Hn >> /o", &["--ulimit", "nofile=100:200"]);
    assert_eq!(limits, "100\n200\n");
    let shm = "RUN df -k /dev/shm | awk 'END{print $2}' > /o";
    assert_eq!(read_o(&lab, shm, &[]), "65536\n");
    assert_eq!(read_o(&lab, shm, &["--shm-size", "1m"]), "1024\n");
    let name = read_o(&lab, "RUN hostname > /o", &["--build-arg", "BUILDKIT_SANDBOX_HOSTNAME=mine"]);
    assert_eq!(name, "mine\n");
    lab.build("FROM busybox\nRUN true\n", &["--ulimit", "nofile=1:99999999999"])
        .fails(2, &["the session's hard limit is"]);
    // A changed address of a host does not invalidate the step.
    let file = "FROM busybox\nRUN cat /etc/hosts\n";
    lab.build(file, &["--add-host", "db:10.1.2.3"]).ok();
    assert_eq!(lab.build(file, &["--add-host", "db:10.9.9.9"]).ok().steps(), (0, 1));
    assert_eq!(lab.build(file, &["--add-host", "other:10.9.9.9"]).ok().steps(), (1, 0));
}

#[test]
fn limits_apply_to_the_command_and_not_to_its_setup() {
    let lab = Lab::new();
    lab.build("FROM busybox\n", &["-t", "x"]).ok();
    for limit in ["nofile=0", "nofile=3", "nofile=10", "nproc=0", "fsize=0", "memlock=0", "core=0", "cpu=1"] {
        lab.build("FROM busybox\nRUN true\n", &["--no-cache", "--ulimit", limit]).ok();
        lab.rbuild(["run", "--ulimit", limit, "x", "true"]).ok();
    }
    let ran = lab.rbuild(["run", "--ulimit", "nofile=10", "x", "sh", "-c", "ulimit -n; ulimit -Hn"]).ok();
    assert_eq!(ran.stdout, "10\n10\n");
    // Some kernels kill a program with such limits when it starts, and others let it run.
    for limit in ["data=0", "stack=0"] {
        let hints = ["killed by signal", &format!("raise the limits of --ulimit: {limit}")];
        let built = lab.build("FROM busybox\nRUN true\n", &["--no-cache", "--ulimit", limit]);
        for ran in [built, lab.rbuild(["run", "--ulimit", limit, "x", "true"])] {
            assert!(ran.code == Some(0) || hints.iter().all(|text| ran.stderr.contains(text)), "{}", ran.stderr);
        }
    }
}

#[test]
fn volumes_are_seen_by_every_command_and_are_not_in_the_image() {
    let lab = Lab::new();
    lab.write("shared/in", "from outside");
    let volume = format!("{}/shared:/deep/mnt", lab.ctx().display());
    let file = "FROM busybox\nRUN cat /deep/mnt/in > /o && echo back > /deep/mnt/out\n";
    let out = lab.build_local(file, &["-v", &volume]);
    assert_eq!(std::fs::read_to_string(out.join("o")).unwrap(), "from outside");
    assert!(!exists(out.join("deep")));
    assert_eq!(lab.read("ctx/shared/out"), "back\n");
    let read_only = format!("{volume}:ro");
    lab.build("FROM busybox\nRUN echo x > /deep/mnt/no\n", &["-v", &read_only]).fails(1, &["Read-only"]);
}

#[test]
fn insecure_commands_require_an_entitlement() {
    let lab = Lab::new();
    // Needs a capability that is not one of Docker's. Without a mount namespace, a mount would be
    // the machine's.
    let (needs, more) =
        if is_bare() { ("renice -n -5 -p $$", "true") } else { ("mount -t tmpfs x /mnt", "test -w /proc/sys/kernel") };
    let step = format!("RUN --security=insecure {needs} && echo done > /o && {more}");
    lab.build(&format!("FROM busybox\n{step}\n"), &[]).fails(2, &["--allow security.insecure", "Dockerfile:2:16"]);
    assert_eq!(read_o(&lab, &step, &["--allow", "security.insecure"]), "done\n");
    lab.build(&format!("FROM busybox\nRUN --security=sandbox {needs}\n"), &["--allow", "security.insecure"])
        .fails(1, &["exited with code"]);
}

#[test]
fn cache_mounts_support_initial_files_subdirectories_and_sharing() {
    let lab = Lab::new();
    let seeded = "FROM busybox AS seed\nRUN mkdir /s && echo first > /s/f && chown 7 /s/f\nFROM busybox\n\
                  RUN --mount=type=cache,id=s,from=seed,source=/s,target=/c stat -c %u /c/f > /o && cat /c/f >> /o && echo more > /c/f\n";
    let read = |out: std::path::PathBuf| std::fs::read_to_string(out.join("o")).unwrap();
    assert_eq!(read(lab.build_local(seeded, &[])), "7\nfirst\n");
    assert_eq!(read(lab.build_local(seeded, &["--no-cache-filter", "1"])), "7\nmore\n");
    // The root of a cache is the directory that it starts from, whatever the mount states.
    let root = "FROM busybox AS seed\nRUN mkdir -p /s/in && chown 3:4 /s && chmod 2777 /s\nFROM busybox\nUSER 7\n\
                RUN --mount=type=cache,id=r,from=seed,source=/s,target=/c,mode=0700,uid=9 touch /c/f && stat -c '%a %u %g' /c > /tmp/o\n\
                FROM scratch\nCOPY --from=1 /tmp/o /\n";
    assert_eq!(read(lab.build_local(root, &[])), "2777 3 4\n");
    // A subdirectory of a cache as source; a link in it does not lead out of the cache.
    let part = "RUN --mount=type=cache,id=p,target=/c mkdir -p /c/in && echo p > /c/in/f && ln -sfn / /c/up";
    read_o(&lab, &format!("{part}; touch /o"), &[]);
    let show = "RUN --mount=type=cache,id=p,source=/in,target=/c cp /c/f /o";
    assert_eq!(read_o(&lab, show, &[]), "p\n");
    let escape = "RUN --mount=type=cache,id=p,source=/up,target=/c ls /c > /o";
    assert_eq!(read_o(&lab, escape, &[]), "in\nup\n");
    // A command has created a file instead of the expected directory; this is not damage of the
    // store.
    let file = "FROM busybox\nRUN --mount=type=cache,id=p,source=/in/f,target=/c ls /c\n";
    let failed = lab.build(file, &[]);
    let failed = failed.fails(1, &["`/in/f` in the cache mount `p` is not a directory", "Dockerfile:2:"]);
    assert!(!failed.stderr.contains("fsck"), "{}", failed.stderr);
    // A private cache: a concurrent second user gets its own cache.
    let wait = "n=0; while [ ! -e /meet/$OTHER ]; do sleep 0.1; n=$((n+1)); [ $n -lt 200 ] || exit 1; done";
    let stage = |own: &str, other: &str| {
        format!(
            "FROM busybox AS {own}\nENV OTHER={other}\n\
             RUN --mount=type=cache,target=/meet --mount=type=cache,id=x,target=/x,sharing=private \
             echo {own} > /x/{own}; touch /meet/{own}; {wait}; ls /x > /o\n"
        )
    };
    let file =
        format!("{}{}FROM scratch\nCOPY --from=a /o /a\nCOPY --from=b /o /b\n", stage("a", "b"), stage("b", "a"));
    let out = lab.build_local(&file, &["--jobs", "2"]);
    let of = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    assert_eq!((of("a"), of("b")), ("a\n".into(), "b\n".into()));
    // The same locked cache twice in one command, and in a different order in a second one: no
    // deadlock.
    let twice = "FROM busybox AS a\nRUN --mount=type=cache,id=l,target=/1,sharing=locked --mount=type=cache,id=l,target=/2,sharing=locked touch /1/f && ls /2\n\
                 FROM busybox AS b\nRUN --mount=type=cache,id=m,target=/1,sharing=locked --mount=type=cache,id=l,target=/2,sharing=locked sleep 0.2\n\
                 FROM busybox AS c\nRUN --mount=type=cache,id=l,target=/1,sharing=locked --mount=type=cache,id=m,target=/2,sharing=locked sleep 0.2\n\
                 FROM scratch\nCOPY --from=a /etc/passwd /a\nCOPY --from=b /etc/passwd /b\nCOPY --from=c /etc/passwd /c\n";
    lab.build(twice, &["--jobs", "3"]).ok();
    // A separate cache namespace.
    let count = "RUN --mount=type=cache,target=/n echo x >> /n/f; wc -l < /n/f > /o";
    assert_eq!(read_o(&lab, count, &[]), "1\n");
    assert_eq!(read_o(&lab, count, &["--build-arg", "BUILDKIT_CACHE_MOUNT_NS=mine"]), "1\n");
    assert_eq!(read_o(&lab, count, &[]), "2\n");
}

/// Default IDs of caches are in the key, with their namespace, as in BuildKit; others are not.
#[test]
fn the_default_id_of_a_cache_is_in_the_key() {
    let lab = Lab::new();
    let run = |mount: &str, args: &[&str]| {
        let file = format!("FROM busybox\nWORKDIR /w\nRUN --mount=type=cache,{mount} ls /c > /o; touch /c/x; true\n");
        lab.build(&file, &[&["-t", "x"], args].concat()).ok().steps().0
    };
    let namespace = |name: &str| format!("BUILDKIT_CACHE_MOUNT_NS={name}");
    let (q, r) = (namespace("q"), namespace("r"));
    assert_eq!(run("target=/c", &[]), 2);
    for (mount, args, ran) in [
        ("target=/c", &[][..], 0),
        ("target=/c,id=/c", &[], 0),
        ("target=/c", &["--build-arg", &q], 1),
        ("target=/c", &["--build-arg", &r], 1),
        ("target=/c", &["--build-arg", &q], 0),
        ("target=/c,id=a", &[], 1),
        ("target=/c,id=b", &["--build-arg", &q], 0),
        ("target=/c,sharing=locked", &[], 0),
        ("target=/c,sharing=private", &["--build-arg", &r], 0),
    ] {
        assert_eq!(run(mount, args), ran, "{mount} {args:?}");
    }
    // A relative target is its ID as written, wherever it is mounted.
    let file = "FROM busybox\nWORKDIR /one\nRUN --mount=type=cache,target=rel touch rel/f\n\
                WORKDIR /two\nRUN --mount=type=cache,target=rel ls rel > /o\n";
    let out = lab.build_local(file, &[]);
    assert_eq!(std::fs::read_to_string(out.join("o")).unwrap(), "f\n");
}

/// A child process that is killed at the end of the test, whatever its outcome.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the volumes of the host's ssh-add and its libraries.
fn ssh_add() -> Vec<String> {
    let libraries = std::process::Command::new("ldd").arg("/usr/bin/ssh-add").output().unwrap();
    let libraries = String::from_utf8(libraries.stdout).unwrap();
    let libraries = libraries.split_whitespace().filter(|word| word.starts_with('/'));
    let volumes = libraries.map(|path| format!("--volume={path}:{path}:ro"));
    std::iter::once("--volume=/usr/bin/ssh-add:/ssh-add:ro".to_string()).chain(volumes).collect()
}

/// Creates a key of each type in the context, and starts an agent that holds one of them. Returns
/// the agent and its socket.
fn agent_with_a_key(lab: &Lab) -> (Running, std::path::PathBuf) {
    lab.sh("for t in ed25519 rsa ecdsa; do ssh-keygen -q -t $t -N '' -C by-$t -f $t; done").ok();
    let socket = lab.path("sock");
    let agent = std::process::Command::new("ssh-agent")
        .args(["-D", "-a", socket.to_str().unwrap()])
        .stdout(std::process::Stdio::null())
        .spawn();
    let agent = Running(agent.unwrap());
    lab.sh("n=0; while [ ! -S $LAB/sock ]; do sleep 0.05; n=$((n+1)); [ $n -lt 100 ] || exit 1; done
            SSH_AUTH_SOCK=$LAB/sock ssh-add -q ed25519")
        .ok();
    (agent, socket)
}

#[test]
fn an_agent_is_passed_to_commands_and_removed_afterwards() {
    let lab = Lab::new();
    let (_agent, socket) = agent_with_a_key(&lab);
    let tools = ssh_add();
    let tools: Vec<&str> = tools.iter().map(String::as_str).collect();
    let ask = "COPY *.pub /\nRUN --mount=type=ssh,uid=5,mode=0660 echo $SSH_AUTH_SOCK > /o; \
               stat -c '%u %a %F' $SSH_AUTH_SOCK >> /o; /ssh-add -L >> /o; /ssh-add -T /ed25519.pub";
    lab.write("Dockerfile", format!("FROM busybox\n{ask}\n"));
    let out = lab.path("out");
    let args = [&["build", "--ssh", "default", "--output", out.to_str().unwrap()], &tools[..]].concat();
    let ran = lab.command(args).env("SSH_AUTH_SOCK", &socket).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let shown = lab.read("out/o");
    assert!(shown.starts_with("/run/buildkit/ssh_agent.0\n5 660 socket\nssh-ed25519 "), "{shown}");
    assert!(!exists(lab.path("out/run/buildkit")));
    // Keys without an agent: each type can sign.
    let sign = "COPY *.pub /\nRUN --mount=type=ssh,id=k,target=/a.sock for t in ed25519 rsa ecdsa; do /ssh-add -T /$t.pub || exit 1; done; /ssh-add -L > /o";
    let listed = read_o(&lab, sign, &[&["--ssh", "k=ed25519,rsa,ecdsa"], &tools[..]].concat());
    assert_eq!(
        listed.lines().filter_map(|l| l.rsplit(' ').next()).collect::<Vec<_>>(),
        ["by-ed25519", "by-rsa", "by-ecdsa"]
    );
    lab.sh("ssh-keygen -q -t ed25519 -N secret -f locked").ok();
    lab.build("FROM scratch\n", &["--ssh", "k=locked"]).fails(2, &["has a passphrase"]);
    lab.build("FROM scratch\n", &["--ssh", "k=Dockerfile"]).fails(2, &["not a private key in OpenSSH format"]);
    // Without an agent the command runs; with `required`, the step fails.
    let without = "RUN --mount=type=ssh,target=/s [ ! -e /s ] && echo \"[$SSH_AUTH_SOCK]\" > /o";
    assert_eq!(read_o(&lab, without, &[]), "[/s]\n");
    lab.build("FROM busybox\nRUN --mount=type=ssh,required true\n", &[]).fails(1, &["--ssh default", "Dockerfile:2"]);
    let no_agent = lab.command(["build", "--ssh", "default"]).env_remove("SSH_AUTH_SOCK").output().unwrap();
    assert!(String::from_utf8_lossy(&no_agent.stderr).contains("SSH_AUTH_SOCK is not set"));
}

#[test]
fn an_agent_permits_listing_and_signing_only() {
    let lab = Lab::new();
    let (_agent, socket) = agent_with_a_key(&lab);
    // The agent's keys are not cleared, none is removed or added, and no library is loaded.
    let change = "COPY ed25519* rsa* /\nRUN --mount=type=ssh chmod 600 /rsa; \
                  for o in -D '-d /ed25519.pub' /rsa '-s /lib/none.so' '-e /lib/none.so'; do \
                  if /ssh-add $o 2>/dev/null </dev/null; then exit 1; fi; done; /ssh-add -L > /o && /ssh-add -T /ed25519.pub";
    lab.write("Dockerfile", format!("FROM busybox\n{change}\n"));
    let out = lab.path("out");
    let tools = ssh_add();
    let args = ["build", "--ssh", "default", "--output", out.to_str().unwrap()].into_iter();
    let args = args.chain(tools.iter().map(String::as_str));
    // The path of the store is longer than the address of a socket can be.
    let store = lab.path(&"long".repeat(30));
    let import = ["import", base("busybox.tar").to_str().unwrap(), "busybox"].map(String::from);
    let import = lab.command(import.iter().map(String::as_str)).env("RBUILD_ROOT", &store).output().unwrap();
    assert!(import.status.success(), "{}", String::from_utf8_lossy(&import.stderr));
    let ran = lab.command(args).env("RBUILD_ROOT", &store).env("SSH_AUTH_SOCK", &socket).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let after = lab.sh("SSH_AUTH_SOCK=$LAB/sock ssh-add -L").ok().stdout;
    for listed in [lab.read("out/o"), after] {
        assert!(listed.ends_with(" by-ed25519\n") && listed.lines().count() == 1, "{listed}");
    }
}

#[test]
fn a_foreign_platform_builds_unless_a_command_has_to_run() {
    let lab = Lab::bare();
    lab.write("f", "x");
    let foreign = if cfg!(target_arch = "s390x") { "linux/amd64" } else { "linux/s390x" };
    lab.build("FROM scratch\nCOPY f /\n", &["--platform", foreign, "-t", "x"]).ok();
    let json = lab.rbuild(["inspect", "x"]).ok().stdout;
    assert!(json.contains(&format!("\"Architecture\": \"{}\"", foreign.trim_start_matches("linux/"))), "{json}");
    lab.build("FROM scratch\nCOPY f /\nRUN x\n", &["--platform", foreign])
        .fails(2, &[&format!("command requires {foreign}"), "qemu-user-static", "Dockerfile:3"]);
    lab.build("FROM scratch\n", &["--platform", "linux"]).ok();
    lab.build("FROM scratch\n", &["--platform", "penguin"])
        .fails(2, &["neither an operating system nor an architecture"]);
}

#[test]
fn times_are_limited_by_source_date_epoch_on_request() {
    let lab = Lab::new();
    lab.write("f", "x");
    let file = "FROM busybox\nCOPY f /\nRUN echo y > /g\nWORKDIR /w\n";
    let tar = lab.path("x.tar");
    let output = format!("type=docker,dest={},rewrite-timestamp=true", tar.display());
    lab.build(file, &["--build-arg", "SOURCE_DATE_EPOCH=1000", "--output", &output, "-t", "x"]).ok();
    let times = "python3 -c \"import tarfile,json,sys; t=tarfile.open('$LAB/x.tar'); m=json.load(t.extractfile('manifest.json'))\n\
                 for l in m[0]['Layers'][1:]:\n  [print(e.mtime) for e in tarfile.open(fileobj=t.extractfile(l))]\" | sort -u";
    assert_eq!(lab.sh(times).ok().stdout, "1000\n");
    let out = lab.build_local(file, &["--build-arg", "SOURCE_DATE_EPOCH=1000"]);
    let time = |p: &str| out.join(p).metadata().unwrap().modified().unwrap().elapsed().unwrap().as_secs();
    assert!(time("f") > 1_000_000_000 && time("w") > 1_000_000_000);
}

#[test]
fn commands_have_dockers_capabilities_and_system_calls() {
    let lab = Lab::new();
    let status = "grep -E '^(Cap|Seccomp:|NoNewPrivs)' /proc/self/status > /o";
    let own = read_o(&lab, &format!("RUN {status}"), &[]);
    for line in ["CapInh:\t0000000000000000", "CapPrm:\t00000000a80425fb", "CapEff:\t00000000a80425fb"] {
        assert!(own.contains(line), "{own}");
    }
    for line in ["CapBnd:\t00000000a80425fb", "CapAmb:\t0000000000000000", "NoNewPrivs:\t0", "Seccomp:\t2"] {
        assert!(own.contains(line), "{own}");
    }
    let other = read_o(&lab, &format!("RUN touch /o && chmod 666 /o\nUSER 1000\nRUN {status}"), &[]);
    for line in ["CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "CapBnd:\t00000000a80425fb", "Seccomp:\t2"] {
        assert!(other.contains(line), "{other}");
    }
    // System calls that create namespaces or mounts, or that listen to the kernel, are refused for
    // every user.
    for call in ["unshare -U true", "unshare -m true", "mount -t tmpfs x /mnt || unshare -i true", "dmesg"] {
        lab.build(&format!("FROM busybox\nRUN {call}\n"), &["--no-cache"]).fails(1, &["Operation not permitted"]);
    }
}

#[test]
fn an_insecure_command_of_another_user_can_change_owners() {
    let text =
        "RUN touch /o /f && chmod 666 /o\nUSER 1000\nRUN --security=insecure chown 5:6 /f && stat -c %u:%g /f > /o";
    assert_eq!(read_o(&Lab::new(), text, &["--allow", "security.insecure"]), "5:6\n");
}

#[test]
fn a_result_that_contains_a_secret_is_refused() {
    let lab = Lab::new();
    lab.write("token", "hunter2-and-more\n");
    let secret = ["--secret", "id=token,src=token", "-t", "x"];
    let run = "RUN --mount=type=secret,id=token";
    let leaky = format!(
        "FROM busybox\n{run} mkdir -p /root/.npm && cp /run/secrets/token /root/.npm/rc\nRUN echo harmless > /o\n"
    );
    let messages =
        ["the secret `token`: this step wrote it to /root/.npm/rc", "Dockerfile:2:1", "--allow secret-in-image"];
    lab.build(&leaky, &secret).fails(1, &messages);
    // A second build is refused in the same way.
    lab.build(&leaky, &secret).fails(1, &messages);
    let local = format!("type=local,dest={}", lab.path("out").display());
    lab.build(&leaky, &[&secret[..], &["-o", &local]].concat()).fails(1, &messages);
    lab.build(&leaky, &[&secret[..], &["--allow", "secret-in-image"]].concat()).ok();
    lab.build(&leaky, &secret).fails(1, &messages);
    // A secret left in a stage from which it is not copied is harmless.
    let stages = format!("{}FROM busybox\nCOPY --from=0 /o /o\n", leaky);
    lab.build(&stages, &secret).ok();
    let copied = format!("{}FROM busybox\nCOPY --from=0 /root /root\n", leaky);
    lab.build(&copied, &secret).fails(1, &["/root/.npm/rc", "Dockerfile:5:1"]);
    // An environment variable of the image.
    lab.build(&format!("FROM busybox\n{run} true\nENV TOKEN=hunter2-and-more\n"), &secret)
        .fails(1, &["configuration or history"]);
    lab.build(&format!("FROM busybox\n{run} wc -c < /run/secrets/token\n"), &secret).ok();
}

#[test]
fn a_command_cannot_use_the_callers_keyrings() {
    let lab = Lab::new();
    // The host's keyctl and the libraries that it needs.
    let needs = Command::new("ldd").arg("/usr/bin/keyctl").output().unwrap();
    let needs = String::from_utf8(needs.stdout).unwrap();
    let libraries = needs.split_whitespace().filter(|word| word.starts_with('/'));
    for file in libraries.chain(["/usr/bin/keyctl"]) {
        lab.write(&format!("k/{}", file.rsplit('/').next().unwrap()), std::fs::read(file).unwrap());
    }
    let tries = "cd /k && for try in 'link @u @s' 'show @s' 'search @s user callers-key' \
                 'search @u user users-key' 'session callers-session true'; do ./ld-* --library-path /k ./keyctl $try; done";
    lab.write(
        "Dockerfile",
        format!(
            "FROM busybox\nCOPY --chmod=755 k /k\nRUN ({tries}) > /plain 2>&1 || true\n\
             RUN --security=insecure ({tries}) > /insecure 2>&1 || true\n"
        ),
    );
    let out = lab.path("out");
    let build = ["build", "--allow", "security.insecure", "-o", &format!("type=local,dest={}", out.display())];
    // A session keyring with a name and a key, as left by pam_keyinit and kinit.
    let mut command = Command::new("keyctl");
    command.args(["session", "callers-session", "sh", "-ec"]);
    let add = "keyctl add user callers-key value @s > \"$0\"; keyctl link @u @s; \
               keyctl timeout $(keyctl add user users-key value @u) 100; exec \"$@\"";
    command.args([add]);
    command.arg(lab.path("before")).arg(lab.command(build).get_program()).args(build);
    lab.run(command).ok();
    assert!(lab.read("before").trim().parse::<u32>().is_ok(), "the test made no key: {}", lab.read("before"));
    for (name, error) in [("plain", "Operation not permitted"), ("insecure", "Function not implemented")] {
        let seen = std::fs::read_to_string(out.join(name)).unwrap();
        assert_eq!(seen.matches(error).count(), 5, "{name}: {seen}");
    }
}

/// With too few processes and threads, a build ends with an error, or takes longer. It neither
/// panics nor waits for threads that were not started.
#[test]
fn too_few_threads_slow_a_build_down_or_fail_it() {
    let lab = Lab::new();
    for i in 0..40 {
        lab.write(&format!("d/{i}"), "x");
    }
    lab.write("d/big", "x".repeat(3 << 20)).sh("tar cf big.tar d").ok();
    lab.write(
        "Dockerfile",
        "FROM busybox AS a\nRUN echo a > /a\nFROM busybox AS b\nADD big.tar /b/\nCOPY d /c/\nFROM busybox\n\
         COPY --from=a /a /\nCOPY --from=b /b /\n",
    );
    // The limit counts all threads of the user; root has none.
    let build = "n=$(ps -eLo uid= | grep -c \"^ *$(id -u)$\"); ulimit -u $((n + MORE)) || exit 77; \
                 timeout -s KILL 60 $RB build --no-cache -o type=oci,dest=o.tar . 2>&1; echo ended $?";
    for more in [0, 2, 4, 6, 8, 10, 12, 16, 20, 26, 34] {
        let ran = lab.sh(&build.replace("MORE", &more.to_string()));
        let text = format!("{}{}", ran.stdout, ran.stderr);
        assert!(!text.contains("panicked") && !text.contains("ended 137"), "{more}: {text}");
    }
}
