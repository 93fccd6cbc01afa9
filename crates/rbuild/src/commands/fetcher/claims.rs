//! Claims on steps: a build waits for another machine that builds the same steps for the same
//! cache, or announces that it builds them itself.

use std::cell::{Cell, RefCell};
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rbuild_engine::{BuildError, Prepared, Warning};
use rbuild_image::Hasher;
use rbuild_linux::parallel::start;
use rbuild_linux::process;
use rbuild_linux::{AwaitedLine, StopSignals};
use rbuild_registry::{Client, RetryPolicy};
use rbuild_store::{CacheKey, Store};
use rbuild_transport::{
    ClaimOutcome, ClaimRequest, Claimant, FIRST_RENEWAL, LAST_RENEWAL, RemoteCache, claim, release_claim, renew_claim,
};
use serde::{Deserialize, Serialize};

use crate::args::RegistryFlags;
use crate::commands::fetcher::forked::fork_fetcher;
use crate::commands::fetcher::task::interrupted;
use crate::exit::Failure;
use crate::input::{machine_name, registry};
use crate::ui::terminal;

/// Longest time that a claim that was not requested delays a build which nobody waits for.
const DELAY: Duration = Duration::from_millis(500);
/// Longest time that the end of a build waits for the end of its claim.
const END: Duration = Duration::from_secs(2);
/// Timeout of a request of a claim that was not requested.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time that a build waits for another one.
const PATIENCE: Duration = Duration::from_secs(10 * 60);
/// The same if claims were requested.
const LONG_PATIENCE: Duration = Duration::from_secs(30 * 60);

/// Number of seconds after which a failed renewal is repeated.
const REPETITION: u64 = 2;

/// A message for the process of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClaimEnd {
    /// Release the claim as soon as the registry has it. Another message follows.
    Withdraw,
    /// Release the claim and end. The end of the pipe has the same meaning.
    Release,
    /// Leave the claim as it is and end.
    Keep,
}

impl ClaimEnd {
    fn byte(self) -> u8 {
        match self {
            ClaimEnd::Withdraw => b'w',
            ClaimEnd::Release => b'r',
            ClaimEnd::Keep => b'k',
        }
    }

    fn of(byte: u8) -> ClaimEnd {
        let all = [ClaimEnd::Withdraw, ClaimEnd::Keep];
        all.into_iter().find(|end| end.byte() == byte).unwrap_or(ClaimEnd::Release)
    }
}

/// The cache on whose steps a build makes claims.
#[derive(Debug, Clone)]
pub struct ClaimedCache {
    /// The cache, which the build reads and writes.
    pub cache: RemoteCache,
    /// True if claims were requested. Otherwise, only a prompt registry gets them.
    pub is_requested: bool,
}

impl ClaimedCache {
    fn patience(&self) -> Duration {
        if self.is_requested { LONG_PATIENCE } else { PATIENCE }
    }

    fn request<'a>(&'a self, step: ClaimedStep, by: &'a Claimant) -> ClaimRequest<'a> {
        let ClaimedStep { key, build } = step;
        ClaimRequest { cache: &self.cache, key, build, by, is_prompt: !self.is_requested, patience: self.patience() }
    }

    /// Returns a client. If claims were not requested, it sends each request once.
    fn client(&self, flags: &RegistryFlags) -> Result<Client, Failure> {
        let once = RetryPolicy { connect: TIMEOUT, idle: TIMEOUT, whole: TIMEOUT, tries: 1, ..RetryPolicy::default() };
        registry::client_within(flags, if self.is_requested { RetryPolicy::default() } else { once })
    }
}

/// A step that is claimed.
#[derive(Debug, Clone, Copy)]
struct ClaimedStep {
    key: CacheKey,
    /// Digest of the whole build.
    build: CacheKey,
}

impl ClaimedStep {
    /// Returns the first step of a build that is missing.
    fn of(platforms: &[Prepared]) -> Result<Option<ClaimedStep>, BuildError> {
        let Some(key) = platforms.iter().find_map(Prepared::first_missing) else { return Ok(None) };
        let mut hasher = Hasher::new();
        for platform in platforms {
            hasher.field(platform.definition()?.bytes());
        }
        Ok(Some(ClaimedStep { key, build: hasher.finish() }))
    }
}

