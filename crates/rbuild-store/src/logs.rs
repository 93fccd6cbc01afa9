//! What the last builds did, and what their commands printed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::path::Path;

use rbuild_image::Digest;
use rbuild_linux::{KeyLock, LockKind, Timestamp};
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::layout::Store;
use crate::modes;
use crate::prune::tree_bytes;
use crate::records::lock_key;

/// One build.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuildLog {
    pub id: String,
    /// Names of the result, or where it went.
    pub what: String,
    /// Seconds since 1970.
    pub started: i64,
    pub seconds: f64,
    /// `done`, `failed` or `stopped`.
    pub status: String,
    pub steps: Vec<StepLog>,
    /// Work that was no step.
    #[serde(default)]
    pub phases: Vec<PhaseLog>,
    /// The layers that the result has from its own steps, where somebody wanted to know.
    #[serde(default)]
    pub layers: Vec<LayerLog>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PhaseLog {
    pub text: String,
    /// Seconds after the build began.
    pub began: f64,
    pub seconds: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerLog {
    pub step: usize,
    /// Bytes of its files.
    pub bytes: u64,
    /// How many files there are, and the biggest ones with their bytes.
    pub files: u64,
    pub biggest: Vec<(String, u64)>,
}

/// One step of a build.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepLog {
    /// Names the step within its build.
    pub step: usize,
    /// `builder 3/7`.
    pub label: String,
    pub text: String,
    /// `done`, `cached`, `failed` or `stopped`.
    pub outcome: String,
    /// Seconds after the build began.
    #[serde(default)]
    pub began: f64,
    pub seconds: f64,
    /// Why it ran, where that is known.
    #[serde(default)]
    pub why: Option<String>,
    /// The steps that it had to wait for.
    #[serde(default)]
    pub inputs: Vec<usize>,
}

const DIR: &str = "logs";
/// Builds that are remembered.
const KEPT: usize = 50;
/// Bytes of what one step printed that are kept, and of all logs.
const STEP_BYTES: u64 = 16 << 20;
const ALL_BYTES: u64 = 256 << 20;

/// What a step prints, as far as it is kept: a log that is cut says so in its last line.
#[derive(Debug)]
pub struct StepLogFile {
    file: File,
    /// Bytes that may still come; none when the log was cut.
    left: Option<u64>,
}

impl StepLogFile {
    fn new(file: File, most: u64) -> StepLogFile {
        StepLogFile { file, left: Some(most) }
    }

    /// Writes as much of this as is kept.
    pub fn keep(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let Some(left) = self.left else { return Ok(()) };
        let kept = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.file.write_all(&bytes[..kept])?;
        self.left = Some(left - kept as u64);
        if kept < bytes.len() {
            self.left = None;
            self.file.write_all("\n[the log is cut here: a step's log holds 16 MiB]\n".as_bytes())?;
        }
        Ok(())
    }
}

/// Keeps the logs of a build from other builds that bound them, until it is dropped.
pub struct LogLock {
    _lock: KeyLock,
}

impl Store {
    /// Says to other builds that this one has not ended; `None` if one of that id is said so already.
    pub fn hold_logs(&self, build: &str) -> Result<Option<LogLock>> {
        Ok(self.try_key(key(build), LockKind::Exclusive)?.map(|lock| LogLock { _lock: lock }))
    }

    /// A new file for what a step prints.
    pub fn new_step_log(&self, build: &str, step: usize) -> Result<StepLogFile> {
        let dir = self.root.create_dir_all(format!("{DIR}/{build}"), modes::private_dir(), None, |_| ())?;
        let name = format!("{step}.log");
        dir.remove_all(OsStr::new(&name))?;
        Ok(StepLogFile::new(dir.create_file(OsStr::new(&name), modes::private_file())?, STEP_BYTES))
    }

