use super::*;
use crate::error::Error;
use crate::meta::{FileKind, Stat, Timestamp, UidGid, Xattrs};
use crate::recorded_owners::{OwnerMode, OwnerRecords};
use std::ffi::OsStr;
use std::os::unix::fs::symlink;
use std::path::Path;

use rbuild_testkit::Scratch;

struct Fixture(Scratch);
impl Fixture {
    fn new() -> Fixture {
        let dir = Scratch::new();
        std::fs::create_dir(dir.join("root")).unwrap();
        std::fs::write(dir.join("outside"), "secret").unwrap();
        Fixture(dir)
    }
    fn root(&self) -> RootDir {
        RootDir::open(self.0.join("root")).unwrap()
    }
}

#[test]
fn no_path_leaves_the_root() {
    let f = Fixture::new();
    symlink("../outside", f.0.join("root/up")).unwrap();
    symlink(f.0.join("outside"), f.0.join("root/abs")).unwrap();
    symlink("/", f.0.join("root/slash")).unwrap();
    let root = f.root();
    for path in ["up", "abs", "../outside", "slash/../outside", "/../../outside"] {
        let e = root.read(path, 100).unwrap_err();
        assert!(e.is_not_found(), "{path}: {e}");
    }
    std::fs::write(f.0.join("root/outside"), "inside").unwrap();
    assert_eq!(root.read("up", 100).unwrap(), b"inside");
    assert_eq!(root.read("slash/../outside", 100).unwrap(), b"inside");
}

#[test]
fn directories_are_created_through_symlinks_inside_the_root() {
    let f = Fixture::new();
    std::fs::create_dir(f.0.join("root/real")).unwrap();
    symlink("/real", f.0.join("root/link")).unwrap();
    let root = f.root();
    let mut made = Vec::new();
    root.create_dir_all("/link/a/b", 0o755, None, |p| made.push(p.to_path_buf())).unwrap();
    assert!(f.0.join("root/real/a/b").is_dir());
    assert_eq!(made, [Path::new("link/a"), Path::new("link/a/b")]);
    assert_eq!(root.resolve("/link/a/missing/x").unwrap(), Path::new("/real/a/missing/x"));
}

#[test]
fn a_deep_tree_is_removed_without_deep_recursion() {
    let f = Fixture::new();
    let root = f.root();
    let mut at = root.try_clone().unwrap();
    for _ in 0..3000 {
        at.create_dir(OsStr::new("d"), 0o755).unwrap();
        at = at.sub("d").unwrap();
    }
    drop(at);
    root.remove_all(OsStr::new("d")).unwrap();
    assert!(root.entries().unwrap().is_empty());
}

#[test]
fn errors_name_the_operation_and_the_object() {
    let f = Fixture::new();
    let e = f.root().read("no/such", 1).unwrap_err();
    assert!(e.to_string().starts_with("cannot open "), "{e}");
    assert!(e.to_string().contains("root/no/such"), "{e}");
    assert!(e.to_string().contains("no such file"), "{e}");
}

/// Messages do not show paths below a place that has a name.
#[test]
fn errors_below_a_named_place_show_its_name() {
    let f = Fixture::new();
    let root = f.root().named("the store `/s`");
    root.create_dir(OsStr::new("d"), 0o755).unwrap();
    let below = root.sub("d").unwrap().try_clone().unwrap();
    let beside = below.open_alike(f.root().label()).unwrap();
    let image = beside.try_clone().unwrap().shown_as_root();
    let inner = below.try_clone().unwrap().named("the snapshots in the store `/s`");
    for (e, shown) in [
        (root.open_file("no").unwrap_err(), "cannot read the store `/s`: no such file"),
        (below.open_file("no").unwrap_err(), "cannot read the store `/s`: no such file"),
        (beside.open_alike("/no/such").unwrap_err(), "cannot read the store `/s`: no such file"),
        (below.create_dir(OsStr::new("a/b"), 0o755).unwrap_err(), "cannot write to the store `/s`: invalid argument"),
        (below.read(".", 1).unwrap_err(), "cannot read the store `/s`: it is a directory"),
        (inner.open_file("no").unwrap_err(), "cannot read the snapshots in the store `/s`: no such file"),
        (image.open_file("no").unwrap_err(), "cannot open `/no`: no such file"),
    ] {
        assert!(e.to_string().starts_with(shown), "{e}, not {shown}");
    }
    let e = below.open_file("no").unwrap_err();
    assert_eq!(e.object().path(), Some(&*below.label().join("no")));
}

