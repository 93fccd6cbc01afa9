//! Blobs whose download was interrupted.
//!
//! `partial/HEX` contains the first bytes of the blob with that digest. The next download of the
//! blob within a day, in any process, resumes after them. A download holds a lock on its file
//! (flock(2)). The bytes are not trusted until the digest of the whole blob has been compared; if
//! it is wrong, the file is removed.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;

use rbuild_image::BlobDigest;
use rbuild_linux::RootDir;

use crate::blobs::BlobFile;
use crate::error::{Result, naming};
use crate::modes;
pub(crate) use crate::old_downloads::DIR;
use crate::store::Store;

/// The file of a blob that is being downloaded. It is kept unless it is published, removed, or
/// dropped while it is empty.
pub(crate) struct PartialFile {
    dir: RootDir,
    name: OsString,
    file: File,
    /// The directory has an entry for the file.
    is_linked: bool,
}

impl PartialFile {
    /// Opens the file of a blob, or creates it. Returns `None` if another download holds it.
    pub fn open(store: &Store, digest: &BlobDigest) -> Result<Option<PartialFile>> {
        let made = store.root.create_dir_all(DIR, modes::private_dir(), None, |_| ());
        let dir = made.map_err(naming(&store.root, DIR))?;
        let name = OsString::from(digest.hex());
        loop {
            let path = || format!("{DIR}/{}", digest.hex());
            let opened = dir.open_to_append(&name, modes::file());
            let file = opened.map_err(|e| naming(&store.root, &path())(e))?;
            if file.try_lock().is_err() {
                return Ok(None);
            }
            // The last holder may have published or removed the file that was opened.
            let opened = file.metadata().map_err(|e| dir.error("fstat", &name, e))?.ino();
            match dir.stat_name(&name) {
                Ok(stat) if stat.ino == opened => return Ok(Some(PartialFile { dir, name, file, is_linked: true })),
                Err(e) if !e.is_not_found() => return Err(e.into()),
                _ => {}
            }
        }
    }

    /// Returns the number of bytes.
    pub fn size(&self) -> Result<u64> {
        Ok(self.file.metadata().map_err(|e| self.dir.error("fstat", &self.name, e))?.len())
    }

    /// Removes all bytes.
    pub fn clear(&self) -> Result<()> {
        Ok(self.file.set_len(0).map_err(|e| self.dir.error("ftruncate", &self.name, e))?)
    }

    /// Opens the file again, for reading.
    pub fn reopen(&self) -> Result<File> {
        Ok(self.dir.open_name(&self.name)?)
    }

    /// Removes the file.
    pub fn remove(mut self) -> Result<()> {
        self.is_linked = false;
        Ok(self.dir.remove_file(&self.name)?)
    }

    /// Moves the file to another directory of the store. Its digest has been verified.
    pub fn publish_in(mut self, to: &RootDir, store: &Store) -> Result<()> {
        store.blobs().note_verified(&self.file);
        self.dir.rename(&self.name, to, &self.name)?;
        self.is_linked = false;
        Ok(())
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if self.is_linked && self.size().is_ok_and(|size| size == 0) {
            let _ = self.dir.remove_file(&self.name);
        }
    }
}

impl BlobFile for PartialFile {
    fn dir(&self) -> &RootDir {
        &self.dir
    }
}

impl Write for PartialFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::Scratch;

    use super::*;

    #[test]
    fn a_file_without_bytes_is_not_kept() {
        let place = Scratch::new();
        let store = Store::open(&place).unwrap();
        let digest = BlobDigest::of(b"blob");
        let path = place.join(DIR).join(digest.hex());
        for (bytes, is_kept) in [("", false), ("bl", true)] {
            let mut file = PartialFile::open(&store, &digest).unwrap().unwrap();
            assert!(PartialFile::open(&store, &digest).unwrap().is_none(), "it is locked");
            file.write_all(bytes.as_bytes()).unwrap();
            drop(file);
            assert_eq!(path.exists(), is_kept, "{bytes:?}");
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        let failed = PartialFile::open(&store, &digest).err().unwrap().to_string();
        assert!(failed.contains(&format!("{DIR}/{}", digest.hex())), "{failed}");
    }
}
