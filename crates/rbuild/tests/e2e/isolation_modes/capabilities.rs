//! Rights that processes give up or must not gain: the kernel decides in one mode, the supervisor
//! in the other.

use crate::lab::{Lab, base};

/// A process makes its capabilities ineffective as another user, and returns to root. It asks the
/// kernel to keep them whatever its users are, and becomes that user.
const REFUSED: &str = r#"
use strict; $| = 1; my $f = "/f"; open my $made, ">", $f;
sub got { my ($name, @of) = @_; my $got = syscall(shift(@of), @of); print "$name ", $got == -1 ? "error " . ($! + 0) : "ok", "\n" }
sub sets { my ($e, $p, $i) = @_; my ($head, $sets) = (pack("Ll", 0x20080522, 0), pack("L6", $e, $p, $i, 0, 0, 0)); (126, $head, $sets) }
my $default = 0xa80425fb;
my @call = sets($default & ~1, $default & ~1, 1 << 21); got("inherit beyond the bounding set", @call[0 .. 2]);
got("chown", 92, $f, 5, 5); got("user", 117, -1, 33, -1);
@call = sets(0, $default, 0); got("none", @call[0 .. 2]); got("root", 117, -1, 0, -1);
got("bits", 157, 28, 4, 0, 0, 0); got("bound", 157, 24, 7, 0, 0, 0);
got("user", 117, 33, 33, 33); got("chown", 92, $f, 44, 44); got("root", 117, 0, 0, 0);
"#;

#[test]
fn refused_changes_of_capabilities_have_no_effect() {
    let dockerfile = "FROM debian\nCOPY refused.pl /r\nRUN perl /r > /o 2>&1\n";
    let [kernels, emulated] = kernels_and_emulated(dockerfile, &[]);
    let begins = "inherit beyond the bounding set error 1\nchown ok\nuser ok\nnone ok\nroot ok\n";
    assert_eq!(kernels, format!("{begins}bits ok\nbound ok\nuser ok\nchown ok\nroot ok\n"));
    // The kernel has no record of the return to root.
    assert_eq!(emulated, format!("{begins}bits error 1\nbound error 1\nuser ok\nchown error 1\nroot error 1\n"));
}

/// Acts of processes with fewer capabilities than they were started with.
const GIVEN_UP: &str = include_str!("given_up.pl");

/// Returns the content of `/o` that a Dockerfile's last stage writes, in the mode in which the
/// kernel maps all IDs and in the one in which they are emulated.
fn kernels_and_emulated(dockerfile: &str, args: &[&str]) -> [String; 2] {
    let lab = Lab::bare();
    lab.rbuild(["import", base("debian.tar").to_str().unwrap(), "debian"]).ok();
    lab.write("given_up.pl", GIVEN_UP).write("forged.pl", FORGED).write("share.pl", SHARE);
    lab.write("refused.pl", REFUSED);
    lab.write("Dockerfile", dockerfile);
    let dest = format!("type=local,dest={}", lab.path("out").display());
    ["userns", "single-id"].map(|mode| {
        lab.rbuild([&["--isolation", mode, "build", "-o", &dest], args].concat()).ok();
        lab.read("out/o")
    })
}

#[test]
fn dropped_capabilities_have_no_effect() {
    let [kernels, emulated] = kernels_and_emulated("FROM debian\nCOPY given_up.pl /g\nRUN perl /g > /o 2>&1\n", &[]);
    let pairs = kernels.lines().zip(emulated.lines());
    let others: Vec<_> = pairs.filter(|(kernels, emulated)| kernels != emulated).collect();
    assert!(others.is_empty() && kernels.lines().count() == emulated.lines().count(), "{others:#?}\n{emulated}");
    let line = |process: &str| kernels.lines().find(|line| line.starts_with(process)).unwrap_or_default();
    for (process, refused) in [
        ("uid55:", &["chown=1", "chmod=1", "times=1", "setcap=1", "chroot=1", "setuid=1"][..]),
        ("kept:", &["chown=1", "chmod=1", "chroot=1", "setgroups=1"]),
        ("files:", &["chown=1", "chmod=1", "chroot=ok", "setgroups=ok"]),
        ("effective -3:", &["chown=ok", "chmod=1", "times=1", "own times=1"]),
        ("kept and raised:", &["chown=ok", "chmod=ok", "chroot=ok"]),
        ("keep 2:", &["chown=1"]),
        ("bits and more:", &["chown=1"]),
        (
            "no header:",
            &["chown=1", "chown -1=ok", "chown -1 suid=1", "touch=13", "touch open=ok", "attribute of other=13"],
        ),
        ("one, and back:", &["chown=ok", "chmod=ok"]),
    ] {
        for answer in refused {
            assert!(line(process).contains(&format!(" {answer}")), "{process} {answer}: {kernels}");
        }
    }
}

