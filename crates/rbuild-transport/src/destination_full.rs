//! Full disks outside the store.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use rbuild_linux::carried;
use rbuild_remedy::{DiskRemedy, Remedy};

/// The failure of an operation because no space is left at its destination, which is outside the
/// store.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", rbuild_linux::quoted(place))]
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
    /// Returns true if a disk is full and the error does not name a destination: it is then the
    /// disk of the store.
    fn is_disk_full(&self) -> bool;

    /// Attributes a full disk to `place`, which is outside the store.
    fn writing_to(self, place: &Path) -> Self {
        if self.is_disk_full() {
            let source = full(&self).map_or_else(|| Box::new(self) as Box<dyn Error + Send + Sync>, Into::into);
            DestinationFull { place: place.to_path_buf(), source }.into()
        } else {
            self
        }
    }
}

/// Returns the kernel's error among an error and its causes. Their own messages would name the
/// destination again.
fn full(e: &(dyn Error + 'static)) -> Option<io::Error> {
    let errno_of = |e: &(dyn Error + 'static)| {
        let of_call = e.downcast_ref::<rbuild_linux::Error>().and_then(rbuild_linux::Error::errno);
        let of_stream = || {
            let e = e.downcast_ref::<io::Error>()?;
            e.raw_os_error().or_else(|| carried::<rbuild_linux::Error>(e)?.errno())
        };
        of_call.or_else(of_stream)
    };
    std::iter::successors(Some(e), |e| (*e).source()).find_map(errno_of).map(io::Error::from_raw_os_error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::TransportError;

    const ENOSPC: i32 = 28;
    const EIO: i32 = 5;
    const EDQUOT: i32 = 122;

    #[test]
    fn a_full_disk_is_attributed_to_its_place_once() {
        let failed = |errno| TransportError::io("cannot write the archive")(std::io::Error::from_raw_os_error(errno));
        let full = failed(ENOSPC);
        assert_eq!(full.help(), Some(Remedy::Disk(DiskRemedy::FreeSpace)));
        let full = full.writing_to(Path::new("/out/a.tar")).writing_to(Path::new("/out"));
        assert_eq!(full.message(), "cannot write `/out/a.tar`: no space left on device");
        assert_eq!(full.help(), Some(Remedy::Disk(DiskRemedy::FreeSpaceAt { place: "/out/a.tar".into() })));
        let quota = rbuild_linux::Error::new("write", Path::new("/out/.tmp"), io::Error::from_raw_os_error(EDQUOT));
        let quota = TransportError::kernel("writing the layout")(quota).writing_to(Path::new("/out"));
        assert_eq!(quota.message(), "cannot write `/out`: disk quota exceeded");
        let other = failed(EIO).writing_to(Path::new("/out"));
        assert_eq!(other.message(), failed(EIO).message());
    }
}
