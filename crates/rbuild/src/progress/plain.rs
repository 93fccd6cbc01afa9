//! Plain progress: `#5 [builder 3/7] RUN …`, then numbered lines of output.

use std::collections::HashMap;

use rbuild_engine::{Event, StepOutcome};

use crate::progress::lines::OutputLines;
use crate::ui::diagnostics::first_line;
use crate::ui::terminal;

/// State of the plain form. Steps are numbered without gaps in order of first appearance.
#[derive(Default)]
pub struct Plain {
    steps: HashMap<usize, PlainStep>,
    count: usize,
    /// The step that the last line belongs to.
    last: Option<usize>,
}

struct PlainStep {
    number: usize,
    header: String,
    lines: OutputLines,
}

impl Plain {
    /// Returns the text to print for an event.
    pub fn text(&mut self, event: Event) -> String {
        match event {
            Event::Isolation { mode } => format!("isolation: {mode}\n"),
            Event::Warning(w) => terminal::warning_text(&w, false),
            Event::Waiting { .. } | Event::Pulling { .. } | Event::Failed => String::new(),
            Event::Phase { text, seconds } => {
                self.count += 1;
                self.last = None;
                format!("#{0} {text}\n#{0} DONE {seconds:.1}s\n\n", self.count)
            }
            Event::Started { step, label, text } => {
                self.count += 1;
                let header = format!("#{} [{label}] {}\n", self.count, first_line(&text));
                let gap = self.switch(step);
                let lines = OutputLines::new(self.count);
                self.steps.insert(step, PlainStep { number: self.count, header: header.clone(), lines });
                gap + &header
            }
            Event::Output { step, stream, bytes } => {
                let lines = self.steps.get_mut(&step).map_or(String::new(), |known| known.lines.push(stream, &bytes));
                if lines.is_empty() {
                    return lines;
                }
                self.headed(step, lines)
            }
            Event::Reason { step, text } => {
                let Some(known) = self.steps.get(&step) else { return String::new() };
                let line = format!("#{} why: {text}\n", known.number);
                self.headed(step, line)
            }
            Event::Done { step, outcome, seconds } => {
                let Some(known) = self.steps.get_mut(&step) else { return String::new() };
                let rest = known.lines.rest();
                let word = match outcome {
                    StepOutcome::Done => format!("DONE {seconds:.1}s"),
                    StepOutcome::Cached => "CACHED".into(),
                    StepOutcome::Failed => "ERROR".into(),
                    StepOutcome::Canceled => "CANCELED".into(),
                };
                let line = format!("{rest}#{} {word}\n", known.number);
                let text = self.headed(step, line);
                self.last = None;
                text + "\n"
            }
        }
    }

    /// Makes `step` the current one; returns a blank line if the last line belongs to another step.
    fn switch(&mut self, step: usize) -> String {
        let other = self.last.is_some_and(|l| l != step);
        self.last = Some(step);
        if other { "\n".into() } else { String::new() }
    }

    /// Prepends the step's header if the last line belongs to another step.
    fn headed(&mut self, step: usize, text: String) -> String {
        let again = self.last != Some(step);
        let gap = self.switch(step);
        match self.steps.get(&step) {
            Some(known) if again => format!("{gap}{}{text}", known.header),
            _ => gap + &text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rbuild_sandbox::Stream;

    fn out(step: usize, text: &str) -> Event {
        Event::Output { step, stream: Stream::Stdout, bytes: text.into() }
    }

    fn start(step: usize, label: &str) -> Event {
        Event::Started { step, label: label.into(), text: "RUN x\nmore".into() }
    }

    #[test]
    fn alternating_steps_repeat_their_headers() {
        let mut d = Plain::default();
        let done = Event::Done { step: 3, outcome: StepOutcome::Done, seconds: 1.26 };
        let cached = Event::Done { step: 9, outcome: StepOutcome::Cached, seconds: 0.0 };
        let events =
            [start(3, "a 2/2"), out(3, "one\ntw"), start(9, "b 1/2"), out(3, "o\n"), cached, out(3, "end"), done];
        let text: String = events.into_iter().map(|e| d.text(e)).collect();
        let timeless: String = text
            .lines()
            .map(|l| match l.split_whitespace().nth(1) {
                Some(n) if n.parse::<f64>().is_ok() => l.replacen(n, "T", 1) + "\n",
                _ => l.to_string() + "\n",
            })
            .collect();
        assert_eq!(
            timeless,
            "#1 [a 2/2] RUN x\n#1 T one\n\n#2 [b 1/2] RUN x\n\n#1 [a 2/2] RUN x\n#1 T two\n\n#2 [b 1/2] RUN x\n\
             #2 CACHED\n\n#1 [a 2/2] RUN x\n#1 T end\n#1 DONE 1.3s\n\n"
        );
    }
}