/// Claims the steps of one build.
pub struct StepClaims<'a> {
    store: &'a Store,
    flags: &'a RegistryFlags,
    claimed: Option<ClaimedCache>,
    by: Claimant,
    /// Reports a fact that is neither an error nor a reason for a warning.
    note: &'a dyn Fn(&str),
    held: RefCell<Option<HeldClaim>>,
    /// True once the build has waited for another one, or could not make a claim. What is missing
    /// then, it makes without one.
    is_over: Cell<bool>,
}

impl<'a> StepClaims<'a> {
    /// Returns the claims of a build with that ID on steps of a cache.
    pub fn new(
        store: &'a Store,
        flags: &'a RegistryFlags,
        claimed: Option<ClaimedCache>,
        build: &str,
        note: &'a dyn Fn(&str),
    ) -> Self {
        let by = Claimant::new(&machine_name::given_or_host(), build);
        StepClaims { store, flags, claimed, by, note, held: RefCell::default(), is_over: Cell::default() }
    }

    /// Claims the first step that is missing. Returns true if another machine has built it
    /// meanwhile, so that the caches have to be read again. Without a claim, the build continues.
    /// `close` closes what belongs to the launcher. The caller must have one thread.
    ///
    /// # Errors
    ///
    /// Fails if a signal interrupts the build while it waits.
    pub fn has_waited(&self, platforms: &[Prepared], close: impl FnOnce()) -> Result<bool, Failure> {
        let Some(claimed) = self.claimed.as_ref().filter(|_| !self.is_over.get() && self.held.borrow().is_none())
        else {
            return Ok(false);
        };
        let Some(step) = ClaimedStep::of(platforms)? else { return Ok(false) };
        let outcome = match HeldClaim::begin(self, claimed, step, close) {
            Ok(claim) => self.wait(claimed, claim)?,
            Err(_) => ClaimOutcome::Unavailable,
        };
        self.is_over.set(outcome != ClaimOutcome::Taken);
        Ok(outcome == ClaimOutcome::Ended)
    }

    /// Waits until it is known who builds the step, and then for another machine that does.
    fn wait(&self, claimed: &ClaimedCache, mut claim: HeldClaim) -> Result<ClaimOutcome, Failure> {
        let Ok(signals) = StopSignals::block() else { return Ok(ClaimOutcome::Unavailable) };
        let after = |time| Some(Instant::now() + time);
        let mut deadline = if claimed.is_requested { None } else { after(DELAY) };
        loop {
            let line = match &mut claim.answers {
                Some(answers) => signals.read_line(answers, deadline),
                None => Ok(AwaitedLine::End),
            };
            let answer = match line {
                Ok(AwaitedLine::Line(text)) => serde_json::from_slice(&text).ok(),
                Ok(AwaitedLine::Signal) => {
                    claim.end(true);
                    return Err(interrupted());
                }
                // Once the claim is written, the process releases it at once.
                Ok(AwaitedLine::Late) if claim.stage == ClaimStage::Writing => {
                    claim.answers = None;
                    claim.tell(ClaimEnd::Withdraw);
                    *self.held.borrow_mut() = Some(claim);
                    return Ok(ClaimOutcome::Unavailable);
                }
                Ok(AwaitedLine::Late | AwaitedLine::End) | Err(_) => None,
            };
            match answer {
                Some(ClaimAnswer::Writing) => claim.stage = ClaimStage::Writing,
                Some(ClaimAnswer::Waiting(by)) => {
                    claim.stage = ClaimStage::Waiting;
                    deadline = after(claimed.patience() + TIMEOUT);
                    let machine = by.machine();
                    let name = claimed.cache.name().familiar();
                    (self.note)(&format!("waiting for steps that `{machine}` builds for the cache `{name}`"));
                }
                Some(ClaimAnswer::Outcome(ClaimOutcome::Taken)) => {
                    claim.stage = ClaimStage::Taken;
                    *self.held.borrow_mut() = Some(claim);
                    return Ok(ClaimOutcome::Taken);
                }
                Some(ClaimAnswer::Failed(cause)) => {
                    if claimed.is_requested {
                        warn(claimed, &cause);
                    }
                    if claim.stage == ClaimStage::Writing {
                        claim.answers = None;
                        *self.held.borrow_mut() = Some(claim);
                    }
                    return Ok(ClaimOutcome::Unavailable);
                }
                Some(ClaimAnswer::Outcome(outcome)) => return Ok(outcome),
                None => return Ok(ClaimOutcome::Unavailable),
            }
        }
    }

