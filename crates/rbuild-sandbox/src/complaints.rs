//! What libcontainer complains about while it makes a container: its errors say which of its parts failed, and the cause is told to
//! whoever listens for events only.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt;

use tracing_core::field::{Field, Visit};
use tracing_core::span::{Attributes, Id, Record};
use tracing_core::{Dispatch, Event, Level, LevelFilter, Metadata, Subscriber};

/// The complaints of the calling process and of those that it starts.
pub(crate) struct Complaints(File);

/// Bytes of a complaint that are shown.
const MOST: usize = 1000;

impl Complaints {
    /// Listens from now on, once in the life of a process. Without memory for that, or twice, nothing is heard.
    pub fn listen() -> Option<Complaints> {
        let file = File::from(rustix::fs::memfd_create("complaints", rustix::fs::MemfdFlags::CLOEXEC).ok()?);
        let listener = Listener(file.try_clone().ok()?);
        tracing_core::dispatcher::set_global_default(Dispatch::new(listener)).ok()?;
        Some(Complaints(file))
    }

    /// The first, which is the nearest to the cause: those that were told of it complain in turn.
    pub fn first(&self) -> Option<String> {
        let mut bytes = vec![0; MOST];
        let n = self.0.read_at(&mut bytes, 0).ok()?;
        let text = String::from_utf8_lossy(&bytes[..n]).into_owned();
        text.lines().next().map(String::from).filter(|line| !line.is_empty())
    }
}

struct Listener(File);

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::ERROR)
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let text = [line.message, line.fields].concat().replace('\n', " ");
        let _ = (&self.0).write_all(format!("{text}\n").as_bytes());
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// A complaint in one line: what is said, then the facts.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            "err" | "e" | "ret" => write!(self.fields, ": {value:?}"),
            name => write!(self.fields, ", {name} {value:?}"),
        };
    }
}
