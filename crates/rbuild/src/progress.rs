//! Build events as progress output on standard error.

use std::sync::mpsc::Receiver;

use rbuild_engine::Event;

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

/// Draws events until [`Event::End`] or until all senders are gone. With `explain`, also shows why
/// each step runs.
pub fn draw(events: &Receiver<Event>, mode: Mode, explain: bool) {
    if mode == Mode::Tty {
        return tty::draw(events, explain);
    }
    let mut plain = plain::Plain::default();
    let mut documents = rawjson::Documents::default();
    let mut groups = groups::Groups::new(if let Mode::Groups(service) = mode { service } else { Service::Github });
    for event in events {
        if matches!(event, Event::End) {
            return;
        }
        if matches!(event, Event::Why { .. }) && !explain {
            continue;
        }
        match mode {
            Mode::Plain => terminal::err(&plain.text(event)),
            Mode::RawJson => terminal::err(&documents.line(event, &jiff::Timestamp::now().to_string())),
            Mode::Groups(_) => terminal::err(&groups.text(event, groups::now())),
            Mode::Tty | Mode::Quiet => {}
        }
    }
}
