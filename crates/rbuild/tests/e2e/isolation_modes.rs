//! A step gives the same result in every isolation mode, and the best mode is chosen automatically.

use crate::lab::{Lab, base, listing};

mod capabilities;
mod environments;
mod files;
mod roots;
mod sharing;

/// A directory that is removed and created again may get the inode number of the old one. It is
/// then recorded as the old directory with deletions in it, which is equivalent. A directory that
/// is moved away keeps its number.
const CHANGES: &str = r#"FROM busybox
RUN mkdir -p /d/sub /e/old /f && echo 1 > /d/a && echo x > /e/old/x && echo keep > /f/keep && echo go > /f/go
RUN --mount=type=secret,id=s --mount=type=cache,target=/cache/deep --mount=type=tmpfs,target=/t --mount=type=bind,target=/ctx,rw \
    chown 33:50 /d/a && chmod 4755 /bin/busybox && rm /bin/yes && mv /e /moved && mkdir /e && echo new > /e/new && ln /e/new /e/link && mkfifo /fifo && \
    mv /f/go /f/gone && ln -s /nowhere /link && mkdir -m 2777 /shared && cat /run/secrets/s > /cache/deep/s && echo x > /t/x && \
    touch -d @1000000000 /d/sub && echo y > /ctx/y
"#;

/// Returns the layers above the base of a build with these arguments.
fn layers(lab: &Lab, args: &[&str], env: &[(&str, &str)]) -> Vec<Vec<String>> {
    let tar = lab.path("layers.tar");
    let output = format!("type=docker,dest={},compression=uncompressed", tar.display());
    // A user with sub-IDs can remove the files of all modes.
    lab.run_with(&mut lab.command(["prune", "-a"]), &[("RBUILD_ISOLATION", "auto")]).ok();
    let more = ["build", "--no-cache", "--secret", "id=s,src=secret", "-o", &output];
    let mut command = lab.command(args.iter().copied().chain(more));
    lab.run_with(&mut command, env).ok();
    let files = crate::lab::contents(&std::fs::read(&tar).unwrap());
    let manifest: serde_json::Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
    let names = manifest[0]["Layers"].as_array().unwrap().iter().map(|l| l.as_str().unwrap());
    names.skip(1).map(|name| listing(&files[name])).collect()
}

#[test]
fn root_every_isolation_mode_gives_the_same_layers() {
    let lab = Lab::new();
    lab.write("Dockerfile", CHANGES).write("secret", "a secret value\n").write("y", "in the context\n");
    let wanted = layers(&lab, &["--isolation", "userns"], &[]);
    assert!(wanted[1].iter().any(|l| l.ends_with(" bin/.wh.yes")), "{:?}", wanted[1]);
    assert!(
        wanted[1].iter().all(|l| !l.contains("secrets") && !l.contains("cache") && !l.contains("ctx")),
        "{:?}",
        wanted[1]
    );
    assert_eq!(layers(&lab, &["--isolation", "userns"], &[("RBUILD_SNAPSHOTS", "copy")]), wanted);
    assert_eq!(layers(&lab, &["--isolation", "chroot"], &[]), wanted);
    assert_eq!(lab.read("ctx/y"), "in the context\n");
}

/// Operations on owners, which are hard to support if only root is mapped.
const OWNERS: &str = r#"FROM debian
RUN useradd -m -u 1000 bob && usermod -aG games bob && rm /etc/.pwd.lock
RUN mkdir -p /d/sub && echo 1 > /d/a && chown -R www-data:games /d && chmod 2775 /d && touch /d/made && mkdir /d/dir && chown 7:8 /d/sub && \
    ln -s a /d/link && chown -h 12:34 /d/link && mv /d/link /d/moved && mkfifo /d/fifo && chown 5 /d/fifo && ln /d/a /d/hard && \
    cp -a /d /copied && chmod 4755 /d/made && chown 9 /d/made && tar -cf /t.tar -C /d . && mkdir /t && tar --same-owner -xpf /t.tar -C /t && \
    rm /t.tar && install -o 3 -g 4 -m 6755 /bin/true /usr/bin/installed && \
    test "$(stat -c %u:%g /d/a)" = 33:60 && test "$(stat -c %u:%g /d/moved)" = 12:34
