//! A fetcher from the point of view of the launcher.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rbuild_engine::ImageRequest;
use rbuild_image::{BlobDigest, ManifestDigest, digest_of};
use rbuild_linux::process;
use rbuild_store::Image;

use crate::commands::transfer::shown_name;
use crate::exit::Failure;

/// Maximum time between the last message of a fetcher and its end.
const ENDING: Duration = Duration::from_secs(2);

/// A fetcher that waits for the order to download layers, or is downloading them.
pub struct FetcherProcess {
    pub socket: UnixStream,
    pub pid: u32,
    pub images: Vec<PendingImage>,
}

/// An image whose layers are missing.
pub struct PendingImage {
    pub name: String,
    pub manifest: ManifestDigest,
    pub layers: Vec<BlobDigest>,
    /// Size of all layers in bytes.
    pub total: u64,
    /// True once the download of the layers was ordered.
    pub is_ordered: bool,
}

impl PendingImage {
    pub fn of(request: &ImageRequest, image: &Image) -> Result<PendingImage, Failure> {
        let layers = image.manifest.layers().iter().map(digest_of).collect::<Result<Vec<_>, _>>();
        let layers = layers.map_err(|e| Failure::new(e.to_string()))?;
        let total = image.manifest.layers().iter().fold(0u64, |total, layer| total.saturating_add(layer.size()));
        let name = shown_name(&request.name, &request.platform);
        Ok(PendingImage { name, manifest: image.manifest_digest, layers, total, is_ordered: false })
    }
}

impl FetcherProcess {
    /// Returns true if the download of layers was ordered.
    pub fn downloads(&self) -> bool {
        self.images.iter().any(|image| image.is_ordered)
    }

    /// Waits for the end of a fetcher that has nothing more to do. Returns true if it was killed.
    pub fn end(self) -> bool {
        // Without an order, it ends when the socket is closed.
        let _ = self.socket.shutdown(Shutdown::Both);
        match process::pidfd(self.pid) {
            Ok(pidfd) if process::ends_within(&pidfd, ENDING) => {
                let _ = process::wait(self.pid);
                false
            }
            _ => self.kill(),
        }
    }

    /// Kills the process. Returns true.
    pub fn kill(self) -> bool {
        process::kill(self.pid);
        let _ = process::wait(self.pid);
        true
    }
}
