//! Notes on pulled images: the manifest that a name resolved to in its registry.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;

use rbuild_image::{Hasher, ManifestDigest, Platform, Reference};
use serde::{Deserialize, Serialize};

use crate::artifact::{Artifact, NamedImage};
use crate::error::Result;
use crate::ids::PulledName;
use crate::images::{Image, Images};
use crate::index_entries::digest;
use crate::modes;
use crate::repo_digests::{NoteTime, RepoDigest};

/// Directory of the notes.
const DIR: &str = "pulled";

/// The manifest that a name resolved to in its registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulled {
    /// Digest of the manifest or index that the name resolved to.
    pub resolved: ManifestDigest,
    /// Digest of the manifest that was pulled.
    pub manifest: ManifestDigest,
}

/// A note as it is stored.
#[derive(Serialize, Deserialize)]
struct PullNote {
    #[serde(flatten)]
    pulled: Pulled,
    /// The name that was resolved; absent in notes of earlier versions. See
    /// [`Images::complete_names`].
    name: Option<String>,
    #[serde(default)]
    time: NoteTime,
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

    /// Notes the manifest that a name resolved to. An image without a note counts as one that was
    /// made locally: builds for other platforms use it instead of pulling their own.
    ///
    /// # Errors
    ///
    /// Fails if the note cannot be written.
    pub fn note_pulled(&self, name: &Reference, platform: &Platform, pulled: &Pulled) -> Result<()> {
        let _lock = self.lock_index()?;
        self.store.root.create_dir_all(DIR, modes::dir(), None, |_| ())?;
        let note = PullNote { pulled: *pulled, name: Some(name.to_string()), time: NoteTime::now() };
        self.store.write(DIR, &file_of(name, platform), &note)
    }

