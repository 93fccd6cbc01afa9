//! Output of commands without anything that a terminal would execute, except colors.
//!
//! Sequences are those of ECMA-48. A terminal executes control characters within a sequence and
//! then continues it, so they do not end a sequence here either.

const ESCAPE: char = '\u{1b}';
/// CAN and SUB, which abort a sequence.
const ABORTS: [char; 2] = ['\u{18}', '\u{1a}'];

/// Returns false if the functions below change nothing in an output but tabs, as in most output.
/// One pass over the bytes is enough: 0xC2 begins the control characters of two bytes.
pub fn may_have_controls(bytes: &[u8]) -> bool {
    let is_suspect = |b: u8| (b < b' ' && !matches!(b, b'\t' | b'\n')) || matches!(b, 0x7f | 0xc2);
    bytes.iter().fold(false, |found, b| found | is_suspect(*b))
}

/// Appends a line of output. Of escape sequences, only complete ones that set colors are kept, and
/// of control characters, only tabs.
pub fn push_colored(out: &mut String, line: &str) {
    push(out, line, |out, parameters| {
        out.push_str("\u{1b}[");
        out.push_str(parameters);
        out.push('m');
    });
}

/// Returns a line of output without escape sequences and control characters. Tabs become blanks,
/// because their width depends on their column.
pub fn without_escapes(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    push(&mut out, line, |_, _| ());
    out.replace('\t', " ")
}

/// Returns the positions of the bytes of an output that a terminal shows, and of tabs and ends of
/// lines. What the functions above remove is not among them. An output that is no UTF-8 is shown
/// with replacement characters.
pub(crate) fn shown_positions(bytes: &[u8]) -> Vec<usize> {
    let (mut text, mut origins) = (String::with_capacity(bytes.len()), Vec::with_capacity(bytes.len()));
    let mut at = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        origins.extend(at..at + chunk.valid().len());
        at += chunk.valid().len();
        for _ in chunk.invalid() {
            text.push(char::REPLACEMENT_CHARACTER);
            origins.extend([at; char::REPLACEMENT_CHARACTER.len_utf8()]);
            at += 1;
        }
    }
    let (mut shown, mut start) = (Vec::with_capacity(origins.len()), 0);
    for line in text.split_inclusive('\n') {
        let body = line.strip_suffix('\n').unwrap_or(line);
        for part in parts(body) {
            if let LinePart::Char(at, c) = part {
                shown.extend(&origins[start + at..start + at + c.len_utf8()]);
            }
        }
        shown.extend(&origins[start + body.len()..start + line.len()]);
        start += line.len();
    }
    shown.dedup();
    shown
}

/// A part of a line.
enum LinePart {
    /// A character that is shown, or a tab, with its position.
    Char(usize, char),
    /// A sequence that sets a color, with its parameters.
    Color(String),
}

/// Appends the characters of a line, and passes the parameters of each color sequence to `color`.
fn push(out: &mut String, line: &str, color: impl Fn(&mut String, &str)) {
    for part in parts(line) {
        match part {
            LinePart::Char(_, c) => out.push(c),
            LinePart::Color(parameters) => color(out, &parameters),
        }
    }
}

/// Returns the parts of a line without other escape sequences and control characters.
fn parts(line: &str) -> impl Iterator<Item = LinePart> {
    let mut rest = line;
    std::iter::from_fn(move || {
        while let Some(c) = rest.chars().next() {
            let at = line.len() - rest.len();
            rest = &rest[c.len_utf8()..];
            if c == ESCAPE {
                let (parameters, after) = sequence(rest);
                rest = after;
                if let Some(parameters) = parameters {
                    return Some(LinePart::Color(parameters));
                }
            } else if !c.is_control() || c == '\t' {
                return Some(LinePart::Char(at, c));
            }
        }
        None
    })
}

