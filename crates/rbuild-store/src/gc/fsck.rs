//! Verification and repair of the store's content.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::Read;
use std::sync::Arc;

use rbuild_image::{BlobDigest, ManifestDigest, digest_of};
use rbuild_linux::RootDir;
use rbuild_remedy::{Remedy, sentence};

use crate::cache::records::{Record, ResultFile};
use crate::error::{Result, StoreError, naming};
use crate::exclusive_lock::ExclusiveLock;
use crate::gc::misplaced::Misplaced;
use crate::gc::prune::Gc;
use crate::images::{Image, NamedImage, digest};
use crate::store::{DIRS, OPTIONAL_DIRS, Store};
use crate::workspace::sweep;

/// Directory of the blobs.
const BLOBS: &str = "blobs/sha256";

/// The result of [`Gc::check`].
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Number of blobs.
    pub blobs: u64,
    /// Total size of the blobs in bytes.
    pub bytes: u64,
    /// Number of index entries.
    pub images: u64,
    /// Number of cache documents.
    pub records: u64,
    /// Descriptions of damaged content, one sentence each. A repair has removed that content.
    pub damage: Vec<String>,
    /// Damage that could not be removed.
    pub unrepaired: Vec<CheckFailure>,
    /// Content that could not be read and so was not verified. It may be intact and is never
    /// removed.
    pub unread: Vec<CheckFailure>,
}

/// Content that could not be read or repaired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckFailure {
    /// The object and the reason, as one sentence.
    pub text: String,
    /// The remedy, if there is one.
    pub remedy: Option<Remedy>,
}

impl From<StoreError> for CheckFailure {
    fn from(e: StoreError) -> CheckFailure {
        CheckFailure { text: sentence(&e), remedy: e.remedy() }
    }
}

impl Checked {
    /// Repairs damage by calling `remove` and records it, as unrepaired if that fails. `remove`
    /// returns a path if it moved the damaged entry there instead of removing it.
    fn repaired(&mut self, problem: String, remove: impl FnOnce() -> Result<Option<String>>) {
        match remove() {
            Ok(None) => self.damage.push(problem),
            Ok(Some(path)) => self.damage.push(format!("{problem}; it was moved to {path}")),
            Err(e) => {
                let text = format!("{problem}; {}", sentence(&e));
                self.unrepaired.push(CheckFailure { text, remedy: e.remedy() });
            }
        }
    }

    /// Records the damage of a file and, with `repair`, removes the file.
    fn damaged_file(&mut self, store: &Store, dir: &RootDir, path: &str, problem: String, repair: bool) {
        if !repair {
            self.damage.push(problem);
            return;
        }
        let name = path.rsplit('/').next().unwrap_or(path);
        self.repaired(problem, || {
            dir.remove_file(OsStr::new(name)).map_err(naming(&store.root, path))?;
            Ok(None)
        });
    }

    /// Records a misplaced entry of the directory with this path. With `repair`, moves it to
    /// `misplaced` or removes it.
    fn misplaced(&mut self, store: &Store, dir: &RootDir, path: &str, entry: &Misplaced, repair: bool) {
        let problem = entry.problem(path);
        if repair {
            self.repaired(problem, || entry.put_away(store, dir, path));
        } else {
            self.damage.push(problem);
        }
    }
}

/// The state of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BlobState {
    /// Its bytes have its digest.
    Intact,
    /// Its bytes have another digest.
    Damaged,
    /// It does not exist.
    Missing,
    /// Its bytes could not be read.
    Unreadable,
}

/// The state of an image, in the order of severity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum ImageState {
    Whole,
    /// A blob could not be read.
    Unread(String),
    /// A blob is missing or damaged.
    Incomplete(String),
}

/// The blobs of the store, as far as they have been verified. Other processes add blobs while they
/// are read.
struct CheckedBlobs {
    dir: RootDir,
    /// The store, as messages name it.
    place: Arc<str>,
    states: RefCell<HashMap<String, BlobState>>,
}

