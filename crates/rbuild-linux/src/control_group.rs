//! Control groups (cgroups(7)) of version 2 that limit the resources of a command.
//!
//! A group is created below the nearest parent of the caller's own group that the caller may
//! change: root in most cases, and an ordinary user where a service manager has delegated a group
//! to the user. The process that created it holds a lock on its directory. Groups whose lock is
//! free are left over from a process that was killed, and are removed when the next one is created.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rbuild_container::GroupLimits;

use crate::clock;
use crate::descendants::shown_id;
use crate::error::{Error, described};

/// Beginning of the names of groups.
const PREFIX: &str = "rbuild-";

/// Period of the limit on processor time, in microseconds.
const CPU_PERIOD: u64 = 100_000;

/// Minimum processor time per period that the kernel accepts, in microseconds.
const MIN_CPU_TIME: u64 = 1000;

/// Maximum size of a file of a control group in bytes.
const MAX_FILE: usize = 64 << 10;

/// Returns the names of the controllers that apply the limits.
fn controllers(limits: GroupLimits) -> Vec<&'static str> {
    let all = [("memory", limits.memory), ("cpu", limits.milli_cpus), ("pids", limits.processes)];
    all.into_iter().filter(|(_, limit)| limit.is_some()).map(|(name, _)| name).collect()
}

/// Returns the names of files with their content. The process that starts the command belongs to
/// the group, too.
fn files(limits: GroupLimits) -> Vec<(&'static str, String)> {
    let memory = limits.memory.map(|bytes| ("memory.max", bytes.to_string()));
    let swap = limits.memory.map(|bytes| ("memory.swap.max", bytes.to_string()));
    let time = |cpus: u64| (cpus.saturating_mul(CPU_PERIOD) / 1000).max(MIN_CPU_TIME);
    let cpu = limits.milli_cpus.map(|cpus| ("cpu.max", format!("{} {CPU_PERIOD}", time(cpus))));
    let processes = limits.processes.map(|processes| ("pids.max", processes.saturating_add(1).to_string()));
    [memory, swap, cpu, processes].into_iter().flatten().collect()
}

/// A reason why a group cannot be created.
#[derive(Debug)]
pub enum GroupProblem {
    /// This machine has no control groups of version 2, or not this controller in them.
    NoController(&'static str),
    /// The caller may not create a group with that controller.
    NotDelegated,
    /// A file of a group cannot be read or written.
    Kernel(Error),
}

impl From<Error> for GroupProblem {
    fn from(e: Error) -> GroupProblem {
        GroupProblem::Kernel(e)
    }
}

impl fmt::Display for GroupProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GroupProblem::NoController(name) => {
                write!(f, "the machine has no `{name}` controller in control groups of version 2")
            }
            GroupProblem::NotDelegated => f.write_str("no control group is delegated to this user"),
            GroupProblem::Kernel(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for GroupProblem {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            GroupProblem::Kernel(e) => e.source(),
            GroupProblem::NoController(_) | GroupProblem::NotDelegated => None,
        }
    }
}

/// A control group for one command.
#[derive(Debug)]
pub struct ControlGroup {
    path: PathBuf,
    /// The list of its processes: the kernel checks the rights of the process that opened it.
    processes: File,
    events: Option<File>,
    /// Holds the lock.
    _dir: File,
}

impl ControlGroup {
    /// Creates a group with these limits.
    ///
    /// # Errors
    ///
    /// Fails if the caller may not create groups, or if a controller is missing.
    pub fn create(limits: GroupLimits) -> Result<ControlGroup, GroupProblem> {
        let controllers = controllers(limits);
        let first = controllers.first().copied().unwrap_or("memory");
        let own = OwnGroup::find().ok_or(GroupProblem::NoController(first))?;
        let available = words_of(&own.top.join("cgroup.controllers"));
        let is_missing = |name: &&str| !available.iter().any(|known| known == name);
        if let Some(missing) = controllers.iter().copied().find(is_missing) {
            return Err(GroupProblem::NoController(missing));
        }
        let parents = own.path.ancestors().take_while(|dir| dir.starts_with(&own.top));
        let parent = parents.into_iter().find(|dir| enable(dir, &controllers)).ok_or(GroupProblem::NotDelegated)?;
        sweep(parent);
        let path = parent.join(format!("{PREFIX}{}-{}", std::process::id(), clock::monotonic_nanoseconds()));
        let group = make(&path)?;
        match files(limits).iter().try_for_each(|(name, content)| write(&path.join(name), content)) {
            Ok(()) => Ok(group),
            Err(e) => {
                group.remove();
                Err(e.into())
            }
        }
    }

