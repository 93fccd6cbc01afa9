use crate::lab::{Lab, base};

fn run_output(lab: &Lab, instruction: &str) -> String {
    let out = lab.build_local(&format!("FROM busybox\n{instruction}\n"), &["--no-cache"]);
    std::fs::read_to_string(out.join("o")).unwrap()
}

#[test]
fn run_true_leaves_nothing_in_the_layer() {
    let lab = Lab::new();
    lab.build(
        "FROM busybox\nRUN --mount=type=cache,target=/made/here --mount=type=tmpfs,target=/t true\n",
        &["-t", "x"],
    )
    .ok();
    assert_eq!(lab.top_layer("x"), Vec::<String>::new());
    lab.build("FROM busybox\nRUN echo hi > /etc/new\n", &["-t", "x"]).ok();
    let layer = lab.top_layer("x");
    assert_eq!(layer.len(), 2, "{layer:?}");
    assert!(layer[1].ends_with("etc/new"), "{layer:?}");
}

#[test]
fn containers_have_dockers_defaults() {
    let lab = Lab::new();
    assert_eq!(run_output(&lab, "RUN hostname > /o"), "buildkitsandbox\n");
    assert_eq!(run_output(&lab, "RUN id -u > /o; id -g >> /o; umask >> /o"), "0\n0\n0022\n");
    let caps = run_output(&lab, "RUN grep CapEff /proc/self/status > /o");
    assert_eq!(caps.split_whitespace().last(), Some("00000000a80425fb"));
    let caps = run_output(
        &lab,
        "RUN mkdir -m 777 /d\nUSER 7\nRUN grep CapEff /proc/self/status > /d/o\nUSER 0\nRUN cp /d/o /o",
    );
    assert_eq!(caps.split_whitespace().last(), Some("0000000000000000"));
    assert!(run_output(&lab, "RUN cat /etc/hosts > /o").contains("localhost"));
    assert_eq!(run_output(&lab, "RUN cat /etc/resolv.conf > /dev/null && echo $$ > /o"), "1\n");
    assert_eq!(
        run_output(&lab, "RUN ls /proc/timer_list /dev > /o; wc -c < /proc/timer_list >> /o").lines().last(),
        Some("0")
    );
    assert_eq!(
        run_output(&lab, "RUN echo x > /proc/sys/kernel/hostname && echo written > /o || echo read-only > /o"),
        "read-only\n"
    );
    let sys = "RUN cat /sys/devices/system/cpu/online > /o; touch /sys/x || ls /sys/fs/cgroup /sys/firmware /sys/class/net >> /o";
    let seen = run_output(&lab, sys);
    assert_eq!(seen.split_once('\n').unwrap().1, "/sys/class/net:\nlo\n\n/sys/firmware:\n\n/sys/fs/cgroup:\n");
    assert_eq!(run_output(&lab, "RUN mount -t tmpfs x /mnt && echo mounted > /o || echo refused > /o"), "refused\n");
    assert_eq!(run_output(&lab, "RUN yes | head -1 > /o"), "y\n");
    assert_eq!(run_output(&lab, "RUN [\"/bin/sh\", \"-c\", \"echo $HOME > /o\"]"), "/root\n");
    // Signals that are ignored where rbuild was started, as in background jobs, are not ignored in
    // the command. (The C library reserves 32 and 33.)
    lab.write("Dockerfile", "FROM busybox\nRUN [\"/bin/grep\", \"SigIgn\", \"/proc/self/status\"]\n");
    let ran = lab.sh("trap '' INT QUIT TERM HUP; exec $RB build --progress plain .").ok();
    let mask = ran.stderr.lines().find_map(|l| l.split_once("SigIgn:\t")).expect("no mask").1;
    assert_eq!(u64::from_str_radix(mask, 16).unwrap() & 0x7fff_ffff, 0, "{}", ran.stderr);
}

#[test]
fn user_accepts_names_of_users_and_groups() {
    let lab = Lab::new();
    let out = run_output(&lab, "RUN mkdir -m 777 /w\nUSER web\nRUN id > /w/o\nUSER 0\nRUN cp /w/o /o");
    assert_eq!(out, "uid=33(web) gid=33(web) groups=33(web),50(extra)\n");
    let out = run_output(
        &lab,
        "RUN mkdir -m 777 /w\nUSER web:extra\nRUN id -g > /w/o; id -G >> /w/o\nUSER 0\nRUN cp /w/o /o",
    );
    assert_eq!(out, "50\n50\n");
    lab.build("FROM busybox\nUSER nobody-here\nRUN true\n", &[]).fails(1, &["no user `nobody-here`"]);
}

#[test]
fn networks_none_and_host_work() {
    let lab = Lab::new();
    let names = "RUN --network=none cat /proc/net/dev | grep -o '[a-z0-9]*:' > /o; ip addr show lo | grep -c 'inet 127.0.0.1' >> /o";
    assert_eq!(run_output(&lab, names), "lo:\n1\n");
    let host = std::fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
    assert_eq!(run_output(&lab, "RUN --network=host readlink /proc/self/ns/net > /o").trim(), host);
    assert_eq!(run_output(&lab, "RUN readlink /proc/self/ns/net > /o").trim(), host);
    // A build without a network does not get one from its Dockerfile.
    let file = "FROM busybox\nRUN --network=host true\n";
    lab.build(file, &["--network", "none"]).fails(2, &["`--network=host` is not allowed", "--allow network.host"]);
    lab.build(file, &["--network", "none", "--allow", "network.host"]).ok();
}

