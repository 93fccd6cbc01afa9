//! Claims: a machine announces in a registry that it is building the missing steps of a cache, and
//! others wait for them instead of building them, too.
//!
//! A claim is advice. Registries have no locks, so two machines may both believe that they have
//! one; both then build, and the cache keeps one result. A claim that is not renewed expires. One
//! whose step has reached the cache has served its purpose and is left behind.

use std::time::{Duration, Instant};

use rbuild_image::{BlobDigest, MediaType, Reference};
use rbuild_linux::Timestamp;
use rbuild_registry::{Client, Repository, ResolvedTag};
use rbuild_store::{CacheKey, Store};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cache::record_budget::RecordBudget;
use crate::cache::remote_read::read_remote_cache;
use crate::cache::shards::{RemoteCache, settle};
use crate::cache::signature::RecordKeys;
use crate::error::{Result, TransportError};

/// Annotation with the text of a claim.
const ANNOTATION: &str = "io.rbuild.claim";
/// First interval in seconds at which a claim is renewed. It doubles each time, so that the number
/// of requests hardly depends on the length of a build.
pub const FIRST_RENEWAL: u64 = 4;
/// Longest interval in seconds.
pub const LAST_RENEWAL: u64 = 16;
/// Number of seconds after the end of its interval at which a claim counts as abandoned.
const GRACE: u64 = 10;
/// Difference in seconds to the present time, besides the interval, at which a claim counts as
/// abandoned at first sight. Clocks may differ.
const SKEW: u64 = 60;
/// Maximum length of the name of a build in bytes. Longer ones are not read.
const MAX_NAME: usize = 300;
/// Maximum length of the name of a machine in bytes.
const MAX_MACHINE: usize = 200;
/// Shortest and longest interval at which a machine that waits looks for the step.
const POLLS: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(2)];
/// Number of such looks between two of the claim itself.
const LOOKS: u32 = 4;
/// Maximum number of times that a machine writes a claim before it builds without one.
const MAX_WRITES: u32 = 3;
/// Time within which a registry has to answer for claims that were not requested.
const PROMPT: Duration = Duration::from_millis(50);

/// A step that a machine is about to build.
#[derive(Debug, Clone, Copy)]
pub struct ClaimRequest<'a> {
    /// The cache that will have it.
    pub cache: &'a RemoteCache,
    /// Key of the first step that is missing.
    pub key: CacheKey,
    /// Digest of the whole build.
    pub build: CacheKey,
    /// Name of the machine and its build.
    pub by: &'a Claimant,
    /// True if claims were not requested: a registry that is slow gets none, and the machine waits
    /// only for a build that does the same.
    pub is_prompt: bool,
    /// Longest time that the machine waits for another one.
    pub patience: Duration,
}

/// The name of a machine and its build, which claims state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Claimant(String);

impl Claimant {
    /// Returns the name of a build with that ID. Of the name of the machine, only as much is used
    /// as other machines read and can be printed.
    pub fn new(machine: &str, build: &str) -> Claimant {
        let mut name = String::new();
        for char in machine.chars().filter(|char| !char.is_control()) {
            if name.len() + char.len_utf8() > MAX_MACHINE {
                break;
            }
            name.push(char);
        }
        Claimant(format!("{name} {build}"))
    }

    /// Returns the name of the machine.
    pub fn machine(&self) -> &str {
        self.0.rsplit_once(' ').map_or(&self.0, |(machine, _)| machine)
    }

    /// Returns true if it can be printed.
    fn is_valid(&self) -> bool {
        self.0.len() <= MAX_NAME && !self.0.chars().any(char::is_control)
    }
}

/// The outcome of a request for a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClaimOutcome {
    /// This machine builds the step.
    Taken,
    /// Another machine had the claim and has ended.
    Ended,
    /// A machine builds another step, whose claim has the same place, or does another build, the
    /// registry is slow, or this machine has waited for too long.
    Unavailable,
}

/// The text of a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    key: CacheKey,
    /// Digest of the whole build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    build: Option<CacheKey>,
    by: Claimant,
    /// Time of the last renewal in seconds since 1970.
    at: i64,
    /// Number of seconds until the next renewal.
    #[serde(default = "first_renewal")]
    every: u64,
    #[serde(default)]
    is_released: bool,
}

fn first_renewal() -> u64 {
    FIRST_RENEWAL
}

impl Claim {
    /// Returns true if its machine has not renewed it in time. It was first seen in this form that
    /// long ago.
    fn is_abandoned(&self, now: i64, unchanged: Duration) -> bool {
        let every = self.every.min(LAST_RENEWAL);
        unchanged.as_secs() > every + GRACE || now.abs_diff(self.at) > SKEW + every
    }
}

