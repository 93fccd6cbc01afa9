//! Claims: a machine announces in a registry that it is building the missing steps of a cache, and
//! others wait for them instead of building them, too.
//!
//! A claim is advice. Registries have no locks, so two machines may both believe that they have
//! one; both then build, and the cache keeps one result. A claim that is not renewed expires.

use std::time::{Duration, Instant};

use rbuild_image::{BlobDigest, MediaType, Reference};
use rbuild_linux::Timestamp;
use rbuild_registry::{Client, Repository};
use rbuild_store::CacheKey;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cache::shards::{RemoteCache, settle};
use crate::error::{Result, TransportError};

/// Annotation with the text of a claim.
const ANNOTATION: &str = "io.rbuild.claim";
/// Interval at which a claim must be renewed.
pub const RENEWAL: Duration = Duration::from_secs(4);
/// Time after which a claim that was not renewed counts as abandoned.
const EXPIRY: Duration = Duration::from_secs(15);
/// Age in seconds of a claim that counts as abandoned at first sight. Clocks may differ.
const OLD: i64 = 60;
/// Interval at which a claim of another machine is read.
const POLL: Duration = Duration::from_millis(250);

/// A step that a machine is about to build.
#[derive(Debug, Clone, Copy)]
pub struct ClaimRequest<'a> {
    /// The cache that will have it.
    pub cache: &'a RemoteCache,
    /// Key of the first step that is missing.
    pub key: CacheKey,
    /// Name of the machine and its build.
    pub by: &'a str,
}

/// The outcome of a request for a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClaimOutcome {
    /// This machine builds the step.
    Taken,
    /// Another machine had the claim and has ended.
    Ended,
    /// A machine builds another step, whose claim has the same place.
    Unavailable,
}

/// The text of a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    key: CacheKey,
    by: String,
    /// Time of the last renewal in seconds since 1970.
    at: i64,
    #[serde(default)]
    is_released: bool,
}

/// The meaning of a claim for a machine.
#[derive(Debug, PartialEq, Eq)]
enum ClaimState {
    Free,
    Own,
    /// Another machine builds the same step.
    Held(String),
    /// A machine builds another step, whose claim has the same place.
    Other,
}

/// Returns the meaning of a claim, which was first seen in this form that long ago.
fn state(found: Option<&Claim>, request: &ClaimRequest<'_>, now: i64, unchanged: Duration) -> ClaimState {
    match found {
        None => ClaimState::Free,
        Some(claim) if claim.is_released || unchanged > EXPIRY || now.saturating_sub(claim.at) > OLD => {
            ClaimState::Free
        }
        Some(claim) if claim.by == request.by => ClaimState::Own,
        Some(claim) if claim.key == request.key => ClaimState::Held(claim.by.clone()),
        Some(_) => ClaimState::Other,
    }
}

/// Claims a step, or waits until another machine that builds it has ended. `waiting` is called once
/// with the name of that machine.
///
/// # Errors
///
/// Fails if the registry fails or refuses.
pub fn claim(client: &Client, request: &ClaimRequest<'_>, waiting: &dyn Fn(&str)) -> Result<ClaimOutcome> {
    let place = ClaimPlace::of(client, request)?;
    let (mut seen, mut has_waited): (Option<(Claim, Instant)>, bool) = (None, false);
    loop {
        let started = Instant::now();
        let found = place.read()?;
        let since = match (&seen, &found) {
            (Some((known, since)), Some(claim)) if known == claim => *since,
            _ => started,
        };
        seen = found.clone().map(|claim| (claim, since));
        match state(found.as_ref(), request, Timestamp::now().sec, since.elapsed()) {
            ClaimState::Own => return Ok(ClaimOutcome::Taken),
            // An abandoned claim is taken over.
            ClaimState::Free if has_waited && found.is_none_or(|claim| claim.is_released) => {
                return Ok(ClaimOutcome::Ended);
            }
            ClaimState::Free => {
                place.write(request, false)?;
                settle(started.elapsed());
            }
            ClaimState::Held(by) => {
                if !has_waited {
                    waiting(&by);
                }
                has_waited = true;
                std::thread::sleep(POLL);
            }
            ClaimState::Other if has_waited => return Ok(ClaimOutcome::Ended),
            ClaimState::Other => return Ok(ClaimOutcome::Unavailable),
        }
    }
}

/// Renews a claim. Returns false if another machine has it now.
///
/// # Errors
///
/// Fails if the registry fails or refuses.
pub fn renew_claim(client: &Client, request: &ClaimRequest<'_>) -> Result<bool> {
    let place = ClaimPlace::of(client, request)?;
    let is_own = place.is_own(request)?;
    if is_own {
        place.write(request, false)?;
    }
    Ok(is_own)
}

/// Ends a claim, unless another machine has it now.
///
/// # Errors
///
/// Fails if the registry fails or refuses.
pub fn release_claim(client: &Client, request: &ClaimRequest<'_>) -> Result<()> {
    let place = ClaimPlace::of(client, request)?;
    if place.is_own(request)? {
        place.write(request, true)?;
    }
    Ok(())
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

    fn read(&self) -> Result<Option<Claim>> {
        let Some(found) = self.repository.pushed(&self.tag)? else { return Ok(None) };
        let document: Value = serde_json::from_slice(&found.bytes).map_err(TransportError::document("the claim"))?;
        let text = document["annotations"][ANNOTATION].as_str();
        let text = text.ok_or_else(|| TransportError::other("the tag of claims is something else"))?;
        serde_json::from_str(text).map(Some).map_err(TransportError::document("the claim"))
    }

    fn is_own(&self, request: &ClaimRequest<'_>) -> Result<bool> {
        Ok(self.read()?.is_some_and(|claim| claim.by == request.by && claim.key == request.key))
    }

    fn write(&self, request: &ClaimRequest<'_>, is_released: bool) -> Result<()> {
        let claim = Claim { key: request.key, by: request.by.into(), at: Timestamp::now().sec, is_released };
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
        let request = ClaimRequest { cache: &cache, key: own, by: "me" };
        let claim = |key: CacheKey, by: &str, at, is_released| Claim { key, by: by.into(), at, is_released };
        let (fresh, late) = (Duration::from_secs(1), EXPIRY + Duration::from_secs(1));
        let held = || ClaimState::Held("you".into());
        for (found, unchanged, want) in [
            (None, fresh, ClaimState::Free),
            (Some(claim(own, "me", 1000, false)), fresh, ClaimState::Own),
            (Some(claim(own, "you", 1000, false)), fresh, held()),
            (Some(claim(own, "you", 1000, true)), fresh, ClaimState::Free),
            (Some(claim(own, "you", 1000, false)), late, ClaimState::Free),
            (Some(claim(own, "you", 1000 - OLD - 1, false)), fresh, ClaimState::Free),
            // The clock of the other machine is ahead.
            (Some(claim(own, "you", 9000, false)), fresh, held()),
            (Some(claim(other, "you", 1000, false)), fresh, ClaimState::Other),
        ] {
            assert_eq!(state(found.as_ref(), &request, 1000, unchanged), want, "{found:?}");
        }
    }
}
