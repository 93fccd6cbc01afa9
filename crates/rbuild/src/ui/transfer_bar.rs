//! Progress of a transfer on a terminal: bytes, rate, time left.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rbuild_image::human_size;
use rbuild_layer::Counting;
use rbuild_linux::parallel;

use crate::ui::{columns, terminal};

const FRAME: Duration = Duration::from_millis(200);

/// A line at the bottom of the terminal, erased on drop. Draws nothing if standard error cannot be
/// redrawn, or if no thread can be started.
pub struct TransferBar {
    moved: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    drawing: Option<JoinHandle<()>>,
}

impl TransferBar {
    /// Starts drawing. `total` is the size in bytes, if known.
    pub fn start(doing: &str, total: Option<u64>) -> TransferBar {
        TransferBar::with_counter(doing, total, Arc::default())
    }

    /// Returns a bar that counts bytes and draws nothing.
    pub fn hidden() -> TransferBar {
        TransferBar { moved: Arc::default(), over: Arc::default(), drawing: None }
    }

    /// Starts drawing the bytes that `moved` counts.
    pub fn with_counter(doing: &str, total: Option<u64>, moved: Arc<AtomicU64>) -> TransferBar {
        let over = Arc::new(AtomicBool::new(false));
        let (doing, counted, ended, started) = (doing.to_string(), moved.clone(), over.clone(), Instant::now());
        let draw = move || {
            while !ended.load(Ordering::Relaxed) {
                std::thread::park_timeout(FRAME);
                let width = rbuild_linux::terminal::terminal_size().map_or(80, |(_, columns)| columns);
                let text = line(&doing, counted.load(Ordering::Relaxed), total, started.elapsed());
                terminal::err(&format!("\r\x1b[K{}", columns::prefix(&text, width.saturating_sub(1))));
            }
            terminal::err("\r\x1b[K");
        };
        let drawing = terminal::redraws().then(|| parallel::start(draw).ok()).flatten();
        TransferBar { moved, over, drawing }
    }

    /// Returns the counter of transferred bytes.
    pub fn moved(&self) -> &Arc<AtomicU64> {
        &self.moved
    }

    /// Wraps a reader so that its bytes are counted.
    pub fn reading<R: Read>(&self, source: R) -> Counting<R> {
        Counting::new(source, self.moved.clone())
    }
}

/// Erases the bar of a process that was killed.
pub fn erase() {
    if terminal::redraws() {
        terminal::err("\r\x1b[K");
    }
}

impl Drop for TransferBar {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(drawing) = self.drawing.take() {
            drawing.thread().unpark();
            let _ = drawing.join();
        }
    }
}

fn line(doing: &str, moved: u64, total: Option<u64>, elapsed: Duration) -> String {
    let rate = moved as f64 / elapsed.as_secs_f64().max(0.001);
    let speed = format!("{}/s", human_size(rate as u64));
    match total.filter(|total| *total > 0) {
        None => format!("{doing}: {}  {speed}", human_size(moved)),
        Some(total) if moved >= total => format!("{doing}: {}  finishing", human_size(total)),
        Some(total) => {
            let left = if rate > 0.0 { duration((total - moved) as f64 / rate) } else { "?".into() };
            let percent = moved * 100 / total;
            format!("{doing}: {percent:>3} %  {} of {}  {speed}  {left} left", human_size(moved), human_size(total))
        }
    }
}

fn duration(seconds: f64) -> String {
    let seconds = seconds.ceil() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_recorded() {
        let rows = [
            (50_000_000, Some(200_000_000), 5),
            (50_000_000, None, 5),
            (200, Some(200), 5),
            (0, Some(200), 5),
            (1_000_000, Some(1_000_000_000), 1),
            (1_000_000, Some(10_000_000_000), 1),
        ];
        let line = |(moved, total, seconds)| line("pulling demo:1", moved, total, Duration::from_secs(seconds)) + "\n";
        rbuild_testkit::assert_recorded!("transfer-bar", rows.map(line).concat());
    }
}
