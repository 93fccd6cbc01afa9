//! Trees whose files exist as a layer only, until somebody needs them.
//!
//! Most of what a build's last copy makes is never looked at again as files: it goes into an image, and that is all. Such a
//! tree is kept as its layer, like those of images that were loaded, and unpacked when a later step, mount or output wants it.

use std::ffi::OsStr;
use std::path::Path;

use rbuild_image::Hasher;
use rbuild_layer::{LayerForm, Loose, pack_loose};
use rbuild_linux::RootDir;
use serde::{Deserialize, Serialize};

use crate::collect::FILES;
use crate::error::Result;
use crate::layers::{PackedLayer, RootMeta, Stoppable, layer_document};
use crate::layout::{Store, document};
use crate::stand_ins::STAND_INS;
use crate::trees::TreeId;
use crate::workspace::Workspace;

/// Stands beside such a tree.
#[derive(Serialize, Deserialize)]
struct Folded {
    /// The document of the layer, beside it.
    layer: String,
    /// Owner, group and mode of the tree's root, which a layer does not tell.
    root: RootMeta,
    /// The files were unpacked since this machine was started with that name; before, a power cut may have taken from them.
    boot: Option<String>,
}

const NOTE: &str = "folded.json";

impl Store {
    /// Makes the layer of a tree in the making, some of whose files lie elsewhere still, and keeps it in place of the files.
    /// An error as soon as `stop` says so.
    pub fn fold_tree(
        &self,
        work: &Workspace,
        made: &RootDir,
        loose: Loose,
        form: LayerForm,
        stop: &dyn Fn() -> bool,
    ) -> Result<()> {
        let mut blob = self.new_blob(work)?;
        let fs = made.sub("fs")?;
        let packed = pack_loose(&fs, loose, form, Stoppable { out: &mut blob, stop })?;
        blob.publish(self, &packed.digest, packed.size)?;
        let layer = PackedLayer::new(&packed, form).of_tree(&fs)?;
        self.note_made_layer(&layer)?;
        let name = layer_document(form, None);
        self.put_note(made, &name, &document(&name, &layer)?)?;
        self.put_folded(made, name, &layer)?;
        made.remove_all(OsStr::new("fs"))?;
        Ok(())
    }

    /// Says of a tree in the making that its files are those of a layer of all of it, whose document is beside it.
    pub(crate) fn put_folded(&self, made: &RootDir, document_name: String, layer: &PackedLayer) -> Result<()> {
        let root = layer.root.unwrap_or((0, 0, 0o755));
        let note = Folded { layer: document_name, root, boot: None };
        self.put_note(made, NOTE, &document(NOTE, &note)?)
    }

    /// Has the files of a tree in place.
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
        // Half of one, if there is any; and what it was counted to take.
        for old in ["fs", "bytes.json", FILES, STAND_INS] {
            dir.remove_all(OsStr::new(old))?;
        }
        made.rename(OsStr::new("fs"), &dir, OsStr::new("fs"))?;
        self.note_stand_ins(&dir)?;
        self.write(&place, NOTE, &Folded { boot: Some(self.boot().to_string()), ..note })
    }

    /// The files of a tree, if they are in place.
    pub fn tree_if_here(&self, tree: &TreeId) -> Result<Option<RootDir>> {
        match self.folded(tree)? {
            Some(_) => Ok(None),
            None => Ok(Some(self.tree(tree)?)),
        }
    }

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

    /// The note of a tree whose files are not in place.
    fn folded(&self, tree: &TreeId) -> Result<Option<Folded>> {
        let note: Option<Folded> = self.read_if_whole(&format!("trees/{}/{NOTE}", tree.name()))?;
        Ok(note.filter(|note| note.boot.as_deref() != Some(self.boot())))
    }
}
