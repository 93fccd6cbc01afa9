//! Images found in an archive or a layout.

use rbuild_image::{BlobDigest, ManifestDigest, Platform, Reference};
use rbuild_remedy::Warning;

use crate::archive_error::{OtherPlatforms, SkippedPlatforms};
use crate::error::TransportError;

/// Imported images, with warnings about their source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WithWarnings<T> {
    /// The images.
    pub found: T,
    /// Warnings about the source.
    pub warnings: Vec<Warning>,
}

/// The platform whose images are taken from a source with several platforms.
#[derive(Debug, Clone)]
pub enum WantedPlatform {
    /// All platforms of which the source has the content; this machine's one must be among them.
    All(Platform),
    /// All platforms of which the source has the content. Messages name this machine's platform.
    Any(Platform),
    /// One platform. An image that exists for a single platform is taken regardless.
    Host(Platform),
    /// The given platform and no other.
    Given(Platform),
}

impl WantedPlatform {
    /// Returns the given platform, or all.
    pub fn new(given: Option<Platform>) -> WantedPlatform {
        given.map_or_else(|| WantedPlatform::All(Platform::host()), WantedPlatform::Given)
    }

    pub(crate) fn given(&self) -> bool {
        matches!(self, WantedPlatform::Given(_))
    }

    pub(crate) fn platform(&self) -> &Platform {
        let (WantedPlatform::All(platform)
        | WantedPlatform::Any(platform)
        | WantedPlatform::Host(platform)
        | WantedPlatform::Given(platform)) = self;
        platform
    }

    /// Returns the problem of an image that exists for other platforms only.
    pub(crate) fn only_others(&self, skipped: &SkippedPlatforms) -> OtherPlatforms {
        OtherPlatforms { wanted: self.platform().clone(), skipped: skipped.clone() }
    }
}

/// An image whose manifest, configuration and layers have been checked, or an index of such images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CheckedImage {
    /// Digest of the manifest or the index.
    pub manifest: ManifestDigest,
    /// ID of the image, or digest of the index.
    pub id: BlobDigest,
}

/// Imported images, each once, and their names. If a name occurs more than once, the last one
/// applies.
#[derive(Default)]
pub(crate) struct FoundImages {
    /// The images.
    pub images: Vec<CheckedImage>,
    /// The names, each with its image.
    pub names: Vec<(CheckedImage, Reference)>,
    /// Platforms of images that were skipped in favor of one under the same name.
    pub skipped: SkippedPlatforms,
}

impl FoundImages {
    /// Returns a warning about images that were skipped because they are not for this machine's
    /// platform. Returns `None` if a platform was requested.
    pub fn skipped(&self, wanted: &WantedPlatform) -> Option<Warning> {
        // Those without content could not be loaded either.
        if wanted.given() || self.skipped.others.is_empty() || self.images.is_empty() {
            return None;
        }
        let others: Vec<&str> = self.skipped.others.iter().map(String::as_str).collect();
        let text = format!("images for {} were not loaded, only those for {}", others.join(", "), wanted.platform());
        Some(Warning { text, help: wanted.only_others(&self.skipped).remedy() })
    }
}

/// Returns the error for a document that does not parse.
pub(crate) fn unreadable(document: &str) -> impl FnOnce(serde_json::Error) -> TransportError {
    TransportError::document(format!("cannot read the image's {document}"))
}