    /// Adds the process of a pidfd, and with it those that it starts from now on. `nested` is true
    /// if it is the first one of a PID namespace below that of the caller.
    ///
    /// # Errors
    ///
    /// Fails if /proc does not show the process, or if the kernel refuses it.
    pub fn add(&self, process: &OwnedFd, nested: bool) -> Result<(), Error> {
        let fail = |e: io::Error| Error::new("write", described("the list of processes of the control group"), e);
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd())).map_err(fail)?;
        let pid = own_id(&info, nested).ok_or_else(|| fail(io::ErrorKind::NotFound.into()))?;
        (&self.processes).write_all(pid.to_string().as_bytes()).map_err(fail)
    }

    /// Returns the number of processes that were killed because the memory was exhausted.
    pub fn memory_kills(&self) -> u64 {
        let mut text = vec![0; MAX_FILE];
        let read = self.events.as_ref().and_then(|file| file.read_at(&mut text, 0).ok()).unwrap_or(0);
        kills(&String::from_utf8_lossy(&text[..read]))
    }

    /// Removes the group, whose processes have ended.
    pub fn remove(&self) {
        // A group that cannot be removed is removed when the next one is created.
        let _ = std::fs::remove_dir(&self.path);
    }
}

/// Moves the calling process to the control group of the container whose first process has that
/// ID. Does nothing if the container has no group of its own.
///
/// # Errors
///
/// Fails if the caller may not add processes to it.
pub fn join_group_of(pid: u32) -> Result<(), Error> {
    let (Some(own), Some(name)) = (OwnGroup::find(), group_of(&pid.to_string())) else { return Ok(()) };
    let path = own.place(&name);
    if !is_own(path.file_name().unwrap_or_default()) {
        return Ok(());
    }
    write(&path.join("cgroup.procs"), "0")
}

/// Returns the memory in bytes that the container uses whose first process has that ID; `None` if
/// it has no group of its own.
pub fn memory_of_group(pid: u32) -> Option<u64> {
    let path = OwnGroup::find()?.place(&group_of(&pid.to_string())?);
    let is_of_container = is_own(path.file_name()?);
    let text = std::fs::read_to_string(path.join("memory.current")).ok().filter(|_| is_of_container)?;
    text.trim().parse().ok()
}

/// The group of the calling process.
struct OwnGroup {
    /// The directory of the topmost group that is visible.
    top: PathBuf,
    /// The name of that group, as in /proc/PID/cgroup.
    root: PathBuf,
    /// The directory of the group.
    path: PathBuf,
}

impl OwnGroup {
    fn find() -> Option<OwnGroup> {
        // With /proc of an outer PID namespace, /proc/self is another process.
        shown_id()?;
        let (top, root) = hierarchy(&std::fs::read_to_string("/proc/self/mountinfo").ok()?)?;
        let mut own = OwnGroup { path: PathBuf::new(), top, root };
        own.path = own.place(&group_of("self")?);
        Some(own)
    }

    /// Returns the directory of the group with that name.
    fn place(&self, name: &Path) -> PathBuf {
        let below = name.strip_prefix(&self.root).or(name.strip_prefix("/")).unwrap_or(name);
        self.top.join(below)
    }
}

/// Returns the mount point and the root of the hierarchy of version 2, from mountinfo
/// (proc_pid_mountinfo(5)).
fn hierarchy(mounts: &str) -> Option<(PathBuf, PathBuf)> {
    mounts.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let mut words = mount.split(' ');
        let (root, place) = (words.nth(3)?, words.next()?);
        source.starts_with("cgroup2 ").then(|| (place.into(), root.into()))
    })
}

/// Returns the name of the group of a process in the hierarchy of version 2; `None` if it is
/// outside of the visible groups.
fn group_of(process: &str) -> Option<PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
    let name = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    (!name.starts_with("/..")).then(|| name.into())
}

fn words_of(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().map(str::to_string).collect()
}

/// Enables controllers for the groups below a directory. Returns false if that is not possible, or
/// if the caller may not create groups there.
fn enable(parent: &Path, controllers: &[&str]) -> bool {
    if rustix::fs::access(parent, rustix::fs::Access::WRITE_OK).is_err() {
        return false;
    }
    let enabled = words_of(&parent.join("cgroup.subtree_control"));
    let missing: Vec<String> = controllers
        .iter()
        .filter(|name| !enabled.iter().any(|known| known == *name))
        .map(|name| format!("+{name}"))
        .collect();
    // Refused for groups with processes of their own, other than the topmost one of the machine.
    missing.is_empty() || write(&parent.join("cgroup.subtree_control"), &missing.join(" ")).is_ok()
}

/// Creates a group that no other process removes.
fn make(path: &Path) -> Result<ControlGroup, Error> {
    let fail = |call| move |e: io::Error| Error::new(call, path, e);
    loop {
        std::fs::create_dir(path).map_err(fail("mkdirat"))?;
        let dir = File::open(path).map_err(fail("openat"))?;
        dir.lock().map_err(fail("flock"))?;
        let processes = path.join("cgroup.procs");
        // Another process may have removed it before it was locked.
        match File::options().write(true).open(&processes) {
            Ok(processes) => {
                let events = File::open(path.join("memory.events")).ok();
                return Ok(ControlGroup { path: path.to_path_buf(), processes, events, _dir: dir });
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::new("openat", &processes, e)),
        }
    }
}

