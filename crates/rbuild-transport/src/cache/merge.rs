//! The union of a cache and the steps of a build.

use std::collections::BTreeSet;

use rbuild_image::BlobDigest;
use rbuild_store::{CacheKey, CachedStep};
use serde::{Deserialize, Serialize};

use crate::cache::artifact::CachedSteps;
use crate::cache::note::CacheNote;
use crate::cache::signature::RecordKeys;
use crate::cache::step_count::{LeftOut, StepCount};

/// Maximum number of layers in a manifest. Registries accept manifests of 4 MiB, some of less.
pub(crate) const MAX_LAYERS: usize = 3000;
/// Seconds of a day.
const DAY: i64 = 86_400;

/// Limits of a cache that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLimits {
    /// Size of all layers in bytes.
    pub bytes: u64,
    /// Age in seconds at which a step that no build used is dropped.
    pub age: u64,
}

impl Default for CacheLimits {
    /// 5 GB, 30 days.
    fn default() -> CacheLimits {
        CacheLimits { bytes: 5_000_000_000, age: 30 * DAY as u64 }
    }
}

/// The steps of a build for a cache.
#[derive(Debug, Clone, Copy)]
pub struct OwnSteps<'a> {
    /// The steps. One without a day of its last use was used today.
    pub steps: &'a [CachedStep],
    /// Steps whose layers were found to be unusable. They are replaced.
    pub lost: &'a BTreeSet<CacheKey>,
    /// Steps that were run although a cache may have had them. They are replaced, too.
    pub refreshed: &'a BTreeSet<CacheKey>,
    /// Limits of the cache.
    pub limits: CacheLimits,
    /// The day of the build.
    pub today: i64,
    /// Keys for the records. If they are required, steps in records without a valid signature are
    /// dropped, because the others would be signed with them.
    pub keys: &'a RecordKeys,
}

/// Steps that were written to a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WrittenCache {
    /// The steps and cache mounts in the cache.
    pub content: StepCount,
    /// Those of the build that exceed the size of the cache.
    pub left_out: LeftOut,
    /// Number of layers that were written.
    pub layers: usize,
    /// Size of the written layers in bytes.
    pub bytes: u64,
    /// True if the cache had everything already.
    pub is_unchanged: bool,
    /// True if the cache has the step that other machines may wait for.
    pub has_awaited: bool,
    /// A remark for the user.
    pub note: CacheNote,
}

/// Returns the day of a time in seconds since the Unix epoch.
pub fn day_of(seconds: i64) -> i64 {
    seconds.div_euclid(DAY)
}

/// Returns true if a day is not later than tomorrow. Machines with a wrong clock write such days.
fn is_past(day: i64, today: i64) -> bool {
    day <= today.saturating_add(1)
}

impl CacheLimits {
    /// Returns the first day of use of steps that stay.
    fn oldest(&self, today: i64) -> i64 {
        today.saturating_sub(day_of(i64::try_from(self.age).unwrap_or(i64::MAX)))
    }

    /// Returns true if a cache with these steps has none that a writer drops, nor one with a day in
    /// the future.
    pub(crate) fn contain<'a>(&self, steps: impl IntoIterator<Item = &'a CachedStep>, today: i64) -> bool {
        let (mut left, mut layers) = (self.bytes, BTreeSet::new());
        steps.into_iter().all(|step| {
            let size = if layers.insert(step.layer.blob) { step.layer.size } else { 0 };
            let rest = left.checked_sub(size);
            left = rest.unwrap_or(0);
            rest.is_some() && step.used >= self.oldest(today) && is_past(step.used, today)
        })
    }
}

