//! Packing and unpacking trees of every kind, with every compression, yields the same tree.

use super::*;
use crate::pack::pack_exact;
use proptest::prelude::*;
use std::os::unix::ffi::OsStringExt;

/// A file system object to create. Names come from a small set, so that they collide.
#[derive(Debug, Clone)]
enum Make {
    File { path: usize, content: Vec<u8>, mode: u32 },
    Dir { path: usize, mode: u32 },
    Symlink { path: usize, to: usize },
    HardLink { path: usize, to: usize },
    Fifo { path: usize },
    Sparse { path: usize, at: u64 },
    Attribute { path: usize, value: Vec<u8> },
    Opaque { path: usize },
    Whiteout { path: usize },
}

const NAMES: [&str; 10] = ["a", "b", "dir", "dir/a", "dir/sub", "dir/sub/x", "z", "z/ü n", "z/y", "long"];

fn name(i: usize) -> PathBuf {
    match NAMES[i % NAMES.len()] {
        "long" => PathBuf::from(OsString::from_vec([&b"n\xff\n"[..], &[b'l'; 200]].concat())),
        other => other.into(),
    }
}

use std::ffi::OsString;

fn make() -> impl Strategy<Value = Make> {
    let path = 0..NAMES.len();
    let mode = prop_oneof![Just(0o644u32), Just(0o755), Just(0o4755), Just(0o2700), Just(0o1777), Just(0o400), Just(0)];
    prop_oneof![
        (path.clone(), prop::collection::vec(any::<u8>(), 0..2000), mode.clone())
            .prop_map(|(path, content, mode)| Make::File { path, content, mode }),
        (path.clone(), mode).prop_map(|(path, mode)| Make::Dir { path, mode: mode | 0o700 }),
        (path.clone(), path.clone()).prop_map(|(path, to)| Make::Symlink { path, to }),
        (path.clone(), path.clone()).prop_map(|(path, to)| Make::HardLink { path, to }),
        path.clone().prop_map(|path| Make::Fifo { path }),
        (path.clone(), 0..(3u64 << 20)).prop_map(|(path, at)| Make::Sparse { path, at }),
        (path.clone(), prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(path, value)| Make::Attribute { path, value }),
        path.clone().prop_map(|path| Make::Opaque { path }),
        path.prop_map(|path| Make::Whiteout { path }),
    ]
}

/// Creates the objects; those that do not fit are skipped.
fn build(root: &RootDir, steps: &[Make]) {
    for (nsec, step) in (1..).step_by(7).zip(steps) {
        let path = match step {
            Make::File { path, .. }
            | Make::Dir { path, .. }
            | Make::Symlink { path, .. }
            | Make::HardLink { path, .. }
            | Make::Fifo { path }
            | Make::Sparse { path, .. }
            | Make::Attribute { path, .. }
            | Make::Opaque { path }
            | Make::Whiteout { path } => name(*path),
        };
        let _ = root.create_dir_all(path.parent().unwrap(), 0o755, None, |_| ());
        let Ok((dir, base)) = root.parent(&path) else { continue };
        let _ = match step {
            Make::File { content, mode, .. } => dir.create_file(&base, 0o600).map(|f| {
                f.write_all_at(content, 0).unwrap();
                dir.chmod(&base, *mode).unwrap();
            }),
            Make::Dir { mode, .. } => dir.create_dir(&base, 0o755).and_then(|()| dir.chmod(&base, *mode)),
            Make::Symlink { to, .. } => dir.create_symlink(name(*to).as_os_str(), &base),
            Make::HardLink { to, .. } => {
                root.parent(name(*to)).and_then(|(from, old)| dir.hard_link(&from, &old, &base))
            }
            Make::Fifo { .. } => dir.create_node(&base, FileKind::Fifo, 0o600, (0, 0)),
            Make::Sparse { at, .. } => dir.create_file(&base, 0o600).map(|f| f.write_all_at(b"data", *at).unwrap()),
            Make::Attribute { value, .. } => dir.set_xattr(&base, OsStr::new("user.test"), value),
            // The mark has a meaning on directories only.
            Make::Opaque { .. } => match dir.stat_name(&base) {
                Ok(stat) if stat.kind == FileKind::Dir => dir.set_xattr(&base, OsStr::new(OPAQUE), b"y"),
                _ => Ok(()),
            },
            Make::Whiteout { .. } => dir.create_node(&base, FileKind::CharDevice, 0, (0, 0)),
        };
        let _ = dir.set_mtime(&base, Timestamp { sec: 1_000_000_000, nsec });
    }
}

