//! Pushes of images after their build.

use std::cell::Cell;

use rbuild_image::{BlobDigest, ManifestDigest, Reference};
use rbuild_store::Store;
use rbuild_transport::{LentLayer, ManifestFormat};

use crate::args::RegistryFlags;
use crate::commands::fetcher::task::in_fetcher;
use crate::commands::transfer::{PushedImage, PushedLayers, TransferDisplay, not_pushed, push_all};
use crate::exit::Failure;
use crate::input::registry;

/// The check that the image of a build may be pushed.
pub struct PushCheck<'a> {
    flags: &'a RegistryFlags,
    display: TransferDisplay,
    /// One name of each repository.
    names: Vec<Reference>,
    is_done: Cell<bool>,
}

impl<'a> PushCheck<'a> {
    /// Prepares the check for an image that is pushed to `names`, which may be none.
    pub fn new(flags: &'a RegistryFlags, display: TransferDisplay, names: &[Reference]) -> PushCheck<'a> {
        let mut repositories: Vec<Reference> = Vec::new();
        for name in names {
            if !repositories.iter().any(|known| is_same_repository(known, name)) {
                repositories.push(name.clone());
            }
        }
        PushCheck { flags, display, names: repositories, is_done: Cell::default() }
    }

    /// Checks once, before the first step runs. An image whose steps are all cached is pushed at
    /// once, so it needs no check, nor does a repository to which this build has written already.
    /// The caller must have one thread.
    pub fn check(&self, written: Option<&Reference>) -> Result<(), Failure> {
        let is_written = |name: &&Reference| written.is_some_and(|written| is_same_repository(written, name));
        let names: Vec<Reference> = self.names.iter().filter(|name| !is_written(name)).cloned().collect();
        if self.is_done.replace(true) || names.is_empty() {
            return Ok(());
        }
        let PushCheck { flags, display, .. } = self;
        let names = &names[..];
        let answer: Option<Failure> = in_fetcher(|| {
            let checked = registry::client_of(flags, names, *display == TransferDisplay::Nothing).and_then(|client| {
                let checked = names.iter().try_for_each(|name| rbuild_transport::check_push(&client, name));
                checked.map_err(|e| not_pushed(e, names))
            });
            checked.err()
        })?;
        answer.map_or(Ok(()), Err)
    }
}

fn is_same_repository(one: &Reference, other: &Reference) -> bool {
    one.registry() == other.registry() && one.path() == other.path()
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
