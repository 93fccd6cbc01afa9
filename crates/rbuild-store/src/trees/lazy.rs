//! Lazily unpacked trees, whose files exist only as a layer until they are needed.
//!
//! Most results of a build's last copy are never used as files; they only go into an image. Such a
//! tree is stored as its layer, like the layers of loaded images, and materialized when a later
//! step, mount or export needs its files.

use std::ffi::OsStr;
use std::path::Path;

use rbuild_image::Hasher;
use rbuild_layer::{ExternalFiles, LayerForm, pack_with_external};
use rbuild_linux::RootDir;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::gc::budget::FILES;
use crate::layers::{PackedLayer, Stoppable, layer_document};
use crate::store::{Store, document};
use crate::trees::stand_ins::STAND_INS;
use crate::trees::tree::TreeId;
use crate::workspace::Workspace;

/// A note beside a lazily unpacked tree.
#[derive(Serialize, Deserialize)]
struct Folded {
    /// Name of the layer's document beside it.
    layer: String,
    /// Owner, group and mode of the tree's root directory, which the layer does not contain.
    root: (u32, u32, u32),
    /// Boot ID under which the files were unpacked. Files unpacked before the last boot may have
    /// been damaged by a power failure.
    boot: Option<String>,
}

const NOTE: &str = "folded.json";

impl Store {
    /// Packs the layer of a new tree together with the external files `external`, and stores it in
    /// place of the files. Stops with an error once `stop` returns true.
    ///
    /// # Errors
    ///
    /// Fails if a file cannot be read or has changed, if the layer cannot be written, or if the
    /// build is stopped.
    pub fn fold_tree(
        &self,
        work: &Workspace,
        made: &RootDir,
        external: ExternalFiles,
        form: LayerForm,
        stop: &dyn Fn() -> bool,
    ) -> Result<()> {
        let mut blob = self.new_blob(work)?;
        let fs = made.sub("fs")?;
        let packed = pack_with_external(&fs, external, form, Stoppable { out: &mut blob, stop })?;
        blob.publish(self, &packed.digest, packed.size)?;
        let layer = PackedLayer::new(&packed, form);
        self.note_made_layer(&layer)?;
        let name = layer_document(form, None);
        let root = fs.stat_self()?;
        let note = Folded { layer: name.clone(), root: (root.uid, root.gid, root.mode), boot: None };
        self.put_note(made, &name, &document(&name, &layer)?)?;
        self.put_note(made, NOTE, &document(NOTE, &note)?)?;
        made.remove_all(OsStr::new("fs"))?;
        Ok(())
    }

    /// Ensures that the tree's files exist on disk, unpacking its layer if necessary. Idempotent;
    /// safe to call concurrently.
    ///
    /// # Errors
    ///
    /// Fails if the layer cannot be read or unpacked, or if its digests are wrong.
    #[tracing::instrument(target = "store", name = "materialize", level = "debug", skip_all, fields(tree = ?tree))]
    pub fn unfold_tree(&self, work: &Workspace, tree: &TreeId) -> Result<()> {
        if self.folded(tree)?.is_none() {
            return Ok(());
        }
        let mut hasher = Hasher::new();
        hasher.field("unfold").field(tree.name());
        let _alone = self.lock_step(&hasher.finish())?;
        let Some(note) = self.folded(tree)? else { return Ok(()) };
        let place = format!("trees/{}", tree.name());
        let layer: PackedLayer = self.read(&format!("{place}/{}", note.layer))?;
        let (_, made) = self.new_tree(work)?;
        let fs = made.sub("fs")?;
        self.unpack_verified(&layer.digest, &layer.diff_id, &fs)?;
        let (uid, gid, mode) = note.root;
        fs.set_own_meta(uid, gid, mode, fs.stat_self()?.mtime)?;
        let dir = self.dir(&place)?;
        // Remains of an interrupted attempt, and sizes computed before unpacking.
        for old in ["fs", "bytes.json", FILES, STAND_INS] {
            dir.remove_all(OsStr::new(old))?;
        }
        made.rename(OsStr::new("fs"), &dir, OsStr::new("fs"))?;
        self.note_stand_ins(&dir)?;
        self.write(&place, NOTE, &Folded { boot: Some(self.boot().to_string()), ..note })
    }

    /// Returns the files of a tree, or `None` if they are not unpacked.
    ///
    /// # Errors
    ///
    /// Fails if the tree cannot be opened.
    pub fn tree_if_here(&self, tree: &TreeId) -> Result<Option<RootDir>> {
        match self.folded(tree)? {
            Some(_) => Ok(None),
            None => Ok(Some(self.tree(tree)?)),
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
        match self.folded(tree)? {
            Some(note) => Ok(self.packed_layer(&format!("{}/{}", place.display(), note.layer))?.is_some()),
            None => Ok(self.root.exists(place.join("fs"))? && self.has_own_stand_ins(tree)?),
        }
    }

    /// Returns the note of a tree whose files are not unpacked, otherwise `None`.
    fn folded(&self, tree: &TreeId) -> Result<Option<Folded>> {
        let note: Option<Folded> = self.read_if_whole(&format!("trees/{}/{NOTE}", tree.name()))?;
        Ok(note.filter(|note| note.boot.as_deref() != Some(self.boot())))
    }
}
