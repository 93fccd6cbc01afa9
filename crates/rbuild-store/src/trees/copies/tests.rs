//! Changes extracted from a merged directory, merged again on the trees below, yield the same
//! directory.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rbuild_layer::marks_opaque;
use rbuild_linux::{FileKind, Inode, RootDir, Timestamp};
use rbuild_testkit::Scratch;

use super::{Baseline, MergedFiles, MergedWhiteouts, cut_links, merge};

struct Temp(Scratch);

impl Temp {
    fn new() -> Temp {
        Temp(Scratch::new())
    }

    fn dir(&self, name: &str) -> RootDir {
        std::fs::create_dir(self.0.join(name)).unwrap();
        RootDir::open(self.0.join(name)).unwrap()
    }
}

const NAMES: [&str; 9] = ["a", "b", "d", "d/a", "d/sub", "d/sub/x", "z", "z/y", "z/y/w"];

#[derive(Debug, Clone)]
enum Change {
    Write { path: usize, content: u8, mode: u32 },
    Append { path: usize },
    Dir { path: usize },
    Symlink { path: usize },
    Link { path: usize, to: usize },
    Remove { path: usize },
    Move { path: usize, to: usize },
    Mode { path: usize, mode: u32 },
    Attribute { path: usize, value: u8 },
    NoAttribute { path: usize },
}

fn change() -> impl Strategy<Value = Change> {
    let path = 0..NAMES.len();
    let mode = prop_oneof![Just(0o644u32), Just(0o755), Just(0o4711), Just(0o700)];
    let written = (path.clone(), any::<u8>(), mode.clone());
    prop_oneof![
        4 => written.prop_map(|(path, content, mode)| Change::Write { path, content, mode }),
        2 => path.clone().prop_map(|path| Change::Append { path }),
        3 => path.clone().prop_map(|path| Change::Dir { path }),
        1 => path.clone().prop_map(|path| Change::Symlink { path }),
        2 => (path.clone(), path.clone()).prop_map(|(path, to)| Change::Link { path, to }),
        3 => path.clone().prop_map(|path| Change::Remove { path }),
        2 => (path.clone(), path.clone()).prop_map(|(path, to)| Change::Move { path, to }),
        1 => (path.clone(), mode).prop_map(|(path, mode)| Change::Mode { path, mode }),
        2 => (path.clone(), any::<u8>()).prop_map(|(path, value)| Change::Attribute { path, value }),
        2 => path.prop_map(|path| Change::NoAttribute { path }),
    ]
}

/// Applies the changes; those that do not fit are skipped.
fn work(root: &RootDir, changes: &[Change]) {
    let at = |path: usize| root.parent(Path::new(NAMES[path]));
    for change in changes {
        let _ = match *change {
            Change::Write { path, content, mode } => at(path).and_then(|(dir, name)| {
                let file = dir.create_file(&name, 0o600)?;
                file.write_all_at(&vec![content; usize::from(content) * 10], 0).unwrap();
                dir.chmod(&name, mode)
            }),
            Change::Append { path } => at(path).map(|_| {
                let path = root.label().join(NAMES[path]);
                // Symbolic links are not followed, as they could lead anywhere.
                if path.symlink_metadata().is_ok_and(|m| m.is_file()) {
                    let file = std::fs::OpenOptions::new().append(true).open(path);
                    let _ = file.map(|mut f| std::io::Write::write_all(&mut f, b"more").unwrap());
                }
            }),
            Change::Dir { path } => at(path).and_then(|(dir, name)| dir.create_dir(&name, 0o750)),
            Change::Symlink { path } => {
                at(path).and_then(|(dir, name)| dir.create_symlink(OsStr::new("target"), &name))
            }
            Change::Link { path, to } => {
                at(to).and_then(|(from, old)| at(path).and_then(|(dir, name)| dir.hard_link(&from, &old, &name)))
            }
            Change::Remove { path } => at(path).and_then(|(dir, name)| dir.remove_all(&name)),
            Change::Move { path, to } => {
                at(path).and_then(|(from, old)| at(to).and_then(|(dir, name)| from.rename(&old, &dir, &name)))
            }
            Change::Mode { path, mode } => at(path).and_then(|(dir, name)| match dir.stat_name(&name)?.kind {
                FileKind::Symlink => Ok(()),
                _ => dir.chmod(&name, mode | 0o700),
            }),
            Change::Attribute { path, value } => at(path).and_then(|(dir, name)| match dir.stat_name(&name)?.kind {
                FileKind::Symlink => Ok(()),
                _ => dir.set_xattr(&name, OsStr::new("user.test"), &[value]),
            }),
            Change::NoAttribute { path } => {
                at(path).and_then(|(dir, name)| dir.remove_xattr(&name, OsStr::new("user.test")))
            }
        };
    }
}

