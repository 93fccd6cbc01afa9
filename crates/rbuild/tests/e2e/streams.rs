//! The standard streams of commands, and other file descriptors that are open in the caller.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::lab::Lab;

/// Reports the kind of each standard stream, pipe or file, and tries file operations through its
/// descriptor.
const TRY: &str = r#"
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
int main(void) {
    struct stat of[3];
    for (int fd = 0; fd < 3; fd++) fstat(fd, &of[fd]);
    for (int fd = 0; fd < 3; fd++) fprintf(stderr, S_ISFIFO(of[fd].st_mode) ? "pipe " : "file ");
    for (int fd = 0; fd < 3; fd++) {
        if (S_ISCHR(of[fd].st_mode)) continue; /* Never the machine's own device nodes. */
        if (ftruncate(fd, 0)) {}
        if (fchmod(fd, 0777)) {}
        lseek(fd, 0, SEEK_SET);
    }
}
"#;

#[test]
fn a_command_has_pipes_and_not_the_callers_files() {
    let lab = Lab::new();
    lab.write("try.c", TRY).sh("cc -static -o try try.c").ok();
    lab.build("FROM busybox\nCOPY try /\n", &["-t", "x"]).ok();
    for (name, content) in [("in", "kept in"), ("out", "kept out\n"), ("err", "kept err\n")] {
        std::fs::write(lab.path(name), content).unwrap();
        std::fs::set_permissions(lab.path(name), PermissionsExt::from_mode(0o640)).unwrap();
    }
    lab.sh("$RB run -i x /try 0<>$LAB/in 1>>$LAB/out 2>>$LAB/err").ok();
    assert_eq!((lab.read("in"), lab.read("out")), ("kept in".into(), "kept out\n".into()));
    assert_eq!(lab.read("err"), "kept err\npipe pipe pipe ");
    // The same for steps, whose standard input is empty.
    lab.write("Dockerfile", "FROM x\nRUN [\"/try\"]\n");
    lab.sh("$RB build --progress plain . 0<>$LAB/in 1>>$LAB/out 2>>$LAB/err").ok();
    let bare = std::env::var_os("RBUILD_ISOLATION").is_some_and(|mode| mode == "chroot");
    let expected = if bare { " pipe pipe pipe" } else { " file pipe pipe" };
    assert!(lab.read("err").contains(expected), "{}", lab.read("err"));
    assert!(lab.read("in") == "kept in" && lab.read("out").starts_with("kept out\n"));
    for name in ["in", "out", "err"] {
        assert_eq!(std::fs::metadata(lab.path(name)).unwrap().mode() & 0o7777, 0o640, "{name}");
    }
}

#[test]
fn descriptors_that_the_caller_has_open_do_not_reach_commands() {
    let lab = Lab::new();
    std::fs::write(lab.path("secret"), "of the caller\n").unwrap();
    lab.write("Dockerfile", "FROM busybox\nRUN ! cat <&7 && ! cat <&30\nRUN ! (echo x >&7)\n");
    let ran =
        lab.sh("exec 7<>$LAB/secret 30<$LAB/secret; $RB build . && $RB run busybox sh -c '! cat <&7 && ! cat <&30'");
    assert!(!ran.ok().stdout.contains("of the caller"));
    assert_eq!(lab.read("secret"), "of the caller\n");
}

#[test]
fn command_output_is_complete_and_in_order() {
    let lab = Lab::new();
    let lines = "for i in $(seq 2000); do echo o$i; echo e$i >&2; done; exit 3";
    let ran = lab.sh(&format!("$RB run busybox sh -c '{lines}' > $LAB/both 2>&1"));
    assert_eq!(ran.code, Some(3));
    let expected: String = (1..=2000).map(|i| format!("o{i}\ne{i}\n")).collect();
    assert!(lab.read("both") == expected, "{}", lab.read("both"));
    let large = "head -c 50000000 /dev/zero | tr '\\0' x; echo end";
    let ran =
        lab.sh(&format!("$RB run busybox sh -c \"{large}\" > $LAB/large; stat -c %s $LAB/large; tail -c 4 $LAB/large"));
    assert_eq!(ran.ok().stdout, "50000004\nend\n");
    // A slow reader of one stream does not delay the other.
    let ran = lab.sh("$RB run busybox sh -c 'head -c 3000000 /dev/zero & echo first >&2; wait' 2>$LAB/first | \
                      (until grep -q first $LAB/first; do sleep 0.01; done; wc -c)");
    assert_eq!(ran.ok().stdout, "3000000\n");
}

#[test]
fn a_closed_output_pipe_ends_the_command() {
    let lab = Lab::new();
    // SIGPIPE does not kill PID 1 of a PID namespace, so the command exits on its own.
    let ran = lab.sh("$RB run busybox yes | head -1; echo ${PIPESTATUS[0]}").ok();
    assert!(["y\n141\n", "y\n1\n"].contains(&ran.stdout.as_str()), "{}", ran.stdout);
    assert_eq!(lab.sh("$RB run busybox sh -c 'yes; exit $?' | head -1; echo ${PIPESTATUS[0]}").ok().stdout, "y\n141\n");
    let ran =
        lab.sh("$RB run busybox sh -c 'sleep 0.5; echo x || exit 9' 2>/dev/null | true; echo ${PIPESTATUS[0]}").ok();
    assert!(["141\n", "9\n"].contains(&ran.stdout.as_str()), "{}", ran.stdout);
    // Input that the command does not read is left unread and does not end it.
    let ran = lab.sh("yes | $RB run -i busybox sh -c 'read x; echo $x; exit 4'; echo ${PIPESTATUS[*]}");
    assert_eq!(ran.ok().stdout, "y\n141 4\n");
    let ran = lab.sh("(sleep 5; echo late) | (time -p $RB run -i busybox true) 2>&1 | sed -n 's/^real //p'");
    assert!(ran.stdout.trim().parse::<f32>().is_ok_and(|seconds| seconds < 4.5), "{}", ran.stdout);
}

#[test]
fn any_user_can_open_its_streams_by_name() {
    let lab = Lab::new();
    lab.build("FROM busybox\nUSER web\nRUN echo one > /dev/stdout; echo two > /dev/stderr\n", &["-t", "x"]).ok();
    let ran = lab.sh("$RB run -i x sh -c 'cat /dev/stdin > /dev/stdout; echo two > /dev/stderr' <<< one").ok();
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("one\n", "two\n"));
}
