//! The messages of archives that cannot be unpacked.

use rbuild_linux::UidGid;
use rbuild_testkit::{assert_recorded, message_row};

use super::*;
use crate::bounded::layer_digests;
use crate::pack::repack_layer;
use crate::reader::tests::{archive_after, one, pax, put, record};
use crate::unpack::options::Owners;

/// Limits that small archives exceed.
const SMALL: Limits = Limits { entries: 3, path: 70, depth: 3, bytes: 1 << 20, header: 4096, ratio: 1000 };

fn row(name: &str, error: LayerError) -> String {
    message_row(name, &error, error.remedy())
}

/// Unpacks an archive as a layer whose files belong to this user, and returns the row of its error.
fn refused(name: &str, archive: &[u8]) -> String {
    let t = Temp::new();
    let own = rbuild_linux::credentials::own_ids();
    let options = Unpacking { whiteouts: Whiteouts::Overlay, ..Unpacking::archive(Owners::Always(own), SMALL) };
    row(name, unpack(archive, &t.root(), options).expect_err(name))
}

fn sparse(records: &[(&str, &str)]) -> Vec<u8> {
    let names: Vec<String> = records.iter().map(|(key, _)| format!("GNU.sparse.{key}")).collect();
    let records: Vec<(&str, &str)> = names.iter().zip(records).map(|(key, (_, value))| (&**key, *value)).collect();
    pax(&records)
}

/// Returns an archive of a sparse file whose map, of version 1.0, precedes its content.
fn mapped(map: &[u8]) -> Vec<u8> {
    let records: Vec<u8> = [("major", "1"), ("minor", "0"), ("realsize", "100")]
        .iter()
        .flat_map(|(key, value)| record(&format!("GNU.sparse.{key}"), value))
        .collect();
    let mut archive = one(b'x', "meta", &records, |_| ());
    put(&mut archive, b'0', "f", &[map, &[0; 1024]].concat(), |_| ());
    archive
}

/// Returns an archive of a sparse file with an old GNU header that `edit` changes.
fn old_sparse(edit: impl Fn(&mut [u8])) -> Vec<u8> {
    one(b'S', "f", b"", |header| {
        header[483..494].copy_from_slice(b"00000000144");
        edit(header);
    })
}

#[test]
fn messages_about_headers_are_as_recorded() {
    let plain = || archive_after(&[]);
    let field = |at: usize, text: &'static [u8]| {
        one(b'0', "f", b"", move |header| header[at..at + text.len()].copy_from_slice(text))
    };
    let meta = |content: &[u8]| archive_after(&[(b'x', content)]);
    let kept = archive_after(&[(b'g', &record("SCHILY.xattr.user.a", &"v".repeat(70_000)))]);
    let rows = [
        ("no archive", vec![b'x'; 600]),
        ("cut in the second header", [plain(), plain()[..100].to_vec()].concat()),
        ("cut in the content", plain()[..513].to_vec()),
        ("cut in an extended header", pax(&[("uid", "5")])[..516].to_vec()),
        ("checksum", [plain(), vec![b'x'; 512]].concat()),
        ("type", one(b'Z', "f", b"", |_| ())),
        ("link with content", one(b'2', "l", b"x", |_| ())),
        ("mode", field(100, b"rwx")),
        ("user", field(108, b"root")),
        ("group", field(116, b"root")),
        ("size", field(124, b"zzzzzzzzzzz")),
        ("time", field(136, b"noon")),
        ("record without a length", meta(b"abc")),
        ("length that is not a number", meta(b"x a=b\n")),
        ("wrong length", meta(b"99 a=b\n")),
        ("record without a value", meta(b"5 ab\n")),
        ("number in a record", pax(&[("uid", "-1")])),
        ("time in a record", pax(&[("mtime", "1.x")])),
    ];
    let mut rows: String = rows.iter().map(|(name, archive)| refused(name, archive)).collect();
    let mut reader = TarReader::new(&kept[..]);
    let error = std::iter::repeat_with(|| reader.next_entry()).find_map(Result::err).unwrap();
    rows += &row("attributes for all entries", error);
    assert_recorded!("archive-headers", rows);
}

#[test]
fn messages_about_sparse_files_are_as_recorded() {
    let many = |count: usize| ["0,0,"].repeat(count).concat();
    let gnu = |header: &mut [u8]| header[386..402].copy_from_slice(b"zero\0\0\0\0\0\0\0\0zero");
    let rows = [
        refused("no size", &sparse(&[("map", "0,3")])),
        refused("no offset", &sparse(&[("size", "9"), ("numbytes", "3")])),
        refused("no number", &sparse(&[("size", "nine")])),
        refused("overlap", &sparse(&[("size", "9"), ("map", "0,4,2,1")])),
        refused("beyond the largest offset", &sparse(&[("size", "9"), ("map", "18446744073709551615,5")])),
        refused("less content", &sparse(&[("size", "9"), ("map", "0,4")])),
        refused("map that is cut", &mapped(b"1\n0\n")[..1948]),
        refused("number in a map", &mapped(b"one\n")),
        refused("long number in a map", &mapped(&[b'1'; 30])),
        refused("regions of a map", &mapped(b"200001\n")),
        refused("old header of another format", &old_sparse(|header| header[257..265].fill(0))),
        refused("size in an old header", &old_sparse(|header| header[483..487].copy_from_slice(b"nine"))),
        refused("region in an old header", &old_sparse(gnu)),
    ];
    let t = Temp::new();
    let limits = Limits { header: 1 << 20, ..SMALL };
    let archive = sparse(&[("size", "9"), ("map", &many(200_001))]);
    let error = unpack(&archive[..], &t.root(), Unpacking::layer(limits)).unwrap_err();
    assert_recorded!("archive-sparse-files", rows.concat() + &row("regions of a record", error));
}

