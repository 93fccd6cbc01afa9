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
use crate::partial_blobs;
use crate::store::{Store, all_dirs};
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
    /// True if a repair removed images, or names of images.
    pub lost_images: bool,
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
            Ok(Some(path)) => self.damage.push(format!("{problem}; it was moved to `{path}`")),
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
            self.repaired(problem, || entry.quarantine(store, dir, path));
        } else {
            self.damage.push(problem);
        }
    }
}

/// The state of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BlobState {
    /// Bytes that have the digest.
    Intact,
    /// Bytes that have another digest.
    Damaged,
    /// No file.
    Missing,
    /// Bytes that could not be read.
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

impl ImageState {
    /// Returns the state of an image that contains a blob in this state.
    fn with(blob: &BlobDigest, state: BlobState) -> ImageState {
        match state {
            BlobState::Intact => ImageState::Whole,
            BlobState::Unreadable => ImageState::Unread(format!("its blob {blob} cannot be read")),
            BlobState::Missing => ImageState::Incomplete(format!("its blob {blob} is missing")),
            BlobState::Damaged => ImageState::Incomplete(format!("its blob {blob} is damaged")),
        }
    }

    /// Adds the state of the image `name` to the results. Returns true if the image is incomplete.
    fn report(self, name: &str, checked: &mut Checked) -> bool {
        match self {
            ImageState::Whole => false,
            ImageState::Unread(reason) => {
                let text = format!("image {name} cannot be verified: {reason}");
                checked.unread.push(CheckFailure { text, remedy: None });
                false
            }
            ImageState::Incomplete(reason) => {
                checked.damage.push(format!("image {name} is incomplete: {reason}"));
                true
            }
        }
    }
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

    /// Returns the state of a blob. Verifies a blob that was added since the others were verified.
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
        checked.damage.extend(missing.iter().map(|dir| format!("the store's directory `{dir}` is missing")));
        if repair {
            self.store.create_dirs(&missing)?;
            self.store.remove_unpublished()?;
            sweep(self.store, &self.store.dir("tmp")?)?;
        } else if !missing.is_empty() {
            return Ok(checked);
        }
        let blobs = self.check_blobs(repair, &mut checked)?;
        self.check_partial_blobs(repair, &mut checked)?;
        self.check_images(repair, &blobs, &mut checked)?;
        self.check_documents::<Record>(repair, "records", &mut checked, |r| self.store.lazy_trees().has_tree(&r.tree))?;
        // The result of a removed image remains, and is ignored.
        self.check_documents::<ResultFile>(repair, "results", &mut checked, |r| {
            Ok(blobs.state(&r.manifest.blob()) != BlobState::Damaged)
        })?;
        alone.map_or(Ok(()), ExclusiveLock::end)?;
        Ok(checked)
    }

    /// Verifies that the directories of the store are directories.
    fn check_dirs(&self, repair: bool, checked: &mut Checked) -> Result<()> {
        for path in all_dirs() {
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

    /// Verifies that interrupted downloads can be resumed. Their content cannot be verified.
    fn check_partial_blobs(&self, repair: bool, checked: &mut Checked) -> Result<()> {
        if !self.store.root.exists(partial_blobs::DIR)? {
            return Ok(());
        }
        let dir = self.store.dir(partial_blobs::DIR)?;
        for entry in dir.entries()? {
            if let Some(misplaced) = Misplaced::among_blobs(&dir, &entry)? {
                checked.misplaced(self.store, &dir, partial_blobs::DIR, &misplaced, repair);
                continue;
            }
            match dir.open_name(&entry.name) {
                Err(e) if !e.is_not_found() => {
                    let path = format!("{}/{}", partial_blobs::DIR, entry.name.to_string_lossy());
                    let problem = sentence(&naming(&self.store.root, &path)(e));
                    checked.damaged_file(self.store, &dir, &path, problem, repair);
                }
                _ => {}
            }
        }
        Ok(())
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
        checked.lost_images |= repair && (lost.is_some() || !invalid.is_empty());
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
            let name =
                entry.name.as_ref().map_or_else(|| self.unnamed(&entry.manifest), |n| format!("`{}`", n.familiar()));
            // An image may have many names.
            let state = |m: &ManifestDigest| known.entry(*m).or_insert_with(|| self.image_state(m, blobs)).clone();
            let state = entry.artifact.images().iter().map(state).max().unwrap_or(ImageState::Whole);
            if state.report(&name, checked) {
                broken.push(entry);
            }
        }
        if repair && !broken.is_empty() {
            self.store.images().forget(&broken)?;
            checked.lost_images = true;
        }
        Ok(())
    }

    /// Describes an image without a name by its ID, as `images` lists it, or by its manifest if it
    /// cannot be read.
    fn unnamed(&self, manifest: &ManifestDigest) -> String {
        match self.store.images().image(manifest) {
            Ok(image) => format!("`<none>` with ID {}", image.id.short()),
            Err(_) => format!("`<none>` with manifest {manifest}"),
        }
    }

    fn image_state(&self, manifest: &ManifestDigest, blobs: &CheckedBlobs) -> ImageState {
        let image = match self.store.images().image(manifest) {
            Ok(image) => image,
            Err(StoreError::Kernel(e)) if !e.is_not_found() => return ImageState::Unread(sentence(&e)),
            Err(e) => return ImageState::Incomplete(sentence(&e)),
        };
        let Ok(layers) = image.layers() else {
            let reason = "its manifest and configuration have different numbers of layers";
            return ImageState::Incomplete(reason.into());
        };
        let needed = layers.iter().filter_map(|(layer, _)| digest_of(layer).ok());
        let state = |blob: BlobDigest| ImageState::with(&blob, blobs.state(&blob));
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
                Ok(Some(document)) if !whole(&document)? => format!("`{path}` in the store refers to missing content"),
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
mod tests;
