//! Text formats of Docker and Go, which scripts parse.

/// Formats a size in bytes as Docker does: decimal units, three significant digits.
pub fn human_size(bytes: u64) -> String {
    let mut size = bytes as f64;
    for unit in ["B", "kB", "MB", "GB", "TB", "PB", "EB"] {
        if size < 1000.0 || unit == "EB" {
            let digits = if unit == "B" || size >= 100.0 {
                0
            } else if size >= 10.0 {
                1
            } else {
                2
            };
            let mut text = format!("{size:.digits$}");
            if text.contains('.') {
                text = text.trim_end_matches('0').trim_end_matches('.').to_string();
            }
            return format!("{text}{unit}");
        }
        size /= 1000.0;
    }
    unreachable!("the last unit always returns")
}

/// Formats a duration in seconds as Docker does: `45 seconds`, `About a minute`, `3 days`.
pub fn human_duration(seconds: i64) -> String {
    let many = |n: i64, unit: &str| format!("{n} {unit}");
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match seconds {
        i64::MIN..1 => "Less than a second".into(),
        1 => "1 second".into(),
        2..60 => many(seconds, "seconds"),
        _ if minutes == 1 => "About a minute".into(),
        _ if minutes < 60 => many(minutes, "minutes"),
        _ if hours == 1 => "About an hour".into(),
        _ if hours < 48 => many(hours, "hours"),
        _ if hours < 24 * 7 * 2 => many(hours / 24, "days"),
        _ if hours < 24 * 30 * 2 => many(hours / 24 / 7, "weeks"),
        _ if hours < 24 * 365 * 2 => many(hours / 24 / 30, "months"),
        _ => many(hours / 24 / 365, "years"),
    }
}

/// Quotes a string as Go's `%q` does.
pub fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\u{b}' => out.push_str("\\v"),
            c if is_printed(c) => out.push(c),
            c => out.push_str(&match u32::from(c) {
                code @ ..0x80 => format!("\\x{code:02x}"),
                code @ ..0x1_0000 => format!("\\u{code:04x}"),
                code => format!("\\U{code:08x}"),
            }),
        }
    }
    out.push('"');
    out
}

/// Returns true for letters, marks, numbers, punctuation, symbols and the ASCII space
/// (`strconv.IsPrint`).
fn is_printed(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    // `escape_debug` escapes all other characters. It also escapes a combining mark, but only at
    // the start of a text.
    format!(" {c}").escape_debug().eq([' ', c])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_durations_and_quotes_match_docker() {
        let sizes = [0, 999, 1000, 6_470_000, 12_300_000_000, 123_400_000_000, 5_000_000_000_000_000, u64::MAX];
        let durations = [-1, 0, 1, 45, 61, 3540, 3600, 169_200, 259_200, 1_814_400, 7_776_000, 69_120_000];
        let mut text: String = sizes.iter().map(|bytes| format!("{bytes} bytes: {}\n", human_size(*bytes))).collect();
        text.extend(durations.map(|seconds| format!("{seconds} seconds: {}\n", human_duration(seconds))));
        text.extend(
            [
                "a\"b\\c",
                "\n\r\t\u{7}\u{8}\u{b}\u{c}",
                "\u{1}\u{7f}é",
                "'\u{80}\u{a0}\u{ad}\u{200b}\u{2028}\u{e000}\u{feff}\u{e0001}",
                "e\u{301}\u{fe0f}\u{1f600}日本",
            ]
            .map(|text| quote(text) + "\n"),
        );
        rbuild_testkit::assert_recorded!("go", text);
    }
}
