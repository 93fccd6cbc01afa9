//! Trees of steps whose files have the other kind of owners.
//!
//! This store's builder cannot use the files of such a tree. But if a layer was packed from the
//! tree, and the store has the [`Remainder`] of the layer, the same tree can be made again with the
//! right owners: as a lazy tree, which is unpacked when its files are needed.

use std::ffi::OsStr;

use rbuild_image::Hasher;
use rbuild_layer::Remainder;
use rbuild_linux::RootDir;

use crate::cache::records::{ForeignRecord, Record, RecordedStep};
use crate::error::Result;
use crate::ids::CacheKey;
use crate::layers::{PackedLayer, REMAINDER};
use crate::modes;
use crate::secrets;
use crate::session::Session;
use crate::trees::id::TreeId;
use crate::trees::lazy::LazyNote;
use crate::trees::lazy::LazyTrees;
use crate::trees::tree::LISTING;

impl LazyTrees<'_> {
    /// Returns true if [`LazyTrees::adopt`] can make the files of a record.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn is_adoptable(&self, theirs: &ForeignRecord) -> Result<bool> {
        Ok(self.exact_layer(&theirs.0.tree)?.is_some())
    }

    /// Makes the files of a record with this store's kind of owners, and stores the record of `key`
    /// for them. Returns `None` if that is not possible. The caller holds the lock of
    /// [`ForeignRecord::lock_key`].
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read or written.
    #[tracing::instrument(target = "store", name = "adopt", level = "debug", skip_all, fields(key = %key.short()))]
    pub fn adopt(&self, session: Session<'_>, key: &CacheKey, theirs: &ForeignRecord) -> Result<Option<Record>> {
        let Session { work, build, .. } = session;
        // A record of this kind is never replaced by one of the other.
        if let Some(own) = self.store.records().record(key)? {
            return Ok(Some(own));
        }
        let ForeignRecord(theirs) = theirs;
        let Some(note) = self.exact_layer(&theirs.tree)? else { return Ok(None) };
        let (path, made) = work.new_dir_with(modes::dir())?;
        self.link_notes(&theirs.tree, &made)?;
        self.put_lazy_note(&made, &note)?;
        // The name is unique, so a tree that is in use is never replaced.
        let mut name = Hasher::new();
        name.field("adopted")
            .field(theirs.tree.name())
            .field(path.as_os_str().as_encoded_bytes())
            .field(build.as_str());
        let tree = self.store.trees().step_tree(&name.finish());
        self.store.trees().commit_tree(work, &path, &tree)?;
        let shared = theirs.shared.as_ref().unwrap_or(key);
        let origin = theirs.origin.as_ref();
        let step = RecordedStep { tree: &tree, result: theirs.result, created: theirs.created, origin };
        session.put_record_of(key, shared, &step)?;
        self.store.records().record(key)
    }

    /// Returns the note of a lazy tree that equals a tree, except for the representation of owners.
    fn exact_layer(&self, tree: &TreeId) -> Result<Option<LazyNote>> {
        let remainder = self.store.trees().tree_note(tree, REMAINDER)?;
        let of = |layer: &PackedLayer| {
            let remainder = Remainder::from_bytes(&remainder, &layer.diff_id)?;
            self.store.can_own_up_to(remainder.highest_ids).then_some(remainder)
        };
        if let Some(note) = self.lazy_note(tree)? {
            let layer = self.store.layers().packed_layer(&format!("trees/{}/{}", tree.name(), note.layer))?;
            let whole = layer.is_some_and(|layer| !note.exact || of(&layer).is_some());
            return Ok(whole.then(|| note.not_unpacked()));
        }
        let mut layers = self.layers_of(tree)?;
        layers.retain(|(_, layer)| of(layer).is_some());
        // The layer that needs no decompression comes first.
        layers.sort_by_key(|(_, layer)| layer.digest != layer.diff_id.plain_blob());
        let Some((document, layer)) = layers.first() else { return Ok(None) };
        Ok(of(layer).map(|remainder| LazyNote::exact(document, &remainder)))
    }

    /// Returns the layers packed from a tree whose blobs exist, with the names of their documents.
    fn layers_of(&self, tree: &TreeId) -> Result<Vec<(String, PackedLayer)>> {
        let place = format!("trees/{}", tree.name());
        let mut layers = Vec::new();
        for entry in self.store.dir(&place)?.entries()? {
            let name = entry.name.to_string_lossy().into_owned();
            if is_layer_document(&name) {
                layers.extend(self.store.layers().packed_layer(&format!("{place}/{name}"))?.map(|layer| (name, layer)));
            }
        }
        Ok(layers)
    }

    /// Links the notes of a tree that do not depend on the representation of owners.
    fn link_notes(&self, tree: &TreeId, made: &RootDir) -> Result<()> {
        let from = self.store.dir(format!("trees/{}", tree.name()))?;
        for entry in from.entries()? {
            let name = entry.name.to_string_lossy();
            if is_layer_document(&name) || [REMAINDER, LISTING, secrets::NOTE].contains(&&*name) {
                made.hard_link(&from, &entry.name, OsStr::new(&*name))?;
            }
        }
        Ok(())
    }
}

