//! Errors and warnings that libcontainer logs while it creates a container. Its error values name
//! only the part that failed; the cause goes to the log.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt;

use tracing_core::field::{Field, Visit};
use tracing_core::span::{Attributes, Id, Record};
use tracing_core::{Dispatch, Event, Level, LevelFilter, Metadata, Subscriber};

/// Log of the calling process and of the processes that it starts.
pub(crate) struct LibraryLog(File);

/// Maximum number of bytes read from the log.
const MAX_BYTES: usize = 4000;

/// Marks the lines of errors. Other lines are warnings.
const ERROR: char = '!';

impl LibraryLog {
    /// Starts the log. Returns `None` if memory is lacking, or if the process already has one.
    pub fn listen() -> Option<LibraryLog> {
        let file = File::from(rustix::fs::memfd_create("library-log", rustix::fs::MemfdFlags::CLOEXEC).ok()?);
        let listener = Listener(file.try_clone().ok()?);
        tracing_core::dispatcher::set_global_default(Dispatch::new(listener)).ok()?;
        Some(LibraryLog(file))
    }

    /// Returns the first error, which is closest to the cause: callers log it again.
    pub fn first_error(&self) -> Option<String> {
        self.lines().into_iter().find_map(|line| line.strip_prefix(ERROR).map(String::from))
    }

    /// Returns the warnings in order.
    pub fn warnings(&self) -> Vec<String> {
        self.lines().into_iter().filter(|line| !line.starts_with(ERROR)).collect()
    }

    fn lines(&self) -> Vec<String> {
        let mut bytes = vec![0; MAX_BYTES];
        let n = self.0.read_at(&mut bytes, 0).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..n]).lines().filter(|line| !line.is_empty()).map(String::from).collect()
    }
}

struct Listener(File);

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::WARN)
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = EventLine::default();
        event.record(&mut line);
        let mark = if *event.metadata().level() == Level::ERROR { String::from(ERROR) } else { String::new() };
        let text = [mark, line.message, line.fields].concat().replace('\n', " ");
        // The log explains failures; it must not cause one.
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

/// An event as one line: the message, then its fields.
#[derive(Default)]
struct EventLine {
    message: String,
    fields: String,
}

impl Visit for EventLine {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            "err" | "e" | "ret" => write!(self.fields, ": {value:?}"),
            name => write!(self.fields, ", {name} {value:?}"),
        };
    }
}