    /// Returns the manifests that names resolved to in their registries, for all names that still
    /// refer to an image pulled under them. Such a name refers to the image of the platform that
    /// was pulled last. Builds still use the images of the other platforms, so these are not
    /// dangling, although their entries have no name. Once a build or another command gives the
    /// name to an image of its own, nothing uses them.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn pulled_by_name(&self) -> Result<HashSet<ManifestDigest>> {
        let mut of_name: HashMap<String, HashSet<ManifestDigest>> = HashMap::new();
        for (_, note) in self.notes()? {
            if let Some(name) = note.name {
                of_name.entry(name).or_default().insert(note.pulled.manifest);
            }
        }
        let mut pulled = HashSet::new();
        for entry in self.list()? {
            let noted = entry.name.and_then(|name| of_name.remove(&name.to_string()));
            pulled.extend(
                noted.filter(|noted| entry.artifact.images().iter().any(|m| noted.contains(m))).into_iter().flatten(),
            );
        }
        Ok(pulled)
    }

    /// Returns true if an image was pulled under a name, for any platform.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn was_pulled(&self, name: &Reference, manifest: &ManifestDigest) -> Result<bool> {
        let name = name.to_string();
        let of_name = |note: &PullNote| note.name.as_ref().is_some_and(|noted| *noted == name);
        Ok(self.notes()?.iter().any(|(_, note)| note.pulled.manifest == *manifest && of_name(note)))
    }

    /// Chooses one of the images that were pulled for several platforms while a name resolved to
    /// `resolved`: that of this machine's platform, or else the first one in the order of
    /// platforms.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn preferred_pull(&self, name: &Reference, resolved: &ManifestDigest) -> Result<Option<ManifestDigest>> {
        let (name, host) = (name.to_string(), Platform::host());
        let is_of_name = |note: &PullNote| {
            note.pulled.resolved == *resolved && note.name.as_ref().is_some_and(|noted| *noted == name)
        };
        let kept = self.kept()?;
        let manifests =
            self.notes()?.into_iter().filter(|(_, note)| is_of_name(note)).map(|(_, note)| note.pulled.manifest);
        let rank = |manifest: ManifestDigest| {
            let platform = self.image(&manifest).ok()?.config.platform();
            Some((platform != host, platform.to_string(), manifest))
        };
        let ranked = manifests.filter(|manifest| kept.contains(manifest)).filter_map(rank);
        Ok(ranked.min_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1))).map(|(.., manifest)| manifest))
    }

    /// Returns the digests that a name resolved to when images were pulled under it, by the
    /// manifests of the images.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn resolutions(&self, name: &Reference) -> Result<HashMap<ManifestDigest, HashSet<ManifestDigest>>> {
        let name = name.to_string();
        let mut all: HashMap<ManifestDigest, HashSet<ManifestDigest>> = HashMap::new();
        for (_, note) in self.notes()?.into_iter().filter(|(_, note)| note.name.as_ref() == Some(&name)) {
            all.entry(note.pulled.manifest).or_default().insert(note.pulled.resolved);
        }
        Ok(all)
    }

    /// Returns true if a name refers to an index of images that were pulled while the name resolved
    /// to `resolved`. Of several images for the same platform, only one has a note.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn is_pulled_index(&self, name: &Reference, resolved: &ManifestDigest) -> Result<bool> {
        let entry = self.list()?.into_iter().find(|entry| entry.name.as_ref() == Some(name));
        let Some(Artifact::Index { images, .. }) = entry.map(|entry| entry.artifact) else { return Ok(false) };
        let known = self.resolutions(name)?;
        let found = || images.iter().filter_map(|image| known.get(image));
        Ok(found().next().is_some() && found().all(|found| found.contains(resolved)))
    }

    /// Returns true if a name refers to `pulled`, or to another image that was pulled under it. A
    /// name that was removed, or given to another image, does not. A digest always refers to the
    /// same content.
    fn is_of_pull(&self, entries: &[NamedImage], name: &Reference, pulled: &ManifestDigest) -> Result<bool> {
        let named = entries.iter().find(|entry| entry.name.as_ref() == Some(name));
        let images = named.map_or(&[][..], |entry| entry.artifact.images());
        // Only a name that was pulled for several platforms requires the other notes.
        if name.is_pinned() || images.contains(pulled) {
            return Ok(true);
        }
        let name = name.to_string();
        let is_of_name = |note: &PullNote| note.name.as_ref() == Some(&name) && images.contains(&note.pulled.manifest);
        Ok(!images.is_empty() && self.notes()?.iter().any(|(_, note)| is_of_name(note)))
    }

    /// Removes the notes on pulls and pushes of names that were removed from the store. The caller
    /// holds the lock of the index, so that a pull of such a name does not lose its new note.
    pub(crate) fn forget_names(&self, removed: &[Reference]) -> Result<()> {
        let names: HashSet<String> = removed.iter().map(Reference::to_string).collect();
        if names.is_empty() {
            return Ok(());
        }
        for (file, note) in self.notes()? {
            if note.name.is_some_and(|name| names.contains(&name)) {
                self.store.remove_note(DIR, &file)?;
            }
        }
        self.store.repo_digests().forget_names(&names)
    }

    /// Returns the digests that images were pulled by, with the times of the pulls.
    pub(crate) fn pulled_digests(&self) -> Result<Vec<(NoteTime, RepoDigest)>> {
        let of_note = |note: PullNote| {
            let name = note.name?.parse().ok()?;
            let digest = RepoDigest { name, digest: note.pulled.resolved, images: vec![note.pulled.manifest] };
            Some((note.time, digest))
        };
        Ok(self.notes()?.into_iter().filter_map(|(_, note)| of_note(note)).collect())
    }

    /// Returns the manifests of all images of the index.
    pub(crate) fn kept(&self) -> Result<HashSet<ManifestDigest>> {
        Ok(self.list()?.iter().flat_map(|entry| entry.artifact.images().to_vec()).collect())
    }

    /// Removes the notes on images that no longer exist.
    pub(crate) fn forget_removed(&self) -> Result<()> {
        let _lock = self.lock_index()?;
        let kept = self.kept()?;
        let notes = self.notes()?.into_iter().filter(|(_, note)| !kept.contains(&note.pulled.manifest));
        for (file, _) in notes {
            self.store.remove_note(DIR, &file)?;
        }
        Ok(())
    }

    /// Returns the readable notes with the names of their files.
    fn notes(&self) -> Result<Vec<(OsString, PullNote)>> {
        let mut notes = self.store.whole_documents(DIR)?;
        self.complete_names(&mut notes)?;
        Ok(notes)
    }

    /// Adds the names to notes of earlier versions, which only their file names identify. A note on
    /// a name that no longer exists remains without a name.
    fn complete_names(&self, notes: &mut [(OsString, PullNote)]) -> Result<()> {
        let mut nameless = notes.iter_mut().filter(|(_, note)| note.name.is_none()).peekable();
        if nameless.peek().is_none() {
            return Ok(());
        }
        let names: Vec<Reference> = self.list()?.into_iter().filter_map(|entry| entry.name).collect();
        for (file, note) in nameless {
            let Ok(image) = self.image(&note.pulled.manifest) else { continue };
            let own = image.config.platform();
            // A platform without a variant may have been requested.
            let platforms = [Platform { variant: None, ..own.clone() }, own];
            let of = |name: &&Reference| platforms.iter().any(|p| *file == *file_of(name, p));
            note.name = names.iter().find(of).map(ToString::to_string);
        }
        Ok(())
    }

    /// Returns the image that was pulled under a name for a platform, if it is still complete and
    /// the name still refers to an image that was pulled under it.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn pulled_image(&self, name: &Reference, platform: &Platform) -> Result<Option<(Pulled, Image)>> {
        let Some(pulled) = self.pulled(name, platform)? else { return Ok(None) };
        let entries = self.list()?;
        let kept = entries.iter().any(|entry| entry.artifact.images().contains(&pulled.manifest));
        let Some(image) = self.image(&pulled.manifest).ok().filter(|_| kept) else { return Ok(None) };
        if !self.is_of_pull(&entries, name, &pulled.manifest)? {
            return Ok(None);
        }
        for layer in image.manifest.layers() {
            if !self.store.blobs().has_complete_blob(&digest(layer)?, layer.size())? {
                return Ok(None);
            }
        }
        Ok(Some((pulled, image)))
    }
}

