//! What happens during a build, as text on standard error.

use std::collections::HashMap;
use std::sync::mpsc::Receiver;

use rbuild_engine::{Event, StepOutcome};
use rbuild_sandbox::Stream;

use crate::ui::diagnostics::first_line;
use crate::ui::terminal;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Tty,
    Plain,
    Quiet,
    RawJson,
    Groups(Service),
}

mod groups;
mod rawjson;
mod tty;

pub use groups::Service;

/// Draws until the last sender is gone; with `explain`, also why steps run.
pub fn draw(events: &Receiver<Event>, mode: Mode, explain: bool) {
    if mode == Mode::Tty {
        return tty::draw(events, explain);
    }
    let mut drawing = Drawing::default();
    let mut documents = rawjson::Documents::default();
    let mut groups = groups::Groups::new(if let Mode::Groups(service) = mode { service } else { Service::Github });
    for event in events {
        if matches!(event, Event::End) {
            return;
        }
        if matches!(event, Event::Why { .. }) && !explain {
            continue;
        }
        match mode {
            Mode::Plain => terminal::err(&drawing.plain(event)),
            Mode::RawJson => terminal::err(&documents.line(event, &jiff::Timestamp::now().to_string())),
            Mode::Groups(_) => terminal::err(&groups.text(event, groups::now())),
            Mode::Tty | Mode::Quiet => {}
        }
    }
}

/// The `#5 [builder 3/7] RUN …` form, whose numbers are dense in the order of first appearance.
#[derive(Default)]
struct Drawing {
    steps: HashMap<usize, Step>,
    count: usize,
    /// The step that the last line belongs to.
    last: Option<usize>,
}

struct Step {
    number: usize,
    header: String,
    started: std::time::Instant,
    /// Output without its line end yet, for each stream.
    partial: [Vec<u8>; 2],
}

/// A line without end is shown in pieces of this size.
const MAX_LINE: usize = 8192;

impl Drawing {
    fn plain(&mut self, event: Event) -> String {
        match event {
            Event::Isolation { rung } => format!("isolation: {rung}\n"),
            Event::Warning { text } => format!("warning: {text}\n"),
            Event::Waiting { .. } | Event::End => String::new(),
            Event::Phase { text, seconds } => {
                self.count += 1;
                self.last = None;
                format!("#{0} {text}\n#{0} DONE {seconds:.1}s\n\n", self.count)
            }
            Event::Started { step, label, text } => {
                self.count += 1;
                let header = format!("#{} [{label}] {}\n", self.count, first_line(&text));
                let gap = self.switch(step);
                let started = std::time::Instant::now();
                let new = Step { number: self.count, header: header.clone(), started, partial: Default::default() };
                self.steps.insert(step, new);
                gap + &header
            }
            Event::Output { step, stream, bytes } => {
                let lines = self.lines(step, stream, &bytes);
                if lines.is_empty() {
                    return lines;
                }
                self.headed(step, lines)
            }
            Event::Why { step, text } => {
                let Some(known) = self.steps.get(&step) else { return String::new() };
                let line = format!("#{} why: {text}\n", known.number);
                self.headed(step, line)
            }
            Event::Done { step, outcome, seconds } => {
                let rest = self.rest(step);
                let Some(known) = self.steps.get(&step) else { return rest };
                let word = match outcome {
                    StepOutcome::Done => format!("DONE {seconds:.1}s"),
                    StepOutcome::Cached => "CACHED".into(),
                    StepOutcome::Failed => "ERROR".into(),
                    StepOutcome::Cancelled => "CANCELED".into(),
                };
                let line = format!("{rest}#{} {word}\n", known.number);
                let text = self.headed(step, line);
                self.last = None;
                text + "\n"
            }
        }
    }

    /// A blank line when another step was speaking.
    fn switch(&mut self, step: usize) -> String {
        let other = self.last.is_some_and(|l| l != step);
        self.last = Some(step);
        if other { "\n".into() } else { String::new() }
    }