RUN su bob -c 'umask 027; echo > ~/f; mkdir ~/d; ln -s x ~/l; mkfifo ~/p; id > ~/id; ! chown 33 ~/f; ! chgrp 33 ~/f; chgrp games ~/d' && \
    setpriv --reuid bob --regid games --clear-groups sh -c 'id > /home/bob/id2; touch /home/bob/setpriv' && cat /home/bob/id* > /ids && \
    perl -e '$> = 1000; open(F, ">/home/bob/perl"); close F; $> = 0; open(F, ">/perl"); chown 1, 2, "/perl"; mkdir "/chr"; mkdir "/chr/tmp"; chroot "/chr"; open(F, ">/tmp/x"); chown 3, 4, "/tmp/x"'
COPY --chown=bob:games --chmod=640 f /c
WORKDIR /made
USER www-data
WORKDIR /web/made
RUN id > /tmp/id && touch /tmp/t && cat /tmp/id
USER 1234:4321
RUN id -u > /tmp/n && (umask 0; touch /tmp/o)
"#;

#[test]
fn one_id_gives_the_same_layers_as_sub_ids() {
    let lab = Lab::new();
    lab.rbuild(["import", crate::lab::base("debian.tar").to_str().unwrap(), "debian"]).ok();
    lab.write("Dockerfile", OWNERS).write("f", "f\n").write("secret", "");
    let many = layers(&lab, &["--isolation", "userns"], &[]);
    let text = format!("{many:?}");
    for entry in [
        "33:60 d/a",
        "12:34 d/moved",
        "1000:1000 home/bob/l",
        "0:60 d/dir",
        "1000:60 c",
        "1234:4321 tmp/o",
        "3:4 chr/tmp/x",
    ] {
        let (owner, name) = entry.split_once(' ').unwrap();
        assert!(many.iter().flatten().any(|l| l.contains(owner) && l.contains(name)), "{entry} is not in {text}");
    }
    assert_eq!(layers(&lab, &["--isolation", "single-id"], &[]), many);
    assert_eq!(layers(&lab, &["--isolation", "single-id"], &[("RBUILD_SNAPSHOTS", "copy")]), many);
}

/// Runs a script as root of a container under Docker's default profile: no new namespaces, no
/// mounts.
fn in_a_narrow_container(lab: &Lab, script: &str) -> crate::lab::Ran {
    // The user namespace replaces a container made by a runtime; its root is root here as well.
    let narrow = "echo 0 > /proc/sys/user/max_user_namespaces && \
                  exec setpriv --bounding-set -sys_admin --inh-caps -sys_admin bash -ec \"$0\"";
    let mut command = std::process::Command::new("bash");
    // Root may write the ID maps of a namespace itself. unshare(1) would call newuidmap, which
    // grants sub-IDs only.
    let outer = r#"
        rm -f "$LAB"/made "$LAB"/mapped
        unshare -U -pf --mount-proc bash -c 'echo > "$LAB/made"; while [ ! -s "$LAB/mapped" ]; do sleep 0.05; done
            exec bash -ec "$NARROW" "$SCRIPT"' &
        while [ ! -e "$LAB/made" ]; do sleep 0.05; done
        for map in uid_map gid_map; do echo '0 0 65536' > /proc/$(pgrep -P $!)/$map; done
        echo y > "$LAB/mapped"
        wait $!"#;
    command.args(["-c", outer]).env("NARROW", narrow).env("SCRIPT", script).env("LAB", lab.path(""));
    command.env("RB", crate::lab::rbuild_path());
    lab.run(command)
}

#[test]
fn root_a_container_without_namespaces_and_mounts_can_build() {
    let lab = Lab::new();
    lab.write("Dockerfile", CHANGES).write("secret", "a secret value\n");
    let ran =
        in_a_narrow_container(&lab, "unshare -m true && exit 9; $RB doctor; $RB build --secret id=s,src=secret -t x")
            .ok();
    assert!(ran.stderr.contains("isolation: chroot\nwarning: commands share this machine"), "{}", ran.stderr);
    for line in ["ok  chroot", "ok  networks: host only", "NO  isolated", "this mode cannot mount overlays"] {
        assert!(ran.stdout.contains(line), "{line}: {}", ran.stdout);
    }
    in_a_narrow_container(&lab, "$RB run x cat /e/new && $RB cp x:/f/gone gone && $RB prune -a").ok();
    assert_eq!(lab.read("ctx/gone"), "go\n");
    // If a stronger mode is requested, the error names the obstacle.
    in_a_narrow_container(&lab, "$RB --isolation userns build --no-cache")
        .fails(3, &["cannot create a user namespace"]);
}