#[cfg(test)]
mod tests {
    use rbuild_image::{ImageConfig, MediaType, descriptor, manifest};
    use rbuild_testkit::Scratch;

    use super::*;
    use crate::gc::prune::DanglingImages;
    use crate::staging::Staging;
    use crate::store::Store;
    use crate::workspace::Workspace;

    const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";

    /// Pulls an image without layers for a platform.
    fn pull(store: &Store, name: &Reference, platform: &str, author: &str) -> ManifestDigest {
        let platform: Platform = platform.parse().unwrap();
        let work = Workspace::open(store).unwrap();
        let staging = Staging::open(store, &work).unwrap();
        let config = ImageConfig { author: Some(author.into()), ..ImageConfig::empty(&platform) };
        let (id, size) = staging.put_document(&config).unwrap();
        let manifest = manifest(descriptor(MediaType::ImageConfig, &id, size), Vec::new());
        let manifest = staging.put_document(&manifest).unwrap().0.of_manifest();
        staging.publish("pull", &[manifest], &[(manifest, Some(name.clone()))]).unwrap();
        store.images().note_pulled(name, &platform, &Pulled { resolved: manifest, manifest }).unwrap();
        manifest
    }

    #[test]
    fn images_of_other_platforms_of_a_name_are_not_dangling() {
        let dir = Scratch::new();
        let store = Store::open(&dir).unwrap();
        let name: Reference = "a.io/x:1".parse().unwrap();
        let has = |manifest: &ManifestDigest| store.images().image(manifest).is_ok();
        let old = pull(&store, &name, "linux/arm64", "old");
        let arm = pull(&store, &name, "linux/arm64", "new");
        let amd = pull(&store, &name, "linux/amd64", "new");
        assert_eq!(store.gc().prune(false, DanglingImages::Remove).unwrap().images, 1);
        assert_eq!((has(&old), has(&arm), has(&amd)), (false, true, true));
        assert!(store.images().pulled_image(&name, &"linux/arm64".parse().unwrap()).unwrap().is_some());
        // The note of an image is kept as long as the image.
        store.gc().prune(true, DanglingImages::Remove).unwrap();
        let was_pulled = |manifest| store.images().was_pulled(&name, manifest).unwrap();
        assert_eq!((was_pulled(&amd), was_pulled(&arm)), (true, false));
        let arm = pull(&store, &name, "linux/arm64", "new");
        let amd = pull(&store, &name, "linux/amd64", "new");
        store.images().untag("a.io/x:1", true).unwrap();
        assert_eq!(store.gc().prune(false, DanglingImages::Remove).unwrap().images, 1);
        assert_eq!((has(&arm), has(&amd)), (false, false));
        // The name of a pulled image is given to an image that was made here.
        let arm = pull(&store, &name, "linux/arm64", "new");
        let amd = pull(&store, &name, "linux/amd64", "new");
        let own = pull(&store, &"a.io/own:1".parse().unwrap(), "linux/amd64", "own");
        store.images().tag(&own, Some(&name)).unwrap();
        assert_eq!(store.gc().prune(false, DanglingImages::Remove).unwrap().images, 2);
        assert_eq!((has(&arm), has(&amd), has(&own)), (false, false, true));
    }

