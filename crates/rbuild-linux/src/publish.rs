//! Files that appear whole or not at all.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::meta::Timestamp;
use crate::rootdir::RootDir;

static SERIAL: AtomicU64 = AtomicU64::new(0);

/// Names no file that another thread, process or earlier run has.
pub fn temporary_name() -> OsString {
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let nanos = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.subsec_nanos());
    OsString::from(format!(".rbuild-{}-{serial}-{nanos:08x}.tmp", std::process::id()))
}

/// Recognizes the name of a file that has not been published: one being written, or what a killed process left of one.
pub fn is_unpublished(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with(".rbuild-") && name.ends_with(".tmp"))
}

/// A file being written beside its final name; it takes that name on [`AtomicFile::publish`], and is removed if
/// it is dropped before.
pub struct AtomicFile<'a> {
    dir: &'a RootDir,
    temp: OsString,
    file: Option<File>,
}

impl<'a> AtomicFile<'a> {
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

    pub fn file(&mut self) -> &mut File {
        // The file is taken by `publish` alone, which consumes self.
        self.file.as_mut().expect("an unpublished file is open")
    }

    pub fn temp_name(&self) -> &OsStr {
        &self.temp
    }

    /// Gives the file its mode, its time and its name, replacing what had it.
    pub fn finish(mut self, mode: u32, mtime: Timestamp, name: &OsStr) -> Result<()> {
        let file = self.file();
        rustix::fs::fchmod(&*file, rustix::fs::Mode::from_raw_mode(mode)).map_err(|e| Error::new("fchmod", name, e))?;
        crate::copy::set_file_time(file, mtime)?;
        self.publish(name)
    }

    /// Gives the file its name, replacing what had it.
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

/// Writes `content` as `name` in `dir`: readers see the old file or the new one.
pub fn write_atomic(dir: &RootDir, name: &OsStr, content: &[u8], mode: u32) -> Result<()> {
    let mut file = AtomicFile::create(dir, mode)?;
    file.write_all(content).map_err(|e| Error::new("write", dir.label().join(name), e))?;
    file.publish(name)
}

/// Like [`write_atomic`]; the content is on the disk before it has the name, so that no power cut leaves a name
/// with nothing behind it.
pub fn write_durable(dir: &RootDir, name: &OsStr, content: &[u8], mode: u32) -> Result<()> {
    let mut file = AtomicFile::create(dir, mode)?;
    let failed = |e| Error::new("write", dir.label().join(name), e);
    file.write_all(content).map_err(failed)?;
    file.file().sync_all().map_err(failed)?;
    file.publish(name)
}

/// Removes `path` and everything below it; no error if it is not there.
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

/// Waits until everything written to the file system that holds `dir` is on the disk (syncfs(2)).
pub fn sync_filesystem(dir: &RootDir) -> Result<()> {
    rustix::fs::syncfs(dir.fd()).map_err(|e| Error::new("syncfs", dir.label(), e))
}
