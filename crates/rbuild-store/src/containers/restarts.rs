//! Restarts of containers: policies, the last end of a command, and requests of other commands.
//!
//! The builder of a container restarts its command. It has no lock of the store meanwhile: it
//! writes and reads only files of its own container.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::containers::small_file;
use crate::error::Result;

const LAST_END: &str = "last-end.json";
/// Exists if the policy must not restart the command. Locked by processes that stop the container.
const STOP: &str = "stop";
/// Locked by processes that wait for a restart.
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
    /// All. Without a daemon that starts containers at boot, this is the same as `Always`.
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

    /// Makes a request, which must precede the signal that ends the command. It applies as long as
    /// the returned value exists. A request to stop takes precedence over a concurrent request to
    /// restart; even after it has been dropped, the policy does not restart the command until a
    /// restart is requested.
    ///
    /// # Errors
    ///
    /// Fails if its file cannot be created.
    pub fn request_end(&self, request: EndRequest) -> Result<PendingRequest> {
        let path = match request {
            EndRequest::Stop => &self.stop,
            EndRequest::Restart => &self.restart,
        };
        locked(path).map(PendingRequest).map_err(|e| rbuild_linux::Error::new("openat", path, e).into())
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

    /// Returns the request that applies to an end of the command, if there is one. One for a
    /// restart applies to one end.
    pub fn take_request(&self) -> Option<EndRequest> {
        if is_pending(&self.stop) {
            return Some(EndRequest::Stop);
        }
        if is_pending(&self.restart) {
            // Who requests it next makes a new file.
            let _ = (std::fs::remove_file(&self.restart), std::fs::remove_file(&self.stop));
            return Some(EndRequest::Restart);
        }
        self.stop.exists().then_some(EndRequest::Stop)
    }
}

/// A request of this process. If the process is killed, the request ends with it.
#[derive(Debug)]
#[must_use = "the request ends when it is dropped"]
pub struct PendingRequest(#[expect(dead_code, reason = "it holds the lock")] File);

/// Creates or opens a file, and locks it together with others that make the same request.
fn locked(path: &Path) -> io::Result<File> {
    loop {
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        file.lock_shared()?;
        // The builder may have removed it meanwhile.
        if file.metadata()?.nlink() > 0 {
            return Ok(file);
        }
    }
}

/// Returns true if a process has locked a file.
fn is_pending(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
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
    fn requests_apply_as_long_as_they_are_made() {
        let place = Scratch::new();
        let files = RestartFiles::of(&place);
        assert_eq!((files.take_request(), files.last_end()), (None, None));
        let restart = files.request_end(EndRequest::Restart).unwrap();
        assert_eq!([files.take_request(), files.take_request()], [Some(EndRequest::Restart), None]);
        drop((restart, files.request_end(EndRequest::Restart).unwrap()));
        assert_eq!(files.take_request(), None, "nobody waits for a restart");
        let (stop, restart) = (files.request_end(EndRequest::Stop), files.request_end(EndRequest::Restart));
        assert_eq!([files.take_request(), files.take_request()], [Some(EndRequest::Stop); 2]);
        drop(stop);
        assert_eq!([files.take_request(), files.take_request()], [Some(EndRequest::Restart), None]);
        drop((restart, files.request_end(EndRequest::Stop).unwrap()));
        assert_eq!([files.take_request(), files.take_request()], [Some(EndRequest::Stop); 2], "by the policy");
        let end = LastEnd { code: 1, at: 2, restarts: 3 };
        files.record_end(&end);
        assert_eq!(files.last_end(), Some(end));
    }
}
