//! Layers packed by this store, from trees of steps or from other layers in another form. Each is
//! packed once.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use rbuild_image::{BlobDigest, Descriptor, DiffId, Hasher, MediaType, descriptor};
use rbuild_layer::{LayerError, LayerForm, Packed, Remainder, Times, pack_exact, pack_layer, pack_whole, repack_layer};
use rbuild_linux::{RootDir, described, is_disk_full, write_atomic};
use serde::{Deserialize, Serialize};

use crate::contents::compare_content;
use crate::error::{Result, StoreError};
use crate::ids::CacheKey;
use crate::index_entries::digest;
use crate::layer_blob::LayerBlob;
use crate::modes;
use crate::once::{Lock, Once};
use crate::packing::PackingWatch;
use crate::session::Session;
use crate::store::Store;
use crate::trees::copies::{MergedFiles, MergedWhiteouts, merge};
use crate::trees::id::TreeId;
use crate::workspace::Workspace;

/// File next to a tree with the [`rbuild_layer::Remainder`] of its layer.
pub(crate) const REMAINDER: &str = "remainder";

/// A packed layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackedLayer {
    /// Layer format it was packed with; layers of other formats are packed again.
    format: u32,
    /// Digest of the uncompressed bytes.
    pub diff_id: DiffId,
    /// Digest of the blob.
    pub digest: BlobDigest,
    /// Size of the blob in bytes.
    pub size: u64,
    /// Uncompressed size in bytes.
    pub unpacked: u64,
    pub(crate) media_type: MediaType,
}

impl PackedLayer {
    pub(crate) fn new(packed: &Packed, form: LayerForm) -> PackedLayer {
        let media_type = match form {
            LayerForm::Uncompressed => MediaType::ImageLayer,
            LayerForm::Gzip(_) => MediaType::ImageLayerGzip,
            LayerForm::Zstd(_) => MediaType::ImageLayerZstd,
        };
        let Packed { diff_id, digest, size, unpacked } = *packed;
        PackedLayer { format: form.version(), diff_id, digest, size, unpacked, media_type }
    }

    /// Returns true if the same tree would yield the same bytes now.
    fn is_current(&self) -> bool {
        self.format == version_of(&self.media_type)
    }

    /// Returns the description of a layer that another store packed, in the same layer format.
    pub(crate) fn of_other_store(packed: &Packed, media_type: MediaType) -> PackedLayer {
        let Packed { diff_id, digest, size, unpacked } = *packed;
        PackedLayer { format: version_of(&media_type), diff_id, digest, size, unpacked, media_type }
    }

    /// Returns the layer's descriptor for a manifest.
    pub fn descriptor(&self) -> Descriptor {
        descriptor(self.media_type.clone(), &self.digest, self.size)
    }
}

/// Returns the version of the encoding of layers of a media type.
fn version_of(media_type: &MediaType) -> u32 {
    let form = match media_type {
        MediaType::ImageLayerZstd => LayerForm::ZSTD,
        MediaType::ImageLayerGzip => LayerForm::GZIP,
        _ => LayerForm::Uncompressed,
    };
    form.version()
}

/// A writer that fails once `stop` returns true, and counts its bytes in `moved`.
pub(crate) struct StoppableWriter<'a, W> {
    pub out: W,
    pub stop: &'a dyn Fn() -> bool,
    pub moved: Option<&'a AtomicU64>,
}

impl<W: Write> Write for StoppableWriter<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if (self.stop)() {
            return Err(std::io::Error::other("stopped"));
        }
        let n = self.out.write(bytes)?;
        if let Some(moved) = self.moved {
            moved.fetch_add(n as u64, Ordering::Relaxed);
        }
        Ok(n)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// One of the layers that a tree can be packed into.
#[derive(Debug, Clone, Copy)]
pub struct LayerVariant {
    pub form: LayerForm,
    /// Later modification times are set to this one, in seconds since the Unix epoch.
    pub latest: Option<i64>,
}

impl LayerVariant {
    /// Returns the layer with the times of the files.
    pub fn exact(form: LayerForm) -> LayerVariant {
        LayerVariant { form, latest: None }
    }

    /// Returns the name of the document next to a tree that describes the layer.
    pub(crate) fn document(self) -> String {
        let times = self.latest.map_or(String::new(), |latest| format!("-{latest}"));
        format!("layer-{}{times}.json", self.form.name())
    }

    fn times(self) -> Times {
        self.latest.map_or(Times::AsIs, Times::AtMost)
    }
}

