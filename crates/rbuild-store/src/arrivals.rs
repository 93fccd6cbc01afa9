//! Blobs and images that another process is downloading into the store for this one.
//!
//! The layers of an image can be unpacked while they are downloaded: [`ArrivingBlob`] reads the
//! file of a blob as it grows, and reaches its end only after the downloading process has compared
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

/// Time between two checks whether the build has been stopped.
const CHECK: Duration = Duration::from_millis(50);

/// Progress of the downloads of one build. Empty unless another process is downloading.
#[derive(Default)]
pub struct Arrivals {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The images that were requested.
    images: HashMap<ManifestDigest, RequestedImage>,
    blobs: HashMap<BlobDigest, Arrival>,
    /// The first failure. No further blob arrives after it.
    failure: Option<ReportedError>,
    /// The layers that threads are unpacking.
    unpacking: HashSet<DiffId>,
}

/// The pull. If two pulls download the same blob, readers follow the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PullId(pub usize);

struct RequestedImage {
    layers: Vec<BlobDigest>,
    /// Number of pulls of the image, under several names, that have not ended.
    open: usize,
    /// `None` until it is known.
    outcome: Option<std::result::Result<(), ReportedError>>,
}

/// The progress of one blob.
enum Arrival {
    /// The download has not begun.
    Requested,
    /// Some bytes have arrived.
    Partial(PartialBlob),
    /// The blob is in the store.
    Stored,
}

impl Arrival {
    fn is_of(&self, pull: PullId) -> bool {
        matches!(self, Arrival::Partial(partial) if partial.pull == pull)
    }
}

#[derive(Clone)]
struct PartialBlob {
    file: Arc<File>,
    pull: PullId,
    /// Number of the attempt: a blob with a wrong digest is downloaded again.
    attempt: u32,
    /// Number of bytes that have arrived.
    size: u64,
    /// True if all bytes have arrived and their digest is right.
    is_whole: bool,
}

impl Arrivals {
    /// Adds an image and its layers, whose download was requested.
    pub fn request(&self, image: &ManifestDigest, layers: Vec<BlobDigest>) {
        let mut state = locked(&self.state);
        for layer in &layers {
            state.blobs.entry(*layer).or_insert(Arrival::Requested);
        }
        let new = || RequestedImage { layers, open: 0, outcome: None };
        state.images.entry(*image).or_insert_with(new).open += 1;
    }

    /// Records that an attempt to download a blob has begun, into that file.
    pub fn begun(&self, pull: PullId, blob: &BlobDigest, file: File) {
        self.change(|state| {
            let attempt = match state.blobs.get(blob) {
                Some(Arrival::Partial(before)) if before.pull == pull => before.attempt + 1,
                Some(Arrival::Partial(_)) => return,
                _ => 0,
            };
            let partial = PartialBlob { file: Arc::new(file), pull, attempt, size: 0, is_whole: false };
            state.blobs.insert(*blob, Arrival::Partial(partial));
        });
    }

    /// Records the number of bytes of a blob that have arrived.
    pub fn grown(&self, pull: PullId, blob: &BlobDigest, size: u64) {
        self.change_partial(pull, blob, |partial| partial.size = size);
    }

    /// Records that a blob is complete, and its digest right.
    pub fn verified(&self, pull: PullId, blob: &BlobDigest) {
        self.change_partial(pull, blob, |partial| partial.is_whole = true);
    }

    fn change_partial(&self, pull: PullId, blob: &BlobDigest, change: impl FnOnce(&mut PartialBlob)) {
        self.change(|state| {
            if let Some(Arrival::Partial(partial)) = state.blobs.get_mut(blob).filter(|blob| blob.is_of(pull)) {
                change(partial);
            }
        });
    }

    /// Records that a requested blob is in the store.
    pub fn stored(&self, blob: &BlobDigest) {
        self.change(|state| match state.blobs.get(blob) {
            // Its readers keep their file.
            Some(Arrival::Partial(_)) => {}
            _ => drop(state.blobs.insert(*blob, Arrival::Stored)),
        });
    }

