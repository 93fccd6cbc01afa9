//! The promises of docs/security.md about malicious commands and images, and the messages on
//! machines that lack requirements of the isolation.

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use crate::lab::{Lab, is_bare};

fn output_of(lab: &Lab, script: &str) -> String {
    let out = lab.build_local(&format!("FROM busybox\nRUN {script}\n"), &["--no-cache"]);
    std::fs::read_to_string(out.join("o")).unwrap()
}

#[test]
fn a_command_cannot_read_files_of_the_caller() {
    let lab = Lab::new();
    lab.write("private", "the caller's own");
    lab.write(".dockerignore", "private\n");
    let script = format!(
        "for p in / /proc/1/root /proc/1/cwd /proc/self/root/.. /.. /proc/*/root/../..; do ls -d $p{0} $p{1}; done > /o 2>/dev/null; \
         find / -xdev -name private >> /o; true",
        lab.ctx().display(),
        lab.store().display()
    );
    assert_eq!(output_of(&lab, &script), "");
}

#[test]
fn a_command_cannot_see_the_callers_environment_and_processes() {
    let lab = Lab::new();
    lab.write("Dockerfile", "FROM busybox\nRUN ps -o pid,args > /o; cat /proc/*/environ | tr '\\0' '\\n' | grep -c CALLERS_OWN >> /o; true\n");
    let out = lab.path("out");
    let mut command = lab.command(["build", "-o", &format!("type=local,dest={}", out.display())]);
    lab.run_with(&mut command, &[("CALLERS_OWN", "value")]).ok();
    let text = std::fs::read_to_string(out.join("o")).unwrap();
    assert_eq!(text.lines().last(), Some("0"), "{text}");
    let processes: Vec<&str> = text.lines().filter(|l| l.trim().starts_with(|c: char| c.is_ascii_digit())).collect();
    // The shell, ps, and the line of the grep.
    assert!(processes.len() <= 3 && !text.contains("rbuild"), "{text}");
}

#[test]
fn a_command_cannot_signal_other_processes_or_outlive_its_step() {
    let lab = Lab::new();
    let marker = format!("{}77", std::process::id());
    // All processes visible to it are its own.
    output_of(&lab, &format!("(setsid sleep {marker} &) ; sleep 0.1; echo > /o; kill -9 -1"));
    let left = Command::new("pgrep").args(["-f", &format!("sleep {marker}")]).output().unwrap();
    assert!(left.stdout.is_empty(), "{}", String::from_utf8_lossy(&left.stdout));
}

#[test]
fn a_command_writes_only_to_its_own_files() {
    let lab = Lab::new();
    // Without mounts, these are files in directories that only the command has.
    let is_own = if is_bare() { "[ -f $f ]" } else { "false" };
    let mut script = format!(
        "for f in /proc/sys/kernel/domainname /proc/sysrq-trigger /dev/mem /dev/kmsg /dev/sda /sys/x; do \
         (echo x > $f) 2>/dev/null && ! {is_own} && echo $f; done > /o; true"
    );
    if !is_bare() {
        script += "; mknod /disk b 8 0 2>/dev/null && cat /disk >> /o; true";
    }
    let wrote = output_of(&lab, &script);
    let left = std::fs::read_dir(lab.path("out/sys")).map_or(0, |left| left.count());
    assert_eq!(left, 0, "files created there are in no layer");
    // Files created in /dev are in the container's own memory and discarded.
    assert!(wrote.lines().all(|l| l.starts_with("/dev/")), "{wrote}");
    // The files of a base image are unchanged, although a command overwrote them as root.
    let first = output_of(&lab, "sha256sum /bin/busybox > /o");
    output_of(&lab, "echo broken > /etc/passwd; rm -rf /root /srv; echo x > /o");
    assert_eq!(output_of(&lab, "sha256sum /bin/busybox > /o"), first);
    assert_eq!(output_of(&lab, "grep -c . /etc/passwd > /o"), "2\n");
}

