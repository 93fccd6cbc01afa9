//! Processes of builds, as `/proc` shows them, and waiting for their end.

use std::path::Path;
use std::time::{Duration, Instant};

/// The time within which the processes of an ended build must be gone.
const AT_ONCE: Duration = Duration::from_secs(2);

/// A process and its parent.
#[derive(Debug, Clone)]
pub struct Process {
    pub pid: u32,
    pub parent: u32,
    /// The arguments, separated by blanks.
    pub command_line: String,
}

/// Returns all processes other than that of the tests.
pub fn processes() -> Vec<Process> {
    let read = |entry: std::fs::DirEntry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        Some(Process { pid, parent, command_line: String::from_utf8_lossy(&line).replace('\0', " ") })
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten().filter_map(read);
    all.filter(|process| process.pid != std::process::id()).collect()
}

/// Returns the processes with `marker` in their command lines.
pub fn processes_with(marker: &str) -> Vec<Process> {
    processes().into_iter().filter(|process| process.command_line.contains(marker)).collect()
}

/// Waits until no process has `marker` in its command line. `context` describes the situation.
#[track_caller]
pub fn all_gone(marker: &str, context: &str) {
    let deadline = Instant::now() + AT_ONCE;
    loop {
        let left = processes_with(marker);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "{context}: left running: {left:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until the locks in the store's directory `tmp` are free. A process that is ending has no
/// command line any more, but still holds its lock until its last thread has ended.
#[track_caller]
pub fn locks_free(tmp: &Path, context: &str) {
    let deadline = Instant::now() + AT_ONCE;
    for entry in std::fs::read_dir(tmp).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "lock") {
            continue;
        }
        let Ok(lock) = std::fs::File::open(&path) else { continue };
        while lock.try_lock_shared().is_err() {
            assert!(Instant::now() < deadline, "{context}: still locked: {}", path.display());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
