//! Verification and repair of the store's content.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::Read;
use std::sync::Arc;

use rbuild_image::{BlobDigest, ManifestDigest, digest_of};
use rbuild_linux::RootDir;

use crate::artifact::NamedImage;
use crate::cache::records::{Record, ResultFile};
use crate::directories::all_dirs;
use crate::error::{Result, StoreError, naming};
use crate::exclusive_lock::ExclusiveLock;
use crate::gc::damage::{BlobFault, CheckFailure, FoundDamage, ImageFault, ImageLabel, StoreDamage};
use crate::gc::misplaced::Misplaced;
use crate::gc::prune::Gc;
use crate::images::Image;
use crate::index_entries::{InvalidEntry, digest, parts_of};
use crate::partial_blobs;
use crate::store::Store;
use crate::workspace::sweep;

/// Directory of the blobs.
const BLOBS: &str = "blobs/sha256";

/// The result of [`Gc::check`].
#[derive(Debug, Default)]
pub struct Checked {
    /// Number of blobs.
    pub blobs: u64,
    /// Total size of the blobs in bytes.
    pub bytes: u64,
    /// Number of index entries.
    pub images: u64,
    /// Number of cache documents.
    pub records: u64,
    /// Damaged content. A repair has removed it.
    pub damage: Vec<FoundDamage>,
    /// True if a repair removed images, or names of images.
    pub lost_images: bool,
    /// Damage that could not be removed.
    pub unrepaired: Vec<CheckFailure>,
    /// Content that could not be read and so was not verified. It may be intact and is never
    /// removed.
    pub unread: Vec<CheckFailure>,
}

impl Checked {
    /// Repairs damage by calling `remove` and records it, as unrepaired if that fails. `remove`
    /// returns a path if it moved the damaged entry there instead of removing it.
    fn repaired(&mut self, damage: StoreDamage, remove: impl FnOnce() -> Result<Option<String>>) {
        match remove() {
            Ok(moved_to) => self.damage.push(FoundDamage { damage, moved_to }),
            Err(error) => self.unrepaired.push(CheckFailure::Unrepaired { damage, error }),
        }
    }

    /// Records the damage of a file and, with `repair`, removes the file.
    fn damaged_file(&mut self, store: &Store, dir: &RootDir, path: &str, damage: StoreDamage, repair: bool) {
        if !repair {
            self.damage.push(damage.into());
            return;
        }
        let name = path.rsplit('/').next().unwrap_or(path);
        self.repaired(damage, || {
            dir.remove_file(OsStr::new(name)).map_err(naming(&store.root, path))?;
            Ok(None)
        });
    }

    /// Records a misplaced entry of the directory with this path. With `repair`, moves it to
    /// `misplaced` or removes it.
    fn misplaced(&mut self, store: &Store, dir: &RootDir, path: &str, entry: &Misplaced, repair: bool) {
        let damage = entry.damage(path);
        if repair {
            self.repaired(damage, || entry.quarantine(store, dir, path));
        } else {
            self.damage.push(damage.into());
        }
    }
}

/// The state of a blob.
type BlobState = std::result::Result<(), BlobFault>;

/// The state of an image.
#[derive(Debug, Clone)]
enum ImageState {
    Whole,
    /// A part could not be read.
    Unread(ImageFault),
    /// A part is missing or damaged.
    Incomplete(ImageFault),
}

impl ImageState {
    /// Returns the state of an image that contains a blob in this state.
    fn with(blob: BlobDigest, state: BlobState) -> ImageState {
        match state {
            Ok(()) => ImageState::Whole,
            Err(fault @ BlobFault::Unreadable) => ImageState::Unread(ImageFault::Blob { blob, fault }),
            Err(fault) => ImageState::Incomplete(ImageFault::Blob { blob, fault }),
        }
    }

    /// Returns the state of an image with a document that could not be read.
    fn of_document(e: StoreError) -> ImageState {
        match e {
            e @ StoreError::Kernel(_) if !e.is_not_found() => ImageState::Unread(ImageFault::Document(Arc::new(e))),
            e => ImageState::Incomplete(ImageFault::Document(Arc::new(e))),
        }
    }

