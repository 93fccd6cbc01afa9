//! Import of all images of an index.

use std::collections::HashSet;

use rbuild_image::{
    BlobDigest, Descriptor, ImageIndex, Platform, is_attachment, leads_to_images, parse_index, parse_manifest,
};
use rbuild_store::Image;

use crate::archive_error::SkippedPlatforms;
use crate::documents::index_of_images;
use crate::error::Result;
use crate::image_documents::nested;
use crate::load::found::{CheckedImage, WantedPlatform, unreadable};
use crate::load::manifest::{digest_in, import_blob, import_image};
use crate::load::members::IncomingParts;
use crate::media_types::is_index;

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
    /// contains no image for this machine, and `wanted` requires one, the others are skipped: the
    /// caller has to select one.
    pub(super) fn import(
        members: &'m IncomingParts<'a>,
        wanted: &WantedPlatform,
        index: &ImageIndex,
    ) -> Result<WholeIndex<'m, 'a>> {
        let (seen, images, is_partial, skipped) = Default::default();
        let host = wanted.platform().clone();
        let mut whole = WholeIndex { members, host, seen, images, is_partial, skipped };
        whole.follow_all(index, None)?;
        if matches!(wanted, WantedPlatform::Any(_)) {
            return Ok(whole);
        }
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

    /// Follows the entries of an index, to which the entry `outer` of another one led.
    fn follow_all(&mut self, index: &ImageIndex, outer: Option<&Descriptor>) -> Result<()> {
        index.manifests().iter().try_for_each(|entry| self.follow(&nested(entry.clone(), outer)))
    }

    fn follow(&mut self, entry: &Descriptor) -> Result<()> {
        if !self.seen.insert(digest_in(entry)?) {
            return Ok(());
        }
        if is_index(entry.media_type()) {
            self.follow_index(entry)?;
        } else if is_attachment(entry) {
            self.is_partial |= !self.import_attachment(entry)?;
        } else if !leads_to_images(entry) {
            self.is_partial = true;
        } else if self.lacks(entry)? {
            self.is_partial = true;
            self.skipped.absent.extend(Platform::of(entry).map(|platform| platform.to_string()));
        } else {
            self.import_image(entry)?;
        }
        Ok(())
    }

    fn follow_index(&mut self, entry: &Descriptor) -> Result<()> {
        let digest = digest_in(entry)?;
        if !self.members.has(&digest)? {
            self.is_partial = true;
            return Ok(());
        }
        import_blob(self.members, entry, "the manifest")?;
        let index = parse_index(&self.members.staging.read_document(&digest)?).map_err(unreadable("index"))?;
        self.follow_all(&index, Some(entry))
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
    use rbuild_image::{BlobDigest, Reference};
    use rbuild_store::{Artifact, DanglingImages, Store};
    use rbuild_testkit::Scratch;
    use serde_json::{Value, json};

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
            indexes: Vec::new(),
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
    fn entries_of_unknown_types_are_left_out() {
        let (scratch, (mut fixture, [one, other, attestation], _)) = (Scratch::new(), layout());
        let signature = fixture.document("application/vnd.example.signature.v1+json", &json!({"signature": 1}));
        let entries = [&one.entry, &other.entry, &attestation.entry, &signature].map(Clone::clone);
        let list = fixture.list(INDEX, &entries);
        let store = store_in(&scratch, "all");
        loaded(&store, &fixture, &list).unwrap();
        let images = [&one, &other].map(|image| image.manifest.of_manifest());
        assert_eq!((artifact(&store).images(), artifact(&store).attachments()), (&images[..], &[][..]));
        // The image for this machine, from an index and beside other entries of the layout.
        let archive = fixture.with_index(&[signature, named(&list, TAG, "a:1")]).archive();
        let store = store_in(&scratch, "host");
        load(&store, &archive[..], &WantedPlatform::Host(HOST.parse().unwrap())).unwrap();
        assert_eq!(artifact(&store), Artifact::Image(one.manifest.of_manifest()));
    }

    #[test]
    fn an_index_with_indexes_is_kept() {
        let (scratch, (mut fixture, [one, other, attestation], list)) = (Scratch::new(), layout());
        let arm = fixture.valid_image("linux/arm64", "3");
        let outer = fixture.list(INDEX, &[list.clone(), arm.entry.clone(), list.clone()]);
        let store = store_in(&scratch, "store");
        loaded(&store, &fixture, &outer).unwrap();
        let digest = |entry: &Value| entry["digest"].as_str().unwrap().parse::<BlobDigest>().unwrap();
        let kept = Artifact::Index {
            digest: digest(&outer).of_manifest(),
            images: [&one, &other, &arm].map(|image| image.manifest.of_manifest()).to_vec(),
            attachments: vec![attestation.manifest.of_manifest()],
            indexes: vec![digest(&list).of_manifest()],
        };
        assert_eq!(artifact(&store), kept);
        assert_eq!(store.gc().prune(true, DanglingImages::Remove).unwrap().blobs, 0);
        assert!(store.gc().check(false).unwrap().damage.is_empty());
        std::fs::remove_file(scratch.join("store").join(blob_path(&digest(&list)))).unwrap();
        assert!(!store.gc().check(false).unwrap().damage.is_empty());
        // Without one of the images, the index is written again, without the inner one.
        fixture.files.remove(&blob_path(&other.layer));
        let store = store_in(&scratch, "partial");
        loaded(&store, &fixture, &outer).unwrap();
        let images = [&one, &arm].map(|image| image.manifest.of_manifest());
        assert_eq!((artifact(&store).images(), artifact(&store).indexes()), (&images[..], &[][..]));
        let deep = (0..4).fold(outer, |inner, _| fixture.list(INDEX, &[inner]));
        let e = loaded(&store_in(&scratch, "deep"), &fixture, &deep).unwrap_err();
        assert!(e.contains("is nested more than 4 levels deep"), "{e}");
    }

    #[test]
    fn an_index_without_an_image_for_this_machine_is_kept_on_request() {
        let (scratch, mut fixture) = (Scratch::new(), Fixture::default());
        let images = ["linux/arm64", "linux/s390x"].map(|platform| fixture.valid_image(platform, platform));
        let list = fixture.list(INDEX, &images.each_ref().map(|image| image.entry.clone()));
        let store = store_in(&scratch, "store");
        let e = loaded(&store, &fixture, &list).unwrap_err();
        assert!(e.ends_with("has no image for linux/amd64, only for linux/arm64, linux/s390x"), "{e}");
        let archive = fixture.with_index(&[named(&list, TAG, "a:1")]).archive();
        load(&store, &archive[..], &WantedPlatform::Any(HOST.parse().unwrap())).unwrap();
        assert_eq!(artifact(&store).images(), images.map(|image| image.manifest.of_manifest()));
        assert_eq!(artifact(&store).digest().to_string(), list["digest"].as_str().unwrap());
    }
}
