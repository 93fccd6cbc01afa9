//! Writing tar: POSIX headers with PAX records only where a plain header cannot say it; deterministic.

use std::ffi::OsStr;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;

use tar::{EntryType, Header};

use crate::reader::{EntryKind, TarEntry};

/// The largest number that eleven octal digits hold.
const OCTAL_MAX: u64 = 0o77_777_777_777;
const ID_MAX: u64 = 0o7_777_777;

pub struct TarWriter<W: Write> {
    out: W,
    padding: usize,
}

/// A file of an archive that has no header yet.
pub struct LateEntry {
    /// Where its header goes.
    at: u64,
}

impl<W: Write> TarWriter<W> {
    pub fn new(out: W) -> TarWriter<W> {
        TarWriter { out, padding: 0 }
    }

    /// Writes an entry's header; exactly `entry.size` bytes of content are to follow through [`Self::content`].
    /// The time is cut to whole seconds.
    pub fn entry(&mut self, entry: &TarEntry) -> io::Result<()> {
        self.pad()?;
        let mut header = Header::new_ustar();
        let mut pax = Vec::new();
        let mut path = entry.path.as_bytes().to_vec();
        if entry.kind == EntryKind::Dir && !path.ends_with(b"/") {
            path.push(b'/');
        }
        if !set_path(&mut header, &path) {
            record(&mut pax, b"path", &path);
        }
        let link = entry.link.as_bytes();
        if !link.is_empty() && (link.len() > 100 || !link.is_ascii()) {
            record(&mut pax, b"linkpath", link);
        }
        put(&mut header, 157, 100, link);
        header.set_mode(entry.mode);
        number(&mut pax, b"uid", entry.uid, ID_MAX, |n| header.set_uid(n));
        number(&mut pax, b"gid", entry.gid, ID_MAX, |n| header.set_gid(n));
        number(&mut pax, b"size", entry.size, OCTAL_MAX, |n| header.set_size(n));
        match u64::try_from(entry.mtime.sec) {
            Ok(sec) if sec <= OCTAL_MAX => header.set_mtime(sec),
            _ => {
                header.set_mtime(0);
                record(&mut pax, b"mtime", entry.mtime.sec.to_string().as_bytes());
            }
        }
        for (name, value) in &entry.xattrs {
            record(&mut pax, &[b"SCHILY.xattr.", name.as_bytes()].concat(), value);
        }
        let (kind, device) = match entry.kind {
            EntryKind::File => (EntryType::Regular, false),
            EntryKind::Dir => (EntryType::Directory, false),
            EntryKind::Symlink => (EntryType::Symlink, false),
            EntryKind::HardLink => (EntryType::Link, false),
            EntryKind::CharDevice => (EntryType::Char, true),
            EntryKind::BlockDevice => (EntryType::Block, true),
            EntryKind::Fifo => (EntryType::Fifo, false),
        };
        header.set_entry_type(kind);
        let (major, minor) = if device { entry.rdev } else { (0, 0) };
        header.set_device_major(major)?;
        header.set_device_minor(minor)?;
        header.set_cksum();
        if !pax.is_empty() {
            self.pax_header(&path, &pax)?;
        }
        self.out.write_all(header.as_bytes())?;
        self.padding = padding(entry.size);
        Ok(())
    }

    /// Begins a regular file whose name and size are known at its end.
    pub fn late_entry(&mut self) -> io::Result<LateEntry>
    where
        W: Seek,
    {
        self.pad()?;
        let at = self.out.stream_position()?;
        self.out.write_all(&[0; 512])?;
        Ok(LateEntry { at })
    }

    /// Gives it its header; `None` takes it out again.
    pub fn end_late_entry(&mut self, late: LateEntry, path: Option<&str>) -> io::Result<()>
    where
        W: Seek,
    {
        let end = self.out.stream_position()?;
        self.out.seek(SeekFrom::Start(late.at))?;
        let Some(path) = path else { return Ok(()) };
        let size = end - late.at - 512;
        // One block, however large the file: numbers beyond eleven octal digits are in base 256, as GNU writes them.
        let mut header = Header::new_ustar();
        put(&mut header, 0, 100, path.as_bytes());
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.set_entry_type(EntryType::Regular);
        header.set_device_major(0)?;
        header.set_device_minor(0)?;
        header.set_cksum();
        self.out.write_all(header.as_bytes())?;
        self.out.seek(SeekFrom::Start(end))?;
        self.padding = padding(size);
        Ok(())
    }

    fn pax_header(&mut self, path: &[u8], records: &[u8]) -> io::Result<()> {
        let mut header = Header::new_ustar();
        let base = path.split(|b| *b == b'/').rfind(|p| !p.is_empty()).unwrap_or(b"x");
        let name = [b"PaxHeaders.0/", &base[..base.len().min(80)]].concat();
        put(&mut header, 0, 100, &name.iter().map(|b| if b.is_ascii() { *b } else { b'_' }).collect::<Vec<u8>>());
        header.set_entry_type(EntryType::XHeader);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(records.len() as u64);
        header.set_cksum();
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(records)?;
        self.out.write_all(&[0; 512][..padding(records.len() as u64)])
    }

