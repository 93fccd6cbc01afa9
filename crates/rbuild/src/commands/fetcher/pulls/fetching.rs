//! The fetcher process, which pulls images for a build. No other process has credentials.

use std::collections::HashSet;
use std::convert::Infallible;
use std::hash::Hash;
use std::io::{PipeWriter, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rbuild_engine::ImageRequest;
use rbuild_image::{BlobDigest, Reference};
use rbuild_linux::parallel::try_map;
use rbuild_linux::process;
use rbuild_registry::{Client, Notice};
use rbuild_store::{LostPlatforms, OwnerMode, Store, StoreError};
use rbuild_transport::{
    OtherPlatform, PendingPull, PullStart, PulledImage, TransferProgress, TransportError, begin_pull,
};

use crate::args::RegistryFlags;
use crate::commands::fetcher::pulls::messages::{FetcherAnswer, FetcherAnswers, ImageSender, Sender, receive_order};
use crate::commands::transfer::{TransferDisplay, shown_name};
use crate::exit::{code, reported};
use crate::input::registry;
use crate::ui::terminal;

/// The inputs of a fetcher.
#[derive(Clone, Copy)]
pub struct Fetching<'a> {
    pub store: &'a Store,
    pub flags: &'a RegistryFlags,
    /// The images of the registries that get the credentials of the command line.
    pub own: &'a [Reference],
    /// Handling of images for another platform than the requested one.
    pub other: OtherPlatform,
    pub display: TransferDisplay,
}

impl Fetching<'_> {
    /// Answers the requests, waits for the order, and downloads the layers. The error is an exit
    /// code.
    pub fn run(&self, wanted: &[ImageRequest], mut answer: PipeWriter, socket: OwnedFd) -> Result<(), u8> {
        let (sender, is_ordered) = (Arc::new(Sender(socket)), Arc::new(AtomicBool::new(false)));
        let (notices, ordered, quiet) = (sender.clone(), is_ordered.clone(), self.display == TransferDisplay::Nothing);
        let notify = move |notice: Notice| {
            if quiet {
                return;
            }
            if ordered.load(Ordering::Relaxed) {
                // The builder draws.
                notices.notice(registry::words(&notice));
            } else {
                registry::show(&notice);
            }
        };
        let client = registry::client_with(self.flags, self.own, notify);
        rbuild_linux::drop_withheld();
        let mut open = Vec::new();
        let begun = client.map(|client| wanted.iter().map(|request| self.begin(&client, request)).collect::<Vec<_>>());
        let answers: FetcherAnswers = begun.map(|begun| {
            let answer = |begun| match begun {
                Ok(PullStart::Found(_)) => FetcherAnswer::Stored,
                Ok(PullStart::Pending(pull)) => {
                    let documents = FetcherAnswer::documents(&pull);
                    open.push(pull);
                    documents
                }
                Err(e) => FetcherAnswer::failed(&e),
            };
            begun.into_iter().map(answer).collect()
        });
        let text = serde_json::to_vec(&answers).map_err(|_| code::BUG)?;
        answer.write_all(&text).map_err(|_| code::FAILED)?;
        drop(answer);
        if open.is_empty() {
            return Ok(());
        }
        let Some(needed) = receive_order(&sender.0, open.len()) else { return Ok(()) };
        is_ordered.store(true, Ordering::Relaxed);
        // The launcher ends this process.
        let _ = process::block_ending_signals();
        match notifying(self.store, &sender) {
            Ok(store) => complete(&store, &open, &needed, &sender, self.display),
            Err(e) => needed.into_iter().for_each(|at| sender.end(at, Some(reported(&e, e.remedy())))),
        }
        Ok(())
    }

    fn begin(&self, client: &Client, request: &ImageRequest) -> Result<PullStart, TransportError> {
        if self.display != TransferDisplay::Nothing {
            terminal::err(&format!("pulling {}\n", shown_name(&request.name, &request.platform)));
        }
        let begun = begin_pull(self.store, client, &request.name, &request.platform, self.other)?;
        match &begun {
            PullStart::Pending(pull) => pull.warnings().iter().for_each(|warning| terminal::warning(warning.as_str())),
            PullStart::Found(image) => lost(image, self.display).into_iter().for_each(terminal::warning),
        }
        Ok(begun)
    }
}

/// Returns the note about platforms that the name of the image no longer has, if notes are shown.
fn lost(image: &PulledImage, display: TransferDisplay) -> Option<String> {
    image.lost.as_ref().filter(|_| display != TransferDisplay::Nothing).map(LostPlatforms::to_string)
}

/// Returns a handle of the store that sends messages about waits to the builder, which draws the
/// progress.
fn notifying(store: &Store, sender: &Arc<Sender>) -> Result<Store, StoreError> {
    let notices = sender.clone();
    Ok(store.at_path(store.path(), OwnerMode::Given)?.with_notices(move |text| notices.notice(text)))
}

/// Maximum number of images that are downloaded at once.
const MAX_PARALLEL_IMAGES: usize = 8;

/// Downloads the layers of the `needed` images concurrently. Images with a common layer are
/// downloaded one after another, so each layer is downloaded only once.
fn complete(store: &Store, open: &[PendingPull], needed: &[usize], sender: &Sender, display: TransferDisplay) {
    let layers: Vec<HashSet<BlobDigest>> = needed.iter().map(|at| open[*at].layers().collect()).collect();
    let download = |group: &Vec<usize>| {
        for at in group.iter().map(|at| needed[*at]) {
            let (total, done) = (|_| {}, |_: &_, _, _| {});
            let progress = TransferProgress { moved: Arc::default(), total: &total, done: &done };
            let pulled = open[at].complete(store, &progress, &ImageSender { sender, at });
            pulled.iter().filter_map(|image| lost(image, display)).for_each(|text| sender.notice(text));
            sender.end(at, pulled.err().map(|e| reported(&e, e.help())));
        }
        Ok::<(), Infallible>(())
    };
    let Ok(_) = try_map(MAX_PARALLEL_IMAGES, &sharing(&layers), download);
}

/// Groups the positions of sets. Sets with a common element are in the same group, also if they are
/// connected only through other sets.
fn sharing<T: Eq + Hash + Copy>(sets: &[HashSet<T>]) -> Vec<Vec<usize>> {
    let mut groups: Vec<(HashSet<T>, Vec<usize>)> = Vec::new();
    for (at, set) in sets.iter().enumerate() {
        let (mut all, mut positions) = (set.clone(), Vec::new());
        for (others, with) in groups.extract_if(.., |(others, _)| !others.is_disjoint(set)) {
            all.extend(others);
            positions.extend(with);
        }
        positions.push(at);
        groups.push((all, positions));
    }
    groups.into_iter().map(|(_, positions)| positions).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pulls_that_share_layers_are_in_one_group() {
        for (sets, want) in [
            (&[&[1, 2][..], &[3], &[4, 5]][..], vec![vec![0], vec![1], vec![2]]),
            (&[&[1, 2], &[3], &[2, 4]], vec![vec![1], vec![0, 2]]),
            (&[&[1], &[2], &[1, 2], &[]], vec![vec![0, 1, 2], vec![3]]),
        ] {
            let sets: Vec<HashSet<i32>> = sets.iter().map(|set| set.iter().copied().collect()).collect();
            assert_eq!(sharing(&sets), want);
        }
    }
}
