//! Import of all images of an index.

use std::collections::HashSet;

use rbuild_image::{BlobDigest, Descriptor, ImageIndex, Platform, is_attachment, parse_manifest};
use rbuild_store::Image;

use crate::archive_error::SkippedPlatforms;
use crate::documents::index_of_images;
use crate::error::Result;
use crate::load::found::CheckedImage;
use crate::load::manifest::{digest_in, import_blob, import_image};
use crate::load::members::IncomingParts;

/// The images that an index lists.
pub(super) struct WholeIndex<'m, 'a> {
    members: &'m IncomingParts<'a>,
    /// Platform whose image must be complete if the source has its manifest.
    host: Platform,
    /// Digests of the entries that were followed.
    seen: HashSet<BlobDigest>,
    /// The images, each once, with the entries that led to them.
    images: Vec<(CheckedImage, Image)>,
    /// True if the index has entries that are not imported.
    is_partial: bool,
    /// Platforms whose images the source lacks.
    pub skipped: SkippedPlatforms,
}

impl<'m, 'a> WholeIndex<'m, 'a> {
    /// Imports everything that an index of images refers to and that the source has. If that
    /// contains no image for this machine, the others are skipped: the caller has to select one.
    pub(super) fn import(
        members: &'m IncomingParts<'a>,
        host: &Platform,
        index: &ImageIndex,
    ) -> Result<WholeIndex<'m, 'a>> {
        let (seen, images, is_partial, skipped) = Default::default();
        let mut whole = WholeIndex { members, host: host.clone(), seen, images, is_partial, skipped };
        index.manifests().iter().try_for_each(|entry| whole.follow(entry))?;
        if !whole.images.iter().any(|(_, image)| whole.host.accepts(&image.platform())) {
            let others = std::mem::take(&mut whole.images).into_iter();
            whole.skipped.others.extend(others.map(|(_, image)| image.platform().to_string()));
        }
        Ok(whole)
    }

    /// Returns the index with that digest, if all of its content was imported; else an index of the
    /// images, or the only one. `None` if there is no image.
    pub(super) fn content(&self, index: &BlobDigest) -> Result<Option<CheckedImage>> {
        let of_index = |index: BlobDigest| CheckedImage { manifest: index.of_manifest(), id: index };
        match &self.images[..] {
            [] => Ok(None),
            _ if !self.is_partial => Ok(Some(of_index(*index))),
            [(only, _)] => Ok(Some(*only)),
            images => {
                let images: Vec<Image> = images.iter().map(|(_, image)| image.clone()).collect();
                let (made, _) = self.members.staging.put_bytes(&index_of_images(&images)?)?;
                Ok(Some(of_index(made)))
            }
        }
    }

    fn follow(&mut self, entry: &Descriptor) -> Result<()> {
        if !self.seen.insert(digest_in(entry)?) {
            return Ok(());
        }
        if is_attachment(entry) {
            self.is_partial |= !self.import_attachment(entry)?;
        } else if self.lacks(entry)? {
            self.is_partial = true;
            self.skipped.absent.extend(Platform::of(entry).map(|platform| platform.to_string()));
        } else {
            self.import_image(entry)?;
        }
        Ok(())
    }

    /// Returns true if the source lacks an image. One for this machine whose manifest exists is
    /// imported in any case, so that missing parts are an error.
    fn lacks(&self, entry: &Descriptor) -> Result<bool> {
        let is_own = Platform::of(entry).is_none_or(|platform| self.host.accepts(&platform));
        if is_own { Ok(!self.members.has(&digest_in(entry)?)?) } else { Ok(!self.members.is_complete(entry)?) }
    }

    fn import_image(&mut self, entry: &Descriptor) -> Result<()> {
        let digest = import_blob(self.members, entry, "the manifest")?;
        let text = self.members.staging.read_document(&digest)?;
        let id = import_image(self.members, &text)?;
        let image = Image::of_documents(&text, |id| self.members.staging.read_document(&id.blob()))?;
        let image = Image { entry: Some(entry.clone()), ..image };
        self.images.push((CheckedImage { manifest: digest.of_manifest(), id: id.blob() }, image));
        Ok(())
    }