impl CheckedBlobs {
    fn of(store: &Store) -> Result<CheckedBlobs> {
        Ok(CheckedBlobs { dir: store.dir(BLOBS)?, place: store.place(), states: RefCell::default() })
    }

    /// Returns the state of a blob. One that came after the others were verified is verified now.
    fn state(&self, blob: &BlobDigest) -> BlobState {
        let name = blob.hex();
        *self.states.borrow_mut().entry(name).or_insert_with_key(|name| match self.digest_of(OsStr::new(name)) {
            Ok((found, _)) if found == *name => BlobState::Intact,
            Ok(_) => BlobState::Damaged,
            Err(e) if e.is_not_found() => BlobState::Missing,
            Err(_) => BlobState::Unreadable,
        })
    }

    /// Returns the digest of a file's bytes in hexadecimal, and their number.
    fn digest_of(&self, name: &OsStr) -> Result<(String, u64)> {
        self.read(name)
            .map_err(|e| e.within(format!("blob sha256:{} in {}", name.to_string_lossy(), self.place)).into())
    }

    fn read(&self, name: &OsStr) -> rbuild_linux::Result<(String, u64)> {
        let mut file = self.dir.open_name(name)?;
        let (mut hasher, mut bytes) = (rbuild_image::Hasher::new(), 0);
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok((hasher.finish::<BlobDigest>().hex(), bytes)),
                Ok(n) => {
                    hasher.update(&buffer[..n]);
                    bytes += n as u64;
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.dir.error("read", name, e)),
            }
        }
    }
}

