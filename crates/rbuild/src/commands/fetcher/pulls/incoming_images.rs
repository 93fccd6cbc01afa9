//! The receiving end of a build's pulls, in the builder.

use std::collections::HashMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rbuild_engine::{Event, Events};
use rbuild_image::{BlobDigest, human_size};
use rbuild_linux::parallel::start;
use rbuild_remedy::ReportedError;
use rbuild_store::{IncomingBlobs, PullId};

use crate::commands::fetcher::pulls::fetcher_process::{FetcherProcess, PendingImage};
use crate::commands::fetcher::pulls::messages::{Message, receive};

/// Time between two events about the progress.
const FRAME: Duration = Duration::from_millis(100);

/// The images that fetchers are downloading. Threads receive their progress until
/// [`IncomingImages::end`].
pub struct IncomingImages {
    pub incoming: Arc<IncomingBlobs>,
    receivers: Vec<(UnixStream, JoinHandle<()>)>,
}

impl IncomingImages {
    /// Starts to receive the messages of fetchers about the images that were ordered.
    pub fn receive(fetchers: impl Iterator<Item = FetcherProcess>, events: &Events) -> std::io::Result<IncomingImages> {
        let mut images = IncomingImages { incoming: Arc::default(), receivers: Vec::new() };
        let mut first = 0;
        for fetcher in fetchers {
            for (at, image) in fetcher.images.iter().enumerate().filter(|(_, image)| image.is_ordered) {
                images.incoming.request(PullId(first + at), &image.manifest, image.layers.clone());
            }
            let socket = fetcher.socket.try_clone()?;
            let mut receiver = Receiver {
                incoming: images.incoming.clone(),
                events: events.clone(),
                started: Instant::now(),
                shown: Instant::now(),
                sizes: HashMap::new(),
                first,
                images: fetcher.images,
            };
            first += receiver.images.len();
            let receiving = start(move || receiver.run(&fetcher.socket)).map_err(std::io::Error::from)?;
            images.receivers.push((socket, receiving));
        }
        Ok(images)
    }

    /// Stops receiving. Fetchers that are still downloading end.
    pub fn end(self) {
        for (socket, receiving) in self.receivers {
            let _ = socket.shutdown(Shutdown::Both);
            let _ = receiving.join();
        }
    }
}

/// Receives the messages of one fetcher.
struct Receiver {
    incoming: Arc<IncomingBlobs>,
    events: Events,
    /// Number of images of earlier fetchers.
    first: usize,
    images: Vec<PendingImage>,
    /// Bytes of each blob that have arrived.
    sizes: HashMap<BlobDigest, u64>,
    started: Instant,
    shown: Instant,
}

impl Receiver {
    fn run(&mut self, socket: &UnixStream) {
        let mut buffer = Vec::new();
        while let Some((message, file)) = receive(socket, &mut buffer) {
            match (message, file) {
                (Message::Begun(at, blob), Some(file)) => self.incoming.begun(self.pull(at), &blob, file),
                (Message::Begun(..), None) => break,
                (Message::Grown(at, blob, size), _) => {
                    self.incoming.grown(self.pull(at), &blob, size);
                    self.sizes.insert(blob, size);
                    self.show();
                }
                (Message::Verified(at, blob), _) => self.incoming.verified(self.pull(at), &blob),
                (Message::Stored(blob), _) => self.incoming.stored(&blob),
                (Message::Ended(at, failure), _) => self.image_ended(at, failure),
                (Message::Notice(text), _) => self.events.send(Event::Warning(text.as_str().into())),
            }
        }
        // Other fetchers may still be downloading their images.
        for at in 0..self.images.len() {
            self.incoming.ended(self.pull(at), Err(ReportedError::new("the fetcher ended unexpectedly")));
        }
    }

    /// Returns the pull of the image at a position.
    fn pull(&self, at: usize) -> PullId {
        PullId(self.first + at)
    }

    fn image_ended(&mut self, at: usize, failure: Option<ReportedError>) {
        let Some(image) = self.images.get(at) else { return };
        let moved = self.moved(image);
        if failure.is_none() {
            let text = format!("pulling {} ({})", image.name, human_size(moved));
            self.events.send(Event::Phase { text, seconds: self.started.elapsed().as_secs_f64() });
        }
        self.events.send(Event::Pulling { image: image.name.clone(), moved, total: moved });
        self.incoming.ended(self.pull(at), failure.map_or(Ok(()), Err));
    }

    /// Sends the progress, unless it was sent a moment ago.
    fn show(&mut self) {
        if self.shown.elapsed() < FRAME {
            return;
        }
        self.shown = Instant::now();
        for image in self.images.iter().filter(|image| image.is_ordered) {
            let (moved, total) = (self.moved(image), image.total);
            self.events.send(Event::Pulling { image: image.name.clone(), moved, total });
        }
    }

    fn moved(&self, image: &PendingImage) -> u64 {
        image.layers.iter().filter_map(|layer| self.sizes.get(layer)).sum()
    }
}
