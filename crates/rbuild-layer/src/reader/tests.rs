use rbuild_linux::shown_path;

use super::*;

/// Appends an entry: header, content and padding. `edit` changes the header before the checksum is
/// computed.
pub(crate) fn put(archive: &mut Vec<u8>, kind: u8, name: &str, content: &[u8], edit: impl Fn(&mut [u8])) {
    let mut header = Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(EntryType::new(kind));
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_uid(1);
    header.set_gid(2);
    header.set_mtime(3);
    edit(header.as_mut_bytes());
    header.set_cksum();
    archive.extend_from_slice(header.as_bytes());
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(BLOCK), 0);
}

pub(crate) fn one(kind: u8, name: &str, content: &[u8], edit: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut archive = Vec::new();
    put(&mut archive, kind, name, content, edit);
    archive
}

/// Returns an archive of a file `f` with the content `abc` after entries of other kinds.
pub(crate) fn archive_after(entries: &[(u8, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (kind, content) in entries {
        put(&mut archive, *kind, "meta", content, |_| ());
    }
    put(&mut archive, b'0', "f", b"abc", |_| ());
    archive
}

pub(crate) fn record(key: &str, value: &str) -> Vec<u8> {
    let rest = format!(" {key}={value}\n");
    let mut length = rest.len() + 1;
    while length.to_string().len() + rest.len() != length {
        length = length.to_string().len() + rest.len();
    }
    format!("{length}{rest}").into_bytes()
}

pub(crate) fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    archive_after(&[(b'x', &records.iter().flat_map(|(key, value)| record(key, value)).collect::<Vec<u8>>())])
}

/// Returns the entries as `KIND PATH -> LINK SIZE UID:GID TIME ATTRIBUTES REGIONS`, and the error
/// that ends the archive.
fn read(archive: &[u8]) -> String {
    let mut reader = TarReader::with_header_limit(archive, 4096);
    let mut lines = Vec::new();
    loop {
        let entry = match reader.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            Err(e) => {
                lines.push(format!("error: {e}"));
                break;
            }
        };
        let mut text = format!("{:?} {}", entry.kind, shown_path(entry.path.as_ref()));
        if !entry.link.is_empty() {
            text += &format!(" -> {}", shown_path(entry.link.as_ref()));
        }
        text += &format!(" {} {}:{} {}.{}", entry.size, entry.uid, entry.gid, entry.mtime.sec, entry.mtime.nsec);
        for (name, value) in &entry.xattrs {
            text += &format!(" {}={}", name.to_string_lossy(), value.escape_ascii());
        }
        if let Some((regions, size)) = &entry.sparse {
            text += &format!(" {regions:?} of {size}");
        }
        lines.push(text);
    }
    lines.join("; ")
}

const PLAIN: &str = "File f 3 1:2 3.0";