#[test]
fn cache_mounts_persist_and_are_not_in_the_image() {
    let lab = Lab::new();
    let step = "RUN --mount=type=cache,target=/c,sharing=locked n=$(cat /c/n 2>/dev/null || echo 0); echo $((n+1)) > /c/n; cp /c/n /o";
    assert_eq!(run_output(&lab, step), "1\n");
    assert_eq!(run_output(&lab, step), "2\n");
    assert_eq!(run_output(&lab, "RUN ls -d /c > /o 2>&1 || true"), "ls: /c: No such file or directory\n");
    let owned = "RUN --mount=type=cache,target=/owned,uid=33,gid=50,mode=0750 stat -c '%u %g %a' /owned > /o";
    assert_eq!(run_output(&lab, owned), "33 50 750\n");
}

#[test]
fn bind_mounts_show_the_context_without_ignored_files() {
    let lab = Lab::new();
    lab.write("a.txt", "a").write("d/b.txt", "b").write("secret", "s").write(".dockerignore", "secret\n");
    assert_eq!(
        run_output(&lab, "RUN --mount=type=bind,target=/ctx cd /ctx && find . -type f | sort > /o"),
        "./.dockerignore\n./Dockerfile\n./a.txt\n./d/b.txt\n"
    );
    assert_eq!(run_output(&lab, "WORKDIR /w\nRUN --mount=type=bind,source=d/b.txt,target=b.txt cat b.txt > /o"), "b");
    let read_only = "RUN --mount=type=bind,target=/ctx touch /ctx/x && echo wrote > /o || echo refused > /o";
    assert_eq!(run_output(&lab, read_only), "refused\n");
    let thrown_away = "RUN --mount=type=bind,target=/ctx,rw echo x > /ctx/a.txt && cat /ctx/a.txt > /o";
    assert_eq!(run_output(&lab, thrown_away), "x\n");
    assert_eq!(std::fs::read_to_string(lab.ctx().join("a.txt")).unwrap(), "a");
    let out = lab.build_local(
        "FROM busybox AS s\nRUN mkdir /x && echo from-stage > /x/f\nFROM busybox\nRUN --mount=type=bind,from=s,source=/x,target=/m cat /m/f > /o\n",
        &[],
    );
    assert_eq!(std::fs::read_to_string(out.join("o")).unwrap(), "from-stage\n");
}

#[test]
fn tmpfs_mounts_are_empty_and_sized() {
    let lab = Lab::new();
    let out = run_output(
        &lab,
        "RUN --mount=type=tmpfs,target=/tmp,size=64k ls -A /tmp > /o; head -c 100000 /dev/zero > /tmp/x; wc -c < /tmp/x >> /o",
    );
    assert_eq!(out, "65536\n");
    lab.build("FROM busybox\nRUN --mount=type=tmpfs,target=/t,ro ! touch /t/x\n", &["."]).ok();
}

#[test]
fn output_is_streamed_and_failures_show_the_last_lines() {
    let lab = Lab::new();
    let ran = lab
        .build("FROM busybox\nRUN for i in $(seq 1 200); do echo line $i; done; echo to-stderr >&2; exit 7\n", &[])
        .fails(1, &["exited with code 7", "line 200", "to-stderr", "Dockerfile:2:1"]);
    let tail = ran.stderr.split("------").nth(1).unwrap();
    assert!(tail.contains("line 160") && !tail.contains("line 140\n"), "{tail}");
    lab.build("FROM busybox\nRUN sh -c 'kill -9 $$'; exit $?\n", &[]).fails(1, &["code 137", "signal 9"]);
    lab.build("FROM busybox\nRUN [\"/no/such\"]\n", &[]).fails(1, &["`/no/such` does not exist in the image"]);
    lab.build("FROM busybox\nRUN nosuchprogram\n", &[]).fails(1, &["code 127", "not found"]);
    lab.build("FROM scratch\nRUN x\n", &[]).fails(1, &["`/bin/sh` does not exist in the image"]);
    let quiet = lab.build("FROM busybox\nRUN echo loud\n", &["-q"]).ok();
    assert_eq!((quiet.stderr.as_str(), quiet.stdout.len()), ("", 72));
}

