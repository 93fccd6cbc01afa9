//! The last lines of a command's output, to be shown if it fails.

use std::collections::VecDeque;

/// Number of lines that a failure shows.
pub(crate) const LOG_TAIL: usize = 50;

/// Collects the last lines of a command's output.
pub(crate) struct LogTail {
    lines: VecDeque<String>,
    partial: [Vec<u8>; 2],
}

/// Maximum length of a line in bytes; longer ones are split.
const MAX_LINE: usize = 4096;

impl LogTail {
    /// Returns a collector without lines.
    pub fn new() -> LogTail {
        LogTail { lines: VecDeque::new(), partial: [Vec::new(), Vec::new()] }
    }

    /// Adds output.
    pub fn push(&mut self, stream: rbuild_sandbox::Stream, bytes: &[u8]) {
        let i = usize::from(stream == rbuild_sandbox::Stream::Stderr);
        // Only the last lines can remain, so earlier ones in the same chunk are skipped.
        let ends = bytes.iter().enumerate().rev().filter(|(_, b)| **b == b'\n').map(|(at, _)| at);
        let bytes = match { ends }.nth(LOG_TAIL) {
            Some(end) => {
                self.partial[i].clear();
                &bytes[end + 1..]
            }
            None => bytes,
        };
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            self.partial[i].extend_from_slice(part);
            if part.ends_with(b"\n") || self.partial[i].len() > MAX_LINE {
                self.flush(i);
            }
        }
    }

    fn flush(&mut self, i: usize) {
        let line = std::mem::take(&mut self.partial[i]);
        let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_string();
        self.lines.push_back(text);
        if self.lines.len() > LOG_TAIL {
            self.lines.pop_front();
        }
    }

    /// Returns at most [`LOG_TAIL`] lines, including incomplete last ones.
    pub fn finish(mut self) -> Vec<String> {
        for i in [0, 1] {
            if !self.partial[i].is_empty() {
                self.flush(i);
            }
        }
        self.lines.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rbuild_sandbox::Stream;

    #[test]
    fn the_last_lines_are_kept_for_any_chunking() {
        let text: String = (0..500).map(|i| format!("line {i}\n")).collect();
        let want: Vec<String> = (451..500).map(|i| format!("line {i}")).chain(["half".to_string()]).collect();
        for size in [1, 7, 100, 3000, 10_000] {
            let mut tail = LogTail::new();
            text.as_bytes().chunks(size).for_each(|c| tail.push(Stream::Stdout, c));
            tail.push(Stream::Stderr, b"half");
            assert_eq!(tail.finish(), want, "chunks of {size}");
        }
    }
}
