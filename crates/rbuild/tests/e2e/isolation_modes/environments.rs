//! Containers and sandboxes with restrictions: the best available isolation mode is chosen, or the
//! error names the obstacle.

use super::{GRANTED, as_somebody};
use crate::lab::{Lab, Ran};

/// Covers parts of /proc as podman, Docker and Kubernetes do.
const MASK: &str = "for f in acpi asound scsi fs; do if [ -d /proc/$f ]; then mount -t tmpfs -o ro tmpfs /proc/$f; fi; done; \
                    for f in kcore keys timer_list interrupts; do if [ -e /proc/$f ]; then mount --bind /dev/null /proc/$f; fi; done; \
                    for d in bus irq sys; do mount --bind /proc/$d /proc/$d; mount -o remount,bind,ro,nosuid,nodev,noexec /proc/$d; done";

/// Reports the files in /proc that a command can see, and its access to them.
const LOOKS: &str = r#"FROM busybox
RUN test "$(cat /proc/self/comm)" = cat && ls /proc/self/fd > /dev/null && grep -q Pid /proc/1/status && ! (echo x > /proc/sys/kernel/hostname) && \
    test -z "$(cat /proc/keys)" && touch /f && chown 33:34 /f && test "$(stat -c %u:%g /f)" = 33:34 && echo fine > /o && chown 5 /o
RUN for p in /proc/[0-9]*; do if [ $p != /proc/$(readlink /proc/self) ]; then cat $p/environ; ls $p/root/store $p/root/ctx; fi; done 2> /dev/null \
    | tr '\0' '\n' | grep -E 'TELL_NOBODY|^blobs|^trees' && exit 1; true
FROM scratch
COPY --from=0 /o /
"#;

const BUILD: &str = "$RB import $BASES/busybox.tar busybox >/dev/null; cp $LAB/ctx/Dockerfile .; export TELL_NOBODY=1; \
                     $RB doctor; $RB build --no-cache -o type=tar,dest=o.tar . && tar -xOf o.tar o";

#[track_caller]
fn warns_of_processes(ran: Ran, mode: &str) {
    let ran = ran.ok();
    let warning = format!("isolation: {mode}\nwarning: commands can see other processes");
    assert!(ran.stderr.starts_with(&warning), "{}", ran.stderr);
    assert!(ran.stdout.contains(&format!("ok  {mode}")) && ran.stdout.ends_with("fine\n"), "{}", ran.stdout);
    assert!(ran.stdout.contains("NO  proc: parts of /proc are masked"), "{}", ran.stdout);
    assert!(ran.stdout.contains("systempaths=unconfined"), "{}", ran.stdout);
}

#[test]
fn root_a_covered_proc_stays_covered_for_commands() {
    for (ids, mode) in [(GRANTED, "userns"), ("somebody:500000:0", "single-id")] {
        let lab = Lab::bare();
        lab.write("Dockerfile", LOOKS);
        warns_of_processes(as_somebody(&lab, ids, MASK, "", BUILD), mode);
    }
    let lab = Lab::bare();
    lab.write("Dockerfile", LOOKS);
    let script = format!("set -e; {MASK}; export BASES=$RBUILD_TEST_BASES; mkdir $LAB/root; cd $LAB/root; {BUILD}");
    lab.write("script", script);
    warns_of_processes(lab.sh("unset RBUILD_ISOLATION; unshare -m --propagation private bash script"), "userns");
    // Through the container's /proc, a command with all capabilities could reach the builder's
    // files.
    lab.write("Dockerfile", "FROM busybox\nRUN --security=insecure true\n");
    lab.write("script", format!("{MASK}; $RB build --allow security.insecure"));
    lab.sh("unset RBUILD_ISOLATION; unshare -m --propagation private bash script")
        .fails(1, &["an insecure command could reach", "systempaths=unconfined"]);
}

