//! A tar reader: framing, PAX records, GNU long names and sparse files. Header blocks are parsed by
//! the tar crate.

use rbuild_remedy::counted;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rbuild_linux::{Timestamp, Xattrs, quoted};
use tar::{EntryType, Header};

use crate::entry::{EntryKind, TarEntry};
use crate::error::{LayerError, Result};
use crate::limits::{Limits, exceeded};
use crate::sparse::{self, SparseFile, SparseRecords};

const BLOCK: usize = 512;

/// Maximum size in bytes of the attributes in a global header, which every later entry carries.
const MAX_GLOBAL: usize = 64 << 10;

/// A streaming reader of an uncompressed tar archive.
pub struct TarReader<R> {
    inner: R,
    /// Unread content of the current entry, in bytes.
    remaining: u64,
    /// Bytes read and passed over, without the maps of sparse files.
    offset: u64,
    /// Unread padding after the content, in bytes.
    padding: u64,
    /// A header was read.
    begun: bool,
    /// Path of the last entry, for messages.
    current: Option<OsString>,
    /// Defaults from global headers.
    global: Pax,
    /// Maximum size of the PAX records and long names of one entry, together, in bytes.
    header_limit: u64,
}

/// The PAX records that are interpreted; others are ignored.
#[derive(Default, Clone)]
struct Pax {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<Timestamp>,
    xattrs: Xattrs,
    sparse: SparseRecords,
}

impl TarReader<BufReader<File>> {
    /// Seeks past the rest of the current entry's content.
    pub(crate) fn pass_over(&mut self) -> Result<()> {
        let skip = i64::try_from(self.remaining.saturating_add(self.padding)).unwrap_or(i64::MAX);
        self.inner.seek_relative(skip).map_err(|e| LayerError::reading(self.content_name())(e))?;
        self.offset = self.offset.saturating_add(self.remaining).saturating_add(self.padding);
        (self.remaining, self.padding) = (0, 0);
        Ok(())
    }

    /// Returns the number of bytes read and passed over. The maps of sparse files are not counted;
    /// layers written by this crate have none.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }
}

impl<R: Read> TarReader<R> {
    /// Starts reading an archive with the default limit on extended headers.
    pub fn new(inner: R) -> TarReader<R> {
        TarReader::with_header_limit(inner, Limits::default().header)
    }

    /// Starts reading an archive; the extended headers of one entry may have `header_limit` bytes.
    pub fn with_header_limit(inner: R, header_limit: u64) -> TarReader<R> {
        let (remaining, offset, padding) = (0, 0, 0);
        let global = Pax::default();
        TarReader { inner, remaining, offset, padding, begun: false, current: None, global, header_limit }
    }

    /// Returns the next entry, or `None` at the end of the archive: two zero blocks, or the end of
    /// the stream at a block boundary. Skips unread content of the last entry.
    ///
    /// # Errors
    ///
    /// Fails if the stream cannot be read, if the archive is damaged, or if an extended header
    /// exceeds the limit.
    pub fn next_entry(&mut self) -> Result<Option<TarEntry>> {
        self.skip_content()?;
        let mut pax = self.global.clone();
        let mut long_name = None;
        let mut long_link = None;
        let mut meta = 0u64;
        loop {
            let Some(header) = self.header()? else { return Ok(None) };
            let size = header.entry_size().map_err(|_| self.damaged("has a size that is not a number"))?;
            let kind = header.entry_type();
            if matches!(
                kind,
                EntryType::XHeader | EntryType::XGlobalHeader | EntryType::GNULongName | EntryType::GNULongLink
            ) {
                meta = size.saturating_add(meta);
                if meta > self.header_limit {
                    let excess = format!("an archive entry claims {meta} bytes of extended header");
                    return Err(exceeded("header", self.header_limit, excess));
                }
            }
            match kind {
                EntryType::XHeader => pax.read(&self.meta_content(size)?)?,
                EntryType::XGlobalHeader => {
                    let content = self.meta_content(size)?;
                    self.global.read(&content)?;
                    // A size, a path or a sparse map makes no sense for all later entries; the
                    // other records are defaults.
                    (self.global.size, self.global.path, self.global.link) = (None, None, None);
                    self.global.sparse = SparseRecords::default();
                    let kept = self.global.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
                    if kept > MAX_GLOBAL {
                        let excess = format!("attributes for all entries of the archive take {kept} bytes");
                        return Err(LayerError::fixed_limit(format!("{excess}; the limit is {MAX_GLOBAL}")));
                    }
                    pax = self.global.clone();
                }
                EntryType::GNULongName => long_name = Some(until_nul(self.meta_content(size)?)),
                EntryType::GNULongLink => long_link = Some(until_nul(self.meta_content(size)?)),
                _ => return self.entry(&header, size, pax, long_name, long_link).map(Some),
            }
        }
    }

