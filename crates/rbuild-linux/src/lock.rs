//! Inter-process locks that the kernel releases when their holder dies, and lookup of lock holders.

use std::fs::File;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::fstat;

use crate::error::{Error, Result, described};
use crate::rootdir::RootDir;

/// A lock on one key of a lock file, released on drop. It excludes threads as well as processes.
///
/// Each lock needs its own open of the lock file, because the lock belongs to the open file
/// description (fcntl(2), F_OFD_SETLK). It covers one byte at an offset derived from the key. Keys
/// that agree in their first 62 bits conflict, which costs time but is otherwise harmless.
pub struct KeyLock {
    _file: File,
}

/// Maximum time between two attempts.
const MAX_POLL_INTERVAL: Duration = Duration::from_millis(16);

/// Sharing mode of a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockKind {
    /// Held by any number of processes at a time.
    Shared,
    /// Held by one process at a time.
    Exclusive,
}

/// The kind of lock that conflicts with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// A lock on the same key, of the kind that [`KeyLock`] takes.
    Key,
    /// A lock that is not a [`KeyLock`]: owned by a process, or covering other bytes as well.
    Foreign,
}

impl KeyLock {
    /// Waits until `key` is free. Returns `None` if `stop` returns true. The kernel's blocking wait
    /// cannot be canceled from another thread, so the lock is polled at intervals of at most
    /// `MAX_POLL_INTERVAL`.
    pub fn wait(file: File, key: [u8; 8], stop: &mut dyn FnMut(&File, Conflict) -> bool) -> Result<Option<KeyLock>> {
        let mut pause = Duration::from_millis(1);
        loop {
            match attempt(&file, key, LockKind::Exclusive)? {
                None => return Ok(Some(KeyLock { _file: file })),
                Some(conflict) if stop(&file, conflict) => return Ok(None),
                Some(_) => std::thread::sleep(pause),
            }
            pause = (pause * 2).min(MAX_POLL_INTERVAL);
        }
    }

    /// Takes the lock if it is free, without waiting; otherwise returns the conflict.
    pub fn try_now(file: File, key: [u8; 8], kind: LockKind) -> Result<std::result::Result<KeyLock, Conflict>> {
        Ok(attempt(&file, key, kind)?.map_or(Ok(KeyLock { _file: file }), Err))
    }
}

/// Tries to lock; returns the conflict on failure.
fn attempt(file: &File, key: [u8; 8], kind: LockKind) -> Result<Option<Conflict>> {
    let fail = |call, e| Error::new(call, described("a file lock"), std::io::Error::from(e));
    let mut wanted = flock(kind, key);
    match fcntl(file, FcntlArg::F_OFD_SETLK(&wanted)) {
        Ok(_) => return Ok(None),
        Err(Errno::EAGAIN | Errno::EACCES | Errno::EINTR) => {}
        Err(e) => return Err(fail("fcntl(F_OFD_SETLK)", e)),
    }
    let (start, length) = (wanted.l_start, wanted.l_len);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut wanted)).map_err(|e| fail("fcntl(F_OFD_GETLK)", e))?;
    // Released in between, or held by an open file description (-1) on the same byte.
    let is_key = wanted.l_type == libc::F_UNLCK as libc::c_short
        || (wanted.l_pid == -1 && (wanted.l_start, wanted.l_len) == (start, length));
    Ok(Some(if is_key { Conflict::Key } else { Conflict::Foreign }))
}

fn flock(kind: LockKind, key: [u8; 8]) -> libc::flock {
    let kind = match kind {
        LockKind::Shared => libc::F_RDLCK,
        LockKind::Exclusive => libc::F_WRLCK,
    };
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: (u64::from_le_bytes(key) >> 2) as i64,
        l_len: 1,
        l_pid: 0,
    }
}

/// A process that holds a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockHolder {
    /// Process ID in the numbering of the given /proc.
    pub pid: u32,
    /// Name of its program; empty if it is not visible.
    pub command: String,
    /// User of the process, if known.
    pub uid: Option<u32>,
    /// Processor time used so far, in clock ticks.
    pub work: u64,
    /// True if a signal has stopped it (SIGSTOP).
    pub is_stopped: bool,
}

/// Maximum number of processes whose open files are searched for a lock that the kernel reports
/// without a process.
const MAX_PROCESSES: usize = 10_000;

/// Returns the processes that hold a lock of any kind on a file, as far as `proc`, a /proc, shows
/// them.
pub fn lock_holders(proc: &RootDir, file: &File) -> Vec<LockHolder> {
    let Ok(stat) = fstat(file) else { return Vec::new() };
    let locks = proc.read("locks", 16 << 20).unwrap_or_default();
    let locks = String::from_utf8_lossy(&locks);
    let own = proc.read_link("self".as_ref()).ok().and_then(|own| own.to_str()?.parse::<u32>().ok());
    let held: Vec<Option<u32>> = locks.lines().filter_map(|line| holder_of(line, stat.st_ino)).collect();
    let mut pids: Vec<u32> = held.iter().filter_map(|pid| *pid).filter(|pid| Some(*pid) != own).collect();
    if held.contains(&None) {
        pids.extend(openers(proc, stat.st_ino, own));
    }
    pids.sort_unstable();
    pids.dedup();
    pids.into_iter().map(|pid| describe(proc, pid)).collect()
}

