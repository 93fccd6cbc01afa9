//! Blobs and images that another process is downloading into the store for this one.
//!
//! The layers of an image can be unpacked while they are downloaded: [`IncomingBlob`] reads the
//! file of a blob as it grows, and reaches its end only after the downloading process has verified
//! the digest. Bytes that were read before that must not be trusted.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use rbuild_image::{BlobDigest, DiffId, ManifestDigest};
use rbuild_layer::{CancelCheck, LayerError};
use rbuild_linux::parallel::locked;
use rbuild_linux::read_up_to;
use rbuild_remedy::ReportedError;

use crate::error::{Result, StoreError};

/// Interval at which a waiting thread checks that the build has not been stopped.
const CHECK: Duration = Duration::from_millis(50);

/// The progress of the downloads of one build. Empty unless another process is downloading.
#[derive(Default)]
pub struct IncomingBlobs {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    pulls: BTreeMap<PullId, RequestedPull>,
    blobs: HashMap<BlobDigest, BlobProgress>,
    /// The layers that threads are unpacking.
    unpacking: HashSet<DiffId>,
}

/// The pull of an image under one name. If two pulls download the same blob, readers follow the
/// first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PullId(pub usize);

struct RequestedPull {
    image: ManifestDigest,
    layers: Vec<BlobDigest>,
    /// `None` until it has ended.
    outcome: Option<PullOutcome>,
}

type PullOutcome = std::result::Result<(), ReportedError>;

/// Returns the outcome of several pulls: the first failure, or success once all have ended; `None`
/// until then.
fn outcome_of<'a>(mut pulls: impl Iterator<Item = &'a RequestedPull> + Clone) -> Option<PullOutcome> {
    let failure = pulls.clone().find_map(|pull| pull.outcome.clone()?.err());
    match failure {
        Some(failure) => Some(Err(failure)),
        None => pulls.all(|pull| pull.outcome.is_some()).then_some(Ok(())),
    }
}

impl State {
    /// Returns the failure of the pulls that requested a blob, once all of them have failed.
    fn failure_of(&self, blob: &BlobDigest) -> Option<ReportedError> {
        let mut pulls = self.pulls.values().filter(|pull| pull.layers.contains(blob));
        let first = pulls.next()?.outcome.as_ref()?.as_ref().err()?;
        pulls.all(|pull| matches!(pull.outcome, Some(Err(_)))).then(|| first.clone())
    }
}

/// The progress of one blob.
enum BlobProgress {
    /// The download has not begun.
    Requested,
    /// The download has begun, or has ended in a file that is still read.
    Partial(PartialBlob),
    /// The blob is in the store.
    Stored,
}

impl BlobProgress {
    fn is_of(&self, pull: PullId) -> bool {
        matches!(self, BlobProgress::Partial(partial) if partial.pull == pull)
    }
}

#[derive(Clone)]
struct PartialBlob {
    file: Arc<File>,
    pull: PullId,
    /// Number of the attempt: a blob with a wrong digest is downloaded again.
    attempt: u32,
    /// Number of bytes downloaded so far.
    size: u64,
    /// True if all bytes have been downloaded and their digest is right.
    is_whole: bool,
}

impl PartialBlob {
    fn is_same_attempt(&self, other: &PartialBlob) -> bool {
        (self.pull, self.attempt) == (other.pull, other.attempt)
    }
}

impl IncomingBlobs {
    /// Adds the pull of an image, whose layers were requested.
    pub fn request(&self, pull: PullId, image: &ManifestDigest, layers: Vec<BlobDigest>) {
        let mut state = locked(&self.state);
        for layer in &layers {
            state.blobs.entry(*layer).or_insert(BlobProgress::Requested);
        }
        state.pulls.insert(pull, RequestedPull { image: *image, layers, outcome: None });
    }