/// Splits the sequence that follows an escape character from the rest of a line. Returns the
/// parameters of the sequence if it sets colors.
fn sequence(text: &str) -> (Option<String>, &str) {
    let Some((first, after)) = next(text) else { return (None, after_abort(text)) };
    match first {
        '[' => control_sequence(after),
        ']' | 'P' | 'X' | '^' | '_' => (None, after_string(after)),
        ' '..='/' => {
            let mut rest = after;
            while let Some((c, after)) = next(rest) {
                match c {
                    ' '..='/' => rest = after,
                    '0'..='~' => return (None, after),
                    _ => return (None, rest),
                }
            }
            (None, after_abort(rest))
        }
        '0'..='~' => (None, after),
        _ => (None, text),
    }
}

/// Splits the rest of a control sequence, after its introducer, from the rest of the line.
fn control_sequence(text: &str) -> (Option<String>, &str) {
    let (mut parameters, mut rest) = (String::new(), text);
    while let Some((c, after)) = next(rest) {
        match c {
            ' '..='?' => parameters.push(c),
            'm' => {
                let is_color = parameters.bytes().all(|b| matches!(b, b'0'..=b';'));
                return (is_color.then_some(parameters), after);
            }
            '@'..='~' => return (None, after),
            _ => return (None, rest),
        }
        rest = after;
    }
    (None, after_abort(rest))
}

/// Returns the rest of a line after the text of an OSC, DCS, SOS, PM or APC, such as a title. If
/// the line has no end of the text, the text is part of the line: a terminal would hide everything
/// that follows.
fn after_string(text: &str) -> &str {
    let is_end = |c: char| c == ESCAPE || ABORTS.contains(&c) || matches!(c, '\u{7}' | '\u{9c}');
    let Some((at, end)) = text.char_indices().find(|(_, c)| is_end(*c)) else { return text };
    match text[at..].strip_prefix("\u{1b}\\") {
        Some(after) => after,
        // Another sequence begins.
        None if end == ESCAPE => &text[at..],
        None => &text[at + end.len_utf8()..],
    }
}

/// Returns the next character of a sequence, and the text after it. Control characters within the
/// sequence are skipped. Returns `None` if the sequence ends here: with the line, by an abort, or
/// because another sequence begins.
fn next(text: &str) -> Option<(char, &str)> {
    let (at, c) = text.char_indices().find(|(_, c)| !c.is_control() || *c == ESCAPE || ABORTS.contains(c))?;
    (!c.is_control()).then(|| (c, &text[at + c.len_utf8()..]))
}

