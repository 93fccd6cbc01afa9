//! The thread that makes a call, while it waits for the answer: its memory, credentials and
//! descriptors.

use std::ffi::CString;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use caps::Capability;
use rbuild_linux::process::tid_in;
use rbuild_linux::seccomp::{InterceptedCall, still_waits};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::id_emulation::decode::HERE;

/// The result of emulating a call. The error is returned to the caller.
pub type Result<T> = std::result::Result<T, Errno>;

/// The longest path that the kernel accepts, including the terminator.
const PATH_MAX: usize = 4096;

const PAGE: u64 = 4096;
/// Bytes of the caller's memory read at a time; most paths are shorter.
const CHUNK: u64 = 256;

/// A /proc that shows both the container's processes and this one.
pub struct SharedProc {
    pub dir: OwnedFd,
    /// True if it belongs to an outer PID namespace, in which processes have other IDs.
    pub outer: bool,
}

impl SharedProc {
    /// Returns a path for `fd`, a descriptor of this process. Valid while this /proc is the working
    /// directory.
    pub fn path_of(fd: impl AsFd) -> PathBuf {
        PathBuf::from(format!("self/fd/{}", fd.as_fd().as_raw_fd()))
    }

    /// Returns true if the thread with that ID in this /proc holds a capability.
    pub fn holds(&self, tid: u32, capability: Capability) -> bool {
        let status = format!("{tid}/status");
        let status = rustix::fs::openat(&self.dir, status, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        status.is_ok_and(|status| is_held(line(status, "CapEff:"), capability))
    }
}

/// Returns true if a set of capabilities, as /proc prints it, contains the given one.
fn is_held(set: Option<String>, capability: Capability) -> bool {
    let set = set.and_then(|set| u64::from_str_radix(&set, 16).ok());
    set.is_some_and(|set| set & capability.bitmask() != 0)
}

/// Returns the rest of the line of a file that starts with `word`.
fn line(file: OwnedFd, word: &str) -> Option<String> {
    let mut text = String::new();
    std::fs::File::from(file).read_to_string(&mut text).ok()?;
    text.lines().find_map(|line| line.strip_prefix(word)).map(|rest| rest.trim().to_string())
}

/// A thread that waits for an answer.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    pub call: &'a InterceptedCall,
    pub listener: BorrowedFd<'a>,
    pub proc: &'a SharedProc,
}

