//! Records the steps and phases of a build, with their times, from the events that are sent.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Instant;

use rbuild_linux::parallel::locked;
use rbuild_store::{PhaseLog, StepLog, StepOutcome};

use crate::event::Event;

#[derive(Debug)]
pub(crate) struct Journal {
    started: Instant,
    pages: Mutex<Pages>,
}

#[derive(Debug, Default)]
struct Pages {
    steps: Vec<StepLog>,
    phases: Vec<PhaseLog>,
    /// Index in `steps` by step number.
    places: HashMap<usize, usize>,
}

impl Journal {
    /// Returns an empty journal of a build that starts now.
    pub fn new() -> Journal {
        Journal { started: Instant::now(), pages: Mutex::default() }
    }

    /// Returns the seconds since the build began.
    pub fn now(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Records an event.
    pub fn note(&self, event: &Event) {
        let mut pages = locked(&self.pages);
        let pages = &mut *pages;
        match event {
            Event::Started { step, label, text } => {
                pages.places.insert(*step, pages.steps.len());
                pages.steps.push(StepLog {
                    step: *step,
                    label: label.clone(),
                    text: text.clone(),
                    outcome: StepOutcome::Canceled,
                    began: self.now(),
                    seconds: 0.0,
                    reason: None,
                    inputs: Vec::new(),
                });
            }
            Event::Reason { step, text } => {
                if let Some(place) = pages.places.get(step) {
                    pages.steps[*place].reason = Some(text.clone());
                }
            }
            Event::Done { step, outcome, seconds } => {
                if let Some(place) = pages.places.get(step) {
                    pages.steps[*place].outcome = *outcome;
                    pages.steps[*place].seconds = *seconds;
                }
            }
            Event::Phase { text, seconds } => {
                let began = (self.now() - seconds).max(0.0);
                pages.phases.push(PhaseLog { text: text.clone(), began, seconds: *seconds });
            }
            Event::Isolation { .. }
            | Event::Pulling { .. }
            | Event::Waiting { .. }
            | Event::Output { .. }
            | Event::Warning(_)
            | Event::Failed => {}
        }
    }

    /// Returns everything recorded so far.
    pub fn read(&self) -> (Vec<StepLog>, Vec<PhaseLog>) {
        let pages = locked(&self.pages);
        (pages.steps.clone(), pages.phases.clone())
    }
}
