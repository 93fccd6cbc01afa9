//! Upload of layers while they are packed.
//!
//! The digest of such a layer is known only when all of it has been sent, so a registry that has it
//! cannot be asked first. A failure is not one of the push, which then uploads the layer as any
//! other.

use std::fs::File;
use std::io::Read;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::Scope;

use rbuild_image::{BlobDigest, Reference};
use rbuild_layer::Counting;
use rbuild_linux::parallel::{locked, start_in};
use rbuild_registry::{Client, GrowingUpload, RemoteRepository, Repository};
use rbuild_store::{PackingProgress, PackingWatch};

use crate::blobs::BlobInfo;
use crate::error::Result;
use crate::growing::GrowingBlob;

/// Number of bytes from which a layer is uploaded while it grows. It takes less time to compress
/// than a round trip to most registries.
const LARGE: u64 = 8 << 20;

/// The repository that growing layers are uploaded to.
pub struct EarlyPush {
    repository: Repository,
    /// Counts bytes.
    moved: Arc<AtomicU64>,
    uploaded: Mutex<Vec<BlobDigest>>,
    /// Number of free connections.
    free: Mutex<usize>,
    changed: Condvar,
}

/// Blobs that were uploaded while they were packed, and the repository.
#[derive(Debug, Clone)]
pub struct EarlyUploads {
    pub(crate) place: RemoteRepository,
    pub(crate) blobs: Vec<BlobDigest>,
}

impl EarlyPush {
    /// Prepares uploads to the repository of a name. Connects to nothing.
    ///
    /// # Errors
    ///
    /// Fails if a settings file is invalid or forbids the registry.
    pub fn new(client: &Client, name: &Reference) -> Result<EarlyPush> {
        let repository = client.repository(name)?;
        let (moved, uploaded, changed) = Default::default();
        let free = Mutex::new(repository.connections());
        Ok(EarlyPush { repository, moved, uploaded, free, changed })
    }

    /// Returns the counter of bytes that were sent.
    pub fn moved(&self) -> &Arc<AtomicU64> {
        &self.moved
    }

    /// Uploads a blob, unless it is small. Waits until it is complete.
    pub fn upload(&self, blob: &GrowingBlob) {
        if !blob.reaches(LARGE) {
            return;
        }
        let _slot = self.slot();
        let open = |at| {
            let counted = Counting::new(blob.read_at(at), self.moved.clone());
            Ok(Box::new(counted) as Box<dyn Read + '_>)
        };
        let complete = || blob.completed().map(|BlobInfo { digest, size }| (digest, size));
        match self.repository.push_growing(&GrowingUpload { open: &open, complete: &complete }) {
            Ok((digest, size)) => {
                tracing::debug!(target: "transport", %digest, size, "uploaded while it was packed");
                locked(&self.uploaded).push(digest);
            }
            Err(e) => tracing::debug!(target: "transport", error = e.message(), "upload of a growing layer failed"),
        }
    }

    /// Waits for a free connection.
    fn slot(&self) -> Slot<'_> {
        let mut free = locked(&self.free);
        while *free == 0 {
            free = self.changed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        Slot(self)
    }

    /// Returns the blobs that were uploaded.
    pub fn uploads(self) -> EarlyUploads {
        let place = self.repository.place().clone();
        EarlyUploads { place, blobs: self.uploaded.into_inner().unwrap_or_else(PoisonError::into_inner) }
    }

    /// Runs `pack` with a receiver that uploads the layers that are packed. Waits for the uploads.
    pub(crate) fn beside<T>(&self, pack: impl FnOnce(&dyn PackingWatch) -> T) -> T {
        std::thread::scope(|scope| pack(&Uploading { push: self, scope }))
    }
}

impl EarlyUploads {
    /// Returns the digests of the blobs.
    pub fn blobs(&self) -> &[BlobDigest] {
        &self.blobs
    }

    /// Returns the uploads of another process to the repository of a name.
    ///
    /// # Errors
    ///
    /// Fails if a settings file is invalid.
    pub fn of(client: &Client, name: &Reference, blobs: Vec<BlobDigest>) -> Result<EarlyUploads> {
        Ok(EarlyUploads { place: client.repository(name)?.place().clone(), blobs })
    }
}

/// A connection in use.
struct Slot<'a>(&'a EarlyPush);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        *locked(&self.0.free) += 1;
        self.0.changed.notify_one();
    }
}

/// Uploads each layer on a thread of its own.
struct Uploading<'s, 'e> {
    push: &'s EarlyPush,
    scope: &'s Scope<'s, 'e>,
}

impl PackingWatch for Uploading<'_, '_> {
    fn begun(&self, file: File) -> Box<dyn PackingProgress + '_> {
        let blob = Arc::new(GrowingBlob::new(file));
        let (push, growing) = (self.push, blob.clone());
        // Without the thread, the layer is uploaded later.
        let _ = start_in(self.scope, move || push.upload(&growing));
        Box::new(UploadedLayer(blob))
    }

    /// A push packs layers in a form that the registry may lack.
    fn has(&self, _layer: &BlobDigest) -> bool {
        false
    }
}

struct UploadedLayer(Arc<GrowingBlob>);

impl PackingProgress for UploadedLayer {
    fn grown(&mut self, size: u64) {
        self.0.grown(size);
    }

    fn packed(self: Box<Self>, digest: &BlobDigest, size: u64) {
        self.0.complete(BlobInfo { digest: *digest, size });
    }
}

impl Drop for UploadedLayer {
    fn drop(&mut self) {
        self.0.abandon();
    }
}
