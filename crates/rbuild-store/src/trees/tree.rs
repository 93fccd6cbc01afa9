//! File trees of steps and layers.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use rbuild_image::{BlobDigest, Descriptor, DiffId};
use rbuild_layer::{LayerError, LowerRefs, TarEntry, Unpacked, Unpacking, marks_opaque, unpack_some};
use rbuild_linux::RootDir;
use rbuild_linux::parallel::{cores, try_map};
use serde::{Deserialize, Serialize};

use crate::contents::{compare, compare_content};
use crate::error::{Result, StoreError};
use crate::ids::{BuildId, ResultId};
use crate::images::Image;
use crate::incoming_blobs::{IncomingBlob, retry_restarted};
use crate::index_entries::digest;
use crate::modes;
use crate::once::{Lock, Once};
use crate::session::Session;
use crate::store::Store;
use crate::trees::id::{TreeId, digest_in, document_of};
use crate::trees::notes::{CHANGES_NOTE, LOWER_REFS};
use crate::workspace::Workspace;

/// File next to a copy's tree that lists the sources of its files. These files may be hard links to
/// those of another copy.
pub const LISTING: &str = "listing";

/// File next to a copy's tree with the inodes and sizes of its files.
pub(crate) const INODES: &str = "files";

/// Maximum size of a note in bytes.
const MAX_NOTE: u64 = 1 << 30;

#[derive(Serialize, Deserialize)]
struct LayerFile {
    tree: TreeId,
    boot: String,
    build: BuildId,
}

/// A tree that has not been published.
pub struct NewTree {
    /// The path of its directory in the workspace.
    pub path: PathBuf,
    /// The directory, which contains the files in `fs`, and notes.
    pub dir: RootDir,
}

/// The digests of a layer.
#[derive(Clone, Copy)]
pub(crate) struct LayerDigests {
    /// That of its blob.
    pub blob: BlobDigest,
    /// That of its uncompressed content.
    pub diff_id: DiffId,
}

/// A layer that has been unpacked into a workspace.
struct UnpackedLayer {
    /// Path of the new tree.
    path: PathBuf,
    /// Uncompressed size of the layer in bytes.
    size: u64,
}

/// The trees of a store.
#[derive(Clone, Copy)]
pub struct Trees<'s> {
    pub(crate) store: &'s Store,
}

