//! HEALTHCHECK.

use crate::ast::*;
use crate::diagnostic::Diagnostic;
use crate::duration::parse_duration;
use crate::flags::Flags;
use crate::parse::arguments;
use crate::text::Text;
use crate::words::{self, split_keyword};

/// Returns true for arguments that switch off a check.
pub fn is_none(arguments: &Text) -> bool {
    split_keyword(arguments).0.text.eq_ignore_ascii_case("NONE")
}

/// Parses a check. Errors are added to `errors`.
pub fn healthcheck(flags: Flags, rest: &Text, errors: &mut Vec<Diagnostic>) -> Option<Healthcheck> {
    let (kind, rest) = split_keyword(rest);
    let mut time = |name| duration(flags.one(name), errors);
    let (interval, timeout) = (time("interval"), time("timeout"));
    let (start_period, start_interval) = (time("start-period"), time("start-interval"));
    let retries = retries(flags.one("retries"), errors);
    match kind.text.to_ascii_uppercase().as_str() {
        "NONE" if rest.text.is_empty() => Some(Healthcheck::None),
        "NONE" => {
            let d = Diagnostic::new(kind.span, "HEALTHCHECK NONE has no arguments");
            errors.push(d.help("use the form `HEALTHCHECK NONE`"));
            None
        }
        "CMD" if rest.text.is_empty() || words::json_strings(&rest.text).is_ok_and(|argv| argv.is_empty()) => {
            let d = Diagnostic::new(kind.span, "HEALTHCHECK CMD requires a command");
            errors.push(d.help("use the form `HEALTHCHECK CMD command`"));
            None
        }
        "CMD" => {
            let command = arguments::command(&rest, errors)?;
            Some(Healthcheck::Check { interval, timeout, start_period, start_interval, retries, command })
        }
        _ => {
            let d = Diagnostic::new(kind.span, format!("unknown HEALTHCHECK type `{}`", kind.text));
            let is_kind = |word: &str| ["CMD", "NONE"].iter().any(|kind| word.eq_ignore_ascii_case(kind));
            let form = || "use the form `HEALTHCHECK CMD command` or `HEALTHCHECK NONE`".into();
            errors.push(d.help(words::false_blank_help(&kind.text, is_kind).unwrap_or_else(form)));
            None
        }
    }
}

/// Returns the nanoseconds of a duration; an empty one is the default, 0.
fn duration(word: Option<Word>, errors: &mut Vec<Diagnostic>) -> i64 {
    let Some(word) = word.filter(|word| !word.text.is_empty()) else { return 0 };
    let reason = match parse_duration(&word.text) {
        Ok(0) => return 0,
        Ok(n) if n >= 1_000_000 => return n,
        Ok(_) => "it is neither 0 nor at least 1ms".to_string(),
        Err(e) => e.to_string(),
    };
    let d = Diagnostic::new(word.span, format!("invalid duration `{}`: {reason}", word.text));
    errors.push(d.help("use the form `30s`, `1m30s` or `500ms`"));
    0
}

/// Returns a number of retries; without one, the default, 0.
fn retries(word: Option<Word>, errors: &mut Vec<Diagnostic>) -> i64 {
    let Some(word) = word.filter(|word| !word.text.is_empty()) else { return 0 };
    match word.text.parse::<i32>() {
        Ok(n) if n >= 0 => n.into(),
        _ => {
            let d = Diagnostic::new(word.span, format!("`{}` is not a number of retries", word.text));
            errors.push(d.help(format!("use a number from 0 to {}", i32::MAX)));
            0
        }
    }
}
