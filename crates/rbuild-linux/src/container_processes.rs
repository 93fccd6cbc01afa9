//! The processes of a running container, as /proc shows them.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::descendants::children_of;
use crate::error::{Error, Result, described};
use crate::process::{has_ended, pidfd, signal_pidfd};

/// Numbers of SIGSTOP and SIGCONT.
const STOP: i32 = 19;
const CONTINUE: i32 = 18;

/// Maximum time until all processes of a container are stopped.
const MAX_STOP: Duration = Duration::from_secs(5);

/// A process of a container. IDs of processes are those of the caller's /proc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerProcess {
    /// ID of the process.
    pub pid: u32,
    /// ID of its parent.
    pub parent: u32,
    /// Effective user ID, as the container sees it.
    pub user: u32,
    /// The program and its arguments; the name of the program in brackets if there are none.
    pub command: String,
    /// Number of its terminal in devpts(5).
    pub terminal: Option<u32>,
    /// Processor time in clock ticks.
    pub ticks: u64,
    /// Start in clock ticks since the boot.
    pub start: u64,
    /// Number of its threads.
    pub threads: u64,
    /// Memory in bytes.
    pub memory: u64,
    /// Bytes that it has read from disks and written to disks.
    pub disk: (u64, u64),
    state: char,
}

impl ContainerProcess {
    /// Returns true if a signal has stopped it, or if it has ended.
    fn is_stopped(&self) -> bool {
        matches!(self.state, 'T' | 't' | 'Z' | 'X')
    }

    fn read(pid: u32) -> Option<ContainerProcess> {
        let text = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
        let stat = ProcStat::parse(&text("stat")?)?;
        let words = text("cmdline").unwrap_or_default();
        let words: Vec<&str> = words.split('\0').filter(|word| !word.is_empty()).collect();
        let command = if words.is_empty() { format!("[{}]", stat.name) } else { words.join(" ") };
        let user = effective_user(&text("status")?)?;
        Some(ContainerProcess {
            pid,
            parent: stat.parent,
            user: inside(&text("uid_map").unwrap_or_default(), user).unwrap_or(user),
            command,
            terminal: pseudoterminal(stat.terminal),
            ticks: stat.ticks,
            start: stat.start,
            threads: stat.threads,
            memory: stat.pages.saturating_mul(rustix::param::page_size() as u64),
            disk: disk_bytes(&text("io").unwrap_or_default()),
            state: stat.state,
        })
    }
}

/// The fields of /proc/PID/stat.
#[derive(Debug, PartialEq, Eq)]
struct ProcStat {
    name: String,
    state: char,
    parent: u32,
    terminal: u32,
    ticks: u64,
    threads: u64,
    start: u64,
    pages: u64,
}

impl ProcStat {
    /// The name may contain any character.
    fn parse(text: &str) -> Option<ProcStat> {
        let (before, after) = text.rsplit_once(')')?;
        let fields: Vec<&str> = after.split_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(ProcStat {
            name: before.split_once('(')?.1.to_string(),
            state: fields.first()?.chars().next()?,
            parent: u32::try_from(number(1)?).ok()?,
            terminal: u32::try_from(number(4)?).unwrap_or(0),
            ticks: number(11)?.saturating_add(number(12)?),
            threads: number(17)?,
            start: number(19)?,
            pages: number(21)?,
        })
    }
}

/// Returns the effective user ID of /proc/PID/status.
fn effective_user(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Returns the ID inside a user namespace, whose map has lines with the first ID inside, the first
/// one outside, and their number.
fn inside(map: &str, outer: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let numbers: Vec<u32> = line.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let [first, outside, count] = numbers[..] else { return None };
        let at = outer.checked_sub(outside).filter(|at| *at < count)?;
        first.checked_add(at)
    })
}

/// Returns the number of a pseudoterminal from that of its device.
fn pseudoterminal(device: u32) -> Option<u32> {
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00));
    (136..=143).contains(&major).then(|| (major - 136) * 256 + minor)
}

fn disk_bytes(io: &str) -> (u64, u64) {
    let of = |name: &str| {
        let line = io.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    };
    (of("read_bytes"), of("write_bytes"))
}

/// Returns the processes of the container whose first process has that ID and that pidfd, parents
/// before their children: those in its PID namespace or, if that is the caller's, its descendants.
///
/// # Errors
///
/// Fails if the process has ended, or if the caller may not inspect it.
pub fn container_processes(first: u32, pidfd: &OwnedFd) -> Result<Vec<ContainerProcess>> {
    let processes = listed(first)?;
    if has_ended(pidfd) {
        // The ID may be that of another process.
        let path = format!("/proc/{first}");
        return Err(Error::new("openat", Path::new(&path), std::io::ErrorKind::NotFound));
    }
    Ok(processes)
}

fn listed(first: u32) -> Result<Vec<ContainerProcess>> {
    let namespace = namespace_of(first)?;
    let ids = if namespace == namespace_of(std::process::id())? {
        descendants(first)
    } else {
        let proc = Path::new("/proc");
        let entries = std::fs::read_dir(proc).map_err(|e| Error::new("openat", proc, e))?;
        let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        ids.filter(|pid| namespace_of(*pid).is_ok_and(|other| other == namespace)).collect()
    };
    let mut processes: Vec<ContainerProcess> = ids.into_iter().filter_map(ContainerProcess::read).collect();
    let depth = |process: &ContainerProcess| {
        let parent = |process: &&ContainerProcess| processes.iter().find(|other| other.pid == process.parent);
        std::iter::successors(Some(process), parent).take(processes.len()).count()
    };
    let depths: Vec<usize> = processes.iter().map(depth).collect();
    let mut order: Vec<usize> = (0..processes.len()).collect();
    order.sort_by_key(|at| (depths[*at], processes[*at].pid));
    processes = order.into_iter().map(|at| processes[at].clone()).collect();
    Ok(processes)
}