#[test]
fn messages_about_entries_are_as_recorded() {
    let entry = |kind: EntryKind, path: &str| TarEntry { kind, ..file(path, "").0 };
    let files = |entries: &[TarEntry]| {
        let entries: Vec<_> = entries.iter().map(|entry| (entry.clone(), vec![0; entry.size as usize])).collect();
        tar(&entries)
    };
    let hard = |path: &str, to: &str| link(EntryKind::HardLink, path, to).0;
    let sized = |size: u64| TarEntry { size, ..file("big", "").0 };
    let plain = |path: &str| file(path, "").0;
    let rows = [
        ("outside", files(&[plain("../f")])),
        ("root", files(&[plain(".")])),
        ("below a file", files(&[plain("f"), plain("f/g")])),
        ("whiteout", files(&[plain("d/.wh.")])),
        ("whiteout of a layer", files(&[entry(EntryKind::CharDevice, "dev")])),
        ("link without a target", files(&[entry(EntryKind::Symlink, "l")])),
        ("link that leaves", files(&[hard("l", "../f")])),
        ("link to a directory", files(&[dir("d", 0o755).0, hard("l", "d")])),
        ("NUL", pax(&[("path", "a\0b")])),
        ("entries", files(&["a", "b", "c", "d"].map(plain))),
        ("bytes", files(&[sized(2 << 20)])),
        ("path", files(&[plain(&"p".repeat(80))])),
        ("depth", files(&[plain("a/b/c/d/e")])),
        ("header", pax(&[("comment", &"v".repeat(5000))])),
        ("after the end", [files(&[plain("f")]), vec![0; 3 << 20]].concat()),
    ];
    let mut rows: String = rows.iter().map(|(name, archive)| refused(name, archive)).collect();
    let t = Temp::new();
    let foreign = TarEntry { uid: 1 << 32, gid: 7, ..plain("f") };
    let error = unpack(&files(&[foreign])[..], &t.root(), Unpacking::layer(SMALL)).unwrap_err();
    rows += &row("owner", error);
    let options = Unpacking::archive(Owners::Always(UidGid::ROOT), SMALL);
    let error = unpack(&files(&[hard("l", "f")])[..], &t.root(), options).unwrap_err();
    rows += &row("link to nothing", error);
    let stopped = Unpacking { stop: &|| true, ..options };
    rows += &row("stopped", unpack(&files(&[plain("f")])[..], &t.root(), stopped).unwrap_err());
    let device = TarEntry { rdev: (1 << 21, 0), ..entry(EntryKind::BlockDevice, "disk") };
    let error = TarWriter::new(Vec::new()).entry(&device).unwrap_err();
    rows += &row("device", LayerError::io("writing the archive")(error));
    std::fs::write(t.path("short"), "x").unwrap();
    let short = std::fs::File::open(t.path("short")).unwrap();
    rows += &row("short file", crate::item::read_small(&short, &file("short", "xyz").0).unwrap_err());
    assert_recorded!("archive-entries", rows);
}

#[test]
fn messages_about_streams_are_as_recorded() {
    /// Fails after 4 KiB of zeros.
    struct Broken(usize);
    impl std::io::Read for Broken {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            let n = buf.len().min(self.0);
            self.0 -= n;
            buf[..n].fill(0);
            if n == 0 { Err(std::io::Error::from_raw_os_error(5)) } else { Ok(n) }
        }
    }
    /// Fails as a full disk does.
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::Error::from_raw_os_error(28))
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut packed = Vec::new();
    repack_layer(&tar(&[file("f", &"x".repeat(5000))])[..], LayerForm::GZIP, &mut packed).unwrap();
    let cut = &packed[..packed.len() - 12];
    let mut flipped = packed.clone();
    flipped[30..40].fill(0xff);
    let t = Temp::new();
    let options = Unpacking::archive(Owners::Always(rbuild_linux::credentials::own_ids()), SMALL);
    let plain = LayerForm::Uncompressed;
    let limits = Limits { bytes: 0, ..SMALL };
    let rows = [
        row("digest of a cut layer", layer_digests(cut, SMALL).unwrap_err()),
        row("digest of a damaged layer", layer_digests(&flipped[..], SMALL).unwrap_err()),
        row("digest of an unreadable layer", layer_digests(Broken(4096), SMALL).unwrap_err()),
        row("digest of a long layer", layer_digests(std::io::repeat(0), limits).unwrap_err()),
        row("repacking a cut layer", repack_layer(cut, plain, Vec::new()).unwrap_err()),
        row("repacking an unreadable layer", repack_layer(Broken(4096), plain, Vec::new()).unwrap_err()),
        row("repacking to a full disk", repack_layer(&packed[..], plain, Full).unwrap_err()),
        row("packing to a full disk", pack_layer(&t.root(), plain, Times::AsIs, Full).unwrap_err()),
        row("unpacking a cut layer", unpack(cut, &t.root(), options).unwrap_err()),
        row("unpacking a damaged layer", unpack(&flipped[..], &t.root(), options).unwrap_err()),
        row("unpacking an unreadable layer", unpack(Broken(0), &t.root(), options).unwrap_err()),
    ];
    assert_recorded!("layer-streams", rows.concat());
}
