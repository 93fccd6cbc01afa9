//! The image of a container that is unpacked while it is downloaded.

use rbuild_remedy::ReportedError;
use rbuild_store::{BuildId, Image, Session, Store, StoreError, Workspace};

use crate::error::Result;

/// Unpacks an image while another process downloads it into the store, and waits for the end of the
/// download. `now` is in seconds since the Unix epoch. Returns the failure of the download.
///
/// # Errors
///
/// Fails if the store cannot be used, or if its stop function returns true.
pub fn unpack_arriving(store: &Store, image: &Image, now: i64) -> Result<std::result::Result<(), ReportedError>> {
    let (work, id) = (Workspace::open(store)?, BuildId::of_command("run"));
    // A layer that cannot be unpacked is reported by the start of the container.
    let _ = store.trees().unpack_image(Session::new(store, &work, &id, now), image);
    match store.wait_for_image(&image.manifest_digest) {
        Ok(()) => Ok(Ok(())),
        Err(StoreError::DownloadFailed(failure)) => Ok(Err(failure)),
        Err(e) => Err(e.into()),
    }
}
