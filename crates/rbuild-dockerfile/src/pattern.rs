//! Patterns of `${x#pattern}`, `${x%pattern}` and `${x/pattern/replacement}`.

/// Largest result of an expansion in bytes.
pub const MAX_RESULT: usize = 4 << 20;

/// Expands the replacement of `${x//pattern/replacement}` as Go's `Regexp.ReplaceAllString` does:
/// `$0` is the match, other groups are empty, `$$` is a dollar sign. A dollar sign in the
/// replacement can come only from a value or an escape.
fn fill_in(replacement: &str, matched: &[char]) -> String {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let mut out = String::new();
    let mut rest = replacement;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let length = after.find(|c| !word(c)).unwrap_or(after.len());
        let braced = after.strip_prefix('{').and_then(|inner| inner.split_once('}')).filter(|(n, _)| !n.is_empty());
        let (name, left) = match braced {
            _ if after.starts_with('$') => {
                out.push('$');
                ("", &after[1..])
            }
            Some((name, left)) if name.chars().all(word) => (name, left),
            _ if length > 0 => after.split_at(length),
            _ => {
                out.push('$');
                ("", after)
            }
        };
        if name.bytes().all(|b| b == b'0') && name.len() == 1 {
            out.extend(matched);
        }
        rest = left;
    }
    out + rest
}

/// A glob of `*` and `?`, neither of which matches a newline. Matching simulates all positions in
/// the pattern at once, so its time is proportional to the length of the text.
pub struct Pattern(Vec<PatternPiece>);

#[derive(Clone, Copy, PartialEq)]
enum PatternPiece {
    Any,
    One,
    Char(char),
}

/// A backslash before a character that cannot be escaped, or at the end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`\\{0}` cannot be escaped in a pattern")]
pub struct BadEscape(pub String);

impl Pattern {
    /// Parses a pattern. Its escape character is always the backslash.
    pub fn new(text: &str) -> Result<Pattern, BadEscape> {
        let mut pieces = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            pieces.push(match c {
                '*' if pieces.last() == Some(&PatternPiece::Any) => continue,
                '*' => PatternPiece::Any,
                '?' => PatternPiece::One,
                '\\' => match chars.next() {
                    Some(e) if matches!(e, '*' | '?' | '/' | '}' | '\\') => PatternPiece::Char(e),
                    other => return Err(BadEscape(other.map(String::from).unwrap_or_default())),
                },
                c => PatternPiece::Char(c),
            });
        }
        Ok(Pattern(pieces))
    }

    /// Returns the lengths of the shortest and of the longest prefix that matches.
    fn prefix(pieces: &[PatternPiece], text: &[char]) -> Option<(usize, usize)> {
        let mut states = States::new(pieces);
        let mut found = None;
        states.add(0);
        for at in 0..=text.len() {
            if states.accepted().is_some() {
                found = Some((found.map_or(at, |(shortest, _)| shortest), at));
            }
            let Some(c) = text.get(at) else { break };
            states.step(*c);
        }
        found
    }

    /// Removes the shortest prefix that matches, or with `greedy` the longest.
    pub fn trim_start(&self, value: &str, greedy: bool) -> String {
        let chars: Vec<char> = value.chars().collect();
        match Pattern::prefix(&self.0, &chars) {
            Some((shortest, longest)) => chars[if greedy { longest } else { shortest }..].iter().collect(),
            None => value.to_string(),
        }
    }

    /// Removes the shortest suffix that matches, or with `greedy` the longest.
    pub fn trim_end(&self, value: &str, greedy: bool) -> String {
        let backwards: Vec<char> = value.chars().rev().collect();
        let pieces: Vec<PatternPiece> = self.0.iter().rev().copied().collect();
        match Pattern::prefix(&pieces, &backwards) {
            Some((shortest, longest)) => backwards[if greedy { longest } else { shortest }..].iter().rev().collect(),
            None => value.to_string(),
        }
    }

    /// Returns the range of the first match at or after `from`; the longest one at that position.
    fn find(&self, text: &[char], from: usize) -> Option<(usize, usize)> {
        let mut states = States::new(&self.0);
        let mut best: Option<(usize, usize)> = None;
        for at in from..=text.len() {
            if best.is_none() {
                states.add(at);
            }
            if let Some(start) = states.accepted().filter(|start| best.is_none_or(|(first, _)| *start <= first)) {
                best = Some((start, at));
            }
            if best.is_some_and(|(first, _)| !states.keep_until(first)) {
                break;
            }
            let Some(c) = text.get(at) else { break };
            states.step(*c);
        }
        best
    }

    /// Replaces the first match or all matches. As in Go's regular expressions, empty matches are
    /// replaced except directly after another match.
    pub fn replace(&self, value: &str, with: &str, all: bool) -> String {
        let chars: Vec<char> = value.chars().collect();
        if !all {
            let Some((start, end)) = self.find(&chars, 0) else { return value.to_string() };
            return chars[..start].iter().chain(&with.chars().collect::<Vec<_>>()).chain(&chars[end..]).collect();
        }
        let mut out = String::new();
        let (mut done, mut at) = (0, 0);
        while let Some((start, end)) = self.find(&chars, at).filter(|_| at <= chars.len()) {
            out.extend(&chars[done..start]);
            if end > done || start == 0 {
                out.push_str(&fill_in(with, &chars[start..end]));
            }
            if out.len() > MAX_RESULT {
                break;
            }
            done = end;
            at = end.max(at + 1);
        }
        out.extend(chars.get(done..).unwrap_or_default());
        out
    }
}

/// Positions in a pattern that are reached by some match in progress, each with the earliest start
/// of such a match.
struct States<'a> {
    pieces: &'a [PatternPiece],
    starts: Vec<Option<usize>>,
}

impl<'a> States<'a> {
    fn new(pieces: &'a [PatternPiece]) -> States<'a> {
        States { pieces, starts: vec![None; pieces.len() + 1] }
    }

    /// Begins a match at `start`.
    fn add(&mut self, start: usize) {
        self.reach(0, start);
    }

    /// Records that a match that began at `start` has reached the position `state`. It has then
    /// reached the position after a `*` as well, because `*` may match nothing.
    fn reach(&mut self, mut state: usize, start: usize) {
        loop {
            let known = &mut self.starts[state];
            if known.is_some_and(|known| known <= start) {
                return;
            }
            *known = Some(start);
            if self.pieces.get(state) != Some(&PatternPiece::Any) {
                return;
            }
            state += 1;
        }
    }

    /// Returns the earliest start of the matches that are complete.
    fn accepted(&self) -> Option<usize> {
        self.starts[self.pieces.len()]
    }

    /// Drops matches that start after `first`. Returns true if any incomplete match remains.
    fn keep_until(&mut self, first: usize) -> bool {
        self.starts.iter_mut().for_each(|start| *start = start.filter(|start| *start <= first));
        self.starts[..self.pieces.len()].iter().any(Option::is_some)
    }

    fn step(&mut self, c: char) {
        let before = std::mem::replace(&mut self.starts, vec![None; self.pieces.len() + 1]);
        for (state, piece) in self.pieces.iter().enumerate() {
            let Some(start) = before[state] else { continue };
            match piece {
                PatternPiece::Any if c != '\n' => self.reach(state, start),
                PatternPiece::One if c != '\n' => self.reach(state + 1, start),
                PatternPiece::Char(wanted) if *wanted == c => self.reach(state + 1, start),
                _ => {}
            }
        }
    }
}