fn namespace_of(pid: u32) -> Result<std::path::PathBuf> {
    let path = format!("/proc/{pid}/ns/pid");
    std::fs::read_link(&path).map_err(|e| Error::new("readlink", Path::new(&path), e))
}

fn descendants(first: u32) -> Vec<u32> {
    let mut all = vec![first];
    let mut at = 0;
    while at < all.len() {
        all.extend(children_of(all[at]));
        at += 1;
    }
    all
}

/// Stops all processes of a container, and repeats this until no new ones appear. Parents are
/// stopped before their children, because they could otherwise notice that a child has stopped.
///
/// # Errors
///
/// Fails if the container has ended, or if one of its processes does not stop within seconds.
pub fn stop_processes(first: u32, pidfd: &OwnedFd) -> Result<()> {
    let began = Instant::now();
    loop {
        let running: Vec<ContainerProcess> =
            container_processes(first, pidfd)?.into_iter().filter(|process| !process.is_stopped()).collect();
        let Some(process) = running.first() else { return Ok(()) };
        if began.elapsed() > MAX_STOP {
            let object = described(format!("process {} of the container", process.pid));
            return Err(Error::new("kill", object, std::io::ErrorKind::TimedOut));
        }
        for process in &running {
            if let Some(process) = open(first, process) {
                send(&process, STOP)?;
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Continues all processes of a container, children before their parents.
///
/// # Errors
///
/// Fails if the container has ended.
pub fn continue_processes(first: u32, pidfd: &OwnedFd) -> Result<()> {
    for process in container_processes(first, pidfd)?.iter().rev() {
        if let Some(process) = open(first, process) {
            send(&process, CONTINUE)?;
        }
    }
    Ok(())
}

/// Sends a signal to a process, unless it has ended.
fn send(process: &OwnedFd, signal: i32) -> Result<()> {
    match signal_pidfd(process, signal) {
        Err(e) if e.errno() == Some(libc::ESRCH) => Ok(()),
        sent => sent,
    }
}

/// Opens a process, unless it has ended and its ID is that of a process of no container.
fn open(first: u32, process: &ContainerProcess) -> Option<OwnedFd> {
    let opened = pidfd(process.pid).ok()?;
    let now = ContainerProcess::read(process.pid)?;
    let is_same = now.start == process.start && namespace_of(process.pid).ok()? == namespace_of(first).ok()?;
    is_same.then_some(opened)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn descendants_are_listed_stopped_and_continued() {
        let script = "sleep 1000 & sleep 1001 & wait";
        let mut shell = Command::new("sh").args(["-c", script]).stdin(Stdio::null()).spawn().unwrap();
        let process = pidfd(shell.id()).unwrap();
        let list = || container_processes(shell.id(), &process).unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        while list().iter().filter(|process| process.command.starts_with("sleep 100")).count() < 2 {
            assert!(Instant::now() < end, "{:?}", list());
            std::thread::sleep(Duration::from_millis(10));
        }
        let all = list();
        assert_eq!((all.len(), all[0].pid), (3, shell.id()));
        assert!(all[1..].iter().all(|process| process.parent == shell.id() && process.memory > 0));
        stop_processes(shell.id(), &process).unwrap();
        assert!(list().iter().all(ContainerProcess::is_stopped));
        continue_processes(shell.id(), &process).unwrap();
        assert!(list().iter().all(|process| !process.is_stopped()));
        for process in all[1..].iter().chain(&all[..1]) {
            crate::process::kill(process.pid);
        }
        shell.wait().unwrap();
        assert!(container_processes(shell.id(), &process).is_err());
        // The ID of a process that has ended may be that of another one.
        assert!(container_processes(std::process::id(), &process).is_err());
    }

    #[test]
    fn files_of_proc_are_parsed() {
        let stat = "7 (a) b) S 3 7 7 34817 7 4194304 100 0 0 0 25 17 0 0 20 0 4 0 12345 1000 33 18446744073709551615";
        let expected = ProcStat {
            name: "a) b".into(),
            state: 'S',
            parent: 3,
            terminal: 34817,
            ticks: 42,
            threads: 4,
            start: 12345,
            pages: 33,
        };
        assert_eq!(ProcStat::parse(stat), Some(expected));
        assert_eq!(ProcStat::parse("7 (a) S"), None);
        assert_eq!((pseudoterminal(34817), pseudoterminal(0), pseudoterminal(1025)), (Some(1), None, None));
        assert_eq!(effective_user("Name:\tx\nUid:\t1\t2\t3\t4\n"), Some(2));
        let map = "         0       1001          1\n         1     100000      65536\n";
        assert_eq!([1001, 100032, 5].map(|id| inside(map, id)), [Some(0), Some(33), None]);
        assert_eq!(disk_bytes("rchar: 5\nread_bytes: 4096\nwrite_bytes: 8192\n"), (4096, 8192));
    }
}
