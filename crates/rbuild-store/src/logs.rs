//! What the last builds did, and what their commands printed.

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;

use rbuild_linux::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::layout::Store;

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

impl Store {
    /// A new file for what a step prints.
    pub fn new_step_log(&self, build: &str, step: usize) -> Result<File> {
        let dir = self.root.create_dir_all(format!("{DIR}/{build}"), 0o700, None, |_| ())?;
        let name = format!("{step}.log");
        dir.remove_all(OsStr::new(&name))?;
        Ok(dir.create_file(OsStr::new(&name), 0o600)?)
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
        self.root.create_dir_all(format!("{DIR}/{}", log.id), 0o700, None, |_| ())?;
        self.write(&format!("{DIR}/{}", log.id), "build.json", log)?;
        let dir = self.dir(DIR)?;
        let entries = dir.entries()?;
        if entries.len() > KEPT {
            let time =
                |name: &OsStr| dir.stat(Path::new(name).join("build.json")).map_or(Timestamp::default(), |s| s.mtime);
            let mut old: Vec<_> = entries.iter().map(|entry| (time(&entry.name), &entry.name)).collect();
            old.sort();
            for (_, name) in &old[..entries.len() - KEPT] {
                dir.remove_all(name)?;
            }
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
