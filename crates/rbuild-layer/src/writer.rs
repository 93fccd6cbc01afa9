//! A deterministic tar writer. It writes POSIX headers, with PAX records only for values that do
//! not fit a plain header.

use std::ffi::OsStr;
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;

use tar::{EntryType, Header};

use rbuild_linux::quoted;

use crate::entry::{EntryKind, TarEntry};

/// A numeric header field.
#[derive(Clone, Copy)]
struct HeaderField {
    offset: usize,
    length: usize,
}

impl HeaderField {
    /// Returns the place of its bytes in the header.
    fn bytes(self) -> Range<usize> {
        self.offset..self.offset + self.length
    }
}

const MODE: HeaderField = HeaderField { offset: 100, length: 8 };
const UID: HeaderField = HeaderField { offset: 108, length: 8 };
const GID: HeaderField = HeaderField { offset: 116, length: 8 };
const SIZE: HeaderField = HeaderField { offset: 124, length: 12 };
const MTIME: HeaderField = HeaderField { offset: 136, length: 12 };
const CHECKSUM: HeaderField = HeaderField { offset: 148, length: 8 };
const MAJOR: HeaderField = HeaderField { offset: 329, length: 8 };
const MINOR: HeaderField = HeaderField { offset: 337, length: 8 };

/// A writer of uncompressed tar archives.
pub struct TarWriter<W: Write> {
    out: W,
    /// Padding of the last entry, written before the next one.
    padding: usize,
}

/// A file in an archive whose header has not been written yet.
pub struct LateEntry {
    /// Offset of the header.
    at: u64,
}

impl<W: Write> TarWriter<W> {
    /// Starts an empty archive.
    pub fn new(out: W) -> TarWriter<W> {
        TarWriter { out, padding: 0 }
    }

