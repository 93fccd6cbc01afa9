//! Numbers of steps and cache mounts, for messages.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Add;

use rbuild_remedy::counted;
use rbuild_store::CachedStep;
use serde::{Deserialize, Serialize};

/// Numbers of steps and of cache mounts. Displayed, it is their list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StepCount {
    /// Number of steps.
    pub steps: usize,
    /// Number of cache mounts.
    pub mounts: usize,
}

impl StepCount {
    /// Counts the records of steps and those of cache mounts.
    pub fn of<'a>(records: impl IntoIterator<Item = &'a CachedStep>) -> StepCount {
        let (mut steps, mut mounts) = (0, 0);
        for record in records {
            *if record.mount.is_some() { &mut mounts } else { &mut steps } += 1;
        }
        StepCount { steps, mounts }
    }
}

impl Add for StepCount {
    type Output = StepCount;

    fn add(self, other: StepCount) -> StepCount {
        StepCount { steps: self.steps + other.steps, mounts: self.mounts + other.mounts }
    }
}

impl fmt::Display for StepCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (steps, mounts) = (counted(self.steps as u64, "step"), counted(self.mounts as u64, "cache mount"));
        match self {
            StepCount { mounts: 0, .. } => f.write_str(&steps),
            StepCount { steps: 0, .. } => f.write_str(&mounts),
            _ => write!(f, "{steps}, {mounts}"),
        }
    }
}

/// Steps and cache mounts that exceed the size of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LeftOut {
    /// Their numbers.
    pub count: StepCount,
    /// Size of their layers in bytes.
    pub bytes: u64,
}

impl LeftOut {
    /// Counts records. Layers of several of them count once.
    pub fn of<'a>(records: impl IntoIterator<Item = &'a CachedStep>) -> LeftOut {
        let records: Vec<&CachedStep> = records.into_iter().collect();
        let layers: BTreeSet<_> = records.iter().map(|record| (record.layer.blob, record.layer.size)).collect();
        let bytes = layers.iter().fold(0u64, |total, (_, size)| total.saturating_add(*size));
        LeftOut { count: StepCount::of(records), bytes }
    }

    /// Returns the sentence that they do not fit in `limit`; `None` if there are none. `owner` is
    /// what they belong to.
    pub fn sentence(&self, owner: &str, limit: &str) -> Option<String> {
        let LeftOut { count, bytes } = self;
        let verb = match count.steps + count.mounts {
            0 => return None,
            1 => "does",
            _ => "do",
        };
        Some(format!("{count}{owner} ({}) {verb} not fit in {limit}", rbuild_image::human_size(*bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_in_words() {
        let words = |steps, mounts| StepCount { steps, mounts }.to_string();
        assert_eq!([words(0, 0), words(1, 0), words(0, 1)], ["0 steps", "1 step", "1 cache mount"]);
        assert_eq!(words(4, 4), "4 steps, 4 cache mounts");
        let left_out = |steps, mounts| LeftOut { count: StepCount { steps, mounts }, bytes: 401_000 };
        let sentence = |steps, mounts| left_out(steps, mounts).sentence(" of this build", "max-size=100kB");
        assert_eq!(sentence(0, 0), None);
        assert_eq!(sentence(1, 0).unwrap(), "1 step of this build (401kB) does not fit in max-size=100kB");
        assert_eq!(
            sentence(2, 1).unwrap(),
            "2 steps, 1 cache mount of this build (401kB) do not fit in max-size=100kB"
        );
    }
}
