//! Commands with all capabilities (`RUN --security=insecure`): their abilities, and the limits of
//! their access.

use crate::lab::{Lab, base};

const ALLOW: [&str; 2] = ["--allow", "security.insecure"];

/// Connects to the agent of the command, which the builder serves, and asks for a descriptor of
/// that process. With it, tries to take descriptors of the builder and to join its namespaces.
const REACH: &str = r#"
use Socket;
socket(my $s, PF_UNIX, SOCK_STREAM, 0) or die "socket: $!";
connect($s, sockaddr_un($ENV{SSH_AUTH_SOCK})) or die "connect: $!";
my $pidfd = unpack "i", getsockopt($s, SOL_SOCKET, 77) // die "SO_PEERPIDFD: $!";
my %tries = (descriptor => [438, $pidfd, 3, 0, 0], mounts => [308, $pidfd, 0x20000, 0, 0], user => [308, $pidfd, 0x10000000, 0, 0],
             processes => [308, $pidfd, 0x20000000, 0, 0], signal => [424, $pidfd, 9, 0, 0]);
for my $try (sort keys %tries) {
    my $done = syscall $tries{$try}[0], @{$tries{$try}}[1 .. 4];
    print "$try: ", $done < 0 ? "refused" : "done", "\n";
}
"#;

#[test]
fn an_insecure_command_cannot_reach_the_builder() {
    let lab = Lab::bare();
    lab.rbuild(["import", base("debian.tar").to_str().unwrap(), "debian"]).ok();
    lab.write("reach.pl", REACH).sh("ssh-keygen -q -t ed25519 -N '' -f key").ok();
    let file = "FROM debian\nCOPY reach.pl /\nRUN --security=insecure --mount=type=ssh perl /reach.pl > /o\n";
    let out = lab.build_local(file, &[&ALLOW[..], &["--ssh", "default=key"]].concat());
    let tries = ["descriptor", "mounts", "processes", "signal", "user"];
    assert_eq!(std::fs::read_to_string(out.join("o")).unwrap(), tries.map(|it| format!("{it}: refused\n")).concat());
}

/// Prints the mounts of all processes in the user namespace of a command, which has the right to
/// join their namespaces.
const MOUNTS: &str = r#"
$RB build --allow security.insecure > $LAB/log 2>&1 &
n=0
until p=$(pgrep -f '^sleep 8\.151623$'); do sleep 0.1; n=$((n+1)); [ $n -lt 300 ] || { cat $LAB/log >&2; exit 1; }; done
own=$(readlink /proc/$p/ns/user)
for d in /proc/[0-9]*; do
    [ "$(readlink $d/ns/user 2>/dev/null)" = "$own" ] && echo "process $(tr '\0' ' ' < $d/cmdline)" && cut -d ' ' -f 5 $d/mountinfo
done
kill %1; wait
true
"#;

#[test]
fn an_insecure_command_can_join_no_mounts_with_files_of_the_builder() {
    let lab = Lab::new();
    lab.write("Dockerfile", "FROM busybox\nRUN --security=insecure sleep 8.151623\n");
    let seen = lab.sh(MOUNTS).ok().stdout;
    assert!(seen.contains("process sleep 8.151623") && seen.contains("/dev/null"), "{seen}");
    assert!(!seen.contains("/store") && !seen.contains("/context"), "{seen}");
}

/// Settings of a user namespace: an interpreter for certain programs, which is searched for there
/// and not in the root directory of the program, and the numbers of namespaces.
#[test]
fn an_insecure_command_does_not_change_concurrent_commands() {
    let lab = Lab::new();
    let wait = |name: &str| {
        format!("n=0; while [ ! -e /meet/{name} ]; do sleep 0.1; n=$((n+1)); [ $n -lt 200 ] || exit 1; done")
    };
    let file = format!(
        "FROM busybox AS changing\n\
         RUN --security=insecure --mount=type=cache,target=/meet mkdir /m; mount -t binfmt_misc b /m && \
         echo ':taken:E::taken::/bin/echo:F' > /m/register; \
         for file in /proc/sys/user/max_*; do echo 0 > $file; done; touch /meet/changed; {}; touch /o\n\
         FROM busybox AS other\n\
         RUN echo '#!/bin/sh' > /p.taken && echo 'echo own > /o' >> /p.taken && chmod 755 /p.taken\n\
         RUN --mount=type=cache,target=/meet {}; /p.taken; touch /meet/done\n\
         RUN echo next >> /o\n\
         FROM scratch\nCOPY --from=other /o /\nCOPY --from=changing /o /c\n",
        wait("done"),
        wait("changed")
    );
    let out = lab.build_local(&file, &ALLOW);
    assert_eq!(std::fs::read_to_string(out.join("o")).unwrap(), "own\nnext\n");
}

/// Acts that container runtimes, bootstrapping tools and tests of network programs perform.
const ABLE: &str = r#"
set -e
for d in m l u w; do mkdir -p /tmp/$d; done
mount -t tmpfs x /tmp/m; mkdir /tmp/m/l /tmp/m/u /tmp/m/w
mount -t overlay o -o lowerdir=/tmp/m/l,upperdir=/tmp/m/u,workdir=/tmp/m/w,userxattr /tmp/w
mount --bind /dev /tmp/l; umount /tmp/l
mount -t proc p /tmp/l; test -d /tmp/l/1; umount /tmp/l
umount /tmp/w /tmp/m /etc/hosts
unshare -pfm --mount-proc true
unshare -Ur true
unshare -n true
hostname other
nice -n -5 true
"#;

