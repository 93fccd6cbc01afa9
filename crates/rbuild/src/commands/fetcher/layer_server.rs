//! Layers of caches for the builder, which finds some hits only while it runs: those by the content
//! of a stage that was built again, and those of the steps above.
//!
//! The builder has no network and no credentials. It sends the layers that it needs through a pipe
//! to a fetcher, which was forked before, and waits for the outcome.

use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write};
use std::sync::{Arc, Mutex};

use rbuild_image::BlobDigest;
use rbuild_linux::parallel::locked;
use rbuild_linux::process;
use rbuild_store::Store;
use rbuild_transport::{BlobInfo, LayerFetcher, SharedCache, WantedLayer, fetch_shared_layers};
use serde::{Deserialize, Serialize};

use crate::args::RegistryFlags;
use crate::commands::fetcher::forked::fork_fetcher;
use crate::exit::{Failure, code};
use crate::input::registry;

/// A layer in a request: the number of its cache, its digest and its size in bytes.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct LayerRequest(usize, BlobDigest, u64);

/// For each layer, the reason why it cannot be used.
type Outcomes = Vec<Option<String>>;

/// A fetcher that downloads layers for one builder.
pub struct LayerServer {
    pid: u32,
    pipes: Arc<Mutex<ServerPipes>>,
    caches: Vec<SharedCache>,
}

/// The ends of the builder.
struct ServerPipes {
    requests: PipeWriter,
    outcomes: BufReader<PipeReader>,
}

impl LayerServer {
    /// Forks the fetcher, which downloads from these caches only. The caller must have one
    /// thread. `close` closes what belongs to the launcher.
    pub fn start(
        store: &Store,
        flags: &RegistryFlags,
        caches: Vec<SharedCache>,
        close: impl FnOnce(),
    ) -> std::io::Result<LayerServer> {
        let (requests, requests_writer) = std::io::pipe()?;
        let (outcomes, outcomes_writer) = std::io::pipe()?;
        let served = &caches;
        let work = move || {
            close();
            // The launcher ends this process.
            let _ = process::block_ending_signals();
            serve(requests, outcomes_writer, served, |wanted| fetched(store, flags, wanted))
        };
        let (pid, (requests_writer, outcomes)) = fork_fetcher((requests_writer, outcomes), work)?;
        let pipes = ServerPipes { requests: requests_writer, outcomes: BufReader::new(outcomes) };
        Ok(LayerServer { pid, pipes: Arc::new(Mutex::new(pipes)), caches })
    }

    /// Returns the process of the fetcher.
    pub fn process(&self) -> u32 {
        self.pid
    }

    /// Returns the function with which the builder requests layers.
    pub fn fetcher(&self) -> Arc<LayerFetcher> {
        let (pipes, caches) = (self.pipes.clone(), self.caches.clone());
        Arc::new(move |_, wanted| {
            let ended = || wanted.iter().map(|_| Some("the fetcher ended without an answer".to_string())).collect();
            Some(locked(&pipes).request(&caches, wanted).unwrap_or_else(|_| ended()))
        })
    }

    /// Ends the fetcher when the builder has ended.
    pub fn end(self) {
        process::kill(self.pid);
        let _ = process::wait(self.pid);
    }
}

impl ServerPipes {
    fn request(&mut self, caches: &[SharedCache], wanted: &[WantedLayer]) -> std::io::Result<Outcomes> {
        let numbered = |layer: &WantedLayer| {
            let number = caches.iter().position(|cache| *cache == layer.cache)?;
            Some(LayerRequest(number, layer.blob.digest, layer.blob.size))
        };
        let list: Option<Vec<LayerRequest>> = wanted.iter().map(numbered).collect();
        let list = list.ok_or(std::io::ErrorKind::NotFound)?;
        let mut line = serde_json::to_vec(&list)?;
        line.push(b'\n');
        self.requests.write_all(&line)?;
        let mut answer = String::new();
        self.outcomes.read_line(&mut answer)?;
        Ok(serde_json::from_str(&answer)?)
    }
}

/// Answers requests until the builder has ended. Fails with an exit code.
fn serve(
    requests: PipeReader,
    mut outcomes: PipeWriter,
    caches: &[SharedCache],
    fetch: impl Fn(&[WantedLayer]) -> Outcomes,
) -> Result<(), u8> {
    for line in BufReader::new(requests).lines() {
        let line = line.map_err(|_| code::FAILED)?;
        let list: Vec<LayerRequest> = serde_json::from_str(&line).map_err(|_| code::BUG)?;
        let wanted = list.into_iter().map(|LayerRequest(number, digest, size)| {
            // The builder handles hostile images and must not choose where logins are sent.
            let cache = caches.get(number).cloned().ok_or(code::BUG)?;
            Ok(WantedLayer { cache, blob: BlobInfo { digest, size } })
        });
        let mut answer = serde_json::to_vec(&fetch(&wanted.collect::<Result<Vec<_>, u8>>()?)).map_err(|_| code::BUG)?;
        answer.push(b'\n');
        outcomes.write_all(&answer).map_err(|_| code::FAILED)?;
    }
    Ok(())
}

fn fetched(store: &Store, flags: &RegistryFlags, wanted: &[WantedLayer]) -> Outcomes {
    let fetched: Result<Outcomes, Failure> = registry::client_of(flags, &[], true)
        .and_then(|client| fetch_shared_layers(store, &client, wanted).map_err(Failure::from));
    fetched.unwrap_or_else(|failure| wanted.iter().map(|_| Some(failure.message.clone())).collect())
}

#[cfg(test)]
mod tests {
    use rbuild_transport::RemoteCache;

    use super::*;

    #[test]
    fn layers_are_requested_by_cache_and_digest() {
        let (requests, requests_writer) = std::io::pipe().unwrap();
        let (outcomes, outcomes_writer) = std::io::pipe().unwrap();
        let mut pipes = ServerPipes { requests: requests_writer, outcomes: BufReader::new(outcomes) };
        let fetch = |wanted: &[WantedLayer]| -> Outcomes {
            wanted.iter().map(|layer| (layer.blob.size > 5).then(|| layer.cache.name())).collect()
        };
        let cache = |name: &str| SharedCache::Registry(RemoteCache::new(name.parse().unwrap(), 1));
        let caches = ["a.io/b:c", "127.0.0.1:5000/x/y:latest"].map(cache);
        let known = caches.to_vec();
        let server = std::thread::spawn(move || serve(requests, outcomes_writer, &known, fetch));
        let wanted = [5, 6].map(|size| WantedLayer {
            cache: caches[size - 5].clone(),
            blob: BlobInfo { digest: BlobDigest::of(b"layer"), size: size as u64 },
        });
        for _ in 0..2 {
            assert_eq!(pipes.request(&caches, &wanted).unwrap(), [None, Some(caches[1].name())]);
        }
        let other = WantedLayer { cache: cache("a.io/other:c"), ..wanted[0].clone() };
        assert!(pipes.request(&caches, std::slice::from_ref(&other)).is_err());
        // Requests for anything else end the fetcher.
        assert!(pipes.request(&[&caches[..], std::slice::from_ref(&other.cache)].concat(), &[other]).is_err());
        assert_eq!(server.join().unwrap(), Err(code::BUG));
    }
}
