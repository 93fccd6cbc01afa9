//! Lazily unpacked trees, whose files exist only as a layer until they are needed.
//!
//! Most results of a build's last copy are never used as files; they only go into an image. Such a
//! tree is stored as its layer, like the layers of loaded images, and materialized when a later
//! step, mount or export needs its files.

use std::ffi::OsStr;
use std::path::Path;

use rbuild_image::DiffId;
use rbuild_layer::{ExternalFiles, LayerForm, Remainder, pack_with_external};
use rbuild_linux::{RootDir, Timestamp, UidGid};
use serde::{Deserialize, Serialize};

use crate::error::{Result, StoreError};
use crate::layer_blob::LayerBlob;
use crate::layers::{LayerVariant, PackedLayer, REMAINDER, StoppableWriter};
use crate::once::{Lock, Once};
use crate::packing::PackingWatch;
use crate::store::{Store, document};
use crate::trees::changes::ChangesNote;
use crate::trees::device_placeholders::{DEVICES, PLACEHOLDERS};
use crate::trees::id::TreeId;
use crate::trees::tree::{INODES, LayerDigests};
use crate::workspace::Workspace;

/// A note next to a lazily unpacked tree.
#[derive(Serialize, Deserialize)]
pub(crate) struct LazyNote {
    /// Name of the layer's document next to it.
    pub layer: String,
    /// Metadata of the tree's root directory, which the layer does not contain. `None` for those of
    /// the tree below, which the builder sets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<RootMeta>,
    /// Modification time of the root directory in seconds and nanoseconds. Trees of earlier
    /// versions do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtime: Option<(i64, u32)>,
    /// True if the remainder of the layer next to it applies.
    #[serde(default)]
    pub exact: bool,
    /// True if the layer is that of a cache. If it cannot be unpacked, its step is not a hit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub imported: bool,
    /// Boot ID under which the files were unpacked. Files unpacked before the last boot may have
    /// been damaged by a power failure.
    pub boot: Option<String>,
}

/// Owner and mode of a root directory. A note has them as a list: user ID, group ID, mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u32, u32)", into = "(u32, u32, u32)")]
pub(crate) struct RootMeta {
    pub owner: UidGid,
    pub mode: u32,
}

impl RootMeta {
    /// Owner and mode in most images.
    pub const USUAL: RootMeta = RootMeta { owner: UidGid::ROOT, mode: 0o755 };
}

impl From<(u32, u32, u32)> for RootMeta {
    fn from(list: (u32, u32, u32)) -> RootMeta {
        let (uid, gid, mode) = list;
        RootMeta { owner: UidGid { uid, gid }, mode }
    }
}

impl From<RootMeta> for (u32, u32, u32) {
    fn from(RootMeta { owner, mode }: RootMeta) -> (u32, u32, u32) {
        (owner.uid, owner.gid, mode)
    }
}

impl LazyNote {
    /// Returns the note of a tree that equals the one that a layer was packed from.
    pub(crate) fn exact(layer: &str, remainder: &Remainder) -> LazyNote {
        let Timestamp { sec, nsec } = remainder.root_mtime;
        let root = Some(RootMeta { owner: remainder.root_owner, mode: remainder.root_mode });
        LazyNote { layer: layer.into(), root, mtime: Some((sec, nsec)), exact: true, imported: false, boot: None }
    }

    /// Returns the note of the same tree before its files are unpacked.
    pub(crate) fn not_unpacked(self) -> LazyNote {
        LazyNote { boot: None, ..self }
    }
}

/// Name of the file with a [`LazyNote`]: part of the format of the store.
const LAZY_NOTE: &str = "folded.json";

/// Trees that exist as their layers only, until their files are needed.
#[derive(Clone, Copy)]
pub struct LazyTrees<'s> {
    pub(crate) store: &'s Store,
    pub(crate) watch: Option<&'s dyn PackingWatch>,
}

