//! Splits the arguments of instructions into words, and parses the JSON form.

use std::borrow::Cow;

use crate::ast::Word;
use crate::diagnostic::Span;
use crate::text::Text;

/// Returns true for characters that separate the words of unquoted lists.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\u{b}' | '\u{c}' | '\r')
}

/// Splits at whitespace and ignores quotes (COPY, EXPOSE, FROM).
pub fn plain(text: &Text) -> Vec<Word> {
    let mut found = Vec::new();
    let mut start = None;
    for (i, c) in text.text.char_indices().chain([(text.text.len(), ' ')]) {
        match (is_blank(c), start) {
            (true, Some(from)) => {
                found.push(word(text, from, i));
                start = None;
            }
            (false, None) => start = Some(i),
            _ => {}
        }
    }
    found
}

/// Splits at unquoted, unescaped whitespace. Quotes and escapes are kept in the words (ENV, LABEL,
/// ARG).
pub fn quoted(text: &Text, escape: char) -> Vec<Word> {
    split_quoted(&text.text, escape).into_iter().map(|(a, b)| word(text, a, b)).collect()
}

/// Returns the byte ranges of the words that [`quoted`] returns.
pub fn split_quoted(text: &str, escape: char) -> Vec<(usize, usize)> {
    split(text, escape).0
}

/// Returns the help for a text that has too few words because of a character that only looks like a
/// blank. The part of the word before it must satisfy `is_word`.
pub fn false_blank_help(text: &str, is_word: impl Fn(&str) -> bool) -> Option<String> {
    let (before, blank) = false_blank(text).filter(|(before, _)| is_word(before))?;
    Some(format!("replace the character U+{:04X} after `{before}` by a space", u32::from(blank)))
}

/// Returns the first character that looks like a blank but does not separate words, such as U+00A0,
/// and the part of the word before it.
fn false_blank(text: &str) -> Option<(&str, char)> {
    let (at, blank) = text.char_indices().find(|(_, c)| c.is_whitespace() && !is_blank(*c))?;
    Some((text[..at].rsplit(is_blank).next()?, blank))
}

/// Returns the kind of the quote (`single` or `double`) that is not closed in the text.
pub fn unclosed_quote(text: &str, escape: char) -> Option<&'static str> {
    split(text, escape).1.map(|quote| if quote == '"' { "double" } else { "single" })
}

/// Returns the byte ranges of the words, and the quote that is not closed.
fn split(text: &str, escape: char) -> (Vec<(usize, usize)>, Option<char>) {
    let mut found = Vec::new();
    let mut start = None;
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        if start.is_none() {
            if c.is_whitespace() {
                continue;
            }
            start = Some(i);
        }
        match quote {
            Some(q) if c == q => quote = None,
            // Nothing is escaped between single quotes.
            Some('"') if c == escape => {
                chars.next();
            }
            Some(_) => {}
            None if c.is_whitespace() => {
                found.extend(start.take().map(|from| (from, i)));
            }
            None if c == '\'' || c == '"' => quote = Some(c),
            None if c == escape => {
                chars.next();
            }
            None => {}
        }
    }
    found.extend(start.map(|from| (from, text.len())));
    (found, quote)
}

/// Returns `text[start..end]` as a word.
pub fn word(text: &Text, start: usize, end: usize) -> Word {
    Word { text: text.text[start..end].to_string(), span: text.span(start, end) }
}

/// Returns the whole text as one word.
pub fn whole(text: &Text) -> Word {
    word(text, 0, text.text.len())
}

/// Returns the offset of the end of the first word, which only ASCII whitespace ends.
pub fn keyword_end(text: &str) -> usize {
    text.find(is_blank).unwrap_or(text.len())
}

/// Splits off the first word, which only ASCII whitespace ends. Returns it, and the rest without
/// leading whitespace.
pub fn split_keyword(text: &Text) -> (Word, Text) {
    let end = keyword_end(&text.text);
    (word(text, 0, end), text.slice(end, text.text.len()).without_indent())
}

/// Splits off the first word like [`split_keyword`]. Only ASCII whitespace separates the rest.
pub fn split_name(text: &Text) -> (Word, Text) {
    let end = keyword_end(&text.text);
    let start = text.text.len() - text.text[end..].trim_start_matches(is_blank).len();
    (word(text, 0, end), text.slice(start, text.text.len()))
}

/// Reason why a text is not a JSON array of strings.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotJson {
    /// Not a JSON array: the shell form or a plain list.
    #[error("not a JSON array")]
    Other,
    /// A JSON array with an item that is not a string.
    #[error("not all items of the JSON array are strings")]
    NotStrings,
}

/// Parses a JSON array of strings.
pub fn json_strings(text: &str) -> Result<Vec<String>, NotJson> {
    if !text.starts_with('[') {
        return Err(NotJson::Other);
    }
    match serde_json::from_str::<Vec<serde_json::Value>>(&without_lone_surrogates(text)) {
        Err(_) => Err(NotJson::Other),
        Ok(items) => items
            .into_iter()
            .map(|item| match item {
                serde_json::Value::String(s) => Ok(s),
                _ => Err(NotJson::NotStrings),
            })
            .collect(),
    }
}

