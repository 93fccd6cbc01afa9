//! The pulls of a build.
//!
//! A pull has two phases. In the first, while the build is being prepared, a fetcher downloads the
//! documents of the images that the store lacks. It then waits. If the build is executed, the
//! launcher orders the layers of the images that it needs. The fetcher downloads them into the
//! store and sends the open files and their current sizes through a socket to the builder, which
//! unpacks them during the download. Otherwise, the fetcher ends.

use std::cell::RefCell;
use std::io::Read;

use rbuild_engine::{BuildError, Events, ImageRequest};
use rbuild_image::{ManifestDigest, Reference};
use rbuild_linux::fd_passing::message_sockets;
use rbuild_remedy::ReportedError;
use rbuild_store::{Image, Store, Workspace};
use rbuild_transport::OtherPlatform;

use crate::args::RegistryFlags;
use crate::commands::fetcher::forked::fork_fetcher;
use crate::commands::fetcher::pulls::fetcher_process::{FetcherProcess, PendingImage};
use crate::commands::fetcher::pulls::fetching::Fetching;
use crate::commands::fetcher::pulls::messages::{FetcherAnswer, FetcherAnswers};
use crate::commands::transfer::TransferDisplay;
use crate::exit::Failure;

mod fetcher_process;
mod fetching;
mod incoming_images;
mod messages;

use incoming_images::IncomingImages;

/// The pulls of a build or a container.
pub struct Pulls<'a> {
    fetching: Fetching<'a>,
    fetchers: RefCell<Vec<FetcherProcess>>,
}

impl<'a> Pulls<'a> {
    /// Prepares pulls. Credentials of the command line are sent only to the registries of `own`.
    pub fn new(
        store: &'a Store,
        flags: &'a RegistryFlags,
        own: &'a [Reference],
        display: TransferDisplay,
    ) -> Pulls<'a> {
        let other = OtherPlatform::Accept;
        Pulls { fetching: Fetching { store, flags, own, other, display }, fetchers: RefCell::default() }
    }

    /// Sets the handling of images for another platform than the requested one.
    pub fn with_other_platforms(self, other: OtherPlatform) -> Pulls<'a> {
        Pulls { fetching: Fetching { other, ..self.fetching }, ..self }
    }

    /// Runs the first phase for images. The caller must have one thread.
    pub fn begin(&self, wanted: &[ImageRequest]) -> Result<Vec<Result<Option<Image>, ReportedError>>, BuildError> {
        let caller = |failure: Failure| BuildError::Caller(Box::new(failure));
        let (answers, mut fetcher) = self.start(wanted).map_err(caller)?;
        let mut outcome = |(request, answer): (&ImageRequest, FetcherAnswer)| match answer {
            FetcherAnswer::Stored => Ok(Ok(None)),
            FetcherAnswer::Failed(error) => Ok(Err(error)),
            FetcherAnswer::Documents { manifest, config } => {
                let image = Image::of_documents(&manifest.0, |_| Ok(config.0))?;
                fetcher.images.push(PendingImage::of(request, &image).map_err(caller)?);
                Ok(Ok(Some(image)))
            }
        };
        let outcomes = wanted.iter().zip(answers).map(&mut outcome).collect();
        self.fetchers.borrow_mut().push(fetcher);
        outcomes
    }

    /// Forks a fetcher and returns its answers.
    fn start(&self, wanted: &[ImageRequest]) -> Result<(Vec<FetcherAnswer>, FetcherProcess), Failure> {
        let failed =
            |e: &(dyn std::error::Error + 'static)| Failure::new(format!("cannot start the fetcher: {e}")).because(e);
        let (answer, writer) = std::io::pipe().map_err(|e| failed(&e))?;
        let (ours, theirs) = message_sockets().map_err(|e| failed(&std::io::Error::from(e)))?;
        let work = move || {
            // The sockets of earlier fetchers must not outlive the launcher's.
            self.fetchers.take();
            self.fetching.run(wanted, writer, theirs)
        };
        let (pid, (mut answer, ours)) = fork_fetcher((answer, ours), work).map_err(|e| failed(&e))?;
        let mut text = Vec::new();
        let read = answer.read_to_end(&mut text);
        let answers: Option<FetcherAnswers> = read.ok().and_then(|_| serde_json::from_slice(&text).ok());
        let fetcher = FetcherProcess { socket: ours.into(), pid, images: Vec::new() };
        let answers = answers.unwrap_or_else(|| Err(Failure::new("the fetcher ended without an answer")));
        match answers {
            Ok(answers) => Ok((answers, fetcher)),
            Err(failure) => {
                fetcher.kill();
                Err(failure)
            }
        }
    }

    /// Orders the layers of the images that are needed.
    pub fn order(&self, is_needed: impl Fn(&ManifestDigest) -> bool) {
        for fetcher in self.fetchers.borrow_mut().iter_mut() {
            fetcher.images.iter_mut().for_each(|image| image.is_ordered = is_needed(&image.manifest));
            if fetcher.downloads() {
                // A fetcher that has ended is reported by the builder, which waits for its images.
                let _ = messages::order(&fetcher.socket, fetcher.images.iter().map(|image| image.is_ordered));
            }
        }
    }

    /// Starts to receive the progress of the layers that were ordered. Called by the builder.
    pub fn receive(&self, events: &Events) -> std::io::Result<IncomingImages> {
        let fetchers = self.fetchers.take().into_iter().filter(FetcherProcess::downloads);
        IncomingImages::receive(fetchers, events)
    }

    /// Closes the sockets of the fetchers, in another process than the launcher.
    pub fn close(&self) {
        self.fetchers.take();
    }

    /// Returns the process IDs of the fetchers.
    pub fn processes(&self) -> Vec<u32> {
        self.fetchers.borrow().iter().map(|fetcher| fetcher.pid).collect()
    }

    /// Ends the fetchers. Those of a build that did not succeed are killed, and what they
    /// downloaded is removed.
    pub fn end(&self, succeeded: bool) {
        let mut was_killed = false;
        for fetcher in self.fetchers.take() {
            was_killed |= if succeeded || !fetcher.downloads() { fetcher.end() } else { fetcher.kill() };
        }
        if was_killed {
            // Opening a workspace removes those of killed processes.
            let _ = Workspace::open(self.fetching.store);
        }
    }
}
