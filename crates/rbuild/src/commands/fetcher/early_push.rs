//! The upload of layers while the builder packs them.
//!
//! The builder has no network and no credentials, so a fetcher uploads. It is forked before the
//! builder, which sends it the file of each layer and its growth through a socket. When the builder
//! has ended, the fetcher completes its uploads and answers with the digests of the blobs. Anything
//! else is pushed afterwards, and so are blobs whose upload failed.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rbuild_image::{BlobDigest, Reference};
use rbuild_linux::StopSignals;
use rbuild_linux::fd_passing::{message_sockets, receive_with_bytes, send_with_bytes};
use rbuild_linux::parallel::start_in;
use rbuild_linux::process;
use rbuild_store::{PackingProgress, PackingWatch, Store};
use rbuild_transport::{BlobInfo, EarlyPush, GrowingBlob};
use serde::{Deserialize, Serialize};

use crate::args::RegistryFlags;
use crate::commands::fetcher::ending::{EndAtSignal, end_fetcher};
use crate::commands::fetcher::forked::fork_fetcher;
use crate::commands::fetcher::task::interrupted;
use crate::commands::transfer::TransferDisplay;
use crate::exit::{Failure, code};
use crate::input::registry;
use crate::ui::transfer_bar::TransferBar;

/// Maximum size of a message in bytes.
const MAX_MESSAGE: usize = 1024;
/// Number of bytes by which a layer grows before that is reported.
const STEP: u64 = 1 << 20;

/// A message of the builder about a layer, which has a number.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum LayerMessage {
    /// A layer begins, in the file that comes with the message.
    Begun(u64),
    /// The file of a layer has that many bytes.
    Grown(u64, u64),
    /// A layer is complete: its digest and its size in bytes.
    Packed(u64, BlobDigest, u64),
    /// A layer will not be completed.
    Abandoned(u64),
    /// The build is repeated: no layer that has begun will be completed, and numbers are used
    /// again.
    Repeated,
}

/// The upload of the layers of one build.
pub struct EarlyPusher<'a> {
    flags: &'a RegistryFlags,
    /// The names that the image is pushed to. The first one's repository gets the layers early.
    names: &'a [Reference],
    display: TransferDisplay,
    running: RefCell<Option<UploadingFetcher>>,
}

/// A fetcher that uploads.
struct UploadingFetcher {
    pid: u32,
    socket: Arc<OwnedFd>,
    answer: PipeReader,
}

