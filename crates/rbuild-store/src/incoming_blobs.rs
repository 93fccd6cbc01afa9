//! Blobs and images that another process is downloading into the store for this one.
//!
//! The layers of an image can be unpacked while they are downloaded: [`IncomingBlob`] reads the
//! file of a blob as it grows, and reaches its end only after the downloading process has verified
//! the digest. Bytes that were read before that must not be trusted.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use rbuild_image::{BlobDigest, DiffId, ManifestDigest};
use rbuild_layer::{LayerError, Stop};
use rbuild_linux::parallel::locked;
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
    /// The images that were requested.
    images: HashMap<ManifestDigest, RequestedImage>,
    blobs: HashMap<BlobDigest, BlobProgress>,
    /// The first failure. No further blob is downloaded after it.
    failure: Option<ReportedError>,
    /// The layers that threads are unpacking.
    unpacking: HashSet<DiffId>,
}

/// Identifies one of the pulls of a build. If two of them download the same blob, it is read from
/// the file of the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PullId(pub usize);

struct RequestedImage {
    layers: Vec<BlobDigest>,
    /// Number of pulls of the image, under several names, that have not ended.
    open: usize,
    /// The result of the pulls; `None` until it is known.
    outcome: Option<std::result::Result<(), ReportedError>>,
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

impl IncomingBlobs {
    /// Adds an image and its layers. Their download must have been requested.
    pub fn request(&self, image: &ManifestDigest, layers: Vec<BlobDigest>) {
        let mut state = locked(&self.state);
        for layer in &layers {
            state.blobs.entry(*layer).or_insert(BlobProgress::Requested);
        }
        let new = || RequestedImage { layers, open: 0, outcome: None };
        state.images.entry(*image).or_insert_with(new).open += 1;
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

    /// Records that a pull of an image has ended. If it succeeded, the image and its blobs are in
    /// the store.
    pub fn ended(&self, image: &ManifestDigest, outcome: std::result::Result<(), ReportedError>) {
        self.change(|state| {
            let State { images, blobs, failure, .. } = state;
            let Some(requested) = images.get_mut(image) else { return };
            match &outcome {
                // Readers of a partial blob keep its file.
                Ok(()) => requested.layers.iter().for_each(|layer| {
                    if !matches!(blobs.get(layer), Some(BlobProgress::Partial(_))) {
                        blobs.insert(*layer, BlobProgress::Stored);
                    }
                }),
                Err(e) => drop(failure.get_or_insert_with(|| e.clone())),
            }
            requested.open = requested.open.saturating_sub(1);
            if outcome.is_err() || requested.open == 0 {
                requested.outcome.get_or_insert(outcome);
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut locked(&self.state));
        self.changed.notify_all();
    }

    /// Waits until `find` returns something.
    fn wait<T>(&self, stop: Stop<'_>, mut find: impl FnMut(&State) -> Option<T>) -> Result<T> {
        let mut state = locked(&self.state);
        loop {
            if let Some(found) = find(&state) {
                return Ok(found);
            }
            if stop() {
                return Err(StoreError::Stopped);
            }
            state = self.changed.wait_timeout(state, CHECK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Locks the unpacking of a layer against other threads of this build, until the result is
    /// dropped. Waits until no other thread unpacks the layer.
    pub(crate) fn lock_unpacking(&self, layer: DiffId, stop: Stop<'_>) -> Result<UnpackingLock<'_>> {
        loop {
            self.wait(stop, |state| (!state.unpacking.contains(&layer)).then_some(()))?;
            if locked(&self.state).unpacking.insert(layer) {
                return Ok(UnpackingLock { incoming: self, layer });
            }
        }
    }

    /// Waits until an image is in the store. Returns at once if its download was not requested.
    pub(crate) fn wait_for_image(&self, image: &ManifestDigest, stop: Stop<'_>) -> Result<()> {
        let find = |state: &State| state.images.get(image).map_or(Some(Ok(())), |image| image.outcome.clone());
        self.wait(stop, find)?.map_err(StoreError::DownloadFailed)
    }

    /// Returns true if the download of a blob was requested and the blob is to be read from its
    /// file. If the download has begun, this remains true after the blob has been stored.
    pub(crate) fn is_expected(&self, blob: &BlobDigest) -> bool {
        matches!(locked(&self.state).blobs.get(blob), Some(BlobProgress::Requested | BlobProgress::Partial(_)))
    }

    /// Opens a blob that is being downloaded, after waiting for the download to begin. Returns
    /// `None` if the blob is in the store or was not requested.
    pub(crate) fn open<'a>(&'a self, blob: &BlobDigest, stop: Stop<'a>) -> Result<Option<IncomingBlob<'a>>> {
        let partial = self.wait(stop, |state| match state.blobs.get(blob) {
            None | Some(BlobProgress::Stored) => Some(Ok(None)),
            Some(BlobProgress::Partial(partial)) => Some(Ok(Some(partial.clone()))),
            Some(BlobProgress::Requested) => state.failure.clone().map(Err),
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

/// Repeats work that reads incoming blobs for as long as it fails with
/// [`StoreError::DownloadRestarted`].
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
    stop: Stop<'a>,
}

impl IncomingBlob<'_> {
    /// Waits until the attempt that is being read meets a condition.
    fn wait(&self, is_enough: impl Fn(&PartialBlob) -> bool) -> Result<PartialBlob> {
        let found = self.incoming.wait(self.stop, |state| match state.blobs.get(&self.blob) {
            Some(BlobProgress::Partial(now)) if now.attempt != self.known.attempt => {
                Some(Err(StoreError::DownloadRestarted))
            }
            Some(BlobProgress::Partial(now)) if is_enough(now) => Some(Ok(now.clone())),
            _ => state.failure.clone().map(|failure| Err(StoreError::DownloadFailed(failure))),
        });
        found?
    }

    /// Waits until the digest has been verified. Before that, neither the bytes nor an error that
    /// they caused can be trusted.
    ///
    /// # Errors
    ///
    /// Fails with [`StoreError::DownloadRestarted`] if the digest is wrong and the blob is
    /// downloaded again, and with [`StoreError::DownloadFailed`] if the download fails.
    pub(crate) fn confirm(&self) -> Result<()> {
        self.wait(|now| now.is_whole).map(drop)
    }
}

impl Read for IncomingBlob<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at == self.known.size && !self.known.is_whole {
            let at = self.at;
            self.known = self.wait(|now| now.size > at || now.is_whole).map_err(|e| match e {
                StoreError::Stopped => io::Error::other(LayerError::Stopped),
                e => io::Error::other(e),
            })?;
        }
        let most = buf.len().min((self.known.size - self.at).try_into().unwrap_or(usize::MAX));
        let n = self.known.file.read_at(&mut buf[..most], self.at)?;
        if n == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