/// Returns the text after an incomplete sequence, at which [`next`] returned `None`.
fn after_abort(text: &str) -> &str {
    let end = text.char_indices().find(|(_, c)| *c == ESCAPE || ABORTS.contains(c));
    end.map_or("", |(at, c)| if c == ESCAPE { &text[at..] } else { &text[at + 1..] })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn colored(line: &str) -> String {
        let mut out = String::new();
        push_colored(&mut out, line);
        out
    }

    #[test]
    fn only_complete_color_sequences_are_kept() {
        for (line, want) in [
            ("a \u{1b}[1;31mred\u{1b}[m", "a \u{1b}[1;31mred\u{1b}[m"),
            ("\u{1b}[38:5:1mx", "\u{1b}[38:5:1mx"),
            // Control characters interrupt a sequence, but do not end it.
            ("\u{1b}\u{7}[3\u{8}1mx", "\u{1b}[31mx"),
            ("\u{1b}[3\u{18}1mx", "1mx"),
            ("\u{1b}[3\u{1b}[1mx", "\u{1b}[1mx"),
            // Cut off, or not a color.
            ("a\u{1b}", "a"),
            ("a\u{1b}[3", "a"),
            ("a\u{1b}[2Jb\u{1b}[?25lc\u{1b}[1 qd", "abcd"),
            ("\u{1b}[>4;1mx\u{1b}[?1mx", "xx"),
            ("\u{1b}(Ba\u{1b}(\u{1b}7b\u{1b}Mc", "abc"),
            ("\u{1b}éa\u{1b}[1éb", "éaéb"),
            // Texts.
            ("\u{1b}]0;title\u{7}after", "after"),
            ("a\u{1b}]8;;http://x\u{1b}\\link\u{1b}]8;;\u{1b}\\ b", "alink b"),
            ("\u{1b}Pq#0\u{1b}\\x \u{1b}[31mred", "x \u{1b}[31mred"),
            ("\u{1b}]0;äö\u{7}ü", "ü"),
            ("\u{1b}]0;a\u{1b}[1mb", "\u{1b}[1mb"),
            ("before \u{1b}]0;without an end", "before 0;without an end"),
            ("bell\u{7} c1\u{85}\u{9b}! \u{7f}é\ta", "bell c1! é\ta"),
        ] {
            assert_eq!(colored(line), want, "{line:?}");
        }
        assert_eq!(without_escapes("a\tb \u{1b}[31mred\u{1b}[0m\u{1b}]0;t\u{7}"), "a b red");
    }

    /// Returns true if a terminal would execute nothing of a text but complete color sequences.
    fn is_harmless(text: &str) -> bool {
        let mut parts = text.split(ESCAPE);
        let is_plain = |part: &str| !part.contains(|c: char| c.is_control() && c != '\t');
        let is_color = |part: &str| {
            let parameters = part.strip_prefix('[').and_then(|part| part.split_once('m'));
            parameters.is_some_and(|(parameters, _)| parameters.bytes().all(|b| matches!(b, b'0'..=b';')))
        };
        parts.next().is_some_and(is_plain) && parts.all(|part| is_plain(part) && is_color(part))
    }

    #[test]
    fn positions_are_those_of_shown_bytes() {
        let text = b"a\x1b[31mb\x08c\n\xc3\xa4\xff\t\x1b]0;t\x07d\r\n";
        let shown: Vec<u8> = shown_positions(text).into_iter().map(|at| text[at]).collect();
        assert_eq!(shown, b"abc\n\xc3\xa4\xff\td\n");
    }

    /// Characters of which sequences consist.
    const SEQUENCE_CHARACTERS: &str = "\u{1b}\u{7}\u{18}\u{8}\u{9b}\u{9c}[]()P_\\;:?0139mJ é";

    proptest! {
        #[test]
        fn positions_agree_with_what_is_shown(line in "[a-zäé\u{7}\u{8}\u{1b}\u{9b}\\[\\]0-9;mK]{0,40}") {
            let shown: Vec<u8> = shown_positions(line.as_bytes()).into_iter().map(|at| line.as_bytes()[at]).collect();
            prop_assert_eq!(String::from_utf8(shown).unwrap(), without_escapes(&line));
        }

        #[test]
        fn no_sequence_of_a_command_reaches_the_terminal_incomplete(
            line in proptest::collection::vec(
                prop_oneof![
                    prop::sample::select(SEQUENCE_CHARACTERS.chars().collect::<Vec<_>>()),
                    any::<char>(),
                ],
                0..40,
            )
        ) {
            let line: String = line.into_iter().collect();
            let shown = colored(&line);
            prop_assert!(is_harmless(&shown), "{line:?}: {shown:?}");
            prop_assert!(!without_escapes(&line).contains(char::is_control));
            // A shown line stays the same.
            prop_assert_eq!(colored(&shown), shown);
        }

        #[test]
        fn text_between_sequences_is_kept(parts in proptest::collection::vec("[a-zé0-9;m ]{0,8}", 1..6)) {
            let sequences = ["\u{1b}[2J", "\u{1b}]0;title\u{7}", "\u{1b}(B", "\u{1b}[?25l", "\u{1b}Px\u{1b}\\"];
            let line = parts.iter().zip(sequences).map(|(part, sequence)| format!("{part}{sequence}"));
            let line: String = line.collect();
            let kept = parts.len().min(sequences.len());
            prop_assert_eq!(colored(&line), parts[..kept].concat());
        }
    }
}
