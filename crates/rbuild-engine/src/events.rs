//! The channel that events of a build are sent on. Relabels the steps of platforms, masks secrets,
//! and keeps the journal.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use rbuild_dockerfile::Help;
use rbuild_linux::parallel::locked;
use rbuild_plan::StepName;
use rbuild_sandbox::Stream;

use crate::event::{BuildPhase, Event, MAX_IN_FLIGHT, Meter, OutputChunk, OutputInFlight, Warning};
use crate::journal::Journal;
use crate::redact::SecretValues;

/// The sending end of a build's events. Sending never fails; without a receiver, events are
/// dropped.
#[derive(Clone)]
pub struct Events {
    sender: Sender<Event>,
    in_flight: Arc<OutputInFlight>,
    /// Number of phases that have started.
    phases: Arc<AtomicUsize>,
    /// Number of the first step of this platform.
    first: usize,
    /// Prefix of each step's label; empty if the build has one platform.
    platform: String,
    journal: Arc<Journal>,
    /// Values that are masked in the text of events.
    secrets: SecretValues,
    /// Converts the help of warnings to text, which can be masked.
    words: Option<fn(&Help) -> String>,
}

impl Events {
    /// Returns a sender without secrets to mask, for all steps of a build.
    pub fn new(sender: Sender<Event>) -> Events {
        let (in_flight, phases, first, platform, secrets, words) = Default::default();
        Events { sender, in_flight, phases, first, platform, journal: Arc::new(Journal::new()), secrets, words }
    }

    /// Masks these values in all text that is sent, and in the help of warnings, which `words`
    /// converts to text. Output is not masked here but where it is read, because a chunk may end in
    /// the middle of a value.
    pub fn masking(self, secrets: SecretValues, words: fn(&Help) -> String) -> Events {
        Events { secrets, words: Some(words), ..self }
    }

    /// Returns a sender for the steps of one of several platforms, distinguished by number and by
    /// label.
    pub fn of_platform(&self, first: usize, platform: &str) -> Events {
        Events { first, platform: format!("{platform} "), ..self.clone() }
    }

    /// Returns the number of the first step of this platform.
    pub(crate) fn first(&self) -> usize {
        self.first
    }

    /// Returns true if this is the sender of one of several platforms.
    pub(crate) fn is_of_several(&self) -> bool {
        !self.platform.is_empty()
    }

    /// Returns the label of a step, which begins with the platform if there are several.
    pub(crate) fn label(&self, name: &StepName) -> String {
        format!("{}{name}", self.platform)
    }

    /// Returns a message about the result, which begins with the platform if there are several.
    pub(crate) fn name_platform(&self, message: String) -> String {
        if self.is_of_several() { format!("[{}] {message}", self.platform.trim_end()) } else { message }
    }

    /// Sends an event: numbered and labeled for its platform, with secrets masked. Also adds it to
    /// the journal.
    pub fn send(&self, event: Event) {
        let step = |step: usize| self.first + step;
        let mask = |text| self.secrets.mask(text);
        let labeled = |label: String| mask(format!("{}{label}", self.platform));
        let event = match event {
            Event::Started { step: s, label, text } => {
                Event::Started { step: step(s), label: labeled(label), text: mask(text) }
            }
            Event::Waiting { step: s, label, text, inputs } => {
                let (label, inputs) = (labeled(label), inputs.into_iter().map(step).collect());
                Event::Waiting { step: step(s), label, text: mask(text), inputs }
            }
            Event::Reason { step: s, text } => Event::Reason { step: step(s), text: mask(text) },
            Event::Output { step: s, stream, bytes } => Event::Output { step: step(s), stream, bytes },
            Event::Done { step: s, outcome, seconds } => Event::Done { step: step(s), outcome, seconds },
            Event::Moving { step: s, meter } => Event::Moving { step: step(s), meter },
            Event::PhaseStarted { phase, text, meter } => Event::PhaseStarted { phase, text: mask(text), meter },
            Event::Phase { text, seconds } => Event::Phase { text: mask(text), seconds },
            Event::Warning(w) => {
                let masked = |help: Help| match self.words {
                    Some(words) => mask(words(&help)).into(),
                    None => help,
                };
                Event::Warning(Warning { text: mask(w.text), help: w.help.map(masked) })
            }
            other @ (Event::Isolation { .. }
            | Event::Total { .. }
            | Event::Pulling { .. }
            | Event::PhaseEnded { .. }
            | Event::Failed
            | Event::Interrupted) => other,
        };
        self.journal.note(&event);
        let _ = self.sender.send(event);
    }