    /// Writes the header of an entry. The modification time is truncated to whole seconds. Exactly
    /// `entry.size` bytes must follow through [`Self::content`].
    ///
    /// # Errors
    ///
    /// Fails if the output fails, or if a device number does not fit the format.
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
        octal(&mut header, MODE, u64::from(entry.mode));
        number(&mut header, UID, entry.uid, &mut pax, b"uid");
        number(&mut header, GID, entry.gid, &mut pax, b"gid");
        number(&mut header, SIZE, entry.size, &mut pax, b"size");
        match u64::try_from(entry.mtime.sec) {
            Ok(sec) if sec <= largest(MTIME) => octal(&mut header, MTIME, sec),
            _ => {
                octal(&mut header, MTIME, 0);
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
        if u64::from(major.max(minor)) > largest(MAJOR) {
            return Err(io::Error::other(format!(
                "the device number of {} does not fit into a tar header",
                quoted(&entry.path)
            )));
        }
        octal(&mut header, MAJOR, u64::from(major));
        octal(&mut header, MINOR, u64::from(minor));
        checksum(&mut header);
        if !pax.is_empty() {
            self.pax_header(&path, &pax)?;
        }
        self.out.write_all(header.as_bytes())?;
        self.padding = padding(entry.size);
        Ok(())
    }

    /// Starts a regular file whose name and size become known at its end.
    ///
    /// # Errors
    ///
    /// Fails if the output fails.
    pub fn late_entry(&mut self) -> io::Result<LateEntry>
    where
        W: Seek,
    {
        self.pad()?;
        let at = self.out.stream_position()?;
        self.out.write_all(&[0; 512])?;
        Ok(LateEntry { at })
    }

    /// Writes the header of a file started by [`Self::late_entry`]. With `path` `None`, the file is
    /// removed again.
    ///
    /// # Errors
    ///
    /// Fails if the output fails.
    pub fn end_late_entry(&mut self, late: LateEntry, path: Option<&str>) -> io::Result<()>
    where
        W: Seek,
    {
        let end = self.out.stream_position()?;
        self.out.seek(SeekFrom::Start(late.at))?;
        let Some(path) = path else { return Ok(()) };
        let size = end - late.at - 512;
        // The header must be a single block for any size: numbers of more than eleven octal digits
        // are written in base 256, as GNU tar does.
        let mut header = Header::new_ustar();
        put(&mut header, 0, 100, path.as_bytes());
        header.set_mode(0o644);
        [UID, GID, MTIME, MAJOR, MINOR].into_iter().for_each(|field| octal(&mut header, field, 0));
        header.set_size(size);
        header.set_entry_type(EntryType::Regular);
        checksum(&mut header);
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
        octal(&mut header, MODE, 0o644);
        [UID, GID, MTIME].into_iter().for_each(|field| octal(&mut header, field, 0));
        header.set_size(records.len() as u64);
        checksum(&mut header);
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(records)?;
        self.out.write_all(&[0; 512][..padding(records.len() as u64)])
    }

    /// Writes content of the current entry.
    ///
    /// # Errors
    ///
    /// Fails if the output fails.
    pub fn content(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    /// Returns the output, so that content can be written to it directly.
    pub fn content_writer(&mut self) -> &mut W {
        &mut self.out
    }

    /// Returns the output, so that whole entries can be written to it.
    ///
    /// # Errors
    ///
    /// Fails if the output fails.
    pub(crate) fn entries_writer(&mut self) -> io::Result<&mut W> {
        self.pad()?;
        Ok(&mut self.out)
    }

    fn pad(&mut self) -> io::Result<()> {
        let padding = std::mem::take(&mut self.padding);
        self.out.write_all(&[0; 512][..padding])
    }

    /// Writes the end of the archive, two zero blocks, and returns the output.
    ///
    /// # Errors
    ///
    /// Fails if the output fails.
    pub fn finish(mut self) -> io::Result<W> {
        self.pad()?;
        self.out.write_all(&[0; 1024])?;
        Ok(self.out)
    }
}

fn padding(size: u64) -> usize {
    ((512 - size % 512) % 512) as usize
}

/// Stores the path in the name and prefix fields. Returns false if it does not fit; the fields then
/// contain a truncated form.
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

/// Returns the largest number that fits a field: octal digits followed by a zero byte.
fn largest(field: HeaderField) -> u64 {
    (1 << (3 * (field.length - 1))) - 1
}

/// Writes a number that fits the field. Formatting is a significant part of the cost of packing
/// small files, so it is done by hand.
fn octal(header: &mut Header, field: HeaderField, mut value: u64) {
    let bytes = &mut header.as_mut_bytes()[field.bytes()];
    bytes[field.length - 1] = 0;
    for digit in bytes[..field.length - 1].iter_mut().rev() {
        *digit = b'0' + (value & 7) as u8;
        value >>= 3;
    }
}

/// Writes a number, or a zero and a PAX record if it does not fit the field.
fn number(header: &mut Header, field: HeaderField, value: u64, pax: &mut Vec<u8>, key: &[u8]) {
    if value > largest(field) {
        record(pax, key, value.to_string().as_bytes());
    }
    octal(header, field, if value > largest(field) { 0 } else { value });
}

/// Sets the checksum: the sum of all bytes, with its own eight counted as spaces (POSIX ustar).
fn checksum(header: &mut Header) {
    header.as_mut_bytes()[CHECKSUM.bytes()].fill(b' ');
    let sum: u32 = header.as_bytes().iter().map(|byte| u32::from(*byte)).sum();
    octal(header, CHECKSUM, u64::from(sum));
}

/// Appends `LENGTH KEY=VALUE\n`, where LENGTH includes itself.
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
    /// Returns a regular file of a generated archive: mode 0644, owned by root, time zero.
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

    /// Returns a directory of a generated archive: mode 0755, owned by root, time zero.
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
    fn a_late_entry_equals_an_ordinary_one() {
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
    fn written_entries_are_read_back_unchanged() {
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
