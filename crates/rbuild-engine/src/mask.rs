//! Secrets in what a command prints.

use rbuild_sandbox::Stream;

const MASK: &[u8] = b"****";
/// Shorter values would mask half of every log.
const SHORTEST: usize = 4;

/// Replaces the values of secrets in two streams, also where a value is cut by the end of a piece.
pub struct Mask {
    values: Vec<Vec<u8>>,
    held: [Vec<u8>; 2],
}

impl Mask {
    pub fn new<'a>(values: impl Iterator<Item = &'a [u8]>) -> Mask {
        let trim = |v: &[u8]| v.trim_ascii_end().to_vec();
        let mut values: Vec<Vec<u8>> = values.map(trim).filter(|v| v.len() >= SHORTEST).collect();
        // The longest first, so that a value that begins with another one is masked whole.
        values.sort_by_key(|v| std::cmp::Reverse(v.len()));
        Mask { values, held: [Vec::new(), Vec::new()] }
    }

    /// What may be shown of the stream by now. A tail that may be the beginning of a secret is held back.
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

    /// What was held back, at the end.
    pub fn finish(&mut self, stream: Stream) -> Vec<u8> {
        let held = std::mem::take(&mut self.held[index(stream)]);
        self.replace(&held, true).0
    }

    fn replace(&self, text: &[u8], last: bool) -> (Vec<u8>, Vec<u8>) {
        let mut shown = Vec::with_capacity(text.len());
        let mut at = 0;
        while at < text.len() {
            let rest = &text[at..];
            // A longer value may still be on its way.
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
    fn values_are_masked_across_pieces() {
        let values: [&[u8]; 3] = [b"hunter2\n", b"hunter22", b"no"];
        let text = b"say hunter2, hunter22 or no hunt";
        for cut in 0..text.len() {
            let (a, b) = text.split_at(cut);
            let mut mask = Mask::new(values.into_iter());
            let mut shown = mask.push(Stream::Stdout, a);
            shown.extend(mask.push(Stream::Stdout, b));
            shown.extend(mask.finish(Stream::Stdout));
            assert_eq!(String::from_utf8(shown).unwrap(), "say ****, **** or no hunt", "{cut}");
        }
    }
}
