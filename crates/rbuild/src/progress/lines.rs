//! Lines of command output, ready to print.

use std::time::Instant;

use rbuild_sandbox::Stream;

use rbuild_engine::{may_have_controls, push_colored};

/// Output of a step, split into lines as it arrives.
pub struct OutputLines {
    number: usize,
    started: Instant,
    /// Incomplete last lines of standard output and standard error.
    partial: [Vec<u8>; 2],
}

/// Longest incomplete line in bytes; a longer one is printed in pieces.
const MAX_LINE: usize = 8192;

impl OutputLines {
    /// Creates an empty buffer for the step with this number, which starts now.
    pub fn new(number: usize) -> OutputLines {
        OutputLines { number, started: Instant::now(), partial: Default::default() }
    }

    /// Returns the complete lines of the output so far and keeps the rest.
    pub fn push(&mut self, stream: Stream, bytes: &[u8]) -> String {
        let partial = &mut self.partial[usize::from(stream == Stream::Stderr)];
        partial.extend_from_slice(bytes);
        let end = match partial.iter().rposition(|b| *b == b'\n') {
            Some(end) => end + 1,
            None if partial.len() >= MAX_LINE => partial.len(),
            None => return String::new(),
        };
        let whole: Vec<u8> = partial.drain(..end).collect();
        shown_lines(&whole, self.number, self.seconds())
    }

    /// Returns the incomplete lines of a step that has ended.
    pub fn rest(&mut self) -> String {
        let (number, seconds) = (self.number, self.seconds());
        self.partial.iter_mut().map(std::mem::take).map(|p| shown_lines(&p, number, seconds)).collect()
    }

    fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}

/// Prefixes each line of output with the step number and the time in seconds, and drops control
/// characters other than tab, and escape sequences other than colors.
fn shown_lines(bytes: &[u8], number: usize, seconds: f64) -> String {
    let text = String::from_utf8_lossy(bytes);
    let head = format!("#{number} {seconds:.3} ");
    let mut out = String::with_capacity(text.len() * 2);
    let clean = !may_have_controls(text.as_bytes());
    for line in text.lines() {
        out.push_str(&head);
        if clean {
            out.push_str(line);
        } else {
            // If a line is redrawn with \r, only the last version is shown.
            let line = line.rsplit('\r').find(|p| !p.is_empty()).unwrap_or("");
            push_colored(&mut out, line);
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_control_characters_are_removed_from_lines() {
        let text = "plain\na\tb \u{1b}[1mbold\n50 %\r60 %\r\nbell\u{7} c1\u{85}! \u{7f}é\u{e9}Â\n\n";
        let lines = shown_lines(text.as_bytes(), 3, 1.0);
        assert_eq!(
            lines,
            "#3 1.000 plain\n#3 1.000 a\tb \u{1b}[1mbold\n#3 1.000 60 %\n#3 1.000 bell c1! ééÂ\n#3 1.000 \n"
        );
    }
}