/// All visible properties of a directory.
fn look(root: &RootDir) -> BTreeMap<PathBuf, String> {
    let mut seen = BTreeMap::new();
    let mut first: BTreeMap<Inode, PathBuf> = BTreeMap::new();
    let mut stack = vec![(PathBuf::new(), root.try_clone().unwrap())];
    while let Some((path, dir)) = stack.pop() {
        for entry in dir.entries().unwrap() {
            let here = path.join(&entry.name);
            let stat = dir.stat_name(&entry.name).unwrap();
            let attributes = dir.xattrs(&entry.name).unwrap();
            let test = attributes.get(OsStr::new("user.test"));
            let mut text =
                format!("{:?} {:o} {}:{} {:?} {test:?}", stat.kind, stat.mode, stat.uid, stat.gid, stat.mtime);
            match stat.kind {
                FileKind::Dir => stack.push((here.clone(), dir.sub(&entry.name).unwrap())),
                FileKind::File => {
                    let mut content = Vec::new();
                    dir.open_name(&entry.name).unwrap().read_to_end(&mut content).unwrap();
                    let same = first.entry(stat.inode()).or_insert_with(|| here.clone());
                    text.push_str(&format!(" {content:?} {}", same.display()));
                }
                FileKind::Symlink => text.push_str(&format!("{:?}", dir.read_link(&entry.name).unwrap())),
                _ => {}
            }
            seen.insert(here, text);
        }
    }
    seen
}

fn age(root: &RootDir) {
    let old = Timestamp { sec: 1_000_000_000, nsec: 5 };
    let mut stack = vec![root.try_clone().unwrap()];
    while let Some(dir) = stack.pop() {
        for entry in dir.entries().unwrap() {
            if let Ok(sub) = dir.sub(&entry.name) {
                stack.push(sub);
            }
            dir.set_mtime(&entry.name, old).unwrap();
        }
    }
}

/// The new directory may reuse the inode number of the old one.
#[test]
fn a_recreated_directory_hides_the_old_one() {
    for attempt in 0..10 {
        let temp = Temp::new();
        let merged = temp.dir("merged");
        merged.create_dir(OsStr::new("d"), 0o755).unwrap();
        merged.sub("d").unwrap().create_file(OsStr::new("old"), 0o644).unwrap();
        let before = Baseline::of(&merged, false).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(11));
        merged.remove_all(OsStr::new("d")).unwrap();
        merged.create_dir(OsStr::new("d"), 0o755).unwrap();
        let tree = temp.dir("tree");
        before.changes(&merged, &tree).unwrap();
        let made = tree.sub("d").unwrap();
        assert!(marks_opaque(&made.xattrs(OsStr::new("")).unwrap()), "attempt {attempt}");
        assert!(made.entries().unwrap().is_empty());
    }
}