/// The meaning of a claim for a machine.
#[derive(Debug, PartialEq, Eq)]
enum ClaimState {
    Free,
    Own,
    /// Another machine builds the same step.
    Held(Claimant),
    /// A machine builds another step, whose claim has the same place, or this step in a build that
    /// this one does not wait for.
    Other,
}

/// Returns the meaning of a claim, which was first seen in this form that long ago.
fn state(found: Option<&Claim>, request: &ClaimRequest<'_>, now: i64, unchanged: Duration) -> ClaimState {
    match found {
        None => ClaimState::Free,
        Some(claim) if claim.is_released || claim.is_abandoned(now, unchanged) => ClaimState::Free,
        Some(claim) if claim.by == *request.by => ClaimState::Own,
        Some(claim) if claim.key == request.key && (!request.is_prompt || claim.build == Some(request.build)) => {
            ClaimState::Held(claim.by.clone())
        }
        Some(_) => ClaimState::Other,
    }
}

/// Claims a step, or waits until the cache has it or another machine that builds it has ended.
/// `waiting` is called once with the name of that build, and returns false if this one is not going
/// to wait. `writing` is called before the claim is written.
///
/// # Errors
///
/// Fails if the registry fails or refuses.
pub fn claim(
    store: &Store,
    client: &Client,
    request: &ClaimRequest<'_>,
    waiting: &dyn Fn(&Claimant) -> bool,
    writing: &dyn Fn(),
) -> Result<ClaimOutcome> {
    let place = ClaimPlace::of(client, request)?;
    let (mut seen, mut watch): (Option<(Claim, Instant)>, Option<StepWatch<'_>>) = (None, None);
    let begun = Instant::now();
    let (mut writes, mut reads) = (0, 0);
    loop {
        let started = Instant::now();
        let found = place.read()?;
        reads += 1;
        if request.is_prompt && writes == 0 && watch.is_none() && started.elapsed() > PROMPT {
            // The first answer includes the time of connecting and of a login.
            if reads == 1 {
                continue;
            }
            return Ok(ClaimOutcome::Unavailable);
        }
        let since = match (&seen, &found) {
            (Some((known, since)), Some(claim)) if known == claim => *since,
            _ => started,
        };
        seen = found.clone().map(|claim| (claim, since));
        match state(found.as_ref(), request, Timestamp::now().sec, since.elapsed()) {
            ClaimState::Own => return Ok(ClaimOutcome::Taken),
            // An abandoned claim is taken over.
            ClaimState::Free if watch.is_some() && found.is_none_or(|claim| claim.is_released) => {
                return Ok(ClaimOutcome::Ended);
            }
            // Written claims are not seen, or other machines write all the time.
            ClaimState::Free if writes == MAX_WRITES => return Ok(ClaimOutcome::Unavailable),
            ClaimState::Free => {
                writes += 1;
                writing();
                place.write(request, FIRST_RENEWAL, false)?;
                settle(started.elapsed());
            }
            ClaimState::Held(_) if begun.elapsed() > request.patience => return Ok(ClaimOutcome::Unavailable),
            ClaimState::Held(by) => {
                if watch.is_none() && !waiting(&by) {
                    return Ok(ClaimOutcome::Unavailable);
                }
                let watch = watch.get_or_insert(StepWatch { store, client, request, seen: None, begun });
                if watch.sees_step()? {
                    return Ok(ClaimOutcome::Ended);
                }
            }
            ClaimState::Other if watch.is_some() => return Ok(ClaimOutcome::Ended),
            ClaimState::Other => return Ok(ClaimOutcome::Unavailable),
        }
    }
}

/// Looks for a step that another machine builds in the cache.
struct StepWatch<'a> {
    store: &'a Store,
    client: &'a Client,
    request: &'a ClaimRequest<'a>,
    /// Digest of the cache's tag when it was read last.
    seen: Option<BlobDigest>,
    /// Start of the wait.
    begun: Instant,
}