impl Caller<'_> {
    /// Returns its thread ID in this process's PID namespace.
    pub fn thread(&self) -> u32 {
        self.call.thread
    }

    /// Fails if the thread no longer waits. Its ID may then belong to another thread, and whatever
    /// was opened or read through that ID is invalid (seccomp_unotify(2), "Avoiding TOCTOU"). Must
    /// be called after each such access.
    pub fn still_waits(&self) -> Result<()> {
        if still_waits(self.listener, self.call) { Ok(()) } else { Err(Errno::SRCH) }
    }

    /// Returns its thread ID in this /proc; 0, which is never valid, if it is gone.
    pub fn tid(&self) -> u32 {
        if self.proc.outer { tid_in(self.proc.dir.as_fd(), self.thread()).unwrap_or(0) } else { self.thread() }
    }

    fn open(&self, path: &str, flags: OFlags) -> Result<OwnedFd> {
        let path = format!("{}/{path}", self.tid());
        let opened = rustix::fs::openat(&self.proc.dir, path, flags | OFlags::CLOEXEC, Mode::empty())?;
        self.still_waits()?;
        Ok(opened)
    }

    /// Opens its directory `fd`, or its working directory.
    pub fn directory(&self, fd: i32) -> Result<OwnedFd> {
        if fd == HERE { self.open("cwd", OFlags::PATH) } else { self.file(fd).map_err(|_| Errno::BADF) }
    }

    /// Opens the file of its descriptor `fd`, as `O_PATH`.
    pub fn file(&self, fd: i32) -> Result<OwnedFd> {
        self.open(&format!("fd/{fd}"), OFlags::PATH)
    }

    /// Like [`Caller::file`], but fails with EBADF if the caller's descriptor is itself `O_PATH`.
    pub fn open_file(&self, fd: i32) -> Result<OwnedFd> {
        let file = self.file(fd).map_err(|_| Errno::BADF)?;
        let flags = self.line(&format!("fdinfo/{fd}"), "flags:").and_then(|flags| u32::from_str_radix(&flags, 8).ok());
        match flags {
            Some(flags) if flags & OFlags::PATH.bits() == 0 => Ok(file),
            _ => Err(Errno::BADF),
        }
    }

    /// Opens its root directory.
    pub fn root(&self) -> Result<OwnedFd> {
        self.open("root", OFlags::PATH)
    }

    /// Returns its umask.
    pub fn umask(&self) -> u32 {
        self.line("status", "Umask:").and_then(|mask| u32::from_str_radix(&mask, 8).ok()).unwrap_or(0o022)
    }

    /// Returns true if a capability is in the thread's permitted set.
    pub fn is_permitted(&self, capability: Capability) -> bool {
        is_held(self.line("status", "CapPrm:"), capability)
    }

    /// Returns true if a capability is in the thread's effective set.
    pub fn is_effective(&self, capability: Capability) -> bool {
        is_held(self.line("status", "CapEff:"), capability)
    }

    /// Returns true if no program that it executes can gain privileges (`no_new_privs`).
    pub fn has_no_new_privileges(&self) -> bool {
        self.line("status", "NoNewPrivs:").is_some_and(|value| value != "0")
    }

    /// Returns the rest of the line that starts with `word` in one of its /proc files.
    fn line(&self, file: &str, word: &str) -> Option<String> {
        line(self.open(file, OFlags::RDONLY).ok()?, word)
    }

    /// Returns its thread ID in its own PID namespace.
    pub fn own_tid(&self) -> Option<u32> {
        self.line("status", "NSpid:")?.split_whitespace().last()?.parse().ok()
    }

    /// Returns one of its sets of capabilities, by the word for it in /proc.
    pub fn capabilities(&self, set: &str) -> u64 {
        self.line("status", set).and_then(|set| u64::from_str_radix(&set, 16).ok()).unwrap_or(0)
    }

    /// Returns the ID of the thread that traces it (ptrace(2)).
    pub fn tracer(&self) -> Option<u32> {
        self.line("status", "TracerPid:")?.parse().ok().filter(|tracer| *tracer != 0)
    }

    /// Fills all of `into` from its memory.
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<()> {
        let read = rbuild_linux::read_memory(self.thread(), address, into).map_err(|_| Errno::FAULT)?;
        self.still_waits()?;
        if read == into.len() { Ok(()) } else { Err(Errno::FAULT) }
    }

    /// Writes `bytes` to its memory.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.still_waits()?;
        rbuild_linux::write_memory(self.thread(), address, bytes).map_err(|_| Errno::FAULT)
    }

    /// Reads a path from its memory; returns an empty path for a null address.
    pub fn path_or_none(&self, address: u64) -> Result<CString> {
        if address == 0 { Ok(CString::default()) } else { self.path(address) }
    }

    /// Reads a path from its memory.
    pub fn path(&self, address: u64) -> Result<CString> {
        let mut bytes = Vec::new();
        // Reads stop at page boundaries, as the next page may not be mapped.
        while bytes.len() < PATH_MAX {
            let at = address.checked_add(bytes.len() as u64).ok_or(Errno::FAULT)?;
            let length = (PAGE - at % PAGE).min(CHUNK) as usize;
            let start = bytes.len();
            bytes.resize(start + length, 0);
            let n = rbuild_linux::read_memory(self.thread(), at, &mut bytes[start..]).map_err(|_| Errno::FAULT)?;
            bytes.truncate(start + n);
            if let Some(end) = bytes[start..].iter().position(|b| *b == 0) {
                bytes.truncate(start + end);
                self.still_waits()?;
                return CString::new(bytes).map_err(|_| Errno::FAULT);
            }
            if n < length {
                return Err(Errno::FAULT);
            }
        }
        Err(Errno::NAMETOOLONG)
    }

    /// Handles a path in the caller's own /proc directory, which would resolve differently for any
    /// other process. Returns `None` for all other paths. `has` returns true if the caller's root
    /// directory contains such links.
    pub fn own_path<'p>(&self, path: &'p [u8], has: impl FnOnce(SelfLinks) -> bool) -> Result<Option<SelfPath<'p>>> {
        let Some((links, own)) = own_path(path) else { return Ok(None) };
        if !has(links) {
            return Ok(None);
        }
        Ok(Some(match own {
            // The only case in which a link in /proc is followed: it leads to a file that the
            // caller itself has open.
            OwnProcPath::BelowLink(link, rest) => {
                SelfPath { base: self.open(&link, OFlags::PATH)?, rest, is_link: false }
            }
            OwnProcPath::Link(dir, name) => SelfPath { base: self.open(dir, OFlags::PATH)?, rest: name, is_link: true },
            OwnProcPath::Other(rest) => SelfPath { base: self.open(".", OFlags::PATH)?, rest, is_link: false },
        }))
    }
}

