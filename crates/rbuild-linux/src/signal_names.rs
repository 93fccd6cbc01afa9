//! Names and numbers of signals.

use std::ops::RangeInclusive;

use nix::sys::signal::Signal;

/// Numbers of the real-time signals. The two before them are reserved by the C library
/// (signal(7)).
pub(crate) const REAL_TIME: RangeInclusive<i32> = 34..=64;

/// Returns the number of a signal, given by its name, with or without `SIG`, or its number.
/// Real-time signals are named `RTMIN`, `RTMAX`, `RTMIN+n` and `RTMAX-n`.
pub fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return Some(number).filter(|number| Signal::try_from(*number).is_ok() || REAL_TIME.contains(number));
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let distance = |text: &str, sign| match text.strip_prefix(sign) {
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse::<i32>().ok(),
        _ => Some(0).filter(|_| text.is_empty()),
    };
    let real_time = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => distance(rest, '+').and_then(|distance| REAL_TIME.start().checked_add(distance)),
        (_, Some(rest)) => distance(rest, '-').map(|distance| REAL_TIME.end() - distance),
        _ => return format!("SIG{name}").parse::<Signal>().ok().map(|signal| signal as i32),
    };
    real_time.filter(|number| REAL_TIME.contains(number))
}

/// Returns the name of the signal with that number, in a form that [`signal_number`] accepts.
pub fn signal_name(number: i32) -> String {
    match number - REAL_TIME.start() {
        0 => "SIGRTMIN".into(),
        distance @ 1.. => format!("SIGRTMIN+{distance}"),
        _ => Signal::try_from(number).map_or_else(|_| number.to_string(), |signal| signal.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [("TERM", 15), ("SIGTERM", 15), ("sigterm", 15), ("9", 9), ("HUP", 1)] {
            assert_eq!(signal_number(text), Some(number), "{text}");
        }
        for (text, number) in
            [("37", 37), ("64", 64), ("RTMIN", 34), ("SIGRTMIN+3", 37), ("rtmax-14", 50), ("RTMAX", 64)]
        {
            assert_eq!(signal_number(text), Some(number), "{text}");
        }
        for number in (1..32).chain(34..65) {
            assert_eq!(signal_number(&signal_name(number)), Some(number));
        }
        assert_eq!([10, 15, 34, 37].map(signal_name), ["SIGUSR1", "SIGTERM", "SIGRTMIN", "SIGRTMIN+3"]);
        for text in ["32", "65", "RTMIN-1", "RTMAX+1", "RTMIN+31", "RTMAX-31", "RTMIN+", "RTMIN++1", "RTMIN3"] {
            assert_eq!(signal_number(text), None, "{text}");
        }
        for text in ["", "SIG", "0", "-1", "99", "TERMINATE"] {
            assert_eq!(signal_number(text), None, "{text}");
        }
    }
}
