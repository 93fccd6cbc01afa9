//! Text joined from several ranges of the source, with a map back to them.

use crate::diagnostic::Span;

use std::borrow::Cow;

/// Decodes the source. Replaces every byte of an invalid UTF-8 sequence by `?`, which preserves
/// offsets, and returns the offsets of the replacements.
pub fn readable(source: &[u8]) -> (Cow<'_, str>, Vec<usize>) {
    if let Ok(text) = std::str::from_utf8(source) {
        return (Cow::Borrowed(text), Vec::new());
    }
    let (mut text, mut replaced) = (String::with_capacity(source.len()), Vec::new());
    for chunk in source.utf8_chunks() {
        text.push_str(chunk.valid());
        for _ in chunk.invalid() {
            replaced.push(text.len());
            text.push('?');
        }
    }
    (Cow::Owned(text), replaced)
}

/// Joined text and the source offset of each of its bytes.
#[derive(Debug, Clone, Default)]
pub struct Text {
    pub text: String,
    /// Runs of adjacent bytes, ascending: (offset in `text`, offset in the source).
    runs: Vec<(usize, usize)>,
    /// Source offset after the last byte.
    end: usize,
}

impl Text {
    /// Appends a piece that starts at offset `source`.
    pub fn push(&mut self, piece: &str, source: usize) {
        if piece.is_empty() {
            return;
        }
        self.runs.push((self.text.len(), source));
        self.text.push_str(piece);
        self.end = source + piece.len();
    }

    /// Returns the source offset of the byte at `at`. Past the end, this is the offset after the
    /// last byte.
    pub fn source(&self, at: usize) -> usize {
        if at >= self.text.len() {
            return self.end;
        }
        let i = self.runs.partition_point(|(t, _)| *t <= at).saturating_sub(1);
        self.runs.get(i).map_or(self.end, |(t, s)| s + (at - t))
    }

    /// Returns the range in the source of `text[start..end]`.
    pub fn span(&self, start: usize, end: usize) -> Span {
        let from = self.source(start);
        if end <= start {
            return Span::new(from, from);
        }
        Span::new(from, self.source(end - 1) + 1)
    }

    /// Returns `text[start..end]` with the corresponding part of the map.
    pub fn slice(&self, start: usize, end: usize) -> Text {
        let mut part = Text { end: self.source(start), ..Text::default() };
        for (i, (t, s)) in self.runs.iter().enumerate() {
            let next = self.runs.get(i + 1).map_or(self.text.len(), |(t, _)| *t);
            let (a, b) = ((*t).max(start), next.min(end));
            if a < b {
                part.push(&self.text[a..b], s + (a - t));
            }
        }
        part
    }

    /// Removes leading whitespace.
    pub fn without_indent(&self) -> Text {
        self.slice(self.text.len() - self.text.trim_start().len(), self.text.len())
    }

    /// Removes surrounding whitespace.
    pub fn trimmed(&self) -> Text {
        let start = self.text.len() - self.text.trim_start().len();
        let end = self.text.trim_end().len();
        if start >= end { self.slice(0, 0) } else { self.slice(start, end) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_point_into_the_source_across_joins() {
        // source: "RUN a \\\n  b" - joined without the escape and the newline
        let mut t = Text::default();
        t.push("RUN a ", 0);
        t.push("  b", 8);
        assert_eq!(t.span(8, 9), Span::new(10, 11));
        assert_eq!(t.span(4, 9), Span::new(4, 11));
        assert_eq!(t.slice(6, 9).trimmed().span(0, 1), Span::new(10, 11));
        assert_eq!(t.source(99), 11);
    }
}