    /// Returns the worst of the states of an image's parts: the first one, if there are several.
    fn worst(states: impl Iterator<Item = ImageState>) -> ImageState {
        states.fold(ImageState::Whole, |worst, state| match (&worst, &state) {
            (ImageState::Whole, _) | (ImageState::Unread(_), ImageState::Incomplete(_)) => state,
            _ => worst,
        })
    }

    /// Adds the state of the image to the results. Returns true if the image is incomplete.
    fn report(self, image: ImageLabel, checked: &mut Checked) -> bool {
        match self {
            ImageState::Whole => false,
            ImageState::Unread(fault) => {
                checked.unread.push(CheckFailure::UnverifiedImage { image, fault });
                false
            }
            ImageState::Incomplete(fault) => {
                checked.damage.push(StoreDamage::IncompleteImage { image, fault }.into());
                true
            }
        }
    }
}

/// Returns the digest that a file among the blobs is named after.
fn blob_named(name: &OsStr) -> Option<BlobDigest> {
    format!("sha256:{}", name.to_str()?).parse().ok()
}

/// The blobs of the store, as far as they have been verified. Other processes add blobs while they
/// are read.
struct CheckedBlobs {
    dir: RootDir,
    /// The store, as messages name it.
    place: Arc<str>,
    states: RefCell<HashMap<BlobDigest, BlobState>>,
}

impl CheckedBlobs {
    fn of(store: &Store) -> Result<CheckedBlobs> {
        Ok(CheckedBlobs { dir: store.dir(BLOBS)?, place: store.place(), states: RefCell::default() })
    }

    /// Returns the state of a blob. Verifies a blob that was added since the others were verified.
    fn state(&self, blob: &BlobDigest) -> BlobState {
        *self.states.borrow_mut().entry(*blob).or_insert_with_key(|blob| match self.digest_of(blob) {
            Ok((found, _)) if found == *blob => Ok(()),
            Ok(_) => Err(BlobFault::Damaged),
            Err(e) if e.is_not_found() => Err(BlobFault::Missing),
            Err(_) => Err(BlobFault::Unreadable),
        })
    }

    /// Returns the digest of a blob's bytes, and their number.
    fn digest_of(&self, blob: &BlobDigest) -> Result<(BlobDigest, u64)> {
        let read = self.read(OsStr::new(&blob.hex()));
        read.map_err(|e| e.within(format!("blob {blob} in {}", self.place)).into())
    }

