use super::*;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rbuild_linux::{FileKind, Timestamp};
use rbuild_testkit::Scratch;

use crate::TarWriter;
use crate::entry::EntryKind;
use crate::limits::Limits;
use crate::options::{LayerForm, Times};
use crate::pack::pack_layer;
use crate::xattrs::{OPAQUE, ORIGIN};
use ::tar::Header;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};

struct Temp(Scratch);
impl Temp {
    fn new() -> Temp {
        let dir = Scratch::new();
        std::fs::create_dir_all(dir.join("root")).unwrap();
        std::fs::write(dir.join("outside"), "untouched").unwrap();
        Temp(dir)
    }
    fn root(&self) -> RootDir {
        RootDir::open(self.0.join("root")).unwrap()
    }
    fn path(&self, p: &str) -> PathBuf {
        self.0.join("root").join(p)
    }
}
impl Drop for Temp {
    fn drop(&mut self) {
        assert_eq!(std::fs::read_to_string(self.0.join("outside")).unwrap(), "untouched");
    }
}

fn own() -> (u64, u64) {
    let own = rbuild_linux::credentials::own_ids();
    (u64::from(own.uid), u64::from(own.gid))
}

fn file(path: &str, content: &str) -> (TarEntry, Vec<u8>) {
    let (uid, gid) = own();
    (TarEntry { uid, gid, ..TarEntry::plain_file(path, content.len() as u64) }, content.into())
}

fn link(kind: EntryKind, path: &str, to: &str) -> (TarEntry, Vec<u8>) {
    (TarEntry { kind, link: to.into(), ..file(path, "").0 }, vec![])
}

fn dir(path: &str, mode: u32) -> (TarEntry, Vec<u8>) {
    (TarEntry { kind: EntryKind::Dir, mode, ..file(path, "").0 }, vec![])
}

fn tar(entries: &[(TarEntry, Vec<u8>)]) -> Vec<u8> {
    let mut w = TarWriter::new(Vec::new());
    for (entry, content) in entries {
        w.entry(entry).unwrap();
        w.content(content).unwrap();
    }
    w.finish().unwrap()
}

fn apply(t: &Temp, entries: &[(TarEntry, Vec<u8>)]) -> Result<Unpacked> {
    unpack(&tar(entries)[..], &t.root(), Unpacking::layer(Limits::default()))
}

#[test]
fn nothing_is_written_outside_the_root() {
    let sym = EntryKind::Symlink;
    let hard = EntryKind::HardLink;
    let cases: Vec<Vec<(TarEntry, Vec<u8>)>> = vec![
        vec![file("../outside", "x")],
        vec![file("a/../../outside", "x")],
        vec![link(sym, "up", ".."), file("up/outside", "x")],
        vec![link(sym, "abs", "/"), file("abs/outside", "x")],
        vec![link(sym, "l", "../outside"), file("l", "x")],
        vec![link(hard, "h", "../outside")],
        vec![link(sym, "up", ".."), link(hard, "h", "up/outside")],
        vec![link(sym, "l", "../outside"), link(hard, "h", "l"), file("h", "x")],
        vec![dir("d", 0o755), link(sym, "d", ".."), file("d/outside", "x")],
        vec![file("/../../../../outside", "x")],
    ];
    for case in &cases {
        let t = Temp::new();
        let _ = apply(&t, case);
        // `Temp::drop` checks that the file next to the root is untouched. Nothing inside may point
        // at it.
        assert!(!t.0.join("h").exists());
    }
}

#[test]
fn paths_that_return_into_the_root_are_accepted() {
    let t = Temp::new();
    apply(&t, &[file("a/../b", "x"), file("c/./d/../e", "y"), link(EntryKind::HardLink, "f/../g", "z/../b")]).unwrap();
    let read = |p: &str| std::fs::read_to_string(t.path(p)).unwrap();
    assert_eq!((read("b"), read("c/e"), read("g")), ("x".into(), "y".into(), "x".into()));
    assert!(!t.0.join("a").exists());
}

