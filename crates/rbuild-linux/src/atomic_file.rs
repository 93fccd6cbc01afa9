//! Atomic publication of files.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::meta::Timestamp;
use crate::rootdir::RootDir;

static SERIAL: AtomicU64 = AtomicU64::new(0);

/// Returns a file name that no other thread, process or earlier run uses.
pub fn temporary_name() -> OsString {
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let nanos = Timestamp::now().nsec;
    OsString::from(format!(".rbuild-{}-{serial}-{nanos:08x}.tmp", std::process::id()))
}

/// Returns true for the name of an unpublished file: one being written, or left behind by a killed
/// process.
pub fn is_unpublished(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with(".rbuild-") && name.ends_with(".tmp"))
}

/// A file written next to its final name. It gets that name on [`AtomicFile::publish`], and is
/// removed if dropped before.
pub struct AtomicFile<'a> {
    dir: &'a RootDir,
    temp: OsString,
    file: Option<File>,
}

impl<'a> AtomicFile<'a> {
    /// Creates a file with a temporary name in `dir`.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be created.
    pub fn create(dir: &'a RootDir, mode: u32) -> Result<AtomicFile<'a>> {
        loop {
            let temp = temporary_name();
            match dir.create_file(&temp, mode) {
                Ok(file) => return Ok(AtomicFile { dir, temp, file: Some(file) }),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Returns the open file.
    pub fn file(&mut self) -> &mut File {
        // Only `publish` takes the file, and it consumes self.
        self.file.as_mut().expect("an unpublished file is open")
    }

    /// Returns the temporary name.
    pub fn temp_name(&self) -> &OsStr {
        &self.temp
    }

    /// Sets the file's mode and time, and publishes it under `name`, replacing an existing file.
    pub fn finish(mut self, mode: u32, mtime: Timestamp, name: &OsStr) -> Result<()> {
        crate::copy::set_file_mode_and_time(self.file(), mode, mtime)?;
        self.publish(name)
    }

    /// Renames the file to `name`, replacing an existing file.
    pub fn publish(mut self, name: &OsStr) -> Result<()> {
        self.dir.rename(&self.temp, self.dir, name)?;
        self.file = None;
        Ok(())
    }
}

impl Drop for AtomicFile<'_> {
    fn drop(&mut self) {
        if self.file.is_some() {
            let _ = self.dir.remove_file(&self.temp);
        }
    }
}

impl Write for AtomicFile<'_> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.file().write(buf)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.file().flush()
    }
}

/// Atomically writes `content` as `name` in `dir`: readers see either the old file or the new one.
pub fn write_atomic(dir: &RootDir, name: &OsStr, content: &[u8], mode: u32) -> Result<()> {
    let mut file = AtomicFile::create(dir, mode)?;
    file.write_all(content).map_err(|e| dir.error("write", name, e))?;
    file.publish(name)
}

/// Like [`write_atomic`], but syncs the content to disk before the rename, so that a power failure
/// cannot leave an empty or truncated file under the name.
pub fn write_durable(dir: &RootDir, name: &OsStr, content: &[u8], mode: u32) -> Result<()> {
    let mut file = AtomicFile::create(dir, mode)?;
    let failed = |e| dir.error("write", name, e);
    file.write_all(content).map_err(failed)?;
    file.file().sync_all().map_err(failed)?;
    file.publish(name)
}

/// Removes `path` and everything below it. Succeeds if it does not exist.
pub fn remove_tree(path: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::new("unlinkat", path, rustix::io::Errno::INVAL));
    };
    match RootDir::open(parent) {
        Ok(parent) => parent.remove_all(name),
        Err(e) if e.is_not_found() => Ok(()),
        Err(e) => Err(e),
    }
}

/// Waits until everything written to the file system that holds `dir` is on disk (syncfs(2)).
pub fn sync_filesystem(dir: &RootDir) -> Result<()> {
    rustix::fs::syncfs(dir.fd()).map_err(|e| dir.error("syncfs", "", e))
}
