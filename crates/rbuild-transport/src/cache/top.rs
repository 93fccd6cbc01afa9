//! The tag of a sharded cache, which readers request first. It has the steps of the machine that
//! wrote last, with those of all others that this machine had read, and it names the shards whose
//! steps it lacks.

use std::time::{Duration, Instant};

use rbuild_image::{BlobDigest, MediaType};
use rbuild_registry::{ReceivedManifest, Repository};
use rbuild_store::{CachedStep, Store, Workspace};

use crate::blobs::BlobSink;
use crate::cache::artifact::{CacheDocuments, CachedSteps, check_type, read_steps};
use crate::cache::listed_shards::{ShardDigests, listed_shards, with_shards};
use crate::cache::memory::Prefetched;
use crate::cache::record_budget::RecordBudget;
use crate::cache::remote_documents::RemoteDocuments;
use crate::cache::shards::{CONTENDED_SETTLED, RemoteCache, SHARED_SETTLED, settle_for};
use crate::cache::signature::RecordKeys;
use crate::cache::tag::{pushed_digest, tag_of};
use crate::error::{Result, TransportError};
use crate::registry::Upload;

/// Size in bytes up to which the manifest of a shard is also that of the tag.
const MAX_TOP: usize = 128 << 10;
/// Time that the documents of a manifest may take before the tag is read once more.
const READ: Duration = Duration::from_millis(20);
/// Number of times that the tag is read because another machine wrote at the same time.
const ATTEMPTS: u32 = 32;

/// A shard that was written, and that readers must find.
pub(crate) struct WrittenShard<'a> {
    pub cache: &'a RemoteCache,
    /// Number of the shard.
    pub number: u32,
    /// Manifest of the shard.
    pub manifest: Vec<u8>,
    /// The steps that the build added or used, as the manifest has them.
    pub steps: Vec<CachedStep>,
    /// The tag as it was read before; `None` if there was none.
    pub before: Option<BlobDigest>,
    /// The shards that the tag named then, if the written one has their steps and those of the tag.
    pub merged: Option<ShardDigests>,
    /// The shards that the tag named then and that are lost or damaged.
    pub lost: ShardDigests,
    /// True if the tag, as it was read, must be replaced even if it leads to the shard: it or a
    /// shard is damaged or lost, or it exceeds the limits.
    pub replaces: bool,
    /// Keys for the records.
    pub signatures: &'a RecordKeys,
}

impl WrittenShard<'_> {
    /// Has the tag of the cache lead to the shard. Other machines may do the same at the same time.
    ///
    /// # Errors
    ///
    /// Fails if the registry fails or refuses, or if the tag is not that of a cache.
    pub fn publish(&self, store: &Store, repository: &Repository) -> Result<()> {
        let tag = tag_of(self.cache.name());
        let mut own = BlobDigest::of(&self.manifest);
        let mut known: Option<(Option<BlobDigest>, Vec<u8>)> = None;
        let (mut taken, mut writes) = (Duration::ZERO, 0);
        for attempt in 0..ATTEMPTS {
            // Not between reading and writing.
            std::thread::sleep(self.pause(writes, taken));
            let read = Instant::now();
            let top = repository.pushed(tag)?;
            let answered = read.elapsed();
            let digest = top.as_ref().map(|top| top.digest);
            let prepared = known.take().filter(|(of, _)| *of == digest).map(|(_, bytes)| bytes);
            let bytes = match prepared {
                Some(bytes) => bytes,
                None => {
                    if let Some(top) = &top {
                        check_type(&top.bytes)?;
                        let must_be_replaced = self.replaces && writes == 0 && digest == self.before;
                        if !must_be_replaced && self.is_in(top, &own, store, repository)? {
                            return Ok(());
                        }
                    }
                    let bytes = self.next(top.as_ref(), &mut own, repository)?;
                    // Documents were requested, during which other machines may have written. The
                    // tag is read again, and written at once.
                    if read.elapsed() > answered + READ && attempt + 1 < ATTEMPTS {
                        known = Some((digest, bytes));
                        continue;
                    }
                    bytes
                }
            };
            repository.push_document(tag, MediaType::ImageManifest.as_ref(), &bytes)?;
            writes += 1;
            taken = read.elapsed();
            let is_contended = writes > 1 || digest != self.before;
            settle_for(taken, if is_contended { CONTENDED_SETTLED } else { SHARED_SETTLED });
        }
        Err(TransportError::other(format!("other machines wrote to `{}` all the time", self.cache.name().familiar())))
    }

    /// Returns true if the tag names the shard, or has its steps.
    fn is_in(&self, top: &ReceivedManifest, own: &BlobDigest, store: &Store, repository: &Repository) -> Result<bool> {
        if listed_shards(&top.bytes).get(&self.number) == Some(own) {
            return Ok(true);
        }
        let (work, budget) = (&Workspace::open(store)?, &RecordBudget::default());
        let documents = RemoteDocuments { store, blobs: repository, work, budget };
        let Ok(blobs) = documents.prefetched(&top.bytes) else { return Ok(false) };
        let Ok(read) = read_steps(&top.bytes, &blobs, self.signatures, budget) else { return Ok(false) };
        Ok(self.steps.iter().all(|step| {
            read.steps.get(&step.key).is_some_and(|known| {
                known.result == step.result && known.layer.blob == step.layer.blob && known.used >= step.used
            })
        }))
    }

    /// Returns the next manifest of the tag. Sets `own` if another machine wrote the same shard.
    fn next(&self, top: Option<&ReceivedManifest>, own: &mut BlobDigest, repository: &Repository) -> Result<Vec<u8>> {
        let is_unchanged = top.map(|top| top.digest) == self.before;
        let mut shards = top.map(|top| listed_shards(&top.bytes)).unwrap_or_default();
        shards.retain(|number, digest| self.lost.get(number) != Some(digest));
        if let Some(merged) = &self.merged {
            shards.retain(|number, digest| merged.get(number) != Some(digest));
            if is_unchanged && self.manifest.len() <= MAX_TOP {
                // Those that could not be read stay.
                shards.remove(&self.number);
                return with_shards(&self.manifest, &shards);
            }
        }
        if shards.get(&self.number).is_some_and(|known| known != own) {
            *own = pushed_digest(repository, &self.cache.shard(self.number))?.unwrap_or(*own);
        }
        shards.insert(self.number, *own);
        match top {
            Some(top) if !(is_unchanged && (self.merged.is_some() || self.replaces)) => {
                with_shards(&top.bytes, &shards)
            }
            _ => {
                let empty = CacheDocuments::of(&CachedSteps::new(), self.signatures)?;
                let documents = Prefetched::of(&empty.blobs);
                let upload = Upload::to(repository);
                for part in documents.parts() {
                    upload.copy(&documents, &part, &Default::default())?;
                }
                with_shards(&empty.manifest.bytes, &shards)
            }
        }
    }

    /// Returns a time that differs between machines, and that grows with the number of attempts.
    fn pause(&self, attempt: u32, taken: Duration) -> Duration {
        if attempt == 0 {
            return Duration::ZERO;
        }
        let seed = format!("{} {attempt} {}", BlobDigest::of(&self.manifest), std::process::id());
        let part = f64::from(BlobDigest::of(seed.as_bytes()).bytes()[0]) / 256.0;
        taken.max(Duration::from_millis(5)).mul_f64(part * f64::from(1 << attempt.min(5)))
    }
}