#[test]
fn cache_mounts_are_accessible_only_by_name() {
    let lab = Lab::new();
    lab.build("FROM busybox\nRUN --mount=type=cache,id=mine,target=/c echo mine > /c/f\n", &["-t", "x"]).ok();
    let read = "--mount=type=cache,id=../mine,target=/c ls -a /c /c/.. | grep -c '^f$' > /o; true";
    assert_eq!(output_of(&lab, read), "0\n");
}

#[test]
fn a_user_without_sub_ids_can_build() {
    if rbuild_linux_is_root() {
        return a_namespace_of_one_id_is_enough();
    }
    let lab = Lab::new();
    lab.write("Dockerfile", "FROM busybox\nRUN touch /x && chown 33:50 /x && stat -c %u:%g /x\n");
    let empty = lab.path("no-programs");
    std::fs::create_dir(&empty).unwrap();
    let path = ("PATH", empty.to_str().unwrap());
    let ran = lab.run_with(&mut lab.command(["build"]), &[path, ("RBUILD_ISOLATION", "auto")]).ok();
    assert!(ran.stderr.starts_with("isolation: single-id\n") && ran.stderr.contains(" 33:50\n"), "{}", ran.stderr);
    // For a user who requires sub-IDs, the error explains how to get some.
    lab.run_with(&mut lab.command(["build", "--no-cache"]), &[path, ("RBUILD_ISOLATION", "userns")])
        .fails(3, &["`newuidmap` is not installed", "apt-get install uidmap"]);
}

fn rbuild_linux_is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn a_namespace_of_one_id_is_enough() {
    let lab = Lab::new();
    lab.write("Dockerfile", "FROM busybox\nRUN touch /x && chown 33 /x && stat -c %u:%g /x\n");
    let mut command = Command::new("unshare");
    command.args(["-Ur"]).arg(crate::lab::rbuild_path()).arg("build");
    let ran = lab.run(command).ok();
    assert!(ran.stderr.contains("isolation: single-id") && ran.stderr.contains(" 33:0\n"), "{}", ran.stderr);
}

#[test]
fn root_a_noexec_store_works() {
    let lab = Lab::new();
    lab.write("Dockerfile", "FROM busybox\nRUN echo fine > /o\n");
    let script = "mount -t tmpfs -o noexec,nosuid,nodev none \"$LAB/mnt\" && export RBUILD_ROOT=\"$LAB/mnt/store\" && \
                  $RB import \"$RBUILD_TEST_BASES/busybox.tar\" busybox && $RB build -o type=local,dest=$LAB/out && cat $LAB/out/o";
    std::fs::create_dir(lab.path("mnt")).unwrap();
    let ran = lab.sh(&format!("unshare -m bash -ec '{script}'")).ok();
    assert!(ran.stdout.ends_with("fine\n"), "{}", ran.stdout);
}

#[test]
fn root_a_store_on_an_overlay_uses_copied_snapshots() {
    let lab = Lab::new();
    lab.write("Dockerfile", "FROM busybox AS a\nRUN echo fine > /o && rm /bin/yes\nFROM a\nCOPY --from=a /o /p\nRUN test ! -e /bin/yes && cat /p\n");
    let script = "mkdir -p $LAB/{l,u,w,mnt} && mount -t overlay none -o lowerdir=$LAB/l,upperdir=$LAB/u,workdir=$LAB/w $LAB/mnt && \
                  export RBUILD_ROOT=$LAB/mnt/store && $RB import $RBUILD_TEST_BASES/busybox.tar busybox && \
                  $RB build -t x -o type=local,dest=$LAB/out && cat $LAB/out/p && ! $RB run x ls -d /bin/yes; $RB cp x:/p $LAB/q && $RB doctor";
    let ran = lab.sh(&format!("unshare -m bash -ec '{script}'")).ok();
    assert!(ran.stdout.contains("\nfine\n") && ran.stdout.contains("files are copied"), "{}", ran.stdout);
    assert_eq!(lab.read("q"), "fine\n");
}

