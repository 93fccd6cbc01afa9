//! All steps of the store, for its export.

use std::collections::HashMap;
use std::ffi::OsStr;

use rbuild_image::Sha256Id;
use rbuild_linux::Timestamp;

use crate::cache::build_index::{BuildIndex, IndexedStep, KeyInputs};
use crate::cache::records::{Record, Records};
use crate::error::Result;
use crate::ids::CacheKey;
use crate::trees::id::{digest_in, document_of};

/// A step of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownStep {
    /// The definition key.
    pub key: CacheKey,
    /// The record.
    pub record: Record,
    /// The parts of the key.
    pub inputs: KeyInputs,
    /// The entry of an index of builds, if there is one.
    pub indexed: Option<IndexedStep>,
    /// Last use in seconds since the Unix epoch.
    pub last_use: i64,
}

impl Records<'_> {
    /// Returns all steps that are recorded for the owners of this store and whose inputs are known,
    /// those that were used last first.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn steps(&self) -> Result<Vec<KnownStep>> {
        let indexes = self.store.whole_documents::<BuildIndex>("ledgers")?;
        let indexed = indexes.into_iter().flat_map(|(_, index)| index.steps).map(|step| (step.key, step));
        let mut indexed: HashMap<CacheKey, IndexedStep> = indexed.collect();
        let (owners, dir) = (self.store.owners(), self.store.dir("records")?);
        let mut found = Vec::new();
        for entry in self.store.documents("records")? {
            let name = entry.name.to_string_lossy();
            let key = CacheKey::from_hex(digest_in(&name)).filter(|key| document_of(&key.hex(), owners) == name);
            let Some(key) = key else { continue };
            let (Some(inputs), Some(record)) = (self.key_inputs(&key)?, self.valid_record(&name, owners)?) else {
                continue;
            };
            let last_use = dir.stat_name(&entry.name)?.mtime.sec;
            found.push(KnownStep { key, record, inputs, indexed: indexed.remove(&key), last_use });
        }
        found.sort_by_key(|step| (std::cmp::Reverse(step.last_use), step.key));
        Ok(found)
    }

    /// Sets the last use of a recorded step, in seconds since the Unix epoch.
    ///
    /// # Errors
    ///
    /// Fails if there is no such record.
    pub fn set_last_use(&self, key: &CacheKey, last_use: i64) -> Result<()> {
        let name = document_of(&key.hex(), self.store.owners());
        let time = Timestamp { sec: last_use, nsec: 0 };
        Ok(self.store.dir("records")?.set_mtime(OsStr::new(&name), time)?)
    }
}