impl<'s> LazyTrees<'s> {
    /// Returns the trees, with a receiver of the layers that new ones are packed into.
    pub fn watched_by(self, watch: Option<&'s dyn PackingWatch>) -> LazyTrees<'s> {
        LazyTrees { watch, ..self }
    }

    /// Packs the layer of a new tree together with the external files `external`, and stores it in
    /// place of the files. Stops with an error once `stop` returns true.
    ///
    /// # Errors
    ///
    /// Fails if a file cannot be read or has changed, if the layer cannot be written, or if the
    /// build is canceled.
    pub fn store_as_layer(
        &self,
        work: &Workspace,
        made: &RootDir,
        external: ExternalFiles,
        form: LayerForm,
        stop: &dyn Fn() -> bool,
    ) -> Result<()> {
        let mut blob = LayerBlob::new(self.store.blobs().new_blob(work)?, self.watch)?;
        let fs = made.sub("fs")?;
        let packed = pack_with_external(&fs, external, form, StoppableWriter { out: &mut blob, stop, moved: None });
        let packed = packed.map_err(|e| self.store.layers().of_blob(e))?;
        blob.publish(self.store, &packed.digest, packed.size)?;
        let layer = PackedLayer::new(&packed, form);
        self.store.layers().note_made_layer(&layer)?;
        let name = LayerVariant::exact(form).document();
        let root = fs.stat_self()?;
        let mtime = Some((root.mtime.sec, root.mtime.nsec));
        let root = Some(RootMeta { owner: root.owner(), mode: root.mode });
        self.store.trees().put_note(made, &name, &document(&name, &layer)?)?;
        self.put_lazy_note(made, &LazyNote { layer: name, root, mtime, exact: false, imported: false, boot: None })?;
        made.remove_all(OsStr::new("fs"))?;
        Ok(())
    }

    /// Writes the note of a new lazy tree.
    pub(crate) fn put_lazy_note(&self, made: &RootDir, note: &LazyNote) -> Result<()> {
        self.store.trees().put_note(made, LAZY_NOTE, &document(LAZY_NOTE, note)?)
    }

    /// Ensures that the tree's files exist on disk, unpacking its layer if necessary. Idempotent;
    /// safe to call concurrently.
    ///
    /// # Errors
    ///
    /// Fails if the layer cannot be read or unpacked, or if its digests are wrong.
    #[tracing::instrument(target = "store", name = "materialize", level = "debug", skip_all, fields(tree = ?tree))]
    pub fn materialize(&self, work: &Workspace, tree: &TreeId) -> Result<()> {
        // This precedes the lock of this tree, because locks of several trees are taken in a fixed
        // order.
        if let Some(note) = self.incomplete(tree)? {
            self.materialize(work, &note.base)?;
        }
        let find = || Ok((self.pending_note(tree)?.is_none() && self.incomplete(tree)?.is_none()).then_some(()));
        self.store.once(Lock::materialize(tree), find, || self.unpack_layer(work, tree)).map(Once::into_inner)
    }

    /// Unpacks the layer of a lazy tree, or completes one that is stored as changes. The caller
    /// holds the lock.
    fn unpack_layer(&self, work: &Workspace, tree: &TreeId) -> Result<()> {
        if let Some(note) = self.incomplete(tree)? {
            return self.store.changed_trees().complete(work, tree, note);
        }
        let Some(note) = self.pending_note(tree)? else { return Ok(()) };
        let place = format!("trees/{}", tree.name());
        let layer: PackedLayer = self.store.read(&format!("{place}/{}", note.layer))?;
        let made = self.store.trees().new_tree(work)?.dir;
        let fs = made.sub("fs")?;
        let remainder = self.remainder_of(tree, &note, &layer)?;
        let nanoseconds = remainder.as_ref().map(|remainder| &remainder.nanoseconds[..]);
        let digests = LayerDigests { blob: layer.digest, diff_id: layer.diff_id };
        if let Err(e) = self.store.trees().unpack_verified(&digests, &fs, nanoseconds) {
            if note.imported && !self.store.stop()() && !e.is_disk_full() {
                self.store.blobs().note_unusable(&digests.blob, &digests.diff_id)?;
            }
            return Err(e);
        }
        let RootMeta { owner, mode } = note.root.unwrap_or(RootMeta::USUAL);
        let mtime = note.mtime.map_or(fs.stat_self()?.mtime, |(sec, nsec)| Timestamp { sec, nsec });
        fs.set_own_meta(owner, mode, mtime)?;
        let dir = self.store.dir(&place)?;
        // Remains of an interrupted attempt, and sizes computed before unpacking.
        for old in ["fs", "bytes.json", INODES, PLACEHOLDERS, DEVICES] {
            dir.remove_all(OsStr::new(old))?;
        }
        made.rename(OsStr::new("fs"), &dir, OsStr::new("fs"))?;
        self.store.trees().note_devices(&dir)?;
        self.store.write(&place, LAZY_NOTE, &LazyNote { boot: Some(self.store.boot().to_string()), ..note })
    }

    /// Returns true if the root directory of a tree is that of the tree below, but does not have
    /// its owner and mode yet.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn lacks_root(&self, tree: &TreeId) -> Result<bool> {
        Ok(self.lazy_note(tree)?.is_some_and(|note| note.root.is_none()))
    }

    /// Sets the owner and the mode of the root directory of a tree that lacks them. They are the
    /// same for all builds that use the tree.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be written.
    pub fn set_root(&self, tree: &TreeId, owner: UidGid, mode: u32) -> Result<()> {
        let set = || {
            let Some(note) = self.lazy_note(tree)?.filter(|note| note.root.is_none()) else { return Ok(()) };
            let place = format!("trees/{}", tree.name());
            if let Some(fs) = self.unpacked_tree(tree)? {
                let mtime = fs.stat_self()?.mtime;
                fs.set_own_meta(owner, mode & 0o7777, mtime)?;
            }
            let root = Some(RootMeta { owner, mode: mode & 0o7777 });
            self.store.write(&place, LAZY_NOTE, &LazyNote { root, ..note })
        };
        self.store.once(Lock::materialize(tree), || Ok(None), set).map(Once::into_inner)
    }