impl StepWatch<'_> {
    /// Looks several times. Returns true if the step is there.
    fn sees_step(&mut self) -> Result<bool> {
        let name = self.request.cache.name();
        let repository = self.client.repository(name)?;
        for _ in 0..LOOKS {
            let found = repository.resolve_pushed(name.tag().unwrap_or("latest"))?.map(|found| match found {
                ResolvedTag::Digest(digest) => digest,
                ResolvedTag::Manifest(manifest) => manifest.digest,
            });
            if found != self.seen {
                self.seen = found;
                // A cache that cannot be read is no reason not to wait.
                let steps = read_remote_cache(
                    self.store,
                    self.client,
                    self.request.cache,
                    RecordKeys::none(),
                    &RecordBudget::default(),
                );
                let steps = steps.ok().flatten();
                if steps.is_some_and(|found| found.steps.iter().any(|step| step.key == self.request.key)) {
                    return Ok(true);
                }
            }
            std::thread::sleep((self.begun.elapsed() / 20).clamp(POLLS[0], POLLS[1]));
        }
        Ok(false)
    }
}

/// Renews a claim for that number of seconds. Returns false if another machine has it now.
///
/// # Errors
///
/// Fails if the registry fails or refuses.
pub fn renew_claim(client: &Client, request: &ClaimRequest<'_>, every: u64) -> Result<bool> {
    let place = ClaimPlace::of(client, request)?;
    let is_own = place.is_own(request)?;
    if is_own {
        place.write(request, every, false)?;
    }
    Ok(is_own)
}

/// Ends a claim whose step will not reach the cache. Returns false if another machine has it now,
/// or if the registry has not got it yet.
///
/// # Errors
///
/// Fails if the registry fails or refuses.
pub fn release_claim(client: &Client, request: &ClaimRequest<'_>) -> Result<bool> {
    let place = ClaimPlace::of(client, request)?;
    let is_own = place.is_own(request)?;
    if is_own {
        place.write(request, FIRST_RENEWAL, true)?;
    }
    Ok(is_own)
}

/// The tag of a claim.
struct ClaimPlace {
    repository: Repository,
    tag: String,
}

impl ClaimPlace {
    fn of(client: &Client, request: &ClaimRequest<'_>) -> Result<ClaimPlace> {
        let name: Reference = request.cache.name_of_claim(number_of(&request.key));
        let tag = name.tag().unwrap_or("latest").to_string();
        Ok(ClaimPlace { repository: client.repository(&name)?, tag })
    }

    /// Returns the claim; `None` if there is none, or one that cannot be read.
    fn read(&self) -> Result<Option<Claim>> {
        self.repository.pushed(&self.tag)?.map_or(Ok(None), |found| parse_claim(&found.bytes))
    }

    fn is_own(&self, request: &ClaimRequest<'_>) -> Result<bool> {
        Ok(self.read()?.is_some_and(|claim| claim.by == *request.by && claim.key == request.key))
    }

    fn write(&self, request: &ClaimRequest<'_>, every: u64, is_released: bool) -> Result<()> {
        let (key, build, at) = (request.key, Some(request.build), Timestamp::now().sec);
        let claim = Claim { key, build, by: request.by.clone(), at, every, is_released };
        let failed = || TransportError::document("the claim");
        let text = serde_json::to_string(&claim).map_err(failed())?;
        // An index needs no blobs.
        let document = json!({
            "schemaVersion": 2,
            "mediaType": MediaType::ImageIndex.to_string(),
            "manifests": [],
            "annotations": {ANNOTATION: text},
        });
        let bytes = serde_json::to_vec(&document).map_err(failed())?;
        self.repository.push_document(&self.tag, MediaType::ImageIndex.as_ref(), &bytes)?;
        Ok(())
    }
}

/// Returns the claim in a document; `None` if it cannot be read, so that it is replaced. Fails if
/// the document is an image or an index of images, which must not be replaced.
fn parse_claim(bytes: &[u8]) -> Result<Option<Claim>> {
    let document: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let has_content = |list: &Value| list.as_array().is_some_and(|list| !list.is_empty());
    if document["config"].is_object() || has_content(&document["layers"]) || has_content(&document["manifests"]) {
        return Err(TransportError::other("the tag of claims is an image"));
    }
    let claim = document["annotations"][ANNOTATION].as_str().and_then(|text| serde_json::from_str::<Claim>(text).ok());
    Ok(claim.filter(|claim| claim.by.is_valid()))
}