#[test]
fn headers_and_content_are_read() {
    let plain = || archive_after(&[]);
    let ends = |zeros: usize| [plain(), vec![0; zeros], plain()].concat();
    let size = |text: &'static [u8]| one(b'0', "f", b"", move |h| h[124..124 + text.len()].copy_from_slice(text));
    for (name, archive, want) in [
        ("nothing", vec![], ""),
        ("no end mark", plain(), PLAIN),
        ("two zero blocks end", ends(2 * BLOCK), PLAIN),
        ("one zero block does not", ends(BLOCK), "File f 3 1:2 3.0; File f 3 1:2 3.0"),
        ("no archive", vec![b'x'; 600], "error: the content is not a tar archive"),
        ("less than a block", vec![b'x'; 100], "error: the content is not a tar archive"),
        ("cut in a header", plain()[..100].to_vec(), "error: the content is not a tar archive"),
        (
            "cut in the second header",
            [plain(), plain()[..100].to_vec()].concat(),
            "File f 3 1:2 3.0; error: the archive ends in the middle of the header after `f`",
        ),
        (
            "cut in the content",
            plain()[..BLOCK + 1].to_vec(),
            "File f 3 1:2 3.0; error: the archive ends in the middle of the content of `f`",
        ),
        (
            "wrong checksum after an entry",
            [plain(), vec![b'x'; BLOCK]].concat(),
            "File f 3 1:2 3.0; error: the archive is damaged: the header after `f` has a wrong checksum",
        ),
        ("empty name", one(b'0', "", b"", |_| ()), "File . 0 1:2 3.0"),
        ("directory by its slash", one(b'0', "d/", b"", |_| ()), "Dir d/ 0 1:2 3.0"),
        ("link", one(b'2', "l", b"", |h| h[157] = b't'), "Symlink l -> t 0 1:2 3.0"),
        (
            "link with content",
            one(b'2', "l", b"x", |_| ()),
            "error: archive entry `l` has content but is not a regular file",
        ),
        ("unknown type", one(b'Z', "f", b"", |_| ()), "error: archive entry `f` has the unknown type `Z`"),
        (
            "size that is not a number",
            size(b"zzzzzzzzzzz"),
            "error: the archive is damaged: the header at the start has a size that is not a number",
        ),
        // Base 256: the first bit is set.
        (
            "largest size",
            size(b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"),
            "File f 18446744073709551615 1:2 3.0; error: the archive ends in the middle of the content of `f`",
        ),
        (
            "owner in base 256",
            one(b'0', "f", b"", |h| h[108..116].copy_from_slice(b"\x80\0\0\0\xff\xff\xff\xff")),
            "File f 0 4294967295:2 3.0",
        ),
        (
            "owner that is not a number",
            one(b'0', "f", b"", |h| h[108..112].copy_from_slice(b"root")),
            "error: archive entry `f` has a user ID that is not a number",
        ),
    ] {
        assert_eq!(read(&archive), want, "{name}");
    }
}

#[test]
fn extended_headers_apply_to_the_next_entry() {
    let long = "n".repeat(300);
    let many = "v".repeat(5000);
    let global = [
        archive_after(&[(
            b'g',
            &[record("uid", "7"), record("path", "x"), record("SCHILY.xattr.user.a", "b")].concat(),
        )]),
        archive_after(&[]),
    ];
    for (name, archive, want) in [
        ("path and link", pax(&[("path", "p"), ("linkpath", "q")]), "File p -> q 3 1:2 3.0"),
        ("owners and time", pax(&[("uid", "5"), ("gid", "6"), ("mtime", "-1.25")]), "File f 3 5:6 -2.750000000"),
        ("attributes", pax(&[("SCHILY.xattr.user.a", "b=c\nd")]), "File f 3 1:2 3.0 user.a=b=c\\nd"),
        ("unknown records", pax(&[("comment", "x"), ("LIBARCHIVE.creationtime", "1")]), PLAIN),
        ("the last of two", pax(&[("uid", "5"), ("uid", "6")]), "File f 3 6:2 3.0"),
        ("all later entries", global.concat(), "File f 3 7:2 3.0 user.a=b; File f 3 7:2 3.0 user.a=b"),
        ("GNU name", archive_after(&[(b'L', format!("{long}\0").as_bytes())]), &format!("File {long} 3 1:2 3.0")),
        ("GNU link", archive_after(&[(b'K', b"target\0")]), "File f -> target 3 1:2 3.0"),
        ("PAX before GNU", archive_after(&[(b'L', b"gnu\0"), (b'x', &record("path", "pax"))]), "File pax 3 1:2 3.0"),
        (
            "size beyond the stream",
            pax(&[("size", "18446744073709551615")]),
            "File f 18446744073709551615 1:2 3.0; error: the archive ends in the middle of the content of `f`",
        ),
        (
            "size that overflows",
            pax(&[("size", "18446744073709551616")]),
            "error: the archive is damaged: the PAX record `size` is not a number",
        ),
        (
            "negative owner",
            pax(&[("uid", "-1")]),
            "error: the archive is damaged: the PAX record `uid` is not a number",
        ),
        (
            "time that is not a number",
            pax(&[("mtime", "1.x")]),
            "error: the archive is damaged: the PAX time `1.x` is not a number",
        ),
        ("no length", archive_after(&[(b'x', b"abc")]), "error: the archive is damaged: a PAX record has no length"),
        (
            "length that is not a number",
            archive_after(&[(b'x', b"x a=b\n")]),
            "error: the archive is damaged: a PAX record has a length that is not a number",
        ),
        (
            "length beyond the header",
            archive_after(&[(b'x', b"99 a=b\n")]),
            "error: the archive is damaged: a PAX record has a wrong length",
        ),
        ("no value", archive_after(&[(b'x', b"5 ab\n")]), "error: the archive is damaged: a PAX record has no `=`"),
        (
            "larger than the limit",
            pax(&[("comment", &many)]),
            "error: an archive entry claims 5014 bytes of extended header; the limit is 4096",
        ),
        (
            "cut",
            pax(&[("uid", "5")])[..BLOCK + 4].to_vec(),
            "error: the archive ends in the middle of an extended header at the start",
        ),
    ] {
        assert_eq!(read(&archive), want, "{name}");
    }
}

#[test]
fn sparse_files_have_their_regions() {
    for (name, archive, want) in [
        (
            "format 0.1",
            pax(&[("GNU.sparse.size", "100"), ("GNU.sparse.map", "10,3")]),
            "File f 3 1:2 3.0 [(10, 3)] of 100",
        ),
        (
            "format 1.0, with the map in the content",
            {
                let records = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "100")];
                let mut archive = Vec::new();
                let all: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
                put(&mut archive, b'x', "meta", &all, |_| ());
                let mut content = b"1\n10\n3\n".to_vec();
                content.resize(BLOCK, 0);
                content.extend_from_slice(b"abc");
                put(&mut archive, b'0', "f", &content, |_| ());
                archive
            },
            "File f 3 1:2 3.0 [(10, 3)] of 100",
        ),
        (
            "regions that are larger than the content",
            pax(&[("GNU.sparse.size", "100"), ("GNU.sparse.map", "10,4")]),
            "error: archive entry `f` is a sparse file whose data regions do not match its content",
        ),
    ] {
        assert_eq!(read(&archive), want, "{name}");
    }
}

#[test]
fn an_entry_with_content_is_a_file_even_if_its_name_ends_with_a_slash() {
    let mut archive = one(b'0', "f/", b"abc", |_| ());
    put(&mut archive, b'0', "dir/", b"", |_| ());
    put(&mut archive, b'0', "g", b"d", |_| ());
    assert_eq!(read(&archive), "File f 3 1:2 3.0; Dir dir/ 0 1:2 3.0; File g 1 1:2 3.0");
    let root = read(&one(b'0', "//", b"abc", |_| ()));
    assert!(root.contains("has the name of the root directory"), "{root}");
}
