//! Results of searching trees for the values of secrets.
//!
//! A value is represented by a digest keyed with random bytes of the store. Without that key, it
//! reveals nothing, even about values that could be guessed.

use rbuild_image::Hasher;
use rbuild_linux::RootDir;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::ids::SecretHash;
use crate::keys;
use crate::once::Lock;
use crate::store::{Store, document};
use crate::trees::id::TreeId;

/// The known results of searching a tree for secrets, stored next to its files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Secrets that were searched for and not found.
    pub absent: Vec<SecretHash>,
    /// Secrets that were found.
    pub held: Vec<SecretHash>,
    /// True if a command with secrets made the tree, and none of the secrets that it was given was
    /// too short to search for.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_complete: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

pub(crate) const NOTE: &str = "secrets.json";
const KEY: &str = "secrets.key";
/// Maximum number of absent secrets kept. Tokens valid for a single build can be arbitrarily many;
/// a dropped one is searched for again.
const MAX_ABSENT: usize = 32;

impl Verdict {
    /// Returns true if all of these were searched for and none was found.
    pub fn clears(&self, hashes: &[SecretHash]) -> bool {
        hashes.iter().all(|hash| self.absent.contains(hash)) && !self.held.iter().any(|hash| hashes.contains(hash))
    }

    /// Returns true if all of these were searched for, with any result.
    pub fn covers(&self, hashes: &[SecretHash]) -> bool {
        hashes.iter().all(|hash| self.absent.contains(hash) || self.held.contains(hash))
    }

    fn add(&mut self, more: &Verdict) {
        self.absent.retain(|hash| !more.held.contains(hash));
        for (known, new) in [(&mut self.absent, &more.absent), (&mut self.held, &more.held)] {
            known.retain(|hash| !new.contains(hash));
            known.extend(new);
        }
        self.absent.drain(..self.absent.len().saturating_sub(MAX_ABSENT));
    }
}

/// The verdicts on secrets in trees.
#[derive(Clone, Copy)]
pub struct SecretVerdicts<'s> {
    pub(crate) store: &'s Store,
}

impl SecretVerdicts<'_> {
    /// Returns the keyed hashes of values, in order. Creates the store's key if necessary.
    ///
    /// # Errors
    ///
    /// Fails if the key cannot be read or created.
    pub fn secret_hashes<'v>(&self, values: impl Iterator<Item = &'v [u8]>) -> Result<Vec<SecretHash>> {
        let mut values = values.peekable();
        if values.peek().is_none() {
            return Ok(Vec::new());
        }
        let key = keys::key(&self.store.root, KEY)?;
        let hash = |value: &[u8]| -> SecretHash {
            let mut hasher = Hasher::new();
            hasher.field("secret 1").field(key).field(value);
            hasher.finish()
        };
        Ok(values.map(hash).collect())
    }

    /// Returns the known results for a tree, or `None` if it was never searched.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be read.
    pub fn verdict(&self, tree: &TreeId) -> Result<Option<Verdict>> {
        self.store.read_if_whole(&format!("trees/{}/{NOTE}", tree.name()))
    }

    /// Stores the results for a new tree.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be written.
    pub fn put_verdict(&self, made: &RootDir, verdict: &Verdict) -> Result<()> {
        self.store.trees().put_note(made, NOTE, &document(NOTE, verdict)?)
    }

    /// Adds results for an existing tree. Concurrent additions are serialized, so that none is
    /// lost.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be written, or if the build is canceled while it waits for the
    /// lock.
    pub fn add_verdict(&self, tree: &TreeId, more: &Verdict) -> Result<()> {
        let _alone = self.store.lock(Lock::verdict(tree))?;
        let before = self.verdict(tree)?;
        let mut after = before.clone().unwrap_or_default();
        after.add(more);
        if before == Some(after.clone()) {
            Ok(())
        } else {
            self.store.write(&format!("trees/{}", tree.name()), NOTE, &after)
        }
    }

    /// Returns true if a build with the secrets `given` may use the tree of a command;
    /// `mounts_any` is true if the command mounts secrets. A result that contains the value of
    /// another secret, or was never searched, would disclose a secret that this build was not
    /// given.
    ///
    /// # Errors
    ///
    /// Fails if the known results cannot be read.
    pub fn may_use(&self, tree: &TreeId, mounts_any: bool, given: &[SecretHash]) -> Result<bool> {
        Ok(match self.verdict(tree)? {
            Some(verdict) => verdict.held.iter().all(|hash| given.contains(hash)),
            None => !mounts_any,
        })
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::Scratch;

    use super::*;

    fn hash(n: u8) -> SecretHash {
        SecretHash::of(&[n])
    }

    #[test]
    fn the_last_search_applies_and_found_secrets_are_kept() {
        let mut verdict = Verdict { absent: vec![hash(1)], held: vec![hash(2)], is_complete: true };
        assert!(verdict.covers(&[hash(1), hash(2)]) && !verdict.covers(&[hash(3)]));
        assert!(verdict.clears(&[hash(1)]) && !verdict.clears(&[hash(1), hash(2)]) && !verdict.clears(&[hash(3)]));
        for n in 10..100 {
            verdict.add(&Verdict { absent: vec![hash(n)], ..Verdict::default() });
        }
        assert_eq!((verdict.absent.len(), &verdict.held[..]), (MAX_ABSENT, &[hash(2)][..]));
        assert!(verdict.clears(&[hash(99)]) && !verdict.clears(&[hash(10)]));
        verdict.add(&Verdict { held: vec![hash(99)], ..Verdict::default() });
        assert!(!verdict.clears(&[hash(99)]) && verdict.is_complete);
    }

    #[test]
    fn hashes_differ_between_stores() {
        let dir = Scratch::new();
        let hashes = |name: &str| {
            let store = Store::open(&dir.join(name)).unwrap();
            store.secrets().secret_hashes([&b"hunter2"[..], b"other"].into_iter()).unwrap()
        };
        let (first, again, second) = (hashes("a"), hashes("a"), hashes("b"));
        assert_eq!(first, again);
        assert!(first[0] != first[1] && first[0] != second[0]);
    }
}
