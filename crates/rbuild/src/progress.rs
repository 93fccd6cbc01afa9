//! Build events as progress output on standard error.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rbuild_engine::Event;
use rbuild_linux::Timestamp;

use crate::ui::terminal;

mod groups;
mod lines;
mod plain;
mod rawjson;
mod task;
mod tty;

pub use groups::Service;

/// Form of progress output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Tty,
    Plain,
    Quiet,
    RawJson,
    Groups(Service),
}

/// Returns a time in RFC 3339 form.
fn rfc3339(time: Timestamp) -> String {
    let nanoseconds = time.nsec.try_into().unwrap_or_default();
    jiff::Timestamp::new(time.sec, nanoseconds).unwrap_or_default().to_string()
}

/// Draws events until [`Event::Failed`] or until all senders have been dropped. With `explain`,
/// also shows the reason why each step runs or is cached.
pub fn draw(events: &Receiver<Event>, mode: Mode, explain: bool) {
    match mode {
        Mode::Tty => tty::draw(events, explain),
        Mode::Plain => draw_plain(events, explain),
        Mode::RawJson => {
            let mut documents = rawjson::Documents::default();
            each(events, explain, |event| terminal::err(&documents.line(event, &rfc3339(Timestamp::now()))));
        }
        Mode::Groups(service) => {
            let mut groups = groups::Groups::new(service, terminal::colors());
            let now = || Timestamp::now().sec.unsigned_abs();
            each(events, explain, |event| terminal::err_with_commands(&groups.text(event, now())));
        }
        Mode::Quiet => each(events, explain, drop),
    }
}

/// Passes events on, up to the last one. Without `explain`, omits the reasons of steps.
fn each(events: &Receiver<Event>, explain: bool, mut show: impl FnMut(Event)) {
    for event in events {
        let is_last = matches!(event, Event::Failed | Event::Interrupted);
        if explain || !matches!(event, Event::Reason { .. }) {
            show(event);
        }
        if is_last {
            return;
        }
    }
}

/// Interval at which the plain form checks if lines have waited long enough.
const TICK: Duration = Duration::from_millis(500);

fn draw_plain(events: &Receiver<Event>, explain: bool) {
    let mut plain = plain::Plain::new(terminal::colors());
    let mut checked = Instant::now();
    loop {
        let (text, is_last) = match events.recv_timeout(TICK) {
            Ok(Event::Reason { .. }) if !explain => continue,
            Ok(event) => {
                let is_last = matches!(event, Event::Failed | Event::Interrupted);
                (plain.text(event, Instant::now()), is_last)
            }
            Err(RecvTimeoutError::Timeout) => (String::new(), false),
            Err(RecvTimeoutError::Disconnected) => (plain.rest(), true),
        };
        if !text.is_empty() {
            terminal::err(&text);
        }
        if is_last {
            return;
        }
        if checked.elapsed() >= TICK {
            checked = Instant::now();
            let text = plain.later(checked);
            if !text.is_empty() {
                terminal::err(&text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_in_rfc_3339_form() {
        assert_eq!(rfc3339(Timestamp { sec: 1_700_000_000, nsec: 5 }), "2023-11-14T22:13:20.000000005Z");
        assert_eq!(rfc3339(Timestamp { sec: 0, nsec: 0 }), "1970-01-01T00:00:00Z");
    }
}