#[test]
fn hard_links_to_outside_files_are_broken_and_others_kept() {
    let temp = Temp::new();
    let (tree, outside) = (temp.dir("tree"), temp.dir("outside"));
    let write = |path: &str, text: &str| std::fs::write(temp.0.join(path), text).unwrap();
    let link = |old: &str, new: &str| std::fs::hard_link(temp.0.join(old), temp.0.join(new)).unwrap();
    let inode = |path: &str| std::os::unix::fs::MetadataExt::ino(&temp.0.join(path).symlink_metadata().unwrap());
    tree.create_dir(OsStr::new("d"), 0o755).unwrap();
    for name in ["shared", "own", "alone"] {
        write(&format!("tree/{name}"), name);
    }
    std::os::unix::fs::symlink("target", temp.0.join("tree/link")).unwrap();
    for (old, new) in [
        ("tree/shared", "tree/d/shared"),
        ("tree/shared", "outside/shared"),
        ("tree/own", "tree/d/own"),
        ("tree/link", "outside/link"),
    ] {
        link(old, new);
    }
    age(&tree);
    let (before, inodes) = (look(&tree), ["tree/own", "tree/alone"].map(inode));
    cut_links(&tree).unwrap();
    assert_eq!(look(&tree), before);
    assert_eq!(["tree/own", "tree/alone"].map(inode), inodes);
    assert_eq!(inode("tree/shared"), inode("tree/d/shared"));
    assert_ne!(inode("tree/shared"), inode("outside/shared"));
    assert_ne!(inode("tree/link"), inode("outside/link"));
    write("outside/shared", "changed");
    assert_eq!(look(&tree), before);
    drop(outside);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn changes_applied_to_the_lower_trees_give_the_result(
        first in prop::collection::vec(change(), 0..15),
        second in prop::collection::vec(change(), 0..15),
        third in prop::collection::vec(change(), 0..15),
    ) {
        let temp = Temp::new();
        let mut trees: Vec<RootDir> = Vec::new();
        for (i, changes) in [first, second, third].iter().enumerate() {
            let merged = temp.dir(&format!("merged-{i}"));
            merge(&trees, &merged, MergedFiles::Copied, MergedWhiteouts::Applied).unwrap();
            let before = Baseline::of(&merged, false).unwrap();
            // The kernel's clock for ctime advances every few milliseconds.
            std::thread::sleep(std::time::Duration::from_millis(11));
            work(&merged, changes);
            let want = look(&merged);
            let tree = temp.dir(&format!("tree-{i}"));
            before.changes(&merged, &tree).unwrap();
            trees.push(tree);
            let again = temp.dir(&format!("again-{i}"));
            merge(&trees, &again, MergedFiles::Copied, MergedWhiteouts::Applied).unwrap();
            prop_assert_eq!(look(&again), want.clone());
            let linked = temp.dir(&format!("linked-{i}"));
            merge(&trees, &linked, MergedFiles::Linked, MergedWhiteouts::Applied).unwrap();
            prop_assert_eq!(look(&linked), want);
        }
        // Merging the upper two trees first yields the same result.
        let [lowest, upper @ ..] = &trees[..] else { unreachable!("three trees") };
        let one = temp.dir("one");
        merge(upper, &one, MergedFiles::Linked, MergedWhiteouts::Kept).unwrap();
        let (two, three) = (temp.dir("two"), temp.dir("three"));
        merge(&[lowest.try_clone().unwrap(), one], &two, MergedFiles::Copied, MergedWhiteouts::Applied).unwrap();
        merge(&trees, &three, MergedFiles::Copied, MergedWhiteouts::Applied).unwrap();
        prop_assert_eq!(look(&two), look(&three));
        // Untouched entries are not changes.
        let merged = temp.dir("untouched");
        merge(&trees, &merged, MergedFiles::Copied, MergedWhiteouts::Applied).unwrap();
        age(&merged);
        let before = Baseline::of(&merged, false).unwrap();
        let tree = temp.dir("nothing");
        before.changes(&merged, &tree).unwrap();
        prop_assert!(tree.entries().unwrap().is_empty());
    }
}

/// A directory that a higher tree describes again has the attributes of that description only.
#[test]
fn the_topmost_tree_sets_the_attributes_of_a_directory() {
    let temp = Temp::new();
    let (low, high, merged) = (temp.dir("low"), temp.dir("high"), temp.dir("merged"));
    for (dir, attr) in [(&low, "user.low"), (&high, "user.high")] {
        dir.create_dir(OsStr::new("d"), 0o755).unwrap();
        for name in ["", "d"] {
            dir.set_xattr(OsStr::new(name), OsStr::new(attr), b"1").unwrap();
        }
    }
    merge(&[low, high], &merged, MergedFiles::Copied, MergedWhiteouts::Applied).unwrap();
    for name in ["", "d"] {
        let attributes = merged.xattrs(OsStr::new(name)).unwrap();
        assert_eq!(attributes.keys().collect::<Vec<_>>(), ["user.high"], "{name:?}");
    }
}

/// Overlays interpret such attributes on files of their lower directories.
#[test]
fn overlay_control_attributes_are_not_in_the_tree() {
    let temp = Temp::new();
    let (root, tree) = (temp.dir("root"), temp.dir("tree"));
    std::fs::create_dir(temp.0.join("root/d")).unwrap();
    std::fs::write(temp.0.join("root/d/old"), "x").unwrap();
    let before = Baseline::of(&root, false).unwrap();
    let dir = root.sub("d").unwrap();
    std::fs::write(temp.0.join("root/d/new"), "x").unwrap();
    for name in ["old", "new", ""] {
        for (attribute, value) in
            [("user.overlay.metacopy", &b""[..]), ("user.overlay.redirect", b"/"), ("user.a", b"b")]
        {
            dir.set_xattr(OsStr::new(name), OsStr::new(attribute), value).unwrap();
        }
    }
    before.changes(&root, &tree).unwrap();
    let made = tree.sub("d").unwrap();
    for name in ["old", "new", ""] {
        let xattrs = made.xattrs(OsStr::new(name)).unwrap();
        assert_eq!(xattrs.keys().collect::<Vec<_>>(), ["user.a"], "{name}");
    }
}
