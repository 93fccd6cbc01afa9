use std::ffi::OsStr;

use rbuild_image::Digest;
use rbuild_linux::{KeyLock, write_atomic};
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::layout::{Owners, Store};
use crate::modes;
use crate::trees::{TreeId, document_of};

/// What a step with a certain key gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The step's files.
    pub tree: TreeId,
    /// What later steps put into their keys for this one.
    pub result: Digest,
    /// Seconds since the epoch at which the files were made.
    pub created: i64,
    boot: String,
    build: String,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct ResultFile {
    pub manifest: Digest,
    boot: String,
    build: String,
}

/// Bytes; more than that is read anew.
const MAX_HASHES: u64 = 1 << 30;

impl Store {
    /// The record of a key, if it can be trusted and its tree is there, with owners as this store has them.
    pub fn record(&self, key: &Digest) -> Result<Option<Record>> {
        self.record_with(key, self.owners())
    }

    /// The record of a key: that of [`Store::record`], or else the one of a tree with other owners ([`Store::is_ours`] tells
    /// them apart), which [`Store::adopt`] may be able to make ours.
    pub fn any_record(&self, key: &Digest) -> Result<Option<Record>> {
        match self.record(key)? {
            None => self.record_with(key, self.owners().others()),
            found => Ok(found),
        }
    }

    fn record_with(&self, key: &Digest, owners: Owners) -> Result<Option<Record>> {
        let document = document_of(key, owners);
        let Some(record) = self.read_if_whole::<Record>(&format!("records/{document}"))? else {
            return Ok(None);
        };
        let there = self.trusted(&record.boot, &record.build)? && self.has_tree(&record.tree)?;
        if there {
            self.note_use("records", &document)?;
        }
        Ok(there.then_some(record))
    }

    fn trusted(&self, boot: &str, build: &str) -> Result<bool> {
        Ok(boot == self.boot() || self.root.exists(format!("builds/{build}.synced"))?)
    }

    #[tracing::instrument(target = "store", name = "record", level = "debug", skip_all, fields(key = %key.short()))]
    pub fn put_record(&self, key: &Digest, tree: &TreeId, result: &Digest, created: i64, build: &str) -> Result<()> {
        let record = Record {
            tree: tree.clone(),
            result: *result,
            created,
            boot: self.boot().to_string(),
            build: build.to_string(),
        };
        self.write("records", &document_of(key, self.owners()), &record)
    }

    /// Forgets the record of a key whose tree has other owners: the step was made again.
    pub fn forget_others_record(&self, key: &Digest) -> Result<()> {
        match self.dir("records")?.remove_file(OsStr::new(&document_of(key, self.owners().others()))) {
            Err(e) if !e.is_not_found() => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// The manifest of the finished image with that key, if all of it is still there.
    pub fn result(&self, key: &Digest) -> Result<Option<Digest>> {
        let Some(found) = self.read_if_whole::<ResultFile>(&format!("results/{}.json", key.hex()))? else {
            return Ok(None);
        };
        if !self.trusted(&found.boot, &found.build)? || !self.has_blob(&found.manifest)? {
            return Ok(None);
        }
        let image = self.image(&found.manifest)?;
        for (layer, _) in image.layers()? {
            match rbuild_image::digest_of(&layer) {
                Ok(digest) if self.has_whole_blob(&digest, layer.size())? => {}
                _ => return Ok(None),
            }
        }
        Ok(Some(found.manifest))
    }

    pub fn put_result(&self, key: &Digest, manifest: &Digest, build: &str) -> Result<()> {
        let file = ResultFile { manifest: *manifest, boot: self.boot().to_string(), build: build.to_string() };
        self.write("results", &format!("{}.json", key.hex()), &file)
    }

    /// What was written under that name about files of contexts; nothing if there is none.
    pub fn hashes(&self, name: &Digest) -> Result<Vec<u8>> {
        match self.root.read(format!("hashes/{}", name.hex()), MAX_HASHES) {
            Err(e) if e.is_not_found() => Ok(Vec::new()),
            other => Ok(other?),
        }
    }

    pub fn put_hashes(&self, name: &Digest, bytes: &[u8]) -> Result<()> {
        let dir = self.root.create_dir_all("hashes", modes::dir(), None, |_| ())?;
        Ok(write_atomic(&dir, OsStr::new(&name.hex()), bytes, modes::file())?)
    }

    /// Waits until no other thread or process works on the step with that key.
    pub fn lock_step(&self, key: &Digest) -> Result<KeyLock> {
        self.wait_for_key(lock_key(key))
    }

    /// Puts everything that was written so far on the disk, and says so for `build`.
    pub fn sync(&self, build: &str) -> Result<()> {
        rbuild_linux::sync_filesystem(&self.root)?;
        self.write("builds", &format!("{build}.synced"), &())
    }
}

/// What of a digest names a lock.
pub(crate) fn lock_key(digest: &Digest) -> [u8; 8] {
    let mut first = [0; 8];
    first.copy_from_slice(&digest.bytes()[..8]);
    first
}