    /// Imports an attestation or another artifact. Returns false if the source lacks a part of it.
    fn import_attachment(&self, entry: &Descriptor) -> Result<bool> {
        if !self.members.is_complete(entry)? {
            return Ok(false);
        }
        let digest = import_blob(self.members, entry, "the manifest")?;
        let Ok(manifest) = parse_manifest(&self.members.staging.read_document(&digest)?) else { return Ok(false) };
        for part in manifest.layers().iter().chain([manifest.config()]) {
            import_blob(self.members, part, "the attestation")?;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use rbuild_image::Reference;
    use rbuild_store::{Artifact, DanglingImages, Store};
    use rbuild_testkit::Scratch;
    use serde_json::Value;

    use crate::fixture::{Fixture, INDEX, Parts, named, store_in};
    use crate::layout::blob_path;
    use crate::load::{Loaded, WantedPlatform, load};

    const TAG: &str = "org.opencontainers.image.ref.name";
    const HOST: &str = "linux/amd64";

    /// Loads a layout with these entries under the name `a:1`.
    fn loaded(store: &Store, fixture: &Fixture, entry: &Value) -> Result<Vec<Loaded>, String> {
        let archive = fixture.clone().with_index(&[named(entry, TAG, "a:1")]).archive();
        let all = WantedPlatform::All(HOST.parse().unwrap());
        let loaded = load(store, &archive[..], &all).map_err(|e| e.message())?;
        assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
        Ok(loaded.found)
    }

    fn artifact(store: &Store) -> Artifact {
        store.images().find("a:1").unwrap().artifact
    }

    /// A layout with images for two platforms and an attestation of the first, and the entry of its
    /// index.
    fn layout() -> (Fixture, [Parts; 3], Value) {
        let mut fixture = Fixture::default();
        let (one, other) = (fixture.valid_image(HOST, "1"), fixture.valid_image("linux/s390x", "2"));
        let attestation = fixture.attestation(&one);
        let list = fixture.list(INDEX, &[one.entry.clone(), other.entry.clone(), attestation.entry.clone()]);
        (fixture, [one, other, attestation], list)
    }

    #[test]
    fn an_index_is_kept_with_its_attestations() {
        let (scratch, (fixture, [one, other, attestation], list)) = (Scratch::new(), layout());
        let store = store_in(&scratch, "store");
        let found = loaded(&store, &fixture, &list).unwrap();
        let name: Reference = "a:1".parse().unwrap();
        let digest = list["digest"].as_str().unwrap();
        assert_eq!((found.len(), found[0].id.to_string(), &found[0].names), (1, digest.to_string(), &vec![name]));
        let kept = Artifact::Index {
            digest: digest.parse().unwrap(),
            images: [&one, &other].map(|image| image.manifest.of_manifest()).to_vec(),
            attachments: vec![attestation.manifest.of_manifest()],
        };
        assert_eq!(artifact(&store), kept);
        assert_eq!(store.images().list().unwrap().len(), 1);
        assert_eq!(store.gc().prune(true, DanglingImages::Remove).unwrap().blobs, 0);
        assert!(store.gc().check(false).unwrap().damage.is_empty());
        // Another name of the same content.
        loaded(&store, &fixture, &list).unwrap();
        assert_eq!(artifact(&store), kept);
    }

    #[test]
    fn an_index_with_missing_parts_is_written_again() {
        let scratch = Scratch::new();
        let without = |case: &str, missing: &dyn Fn(&[Parts; 3]) -> Vec<String>| {
            let (mut fixture, parts, list) = layout();
            missing(&parts).iter().for_each(|path| drop(fixture.files.remove(path)));
            let store = store_in(&scratch, case);
            loaded(&store, &fixture, &list).map(|_| (artifact(&store), parts))
        };
        let (found, [one, other, _]) = without("attestation", &|parts| vec![blob_path(&parts[2].layer)]).unwrap();
        let images = [&one, &other].map(|image| image.manifest.of_manifest());
        assert_eq!((found.images(), found.attachments()), (&images[..], &[][..]));
        let (found, [one, ..]) = without("platform", &|parts| vec![blob_path(&parts[1].layer)]).unwrap();
        assert_eq!(found, Artifact::Image(one.manifest.of_manifest()));
        // Without the image for this machine, one of the others has to be selected.
        let e = without("own", &|parts| vec![blob_path(&parts[0].manifest)]).map(drop).unwrap_err();
        assert!(e.ends_with("has no image for linux/amd64, only for linux/s390x"), "{e}");
        let e = without("own layer", &|parts| vec![blob_path(&parts[0].layer)]).map(drop).unwrap_err();
        assert!(e.contains("1 layer is missing from the archive and the store"), "{e}");
    }

    #[test]
    fn of_an_index_with_indexes_one_image_is_loaded_with_a_warning() {
        let (scratch, (mut fixture, [one, ..], list)) = (Scratch::new(), layout());
        let arm = fixture.valid_image("linux/arm64", "3");
        let outer = fixture.list(INDEX, &[list, arm.entry]);
        let store = store_in(&scratch, "store");
        let archive = fixture.with_index(&[named(&outer, TAG, "a:1")]).archive();
        let all = WantedPlatform::All(HOST.parse().unwrap());
        let warnings = load(&store, &archive[..], &all).unwrap().warnings;
        let texts: Vec<&str> = warnings.iter().map(|warning| warning.text.as_str()).collect();
        assert_eq!(texts, ["images for linux/arm64, linux/s390x were not loaded, only those for linux/amd64"]);
        assert_eq!(artifact(&store), Artifact::Image(one.manifest.of_manifest()));
    }
}