/// Tries to reach the builder's files through links of /proc, with every system call that the
/// supervisor answers, and prints what it reached.
const REACHES: &str = r#"
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>
static int reached;
static void report(int worked, const char *operation, const char *path) {
    if (worked) { printf("%s %s\n", operation, path); reached = 1; }
}
static void at(const char *root) {
    char path[600], list[4096];
    struct timespec now[2] = {{0, UTIME_OMIT}, {0, UTIME_NOW}};
    struct stat s;
    snprintf(path, 600, "%s/store/format.json", root);
    report(!utimensat(AT_FDCWD, path, now, 0), "times", path);
    report(!chown(path, 33, 33), "owner", path);
    report(!stat(path, &s), "stat", path);
    report(listxattr(path, list, 4096) >= 0, "attributes", path);
    snprintf(path, 600, "%s/store/planted", root);
    int fd = open(path, O_CREAT | O_RDWR | O_EXCL, 0755);
    report(fd >= 0, "open", path);
    report(!mkdir(path, 0755), "mkdir", path);
    report(!symlink("x", path), "symlink", path);
    report(!mknod(path, S_IFIFO | 0644, 0), "mknod", path);
    snprintf(path, 600, "%s/store", root);
    report(open(path, O_TMPFILE | O_RDWR, 0644) >= 0, "unnamed", path);
}
static void all(const char *dir, int most) {
    char root[500];
    const char *links[] = {"root", "cwd", "cwd/..", "cwd/../..", "./root", "./cwd"};
    for (int i = 0; i < 6; i++) { snprintf(root, 500, "%s/%s", dir, links[i]); at(root); }
    for (int i = 0; i < most; i++) { snprintf(root, 500, "%s/fd/%d", dir, i); at(root); snprintf(root, 500, "%s/./fd/%d", dir, i); at(root); }
}
static void each(const char *proc) {
    char dir[400], task[450];
    struct dirent *e, *t;
    snprintf(dir, 400, "%s/self", proc); all(dir, 24);
    snprintf(dir, 400, "%s/thread-self", proc); all(dir, 24);
    DIR *d = opendir(proc);
    while ((e = readdir(d))) {
        if (e->d_name[0] < '0' || e->d_name[0] > '9') continue;
        snprintf(dir, 400, "%s/%s", proc, e->d_name); all(dir, 5);
        snprintf(dir, 400, "%s/%s/task", proc, e->d_name);
        DIR *tasks = opendir(dir);
        while (tasks && (t = readdir(tasks))) {
            if (t->d_name[0] == '.') continue;
            snprintf(task, 450, "%s/%s/root", dir, t->d_name); at(task);
        }
        if (tasks) closedir(tasks);
    }
    closedir(d);
}
int main(void) {
    each("/proc");
    symlink("/proc", "/tmp/p");
    symlink("/proc/self/root", "/tmp/r");
    symlink("/proc/self/./root", "/tmp/q");
    all("/tmp/p/self", 24); all("/tmp/p/1", 5); at("/tmp/r"); at("/tmp/q");
    chdir("/proc"); each("."); at("self/root");
    chdir("/proc/self"); all(".", 24); all("../thread-self", 24);
    return reached;
}
"#;

#[test]
fn root_links_of_a_covered_proc_do_not_lead_to_the_builders_files() {
    let lab = Lab::bare();
    let dockerfile =
        "FROM busybox\nCOPY reaches /\nRUN mkdir -m 1777 -p /tmp && /reaches\nUSER 1000:1000\nRUN /reaches\n";
    lab.write("reaches.c", REACHES).write("Dockerfile", dockerfile);
    lab.sh("gcc -static -o reaches reaches.c").ok();
    let build = "$RB import $BASES/busybox.tar busybox >/dev/null; cp $LAB/ctx/Dockerfile $LAB/ctx/reaches .; $RB build --no-cache; ! find . -name planted | grep .";
    for ids in ["somebody:500000:0", GRANTED] {
        as_somebody(&lab, ids, MASK, "", build).ok();
        lab.sh("rm -rf $LAB/theirs").ok();
    }
}

/// A step with a secret, and a concurrent one that looks for it and leaves a file in its root.
const BESIDE: &str = r#"FROM busybox AS victim
RUN --mount=type=secret,id=s --mount=type=secret,id=s,env=TOLD sleep 4; ls / > /found
FROM busybox AS thief
RUN for i in 1 2 3 4 5 6; do sleep 0.5; for p in /proc/[0-9]*; do if [ $p != /proc/$(readlink /proc/self) ]; then     cat $p/root/run/secrets/s $p/environ $p/cwd/run/secrets/s; ls $p/fd/; echo x > $p/root/planted; fi; done; done 2> /dev/null | tr '\0' '\n' > /seen;     grep -c . /proc/[0-9]*/comm > /names; true
FROM scratch
COPY --from=victim /found /
COPY --from=thief /seen /names /
"#;

#[test]
fn root_concurrent_steps_are_inaccessible_where_proc_is_covered() {
    for ids in ["somebody:500000:0", GRANTED] {
        let lab = Lab::bare();
        lab.write("Dockerfile", BESIDE);
        let build = "$RB import $BASES/busybox.tar busybox >/dev/null; cp $LAB/ctx/Dockerfile .; echo kept-to-itself > s; \
                     $RB build --no-cache --secret id=s,src=s -o type=tar,dest=o.tar . && tar -xf o.tar && cat seen found && ! grep planted found && ! grep -E \"kept|TOLD\" seen";
        as_somebody(&lab, ids, MASK, "", build).ok();
    }
    let lab = Lab::bare();
    lab.write("Dockerfile", BESIDE);
    lab.write("script", format!("set -e; {MASK}; $RB import $RBUILD_TEST_BASES/busybox.tar busybox; echo kept-to-itself > s; $RB build --no-cache --secret id=s,src=s -o type=tar,dest=o.tar . ; tar -xf o.tar; cat seen found; ! grep planted found && ! grep -E 'kept|TOLD' seen"));
    lab.sh("unset RBUILD_ISOLATION; unshare -m --propagation private bash script").ok();
}