    /// What a step printed; none if it printed nothing.
    pub fn step_log(&self, build: &str, step: usize) -> Result<Option<File>> {
        match self.root.open_file(format!("{DIR}/{build}/{step}.log")) {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Remembers a build that is over, and forgets the oldest.
    pub fn put_build_log(&self, log: &BuildLog) -> Result<()> {
        self.root.create_dir_all(format!("{DIR}/{}", log.id), modes::private_dir(), None, |_| ())?;
        self.write(&format!("{DIR}/{}", log.id), "build.json", log)?;
        self.bound_logs(KEPT, ALL_BYTES, &log.id)
    }

    /// Forgets the oldest builds until there are no more than so many, and so many bytes; never the build `last`, and none that
    /// has not ended.
    fn bound_logs(&self, most: usize, bytes: u64, last: &str) -> Result<()> {
        let dir = self.dir(DIR)?;
        let mut old: Vec<(Timestamp, u64, OsString)> = Vec::new();
        let (mut count, mut total) = (0, 0);
        for entry in dir.entries()? {
            // A directory without this file is that of a build that works still, or of one that was killed.
            let ended = dir.stat(Path::new(&entry.name).join("build.json")).or_else(|_| dir.stat_name(&entry.name));
            let ended = match ended {
                Ok(stat) => stat.mtime,
                // Another build has just forgotten it.
                Err(e) if e.is_not_found() => continue,
                Err(e) => return Err(e.into()),
            };
            let size = dir.sub(&entry.name).map_or(0, |d| tree_bytes(&d));
            (count, total) = (count + 1, total + size);
            old.push((ended, size, entry.name));
        }
        old.sort();
        for (_, size, name) in old {
            if count <= most && total <= bytes {
                break;
            }
            if name == *last {
                continue;
            }
            let Some(_lock) = self.try_key(key(&name.to_string_lossy()), LockKind::Exclusive)? else { continue };
            dir.remove_all(&name)?;
            (count, total) = (count - 1, total - size);
        }
        Ok(())
    }

    /// The last builds, the last to end first.
    pub fn build_logs(&self) -> Result<Vec<BuildLog>> {
        if !self.root.exists(DIR)? {
            return Ok(Vec::new());
        }
        let mut logs = Vec::new();
        for entry in self.dir(DIR)?.entries()? {
            let path = format!("{DIR}/{}/build.json", entry.name.to_string_lossy());
            if let Some(log) = self.read_if_whole::<BuildLog>(&path)? {
                logs.push((self.root.stat(&path)?.mtime, log));
            }
        }
        // Several may begin within a second; none end at the same time.
        logs.sort_by(|(a, _), (b, _)| b.cmp(a));
        Ok(logs.into_iter().map(|(_, log)| log).collect())
    }
}

/// The key of the lock that a build holds until it has ended.
fn key(build: &str) -> [u8; 8] {
    lock_key(&Digest::of(format!("logs of {build}").as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_cut_where_it_is_full_and_says_so() {
        let path = std::env::temp_dir().join(format!("rbuild-step-log-{}", std::process::id()));
        for (pieces, want) in [
            (vec!["12345", "67890"], "1234567890"),
            (vec!["12345", "678901", "more", "x"], "1234567890\n[the log is cut here: a step's log holds 16 MiB]\n"),
            (vec!["1234567890", "x"], "1234567890\n[the log is cut here: a step's log holds 16 MiB]\n"),
        ] {
            let mut log = StepLogFile::new(File::create(&path).unwrap(), 10);
            pieces.iter().for_each(|p| log.keep(p.as_bytes()).unwrap());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), want);
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn the_oldest_logs_go_first() {
        let dir = std::env::temp_dir().join(format!("rbuild-logs-{}", std::process::id()));
        let store = Store::open(&dir).unwrap();
        for (at, name) in ["a", "b", "c", "d"].iter().enumerate() {
            let mut log = store.new_step_log(name, 1).unwrap();
            log.keep(&[b'x'; 100_000]).unwrap();
            let file = File::create(dir.join(format!("logs/{name}/build.json"))).unwrap();
            file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(at as u64)).unwrap();
        }
        let left = || -> Vec<String> {
            let entries = store.dir(DIR).unwrap().entries().unwrap();
            entries.iter().map(|e| e.name.to_string_lossy().into_owned()).collect()
        };
        store.bound_logs(3, u64::MAX, "d").unwrap();
        assert_eq!(left(), ["b", "c", "d"]);
        store.bound_logs(9, 250_000, "d").unwrap();
        assert_eq!(left(), ["c", "d"]);
        store.bound_logs(9, 1, "d").unwrap();
        assert_eq!(left(), ["d"]);
        drop(store);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn logs_of_builds_that_still_run_stay() {
        let dir = std::env::temp_dir().join(format!("rbuild-held-logs-{}", std::process::id()));
        let store = Store::open(&dir).unwrap();
        let held = store.hold_logs("runs").unwrap();
        assert!(held.is_some());
        for name in ["runs", "killed", "last"] {
            store.new_step_log(name, 1).unwrap().keep(&[b'x'; 100_000]).unwrap();
        }
        let other = Store::open(&dir).unwrap();
        other.bound_logs(0, 0, "last").unwrap();
        let here = |name: &str| store.step_log(name, 1).unwrap().is_some();
        assert_eq!(["runs", "killed", "last"].map(here), [true, false, true]);
        drop(held);
        other.bound_logs(0, 0, "last").unwrap();
        assert_eq!(["runs", "killed", "last"].map(here), [false, false, true]);
        drop((store, other));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
