//! The process environment from which settings are read.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Environment variables, home directory and system directory of a process. Values may be
/// credentials (`DOCKER_AUTH_CONFIG`), so there is no `Debug`.
#[derive(Clone)]
pub struct ProcessEnvironment {
    variables: HashMap<String, String>,
    system: PathBuf,
    user: u32,
}

impl ProcessEnvironment {
    /// Returns the environment of the calling process.
    pub fn of_process() -> ProcessEnvironment {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        let user = std::fs::metadata("/proc/self").map_or(0, |m| m.uid());
        ProcessEnvironment { variables: std::env::vars_os().filter_map(text).collect(), system: "/".into(), user }
    }

    /// Returns an environment with these variables. System files are below the directory `system`.
    pub fn of<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>, system: &Path) -> ProcessEnvironment {
        let variables = variables.into_iter().map(|(name, value)| (name.to_string(), value.to_string()));
        ProcessEnvironment { variables: variables.collect(), system: system.to_path_buf(), user: 1000 }
    }

    /// Returns the environment with another value of a variable.
    pub fn with(mut self, name: &str, value: &str) -> ProcessEnvironment {
        self.variables.insert(name.to_string(), value.to_string());
        self
    }

    /// Returns the value of a variable that is set and not empty.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Returns a path in the home directory.
    pub fn home(&self, path: &str) -> Option<PathBuf> {
        self.variable("HOME").map(|home| Path::new(home).join(path))
    }

    /// Returns a path in the user's configuration directory.
    pub fn user_config(&self, path: &str) -> Option<PathBuf> {
        match self.variable("XDG_CONFIG_HOME") {
            Some(dir) => Some(Path::new(dir).join(path)),
            None => self.home(".config").map(|dir| dir.join(path)),
        }
    }

    /// Returns the path of a system file, given relative to the root directory.
    pub fn system(&self, path: &str) -> PathBuf {
        self.system.join(path)
    }

    /// Returns the user ID of the process.
    pub fn user(&self) -> u32 {
        self.user
    }
}
