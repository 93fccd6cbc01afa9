//! Layers of caches for the builder, which finds some hits only while it runs: those by the content
//! of a stage that was built again, and those of the steps above.
//!
//! The builder has no network and no credentials. It sends the layers that it needs through a pipe
//! to a fetcher, which was forked before, and waits for the outcome.

use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write};
use std::sync::{Arc, Mutex};

use rbuild_image::{BlobDigest, Reference};
use rbuild_linux::parallel::locked;
use rbuild_linux::process::{self, Cloned};
use rbuild_store::Store;
use rbuild_transport::{BlobInfo, LayerFetcher, WantedLayer, fetch_remote_layers};
use serde::{Deserialize, Serialize};

use crate::args::RegistryFlags;
use crate::exit::{Failure, code};
use crate::input::registry;

/// A layer in a request: the name of its cache, its digest and its size in bytes.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct LayerRequest(String, BlobDigest, u64);

/// For each layer, the reason why it cannot be used.
type Outcomes = Vec<Option<String>>;

/// A fetcher that downloads layers for one builder.
pub struct LayerServer {
    pid: u32,
    pipes: Arc<Mutex<ServerPipes>>,
}

/// The ends of the builder.
struct ServerPipes {
    requests: PipeWriter,
    outcomes: BufReader<PipeReader>,
}

impl LayerServer {
    /// Forks the fetcher, which downloads from the caches `names` only. The caller must have one
    /// thread. `close` closes what belongs to the launcher.
    pub fn start(
        store: &Store,
        flags: &RegistryFlags,
        names: &[Reference],
        close: impl FnOnce(),
    ) -> std::io::Result<LayerServer> {
        let (requests, requests_writer) = std::io::pipe()?;
        let (outcomes, outcomes_writer) = std::io::pipe()?;
        let launcher = process::own_pidfd().map_err(std::io::Error::from)?;
        match process::fork().map_err(std::io::Error::from)? {
            Cloned::Child => {
                drop((requests_writer, outcomes));
                close();
                let ended = process::die_with(&launcher).map_err(|_| code::BUG);
                // The launcher ends this process.
                let _ = process::block_ending_signals();
                let fetch = |wanted: &[WantedLayer]| fetched(store, flags, wanted);
                let ended = ended.and_then(|()| serve(requests, outcomes_writer, names, fetch));
                std::process::exit(i32::from(ended.err().unwrap_or(code::OK)))
            }
            Cloned::Parent { child } => {
                let pipes = ServerPipes { requests: requests_writer, outcomes: BufReader::new(outcomes) };
                Ok(LayerServer { pid: child, pipes: Arc::new(Mutex::new(pipes)) })
            }
        }
    }

    /// Returns the process of the fetcher.
    pub fn process(&self) -> u32 {
        self.pid
    }

    /// Returns the function with which the builder requests layers.
    pub fn fetcher(&self) -> Arc<LayerFetcher> {
        let pipes = self.pipes.clone();
        Arc::new(move |_, wanted| {
            let ended = || wanted.iter().map(|_| Some("the fetcher ended without an answer".to_string())).collect();
            Some(locked(&pipes).request(wanted).unwrap_or_else(|_| ended()))
        })
    }

    /// Ends the fetcher when the builder has ended.
    pub fn end(self) {
        process::kill(self.pid);
        let _ = process::wait(self.pid);
    }
}

impl ServerPipes {
    fn request(&mut self, wanted: &[WantedLayer]) -> std::io::Result<Outcomes> {
        let list: Vec<LayerRequest> = wanted
            .iter()
            .map(|layer| LayerRequest(layer.name.to_string(), layer.blob.digest, layer.blob.size))
            .collect();
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
    names: &[Reference],
    fetch: impl Fn(&[WantedLayer]) -> Outcomes,
) -> Result<(), u8> {
    for line in BufReader::new(requests).lines() {
        let line = line.map_err(|_| code::FAILED)?;
        let list: Vec<LayerRequest> = serde_json::from_str(&line).map_err(|_| code::BUG)?;
        let wanted = list.into_iter().map(|LayerRequest(name, digest, size)| {
            let name: Reference = name.parse().map_err(|_| code::BUG)?;
            // The builder handles hostile images and must not choose where logins are sent.
            if !names.contains(&name) {
                return Err(code::BUG);
            }
            Ok(WantedLayer { name, blob: BlobInfo { digest, size } })
        });
        let mut answer = serde_json::to_vec(&fetch(&wanted.collect::<Result<Vec<_>, u8>>()?)).map_err(|_| code::BUG)?;
        answer.push(b'\n');
        outcomes.write_all(&answer).map_err(|_| code::FAILED)?;
    }
    Ok(())
}

fn fetched(store: &Store, flags: &RegistryFlags, wanted: &[WantedLayer]) -> Outcomes {
    let fetched: Result<Outcomes, Failure> = registry::client_of(flags, &[], true)
        .and_then(|client| fetch_remote_layers(store, &client, wanted).map_err(Failure::from));
    fetched.unwrap_or_else(|failure| wanted.iter().map(|_| Some(failure.message.clone())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_requested_by_name_and_digest() {
        let (requests, requests_writer) = std::io::pipe().unwrap();
        let (outcomes, outcomes_writer) = std::io::pipe().unwrap();
        let mut pipes = ServerPipes { requests: requests_writer, outcomes: BufReader::new(outcomes) };
        let fetch = |wanted: &[WantedLayer]| -> Outcomes {
            wanted.iter().map(|layer| (layer.blob.size > 5).then(|| layer.name.to_string())).collect()
        };
        let names: Vec<Reference> = ["a.io/b:c", "127.0.0.1:5000/x/y:latest"].map(|name| name.parse().unwrap()).into();
        let server = std::thread::spawn(move || serve(requests, outcomes_writer, &names, fetch));
        let wanted = [("a.io/b:c", 5), ("127.0.0.1:5000/x/y:latest", 6)].map(|(name, size)| WantedLayer {
            name: name.parse().unwrap(),
            blob: BlobInfo { digest: BlobDigest::of(name.as_bytes()), size },
        });
        for _ in 0..2 {
            assert_eq!(pipes.request(&wanted).unwrap(), [None, Some(wanted[1].name.to_string())]);
        }
        // Requests for anything else end the fetcher.
        let other = WantedLayer { name: "a.io/other:c".parse().unwrap(), ..wanted[0].clone() };
        assert!(pipes.request(&[other]).is_err());
        assert_eq!(server.join().unwrap(), Err(code::BUG));
    }
}