/// A traced process gains no IDs from a set-id program, unless it may set its IDs anyway or its
/// tracer may trace everything.
const TRACED: &str = r#"FROM debian
RUN cp /usr/bin/id /u && cp /usr/bin/id /g && chown 33:33 /u && chown 0:44 /g && chmod 4755 /u && chmod 2755 /g && \
    echo 'for my $program ("/u", "/g", "/usr/bin/id") { my $child = fork; if (!$child) { syscall(101, 0, 0, 0, 0); exec $program } \
    waitpid $child, 0; syscall(101, 7, $child, 0, 0); waitpid $child, 0; } exec @ARGV if @ARGV' > /trace.pl && \
    cp /usr/bin/perl /suid && chown 33 /suid && chmod 4755 /suid && install -m 666 /dev/null /o
RUN perl /trace.pl >> /o
USER 1000:1000
RUN perl /trace.pl >> /o; /u >> /o; setpriv --no-new-privs /u >> /o; setpriv --no-new-privs /g >> /o
RUN /suid -e '%ENV = (); system { $_ = "/usr/bin/id" } "id"; my $child = fork; if (!$child) { syscall(101, 0, 0, 0, 0); exec { $_ } "id" } waitpid $child, 0; syscall(101, 7, $child, 0, 0); waitpid $child, 0' >> /o
"#;

#[test]
fn traced_processes_gain_no_ids() {
    let [kernels, emulated] = kernels_and_emulated(TRACED, &[]);
    assert_eq!(emulated, kernels);
    let lines: Vec<&str> = kernels.lines().collect();
    assert!(lines[0].starts_with("uid=0(root) gid=0(root) euid=33") && lines[1].contains("egid=44"), "{kernels}");
    assert!(lines[3..6].iter().all(|line| *line == "uid=1000 gid=1000 groups=1000"), "{kernels}");
    assert!(lines[6].starts_with("uid=1000 gid=1000 euid=33"), "{kernels}");
    assert!(lines[7..9].iter().all(|line| *line == "uid=1000 gid=1000 groups=1000"), "{kernels}");
    // A tracer with all capabilities.
    let able = TRACED.replace("USER 1000:1000\nRUN perl", "USER 0\nRUN --security=insecure perl");
    let [kernels, emulated] = kernels_and_emulated(&able, &["--allow", "security.insecure"]);
    assert_eq!(emulated, kernels);
}

/// A process that executed a set-id program while it was traced, and so without its IDs, requests
/// the same program again in a way that fails, and then changes its auxiliary vector, which is
/// another one after each execution (prctl(2), `PR_SET_MM_MAP`).
const FORGED: &str = r#"
my ($self, $file, $brk) = ("/suid", "/of33", syscall(12, 0));
syscall(59, $self, 1, 0);
open my $stat, "<", "/proc/self/stat"; my $stat_line = <$stat>;
$stat_line =~ s/.*\) //; my @f = ("") x 3; push @f, split / /, $stat_line;
open my $auxv, "<", "/proc/self/auxv"; local $/; my $vector = <$auxv>; substr($vector, 8, 1) ^= "\x10";
my $map = pack("Q11PLl", @f[26, 27, 45, 46, 47], $brk, @f[28, 48 .. 51], $vector, length $vector, -1);
syscall(157, 35, 14, $map, length $map, 0);
print "euid ", syscall(107), " setresuid ", syscall(117, 33, 33, 33), " chown ", syscall(92, $file, 1000, 1000), "\n";
"#;

#[test]
fn an_execution_cannot_be_forged() {
    let dockerfile = r#"FROM debian
COPY forged.pl /
RUN cp /usr/bin/perl /suid && chown 33 /suid && chmod 4755 /suid && touch /of33 && chown 33 /of33 && install -m 666 /dev/null /o
USER 1000:1000
RUN perl -e 'my $child = fork; if (!$child) { syscall(101, 0, 0, 0, 0); exec "/suid", "/forged.pl" } \
        waitpid $child, 0; syscall(101, 17, $child, 0, 0); waitpid $child, 0' >> /o
"#;
    let [kernels, emulated] = kernels_and_emulated(dockerfile, &[]);
    assert_eq!((kernels.as_str(), emulated.as_str()), ("euid 1000 setresuid -1 chown -1\n", kernels.as_str()));
}

/// A set-id program executed by a process that shares its working directory with another one
/// (clone(2), CLONE_FS), and by one that does not.
#[test]
fn processes_that_share_directories_gain_no_ids() {
    let dockerfile = r#"FROM debian
RUN cp /usr/bin/id /u && cp /usr/bin/id /g && chown 33:33 /u && chown 0:44 /g && chmod 4755 /u && chmod 2755 /g && install -m 666 /dev/null /o
COPY share.pl /
RUN perl /share.pl >> /o
USER 1000:1000
RUN perl /share.pl >> /o
"#;
    let [kernels, emulated] = kernels_and_emulated(dockerfile, &[]);
    assert_eq!(emulated, kernels);
    let lines: Vec<_> = kernels.lines().map(|line| line.contains("euid=33") || line.contains("egid=44")).collect();
    assert_eq!(lines, [true, true, true, true, false, true, false, true], "{kernels}");
}

/// By its number on x86_64.
const SHARE: &str = r#"for my $program ("/u", "/g") { for my $flags (0x211, 0x11) {
    my $child = syscall(56, $flags, 0, 0, 0, 0); exec $program if !$child; waitpid $child, 0 } }"#;