    /// Records that a pull of an image has ended: the image and its blobs are in the store, or the
    /// reason why they are not.
    pub fn ended(&self, image: &ManifestDigest, outcome: std::result::Result<(), ReportedError>) {
        self.change(|state| {
            let State { images, blobs, failure, .. } = state;
            let Some(requested) = images.get_mut(image) else { return };
            match &outcome {
                // Readers of a partial blob keep its file.
                Ok(()) => requested.layers.iter().for_each(|layer| {
                    if !matches!(blobs.get(layer), Some(Arrival::Partial(_))) {
                        blobs.insert(*layer, Arrival::Stored);
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

    /// Waits until no other thread of this build unpacks the layer. The others then wait until the
    /// result is dropped.
    pub(crate) fn unpack_alone(&self, layer: DiffId, stop: Stop<'_>) -> Result<UnpackingLayer<'_>> {
        loop {
            self.wait(stop, |state| (!state.unpacking.contains(&layer)).then_some(()))?;
            if locked(&self.state).unpacking.insert(layer) {
                return Ok(UnpackingLayer { arrivals: self, layer });
            }
        }
    }

    /// Waits until an image is in the store, if its download was requested.
    pub(crate) fn wait_for_image(&self, image: &ManifestDigest, stop: Stop<'_>) -> Result<()> {
        let find = |state: &State| state.images.get(image).map_or(Some(Ok(())), |image| image.outcome.clone());
        self.wait(stop, find)?.map_err(StoreError::NotArrived)
    }

    /// Returns true if the download of a blob was requested and its bytes come from there. A blob
    /// that was read while it arrived keeps its file, and so stays expected after it is stored.
    pub(crate) fn is_expected(&self, blob: &BlobDigest) -> bool {
        matches!(locked(&self.state).blobs.get(blob), Some(Arrival::Requested | Arrival::Partial(_)))
    }

    /// Opens a blob that is being downloaded, once its first bytes can be expected. Returns `None`
    /// if it is in the store or was not requested.
    pub(crate) fn open<'a>(&'a self, blob: &BlobDigest, stop: Stop<'a>) -> Result<Option<ArrivingBlob<'a>>> {
        let partial = self.wait(stop, |state| match state.blobs.get(blob) {
            None | Some(Arrival::Stored) => Some(Ok(None)),
            Some(Arrival::Partial(partial)) => Some(Ok(Some(partial.clone()))),
            Some(Arrival::Requested) => state.failure.clone().map(Err),
        })?;
        let partial = partial.map_err(StoreError::NotArrived)?;
        Ok(partial.map(|known| ArrivingBlob { arrivals: self, blob: *blob, known, at: 0, stop }))
    }
}

/// A layer that one thread of the build unpacks.
pub(crate) struct UnpackingLayer<'a> {
    arrivals: &'a Arrivals,
    layer: DiffId,
}

impl Drop for UnpackingLayer<'_> {
    fn drop(&mut self) {
        self.arrivals.change(|state| {
            state.unpacking.remove(&self.layer);
        });
    }
}

/// Repeats work that reads arriving blobs for as long as it fails because one is downloaded again.
pub(crate) fn repeated<T>(work: impl Fn() -> Result<T>) -> Result<T> {
    loop {
        match work() {
            Err(StoreError::ArrivesAgain) => {}
            other => return other,
        }
    }
}

/// A reader of a blob that is being downloaded. It waits for bytes that have not arrived yet.
pub(crate) struct ArrivingBlob<'a> {
    arrivals: &'a Arrivals,
    blob: BlobDigest,
    known: PartialBlob,
    at: u64,
    stop: Stop<'a>,
}

impl ArrivingBlob<'_> {
    /// Waits until a condition holds for the attempt that this reads.
    fn wait(&self, is_enough: impl Fn(&PartialBlob) -> bool) -> Result<PartialBlob> {
        let found = self.arrivals.wait(self.stop, |state| match state.blobs.get(&self.blob) {
            Some(Arrival::Partial(now)) if now.attempt != self.known.attempt => Some(Err(StoreError::ArrivesAgain)),
            Some(Arrival::Partial(now)) if is_enough(now) => Some(Ok(now.clone())),
            _ => state.failure.clone().map(|failure| Err(StoreError::NotArrived(failure))),
        });
        found?
    }

    /// Waits until the digest has been compared. Bytes that were read before may be wrong, and so
    /// may errors that they caused.
    ///
    /// # Errors
    ///
    /// Fails with [`StoreError::ArrivesAgain`] if it is wrong and the blob is downloaded again, and
    /// with [`StoreError::NotArrived`] if it is not.
    pub(crate) fn confirm(&self) -> Result<()> {
        self.wait(|now| now.is_whole).map(drop)
    }
}

impl Read for ArrivingBlob<'_> {
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
