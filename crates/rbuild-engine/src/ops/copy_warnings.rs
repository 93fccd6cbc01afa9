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
    /// Patterns that match nothing.
    unmatched: Vec<String>,
    /// True if several sources were copied to one file.
    pub overwritten: bool,
}

impl CopyWarnings {
    /// Returns the warnings about sources that selected nothing.
    pub(crate) fn of_sources(step: &CopyStep, selected: &[Vec<Selected>]) -> CopyWarnings {
        let empty = step.sources.iter().zip(selected).filter(|(_, selected)| selected.is_empty());
        let unmatched = empty.filter_map(|(source, _)| Some(source.pattern()?.text().to_string())).collect();
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
        let text = serde_json::to_vec(self).expect("texts can be written as JSON");
        store.trees().put_note(made, NOTE, &text)
    }

    /// Sends the warnings as far as they apply to a step. An equal tree may come from a step with
    /// other patterns.
    pub(crate) fn send(&self, step: &CopyStep, events: &Events) {
        let patterns = || step.sources.iter().filter_map(|source| source.pattern());
        for pattern in self.unmatched.iter().filter(|text| patterns().any(|pattern| pattern.text() == **text)) {
            events.send(Event::Warning(BuildWarning::NoMatch { pattern }.into()));
        }
        if self.overwritten {
            events.send(Event::Warning(BuildWarning::Overwritten { dest: &step.dest }.into()));
        }
    }
}
