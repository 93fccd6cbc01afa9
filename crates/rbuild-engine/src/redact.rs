//! Masking of secrets in the output of commands and in everything that is reported or recorded.

use std::sync::Arc;

use rbuild_sandbox::Stream;

use crate::escapes::{may_have_controls, shown_positions};

pub(crate) const MASK: &str = "****";
/// Maximum number of bytes that are held back because they may be the beginning of a value between
/// whose bytes there are escape sequences.
const MAX_HELD: usize = 1 << 20;
/// Minimum length of a masked value. Masking shorter ones would make logs unreadable.
pub(crate) const MIN_MASKED: usize = 4;

/// The values of a build's secrets and the lines of each value, without surrounding whitespace, if
/// they are long enough to be masked.
#[derive(Debug, Clone, Default)]
pub struct SecretValues {
    values: Arc<SecretPatterns>,
    /// The forms in which a message may show the values: unchanged, their parts between control
    /// characters, and both with the escape sequences of quoted strings.
    shown: Arc<SecretPatterns>,
}

impl SecretValues {
    /// Returns the values of secrets, given by ID and value, and the lines of each value.
    pub fn of(secrets: &[(String, Vec<u8>)]) -> SecretValues {
        let trimmed = secrets.iter().map(|(_, value)| value.trim_ascii());
        let trimmed: Vec<&[u8]> = trimmed.filter(|value| value.len() >= MIN_MASKED).collect();
        // A command may print a part of a file, or each line with a prefix.
        let lines = trimmed.iter().flat_map(|value| value.split(|byte| *byte == b'\n')).map(<[u8]>::trim_ascii);
        let values = trimmed.iter().copied().chain(lines).map(<[u8]>::to_vec);
        let shown = trimmed.iter().flat_map(|value| shown_forms(value));
        SecretValues { shown: Arc::new(SecretPatterns::of(shown)), values: Arc::new(SecretPatterns::of(values)) }
    }

    /// Returns a message with each value replaced by `****`. Messages may show a value in quotes,
    /// or in several lines with an indentation.
    pub fn mask(&self, text: String) -> String {
        if self.shown.is_empty() {
            return text;
        }
        let whole = Unflushed { bytes: text.into_bytes(), masked: 0 };
        String::from_utf8_lossy(&replace(&self.shown, &whole, true).0).into_owned()
    }

    /// Masks texts that are stored or displayed one after the other with a separator between them.
    /// If a value spans several of them, all are replaced by `****`.
    pub fn mask_joined(&self, texts: &[&str], separator: &str) -> Vec<String> {
        let masked: Vec<String> = texts.iter().map(|text| self.mask(text.to_string())).collect();
        if self.mask(texts.join(separator)) == masked.join(separator) { masked } else { vec![MASK.into(); texts.len()] }
    }
}

/// Byte strings of at least [`MIN_MASKED`] bytes that are searched for together.
#[derive(Debug, Default)]
struct SecretPatterns {
    sorted: Vec<Vec<u8>>,
    /// First bytes of the strings.
    first: Vec<bool>,
}

impl SecretPatterns {
    fn of(strings: impl Iterator<Item = Vec<u8>>) -> SecretPatterns {
        let mut sorted: Vec<Vec<u8>> = strings.filter(|string| string.len() >= MIN_MASKED).collect();
        sorted.sort();
        sorted.dedup();
        let mut first = vec![false; 256];
        sorted.iter().for_each(|string| first[usize::from(string[0])] = true);
        SecretPatterns { sorted, first }
    }

    fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// Returns true if the text may start with one of the strings, or with the beginning of one.
    fn may_start(&self, text: &[u8]) -> bool {
        text.first().and_then(|byte| self.first.get(usize::from(*byte))) == Some(&true)
    }

    /// Returns true if one of the strings starts with the whole text and is longer.
    fn continue_text(&self, text: &[u8]) -> bool {
        let after = self.sorted.partition_point(|string| string.as_slice() <= text);
        self.sorted.get(after).is_some_and(|string| string.starts_with(text))
    }