    /// Returns the position in the archive for messages, by the last entry.
    fn position(&self) -> String {
        match &self.current {
            Some(path) => format!("after {}", quoted(path)),
            None => "at the start".into(),
        }
    }

    /// Returns the name of the current entry's content for messages.
    pub(crate) fn content_name(&self) -> String {
        format!("the content of {}", quoted(self.current.as_deref().unwrap_or_default()))
    }

    fn damaged(&self, problem: &str) -> LayerError {
        LayerError::Damaged(format!("the header {} {problem}", self.position()))
    }

    fn header(&mut self) -> Result<Option<Header>> {
        let mut header = Header::new_old();
        let mut zeros = 0;
        loop {
            match read_block(&mut self.inner, header.as_mut_bytes()) {
                Ok(BLOCK) => self.offset += BLOCK as u64,
                Ok(0) => return Ok(None),
                Ok(_) if !self.begun => return Err(LayerError::NotTar),
                Ok(_) => return Err(LayerError::Truncated(format!("the header {}", self.position()))),
                Err(e) => return Err(LayerError::reading(format!("the header {}", self.position()))(e)),
            }
            if header.as_bytes().iter().any(|b| *b != 0) {
                break;
            }
            zeros += 1;
            if zeros == 2 {
                return Ok(None);
            }
        }
        if checksum_fits(&header) {
            self.begun = true;
            Ok(Some(header))
        } else if self.begun {
            Err(self.damaged("has a wrong checksum"))
        } else {
            Err(LayerError::NotTar)
        }
    }

    fn meta_content(&mut self, size: u64) -> Result<Vec<u8>> {
        let mut content = vec![0; size as usize];
        let context = format!("an extended header {}", self.position());
        self.inner.read_exact(&mut content).map_err(LayerError::reading(context.clone()))?;
        let mut pad = [0; BLOCK];
        self.inner.read_exact(&mut pad[..padding(size) as usize]).map_err(LayerError::reading(context))?;
        self.offset += size + padding(size);
        Ok(content)
    }

    fn entry(
        &mut self,
        header: &Header,
        size: u64,
        pax: Pax,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<TarEntry> {
        let path =
            pax.sparse.name.clone().or(pax.path).or(long_name).unwrap_or_else(|| header.path_bytes().into_owned());
        let size = pax.size.unwrap_or(size);
        let kind = kind(header.entry_type(), &path, size);
        let path = named(path, kind);
        let path = OsString::from_vec(if path.is_empty() { b".".to_vec() } else { path });
        self.current = Some(path.clone());
        let fail =
            |reason: &str| LayerError::Entry { name: path.to_string_lossy().into_owned(), reason: reason.to_string() };
        let kind = kind
            .ok_or_else(|| fail(&format!("has the unknown type `{}`", header.entry_type().as_byte().escape_ascii())))?;
        if kind == EntryKind::File && path == "/" {
            return Err(fail("is a file, but has the name of the root directory"));
        }
        let number =
            |n: std::io::Result<u64>, field: &str| n.map_err(|_| fail(&format!("has a {field} that is not a number")));
        let device = |n: std::io::Result<Option<u32>>| n.map(Option::unwrap_or_default).unwrap_or_default();
        let rdev = (device(header.device_major()), device(header.device_minor()));
        let link = pax.link.or(long_link).unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned());
        let mtime = match pax.mtime {
            Some(t) => t,
            None => Timestamp { sec: number(header.mtime(), "time")? as i64, nsec: 0 },
        };
        let mut stored = if kind == EntryKind::File { size } else { 0 };
        let pad = padding(stored);
        let sparse = match (header.entry_type(), pax.sparse.file()?) {
            (EntryType::GNUSparse, _) => Some(sparse::read_old(header, &mut self.inner)?),
            (_, Some(file)) if kind == EntryKind::File => Some(self.regions(file, &mut stored)?),
            _ => None,
        };
        if let Some((regions, _)) = &sparse
            && regions.iter().map(|(_, length)| length).sum::<u64>() != stored
        {
            return Err(fail("is a sparse file whose data regions do not match its content"));
        }
        let entry = TarEntry {
            kind,
            mode: header.mode().map_err(|_| fail("has a mode that is not a number"))? & 0o7777,
            uid: pax.uid.map_or_else(|| number(header.uid(), "user ID"), Ok)?,
            gid: pax.gid.map_or_else(|| number(header.gid(), "group ID"), Ok)?,
            mtime,
            // Only regular files have content, regardless of the header (POSIX pax, "size").
            size: stored,
            link: OsString::from_vec(link),
            rdev,
            xattrs: pax.xattrs,
            path: OsString::new(),
            sparse,
        };
        if kind != EntryKind::File && size > 0 && kind != EntryKind::HardLink && kind != EntryKind::Dir {
            return Err(fail("has content but is not a regular file"));
        }
        (self.remaining, self.padding) = (stored, pad);
        Ok(TarEntry { path, ..entry })
    }

