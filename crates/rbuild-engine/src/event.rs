use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use rbuild_sandbox::Stream;

use crate::journal::Journal;
use crate::mask::SecretValues;

/// What happens during a build, in order for each step. Steps are named by their vertex.
#[derive(Debug)]
pub enum Event {
    /// How commands are kept apart; the first event of a build that runs any.
    Isolation {
        rung: &'static str,
    },
    /// A step will run when these have ended; told once, when the build begins to run steps.
    Waiting {
        step: usize,
        label: String,
        text: String,
        inputs: Vec<usize>,
    },
    /// A step begins; `label` is `builder 3/7`.
    Started {
        step: usize,
        label: String,
        text: String,
    },
    /// Why a step runs or does not have to, in a few words.
    Why {
        step: usize,
        text: String,
    },
    Output {
        step: usize,
        stream: Stream,
        bytes: Chunk,
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
    /// Nothing more is to be drawn: somebody else uses the terminal.
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepOutcome {
    Done,
    Cached,
    Failed,
    Cancelled,
}

impl StepOutcome {
    pub(crate) fn word(self) -> &'static str {
        match self {
            StepOutcome::Done => "done",
            StepOutcome::Cached => "cached",
            StepOutcome::Failed => "failed",
            StepOutcome::Cancelled => "stopped",
        }
    }
}

/// A piece of what a command printed; it takes room on the way until it is dropped.
#[derive(Debug)]
pub struct Chunk {
    bytes: Vec<u8>,
    room: Option<Arc<Room>>,
}

impl std::ops::Deref for Chunk {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl From<&str> for Chunk {
    fn from(text: &str) -> Chunk {
        Chunk { bytes: text.into(), room: None }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Some(room) = &self.room {
            *room.taken.lock().unwrap_or_else(PoisonError::into_inner) -= self.bytes.len();
            room.freed.notify_all();
        }
    }
}

/// Output that was sent and that nobody has drawn yet.
#[derive(Debug, Default)]
struct Room {
    taken: Mutex<usize>,
    freed: Condvar,
}

/// Bytes of output that may be on the way: a command that prints faster than a terminal takes has to wait, as it would
/// on the terminal itself.
const ROOM: usize = 8 << 20;

/// The sending end. Sending never fails: when nobody listens any more, nobody misses anything.
#[derive(Clone)]
pub struct Events {
    sender: Sender<Event>,
    room: Arc<Room>,
    /// Where the steps of this part of the build begin.
    first: usize,
    /// Before the label of each.
    platform: String,
    journal: Arc<Journal>,
    /// What no text of an event shows.
    secrets: SecretValues,
}

impl Events {
    pub fn new(sender: Sender<Event>) -> Events {
        let (room, first, platform, secrets) = Default::default();
        Events { sender, room, first, platform, journal: Arc::new(Journal::new()), secrets }
    }

    /// Masks these values in every text that is sent. Output is masked by whoever reads it, as it comes in pieces.
    pub fn masking(self, secrets: SecretValues) -> Events {
        Events { secrets, ..self }
    }

    /// For the steps of one of several platforms, which are told apart by number and by label.
    pub fn of_platform(&self, first: usize, platform: &str) -> Events {
        Events { first, platform: format!("{platform} "), ..self.clone() }
    }

    /// Where the steps of this part begin.
    pub(crate) fn first(&self) -> usize {
        self.first
    }

    pub fn send(&self, event: Event) {
        let step = |step: usize| self.first + step;
        let mask = |text| self.secrets.mask(text);
        let event = match event {
            Event::Started { step: s, label, text } => {
                Event::Started { step: step(s), label: format!("{}{label}", self.platform), text: mask(text) }
            }
            Event::Waiting { step: s, label, text, inputs } => {
                let (label, inputs) = (format!("{}{label}", self.platform), inputs.into_iter().map(step).collect());
                Event::Waiting { step: step(s), label, text: mask(text), inputs }
            }
            Event::Why { step: s, text } => Event::Why { step: step(s), text: mask(text) },
            Event::Output { step: s, stream, bytes } => Event::Output { step: step(s), stream, bytes },
            Event::Done { step: s, outcome, seconds } => Event::Done { step: step(s), outcome, seconds },
            Event::Phase { text, seconds } => Event::Phase { text: mask(text), seconds },
            Event::Warning { text } => Event::Warning { text: mask(text) },
            other @ (Event::Isolation { .. } | Event::End) => other,
        };
        self.journal.note(&event);
        let _ = self.sender.send(event);
    }

    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Sends what a command printed; waits while too much is on the way.
    pub fn output(&self, step: usize, stream: Stream, bytes: Vec<u8>) {
        let mut taken = self.room.taken.lock().unwrap_or_else(PoisonError::into_inner);
        while *taken > ROOM {
            taken = self.room.freed.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken += bytes.len();
        drop(taken);
        // If nobody listens, the chunk comes back and is dropped here.
        self.send(Event::Output { step, stream, bytes: Chunk { bytes, room: Some(self.room.clone()) } });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_waits_for_whoever_draws() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let events = Events::new(sender);
        let room = events.room.clone();
        let writer = std::thread::spawn(move || {
            (0..200).for_each(|i| events.output(i, Stream::Stdout, vec![b'x'; 1 << 20]));
        });
        let mut most = 0;
        let mut count = 0;
        for event in &receiver {
            std::thread::sleep(std::time::Duration::from_micros(200));
            most = most.max(*room.taken.lock().unwrap());
            count += usize::from(matches!(event, Event::Output { .. }));
        }
        writer.join().unwrap();
        assert_eq!((count, *room.taken.lock().unwrap()), (200, 0));
        assert!(most <= ROOM + (1 << 20), "{most} bytes were on the way");
        // Nobody listens any more: nothing waits.
        drop(receiver);
        let (sender, receiver) = std::sync::mpsc::channel();
        drop(receiver);
        let events = Events::new(sender);
        (0..20).for_each(|i| events.output(i, Stream::Stdout, vec![0; 1 << 20]));
    }
}
