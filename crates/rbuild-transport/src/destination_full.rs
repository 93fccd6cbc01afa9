//! Full disks outside the store.

use std::error::Error;
use std::path::{Path, PathBuf};

use rbuild_remedy::{DiskRemedy, Remedy};

/// The failure of an operation because no space is left at its destination, which is outside the
/// store.
#[derive(Debug, thiserror::Error)]
#[error("no space left for {}", rbuild_linux::quoted(place))]
pub struct DestinationFull {
    place: PathBuf,
    source: Box<dyn Error + Send + Sync>,
}

impl DestinationFull {
    /// Returns the remedy.
    pub fn remedy(&self) -> Remedy {
        Remedy::Disk(DiskRemedy::FreeSpaceAt { place: self.place.clone() })
    }
}

/// An error of operations that write to destinations.
pub trait WriteError: Error + From<DestinationFull> + Send + Sync + 'static {
    /// Returns true if a disk is full and the error names none: it is the store's then.
    fn is_disk_full(&self) -> bool;

    /// Attributes a full disk to `place`, which is outside the store.
    fn writing_to(self, place: &Path) -> Self {
        match self.is_disk_full() {
            true => DestinationFull { place: place.to_path_buf(), source: Box::new(self) }.into(),
            false => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::TransportError;

    const ENOSPC: i32 = 28;
    const EIO: i32 = 5;

    #[test]
    fn a_full_disk_is_attributed_to_its_place_once() {
        let failed = |errno| TransportError::io("writing the archive")(std::io::Error::from_raw_os_error(errno));
        let full = failed(ENOSPC);
        assert_eq!(full.help(), Some(Remedy::Disk(DiskRemedy::FreeSpace)));
        let cause = full.message();
        let full = full.writing_to(Path::new("/out/a.tar")).writing_to(Path::new("/out"));
        assert_eq!(full.message(), format!("no space left for `/out/a.tar`: {cause}"));
        assert_eq!(full.help(), Some(Remedy::Disk(DiskRemedy::FreeSpaceAt { place: "/out/a.tar".into() })));
        let other = failed(EIO).writing_to(Path::new("/out"));
        assert_eq!(other.message(), failed(EIO).message());
    }
}