impl<'a> EarlyPusher<'a> {
    /// Prepares the upload of the layers of an image that is pushed to `names`, which may be none.
    pub fn new(flags: &'a RegistryFlags, names: &'a [Reference], display: TransferDisplay) -> EarlyPusher<'a> {
        EarlyPusher { flags, names, display, running: RefCell::default() }
    }

    /// Forks the fetcher, or continues with that of a build that is repeated. The caller must have
    /// one thread. `in_fetcher` closes what belongs to the launcher. Without a fetcher, the layers
    /// are pushed later.
    pub fn start(&self, in_fetcher: impl FnOnce()) {
        let Some(name) = self.names.first() else { return };
        let mut running = self.running.borrow_mut();
        match &*running {
            Some(UploadingFetcher { socket, .. }) => send(socket, &LayerMessage::Repeated, None),
            None => *running = self.forked(name, in_fetcher).ok(),
        }
    }

    fn forked(&self, name: &Reference, in_fetcher: impl FnOnce()) -> std::io::Result<UploadingFetcher> {
        let (answer, writer) = std::io::pipe()?;
        let (ours, theirs) = message_sockets()?;
        let work = move || {
            in_fetcher();
            self.run(name, &theirs, writer)
        };
        let (pid, (answer, ours)) = fork_fetcher((answer, ours), work)?;
        Ok(UploadingFetcher { pid, socket: Arc::new(ours), answer })
    }

    /// Uploads layers until the builder has ended. Fails with an exit code.
    fn run(&self, name: &Reference, socket: &OwnedFd, mut answer: PipeWriter) -> Result<(), u8> {
        // The launcher ends this process.
        let _ = process::block_ending_signals();
        let end = EndAtSignal::of_fetcher();
        // What fails here fails once more, and is reported, in the push itself.
        let client = registry::client_with(self.flags, self.names, |_| {}).map_err(|failure| failure.code)?;
        rbuild_linux::drop_withheld();
        let early = EarlyPush::new(&client, name).map_err(|_| code::FAILED)?;
        std::thread::scope(|scope| {
            let mut blobs: HashMap<u64, Arc<GrowingBlob>> = HashMap::new();
            let (mut uploads, mut buffer) = (Vec::new(), Vec::new());
            while let Some((message, file)) = receive(socket, &mut buffer) {
                match (message, file) {
                    (LayerMessage::Begun(number), Some(file)) => {
                        let blob = Arc::new(GrowingBlob::new(file));
                        blobs.insert(number, blob.clone());
                        let early = &early;
                        uploads.extend(start_in(scope, move || early.upload(&blob)));
                    }
                    (LayerMessage::Begun(_), None) => break,
                    (LayerMessage::Grown(number, size), _) => {
                        blobs.get(&number).into_iter().for_each(|b| b.grown(size))
                    }
                    (LayerMessage::Packed(number, digest, size), _) => {
                        blobs.remove(&number).into_iter().for_each(|b| b.complete(BlobInfo { digest, size }));
                    }
                    (LayerMessage::Abandoned(number), _) => {
                        blobs.remove(&number).into_iter().for_each(|b| b.abandon());
                    }
                    (LayerMessage::Repeated, _) => blobs.drain().for_each(|(_, blob)| blob.abandon()),
                }
            }
            blobs.values().for_each(|blob| blob.abandon());
            let doing = format!("pushing {}", name.familiar());
            let moved = early.moved().clone();
            let bar = (self.display == TransferDisplay::Bar).then(|| TransferBar::with_counter(&doing, None, moved));
            uploads.into_iter().for_each(|upload| drop(upload.join()));
            drop(bar);
        });
        drop(end);
        let text = serde_json::to_vec(early.uploads().blobs()).map_err(|_| code::BUG)?;
        answer.write_all(&text).map_err(|_| code::FAILED)
    }

    /// Closes the socket of the fetcher, in another process than the launcher.
    pub fn close(&self) {
        self.running.take();
    }

    /// Returns the process of the fetcher.
    pub fn process(&self) -> Option<u32> {
        self.running.borrow().as_ref().map(|running| running.pid)
    }

    /// Returns the receiver of layers that are packed into `store`. Called by the builder.
    pub fn watch(&self, store: &Store) -> Option<Arc<dyn PackingWatch>> {
        let running = self.running.take()?;
        // If they cannot be read, layers are uploaded again.
        let known = self.names.first().and_then(|name| store.repo_digests().layers_in(name).ok()).unwrap_or_default();
        Some(Arc::new(LayerReporter { socket: running.socket, count: AtomicU64::new(0), known }))
    }

    /// Ends the fetcher when the builder has ended: after its last upload if the build succeeded,
    /// and otherwise after it has canceled its uploads. Returns the blobs that were uploaded. Fails
    /// if a signal interrupts the uploads.
    pub fn end(&self, succeeded: bool) -> Result<Vec<BlobDigest>, Failure> {
        let Some(UploadingFetcher { pid, socket, answer }) = self.running.take() else { return Ok(Vec::new()) };
        drop(socket);
        let signals = StopSignals::block().ok();
        let read = match &signals {
            Some(signals) if succeeded => signals.read_to_end(answer),
            _ => Ok(Some(Vec::new())),
        };
        let text = match &read {
            Ok(Some(text)) => serde_json::from_slice(text).ok(),
            _ => None,
        };
        let _ = match text {
            None => end_fetcher(pid, signals.as_ref()),
            Some(_) => process::wait(pid),
        };
        match read {
            Ok(None) => Err(interrupted()),
            _ => Ok(text.unwrap_or_default()),
        }
    }
}