fn is_layer_document(name: &str) -> bool {
    name.starts_with("layer-") && name.ends_with(".json")
}

#[cfg(test)]
mod tests {
    use rbuild_layer::LayerForm;
    use rbuild_linux::{OwnerMode, Timestamp};
    use rbuild_testkit::Scratch;

    use super::*;
    use crate::ids::{BuildId, ResultId};
    use crate::layers::LayerVariant;
    use crate::session::record_tree;
    use crate::store::Store;
    use crate::trees::tree::NewTree;
    use crate::workspace::Workspace;

    const PLAIN: LayerVariant = LayerVariant { form: LayerForm::Uncompressed, latest: None };

    struct Scene {
        given: Store,
        recorded: Store,
        place: Scratch,
    }

    impl Scene {
        fn new() -> Scene {
            let place = Scratch::new();
            let given = Store::open(&place).unwrap();
            let recorded =
                given.at_path(&place, OwnerMode::Given).unwrap().with_builder_owners(OwnerMode::Recorded, None);
            Scene { given, recorded, place }
        }

        /// Makes the tree and the record of a step.
        fn step(&self, of: &Store, work: &Workspace, key: &CacheKey, fill: impl Fn(&RootDir)) -> TreeId {
            let NewTree { path, dir: made } = of.trees().new_tree(work).unwrap();
            fill(&made.sub("fs").unwrap());
            let tree = of.trees().step_tree(&ResultId::of(path.as_os_str().as_encoded_bytes()));
            of.trees().commit_tree(work, &path, &tree).unwrap();
            let (result, build) = (ResultId::of(tree.name().as_bytes()), BuildId::of_command("build"));
            Session::new(of, work, &build, 7).put_record(key, &tree, result).unwrap();
            tree
        }
    }

    fn file(fs: &RootDir) {
        fs.create_file(OsStr::new("f"), 0o640).unwrap();
        fs.set_mtime(OsStr::new("f"), Timestamp { sec: 5, nsec: 123_456_789 }).unwrap();
        let own = rbuild_linux::credentials::own_ids();
        fs.set_own_meta(own, 0o1711, Timestamp { sec: 6, nsec: 7 }).unwrap();
    }

