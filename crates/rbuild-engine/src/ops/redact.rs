//! Masking of secrets in the output of commands and in everything that is reported or recorded.

use std::sync::Arc;

use rbuild_sandbox::Stream;

pub(crate) const MASK: &str = "****";
/// Minimum length of a masked value. Masking shorter ones would make logs unreadable.
const SHORTEST: usize = 4;

/// The values of a build's secrets that are long enough to be masked, without surrounding white
/// space.
#[derive(Debug, Clone, Default)]
pub struct SecretValues {
    values: Arc<Vec<Vec<u8>>>,
    /// The forms in which a message may show them: the values, their parts between control
    /// characters, and both in quotes.
    shown: Arc<Vec<Vec<u8>>>,
}

impl SecretValues {
    pub fn of(secrets: &[(String, Vec<u8>)]) -> SecretValues {
        let trimmed = secrets.iter().map(|(_, value)| value.trim_ascii().to_vec());
        let values = longest_first(trimmed.collect());
        let shown = values.iter().flat_map(|value| shown_forms(value)).collect();
        SecretValues { values: Arc::new(values), shown: Arc::new(longest_first(shown)) }
    }

    /// Returns a message with each value replaced by `****`. Messages may show a value in quotes,
    /// or in several lines with an indentation.
    pub fn mask(&self, text: String) -> String {
        if self.shown.is_empty() {
            return text;
        }
        let mask = Mask { values: self.shown.clone(), held: Default::default() };
        let shown = mask.replace(text.as_bytes(), true).0;
        String::from_utf8_lossy(&shown).into_owned()
    }
}

/// Returns those values that are long enough, the longest first, so that a value that starts with
/// another one is masked completely.
fn longest_first(mut values: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    values.retain(|value| value.len() >= SHORTEST);
    values.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
    values.dedup();
    values
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
    values: Arc<Vec<Vec<u8>>>,
    held: [Vec<u8>; 2],
}

impl Mask {
    pub fn new(values: &SecretValues) -> Mask {
        Mask { values: values.values.clone(), held: [Vec::new(), Vec::new()] }
    }

    /// Returns the output that can be shown by now. A tail that may be the beginning of a secret is
    /// held back.
    pub fn push(&mut self, stream: Stream, bytes: &[u8]) -> Vec<u8> {
        if self.values.is_empty() {
            return bytes.to_vec();
        }
        let mut text = std::mem::take(&mut self.held[index(stream)]);
        text.extend_from_slice(bytes);
        let (shown, rest) = self.replace(&text, false);
        self.held[index(stream)] = rest;
        shown
    }

    /// Returns the held-back output at the end of the stream.
    pub fn finish(&mut self, stream: Stream) -> Vec<u8> {
        let held = std::mem::take(&mut self.held[index(stream)]);
        self.replace(&held, true).0
    }

    fn replace(&self, text: &[u8], last: bool) -> (Vec<u8>, Vec<u8>) {
        let mut shown = Vec::with_capacity(text.len());
        let mut at = 0;
        while at < text.len() {
            let rest = &text[at..];
            // A longer value may continue in the next chunk.
            if !last && self.values.iter().any(|v| v.len() > rest.len() && v.starts_with(rest)) {
                return (shown, rest.to_vec());
            }
            match self.values.iter().find(|v| rest.starts_with(v)) {
                Some(value) => {
                    shown.extend_from_slice(MASK.as_bytes());
                    at += value.len();
                }
                None => {
                    shown.push(text[at]);
                    at += 1;
                }
            }
        }
        (shown, Vec::new())
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