#[test]
fn deletions_and_replacements_survive_in_layers() {
    let lab = Lab::new();
    let file = "FROM busybox\nRUN mkdir -p /d/sub && echo 1 > /d/a && echo 2 > /d/sub/b && echo 3 > /gone\n\
                RUN rm -r /d /gone && mkdir /d && echo new > /d/c && ln -s c /d/l && ln /d/c /d/h\n";
    let out = lab.build_local(file, &[]);
    let mut names: Vec<String> =
        std::fs::read_dir(out.join("d")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["c", "h", "l"]);
    assert!(!out.join("gone").exists());
    // The same with the image saved and loaded.
    lab.build(file, &["-t", "x"]).ok();
    let tar = lab.path("x.tar");
    lab.rbuild(["save", "-o", tar.to_str().unwrap(), "x"]).ok();
    let other = Lab::bare();
    other.rbuild(["load", "-i", tar.to_str().unwrap()]).ok();
    let listing = other.build_listing("FROM x\nRUN true\n");
    let d: Vec<&str> = listing.iter().filter_map(|l| l.split_once(" d/")).map(|(_, n)| n).collect();
    assert_eq!(d, ["", "c", "h -> d/c", "l -> c"], "{listing:#?}");
    assert!(!listing.iter().any(|l| l.ends_with(" gone")));
}

#[test]
fn debian_packages_install() {
    let lab = Lab::bare();
    lab.rbuild(["import", base("debian.tar").to_str().unwrap(), "debian:bookworm"]).ok();
    let out = lab.build_local(
        "FROM debian:bookworm\nRUN apt-get update && apt-get install -y --no-install-recommends cron && \
         stat -c '%U:%G %a' /usr/bin/crontab /var/spool/cron/crontabs > /o\n",
        &[],
    );
    let owners = std::fs::read_to_string(out.join("o")).unwrap();
    assert_eq!(owners, "root:crontab 2755\nroot:crontab 1730\n");
}

#[test]
fn a_heredoc_with_a_shebang_runs_under_its_interpreter() {
    let lab = Lab::new();
    let out = run_output(&lab, "RUN <<EOF\n#!/bin/awk -f\nBEGIN { print \"from awk\" > \"/o\" }\nEOF");
    assert_eq!(out, "from awk\n");
    lab.build("FROM busybox\nRUN <<EOF\n#!/bin/sh\ntrue\nEOF\n", &["-t", "x"]).ok();
    assert_eq!(lab.top_layer("x"), Vec::<String>::new());
}

#[test]
fn secrets_are_files_and_variables_and_nowhere_else() {
    let lab = Lab::new();
    std::fs::write(lab.path("token"), "tops3cret\n").unwrap();
    let secret = format!("id=token,src={}", lab.path("token").display());
    let file = "FROM busybox\n\
                RUN --mount=type=secret,id=token stat -c '%a %u' /run/secrets/token > /o && cat /run/secrets/token | md5sum >> /o\n\
                RUN --mount=type=secret,id=token,env=TOKEN,required=true echo \"value: $TOKEN\"; echo ${#TOKEN} >> /o\n\
                RUN --mount=type=secret,id=none,env=NONE,target=/none ls /none \"[${NONE-unset}]\" >> /o 2>&1; true\n";
    let ran = lab.build(file, &["-t", "x", "--secret", &secret]).ok();
    assert!(ran.stderr.contains("value: ****") && !ran.stderr.contains("tops3cret"), "{}", ran.stderr);
    let out = lab.build_local(file, &["--secret", &secret]);
    let text = std::fs::read_to_string(out.join("o")).unwrap();
    assert_eq!(text.lines().next(), Some("400 0"));
    assert_eq!(text.lines().nth(2), Some("10"), "a variable has the value as it is, line end and all: {text}");
    assert!(text.contains("/none: No such file") && text.contains("[]: No such file"), "{text}");
    assert!(!out.join("run/secrets").exists());
    // Nothing in the store contains the value.
    let found = lab.sh("grep -rl tops3cret $LAB/store; true").ok();
    assert_eq!(found.stdout, "");
    lab.build("FROM busybox\nRUN --mount=type=secret,id=gone,required=true true\n", &[])
        .fails(1, &["secret `gone` is required but was not provided", "--secret id=gone", "Dockerfile:2:13"]);
    // A changed value does not invalidate the step.
    std::fs::write(lab.path("token"), "changed!\n").unwrap();
    assert_eq!(lab.build(file, &["-t", "x", "--secret", &secret]).ok().steps(), (0, 3));
}

#[test]
fn an_image_can_have_more_layers_than_one_overlay_supports() {
    let lab = Lab::new();
    let mut file = String::from("FROM busybox\nRUN echo first > /first && echo gone > /gone\n");
    for i in 0..505 {
        file.push_str(&format!("COPY <<A /d/f{i}\n{i}\nA\n"));
    }
    lab.build(&file, &["-q", "-t", "deep"]).ok();
    let more = "FROM deep\nRUN cat /first /d/f0 /d/f504 > /o && ls /d | wc -l >> /o && rm /gone /d/f0\n\
                RUN test ! -e /gone && test ! -e /d/f0 && mkdir /d/f0 && ls /d | wc -l >> /o\n";
    let out = lab.build_local(more, &["-t", "deeper"]);
    assert_eq!(std::fs::read_to_string(out.join("o")).unwrap(), "first\n0\n504\n505\n505\n");
    assert!(!out.join("gone").exists() && out.join("d/f0").is_dir());
    lab.rbuild(["inspect", "--verify", "deeper"]).ok();
}
