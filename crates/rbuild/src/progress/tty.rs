//! Progress on a terminal: finished steps scroll up; running steps stay at the bottom with their
//! last lines of output.

use rbuild_remedy::counted;
use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rbuild_engine::{Event, StepOutcome};
use rbuild_image::human_size;

use crate::ui::columns::{cut, pad, width};
use crate::ui::diagnostics::first_line;
use crate::ui::terminal;

/// Lines of output shown per running step.
const TAIL: usize = 4;
/// Maximum number of running steps shown with output; the rest are counted.
const SHOWN: usize = 6;
/// Maximum number of waiting steps shown; the rest are counted.
const WAITS_SHOWN: usize = 3;
const FRAME: Duration = Duration::from_millis(100);

struct Running {
    label: String,
    title: String,
    started: Instant,
    tail: VecDeque<String>,
    partial: Vec<u8>,
    reason: Option<String>,
}

/// A step whose inputs are not ready.
struct Waiting {
    label: String,
    title: String,
    inputs: Vec<usize>,
}

/// A line that scrolls up and is not drawn again.
struct FinishedLine {
    text: String,
    /// Duration in seconds, shown on the right.
    time: Option<f64>,
}

/// State of the redrawn part of the screen.
pub struct Screen {
    started: Instant,
    running: BTreeMap<usize, Running>,
    waiting: BTreeMap<usize, Waiting>,
    /// Images that are being pulled: number of bytes that have arrived, and total size in bytes.
    pulls: BTreeMap<String, (u64, u64)>,
    done: usize,
    cached: usize,
    failed: bool,
    /// True if a step has ended.
    ended: bool,
    /// Final lines that are not yet written.
    finished: Vec<FinishedLine>,
    /// Height of the redrawn part in lines.
    height: usize,
}

/// Draws until [`Event::Failed`] or until all senders have been dropped.
pub fn draw(events: &Receiver<Event>, explain: bool) {
    let mut screen = Screen::new();
    let mut drawn = Instant::now() - FRAME;
    loop {
        let open = match events.recv_timeout(FRAME) {
            Ok(Event::Reason { .. }) if !explain => true,
            Ok(event) => {
                let open = !matches!(event, Event::Failed);
                screen.take(event);
                open
            }
            Err(RecvTimeoutError::Timeout) => true,
            Err(RecvTimeoutError::Disconnected) => false,
        };
        if !open || drawn.elapsed() >= FRAME {
            let (rows, columns) = rbuild_linux::terminal::terminal_size().unwrap_or((24, 80));
            terminal::err(&screen.frame(rows, columns, open));
            drawn = Instant::now();
        }
        if !open {
            return;
        }
    }
}

impl Screen {
    pub fn new() -> Screen {
        Screen {
            started: Instant::now(),
            running: BTreeMap::new(),
            waiting: BTreeMap::new(),
            pulls: BTreeMap::new(),
            done: 0,
            cached: 0,
            failed: false,
            ended: false,
            finished: Vec::new(),
            height: 0,
        }
    }

    /// Updates the state with an event.
    pub fn take(&mut self, event: Event) {
        match event {
            Event::Isolation { mode } => self.print(&format!("isolation: {mode}")),
            Event::Failed => self.failed = true,
            Event::Pulling { image, moved, total } if moved < total => drop(self.pulls.insert(image, (moved, total))),
            Event::Pulling { image, .. } => drop(self.pulls.remove(&image)),
            Event::Warning(w) => self.print(&terminal::warning_text(&w, terminal::colors())),
            Event::Phase { text, seconds } => self.finish("=>", &text, Some(seconds)),
            Event::Waiting { step, label, text, inputs } => {
                let title = format!("[{label}] {}", first_line(&text));
                self.waiting.insert(step, Waiting { label, title, inputs });
            }
            Event::Started { step, label, text } => {
                self.waiting.remove(&step);
                let title = format!("[{label}] {}", first_line(&text));
                let (tail, partial) = Default::default();
                let running = Running { label, title, started: Instant::now(), tail, partial, reason: None };
                self.running.insert(step, running);
            }
            Event::Reason { step, text } => {
                if let Some(running) = self.running.get_mut(&step) {
                    running.reason = Some(text);
                }
            }
            Event::Output { step, bytes, .. } => {
                if let Some(running) = self.running.get_mut(&step) {
                    running.append(&bytes);
                }
            }
            Event::Done { step, outcome, seconds } => {
                let Some(running) = self.running.remove(&step) else { return };
                self.ended = true;
                self.done += usize::from(matches!(outcome, StepOutcome::Done | StepOutcome::Cached));
                match outcome {
                    StepOutcome::Done => self.finish("=>", &running.title, Some(seconds)),
                    StepOutcome::Cached => {
                        self.cached += 1;
                        self.finish("=> CACHED", &running.title, None);
                    }
                    StepOutcome::Failed => {
                        self.failed = true;
                        self.finish("=> ERROR", &running.title, Some(seconds));
                    }
                    StepOutcome::Canceled => {
                        self.failed = true;
                        self.finish("=> CANCELED", &running.title, None);
                    }
                }
                if let Some(reason) = &running.reason {
                    self.finish("   why:", reason, None);
                }
            }
        }
    }