impl Trees<'_> {
    /// Converts the error of a write to a tree on a full disk. The result names the store even if
    /// `e` does not.
    pub fn full(&self, e: impl Into<StoreError>) -> StoreError {
        match e.into() {
            StoreError::Kernel(e) | StoreError::Layer(LayerError::Kernel(e)) => match e.errno() {
                Some(errno) if e.object().place().is_none() => {
                    self.store.full("the snapshots", io::Error::from_raw_os_error(errno))
                }
                _ => e.into(),
            },
            StoreError::Layer(LayerError::Io { source, .. }) => self.store.full("the snapshots", source),
            e => e,
        }
    }

    /// Returns the name of a step's tree with this store's kind of owners, unless the tree is
    /// stored as changes. The name is unique if the result is.
    pub(crate) fn step_tree(&self, result: &ResultId) -> TreeId {
        TreeId::of_step(result, self.store.owners())
    }

    /// Publishes the finished tree of an execution that has this result. Returns its name.
    ///
    /// # Errors
    ///
    /// Fails if the tree cannot be renamed.
    pub fn commit_step(&self, work: &Workspace, made: &NewTree, result: &ResultId) -> Result<TreeId> {
        let complete = self.step_tree(result);
        let tree = if made.dir.exists(CHANGES_NOTE)? { complete.stored_as_changes() } else { complete };
        self.commit_tree(work, &made.path, &tree)?;
        Ok(tree)
    }

    /// Returns the tree that [`Self::commit_step`] published for this result, or `None` if there is
    /// none.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn committed_step(&self, result: &ResultId) -> Result<Option<TreeId>> {
        let complete = self.step_tree(result);
        for tree in [complete.stored_as_changes(), complete] {
            if self.store.lazy_trees().has_tree(&tree)? {
                return Ok(Some(tree));
            }
        }
        Ok(None)
    }

    /// Returns the path of a tree's files in this process.
    pub fn tree_path(&self, tree: &TreeId) -> PathBuf {
        self.store.path().join("trees").join(tree.name()).join("fs")
    }

    /// Opens the files of a tree.
    ///
    /// # Errors
    ///
    /// Fails if they are not unpacked.
    pub fn tree(&self, tree: &TreeId) -> Result<RootDir> {
        self.store.dir(Path::new("trees").join(tree.name()).join("fs"))
    }

    /// Returns true if the tree neither shows nor hides any file: it consists of a root directory
    /// that is not opaque.
    ///
    /// # Errors
    ///
    /// Fails if the files are not unpacked or cannot be read.
    pub fn is_empty(&self, tree: &TreeId) -> Result<bool> {
        let fs = self.tree(tree)?;
        Ok(fs.entries()?.is_empty() && !marks_opaque(&fs.xattrs(OsStr::new(""))?))
    }

    /// Returns the content of the file `name` next to a tree, empty if there is none.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be read.
    pub fn tree_note(&self, tree: &TreeId, name: &str) -> Result<Vec<u8>> {
        match self.store.root.read(Path::new("trees").join(tree.name()).join(name), MAX_NOTE) {
            Err(e) if e.is_not_found() => Ok(Vec::new()),
            other => Ok(other?),
        }
    }

    /// Writes a file next to the files of a new tree.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be written.
    pub fn put_note(&self, made: &RootDir, name: &str, bytes: &[u8]) -> Result<()> {
        let mut file = made.create_file(OsStr::new(name), modes::file())?;
        file.write_all(bytes).map_err(|e| made.error("write", name, e))?;
        Ok(())
    }

    /// Creates a tree whose directory contains an empty `fs`.
    ///
    /// # Errors
    ///
    /// Fails if the directory cannot be created.
    pub fn new_tree(&self, work: &Workspace) -> Result<NewTree> {
        let (path, dir) = work.new_dir_with(modes::dir())?;
        dir.create_dir(OsStr::new("fs"), 0o755)?;
        Ok(NewTree { path, dir })
    }

    /// Publishes a finished tree by renaming it. Replaces an existing tree with that ID, left by a
    /// killed process. The caller holds the lock of the step.
    ///
    /// # Errors
    ///
    /// Fails if the tree cannot be renamed.
    #[tracing::instrument(target = "store", name = "commit", level = "debug", skip_all, fields(tree = ?id))]
    pub fn commit_tree(&self, work: &Workspace, made: &Path, id: &TreeId) -> Result<()> {
        let trees = self.store.dir("trees")?;
        let name = made.file_name().unwrap_or_default();
        self.note_devices(&work.dir().sub(name)?)?;
        match work.dir().rename(name, &trees, OsStr::new(id.name())) {
            Err(e) if matches!(e.kind(), std::io::ErrorKind::DirectoryNotEmpty | std::io::ErrorKind::AlreadyExists) => {
                let old = work.unique("old");
                trees.rename(OsStr::new(id.name()), work.dir(), OsStr::new(&old))?;
                work.dir().rename(name, &trees, OsStr::new(id.name()))?;
                Ok(())
            }
            other => Ok(other?),
        }
    }

    /// Returns the tree of a layer that has been unpacked before.
    pub(crate) fn layer_tree(&self, diff_id: &DiffId) -> Result<Option<TreeId>> {
        let document = document_of(&diff_id.hex(), self.store.owners());
        let Some(file) = self.store.read_if_whole::<LayerFile>(&format!("layers/{document}"))? else {
            return Ok(None);
        };
        let synced =
            file.boot == self.store.boot() || self.store.root.exists(format!("builds/{}.synced", file.build))?;
        let there = synced && self.store.lazy_trees().has_tree(&file.tree)? && self.is_usable(&file.tree)?;
        if there {
            self.store.gc().note_use("layers", &document)?;
        }
        Ok(there.then_some(file.tree))
    }

    /// Returns the tree that a document in `layers` refers to, which may be from an earlier
    /// version.
    pub(crate) fn tree_of_document(&self, document: &str) -> Result<Option<TreeId>> {
        if !document.ends_with(".json") || digest_in(document).len() != 64 {
            return Ok(None);
        }
        Ok(self.store.read_if_whole::<LayerFile>(&format!("layers/{document}"))?.map(|file| file.tree))
    }

    /// Returns the trees of an image, lowest first, and the number of layers unpacked by this call.
    /// Missing layers are unpacked once each, several in parallel. Layers with references to lower
    /// layers are followed by a fix-up tree.
    ///
    /// # Errors
    ///
    /// Fails if a layer cannot be read or unpacked, if its digests are wrong, or if the build is
    /// stopped.
    pub fn unpack_image(&self, session: Session<'_>, image: &Image) -> Result<(Vec<TreeId>, usize)> {
        let layers = image.layers()?;
        let unpack = |(layer, diff_id): &(Descriptor, DiffId)| self.tree_of_layer(session, layer, diff_id);
        let (mut found, mut unpacked) = (Vec::new(), 0);
        for tree in try_map(cores(), &layers, unpack)? {
            unpacked += usize::from(matches!(tree, Once::Made(_)));
            found.push(tree.into_inner());
        }
        Ok((self.store.image_trees().with_fixups(session, found)?, unpacked))
    }

    /// Returns the tree of one layer, unpacking it if necessary.
    fn tree_of_layer(&self, session: Session<'_>, layer: &Descriptor, diff_id: &DiffId) -> Result<Once<TreeId>> {
        let digest = digest(layer)?;
        let find = || {
            let Some(tree) = self.layer_tree(diff_id)? else { return Ok(None) };
            // The tree belongs to the diffID. This image's blob may differ from the one unpacked
            // before, and may go into other images.
            self.store.blobs().check_layer(&digest, diff_id)?;
            Ok(Some(tree))
        };
        let digests = LayerDigests { blob: digest, diff_id: *diff_id };
        // A build that waits for its network must not hold a lock of the store, which would delay
        // other builds.
        let incoming = &self.store.incoming;
        let is_expected = incoming.is_expected(&digest);
        let _alone = is_expected.then(|| incoming.lock_unpacking(*diff_id, self.store.stop())).transpose()?;
        let mut early = retry_restarted(|| self.unpack_early(session, &digests, find))?;
        let make = || match early.take() {
            Some(layer) => self.commit_layer(session, diff_id, &layer),
            None => retry_restarted(|| {
                let options = self.unpacking(session);
                let unpack = |fs: &RootDir| self.unpack_blob(&digests, fs, options, &mut |_| true);
                let layer = self.unpack_layer(session, &digest, unpack)?;
                self.commit_layer(session, diff_id, &layer)
            }),
        };
        let tree = self.store.once(Lock::Layer(*diff_id), find, make)?;
        if let (Once::Found(_), Some(moved)) = (&tree, session.moved) {
            moved.fetch_add(layer.size(), Ordering::Relaxed);
        }
        if let Some(name) = early.as_ref().and_then(|layer| layer.path.file_name()) {
            session.work.remove_later(name);
        }
        Ok(tree)
    }

    /// Unpacks a layer while it is being downloaded. Returns `None` if it is not being downloaded,
    /// or if `find` returns its tree.
    fn unpack_early(
        &self,
        session: Session<'_>,
        digests: &LayerDigests,
        find: impl Fn() -> Result<Option<TreeId>>,
    ) -> Result<Option<UnpackedLayer>> {
        let incoming = &self.store.incoming;
        if !incoming.is_expected(&digests.blob) || find()?.is_some() {
            return Ok(None);
        }
        let Some(blob) = incoming.open(&digests.blob, self.store.stop())? else { return Ok(None) };
        // Another build may have unpacked it since.
        if find()?.is_some() {
            return Ok(None);
        }
        let options = self.unpacking(session);
        let unpack = |fs: &RootDir| self.unpack_incoming(blob, digests, fs, options, &mut |_| true);
        self.unpack_layer(session, &digests.blob, unpack).map(Some)
    }

    /// Returns the options for layers that a session unpacks.
    fn unpacking<'a>(&self, session: Session<'a>) -> Unpacking<'a> {
        Unpacking { moved: session.moved, ..Unpacking::layer(self.store.limits()) }
    }

    /// Unpacks a layer into a new directory with its notes.
    #[tracing::instrument(target = "store", name = "unpack", level = "debug", skip_all, fields(layer = %digest))]
    fn unpack_layer(
        &self,
        session: Session<'_>,
        digest: &BlobDigest,
        unpack: impl FnOnce(&RootDir) -> Result<Unpacked>,
    ) -> Result<UnpackedLayer> {
        let NewTree { path, dir } = self.new_tree(session.work)?;
        let unpacked = unpack(&dir.sub("fs")?)?;
        if unpacked.lower_refs != LowerRefs::default() {
            self.put_note(&dir, LOWER_REFS, &unpacked.lower_refs.to_bytes())?;
        }
        Ok(UnpackedLayer { path, size: unpacked.unpacked })
    }

    /// Publishes the tree of a layer. The caller holds its lock.
    fn commit_layer(&self, session: Session<'_>, diff_id: &DiffId, layer: &UnpackedLayer) -> Result<TreeId> {
        self.store.layers().put_layer_size(diff_id, layer.size)?;
        // Another builder may be using a tree with device nodes, which therefore stays in place.
        let usual = TreeId::of_layer(diff_id, self.store.owners());
        let id = if self.is_usable(&usual)? { usual } else { TreeId::without_devices(diff_id) };
        self.commit_tree(session.work, &layer.path, &id)?;
        let file = LayerFile { tree: id.clone(), boot: self.store.boot().to_string(), build: session.build.clone() };
        self.store.unsynced.store(true, Ordering::Relaxed);
        self.store.write("layers", &document_of(&diff_id.hex(), self.store.owners()), &file)?;
        Ok(id)
    }

    /// Unpacks a layer into an empty directory and verifies its digests. With `nanoseconds`, those
    /// of the entries' times are set.
    pub(crate) fn unpack_verified(
        &self,
        digests: &LayerDigests,
        fs: &RootDir,
        nanoseconds: Option<&[u32]>,
    ) -> Result<Unpacked> {
        let options = Unpacking { nanoseconds, ..Unpacking::layer(self.store.limits()) };
        self.unpack_blob(digests, fs, options, &mut |_| true)
    }

    /// Unpacks only the entries for which `wants` returns true. Verifies the digests of the whole
    /// layer.
    pub(crate) fn unpack_some_verified(
        &self,
        digests: &LayerDigests,
        fs: &RootDir,
        wants: &mut dyn FnMut(&TarEntry) -> bool,
    ) -> Result<Unpacked> {
        self.unpack_blob(digests, fs, Unpacking::layer(self.store.limits()), wants)
    }

    fn unpack_blob(
        &self,
        digests: &LayerDigests,
        fs: &RootDir,
        options: Unpacking<'_>,
        wants: &mut dyn FnMut(&TarEntry) -> bool,
    ) -> Result<Unpacked> {
        let LayerDigests { blob: digest, diff_id } = digests;
        if let Some(blob) = self.store.incoming.open(digest, self.store.stop())? {
            return self.unpack_incoming(blob, digests, fs, options, wants);
        }
        let blob = self.store.blobs().open_blob(digest)?;
        let known = self.store.blobs().is_verified(&blob).then_some(*digest);
        let options = Unpacking { known, stop: self.store.stop(), ..options };
        let got = unpack_some(&blob, fs, options, wants).map_err(|source| {
            if source.is_of_content() {
                self.store.blobs().invalid_layer(digest, source)
            } else if source.is_disk_full() {
                self.full(source)
            } else {
                source.into()
            }
        })?;
        compare(digest, got.digest)?;
        compare_content(digest, diff_id, got.diff_id)?;
        self.store.blobs().note_layer(digest, diff_id)?;
        if known.is_none() {
            self.store.blobs().note_verified(&blob);
        }
        Ok(got)
    }

    /// Unpacks a blob while it is being downloaded. Fails with [`StoreError::DownloadRestarted`] if
    /// it has to be unpacked again, into another directory.
    fn unpack_incoming(
        &self,
        mut blob: IncomingBlob<'_>,
        digests: &LayerDigests,
        fs: &RootDir,
        options: Unpacking<'_>,
        wants: &mut dyn FnMut(&TarEntry) -> bool,
    ) -> Result<Unpacked> {
        let LayerDigests { blob: digest, diff_id } = digests;
        // The downloading process computes the digest.
        let options = Unpacking { known: Some(*digest), stop: self.store.stop(), ..options };
        let got = match unpack_some(&mut blob, fs, options, wants) {
            Err(e @ LayerError::Canceled) => return Err(e.into()),
            Err(e) if e.is_disk_full() => return Err(self.full(e)),
            Err(source) => {
                blob.confirm()?;
                return Err(if source.is_of_content() {
                    StoreError::InvalidLayer { blob: *digest, source }
                } else {
                    source.into()
                });
            }
            Ok(got) => got,
        };
        blob.confirm()?;
        compare_content(digest, diff_id, got.diff_id)?;
        self.store.blobs().note_layer(digest, diff_id)?;
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::Scratch;

    use super::*;
    use crate::ids::CacheKey;
    use crate::session::record_tree;

    #[test]
    fn trees_of_earlier_versions_are_ignored() {
        let place = Scratch::new();
        let store = Store::open(&place).unwrap();
        let key = CacheKey::of(b"a step");
        let (now, before) = (store.trees().step_tree(&key.into()), TreeId::of_dir(&format!("s{}", &key.hex()[..24])));
        assert_eq!(now.name(), format!("s{}", key.hex()));
        // Programs without support for trees stored as changes treat their names as invalid.
        assert!(now.stored_as_changes().name().len() > 65);
        for (tree, counts) in [(before, false), (now, true)] {
            std::fs::create_dir_all(store.trees().tree_path(&tree)).unwrap();
            record_tree(&store, &key, &tree);
            assert_eq!(store.records().record(&key).unwrap().is_some(), counts, "{}", tree.name());
        }
    }

    #[test]
    fn a_tree_without_entries_is_empty_unless_it_is_opaque() {
        let place = Scratch::new();
        let store = Store::open(&place).unwrap();
        let tree = store.trees().step_tree(&CacheKey::of(b"a step").into());
        std::fs::create_dir_all(store.trees().tree_path(&tree)).unwrap();
        let fs = store.trees().tree(&tree).unwrap();
        assert!(store.trees().is_empty(&tree).unwrap());
        fs.create_whiteout(OsStr::new("gone")).unwrap();
        assert!(!store.trees().is_empty(&tree).unwrap());
        fs.remove_all(OsStr::new("gone")).unwrap();
        assert!(store.trees().is_empty(&tree).unwrap());
        fs.set_xattr(OsStr::new(""), OsStr::new(rbuild_layer::OPAQUE), b"y").unwrap();
        assert!(!store.trees().is_empty(&tree).unwrap());
    }
}