/// Removes groups whose creators have ended.
fn sweep(parent: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        if !is_own(&entry.file_name()) {
            continue;
        }
        let Ok(dir) = File::open(entry.path()) else { continue };
        match dir.try_lock() {
            // Fails as long as it has processes.
            Ok(()) => drop(std::fs::remove_dir(entry.path())),
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
        }
    }
}

fn is_own(name: &OsStr) -> bool {
    let rest = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
    rest.is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-'))
}

fn write(path: &Path, content: &str) -> Result<(), Error> {
    let written = File::options().write(true).open(path).and_then(|mut file| file.write_all(content.as_bytes()));
    match written {
        // Kernels may lack the accounting of swap space.
        Err(e) if e.kind() == io::ErrorKind::NotFound && path.ends_with("memory.swap.max") => Ok(()),
        other => other.map_err(|e| Error::new("write", path, e)),
    }
}

/// Returns the ID that a process has in the PID namespace of the caller, from the description of
/// its pidfd in /proc/self/fdinfo: `NSpid` lists its IDs from the namespace of /proc to its own.
fn own_id(info: &str, nested: bool) -> Option<u32> {
    let ids = info.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    let ids: Vec<u32> = ids.split_whitespace().filter_map(|id| id.parse().ok()).collect();
    let at = ids.len().checked_sub(if nested { 2 } else { 1 })?;
    ids.get(at).copied().filter(|id| *id > 0)
}

fn kills(events: &str) -> u64 {
    events.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_files_of_their_controllers() {
        let limits = GroupLimits { memory: Some(64 << 20), milli_cpus: Some(1500), processes: Some(10) };
        assert_eq!(controllers(limits), ["memory", "cpu", "pids"]);
        let all = files(limits);
        let all: Vec<String> = all.iter().map(|(name, content)| format!("{name}={content}")).collect();
        assert_eq!(all.join(" "), "memory.max=67108864 memory.swap.max=67108864 cpu.max=150000 100000 pids.max=11");
        let least = files(GroupLimits { milli_cpus: Some(1), ..GroupLimits::default() });
        assert_eq!(least, [("cpu.max", "1000 100000".to_string())]);
    }

    #[test]
    fn groups_are_found_in_the_hierarchy_of_version_2() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                      31 30 0:27 / /sys/fs/cgroup/pids rw,nosuid shared:9 - cgroup cgroup rw,pids\n\
                      32 30 0:28 /user.slice /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw\n";
        let (top, root) = hierarchy(mounts).unwrap();
        let own = OwnGroup { path: PathBuf::new(), top, root };
        assert_eq!(own.place(Path::new("/user.slice/a/b")), Path::new("/sys/fs/cgroup/unified/a/b"));
        assert_eq!(own.place(Path::new("/user.slice")), Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(hierarchy("31 30 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"), None);
    }

    #[test]
    fn ids_are_those_of_the_namespace_of_the_caller() {
        for (info, nested, expected) in [
            ("Pid:\t70\nNSpid:\t70\t1\n", true, Some(70)),
            ("NSpid:\t9070\t70\t1\n", true, Some(70)),
            ("NSpid:\t9070\t70\n", false, Some(70)),
            ("NSpid:\t70\n", true, None),
            ("NSpid:\t-1\n", false, None),
            ("NSpid:\n", false, None),
            ("flags:\t02\n", false, None),
        ] {
            assert_eq!(own_id(info, nested), expected, "{info}");
        }
        let pidfd = crate::process::own_pidfd().unwrap();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
        assert_eq!(own_id(&info, false), Some(std::process::id()));
    }

    #[test]
    fn processes_killed_for_their_memory_are_counted() {
        assert_eq!(kills("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"), 2);
        assert_eq!(kills(""), 0);
    }

    /// With directories in place of control groups: those with a lock are in use.
    #[test]
    fn groups_of_processes_that_were_killed_are_removed() {
        let dir = rbuild_testkit::Scratch::new();
        for name in ["rbuild-1-5", "rbuild-2-7", "rbuild-x", "other"] {
            std::fs::create_dir(dir.join(name)).unwrap();
        }
        let used = File::open(dir.join("rbuild-2-7")).unwrap();
        used.lock().unwrap();
        sweep(&dir);
        let mut left: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["other", "rbuild-2-7", "rbuild-x"]);
    }

    #[test]
    fn problems_are_as_recorded() {
        use rbuild_testkit::{assert_recorded, no_remedy, variants};
        let kernel = Error::new("openat", Path::new("/sys/fs/cgroup/a/memory.max"), rustix::io::Errno::ACCESS);
        let problems = [GroupProblem::NoController("memory"), GroupProblem::NotDelegated, GroupProblem::Kernel(kernel)];
        let variants = variants!(GroupProblem { NoController, NotDelegated, Kernel });
        assert_recorded!("GroupProblem", variants.table(&problems, |e| e, no_remedy));
    }
}
