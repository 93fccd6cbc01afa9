//! Logs of the last builds and the output of their steps.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::path::Path;

use rbuild_linux::{KeyLock, LockKind, Timestamp};
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::gc::measure::tree_bytes;
use crate::ids::{BuildId, LockId};
use crate::modes;
use crate::once::lock_key;
use crate::store::Store;

/// The log of one build.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuildLog {
    /// ID of the build.
    pub id: BuildId,
    /// Names of the result, or its destination.
    #[serde(rename = "what")]
    pub result: String,
    /// Start time in seconds since the Unix epoch.
    pub started: i64,
    /// Duration in seconds.
    pub seconds: f64,
    /// End of the build.
    pub status: BuildStatus,
    /// Steps of the build.
    pub steps: Vec<StepLog>,
    /// Work that does not belong to a step.
    #[serde(default)]
    pub phases: Vec<PhaseLog>,
    /// Layers of the result made by its own steps, if requested.
    #[serde(default)]
    pub layers: Vec<LayerLog>,
    /// The error of a failed build.
    #[serde(default)]
    pub failure: Option<FailureLog>,
}

/// The error of a failed build.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FailureLog {
    /// The message.
    pub message: String,
    /// Offsets of the first byte in the Dockerfile that the error refers to, and of the byte after
    /// the last one.
    pub place: Option<(usize, usize)>,
    /// Label of the step that failed.
    pub step: Option<String>,
}

/// The outcome of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BuildStatus {
    /// Succeeded.
    Done,
    /// Failed.
    Failed,
    /// Canceled.
    Stopped,
}

impl BuildStatus {
    /// Returns the word that logs show and store.
    pub fn word(self) -> &'static str {
        match self {
            BuildStatus::Done => "done",
            BuildStatus::Failed => "failed",
            BuildStatus::Stopped => "stopped",
        }
    }
}

/// The outcome of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepOutcome {
    /// Ran and succeeded.
    Done,
    /// Result reused.
    Cached,
    /// Failed.
    Failed,
    /// Canceled, or not ended when the build ended.
    #[serde(rename = "stopped")]
    Canceled,
}

impl StepOutcome {
    /// Returns the word that logs show and store.
    pub fn word(self) -> &'static str {
        match self {
            StepOutcome::Done => "done",
            StepOutcome::Cached => "cached",
            StepOutcome::Failed => "failed",
            StepOutcome::Canceled => "stopped",
        }
    }
}

/// The log of work that does not belong to a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PhaseLog {
    /// Description of the work.
    pub text: String,
    /// Start time in seconds after the start of the build.
    pub began: f64,
    /// Duration in seconds.
    pub seconds: f64,
}

/// The content of a layer made by a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerLog {
    /// The step, see [`StepLog::step`].
    pub step: usize,
    /// Total size of its files in bytes.
    pub bytes: u64,
    /// Number of files.
    pub files: u64,
    /// The largest files with their sizes in bytes.
    pub biggest: Vec<(String, u64)>,
}

/// The log of one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepLog {
    /// Number of the step, unique within its build.
    pub step: usize,
    /// Label such as `builder 3/7`.
    pub label: String,
    /// The instruction.
    pub text: String,
    /// End of the step.
    pub outcome: StepOutcome,
    /// Start time in seconds after the start of the build.
    #[serde(default)]
    pub began: f64,
    /// Duration in seconds.
    pub seconds: f64,
    /// The reason why it ran, if known.
    #[serde(default, rename = "why")]
    pub reason: Option<String>,
    /// The steps it depends on.
    #[serde(default)]
    pub inputs: Vec<usize>,
}

const DIR: &str = "logs";
/// Number of builds whose logs are kept.
const KEPT: usize = 50;
/// Maximum size of a step's log in bytes.
const STEP_BYTES: u64 = 16 << 20;
/// Maximum size of all logs in bytes.
const ALL_BYTES: u64 = 256 << 20;

/// The output of a step, up to a maximum size. A truncated log ends with a line that states this.
#[derive(Debug)]
pub struct StepLogFile {
    file: File,
    /// Bytes left until the maximum; `None` once the log is truncated.
    left: Option<u64>,
}

impl StepLogFile {
    fn new(file: File, most: u64) -> StepLogFile {
        StepLogFile { file, left: Some(most) }
    }

