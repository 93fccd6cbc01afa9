use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use rbuild_sandbox::Stream;

use crate::ops::redact::SecretValues;
use crate::record::journal::Journal;

/// An event of a build. Events of one step arrive in order. Steps are identified by their vertex.
#[derive(Debug)]
pub enum Event {
    /// The isolation mode of commands; the first event of a build that runs any.
    Isolation {
        rung: &'static str,
    },
    /// A step will run once its `inputs` have finished. Sent once, before the first step runs.
    Waiting {
        step: usize,
        label: String,
        text: String,
        inputs: Vec<usize>,
    },
    /// A step starts; `label` is like `builder 3/7`.
    Started {
        step: usize,
        label: String,
        text: String,
    },
    /// A short explanation of why a step runs or is cached.
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
    /// A short description of work that is not a step of the Dockerfile.
    Phase {
        text: String,
        seconds: f64,
    },
    Warning {
        text: String,
    },
    /// No more progress may be drawn, because the terminal is about to be used by something else.
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

/// A chunk of a command's output. It counts against `ROOM` until it is dropped.
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

/// Counter of output bytes that were sent but not yet drawn.
#[derive(Debug, Default)]
struct Room {
    taken: Mutex<usize>,
    freed: Condvar,
}

/// Maximum bytes of output in flight. A command that prints faster than the terminal can draw has
/// to wait, as it would if it wrote to the terminal itself.
const ROOM: usize = 8 << 20;

/// The sending end of a build's events. Sending never fails; without a receiver, events are
/// dropped.
#[derive(Clone)]
pub struct Events {
    sender: Sender<Event>,
    room: Arc<Room>,
    /// Number of the first step of this part of the build.
    first: usize,
    /// Prefix of each step's label.
    platform: String,
    journal: Arc<Journal>,
    /// Values that are masked in the text of events.
    secrets: SecretValues,
}

impl Events {
    pub fn new(sender: Sender<Event>) -> Events {
        let (room, first, platform, secrets) = Default::default();
        Events { sender, room, first, platform, journal: Arc::new(Journal::new()), secrets }
    }

    /// Masks these values in all text that is sent. Output is not masked here: it arrives in chunks
    /// that may split a value, so the code that reads it masks it.
    pub fn masking(self, secrets: SecretValues) -> Events {
        Events { secrets, ..self }
    }

    /// Returns a sender for the steps of one of several platforms, distinguished by number and by
    /// label.
    pub fn of_platform(&self, first: usize, platform: &str) -> Events {
        Events { first, platform: format!("{platform} "), ..self.clone() }
    }

    /// Returns the number of the first step of this part.
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

    /// Sends a command's output. Blocks while more than `ROOM` bytes are in flight.
    pub fn output(&self, step: usize, stream: Stream, bytes: Vec<u8>) {
        let mut taken = self.room.taken.lock().unwrap_or_else(PoisonError::into_inner);
        while *taken > ROOM {
            taken = self.room.freed.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken += bytes.len();
        drop(taken);
        // Without a receiver, the chunk is returned and dropped here.
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
        // Without a receiver, sending does not block.
        drop(receiver);
        let (sender, receiver) = std::sync::mpsc::channel();
        drop(receiver);
        let events = Events::new(sender);
        (0..20).for_each(|i| events.output(i, Stream::Stdout, vec![0; 1 << 20]));
    }
}
