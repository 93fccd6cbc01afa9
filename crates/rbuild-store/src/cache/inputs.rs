//! Parts of cache keys and the steps of earlier builds, used to explain why a step ran again.

use std::collections::{HashMap, HashSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::ids::{BuildIndexName, CacheKey};
use crate::modes;
use crate::store::Store;

/// The named parts that a step's key was computed from, in order. Names may repeat.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyInputs {
    /// Names and values.
    pub parts: Vec<(String, String)>,
}

/// The steps last built from one Dockerfile in one directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildIndex {
    /// The steps of the last build, followed by those of stages it did not build.
    pub steps: Vec<IndexedStep>,
}

/// A step of an earlier build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexedStep {
    /// Name of its stage.
    pub stage: String,
    /// Number within the stage, from 1.
    pub number: usize,
    /// The instruction.
    pub text: String,
    /// Its cache key.
    pub key: CacheKey,
}

/// Maximum number of steps kept for stages that the last build did not contain.
const KEPT: usize = 5000;

impl Store {
    /// Returns the parts of a record's key, if known.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be read.
    pub fn key_inputs(&self, key: &CacheKey) -> Result<Option<KeyInputs>> {
        self.read_if_whole(&format!("accounts/{}.json", key.hex()))
    }

    /// Stores the parts of a record's key.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be written.
    pub fn put_key_inputs(&self, key: &CacheKey, key_inputs: &KeyInputs) -> Result<()> {
        self.root.create_dir_all("accounts", modes::dir(), None, |_| ())?;
        self.write("accounts", &format!("{}.json", key.hex()), key_inputs)
    }

    /// Returns the build index with that name, empty if there is none.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be read.
    pub fn build_index(&self, name: &BuildIndexName) -> Result<BuildIndex> {
        Ok(self.read_if_whole(&format!("ledgers/{}.json", name.hex()))?.unwrap_or_default())
    }

    /// Stores a build index under that name.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be written.
    pub fn put_build_index(&self, name: &BuildIndexName, build_index: &BuildIndex) -> Result<()> {
        self.root.create_dir_all("ledgers", modes::dir(), None, |_| ())?;
        self.write("ledgers", &format!("{}.json", name.hex()), build_index)
    }
}

impl BuildIndex {
    /// Returns for each step (stage, number, text) the index of the best match in the build index: the
    /// same text in the same stage, or else the same number in the same stage, or else the same
    /// text in another stage. Every build index step is matched at most once.
    pub fn nearest(&self, steps: &[(&str, usize, &str)]) -> Vec<Option<usize>> {
        let mut found = vec![None; steps.len()];
        let mut taken = vec![false; self.steps.len()];
        type Name = fn(&str, usize, &str) -> String;
        let ways: [Name; 3] = [
            |stage, _, text| format!("{stage}\0{text}"),
            |stage, number, _| format!("{stage}\0{number}"),
            |_, _, text| text.to_string(),
        ];
        for name in ways {
            let mut old: HashMap<String, VecDeque<usize>> = HashMap::new();
            for (i, step) in self.steps.iter().enumerate().filter(|(i, _)| !taken[*i]) {
                old.entry(name(&step.stage, step.number, &step.text)).or_default().push_back(i);
            }
            for (place, (stage, number, text)) in found.iter_mut().zip(steps).filter(|(place, _)| place.is_none()) {
                *place = old.get_mut(&name(stage, *number, text)).and_then(VecDeque::pop_front);
                place.iter().for_each(|i| taken[*i] = true);
            }
        }
        found
    }

    /// Adds the steps of a build, replacing the earlier steps of the same stages.
    pub fn update(&mut self, steps: Vec<IndexedStep>) {
        let stages: HashSet<&str> = steps.iter().map(|step| step.stage.as_str()).collect();
        let others = self.steps.iter().filter(|old| !stages.contains(old.stage.as_str()));
        let kept: Vec<IndexedStep> = others.take(KEPT).cloned().collect();
        self.steps = steps.into_iter().chain(kept).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(stage: &str, number: usize, text: &str) -> IndexedStep {
        IndexedStep { stage: stage.into(), number, text: text.into(), key: CacheKey::of(text.as_bytes()) }
    }

    #[test]
    fn the_nearest_step_is_the_same_text_then_the_same_place() {
        let mut build_index = BuildIndex::default();
        build_index.update(vec![step("a", 2, "COPY . ."), step("a", 3, "RUN make"), step("b", 2, "RUN echo 1")]);
        // One step was inserted, and one was edited.
        let now = [("a", 2, "RUN id"), ("a", 3, "COPY . ."), ("a", 4, "RUN make"), ("b", 2, "RUN echo 2")];
        assert_eq!(build_index.nearest(&now), [None, Some(0), Some(1), Some(2)]);
        // A stage was renamed.
        assert_eq!(build_index.nearest(&[("c", 2, "RUN make")]), [Some(1)]);
        // Identical steps count separately.
        build_index.update(vec![step("a", 2, "RUN x"), step("a", 3, "RUN x")]);
        assert_eq!(
            build_index.nearest(&[("a", 2, "RUN x"), ("a", 3, "RUN x"), ("a", 4, "RUN x")]),
            [Some(0), Some(1), None]
        );
        // Stages that were not built are kept.
        assert!(build_index.steps.iter().any(|s| s.stage == "b"));
        assert_eq!(build_index.steps.len(), 3);
    }
}