#[test]
fn the_last_entry_of_a_path_wins() {
    let sym = EntryKind::Symlink;
    let t = Temp::new();
    apply(
        &t,
        &[
            dir("d", 0o755),
            file("d/x", "1"),
            file("d", "now a file"),
            file("f", "1"),
            dir("f", 0o755),
            file("f/in", "2"),
            link(sym, "s", "f/in"),
            file("s", "not through the link"),
            file("h1", "same"),
            link(EntryKind::HardLink, "h2", "/h1"),
            file("h1", "other"),
        ],
    )
    .unwrap();
    let read = |p: &str| std::fs::read_to_string(t.path(p)).unwrap();
    assert_eq!(read("d"), "now a file");
    assert_eq!(read("f/in"), "2");
    assert_eq!(read("s"), "not through the link");
    assert_eq!((read("h1").as_str(), read("h2").as_str()), ("other", "same"));
}

#[test]
fn a_hard_link_may_precede_its_target() {
    let hard = EntryKind::HardLink;
    let t = Temp::new();
    let entries = [
        link(hard, "a/first", "b/second"),
        link(hard, "b/second", "z"),
        link(hard, "covered", "z"),
        file("covered", "itself"),
        file("z", "content"),
    ];
    apply(&t, &entries).unwrap();
    let ino = |p: &str| std::fs::metadata(t.path(p)).unwrap().ino();
    assert_eq!((ino("a/first"), ino("b/second")), (ino("z"), ino("z")));
    assert_eq!(std::fs::read_to_string(t.path("covered")).unwrap(), "itself");
    // A missing target is an error in an archive, no matter how many links wait for it and for each
    // other. In a layer it may be in a lower layer.
    let never: Vec<_> = (0..3000).map(|i| link(hard, &format!("l{i:04}"), &format!("l{:04}", i + 1))).collect();
    let (t, limits) = (Temp::new(), Limits::default());
    let error =
        unpack(&tar(&never)[..], &t.root(), Unpacking::archive(Owners::FromArchive, limits)).unwrap_err().to_string();
    assert!(error.contains("`l0000` links to `l0001`, which is not in the archive"), "{error}");
    let links = apply(&t, &never).unwrap().lower_refs.links;
    assert_eq!((links.len(), &links[7]), (3000, &("l0007".into(), "l0008".into())));
    // No target is outside the root.
    let out = [link(hard, "h", "up/outside"), link(EntryKind::Symlink, "up", "..")];
    let (t, limits) = (Temp::new(), Limits::default());
    assert!(unpack(&tar(&out)[..], &t.root(), Unpacking::archive(Owners::FromArchive, limits)).is_err());
    assert_eq!(apply(&t, &out).unwrap().lower_refs.links, [(PathBuf::from("h"), PathBuf::from("up/outside"))]);
    assert!(!t.path("h").exists());
}

#[test]
fn parents_may_be_symlinks_inside_the_root() {
    let t = Temp::new();
    let sym = EntryKind::Symlink;
    apply(&t, &[dir("usr", 0o755), dir("usr/bin", 0o755), link(sym, "bin", "/usr/bin"), file("bin/sh", "x")]).unwrap();
    assert!(t.path("usr/bin/sh").exists());
}

#[test]
fn implicit_directories_are_reported() {
    let t = Temp::new();
    let mut f = file("a/b/f", "x");
    f.0.mtime = Timestamp { sec: 77, nsec: 0 };
    let entries = [f, file("later/f", "x"), dir("later", 0o700), file("gone/f", "x"), file("gone", "now a file")];
    let lower_refs = apply(&t, &entries).unwrap().lower_refs;
    assert_eq!(lower_refs.dirs, [Path::new("a"), Path::new("a/b")]);
    // The path goes through a symbolic link of the layer itself.
    let own = [dir("real", 0o755), link(EntryKind::Symlink, "way", "/real"), file("way/in/f", "x")];
    let own = [&own[..], &[link(EntryKind::HardLink, "way/h", "elsewhere")]].concat();
    let there = apply(&Temp::new(), &own).unwrap().lower_refs;
    assert_eq!(there.dirs, [Path::new("real/in")]);
    assert_eq!(there.links, [(PathBuf::from("real/h"), PathBuf::from("elsewhere"))]);
    let made = std::fs::metadata(t.path("a/b")).unwrap();
    assert_eq!((made.mode() & 0o7777, made.mtime()), (0o755, 77));
    assert_eq!(std::fs::metadata(t.path("later")).unwrap().mode() & 0o7777, 0o700);
}

