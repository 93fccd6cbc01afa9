//! Digests that images have in registries: those that they were pulled by or pushed as.

use std::collections::HashSet;

use rbuild_image::{BlobDigest, Hasher, ManifestDigest, Reference, digest_of};
use rbuild_linux::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::ids::PushedName;
use crate::modes;
use crate::store::Store;

/// Directory of the notes on pushed images.
pub(crate) const DIR: &str = "pushed";

/// The digest of an image in a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepoDigest {
    /// The name that it was pulled by or pushed as.
    #[serde(with = "name_as_text")]
    pub name: Reference,
    /// Digest of the manifest or index in the registry. It differs from that of the store if the
    /// image was compressed for the push, or if it is that of an index of which one platform was
    /// pulled.
    pub digest: ManifestDigest,
    /// The manifests of the store.
    pub images: Vec<ManifestDigest>,
}

impl RepoDigest {
    /// Formats the repository and the digest as docker does.
    pub fn familiar(&self) -> String {
        format!("{}@{}", self.name.familiar_name(), self.digest)
    }

    /// Returns true if one of the manifests has this digest in the registry.
    pub fn is_of(&self, images: &[ManifestDigest]) -> bool {
        self.images.iter().any(|image| images.contains(image))
    }
}

/// A note on a push as it is stored.
#[derive(Serialize, Deserialize)]
struct PushNote {
    #[serde(flatten)]
    pushed: RepoDigest,
    #[serde(default)]
    time: NoteTime,
}

/// Time of a note in seconds and nanoseconds since the Unix epoch. Notes of earlier versions have
/// none, and count as the oldest ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct NoteTime(i64, i64);

impl NoteTime {
    pub fn now() -> NoteTime {
        let now = Timestamp::now();
        NoteTime(now.sec, i64::from(now.nsec))
    }
}

mod name_as_text {
    use rbuild_image::Reference;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(name: &Reference, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(name)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Reference, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

fn file_of(name: &Reference, digest: &ManifestDigest) -> String {
    let mut hasher = Hasher::new();
    hasher.field("pushed 1").field(name.to_string()).field(digest.to_string());
    format!("{}.json", hasher.finish::<PushedName>().hex())
}

/// The digests that images of a store have in registries.
#[derive(Clone, Copy)]
pub struct RepoDigests<'s> {
    pub(crate) store: &'s Store,
}

impl RepoDigests<'_> {
    /// Notes the digest that an image was pushed as.
    ///
    /// # Errors
    ///
    /// Fails if the note cannot be written.
    pub fn note_pushed(&self, pushed: &RepoDigest) -> Result<()> {
        let _lock = self.store.images().lock_index()?;
        self.store.root.create_dir_all(DIR, modes::dir(), None, |_| ())?;
        let note = PushNote { pushed: pushed.clone(), time: NoteTime::now() };
        self.store.write(DIR, &file_of(&pushed.name, &pushed.digest), &note)
    }

    /// Returns the digests of all images that the store has, sorted by name. Of each name, the one
    /// that was pushed or pulled last is the first.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn list(&self) -> Result<Vec<RepoDigest>> {
        let kept = self.store.images().kept()?;
        let mut all: Vec<_> = self.pushed()?.into_iter().map(|(_, note)| (note.time, note.pushed)).collect();
        all.extend(self.store.images().pulled_digests()?);
        all.retain(|(_, known)| known.images.iter().any(|image| kept.contains(image)));
        all.sort_by(|(a_time, a), (b_time, b)| {
            a.name.cmp(&b.name).then(b_time.cmp(a_time)).then(a.digest.cmp(&b.digest))
        });
        let mut digests: Vec<RepoDigest> = Vec::new();
        for (_, known) in all {
            // It may have been both pushed and pulled.
            if !digests.contains(&known) {
                digests.push(known);
            }
        }
        Ok(digests)
    }

    /// Returns the layers of the images that were pulled from the repository of `name` or pushed
    /// there, in the form in which the store has them. A push may have compressed them.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn layers_in(&self, name: &Reference) -> Result<HashSet<BlobDigest>> {
        let mut layers = HashSet::new();
        for known in self.list()?.iter().filter(|known| known.name.is_of_repository(name)) {
            for image in &known.images {
                // Some images of an index may have been removed.
                let Ok(image) = self.store.images().image(image) else { continue };
                layers.extend(image.layers()?.iter().filter_map(|(layer, _)| digest_of(layer).ok()));
            }
        }
        Ok(layers)
    }

    /// Removes the notes on pushes under these names. The caller holds the lock of the index.
    pub(crate) fn forget_names(&self, names: &HashSet<String>) -> Result<()> {
        for (file, note) in self.pushed()? {
            if names.contains(&note.pushed.name.to_string()) {
                self.store.remove_note(DIR, &file)?;
            }
        }
        Ok(())
    }

    /// Removes the notes on images that no longer exist.
    pub(crate) fn forget_removed(&self) -> Result<()> {
        let _lock = self.store.images().lock_index()?;
        let kept = self.store.images().kept()?;
        for (file, note) in self.pushed()? {
            if !note.pushed.images.iter().any(|image| kept.contains(image)) {
                self.store.remove_note(DIR, &file)?;
            }
        }
        Ok(())
    }

    /// Returns the readable notes on pushed images with the names of their files.
    fn pushed(&self) -> Result<Vec<(std::ffi::OsString, PushNote)>> {
        self.store.whole_documents(DIR)
    }
}

