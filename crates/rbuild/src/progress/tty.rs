//! Progress on a terminal: finished steps scroll up; running steps stay at the bottom with their
//! last lines of output.

use rbuild_remedy::counted;
use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rbuild_engine::{Event, Meter, StepOutcome};

use crate::progress::task::{Progressing, TaskId};
use crate::ui::columns::{cut, pad, width};
use crate::ui::diagnostics::first_line;
use crate::ui::terminal;
use rbuild_engine::without_escapes;

/// Lines of output shown per running step.
const TAIL: usize = 4;
/// Maximum number of running steps shown with output; the rest are counted.
const SHOWN: usize = 6;
/// Maximum number of waiting steps shown; the rest are counted.
const WAITS_SHOWN: usize = 3;
const FRAME: Duration = Duration::from_millis(100);

/// A task that runs.
struct Running {
    label: String,
    title: String,
    started: Instant,
    tail: VecDeque<String>,
    partial: Vec<u8>,
    reason: Option<String>,
    bytes: Option<Progressing>,
}

/// A step whose inputs are not ready.
struct Waiting {
    label: String,
    title: String,
    inputs: Vec<usize>,
}

/// A line that scrolls up and is not drawn again.
enum FinishedLine {
    /// The end of a task, cut to the width of the terminal.
    Task {
        text: String,
        /// Duration in seconds, shown on the right.
        time: Option<f64>,
        color: Color,
    },
    /// A text that may contain colors. A long one continues on the next row.
    Text(String),
}

/// Color of a line, as the parameter of an escape sequence.
#[derive(Clone, Copy)]
enum Color {
    None,
    Dim,
    Red,
    Yellow,
    Green,
}

impl Color {
    fn of(self, line: &str) -> String {
        let parameter = match self {
            Color::None => return line.to_string(),
            Color::Dim => 2,
            Color::Red => 31,
            Color::Green => 32,
            Color::Yellow => 33,
        };
        format!("\x1b[{parameter}m{line}\x1b[0m")
    }
}

/// State of the redrawn part of the screen.
pub struct Screen {
    started: Instant,
    colors: bool,
    /// Number of steps, once it is known.
    total: Option<usize>,
    running: BTreeMap<TaskId, Running>,
    waiting: BTreeMap<usize, Waiting>,
    /// Images that are being pulled.
    pulls: BTreeMap<String, Progressing>,
    done: usize,
    end: End,
    /// True if a step has ended.
    has_ended_step: bool,
    /// Final lines that are not yet written.
    finished: Vec<FinishedLine>,
    /// Height of the redrawn part in lines.
    height: usize,
}

/// The way in which a build ends. The line about a success follows from the caller.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Success,
    Failure,
    Interruption,
}