    #[test]
    fn a_pull_during_the_removal_of_its_name_keeps_its_note() {
        let dir = Scratch::new();
        let store = Store::open(&dir).unwrap();
        let name: Reference = "a.io/x:1".parse().unwrap();
        let platform: Platform = "linux/arm64".parse().unwrap();
        let index = dir.join("index.json");
        // Many notes, which take long to read.
        let pulled = pull(&store, &name, "linux/arm64", "old");
        for at in 0..2000 {
            let other: Reference = format!("a.io/other:{at}").parse().unwrap();
            store.images().note_pulled(&other, &platform, &Pulled { resolved: pulled, manifest: pulled }).unwrap();
        }
        for author in ["1", "2", "3"] {
            let old = std::fs::read(&index).unwrap();
            std::thread::scope(|threads| {
                threads.spawn(|| store.images().untag("a.io/x:1", true).unwrap());
                while std::fs::read(&index).unwrap() == old {
                    std::thread::yield_now();
                }
                pull(&store, &name, "linux/arm64", author);
            });
            assert!(store.images().pulled(&name, &platform).unwrap().is_some(), "{author}");
        }
        // An entry that has another image meanwhile is not removed, and neither is its note.
        let stale = store.images().list().unwrap();
        pull(&store, &name, "linux/arm64", "new");
        store.images().forget(&stale).unwrap();
        assert!(store.images().pulled(&name, &platform).unwrap().is_some());
        // Another process removes notes at the same time.
        store.remove_note(DIR, &OsString::from("nosuch.json")).unwrap();
    }

    #[test]
    fn a_name_that_was_removed_has_no_pulled_image() {
        let dir = Scratch::new();
        let store = Store::open(&dir).unwrap();
        let (name, kept): (Reference, Reference) = ("a.io/x:1".parse().unwrap(), "keep".parse().unwrap());
        let platform: Platform = "linux/arm64".parse().unwrap();
        let found = || store.images().pulled_image(&name, &platform).unwrap().map(|(_, image)| image.manifest_digest);
        let old = pull(&store, &name, "linux/arm64", "old");
        store.images().tag(&old, Some(&kept)).unwrap();
        assert_eq!(found(), Some(old));
        store.images().untag("a.io/x:1", false).unwrap();
        assert_eq!((found(), store.images().pulled(&name, &platform).unwrap()), (None, None));
        // Removal by digest removes the names, too.
        let old = pull(&store, &name, "linux/arm64", "old");
        store.images().untag(&old.to_string(), true).unwrap();
        assert_eq!(store.images().pulled(&name, &platform).unwrap(), None);
        // The name is given to an image that was made here.
        let old = pull(&store, &name, "linux/arm64", "old");
        store.images().tag(&old, Some(&kept)).unwrap();
        let own = pull(&store, &"a.io/own:1".parse().unwrap(), "linux/amd64", "own");
        store.images().tag(&own, Some(&name)).unwrap();
        assert_eq!(found(), None);
        // As the removal of entries does.
        let old = pull(&store, &name, "linux/arm64", "old");
        store.images().tag(&old, Some(&kept)).unwrap();
        let mut entries = store.images().list().unwrap();
        entries.retain(|entry| entry.name.as_ref() == Some(&name));
        store.images().forget(&entries).unwrap();
        assert_eq!(store.images().pulled(&name, &platform).unwrap(), None);
    }

