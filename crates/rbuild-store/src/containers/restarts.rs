//! Restarts of containers: policies, the last end of a command, and requests of other commands.
//!
//! The builder of a container restarts its command. It has no lock of the store meanwhile: it
//! writes and reads only files of its own container.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::containers::small_file;
use crate::error::Result;

const LAST_END: &str = "last-end.json";
/// Exists if the container is to end.
const STOP: &str = "stop";
/// Exists if the command is to be started again after its next end.
const RESTART: &str = "restart";

/// The files of restarts.
pub(super) const FILES: [&str; 3] = [LAST_END, STOP, RESTART];

/// The ends of a command after which it is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum RestartPolicy {
    /// None.
    #[default]
    No,
    /// Exit codes other than 0, at most that many times if there is a maximum.
    OnFailure {
        /// Maximum number of restarts.
        max: Option<u32>,
    },
    /// All.
    Always,
    /// All. As there is no daemon that starts containers, it equals `Always`.
    UnlessStopped,
}

impl RestartPolicy {
    /// Returns the name that docker has for it.
    pub fn name(self) -> &'static str {
        match self {
            RestartPolicy::No => "no",
            RestartPolicy::OnFailure { .. } => "on-failure",
            RestartPolicy::Always => "always",
            RestartPolicy::UnlessStopped => "unless-stopped",
        }
    }

    /// Returns true if a command that ended with that exit code, after that many restarts, is
    /// started again.
    pub fn restarts(self, code: i32, restarts: u32) -> bool {
        match self {
            RestartPolicy::No => false,
            RestartPolicy::OnFailure { max } => code != 0 && max.is_none_or(|max| restarts < max),
            RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
        }
    }
}

/// The end of a command that is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastEnd {
    /// Exit code.
    pub code: i32,
    /// Time in seconds since the Unix epoch.
    pub at: i64,
    /// Number of restarts, including the one that follows.
    pub restarts: u32,
}

/// A request to end the command of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndRequest {
    /// End it, whatever the policy is.
    Stop,
    /// End it, and start it again.
    Restart,
}

/// The files by which a container that restarts its command communicates with other commands.
#[derive(Debug, Clone)]
pub struct RestartFiles {
    last_end: PathBuf,
    stop: PathBuf,
    restart: PathBuf,
}

impl RestartFiles {
    /// Returns the files in the directory of a container.
    pub(super) fn of(dir: &Path) -> RestartFiles {
        RestartFiles { last_end: dir.join(LAST_END), stop: dir.join(STOP), restart: dir.join(RESTART) }
    }

    /// Records a request, before the signal that ends the command is sent. One for the end applies
    /// even if a restart is requested before or afterwards.
    ///
    /// # Errors
    ///
    /// Fails if it cannot be written.
    pub fn request_end(&self, request: EndRequest) -> Result<()> {
        let path = match request {
            EndRequest::Stop => &self.stop,
            EndRequest::Restart => &self.restart,
        };
        File::create(path).map(drop).map_err(|e| rbuild_linux::Error::new("openat", path, e).into())
    }

    /// Returns the last end of a command that was started again.
    pub fn last_end(&self) -> Option<LastEnd> {
        small_file::read(&self.last_end)
    }

    /// Records an end that is followed by a restart. The disk may be full.
    pub fn record_end(&self, end: &LastEnd) {
        if let Err(e) = small_file::write(&self.last_end, end) {
            tracing::debug!(target: "store", error = rbuild_remedy::sentence(&e), "an end is not recorded");
        }
    }

    /// Returns the request, if there is one. One for a restart is removed: it applies to one end.
    pub fn take_request(&self) -> Option<EndRequest> {
        if self.stop.exists() {
            return Some(EndRequest::Stop);
        }
        std::fs::remove_file(&self.restart).ok().map(|()| EndRequest::Restart)
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::Scratch;

    use super::*;

    #[test]
    fn policies_are_those_of_docker() {
        let failure = |max| RestartPolicy::OnFailure { max };
        for (policy, code, restarts, expected) in [
            (RestartPolicy::No, 1, 0, false),
            (failure(None), 0, 0, false),
            (failure(None), 1, 1000, true),
            (failure(Some(2)), 1, 1, true),
            (failure(Some(2)), 1, 2, false),
            (RestartPolicy::Always, 0, 9, true),
            (RestartPolicy::UnlessStopped, 137, 9, true),
        ] {
            assert_eq!(policy.restarts(code, restarts), expected, "{policy:?} {code} {restarts}");
        }
    }

    #[test]
    fn a_request_for_a_restart_applies_once_and_one_for_the_end_always() {
        let place = Scratch::new();
        let files = RestartFiles::of(&place);
        assert_eq!((files.take_request(), files.last_end()), (None, None));
        files.request_end(EndRequest::Restart).unwrap();
        assert_eq!([files.take_request(), files.take_request()], [Some(EndRequest::Restart), None]);
        files.request_end(EndRequest::Stop).unwrap();
        assert_eq!([files.take_request(), files.take_request()], [Some(EndRequest::Stop); 2]);
        files.request_end(EndRequest::Restart).unwrap();
        assert_eq!(files.take_request(), Some(EndRequest::Stop), "a later restart does not replace it");
        let end = LastEnd { code: 1, at: 2, restarts: 3 };
        files.record_end(&end);
        assert_eq!(files.last_end(), Some(end));
    }
}
