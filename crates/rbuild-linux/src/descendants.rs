//! The children of this process and of others: their PIDs, their end, and orphans.

use std::os::fd::{AsRawFd, OwnedFd};

use crate::error::{Error, Result, described};
use crate::process::{Exit, kill, wait};

/// Reaps all children that have ended, and returns them. Does not block.
pub fn reap() -> Vec<(u32, Exit)> {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    let mut ended = Vec::new();
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => ended.push((pid.as_raw() as u32, Exit::Code(code))),
            Ok(WaitStatus::Signaled(pid, signal, _)) => ended.push((pid.as_raw() as u32, Exit::Signal(signal as i32))),
            Ok(WaitStatus::StillAlive) | Err(_) => return ended,
            Ok(_) => {}
        }
    }
}

/// Makes the calling process the reaper of orphaned descendants (prctl(2), PR_SET_CHILD_SUBREAPER).
pub fn adopt_orphans() -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true)
        .map_err(|e| Error::new("prctl", described("the reaper of orphaned processes"), std::io::Error::from(e)))
}

/// Returns the PIDs of the children of the calling process's first thread, in the PID namespace of
/// /proc.
pub fn children() -> Vec<u32> {
    children_of(shown_id().unwrap_or_else(std::process::id))
}

/// Returns the PID of the calling process in /proc. If /proc belongs to an outer PID namespace, it
/// differs from the process's own.
pub(crate) fn shown_id() -> Option<u32> {
    std::fs::read_link("/proc/self").ok().and_then(|link| link.to_str()?.parse().ok())
}

/// Returns the PID of the process of a pidfd in the PID namespace of /proc.
pub(crate) fn shown_pid(pidfd: &OwnedFd) -> Option<u32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok()).filter(|pid| *pid > 0)
}

/// Returns the PIDs of the children of the first thread of a process. All PIDs are those of the PID
/// namespace of /proc.
pub(crate) fn children_of(process: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children"));
    if let Ok(text) = text {
        return text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    }
    // Fallback for kernels without that file (CONFIG_PROC_CHILDREN).
    let parent = |pid: u32| -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|e| e.file_name().to_str()?.parse().ok()).filter(|pid| parent(*pid) == Some(process)).collect()
}

/// Kills all children, including those that are reparented to the calling process meanwhile, until
/// none are left.
pub fn kill_children() {
    kill_children_except(&[]);
}

/// Does the same with all children but those in `kept`.
pub fn kill_children_except(kept: &[u32]) {
    loop {
        let mut children = children();
        children.retain(|pid| !kept.contains(pid));
        if children.is_empty() {
            return;
        }
        children.iter().for_each(|pid| kill(*pid));
        for pid in children {
            let _ = wait(pid);
        }
    }
}
