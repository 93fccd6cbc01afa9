//! Masking of secrets in the output of commands and in everything that is reported or recorded.

use std::sync::Arc;

use rbuild_sandbox::Stream;

const MASK: &[u8] = b"****";
/// Minimum length of a masked value. Masking shorter ones would make logs unreadable.
const SHORTEST: usize = 4;

/// The values of a build's secrets that are long enough to be masked, without surrounding white
/// space.
#[derive(Debug, Clone, Default)]
pub struct SecretValues(Arc<Vec<Vec<u8>>>);

impl SecretValues {
    pub fn of(secrets: &[(String, Vec<u8>)]) -> SecretValues {
        let trimmed = secrets.iter().map(|(_, value)| value.trim_ascii().to_vec());
        let mut values: Vec<Vec<u8>> = trimmed.filter(|v| v.len() >= SHORTEST).collect();
        // Longest first, so that a value that starts with another one is masked completely.
        values.sort_by_key(|v| std::cmp::Reverse(v.len()));
        SecretValues(Arc::new(values))
    }

    /// Returns the text with each value replaced by `****`.
    pub fn mask(&self, text: String) -> String {
        if self.0.is_empty() {
            return text;
        }
        let shown = Mask::new(self).replace(text.as_bytes(), true).0;
        String::from_utf8_lossy(&shown).into_owned()
    }
}

/// Masks the values of secrets in two streams, even if a value is split between chunks.
pub(crate) struct Mask {
    values: Arc<Vec<Vec<u8>>>,
    held: [Vec<u8>; 2],
}

impl Mask {
    pub fn new(values: &SecretValues) -> Mask {
        Mask { values: values.0.clone(), held: [Vec::new(), Vec::new()] }
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
                    shown.extend_from_slice(MASK);
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
}