    #[test]
    fn a_name_stands_for_the_image_of_this_machine_or_the_first_one() {
        let dir = Scratch::new();
        let store = Store::open(&dir).unwrap();
        let name: Reference = "a.io/x:1".parse().unwrap();
        let resolved = ManifestDigest::of(b"index");
        let preferred = |resolved| store.images().preferred_pull(&name, resolved).unwrap();
        let pull = |platform: &str| {
            let manifest = pull(&store, &name, platform, "a");
            let note = Pulled { resolved, manifest };
            store.images().note_pulled(&name, &platform.parse().unwrap(), &note).unwrap();
            manifest
        };
        assert_eq!(preferred(&resolved), None);
        pull("linux/s390x");
        let first = pull("linux/ppc64le");
        assert_eq!(preferred(&resolved), Some(first));
        let own = pull(&Platform::host().to_string());
        pull("linux/386");
        assert_eq!(preferred(&resolved), Some(own));
        assert_eq!(preferred(&ManifestDigest::of(b"another index")), None);
    }

    #[test]
    fn an_index_of_a_pull_is_known_by_the_digest_that_the_name_resolved_to() {
        let dir = Scratch::new();
        let store = Store::open(&dir).unwrap();
        let name: Reference = "a.io/x:1".parse().unwrap();
        let resolved = ManifestDigest::of(b"index");
        let is_pulled = |resolved: &ManifestDigest| store.images().is_pulled_index(&name, resolved).unwrap();
        let images = ["linux/s390x", "linux/amd64"].map(|platform| {
            let manifest = pull(&store, &name, platform, "a");
            store.images().note_pulled(&name, &platform.parse().unwrap(), &Pulled { resolved, manifest }).unwrap();
            manifest
        });
        assert!(!is_pulled(&resolved), "the name refers to one image");
        let listed = images.map(|m| (m, store.blobs().blob_size(&m.blob()).unwrap()));
        let entries =
            listed.map(|(manifest, size)| format!(r#"{{"mediaType":"{DOCKER}","digest":"{manifest}","size":{size}}}"#));
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
        let work = Workspace::open(&store).unwrap();
        let staging = Staging::open(&store, &work).unwrap();
        let index = staging.put_bytes(index.as_bytes()).unwrap().0.of_manifest();
        staging.publish("pull", &[index], &[(index, Some(name.clone()))]).unwrap();
        assert!(is_pulled(&resolved) && !is_pulled(&ManifestDigest::of(b"another index")));
        assert_eq!(store.images().resolutions(&name).unwrap()[&images[0]], [resolved].into());
        // One of the images was pulled again.
        let note = Pulled { resolved: ManifestDigest::of(b"another index"), manifest: images[0] };
        store.images().note_pulled(&name, &"linux/s390x".parse().unwrap(), &note).unwrap();
        assert!(!is_pulled(&resolved) && !is_pulled(&note.resolved));
    }

    #[test]
    fn a_note_of_an_earlier_version_belongs_to_the_name_that_was_pulled() {
        let dir = Scratch::new();
        let store = Store::open(&dir).unwrap();
        let (name, tag): (Reference, Reference) = ("a.io/x:1".parse().unwrap(), "mybase".parse().unwrap());
        let arm = pull(&store, &name, "linux/arm64", "a");
        store.images().tag(&arm, Some(&tag)).unwrap();
        let file = dir.join(DIR).join(file_of(&name, &"linux/arm64".parse().unwrap()));
        let text = std::fs::read_to_string(&file).unwrap();
        let nameless = text.replace(&format!(",\"name\":\"{name}\""), "");
        assert_ne!(text, nameless);
        std::fs::write(&file, nameless).unwrap();
        let was_pulled = |name| store.images().was_pulled(name, &arm).unwrap();
        assert_eq!((was_pulled(&name), was_pulled(&tag)), (true, false));
        assert!(store.images().pulled_by_name().unwrap().contains(&arm));
        store.images().untag("a.io/x:1", true).unwrap();
        assert_eq!((was_pulled(&name), was_pulled(&tag)), (false, false));
    }

    #[test]
    fn notes_are_kept_per_name_and_platform_for_existing_images() {
        let dir = Scratch::new();
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
    }
}