    /// Records that an attempt to download a blob into `file` has begun.
    pub fn begun(&self, pull: PullId, blob: &BlobDigest, file: File) {
        self.change(|state| {
            let attempt = match state.blobs.get(blob) {
                Some(BlobProgress::Partial(before)) if before.pull == pull => before.attempt + 1,
                Some(BlobProgress::Partial(_)) => return,
                _ => 0,
            };
            let partial = PartialBlob { file: Arc::new(file), pull, attempt, size: 0, is_whole: false };
            state.blobs.insert(*blob, BlobProgress::Partial(partial));
        });
    }

    /// Records the number of bytes of a blob that have been downloaded.
    pub fn grown(&self, pull: PullId, blob: &BlobDigest, size: u64) {
        self.change_partial(pull, blob, |partial| partial.size = size);
    }

    /// Records that a blob is complete and has the right digest.
    pub fn verified(&self, pull: PullId, blob: &BlobDigest) {
        self.change_partial(pull, blob, |partial| partial.is_whole = true);
    }

    fn change_partial(&self, pull: PullId, blob: &BlobDigest, change: impl FnOnce(&mut PartialBlob)) {
        self.change(|state| {
            if let Some(BlobProgress::Partial(partial)) = state.blobs.get_mut(blob).filter(|blob| blob.is_of(pull)) {
                change(partial);
            }
        });
    }

    /// Records that a requested blob is in the store.
    pub fn stored(&self, blob: &BlobDigest) {
        self.change(|state| match state.blobs.get(blob) {
            // Readers of a partial blob keep its file.
            Some(BlobProgress::Partial(_)) => {}
            _ => drop(state.blobs.insert(*blob, BlobProgress::Stored)),
        });
    }

    /// Records that a pull has ended: the image and its blobs are in the store, or the reason why
    /// they are not. Blobs that it has not completed may still arrive from other pulls.
    pub fn ended(&self, pull: PullId, outcome: PullOutcome) {
        self.change(|state| {
            let State { pulls, blobs, .. } = state;
            let Some(requested) = pulls.get_mut(&pull).filter(|pull| pull.outcome.is_none()) else { return };
            for layer in &requested.layers {
                match (&outcome, blobs.get(layer)) {
                    // Readers of a partial blob keep its file.
                    (Ok(()), Some(BlobProgress::Partial(_))) => {}
                    (Ok(()), _) => drop(blobs.insert(*layer, BlobProgress::Stored)),
                    (Err(_), Some(BlobProgress::Partial(partial))) if partial.pull == pull && !partial.is_whole => {
                        blobs.insert(*layer, BlobProgress::Requested);
                    }
                    (Err(_), _) => {}
                }
            }
            requested.outcome = Some(outcome);
        });
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut locked(&self.state));
        self.changed.notify_all();
    }

    /// Waits until `find` returns something.
    fn wait<T>(&self, stop: CancelCheck<'_>, mut find: impl FnMut(&State) -> Option<T>) -> Result<T> {
        let mut state = locked(&self.state);
        loop {
            if let Some(found) = find(&state) {
                return Ok(found);
            }
            if stop() {
                return Err(StoreError::Canceled);
            }
            state = self.changed.wait_timeout(state, CHECK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Locks the unpacking of a layer against other threads of this build, until the result is
    /// dropped. Waits until no other thread unpacks the layer.
    pub(crate) fn lock_unpacking(&self, layer: DiffId, stop: CancelCheck<'_>) -> Result<UnpackingLock<'_>> {
        loop {
            self.wait(stop, |state| (!state.unpacking.contains(&layer)).then_some(()))?;
            if locked(&self.state).unpacking.insert(layer) {
                return Ok(UnpackingLock { incoming: self, layer });
            }
        }
    }

    /// Waits until an image is in the store. Returns at once if its download was not requested.
    pub(crate) fn wait_for_image(&self, image: &ManifestDigest, stop: CancelCheck<'_>) -> Result<()> {
        let find = |state: &State| outcome_of(state.pulls.values().filter(|pull| pull.image == *image));
        self.wait(stop, find)?.map_err(StoreError::DownloadFailed)
    }

    /// Returns true if the download of a blob was requested and the blob is to be read from its
    /// file. If the download has begun, this remains true after the blob has been stored.
    pub(crate) fn is_expected(&self, blob: &BlobDigest) -> bool {
        matches!(locked(&self.state).blobs.get(blob), Some(BlobProgress::Requested | BlobProgress::Partial(_)))
    }

    /// Opens a blob that is being downloaded, after waiting for the download to begin. Returns
    /// `None` if the blob is in the store or was not requested.
    pub(crate) fn open<'a>(&'a self, blob: &BlobDigest, stop: CancelCheck<'a>) -> Result<Option<IncomingBlob<'a>>> {
        let partial = self.wait(stop, |state| match state.blobs.get(blob) {
            None | Some(BlobProgress::Stored) => Some(Ok(None)),
            Some(BlobProgress::Partial(partial)) => Some(Ok(Some(partial.clone()))),
            Some(BlobProgress::Requested) => state.failure_of(blob).map(Err),
        })?;
        let partial = partial.map_err(StoreError::DownloadFailed)?;
        Ok(partial.map(|known| IncomingBlob { incoming: self, blob: *blob, known, at: 0, stop }))
    }
}

/// The exclusive right of a thread to unpack a layer.
pub(crate) struct UnpackingLock<'a> {
    incoming: &'a IncomingBlobs,
    layer: DiffId,
}

impl Drop for UnpackingLock<'_> {
    fn drop(&mut self) {
        self.incoming.change(|state| {
            state.unpacking.remove(&self.layer);
        });
    }
}

/// Repeats work that reads arriving blobs for as long as it fails because one is downloaded again,
/// by the same pull or another one.
pub(crate) fn retry_restarted<T>(work: impl Fn() -> Result<T>) -> Result<T> {
    loop {
        match work() {
            Err(StoreError::DownloadRestarted) => {}
            other => return other,
        }
    }
}

/// A reader of a blob that is being downloaded. It waits for bytes that are still missing.
pub(crate) struct IncomingBlob<'a> {
    incoming: &'a IncomingBlobs,
    blob: BlobDigest,
    known: PartialBlob,
    at: u64,
    stop: CancelCheck<'a>,
}

