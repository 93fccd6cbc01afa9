//! Plain progress: `#5 [builder 3/7] RUN …`, then numbered lines of output.
//!
//! As in BuildKit, the output of one step stays together for some seconds: lines of other steps
//! wait until the step has ended or has had its time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rbuild_engine::{Event, StepOutcome};
use rbuild_sandbox::Stream;

use crate::progress::lines::OutputLines;
use crate::progress::task::{Progressing, TaskId};
use crate::ui::diagnostics::first_line;
use crate::ui::terminal;

/// Time for which a running step keeps the output while others have lines, and after which the
/// bytes of a running task are printed again (BuildKit, `antiFlicker` and `minTimeDelta`).
const STAY: Duration = Duration::from_secs(5);
/// Maximum size in bytes of the lines that wait.
const MAX_WAITING: usize = 1 << 20;

/// State of the plain form. Steps and other tasks are numbered without gaps in order of first
/// appearance.
pub struct Plain {
    colors: bool,
    tasks: BTreeMap<TaskId, PlainTask>,
    count: usize,
    /// The task whose lines are printed as they arrive, and the time since when they are.
    current: Option<(TaskId, Instant)>,
    /// The running task that the last line belongs to.
    last: Option<TaskId>,
}

struct PlainTask {
    number: usize,
    header: String,
    lines: OutputLines,
    /// Lines that wait.
    waiting: String,
    /// True if the header has been printed.
    is_shown: bool,
    bytes: Option<Progressing>,
    /// Time of the last line about bytes.
    reported: Instant,
}

impl PlainTask {
    fn has_news(&self) -> bool {
        !self.is_shown || !self.waiting.is_empty()
    }
}

impl Plain {
    pub fn new(colors: bool) -> Plain {
        Plain { colors, tasks: BTreeMap::new(), count: 0, current: None, last: None }
    }

    /// Returns the text to print for an event at that time.
    pub fn text(&mut self, event: Event, now: Instant) -> String {
        match event {
            Event::Isolation { mode } => format!("isolation: {mode}\n"),
            Event::Warning(w) => terminal::warning_text(&w, self.colors),
            Event::Waiting { .. } | Event::Pulling { .. } | Event::Total { .. } => String::new(),
            Event::Failed | Event::Interrupted => self.rest(),
            Event::Phase { text, seconds } => {
                self.count += 1;
                self.leave() + &format!("#{0} {text}\n#{0} DONE {seconds:.1}s\n\n", self.count)
            }
            Event::PhaseStarted { phase, text, meter } => {
                let id = TaskId::Phase(phase);
                let text = self.start(id, &text, now);
                self.set_bytes(id, Progressing::new(meter, now));
                text
            }
            Event::PhaseEnded { phase, seconds } => {
                let word = seconds.map_or("CANCELED".into(), |seconds| format!("DONE {seconds:.1}s"));
                self.end(TaskId::Phase(phase), &word)
            }
            Event::Started { step, label, text } => {
                self.start(TaskId::Step(step), &format!("[{label}] {}", first_line(&text)), now)
            }
            Event::Moving { step, meter } => {
                self.set_bytes(TaskId::Step(step), Progressing::new(meter, now));
                String::new()
            }
            Event::Output { step, stream, bytes } => self.output(TaskId::Step(step), stream, &bytes, now),
            Event::Reason { step, text } => {
                let id = TaskId::Step(step);
                let Some(task) = self.tasks.get_mut(&id) else { return String::new() };
                task.waiting += &format!("#{} why: {text}\n", task.number);
                self.show(id, now)
            }
            Event::Done { step, outcome, seconds } => {
                let word = match outcome {
                    StepOutcome::Done => format!("DONE {seconds:.1}s"),
                    StepOutcome::Cached => "CACHED".into(),
                    StepOutcome::Failed => "ERROR".into(),
                    StepOutcome::Canceled => "CANCELED".into(),
                };
                self.end(TaskId::Step(step), &word)
            }
        }
    }

