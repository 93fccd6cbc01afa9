//! Claims on steps: a build waits for another machine that builds the same steps for the same
//! cache, or announces that it builds them itself.

use std::cell::{Cell, RefCell};
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use rbuild_engine::Prepared;
use rbuild_linux::parallel::start;
use rbuild_linux::process::{self, Cloned};
use rbuild_store::{CacheKey, CachedStep, Store};
use rbuild_transport::{
    ClaimOutcome, ClaimRequest, FIRST_RENEWAL, LAST_RENEWAL, RemoteCache, claim, release_claim, renew_claim,
};

use crate::args::RegistryFlags;
use crate::commands::fetcher::caches::machine;
use crate::commands::fetcher::task::in_fetcher;
use crate::exit::{Failure, code};
use crate::input::registry;

/// Claims the steps of one build.
pub struct StepClaims<'a> {
    store: &'a Store,
    flags: &'a RegistryFlags,
    /// The cache on whose steps the build makes claims.
    claimed: Option<RemoteCache>,
    /// Name of the machine and its build.
    by: String,
    /// Reports a fact that is neither an error nor a reason for a warning.
    note: &'a dyn Fn(&str),
    held: RefCell<Option<HeldClaim>>,
    /// True once the build has waited for another one. What is missing then, the other one did not
    /// make.
    has_waited: Cell<bool>,
}

impl<'a> StepClaims<'a> {
    /// Returns the claims of a build with that ID on steps of a cache.
    pub fn new(
        store: &'a Store,
        flags: &'a RegistryFlags,
        claimed: Option<RemoteCache>,
        build: &str,
        note: &'a dyn Fn(&str),
    ) -> Self {
        let by = format!("{} {build}", machine());
        StepClaims { store, flags, claimed, by, note, held: RefCell::default(), has_waited: Cell::default() }
    }

    /// Claims the first step that is missing. Returns true if another machine has built it
    /// meanwhile, so that the caches have to be read again. Without a claim, the build continues.
    /// `close` closes what belongs to the launcher.
    ///
    /// # Errors
    ///
    /// Fails if a signal interrupts the build while it waits.
    pub fn has_waited(&self, platforms: &[Prepared], close: impl FnOnce()) -> Result<bool, Failure> {
        let (Some(cache), Some(key)) = (&self.claimed, platforms.iter().find_map(Prepared::first_missing)) else {
            return Ok(false);
        };
        if self.has_waited.get() || self.held.borrow().is_some() {
            return Ok(false);
        }
        let request = ClaimRequest { cache, key, by: &self.by };
        let name = cache.name().familiar();
        let waiting = |by: &str| {
            let machine = by.split(' ').next().unwrap_or_default();
            (self.note)(&format!("waiting for steps that `{machine}` builds for the cache `{name}`"));
        };
        let outcome: Result<ClaimOutcome, Failure> = in_fetcher(|| {
            let client = registry::client_of(self.flags, &[], true)?;
            claim(self.store, &client, &request, &waiting).map_err(Failure::from)
        })?;
        match outcome {
            Ok(ClaimOutcome::Ended) => {
                self.has_waited.set(true);
                Ok(true)
            }
            Ok(ClaimOutcome::Taken) => {
                // Without a process that renews it, the claim expires.
                *self.held.borrow_mut() = HeldClaim::hold(self.flags, cache, key, &self.by, close).ok();
                Ok(false)
            }
            Ok(ClaimOutcome::Unavailable) => Ok(false),
            Err(failure) => {
                tracing::debug!(target: "rbuild", cause = failure.message, "no claim");
                Ok(false)
            }
        }
    }

    /// Returns the process that renews the claim.
    pub fn process(&self) -> Option<u32> {
        self.held.borrow().as_ref().map(|held| held.pid)
    }

    /// Returns the cache in whose repository this build has written a claim.
    pub fn written_to(&self) -> Option<&RemoteCache> {
        self.held.borrow().as_ref().and(self.claimed.as_ref())
    }

    /// Ends the claim. Machines that wait find the step in the cache, if it is one of those that
    /// were written; otherwise the claim is released.
    pub fn end(&self, written: &[CachedStep]) {
        if let Some(held) = self.held.borrow_mut().take() {
            let is_written = written.iter().any(|step| step.key == held.key);
            held.end(!is_written);
        }
    }
}

impl Drop for StepClaims<'_> {
    fn drop(&mut self) {
        self.end(&[]);
    }
}

/// A claim with the process that renews it until the pipe is closed. The process releases the claim
/// then if it was sent a byte.
struct HeldClaim {
    pid: u32,
    key: CacheKey,
    pipe: PipeWriter,
}

impl HeldClaim {
    /// Forks the process. The caller must have one thread.
    fn hold(
        flags: &RegistryFlags,
        cache: &RemoteCache,
        key: CacheKey,
        by: &str,
        close: impl FnOnce(),
    ) -> std::io::Result<HeldClaim> {
        let (ended, pipe) = std::io::pipe()?;
        let launcher = process::own_pidfd().map_err(std::io::Error::from)?;
        match process::fork().map_err(std::io::Error::from)? {
            Cloned::Child => {
                drop(pipe);
                close();
                // The launcher ends this process.
                let _ = process::block_ending_signals();
                if process::die_with(&launcher).is_ok() {
                    renew_until(ended, flags, &ClaimRequest { cache, key, by });
                }
                std::process::exit(i32::from(code::OK))
            }
            Cloned::Parent { child } => Ok(HeldClaim { pid: child, key, pipe }),
        }
    }

    fn end(mut self, releases: bool) {
        if releases {
            // Without its process, the claim expires.
            let _ = self.pipe.write_all(b"r");
        }
        drop(self.pipe);
        let _ = process::wait(self.pid);
    }
}

/// Renews a claim, less and less often, until the other end of the pipe is closed, and releases it
/// then if a byte was sent. Failures are ignored: a claim that is not renewed expires.
fn renew_until(mut ended: PipeReader, flags: &RegistryFlags, request: &ClaimRequest<'_>) {
    let Ok(client) = registry::client_of(flags, &[], true) else { return };
    let (sender, receiver) = channel();
    let waiting = start(move || {
        let releases = matches!(ended.read(&mut [0]), Ok(1));
        let _ = sender.send(releases);
    });
    let mut every = FIRST_RENEWAL;
    let releases = loop {
        match receiver.recv_timeout(Duration::from_secs(every)) {
            Err(RecvTimeoutError::Timeout) => {
                every = (every * 2).min(LAST_RENEWAL);
                let _ = renew_claim(&client, request, every);
            }
            ended => break ended.unwrap_or(true),
        }
    };
    if releases {
        let _ = release_claim(&client, request);
    }
    drop(waiting);
}
