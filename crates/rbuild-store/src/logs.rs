//! What the last builds did, and what their commands printed.

use std::ffi::OsStr;
use std::fs::File;

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
}

/// One step of a build that was looked at while it ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepLog {
    /// Names the step within its build.
    pub step: usize,
    /// `builder 3/7`.
    pub label: String,
    pub text: String,
    /// `done`, `cached`, `failed` or `stopped`.
    pub outcome: String,
    pub seconds: f64,
    /// Why it ran, where that is known.
    #[serde(default)]
    pub why: Option<String>,
}

const DIR: &str = "logs";
/// Builds that are remembered.
const KEPT: usize = 20;

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
        for old in self.build_logs()?.into_iter().skip(KEPT) {
            dir.remove_all(OsStr::new(&old.id))?;
        }
        Ok(())
    }

    /// The last builds, the latest first.
    pub fn build_logs(&self) -> Result<Vec<BuildLog>> {
        if !self.root.exists(DIR)? {
            return Ok(Vec::new());
        }
        let mut logs = Vec::new();
        for entry in self.dir(DIR)?.entries()? {
            let name = entry.name.to_string_lossy();
            logs.extend(self.read_if_whole::<BuildLog>(&format!("{DIR}/{name}/build.json"))?);
        }
        logs.sort_by(|a, b| (b.started, &b.id).cmp(&(a.started, &a.id)));
        Ok(logs)
    }
}