#[test]
fn root_background_processes_are_killed_without_a_namespace() {
    let lab = Lab::new();
    let marker = format!("{}88", std::process::id());
    let file = format!("FROM busybox\nRUN (setsid sleep {marker} &) ; (sleep {marker} &) ; echo done\n");
    lab.build(&file, &["--isolation", "chroot"]).ok();
    let left = || std::process::Command::new("pgrep").args(["-f", &format!("sleep {marker}")]).output().unwrap().stdout;
    assert!(left().is_empty());
    // Nothing is left either if the builder is killed without warning.
    lab.write("Dockerfile", format!("FROM busybox\nRUN (setsid sleep {marker} &) ; sleep {marker}\n"));
    let mut child =
        lab.command(["--isolation", "chroot", "build"]).stderr(std::process::Stdio::null()).spawn().unwrap();
    let wait = |wanted: bool| {
        for _ in 0..100 {
            if left().is_empty() != wanted {
                return true;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        false
    };
    assert!(wait(true), "it does not begin");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(wait(false), "left: {}", String::from_utf8_lossy(&left()));
}

#[test]
fn root_nothing_keeps_running_if_several_processes_of_rbuild_are_killed() {
    let child_of = |pid: u32| -> u32 {
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        text.split_whitespace().next().unwrap_or_else(|| panic!("{pid} has no child")).parse().unwrap()
    };
    // Indices of the launcher, the builder, the zygote and the runner in the chain of processes.
    for (i, killed) in [&[1, 2][..], &[1, 2, 3], &[0, 1, 2], &[2, 3]].into_iter().enumerate() {
        let lab = Lab::new();
        let marker = format!("{}99{i}", std::process::id());
        lab.write("Dockerfile", format!("FROM busybox\nRUN (setsid sleep {marker} &) ; sleep {marker}\n"));
        let mut child =
            lab.command(["--isolation", "chroot", "build"]).stderr(std::process::Stdio::null()).spawn().unwrap();
        let find = || {
            let found = std::process::Command::new("pgrep").args(["-f", &format!("^sleep {marker}")]).output().unwrap();
            String::from_utf8(found.stdout).unwrap()
        };
        let wait = |count: usize| {
            (0..100).any(|_| {
                std::thread::sleep(std::time::Duration::from_millis(50));
                find().lines().count() == count
            })
        };
        assert!(wait(2), "it does not begin");
        let mut row = vec![child.id()];
        (0..3).for_each(|i| row.push(child_of(row[i])));
        let row: Vec<String> = killed.iter().map(|i| row[*i].to_string()).collect();
        // Some processes exit because of another's death before their own signal.
        let _ = std::process::Command::new("kill").arg("-9").args(&row).status().unwrap();
        child.wait().unwrap();
        assert!(wait(0), "{killed:?}: left: {}", find());
    }
}

/// Runs a script as a user of another name to whom `/etc/subuid` grants IDs, in a mount namespace
/// prepared by `setup`. `with` is put in front of the command.
fn as_somebody(lab: &Lab, ids: &str, setup: &str, with: &str, script: &str) -> crate::lab::Ran {
    let outer = format!(
        "set -e; (cat /etc/passwd; echo 'somebody:x:61234:61234::/:/bin/sh') > $LAB/passwd; echo '{ids}' > $LAB/ids; \
         chmod 755 $LAB; for f in subuid subgid; do [ -e /etc/$f ] && mount --bind $LAB/ids /etc/$f; done; \
         mount --bind $LAB/passwd /etc/passwd; mkdir -p -m 777 $LAB/theirs $LAB/bin; {setup}; cd $LAB/theirs; \
         export RBUILD_ROOT=$LAB/theirs/store BASES={bases}; \
         exec setpriv --reuid 61234 --regid 61234 --clear-groups {with} bash -ec '{script}'",
        bases = std::env::var("RBUILD_TEST_BASES").unwrap()
    );
    std::fs::write(lab.path("outer"), outer).unwrap();
    lab.sh("unset RBUILD_ISOLATION; unshare -m --propagation private bash $LAB/outer")
}

const GRANTED: &str = "somebody:500000:65536";

#[test]
fn root_each_obstacle_to_sub_ids_is_named_and_worked_around() {
    let lab = Lab::bare();
    let script = "$RB import $BASES/busybox.tar busybox >/dev/null; printf \"FROM busybox\\nRUN id -u\\n\" > Dockerfile; \
                  $RB build --no-cache; $RB --isolation=userns build --no-cache";
    let fine = as_somebody(&lab, GRANTED, "true", "", script).ok();
    assert!(fine.stderr.starts_with("isolation: userns\n"), "{}", fine.stderr);
    let helpers =
        "cp /usr/bin/newuidmap /usr/bin/newgidmap $LAB/bin; chmod 755 $LAB/bin $LAB/bin/*; export PATH=$LAB/bin:$PATH";
    let cases = [
        ("somebody:500000:0", "true", "", "grants user `somebody` no sub-IDs", "usermod --add-subuids"),
        (GRANTED, helpers, "", "neither set-uid root nor has capabilities", "chmod u+s"),
        (
            GRANTED,
            "mount --bind /usr /usr; mount -o remount,bind,nosuid /usr",
            "",
            "mounted with nosuid",
            "remount,suid",
        ),
        (GRANTED, "true", "--no-new-privs", "no_new_privs is set", "allowPrivilegeEscalation: true"),
    ];
    for (ids, setup, with, reason, remedy) in cases {
        let lab = Lab::bare();
        let ran = as_somebody(&lab, ids, setup, with, script).fails(3, &[reason, remedy]);
        assert!(ran.stderr.starts_with("isolation: single-id\n"), "{setup}: {}", ran.stderr);
    }
}

#[test]
fn root_unmapped_ids_are_named() {
    // An image with a file of user 3000, which is outside a range of 1000 IDs and inside one of
    // 65536.
    let image = "mkdir -p r; echo x > r/f; tar --owner=3000 --group=4 -C r -cf i.tar . ; $RB import i.tar high >/dev/null; \
                 printf \"FROM high\\nCOPY --from=high /f /g\\n\" > Dockerfile; $RB --isolation=userns build; $RB --isolation=userns doctor";
    as_somebody(&Lab::bare(), GRANTED, "true", "", image).ok();
    as_somebody(&Lab::bare(), "somebody:500000:1000", "true", "", image)
        .fails(1, &["user ID 3000 is not mapped", "0 to 1000", "/etc/subuid", "--isolation=single-id"]);
    let doctor = "$RB --isolation=userns doctor; true";
    let report = as_somebody(&Lab::bare(), "somebody:500000:1000", "true", "", doctor).ok().stdout;
    assert!(report.contains("users up to 1000") && report.contains("usermod --add-subuids 100000-165535"), "{report}");
    // Ranges granted to other users are not suggested.
    let others = "a:165536:65536\nb:100000:65536\nsomebody:231072:1000";
    let report = as_somebody(&Lab::bare(), others, "true", "", doctor).ok().stdout;
    let command = "grant 65536 more, so that images with higher IDs can be unpacked: sudo usermod --add-subuids 232072-297607 --add-subgids 232072-297607 somebody";
    assert!(report.contains(command), "{report}");
    let none = others.replace("somebody", "c");
    as_somebody(&Lab::bare(), &none, "true", "", &image.replace("doctor", "build")).fails(
        3,
        &["grants user `somebody` no sub-IDs", "--add-subuids 232072-297607 --add-subgids 232072-297607 somebody"],
    );
    // An ID beyond every granted range.
    let beyond = image.replace("3000", "3000000");
    as_somebody(&Lab::bare(), GRANTED, "true", "", &beyond).fails(1, &["user ID 3000000 is not mapped"]);
}

/// Kernels and distributions other than the one of this machine: their settings in /proc are
/// replaced by mounts, and their refusals are produced by other means.
#[test]
fn root_restrictions_of_other_systems_have_specific_remedies() {
    let script = "$RB import $BASES/busybox.tar busybox >/dev/null; printf \"FROM busybox\\nRUN true\\n\" > Dockerfile; \
                  $RB --isolation=userns build";
    let kernel = |name: &str, value: u32| {
        format!(
            "mkdir -p $LAB/k; cp -r /proc/sys/kernel/. $LAB/k 2>/dev/null || true; echo {value} > $LAB/k/{name}; \
             mount --bind $LAB/k /proc/sys/kernel"
        )
    };
    // A helper with set-uid rights that the kernel refuses.
    let refused = "printf \"#!/bin/sh\\necho write to uid_map failed: Operation not permitted >&2; exit 1\\n\" > $LAB/bin/newuidmap; \
                   cp $LAB/bin/newuidmap $LAB/bin/newgidmap; chmod 4755 $LAB/bin/new*; export PATH=$LAB/bin:$PATH";
    let ubuntu = format!("{}; {refused}", kernel("apparmor_restrict_unprivileged_userns", 1));
    as_somebody(&Lab::bare(), GRANTED, &ubuntu, "", script).fails(
        3,
        &["cannot write the ID maps of the user namespace", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"],
    );
    as_somebody(&Lab::bare(), GRANTED, refused, "", script)
        .fails(3, &["cannot write the ID maps of the user namespace", "/etc/subuid and /etc/subgid grant"]);
    // The switch of older Debian kernels. The refusal itself comes from the kernel's own limit,
    // which is hidden from rbuild.
    let lab = Lab::new();
    lab.write("Dockerfile", "FROM busybox\nRUN true\n");
    let debian = format!(
        "{}; echo 0 > /proc/sys/user/max_user_namespaces; mount -t tmpfs x /proc/sys/user; $RB --isolation=userns build",
        kernel("unprivileged_userns_clone", 0)
    );
    std::fs::write(lab.path("debian"), debian).unwrap();
    lab.sh("unshare -Urm bash $LAB/debian")
        .fails(3, &["cannot create a user namespace", "sysctl -w kernel.unprivileged_userns_clone=1"]);
}

/// Uses the system call interface of 32-bit programs: gives a file away, changes its user ID,
/// creates a file, and compares the reported owners.
const OLD_PROGRAM: &str = r#"
static long call(long n, long a, long b, long c, long d) {
    long r;
    __asm__ volatile("int $0x80" : "=a"(r) : "a"(n), "b"(a), "c"(b), "d"(c), "S"(d) : "memory");
    return r;
}
struct stat64 { unsigned char before[24]; unsigned uid, gid; unsigned char rest[64]; };
void _start(void) {
    struct stat64 s;
    unsigned real, effective, saved;
    long bad = 0;
    bad |= call(212, (long)"/given", 33, 34, 0) != 0;                                /* chown32 */
    bad |= (call(195, (long)"/given", (long)&s, 0, 0) != 0 || s.uid != 33 || s.gid != 34) << 1; /* stat64 */
    bad |= (call(300, -100, (long)"/given", (long)&s, 0) != 0 || s.uid != 33) << 2;  /* fstatat64 */
    bad |= (call(214, 50, 0, 0, 0) != 0) << 3;                                       /* setgid32 */
    bad |= (call(213, 33, 0, 0, 0) != 0 || call(199, 0, 0, 0, 0) != 33) << 4;        /* setuid32, getuid32 */
    bad |= (call(209, (long)&real, (long)&effective, (long)&saved, 0) != 0 || saved != 33) << 5; /* getresuid32 */
    long fd = call(5, (long)"/open/made", 0101, 0644, 0);                            /* open */
    bad |= (fd < 0 || call(197, fd, (long)&s, 0, 0) != 0 || s.uid != 33 || s.gid != 50) << 6; /* fstat64 */
    bad |= (call(212, (long)"/given", 0, 0, 0) == 0) << 7;                           /* nobody gives away to root */
    call(1, bad, 0, 0, 0);
}
"#;

/// Failing system calls, by their numbers on x86_64, and the errors they return.
const MISTAKES: &str = r#"perl -e '
    sub errno { my @of = @_; my $got = syscall(shift(@of), @of); print $got == -1 ? $! + 0 : "none", "\n" }
    my $nobody = pack("L", 0xffffffff);
    errno(105, 0xffffffff); errno(106, 0xffffffff); errno(116, 1, $nobody); errno(116, 0x10001, $nobody);
    errno(113, 0xffffffff, 0xffffffff); errno(117, 0xffffffff, 0xffffffff, 0xffffffff);
    sysopen(my $path, "/etc/passwd", 0x200000); errno(93, fileno($path), 1, 1); errno(93, 99, 1, 1);
    errno(260, fileno($path), "", 1, 1, 0x1000); errno(260, fileno($path), "", 1, 1, 0);
    errno(119, 1, 1, 1); errno(117, 1, 1, 1); errno(105, 0); errno(105, 0xffffffff); errno(92, "/etc/passwd", 0, 0); errno(116, 0, 0)
'"#;

#[test]
fn failing_system_calls_return_equal_errors_in_all_modes() {
    let lab = Lab::bare();
    lab.rbuild(["import", base("debian.tar").to_str().unwrap(), "debian"]).ok();
    lab.write("Dockerfile", format!("FROM debian\nRUN {}> /o\n", MISTAKES.replace('\n', " ")));
    let dest = format!("type=local,dest={}", lab.path("out").display());
    for mode in ["userns", "single-id"] {
        lab.rbuild(["--isolation", mode, "build", "-o", &dest]).ok();
        let errors: Vec<_> = lab.read("out/o").lines().map(String::from).collect();
        let wanted = "22 22 22 22 none none 9 9 none 2 none none 1 22 1 1";
        assert_eq!(errors.join(" "), wanted, "{mode}");
    }
}

#[test]
fn a_limit_that_leaves_no_room_for_ids_is_reported() {
    let lab = Lab::new();
    lab.write("Dockerfile", "FROM busybox\nUSER 33\nRUN true\n");
    let messages = [
        "the hard limit on the size of message queues (ulimit -q) is too low to emulate IDs",
        "raise the hard limit on message queues",
    ];
    lab.sh("prlimit --msgqueue=0:0 $RB --isolation single-id build").fails(1, &messages);
}

/// Calls whose flags, links or descriptors are unusual, by their numbers on x86_64; each prints its
/// result and the owner of the file that it may have changed.
const ANSWERS: &str = r#"cd /tmp && touch a && ln -s a l && ln -s /dev/stdin in && ln -s in in2 && ln -s loop loop && ln -s none none-l && perl -e '
    sub got { my ($name, @of) = @_; my $got = syscall(shift(@of), @of);
        my @s = lstat "/tmp/a"; print "$name: ", $got == -1 ? $! + 0 : $got, " $s[4]:$s[5]\n" }
    my ($file, $link, $buf) = ("/tmp/a", "/tmp/l", "\0" x 512); my $omit = pack("q4", 0, 0x3ffffffe, 0, 0x3ffffffe);
    my $some = pack("q4", 1, 2, 3, 4); my $bad = pack("q4", 1, 1000000000, 3, 4);
    open my $own, "<", "/tmp/a"; my $fd = fileno $own; my $missing = "missing"; my $none = "/tmp/none/x";
    for my $bit (map { 1 << $_ } 0 .. 31) {
        got("fchownat $bit", 260, -100, $file, 7, 7, $bit); got("utimensat $bit", 280, -100, $file, $some, $bit);
        got("newfstatat $bit", 262, -100, $file, $buf, $bit); got("statx $bit", 332, -100, $file, $bit, 0x7ff, $buf);
        got("statx mask $bit", 332, -100, $file, 0, $bit, $buf); syscall(260, -100, $file, 0, 0, 0);
    }
    got("statx both", 332, -100, $file, 0x6000, 0x7ff, $buf); got("newfstatat both", 262, -100, $file, $buf, 0x6000);
    for my $path ("/tmp/in", "/tmp/in2", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0", "/tmp/loop", "/tmp/none-l", "/proc/self/exe", "missing", "") {
        got("utimensat $path", 280, -100, $path, $some, 0); got("chown $path", 92, $path, 8, 9) if $path ne "/proc/self/exe";
        got("utimensat of nothing $path", 280, -100, $path, $omit, 0); got("unused flag $path", 260, -100, $path, 1, 1, 0x40);
        syscall(92, $file, 0, 0);
    }
    for my $dir (99, $fd, -1) {
        got("utimensat $dir", 280, $dir, $missing, 0, 0); got("fchownat $dir", 260, $dir, $missing, 1, 1, 0);
        got("newfstatat $dir", 262, $dir, $missing, $buf, 0); got("fchown $dir", 93, $dir, 3, 4); syscall(92, $file, 0, 0);
        got("utimensat null $dir", 280, $dir, 0, $some, 0); got("mkdirat $dir", 258, $dir, $missing, 0755);
    }
    got("utimensat bad", 280, -100, $file, $bad, 0);
    for my $type (map { $_ << 12 } 0 .. 5, 7 .. 15) { my $node = "/tmp/n$type"; got("mknod $type", 133, $node, $type | 0644, 0) }
    got("renameat2 whiteout", 316, -100, $file, -100, $link, 4);
    my $groups = pack("L3", 7, 5, 6); got("setgroups", 116, 3, $groups); got("getgroups", 115, 64, $buf); syscall(115, 64, $buf); print join(" ", unpack("L3", $buf)), "\n";
    chmod 0777, "/tmp"; got("setresgid", 119, 33, 33, 33); got("setresuid", 117, 33, 33, 33);
    for my $type (map { $_ << 12 } 0 .. 15) { my $node = "/tmp/m$type"; got("mknod $type", 133, $node, $type | 0644, 0) }
    got("fchownat", 260, -100, $file, 7, 7, 0x40); got("fchownat", 260, -100, $file, 7, 7, 0);
' < /tmp/a && ls -ln /tmp | while read mode links uid gid rest; do echo "$mode $uid $gid"; done"#;

/// The kernel answers in one mode, the supervisor in the other.
#[test]
fn unusual_system_calls_behave_equally_in_all_modes() {
    let lab = Lab::bare();
    lab.rbuild(["import", base("debian.tar").to_str().unwrap(), "debian"]).ok();
    lab.write("Dockerfile", format!("FROM debian\nRUN ({}) > /o\n", ANSWERS.replace('\n', " ")));
    let dest = format!("type=local,dest={}", lab.path("out").display());
    let [kernels, emulated] = ["userns", "single-id"].map(|mode| {
        lab.rbuild(["--isolation", mode, "build", "-o", &dest]).ok();
        lab.read("out/o")
    });
    let pairs = kernels.lines().zip(emulated.lines());
    let others: Vec<_> = pairs.filter(|(kernels, emulated)| kernels != emulated).collect();
    assert!(others.is_empty() && kernels.lines().count() == emulated.lines().count(), "{others:#?}");
    assert!(kernels.contains("\n5 6 7\n") && kernels.contains("chown /tmp/in2: 0 8:9\n"), "{kernels}");
    assert!(kernels.contains("mknod 8192: 1 ") && kernels.contains("renameat2 whiteout: 22 "), "{kernels}");
}

/// Calls of openat2(2) and of others that create files, by a user who is not root, and the errors
/// or the modes of the files.
const OPENINGS: &str = r#"mkdir -m 777 /open && mkdir /share && chgrp 50 /share && chmod 3777 /share && cd / && perl -e '
    my $groups = pack("L", 60); syscall(116, 1, $groups); syscall(119, 7, 7, 7); syscall(117, 33, 33, 33); umask 0;
    sub how { pack("QQQ", @_) }
    sub opened { my ($path, $how, $size) = @_;
        my $got = syscall(437, -100, $path, $how, $size // length $how); print $got == -1 ? $! + 0 : "made", "\n" }
    opened("/open/a", how(0101, 0644, 0)); opened("/open/b", how(0101, 0644, 0), 16);
    opened("/open/c", how(0101, 0644, 0) . pack("Q", 0)); opened("/open/d", how(0101, 0644, 0) . pack("Q", 1));
    opened("/open/e", how(0101 | 1 << 30, 0644, 0)); opened("/open/f", how(0101 | 1 << 40, 0644, 0));
    opened("/open/g", how(0101, 010644, 0)); opened("/open/h", how(0101, 0644, 1 << 20)); opened("/open/i", how(0200101, 0644, 0));
    opened("/open/j", how(010000101, 0644, 0)); opened("/open/k", how(0101, 0644, 0x18)); opened("/open/l", how(0101, 0644, 2));
    opened("/proc/self/cwd/open/m", how(0101, 0644, 2)); opened("/proc/self/cwd/open/n", how(0101, 0644, 4));
    opened("/proc/self/cwd/open/o", how(0101, 0644, 0)); opened("/dev/fd/1", how(0101, 0644, 2));
    my $n = 0; sub made { my ($file, $fifo) = ("/share/$n", "/share/${n}f"); $n++; syscall(2, $file, 0101, $_[0]); syscall(133, $fifo, 010000 | $_[0], 0) }
    made(02775); made(02765); made(02664); opened("/share/p", how(0101, 02775, 0)); my $dir = "/share/dir"; syscall(83, $dir, 02775);
' && cd /open && ls && cd /share && stat -c "%n %a %U %g" *"#;

#[test]
fn files_are_opened_and_created_alike() {
    let lab = Lab::bare();
    lab.rbuild(["import", base("debian.tar").to_str().unwrap(), "debian"]).ok();
    lab.write("Dockerfile", format!("FROM debian\nRUN ({})> /o\n", OPENINGS.replace('\n', " ")));
    let dest = format!("type=local,dest={}", lab.path("out").display());
    let [kernels, emulated] = ["userns", "single-id"].map(|mode| {
        lab.rbuild(["--isolation", mode, "build", "-o", &dest]).ok();
        lab.read("out/o")
    });
    assert_eq!(emulated, kernels);
    let errors: Vec<&str> = kernels.lines().take(16).collect();
    assert_eq!(errors.join(" "), "made 22 made 7 22 22 22 22 22 22 22 made 40 40 made 40");
    assert!(kernels.contains("0 775 www-data 50\n") && kernels.contains("2 2664 www-data 50\n"), "{kernels}");
}

#[test]
fn owners_work_for_32_bit_programs() {
    let lab = Lab::new();
    lab.write("old.c", OLD_PROGRAM);
    lab.sh("gcc -m32 -O1 -ffreestanding -fno-stack-protector -fno-pic -nostdlib -static -o old old.c").ok();
    let file = "FROM busybox\nCOPY old /old\nRUN touch /given && mkdir -m 777 /open && /old\n";
    for mode in ["userns", "single-id"] {
        lab.write("Dockerfile", file);
        lab.rbuild(["--isolation", mode, "build", "-t", "x"]).ok();
        let layer = lab.top_layer("x");
        assert!(layer.iter().any(|l| l.contains(" 33:34 given")), "{mode}: {layer:?}");
        assert!(layer.iter().any(|l| l.contains(" 33:50 open/made")), "{mode}: {layer:?}");
    }
}

/// Set-id programs that root starts and that a user starts, and one in a memfd, whose bits the
/// kernel ignores.
const SET_IDS: &str = r#"FROM debian
RUN mkdir -m 777 /w && cp /usr/bin/touch /u && cp /u /g && cp /u /b && cp /usr/bin/id /i && chown 33:33 /u && chown 0:44 /g && \
    chown 33:44 /b /i && chmod 4755 /u && chmod 2755 /g && chmod 6755 /b /i
RUN /u /w/u && /g /w/g && /b /w/b && echo root $(/i -u) $(/i -ru) $(/i -g) $(/i -rg) > /w/1
USER 1000:1000
RUN /b /w/user && echo user $(/i -u) $(/i -ru) $(/i -g) $(/i -rg) > /w/2
RUN perl -e 'open my $id, "<", "/usr/bin/id" or die; local $/; my $program = <$id>; my $name = "m"; my $fd = syscall(319, $name, 0); \
      syscall(1, $fd, $program, length $program) == length $program or die; syscall(91, $fd, 06777) == 0 or die; \
      my ($none, $arg) = ("", "id"); my ($args, $vars) = (pack("pQ", $arg, 0), pack("Q", 0)); \
      syscall(322, $fd, $none, $args, $vars, 0x1000); die $!' > /w/3
USER 0
RUN (stat -c '%n %u:%g' /w/* && cat /w/1 /w/2 /w/3) > /o
"#;

#[test]
fn set_id_programs_have_the_same_ids() {
    let lab = Lab::bare();
    lab.rbuild(["import", base("debian.tar").to_str().unwrap(), "debian"]).ok();
    lab.write("Dockerfile", SET_IDS);
    let dest = format!("type=local,dest={}", lab.path("out").display());
    let [kernels, emulated] = ["userns", "single-id"].map(|mode| {
        lab.rbuild(["--isolation", mode, "build", "-o", &dest]).ok();
        lab.read("out/o")
    });
    assert_eq!(emulated, kernels);
    for line in ["/w/u 33:0", "/w/g 0:44", "/w/b 33:44", "/w/user 33:44", "root 33 0 44 0", "user 33 1000 44 1000"] {
        assert!(kernels.lines().any(|other| other == line), "{line}: {kernels}");
    }
    assert!(kernels.contains("uid=1000 gid=1000 groups=1000\n"), "{kernels}");
}
