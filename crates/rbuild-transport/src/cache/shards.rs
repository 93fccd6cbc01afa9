//! The tags of a cache in a registry. Each machine writes to one of several tags, its shard, so
//! that machines rarely write to the same one; all of them are read.

use std::time::Duration;

use rbuild_image::{BlobDigest, Reference, ReferenceError};

use crate::cache::artifact::CachedSteps;

/// Maximum number of shards of a cache.
pub const MAX_SHARDS: u32 = 64;
/// Minimum time after which a written tag is read again.
pub(crate) const SETTLED: Duration = Duration::from_millis(20);
/// The same for a tag to which all machines write.
pub(crate) const SHARED_SETTLED: Duration = Duration::from_millis(80);
/// The same if other machines were seen to write. Machines that share a processor are slow.
pub(crate) const CONTENDED_SETTLED: Duration = Duration::from_millis(300);
/// Maximum length of a tag.
const MAX_TAG: usize = 128;
/// Length of the longest suffix of a shard.
const MAX_SUFFIX: usize = "-s63".len();
/// Number of hexadecimal digits that make a changed tag unique.
const DIGITS: usize = 8;

/// A cache in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteCache {
    /// Name without the suffix of a shard.
    name: Reference,
    /// Number of shards. With one, the name itself is written.
    shards: u32,
}

impl RemoteCache {
    /// Returns the cache with that name. One with a digest has a single tag.
    pub fn new(name: Reference, shards: u32) -> RemoteCache {
        let shards = if name.digest().is_some() { 1 } else { shards.clamp(1, MAX_SHARDS) };
        RemoteCache { name, shards }
    }

    /// Returns the name of the cache in messages.
    pub fn name(&self) -> &Reference {
        &self.name
    }

    /// Returns the number of shards.
    pub fn shards(&self) -> u32 {
        self.shards
    }

    /// Returns all names of the cache: its own, which an unsharded cache has, and those of the
    /// shards.
    pub fn names(&self) -> Vec<Reference> {
        let shards = if self.shards == 1 { 0 } else { self.shards };
        std::iter::once(self.name.clone()).chain((0..shards).map(|shard| self.shard(shard))).collect()
    }

    /// Returns the name that a machine writes to.
    pub fn name_of(&self, machine: &str) -> Reference {
        if self.shards == 1 {
            return self.name.clone();
        }
        self.shard(self.number_of(machine))
    }

    /// Returns the number of the shard that a machine writes to.
    pub(crate) fn number_of(&self, machine: &str) -> u32 {
        let bytes = BlobDigest::of(machine.as_bytes());
        u32::from_str_radix(&bytes.hex()[..8], 16).unwrap_or(0) % self.shards
    }

    /// Returns the name of the place of claims on a step.
    pub(crate) fn name_of_claim(&self, place: u8) -> Reference {
        let tag = self.name.tag().unwrap_or("latest");
        with_tag(&self.name, &format!("{}-c{place}", shortened(tag))).unwrap_or_else(|_| self.name.clone())
    }

    /// Returns the name of a shard.
    pub(crate) fn shard(&self, number: u32) -> Reference {
        let tag = self.name.tag().unwrap_or("latest");
        with_tag(&self.name, &format!("{}-s{number}", shortened(tag))).unwrap_or_else(|_| self.name.clone())
    }
}

/// Returns a tag that leaves room for the suffix of a shard.
fn shortened(tag: &str) -> String {
    if tag.len() + MAX_SUFFIX <= MAX_TAG {
        return tag.to_string();
    }
    let kept: String = tag.chars().take(MAX_TAG - MAX_SUFFIX - DIGITS - 1).collect();
    format!("{kept}-{}", &BlobDigest::of(tag.as_bytes()).hex()[..DIGITS])
}

fn with_tag(name: &Reference, tag: &str) -> Result<Reference, ReferenceError> {
    format!("{}/{}:{tag}", name.registry(), name.path()).parse()
}

/// Waits until another machine that read a tag before this one wrote it has written it, too.
/// Registries cannot replace a tag on the condition that it is unchanged. `taken` is the time
/// between reading and writing here; the other machine may take three times as long.
pub(crate) fn settle(taken: Duration) {
    settle_for(taken, SETTLED);
}

/// Does the same, and waits for `least`, whatever the time was.
pub(crate) fn settle_for(taken: Duration, least: Duration) {
    std::thread::sleep((taken * 3).max(least));
}

/// Returns the tag of a scope, such as a branch: characters that tags cannot have are replaced, and
/// digits of a hash keep different scopes apart.
pub fn tag_of_scope(prefix: &str, scope: &str) -> String {
    let clean = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-') { c } else { '-' };
    let cleaned: String = scope.chars().map(clean).collect();
    let tag = format!("{prefix}-{cleaned}");
    if cleaned == scope && tag.len() + MAX_SUFFIX <= MAX_TAG && !has_suffix(scope) {
        return tag;
    }
    let kept: String = tag.chars().take(MAX_TAG - MAX_SUFFIX - DIGITS - 1).collect();
    format!("{kept}-{}", &BlobDigest::of(scope.as_bytes()).hex()[..DIGITS])
}