/// Draws until the build has failed or was interrupted, or until all senders have been dropped.
pub fn draw(events: &Receiver<Event>, explain: bool) {
    let mut screen = Screen::new(terminal::colors());
    let mut drawn = Instant::now() - FRAME;
    loop {
        let open = match events.recv_timeout(FRAME) {
            Ok(Event::Reason { .. }) if !explain => true,
            Ok(event) => {
                let open = !matches!(event, Event::Failed | Event::Interrupted);
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
    pub fn new(colors: bool) -> Screen {
        Screen {
            started: Instant::now(),
            colors,
            total: None,
            running: BTreeMap::new(),
            waiting: BTreeMap::new(),
            pulls: BTreeMap::new(),
            done: 0,
            end: End::Success,
            has_ended_step: false,
            finished: Vec::new(),
            height: 0,
        }
    }

    /// Updates the state with an event.
    pub fn take(&mut self, event: Event) {
        match event {
            // The strongest mode is not worth a line.
            Event::Isolation { mode: "userns" } => {}
            Event::Isolation { mode } => self.print(&format!("isolation: {mode}")),
            Event::Total { steps } => self.total = Some(steps),
            Event::Failed => self.end = End::Failure,
            Event::Interrupted => self.end = End::Interruption,
            Event::Pulling { image, moved, total } if moved < total => {
                let now = Instant::now();
                let meter = Meter { total: Some(total), ..Meter::default() };
                self.pulls.entry(image).or_insert_with(|| Progressing::new(meter, now)).set(moved);
            }
            Event::Pulling { image, .. } => drop(self.pulls.remove(&image)),
            Event::Warning(w) => self.print(&terminal::warning_text(&w, self.colors)),
            Event::Phase { text, seconds } => self.finish("=>", &text, Some(seconds), Color::None),
            Event::Waiting { step, label, text, inputs } => {
                let title = format!("[{label}] {}", first_line(&text));
                self.waiting.insert(step, Waiting { label, title, inputs });
            }
            Event::Started { step, label, text } => {
                self.waiting.remove(&step);
                let title = format!("[{label}] {}", first_line(&text));
                self.run(TaskId::Step(step), label, title);
            }
            Event::PhaseStarted { phase, text, meter } => {
                let id = TaskId::Phase(phase);
                self.run(id, String::new(), text);
                self.set_bytes(id, meter);
            }
            Event::Moving { step, meter } => self.set_bytes(TaskId::Step(step), meter),
            Event::Reason { step, text } => {
                if let Some(running) = self.running.get_mut(&TaskId::Step(step)) {
                    running.reason = Some(text);
                }
            }
            Event::Output { step, bytes, .. } => {
                if let Some(running) = self.running.get_mut(&TaskId::Step(step)) {
                    running.append(&bytes);
                }
            }
            Event::PhaseEnded { phase, seconds } => {
                if let (Some(running), Some(_)) = (self.running.remove(&TaskId::Phase(phase)), seconds) {
                    self.finish("=>", &running.title, seconds, Color::None);
                }
            }
            Event::Done { step, outcome, seconds } => self.step_ended(step, outcome, seconds),
        }
    }

    fn run(&mut self, id: TaskId, label: String, title: String) {
        let (tail, partial) = Default::default();
        let running = Running { label, title, started: Instant::now(), tail, partial, reason: None, bytes: None };
        self.running.insert(id, running);
    }

    fn set_bytes(&mut self, id: TaskId, meter: Meter) {
        if let Some(running) = self.running.get_mut(&id) {
            running.bytes = Some(Progressing::new(meter, running.started));
        }
    }

    fn step_ended(&mut self, step: usize, outcome: StepOutcome, seconds: f64) {
        let Some(running) = self.running.remove(&TaskId::Step(step)) else { return };
        self.has_ended_step = true;
        self.done += usize::from(matches!(outcome, StepOutcome::Done | StepOutcome::Cached));
        if matches!(outcome, StepOutcome::Failed | StepOutcome::Canceled) {
            self.end = End::Failure;
        }
        let (mark, time, color) = match outcome {
            StepOutcome::Done => ("=>", Some(seconds), Color::Green),
            StepOutcome::Cached => ("=> CACHED", None, Color::Dim),
            StepOutcome::Failed => ("=> ERROR", Some(seconds), Color::Red),
            StepOutcome::Canceled => ("=> CANCELED", None, Color::Yellow),
        };
        self.finish(mark, &running.title, time, color);
        if let Some(reason) = &running.reason {
            self.print(&format!("    why: {}", without_escapes(reason)));
        }
    }

    fn finish(&mut self, mark: &str, title: &str, time: Option<f64>, color: Color) {
        self.finished.push(FinishedLine::Task { text: format!(" {mark} {}", without_escapes(title)), time, color });
    }

    /// Adds the lines of a text that may contain colors. Tabs become blanks, because their width
    /// depends on their column.
    fn print(&mut self, text: &str) {
        self.finished.extend(text.lines().map(|line| FinishedLine::Text(line.replace('\t', " "))));
    }

    /// Returns the text that updates the screen: it erases the old lower part and prints the
    /// finished lines and the new lower part. `more` is false for the last frame.
    pub fn frame(&mut self, rows: usize, columns: usize, more: bool) -> String {
        let mut out = String::new();
        if self.height > 0 {
            // The terminal may have echoed a key, such as ^C.
            out.push_str(&format!("\r\x1b[{}A\x1b[J", self.height));
        }
        for line in std::mem::take(&mut self.finished) {
            out.push_str(&match line {
                FinishedLine::Task { text, time, color } => {
                    let line = match time {
                        Some(seconds) => spread(&text, &format!("{seconds:.1}s"), columns),
                        None => cut(&text, columns),
                    };
                    if self.colors { color.of(&line) } else { line }
                }
                FinishedLine::Text(text) => text,
            });
            out.push('\n');
        }
        let lines = if more { self.lower_part(rows, columns) } else { self.last_line().into_iter().collect() };
        self.height = if more { lines.len() } else { 0 };
        for line in lines {
            out.push_str(&cut(&line, columns));
            out.push('\n');
        }
        out
    }

    /// Returns the line at the end of a build that failed after it ran steps. Otherwise, only the
    /// error or the result that follows is of interest.
    fn last_line(&self) -> Option<String> {
        let seconds = self.started.elapsed().as_secs_f64();
        let done = match self.total {
            Some(total) => format!("{} of {}", self.done, counted(total as u64, "step")),
            None => counted(self.done as u64, "step"),
        };
        let is_shown = self.end == End::Failure && self.has_ended_step;
        is_shown.then(|| format!("[+] Failed after {seconds:.1}s, {done} done"))
    }

    /// Returns the part that is redrawn: the running and the waiting tasks.
    fn lower_part(&self, rows: usize, columns: usize) -> Vec<String> {
        let now = Instant::now();
        let seconds = now.duration_since(self.started).as_secs_f64();
        let total = self.total.map_or(String::new(), |total| format!(" ({}/{})", self.done, total.max(self.done)));
        let mut lines = vec![format!("[+] Building {seconds:.1}s{total}")];
        // On a small terminal, show less output: lines that scroll away cannot be redrawn.
        let room = rows.saturating_sub(3);
        let shown = self.running.len().min(SHOWN).min(room);
        let tail = (room.saturating_sub(shown) / shown.max(1)).min(TAIL);
        for running in self.running.values().take(shown) {
            let time = format!("{:.1}s", now.duration_since(running.started).as_secs_f64());
            let bytes = running.bytes.as_ref().and_then(|bytes| bytes.text(now));
            let right = bytes.map_or(time.clone(), |bytes| format!("{bytes} {time}"));
            lines.push(spread(&format!(" => {}", without_escapes(&running.title)), &right, columns));
            let said = running.tail.len().saturating_sub(tail);
            lines.extend(running.tail.iter().skip(said).map(|l| cut(&format!(" => => {l}"), columns)));
        }
        if self.running.len() > shown && room > 0 {
            lines.push(format!(" => and {}", counted((self.running.len() - shown) as u64, "more step")));
        }
        let free = rows.saturating_sub(lines.len() + 1);
        lines.extend(self.pulls.iter().take(free).map(|(image, bytes)| {
            let text = format!(" => pulling {}", without_escapes(image));
            spread(&text, &bytes.text(now).unwrap_or_default(), columns)
        }));
        let free = rows.saturating_sub(lines.len() + 1);
        lines.extend(self.waits(free));
        lines
    }

    /// Returns at most `most` lines about the next steps and the inputs for which they wait.
    fn waits(&self, most: usize) -> Vec<String> {
        let running = |step: &usize| self.running.get(&TaskId::Step(*step));
        // Steps without a running input start later.
        let next = |waiting: &&Waiting| waiting.inputs.iter().any(|input| running(input).is_some());
        let shown = most.saturating_sub(1).min(WAITS_SHOWN);
        let mut lines: Vec<String> = Vec::new();
        for waiting in self.waiting.values().filter(next).take(shown) {
            let label = |input: &usize| running(input).map(|running| &running.label);
            let open = |input| label(input).or_else(|| self.waiting.get(input).map(|waiting| &waiting.label));
            let inputs: Vec<String> =
                waiting.inputs.iter().filter_map(open).map(|label| format!("[{label}]")).collect();
            let (title, inputs) = (without_escapes(&waiting.title), without_escapes(&inputs.join(", ")));
            lines.push(format!(" .. {title} waits for {inputs}"));
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
            self.tail.push_back(without_escapes(line));
            if self.tail.len() > TAIL {
                self.tail.pop_front();
            }
        }
    }
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

    /// The error or the result of the build follows.
    #[test]
    fn the_last_line_of_a_failed_build_counts_only_steps_that_ended() {
        let done = || Event::Done { step: 1, outcome: StepOutcome::Cached, seconds: 0.0 };
        let started = || Event::Started { step: 1, label: "a 1/2".into(), text: "RUN make".into() };
        let pulling = || Event::Pulling { image: "a".into(), moved: 1, total: 2 };
        for (events, want) in [
            (vec![Event::Failed], ""),
            (vec![pulling(), Event::Failed], ""),
            (vec![started(), Event::Failed], ""),
            (vec![], ""),
            (vec![started(), done()], ""),
            (vec![started(), done(), Event::Failed], "[+] Failed after 0.0s, 1 step done\n"),
            (
                vec![Event::Total { steps: 3 }, started(), done(), Event::Failed],
                "[+] Failed after 0.0s, 1 of 3 steps done\n",
            ),
            (vec![started(), done(), Event::Interrupted], ""),
        ] {
            let mut screen = Screen::new(false);
            events.into_iter().for_each(|event| screen.take(event));
            screen.finished.clear();
            assert_eq!(screen.frame(24, 80, false), want);
        }
    }

    #[test]
    fn finished_steps_scroll_up_and_running_steps_are_redrawn() {
        let mut screen = Screen::new(false);
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
        assert_eq!(frame[0], "\r\x1b[7A\x1b[J => CACHED [b 1/1] COPY x y");
        assert_eq!(frame[1], " => [a 1/2] RUN make               12.3s");
        assert!(frame[2].starts_with("[+] Building 0."), "{frame:?}");
        assert_eq!(screen.frame(24, 40, false), "\r\x1b[1A\x1b[J");
    }

    #[test]
    fn waiting_steps_name_their_inputs() {
        let mut screen = Screen::new(false);
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
        let meter = |moved, total| Meter { moved: std::sync::Arc::new(moved), total };
        let mut screen = Screen::new(true);
        let mut text = String::new();
        for (events, more) in [
            (
                vec![
                    Event::Isolation { mode: "userns" },
                    Event::Isolation { mode: "chroot" },
                    Event::Total { steps: 20 },
                    started(1, "a 1/2"),
                    output(1, "one\ntwo\n"),
                ],
                true,
            ),
            (
                vec![
                    Event::Moving { step: 1, meter: meter(12_000_000.into(), Some(50_000_000)) },
                    Event::PhaseStarted { phase: 0, text: "packing layers".into(), meter: meter(3.into(), None) },
                    Event::PhaseStarted { phase: 1, text: "writing files".into(), meter: meter(0.into(), None) },
                ],
                true,
            ),
            (
                vec![Event::PhaseEnded { phase: 0, seconds: Some(1.0) }, Event::PhaseEnded { phase: 1, seconds: None }],
                true,
            ),
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
            let frame = screen.frame(24, 60, more).replace('\u{1b}', "ESC").replace('\r', "CR");
            let timeless = |line: &str| {
                let words = line.split(' ').map(timeless).collect::<Vec<_>>().join(" ").trim_end().to_string();
                // The width of a rate varies, and so does that of the blanks before it.
                if words.contains("[rate]") { words.split_whitespace().collect::<Vec<_>>().join(" ") } else { words }
            };
            text += &frame.lines().map(|line| timeless(line) + "\n").collect::<String>();
            text += "---\n";
        }
        rbuild_testkit::assert_recorded!("progress-tty", text);
    }

    /// Replaces a word that is a time or a rate.
    fn timeless(word: &str) -> &str {
        let bare = word.trim_end_matches(',').trim_end_matches("ESC[0m");
        let number = bare.strip_suffix('s').and_then(|number| number.parse::<f64>().ok());
        match number {
            Some(_) => "[time]",
            None if word.ends_with("/s") => "[rate]",
            None => word,
        }
    }

    #[test]
    fn frames_fit_the_terminal() {
        for (rows, columns) in [(24, 80), (6, 20), (3, 10), (1, 1)] {
            let mut screen = Screen::new(false);
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
