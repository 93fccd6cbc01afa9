//! Escapes untrusted text for the terminal.

use std::borrow::Cow;

/// Escapes everything in a text that a terminal would interpret: control characters except line
/// breaks and tabs, and marks that change the direction of writing. For texts from servers,
/// archives and programs.
pub fn plain(text: &str) -> Cow<'_, str> {
    let is_obeyed = |c: char| {
        c.is_control() && !matches!(c, '\n' | '\t') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let escape = |c: char| if is_obeyed(c) { c.escape_default().collect() } else { String::from(c) };
    Cow::Owned(text.chars().map(escape).collect())
}