    /// Repeats the step's header if another one spoke since.
    fn headed(&mut self, step: usize, text: String) -> String {
        let again = self.last != Some(step);
        let gap = self.switch(step);
        match self.steps.get(&step) {
            Some(known) if again => format!("{gap}{}{text}", known.header),
            _ => gap + &text,
        }
    }

    fn lines(&mut self, step: usize, stream: Stream, bytes: &[u8]) -> String {
        let Some(known) = self.steps.get_mut(&step) else { return String::new() };
        let partial = &mut known.partial[usize::from(stream == Stream::Stderr)];
        partial.extend_from_slice(bytes);
        let end = match partial.iter().rposition(|b| *b == b'\n') {
            Some(end) => end + 1,
            None if partial.len() >= MAX_LINE => partial.len(),
            None => return String::new(),
        };
        let whole: Vec<u8> = partial.drain(..end).collect();
        let (number, seconds) = (known.number, known.started.elapsed().as_secs_f64());
        shown_lines(&whole, number, seconds)
    }

    fn rest(&mut self, step: usize) -> String {
        let Some(known) = self.steps.get_mut(&step) else { return String::new() };
        let (number, seconds) = (known.number, known.started.elapsed().as_secs_f64());
        known.partial.iter_mut().map(std::mem::take).map(|p| shown_lines(&p, number, seconds)).collect()
    }
}

fn shown_lines(bytes: &[u8], number: usize, seconds: f64) -> String {
    let text = String::from_utf8_lossy(bytes);
    let head = format!("#{number} {seconds:.3} ");
    let mut out = String::with_capacity(text.len() * 2);
    // Most output has nothing that is not to be passed on, which is told for all of it at once.
    let clean = !text.bytes().fold(false, |found, b| found | is_suspect(b));
    for line in text.lines() {
        out.push_str(&head);
        if clean {
            out.push_str(line);
        } else {
            // A line that redraws itself counts as what it last said. Other control characters are not passed on.
            let line = line.rsplit('\r').find(|p| !p.is_empty()).unwrap_or("");
            out.extend(line.chars().filter(|c| !c.is_control() || *c == '\t' || *c == '\u{1b}'));
        }
        out.push('\n');
    }
    out
}

/// Whether a byte is, or begins (0xC2), a control character that is not shown.
fn is_suspect(byte: u8) -> bool {
    (byte < b' ' && !matches!(byte, b'\t' | b'\n' | 0x1b)) || byte == 0x7f || byte == 0xc2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out(step: usize, text: &str) -> Event {
        Event::Output { step, stream: Stream::Stdout, bytes: text.into() }
    }

    fn start(step: usize, label: &str) -> Event {
        Event::Started { step, label: label.into(), text: "RUN x\nmore".into() }
    }

    #[test]
    fn lines_lose_their_control_characters_and_nothing_else() {
        let text = "plain\na\tb \u{1b}[1mbold\n50 %\r60 %\r\nbell\u{7} c1\u{85}! \u{7f}é\u{e9}Â\n\n";
        let lines = shown_lines(text.as_bytes(), 3, 1.0);
        assert_eq!(
            lines,
            "#3 1.000 plain\n#3 1.000 a\tb \u{1b}[1mbold\n#3 1.000 60 %\n#3 1.000 bell c1! ééÂ\n#3 1.000 \n"
        );
    }

    #[test]
    fn steps_that_speak_in_turn_are_headed_again() {
        let mut d = Drawing::default();
        let done = Event::Done { step: 3, outcome: StepOutcome::Done, seconds: 1.26 };
        let cached = Event::Done { step: 9, outcome: StepOutcome::Cached, seconds: 0.0 };
        let events =
            [start(3, "a 2/2"), out(3, "one\ntw"), start(9, "b 1/2"), out(3, "o\n"), cached, out(3, "end"), done];
        let text: String = events.into_iter().map(|e| d.plain(e)).collect();
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