    /// Appends output up to the maximum size.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be written.
    pub fn keep(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let Some(left) = self.left else { return Ok(()) };
        let kept = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.file.write_all(&bytes[..kept])?;
        self.left = Some(left - kept as u64);
        if kept < bytes.len() {
            self.left = None;
            self.file.write_all("\n[log truncated at 16 MiB]\n".as_bytes())?;
        }
        Ok(())
    }
}

/// Protects the logs of a running build from being removed by other builds, until it is dropped.
pub struct LogLock {
    _lock: KeyLock,
}

/// The logs of a store's last builds.
#[derive(Clone, Copy)]
pub struct Logs<'s> {
    pub(crate) store: &'s Store,
}

impl Logs<'_> {
    /// Marks a build as running. Returns `None` if a build with that ID is marked already.
    ///
    /// # Errors
    ///
    /// Fails if the lock cannot be taken.
    pub fn lock_logs(&self, build: &BuildId) -> Result<Option<LogLock>> {
        Ok(self.store.try_key(key(build.as_str()), LockKind::Exclusive)?.map(|lock| LogLock { _lock: lock }))
    }

    /// Creates a file for the output of a step.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be created.
    pub fn new_step_log(&self, build: &BuildId, step: usize) -> Result<StepLogFile> {
        let dir = self.store.root.create_dir_all(format!("{DIR}/{build}"), modes::private_dir(), None, |_| ())?;
        let name = format!("{step}.log");
        dir.remove_all(OsStr::new(&name))?;
        Ok(StepLogFile::new(dir.create_file(OsStr::new(&name), modes::private_file())?, STEP_BYTES))
    }

    /// Opens the output of a step, or returns `None` if there is none.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be opened.
    pub fn step_log(&self, build: &BuildId, step: usize) -> Result<Option<File>> {
        match self.store.root.open_file(format!("{DIR}/{build}/{step}.log")) {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Stores the log of a finished build, and removes the oldest logs.
    ///
    /// # Errors
    ///
    /// Fails if the log cannot be written, or an old one cannot be removed.
    pub fn put_build_log(&self, log: &BuildLog) -> Result<()> {
        self.store.root.create_dir_all(format!("{DIR}/{}", log.id), modes::private_dir(), None, |_| ())?;
        self.store.write(&format!("{DIR}/{}", log.id), "build.json", log)?;
        // A build whose steps were all cached adds a few kilobytes. Measuring the logs of all
        // builds would be a noticeable part of such a build.
        let has_step_logs = self.store.dir(format!("{DIR}/{}", log.id))?.entries()?.len() > 1;
        self.bound_logs(KEPT, has_step_logs.then_some(ALL_BYTES), &log.id)
    }

    /// Records that a build has failed after its end. Does nothing if its log is not stored.
    ///
    /// # Errors
    ///
    /// Fails as [`Logs::put_build_log`] does.
    pub fn record_failure(&self, build: &BuildId, message: &str) -> Result<()> {
        let Some(log) = self.store.read_if_whole::<BuildLog>(&format!("{DIR}/{build}/build.json"))? else {
            return Ok(());
        };
        let failure = Some(FailureLog { message: message.into(), place: None, step: None });
        self.put_build_log(&BuildLog { status: BuildStatus::Failed, failure, ..log })
    }

    /// Removes the oldest logs until at most `most` builds and, if given, `bytes` bytes are left.
    /// Keeps the log of the build `last` and those of running builds.
    fn bound_logs(&self, most: usize, bytes: Option<u64>, last: &BuildId) -> Result<()> {
        let dir = self.store.dir(DIR)?;
        let mut old: Vec<(Timestamp, u64, OsString)> = Vec::new();
        let (mut count, mut total) = (0, 0);
        for entry in dir.entries()? {
            // A directory without this file belongs to a running build, or to one that was killed.
            let ended = dir.stat(Path::new(&entry.name).join("build.json")).or_else(|_| dir.stat_name(&entry.name));
            let ended = match ended {
                Ok(stat) => stat.mtime,
                // Another build has just removed it.
                Err(e) if e.is_not_found() => continue,
                Err(e) => return Err(e.into()),
            };
            let size = if bytes.is_some() { dir.sub(&entry.name).map_or(0, |d| tree_bytes(&d)) } else { 0 };
            (count, total) = (count + 1, total + size);
            old.push((ended, size, entry.name));
        }
        old.sort();
        for (_, size, name) in old {
            if count <= most && bytes.is_none_or(|bytes| total <= bytes) {
                break;
            }
            if name == *last.as_str() {
                continue;
            }
            let Some(_lock) = self.store.try_key(key(&name.to_string_lossy()), LockKind::Exclusive)? else { continue };
            dir.remove_all(&name)?;
            (count, total) = (count - 1, total - size);
        }
        Ok(())
    }

    /// Returns the logs of the last builds, most recently finished first.
    ///
    /// # Errors
    ///
    /// Fails if a log cannot be read.
    pub fn build_logs(&self) -> Result<Vec<BuildLog>> {
        if !self.store.root.exists(DIR)? {
            return Ok(Vec::new());
        }
        let mut logs = Vec::new();
        for entry in self.store.dir(DIR)?.entries()? {
            let path = format!("{DIR}/{}/build.json", entry.name.to_string_lossy());
            if let Some(log) = self.store.read_if_whole::<BuildLog>(&path)? {
                logs.push((self.store.root.stat(&path)?.mtime, log));
            }
        }
        // Sort by the end time: several builds may start within one second.
        logs.sort_by(|(a, _), (b, _)| b.cmp(a));
        Ok(logs.into_iter().map(|(_, log)| log).collect())
    }
}

/// Returns the key of the lock that a running build holds.
fn key(build: &str) -> [u8; 8] {
    lock_key(LockId::of(format!("logs of {build}").as_bytes()).bytes())
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::Scratch;

    use super::*;

    #[test]
    fn a_full_log_is_truncated_with_a_note() {
        let dir = Scratch::new();
        let path = dir.join("log");
        let pieces = [&["12345", "67890"][..], &["12345", "678901", "more", "x"], &["1234567890", "x"]];
        let rows = pieces.map(|pieces| {
            let mut log = StepLogFile::new(File::create(&path).unwrap(), 10);
            pieces.iter().for_each(|p| log.keep(p.as_bytes()).unwrap());
            format!("=== {}\n{}\n", pieces.join(" "), std::fs::read_to_string(&path).unwrap())
        });
        rbuild_testkit::assert_recorded!("truncated-logs", rows.concat());
    }

    #[test]
    fn the_oldest_logs_are_removed_first() {
        let dir = Scratch::new();
        let store = Store::open(&dir).unwrap();
        for (at, name) in ["a", "b", "c", "d"].iter().enumerate() {
            let mut log = store.logs().new_step_log(&BuildId::of_command(name), 1).unwrap();
            log.keep(&[b'x'; 100_000]).unwrap();
            let file = File::create(dir.join(format!("logs/{name}/build.json"))).unwrap();
            file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(at as u64)).unwrap();
        }
        let left = || -> Vec<String> {
            let entries = store.dir(DIR).unwrap().entries().unwrap();
            entries.iter().map(|e| e.name.to_string_lossy().into_owned()).collect()
        };
        store.logs().bound_logs(3, None, &BuildId::of_command("d")).unwrap();
        assert_eq!(left(), ["b", "c", "d"]);
        store.logs().bound_logs(9, Some(250_000), &BuildId::of_command("d")).unwrap();
        assert_eq!(left(), ["c", "d"]);
        store.logs().bound_logs(9, Some(1), &BuildId::of_command("d")).unwrap();
        assert_eq!(left(), ["d"]);
    }

    #[test]
    fn logs_of_running_builds_are_kept() {
        let dir = Scratch::new();
        let store = Store::open(&dir).unwrap();
        let held = store.logs().lock_logs(&BuildId::of_command("runs")).unwrap();
        assert!(held.is_some());
        for name in ["runs", "killed", "last"] {
            store.logs().new_step_log(&BuildId::of_command(name), 1).unwrap().keep(&[b'x'; 100_000]).unwrap();
        }
        let other = Store::open(&dir).unwrap();
        other.logs().bound_logs(0, Some(0), &BuildId::of_command("last")).unwrap();
        let here = |name: &'static str| store.logs().step_log(&BuildId::of_command(name), 1).unwrap().is_some();
        assert_eq!(["runs", "killed", "last"].map(here), [true, false, true]);
        drop(held);
        other.logs().bound_logs(0, Some(0), &BuildId::of_command("last")).unwrap();
        assert_eq!(["runs", "killed", "last"].map(here), [false, false, true]);
    }
}