/// Returns the byte ranges of the strings of a valid JSON array of strings, with their quotes.
pub fn json_items(text: &str) -> Vec<(usize, usize)> {
    let mut items = Vec::new();
    let mut start = None;
    let mut bytes = text.bytes().enumerate();
    while let Some((i, byte)) = bytes.next() {
        match (byte, start) {
            (b'\\', Some(_)) => drop(bytes.next()),
            (b'"', None) => start = Some(i),
            (b'"', Some(from)) => {
                items.push((from, i + 1));
                start = None;
            }
            _ => {}
        }
    }
    items
}

/// Replaces the escapes of unpaired surrogates by that of U+FFFD, as Go's decoder does. Preserves
/// the offsets of all characters, because the escapes have the same length.
pub fn without_lone_surrogates(json: &str) -> Cow<'_, str> {
    if !json.contains("\\u") {
        return Cow::Borrowed(json);
    }
    let unit = |at: usize| {
        let digits = json.get(at..)?.strip_prefix("\\u")?.get(..4)?;
        digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u16::from_str_radix(digits, 16).ok())?
    };
    let (mut text, mut at) = (String::with_capacity(json.len()), 0);
    while let Some(escape) = json[at..].find('\\').map(|offset| at + offset) {
        text.push_str(&json[at..escape]);
        let pair = [unit(escape), unit(escape + 6)].into_iter().map_while(|unit| unit);
        let pair: Vec<u16> = pair.collect();
        let first = pair.first().map(|first| char::decode_utf16([*first]).all(|c| c.is_ok()));
        let (length, is_lone) = match first {
            // Another escape: the backslash and the character after it.
            None => (1 + json[escape + 1..].chars().next().map_or(0, char::len_utf8), false),
            Some(true) => (6, false),
            Some(false) if pair.len() == 2 && char::decode_utf16(pair).all(|c| c.is_ok()) => (12, false),
            Some(false) => (6, true),
        };
        text.push_str(if is_lone { "\\ufffd" } else { &json[escape..escape + length] });
        at = escape + length;
    }
    text.push_str(&json[at..]);
    Cow::Owned(text)
}

/// Splits `NAME=VALUE` into two words with their spans.
pub fn pair(word: &Word) -> Option<(Word, Word)> {
    let at = word.text.find('=')?;
    let (name, value) = (&word.text[..at], &word.text[at + 1..]);
    let mid = word.span.start + at;
    let name = Word { text: name.to_string(), span: Span::new(word.span.start, mid.min(word.span.end)) };
    let start = (mid + 1).min(word.span.end);
    Some((name, Word { text: value.to_string(), span: Span::new(start, word.span.end) }))
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, no_remedy, variants};

    use super::*;

    fn text(s: &str) -> Text {
        let mut t = Text::default();
        t.push(s, 0);
        t
    }

    #[test]
    fn messages_are_as_recorded() {
        let errors = [NotJson::Other, NotJson::NotStrings];
        assert_recorded!("NotJson", variants!(NotJson { Other, NotStrings }).table(&errors, |e| e, no_remedy));
    }

    #[test]
    fn quoted_and_escaped_spaces_do_not_split_words() {
        let cases: [(&str, &[&str]); 6] = [
            ("a=b c=d", &["a=b", "c=d"]),
            (r#"a="b c" d"#, &[r#"a="b c""#, "d"]),
            (r"a=b\ c d", &[r"a=b\ c", "d"]),
            (r"a='b \' c='d'", &[r"a='b \'", "c='d'"]),
            (r#"a="b \" c" d"#, &[r#"a="b \" c""#, "d"]),
            ("  ", &[]),
        ];
        for (input, want) in cases {
            let got: Vec<String> = quoted(&text(input), '\\').into_iter().map(|w| w.text).collect();
            assert_eq!(got, want, "{input}");
        }
    }

    #[test]
    fn json_form_must_be_an_array_of_strings() {
        assert_eq!(json_strings(r#"["a", "b c"]"#), Ok(vec!["a".into(), "b c".into()]));
        assert_eq!(json_strings("['a']"), Err(NotJson::Other));
        assert_eq!(json_strings(r#"["a"] b"#), Err(NotJson::Other));
        assert_eq!(json_strings(r#"["a", 1]"#), Err(NotJson::NotStrings));
        assert_eq!(json_strings("[]"), Ok(vec![]));
    }

    #[test]
    fn items_of_json_arrays_are_located() {
        for text in [r#"["a b", "/c"]"#, r#"[ "\"", "\\", "é", "" ]"#, "[]"] {
            let found: Vec<String> =
                json_items(text).iter().map(|(a, b)| serde_json::from_str(&text[*a..*b]).unwrap()).collect();
            assert_eq!(Ok(found), json_strings(text), "{text}");
        }
    }

    #[test]
    fn unpaired_surrogates_are_replaced() {
        for (json, text) in [
            (r#"["a\ud83d"]"#, "a\u{fffd}"),
            (r#"["\ud83dx\ude00"]"#, "\u{fffd}x\u{fffd}"),
            (r#"["\ud83d\ude00"]"#, "\u{1f600}"),
            (r#"["\ud83d\ud83d\ude00"]"#, "\u{fffd}\u{1f600}"),
            (r#"["\\ud83d\u00e9é"]"#, "\\ud83déé"),
        ] {
            assert_eq!(json_strings(json), Ok(vec![text.to_string()]), "{json}");
        }
        assert_eq!(json_strings(r#"["\ud8"]"#), Err(NotJson::Other));
        assert_eq!(json_strings("[\"\\"), Err(NotJson::Other));
    }
}
