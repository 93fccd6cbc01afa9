use std::sync::mpsc::Sender;

use rbuild_sandbox::Stream;

/// What happens during a build, in order for each step. Steps are named by their vertex.
#[derive(Debug, Clone)]
pub enum Event {
    /// How commands are kept apart; the first event of a build that runs any.
    Isolation {
        rung: &'static str,
    },
    /// A step begins; `label` is `builder 3/7`.
    Started {
        step: usize,
        label: String,
        text: String,
    },
    Output {
        step: usize,
        stream: Stream,
        bytes: Vec<u8>,
    },
    Done {
        step: usize,
        outcome: StepOutcome,
        seconds: f64,
    },
    /// Work that is no step of the Dockerfile, in a few words.
    Phase {
        text: String,
        seconds: f64,
    },
    Warning {
        text: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepOutcome {
    Done,
    Cached,
    Failed,
    Cancelled,
}

/// The sending end. Sending never fails: when nobody listens any more, nobody misses anything.
#[derive(Clone)]
pub struct Events(Sender<Event>);

impl Events {
    pub fn new(sender: Sender<Event>) -> Events {
        Events(sender)
    }

    pub fn send(&self, event: Event) {
        let _ = self.0.send(event);
    }
}