#[cfg(test)]
mod tests {
    use rbuild_image::{ImageConfig, MediaType, Platform, descriptor, manifest};
    use rbuild_testkit::Scratch;

    use super::*;
    use crate::gc::prune::DanglingImages;
    use crate::pulled::Pulled;
    use crate::staging::Staging;
    use crate::workspace::Workspace;

    #[test]
    fn digests_are_known_while_the_image_has_the_name() {
        let dir = Scratch::new();
        let store = Store::open(&dir).unwrap();
        let name: Reference = "a.io/x:1".parse().unwrap();
        let layer = BlobDigest::of(b"layer");
        let image = {
            let work = Workspace::open(&store).unwrap();
            let staging = Staging::open(&store, &work).unwrap();
            let mut config = ImageConfig::empty(&Platform::host());
            config.rootfs.diff_ids.push(layer.of_plain_layer());
            let (id, size) = staging.put_document(&config).unwrap();
            let layers = vec![descriptor(MediaType::ImageLayer, &layer, 5)];
            let manifest = manifest(descriptor(MediaType::ImageConfig, &id, size), layers);
            let manifest = staging.put_document(&manifest).unwrap().0.of_manifest();
            staging.publish("pull", &[manifest], &[(manifest, Some(name.clone()))]).unwrap();
            manifest
        };
        let note = |text: &[u8], images: &[ManifestDigest]| RepoDigest {
            name: name.clone(),
            digest: ManifestDigest::of(text),
            images: images.to_vec(),
        };
        let index = ManifestDigest::of(b"index");
        let (pushed, gone) = (note(b"compressed", &[image]), note(b"gone", &[index]));
        let digests = store.repo_digests();
        digests.note_pushed(&pushed).unwrap();
        digests.note_pushed(&gone).unwrap();
        store.images().note_pulled(&name, &Platform::host(), &Pulled { resolved: index, manifest: image }).unwrap();
        let pulled = note(b"index", &[image]);
        assert_eq!(digests.list().unwrap(), [pulled.clone(), pushed.clone()]);
        // The last push under the name is the first, and each digest is listed once.
        let other = note(b"other form", &[image]);
        for newest in [&other, &pushed, &pulled, &pushed] {
            digests.note_pushed(newest).unwrap();
            let list = digests.list().unwrap();
            assert_eq!(list.first(), Some(newest));
            assert_eq!(list.iter().filter(|known| *known == newest).count(), 1);
        }
        assert_eq!(digests.list().unwrap(), [pushed.clone(), pulled, other]);
        let layers_in = |name: &str| digests.layers_in(&name.parse().unwrap()).unwrap();
        assert_eq!(layers_in("a.io/x:other"), HashSet::from([layer]));
        assert_eq!((layers_in("a.io/y:1"), layers_in("b.io/x:1")), Default::default());
        assert_eq!(pushed.familiar(), format!("a.io/x@{}", ManifestDigest::of(b"compressed")));
        // Notes on missing images are removed.
        assert_eq!(digests.pushed().unwrap().len(), 4);
        store.gc().prune(true, DanglingImages::Keep).unwrap();
        assert_eq!(digests.pushed().unwrap().len(), 3);
        // They go with the name, even if the image stays.
        store.images().tag(&image, Some(&"a.io/kept:1".parse().unwrap())).unwrap();
        store.images().untag("a.io/x:1", false).unwrap();
        assert_eq!((digests.list().unwrap(), digests.pushed().unwrap().len()), (Vec::new(), 0));
    }
}