/// Everything a layer records of a tree, one entry per line, without the times of directories that
/// the test has changed.
fn listing(root: &RootDir, at: &Path, first: &mut BTreeMap<rbuild_linux::Inode, PathBuf>, out: &mut Vec<String>) {
    let dir = root.sub(at).unwrap();
    for entry in dir.entries().unwrap() {
        let path = at.join(&entry.name);
        let stat = dir.stat_name(&entry.name).unwrap();
        let link = match first.get(&stat.inode()) {
            Some(first) if stat.kind != FileKind::Dir && !stat.is_whiteout() => format!(" = {first:?}"),
            _ => String::new(),
        };
        first.entry(stat.inode()).or_insert_with(|| path.clone());
        let content = match stat.kind {
            FileKind::File => {
                let mut bytes = Vec::new();
                std::io::Read::read_to_end(&mut dir.open_name(&entry.name).unwrap(), &mut bytes).unwrap();
                BlobDigest::of(&bytes).to_string()
            }
            FileKind::Symlink => format!("{:?}", dir.read_link(&entry.name).unwrap()),
            _ => String::new(),
        };
        let mut attributes = match stat.kind {
            FileKind::File | FileKind::Dir => dir.xattrs(&entry.name).unwrap(),
            _ => Default::default(),
        };
        // A mark for the kernel: every directory with whiteouts has it, whether unpacked or made by
        // an overlay.
        attributes.remove(OsStr::new(ORIGIN));
        let mode = if stat.kind == FileKind::Symlink { 0 } else { stat.mode };
        out.push(format!(
            "{path:?} {:?} {mode:o} {} {:?}{link} {content} {attributes:?}",
            stat.kind,
            stat.size * u64::from(stat.kind == FileKind::File),
            if stat.is_whiteout() { Default::default() } else { stat.mtime }
        ));
        if stat.kind == FileKind::Dir {
            listing(root, &path, first, out);
        }
    }
}

fn whole(root: &RootDir) -> Vec<String> {
    let mut out = Vec::new();
    listing(root, Path::new(""), &mut BTreeMap::new(), &mut out);
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn packing_and_unpacking_a_tree_round_trips(steps in prop::collection::vec(make(), 0..25), packed in 0..3usize) {
        let (a, b) = (Temp::new(), Temp::new());
        // Other users than root cannot read files without read permission.
        let steps: Vec<Make> = steps.into_iter().map(|s| match s {
            Make::File { path, content, mode } if own().0 != 0 => Make::File { path, content, mode: mode | 0o400 },
            other => other,
        }).collect();
        build(&a.root(), &steps);
        let form = [LayerForm::Uncompressed, LayerForm::GZIP, LayerForm::ZSTD][packed];
        let mut layer = Vec::new();
        let (made, rest) = pack_exact(&a.root(), form, &mut layer).unwrap();
        let nanoseconds = rest.map(|rest| rest.nanoseconds);
        let options = Unpacking { nanoseconds: nanoseconds.as_deref(), ..Unpacking::layer(Limits::default()) };
        let got = unpack(&layer[..], &b.root(), options).unwrap();
        prop_assert_eq!(nanoseconds.map(|list| list.len() as u64), Some(got.entries));
        prop_assert_eq!((got.digest, got.diff_id), (made.digest, made.diff_id));
        prop_assert_eq!(whole(&a.root()), whole(&b.root()));
        // The unpacked tree packs to the same bytes.
        let mut again = Vec::new();
        pack_layer(&b.root(), form, Times::AsIs, &mut again).unwrap();
        prop_assert!(again == layer);
    }
}
