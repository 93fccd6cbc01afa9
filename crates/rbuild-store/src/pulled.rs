//! Notes on pulled images: the manifest that a name resolved to in its registry.

use rbuild_image::{Hasher, ManifestDigest, Platform, Reference};
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::ids::PulledName;
use crate::images::Image;
use crate::images::Images;
use crate::modes;

/// Directory of the notes.
const DIR: &str = "pulled";

/// The meaning of a name in its registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulled {
    /// Digest of the manifest or index that the name resolved to.
    pub resolved: ManifestDigest,
    /// Digest of the manifest that was pulled.
    pub manifest: ManifestDigest,
}

fn file_of(name: &Reference, platform: &Platform) -> String {
    let mut hasher = Hasher::new();
    hasher.field("pulled 1").field(name.to_string()).field(platform.to_string());
    format!("{}.json", hasher.finish::<PulledName>().hex())
}

impl Images<'_> {
    /// Returns the note on a name and a platform.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn pulled(&self, name: &Reference, platform: &Platform) -> Result<Option<Pulled>> {
        self.store.read_if_whole(&format!("{DIR}/{}", file_of(name, platform)))
    }

    /// Notes the meaning of a name. Losing the note only costs requests.
    ///
    /// # Errors
    ///
    /// Fails if the note cannot be written.
    pub fn note_pulled(&self, name: &Reference, platform: &Platform, pulled: &Pulled) -> Result<()> {
        self.store.root.create_dir_all(DIR, modes::dir(), None, |_| ())?;
        self.store.write(DIR, &file_of(name, platform), pulled)
    }

    /// Returns the image that was pulled under a name for a platform, if it is still complete.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn pulled_image(&self, name: &Reference, platform: &Platform) -> Result<Option<(Pulled, Image)>> {
        let Some(pulled) = self.pulled(name, platform)? else { return Ok(None) };
        let kept = self.list()?.iter().any(|entry| entry.artifact.images().contains(&pulled.manifest));
        let Some(image) = self.image(&pulled.manifest).ok().filter(|_| kept) else { return Ok(None) };
        for layer in image.manifest.layers() {
            if !self.store.blobs().has_whole_blob(&crate::images::digest(layer)?, layer.size())? {
                return Ok(None);
            }
        }
        Ok(Some((pulled, image)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[test]
    fn notes_are_kept_per_name_and_platform_for_existing_images() {
        let dir = std::env::temp_dir().join(format!("rbuild-pulled-{}", std::process::id()));
        let store = Store::open(&dir).unwrap();
        let (name, other): (Reference, Reference) = ("a.io/x:1".parse().unwrap(), "a.io/x:2".parse().unwrap());
        let (amd, arm): (Platform, Platform) = ("linux/amd64".parse().unwrap(), "linux/arm64".parse().unwrap());
        let note = Pulled { resolved: ManifestDigest::of(b"index"), manifest: ManifestDigest::of(b"manifest") };
        store.images().note_pulled(&name, &amd, &note).unwrap();
        assert_eq!(store.images().pulled(&name, &amd).unwrap(), Some(note));
        assert_eq!(
            (store.images().pulled(&name, &arm).unwrap(), store.images().pulled(&other, &amd).unwrap()),
            (None, None)
        );
        assert!(store.images().pulled_image(&name, &amd).unwrap().is_none());
        drop(store);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
