//! Pushes of images after their build.

use rbuild_image::{BlobDigest, ManifestDigest, Reference};
use rbuild_store::Store;
use rbuild_transport::{LentLayer, ManifestFormat};

use crate::args::RegistryFlags;
use crate::commands::fetcher::task::in_fetcher;
use crate::commands::transfer::{PushedImage, PushedLayers, TransferDisplay, push_all};
use crate::exit::Failure;
use crate::input::registry;

/// Checks before a build that its image may be pushed.
pub fn check_push(flags: &RegistryFlags, display: TransferDisplay, names: &[Reference]) -> Result<(), Failure> {
    let answer: Option<Failure> = in_fetcher(|| {
        let checked = registry::client_of(flags, names, display == TransferDisplay::Nothing).and_then(|client| {
            names.iter().try_for_each(|name| rbuild_transport::check_push(&client, name).map_err(Failure::from))
        });
        checked.err()
    })?;
    answer.map_or(Ok(()), Err)
}

/// The image that a build made.
pub struct BuiltImage<'a> {
    /// The manifests of its platforms.
    pub platforms: &'a [ManifestDigest],
    /// The blobs that the repository of its first name has already.
    pub uploaded: Vec<BlobDigest>,
    /// The layers that the store lacks.
    pub lent: &'a [LentLayer],
}

/// Pushes the image of a build.
pub fn push(
    store: &Store,
    flags: &RegistryFlags,
    display: TransferDisplay,
    image: BuiltImage<'_>,
    names: &[Reference],
) -> Result<(), Failure> {
    let BuiltImage { platforms, uploaded, lent } = image;
    let answer: Option<Failure> = in_fetcher(|| {
        let pushed = registry::client_of(flags, names, display == TransferDisplay::Nothing).and_then(|client| {
            let images =
                platforms.iter().map(|manifest| store.images().image(manifest)).collect::<Result<Vec<_>, _>>()?;
            let layers = if lent.is_empty() { PushedLayers::Built(uploaded) } else { PushedLayers::Lent(lent) };
            let format = ManifestFormat::Stored;
            let image = PushedImage { platforms: &images, layers, format, index: None, nondistributable: false };
            push_all(store, &client, image, names, display)
        });
        pushed.err()
    })?;
    answer.map_or(Ok(()), Err)
}
