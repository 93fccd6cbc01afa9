//! Progress for CI logs: one collapsible group per step. Only one group is open at a time. Its
//! lines are printed as they arrive; those of other steps are printed after it has been closed.

use std::collections::HashMap;

use rbuild_engine::{Event, StepOutcome};

use crate::progress::lines::OutputLines;
use crate::ui::diagnostics::first_line;
use crate::ui::{terminal, workflow_commands};

/// CI service that shows the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    Github,
    Gitlab,
}

pub struct Groups {
    service: Service,
    steps: HashMap<usize, GroupStep>,
    count: usize,
    /// The step whose group is open.
    open: Option<usize>,
    /// Text of steps that have ended while the group of another step is open.
    ended: String,
    /// Descriptions of other work that is running, by number.
    phases: HashMap<usize, String>,
    colors: bool,
}

struct GroupStep {
    number: usize,
    title: String,
    started: u64,
    lines: OutputLines,
    /// Lines that are not printed yet.
    unprinted: String,
}

/// Maximum size in bytes of the unprinted lines of a step. The first ones are dropped first.
const MAX_UNPRINTED: usize = 4 << 20;

impl Groups {
    pub fn new(service: Service, colors: bool) -> Groups {
        let (steps, count, open, ended, phases) = Default::default();
        Groups { service, steps, count, open, ended, phases, colors }
    }

    /// Returns the text to print for an event. `now` is in seconds since the Unix epoch.
    pub fn text(&mut self, event: Event, now: u64) -> String {
        match event {
            Event::Isolation { mode } => self.quoted(format!("isolation: {mode}\n")),
            Event::Warning(w) if self.service == Service::Github => {
                workflow_commands::warning(terminal::warning_line(&w).as_str())
            }
            Event::Warning(w) => terminal::warning_text(&w, self.colors),
            Event::Phase { text, seconds } => self.quoted(format!("{text} ({seconds:.1}s)\n")),
            Event::Started { step, label, text } => {
                self.count += 1;
                let title = format!("[{label}] {}", first_line(&text));
                let lines = OutputLines::new(self.count);
                let new = GroupStep { number: self.count, title, started: now, lines, unprinted: String::new() };
                self.steps.insert(step, new);
                String::new()
            }
            Event::Output { step, stream, bytes } => {
                let lines = self.steps.get_mut(&step).map(|known| known.lines.push(stream, &bytes));
                self.print(step, lines.unwrap_or_default())
            }
            Event::Reason { step, text } => self.print(step, format!("why: {text}\n")),
            Event::Done { step, outcome, seconds } => self.end(step, outcome, seconds, now),
            Event::PhaseStarted { phase, text, .. } => {
                self.phases.insert(phase, text);
                String::new()
            }
            Event::PhaseEnded { phase, seconds } => match (self.phases.remove(&phase), seconds) {
                (Some(text), Some(seconds)) => self.quoted(format!("{text} ({seconds:.1}s)\n")),
                _ => String::new(),
            },
            Event::Waiting { .. }
            | Event::Total { .. }
            | Event::Moving { .. }
            | Event::Pulling { .. }
            | Event::Failed
            | Event::Interrupted => String::new(),
        }
    }

    /// Returns lines that do not begin with a command of the service.
    fn quoted(&self, text: String) -> String {
        match self.service {
            Service::Github => workflow_commands::quoted_lines(&text),
            Service::Gitlab => text,
        }
    }

    /// Returns the lines of a step if its group is open or can be opened; otherwise, keeps them.
    fn print(&mut self, step: usize, lines: String) -> String {
        let lines = self.quoted(lines);
        let Some(known) = self.steps.get_mut(&step).filter(|_| !lines.is_empty()) else { return String::new() };
        if self.open == Some(step) {
            return lines;
        }
        known.unprinted += &lines;
        let excess = known.unprinted.len().saturating_sub(MAX_UNPRINTED);
        if excess > 0 {
            let end = known.unprinted.as_bytes()[excess..].iter().position(|b| *b == b'\n');
            known.unprinted.drain(..end.map_or(excess, |end| excess + end + 1));
        }
        self.open_next()
    }

    /// Opens the group of the first step that has lines, unless one is open.
    fn open_next(&mut self) -> String {
        let waiting = self.steps.iter_mut().filter(|(_, step)| !step.unprinted.is_empty());
        let Some((id, step)) = waiting.min_by_key(|(_, step)| step.number).filter(|_| self.open.is_none()) else {
            return String::new();
        };
        self.open = Some(*id);
        let lines = std::mem::take(&mut step.unprinted);
        heading(self.service, step, "", &step.title) + &lines
    }