#[test]
fn read_only_directories_are_filled_and_keep_mode_and_time() {
    let t = Temp::new();
    let mut d = dir("d", 0o555);
    d.0.mtime = Timestamp { sec: 86400, nsec: 0 };
    let mut f = file("d/f", "x");
    f.0.mode = 0o4711;
    f.0.mtime = Timestamp { sec: -7, nsec: 0 };
    apply(&t, &[d, f]).unwrap();
    let d = std::fs::metadata(t.path("d")).unwrap();
    assert_eq!((d.mode() & 0o7777, d.mtime()), (0o555, 86400));
    let f = std::fs::metadata(t.path("d/f")).unwrap();
    assert_eq!((f.mode() & 0o7777, f.mtime()), (0o4711, -7));
    std::fs::set_permissions(t.path("d"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn damaged_archives_are_errors() {
    let good = tar(&[file("a", &"x".repeat(2000)), file("b", "y")]);
    let t = Temp::new();
    let run = |bytes: &[u8]| unpack(bytes, &t.root(), Unpacking::layer(Limits::default()));
    for cut in [513, 1000, 2561, 3000] {
        let e = run(&good[..cut]).unwrap_err();
        assert!(matches!(e, LayerError::Truncated(_)), "{cut}: {e}");
    }
    let mut flipped = good.clone();
    flipped[3] ^= 1;
    for foreign in [&good[..1], &good[..511], &flipped[..], b"text", &[b'x'; 3000]] {
        assert!(matches!(run(foreign), Err(LayerError::NotTar)));
    }
    let mut flipped = good.clone();
    flipped[512 + 2048 + 3] ^= 1;
    assert!(run(&flipped).unwrap_err().to_string().contains("checksum"));
    let mut huge = Vec::new();
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::XHeader);
    header.set_size(1 << 40);
    header.set_cksum();
    huge.extend_from_slice(header.as_bytes());
    assert!(matches!(run(&huge).unwrap_err(), LayerError::LimitExceeded { .. }));
    assert!(run(b"this is no archive at all, just text").is_err());
    let deep = tar(&[file(&"d/".repeat(5000), "")]);
    assert!(matches!(run(&deep).unwrap_err(), LayerError::LimitExceeded { .. }));
}

#[test]
fn packing_is_deterministic_and_keeps_links() {
    let t = Temp::new();
    let mut b = file("sub/b", "content b");
    b.0.xattrs.insert("user.note".into(), b"1\n2".to_vec());
    apply(&t, &[file("z", "last"), dir("sub", 0o750), b, link(EntryKind::HardLink, "a", "z")]).unwrap();
    let pack_of = |t: &Temp, form| {
        let mut out = Vec::new();
        (pack_layer(&t.root(), form, Times::AsIs, &mut out).unwrap(), out)
    };
    let pack = |form| pack_of(&t, form);
    let (gz, gz_bytes) = pack(LayerForm::GZIP);
    assert_eq!(gz, pack(LayerForm::GZIP).0);
    assert_eq!((gz.digest, gz.size), (BlobDigest::of(&gz_bytes), gz_bytes.len() as u64));
    let (plain, bytes) = pack(LayerForm::Uncompressed);
    assert_eq!((plain.diff_id, plain.digest), (gz.diff_id, BlobDigest::of(&bytes)));
    assert_eq!(pack(LayerForm::ZSTD).0.diff_id, gz.diff_id);
    // Unpacked and packed again, it yields the same bytes.
    let t2 = Temp::new();
    unpack(&gz_bytes[..], &t2.root(), Unpacking::layer(Limits::default())).unwrap();
    assert_eq!(pack_of(&t2, LayerForm::Uncompressed).1, bytes);
    let ino = |p: &str| std::fs::metadata(t2.path(p)).unwrap().ino();
    assert_eq!(ino("a"), ino("z"));
}

/// Pinned: if this changes, layers of unchanged trees get other digests, and LAYER_FORMAT and
/// [`LayerForm::version`] must change.
#[test]
fn golden_digests_of_fixed_entries() {
    let mut entries = vec![
        dir("etc", 0o755),
        file("etc/motd", "hello\n"),
        link(EntryKind::Symlink, "lnk", "etc/motd"),
        file(&"n".repeat(180), &"zeile\n".repeat(500_000)),
    ];
    for (entry, _) in &mut entries {
        (entry.uid, entry.gid, entry.mtime) = (0, 5, Timestamp { sec: 1_700_000_000, nsec: 0 });
    }
    let bytes = tar(&entries);
    let mut gz = crate::gzip::ParallelGzip::new(Vec::new(), 6).unwrap();
    gz.write_all(&bytes).unwrap();
    let gz = gz.finish().unwrap();
    let mut zstd = Vec::new();
    crate::repack_layer(&bytes[..], LayerForm::ZSTD, &mut zstd).unwrap();
    let [tar, gz, zstd] = [&bytes, &gz, &zstd].map(|layer| BlobDigest::of(layer));
    let got = format!("tar {tar}\ngzip {gz}\nzstd {zstd}\n");
    assert_eq!(got, include_str!("../../tests/golden-digests.txt"));
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic_the_reader(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..3000)) {
        let mut r = TarReader::new(&bytes[..]);
        while let Ok(Some(_)) = r.next_entry() {}
    }

    #[test]
    fn flipped_bytes_never_panic(at in 0usize..3500, with in proptest::prelude::any::<u8>()) {
        let mut bytes = tar(&[
            file(&"n".repeat(200), "x"), link(EntryKind::Symlink, "l", &"t".repeat(150)), file("b", &"y".repeat(600)),
        ]);
        if let Some(b) = bytes.get_mut(at) { *b = with; }
        let mut r = TarReader::new(&bytes[..]);
        while let Ok(Some(_)) = r.next_entry() {}
    }
}

/// GNU tar writes the same sparse file in each of its formats; all are read, and the holes are
/// kept.
#[test]
fn sparse_files_of_every_format_stay_sparse() {
    let t = Temp::new();
    let source = t.0.join("holes");
    let file = std::fs::File::create(&source).unwrap();
    file.set_len(40 << 20).unwrap();
    for (at, text) in [(0u64, "start"), (5 << 20, "middle"), ((40 << 20) - 3, "end")] {
        file.write_all_at(text.as_bytes(), at).unwrap();
    }
    // More data regions than fit the old header.
    (6..36).for_each(|i| file.write_all_at(b"piece", i << 20).unwrap());
    drop(file);
    let expected = BlobDigest::of(&std::fs::read(&source).unwrap());
    for format in [
        &["--format=gnu", "-S"][..],
        &["--format=pax", "-S", "--sparse-version=0.0"],
        &["--format=pax", "-S", "--sparse-version=0.1"],
        &["--format=pax", "-S", "--sparse-version=1.0"],
        // Without a sparse map, long runs of zeros become holes.
        &["--format=pax"],
    ] {
        let mut command = std::process::Command::new("tar");
        let made = command.args(format).args(["-C", t.0.to_str().unwrap(), "-c", "holes", "outside"]).output().unwrap();
        assert!(made.status.success());
        let own = rbuild_linux::credentials::own_ids();
        unpack(&made.stdout[..], &t.root(), Unpacking::archive(Owners::Always(own), Limits::default()))
            .unwrap_or_else(|e| panic!("{format:?}: {e}"));
        let bytes = std::fs::read(t.path("holes")).unwrap();
        assert_eq!((bytes.len(), BlobDigest::of(&bytes)), (40 << 20, expected), "{format:?}");
        let blocks = t.path("holes").metadata().unwrap().blocks();
        assert!(blocks * 512 < 8 << 20, "{format:?}: {blocks} blocks are in use");
        assert_eq!(std::fs::read_to_string(t.path("outside")).unwrap(), "untouched", "{format:?}");
    }
}

#[test]
fn inconsistent_sparse_maps_are_rejected() {
    let t = Temp::new();
    let (uid, gid) = own();
    let pax = |records: &[(&str, &str)]| -> Vec<u8> {
        let mut all = Vec::new();
        for (k, v) in records {
            let body = format!(" GNU.sparse.{k}={v}\n");
            let mut length = body.len() + 1;
            while length != body.len() + length.to_string().len() {
                length = body.len() + length.to_string().len();
            }
            all.extend(format!("{length}{body}").bytes());
        }
        all
    };
    let archive = |records: &[(&str, &str)], content: &[u8]| {
        let mut out = Vec::new();
        for (kind, name, bytes) in [(b'x', "pax", pax(records)), (b'0', "f", content.to_vec())] {
            let mut h = tar::Header::new_ustar();
            h.set_path(name).unwrap();
            h.set_size(bytes.len() as u64);
            h.set_entry_type(tar::EntryType::new(kind));
            h.set_mode(0o644);
            h.set_uid(uid);
            h.set_gid(gid);
            h.set_mtime(0);
            h.set_cksum();
            out.extend_from_slice(h.as_bytes());
            out.extend_from_slice(&bytes);
            out.resize(out.len().next_multiple_of(512), 0);
        }
        out.resize(out.len() + 1024, 0);
        out
    };
    for (records, content, want) in [
        (&[("size", "10"), ("map", "8,5")][..], &b"hello"[..], "exceed its size"),
        (&[("size", "10"), ("map", "0,4,2,1")], b"hello", "overlap"),
        (&[("size", "10"), ("map", "0,4")], b"hello", "do not match its content"),
        (&[("map", "0,5")], b"hello", "has no size"),
        (&[("size", "99999999999999999"), ("map", "0,5")], b"hello", "bytes of content"),
        (&[("major", "1"), ("realsize", "9")], b"9999999\n", "Truncated|ends in the middle|claims"),
        (&[("major", "1"), ("realsize", "9")], b"x", "Truncated|ends in the middle|number"),
        (&[("size", "18446744073709551615"), ("map", "18446744073709551615,5")], b"hello", "beyond the largest offset"),
    ] {
        let bytes = archive(records, content);
        let error = unpack(&bytes[..], &t.root(), Unpacking::layer(Limits::default()));
        let error = error.expect_err(want).to_string();
        assert!(want.split('|').any(|w| error.contains(w)), "{records:?}: {error}");
    }
}

mod messages;
mod roundtrip;

/// A whiteout does not affect the layer's own files, whether or not they have entries.
#[test]
fn a_whiteout_of_a_directory_keeps_the_new_files_in_it() {
    for entries in [
        vec![file(".wh.x", ""), file("x/new/file", "n")],
        vec![file("x/new/file", "n"), file(".wh.x", "")],
        vec![link(EntryKind::Symlink, "l", "x"), file(".wh.x", ""), file("l/new/file", "n")],
        vec![file(".wh.x", ""), link(EntryKind::Symlink, "l", "/x"), file("l/new/file", "n")],
    ] {
        let t = Temp::new();
        let unpacked = apply(&t, &entries).unwrap();
        assert_eq!(std::fs::read_to_string(t.path("x/new/file")).unwrap(), "n");
        assert!(crate::marks_opaque(&t.root().xattrs(OsStr::new("x")).unwrap()), "{entries:?}");
        assert_eq!(unpacked.lower_refs.dirs, [Path::new("x/new")]);
    }
    let t = Temp::new();
    let error = apply(&t, &[file("x", ""), file("x/new", "n")]).unwrap_err().to_string();
    assert!(error.contains("lies below something that is not a directory"), "{error}");
}

/// A hard link to a path that the layer deletes refers to a lower layer.
#[test]
fn a_hard_link_to_a_deleted_file_does_not_link_to_the_whiteout() {
    let hard = || link(EntryKind::HardLink, "h", "d/f");
    for entries in
        [vec![file("d/.wh.f", ""), hard()], vec![hard(), file("d/.wh.f", "")], vec![file(".wh.d", ""), hard()]]
    {
        let t = Temp::new();
        let unpacked = apply(&t, &entries).unwrap();
        assert_eq!(unpacked.lower_refs.links, [("h".into(), "d/f".into())]);
        assert!(!t.path("h").exists());
    }
}

#[test]
fn invalid_ids_are_rejected() {
    for (uid, gid) in [(u64::from(u32::MAX), 0), (0, u64::from(u32::MAX)), (1 << 32, 0)] {
        let t = Temp::new();
        let entry = TarEntry { uid, gid, ..TarEntry::plain_file("f", 0) };
        let error = apply(&t, &[(entry, vec![])]).unwrap_err().to_string();
        assert!(error.contains(&format!("`f` has the owner {uid}:{gid}")), "{error}");
    }
}

/// The name is a whiteout in a layer, and an ordinary name in an archive of files.
#[test]
fn files_named_like_whiteouts_are_rejected_when_packing() {
    use crate::{TreePacker, WhiteoutEncoding, pack_whole};
    for path in [".wh.f", "d/.wh..wh..opq", ".wh.dir/in", "d/.wh."] {
        let t = Temp::new();
        std::fs::create_dir_all(t.path(path).parent().unwrap()).unwrap();
        std::fs::write(t.path(path), "x").unwrap();
        let plain = LayerForm::Uncompressed;
        for error in [
            pack_layer(&t.root(), plain, Times::AsIs, Vec::new()).unwrap_err(),
            pack_whole(&t.root(), plain, Times::AsIs, Vec::new()).unwrap_err(),
        ] {
            let shown = format!("/{}", path.strip_suffix("/in").unwrap_or(path));
            assert!(error.to_string().starts_with(&format!("`{shown}` cannot be in an image")), "{error}");
        }
        let mut files = Vec::new();
        let mut packer = TreePacker::new(WhiteoutEncoding::Literal, &mut files);
        packer.pack(&t.root(), Path::new(""), Times::AsIs).unwrap();
        packer.finish().unwrap();
    }
    // A whiteout of such a file has no effect, and its name would be read as that of an opaque
    // directory.
    let t = Temp::new();
    t.root().create_whiteout(OsStr::new(".wh..opq")).unwrap();
    let mut layer = Vec::new();
    pack_layer(&t.root(), LayerForm::Uncompressed, Times::AsIs, &mut layer).unwrap();
    assert!(crate::TarReader::new(&layer[..]).next_entry().unwrap().is_none());
}

/// A tree made from a layer may replace the packed one only if the layer and the remainder describe
/// it completely.
#[test]
fn a_tree_that_a_layer_cannot_describe_has_no_remainder() {
    let plain = LayerForm::Uncompressed;
    let remainder = |t: &Temp| crate::pack_exact(&t.root(), plain, Vec::new()).unwrap().1;
    let (t, odd) = (Temp::new(), Temp::new());
    std::fs::write(t.path("f"), "").unwrap();
    let root = t.root().stat_self().unwrap();
    let kept = remainder(&t).unwrap();
    assert_eq!((kept.root_owner, kept.root_mode, kept.root_mtime), (root.owner(), root.mode, root.mtime));
    assert_eq!(kept.nanoseconds, [t.root().stat("f").unwrap().mtime.nsec]);
    let _socket = std::os::unix::net::UnixListener::bind(t.path("socket")).unwrap();
    assert_eq!(remainder(&t), None);
    odd.root().set_xattr(OsStr::new(""), OsStr::new("user.x"), b"1").unwrap();
    assert_eq!(remainder(&odd), None);
}

/// Sizes in headers are untrusted.
#[test]
fn overflowing_sizes_are_rejected() {
    for archive in wrapping_sizes() {
        let t = Temp::new();
        let error = unpack(&archive[..], &t.root(), Unpacking::layer(Limits::default())).unwrap_err().to_string();
        assert!(["header", "bytes", "ends in", "not a number"].iter().any(|text| error.contains(text)), "{error}");
        // Entries that are not selected are checked as well.
        let options = Unpacking::layer(Limits::default());
        unpack_some(&archive[..], &t.root(), options, &mut |_| false).unwrap_err();
    }
}

/// Archives in which adding one more size overflows the sum.
fn wrapping_sizes() -> Vec<Vec<u8>> {
    let header = |kind: u8, size: u64| {
        let mut header = ::tar::Header::new_gnu();
        header.set_path("f").unwrap();
        header.set_entry_type(::tar::EntryType::new(kind));
        [Header::set_uid, Header::set_gid, Header::set_mtime].into_iter().for_each(|set| set(&mut header, 0));
        header.set_mode(0o644);
        // Encoded in base 256.
        let field = &mut header.as_mut_bytes()[124..136];
        field.fill(0);
        field[0] = 0x80;
        field[4..].copy_from_slice(&size.to_be_bytes());
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let mut pax = b"12 path=abc\n".to_vec();
    pax.resize(512, 0);
    let tiny = || [header(b'x', 12), pax.clone()].concat();
    let pax_size = |size: &str| {
        let body = format!("size={size}\n");
        let mut record = format!("{} {body}", body.len() + 3).into_bytes();
        let length = record.len() as u64;
        record.resize(512, 0);
        [header(b'x', length), record].concat()
    };
    let file = || [header(b'0', 512), vec![1; 512]].concat();
    vec![
        [tiny(), header(b'x', u64::MAX - 5)].concat(),
        [tiny(), header(b'L', u64::MAX - 5)].concat(),
        [tiny(), header(b'g', u64::MAX - 5)].concat(),
        [file(), header(b'0', u64::MAX - 5), vec![1; 512]].concat(),
        [file(), header(b'0', u64::MAX), vec![1; 512]].concat(),
        [file(), pax_size("18446744073709551615"), header(b'0', 0), vec![1; 512]].concat(),
        [file(), header(b'S', u64::MAX), vec![1; 512]].concat(),
    ]
}