    fn finish(&mut self, mark: &str, title: &str, time: Option<f64>) {
        self.finished.push(FinishedLine { text: format!(" {mark} {}", plain(title)), time });
    }

    /// Adds the lines of a text that may contain colors. Tabs become blanks, because their width
    /// depends on their column.
    fn print(&mut self, text: &str) {
        let line = |line: &str| FinishedLine { text: line.replace('\t', " "), time: None };
        self.finished.extend(text.lines().map(line));
    }

    /// Returns the text that updates the screen: it erases the old lower part and prints the
    /// finished lines and the new lower part. `more` is false for the last frame.
    pub fn frame(&mut self, rows: usize, columns: usize, more: bool) -> String {
        let mut out = String::new();
        if self.height > 0 {
            out.push_str(&format!("\x1b[{}A\x1b[J", self.height));
        }
        for FinishedLine { text, time } in std::mem::take(&mut self.finished) {
            out.push_str(&match time {
                Some(seconds) => spread(&text, &format!("{seconds:.1}s"), columns),
                None => cut(&text, columns),
            });
            out.push('\n');
        }
        let seconds = self.started.elapsed().as_secs_f64();
        let cached = if self.cached > 0 { format!(", {} cached", self.cached) } else { String::new() };
        let state = match (more, self.failed) {
            (true, _) => "Building",
            (false, false) => "Built in",
            (false, true) => "Failed after",
        };
        let s = if self.done == 1 { "" } else { "s" };
        let mut lines = vec![format!("[+] {state} {seconds:.1}s, {} step{s} done{cached}", self.done)];
        if !more && self.failed && !self.ended {
            // Only the error is of interest.
            lines.clear();
        }
        if more {
            // On a small terminal, show less output: lines that scroll away cannot be redrawn.
            let room = rows.saturating_sub(3);
            let shown = self.running.len().min(SHOWN).min(room);
            let tail = (room.saturating_sub(shown) / shown.max(1)).min(TAIL);
            for running in self.running.values().take(shown) {
                let time = format!("{:.1}s", running.started.elapsed().as_secs_f64());
                lines.push(spread(&format!(" => {}", plain(&running.title)), &time, columns));
                let said = running.tail.len().saturating_sub(tail);
                lines.extend(running.tail.iter().skip(said).map(|l| cut(&format!(" => => {l}"), columns)));
            }
            if self.running.len() > shown && room > 0 {
                lines.push(format!(" => and {}", counted((self.running.len() - shown) as u64, "more step")));
            }
            let free = rows.saturating_sub(lines.len() + 1);
            lines.extend(self.pulls.iter().take(free).map(|(image, (moved, total))| {
                let text = format!(" => pulling {}", plain(image));
                spread(&text, &format!("{} of {}", human_size(*moved), human_size(*total)), columns)
            }));
            let free = rows.saturating_sub(lines.len() + 1);
            lines.extend(self.waits(free));
        }
        self.height = if more { lines.len() } else { 0 };
        for line in lines {
            out.push_str(&cut(&line, columns));
            out.push('\n');
        }
        out
    }
}

impl Screen {
    /// Returns at most `most` lines about the next steps and the inputs for which they wait.
    fn waits(&self, most: usize) -> Vec<String> {
        // Steps without a running input start later.
        let next = |waiting: &&Waiting| waiting.inputs.iter().any(|input| self.running.contains_key(input));
        let shown = most.saturating_sub(1).min(WAITS_SHOWN);
        let mut lines: Vec<String> = Vec::new();
        for waiting in self.waiting.values().filter(next).take(shown) {
            let running = |input: &usize| self.running.get(input).map(|running| &running.label);
            let open = |input| running(input).or_else(|| self.waiting.get(input).map(|waiting| &waiting.label));
            let inputs: Vec<String> =
                waiting.inputs.iter().filter_map(open).map(|label| format!("[{label}]")).collect();
            lines.push(format!(" .. {} waits for {}", plain(&waiting.title), plain(&inputs.join(", "))));
        }
        let rest = self.waiting.len() - lines.len();
        if rest > 0 && lines.len() < most {
            let more = if lines.is_empty() { "" } else { "more " };
            lines.push(format!(" .. {rest} {more}step{} to come", if rest == 1 { "" } else { "s" }));
        }
        lines
    }
}

