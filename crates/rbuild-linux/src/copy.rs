//! Copies of file contents between descriptors, preserving holes.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{Gid, Mode, SeekFrom, Uid};
use rustix::io::Errno;

use crate::error::{Error, Result, described};
use crate::idmap::unmapped_owner;
use crate::meta::{Stat, Timestamp, UidGid};
use crate::recorded_owners::{OwnerRecords, Recorded};
use crate::rootdir::timestamps;

/// Copies all bytes of `from` into the empty file `to`, and returns the number of bytes, holes
/// included. Holes are preserved if `stat` shows that there are any (plain copy_file_range(2) fills
/// them on ext4).
pub fn copy_file(from: &File, stat: &Stat, to: &File) -> Result<u64> {
    copy_file_while(from, stat, to, &|| true).map(Option::unwrap_or_default)
}

/// Number of bytes copied between two calls of `go_on`.
const CHUNK: usize = 16 << 20;

/// Like [`copy_file`], but stops and returns `None` when `go_on` returns false. It is called every
/// few megabytes.
pub fn copy_file_while(from: &File, stat: &Stat, to: &File, go_on: &dyn Fn() -> bool) -> Result<Option<u64>> {
    if stat.size >= 64 * 1024 && rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(Some(stat.size));
    }
    if stat.blocks * 512 < stat.size {
        return copy_sparse(from, stat.size, to, go_on);
    }
    if stat.size < 64 * 1024 {
        return copy_small(from, stat.size as usize, to).map(Some);
    }
    let mut copied = 0u64;
    while go_on() {
        match rustix::fs::copy_file_range(from, None, to, None, CHUNK) {
            Ok(0) => return Ok(Some(copied)),
            Ok(n) => copied += n as u64,
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) if copied == 0 => {
                return copy_chunks(from, to, go_on);
            }
            Err(e) => return Err(Error::new("copy_file_range", described("file contents"), e)),
        }
    }
    Ok(None)
}

/// Copies with one read and one write if the size has not changed since `stat`.
fn copy_small(mut from: &File, size: usize, mut to: &File) -> Result<u64> {
    let mut content = vec![0; size + 1];
    let n = read_some(from, &mut content)?;
    content.truncate(n);
    // A read of exactly `size` bytes, with room for more, has reached the end.
    if n != size {
        from.read_to_end(&mut content).map_err(|e| Error::new("read", described("file contents"), e))?;
    }
    to.write_all(&content).map_err(|e| Error::new("write", described("file contents"), e))?;
    Ok(content.len() as u64)
}

/// Reads at most `buffer.len()` bytes.
fn read_some(mut from: &File, buffer: &mut [u8]) -> Result<usize> {
    loop {
        match from.read(buffer) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            other => return other.map_err(|e| Error::new("read", described("file contents"), e)),
        }
    }
}

/// Sets the mode and the modification time of an open file whose directory has no records of
/// owners.
pub fn set_file_mode_and_time(file: &File, mode: u32, mtime: Timestamp) -> Result<()> {
    rustix::fs::fchmod(file, Mode::from_raw_mode(mode))
        .map_err(|e| Error::new("fchmod", described("a new file"), e))?;
    set_file_time(file, None, mtime)
}

/// Sets the owner and mode of an open file in a directory with these records of owners.
pub fn set_file_owner(file: &File, owners: Option<&OwnerRecords>, owner: UidGid, mode: u32) -> Result<()> {
    let fail = |call, e: Errno| Error::new(call, described("a new file"), e);
    match owners.filter(|owners| owners.are_written()) {
        Some(owners) => {
            let path = std::path::PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
            let recorded = Recorded { owner, device: None };
            owners.record(&path, true, &recorded).map_err(|e| fail("setxattr", e))?;
        }
        None => rustix::fs::fchown(file, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))
            .map_err(|e| fail("fchown", e).because(unmapped_owner(e, owner)))?,
    }
    rustix::fs::fchmod(file, Mode::from_raw_mode(mode)).map_err(|e| fail("fchmod", e))
}

/// Sets the modification time of an open file in a directory with these records of owners. The
/// access time becomes the same, unless it may hold a record.
pub fn set_file_time(file: &File, owners: Option<&OwnerRecords>, mtime: Timestamp) -> Result<()> {
    rustix::fs::futimens(file, &timestamps(owners, mtime))
        .map_err(|e| Error::new("futimens", described("a new file"), e))
}

/// Copies through a buffer. Slower than [`copy_file`], but works between any two descriptors.
pub fn copy_contents(from: impl Read, to: impl Write) -> Result<u64> {
    copy_chunks(from, to, &|| true).map(Option::unwrap_or_default)
}

fn copy_chunks(mut from: impl Read, mut to: impl Write, go_on: &dyn Fn() -> bool) -> Result<Option<u64>> {
    let mut buffer = vec![0u8; 128 * 1024];
    let mut copied = 0;
    while go_on() {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(Some(copied)),
            Ok(n) => {
                to.write_all(&buffer[..n]).map_err(|e| Error::new("write", described("file contents"), e))?;
                copied += n as u64;
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::new("read", described("file contents"), e)),
        }
    }
    Ok(None)
}

fn copy_sparse(from: &File, size: u64, to: &File, go_on: &dyn Fn() -> bool) -> Result<Option<u64>> {
    let fail = |call, e: Errno| Error::new(call, described("file contents"), e);
    let mut at = 0u64;
    let mut buffer = vec![0u8; 256 * 1024];
    while at < size {
        let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(e) => return Err(fail("lseek", e)),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(start)).map_err(|e| fail("lseek", e))?.min(size);
        let mut pos = start;
        while pos < end {
            if !go_on() {
                return Ok(None);
            }
            let want = (end - pos).min(buffer.len() as u64) as usize;
            let n = from
                .read_at(&mut buffer[..want], pos)
                .map_err(|e| Error::new("pread", described("file contents"), e))?;
            // The file has become shorter, or is one of /sys, which state a size of their own.
            if n == 0 {
                return ended_at(to, pos);
            }
            to.write_all_at(&buffer[..n], pos).map_err(|e| Error::new("pwrite", described("file contents"), e))?;
            pos += n as u64;
        }
        at = end.max(start + 1);
    }
    let length = from.metadata().map_err(|e| Error::new("fstat", described("file contents"), e))?.len();
    ended_at(to, size.min(length))
}

fn ended_at(to: &File, size: u64) -> Result<Option<u64>> {
    to.set_len(size).map_err(|e| Error::new("ftruncate", described("file contents"), e))?;
    Ok(Some(size))
}
