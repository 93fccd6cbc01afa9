//! Notes on cache mounts: their IDs, which the names of their directories do not contain.

use serde::{Deserialize, Serialize};

use crate::cache_mounts::cache::CacheMounts;
use crate::error::Result;
use crate::ids::CacheId;
use crate::modes;

/// Directory of the notes.
pub(crate) const DIR: &str = "mount-ids";

/// A cache mount of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownMount {
    /// Identifier of the mount.
    pub id: CacheId,
    /// The ID in the Dockerfile.
    pub name: String,
    /// True if a build with secrets used it, or may have used it.
    pub may_hold_secrets: bool,
    /// Name of the cache outside the store from which it was restored, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
}

impl CacheMounts<'_> {
    /// Notes a cache mount that is being made. It must be noted before it can be used.
    ///
    /// # Errors
    ///
    /// Fails if the note cannot be written.
    pub fn note_new(&self, mount: &KnownMount) -> Result<()> {
        self.store.root.create_dir_all(DIR, modes::dir(), None, |_| ())?;
        self.store.write(DIR, &self.note_of(&mount.id), mount)
    }

    /// Notes the use of a cache mount, which keeps its origin. One without a note was made by an
    /// earlier version, so a build with secrets may have used it.
    ///
    /// # Errors
    ///
    /// Fails if the note cannot be read or written.
    pub fn note_used(&self, mount: &KnownMount) -> Result<()> {
        let before: Option<KnownMount> = self.store.read_if_whole(&format!("{DIR}/{}", self.note_of(&mount.id)))?;
        let held = before.as_ref().is_none_or(|before| before.may_hold_secrets);
        let origin = before.as_ref().and_then(|before| before.origin.clone());
        let after = KnownMount { may_hold_secrets: held || mount.may_hold_secrets, origin, ..mount.clone() };
        if before.is_some_and(|before| before.may_hold_secrets == after.may_hold_secrets) {
            return Ok(());
        }
        self.note_new(&after)
    }

    /// Returns the cache mounts of the store whose IDs are known, ordered by name. Further copies
    /// of mounts with private sharing are left out.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn known(&self) -> Result<Vec<KnownMount>> {
        let mounts = self.store.dir("mounts")?;
        let mut found = Vec::new();
        for (file, mount) in self.store.whole_documents::<KnownMount>(DIR)? {
            let note = self.note_of(&mount.id);
            if file == *note && mounts.exists(note.trim_end_matches(".json"))? {
                found.push(mount);
            }
        }
        found.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        Ok(found)
    }

    /// Returns the name of the cache outside the store from which the mount in the directory with
    /// that name was restored, if it was. A damaged note has none.
    pub(crate) fn origin(&self, dir_name: &str) -> Result<Option<String>> {
        let note: Option<KnownMount> = self.store.read_if_whole(&format!("{DIR}/{dir_name}.json"))?;
        Ok(note.and_then(|note| note.origin))
    }

    fn note_of(&self, id: &CacheId) -> String {
        format!("{}.json", &self.name_of_copy(id, 0).hex()[..32])
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::Scratch;

    use super::*;
    use crate::cache_mounts::cache::CacheUse;
    use crate::error::StoreError;
    use crate::store::Store;
    use crate::workspace::Workspace;

    #[test]
    fn mounts_are_known_by_name_and_secrets_are_never_forgotten() {
        let place = Scratch::new();
        let store = Store::open(&place).unwrap();
        let work = Workspace::open(&store).unwrap();
        let mount = |name: &str, may_hold_secrets| KnownMount {
            id: CacheId::of(name.as_bytes()),
            name: name.into(),
            may_hold_secrets,
            origin: None,
        };
        let use_mount = |known: &KnownMount, is_noted: bool| {
            let fill = |_: &rbuild_linux::RootDir| {
                if is_noted { store.cache_mounts().note_new(known) } else { Ok::<_, StoreError>(()) }
            };
            store.cache_mounts().cache_mount(&work, &known.id, CacheUse::Shared, fill).unwrap();
            store.cache_mounts().note_used(known).unwrap();
        };
        use_mount(&mount("clean", false), true);
        use_mount(&mount("later", false), true);
        use_mount(&mount("later", true), true);
        use_mount(&mount("later", false), true);
        use_mount(&mount("old", false), false);
        // Of a mount that was removed, only the note is left.
        store.cache_mounts().note_new(&mount("removed", false)).unwrap();
        let want = [mount("clean", false), mount("later", true), mount("old", true)];
        assert_eq!(store.cache_mounts().known().unwrap(), want);
        // An origin is kept, too.
        let restored = KnownMount { origin: Some("a cache".into()), ..mount("restored", false) };
        use_mount(&restored, true);
        use_mount(&mount("restored", true), true);
        let restored = KnownMount { may_hold_secrets: true, ..restored };
        assert!(store.cache_mounts().known().unwrap().contains(&restored));
        assert_eq!(store.gc().origins().unwrap(), ["a cache".to_string()].into());
    }
}