    #[test]
    fn a_tree_made_from_its_layer_equals_the_original() {
        let scene = Scene::new();
        for (n, (of, other)) in
            [(&scene.given, &scene.recorded), (&scene.recorded, &scene.given)].into_iter().enumerate()
        {
            let key = CacheKey::of(&[n as u8]);
            let work = Workspace::open(of).unwrap();
            let tree = scene.step(of, &work, &key, file);
            assert_eq!(other.records().record(&key).unwrap(), None);
            let theirs = other.records().foreign_record(&key).unwrap().unwrap();
            assert!(!other.lazy_trees().is_adoptable(&theirs).unwrap(), "there is no layer of it");
            of.layers().pack_tree(&work, &tree, LayerVariant { latest: Some(4), ..PLAIN }, &|| false).unwrap();
            let build = BuildId::of_command("b");
            let adopted = || other.lazy_trees().adopt(Session::new(other, &work, &build, 9), &key, &theirs).unwrap();
            assert_eq!(adopted(), None, "the times in the layer are others");
            let layer = of.layers().pack_tree(&work, &tree, PLAIN, &|| false).unwrap();
            assert!(other.lazy_trees().is_adoptable(&theirs).unwrap());
            let own = adopted().unwrap();
            assert_eq!((own.result, own.created), (theirs.result(), 7));
            assert_ne!(own.tree, tree);
            assert_eq!(adopted(), Some(own.clone()), "once");

            other.lazy_trees().materialize(&work, &own.tree).unwrap();
            let (a, b) = (of.trees().tree(&tree).unwrap(), other.trees().tree(&own.tree).unwrap());
            let described = |fs: &RootDir| {
                let (root, file) = (fs.stat_self().unwrap(), fs.stat("f").unwrap());
                (root.mode, root.mtime, file.mode, file.mtime, file.size)
            };
            assert_eq!(described(&a), described(&b));
            assert_eq!(other.layers().pack_tree(&work, &own.tree, PLAIN, &|| false).unwrap(), layer);
            assert_eq!(of.records().record(&key).unwrap().unwrap().tree, tree, "the first record stays");
        }
    }

    #[test]
    fn trees_that_a_layer_cannot_describe_are_not_adopted() {
        let scene = Scene::new();
        let (of, other) = (&scene.given, &scene.recorded);
        let (key, work) = (CacheKey::of(b"step"), Workspace::open(of).unwrap());
        let tree = scene.step(of, &work, &key, |_| ());
        // The path of a socket is short.
        let socket = scene.place.join("s");
        std::os::unix::net::UnixListener::bind(&socket).unwrap();
        std::fs::rename(socket, of.trees().tree_path(&tree).join("socket")).unwrap();
        of.layers().pack_tree(&work, &tree, PLAIN, &|| false).unwrap();
        let theirs = other.records().foreign_record(&key).unwrap().unwrap();
        assert!(!other.lazy_trees().is_adoptable(&theirs).unwrap());
        assert_eq!(
            other.lazy_trees().adopt(Session::new(other, &work, &BuildId::of_command("b"), 9), &key, &theirs).unwrap(),
            None
        );
    }

    #[test]
    fn a_lazy_tree_is_adopted_as_it_is() {
        let scene = Scene::new();
        let (of, other) = (&scene.given, &scene.recorded);
        let (key, work) = (CacheKey::of(b"copy"), Workspace::open(of).unwrap());
        let NewTree { path, dir: made } = of.trees().new_tree(&work).unwrap();
        file(&made.sub("fs").unwrap());
        of.lazy_trees().store_as_layer(&work, &made, Default::default(), PLAIN.form, &|| false).unwrap();
        let tree = of.trees().step_tree(&key.into());
        of.trees().commit_tree(&work, &path, &tree).unwrap();
        record_tree(of, &key, &tree);
        let theirs = other.records().foreign_record(&key).unwrap().unwrap();
        let own = other
            .lazy_trees()
            .adopt(Session::new(other, &work, &BuildId::of_command("b"), 9), &key, &theirs)
            .unwrap()
            .unwrap();
        for (store, tree) in [(of, &tree), (other, &own.tree)] {
            store.lazy_trees().materialize(&work, tree).unwrap();
        }
        let root = |store: &Store, tree: &TreeId| {
            let stat = store.trees().tree(tree).unwrap().stat_self().unwrap();
            (stat.mode, stat.mtime)
        };
        assert_eq!(root(of, &tree), root(other, &own.tree));
    }
}
