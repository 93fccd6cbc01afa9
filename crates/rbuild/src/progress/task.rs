//! Steps and other tasks of a build, and the bytes that they move.

use std::sync::atomic::Ordering;
use std::time::Instant;

use rbuild_engine::Meter;
use rbuild_image::human_size;

/// A step of the Dockerfile, or other work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TaskId {
    Step(usize),
    Phase(usize),
}

/// The bytes that a task moves.
pub struct Progressing {
    meter: Meter,
    started: Instant,
    /// Number of bytes when they were last shown.
    shown: u64,
}

impl Progressing {
    pub fn new(meter: Meter, now: Instant) -> Progressing {
        Progressing { meter, started: now, shown: 0 }
    }

    /// Sets the number of bytes that have been moved.
    pub fn set(&self, moved: u64) {
        self.meter.moved.store(moved, Ordering::Relaxed);
    }

    /// Returns the bytes and the rate: `10MB of 200MB, 5MB/s`. Returns `None` if nothing has been
    /// moved.
    pub fn text(&self, now: Instant) -> Option<String> {
        let moved = self.meter.moved.load(Ordering::Relaxed);
        let seconds = now.duration_since(self.started).as_secs_f64().max(0.001);
        let of = |total: &u64| format!("{} of {}", human_size(moved.min(*total)), human_size(*total));
        let bytes = self.meter.total.as_ref().map_or_else(|| human_size(moved), of);
        (moved > 0).then(|| format!("{bytes}, {}/s", human_size((moved as f64 / seconds) as u64)))
    }

    /// Returns the text if bytes have been moved since this was called last.
    pub fn news(&mut self, now: Instant) -> Option<String> {
        let moved = self.meter.moved.load(Ordering::Relaxed);
        let is_new = moved > self.shown;
        self.shown = moved;
        self.text(now).filter(|_| is_new)
    }
}
