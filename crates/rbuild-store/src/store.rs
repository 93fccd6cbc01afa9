//! The open store: its format, directories and locks.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rbuild_image::ManifestDigest;
use rbuild_layer::{CancelCheck, Limits};
use rbuild_linux::{
    Conflict, DirEntry, Inode, KeyLock, LockKind, OwnerMode, OwnerRecords, RootDir, UidGid, clock, described,
    is_unpublished, write_atomic, write_durable,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::directories::{DIRS, DIRS_OF_DOCUMENTS, OWNER_KEY, STEPS, refuse_other_directory, restrict_directories};
use crate::durability::Durability;
use crate::error::{Result, StoreError, naming};
use crate::incoming_blobs::IncomingBlobs;
use crate::keys;
use crate::lock_waits::{LockWaiting, Wait, Waits, open_lock};
use crate::modes;
use crate::packing::PackingWatch;
use crate::sentinel;
use crate::trees::id::TreeId;

/// Format version, incremented when older programs cannot read what newer ones write.
const VERSION: u32 = 1;

/// Features that every program using the store must support. With `keyed-owners`, the attribute of
/// recorded owners is named by a key.
const FEATURES: [&str; 1] = ["keyed-owners"];

/// Maximum size of a JSON document of the store in bytes.
const MAX_JSON: u64 = 64 << 20;

#[derive(Serialize, Deserialize)]
struct Format {
    version: u32,
    /// Features that other programs may ignore. `read_only_compatible` features must be known for
    /// writing, `incompatible` ones for any use. A [`Store`] is always one for writing.
    compatible: Vec<String>,
    read_only_compatible: Vec<String>,
    incompatible: Vec<String>,
    /// Unknown fields, which are preserved.
    #[serde(flatten)]
    others: serde_json::Map<String, serde_json::Value>,
}

/// The part of `format.json` that every version has.
#[derive(Deserialize)]
struct FormatVersion {
    version: u32,
}

/// An open store. Holds its shared lock until it is dropped.
pub struct Store {
    pub(crate) root: RootDir,
    path: PathBuf,
    pub(crate) lock: File,
    boot: String,
    limits: Limits,
    owners: OwnerMode,
    /// Highest user and group ID of the builder; `None` if this process is the builder.
    builder_ids: Option<UidGid>,
    /// True if the builder uses device nodes in trees. Other builders use placeholder files.
    takes_devices: bool,
    /// Trees of which this process knows whether they have a note about placeholders.
    pub(crate) placeholder_notes: Mutex<HashMap<TreeId, bool>>,
    pub(crate) waits: Waits,
    /// True if documents were written that are valid after a reboot only once they are synced.
    pub(crate) unsynced: AtomicBool,
    /// Blobs that another process is downloading.
    pub(crate) incoming: Arc<IncomingBlobs>,
    packing: Option<Arc<dyn PackingWatch>>,
    /// True if a layer of a cache could not be unpacked.
    pub(crate) gave_up_layers: AtomicBool,
}

impl Store {
    /// Opens the store at `path`, creating it if necessary.
    ///
    /// # Errors
    ///
    /// Fails if the directory cannot be used, if its format is newer than this program, or if a
    /// lock is held by another program.
    pub fn open(path: &Path) -> Result<Store> {
        Store::open_with(path, LockWaiting::default())
    }

    /// Opens the store with other settings for waiting on locks.
    ///
    /// # Errors
    ///
    /// Fails as [`Store::open`] does.
    #[tracing::instrument(target = "store", name = "open", level = "debug", skip_all, fields(path = %path.display()))]
    pub fn open_with(path: &Path, waiting: LockWaiting) -> Result<Store> {
        let unusable = |source| StoreError::Unusable { path: path.to_path_buf(), source };
        let failed = |e: rbuild_linux::Error| unusable(std::io::Error::new(e.kind(), e.without_object()));
        let unwritten = |e| match e {
            StoreError::Kernel(e) => failed(e),
            other => other,
        };
        refuse_store_of_user(path, rbuild_linux::credentials::own_ids().uid)?;
        std::fs::create_dir_all(path).map_err(unusable)?;
        let root = RootDir::open(path).map_err(failed)?.named(format!("the store {}", rbuild_linux::quoted(path)));
        if !root.exists("format.json")? {
            refuse_other_directory(&root, path)?;
            create(&root, path).map_err(unwritten)?;
        }
        let format = read_format(&root, path)?;
        restrict_directories(&root)?;
        let lock = open_lock(path, "lock").map_err(unusable_file(path, "lock"))?;
        let waits = Waits::new(waiting);
        waits.lock("lock", &lock, LockKind::Shared)?;
        if FEATURES.iter().any(|feature| !format.incompatible.iter().any(|known| known == feature)) {
            // Content of earlier versions stays and is used as far as it is still valid; their
            // trees no longer are.
            write_format(&root, format).map_err(unwritten)?;
        }
        let records = OwnerRecords::new(OwnerMode::Given, keys::key(&root, OWNER_KEY)?);
        Ok(Store {
            root: root.with_owners(&records),
            path: path.to_path_buf(),
            lock,
            boot: clock::boot_id(),
            limits: Limits::default(),
            owners: OwnerMode::Given,
            builder_ids: None,
            takes_devices: false,
            placeholder_notes: Mutex::default(),
            waits,
            unsynced: AtomicBool::new(false),
            incoming: Arc::default(),
            packing: None,
            gave_up_layers: AtomicBool::new(false),
        })
    }

    /// Returns the path of the store.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the identity of the store's directory.
    ///
    /// # Errors
    ///
    /// Fails if its metadata cannot be read.
    pub fn inode(&self) -> Result<Inode> {
        Ok(self.root.stat_self()?.inode())
    }

    /// Returns true if a layer of a cache could not be unpacked. Its step is no longer a hit.
    pub fn gave_up_layers(&self) -> bool {
        self.gave_up_layers.load(Ordering::Relaxed)
    }

    /// Returns the same store under another path, with `owners` as the representation of owners.
    /// Both share the lock.
    ///
    /// # Errors
    ///
    /// Fails if the path cannot be opened.
    pub fn at_path(&self, path: &Path, owners: OwnerMode) -> Result<Store> {
        let lock = self.lock.try_clone().map_err(|e| rbuild_linux::Error::new("dup", path, e))?;
        let root = RootDir::open(path)?.named(self.place()).with_owners(&self.owner_records().with_mode(owners));
        let path = path.to_path_buf();
        let (boot, waits, incoming) = (self.boot.clone(), self.waits.clone(), self.incoming.clone());
        let (packing, unsynced) = (self.packing.clone(), AtomicBool::new(false));
        let placeholder_notes = Mutex::default();
        let gave_up_layers = AtomicBool::new(false);
        Ok(Store {
            root,
            path,
            lock,
            boot,
            placeholder_notes,
            waits,
            incoming,
            packing,
            unsynced,
            gave_up_layers,
            ..*self
        })
    }

    /// Returns the store with other limits on incoming archives.
    pub fn with_limits(self, limits: Limits) -> Store {
        Store { limits, ..self }
    }

    /// Returns the store with that representation of owners.
    ///
    /// # Errors
    ///
    /// Fails with [`StoreError::LostMetadata`] if existing trees have lost their owners.
    pub fn with_owners(self, owners: OwnerMode) -> Result<Store> {
        let root = self.root.try_clone()?.with_owners(&self.owner_records().with_mode(owners));
        let store = Store { root, owners, builder_ids: None, ..self };
        sentinel::check(&store.root, owners)?;
        Ok(store)
    }

    /// Returns the store with the representation of owners that a builder in another process uses,
    /// for lookups of its results. The builder maps all user and group IDs up to `highest_ids`;
    /// `None` stands for those of this process. The owners of existing files are not read.
    pub fn with_builder_owners(self, owners: OwnerMode, highest_ids: Option<UidGid>) -> Store {
        Store { owners, builder_ids: highest_ids, ..self }
    }

    /// Returns the store for a builder that uses device nodes in trees if `takes_devices` is true.
    /// In a user namespace, they can neither be created nor copied up by an overlay.
    pub fn with_device_nodes(self, takes_devices: bool) -> Store {
        Store { takes_devices, ..self }
    }

    /// Returns the store with blobs that another process is downloading. They are unpacked during
    /// their download.
    pub fn with_incoming(self, incoming: Arc<IncomingBlobs>) -> Store {
        Store { incoming, ..self }
    }

    /// Returns the store with a receiver for the layers of the result that are packed.
    pub fn announcing(self, packing: Arc<dyn PackingWatch>) -> Store {
        Store { packing: Some(packing), ..self }
    }

    /// Returns the receiver for the layers of the result that are packed.
    pub fn packing_watch(&self) -> Option<&dyn PackingWatch> {
        self.packing.as_deref()
    }

    /// Waits until an image is in the store, if another process is downloading it.
    ///
    /// # Errors
    ///
    /// Fails with [`StoreError::DownloadFailed`] if it cannot be downloaded, or if the build is
    /// stopped.
    pub fn wait_for_image(&self, image: &ManifestDigest) -> Result<()> {
        self.incoming.wait_for_image(image, self.stop())
    }

    /// Returns the store with a function that cancels work: once `stop` returns true, unpacking and
    /// waits for locks end with an error, which for waits is [`StoreError::Canceled`].
    pub fn with_stop(self, stop: impl Fn() -> bool + Send + Sync + 'static) -> Store {
        Store { waits: Waits { stop: Arc::new(stop), ..self.waits }, ..self }
    }

    /// Returns the store with another receiver for messages about waits.
    pub fn with_notices(self, notify: impl Fn(&str) + Send + Sync + 'static) -> Store {
        let waiting = LockWaiting { notify: Arc::new(notify), ..self.waits.waiting };
        Store { waits: Waits { waiting, ..self.waits }, ..self }
    }

    /// Returns the function that cancels work for this store.
    pub(crate) fn stop(&self) -> CancelCheck<'_> {
        &*self.waits.stop
    }

    /// Waits for the lock on a key of `steps.lock`.
    #[tracing::instrument(target = "store", name = "lock", level = "debug", skip_all)]
    pub(crate) fn wait_for_key(&self, key: [u8; 8]) -> Result<KeyLock> {
        let mut wait = Wait::for_key(&self.waits, &self.lock);
        let mut ended = Ok(());
        let lock = KeyLock::wait(self.open_lock(STEPS)?, key, &mut |file, conflict| {
            ended = wait.go_on(file, Some(conflict));
            ended.is_err()
        })?;
        ended.and(lock.ok_or(StoreError::Canceled))
    }

    /// Takes the lock on a key of `steps.lock`, waiting while another program holds it. Returns
    /// `None` if another build holds it.
    pub(crate) fn try_key(&self, key: [u8; 8], kind: LockKind) -> Result<Option<KeyLock>> {
        let mut wait = Wait::for_key(&self.waits, &self.lock);
        loop {
            let conflict = match KeyLock::try_now(self.open_lock(STEPS)?, key, kind)? {
                Ok(lock) => return Ok(Some(lock)),
                Err(Conflict::Key) => return Ok(None),
                Err(conflict @ Conflict::Foreign) => conflict,
            };
            wait.go_on(&self.open_lock(STEPS)?, Some(conflict))?;
            std::thread::sleep(Duration::from_millis(16));
        }
    }

    /// Takes the exclusive lock of a file.
    pub(crate) fn lock_file(&self, name: &'static str) -> Result<File> {
        let file = self.open_lock(name)?;
        self.waits.lock(name, &file, LockKind::Exclusive)?;
        Ok(file)
    }

    /// Returns true if the builder can create files with any owner up to these IDs.
    pub(crate) fn can_own_up_to(&self, highest: UidGid) -> bool {
        if self.owners == OwnerMode::Recorded {
            return true;
        }
        let ids = self.builder_ids.or_else(rbuild_linux::mapped_without_holes);
        ids.is_none_or(|most| highest.uid <= most.uid && highest.gid <= most.gid)
    }

    pub(crate) fn owners(&self) -> OwnerMode {
        self.owners
    }

    pub(crate) fn takes_devices(&self) -> bool {
        self.takes_devices
    }

    /// Returns the records that determine the owners of the store's files, and of other files that
    /// this process reads or creates for it.
    pub fn owner_records(&self) -> &OwnerRecords {
        self.root.owners().expect("the root of a store has records of owners")
    }

    /// Returns the limits on incoming archives.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    pub(crate) fn boot(&self) -> &str {
        &self.boot
    }

    /// Releases the shared lock, for this process and those that were forked from it. For commands
    /// that last long, and for containers, which keep the trees that they use in another way.
    ///
    /// # Errors
    ///
    /// Fails if the kernel does not release the lock.
    pub fn release_lock(self) -> Result<()> {
        let released = self.lock.unlock();
        Ok(released.map_err(|e| rbuild_linux::Error::new("flock", described("the lock of the store"), e))?)
    }

    /// Acquires the shared lock again, after a process that was forked from this one has released
    /// it.
    ///
    /// # Errors
    ///
    /// Fails if another process holds the exclusive lock for too long.
    pub fn lock_again(&self) -> Result<()> {
        self.lock_shared()
    }

    /// Returns to the shared lock from the exclusive one.
    pub(crate) fn lock_shared(&self) -> Result<()> {
        self.waits.lock("lock", &self.lock, LockKind::Shared)
    }

    pub(crate) fn open_lock(&self, name: &str) -> Result<File> {
        open_lock(&self.path, name).map_err(naming(&self.root, name))
    }

    /// Returns the name of the store in error messages. Users know it by the path under which it
    /// was opened first.
    pub(crate) fn place(&self) -> Arc<str> {
        self.root.place().cloned().expect("the root of a store has a name")
    }

    /// Returns the error of a write to files of that kind on a full disk.
    pub(crate) fn full(&self, kind: &str, source: io::Error) -> StoreError {
        rbuild_linux::Error::new("write", self.path(), source).within(format!("{kind} in {}", self.place())).into()
    }

    /// Opens a directory of the store. Error messages about its files name their kind.
    pub(crate) fn dir(&self, path: impl AsRef<Path>) -> Result<RootDir> {
        let path = path.as_ref();
        let kind = match path.iter().next().and_then(OsStr::to_str) {
            Some("trees") => "the snapshots",
            Some("blobs" | "layers") => "the layers",
            Some("mounts") => "the cache mounts",
            _ => return Ok(self.root.sub(path)?),
        };
        let place: Arc<str> = format!("{kind} in {}", self.place()).into();
        Ok(self.root.sub(path).map_err(|e| e.within(place.clone()))?.named(place))
    }

    /// Lists the documents of a directory, without temporary files of running or killed processes.
    pub(crate) fn documents(&self, dir: &str) -> Result<Vec<DirEntry>> {
        let mut entries = self.dir(dir)?.entries()?;
        entries.retain(|entry| !is_unpublished(&entry.name));
        Ok(entries)
    }

    /// Returns the directories of the store that do not exist.
    pub(crate) fn missing_dirs(&self) -> Result<Vec<&'static str>> {
        let mut missing = Vec::new();
        for dir in DIRS {
            if !self.root.exists(dir)? {
                missing.push(dir);
            }
        }
        Ok(missing)
    }

    /// Creates directories that [`Store::missing_dirs`] returned.
    pub(crate) fn create_dirs(&self, missing: &[&str]) -> Result<()> {
        for dir in missing {
            self.root.create_dir_all(dir, modes::dir(), None, |_| ())?;
        }
        restrict_directories(&self.root)
    }

    /// Removes temporary files of killed processes. The caller holds the exclusive lock.
    pub(crate) fn remove_unpublished(&self) -> Result<()> {
        for dir in DIRS_OF_DOCUMENTS {
            let dir = match self.dir(dir) {
                Err(e) if e.is_not_found() => continue,
                other => other?,
            };
            for entry in dir.entries()?.into_iter().filter(|entry| is_unpublished(&entry.name)) {
                dir.remove_file(&entry.name)?;
            }
        }
        Ok(())
    }

    pub(crate) fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        read_json(&self.root, path)
    }

    /// Reads a document, or returns `None` if it does not exist.
    pub(crate) fn read_if_any<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>> {
        match self.read(path) {
            Ok(value) => Ok(Some(value)),
            Err(StoreError::Kernel(e)) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Reads a dispensable document. Returns `None` if it does not exist, or if a power failure
    /// left it unreadable.
    pub(crate) fn read_if_whole<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>> {
        match self.read_if_any(path) {
            Err(StoreError::Damaged { .. }) => Ok(None),
            other => other,
        }
    }

    /// Reads the dispensable documents of a directory that may not exist, with the names of their
    /// files. Omits those that a power failure left unreadable.
    pub(crate) fn whole_documents<T: DeserializeOwned>(&self, dir: &str) -> Result<Vec<(OsString, T)>> {
        if !self.root.exists(dir)? {
            return Ok(Vec::new());
        }
        let mut documents = Vec::new();
        for entry in self.documents(dir)? {
            let document = self.read_if_whole(&format!("{dir}/{}", entry.name.to_string_lossy()))?;
            documents.extend(document.map(|document| (entry.name, document)));
        }
        Ok(documents)
    }

    /// Removes a document that another process may have removed.
    pub(crate) fn remove_note(&self, dir: &str, file: &OsStr) -> Result<()> {
        match self.dir(dir)?.remove_file(file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// Writes a dispensable document.
    pub(crate) fn write<T: Serialize>(&self, dir: &str, name: &str, value: &T) -> Result<()> {
        let written = write_atomic(&self.dir(dir)?, OsStr::new(name), &document(name, value)?, modes::file());
        written.map_err(naming(&self.root, own_name(dir, name)))
    }

    /// Writes a document that must survive these events. Everything that it refers to must have
    /// survived them before.
    pub(crate) fn write_with<T: Serialize>(
        &self,
        dir: &str,
        name: &str,
        value: &T,
        durability: Durability,
    ) -> Result<()> {
        match durability {
            Durability::Crash => self.write(dir, name, value),
            Durability::PowerFailure => self.write_durable(dir, name, value),
        }
    }

    /// Writes a document that must survive a power failure. Everything it refers to must have been
    /// synced before.
    pub(crate) fn write_durable<T: Serialize>(&self, dir: &str, name: &str, value: &T) -> Result<()> {
        let written = write_durable(&self.dir(dir)?, OsStr::new(name), &document(name, value)?, modes::file());
        written.map_err(naming(&self.root, own_name(dir, name)))
    }
}

/// Returns the part of a document's path for messages: its directory, because documents in
/// directories are named by digests.
fn own_name<'a>(dir: &'a str, name: &'a str) -> &'a str {
    if dir == "." { name } else { dir }
}

pub(crate) fn document<T: Serialize>(name: &str, value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(StoreError::damaged(name))
}

/// An index without images.
pub(crate) const EMPTY_INDEX: &[u8] =
    br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;

/// Returns a conversion for the error of a file without which the store at `path` cannot be used.
fn unusable_file(path: &Path, name: &str) -> impl FnOnce(rbuild_linux::Error) -> StoreError {
    move |e| {
        let source = std::io::Error::new(e.kind(), e.within(format!("`{name}`")));
        StoreError::Unusable { path: path.to_path_buf(), source }
    }
}

/// Fails if root is about to use a store that another user made. Files that root adds to it could
/// not be changed by that user, and root maps the owners of its trees to other IDs.
fn refuse_store_of_user(path: &Path, caller: u32) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    // A directory of another user in which root makes a store is a store of root.
    let Ok(found) = std::fs::symlink_metadata(path.join("format.json")) else { return Ok(()) };
    if caller != 0 || found.uid() == caller {
        return Ok(());
    }
    let owner = rbuild_linux::credentials::user_name(found.uid()).unwrap_or_else(|| found.uid().to_string());
    Err(StoreError::OfUser { path: path.to_path_buf(), owner })
}

fn create(root: &RootDir, path: &Path) -> Result<()> {
    for dir in DIRS {
        root.create_dir_all(dir, modes::dir(), None, |_| ())?;
    }
    if !root.exists("index.json")? {
        write_durable(root, OsStr::new("index.json"), EMPTY_INDEX, modes::file())?;
    }
    write_durable(root, OsStr::new("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#, modes::file())
        .map_err(unusable_file(path, "oci-layout"))?;
    // Last: its presence implies that the rest exists.
    let (compatible, read_only_compatible, incompatible) = Default::default();
    write_format(
        root,
        Format { version: VERSION, compatible, read_only_compatible, incompatible, others: Default::default() },
    )
}

/// Reads the format of the store at `path`. Fails if this program does not support it.
fn read_format(root: &RootDir, path: &Path) -> Result<Format> {
    let bytes = root.read("format.json", MAX_JSON).map_err(naming(root, "format.json"))?;
    let path = || path.to_path_buf();
    let damaged = |e: serde_json::Error| StoreError::NoFormat { path: path(), source: e.into() };
    // Another version may have other fields.
    let FormatVersion { version } = serde_json::from_slice(&bytes).map_err(damaged)?;
    if version == 0 {
        return Err(StoreError::NoFormat { path: path(), source: "there is no version 0".into() });
    }
    if version != VERSION {
        return Err(StoreError::Newer { path: path(), version, features: String::new() });
    }
    let format: Format = serde_json::from_slice(&bytes).map_err(damaged)?;
    let required = format.incompatible.iter().chain(&format.read_only_compatible);
    let unknown = required.map(String::as_str).filter(|feature| !FEATURES.contains(feature));
    match unknown.collect::<Vec<_>>() {
        unknown if unknown.is_empty() => Ok(format),
        unknown => Err(StoreError::Newer { path: path(), version, features: unknown.join(", ") }),
    }
}

/// Writes the format with all [`FEATURES`]. Other entries are kept.
fn write_format(root: &RootDir, mut format: Format) -> Result<()> {
    for feature in FEATURES.map(String::from) {
        if !format.incompatible.contains(&feature) {
            format.incompatible.push(feature);
        }
    }
    let written = write_durable(root, OsStr::new("format.json"), &document("format.json", &format)?, modes::file());
    written.map_err(naming(root, "format.json"))
}

fn read_json<T: DeserializeOwned>(root: &RootDir, path: &str) -> Result<T> {
    let bytes = root.read(path, MAX_JSON).map_err(naming(root, path))?;
    serde_json::from_slice(&bytes).map_err(StoreError::damaged(path))
}

#[cfg(test)]
mod tests;
