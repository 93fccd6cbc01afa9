//! Files that several processes create and remove, and paths that the supervisor does not resolve.

use super::roots::kernels_and_emulated;

/// Four processes of one user create and remove a lock file, and three others append to a log that
/// a fourth one renames. Prints the number of files that belong to another user.
const RACES: &str = r#"
mkdir "/t"; chown 33, 33, "/t";
my %works = (
    lock => sub { if (sysopen my $f, "/t/lock", 0302, 0644) { my $own = (stat $f)[4] == 33; close $f; unlink "/t/lock"; return !$own } 0 },
    log => sub { sysopen my $f, "/t/log", 02101, 0644 or return 0; syswrite $f, "x"; (stat $f)[4] != 33 },
    rename => sub { rename "/t/log", "/t/log.1"; select undef, undef, undef, 0.001; 0 },
);
for my $acts ([("lock") x 4], [("log") x 3, "rename"]) {
    my @children = map {
        my $work = $works{$_}; pipe my $from, my $to; my $child = fork;
        if (!$child) { user(33); my ($wrong, $end) = (0, time + 3); while (time < $end) { $wrong += $work->() } syswrite $to, "$wrong\n"; exit 0 }
        $from
    } @$acts;
    my $wrong = 0; $wrong += readline $_ for @children; 1 while wait != -1;
    print "$acts->[0]: $wrong of another user\n";
}
"#;

#[test]
fn files_that_processes_create_at_the_same_time_have_their_owner() {
    let [kernels, emulated] = kernels_and_emulated("", RACES);
    assert_eq!(emulated, kernels);
    assert_eq!(kernels, "lock: 0 of another user\nlog: 0 of another user\n");
}

/// Opens of existing files of each kind with O_CREAT, by a user.
const EXISTING: &str = r#"
mkdir "/t"; chmod 0777, "/t"; my ($made, $fifo) = (fork, "/t/fifo"); if (!$made) { exit 0 } waitpid $made, 0;
put("/t/file", "text"); put("/t/other", "text"); chown 33, 33, "/t/file"; chmod 0666, "/t/other"; chown 44, 44, "/t/other";
mkdir "/t/dir"; symlink "file", "/t/link"; symlink "none/x", "/t/broken"; symlink "new", "/t/dangling"; symlink "dir", "/t/to-dir"; syscall(133, $fifo, 010666, 0);
use Socket; socket(my $s, PF_UNIX, SOCK_STREAM, 0); bind $s, sockaddr_un("/t/socket"); chmod 0777, "/t/socket"; chmod 0666, $fifo;
sub opens { my ($path, $flags, $name) = @_; my $fd = got("$name $path", 2, $path, $flags, 0640); return if $fd < 0; my @s = stat "/proc/self/fd/$fd"; printf "  %o %d:%d of %d, %o, %d\n", @s[2, 4, 5], -f _ ? $s[7] : 0, flags($fd); syscall(3, $fd) }
sub flags { my ($fd) = @_; open my $info, "<", "/proc/self/fdinfo/$fd"; my ($flags) = map /^flags:\s*(\d+)/, <$info>; # Without O_NOFOLLOW, which has no effect on an open file.
    (oct($flags) & ~0400000, $flags =~ /2\d{6}$/ ? 1 : 0) }
open my $held, "<", "/t/file";
child(sub {
    user(33);
    for my $path (map("/t/$_", qw(file other dir link broken to-dir socket file/x dir/ file/ none/x . ..)), "/dev/null", "/dev/fd/" . fileno $held, "") {
        opens($path, 0102, "create"); opens($path, 0302, "exclusive"); opens($path, 0400102, "nofollow"); opens($path, 02000101, "close-on-exec"); opens($path, 010000102, "path"); opens($path, 02101, "append");
    }
    opens($fifo, 0102, "create"); opens($fifo, 0302, "exclusive");
    opens("/t/dangling", 0302, "exclusive"); opens("/t/dangling", 0400102, "nofollow"); opens("/t/dangling", 0102, "create"); opens("/t/dangling", 0302, "exclusive");
    opens("/t/file", 01102, "truncate"); own("/t/file"); own("/t/new");
});
"#;

#[test]
fn existing_files_are_opened_alike_with_and_without_o_creat() {
    let [kernels, emulated] = kernels_and_emulated("", EXISTING);
    let pairs = kernels.lines().zip(emulated.lines());
    let others: Vec<_> = pairs.filter(|(kernels, emulated)| kernels != emulated).collect();
    assert!(others.is_empty() && kernels.lines().count() == emulated.lines().count(), "{others:#?}\n{emulated}");
    for line in
        ["create /t/file ok", "exclusive /t/file error 17", "create /t/dir error 21", "/t/new: 100640 33:33 of 0"]
    {
        assert!(kernels.lines().any(|other| other == line), "{line}: {kernels}");
    }
}

/// A user whose descriptors are all in use opens files that the call would change or create.
const NO_DESCRIPTOR: &str = r#"
my ($all, $none) = (pack("QQ", 4096, 4096), pack("QQ", 3, 4096));
mkdir "/t"; chown 33, 33, "/t"; put("/t/f", "text"); chown 33, 33, "/t/f";
child(sub {
    user(33); got("limit", 160, 7, $none);
    for (["/t/f", 01101, "truncate"], ["/t/f", 0101, "create"], ["/t/new", 0302, "exclusive"], ["/t/none/x", 0101, "missing"], ["/t", 020200002, "unnamed"]) { my ($path, $flags, $name) = @$_; got($name, 2, $path, $flags, 0644) }
    got("limit", 160, 7, $all); own("/t/f"); own("/t/new"); creates("/t/new"); own("/t/new");
});
"#;

