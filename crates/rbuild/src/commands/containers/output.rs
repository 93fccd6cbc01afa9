//! The output of containers, which the verb `logs` shows.

use std::io::{self, Write};
use std::time::Duration;

use rbuild_store::{Container, OutputFrame, OutputReader, OutputStream, Store};

use crate::args::LogsArgs;
use crate::exit::{Failure, code};
use crate::input::value::{Moment, now};

/// Interval between two checks for new output.
const INTERVAL: Duration = Duration::from_millis(50);

/// Prints the output of a container, each stream to the same one of this process.
pub fn show(store: Store, container: &Container, args: &LogsArgs) -> Result<u8, Failure> {
    // As in docker, a container that was never started has no output.
    let Some(watch) = store.containers().watch(&container.id)? else { return Ok(code::OK) };
    let Some(mut output) = store.containers().output(&container.id)? else { return Ok(code::OK) };
    // Others must not wait for this command, which may follow the output for long.
    store.release_lock()?;
    let mut printer = Printer { timestamps: args.timestamps, at_start: [true; 2] };
    let selected = TimeRange { since: args.since, until: args.until };
    let shown: Result<(), OutputError> = (|| {
        if let Some(lines) = args.tail.and_then(|tail| tail.0) {
            let mut frames = all_frames(&mut output)?;
            frames.retain(|frame| selected.has(frame));
            let frames = last_lines(frames, lines);
            frames.iter().try_for_each(|frame| printer.print(frame)).map_err(OutputError::Write)?;
        }
        loop {
            // What was written before the end is read after the check.
            let is_over = !args.follow || !watch.is_running() || selected.is_past();
            while let Some(frame) = output.next_frame().map_err(OutputError::Read)? {
                if selected.has(&frame) {
                    printer.print(&frame).map_err(OutputError::Write)?;
                }
            }
            if is_over {
                return Ok(());
            }
            std::thread::sleep(INTERVAL);
        }
    })();
    match shown {
        Ok(()) => Ok(code::OK),
        Err(OutputError::Write(e)) if e.kind() == io::ErrorKind::BrokenPipe => Ok(code::OK),
        Err(OutputError::Write(e)) => Err(Failure::lost_output(&e)),
        Err(OutputError::Read(e)) => {
            Err(Failure::caused(format!("cannot read the output of container `{}`", container.name), &e))
        }
    }
}

/// The time of the output that is shown.
struct TimeRange {
    since: Option<Moment>,
    until: Option<Moment>,
}

impl TimeRange {
    fn has(&self, frame: &OutputFrame) -> bool {
        let time = i128::from(frame.time);
        self.since.is_none_or(|since| time >= since.0) && self.until.is_none_or(|until| time <= until.0)
    }

    /// Returns true if no later output is selected.
    fn is_past(&self) -> bool {
        self.until.is_some_and(|until| now() > until)
    }
}

/// The reason why output is not shown.
enum OutputError {
    /// The file of the container cannot be read.
    Read(io::Error),
    /// Standard output or error cannot be written.
    Write(io::Error),
}

fn all_frames(output: &mut OutputReader) -> Result<Vec<OutputFrame>, OutputError> {
    let mut frames = Vec::new();
    while let Some(frame) = output.next_frame().map_err(OutputError::Read)? {
        frames.push(frame);
    }
    Ok(frames)
}

/// Returns the end of the output with at most that many lines.
fn last_lines(frames: Vec<OutputFrame>, mut lines: usize) -> Vec<OutputFrame> {
    let mut kept = Vec::new();
    if lines == 0 {
        return kept;
    }
    // The end of the last line is not the start of another one.
    let mut is_last = true;
    for mut frame in frames.into_iter().rev() {
        let mut start = 0;
        for (at, _) in frame.bytes.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            if !(is_last && at + 1 == frame.bytes.len()) {
                lines = lines.saturating_sub(1);
            }
            is_last = false;
            if lines == 0 {
                start = at + 1;
                break;
            }
        }
        is_last = false;
        frame.bytes.drain(..start);
        if !frame.bytes.is_empty() {
            kept.push(frame);
        }
        if lines == 0 {
            break;
        }
    }
    kept.reverse();
    kept
}

struct Printer {
    timestamps: bool,
    /// True for the streams whose next byte is the first one of a line.
    at_start: [bool; 2],
}

impl Printer {
    fn print(&mut self, frame: &OutputFrame) -> io::Result<()> {
        match frame.stream {
            OutputStream::Stdout => self.write(frame, 0, &mut io::stdout().lock()),
            OutputStream::Stderr => self.write(frame, 1, &mut io::stderr().lock()),
        }
    }

    fn write(&mut self, frame: &OutputFrame, stream: usize, to: &mut impl Write) -> io::Result<()> {
        if !self.timestamps {
            to.write_all(&frame.bytes)?;
            return to.flush();
        }
        let time =
            jiff::Timestamp::from_nanosecond(i128::from(frame.time)).map_or_else(|_| String::new(), |t| t.to_string());
        for line in frame.bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.at_start[stream] {
                write!(to, "{time} ")?;
            }
            to.write_all(line)?;
            self.at_start[stream] = line.ends_with(b"\n");
        }
        to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_selected_by_its_time() {
        let frame = |time| OutputFrame { time, stream: OutputStream::Stdout, bytes: Vec::new() };
        let selected = |since: Option<i128>, until: Option<i128>| {
            let selection = TimeRange { since: since.map(Moment), until: until.map(Moment) };
            [1, 2, 3].map(|time| selection.has(&frame(time)))
        };
        assert_eq!(selected(None, None), [true; 3]);
        assert_eq!(selected(Some(2), None), [false, true, true]);
        assert_eq!(selected(Some(2), Some(2)), [false, true, false]);
        assert!(TimeRange { since: None, until: Some(Moment(1)) }.is_past());
    }

    #[test]
    fn the_last_lines_are_those_at_the_end() {
        let frame = |text: &str| OutputFrame { time: 0, stream: OutputStream::Stdout, bytes: text.into() };
        for (frames, lines, expected) in [
            (&["a\nb\nc\n"][..], 2, "b\nc\n"),
            (&["a\nb\nc"], 2, "b\nc"),
            (&["a\n", "b\n", "c\n"], 1, "c\n"),
            (&["a\nb", "b\nc\n"], 2, "bb\nc\n"),
            (&["a\n"], 5, "a\n"),
            (&["a\n", "b\n"], 0, ""),
            (&[], 3, ""),
        ] {
            let kept = last_lines(frames.iter().map(|text| frame(text)).collect(), lines);
            let text: Vec<u8> = kept.into_iter().flat_map(|frame| frame.bytes).collect();
            assert_eq!(String::from_utf8(text).unwrap(), expected, "{frames:?} {lines}");
        }
    }
}