/// Returns the steps that a machine writes to its shard of a cache, and the limits of the shard.
/// `others` are the steps of the other shards. A step that another shard has stays there, unless it
/// is lost or replaced, or will soon be dropped because of its age.
pub(crate) fn own_share(ours: &OwnSteps<'_>, others: &CachedSteps, shards: u32) -> (Vec<CachedStep>, CacheLimits) {
    let OwnSteps { steps, lost, refreshed, limits, today, .. } = *ours;
    let half_age = day_of(i64::try_from(limits.age / 2).unwrap_or(i64::MAX));
    let is_left = |step: &CachedStep| {
        let is_fresh = |there: &CachedStep| there.used >= today.saturating_sub(half_age) && is_past(there.used, today);
        !lost.contains(&step.key) && !refreshed.contains(&step.key) && others.get(&step.key).is_some_and(is_fresh)
    };
    let steps = steps.iter().filter(|step| !is_left(step)).cloned().collect();
    let mut counted = BTreeSet::new();
    let elsewhere = others.values().filter(|step| counted.insert(step.layer.blob));
    let elsewhere = elsewhere.fold(0u64, |total, step| total.saturating_add(step.layer.size));
    let share = limits.bytes / u64::from(shards.max(1));
    (steps, CacheLimits { bytes: limits.bytes.saturating_sub(elsewhere).max(share), ..limits })
}

/// The steps of a cache that is written.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct MergedSteps {
    pub steps: CachedSteps,
    /// Those of the build that exceed the limits.
    pub left_out: LeftOut,
}

/// Chooses steps until their layers reach a limit.
#[derive(Debug)]
pub struct StepSelection {
    /// Number of bytes that are left.
    bytes: u64,
    layers: BTreeSet<BlobDigest>,
}

impl StepSelection {
    /// Returns a selection of steps whose layers have at most that many bytes.
    pub fn within(bytes: u64) -> StepSelection {
        StepSelection { bytes, layers: BTreeSet::new() }
    }

    /// Returns true if a step still fits, and adds its layer.
    pub fn takes(&mut self, step: &CachedStep) -> bool {
        if self.layers.contains(&step.layer.blob) {
            return true;
        }
        match self.bytes.checked_sub(step.layer.size) {
            Some(bytes) if self.layers.len() < MAX_LAYERS => {
                self.bytes = bytes;
                self.layers.insert(step.layer.blob)
            }
            _ => false,
        }
    }
}

/// Returns the steps of a cache after a build has used or made the steps `ours`. A step that both
/// have is that of the cache, unless it is lost or refreshed, so that all machines continue with
/// one result. Within the limits, own steps precede others, and then those that were used last.
pub(crate) fn merged(theirs: CachedSteps, ours: &OwnSteps<'_>) -> MergedSteps {
    let OwnSteps { steps, lost, refreshed, limits, today, .. } = *ours;
    let mut all = theirs;
    all.retain(|key, _| !lost.contains(key));
    // Steps with a day in the future would stay, and precede all others.
    all.values_mut().filter(|step| !is_past(step.used, today)).for_each(|step| step.used = today);
    let own: BTreeSet<CacheKey> = steps.iter().map(|step| step.key).collect();
    own.intersection(refreshed).for_each(|key| drop(all.remove(key)));
    for step in steps {
        let used = if step.used == 0 { today } else { step.used };
        let step = CachedStep { used, ..step.clone() };
        all.entry(step.key).and_modify(|known| known.used = known.used.max(used)).or_insert(step);
    }
    let mut list: Vec<CachedStep> = all.into_values().collect();
    list.retain(|step| step.used >= limits.oldest(today));
    list.sort_by_key(|step| (!own.contains(&step.key), std::cmp::Reverse(step.used), step.key));
    let mut selection = StepSelection::within(limits.bytes);
    let (kept, dropped): (Vec<_>, Vec<_>) = list.into_iter().partition(|step| selection.takes(step));
    let left_out = LeftOut::of(dropped.iter().filter(|step| own.contains(&step.key)));
    MergedSteps { steps: kept.into_iter().map(|step| (step.key, step)).collect(), left_out }
}

#[cfg(test)]
mod tests {
    use rbuild_store::{CacheId, MountNote};

    use super::*;
    use crate::cache::artifact::tests::{step, steps};