    fn read(&self, name: &OsStr) -> rbuild_linux::Result<(BlobDigest, u64)> {
        let mut file = self.dir.open_name(name)?;
        let (mut hasher, mut bytes) = (rbuild_image::Hasher::new(), 0);
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok((hasher.finish(), bytes)),
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
        checked.damage.extend(missing.iter().map(|dir| StoreDamage::MissingDir(dir).into()));
        if repair {
            self.store.create_dirs(&missing)?;
            self.store.remove_unpublished()?;
            sweep(self.store, &self.store.dir("tmp")?, |_| 0)?;
        } else if !missing.is_empty() {
            return Ok(checked);
        }
        let blobs = self.check_blobs(repair, &mut checked)?;
        self.check_partial_blobs(repair, &mut checked)?;
        self.check_images(repair, &blobs, &mut checked)?;
        self.check_documents::<Record>(repair, "records", &mut checked, |r| self.store.lazy_trees().has_tree(&r.tree))?;
        // The result of a removed image remains, and is ignored.
        self.check_documents::<ResultFile>(repair, "results", &mut checked, |r| {
            Ok(blobs.state(&r.manifest.blob()) != Err(BlobFault::Damaged))
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
            let blob = blob_named(&entry.name);
            if let Some(misplaced) = Misplaced::among_blobs(&blobs.dir, &entry)? {
                checked.misplaced(self.store, &blobs.dir, BLOBS, &misplaced, repair);
                blobs.states.get_mut().extend(blob.map(|blob| (blob, Err(BlobFault::Damaged))));
                continue;
            }
            // Another process removed an entry that is not a blob.
            let Some(blob) = blob else { continue };
            checked.blobs += 1;
            let state = match blobs.digest_of(&blob) {
                Ok((found, bytes)) => {
                    checked.bytes += bytes;
                    if found == blob {
                        Ok(())
                    } else {
                        let damage = StoreDamage::CorruptBlob { blob, found };
                        let path = format!("{BLOBS}/{}", blob.hex());
                        checked.damaged_file(self.store, &blobs.dir, &path, damage, repair);
                        Err(BlobFault::Damaged)
                    }
                }
                // Another process removed it.
                Err(e) if e.is_not_found() => Err(BlobFault::Missing),
                Err(e) => {
                    checked.unread.push(CheckFailure::Unread(e));
                    Err(BlobFault::Unreadable)
                }
            };
            blobs.states.get_mut().insert(blob, state);
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
                    let damage = StoreDamage::UnusableFile(naming(&self.store.root, &path)(e));
                    checked.damaged_file(self.store, &dir, &path, damage, repair);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn check_images(&self, repair: bool, blobs: &CheckedBlobs, checked: &mut Checked) -> Result<()> {
        let (entries, invalid, lost) = match self.store.images().salvage() {
            Ok((entries, invalid)) => (entries, invalid, None),
            Err(e @ StoreError::Damaged { .. }) => (Vec::new(), Vec::new(), Some(StoreDamage::InvalidIndex(e))),
            Err(e) if e.is_not_found() => (Vec::new(), Vec::new(), Some(StoreDamage::MissingIndex)),
            Err(e) => return Err(e),
        };
        let named = self.store.images().entries(&entries)?;
        if repair && (lost.is_some() || !invalid.is_empty()) {
            self.store.images().replace_index(entries)?;
        }
        checked.lost_images |= repair && (lost.is_some() || !invalid.is_empty());
        checked.damage.extend(lost.map(FoundDamage::from));
        let invalid =
            invalid.into_iter().map(|InvalidEntry { name, source }| StoreDamage::InvalidEntry { name, source });
        checked.damage.extend(invalid.map(FoundDamage::from));
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
            let label = entry.name.clone().map_or_else(|| self.unnamed(&entry.manifest), ImageLabel::Named);
            // An image may have many names.
            let state = |m: &ManifestDigest| known.entry(*m).or_insert_with(|| self.image_state(m, blobs)).clone();
            let images = ImageState::worst(entry.artifact.images().iter().map(state));
            let attachments = entry.artifact.attachments().iter().map(|m| self.attachment_state(m, blobs));
            let with = |digest: &ManifestDigest| ImageState::with(digest.blob(), blobs.state(&digest.blob()));
            let indexes = entry.artifact.indexes().iter().map(with);
            if ImageState::worst(std::iter::once(images).chain(attachments).chain(indexes)).report(label, checked) {
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
    fn unnamed(&self, manifest: &ManifestDigest) -> ImageLabel {
        match self.store.images().image(manifest) {
            Ok(image) => ImageLabel::Unnamed(image.id),
            Err(_) => ImageLabel::Unread(*manifest),
        }
    }

    /// Returns the state of an attestation or another artifact of an index.
    fn attachment_state(&self, manifest: &ManifestDigest, blobs: &CheckedBlobs) -> ImageState {
        let document = self.store.blobs().read_document(&manifest.blob());
        match document.and_then(|document| parts_of(&document)) {
            Ok(parts) => ImageState::worst(parts.into_iter().map(|blob| ImageState::with(blob, blobs.state(&blob)))),
            Err(e) => ImageState::of_document(e),
        }
    }

    fn image_state(&self, manifest: &ManifestDigest, blobs: &CheckedBlobs) -> ImageState {
        let image = match self.store.images().image(manifest) {
            Ok(image) => image,
            Err(e) => return ImageState::of_document(e),
        };
        let Ok(layers) = image.layers() else { return ImageState::Incomplete(ImageFault::LayerCounts) };
        let needed = layers.iter().filter_map(|(layer, _)| digest_of(layer).ok());
        let state = |blob: BlobDigest| ImageState::with(blob, blobs.state(&blob));
        ImageState::worst(needed.chain([image.id.blob(), manifest.blob()]).map(state))
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
            let damage = match self.store.read_if_any::<T>(&path) {
                Ok(Some(document)) if !whole(&document)? => StoreDamage::DanglingDocument { path: path.clone() },
                // Intact, or removed since it was listed.
                Ok(_) => continue,
                Err(e @ StoreError::Damaged { .. }) => StoreDamage::UnusableFile(e),
                Err(e) => {
                    checked.unread.push(CheckFailure::Unread(e));
                    continue;
                }
            };
            checked.damaged_file(self.store, &handle, &path, damage, repair);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
