//! Progress for CI logs: one collapsible group per step, in the order in which steps end.

use std::collections::HashMap;

use rbuild_engine::{Event, StepOutcome};
use rbuild_linux::Timestamp;

use crate::progress::lines::shown_lines;
use crate::ui::diagnostics::first_line;
use crate::ui::terminal;

/// CI service that shows the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    Github,
    Gitlab,
}

pub struct Groups {
    service: Service,
    steps: HashMap<usize, Step>,
    count: usize,
}

struct Step {
    number: usize,
    title: String,
    started: u64,
    output: Vec<u8>,
}

/// Maximum output kept per step in bytes. The beginning is dropped first.
const MAX_OUTPUT: usize = 4 << 20;

impl Groups {
    pub fn new(service: Service) -> Groups {
        Groups { service, steps: HashMap::new(), count: 0 }
    }

    /// Returns the text to print for an event. `now` is in seconds since the Unix epoch.
    pub fn text(&mut self, event: Event, now: u64) -> String {
        match event {
            Event::Isolation { rung } => format!("isolation: {rung}\n"),
            Event::Warning(w) if self.service == Service::Github => {
                format!("::warning::{}\n", escaped(terminal::warning_line(&w).as_str()))
            }
            Event::Warning(w) => terminal::warning_text(&w, false),
            Event::Phase { text, seconds } => format!("{text} ({seconds:.1}s)\n"),
            Event::Started { step, label, text } => {
                self.count += 1;
                let title = format!("[{label}] {}", first_line(&text));
                self.steps.insert(step, Step { number: self.count, title, started: now, output: Vec::new() });
                String::new()
            }
            Event::Output { step, bytes, .. } => {
                if let Some(step) = self.steps.get_mut(&step) {
                    step.output.extend_from_slice(&bytes);
                    let excess = step.output.len().saturating_sub(MAX_OUTPUT);
                    step.output.drain(..excess);
                }
                String::new()
            }
            Event::Why { step, text } => {
                if let Some(step) = self.steps.get_mut(&step) {
                    step.output.extend_from_slice(format!("why: {text}\n").as_bytes());
                }
                String::new()
            }
            Event::Done { step, outcome, seconds } => {
                self.steps.remove(&step).map_or(String::new(), |step| self.group(&step, outcome, seconds, now))
            }
            Event::Waiting { .. } | Event::End => String::new(),
        }
    }

    fn group(&self, step: &Step, outcome: StepOutcome, seconds: f64, now: u64) -> String {
        let end = match outcome {
            StepOutcome::Done => format!("{seconds:.1}s"),
            StepOutcome::Cached => "CACHED".into(),
            StepOutcome::Failed => "ERROR".into(),
            StepOutcome::Cancelled => "CANCELED".into(),
        };
        let Step { number, title, started, output } = step;
        if output.is_empty() {
            return format!("{title} {end}\n");
        }
        let lines = shown_lines(output, *number, seconds);
        match (self.service, outcome) {
            (Service::Github, StepOutcome::Failed) => {
                format!("::group::{title} {end}\n{lines}::endgroup::\n::error::{title} failed\n")
            }
            (Service::Github, _) => format!("::group::{title} {end}\n{lines}::endgroup::\n"),
            (Service::Gitlab, outcome) => {
                let fold = if outcome == StepOutcome::Failed { "" } else { "[collapsed=true]" };
                let (start, stop) = ("\x1b[0Ksection_start", "\x1b[0Ksection_end");
                format!(
                    "{start}:{started}:rbuild_{number}{fold}\r\x1b[0K{title} {end}\n{lines}{stop}:{now}:rbuild_{number}\r\x1b[0K\n"
                )
            }
        }
    }
}

/// Escapes a message of a workflow command, which must be one line.
fn escaped(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

pub fn now() -> u64 {
    Timestamp::now().sec.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rbuild_sandbox::Stream;

    fn play(service: Service) -> String {
        let mut groups = Groups::new(service);
        let output = |step, text: &str| Event::Output { step, stream: Stream::Stdout, bytes: text.into() };
        let started = |step, label: &str| Event::Started { step, label: label.into(), text: "RUN make\nmore".into() };
        let done = |step, outcome| Event::Done { step, outcome, seconds: 1.5 };
        let events = [
            started(1, "a 1/2"),
            output(1, "one\n"),
            started(2, "b 1/1"),
            output(1, "two\n::error::no command\n"),
            done(2, StepOutcome::Cached),
            output(1, "half"),
            done(1, StepOutcome::Failed),
            Event::Warning("100 %\nsure".into()),
        ];
        events.into_iter().map(|e| groups.text(e, 77)).collect()
    }

    #[test]
    fn steps_are_groups_and_their_output_is_not_a_command() {
        assert_eq!(
            play(Service::Github),
            "[b 1/1] RUN make CACHED\n::group::[a 1/2] RUN make ERROR\n#1 1.500 one\n#1 1.500 two\n#1 1.500 ::error::no command\n\
             #1 1.500 half\n::endgroup::\n::error::[a 1/2] RUN make failed\n::warning::100 %25%0Asure\n"
        );
        let text = play(Service::Gitlab);
        assert!(
            text.contains("\x1b[0Ksection_start:77:rbuild_1\r\x1b[0K[a 1/2] RUN make ERROR\n#1 1.500 one\n"),
            "{text:?}"
        );
        assert!(text.ends_with("\x1b[0Ksection_end:77:rbuild_1\r\x1b[0K\nwarning: 100 %\nsure\n"), "{text:?}");
    }
}