    /// Returns the length of the longest of the strings that is a prefix of the text; 0 if there is
    /// none.
    fn longest_prefix(&self, text: &[u8]) -> usize {
        // All prefixes of the text sort before it, and the longest is the last of them. A string
        // between the two has more in common with the text than that prefix.
        let mut common = text;
        while common.len() >= MIN_MASKED {
            let after = self.sorted.partition_point(|string| string.as_slice() <= common);
            let Some(last) = after.checked_sub(1).map(|at| &self.sorted[at]) else { return 0 };
            let equal = last.iter().zip(common).take_while(|(a, b)| a == b).count();
            if equal == last.len() {
                return equal;
            }
            common = &common[..equal];
        }
        0
    }
}

/// Returns the forms in which a message may show a value: as it is, its parts between control
/// characters, and each of these with the escape sequences of a quoted string.
fn shown_forms(value: &[u8]) -> Vec<Vec<u8>> {
    let parts = value.split(u8::is_ascii_control).map(|part| part.trim_ascii().to_vec());
    let mut forms: Vec<Vec<u8>> = parts.chain([value.to_vec()]).collect();
    let quoted = forms.iter().filter_map(|form| std::str::from_utf8(form).ok());
    let quoted: Vec<Vec<u8>> = quoted.map(|form| form.escape_debug().to_string().into_bytes()).collect();
    forms.extend(quoted);
    forms
}

/// Masks the values of secrets in two streams, even if a value is split between chunks.
pub(crate) struct Mask {
    values: Arc<SecretPatterns>,
    held: [Unflushed; 2],
}

/// Text that is not masked yet.
#[derive(Default)]
struct Unflushed {
    bytes: Vec<u8>,
    /// Number of leading bytes that belong to a value for which `****` has already been written.
    masked: usize,
}

impl Mask {
    /// Returns a mask for the output of one command.
    pub fn new(values: &SecretValues) -> Mask {
        Mask { values: values.values.clone(), held: Default::default() }
    }

    /// Returns the output that can be shown now. A tail that may be the beginning of a secret is
    /// held back.
    pub fn push(&mut self, stream: Stream, bytes: &[u8]) -> Vec<u8> {
        if self.values.is_empty() {
            return bytes.to_vec();
        }
        let held = &mut self.held[index(stream)];
        held.bytes.extend_from_slice(bytes);
        let (shown, rest) = replace(&self.values, held, false);
        *held = rest;
        shown
    }

    /// Returns the held-back output at the end of the stream.
    pub fn finish(&mut self, stream: Stream) -> Vec<u8> {
        let held = std::mem::take(&mut self.held[index(stream)]);
        replace(&self.values, &held, true).0
    }
}

/// Replaces every occurrence of a value by `****`, also one between whose bytes there are escape
/// sequences or control characters: a program may color a part of a value, and whoever displays the
/// output may remove them. Overlapping occurrences are replaced together; otherwise, a part of the
/// later one would remain. Also returns the tail that may be the beginning of a value, unless this
/// is the last text.
fn replace(values: &SecretPatterns, text: &Unflushed, last: bool) -> (Vec<u8>, Unflushed) {
    let Unflushed { bytes, masked } = text;
    let last = last || bytes.len() > MAX_HELD;
    let between = InterruptedValues::of(values, bytes);
    let mut masked_to = *masked;
    let mut shown = Vec::with_capacity(bytes.len());
    for (at, byte) in bytes.iter().enumerate() {
        let rest = &bytes[at..];
        let may_start = values.may_start(rest);
        // A longer value may continue in the next chunk.
        if !last && (between.unfinished == Some(at) || (may_start && values.continue_text(rest))) {
            return (shown, Unflushed { bytes: rest.to_vec(), masked: masked_to.saturating_sub(at) });
        }
        let whole = if may_start { values.longest_prefix(rest) } else { 0 };
        let found = between.end_of(at).map_or(0, |end| end - at).max(whole);
        if at >= masked_to {
            match found {
                0 => shown.push(*byte),
                _ => shown.extend_from_slice(MASK.as_bytes()),
            }
        }
        masked_to = masked_to.max(at + found);
    }
    (shown, Unflushed::default())
}