impl Gc<'_> {
    /// Reads every blob of an image and verifies digests and diffIDs.
    ///
    /// # Errors
    ///
    /// Fails if a blob is missing or damaged.
    pub fn verify_image(&self, image: &Image) -> Result<()> {
        self.store.blobs().read_document(&image.manifest_digest.blob())?;
        self.store.blobs().read_document(&image.id.blob())?;
        for (layer, diff_id) in image.layers()? {
            let digest = digest(&layer)?;
            self.store.blobs().read_layer(&digest, &diff_id)?;
        }
        Ok(())
    }

    /// Verifies the whole store: every blob against its name, and every document against its
    /// references. With `repair`, which takes the exclusive lock, broken content is removed:
    /// damaged blobs, names of incomplete images, cache records whose files are gone, and links.
    /// Directories and files that the store did not create are moved to `misplaced`. Content that
    /// cannot be read or removed stays. Files of trees have no checksums and are not read.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read, or with [`crate::StoreError::Busy`] if it is to be
    /// repaired while another process uses it.
    #[tracing::instrument(target = "store", name = "fsck", level = "debug", skip(self))]
    pub fn check(&self, repair: bool) -> Result<Checked> {
        let alone = if repair { Some(ExclusiveLock::take(self.store)?) } else { None };
        let mut checked = Checked::default();
        self.check_dirs(repair, &mut checked)?;
        if !checked.unrepaired.is_empty() || !repair && !checked.damage.is_empty() {
            return Ok(checked);
        }
        let missing = self.store.missing_dirs()?;
        checked.damage.extend(missing.iter().map(|dir| format!("the store's directory {dir} is missing")));
        if repair {
            self.store.create_dirs(&missing)?;
            self.store.remove_unpublished()?;
            sweep(self.store, &self.store.dir("tmp")?)?;
        } else if !missing.is_empty() {
            return Ok(checked);
        }
        let blobs = self.check_blobs(repair, &mut checked)?;
        self.check_images(repair, &blobs, &mut checked)?;
        self.check_documents::<Record>(repair, "records", &mut checked, |r| self.store.lazy_trees().has_tree(&r.tree))?;
        // The result of a removed image remains, and is ignored.
        self.check_documents::<ResultFile>(repair, "results", &mut checked, |r| {
            Ok(blobs.state(&r.manifest.blob()) != BlobState::Damaged)
        })?;
        alone.map_or(Ok(()), ExclusiveLock::end)?;
        Ok(checked)
    }

    /// Verifies that nothing else is in place of a directory of the store.
    fn check_dirs(&self, repair: bool, checked: &mut Checked) -> Result<()> {
        for path in DIRS.iter().chain(&OPTIONAL_DIRS).copied() {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            let dir = match self.store.root.sub(if parent.is_empty() { "." } else { parent }) {
                // The parent is reported, or missing.
                Err(e) if e.is_gone() => continue,
                other => other?,
            };
            if let Some(misplaced) = Misplaced::instead_of(&dir, name)? {
                checked.misplaced(self.store, &dir, parent, &misplaced, repair);
            }
        }
        Ok(())
    }

    /// Verifies all blobs.
    fn check_blobs(&self, repair: bool, checked: &mut Checked) -> Result<CheckedBlobs> {
        let mut blobs = CheckedBlobs::of(self.store)?;
        for entry in blobs.dir.entries()? {
            let name = entry.name.to_string_lossy().into_owned();
            if let Some(misplaced) = Misplaced::among_blobs(&blobs.dir, &entry)? {
                checked.misplaced(self.store, &blobs.dir, BLOBS, &misplaced, repair);
                blobs.states.get_mut().insert(name, BlobState::Damaged);
                continue;
            }
            checked.blobs += 1;
            let state = match blobs.digest_of(&entry.name) {
                Ok((found, bytes)) => {
                    checked.bytes += bytes;
                    if found == name {
                        BlobState::Intact
                    } else {
                        let problem = format!("blob sha256:{name} is corrupt: its digest is sha256:{found}");
                        checked.damaged_file(self.store, &blobs.dir, &format!("{BLOBS}/{name}"), problem, repair);
                        BlobState::Damaged
                    }
                }
                // Another process removed it.
                Err(e) if e.is_not_found() => BlobState::Missing,
                Err(e) => {
                    checked.unread.push(e.into());
                    BlobState::Unreadable
                }
            };
            blobs.states.get_mut().insert(name, state);
        }
        Ok(blobs)
    }

    fn check_images(&self, repair: bool, blobs: &CheckedBlobs, checked: &mut Checked) -> Result<()> {
        let (entries, invalid, lost) = match self.store.images().salvage() {
            Ok((entries, invalid)) => (entries, invalid, None),
            Err(damage @ StoreError::Damaged { .. }) => (Vec::new(), Vec::new(), Some(sentence(&damage))),
            Err(e) if e.is_not_found() => {
                (Vec::new(), Vec::new(), Some("the store's index.json is missing".to_string()))
            }
            Err(e) => return Err(e),
        };
        let named = self.store.images().entries(&entries)?;
        if repair && (lost.is_some() || !invalid.is_empty()) {
            self.store.images().replace_index(entries)?;
        }
        checked.damage.extend(lost.map(|lost| format!("{lost}; the names of all images are lost")));
        checked.damage.extend(invalid);
        self.check_named(repair, named, blobs, checked)
    }

    fn check_named(
        &self,
        repair: bool,
        named: Vec<NamedImage>,
        blobs: &CheckedBlobs,
        checked: &mut Checked,
    ) -> Result<()> {
        let (mut broken, mut known) = (Vec::new(), HashMap::new());
        for entry in named {
            checked.images += 1;
            let name = entry.name.as_ref().map_or_else(|| self.unnamed(&entry.manifest), |n| n.familiar());
            // An image may have many names.
            let state = |m: &ManifestDigest| known.entry(*m).or_insert_with(|| self.image_state(m, blobs)).clone();
            match entry.artifact.images().iter().map(state).max().unwrap_or(ImageState::Whole) {
                ImageState::Whole => {}
                ImageState::Unread(why) => {
                    let text = format!("image {name} cannot be verified: {why}");
                    checked.unread.push(CheckFailure { text, remedy: None });
                }
                ImageState::Incomplete(why) => {
                    checked.damage.push(format!("image {name} is incomplete: {why}"));
                    broken.push(entry);
                }
            }
        }
        if repair && !broken.is_empty() {
            self.store.images().forget(&broken)?;
        }
        Ok(())
    }

    /// Describes an image without a name by its ID, as `images` lists it, or by its manifest if it
    /// cannot be read.
    fn unnamed(&self, manifest: &ManifestDigest) -> String {
        match self.store.images().image(manifest) {
            Ok(image) => format!("<none> with ID {}", image.id.short()),
            Err(_) => format!("<none> with manifest {manifest}"),
        }
    }

    fn image_state(&self, manifest: &ManifestDigest, blobs: &CheckedBlobs) -> ImageState {
        let image = match self.store.images().image(manifest) {
            Ok(image) => image,
            Err(StoreError::Kernel(e)) if !e.is_not_found() => return ImageState::Unread(sentence(&e)),
            Err(e) => return ImageState::Incomplete(sentence(&e)),
        };
        let Ok(layers) = image.layers() else {
            let why = "its manifest and configuration have different numbers of layers";
            return ImageState::Incomplete(why.into());
        };
        let needed = layers.iter().filter_map(|(layer, _)| digest_of(layer).ok());
        let state = |blob: BlobDigest| match blobs.state(&blob) {
            BlobState::Intact => ImageState::Whole,
            BlobState::Unreadable => ImageState::Unread(format!("its blob {blob} cannot be read")),
            BlobState::Missing => ImageState::Incomplete(format!("its blob {blob} is missing")),
            BlobState::Damaged => ImageState::Incomplete(format!("its blob {blob} is damaged")),
        };
        needed.chain([image.id.blob(), manifest.blob()]).map(state).max().unwrap_or(ImageState::Whole)
    }

    fn check_documents<T: serde::de::DeserializeOwned>(
        &self,
        repair: bool,
        dir: &str,
        checked: &mut Checked,
        whole: impl Fn(&T) -> Result<bool>,
    ) -> Result<()> {
        let handle = self.store.dir(dir)?;
        for entry in self.store.documents(dir)? {
            if let Some(misplaced) = Misplaced::among_documents(&handle, &entry)? {
                checked.misplaced(self.store, &handle, dir, &misplaced, repair);
                continue;
            }
            checked.records += 1;
            let path = format!("{dir}/{}", entry.name.to_string_lossy());
            let problem = match self.store.read_if_any::<T>(&path) {
                Ok(Some(document)) if !whole(&document)? => format!("{path} refers to missing content"),
                // Intact, or removed since it was listed.
                Ok(_) => continue,
                Err(e @ StoreError::Damaged { .. }) => sentence(&e),
                Err(e) => {
                    checked.unread.push(e.into());
                    continue;
                }
            };
            checked.damaged_file(self.store, &handle, &path, problem, repair);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::path::Path;

    use rbuild_image::{ImageConfig, ImageId, MediaType, Platform, Reference, descriptor, manifest};

    use rbuild_remedy::StoreRemedy;

    use super::*;
    use crate::ids::{BuildId, ImageKey};
    use crate::staging::Staging;
    use crate::workspace::Workspace;

    /// Only the name of the invalid entry is lost.
    #[test]
    fn invalid_entries_of_the_index_are_removed_alone() {
        let entry = |digest: &str, more: &str| {
            format!(r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}",{more}}}"#)
        };
        let valid = format!("sha256:{}", "a".repeat(64));
        let named = r#""annotations":{"org.opencontainers.image.ref.name":"lost"},"size":1"#;
        for (invalid, name) in [
            (entry(&format!("sha512:{}", "a".repeat(128)), r#""size":1"#), ""),
            (entry("sha256:abcd", named), " `lost`"),
            (entry(&valid.to_uppercase(), r#""size":1"#), ""),
            (entry(&valid, r#""size":-1"#), ""),
            (entry(&valid, r#""size":1,"annotations":{"a":1}"#), ""),
            (format!(r#"{{"digest":"{valid}","size":1}}"#), ""),
            ("7".into(), ""),
        ] {
            let (found, after, images) = repaired("entries", |place, _| {
                let index = place.join("index.json");
                let text = std::fs::read_to_string(&index).unwrap();
                std::fs::write(&index, text.replace("\"manifests\":[", &format!("\"manifests\":[{invalid},"))).unwrap();
                assert!(matches!(Store::open(place).unwrap().images().list(), Err(StoreError::Damaged { .. })));
            });
            let start = format!("the entry{name} of the store's index.json is invalid: ");
            assert!(found.damage.len() == 1 && found.damage[0].starts_with(&start), "{found:?}");
            assert_eq!((after.damage.len(), images), (0, 1), "{invalid}");
        }
        let (found, _, images) = repaired("no-list", |place, _| std::fs::write(place.join("index.json"), "{").unwrap());
        assert!(found.damage.len() == 1 && found.damage[0].ends_with("the names of all images are lost"), "{found:?}");
        assert_eq!(images, 0);
    }

    /// Removes parts of a store with one image, and returns the damage that a repair finds and the
    /// number of images afterwards.
    fn repaired(name: &str, break_it: impl FnOnce(&std::path::Path, &ImageId)) -> (Checked, Checked, usize) {
        let place = std::env::temp_dir().join(format!("rbuild-fsck-{name}-{}", std::process::id()));
        let store = Store::open(&place).unwrap();
        let work = Workspace::open(&store).unwrap();
        let (digest, id) = empty_image(&store, &work, "a:1");
        store.records().put_result(&ImageKey::of(b"key"), &digest, &BuildId::of_command("build")).unwrap();
        drop((work, store));
        break_it(&place, &id);
        let store = Store::open(&place).unwrap();
        let found = store.gc().check(true).unwrap();
        let (after, images) = (store.gc().check(false).unwrap(), store.images().list().unwrap().len());
        drop(store);
        std::fs::remove_dir_all(&place).unwrap();
        (found, after, images)
    }

    #[test]
    fn missing_parts_of_a_store_are_made_again() {
        let (found, after, images) =
            repaired("index", |place, _| std::fs::remove_file(place.join("index.json")).unwrap());
        assert_eq!(found.damage, ["the store's index.json is missing; the names of all images are lost"]);
        assert_eq!((after.damage.len(), after.unread.len(), images), (0, 0, 0));
        for dir in ["tmp", "records", "trees"] {
            let (found, after, images) = repaired(dir, |place, _| std::fs::remove_dir_all(place.join(dir)).unwrap());
            assert_eq!(found.damage, [format!("the store's directory {dir} is missing")]);
            assert_eq!((after.damage.len(), images), (0, 1));
        }
        let (found, after, images) =
            repaired("blobs", |place, _| std::fs::remove_dir_all(place.join("blobs")).unwrap());
        assert_eq!(found.damage.len(), 3, "{found:?}");
        assert_eq!((after.damage.len(), images), (0, 0));
    }

    /// Root may read everything, so only other users see the failure.
    #[test]
    fn content_that_cannot_be_read_is_not_removed() {
        let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
        let mut blob = None;
        let (found, after, images) = repaired("unread", |place, id| {
            let file = place.join("blobs/sha256").join(id.hex());
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o0)).unwrap();
            blob = Some(id.blob());
        });
        assert!(found.damage.is_empty() && found == after, "{found:?} {after:?}");
        assert_eq!((found.unread.len(), images), (if is_root { 0 } else { 2 }, 1), "{found:?}");
        if let [file, image] = &found.unread[..] {
            let start = format!("cannot read blob {} in the store `", blob.unwrap());
            assert!(file.text.starts_with(&start) && file.text.ends_with(": permission denied"), "{file:?}");
            assert_eq!(file.remedy, Some(Remedy::Store(StoreRemedy::OwnStore)));
            assert!(image.text.starts_with("image a:1 cannot be verified: "), "{image:?}");
        }
    }

    #[test]
    fn things_in_place_of_blobs_and_documents_are_reported_by_path_and_put_away() {
        let dir = |path: &Path| {
            std::fs::create_dir(path).unwrap();
            std::fs::write(path.join("kept"), "kept").unwrap();
        };
        let link = |path: &Path| std::os::unix::fs::symlink("/etc/hostname", path).unwrap();
        let file = |path: &Path| std::fs::write(path, "kept").unwrap();
        type Case<'a> = (&'a str, &'a dyn Fn(&Path), &'a str, Option<&'a str>);
        let cases: [Case<'_>; 7] = [
            ("blobs/sha256/HEX", &dir, "is a directory, not a file", Some("HEX/kept")),
            ("blobs/sha256/HEX", &link, "is a symbolic link, not a file", None),
            ("blobs/sha256/mine", &dir, "is a directory, not a file", Some("mine/kept")),
            ("blobs/sha256/mine", &file, "is not named after a digest", Some("mine")),
            ("records/mine", &dir, "is a directory, not a file", Some("mine/kept")),
            ("records/mine.json", &file, "is not named after a digest", Some("mine.json")),
            ("results/mine", &file, "is not named after a digest", Some("mine")),
        ];
        for (at, (path, put, problem, kept)) in cases.into_iter().enumerate() {
            let place = std::env::temp_dir().join(format!("rbuild-misplaced-{at}-{}", std::process::id()));
            let store = Store::open(&place).unwrap();
            let work = Workspace::open(&store).unwrap();
            let (_, id) = empty_image(&store, &work, "a:1");
            drop(work);
            let real = |text: &str| text.replace("HEX", &id.hex());
            let target = place.join(real(path));
            let replaces = target.exists();
            if replaces {
                std::fs::remove_file(&target).unwrap();
            }
            put(&target);
            let found = store.gc().check(false).unwrap();
            assert_eq!(found.damage[0], real(&format!("{path} in the store {problem}")));
            assert_eq!((found.damage.len(), found.unread.len()), (if replaces { 2 } else { 1 }, 0), "{found:?}");
            let name = real(path.rsplit('/').next().unwrap());
            let repaired = store.gc().check(true).unwrap();
            let moved = if kept.is_some() { format!("; it was moved to misplaced/{name}") } else { String::new() };
            assert_eq!(repaired.damage[0], format!("{}{moved}", found.damage[0]));
            if let Some(kept) = kept {
                assert_eq!(std::fs::read_to_string(place.join("misplaced").join(real(kept))).unwrap(), "kept");
            }
            let after = store.gc().check(false).unwrap();
            assert_eq!((after.damage.len(), after.unread.len()), (0, 0), "{after:?}");
            // A second entry of the same name gets another name in `misplaced`.
            put(&target);
            assert_eq!(store.gc().check(true).unwrap().damage.len(), 1);
            assert_eq!(place.join(format!("misplaced/{name}.1")).exists(), kept.is_some());
            drop(store);
            std::fs::remove_dir_all(&place).unwrap();
        }
    }

    #[test]
    fn files_in_place_of_directories_are_put_away() {
        for dir in ["blobs", "blobs/sha256", "records", "tmp", "partial", "pulled"] {
            let (found, after, _) = repaired(&dir.replace('/', "-"), |place, _| {
                if place.join(dir).exists() {
                    std::fs::remove_dir_all(place.join(dir)).unwrap();
                }
                std::fs::write(place.join(dir), "mine").unwrap();
            });
            let name = dir.rsplit('/').next().unwrap();
            let problem = format!("{dir} in the store is not a directory; it was moved to misplaced/{name}");
            assert_eq!((&found.damage[0], found.unrepaired.len()), (&problem, 0), "{found:?}");
            assert_eq!((after.damage.len(), after.unread.len()), (0, 0), "{after:?}");
        }
    }

    /// The other damage is repaired, and all damage is reported.
    #[test]
    fn damage_that_cannot_be_removed_does_not_stop_a_repair() {
        let (found, after, images) = repaired("stuck", |place, id| {
            std::fs::create_dir(place.join("blobs/sha256/mine")).unwrap();
            std::fs::create_dir(place.join("records/mine")).unwrap();
            std::fs::write(place.join("blobs/sha256").join(id.hex()), "other").unwrap();
            std::fs::write(place.join("misplaced"), "in the way").unwrap();
        });
        assert_eq!((found.damage.len(), found.unrepaired.len(), found.unread.len()), (2, 2, 0), "{found:?}");
        for (failure, path) in found.unrepaired.iter().zip(["blobs/sha256/mine", "records/mine"]) {
            let start = format!("{path} in the store is a directory, not a file; cannot ");
            assert!(failure.text.starts_with(&start) && failure.text.contains("misplaced in the store"), "{failure:?}");
            assert!(failure.remedy.is_some(), "{failure:?}");
        }
        assert_eq!((after.damage.len(), after.unrepaired.len(), images), (2, 0, 0), "{after:?}");
    }

    #[test]
    fn damaged_images_without_a_name_are_named_as_in_the_list_of_images() {
        let (found, ..) = repaired("unnamed", |place, id| {
            let index = place.join("index.json");
            let text = std::fs::read_to_string(&index).unwrap();
            let mut index_of: serde_json::Value = serde_json::from_str(&text).unwrap();
            index_of["manifests"][0].as_object_mut().unwrap().remove("annotations");
            std::fs::write(&index, index_of.to_string()).unwrap();
            std::fs::write(place.join("blobs/sha256").join(id.hex()), "damaged").unwrap();
        });
        assert!(found.damage.iter().any(|text| text.starts_with("image <none> with manifest sha256:")), "{found:?}");
    }

    /// Stores an image without layers, and returns its manifest and ID.
    fn empty_image(store: &Store, work: &Workspace, name: &str) -> (ManifestDigest, ImageId) {
        let staging = Staging::open(store, work).unwrap();
        let (id, size) = staging.put_document(&ImageConfig::empty(&Platform::host())).unwrap();
        let manifest = manifest(descriptor(MediaType::ImageConfig, &id, size), Vec::new());
        let digest = staging.put_document(&manifest).unwrap().0.of_manifest();
        let name: Reference = name.parse().unwrap();
        staging.keep("load", &[digest], &[(digest, Some(name))]).unwrap();
        (digest, id.of_config())
    }

    #[test]
    fn content_added_during_verification_is_not_damage() {
        let place = std::env::temp_dir().join(format!("rbuild-fsck-{}", std::process::id()));
        let store = Store::open(&place).unwrap();
        let mut checked = Checked::default();
        let before = store.gc().check_blobs(false, &mut checked).unwrap();
        let work = Workspace::open(&store).unwrap();
        let (digest, id) = empty_image(&store, &work, "a:1");
        store.records().put_result(&ImageKey::of(b"key"), &digest, &BuildId::of_command("build")).unwrap();
        let problems = |blobs: &CheckedBlobs| {
            let mut checked = Checked::default();
            store.gc().check_images(false, blobs, &mut checked).unwrap();
            checked.damage.len()
        };
        assert_eq!(problems(&before), 0);
        std::fs::write(place.join("blobs/sha256").join(id.hex()), "damaged").unwrap();
        assert_eq!(problems(&before), 1, "its configuration is read again");
        assert_eq!(store.gc().check(false).unwrap().damage.len(), 2);
        drop((work, store));
        std::fs::remove_dir_all(&place).unwrap();
    }
}