    const NONE: &BTreeSet<CacheKey> = &BTreeSet::new();

    #[test]
    fn the_first_result_of_a_step_stays_and_its_use_is_noted() {
        let theirs = step("a", b"their layer", 90);
        let ours = step("a", b"our layer", 0);
        let ours = [ours, step("b", b"new", 0)];
        let mut own = OwnSteps {
            steps: &ours,
            lost: NONE,
            refreshed: NONE,
            limits: CacheLimits::default(),
            today: 100,
            keys: RecordKeys::none(),
        };
        let all = merged(steps([theirs.clone()]), &own).steps;
        assert_eq!(all, steps([CachedStep { used: 100, ..theirs.clone() }, step("b", b"new", 100)]));
        // A lost step is replaced.
        let lost = BTreeSet::from([theirs.key]);
        own.lost = &lost;
        let all = merged(steps([theirs.clone()]), &own).steps;
        let replaced = steps([step("a", b"our layer", 100), step("b", b"new", 100)]);
        assert_eq!(all, replaced);
        // So is one that was run without looking for it, but not one that another export has.
        let refreshed = BTreeSet::from([theirs.key, CacheKey::of(b"other")]);
        let other = step("other", b"x", 99);
        let own = OwnSteps { lost: NONE, refreshed: &refreshed, ..own };
        let all = merged(steps([theirs, other.clone()]), &own).steps;
        assert_eq!(all, replaced.into_iter().chain([(other.key, other)]).collect());
    }

    /// Steps of other machines of the same day do not displace those of the build.
    #[test]
    fn own_steps_precede_others_of_the_day() {
        let names = ["a", "b", "c", "d", "e", "f"];
        let limits = CacheLimits { bytes: 4, ..CacheLimits::default() };
        for own_name in names {
            let theirs = steps(names.map(|name| step(name, name.as_bytes(), 100)));
            let ours = [step(&format!("own {own_name}"), b"4444", 0)];
            let own =
                OwnSteps { steps: &ours, lost: NONE, refreshed: NONE, limits, today: 100, keys: RecordKeys::none() };
            assert_eq!(merged(theirs, &own).steps, steps([CachedStep { used: 100, ..ours[0].clone() }]));
        }
    }

    #[test]
    fn the_steps_used_last_stay_within_the_limits() {
        let old = [step("a", b"1234", 69), step("b", b"5678", 70), step("c", b"90", 99), step("d", b"90", 98)];
        let names = |limits: CacheLimits, ours: &[CachedStep]| {
            let own =
                OwnSteps { steps: ours, lost: NONE, refreshed: NONE, limits, today: 100, keys: RecordKeys::none() };
            let all = merged(steps(old.clone()), &own).steps;
            let known = ["a", "b", "c", "d", "new"];
            known.iter().filter(|name| all.contains_key(&step(name, b"", 0).key)).copied().collect::<String>()
        };
        let limits = CacheLimits::default();
        assert_eq!(names(limits, &[]), "bcd", "one is older than 30 days");
        assert_eq!(names(CacheLimits { age: u64::MAX, ..limits }, &[]), "abcd");
        assert_eq!(names(CacheLimits { bytes: 6, ..limits }, &[]), "bcd");
        // Two steps with one layer count once. A large layer does not displace smaller ones.
        assert_eq!(names(CacheLimits { bytes: 2, ..limits }, &[]), "cd");
        assert_eq!(names(CacheLimits { bytes: 5, ..limits }, &[step("new", b"1234", 0)]), "new");
        assert_eq!(names(CacheLimits { bytes: 5, ..limits }, &[step("new", b"123456", 0)]), "cd");
        assert_eq!(names(CacheLimits { bytes: 0, ..limits }, &[]), "");
    }

