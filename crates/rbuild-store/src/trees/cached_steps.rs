//! Steps in caches outside the store: results whose files are layers, which can be made into trees
//! of any store.
//!
//! A layer has times of whole seconds. So has a tree that is made from one, as if it came from an
//! image.

use std::ops::RangeInclusive;

use rbuild_image::{BlobDigest, Descriptor, DiffId, Hasher, MediaType};
use rbuild_layer::{LayerError, LayerForm, Packed, Remainder, examine};
use rbuild_linux::{RootDir, Timestamp, UidGid};
use serde::{Deserialize, Deserializer, Serialize};

use crate::cache::build_index::KeyInputs;
use crate::cache::records::{Record, RecordOrigin, RecordedStep};
use crate::cache_mounts::CacheMount;
use crate::contents::{compare, compare_content};
use crate::error::{Result, StoreError};
use crate::ids::{CacheId, CacheKey, ResultId};
use crate::layers::{LayerVariant, PackedLayer, REMAINDER};
use crate::modes;
use crate::secrets::{NOTE, Verdict};
use crate::session::Session;
use crate::store::document;
use crate::trees::id::TreeId;
use crate::trees::lazy::{LazyNote, LazyTrees, RootMeta};
use crate::trees::tree::LayerDigests;
use crate::workspace::Workspace;

/// A step in a cache: its keys, its result, and the layer with its files. Serialized, it is a line
/// of the cache's records (docs/formats/cache.md); unknown fields are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedStep {
    /// The definition key.
    #[serde(rename = "k")]
    pub key: CacheKey,
    /// Another key of the same files, if there is one.
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<CacheKey>,
    /// The result, which dependent steps hash into their keys.
    #[serde(rename = "r")]
    pub result: ResultId,
    /// The layer with the files.
    #[serde(flatten)]
    pub layer: StepLayer,
    /// Creation time of the files in seconds since the Unix epoch.
    #[serde(rename = "c")]
    pub created: i64,
    /// Name of the machine that made the result, if it is known.
    #[serde(rename = "b", default, skip_serializing_if = "Option::is_none", deserialize_with = "printable")]
    pub runner: Option<String>,
    /// Day of the last use, counted from the Unix epoch.
    #[serde(rename = "n", default)]
    pub used: i64,
    /// True if the step mounted secrets and its files were searched for them.
    #[serde(rename = "x", default, skip_serializing_if = "is_false")]
    pub is_searched: bool,
    /// The inputs of the key, for explanations.
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    pub note: Option<Box<StepNote>>,
    /// The cache mount whose content the layer is; `None` for a step.
    #[serde(rename = "v", default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<MountNote>,
}

/// A step in words, by which a build explains why it has another key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepNote {
    /// Name of its stage.
    #[serde(rename = "s", default)]
    pub stage: String,
    /// Number within the stage, from 1.
    #[serde(rename = "n", default)]
    pub number: usize,
    /// The instruction.
    #[serde(rename = "t", default)]
    pub text: String,
    /// The parts of the key.
    #[serde(flatten)]
    pub inputs: KeyInputs,
}

/// A cache mount in a cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountNote {
    /// Identifier of the mount.
    pub id: CacheId,
    /// The ID in the Dockerfile.
    pub name: String,
}

/// The seconds that dates of documents can express: those of the years 1 to 9999.
const SECONDS_OF_DATES: RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

impl CachedStep {
    /// Returns a step of which only these facts are known.
    pub fn new(key: CacheKey, result: ResultId, layer: StepLayer, created: i64) -> CachedStep {
        CachedStep {
            key,
            shared: None,
            result,
            layer,
            created,
            runner: None,
            used: 0,
            is_searched: false,
            note: None,
            mount: None,
        }
    }

    /// Returns the origin of a step that a session imports from the cache with that name.
    pub fn origin(&self, session: Session<'_>, cache: &str) -> RecordOrigin {
        RecordOrigin { cache: cache.to_string(), runner: self.runner.clone(), imported: session.now }
    }

