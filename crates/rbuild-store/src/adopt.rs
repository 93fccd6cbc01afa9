//! Conversion of trees between given and recorded owners.
//!
//! The result of a step is the same in every isolation mode, but its files on disk are not. Of a
//! tree with the other kind of owners, only its packed layer can be reused: the tree is stored a
//! second time as that layer, and unpacked when its files are needed.

use std::ffi::OsStr;

use rbuild_image::{Digest, Hasher};
use rbuild_linux::{KeyLock, RootDir};

use crate::error::Result;
use crate::layers::PackedLayer;
use crate::layout::Store;
use crate::records::Record;
use crate::trees::{LISTING, TreeId};
use crate::workspace::Workspace;

impl Store {
    /// Adopts the result of the step `key` from `theirs`, a record of a tree with the other kind of
    /// owners. Returns `None` if no layer of the whole tree exists.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read or written, or if the build is stopped.
    pub fn adopt(&self, work: &Workspace, key: &Digest, theirs: &Record, build: &str) -> Result<Option<Record>> {
        let tree = theirs.tree.with_owners(self.owners());
        let Some(own_key) = tree.key() else { return Ok(None) };
        let _alone = self.lock_tree(&tree)?;
        match self.record(&own_key)? {
            // Several keys may refer to one tree, which may already be in use.
            Some(known) if known.tree == tree => {}
            // The step was run again here. Its earlier tree may still be in use and is not known to
            // be complete.
            Some(_) => return Ok(None),
            None => {
                if !self.copy_as_layer(work, &theirs.tree, &tree)? {
                    return Ok(None);
                }
                self.put_record(&own_key, &tree, &theirs.result, theirs.created, build)?;
            }
        }
        if own_key != *key {
            self.put_record(key, &tree, &theirs.result, theirs.created, build)?;
        }
        self.record(key)
    }

    /// Creates `tree` from the layer packed from `theirs`. Returns false if there is no such layer.
    fn copy_as_layer(&self, work: &Workspace, theirs: &TreeId, tree: &TreeId) -> Result<bool> {
        let from = self.dir(&format!("trees/{}", theirs.name()))?;
        let Some((document, layer)) = self.whole_layer(theirs, &from)? else { return Ok(false) };
        let (path, made) = work.new_dir()?;
        for note in [&document, LISTING, crate::secrets::NOTE] {
            match made.hard_link(&from, OsStr::new(note), OsStr::new(note)) {
                Err(e) if !e.is_not_found() => return Err(e.into()),
                _ => {}
            }
        }
        self.put_folded(&made, document, &layer)?;
        self.commit_tree(work, &path, tree)?;
        Ok(true)
    }

    /// Waits until no other process is publishing a tree with that name.
    ///
    /// # Errors
    ///
    /// Fails if the lock cannot be taken, or if the build is stopped.
    pub fn lock_tree(&self, tree: &TreeId) -> Result<KeyLock> {
        let mut hasher = Hasher::new();
        hasher.field("tree").field(tree.name());
        self.lock_step(&hasher.finish())
    }

    /// Returns a layer of the whole tree, and the name of its document in the tree's directory.
    fn whole_layer(&self, tree: &TreeId, dir: &RootDir) -> Result<Option<(String, PackedLayer)>> {
        let mut names: Vec<String> =
            dir.entries()?.into_iter().map(|entry| entry.name.to_string_lossy().into_owned()).collect();
        names.retain(|name| name.starts_with("layer-") && name.ends_with(".json"));
        names.sort_unstable();
        for name in names {
            match self.packed_layer(&format!("trees/{}/{name}", tree.name()))? {
                Some(layer) if layer.root.is_some() => return Ok(Some((name, layer))),
                _ => {}
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use rbuild_layer::{Compression, LayerForm};

    use super::*;
    use crate::layout::Owners;

    #[test]
    fn a_record_is_everybodys_and_its_tree_is_adopted_from_its_layer() {
        let place = std::env::temp_dir().join(format!("rbuild-adopt-{}", std::process::id()));
        let given = Store::open(&place).unwrap();
        let recorded = given.moved(&place).unwrap().expecting(Owners::Recorded);
        let key = Digest::of(b"a step");
        for (made_by, other) in [(&given, &recorded), (&recorded, &given)] {
            let work = Workspace::open(made_by).unwrap();
            let (path, made) = made_by.new_tree(&work).unwrap();
            made.sub("fs").unwrap().create_file(OsStr::new("f"), 0o600).unwrap();
            let tree = made_by.step_tree(&key);
            made_by.commit_tree(&work, &path, &tree).unwrap();
            made_by.put_record(&key, &tree, &key, 7, "build").unwrap();

            assert!(other.record(&key).unwrap().is_none());
            let theirs = other.any_record(&key).unwrap().unwrap();
            assert!(theirs.tree == tree && !other.is_ours(&tree) && made_by.is_ours(&tree));
            assert!(other.adopt(&work, &key, &theirs, "other").unwrap().is_none(), "there is no layer of it");
            let form = LayerForm { compression: Compression::None, level: None };
            made_by.pack_tree(&work, &tree, form, Some(5), &|| false).unwrap();
            assert!(
                other.adopt(&work, &key, &theirs, "other").unwrap().is_none(),
                "the times in it are not the tree's"
            );
            let layer = made_by.pack_tree(&work, &tree, form, None, &|| false).unwrap();
            let ours = other.adopt(&work, &key, &theirs, "other").unwrap().unwrap();
            assert!(other.is_ours(&ours.tree) && (ours.result, ours.created) == (key, 7));
            assert_eq!(other.pack_tree(&work, &ours.tree, form, None, &|| false).unwrap(), layer);

            other.forget_others_record(&key).unwrap();
            assert!(made_by.record(&key).unwrap().is_none() && other.record(&key).unwrap().is_some());
            made_by.forget_others_record(&key).unwrap();
        }
        std::fs::remove_dir_all(&place).unwrap();
    }
}