    /// Steps of the build that do not fit are counted, those of others are not.
    #[test]
    fn own_steps_beyond_the_limit_are_counted() {
        let mount = MountNote { id: CacheId::of(b"m"), name: "m".into() };
        let mount = CachedStep { mount: Some(mount), ..step("mount", b"4444", 0) };
        let ours = [step("a", b"22", 0), step("b", b"333", 0), step("c", b"333", 0), mount];
        let theirs = steps([step("other", b"55555", 99)]);
        let merged = |bytes| {
            let limits = CacheLimits { bytes, ..CacheLimits::default() };
            let own =
                OwnSteps { steps: &ours, lost: NONE, refreshed: NONE, limits, today: 100, keys: RecordKeys::none() };
            merged(theirs.clone(), &own).left_out
        };
        assert_eq!([merged(14), merged(9)], [LeftOut::default(); 2]);
        assert_eq!(merged(2), LeftOut { count: StepCount { steps: 2, mounts: 1 }, bytes: 7 });
        assert_eq!(merged(0), LeftOut { count: StepCount { steps: 3, mounts: 1 }, bytes: 9 });
    }

    /// The clock of the machine that wrote them was wrong.
    #[test]
    fn days_in_the_future_count_as_today() {
        let theirs = [step("future", b"1", 5000), step("end", b"2", i64::MAX), step("tomorrow", b"3", 101)];
        let ours = [step("end", b"2", 0)];
        let limits = CacheLimits::default();
        let mut own =
            OwnSteps { steps: &ours, lost: NONE, refreshed: NONE, limits, today: 100, keys: RecordKeys::none() };
        let all = merged(steps(theirs.clone()), &own).steps;
        assert_eq!(all, steps([step("future", b"1", 100), step("end", b"2", 100), step("tomorrow", b"3", 101)]));
        own.today = 131;
        assert_eq!(merged(all, &own).steps, steps([step("end", b"2", 131), step("tomorrow", b"3", 101)]));
        // A shard with such a day does not keep other machines from writing the step.
        own.today = 100;
        assert_eq!(own_share(&own, &steps(theirs), 4).0, ours);
    }

    #[test]
    fn a_cache_beyond_its_limits_is_recognized() {
        let all = [step("a", b"1234", 90), step("b", b"1234", 100), step("c", b"5", 101)];
        let contain = |bytes, days: u64, today| CacheLimits { bytes, age: days * DAY as u64 }.contain(&all, today);
        assert!(contain(5, 10, 100) && contain(u64::MAX, u64::MAX / DAY as u64, 100));
        assert!(!contain(4, 10, 100), "too large");
        assert!(!contain(5, 9, 100), "too old");
        assert!(!contain(5, 10, 99), "a day in the future");
        assert!(CacheLimits { bytes: 0, age: 0 }.contain([], 100));
    }

    #[test]
    fn steps_of_other_shards_are_written_once() {
        let others = steps([step("a", b"1234", 95), step("old", b"1234", 84), step("lost", b"56", 99)]);
        let ours = ["a", "old", "lost", "new", "refreshed"].map(|name| step(name, b"own", 0));
        let (lost, refreshed) = (BTreeSet::from([ours[2].key]), BTreeSet::from([ours[4].key]));
        let limits = CacheLimits { bytes: 20, ..CacheLimits::default() };
        let own =
            OwnSteps { steps: &ours, lost: &lost, refreshed: &refreshed, limits, today: 100, keys: RecordKeys::none() };
        let (share, left) = own_share(&own, &others, 4);
        assert_eq!(steps(share), steps(ours[1..].to_vec()));
        assert_eq!(left.bytes, 14, "two layers are elsewhere");
        let limits = CacheLimits { bytes: 8, ..limits };
        assert_eq!(own_share(&OwnSteps { limits, ..own }, &others, 4).1.bytes, 2, "each shard has a share");
        assert_eq!(own_share(&own, &CachedSteps::new(), 1), (ours.to_vec(), own.limits));
    }

    #[test]
    fn days_begin_at_midnight() {
        assert_eq!([-1, 0, 86_399, 86_400].map(day_of), [-1, 0, 0, 1]);
    }
}
