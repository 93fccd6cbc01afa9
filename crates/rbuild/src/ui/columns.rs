//! Widths of text on the terminal, in columns. Ideographs and most emoji have two columns, and
//! combining marks none.

use unicode_width::UnicodeWidthChar;

/// The mark of text that was cut off.
pub const ELLIPSIS: char = '…';

/// Returns the width of a text without tabs. Control characters have no width.
pub fn width(text: &str) -> usize {
    text.chars().map(char_width).sum()
}

/// Returns the longest beginning of a text that has at most `columns` columns.
pub fn prefix(text: &str, columns: usize) -> &str {
    let mut used = 0;
    let end = text.char_indices().find(|(_, c)| {
        used += char_width(*c);
        used > columns
    });
    end.map_or(text, |(end, _)| &text[..end])
}

/// Truncates a text to that width, with an ellipsis at its end.
pub fn cut(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_string();
    }
    let mut short = prefix(text, columns.saturating_sub(1)).to_string();
    short.push(ELLIPSIS);
    short
}

/// Appends blanks to a text up to that width.
pub fn pad(text: &str, columns: usize) -> String {
    format!("{text}{}", " ".repeat(columns.saturating_sub(width(text))))
}

fn char_width(c: char) -> usize {
    c.width().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_measured_cut_and_padded_in_columns() {
        for (text, columns, wide, beginning, short, padded) in [
            ("make", 5, 4, "make", "make", "make "),
            ("make", 4, 4, "make", "make", "make"),
            ("make", 3, 4, "mak", "ma…", "make"),
            ("編集する", 8, 8, "編集する", "編集する", "編集する"),
            ("編集する", 5, 8, "編集", "編集…", "編集する"),
            ("編集", 6, 4, "編集", "編集", "編集  "),
            // A combining mark stays with its letter.
            ("e\u{301}a", 1, 2, "e\u{301}", "…", "e\u{301}a"),
            ("a", 0, 1, "", "…", "a"),
            ("", 1, 0, "", "", " "),
        ] {
            let found = (width(text), prefix(text, columns), cut(text, columns), pad(text, columns));
            assert_eq!(found, (wide, beginning, short.to_string(), padded.to_string()), "{text} {columns}");
        }
    }
}
