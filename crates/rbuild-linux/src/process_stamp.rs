//! Identification of a process beyond its lifetime.

use std::os::fd::OwnedFd;

use crate::clock::boot_id;
use crate::descendants::shown_pid;
use crate::process::pidfd;

/// A process ID with the start of its process. IDs are assigned again, but never to a process with
/// the same start time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessStamp {
    /// The ID in the PID namespace of the process that made the stamp.
    pub pid: u32,
    /// Time of the start in clock ticks since the boot (proc_pid_stat(5)).
    pub start: u64,
    /// The boot during which the process was started.
    pub boot: String,
}

impl ProcessStamp {
    /// Returns the stamp of the process of a pidfd; `None` if it has ended, or if /proc does not
    /// show it.
    pub fn of(pidfd: &OwnedFd) -> Option<ProcessStamp> {
        let pid = shown_pid(pidfd)?;
        Some(ProcessStamp { pid, start: start_time(pid)?, boot: boot_id() })
    }

    /// Opens a pidfd of the process. Returns `None` if it has ended.
    pub fn open(&self) -> Option<OwnedFd> {
        if self.boot != boot_id() {
            return None;
        }
        let opened = pidfd(self.pid).ok()?;
        // As long as the pidfd is open and the process exists, its ID is not assigned again.
        (start_time(self.pid) == Some(self.start)).then_some(opened)
    }
}

/// Returns the 22nd field of /proc/PID/stat. The second one, the name, may contain any character.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process;

    #[test]
    fn a_stamp_opens_its_process_only() {
        let stamp = ProcessStamp::of(&process::own_pidfd().unwrap()).unwrap();
        assert_eq!(stamp.pid, std::process::id());
        assert!(stamp.open().is_some());
        let others = [
            ProcessStamp { start: stamp.start + 1, ..stamp.clone() },
            ProcessStamp { boot: "another".into(), ..stamp.clone() },
        ];
        assert!(others.iter().all(|other| other.open().is_none()));
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let ended = ProcessStamp::of(&process::pidfd(child.id()).unwrap()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(ended.open().is_none());
    }
}