/// A path below a directory of the caller's own.
pub struct SelfPath<'p> {
    pub base: OwnedFd,
    pub rest: &'p [u8],
    /// True if it is a single name, that of a link in /proc to one of the caller's files.
    pub is_link: bool,
}

/// The directory through which a path reaches the links to a process's open files: /dev/fd, or
/// /proc itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SelfLinks {
    OfDev,
    OfProc,
}

/// The target of a path in the caller's /proc directory.
#[derive(Debug, PartialEq, Eq)]
enum OwnProcPath<'p> {
    /// A link to one of the caller's files: its directory, and its name.
    Link(&'static str, &'p [u8]),
    /// A path below the target of such a link.
    BelowLink(String, &'p [u8]),
    Other(&'p [u8]),
}

/// Returns true if a path leads through a link in /proc to one of the caller's files.
pub fn names_link_of_proc(path: &[u8]) -> bool {
    matches!(own_path(path), Some((_, OwnProcPath::Link(..) | OwnProcPath::BelowLink(..))))
}

/// Returns a path, relative to the builder's /proc, of the target of a link in /proc of the thread
/// with that ID; `None` for other paths, and for the link itself.
pub fn own_path_from_here(path: &[u8], number: u32, follow: bool) -> Option<Vec<u8>> {
    let (link, rest) = match own_path(path) {
        Some((_, OwnProcPath::Link(dir, name))) if follow => (text(dir, name), None),
        Some((_, OwnProcPath::BelowLink(link, rest))) => (link, Some(rest)),
        _ => match path {
            b"/dev/stdin" if follow => ("fd/0".into(), None),
            b"/dev/stdout" if follow => ("fd/1".into(), None),
            b"/dev/stderr" if follow => ("fd/2".into(), None),
            _ => return None,
        },
    };
    let mut own = format!("{number}/{link}").into_bytes();
    rest.iter().for_each(|rest| own.extend([b"/", *rest].concat()));
    Some(own)
}

/// Returns the link in /dev through which a path leads to one of the caller's open files, and the
/// target of that link in every new container. Commands may replace the link.
pub fn link_of_dev(path: &[u8]) -> Option<(&'static str, &'static [u8])> {
    match path {
        b"/dev/stdin" => Some(("/dev/stdin", b"/proc/self/fd/0")),
        b"/dev/stdout" => Some(("/dev/stdout", b"/proc/self/fd/1")),
        b"/dev/stderr" => Some(("/dev/stderr", b"/proc/self/fd/2")),
        _ => matches!(own_path(path), Some((SelfLinks::OfDev, _))).then_some(("/dev/fd", b"/proc/self/fd")),
    }
}

/// Splits the first component off a path. Repeated slashes and `.` are ignored.
fn first(path: &[u8]) -> (&[u8], &[u8]) {
    let start = path.iter().position(|byte| *byte != b'/').unwrap_or(path.len());
    let end = path[start..].iter().position(|byte| *byte == b'/').map_or(path.len(), |length| start + length);
    match &path[start..end] {
        b"." => first(&path[end..]),
        name => (name, &path[end..]),
    }
}

fn own_path(path: &[u8]) -> Option<(SelfLinks, OwnProcPath<'_>)> {
    if !path.starts_with(b"/") {
        return None;
    }
    let (top, below) = first(path);
    let (dir, own) = first(below);
    let links = match (top, dir) {
        (b"dev", b"fd") => SelfLinks::OfDev,
        (b"proc", b"self" | b"thread-self") if !own.is_empty() => SelfLinks::OfProc,
        _ => return None,
    };
    let (name, rest) = first(own);
    let (fd, behind) = if links == SelfLinks::OfDev { (name, rest) } else { first(rest) };
    let is_number = !fd.is_empty() && fd.iter().all(u8::is_ascii_digit);
    match (links, name) {
        (SelfLinks::OfDev, _) if is_number => Some((links, link("fd", fd, behind))),
        (SelfLinks::OfDev, _) => None,
        (_, b"fd") if is_number => Some((links, link("fd", fd, behind))),
        (_, b"cwd" | b"root" | b"exe") => Some((links, link(".", name, rest))),
        (_, b"") => Some((links, OwnProcPath::Other(b"."))),
        _ => {
            let start = own.iter().position(|byte| *byte != b'/').unwrap_or(own.len());
            Some((links, OwnProcPath::Other(&own[start..])))
        }
    }
}

/// Classifies a path to the link `name`, followed by `rest`.
fn link<'p>(dir: &'static str, name: &'p [u8], rest: &'p [u8]) -> OwnProcPath<'p> {
    let Some(slashes) = rest.iter().position(|byte| *byte != b'/') else {
        return if rest.is_empty() {
            OwnProcPath::Link(dir, name)
        } else {
            OwnProcPath::BelowLink(text(dir, name), b".")
        };
    };
    OwnProcPath::BelowLink(text(dir, name), &rest[slashes..])
}

