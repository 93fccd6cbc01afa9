//! Damage of a store, as a check finds it.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use rbuild_image::{BlobDigest, ImageId, ManifestDigest, Reference};
use rbuild_remedy::{Remedy, sentence};

use crate::error::StoreError;

/// Damaged content of a store. Displayed as one sentence without a full stop.
#[derive(Debug)]
pub enum StoreDamage {
    /// A directory that every store has does not exist.
    MissingDir(&'static str),
    /// An entry that the store did not create, or that is of another kind.
    Misplaced {
        /// Path in the store.
        path: String,
        /// The difference from the entries that the store creates.
        misplacement: Misplacement,
    },
    /// The bytes of a blob do not have the digest that names them.
    CorruptBlob {
        /// Digest that names the blob.
        blob: BlobDigest,
        /// Digest of its bytes.
        found: BlobDigest,
    },
    /// A file cannot be used: a document is invalid, or an interrupted download cannot be resumed.
    UnusableFile(StoreError),
    /// A document refers to content that the store does not have.
    DanglingDocument {
        /// Path in the store.
        path: String,
    },
    /// There is no index of images.
    MissingIndex,
    /// The index of images is invalid.
    InvalidIndex(StoreError),
    /// An entry of the index is invalid.
    InvalidEntry {
        /// Name of the image, as the entry states it.
        name: Option<String>,
        /// The reason.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A part of an image is missing or damaged.
    IncompleteImage {
        /// The image.
        image: ImageLabel,
        /// The reason.
        fault: ImageFault,
    },
}

impl fmt::Display for StoreDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreDamage::MissingDir(dir) => write!(f, "the store's directory `{dir}` is missing"),
            StoreDamage::Misplaced { path, misplacement } => write!(f, "`{path}` in the store {misplacement}"),
            StoreDamage::CorruptBlob { blob, found } => write!(f, "blob {blob} is corrupt: its digest is {found}"),
            StoreDamage::UnusableFile(e) => f.write_str(&sentence(e)),
            StoreDamage::DanglingDocument { path } => write!(f, "`{path}` in the store refers to missing content"),
            StoreDamage::MissingIndex => {
                f.write_str("the store's index.json is missing; the names of all images are lost")
            }
            StoreDamage::InvalidIndex(e) => write!(f, "{}; the names of all images are lost", sentence(e)),
            StoreDamage::InvalidEntry { name, source } => {
                let name = name.as_ref().map(|name| format!(" `{name}`")).unwrap_or_default();
                write!(f, "the entry{name} of the store's index.json is invalid: {}", sentence(&**source))
            }
            StoreDamage::IncompleteImage { image, fault } => write!(f, "image {image} is incomplete: {fault}"),
        }
    }
}

/// The difference between an entry of the store and those that the store creates in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misplacement {
    /// The store needs a directory of that name, and it is something else.
    NoDirectory,
    /// A regular file that is not named after a digest.
    OtherName,
    /// A directory in place of a file.
    Directory,
    /// A symbolic link in place of a file.
    Symlink,
    /// Another entry in place of a file, such as a device.
    Special,
}

impl fmt::Display for Misplacement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Misplacement::NoDirectory => "is not a directory",
            Misplacement::OtherName => "is not named after a digest",
            Misplacement::Directory => "is a directory, not a file",
            Misplacement::Symlink => "is a symbolic link, not a file",
            Misplacement::Special => "is not a regular file",
        })
    }
}

/// An image as messages identify it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageLabel {
    /// An image with a name.
    Named(Reference),
    /// An image without a name.
    Unnamed(ImageId),
    /// An image without a name, whose configuration cannot be read.
    Unread(ManifestDigest),
}

impl fmt::Display for ImageLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageLabel::Named(name) => write!(f, "`{}`", name.familiar()),
            ImageLabel::Unnamed(id) => write!(f, "`<none>` with ID {}", id.short()),
            ImageLabel::Unread(manifest) => write!(f, "`<none>` with manifest {manifest}"),
        }
    }
}

/// The reason why an image is incomplete or cannot be verified.
#[derive(Debug, Clone)]
pub enum ImageFault {
    /// A blob of the image is not intact.
    Blob {
        /// The blob.
        blob: BlobDigest,
        /// The difference from an intact blob.
        fault: BlobFault,
    },
    /// The manifest and the configuration have different numbers of layers.
    LayerCounts,
    /// The manifest or the configuration cannot be read.
    Document(Arc<StoreError>),
}

impl fmt::Display for ImageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageFault::Blob { blob, fault } => write!(f, "its blob {blob} {fault}"),
            ImageFault::LayerCounts => f.write_str("its manifest and configuration have different numbers of layers"),
            ImageFault::Document(e) => f.write_str(&sentence(&**e)),
        }
    }
}

/// The difference between a blob and an intact one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobFault {
    /// The bytes have another digest.
    Damaged,
    /// There is no file.
    Missing,
    /// The bytes could not be read.
    Unreadable,
}

impl fmt::Display for BlobFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BlobFault::Damaged => "is damaged",
            BlobFault::Missing => "is missing",
            BlobFault::Unreadable => "cannot be read",
        })
    }
}

/// Damage that a check found, and that a repair has removed. Displayed as one sentence without a
/// full stop.
#[derive(Debug)]
pub struct FoundDamage {
    /// The damage.
    pub damage: StoreDamage,
    /// New path of a misplaced entry in the store, if a repair has moved it instead of removing it.
    pub moved_to: Option<String>,
}

impl From<StoreDamage> for FoundDamage {
    fn from(damage: StoreDamage) -> FoundDamage {
        FoundDamage { damage, moved_to: None }
    }
}

impl fmt::Display for FoundDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.moved_to {
            Some(path) => write!(f, "{}; it was moved to `{path}`", self.damage),
            None => self.damage.fmt(f),
        }
    }
}

/// Content that could not be read or repaired. Displayed as one sentence without a full stop.
#[derive(Debug)]
pub enum CheckFailure {
    /// A file could not be read.
    Unread(StoreError),
    /// An image could not be verified, because a part of it could not be read.
    UnverifiedImage {
        /// The image.
        image: ImageLabel,
        /// The reason.
        fault: ImageFault,
    },
    /// Damage could not be removed.
    Unrepaired {
        /// The damage.
        damage: StoreDamage,
        /// The reason.
        error: StoreError,
    },
}

impl CheckFailure {
    /// Returns the remedy, if there is one. The one for an image is that of the file that could not
    /// be read.
    pub fn remedy(&self) -> Option<Remedy> {
        match self {
            CheckFailure::Unread(error) | CheckFailure::Unrepaired { error, .. } => error.remedy(),
            CheckFailure::UnverifiedImage { .. } => None,
        }
    }
}

impl fmt::Display for CheckFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CheckFailure::Unread(e) => f.write_str(&sentence(e)),
            CheckFailure::UnverifiedImage { image, fault } => write!(f, "image {image} cannot be verified: {fault}"),
            CheckFailure::Unrepaired { damage, error } => write!(f, "{damage}; {}", sentence(error)),
        }
    }
}
