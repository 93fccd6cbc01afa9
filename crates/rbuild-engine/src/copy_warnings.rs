//! Warnings of copies. They are recorded next to the tree of the step, so that a build that reuses
//! the tree repeats them.

use rbuild_linux::RootDir;
use rbuild_plan::CopyStep;
use rbuild_source::Selected;
use rbuild_store::{Store, StoreError, TreeId};
use serde::{Deserialize, Serialize};

use crate::event::Event;
use crate::events::Events;
use crate::warning::BuildWarning;

/// Name of the document next to a tree.
const NOTE: &str = "warnings.json";

/// The warnings of one copy.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CopyWarnings {
    /// Positions of the sources whose patterns match nothing. The patterns themselves are not in
    /// the key of the step, so that of a later build may be another one.
    #[serde(default, rename = "unmatched_sources")]
    unmatched: Vec<usize>,
    /// True if several sources were copied to one file.
    #[serde(default)]
    pub overwritten: bool,
}

impl CopyWarnings {
    /// Returns the warnings about sources that selected nothing.
    pub(crate) fn of_sources(step: &CopyStep, selected: &[Vec<Selected>]) -> CopyWarnings {
        let is_unmatched = |at: &usize| step.sources[*at].pattern().is_some() && selected[*at].is_empty();
        let unmatched = (0..step.sources.len().min(selected.len())).filter(is_unmatched).collect();
        CopyWarnings { unmatched, overwritten: false }
    }

    /// Returns the warnings of the copy that made a tree. A document that cannot be read contains
    /// none.
    pub(crate) fn of_tree(store: &Store, tree: &TreeId) -> CopyWarnings {
        let note = store.trees().tree_note(tree, NOTE).unwrap_or_default();
        serde_json::from_slice(&note).unwrap_or_default()
    }

    /// Records the warnings, if there are any, next to the files of a new tree.
    pub(crate) fn put(&self, store: &Store, made: &RootDir) -> Result<(), StoreError> {
        if *self == CopyWarnings::default() {
            return Ok(());
        }
        let text = serde_json::to_vec(self).expect("numbers can be written as JSON");
        store.trees().put_note(made, NOTE, &text)
    }

    /// Sends the warnings, with the patterns and the destination of this step.
    pub(crate) fn send(&self, step: &CopyStep, events: &Events) {
        for pattern in self.unmatched.iter().filter_map(|at| step.sources.get(*at)?.pattern()) {
            events.send(Event::Warning(BuildWarning::NoMatch { pattern: pattern.text() }.into()));
        }
        if self.overwritten {
            events.send(Event::Warning(BuildWarning::Overwritten { dest: &step.dest }.into()));
        }
    }
}