    pub fn content(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    /// Where content goes, for who has it written by others.
    pub fn content_writer(&mut self) -> &mut W {
        &mut self.out
    }

    fn pad(&mut self) -> io::Result<()> {
        let padding = std::mem::take(&mut self.padding);
        self.out.write_all(&[0; 512][..padding])
    }

    /// Ends the archive with two empty blocks.
    pub fn finish(mut self) -> io::Result<W> {
        self.pad()?;
        self.out.write_all(&[0; 1024])?;
        Ok(self.out)
    }
}

fn padding(size: u64) -> usize {
    ((512 - size % 512) % 512) as usize
}

/// Puts the path into name and prefix; `false` if it does not fit (a cut form is left there).
fn set_path(header: &mut Header, path: &[u8]) -> bool {
    if !path.is_ascii() {
        put(header, 0, 100, &path.iter().map(|b| if b.is_ascii() { *b } else { b'_' }).collect::<Vec<u8>>());
        return false;
    }
    if path.len() <= 100 {
        put(header, 0, 100, path);
        return true;
    }
    let split = (0..path.len().min(156)).rev().find(|i| path[*i] == b'/' && *i > 0 && path.len() - i - 1 <= 100);
    match split {
        Some(i) if i + 1 < path.len() => {
            put(header, 0, 100, &path[i + 1..]);
            put(header, 345, 155, &path[..i]);
            true
        }
        _ => {
            put(header, 0, 100, path);
            false
        }
    }
}

fn put(header: &mut Header, at: usize, length: usize, bytes: &[u8]) {
    let n = bytes.len().min(length);
    header.as_mut_bytes()[at..at + n].copy_from_slice(&bytes[..n]);
}

fn number(pax: &mut Vec<u8>, key: &[u8], value: u64, max: u64, set: impl FnOnce(u64)) {
    if value > max {
        record(pax, key, value.to_string().as_bytes());
        set(0);
    } else {
        set(value);
    }
}

/// Appends `LENGTH KEY=VALUE\n`, where LENGTH counts itself.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let body = key.len() + value.len() + 3;
    let mut length = body + 1;
    while length != body + length.to_string().len() {
        length = body + length.to_string().len();
    }
    out.extend_from_slice(format!("{length} ").as_bytes());
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

impl TarEntry {
    /// A regular file of an archive that we make up: owned by root, no time.
    pub fn plain_file(path: impl AsRef<OsStr>, size: u64) -> TarEntry {
        TarEntry {
            path: path.as_ref().to_os_string(),
            kind: EntryKind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: rbuild_linux::Timestamp::default(),
            size,
            link: Default::default(),
            rdev: (0, 0),
            xattrs: Default::default(),
            sparse: None,
        }
    }

    pub fn plain_dir(path: impl AsRef<OsStr>) -> TarEntry {
        TarEntry { kind: EntryKind::Dir, mode: 0o755, ..TarEntry::plain_file(path, 0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reader::TarReader;
    use rbuild_linux::Timestamp;

    #[test]
    fn a_late_entry_is_like_any_other() {
        let mut early = TarWriter::new(Vec::new());
        early.entry(&TarEntry::plain_file("a", 700)).unwrap();
        early.content(&[7; 700]).unwrap();
        early.entry(&TarEntry::plain_file("b", 0)).unwrap();
        let early = early.finish().unwrap();
        let mut late = TarWriter::new(io::Cursor::new(Vec::new()));
        let entry = late.late_entry().unwrap();
        late.content(&[7; 700]).unwrap();
        late.end_late_entry(entry, Some("a")).unwrap();
        let gone = late.late_entry().unwrap();
        late.content(b"taken back").unwrap();
        late.end_late_entry(gone, None).unwrap();
        late.entry(&TarEntry::plain_file("b", 0)).unwrap();
        assert!(late.finish().unwrap().into_inner() == early, "not the same bytes");
    }

    #[test]
    fn what_is_written_is_read_back() {
        let odd = [
            TarEntry::plain_file("a", 3),
            TarEntry::plain_dir("d/e"),
            TarEntry { mode: 0o6755, uid: 3_000_000, gid: 5, ..TarEntry::plain_file("x".repeat(300), 0) },
            TarEntry::plain_file(format!("{}/{}", "p".repeat(120), "n".repeat(90)), 0),
            TarEntry { mtime: Timestamp { sec: -5, nsec: 0 }, ..TarEntry::plain_file("old", 0) },
            TarEntry { kind: EntryKind::Symlink, link: "é/".repeat(90).into(), ..TarEntry::plain_file("l", 0) },
            TarEntry { kind: EntryKind::CharDevice, rdev: (5, 300), ..TarEntry::plain_file("tty", 0) },
            TarEntry {
                xattrs: [("user.a".into(), b"1\n2=3\0".to_vec())].into(),
                sparse: None,
                ..TarEntry::plain_file(OsStr::from_bytes(b"non\xffutf8\nname"), 0)
            },
        ];
        let mut w = TarWriter::new(Vec::new());
        for e in &odd {
            w.entry(e).unwrap();
            w.content(&b"abc"[..e.size as usize]).unwrap();
        }
        let bytes = w.finish().unwrap();
        assert_eq!(bytes.len() % 512, 0);
        let mut r = TarReader::new(&bytes[..]);
        for want in &odd {
            let got = r.next_entry().unwrap().unwrap();
            let path = got.path.as_bytes().strip_suffix(b"/").unwrap_or(got.path.as_bytes());
            assert_eq!(path, want.path.as_bytes());
            assert_eq!((got.kind, got.mode, got.uid, got.gid), (want.kind, want.mode, want.uid, want.gid));
            assert_eq!(
                (got.mtime, got.link, got.rdev, got.xattrs),
                (want.mtime, want.link.clone(), want.rdev, want.xattrs.clone())
            );
        }
        assert!(r.next_entry().unwrap().is_none());
    }
}