impl IncomingBlob<'_> {
    /// Waits until the attempt that is being read meets a condition.
    fn wait(&self, is_enough: impl Fn(&PartialBlob) -> bool) -> Result<PartialBlob> {
        let found = self.incoming.wait(self.stop, |state| match state.blobs.get(&self.blob) {
            Some(BlobProgress::Partial(now)) if !self.known.is_same_attempt(now) => {
                Some(Err(StoreError::DownloadRestarted))
            }
            Some(BlobProgress::Partial(now)) => is_enough(now).then(|| Ok(now.clone())),
            // The pull has failed.
            _ => Some(Err(state
                .failure_of(&self.blob)
                .map_or(StoreError::DownloadRestarted, StoreError::DownloadFailed))),
        });
        found?
    }

    /// Waits until the digest has been verified. Before that, neither the bytes nor an error that
    /// they caused can be trusted.
    ///
    /// # Errors
    ///
    /// Fails with [`StoreError::DownloadRestarted`] if it is wrong, or the pull fails, and the blob
    /// is downloaded again, and with [`StoreError::DownloadFailed`] if it is not.
    pub(crate) fn confirm(&self) -> Result<()> {
        self.wait(|now| now.is_whole).map(drop)
    }
}

impl Read for IncomingBlob<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at == self.known.size && !self.known.is_whole {
            let at = self.at;
            self.known = self.wait(|now| now.size > at || now.is_whole).map_err(|e| match e {
                StoreError::Canceled => io::Error::other(LayerError::Canceled),
                e => io::Error::other(e),
            })?;
        }
        read_up_to(&self.known.file, buf, &mut self.at, self.known.size)
    }
}

#[cfg(test)]
mod tests;