/// A program in which the second thread changes and reads owners.
const THREADED: &str = r#"
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>
static int bad = 1;
static void *work(void *none) {
    struct stat s;
    if (chdir("/dir")) return none;
    int fd = open("given", O_CREAT | O_RDWR, 0644);
    bad = fchown(fd, 33, 34) || stat("given", &s) || s.st_uid != 33 || s.st_gid != 34 || fstat(fd, &s) || s.st_uid != 33;
    return none;
}
int main(void) {
    pthread_t thread;
    pthread_create(&thread, 0, work, 0);
    pthread_join(thread, 0);
    return bad;
}
"#;

#[test]
fn root_owners_work_for_threads_where_proc_is_covered() {
    let lab = Lab::bare();
    lab.write("threaded.c", THREADED)
        .write("Dockerfile", "FROM busybox\nCOPY threaded /\nRUN mkdir /dir && /threaded\n");
    lab.sh("gcc -static -pthread -o threaded threaded.c").ok();
    let build =
        "$RB import $BASES/busybox.tar busybox >/dev/null; cp $LAB/ctx/Dockerfile $LAB/ctx/threaded .; $RB build";
    as_somebody(&lab, "somebody:500000:0", MASK, "", build).ok();
}

/// Runs a program for which the system calls named before it fail with EPERM, as under a
/// container's seccomp filter.
const DENY: &str = r#"
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
static const struct { const char *name; unsigned number; } calls[] = {
    {"sethostname", SYS_sethostname}, {"pivot_root", SYS_pivot_root}, {"move_mount", SYS_move_mount}, {"mount", SYS_mount},
};
int main(int count, char **words) {
    int i = 1;
    if (geteuid()) prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    for (; i < count && strcmp(words[i], "--"); i++)
        for (int c = 0; c < 4; c++)
            if (!strcmp(words[i], calls[c].name)) {
                struct sock_filter steps[] = {
                    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
                    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[c].number, 0, 1),
                    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
                    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
                };
                struct sock_fprog program = {4, steps};
                if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) return 9;
            }
    execvp(words[i + 1], words + i + 1);
    return 8;
}
"#;

fn denying(calls: &str, script: &str) -> Ran {
    let lab = Lab::new();
    lab.write("deny.c", DENY).write("Dockerfile", "FROM busybox\nRUN hostname && id -u\n");
    lab.sh("gcc -static -o deny deny.c").ok();
    lab.sh(&format!("unset RBUILD_ISOLATION; ./deny {calls} -- {script}"))
}

#[test]
fn a_denied_sethostname_is_tolerated() {
    denying("sethostname", "$RB build").ok();
}

#[test]
fn root_without_mounts_falls_back_to_chroot() {
    let ran = denying("move_mount mount", "$RB build").ok();
    assert!(ran.stderr.starts_with("isolation: chroot\nwarning: commands share this machine"), "{}", ran.stderr);
    let report = denying("pivot_root", "$RB doctor").ok().stdout;
    assert!(report.contains("ok  chroot"), "{report}");
    // If a stronger mode is requested, the error names the obstacle.
    denying("pivot_root", "$RB --isolation userns build").fails(1, &["cannot enter the new root directory"]);
}

#[test]
fn root_a_missing_proc_is_reported() {
    let lab = Lab::new();
    lab.write("Dockerfile", "FROM busybox\nRUN true\n");
    lab.write("script", "mount -t tmpfs none /proc; $RB $WHAT");
    for what in ["build", "--isolation=single-id build", "--isolation=chroot build"] {
        lab.sh(&format!("unset RBUILD_ISOLATION; WHAT='{what}' unshare -m --propagation private bash script"))
            .fails(3, &["`/proc` is not mounted", "mount -t proc proc /proc"]);
    }
    let doctor = lab.sh("unset RBUILD_ISOLATION; WHAT=doctor unshare -m --propagation private bash script");
    assert!(doctor.stdout.contains("`/proc` is not mounted") && doctor.code == Some(3), "{}", doctor.stdout);
}

#[test]
fn root_without_capabilities_is_advised_to_use_another_user() {
    let lab = Lab::new();
    lab.write("Dockerfile", "FROM busybox\nRUN true\n");
    let without = "unset RBUILD_ISOLATION; setpriv --bounding-set=-all --inh-caps=-all";
    lab.sh(&format!("{without} $RB build")).fails(3, &["root without CAP_SETUID", "or run rbuild as an ordinary user"]);
    let doctor = lab.sh(&format!("{without} $RB doctor"));
    assert!(doctor.stdout.contains("or run rbuild as an ordinary user") && doctor.code == Some(3), "{}", doctor.stdout);
}

