//! Lines of command output, ready to print.

/// Prefixes each line of output with the step number and the time in seconds, and drops control
/// characters other than tab and escape.
pub fn shown_lines(bytes: &[u8], number: usize, seconds: f64) -> String {
    let text = String::from_utf8_lossy(bytes);
    let head = format!("#{number} {seconds:.3} ");
    let mut out = String::with_capacity(text.len() * 2);
    // Fast path: most output has no control characters, which one pass over all bytes can
    // establish.
    let clean = !text.bytes().fold(false, |found, b| found | is_suspect(b));
    for line in text.lines() {
        out.push_str(&head);
        if clean {
            out.push_str(line);
        } else {
            // Of a line that redraws itself with \r, only the last version is shown.
            let line = line.rsplit('\r').find(|p| !p.is_empty()).unwrap_or("");
            out.extend(line.chars().filter(|c| !c.is_control() || *c == '\t' || *c == '\u{1b}'));
        }
        out.push('\n');
    }
    out
}

/// Returns true if a byte is a control character that is not shown, or 0xC2, which begins the
/// two-byte ones.
fn is_suspect(byte: u8) -> bool {
    (byte < b' ' && !matches!(byte, b'\t' | b'\n' | 0x1b)) || byte == 0x7f || byte == 0xc2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_lose_their_control_characters_and_nothing_else() {
        let text = "plain\na\tb \u{1b}[1mbold\n50 %\r60 %\r\nbell\u{7} c1\u{85}! \u{7f}é\u{e9}Â\n\n";
        let lines = shown_lines(text.as_bytes(), 3, 1.0);
        assert_eq!(
            lines,
            "#3 1.000 plain\n#3 1.000 a\tb \u{1b}[1mbold\n#3 1.000 60 %\n#3 1.000 bell c1! ééÂ\n#3 1.000 \n"
        );
    }
}