fn text(dir: &str, name: &[u8]) -> String {
    format!("{dir}/{}", String::from_utf8_lossy(name))
}

#[cfg(test)]
mod tests {
    use super::{OwnProcPath, own_path, own_path_from_here};

    #[test]
    fn only_the_callers_own_proc_links_are_followed() {
        let behind = |link: &str, rest: &'static str| OwnProcPath::BelowLink(link.to_string(), rest.as_bytes());
        for (path, own) in [
            ("/proc/self/fd/3", OwnProcPath::Link("fd", b"3")),
            ("/proc/thread-self/fd/17/x/..", behind("fd/17", "x/..")),
            ("/proc/self/fd/17//", behind("fd/17", ".")),
            ("/proc/self/cwd//x", behind("./cwd", "x")),
            ("/proc/self/root", OwnProcPath::Link(".", b"root")),
            ("/proc/self/exe", OwnProcPath::Link(".", b"exe")),
            ("/dev/fd/0", OwnProcPath::Link("fd", b"0")),
            ("//dev/./fd//0", OwnProcPath::Link("fd", b"0")),
            ("//proc//self/./fd//3", OwnProcPath::Link("fd", b"3")),
            ("/proc/self/../1/root/etc", OwnProcPath::Other(b"../1/root/etc")),
            ("/proc/self/fd/../../1/root", OwnProcPath::Other(b"fd/../../1/root")),
            ("/proc/self/fd", OwnProcPath::Other(b"fd")),
            ("/proc/self/fd/", OwnProcPath::Other(b"fd/")),
            ("/proc/self/", OwnProcPath::Other(b".")),
            ("/proc/self/task/1/fd/3", OwnProcPath::Other(b"task/1/fd/3")),
        ] {
            assert_eq!(own_path(path.as_bytes()).map(|(_, own)| own), Some(own), "{path}");
        }
        for path in
            ["/dev/fd/../x", "/dev/fd", "/proc/1/fd/3", "proc/self/fd/3", "/proc/self", "/dev/../proc/self/fd/3"]
        {
            assert_eq!(own_path(path.as_bytes()), None, "{path}");
        }
    }

    #[test]
    fn the_callers_links_are_found_by_its_number() {
        for (path, follow, seen) in [
            ("/proc/self/fd/3", true, Some("7/fd/3")),
            ("/proc/self/fd/3", false, None),
            ("/proc/self/cwd/x", false, Some("7/./cwd/x")),
            ("/dev/fd/3/", true, Some("7/fd/3/.")),
            ("/dev/stdout", true, Some("7/fd/1")),
            ("/dev/stdout", false, None),
            ("/proc/self/status", true, None),
            ("/etc/passwd", true, None),
        ] {
            assert_eq!(own_path_from_here(path.as_bytes(), 7, follow).as_deref(), seen.map(str::as_bytes), "{path}");
        }
    }
}