    /// Returns true if its times can be those of files and documents. Records of caches are not
    /// trusted.
    pub fn has_valid_times(&self) -> bool {
        let (sec, nsec) = self.layer.mtime;
        SECONDS_OF_DATES.contains(&self.created) && SECONDS_OF_DATES.contains(&sec) && nsec < 1_000_000_000
    }
}

/// Maximum length of the name of a machine in bytes.
const MAX_RUNNER: usize = 255;

/// Reads the name of a machine, which other machines state. One that cannot be printed is left out.
fn printable<'d, D: Deserializer<'d>>(from: D) -> std::result::Result<Option<String>, D::Error> {
    let name = Option::<String>::deserialize(from)?;
    Ok(name.filter(|name| name.len() <= MAX_RUNNER && !name.chars().any(char::is_control)))
}

fn is_false(value: &bool) -> bool {
    !value
}

/// The layer of a step's tree, with the metadata of the root directory, which layers lack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepLayer {
    /// Digest of the blob.
    #[serde(rename = "l")]
    pub blob: BlobDigest,
    /// Digest of the uncompressed layer.
    #[serde(rename = "d")]
    pub diff_id: DiffId,
    /// Media type of the blob.
    #[serde(rename = "m")]
    pub media_type: MediaType,
    /// Name of the form that it was packed in, such as `gzip` or `zstd-19`.
    #[serde(rename = "f")]
    pub form: String,
    /// Size of the blob in bytes.
    #[serde(rename = "s")]
    pub size: u64,
    /// Uncompressed size in bytes.
    #[serde(rename = "u")]
    pub unpacked: u64,
    /// Owner and mode of the root directory; `None` for those of the tree below.
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    root: Option<RootMeta>,
    /// Modification time of the root directory, in seconds and nanoseconds.
    #[serde(rename = "t")]
    mtime: (i64, u32),
    /// Highest user and group ID, if they are known.
    #[serde(rename = "i", default, skip_serializing_if = "Option::is_none")]
    highest_ids: Option<(u32, u32)>,
}

/// Returns the compression in the name of a form.
fn compression(form: &str) -> &str {
    form.split('-').next().unwrap_or_default()
}

impl StepLayer {
    /// Returns the name of the document of the layer next to a tree, unless the form is no word.
    fn document(&self) -> Option<String> {
        let is_word = (1..=24).contains(&self.form.len())
            && self.form.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        is_word.then(|| format!("layer-{}.json", self.form))
    }

    /// Returns the media type of layers in a form. Levels do not matter.
    pub fn media_type_of(form: &str) -> Option<MediaType> {
        match compression(form) {
            "uncompressed" => Some(MediaType::ImageLayer),
            "gzip" => Some(MediaType::ImageLayerGzip),
            "zstd" => Some(MediaType::ImageLayerZstd),
            _ => None,
        }
    }

    fn compression(&self) -> &str {
        compression(&self.form)
    }

    /// Returns everything that the record states about the content of the blob. Equal statements
    /// need to be checked only once.
    pub fn statement(&self) -> String {
        let StepLayer { blob, diff_id, media_type, form, size, highest_ids, .. } = self;
        format!("{blob} {diff_id} {media_type} {form} {size} {highest_ids:?}")
    }

    /// Returns a layer that another builder made, of which only the properties of the blob are
    /// known. Its root directory is that of the tree below.
    pub fn of_other_builder(blob: BlobDigest, size: u64, diff_id: DiffId, form: &str, created: i64) -> StepLayer {
        let media_type = StepLayer::media_type_of(form).unwrap_or(MediaType::ImageLayer);
        let (form, mtime) = (form.to_string(), (created, 0));
        StepLayer { blob, diff_id, media_type, form, size, unpacked: size, root: None, mtime, highest_ids: None }
    }

    /// Returns true if the media type is the one of the form. Records may state any.
    pub fn has_type_of_form(&self) -> bool {
        StepLayer::media_type_of(&self.form).as_ref() == Some(&self.media_type)
    }

    /// Returns the layer's descriptor for a manifest.
    pub fn descriptor(&self) -> Descriptor {
        self.packed().descriptor()
    }