/// The values in an output without its escape sequences and control characters.
#[derive(Default)]
struct InterruptedValues {
    /// Positions of the first byte and of the end of each value, in order.
    found: Vec<(usize, usize)>,
    /// Position of a tail that may be the beginning of a value.
    unfinished: Option<usize>,
}

impl InterruptedValues {
    fn of(values: &SecretPatterns, bytes: &[u8]) -> InterruptedValues {
        if values.is_empty() || !may_have_controls(bytes) {
            return InterruptedValues::default();
        }
        let positions = shown_positions(bytes);
        let shown: Vec<u8> = positions.iter().map(|at| bytes[*at]).collect();
        let (mut found, mut unfinished) = (Vec::new(), None);
        for (at, position) in positions.iter().enumerate() {
            let rest = &shown[at..];
            if !values.may_start(rest) {
                continue;
            }
            if unfinished.is_none() && values.continue_text(rest) {
                unfinished = Some(*position);
            }
            match values.longest_prefix(rest) {
                0 => {}
                length => found.push((*position, positions[at + length - 1] + 1)),
            }
        }
        InterruptedValues { found, unfinished }
    }

    /// Returns the end of the value that begins at a position.
    fn end_of(&self, at: usize) -> Option<usize> {
        let index = self.found.binary_search_by_key(&at, |(start, _)| *start).ok()?;
        Some(self.found[index].1)
    }
}