/// Returns the number of the place of a claim. Claims of different steps rarely have the same one.
fn number_of(key: &CacheKey) -> u8 {
    BlobDigest::of(key.bytes()).bytes()[0] % 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_holds_until_it_is_released_or_not_renewed() {
        let cache = RemoteCache::new("a.io/b:c".parse().unwrap(), 16);
        let (own, other) = (CacheKey::of(b"own"), CacheKey::of(b"other"));
        let patience = Duration::from_secs(60);
        let build = CacheKey::of(b"build");
        let me = Claimant("me".into());
        let request = ClaimRequest { cache: &cache, key: own, build, by: &me, is_prompt: true, patience };
        let claim = |key: CacheKey, by: &str, at, every| Claim {
            key,
            build: Some(build),
            by: Claimant(by.into()),
            at,
            every,
            is_released: false,
        };
        let seconds = Duration::from_secs;
        let held = || ClaimState::Held(Claimant("you".into()));
        for (found, unchanged, want) in [
            (None, seconds(1), ClaimState::Free),
            (Some(claim(own, "me", 1000, 4)), seconds(1), ClaimState::Own),
            (Some(claim(own, "you", 1000, 4)), seconds(14), held()),
            (Some(Claim { is_released: true, ..claim(own, "you", 1000, 4) }), seconds(1), ClaimState::Free),
            (Some(claim(own, "you", 1000, 4)), seconds(15), ClaimState::Free),
            // A build that takes longer renews its claim less often.
            (Some(claim(own, "you", 1000, 16)), seconds(26), held()),
            (Some(claim(own, "you", 1000, 16)), seconds(27), ClaimState::Free),
            (Some(claim(own, "you", 1000, u64::MAX)), seconds(27), ClaimState::Free),
            (Some(claim(own, "you", 1000 - 64, 4)), seconds(1), held()),
            (Some(claim(own, "you", 1000 - 65, 4)), seconds(1), ClaimState::Free),
            // The clock of the other machine is ahead, or the time is invented.
            (Some(claim(own, "you", 1000 + 64, 4)), seconds(1), held()),
            (Some(claim(own, "you", 1000 + 65, 4)), seconds(1), ClaimState::Free),
            (Some(claim(own, "you", i64::MAX, u64::MAX)), seconds(1), ClaimState::Free),
            (Some(claim(own, "you", i64::MIN, 0)), seconds(1), ClaimState::Free),
            (Some(claim(other, "you", 1000, 4)), seconds(1), ClaimState::Other),
            (Some(Claim { build: None, ..claim(own, "you", 1000, 4) }), seconds(1), ClaimState::Other),
            (Some(Claim { build: Some(other), ..claim(own, "you", 1000, 4) }), seconds(1), ClaimState::Other),
        ] {
            assert_eq!(state(found.as_ref(), &request, 1000, unchanged), want, "{found:?}");
        }
        // With claims that were requested, a machine waits for any build of the step.
        let requested = ClaimRequest { is_prompt: false, ..request };
        let found = Claim { build: Some(other), ..claim(own, "you", 1000, 4) };
        assert_eq!(state(Some(&found), &requested, 1000, seconds(1)), held());
    }

    #[test]
    fn claims_of_earlier_versions_are_read() {
        let text = json!({"key": CacheKey::of(b"own"), "by": "you", "at": 7}).to_string();
        let claim: Claim = serde_json::from_str(&text).unwrap();
        assert_eq!((claim.every, claim.is_released), (FIRST_RENEWAL, false));
    }

    #[test]
    fn every_name_of_a_machine_makes_a_claim_that_can_be_read() {
        let long = "é".repeat(1000);
        for (machine, want) in
            [("ci runner 5", "ci runner 5"), ("a\nb\u{1b}[31m", "ab[31m"), ("", ""), (&long, &long[..200])]
        {
            let claimant = Claimant::new(machine, "0123456789abcdef0123456789abcdef");
            assert!(claimant.is_valid(), "{claimant:?}");
            assert_eq!(claimant.machine(), want);
        }
        assert_eq!(Claimant("build".into()).machine(), "build");
    }

    #[test]
    fn what_is_no_claim_is_replaced_unless_it_is_an_image() {
        let document =
            |claim: Value| json!({"manifests": [], "annotations": {ANNOTATION: claim.to_string()}}).to_string();
        let claim = |by: &str| document(json!({"key": CacheKey::of(b"own"), "by": by, "at": 7}));
        assert!(parse_claim(claim("you").as_bytes()).unwrap().is_some());
        for other in [
            claim("you\nerror: forged"),
            claim(&"x".repeat(MAX_NAME + 1)),
            document(json!({"key": 1})),
            document(json!("claim")),
            json!({"manifests": []}).to_string(),
            "[".into(),
            "[]".into(),
            String::new(),
        ] {
            assert_eq!(parse_claim(other.as_bytes()).unwrap(), None, "{other}");
        }
        for image in [json!({"config": {}, "layers": []}), json!({"layers": [{}]}), json!({"manifests": [{}]})] {
            assert!(parse_claim(image.to_string().as_bytes()).is_err(), "{image}");
        }
    }
}
