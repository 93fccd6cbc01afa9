//! Calls whose paths are resolved in another root directory or other mounts than the container's:
//! the kernel resolves them in one mode, the supervisor in the other.

use crate::lab::{Lab, base};

/// Returns the content of `/o` that a command writes, in the mode in which the kernel maps all IDs
/// and in the one in which they are emulated.
pub(super) fn kernels_and_emulated(security: &str, script: &str) -> [String; 2] {
    let lab = Lab::bare();
    lab.rbuild(["import", base("debian.tar").to_str().unwrap(), "debian"]).ok();
    lab.write("acts.pl", format!("{ACTS}{script}"));
    lab.write("Dockerfile", format!("FROM debian\nCOPY acts.pl /\nRUN {security} perl /acts.pl > /o\n"));
    let dest = format!("type=local,dest={}", lab.path("out").display());
    ["userns", "single-id"].map(|mode| {
        lab.rbuild(["--isolation", mode, "build", "--allow", "security.insecure", "-o", &dest]).ok();
        lab.read("out/o")
    })
}

/// Acts by their numbers on x86_64; each prints its result.
const ACTS: &str = r#"use strict; $| = 1;
sub got { my ($name, @of) = @_; my $got = syscall(shift(@of), @of); print "$name ", $got == -1 ? "error " . ($! + 0) : "ok", "\n"; $got }
sub own { my ($path) = @_; my @s = lstat $path; print "$path: ", @s ? sprintf("%o %d:%d of %d", @s[2, 4, 5], -d _ ? 0 : $s[7]) : "none", "\n" }
sub put { my ($path, $text) = @_; open my $f, ">", $path or print "$path $!\n"; print $f $text }
sub user { my ($id) = @_; syscall(116, 0, 0); syscall(119, $id, $id, $id); syscall(117, $id, $id, $id) }
sub child { my ($act) = @_; my $child = fork; if (!$child) { $act->(); exit 0 } waitpid $child, 0 }
sub creates { my ($path) = @_; my $fd = got("create $path", 2, $path, 0102, 0644); syscall(3, $fd) }
"#;

/// A command with all capabilities leaves its mount namespace, and then changes its root directory.
const LEAVES: &str = r#"
my ($t, $tmpfs, $m, $new, $put_old, $all, $f, $x) = ("t", "tmpfs", "/m", "/new", "/new/old", "/", "/m/f", "/x");
mkdir "/m"; mkdir "/new"; put("/m/f", "of the image"); put("/x", "of the image"); chown 33, 34, "/m/f"; chown 44, 44, "/x";
child(sub {
    got("unshare", 272, 0x20000); got("private", 165, 0, $all, 0, 0x44000, 0); got("mount", 165, $t, $m, $tmpfs, 0, 0);
    put("/m/f", "in"); own("/m/f"); chown 55, 55, "/m/f"; own("/m/f"); utime 1000, 1000, "/m/f"; print((stat "/m/f")[9], "\n");
    open my $file, "<", "/m/f"; print join(" ", (stat $file)[4, 7, 9]), "\n";
    got("mount", 165, $t, $new, $tmpfs, 0, 0); mkdir "/new/old"; chmod 0777, "/new"; put("/new/x", "in the new root"); symlink "/f", "/new/l"; symlink "/made", "/new/d";
    got("pivot", 155, $new, $put_old); chdir "/"; own("/x"); chown 66, 66, "/x"; own("/x"); put("/f", ""); chown 67, 67, "l"; own("f");
    user(77); mkdir "/zz"; creates("/qq"); creates("d"); creates("../../up"); symlink "x", "/sym"; own($_) for ("/zz", "/qq", "/made", "/up", "/sym");
    own("/old/$_") for ("m/f", "x", "zz", "qq", "made", "up", "sym", "f");
});
own($_) for ("/m/f", "/x", "/zz", "/qq", "/made", "/up", "/sym", "/f");
"#;

#[test]
fn commands_that_leave_their_mounts_change_files_of_their_own() {
    let [kernels, emulated] = kernels_and_emulated("--security=insecure", LEAVES);
    assert_eq!(emulated, kernels);
    let image = "/m/f: 100644 33:34 of 12\n/x: 100644 44:44 of 12\n/zz: none\n/qq: none\n/made: none\n/up: none\n/sym: none\n/f: none\n";
    assert!(kernels.ends_with(image), "{kernels}");
    for line in ["pivot ok", "/zz: 40755 77:77 of 0", "/qq: 100644 77:77 of 0", "/made: 100644 77:77 of 0", "/f: none"]
    {
        assert!(kernels.lines().any(|other| other == line), "{line}: {kernels}");
    }
}