fn index(stream: Stream) -> usize {
    usize::from(stream == Stream::Stderr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_masked_across_chunk_boundaries() {
        let values = [&b" hunter2\n"[..], b"hunter22", b"no"].map(|value| (String::new(), value.to_vec()));
        let values = SecretValues::of(&values);
        let text = b"say hunter2, hunter22 or no hunt";
        for cut in 0..text.len() {
            let (a, b) = text.split_at(cut);
            let mut mask = Mask::new(&values);
            let mut shown = mask.push(Stream::Stdout, a);
            shown.extend(mask.push(Stream::Stdout, b));
            shown.extend(mask.finish(Stream::Stdout));
            assert_eq!(String::from_utf8(shown).unwrap(), "say ****, **** or no hunt", "{cut}");
        }
        assert_eq!(values.mask("/a/hunter22 no hunter".into()), "/a/**** no hunter");
        assert_eq!(SecretValues::default().mask("hunter2".into()), "hunter2");
    }

    #[test]
    fn overlapping_values_are_masked_completely() {
        let secrets = ["a-token-", "token-of-prod", "of-prod-1234", "prod", "prod-1234-5678"];
        let values = SecretValues::of(&secrets.map(|value| (String::new(), value.as_bytes().to_vec())));
        let text = "x a-token-of-prod-1234-5678 prodprod a-token";
        assert_eq!(values.mask(text.into()), "x **** ******** a-token");
        for cut in 0..text.len() {
            let (a, b) = text.as_bytes().split_at(cut);
            let mut mask = Mask::new(&values);
            let shown = [mask.push(Stream::Stdout, a), mask.push(Stream::Stdout, b), mask.finish(Stream::Stdout)];
            assert_eq!(String::from_utf8(shown.concat()).unwrap(), "x **** ******** a-token", "{cut}");
        }
    }

    #[test]
    fn values_are_masked_across_escape_sequences() {
        let values = SecretValues::of(&[(String::new(), b"supersecretvalue\nline two\n".to_vec())]);
        for (text, want) in [
            ("key: super\x1b[01;31m\x1b[Ksecret\x1b[m\x1b[Kvalue\n", "key: ****\n"),
            ("\x1b[1msuper\x08secretvalue\x1b[m, supersecret\x1b[mvalues", "\x1b[1m****\x1b[m, ****s"),
            ("a\x1b]0;supersecretvalue\x07b", "a\x1b]0;****\x07b"),
            ("line\x1b[K two, li\u{9b}ne two\r\n", "****, ****\r\n"),
            ("super\x1b[1mnot", "super\x1b[1mnot"),
        ] {
            for cut in (0..text.len()).filter(|cut| text.is_char_boundary(*cut)) {
                let (a, b) = text.as_bytes().split_at(cut);
                let mut mask = Mask::new(&values);
                let shown = [mask.push(Stream::Stdout, a), mask.push(Stream::Stdout, b), mask.finish(Stream::Stdout)];
                assert_eq!(String::from_utf8(shown.concat()).unwrap(), want, "{cut}");
            }
        }
        let mut mask = Mask::new(&values);
        mask.push(Stream::Stdout, b"supersecret");
        for _ in 0..3 {
            mask.push(Stream::Stdout, "\x1b[m".repeat(150_000).as_bytes());
        }
        assert!(mask.held[0].bytes.len() <= MAX_HELD, "no endless text is held back");
    }

    #[test]
    fn each_line_of_a_value_is_masked() {
        let key = "-----BEGIN KEY-----\r\n  MIIEvQ\nIBA\n\n-----END KEY-----\n";
        let values = SecretValues::of(&[(String::new(), key.as_bytes().to_vec())]);
        for (text, want) in [
            (key, "****\n"),
            ("1: -----BEGIN KEY-----\n2: MIIEvQ\n3: IBA\n", "1: ****\n2: ****\n3: IBA\n"),
            ("MIIEvQ\nIBA\n\n-----END KEY-----", "****\nIBA\n\n****"),
            ("MIIEv BEGIN\n", "MIIEv BEGIN\n"),
        ] {
            for cut in 0..text.len() {
                let (a, b) = text.as_bytes().split_at(cut);
                let mut mask = Mask::new(&values);
                let shown = [mask.push(Stream::Stdout, a), mask.push(Stream::Stdout, b), mask.finish(Stream::Stdout)];
                assert_eq!(String::from_utf8(shown.concat()).unwrap(), want, "{cut}");
            }
        }
    }

    #[test]
    fn the_longest_of_many_values_is_found() {
        let strings = ["aaaa", "aaaab", "aaaabcd", "aaaabca", "bbbb", "abcd", "aaaabcdzz"];
        let needles = SecretPatterns::of(strings.iter().chain(&["abc", ""]).map(|string| string.as_bytes().to_vec()));
        let mut texts = vec![String::new()];
        for _ in 0..7 {
            let longer = |text: &String| ["a", "b", "cd"].map(|more| format!("{text}{more}"));
            texts = texts.iter().flat_map(longer).collect();
            for text in &texts {
                let fitting = strings.iter().filter(|string| text.starts_with(**string));
                let longest = fitting.map(|string| string.len()).max().unwrap_or(0);
                assert_eq!(needles.longest_prefix(text.as_bytes()), longest, "{text}");
                let continued = strings.iter().any(|string| string.len() > text.len() && string.starts_with(text));
                assert_eq!(needles.continue_text(text.as_bytes()), continued, "{text}");
            }
        }
    }

    #[test]
    fn a_value_that_spans_several_texts_hides_all_of_them() {
        let values = SecretValues::of(&[
            (String::new(), b"TOKEN\nTOKEN=hunter2-prod".to_vec()),
            (String::new(), b"hunter2".to_vec()),
        ]);
        for (name, value, masked) in [
            ("TOKEN", "hunter2-prod", ["****", "****"]),
            ("TOKEN", "other", ["****", "other"]),
            ("A", "hunter2-test", ["A", "****-test"]),
        ] {
            assert_eq!(values.mask_joined(&[name, value], "="), masked);
        }
    }

    #[test]
    fn messages_show_no_form_of_a_value() {
        let values = SecretValues::of(&[(String::new(), b"-----BEGIN\n\"MIIEvQ\\IB\tADANBg\n-----END\n".to_vec())]);
        for (text, masked) in [
            (
                "`-----BEGIN\n       \"MIIEvQ\\IB    ADANBg\n   -----END` not found",
                "`****\n       ****    ****\n   ****` not found",
            ),
            ("cannot open \"a/-----BEGIN\\n\\\"MIIEvQ\\\\IB\\tADANBg\\n-----END\"", "cannot open \"a/****\""),
            ("part \\\"MIIEvQ\\\\IB", "part ****"),
            ("-----BEGIN", "****"),
        ] {
            assert_eq!(values.mask(text.into()), masked);
        }
    }
}