    /// Returns the text to print because time has passed: of another task, if the current one has
    /// had its time, and about bytes.
    pub fn later(&mut self, now: Instant) -> String {
        let mut text = String::new();
        let due = |task: &PlainTask| now.duration_since(task.reported) >= STAY;
        let tasks: Vec<TaskId> = self.tasks.iter().filter(|(_, task)| due(task)).map(|(id, _)| *id).collect();
        for id in tasks {
            let Some(task) = self.tasks.get_mut(&id) else { continue };
            let Some(moved) = task.bytes.as_mut().and_then(|bytes| bytes.news(now)) else { continue };
            task.reported = now;
            task.waiting += &format!("#{} {moved}\n", task.number);
            text += &self.show(id, now);
        }
        let others = self.tasks.iter().filter(|(id, task)| task.has_news() && self.current.is_none_or(|c| c.0 != **id));
        match others.min_by_key(|(_, task)| task.number).map(|(id, _)| *id) {
            Some(id) => text + &self.show(id, now),
            None => text,
        }
    }

    /// Returns everything that waits.
    pub fn rest(&mut self) -> String {
        let news = self.tasks.iter().filter(|(_, task)| task.has_news());
        let mut ids: Vec<(usize, TaskId)> = news.map(|(id, task)| (task.number, *id)).collect();
        ids.sort_unstable();
        ids.into_iter().map(|(_, id)| self.print(id)).collect()
    }

    fn start(&mut self, id: TaskId, title: &str, now: Instant) -> String {
        self.count += 1;
        let task = PlainTask {
            number: self.count,
            header: format!("#{} {title}\n", self.count),
            lines: OutputLines::new(self.count),
            waiting: String::new(),
            is_shown: false,
            bytes: None,
            reported: now,
        };
        self.tasks.insert(id, task);
        self.show(id, now)
    }

    fn set_bytes(&mut self, id: TaskId, bytes: Progressing) {
        if let Some(task) = self.tasks.get_mut(&id) {
            task.bytes = Some(bytes);
        }
    }

    fn output(&mut self, id: TaskId, stream: Stream, bytes: &[u8], now: Instant) -> String {
        let Some(task) = self.tasks.get_mut(&id) else { return String::new() };
        let lines = task.lines.push(stream, bytes);
        if lines.is_empty() {
            return lines;
        }
        task.waiting += &lines;
        self.show(id, now)
    }

    /// Prints the news of a task, unless the output belongs to another one.
    fn show(&mut self, id: TaskId, now: Instant) -> String {
        let is_full = self.tasks.get(&id).is_some_and(|task| task.waiting.len() > MAX_WAITING);
        match self.current {
            Some((current, _)) if current == id => {}
            Some((_, since)) if now.duration_since(since) < STAY && !is_full => return String::new(),
            _ => self.current = Some((id, now)),
        }
        self.print(id)
    }

    /// Prints the end of a task, with all lines that wait.
    fn end(&mut self, id: TaskId, word: &str) -> String {
        let Some(task) = self.tasks.get_mut(&id) else { return String::new() };
        task.waiting += &task.lines.rest();
        task.waiting += &format!("#{} {word}\n\n", task.number);
        let text = self.print(id);
        self.tasks.remove(&id);
        self.last = None;
        let is_current = self.current.is_some_and(|(current, _)| current == id);
        if is_current {
            self.current = None;
        }
        text
    }

    /// Returns the lines of a task that wait, below its header if the last line belongs to another
    /// task.
    fn print(&mut self, id: TaskId) -> String {
        let left = if self.last == Some(id) { String::new() } else { self.leave() };
        let Some(task) = self.tasks.get_mut(&id) else { return left };
        let header = if self.last == Some(id) { "" } else { task.header.as_str() };
        let text = format!("{left}{header}{}", std::mem::take(&mut task.waiting));
        task.is_shown = true;
        self.last = Some(id);
        text
    }