fn receive(socket: impl AsFd, buffer: &mut Vec<u8>) -> Option<(LayerMessage, Option<File>)> {
    buffer.resize(MAX_MESSAGE, 0);
    let (files, size) = receive_with_bytes(socket, buffer).ok()?;
    let message = serde_json::from_slice(&buffer[..size]).ok()?;
    Some((message, files.into_iter().next().map(File::from)))
}

/// Sends the progress of layers to the fetcher.
struct LayerReporter {
    socket: Arc<OwnedFd>,
    /// Number of layers.
    count: AtomicU64,
    /// Layers of images that were pulled from the repository or pushed there, as the store has
    /// them.
    known: HashSet<BlobDigest>,
}

impl LayerReporter {
    fn send(&self, message: &LayerMessage, file: Option<&File>) {
        send(&self.socket, message, file);
    }
}

/// Sends a message to the fetcher. If that is gone, the layers are pushed later.
fn send(socket: &OwnedFd, message: &LayerMessage, file: Option<&File>) {
    let Ok(text) = serde_json::to_vec(message) else { return };
    let files: Vec<_> = file.into_iter().map(File::as_fd).collect();
    let _ = send_with_bytes(socket, &text, &files);
}

impl PackingWatch for LayerReporter {
    fn begun(&self, file: File) -> Box<dyn PackingProgress + '_> {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        self.send(&LayerMessage::Begun(number), Some(&file));
        Box::new(AnnouncedLayer { to: self, number, sent: 0, is_packed: false })
    }

    fn has(&self, layer: &BlobDigest) -> bool {
        self.known.contains(layer)
    }
}

/// A layer that is being packed.
struct AnnouncedLayer<'a> {
    to: &'a LayerReporter,
    number: u64,
    /// Size in bytes that was sent last.
    sent: u64,
    is_packed: bool,
}

impl PackingProgress for AnnouncedLayer<'_> {
    fn grown(&mut self, size: u64) {
        if size - self.sent >= STEP {
            self.sent = size;
            self.to.send(&LayerMessage::Grown(self.number, size), None);
        }
    }

    fn packed(mut self: Box<Self>, digest: &BlobDigest, size: u64) {
        self.is_packed = true;
        self.to.send(&LayerMessage::Packed(self.number, *digest, size), None);
    }
}

impl Drop for AnnouncedLayer<'_> {
    fn drop(&mut self) {
        if !self.is_packed {
            self.to.send(&LayerMessage::Abandoned(self.number), None);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use rbuild_testkit::Scratch;

    use super::*;

    #[test]
    fn layers_are_announced_with_their_files() {
        let (ours, theirs) = message_sockets().unwrap();
        let watch = LayerReporter { socket: Arc::new(ours), count: AtomicU64::new(7), known: HashSet::new() };
        let dir = Scratch::new();
        let path = dir.join("layer");
        std::fs::write(&path, "layer").unwrap();
        let mut layer = watch.begun(File::open(&path).unwrap());
        layer.grown(STEP - 1);
        layer.grown(STEP);
        layer.grown(STEP + 1);
        drop(layer);
        drop(watch);
        let mut buffer = Vec::new();
        let mut next = || receive(&theirs, &mut buffer);
        let Some((LayerMessage::Begun(7), Some(mut file))) = next() else { panic!() };
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "layer");
        assert_eq!(next().map(|(message, _)| message), Some(LayerMessage::Grown(7, STEP)));
        assert_eq!(next().map(|(message, _)| message), Some(LayerMessage::Abandoned(7)));
        assert!(next().is_none(), "the end");
    }
}