#[test]
fn a_command_cannot_change_the_machines_device_nodes() {
    let lab = Lab::new();
    if is_bare() {
        // It has nodes of its own, and not links to the machine's.
        let own = output_of(&lab, "for d in null zero full random urandom; do stat -c %d:%i:%F /dev/$d; done > /o");
        for (name, own) in ["null", "zero", "full", "random", "urandom"].iter().zip(own.lines()) {
            let machines = std::fs::metadata(format!("/dev/{name}")).unwrap();
            let machines = format!("{}:{}:", machines.dev(), machines.ino());
            assert!(own.ends_with(":character special file") && !own.starts_with(&machines), "{name}: {own}");
        }
        assert_eq!(own_modes_after_a_change(&lab), "600\n666\n");
        return;
    }
    // Sets the mode and owner that the devices already have, which does no harm to the machine if
    // the promise is broken.
    let script = "for d in null zero full random urandom tty; do [ -e /dev/$d ] || continue; chmod $(stat -c %a /dev/$d) /dev/$d; \
                  touch -c -r /dev/$d /dev/$d; echo x 2>&- > /dev/$d; done > /o 2>&1; chmod 666 /proc/self/fd/0 >> /o 2>&1; head -c 4 /dev/zero | wc -c >> /o; true";
    let output = output_of(&lab, script);
    let refused = output.lines().filter(|line| line.contains("Read-only file system")).count();
    // Two refusals for each of the six devices and one for standard input; the devices still work.
    assert!(refused >= 11 && output.lines().last() == Some("4"), "{output}");
}

/// Returns the mode of a device node that a command has changed, and the mode in the next command.
fn own_modes_after_a_change(lab: &Lab) -> String {
    let out = lab.build_local(
        "FROM busybox\nRUN chmod 600 /dev/full && stat -c %a /dev/full > /o\nRUN stat -c %a /dev/full >> /o\n",
        &["--no-cache"],
    );
    std::fs::read_to_string(out.join("o")).unwrap()
}

/// Links of a volume have their own times, where volumes are copied as well.
#[test]
fn symlinks_of_a_volume_remain_symlinks() {
    let lab = Lab::new();
    lab.sh("mkdir ../v; ln -s f ../v/l; touch -h -d @1000000000 ../v/l; touch -d @1100000000 ../v/f").ok();
    let volume = format!("{}:/v:ro", lab.path("v").display());
    let out = lab.build_local("FROM busybox\nRUN stat -c '%n %Y' /v/l /v/f > /o\n", &["-v", &volume]);
    assert_eq!(std::fs::read_to_string(out.join("o")).unwrap(), "/v/l 1000000000\n/v/f 1100000000\n");
}

#[test]
fn an_insecure_command_cannot_change_a_read_only_cache() {
    let lab = Lab::new();
    let fill = "RUN --mount=type=cache,target=/c,id=kept echo kept > /c/f\n";
    let tries = "mount -o remount,rw,bind /c 2>/dev/null; echo pwn > /c/f; echo pwn > /c/new; cat /c/f > /seen";
    let mount = "--mount=type=cache,target=/c,id=kept,ro";
    let file = format!(
        "FROM busybox\n{fill}RUN --security=insecure {mount} cat /c/f > /first; {tries}\nRUN {mount} cat /c/f > /o; ls /c >> /o\n"
    );
    let out = lab.build_local(&file, &["--allow", "security.insecure"]);
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    assert_eq!((read("first"), read("o")), ("kept\n".into(), "kept\nf\n".into()));
}

