//! Records the steps and phases of a build, with their times, from the events that are sent.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rbuild_linux::parallel::locked;
use rbuild_store::{PhaseLog, StepLog, StepOutcome};

use crate::event::Event;
use crate::exports::StepCounts;

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
    /// Descriptions of the phases that have started, by number.
    running: HashMap<usize, String>,
}

impl Journal {
    /// Returns an empty journal of a build that starts now.
    pub fn new() -> Journal {
        Journal { started: Instant::now(), pages: Mutex::default() }
    }

    /// Returns the time since the build began.
    pub fn duration(&self) -> Duration {
        self.started.elapsed()
    }

    /// Returns the seconds since the build began.
    pub fn now(&self) -> f64 {
        self.duration().as_secs_f64()
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
            Event::PhaseStarted { phase, text, .. } => drop(pages.running.insert(*phase, text.clone())),
            Event::PhaseEnded { phase, seconds } => {
                let seconds = seconds.unwrap_or_default();
                let began = (self.now() - seconds).max(0.0);
                pages.phases.extend(pages.running.remove(phase).map(|text| PhaseLog { text, began, seconds }));
            }
            Event::Isolation { .. }
            | Event::Total { .. }
            | Event::Moving { .. }
            | Event::Pulling { .. }
            | Event::Waiting { .. }
            | Event::Output { .. }
            | Event::Warning(_)
            | Event::Failed
            | Event::Interrupted => {}
        }
    }

    /// Returns the numbers of steps that were completed.
    pub fn counts(&self) -> StepCounts {
        let pages = locked(&self.pages);
        let count = |wanted: &[StepOutcome]| pages.steps.iter().filter(|step| wanted.contains(&step.outcome)).count();
        StepCounts { done: count(&[StepOutcome::Done, StepOutcome::Cached]), cached: count(&[StepOutcome::Cached]) }
    }

    /// Returns everything recorded so far.
    pub fn read(&self) -> (Vec<StepLog>, Vec<PhaseLog>) {
        let pages = locked(&self.pages);
        (pages.steps.clone(), pages.phases.clone())
    }
}