#[test]
fn an_open_without_a_free_descriptor_changes_no_file() {
    let [kernels, emulated] = kernels_and_emulated("", NO_DESCRIPTOR);
    assert_eq!(emulated, kernels);
    assert!(
        kernels.contains("truncate error 24\ncreate error 24\nexclusive error 24\nmissing error 24\n"),
        "{kernels}"
    );
    assert!(kernels.contains("/t/f: 100644 33:33 of 4\n/t/new: none\ncreate /t/new ok\n"), "{kernels}");
}

/// The holder of a lease opens a file before it gives the lease up, while another process waits for
/// the leased file.
const LEASE: &str = r#"
mkdir "/t"; put("/t/f", "text"); chown 33, 33, "/t/f"; chown 33, 33, "/t"; pipe my $ready, my $leased;
my $holder = fork; if (!$holder) {
    user(33); open my $f, "+<", "/t/f"; my $done = 0;
    $SIG{IO} = sub { creates("/t/log"); print "lease ", fcntl($f, 1024, 2) ? "released" : $!, "\n"; $done = 1 };
    print "lease ", fcntl($f, 1024, 1) ? "held" : $!, "\n"; syswrite $leased, "x"; my $end = time + 30; while (!$done && time < $end) { select undef, undef, undef, 0.1 } exit 0
}
sysread $ready, my $x, 1;
child(sub {
    user(33); my ($path, $start) = ("/t/f", time);
    my $fd = got("create", 2, $path, 01101, 0644); print time - $start < 20 ? "in time\n" : "too late\n"; own($path); own("/t/log");
});
waitpid $holder, 0;
"#;

#[test]
fn other_calls_are_answered_while_an_open_waits_for_a_lease() {
    let [kernels, emulated] = kernels_and_emulated("", LEASE);
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&emulated), sorted(&kernels));
    for line in ["lease held", "in time", "create ok", "/t/f: 100644 33:33 of 0"] {
        assert!(kernels.lines().any(|other| other == line), "{line}: {kernels}");
    }
}

/// Changes owners by paths over links of /proc of another process, and replaces /dev/fd.
const UNRESOLVED: &str = r#"
mkdir "/t"; put("/t/f", ""); put("/t/program", ""); put("/t/held", "");
my $other = fork; if (!$other) { sleep 100; exit 0 }
sub owned { my ($path) = @_; chown 33, 33, "/t/f"; print chown(0, 0, $path) ? "changed" : "refused", " to ", (stat "/t/f")[4] ? "other" : "root", "\n" }
owned("/proc/$other/root/t/f"); symlink "/proc/$other/root/t/f", "/t/link"; owned("/t/link"); owned("/t/f"); owned("/t/none/f");
chown 0, 0, "/t/program"; chmod 04755, "/t/program";
child(sub { user(33); my $path = "/proc/$other/root/t/program"; got("chown", 92, $path, 0, 0) }); printf "%o\n", (stat "/t/program")[2];
kill 9, $other;
open my $held, "<", "/t/held"; my $n = fileno $held; my $file = "/dev/fd/$n";
chown 33, 33, "/t/held"; print((stat $file)[4], "\n"); unlink "/dev/fd"; mkdir "/dev/fd"; put($file, "x"); chown 35, 35, $file; print((stat $file)[4], "\n");
chown 36, 36, $file; print((stat $file)[4], " ", (stat "/t/held")[4], "\n");
unlink "/dev/stdout"; put("/dev/stdout", "of a file"); chown 37, 37, "/dev/stdout"; print((stat "/dev/stdout")[4, 7], "\n");
"#;

/// The supervisor follows only links to the caller's own files. Other calls fail; none is left to
/// the kernel, which maps root only.
#[test]
fn a_change_of_owner_by_path_succeeds_or_fails_visibly() {
    let [kernels, emulated] = kernels_and_emulated("", UNRESOLVED);
    let end = "refused to other\nchown error %\n104755\n33\n35\n36 33\n379\n";
    assert_eq!(
        kernels,
        format!("changed to root\nchanged to root\nchanged to root\n{end}").replace("error %", "error 13")
    );
    assert_eq!(
        emulated,
        format!("refused to other\nrefused to other\nchanged to root\n{end}").replace("error %", "error 40")
    );
}

#[test]
fn the_message_queue_limit_applies_with_emulated_ids() {
    let [kernels, emulated] = ["userns", "single-id"].map(|mode| {
        let lab = crate::lab::Lab::new();
        lab.write(
            "Dockerfile",
            "FROM busybox\nUSER 5\nRUN id -u\nUSER 0\nRUN awk '/msgqueue/ { print $5 }' /proc/self/limits > /o\n",
        );
        let dest = format!("type=local,dest={}", lab.path("out").display());
        lab.rbuild(["--isolation", mode, "build", "--ulimit", "msgqueue=1000:2000", "-o", &dest]).ok();
        lab.read("out/o")
    });
    assert_eq!(emulated, kernels);
    assert_eq!(kernels, "2000\n");
}