#[test]
fn an_insecure_command_cannot_change_trees_and_read_only_volumes() {
    let lab = Lab::new();
    lab.write("f", "kept\n");
    lab.write("volume/f", "kept\n");
    lab.write(".dockerignore", "volume\n");
    let volume = format!("{}:/v:ro", lab.ctx().join("volume").display());
    // Without a mount namespace, mounts would be those of the machine.
    let remount = if is_bare() { "true" } else { "mount -o remount,bind,rw $m; mount -o remount,rw $m" };
    let tries = format!("for m in /s /c /v; do {remount}; echo changed > $m/f; echo more > $m/g; done; true");
    let file = format!(
        "FROM scratch AS s\nCOPY f /d/f\nFROM busybox\n\
         RUN --security=insecure --mount=from=s,source=/d,target=/s --mount=target=/c {tries}\nCOPY --from=s /d /d\nRUN --mount=target=/c cat /d/f /c/f > /o; ls /d /c >> /o\n"
    );
    let out = lab.build_local(&file, &["--allow", "security.insecure", "-v", &volume]);
    assert_eq!(std::fs::read_to_string(out.join("o")).unwrap(), "kept\nkept\n/c:\nDockerfile\nf\n\n/d:\nf\n");
    assert_eq!(std::fs::read_to_string(lab.ctx().join("volume/f")).unwrap(), "kept\n");
    assert!(!lab.ctx().join("volume/g").exists());
    // A single file cannot be a lower layer of an overlay. Where content is copied, it needs none.
    let file = format!("{}:/v:ro", lab.ctx().join("f").display());
    let ran = lab.build("FROM busybox\nRUN --security=insecure true\n", &["--allow", "security.insecure", "-v", &file]);
    if is_bare() { drop(ran.ok()) } else { drop(ran.fails(1, &["single file", "mount its directory instead"])) }
}

/// Replaces the dynamic linker of the executed program. It tries changes that would have no effect
/// if they were allowed, and exits with 30 (EROFS) if each of them is refused because the mount is
/// read-only.
const LINKER: &str = r#"
static long call(long number, long a, long b, long c) {
    long result;
    asm volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}
void _start(void) {
    const char *program = "/proc/self/exe";
    long refused = call(90, (long)program, MODE, 0) == -30 && call(92, (long)program, -1, -1) == -30 &&
                   call(197, (long)program, (long)"user.none", 0) == -30;
    call(60, refused ? 30 : 1, 0, 0);
}
"#;

/// An image provides its own dynamic linker and starts the host's rbuild as /proc/self/exe
/// (CVE-2019-5736).
#[test]
#[cfg(target_arch = "x86_64")]
fn a_command_cannot_change_rbuild_itself() {
    let lab = Lab::new();
    if is_bare() {
        lab.build("FROM busybox\nRUN [\"/proc/self/exe\"]\n", &[])
            .fails(1, &["`/proc/self/exe` does not exist in the image"]);
        return;
    }
    let program = std::fs::metadata(lab.command([]).get_program()).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&program.permissions()) & 0o7777;
    lab.write("linker.c", LINKER);
    let mut compiler = Command::new("cc");
    compiler.args(["-O1", "-nostdlib", "-shared", "-fPIC", "-Wl,-e,_start", &format!("-DMODE=0{mode:o}")]);
    lab.run({
        compiler.args(["-o", "linker", "linker.c"]);
        compiler
    })
    .ok();
    let file = "FROM scratch\nCOPY --chmod=755 linker /lib64/ld-linux-x86-64.so.2\nRUN [\"/proc/self/exe\"]\n";
    lab.build(file, &[]).fails(1, &["exited with code 30"]);
}

#[test]
fn replacing_the_binary_does_not_affect_running_builds() {
    let lab = Lab::new();
    lab.write("Dockerfile", "FROM busybox\nRUN echo ran > /o\n");
    let (program, out) = (lab.path("rbuild-of-before"), lab.path("out"));
    std::fs::copy(lab.command([]).get_program(), &program).unwrap();
    let mut command = Command::new("sh");
    command.args(["-ec", "exec 9< \"$0\"; rm \"$0\"; echo other > \"$0\"; exec /proc/self/fd/9 \"$@\""]);
    command.arg(&program).args(["build", "-o", &format!("type=local,dest={}", out.display())]);
    lab.run(command).ok();
    assert_eq!(std::fs::read_to_string(out.join("o")).unwrap(), "ran\n");
}