    /// Returns the process that renews the claim.
    pub fn process(&self) -> Option<u32> {
        self.held.borrow().as_ref().map(|held| held.pid)
    }

    /// Returns the cache in whose repository this build has written a claim.
    pub fn written_to(&self) -> Option<&RemoteCache> {
        let is_taken = self.held.borrow().as_ref().is_some_and(|held| held.stage == ClaimStage::Taken);
        self.claimed.as_ref().filter(|_| is_taken).map(|claimed| &claimed.cache)
    }

    /// Returns the claimed step and its cache.
    pub fn step(&self) -> Option<(&RemoteCache, CacheKey)> {
        let key = self.held.borrow().as_ref().map(|held| held.key);
        Some((&self.claimed.as_ref()?.cache, key?))
    }

    /// Ends the claim. Machines that wait find the step in the cache if it `is_written`; otherwise
    /// the claim is released.
    pub fn end(&self, is_written: bool) {
        if let Some(held) = self.held.borrow_mut().take() {
            held.end(!is_written);
        }
    }
}

impl Drop for StepClaims<'_> {
    fn drop(&mut self) {
        self.end(false);
    }
}

/// A message of the process of a claim.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum ClaimAnswer {
    /// The claim is about to be written.
    Writing,
    /// The machine waits for a build with that name.
    Waiting(Claimant),
    /// The last message.
    Outcome(ClaimOutcome),
    /// The last message, with the reason why there is no claim.
    Failed(String),
}

/// The state of a claim, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClaimStage {
    /// Not in the registry yet.
    Asked,
    /// Possibly in the registry.
    Writing,
    /// Another machine has it.
    Waiting,
    Taken,
}

/// The process that makes a claim and renews it until it is sent a byte.
struct HeldClaim {
    pid: u32,
    key: CacheKey,
    pipe: PipeWriter,
    /// `None` if the build does not wait for the outcome.
    answers: Option<PipeReader>,
    stage: ClaimStage,
}

impl HeldClaim {
    /// Forks the process. The caller must have one thread.
    fn begin(
        claims: &StepClaims<'_>,
        claimed: &ClaimedCache,
        step: ClaimedStep,
        close: impl FnOnce(),
    ) -> std::io::Result<HeldClaim> {
        let (ended, pipe) = std::io::pipe()?;
        let (answers, answer_writer) = std::io::pipe()?;
        let work = move || {
            close();
            // The launcher ends this process.
            let _ = process::block_ending_signals();
            hold(claims, claimed, &claimed.request(step, &claims.by), ClaimPipes { ended, answer_writer });
            Ok(())
        };
        let (pid, (pipe, answers)) = fork_fetcher((pipe, answers), work)?;
        Ok(HeldClaim { pid, key: step.key, pipe, answers: Some(answers), stage: ClaimStage::Asked })
    }

    /// Ends the process, which has a limited time to release the claim.
    fn end(mut self, releases: bool) {
        if matches!(self.stage, ClaimStage::Asked | ClaimStage::Waiting) {
            return;
        }
        self.tell(if releases { ClaimEnd::Release } else { ClaimEnd::Keep });
        if let Ok(process) = process::pidfd(self.pid) {
            process::ends_within(&process, END);
        }
    }

    fn tell(&mut self, end: ClaimEnd) {
        // Without its process, the claim expires.
        let _ = self.pipe.write_all(&[end.byte()]);
    }
}

impl Drop for HeldClaim {
    fn drop(&mut self) {
        process::kill(self.pid);
        let _ = process::wait(self.pid);
    }
}

