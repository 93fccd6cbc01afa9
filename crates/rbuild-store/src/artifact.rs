//! The content that names refer to: images, and indexes of images.

use std::collections::HashSet;
use std::fmt;

use rbuild_image::{ManifestDigest, Platform, Reference};

/// The content that a name refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Artifact {
    /// An image of one platform.
    Image(ManifestDigest),
    /// An index of images, one for each platform.
    Index {
        /// Digest of the index.
        digest: ManifestDigest,
        /// The manifests; never empty.
        images: Vec<ManifestDigest>,
        /// The manifests of attestations and other artifacts.
        attachments: Vec<ManifestDigest>,
        /// The indexes that it contains, each after those that it contains itself. Their images and
        /// attestations are among those of the whole.
        indexes: Vec<ManifestDigest>,
    },
}

impl Artifact {
    /// Returns the digest of the manifest or index.
    pub fn digest(&self) -> &ManifestDigest {
        match self {
            Artifact::Image(digest) | Artifact::Index { digest, .. } => digest,
        }
    }

    /// Returns the manifests of the images.
    pub fn images(&self) -> &[ManifestDigest] {
        match self {
            Artifact::Image(manifest) => std::slice::from_ref(manifest),
            Artifact::Index { images, .. } => images,
        }
    }

    /// Returns the manifests of attestations and other artifacts.
    pub fn attachments(&self) -> &[ManifestDigest] {
        match self {
            Artifact::Image(_) => &[],
            Artifact::Index { attachments, .. } => attachments,
        }
    }

    /// Returns the indexes in the index, each after those that it contains itself.
    pub fn indexes(&self) -> &[ManifestDigest] {
        match self {
            Artifact::Image(_) => &[],
            Artifact::Index { indexes, .. } => indexes,
        }
    }
}

/// An entry of the index: an image and its name, if it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedImage {
    /// The name; `None` for a dangling image, and for an image pulled under a name that now refers
    /// to the image of another platform.
    pub name: Option<Reference>,
    /// Digest of the manifest. For an index, that of the image for this machine's platform, or else
    /// of the first image.
    pub manifest: ManifestDigest,
    /// The whole content.
    pub artifact: Artifact,
}

/// Platforms that a name no longer refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostPlatforms {
    /// The name.
    pub name: Reference,
    /// The platforms, in the order of the index that had the name. There is at least one.
    pub platforms: Vec<Platform>,
}

impl fmt::Display for LostPlatforms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let platforms: Vec<String> = self.platforms.iter().map(Platform::to_string).collect();
        write!(f, "{} no longer has {}", self.name.familiar(), platforms.join(", "))
    }
}

impl NamedImage {
    /// Returns true if nothing needs the entry: it has no name, and contains none of `pulled`, the
    /// manifests that the store has pulled by name.
    pub fn is_dangling(&self, pulled: &HashSet<ManifestDigest>) -> bool {
        self.name.is_none() && !self.artifact.images().iter().any(|image| pulled.contains(image))
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::assert_recorded;

    use super::*;

    #[test]
    fn lost_platforms_are_worded_as_recorded() {
        let lost = |name: &str, platforms: &[&str]| {
            let platforms = platforms.iter().map(|platform| platform.parse().unwrap()).collect();
            LostPlatforms { name: name.parse().unwrap(), platforms }.to_string() + "\n"
        };
        let rows = [lost("a:1", &["linux/s390x"]), lost("r.io/a/b:2", &["linux/arm64", "linux/arm/v7"])];
        assert_recorded!("lost-platforms", rows.concat());
    }
}