    /// Reports work that took that many seconds.
    pub(crate) fn phase(&self, phase: BuildPhase, seconds: f64) {
        self.send(Event::Phase { text: phase.to_string(), seconds });
    }

    /// Reports work that begins. `total` is the number of bytes that it will move, if known.
    pub(crate) fn begin(&self, phase: BuildPhase, total: Option<u64>) -> RunningPhase<'_> {
        let number = self.phases.fetch_add(1, Ordering::Relaxed);
        let meter = Meter { total, ..Meter::default() };
        self.send(Event::PhaseStarted { phase: number, text: phase.to_string(), meter: meter.clone() });
        RunningPhase { events: self, number, started: Instant::now(), meter, is_complete: false }
    }

    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Sends a command's output. Blocks while more than `MAX_IN_FLIGHT` bytes are in flight.
    pub fn output(&self, step: usize, stream: Stream, bytes: Vec<u8>) {
        let mut taken = locked(&self.in_flight.taken);
        while *taken > MAX_IN_FLIGHT {
            taken = self.in_flight.freed.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken += bytes.len();
        drop(taken);
        // Without a receiver, the chunk is returned and dropped here.
        self.send(Event::Output {
            step,
            stream,
            bytes: OutputChunk { bytes, in_flight: Some(self.in_flight.clone()) },
        });
    }
}

/// Work that has begun. It ends with this value.
pub(crate) struct RunningPhase<'a> {
    events: &'a Events,
    number: usize,
    started: Instant,
    /// Counts the bytes that the work moves.
    pub meter: Meter,
    is_complete: bool,
}

impl RunningPhase<'_> {
    /// Reports the end of the work. Without this call, the work has failed.
    pub fn end(mut self) {
        self.is_complete = true;
    }
}

impl Drop for RunningPhase<'_> {
    fn drop(&mut self) {
        let seconds = self.is_complete.then(|| self.started.elapsed().as_secs_f64());
        self.events.send(Event::PhaseEnded { phase: self.number, seconds });
    }
}

#[cfg(test)]
mod tests {
    use rbuild_remedy::Remedy;

    use super::*;

    #[test]
    fn the_help_of_a_warning_is_masked() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let words = |help: &Help| match help {
            Help::Remedy(Remedy::DidYouMean { word }) => format!("did you mean {word}?"),
            help => panic!("{help:?}"),
        };
        let secrets = SecretValues::of(&[(String::new(), b"hunter2".to_vec())]);
        let help = Some(Remedy::did_you_mean("hunter2").into());
        let warning = Warning { text: "unknown secret `hunter2`".into(), help };
        Events::new(sender).masking(secrets, words).send(Event::Warning(warning));
        let Event::Warning(sent) = receiver.recv().unwrap() else { panic!() };
        let help = Some(Help::Text("did you mean ****?".into()));
        assert_eq!(sent, Warning { text: "unknown secret `****`".into(), help });
    }

    #[test]
    fn output_is_limited_by_the_drawing_thread() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let events = Events::new(sender);
        let in_flight = events.in_flight.clone();
        let writer = std::thread::spawn(move || {
            (0..200).for_each(|i| events.output(i, Stream::Stdout, vec![b'x'; 1 << 20]));
        });
        let mut most = 0;
        let mut count = 0;
        for event in &receiver {
            std::thread::sleep(std::time::Duration::from_micros(200));
            most = most.max(*in_flight.taken.lock().unwrap());
            count += usize::from(matches!(event, Event::Output { .. }));
        }
        writer.join().unwrap();
        assert_eq!((count, *in_flight.taken.lock().unwrap()), (200, 0));
        assert!(most <= MAX_IN_FLIGHT + (1 << 20), "{most} bytes were on the way");
        // Without a receiver, sending does not block.
        drop(receiver);
        let (sender, receiver) = std::sync::mpsc::channel();
        drop(receiver);
        let events = Events::new(sender);
        (0..20).for_each(|i| events.output(i, Stream::Stdout, vec![0; 1 << 20]));
    }
}