/// Returns true if a scope ends like a tag with digits of a hash, or like that of a shard or of
/// claims. Whoever chooses the name of a branch could otherwise choose the tag of another scope.
fn has_suffix(scope: &str) -> bool {
    let (rest, last) = scope.rsplit_once('-').map_or((None, scope), |(rest, last)| (Some(rest), last));
    let is_hash = rest.is_some() && last.len() == DIGITS && last.chars().all(|c| c.is_ascii_hexdigit());
    let is_shard = last.strip_prefix(['s', 'c']).is_some_and(|number| number.chars().all(|c| c.is_ascii_digit()));
    is_hash || is_shard
}

/// Returns the steps of all shards. Of equal steps, the one that was made last applies: machines
/// that run a command at the same time continue with one result, and a step that replaces a lost
/// one is found. If both were made at the same time, the first one applies.
pub(crate) fn union(shards: impl IntoIterator<Item = CachedSteps>) -> CachedSteps {
    let mut all = CachedSteps::new();
    for step in shards.into_iter().flat_map(CachedSteps::into_values) {
        match all.get_mut(&step.key) {
            None => drop(all.insert(step.key, step)),
            Some(known) => {
                let used = known.used.max(step.used);
                if step.created > known.created {
                    *known = step;
                }
                known.used = used;
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use rbuild_store::CachedStep;

    use super::*;
    use crate::cache::artifact::tests::{step, steps};

    #[test]
    fn each_machine_writes_to_one_of_the_tags_that_all_read() {
        let cache = |name: &str, shards| RemoteCache::new(name.parse().unwrap(), shards);
        let tags = |cache: &RemoteCache| {
            cache.names().iter().map(|name| name.tag().unwrap_or("none").to_string()).collect::<Vec<_>>()
        };
        let four = cache("a.io/b:main", 4);
        assert_eq!(tags(&four), ["main", "main-s0", "main-s1", "main-s2", "main-s3"]);
        let own: Vec<String> = (0..64).map(|i| four.name_of(&format!("runner-{i}")).to_string()).collect();
        assert_eq!(four.name_of("runner-7").to_string(), own[7], "the same for each build");
        for shard in 0..4 {
            let name = format!("a.io/b:main-s{shard}");
            assert!(own.iter().filter(|own| **own == name).count() > 4, "{own:?}");
        }
        let one = cache("a.io/b", 1);
        assert_eq!((tags(&one), one.name_of("x").to_string()), (vec!["latest".into()], "a.io/b:latest".into()));
        let digest = cache(&format!("a.io/b@{}", BlobDigest::of(b"x")), 16);
        assert_eq!(digest.names().len(), 1);
        assert_eq!((cache("b", 0).shards(), cache("b", 1000).shards()), (1, MAX_SHARDS));
        let long = cache(&format!("a.io/b:{}", "x".repeat(128)), MAX_SHARDS);
        let long = tags(&long);
        assert_eq!(long.len(), 65);
        assert!(long.iter().all(|tag| tag.len() <= 128) && long[64].ends_with("-s63"), "{long:?}");
    }

    #[test]
    fn scopes_have_different_tags() {
        for (scope, want) in [("main", "cache-main"), ("v1.2_x", "cache-v1.2_x"), ("s3x", "cache-s3x"), ("", "cache-")]
        {
            assert_eq!(tag_of_scope("cache", scope), want);
        }
        let changed = ["feature/a", "feature-a", "feature a", "größe", &"x".repeat(200), &"x".repeat(201)]
            .map(|scope| tag_of_scope("cache", scope));
        let distinct: std::collections::BTreeSet<&String> = changed.iter().collect();
        assert_eq!(distinct.len(), changed.len(), "{changed:?}");
        let taken = tag_of_scope("cache", "release/1.0");
        let chosen = taken.strip_prefix("cache-").unwrap();
        assert_ne!(tag_of_scope("cache", chosen), taken, "the hash of another scope");
        let shard = RemoteCache::new("a.io/b:cache-main".parse().unwrap(), 4).names()[3].clone();
        assert_eq!(shard.tag(), Some("cache-main-s2"));
        assert_ne!(tag_of_scope("cache", "main-s2"), "cache-main-s2", "the shard of another scope");
        assert_ne!(tag_of_scope("cache", "main-c2"), "cache-main-c2", "claims of another scope");
        // The shards and claims of `a.io/b:cache`.
        for scope in ["s3", "c15", "s63", "c0"] {
            let tag = tag_of_scope("cache", scope);
            assert!(tag.starts_with(&format!("cache-{scope}-")) && tag.len() == "cache--".len() + scope.len() + DIGITS);
        }
        for tag in &changed {
            let name: Reference = format!("a.io/b:{tag}").parse().unwrap();
            assert!(RemoteCache::new(name, 64).names().len() == 65);
        }
    }

    #[test]
    fn of_equal_steps_the_last_one_made_applies() {
        let made = |name: &str, layer: &[u8], created, used| CachedStep { created, ..step(name, layer, used) };
        let first = steps([made("a", b"old", 1, 9), made("b", b"b", 5, 1)]);
        let second = steps([made("a", b"new", 2, 3), made("b", b"other", 5, 2), made("c", b"c", 1, 1)]);
        let want = steps([made("a", b"new", 2, 9), made("b", b"b", 5, 2), made("c", b"c", 1, 1)]);
        assert_eq!(union([first.clone(), second.clone()]), want);
        assert_eq!(union([second, first])[&step("a", b"", 0).key], made("a", b"new", 2, 9));
        assert!(union([]).is_empty());
    }
}