/// Parses the holder from a line of /proc/locks, or of the locks in /proc/PID/fdinfo, if the line
/// is about that inode. The inner `None` means a lock of an open file description, which has no
/// process.
fn holder_of(line: &str, inode: u64) -> Option<Option<u32>> {
    // `1: POSIX  ADVISORY  WRITE 4711 08:01:1234 0 EOF`; a waiting lock has `->` in the second
    // field.
    let fields: Vec<&str> = line.trim_start_matches("lock:").split_whitespace().collect();
    let [_, kind, _, _, pid, place, ..] = fields[..] else { return None };
    let is_it = kind != "->" && place.rsplit(':').next()?.parse() == Ok(inode);
    is_it.then(|| pid.parse().ok())
}

/// Returns the processes that have a file open which holds a lock on that inode.
fn openers(proc: &RootDir, inode: u64, own: Option<u32>) -> Vec<u32> {
    let entries = proc.entries().unwrap_or_default();
    let pids = entries.iter().filter_map(|entry| entry.name.to_str()?.parse::<u32>().ok());
    let has_lock = |pid: &u32| {
        let Ok(open) = proc.sub(format!("{pid}/fdinfo")) else { return false };
        open.entries().unwrap_or_default().iter().any(|entry| {
            let text = open.read(&entry.name, 64 << 10).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            text.lines().any(|line| line.starts_with("lock:") && holder_of(line, inode).is_some())
        })
    };
    pids.filter(|pid| Some(*pid) != own).take(MAX_PROCESSES).filter(has_lock).collect()
}

fn describe(proc: &RootDir, pid: u32) -> LockHolder {
    let read = |name: &str| {
        let bytes = proc.read(format!("{pid}/{name}"), 64 << 10).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let status = read("status");
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok());
    // The name may contain any character; user and system time are the 12th and 13th field after it
    // (proc(5)).
    let stat = read("stat");
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let work = fields.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    let is_stopped = fields.trim_start().starts_with(['T', 't']);
    LockHolder { pid, command: read("comm").trim().to_string(), uid, work, is_stopped }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::Scratch;

    use super::*;

    /// Returns a directory, and a function that opens the file `lock` in it.
    fn lock_file() -> (Scratch, impl Fn() -> File) {
        let dir = Scratch::new();
        let path = dir.join("lock");
        let open = move || File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        (dir, open)
    }

    #[test]
    fn a_lock_of_another_kind_is_foreign() {
        let (_dir, open) = lock_file();
        let held = KeyLock::try_now(open(), [7; 8], LockKind::Exclusive).unwrap();
        assert!(held.is_ok());
        assert_eq!(KeyLock::try_now(open(), [7; 8], LockKind::Shared).unwrap().err(), Some(Conflict::Key));
        drop(held);
        let whole = open();
        let lock = libc::flock { l_start: 0, l_len: 0, ..flock(LockKind::Exclusive, [0; 8]) };
        fcntl(&whole, FcntlArg::F_OFD_SETLK(&lock)).unwrap();
        assert_eq!(KeyLock::try_now(open(), [7; 8], LockKind::Shared).unwrap().err(), Some(Conflict::Foreign));
        drop(whole);
    }

    #[test]
    fn lock_holders_are_named() {
        let (dir, open) = lock_file();
        let file = open();
        let mut holder =
            std::process::Command::new("flock").arg(dir.join("lock")).args(["sleep", "60"]).spawn().unwrap();
        let proc = RootDir::open("/proc").unwrap();
        let wait = |is_it: &dyn Fn(&LockHolder) -> bool| {
            (0..200).find_map(|_| {
                std::thread::sleep(Duration::from_millis(10));
                lock_holders(&proc, &file).into_iter().next().filter(is_it)
            })
        };
        let found = wait(&|holder| !holder.is_stopped);
        crate::process::signal_pidfd(&crate::process::pidfd(holder.id()).unwrap(), libc::SIGSTOP).unwrap();
        assert!(wait(&|holder| holder.is_stopped).is_some());
        let _ = holder.kill();
        let _ = holder.wait();
        let found = found.map(|found| (found.pid, found.command, found.uid));
        assert_eq!(found, Some((holder.id(), "flock".into(), Some(crate::credentials::own_ids().uid))));
    }

    #[test]
    fn processor_use_of_a_holder_is_detected() {
        let proc = RootDir::open("/proc").unwrap();
        let before = describe(&proc, std::process::id()).work;
        let began = std::time::Instant::now();
        while describe(&proc, std::process::id()).work == before {
            assert!(began.elapsed() < Duration::from_secs(20));
        }
    }

    #[test]
    fn lines_of_proc_locks_are_parsed() {
        assert_eq!(holder_of("1: POSIX  ADVISORY  WRITE 4711 08:01:1234 0 EOF", 1234), Some(Some(4711)));
        assert_eq!(holder_of("lock:\t1: OFDLCK ADVISORY  WRITE -1 08:01:1234 0 EOF", 1234), Some(None));
        assert_eq!(holder_of("1: -> POSIX  ADVISORY  WRITE 4711 08:01:1234 0 EOF", 1234), None);
        assert_eq!(holder_of("1: POSIX  ADVISORY  WRITE 4711 08:01:1235 0 EOF", 1234), None);
        assert_eq!(holder_of("", 1234), None);
    }
}
