//! Bytes of this store alone, which nobody but the caller can read.

use std::ffi::OsStr;
use std::io::Write;

use rbuild_linux::{AtomicFile, random_bytes};

use crate::error::Result;
use crate::layout::Store;
use crate::modes;

pub(crate) const LENGTH: usize = 32;

impl Store {
    /// The key in the file of that name; made if there is none.
    pub(crate) fn key(&self, name: &str) -> Result<[u8; LENGTH]> {
        let file_name = OsStr::new(name);
        loop {
            match self.root.read(file_name, LENGTH as u64) {
                Ok(key) => match <[u8; LENGTH]>::try_from(key) {
                    Ok(key) => return Ok(key),
                    // A power cut left it; what was marked with it is nothing any more.
                    Err(_) => self.root.remove_file(file_name)?,
                },
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(e.into()),
            }
            let mut file = AtomicFile::create(&self.root, modes::private_file())?;
            let failed = |e| rbuild_linux::Error::new("write", name, e);
            file.write_all(&random_bytes::<LENGTH>()?).map_err(failed)?;
            file.file().sync_all().map_err(failed)?;
            // By a link: the key of another process that came first stays.
            match self.root.hard_link(&self.root, file.temp_name(), file_name) {
                Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e.into()),
                _ => {}
            }
        }
    }
}