    /// Returns the files of a tree, or `None` if they are not unpacked.
    ///
    /// # Errors
    ///
    /// Fails if the tree cannot be opened.
    pub fn unpacked_tree(&self, tree: &TreeId) -> Result<Option<RootDir>> {
        if self.pending_note(tree)?.is_some() || self.incomplete(tree)?.is_some() {
            Ok(None)
        } else {
            Ok(Some(self.store.trees().tree(tree)?))
        }
    }

    /// Returns true if the tree exists, unpacked or as a layer.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn has_tree(&self, tree: &TreeId) -> Result<bool> {
        let place = Path::new("trees").join(tree.name());
        if !tree.is_current() {
            return Ok(false);
        }
        if let Some(note) = self.store.changed_trees().changes_note(tree)? {
            return self.store.changed_trees().has_changes(tree, &note);
        }
        match self.pending_note(tree)? {
            Some(note) => {
                let layer = self.store.layers().packed_layer(&format!("{}/{}", place.display(), note.layer))?;
                let Some(layer) = layer else { return Ok(false) };
                if note.imported && self.store.blobs().is_unusable(&layer.digest, &layer.diff_id)? {
                    return Ok(false);
                }
                Ok(self.remainder_of(tree, &note, &layer).is_ok())
            }
            None => Ok(self.store.root.exists(place.join("fs"))? && self.store.trees().has_own_placeholders(tree)?),
        }
    }

    /// Returns the remainder of a lazy tree's layer, if its note demands one.
    fn remainder_of(&self, tree: &TreeId, note: &LazyNote, layer: &PackedLayer) -> Result<Option<Remainder>> {
        if !note.exact {
            return Ok(None);
        }
        let remainder = Remainder::from_bytes(&self.store.trees().tree_note(tree, REMAINDER)?, &layer.diff_id);
        let damaged = StoreError::damaged(format!("tree {}", tree.name()));
        remainder.map(Some).ok_or_else(|| damaged("the times of its files cannot be read"))
    }

    /// Returns the note of a lazy tree, unpacked or not.
    /// Returns the digest of the uncompressed layer of a lazily unpacked tree; `None` for others.
    pub(crate) fn diff_id(&self, tree: &TreeId) -> Result<Option<DiffId>> {
        let Some(note) = self.lazy_note(tree)? else { return Ok(None) };
        let document = format!("trees/{}/{}", tree.name(), note.layer);
        Ok(self.store.read_if_whole::<PackedLayer>(&document)?.map(|layer| layer.diff_id))
    }

    pub(crate) fn lazy_note(&self, tree: &TreeId) -> Result<Option<LazyNote>> {
        self.store.read_if_whole(&format!("trees/{}/{LAZY_NOTE}", tree.name()))
    }

    /// Returns the note of a tree that is stored as changes and is not complete, otherwise `None`.
    fn incomplete(&self, tree: &TreeId) -> Result<Option<ChangesNote>> {
        Ok(self.store.changed_trees().changes_note(tree)?.filter(|note| self.store.changed_trees().is_incomplete(note)))
    }

    /// Returns the note of a tree whose files are not unpacked, otherwise `None`.
    fn pending_note(&self, tree: &TreeId) -> Result<Option<LazyNote>> {
        let note = self.lazy_note(tree)?;
        Ok(note.filter(|note| note.boot.as_deref() != Some(self.store.boot())))
    }
}

#[cfg(test)]
mod tests {
    use rbuild_image::{BlobDigest, DiffId};
    use rbuild_layer::Packed;
    use rbuild_testkit::{Scratch, assert_recorded, message_row};

    use super::*;

    #[test]
    fn a_damaged_remainder_is_worded_as_recorded() {
        let place = Scratch::new();
        let store = Store::open(&place).unwrap();
        let tree = TreeId::of_layer(&DiffId::of(b"layer"), rbuild_linux::OwnerMode::Given);
        let made = store.root.create_dir_all(Path::new("trees").join(tree.name()), 0o700, None, |_| ()).unwrap();
        store.trees().put_note(&made, REMAINDER, b"junk").unwrap();
        let root = Some(RootMeta::USUAL);
        let note = LazyNote { layer: "layer.json".into(), root, mtime: None, exact: true, imported: false, boot: None };
        let packed = Packed { diff_id: DiffId::of(b"layer"), digest: BlobDigest::of(b"layer"), size: 5, unpacked: 5 };
        let layer = PackedLayer::new(&packed, LayerForm::Uncompressed);
        let e = store.lazy_trees().remainder_of(&tree, &note, &layer).unwrap_err();
        assert_recorded!("remainder", message_row("junk", &e, e.remedy()));
    }
}