#[test]
fn an_insecure_command_can_mount_and_make_namespaces() {
    let lab = Lab::bare();
    lab.rbuild(["import", base("debian.tar").to_str().unwrap(), "debian"]).ok();
    lab.write("able.sh", ABLE);
    let file = "FROM debian\nCOPY able.sh /\nRUN --security=insecure sh /able.sh && echo able > /o\n\
                RUN --security=insecure --network=none mount -t sysfs -o ro s /mnt && umount /mnt\n";
    let out = lab.build_local(file, &ALLOW);
    assert_eq!(std::fs::read_to_string(out.join("o")).unwrap(), "able\n");
}

/// The mounts of the machine's device nodes are read-only, and a command cannot change that.
#[test]
fn an_insecure_command_cannot_make_the_devices_writable() {
    let lab = Lab::new();
    let tries = "mount -o remount,bind,rw /dev/null || mount -o remount,rw /dev/null || echo refused > /o";
    let out = lab.build_local(&format!("FROM busybox\nRUN --security=insecure {tries}\n"), &ALLOW);
    assert_eq!(std::fs::read_to_string(out.join("o")).unwrap(), "refused\n");
}

/// Through a cgroup namespace, a command would reach the groups that hold the builder.
#[test]
fn an_insecure_command_cannot_mount_cgroups() {
    let lab = Lab::bare();
    lab.rbuild(["import", base("debian.tar").to_str().unwrap(), "debian"]).ok();
    let tries = "for kind in cgroup2 cgroup; do \
                 mount -t $kind c /mnt || unshare -C mount -t $kind c /mnt || echo $kind refused; done > /o";
    let out = lab.build_local(&format!("FROM debian\nRUN --security=insecure {tries}\n"), &ALLOW);
    assert_eq!(std::fs::read_to_string(out.join("o")).unwrap(), "cgroup2 refused\ncgroup refused\n");
}

/// Other commands of the build use the same isolated network.
#[test]
fn an_insecure_command_uses_the_isolated_network_without_controlling_it() {
    let lab = Lab::new();
    let run = "nc -l -p 81 < /dev/null & sleep 0.5; nc 127.0.0.1 81 < /dev/null && echo served > /o; \
               ip link set lo down || echo kept >> /o; ip route | grep -q ^default && echo connected >> /o";
    let args = [&ALLOW[..], &["--network", "isolated"]].concat();
    let out = lab.build_local(&format!("FROM busybox\nRUN --security=insecure {run}\n"), &args);
    assert_eq!(std::fs::read_to_string(out.join("o")).unwrap(), "served\nkept\nconnected\n");
}

/// BuildKit puts all capabilities into all sets, the ambient one included.
#[test]
fn insecure_commands_of_each_user_keep_all_capabilities() {
    let lab = Lab::new();
    let status = "touch /o; chmod 666 /o; grep ^Cap /proc/self/status | cut -f 2 | sort -u > /o; id -u >> /o";
    for user in ["0", "1000", "1000:1000"] {
        let text =
            format!("FROM busybox\nRUN touch /o && chmod 666 /o\nUSER {user}\nRUN --security=insecure {status}\n");
        let all = std::fs::read_to_string(lab.build_local(&text, &ALLOW).join("o")).unwrap();
        let [capabilities, id] = all.lines().collect::<Vec<_>>()[..] else { panic!("{user}: sets differ: {all}") };
        assert!(u64::from_str_radix(capabilities, 16).is_ok_and(|set| set & 1 << 21 != 0), "{user}: {all}");
        assert!(user.starts_with(id), "{user}: {all}");
    }
}

#[test]
fn a_privileged_container_can_mount_and_one_without_the_capability_cannot() {
    let lab = Lab::new();
    let run = |flags: &[&str], script: &str| {
        lab.rbuild(["run", "--rm"].into_iter().chain(flags.iter().copied()).chain(["busybox", "sh", "-c", script]))
    };
    const MOUNT: &str = "mount -t tmpfs none /mnt 2>/dev/null && echo mounted || echo refused";
    for (flags, expected) in [
        (&["--privileged"][..], "mounted\n"),
        (&["--cap-add", "SYS_ADMIN"], "mounted\n"),
        (&["--cap-add", "ALL", "--cap-drop", "sys_admin"], "refused\n"),
        (&["--cap-add", "ALL", "-u", "33"], "refused\n"),
    ] {
        assert_eq!(run(flags, MOUNT).ok().stdout, expected, "{flags:?}");
    }
    let caps = run(&["--cap-drop", "ALL", "--cap-add", "SYS_PTRACE"], "grep CapEff /proc/self/status").ok().stdout;
    assert_eq!(caps, "CapEff:\t0000000000080000\n");
    lab.rbuild(["run", "-d", "--privileged", "--name", "p", "busybox", "sleep", "1000"]).ok();
    let inner = lab.rbuild(["exec", "p", "sh", "-c", MOUNT]);
    lab.rbuild(["rm", "-f", "p"]).ok();
    assert_eq!(inner.ok().stdout, "mounted\n");
}