/// A process changes its root directory to one that has links out of it, and back to the whole.
const CHANGES_ROOT: &str = r#"
mkdir "/jail"; chmod 0777, "/jail"; mkdir "/jail/dir"; chmod 0777, "/jail/dir"; put("/f", ""); put("/jail/f", "in"); mkdir "/dir"; chmod 0777, "/dir";
symlink "/dir", "/jail/abs"; symlink "../../dir", "/jail/up"; symlink "/f", "/jail/l"; symlink "/new", "/jail/dangling"; mkdir "/jail/sub"; chmod 0777, "/jail/sub";
child(sub {
    chroot "/jail"; chdir "/"; chown 5, 6, "../f"; chown 7, 8, "l"; own("f"); utime 5, 5, "../l"; print((stat "f")[9], "\n"); chown 3, 3, "/up"; own("/dir"); chmod 0777, "/dir";
    chdir "/sub"; user(33); my ($a, $b, $c, $d, $e) = ("../abs/a", "../up/b", "/abs/c", "../../../../dir/d", "../../out");
    got("mkdir $_", 83, $_, 0755) for ($a, $b, $c); creates($d); creates($e); creates("../dangling"); creates("/proc/self/cwd/none"); creates("/dev/fd/1");
    chdir "/"; own($_) for ("dir/a", "dir/b", "dir/c", "dir/d", "out", "new");
});
own($_) for ("/f", "/dir", "/dir/a", "/dir/b", "/dir/c", "/dir/d", "/out", "/new");
"#;

#[test]
fn relative_paths_and_links_stay_where_a_process_changed_its_root() {
    let [kernels, emulated] = kernels_and_emulated("", CHANGES_ROOT);
    assert_eq!(emulated, kernels);
    let image = "/f: 100644 0:0 of 0\n/dir: 40777 0:0 of 0\n/dir/a: none\n/dir/b: none\n/dir/c: none\n/dir/d: none\n/out: none\n/new: none\n";
    assert!(kernels.ends_with(image), "{kernels}");
    assert!(kernels.contains("create ../../out ok\n") && kernels.contains("dir/b: 40755 33:33"), "{kernels}");
}

/// Paths of /proc to the files of the process itself, before and after a process has changed its
/// root directory, by root and by another user.
const OWN_LINKS: &str = r#"
mkdir "/w"; chmod 0777, "/w"; put("/w/f", ""); chown 33, 34, "/w/f"; put("/open", ""); chmod 0666, "/open", "/o";
sub acts {
    open my $held, "+<", "/w/f" or print "$!\n"; my $fd = fileno $held; opendir my $dir, "/w"; my $dirfd = fileno $dir; chdir "/";
    my @links = ("/proc/self/fd/$fd", "/dev/fd/$fd", "/proc/thread-self/fd/$fd", "//proc/./self//fd/$fd", "/proc/self/root/w/f", "/proc/self/cwd/w/f", "/proc/self/fd/$dirfd/f");
    for my $path (@links) { my @s = stat $path; s/\d+/N/ for (my $name = $path); print "$name: $s[4]:$s[5]\n"; creates($path) }
    creates($_) for ("/dev/stdout", "/dev/null", "/proc/self/fd/1", "/dev/fd/1", "/open");
    for my $new ("/proc/self/fd/$dirfd/new", "/proc/self/cwd/w/new") { creates($new); own("/w/new"); unlink "/w/new" }
}
sub all { child(\&acts); child(sub { user(33); acts() }) }
all(); child(sub { chroot "/" }); all();
"#;

#[test]
fn links_of_proc_to_own_files_lead_to_them() {
    let [kernels, emulated] = kernels_and_emulated("", OWN_LINKS);
    assert_eq!(emulated, kernels);
    assert!(kernels.contains("/dev/fd/N: 33:34\n") && kernels.contains("/w/new: 100644 33:33 of 0\n"), "{kernels}");
    assert!(!kernels.contains("error"), "{kernels}");
}

/// Files made in a directory with default permissions, of which the umask removes none (acl(5)).
const DEFAULTS: &str = r#"
my ($dir, $name, $acl) = ("/acl", "system.posix_acl_default", pack("LSSLSSLSSL", 2, 1, 7, ~0, 4, 7, ~0, 32, 7, ~0));
mkdir "/acl"; chmod 0777, "/acl"; mkdir "/plain"; chmod 0777, "/plain"; got("default", 188, $dir, $name, $acl, length $acl, 0); user(33);
for my $umask (022, 077, 0) { umask $umask; for my $in ("/acl", "/plain") {
    my ($file, $sub, $fifo, $node) = map { "$in/$_$umask" } ("file", "dir", "fifo", "node");
    syscall(2, $file, 0101, 0666); syscall(83, $sub, 0777); syscall(133, $fifo, 010666, 0); syscall(133, $node, 0100666, 0); own($_) for ($file, $fifo, $node); printf "%o\n", (stat $sub)[2];
} }
"#;

#[test]
fn new_files_have_the_permissions_of_their_directory() {
    let [kernels, emulated] = kernels_and_emulated("", DEFAULTS);
    assert_eq!(emulated, kernels);
    assert!(
        kernels.contains("/acl/file18: 100666 33:33") && kernels.contains("/plain/file18: 100644 33:33"),
        "{kernels}"
    );
}
