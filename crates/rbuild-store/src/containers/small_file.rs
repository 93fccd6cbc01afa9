//! Documents that a container without a lock of the store writes for other commands.

use std::io;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Writes a document. Readers see it as a whole, or not at all.
pub(super) fn write(path: &Path, document: &impl Serialize) -> io::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, serde_json::to_vec(document).map_err(io::Error::other)?)?;
    std::fs::rename(&new, path)
}

/// Reads a document. Returns `None` if there is none.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}