impl Running {
    /// Appends output to the last lines shown for the step.
    fn append(&mut self, bytes: &[u8]) {
        self.partial.extend_from_slice(bytes);
        let Some(end) = self.partial.iter().rposition(|b| matches!(b, b'\n' | b'\r')) else {
            // Keep only the end of a line without a newline.
            let excess = self.partial.len().saturating_sub(4096);
            self.partial.drain(..excess);
            return;
        };
        let whole: Vec<u8> = self.partial.drain(..=end).collect();
        let text = String::from_utf8_lossy(&whole);
        let lines: Vec<&str> = text.split(['\n', '\r']).filter(|l| !l.trim().is_empty()).collect();
        for line in &lines[lines.len().saturating_sub(TAIL)..] {
            self.tail.push_back(plain(line));
            if self.tail.len() > TAIL {
                self.tail.pop_front();
            }
        }
    }
}

/// Removes escape sequences and control characters.
fn plain(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' if chars.peek() == Some(&'[') => {
                chars.next();
                while chars.next().is_some_and(|c| !c.is_ascii_alphabetic() && c != '~') {}
            }
            '\t' => out.push(' '),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

/// Returns a line with the text on the left and the time on the right.
fn spread(text: &str, time: &str, columns: usize) -> String {
    let room = columns.saturating_sub(width(time) + 1);
    format!("{}{time}", pad(&cut(text, room), room + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rbuild_sandbox::Stream;

    fn output(step: usize, text: &str) -> Event {
        Event::Output { step, stream: Stream::Stdout, bytes: text.into() }
    }

    /// Returns the lines of a frame without trailing spaces.
    fn lines(screen: &mut Screen, rows: usize, columns: usize) -> Vec<String> {
        let text = screen.frame(rows, columns, true);
        text.lines().map(|l| l.trim_end().to_string()).collect()
    }

    /// The error of a build follows, so a build without steps must not be reported as built.
    #[test]
    fn the_last_line_of_a_failed_build_counts_only_steps_that_ended() {
        let done = || Event::Done { step: 1, outcome: StepOutcome::Cached, seconds: 0.0 };
        let started = || Event::Started { step: 1, label: "a 1/2".into(), text: "RUN make".into() };
        let pulling = || Event::Pulling { image: "a".into(), moved: 1, total: 2 };
        for (events, want) in [
            (vec![Event::Failed], ""),
            (vec![pulling(), Event::Failed], ""),
            (vec![started(), Event::Failed], ""),
            (vec![], "[+] Built in 0.0s, 0 steps done\n"),
            (vec![started(), done(), Event::Failed], "[+] Failed after 0.0s, 1 step done, 1 cached\n"),
        ] {
            let mut screen = Screen::new();
            events.into_iter().for_each(|event| screen.take(event));
            screen.finished.clear();
            assert_eq!(screen.frame(24, 80, false), want);
        }
    }

    #[test]
    fn finished_steps_scroll_up_and_running_steps_are_redrawn() {
        let mut screen = Screen::new();
        screen.take(Event::Started { step: 1, label: "a 1/2".into(), text: "RUN make\nmore".into() });
        screen.take(Event::Started { step: 2, label: "b 1/1".into(), text: "COPY x y".into() });
        screen.take(output(1, "one\ntwo\n\x1b[31mred\x1b[0m\nprogress 1%\rprogress 99%\rhalf"));
        let frame = lines(&mut screen, 24, 40);
        assert!(frame[0].starts_with("[+] Building 0."), "{frame:?}");
        assert!(frame[1].starts_with(" => [a 1/2] RUN make") && frame[1].ends_with('s'), "{frame:?}");
        assert_eq!(frame[2..6], [" => => two", " => => red", " => => progress 1%", " => => progress 99%"]);
        assert!(frame[6].starts_with(" => [b 1/1] COPY x y"));
        screen.take(Event::Done { step: 2, outcome: StepOutcome::Cached, seconds: 0.0 });
        screen.take(Event::Done { step: 1, outcome: StepOutcome::Done, seconds: 12.34 });
        let frame = lines(&mut screen, 24, 40);
        // Seven lines up, erase everything below, then the finished steps.
        assert_eq!(frame[0], "\x1b[7A\x1b[J => CACHED [b 1/1] COPY x y");
        assert_eq!(frame[1], " => [a 1/2] RUN make               12.3s");
        assert!(frame[2].contains("2 steps done, 1 cach"), "{frame:?}");
        let end = screen.frame(24, 40, false);
        assert!(end.starts_with("\x1b[1A\x1b[J[+] Built in"), "{end:?}");
    }

    #[test]
    fn waiting_steps_name_their_inputs() {
        let mut screen = Screen::new();
        let waiting = |step: usize, label: &str, inputs: &[usize]| Event::Waiting {
            step,
            label: label.into(),
            text: "COPY --from=a /x /".into(),
            inputs: inputs.to_vec(),
        };
        screen.take(waiting(3, "c 1/2", &[1, 2]));
        screen.take(waiting(4, "c 2/2", &[3]));
        screen.take(Event::Started { step: 1, label: "a 1/1".into(), text: "RUN one".into() });
        screen.take(Event::Started { step: 2, label: "b 1/1".into(), text: "RUN two".into() });
        let frame = lines(&mut screen, 24, 80);
        assert_eq!(
            frame[3..],
            [" .. [c 1/2] COPY --from=a /x / waits for [a 1/1], [b 1/1]", " .. 1 more step to come"]
        );
        screen.take(Event::Done { step: 1, outcome: StepOutcome::Done, seconds: 1.0 });
        let frame = lines(&mut screen, 24, 80);
        assert_eq!(frame[3..], [" .. [c 1/2] COPY --from=a /x / waits for [b 1/1]", " .. 1 more step to come"]);
        screen.take(Event::Done { step: 2, outcome: StepOutcome::Done, seconds: 1.0 });
        screen.take(Event::Started { step: 3, label: "c 1/2".into(), text: "COPY".into() });
        let frame = lines(&mut screen, 24, 80);
        assert_eq!(frame[3..], [" .. [c 2/2] COPY --from=a /x / waits for [c 1/2]"]);
    }

    #[test]
    fn frames_are_as_recorded() {
        let started = |step, label: &str| Event::Started { step, label: label.into(), text: "RUN make\nmore".into() };
        let done = |step, outcome| Event::Done { step, outcome, seconds: 12.34 };
        let waiting = |step, inputs: &[usize]| Event::Waiting {
            step,
            label: format!("w {step}"),
            text: "COPY".into(),
            inputs: inputs.to_vec(),
        };
        let mut screen = Screen::new();
        let mut text = String::new();
        for (events, more) in [
            (vec![Event::Isolation { mode: "userns" }, started(1, "a 1/2"), output(1, "one\ntwo\n")], true),
            (vec![waiting(2, &[1]), waiting(3, &[2])], true),
            (vec![Event::Reason { step: 1, text: "the command changed".into() }, done(1, StepOutcome::Cached)], true),
            (
                vec![Event::Warning("a warning".into()), Event::Phase { text: "packing layers".into(), seconds: 1.0 }],
                true,
            ),
            ((4..12).map(|step| started(step, "many")).collect(), true),
            (vec![Event::Pulling { image: "debian".into(), moved: 1_500_000, total: 50_000_000 }], true),
            (vec![done(4, StepOutcome::Done), done(5, StepOutcome::Done)], false),
            (vec![done(6, StepOutcome::Failed), done(7, StepOutcome::Canceled)], false),
            (
                vec![
                    Event::Warning("a warning\twith a tab".into()),
                    Event::Started { step: 12, label: "tab".into(), text: "RUN a\tb".into() },
                    Event::Started { step: 13, label: "広い".into(), text: "RUN echo 幅".into() },
                    output(13, &"広い".repeat(20)),
                    output(13, "\n"),
                ],
                true,
            ),
            (vec![done(12, StepOutcome::Done), done(13, StepOutcome::Done)], false),
        ] {
            events.into_iter().for_each(|event| screen.take(event));
            let frame = screen.frame(24, 60, more).replace('\u{1b}', "ESC");
            let timeless =
                |line: &str| line.split(' ').map(timeless).collect::<Vec<_>>().join(" ").trim_end().to_string();
            text += &frame.lines().map(|line| timeless(line) + "\n").collect::<String>();
            text += "---\n";
        }
        rbuild_testkit::assert_recorded!("progress-tty", text);
    }

    /// Replaces a word that is a time.
    fn timeless(word: &str) -> &str {
        let number = word.trim_end_matches(',').strip_suffix('s').and_then(|number| number.parse::<f64>().ok());
        if number.is_some() { "[time]" } else { word }
    }

    #[test]
    fn frames_fit_the_terminal() {
        for (rows, columns) in [(24, 80), (6, 20), (3, 10), (1, 1)] {
            let mut screen = Screen::new();
            for step in 0..30 {
                screen.take(Event::Started { step, label: format!("stage {step}/30"), text: "RUN x".repeat(40) });
                screen.take(output(step, &"long output ".repeat(20)));
                screen.take(output(step, &"広い".repeat(40)));
                screen.take(output(step, "\nand more\nand more\nand more\nand more\n"));
                let (label, text, inputs) = (format!("next {step}"), "COPY x".repeat(30), vec![step]);
                screen.take(Event::Waiting { step: 100 + step, label, text, inputs });
            }
            let frame = lines(&mut screen, rows, columns);
            assert!(frame.len() <= rows.max(2), "{rows}: {}", frame.len());
            assert!(frame.iter().all(|l| width(l) <= columns), "{columns}: {frame:?}");
        }
    }
}