/// The ends of the process of a claim.
struct ClaimPipes {
    ended: PipeReader,
    answer_writer: PipeWriter,
}

/// Warns that a claim that was requested cannot be made.
fn warn(claimed: &ClaimedCache, cause: &str) {
    let name = claimed.cache.name().familiar();
    let text = format!("--cache-claim: cannot claim steps of the cache `{name}`, so other builds do not wait: {cause}");
    terminal::warning(Warning { text, help: None });
}

/// Makes a claim, and renews it. A build needs no claim, so failures are only reported.
fn hold(claims: &StepClaims<'_>, claimed: &ClaimedCache, request: &ClaimRequest<'_>, pipes: ClaimPipes) {
    let ClaimPipes { ended, answer_writer } = pipes;
    let answer = |answer: &ClaimAnswer| {
        let text = serde_json::to_vec(answer).unwrap_or_default();
        (&answer_writer).write_all(&[&text[..], b"\n"].concat()).is_ok()
    };
    let Ok(client) = claimed.client(claims.flags) else { return };
    let waiting = |by: &Claimant| answer(&ClaimAnswer::Waiting(by.clone()));
    let is_written = Cell::new(false);
    let writing = || {
        is_written.set(answer(&ClaimAnswer::Writing));
    };
    let outcome = claim(claims.store, &client, request, &waiting, &writing);
    let last = outcome.as_ref().map_or_else(
        |e| {
            tracing::debug!(target: "transport", cause = e.message(), "no claim");
            ClaimAnswer::Failed(e.message())
        },
        |outcome| ClaimAnswer::Outcome(*outcome),
    );
    answer(&last);
    drop(answer_writer);
    match outcome {
        Ok(ClaimOutcome::Taken) => renew_until(ended, &client, request),
        // The registry may have accepted the claim, or accept it later.
        Err(_) if is_written.get() => withdraw_until(ended, &client, request),
        _ => {}
    }
}

/// Returns the messages of the launcher.
fn messages(mut ended: PipeReader) -> Receiver<ClaimEnd> {
    let (sender, receiver) = channel();
    // Without a thread, the pipe counts as closed.
    let _ = start(move || {
        let mut byte = [0];
        while let Ok(1) = ended.read(&mut byte) {
            let _ = sender.send(ClaimEnd::of(byte[0]));
        }
    });
    receiver
}

/// Releases a claim that is not known to be in the registry, as soon as it is. Tries it less and
/// less often until the launcher ends, and once more then, unless it wants to keep the claim.
fn withdraw_until(ended: PipeReader, client: &Client, request: &ClaimRequest<'_>) {
    let (messages, mut wait) = (messages(ended), REPETITION);
    loop {
        let message = messages.recv_timeout(Duration::from_secs(wait));
        if message == Ok(ClaimEnd::Keep) || matches!(release_claim(client, request), Ok(true)) {
            return;
        }
        match message {
            Ok(ClaimEnd::Withdraw) => {}
            Err(RecvTimeoutError::Timeout) => wait = (wait * 2).min(LAST_RENEWAL),
            Ok(_) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Renews a claim, less and less often, until the launcher ends, and releases it then, unless the
/// launcher wants to keep it. Failures are ignored: a claim that is not renewed expires.
fn renew_until(ended: PipeReader, client: &Client, request: &ClaimRequest<'_>) {
    let messages = messages(ended);
    let (mut every, mut wait) = (FIRST_RENEWAL, FIRST_RENEWAL);
    let releases = loop {
        match messages.recv_timeout(Duration::from_secs(wait)) {
            Err(RecvTimeoutError::Timeout) => {
                let next = (every * 2).min(LAST_RENEWAL);
                match renew_claim(client, request, next) {
                    Ok(true) => (every, wait) = (next, next),
                    // Another machine has it.
                    Ok(false) => break false,
                    // The claim expires unless it is renewed in time.
                    Err(_) => wait = REPETITION,
                }
            }
            message => break message != Ok(ClaimEnd::Keep),
        }
    };
    if releases {
        let _ = release_claim(client, request);
    }
}
