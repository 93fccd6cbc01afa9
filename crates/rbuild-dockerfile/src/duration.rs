//! Durations with the syntax of Go's `time.ParseDuration`: `1h2m3.5s`, `300ms` or `0`.

use std::fmt;

/// The reason why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadDuration {
    /// A part does not begin with a number.
    NoNumber {
        /// The part and what follows it.
        rest: String,
    },
    /// A number has no unit.
    NoUnit {
        /// The number.
        number: String,
    },
    /// There is no such unit.
    UnknownUnit {
        /// The unit.
        unit: String,
    },
    /// The duration exceeds the longest one.
    TooLong,
}

impl fmt::Display for BadDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadDuration::NoNumber { rest } if rest.is_empty() => f.write_str("it has no number"),
            BadDuration::NoNumber { rest } => write!(f, "`{rest}` does not start with a number"),
            BadDuration::NoUnit { number } => write!(f, "`{number}` has no unit"),
            BadDuration::UnknownUnit { unit } => write!(f, "unknown unit `{unit}`"),
            BadDuration::TooLong => f.write_str("it is longer than 292 years"),
        }
    }
}

impl std::error::Error for BadDuration {}

/// Parses a duration into nanoseconds. As in Go, a number has a unit unless the whole text is `0`.
///
/// # Errors
///
/// Fails if the text has another syntax, or if the duration exceeds an `i64`.
pub fn parse_duration(text: &str) -> Result<i64, BadDuration> {
    let (is_negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(BadDuration::NoNumber { rest: String::new() });
    }
    let mut total = 0u64;
    while !rest.is_empty() {
        let (part, after) = next_part(rest)?;
        total = total.checked_add(part).filter(|sum| *sum <= MAX_MAGNITUDE).ok_or(BadDuration::TooLong)?;
        rest = after;
    }
    match (is_negative, i64::try_from(total)) {
        (true, _) => Ok(0i64.wrapping_sub_unsigned(total)),
        (false, Ok(total)) => Ok(total),
        (false, Err(_)) => Err(BadDuration::TooLong),
    }
}

/// Magnitude of the smallest `i64`.
const MAX_MAGNITUDE: u64 = 1 << 63;

/// Parses a number with its unit. Returns the nanoseconds and the text after the unit.
fn next_part(text: &str) -> Result<(u64, &str), BadDuration> {
    let digits = |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (whole, after) = text.split_at(digits(text));
    let (fraction, after) = match after.strip_prefix('.') {
        Some(after) => after.split_at(digits(after)),
        None => ("", after),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(BadDuration::NoNumber { rest: text.to_string() });
    }
    let (unit, rest) = after.split_at(after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len()));
    let scale = match unit {
        "" => {
            let number = text[..text.len() - after.len()].to_string();
            return Err(BadDuration::NoUnit { number });
        }
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        unit => return Err(BadDuration::UnknownUnit { unit: unit.to_string() }),
    };
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| BadDuration::TooLong)? };
    let whole = whole.checked_mul(scale).ok_or(BadDuration::TooLong)?;
    Ok((whole.checked_add(part_of(fraction, scale)).ok_or(BadDuration::TooLong)?, rest))
}

/// Returns the nanoseconds of the digits after a decimal point, rounded as Go rounds them. Digits
/// that do not fit into an `i64` are ignored.
fn part_of(fraction: &str, scale: u64) -> u64 {
    let (mut number, mut tens) = (0u64, 1f64);
    for digit in fraction.bytes().map(|byte| u64::from(byte - b'0')) {
        match number.checked_mul(10).and_then(|more| more.checked_add(digit)).filter(|more| *more <= MAX_MAGNITUDE) {
            Some(more) => number = more,
            None => break,
        }
        tens *= 10.0;
    }
    (number as f64 * (scale as f64 / tens)) as u64
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, no_remedy, variants};

    use super::*;

    #[test]
    fn messages_are_as_recorded() {
        let errors = [
            BadDuration::NoNumber { rest: String::new() },
            BadDuration::NoNumber { rest: "inf".into() },
            BadDuration::NoUnit { number: "30".into() },
            BadDuration::UnknownUnit { unit: "d".into() },
            BadDuration::TooLong,
        ];
        let variants = variants!(BadDuration { NoNumber, NoUnit, UnknownUnit, TooLong });
        assert_recorded!("BadDuration", variants.table(&errors, |e| e, no_remedy));
    }

    #[test]
    fn durations_are_those_of_go() {
        for (text, want) in [
            ("0", 0),
            ("+0", 0),
            ("-0", 0),
            ("0s", 0),
            ("1m30s", 90_000_000_000),
            ("1.5s", 1_500_000_000),
            (".5m", 30_000_000_000),
            ("1.s", 1_000_000_000),
            ("-1.5h", -5_400_000_000_000),
            ("+5s", 5_000_000_000),
            ("1h1s1h", 7_201_000_000_000),
            ("3µs2us", 5_000),
            ("0.3333333333333333333h", 1_200_000_000_000),
            ("9223372036854775807ns", i64::MAX),
            ("-9223372036854775808ns", i64::MIN),
            ("2540400h10m10.000000000s", 9_145_440_610_000_000_000),
        ] {
            assert_eq!(parse_duration(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused_with_the_reason() {
        for (text, reason) in [
            ("", "it has no number"),
            ("-", "it has no number"),
            ("inf", "`inf` does not start with a number"),
            ("NaN", "`NaN` does not start with a number"),
            ("infs", "`infs` does not start with a number"),
            ("--5s", "`-5s` does not start with a number"),
            (".s", "`.s` does not start with a number"),
            (" 5s", "` 5s` does not start with a number"),
            ("5", "`5` has no unit"),
            ("00", "`00` has no unit"),
            ("1h30", "`30` has no unit"),
            ("1.2.3s", "`1.2` has no unit"),
            ("1e3s", "unknown unit `e`"),
            ("5S", "unknown unit `S`"),
            ("1d", "unknown unit `d`"),
            ("5s ", "unknown unit `s `"),
            ("1h-5m", "unknown unit `h-`"),
            ("9223372036854775808ns", "it is longer than 292 years"),
            ("-9223372036854775809ns", "it is longer than 292 years"),
            ("99999999999999999999s", "it is longer than 292 years"),
            ("3000000h", "it is longer than 292 years"),
        ] {
            assert_eq!(parse_duration(text).unwrap_err().to_string(), reason, "{text}");
        }
    }
}
