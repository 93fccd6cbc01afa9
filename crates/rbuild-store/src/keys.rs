//! Secret keys of the store, readable by its owner only.

use std::ffi::OsStr;
use std::io::Write;

use rbuild_linux::{AtomicFile, RootDir, random_bytes};

use crate::error::{Result, naming};
use crate::modes;

/// Length of a key in bytes.
pub(crate) const LENGTH: usize = 32;

/// Returns the key in the file of that name, creating it if necessary.
pub(crate) fn key(root: &RootDir, name: &str) -> Result<[u8; LENGTH]> {
    read_or_create(root, name).map_err(naming(root, name))
}

fn read_or_create(root: &RootDir, name: &str) -> rbuild_linux::Result<[u8; LENGTH]> {
    let file_name = OsStr::new(name);
    loop {
        match root.read(file_name, LENGTH as u64) {
            Ok(key) => match <[u8; LENGTH]>::try_from(key) {
                Ok(key) => return Ok(key),
                // A power failure truncated it; everything keyed with it is invalid.
                Err(_) => root.remove_file(file_name)?,
            },
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
        let mut file = AtomicFile::create(root, modes::private_file())?;
        let failed = |e| root.error("write", name, e);
        file.write_all(&random_bytes::<LENGTH>()?).map_err(failed)?;
        file.file().sync_all().map_err(failed)?;
        // A hard link fails if another process has created the key meanwhile, and keeps that
        // one.
        match root.hard_link(root, file.temp_name(), file_name) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
}