    /// Returns the data regions and the size of a sparse file. The regions may be listed at the
    /// beginning of the `stored` bytes of content.
    fn regions(&mut self, file: SparseFile, stored: &mut u64) -> Result<(Vec<(u64, u64)>, u64)> {
        if let Some(regions) = file.regions {
            return Ok((regions, file.size));
        }
        let (regions, taken) = sparse::read_map(&mut (&mut self.inner).take(*stored), file.size)?;
        *stored -= taken;
        Ok((regions, file.size))
    }

    fn skip_content(&mut self) -> Result<()> {
        let skip = self.remaining.saturating_add(self.padding);
        if skip == 0 {
            return Ok(());
        }
        match std::io::copy(&mut (&mut self.inner).take(skip), &mut std::io::sink()) {
            Ok(copied) if copied == skip => self.offset += skip,
            Ok(_) => return Err(LayerError::Truncated(self.content_name())),
            Err(e) => return Err(LayerError::reading(self.content_name())(e)),
        }
        (self.remaining, self.padding) = (0, 0);
        Ok(())
    }

    /// Reads content of the current entry; returns 0 at its end.
    ///
    /// # Errors
    ///
    /// Fails if the stream cannot be read or ends inside the content.
    pub fn read_content(&mut self, buf: &mut [u8]) -> Result<usize> {
        let want = (buf.len() as u64).min(self.remaining) as usize;
        if want == 0 {
            return Ok(0);
        }
        loop {
            match self.inner.read(&mut buf[..want]) {
                Ok(0) => return Err(LayerError::Truncated(self.content_name())),
                Ok(n) => {
                    self.remaining -= n as u64;
                    self.offset += n as u64;
                    return Ok(n);
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(LayerError::reading(self.content_name())(e)),
            }
        }
    }

    /// Reads the stream to its end, so that digests cover all of it.
    ///
    /// # Errors
    ///
    /// Fails if the stream cannot be read, or if more than `most` bytes follow the archive.
    pub fn drain(self, most: u64) -> Result<()> {
        let mut tail = self.inner.take(most.saturating_add(1));
        let read = std::io::copy(&mut tail, &mut std::io::sink())
            .map_err(LayerError::decompressing("the end of the archive"))?;
        if read <= most {
            Ok(())
        } else {
            Err(exceeded("bytes", most, format!("more than {} follow the end of the archive", counted(most, "byte"))))
        }
    }
}

/// Returns true if the header's checksum is correct: the sum of all bytes, with those of the
/// checksum field counted as spaces (POSIX ustar).
fn checksum_fits(header: &Header) -> bool {
    let sum = |bytes: &[u8]| bytes.iter().map(|b| u32::from(*b)).sum::<u32>();
    let bytes = header.as_bytes();
    let counted = sum(&bytes[..148]) + 8 * u32::from(b' ') + sum(&bytes[156..]);
    header.cksum().is_ok_and(|claimed| claimed == counted)
}

/// Returns true if the bytes begin with a tar header. Only the checksum is tested, because old
/// archives have no magic.
pub fn is_tar(head: &[u8]) -> bool {
    let Some(block) = head.get(..BLOCK).filter(|b| b.iter().any(|b| *b != 0)) else { return false };
    let mut header = Header::new_old();
    header.as_mut_bytes().copy_from_slice(block);
    checksum_fits(&header)
}

/// Returns the path of an entry, without slashes at the end if it is a file.
fn named(mut path: Vec<u8>, kind: Option<EntryKind>) -> Vec<u8> {
    while kind == Some(EntryKind::File) && path.len() > 1 && path.ends_with(b"/") {
        path.pop();
    }
    path
}

/// Returns the kind of an entry, or `None` for a type that layers do not use.
fn kind(entry_type: EntryType, path: &[u8], size: u64) -> Option<EntryKind> {
    Some(match entry_type {
        // Archives from before POSIX mark a directory by a slash. An entry with content is a file.
        EntryType::Regular | EntryType::Continuous if size == 0 && path.ends_with(b"/") => EntryKind::Dir,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => EntryKind::File,
        EntryType::Directory => EntryKind::Dir,
        EntryType::Symlink => EntryKind::Symlink,
        EntryType::Link => EntryKind::HardLink,
        EntryType::Char => EntryKind::CharDevice,
        EntryType::Block => EntryKind::BlockDevice,
        EntryType::Fifo => EntryKind::Fifo,
        _ => return None,
    })
}

fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

/// Reads one block. Returns the bytes read: fewer than a block only at the end of the stream.
fn read_block(reader: &mut impl Read, block: &mut [u8; BLOCK]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < BLOCK {
        match reader.read(&mut block[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|b| *b == 0) {
        bytes.truncate(end);
    }
    bytes
}

impl Pax {
    /// Parses `LENGTH KEY=VALUE\n` records by their length, because values may contain any byte.
    fn read(&mut self, mut records: &[u8]) -> Result<()> {
        let damaged = |problem: &str| LayerError::Damaged(format!("a PAX record {problem}"));
        while !records.is_empty() && records[0] != 0 {
            let space = records.iter().take(21).position(|b| *b == b' ').ok_or_else(|| damaged("has no length"))?;
            let length: usize = std::str::from_utf8(&records[..space])
                .ok()
                .and_then(|s| s.parse().ok())
                .ok_or_else(|| damaged("has a length that is not a number"))?;
            if length <= space + 1 || length > records.len() || records[length - 1] != b'\n' {
                return Err(damaged("has a wrong length"));
            }
            let record = &records[space + 1..length - 1];
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(|| damaged("has no `=`"))?;
            self.set(&record[..equals], &record[equals + 1..])?;
            records = &records[length..];
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let number = || {
            let text = std::str::from_utf8(value).ok();
            text.and_then(|t| t.parse().ok()).ok_or_else(|| {
                LayerError::Damaged(format!(
                    "the PAX record {} is not a number",
                    quoted(&*String::from_utf8_lossy(key))
                ))
            })
        };
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number()?),
            b"uid" => self.uid = Some(number()?),
            b"gid" => self.gid = Some(number()?),
            b"mtime" => self.mtime = Some(parse_time(value)?),
            _ => {
                if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.set(name, value)?;
                }
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.insert(OsStr::from_bytes(name).to_os_string(), value.to_vec());
                }
            }
        }
        Ok(())
    }
}

/// Parses decimal seconds, possibly negative, with an optional fraction. The time is `sec +
/// nsec/1e9`, and `nsec` is never negative.
fn parse_time(value: &[u8]) -> Result<Timestamp> {
    let bad =
        || LayerError::Damaged(format!("the PAX time {} is not a number", quoted(&*String::from_utf8_lossy(value))));
    let text = std::str::from_utf8(value).map_err(|_| bad())?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let sec: i64 = if whole == "-" { 0 } else { whole.parse().map_err(|_| bad())? };
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nsec: u32 = digits.parse().map_err(|_| bad())?;
    if negative && nsec > 0 {
        return Ok(Timestamp { sec: sec.checked_sub(1).ok_or_else(bad)?, nsec: 1_000_000_000 - nsec });
    }
    Ok(Timestamp { sec, nsec })
}

#[cfg(test)]
pub(crate) mod tests;