    /// Returns the line that marks the last task as one that continues later.
    fn leave(&mut self) -> String {
        let left = self.last.take().and_then(|id| self.tasks.get(&id));
        left.map_or(String::new(), |task| format!("#{} ...\n\n", task.number))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rbuild_engine::Meter;

    use super::*;

    fn out(step: usize, text: &str) -> Event {
        Event::Output { step, stream: Stream::Stdout, bytes: text.into() }
    }

    fn start(step: usize, label: &str) -> Event {
        Event::Started { step, label: label.into(), text: "RUN x\nmore".into() }
    }

    fn done(step: usize) -> Event {
        Event::Done { step, outcome: StepOutcome::Done, seconds: 1.26 }
    }

    /// Returns the output for events at these seconds; `None` stands for the passing of time.
    fn play(events: Vec<(u64, Option<Event>)>) -> String {
        let (mut plain, began) = (Plain::new(false), Instant::now());
        let mut text = String::new();
        for (second, event) in events {
            let now = began + Duration::from_secs(second);
            text += &match event {
                Some(event) => plain.text(event, now),
                None => plain.later(now),
            };
        }
        text += &plain.rest();
        let timeless = |l: &str| match l.split_whitespace().nth(1) {
            Some(n) if n.parse::<f64>().is_ok() => l.replacen(n, "T", 1) + "\n",
            _ => l.to_string() + "\n",
        };
        text.lines().map(timeless).collect()
    }

    #[test]
    fn output_stays_with_one_step() {
        let events = [start(3, "a 2/2"), out(3, "one\ntw"), start(9, "b 1/2"), out(9, "x\n"), out(3, "o\n")];
        let cached = Event::Done { step: 9, outcome: StepOutcome::Cached, seconds: 0.0 };
        let events = events.into_iter().chain([cached, out(3, "end"), done(3)]);
        assert_eq!(
            play(events.map(|event| (0, Some(event))).collect()),
            "#1 [a 2/2] RUN x\n#1 T one\n#1 T two\n#1 ...\n\n\
             #2 [b 1/2] RUN x\n#2 T x\n#2 CACHED\n\n\
             #1 [a 2/2] RUN x\n#1 T end\n#1 DONE 1.3s\n\n"
        );
    }

    #[test]
    fn a_step_keeps_the_output_for_some_seconds() {
        let events = vec![
            (0, Some(start(1, "a 1/1"))),
            (0, Some(start(2, "b 1/1"))),
            (1, Some(out(2, "two\n"))),
            (2, Some(out(1, "one\n"))),
            (3, None),
            (5, None),
            (6, Some(out(1, "one again\n"))),
            (6, Some(out(2, "two again\n"))),
            (9, None),
            (10, None),
            (11, Some(done(1))),
            (11, Some(out(2, "last\n"))),
        ];
        assert_eq!(
            play(events),
            "#1 [a 1/1] RUN x\n#1 T one\n#1 ...\n\n\
             #2 [b 1/1] RUN x\n#2 T two\n#2 T two again\n#2 ...\n\n\
             #1 [a 1/1] RUN x\n#1 T one again\n#1 DONE 1.3s\n\n\
             #2 [b 1/1] RUN x\n#2 T last\n"
        );
    }

    #[test]
    fn many_lines_do_not_wait() {
        let long = "x".repeat(MAX_WAITING) + "\n";
        let text = play(vec![
            (0, Some(start(1, "a 1/1"))),
            (0, Some(start(2, "b 1/1"))),
            (0, Some(out(2, &long))),
            (0, Some(out(1, "one\n"))),
        ]);
        let headers: Vec<&str> = text.lines().filter(|line| line.len() < 100).collect();
        assert_eq!(
            headers,
            ["#1 [a 1/1] RUN x", "#1 ...", "", "#2 [b 1/1] RUN x", "#2 ...", "", "#1 [a 1/1] RUN x", "#1 T one"]
        );
    }

    #[test]
    fn bytes_are_printed_every_few_seconds() {
        let moved = Arc::new(AtomicU64::new(0));
        let meter = Meter { moved: moved.clone(), total: Some(200_000_000) };
        let (mut plain, began) = (Plain::new(false), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut text = plain.text(Event::PhaseStarted { phase: 0, text: "packing layers".into(), meter }, at(0));
        for second in 1..12 {
            moved.fetch_add(10_000_000, Ordering::Relaxed);
            text += &plain.later(at(second));
        }
        text += &plain.text(Event::PhaseEnded { phase: 0, seconds: Some(12.0) }, at(12));
        assert_eq!(text, "#1 packing layers\n#1 50MB of 200MB, 10MB/s\n#1 100MB of 200MB, 10MB/s\n#1 DONE 12.0s\n\n");
    }
}
