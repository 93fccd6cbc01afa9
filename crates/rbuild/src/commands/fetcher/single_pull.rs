//! The pull of one image for a container.

use rbuild_image::ManifestDigest;
use rbuild_remedy::ReportedError;
use rbuild_store::Store;
use rbuild_transport::WantedImage;

use crate::args::RegistryFlags;
use crate::commands::fetcher::task::in_fetcher;
use crate::commands::transfer::{TransferDisplay, pull_one};
use crate::exit::{Failure, reported};
use crate::input::registry;

/// Pulls an image in a fetcher; returns its manifest, or the reason why it cannot be pulled. The
/// caller must have one thread.
///
/// # Errors
///
/// Fails if a signal interrupts the pull, or if the flags are invalid.
pub fn pull(
    store: &Store,
    flags: &RegistryFlags,
    image: &WantedImage<'_>,
    quiet: bool,
) -> Result<Result<ManifestDigest, ReportedError>, Failure> {
    in_fetcher(|| {
        let client = registry::client_of(flags, std::slice::from_ref(image.name), quiet)?;
        let pulled = pull_one(store, &client, image, TransferDisplay::new(quiet));
        Ok(pulled.map(|pulled| pulled.manifest).map_err(|e| reported(&e, e.help())))
    })?
}