#[test]
fn root_a_missing_device_is_named() {
    let lab = Lab::new();
    lab.write("Dockerfile", "FROM busybox\nRUN true\n");
    let devices = "mount -t tmpfs none /dev; for n in 'null 3' 'zero 5' 'random 8' 'urandom 9'; do set -- $n; mknod -m 666 /dev/$1 c 1 $2; done";
    lab.write("script", format!("{devices}; $RB build"));
    let ran = lab.sh("unset RBUILD_ISOLATION; unshare -m --propagation private bash script");
    ran.fails(1, &["`/dev/full` is missing on this machine", "mknod -m 666 /dev/full c 1 7"]);
}

#[test]
fn container_creation_errors_report_the_cause() {
    let lab = Lab::new();
    let ran =
        lab.build("FROM busybox\nRUN --mount=type=tmpfs,target=/proc/nowhere true\n", &["--isolation", "single-id"]);
    let ran = ran.fails(1, &["cannot start the command", "/proc/nowhere"]);
    assert!(!ran.stderr.contains("cleanup") && !ran.stderr.contains("cgroup"), "{}", ran.stderr);
}

/// Owners of links are in their access times, which such a file system overwrites.
#[test]
fn root_single_id_refuses_a_store_mounted_with_strictatime() {
    let lab = Lab::bare();
    lab.write("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let build = |mode: &str, options: &str| {
        lab.sh(&format!(
            "unshare -m sh -c 'mkdir -p store && mount -t tmpfs -o {options} t store && \
             RBUILD_ROOT=$PWD/store $RB --isolation {mode} build -o type=tar,dest=o.tar .'"
        ))
    };
    build("single-id", "strictatime").fails(1, &["strictatime", "relatime or noatime"]);
    build("single-id", "noatime").ok();
    build("single-id", "relatime").ok();
    build("userns", "strictatime").ok();
}

/// Settings that the kernel lets every process of the user write.
#[test]
fn root_settings_of_other_processes_are_read_only_where_proc_is_covered() {
    let tries = "for p in /proc/[0-9]*; do for f in oom_score_adj=987 coredump_filter=0x7f autogroup=19 clear_refs=1; do \
                 { echo ${f#*=} > $p/${f%=*}; } 2> /dev/null && echo $p/${f%=*} >> /written; done; done; \
                 test ! -e /written && test -r /proc/self/status && echo through > /proc/self/fd/1 && echo ran > /dev/stderr";
    let build = "$RB import $BASES/busybox.tar busybox >/dev/null; cp $LAB/ctx/Dockerfile .; \
                 sleep 100 & cat /proc/$!/oom_score_adj > before; $RB build --no-cache; cmp before /proc/$!/oom_score_adj; kill $!";
    for ids in ["somebody:500000:0", GRANTED] {
        let lab = Lab::bare();
        lab.write("Dockerfile", format!("FROM busybox\nRUN {tries}\n"));
        as_somebody(&lab, ids, MASK, "", build).ok();
    }
    let lab = Lab::bare();
    lab.write("Dockerfile", format!("FROM busybox\nRUN {tries}\n"));
    lab.write(
        "script",
        format!("set -e; {MASK}; $RB import $RBUILD_TEST_BASES/busybox.tar busybox; $RB build --no-cache"),
    );
    lab.sh("unset RBUILD_ISOLATION; unshare -m --propagation private bash script").ok();
}

/// Executes rbuild below a filter with a listener, as container runtimes install one that intercept
/// system calls. The listener stays open.
const INTERCEPTED: &str = r#"
my $steps = pack "SCCL", 6, 0, 0, 0x7fff0000;
my $program = pack "Sx6P", 1, $steps;
syscall(157, 38, 1, 0, 0, 0) == 0 or die "no_new_privs: $!";
my $listener = syscall(317, 1, 8, $program);
$listener >= 0 or die "seccomp: $!";
syscall(72, $listener, 2, 0);
exec @ARGV;
"#;

#[test]
fn a_program_that_intercepts_system_calls_is_named() {
    let lab = Lab::new();
    lab.write("around.pl", INTERCEPTED).write("Dockerfile", "FROM busybox\nRUN true\n");
    let messages = ["another program intercepts the system calls of rbuild", "sub-IDs"];
    lab.sh("perl around.pl $RB --isolation single-id build").fails(1, &messages);
    let doctor = lab.sh("perl around.pl $RB --isolation single-id doctor").ok().stdout;
    assert!(messages.iter().all(|text| doctor.contains(text)), "{doctor}");
    let outside = lab.sh("$RB --isolation single-id doctor").ok().stdout;
    assert!(!outside.contains(messages[0]), "{outside}");
}