/// The layers that trees are packed into.
#[derive(Clone, Copy)]
pub struct Layers<'s> {
    pub(crate) store: &'s Store,
    pub(crate) watch: Option<&'s dyn PackingWatch>,
    /// Counts the bytes of the layers that are packed.
    pub(crate) moved: Option<&'s AtomicU64>,
}

impl<'s> Layers<'s> {
    /// Returns the layers, with a receiver of those that are packed into blobs.
    pub fn watched_by(self, watch: Option<&'s dyn PackingWatch>) -> Layers<'s> {
        Layers { watch, ..self }
    }

    /// Adds the bytes of the layers that are packed to `moved`, so that another thread can observe
    /// the progress.
    pub fn counting(self, moved: &'s AtomicU64) -> Layers<'s> {
        Layers { moved: Some(moved), ..self }
    }

    /// Starts the blob of a layer.
    fn new_blob<'a>(&'a self, work: &'a Workspace) -> Result<LayerBlob<'a>> {
        LayerBlob::new(self.store.blobs().new_blob(work)?, self.watch)
    }

    /// Returns a layer of a step's tree, packing it if necessary. Stops with an error once `stop`
    /// returns true.
    ///
    /// # Errors
    ///
    /// Fails if the tree cannot be read, if the layer cannot be written, or if the build is
    /// stopped.
    pub fn pack_tree(
        &self,
        work: &Workspace,
        tree: &TreeId,
        variant: LayerVariant,
        stop: &dyn Fn() -> bool,
    ) -> Result<PackedLayer> {
        let dir = format!("trees/{}", tree.name());
        let document = variant.document();
        if let Some(packed) = self.packed_layer(&format!("{dir}/{document}"))? {
            return Ok(packed);
        }
        let mut blob = self.new_blob(work)?;
        let mut out = StoppableWriter { out: &mut blob, stop, moved: self.moved };
        let layer = match self.pack_of_layers(tree, variant, &mut out).map_err(|e| self.of_blob(e))? {
            Some((layer, remainder)) => {
                self.put_remainder(tree, &layer, remainder)?;
                layer
            }
            None => {
                self.store.lazy_trees().materialize(work, tree)?;
                self.pack_files(tree, variant, out).map_err(|e| self.of_blob(e))?
            }
        };
        blob.publish(self.store, &layer.digest, layer.size)?;
        self.note_made_layer(&layer)?;
        self.store.write(&dir, &document, &layer)?;
        Ok(layer)
    }

    /// Converts an error of packing a layer into a blob. If the disk is full, the result names the
    /// store.
    pub(crate) fn of_blob(&self, e: impl Into<StoreError>) -> StoreError {
        match e.into() {
            StoreError::Layer(LayerError::Io { source, .. }) if is_disk_full(&source) => {
                self.store.full("the layers", source)
            }
            e => e,
        }
    }

    /// Packs the files of a tree, and stores the metadata that the layer lacks next to the tree.
    fn pack_files(&self, tree: &TreeId, variant: LayerVariant, out: impl Write) -> Result<PackedLayer> {
        let fs = self.store.trees().tree(tree)?;
        let form = variant.form;
        if variant.latest.is_some() {
            return Ok(PackedLayer::new(&pack_layer(&fs, form, variant.times(), out)?, form));
        }
        let (packed, remainder) = pack_exact(&fs, form, out)?;
        let layer = PackedLayer::new(&packed, form);
        self.put_remainder(tree, &layer, remainder)?;
        Ok(layer)
    }

    fn put_remainder(&self, tree: &TreeId, layer: &PackedLayer, remainder: Option<Remainder>) -> Result<()> {
        let Some(remainder) = remainder else { return Ok(()) };
        let dir = self.store.dir(format!("trees/{}", tree.name()))?;
        Ok(write_atomic(&dir, OsStr::new(REMAINDER), &remainder.to_bytes(&layer.diff_id), modes::file())?)
    }

    /// Writes the layer of a tree to `out` without the tree's files, from its uncompressed layer,
    /// or from that of the tree that it is stored as changes to. Returns `None` without writing
    /// anything if there is no such layer. Also returns the metadata that the layer lacks, unless
    /// it is stored already. These layers contain the times of the files, so they cannot be used
    /// for a layer with others.
    fn pack_of_layers(
        &self,
        tree: &TreeId,
        variant: LayerVariant,
        mut out: impl Write,
    ) -> Result<Option<(PackedLayer, Option<Remainder>)>> {
        let LayerVariant { form, latest: None } = variant else { return Ok(None) };
        if let Some(plain) = self.plain_layer_of(tree)? {
            return Ok(Some((self.recompress(&plain, form, out)?, None)));
        }
        self.store.changed_trees().spliced(tree, |splice| {
            let (packed, remainder) = splice.pack(form, &mut out)?;
            Ok((PackedLayer::new(&packed, form), remainder))
        })
    }

    /// Writes a layer of a step's tree to `out` without storing it. Stops with an error once `stop`
    /// returns true.
    ///
    /// # Errors
    ///
    /// Fails if the tree cannot be read, if `out` fails, or if the build is canceled.
    pub fn pack_tree_to(
        &self,
        work: &Workspace,
        tree: &TreeId,
        variant: LayerVariant,
        out: impl Write,
        stop: &dyn Fn() -> bool,
    ) -> Result<PackedLayer> {
        let mut out = StoppableWriter { out, stop, moved: self.moved };
        let document = format!("trees/{}/{}", tree.name(), variant.document());
        if let Some(packed) = self.packed_layer(&document)? {
            let failed = |e| rbuild_linux::Error::new("write", described("the layer"), e);
            self.store
                .blobs()
                .read_blob::<StoreError>(&packed.digest, |bytes| Ok(out.write_all(bytes).map_err(failed)?))?;
            return Ok(packed);
        }
        if let Some((layer, _)) = self.pack_of_layers(tree, variant, &mut out)? {
            return Ok(layer);
        }
        self.store.lazy_trees().materialize(work, tree)?;
        let (form, files) = (variant.form, self.store.trees().tree(tree)?);
        Ok(PackedLayer::new(&pack_layer(&files, form, variant.times(), out)?, form))
    }

    /// Returns the description of the tree's uncompressed layer, if the store has it.
    fn plain_layer_of(&self, tree: &TreeId) -> Result<Option<PackedLayer>> {
        let plain = LayerVariant::exact(LayerForm::Uncompressed);
        self.packed_layer(&format!("trees/{}/{}", tree.name(), plain.document()))
    }

    /// Writes a layer in another form to `out`. The bytes equal those of a layer packed from the
    /// tree in that form, but the tree's files are not needed.
    fn recompress(&self, plain: &PackedLayer, form: LayerForm, out: impl Write) -> Result<PackedLayer> {
        let packed = repack_layer(self.store.blobs().open_blob(&plain.digest)?, form, out)?;
        compare_content(&plain.digest, &plain.diff_id, packed.diff_id)?;
        Ok(PackedLayer::new(&packed, form))
    }

    /// Merges trees (lowest first) into one, which has a record like the tree of a step.
    ///
    /// # Errors
    ///
    /// Fails if a tree cannot be read or the new one cannot be written.
    pub fn squash_trees(&self, session: Session<'_>, trees: &[TreeId]) -> Result<TreeId> {
        if let [only] = trees {
            return Ok(only.clone());
        }
        let mut hasher = Hasher::new();
        hasher.field("squash 2");
        for tree in trees {
            hasher.field(tree.name());
        }
        let key: CacheKey = hasher.finish();
        let fill = |dir: &RootDir| {
            trees.iter().try_for_each(|tree| self.store.lazy_trees().materialize(session.work, tree))?;
            let open = trees.iter().map(|tree| self.store.trees().tree(tree)).collect::<Result<Vec<_>>>()?;
            Ok::<_, StoreError>(merge(&open, &dir.sub("fs")?, MergedFiles::Linked, MergedWhiteouts::Kept)?)
        };
        session.tree_once(Lock::Squash, &key, fill).map(Once::into_inner)
    }

    /// Packs a view of a complete file system into one layer, and stores its blob.
    ///
    /// # Errors
    ///
    /// Fails if the view cannot be read or the blob cannot be written.
    #[tracing::instrument(target = "store", name = "pack", level = "debug", skip_all)]
    pub fn pack_view(&self, work: &Workspace, view: &RootDir, variant: LayerVariant) -> Result<PackedLayer> {
        let mut blob = self.new_blob(work)?;
        let packed = pack_whole(view, variant.form, variant.times(), &mut blob).map_err(|e| self.of_blob(e))?;
        let layer = PackedLayer::new(&packed, variant.form);
        blob.publish(self.store, &layer.digest, layer.size)?;
        self.note_made_layer(&layer)?;
        Ok(layer)
    }

    /// Packs changes in the form of an overlay into one layer, and stores its blob.
    ///
    /// # Errors
    ///
    /// Fails if a file cannot be read or the blob cannot be written.
    pub fn pack_changes(&self, work: &Workspace, changes: &RootDir, variant: LayerVariant) -> Result<PackedLayer> {
        let mut blob = self.new_blob(work)?;
        let packed = pack_layer(changes, variant.form, variant.times(), &mut blob).map_err(|e| self.of_blob(e))?;
        let layer = PackedLayer::new(&packed, variant.form);
        blob.publish(self.store, &layer.digest, layer.size)?;
        self.note_made_layer(&layer)?;
        Ok(layer)
    }

    /// Returns a layer of an image in another form, repacking it if necessary.
    ///
    /// # Errors
    ///
    /// Fails if the layer cannot be read, if its diffID is wrong, or if the blob cannot be written.
    #[tracing::instrument(target = "store", name = "repack", level = "debug", skip_all)]
    pub fn repack_layer(
        &self,
        work: &Workspace,
        layer: &Descriptor,
        diff_id: &DiffId,
        form: LayerForm,
    ) -> Result<PackedLayer> {
        let document = format!("{}-{}.repacked", diff_id.hex(), form.name());
        if let Some(packed) = self.packed_layer(&format!("layers/{document}"))? {
            return Ok(packed);
        }
        let source = digest(layer)?;
        let mut blob = self.new_blob(work)?;
        let packed =
            repack_layer(self.store.blobs().open_blob(&source)?, form, &mut blob).map_err(|e| self.of_blob(e))?;
        compare_content(&source, diff_id, packed.diff_id)?;
        let made = PackedLayer::new(&packed, form);
        blob.publish(self.store, &made.digest, made.size)?;
        self.note_made_layer(&made)?;
        self.store.write("layers", &document, &made)?;
        Ok(made)
    }

    /// Returns the uncompressed size of a layer in bytes, which Docker reports as the size of
    /// images. It is taken from the store's notes, or else determined from the blob.
    ///
    /// # Errors
    ///
    /// Fails if the blob is missing or cannot be decompressed.
    pub fn layer_size(&self, layer: &Descriptor, diff_id: &DiffId) -> Result<u64> {
        if let Some(size) = self.store.read_if_whole(&format!("layers/{}.size", diff_id.hex()))? {
            return Ok(size);
        }
        let bytes = self.store.blobs().unpacked_size(&digest(layer)?)?;
        // A read-only store remains usable.
        let _ = self.put_layer_size(diff_id, bytes);
        Ok(bytes)
    }

    /// Records size and content of a stored layer that was packed here.
    pub(crate) fn note_made_layer(&self, layer: &PackedLayer) -> Result<()> {
        self.put_layer_size(&layer.diff_id, layer.unpacked)?;
        self.store.blobs().note_layer(&layer.digest, &layer.diff_id)
    }

    pub(crate) fn put_layer_size(&self, diff_id: &DiffId, bytes: u64) -> Result<()> {
        self.store.write("layers", &format!("{}.size", diff_id.hex()), &bytes)
    }

    /// Returns the uncompressed layer of a tree, if it exists and its blob is verified.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn plain_layer(&self, tree: &TreeId) -> Result<Option<File>> {
        Ok(self.plain_layer_file(tree)?.map(|(_, file)| file))
    }

    /// Returns the uncompressed layer of a tree like [`Self::plain_layer`], with its description.
    pub(crate) fn plain_layer_file(&self, tree: &TreeId) -> Result<Option<(PackedLayer, File)>> {
        let Some(layer) = self.plain_layer_of(tree)? else { return Ok(None) };
        Ok(self.store.blobs().open_verified(&layer.digest)?.map(|file| (layer, file)))
    }

    /// Returns the layers of a tree, in all forms in which the store has them.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn packed(&self, tree: &TreeId) -> Result<Vec<BlobDigest>> {
        self.packed_blobs(OsStr::new(&tree.name()))
    }

    /// Returns the blobs of all layers packed from the tree in that directory of `trees`.
    pub(crate) fn packed_blobs(&self, dir: &OsStr) -> Result<Vec<BlobDigest>> {
        let mut blobs = Vec::new();
        for entry in self.store.dir("trees")?.sub(dir)?.entries()? {
            let name = entry.name.to_string_lossy();
            if name.starts_with("layer") && name.ends_with(".json") {
                let path = format!("trees/{}/{name}", dir.to_string_lossy());
                blobs.extend(self.packed_layer(&path).ok().flatten().map(|p| p.digest));
            }
        }
        Ok(blobs)
    }

    /// Returns a layer packed earlier, if its blob still exists.
    pub(crate) fn packed_layer(&self, document: &str) -> Result<Option<PackedLayer>> {
        let found: Option<PackedLayer> = self.store.read_if_whole(document)?;
        match found {
            Some(p) if p.is_current() && self.store.blobs().has_complete_blob(&p.digest, p.size)? => Ok(Some(p)),
            _ => Ok(None),
        }
    }
}