    fn packed(&self) -> PackedLayer {
        let StepLayer { blob, diff_id, size, unpacked, ref media_type, .. } = *self;
        PackedLayer::of_other_store(&Packed { diff_id, digest: blob, size, unpacked }, media_type.clone())
    }
}

impl LazyTrees<'_> {
    /// Returns the layer of a step's tree in that form, if the store has it and if it describes the
    /// tree completely, except for fractions of seconds.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn cached_layer(&self, tree: &TreeId, form: LayerForm) -> Result<Option<StepLayer>> {
        let document = LayerVariant::exact(form).document();
        let Some(layer) = self.store.layers().packed_layer(&format!("trees/{}/{document}", tree.name()))? else {
            return Ok(None);
        };
        let remainder = Remainder::from_bytes(&self.store.trees().tree_note(tree, REMAINDER)?, &layer.diff_id);
        let (root, mtime, highest_ids) = match (remainder, self.lazy_note(tree)?) {
            (Some(rest), _) => {
                let root = RootMeta { owner: rest.root_owner, mode: rest.root_mode };
                let UidGid { uid, gid } = rest.highest_ids;
                (Some(root), (rest.root_mtime.sec, rest.root_mtime.nsec), Some((uid, gid)))
            }
            (None, Some(LazyNote { root, mtime: Some(mtime), exact: false, .. })) => (root, mtime, None),
            _ => return Ok(None),
        };
        let PackedLayer { diff_id, digest, size, unpacked, media_type, .. } = layer;
        let form = form.name();
        Ok(Some(StepLayer { blob: digest, diff_id, media_type, form, size, unpacked, root, mtime, highest_ids }))
    }

    /// Returns true if the store has the layer of a step's tree in that form.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn has_layer(&self, tree: &TreeId, form: LayerForm) -> Result<bool> {
        let document = LayerVariant::exact(form).document();
        Ok(self.store.layers().packed_layer(&format!("trees/{}/{document}", tree.name()))?.is_some())
    }

    /// Reads the layer of a cached step, which is a blob of the store, to its end, and compares it
    /// with the statements of its record.
    ///
    /// # Errors
    ///
    /// Fails if the blob is missing or cannot be read, if it cannot be unpacked here, or if a
    /// statement is wrong.
    pub fn check_cached_layer(&self, layer: &StepLayer) -> Result<()> {
        let StepLayer { blob, diff_id, media_type, highest_ids, .. } = layer;
        let bad = |problem: String| StoreError::InvalidLayer { blob: *blob, source: LayerError::Damaged(problem) };
        if self.store.blobs().is_unusable(blob, diff_id)? {
            return Err(bad("it could not be unpacked in this store".into()));
        }
        let found = examine(self.store.blobs().open_blob(blob)?, self.store.limits())
            .map_err(|e| if e.is_of_content() { self.store.blobs().invalid_layer(blob, e) } else { e.into() })?;
        compare(blob, found.digest)?;
        compare_content(blob, diff_id, found.diff_id)?;
        if layer.compression() != found.compression.name() || !layer.has_type_of_form() {
            let (form, is) = (&layer.form, found.compression.name());
            return Err(bad(format!("its record states the form {form:?} and the type {media_type}; it is {is}")));
        }
        let UidGid { uid, gid } = found.highest_ids;
        let is_as_stated = highest_ids.is_none_or(|(most_uid, most_gid)| uid <= most_uid && gid <= most_gid);
        if !is_as_stated || (highest_ids.is_none() && !self.store.can_own_up_to(found.highest_ids)) {
            return Err(bad(format!("its files have owners up to {uid}:{gid}, which its record does not state")));
        }
        self.store.blobs().note_layer(blob, diff_id)
    }

    /// Unpacks the layer of a cache mount, which is a blob of the store, into its new directory.
    /// After an error, the directory is empty.
    ///
    /// # Errors
    ///
    /// Fails if the layer cannot be unpacked.
    pub fn unpack_cached_layer(&self, layer: &StepLayer, dir: &RootDir) -> Result<()> {
        let digests = LayerDigests { blob: layer.blob, diff_id: layer.diff_id };
        if let Err(e) = self.store.trees().unpack_verified(&digests, dir, None) {
            for entry in dir.entries()? {
                dir.remove_all(&entry.name)?;
            }
            return Err(e);
        }
        let RootMeta { owner, mode } = layer.root.unwrap_or(RootMeta::USUAL);
        let (sec, nsec) = layer.mtime;
        Ok(dir.set_own_meta(owner, mode & 0o7777, Timestamp { sec, nsec })?)
    }

    /// Packs a cache mount into a layer.
    ///
    /// # Errors
    ///
    /// Fails if a file cannot be read or be part of a layer, or if the layer cannot be written.
    pub fn pack_mount(&self, work: &Workspace, mount: &CacheMount, variant: LayerVariant) -> Result<StepLayer> {
        let PackedLayer { diff_id, digest, size, unpacked, media_type, .. } =
            self.store.layers().pack_view(work, &mount.dir, variant)?;
        let stat = mount.dir.stat_self()?;
        let root = Some(RootMeta { owner: stat.owner(), mode: stat.mode });
        let mtime = (stat.mtime.sec, stat.mtime.nsec);
        let form = variant.form.name();
        Ok(StepLayer { blob: digest, diff_id, media_type, form, size, unpacked, root, mtime, highest_ids: None })
    }

    /// Makes the tree of a cached step whose layer is a blob of the store, and stores its record.
    /// The tree is unpacked when its files are needed. `origin` is the name of the cache. Returns
    /// `None` if the builder cannot use the layer. The caller holds the lock of the step.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read or written.
    #[tracing::instrument(
        target = "store",
        name = "import",
        level = "debug",
        skip_all,
        fields(key = %step.key.short())
    )]
    pub fn import_step(&self, session: Session<'_>, step: &CachedStep, origin: &str) -> Result<Option<Record>> {
        if let Some(own) = self.store.records().record(&step.key)? {
            return Ok(Some(own));
        }
        let StepLayer { root, mtime, highest_ids, .. } = step.layer;
        let highest = highest_ids.map(|(uid, gid)| UidGid { uid, gid });
        let is_usable =
            [highest, root.map(|root| root.owner)].into_iter().flatten().all(|ids| self.store.can_own_up_to(ids));
        let Some(name) = step.layer.document().filter(|_| is_usable) else { return Ok(None) };
        let (path, made) = session.work.new_dir_with(modes::dir())?;
        self.store.trees().put_note(&made, &name, &document(&name, &step.layer.packed())?)?;
        if step.is_searched {
            self.store.trees().put_note(
                &made,
                NOTE,
                &document(NOTE, &Verdict { is_complete: true, ..Verdict::default() })?,
            )?;
        }
        // The kind of the file is not part of the mode.
        let root = root.map(|root| RootMeta { mode: root.mode & 0o7777, ..root });
        self.put_lazy_note(
            &made,
            &LazyNote { layer: name, root, mtime: Some(mtime), exact: false, imported: true, boot: None },
        )?;
        // The name is unique, so a tree that is in use is never replaced.
        let mut hasher = Hasher::new();
        hasher.field("imported").field(path.as_os_str().as_encoded_bytes()).field(session.build.as_str());
        let tree = self.store.trees().step_tree(&hasher.finish());
        self.store.trees().commit_tree(session.work, &path, &tree)?;
        let shared = step.shared.as_ref().unwrap_or(&step.key);
        let origin = step.origin(session, origin);
        let recorded = RecordedStep { tree: &tree, result: step.result, created: step.created, origin: Some(&origin) };
        session.put_record_of(&step.key, shared, &recorded)?;
        if let Some(note) = &step.note {
            self.store.records().put_key_inputs(&step.key, &note.inputs)?;
        }
        self.store.records().record(&step.key)
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use rbuild_testkit::Scratch;

    use super::*;
    use crate::cache::records::LayerOrigin;
    use crate::ids::BuildId;
    use crate::store::Store;
    use crate::trees::tree::NewTree;

    fn cached(store: &Store, tree: &TreeId, key: &CacheKey) -> Option<CachedStep> {
        let layer = store.lazy_trees().cached_layer(tree, LayerForm::GZIP).unwrap()?;
        let (result, shared) = (ResultId::of(b"result"), Some(CacheKey::of(b"shared")));
        Some(CachedStep {
            shared,
            runner: Some("one".into()),
            used: 20_000,
            is_searched: true,
            ..CachedStep::new(*key, result, layer, 7)
        })
    }

    #[test]
    fn a_step_is_made_again_in_another_store() {
        let (here, there) = (Scratch::new(), Scratch::new());
        let (from, to) = (Store::open(&here).unwrap(), Store::open(&there).unwrap());
        let (work, key) = (Workspace::open(&from).unwrap(), CacheKey::of(b"step"));
        let NewTree { path, dir: made } = from.trees().new_tree(&work).unwrap();
        let fs = made.sub("fs").unwrap();
        fs.create_file(OsStr::new("f"), 0o640).unwrap();
        fs.set_mtime(OsStr::new("f"), Timestamp { sec: 5, nsec: 123_456_789 }).unwrap();
        fs.set_own_meta(rbuild_linux::credentials::own_ids(), 0o1711, Timestamp { sec: 6, nsec: 7 }).unwrap();
        let tree = from.trees().step_tree(&ResultId::of(b"result"));
        from.trees().commit_tree(&work, &path, &tree).unwrap();
        assert_eq!(cached(&from, &tree, &key), None, "it is not packed");
        from.layers().pack_tree(&work, &tree, LayerVariant::exact(LayerForm::GZIP), &|| false).unwrap();
        let step = cached(&from, &tree, &key).unwrap();

        let line = serde_json::to_string(&step).unwrap();
        assert!(line.starts_with(&format!("{{\"k\":\"sha256:{}\",\"a\":\"sha256:", key.hex())), "{line}");
        let more = line.replacen('{', "{\"unknown\":[1],", 1);
        assert_eq!(serde_json::from_str::<CachedStep>(&more).unwrap(), step);

        let (work, build) = (Workspace::open(&to).unwrap(), BuildId::of_command("b"));
        let session = Session::new(&to, &work, &build, 9);
        assert_eq!(to.lazy_trees().import_step(session, &step, "a cache").unwrap(), None, "the blob is missing");
        let blob = from.blobs().open_blob(&step.layer.blob).unwrap();
        assert_eq!(to.blobs().put_blob(&work, blob).unwrap().0, step.layer.blob);
        let record = to.lazy_trees().import_step(session, &step, "a cache").unwrap().unwrap();
        assert_eq!((record.result, record.created, record.shared), (step.result, 7, step.shared));
        let origin = RecordOrigin { cache: "a cache".into(), runner: Some("one".into()), imported: 9 };
        assert_eq!(record.origin, Some(origin.clone()));
        let layer = step.layer.diff_id;
        assert_eq!(to.records().origins(&[layer]).unwrap(), [LayerOrigin { layer, origin }]);
        assert!(to.records().origins(&[]).unwrap().is_empty());
        assert_eq!(to.lazy_trees().import_step(session, &step, "a cache").unwrap(), Some(record.clone()), "once");
        assert!(to.secrets().may_use(&record.tree, true, &[]).unwrap());
        assert_eq!(to.lazy_trees().unpacked_tree(&record.tree).unwrap().map(drop), None, "it is not unpacked");

        to.lazy_trees().materialize(&work, &record.tree).unwrap();
        let fs = to.trees().tree(&record.tree).unwrap();
        let (root, file) = (fs.stat_self().unwrap(), fs.stat("f").unwrap());
        assert_eq!((root.mode, root.mtime), (0o1711, Timestamp { sec: 6, nsec: 7 }));
        assert_eq!((file.mode, file.mtime), (0o640, Timestamp { sec: 5, nsec: 0 }));
        // It can be cached again, in this form and in others.
        assert_eq!(cached(&to, &record.tree, &key).unwrap().layer.blob, step.layer.blob);
        let plain = LayerVariant::exact(LayerForm::Uncompressed);
        let packed = to.layers().pack_tree(&work, &record.tree, plain, &|| false).unwrap();
        assert_eq!(packed.digest, step.layer.diff_id.plain_blob());
        assert_eq!(step.layer.packed().descriptor().size(), step.layer.size);
        assert!(to.gc().check(false).unwrap().damage.is_empty());
    }

    /// Bytes that are no archive, and wrong statements of the record.
    #[test]
    fn a_layer_must_be_as_its_record_states() {
        let place = Scratch::new();
        let store = Store::open(&place)
            .unwrap()
            .with_builder_owners(rbuild_linux::OwnerMode::Given, Some(UidGid { uid: 65_535, gid: 65_535 }));
        let work = Workspace::open(&store).unwrap();
        let layer_of = |bytes: &[u8], form: &str, ids: Option<(u32, u32)>| {
            let (blob, size) = store.blobs().put_blob(&work, bytes).unwrap();
            let media_type = if form == "gzip" { MediaType::ImageLayerGzip } else { MediaType::ImageLayer };
            let root = Some(RootMeta::USUAL);
            let (diff_id, form) = (blob.of_plain_layer(), form.to_string());
            let layer =
                StepLayer { blob, diff_id, media_type, form, size, unpacked: 5, root, mtime: (0, 0), highest_ids: ids };
            store.lazy_trees().check_cached_layer(&layer).map_err(|e| rbuild_remedy::sentence(&e))
        };
        let archive = |uid: u64| {
            let mut tar = rbuild_layer::TarWriter::new(Vec::new());
            tar.entry(&rbuild_layer::TarEntry { uid, ..rbuild_layer::TarEntry::plain_file("f", 0) }).unwrap();
            tar.finish().unwrap()
        };
        layer_of(&archive(7), "uncompressed", Some((7, 0))).unwrap();
        layer_of(&archive(7), "uncompressed", None).unwrap();
        for (bytes, form, ids, want) in [
            (b"no archive".to_vec(), "uncompressed", None, "cannot be unpacked"),
            (archive(7), "gzip", None, "states the form \"gzip\""),
            (archive(5_000_000), "uncompressed", Some((0, 0)), "owners up to 5000000:0"),
            (archive(5_000_000), "uncompressed", None, "owners up to 5000000:0"),
        ] {
            let e = layer_of(&bytes, form, ids).unwrap_err();
            assert!(e.contains(want), "{want}: {e}");
        }
    }

    #[test]
    fn layers_that_the_builder_cannot_use_are_refused() {
        let place = Scratch::new();
        let store = Store::open(&place)
            .unwrap()
            .with_builder_owners(rbuild_linux::OwnerMode::Given, Some(UidGid { uid: 65_535, gid: 65_535 }));
        let (work, build) = (Workspace::open(&store).unwrap(), BuildId::of_command("b"));
        let (blob, size) = store.blobs().put_blob(&work, &b"layer"[..]).unwrap();
        for (form, ids, root_user, usable) in [
            ("gzip", Some((65_535, 65_535)), 65_535, true),
            ("gzip", Some((65_536, 0)), 0, false),
            ("gzip", None, 65_536, false),
            ("../../x", None, 0, false),
            ("", None, 0, false),
        ] {
            let layer = StepLayer {
                blob,
                diff_id: DiffId::of(b"diff"),
                media_type: MediaType::ImageLayerGzip,
                form: form.into(),
                size,
                unpacked: 5,
                root: Some(RootMeta { owner: UidGid { uid: root_user, gid: 0 }, mode: 0o40755 }),
                mtime: (0, 0),
                highest_ids: ids,
            };
            let key = CacheKey::of(format!("{form} {ids:?} {root_user}").as_bytes());
            let step = CachedStep::new(key, ResultId::of(b"r"), layer, 0);
            let session = Session::new(&store, &work, &build, 9);
            assert_eq!(
                store.lazy_trees().import_step(session, &step, "a cache").unwrap().is_some(),
                usable,
                "{form} {ids:?}"
            );
        }
    }
}