#[test]
fn extended_attributes_survive_binary_values() {
    let f = Fixture::new();
    let root = f.root();
    root.create_file(OsStr::new("f"), 0o644).unwrap();
    let value = b"line\nnext=1\0end";
    root.set_xattr(OsStr::new("f"), OsStr::new("user.x"), value).unwrap();
    assert_eq!(root.xattrs(OsStr::new("f")).unwrap()[OsStr::new("user.x")], value);
}

/// Threads that create the same directory concurrently all get it.
#[test]
fn directories_created_concurrently_are_accepted() {
    let dir = Scratch::new();
    for round in 0..50 {
        let start = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let root = RootDir::open(&dir).unwrap();
                    start.wait();
                    root.create_dir_all(format!("{round}/a/b"), 0o755, None, |_| ()).unwrap();
                });
            }
        });
    }
    // A dangling link in the way is still an error.
    std::os::unix::fs::symlink("nowhere", dir.join("link")).unwrap();
    let error = RootDir::open(&dir).unwrap().create_dir_all("link/x", 0o755, None, |_| ()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
}

/// The kernel resolves the name of an `*at` call from the directory, without regard to the root.
#[test]
fn calls_by_name_take_one_component() {
    let f = Fixture::new();
    std::fs::create_dir(f.0.join("root/dir")).unwrap();
    std::fs::write(f.0.join("root/dir/inner"), "x").unwrap();
    symlink("..", f.0.join("root/up")).unwrap();
    let root = f.root();
    let absolute = f.0.join("outside");
    for name in ["../outside", "..", ".", "", "dir/inner", "dir/", "up/outside", "up/", absolute.to_str().unwrap()] {
        let name = OsStr::new(name);
        let mut refused: Vec<(&str, Option<i32>)> = Vec::new();
        let mut note = |call, e: Option<Error>| refused.push((call, e.and_then(|e| e.errno())));
        note("stat_name", root.stat_name(name).err());
        note("open_name", root.open_name(name).err());
        note("read_link", root.read_link(name).err());
        note("create_file", root.create_file(name, 0o644).err());
        note("create_dir", root.create_dir(name, 0o755).err());
        note("create_symlink", root.create_symlink(OsStr::new("x"), name).err());
        note("create_node", root.create_node(name, FileKind::Fifo, 0o644, (0, 0)).err());
        note("create_whiteout", root.create_whiteout(name).err());
        note("hard_link from", root.hard_link(&root, name, OsStr::new("new")).err());
        note("hard_link to", root.hard_link(&root, OsStr::new("up"), name).err());
        note("rename from", root.rename(name, &root, OsStr::new("new")).err());
        note("rename to", root.rename(OsStr::new("up"), &root, name).err());
        note("remove_file", root.remove_file(name).err());
        note("remove_dir", root.remove_dir(name).err());
        note("remove_all", root.remove_all(name).err());
        note("chown", root.chown(name, UidGid::ROOT).err());
        note("chmod", root.chmod(name, 0o600).err());
        note("set_mtime", root.set_mtime(name, Timestamp { sec: 1, nsec: 0 }).err());
        if !name.is_empty() {
            note("xattrs", root.xattrs(name).err());
            note("set_xattr", root.set_xattr(name, OsStr::new("user.x"), b"y").err());
        }
        for (call, errno) in refused {
            assert_eq!(errno, Some(libc::EINVAL), "{call}({name:?})");
        }
    }
    assert_eq!(std::fs::read_to_string(f.0.join("outside")).unwrap(), "secret");
    assert_eq!(std::fs::read_to_string(f.0.join("root/dir/inner")).unwrap(), "x");
    // A path with a trailing slash is still resolved inside the root.
    assert_eq!(root.stat("up/").unwrap().inode(), root.stat_self().unwrap().inode());
}

