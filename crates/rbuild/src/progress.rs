//! Build events as progress output on standard error.

use std::sync::mpsc::Receiver;

use rbuild_engine::Event;
use rbuild_linux::Timestamp;

use crate::ui::terminal;

mod groups;
mod lines;
mod plain;
mod rawjson;
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
    if mode == Mode::Tty {
        return tty::draw(events, explain);
    }
    let mut plain = plain::Plain::default();
    let mut documents = rawjson::Documents::default();
    let mut groups = groups::Groups::new(if let Mode::Groups(service) = mode { service } else { Service::Github });
    for event in events {
        if matches!(event, Event::Failed) {
            return;
        }
        if matches!(event, Event::Reason { .. }) && !explain {
            continue;
        }
        match mode {
            Mode::Plain => terminal::err(&plain.text(event)),
            Mode::RawJson => terminal::err(&documents.line(event, &rfc3339(Timestamp::now()))),
            Mode::Groups(_) => terminal::err_with_commands(&groups.text(event, Timestamp::now().sec.unsigned_abs())),
            Mode::Tty | Mode::Quiet => {}
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