    /// Returns the end of the step, or keeps it while the group of another step is open.
    fn end(&mut self, id: usize, outcome: StepOutcome, seconds: f64, now: u64) -> String {
        let Some(mut step) = self.steps.remove(&id) else { return String::new() };
        let word = match outcome {
            StepOutcome::Done => format!("{seconds:.1}s"),
            StepOutcome::Cached => "CACHED".into(),
            StepOutcome::Failed => "ERROR".into(),
            StepOutcome::Canceled => "CANCELED".into(),
        };
        let title = self.quoted(format!("{} {word}", step.title));
        let lines = std::mem::take(&mut step.unprinted) + &self.quoted(step.lines.rest());
        let is_open = self.open == Some(id);
        let text = if is_open {
            lines + &ending(self.service, &step, &title, now)
        } else if lines.is_empty() {
            format!("{title}\n")
        } else {
            let folded = if outcome == StepOutcome::Failed { "" } else { "[collapsed=true]" };
            heading(self.service, &step, folded, &title) + &lines + &ending(self.service, &step, "", now)
        };
        if !is_open && self.open.is_some() {
            self.ended += &text;
            return String::new();
        }
        self.open = None;
        text + &std::mem::take(&mut self.ended) + &self.open_next()
    }
}

/// Returns the line that begins the group of a step. Only GitLab's format states whether to fold
/// it.
fn heading(service: Service, step: &GroupStep, folded: &str, title: &str) -> String {
    match service {
        Service::Github => workflow_commands::group(title),
        Service::Gitlab => {
            format!("\x1b[0Ksection_start:{}:rbuild_{}{folded}\r\x1b[0K{title}\n", step.started, step.number)
        }
    }
}

/// Returns the line that ends the group of a step, and the title after it if there is one.
fn ending(service: Service, step: &GroupStep, title: &str, now: u64) -> String {
    match service {
        Service::Github if title.is_empty() => "::endgroup::\n".into(),
        Service::Github => format!("::endgroup::\n{title}\n"),
        Service::Gitlab => format!("\x1b[0Ksection_end:{now}:rbuild_{}\r\x1b[0K{title}\n", step.number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rbuild_sandbox::Stream;

    fn play(service: Service) -> String {
        let mut groups = Groups::new(service, false);
        let output = |step, text: &str| Event::Output { step, stream: Stream::Stdout, bytes: text.into() };
        let started = |step, label: &str| Event::Started { step, label: label.into(), text: "RUN make\nmore".into() };
        let done = |step, outcome| Event::Done { step, outcome, seconds: 1.5 };
        let events = [
            started(1, "a 1/2"),
            output(1, "one\n"),
            started(2, "b 1/1"),
            output(1, "two\n::error::no command\n"),
            done(2, StepOutcome::Cached),
            started(3, "c 1/1"),
            output(3, "x\n"),
            started(4, "d 1/1"),
            output(4, "y\n"),
            done(3, StepOutcome::Done),
            output(1, "half"),
            done(1, StepOutcome::Failed),
            output(4, "z\n"),
            done(4, StepOutcome::Canceled),
            Event::Warning("100 %\nsure".into()),
            Event::PhaseStarted { phase: 0, text: "packing layers".into(), meter: Default::default() },
            Event::PhaseEnded { phase: 0, seconds: Some(1.0) },
        ];
        let text: String = events.into_iter().map(|e| groups.text(e, 77)).collect();
        let timeless = |line: &str| match line.split(' ').nth(1) {
            Some(time) if line.starts_with('#') => line.replacen(time, "T", 1) + "\n",
            _ => line.to_string() + "\n",
        };
        text.split_terminator('\n').map(timeless).collect()
    }

    #[test]
    fn groups_of_steps_are_as_recorded() {
        rbuild_testkit::assert_recorded!("progress-github", play(Service::Github));
        let visible = play(Service::Gitlab).replace('\u{1b}', "ESC").replace('\r', "CR");
        rbuild_testkit::assert_recorded!("progress-gitlab", visible);
    }

    #[test]
    fn lines_are_printed_as_they_arrive_with_their_own_times() {
        let mut groups = Groups::new(Service::Github, false);
        groups.text(Event::Started { step: 1, label: "1/1".into(), text: "RUN make".into() }, 77);
        let mut output =
            |text: &str| groups.text(Event::Output { step: 1, stream: Stream::Stdout, bytes: text.into() }, 77);
        let first = output("one\n");
        std::thread::sleep(std::time::Duration::from_millis(20));
        let second = output("two\n");
        assert!(first.starts_with("::group::[1/1] RUN make\n#1 0.0"), "{first}");
        let time = |text: &str| text.lines().last()?.split(' ').nth(1)?.parse::<f64>().ok();
        assert!(time(&second) >= time(&first).map(|time| time + 0.02), "{first}{second}");
    }
}