#[test]
fn owner_records_apply_to_a_directory_and_everything_opened_from_it() {
    let f = Fixture::new();
    let records = OwnerRecords::new(OwnerMode::Recorded, [7; 32]);
    let recorded = f.root().with_owners(&records);
    let given = f.root().with_owners(&records.with_mode(OwnerMode::Given));
    let stranger = f.root().with_owners(&OwnerRecords::new(OwnerMode::Recorded, [8; 32]));
    recorded.create_dir_all("d", 0o755, Some(UidGid::new(33, 34)), |_| ()).unwrap();
    let (file, link, device) = (OsStr::new("file"), OsStr::new("link"), OsStr::new("device"));
    std::fs::write(f.0.join("root/d/file"), "x").unwrap();
    symlink("file", f.0.join("root/d/link")).unwrap();
    let dir = recorded.sub("d").unwrap();
    for name in [file, link] {
        dir.chown(name, UidGid::new(33, 34)).unwrap();
        dir.set_mtime(name, Timestamp { sec: 5, nsec: 0 }).unwrap();
    }
    dir.create_node(device, FileKind::CharDevice, 0o600, (1, 3)).unwrap();

    let owner = |stat: Stat| stat.owner();
    let own = crate::credentials::own_ids();
    for path in ["d", "d/file", "d/link"] {
        assert_eq!(owner(recorded.stat(path).unwrap()), UidGid::new(33, 34), "{path}");
        assert_eq!(owner(recorded.try_clone().unwrap().stat(path).unwrap()), UidGid::new(33, 34), "{path}");
        assert_eq!(
            owner(recorded.open_alike(f.0.join("root")).unwrap().stat(path).unwrap()),
            UidGid::new(33, 34),
            "{path}"
        );
        for other in [&f.root(), &given] {
            assert_eq!(owner(other.stat(path).unwrap()), own, "{path}");
        }
    }
    assert_eq!(owner(recorded.stat_follow("d/link").unwrap()), UidGid::new(33, 34));
    assert_eq!(owner(recorded.parent("d/file").unwrap().0.stat_self().unwrap()), UidGid::new(33, 34));
    assert_eq!(owner(stranger.stat("d/file").unwrap()), own, "records of another key do not count");
    assert_eq!(recorded.stat("d/device").unwrap().rdev, (1, 3));
    assert_eq!(f.root().stat("d/device").unwrap().kind, FileKind::File);

    dir.set_xattr(file, records.attribute(), b"forged").unwrap();
    assert_eq!(owner(dir.stat_name(file).unwrap()), UidGid::new(33, 34), "the attribute is not set like others");
    assert_eq!(dir.xattrs(file).unwrap(), Xattrs::new());
    assert!(f.root().sub("d").unwrap().xattrs(file).unwrap().contains_key(records.attribute()));
}

#[test]
fn placeholders_are_noted_by_directories_with_the_same_records() {
    let f = Fixture::new();
    let [ours, others] = [7, 8].map(|key| OwnerRecords::new(OwnerMode::Given, [key; 32]));
    let (ours, others) = (f.root().with_owners(&ours), f.root().with_owners(&others));
    let name = OsStr::new("null");
    drop(ours.create_file(name, 0o600).unwrap());
    assert!(f.root().set_placeholder(name, (FileKind::CharDevice, 1, 3)).is_err(), "there are no records");
    ours.try_clone().unwrap().set_placeholder(name, (FileKind::CharDevice, 1, 3)).unwrap();
    assert_eq!(ours.stat_name(name).unwrap().device, Some((FileKind::CharDevice, 1, 3)));
    assert_eq!(others.stat_name(name).unwrap().device, None);
    assert!(ours.owners().unwrap().has_seen_placeholders());
    assert!(!others.owners().unwrap().has_seen_placeholders());
}

#[test]
fn a_top_of_trees_is_marked_where_the_file_system_can() {
    /// Magic number of ext2 to ext4 (statfs(2)).
    const EXT: u64 = 0xef53;
    let f = Fixture::new();
    let root = f.root();
    let is_ext = rustix::fs::fstatfs(root.fd()).unwrap().f_type as u64 == EXT;
    let is_marked =
        || rustix::fs::ioctl_getflags(root.fd()).is_ok_and(|flags| flags.contains(rustix::fs::IFlags::TOPDIR));
    assert!(!is_marked());
    for _ in 0..2 {
        let marked = root.mark_top_of_trees();
        assert_eq!(marked, is_marked());
        // An overlay passes the flag on to its upper directory.
        assert!(marked || !is_ext);
    }
}
