//! Changes of privileges by dropped capabilities and set-id programs, and operations that depend
//! on a single capability.
//!
//! To the kernel, every process of the container is root and owns all files. Operations that it
//! would refuse the apparent user are refused here; those of a process with the capability are left
//! to the kernel, regardless of the arguments.

use caps::Capability;
use rbuild_linux::{FileKind, share_directories};
use rustix::fs::{CWD, Mode, OFlags, StatVfsMountFlags, XattrFlags};
use rustix::io::Errno;

use crate::id_emulation::caller::{Caller, Result, SharedProc};
use crate::id_emulation::caller_files::{OpenedFile, SET_GID};
use crate::id_emulation::credentials::{CapabilitySets, Credentials};
use crate::id_emulation::decode::{CHECK_ONLY, EMPTY_PATH, HERE, NO_FOLLOW, PathArg, PathAt, Subject, ids_of};
use crate::id_emulation::file_ops::refuse_unknown_flags;
use crate::id_emulation::pending_exec::{MemoryImage, Pending};
use crate::id_emulation::supervisor::{Reply, Supervisor};

/// Size of the header of capset(2), and of one of its parts: three sets of 32 capabilities each.
const HEADER: usize = 8;
const SETS_SIZE: usize = 12;
/// The only version of the header that has one part of sets (`_LINUX_CAPABILITY_VERSION_1`).
const SHORT: u32 = 0x1998_0330;
const VERSIONS: [u32; 3] = [SHORT, 0x2007_1026, 0x2008_0522];

/// Bits of modes: to write, in the class of others, and the restricted removal of a directory's
/// entries.
const WRITE: u32 = 0o2;
const STICKY: u32 = 0o1000;

/// Limits of the kernel for an attribute's name and value, in bytes (xattr(7)).
const LONGEST_NAME: usize = 255;
const LARGEST_VALUE: u64 = 64 * 1024;

impl Supervisor {
    pub(super) fn keep_capabilities(&mut self, caller: &Caller<'_>, keep: u64) -> Result<Reply> {
        let who = self.credentials(caller)?.clone();
        self.become_(caller, Credentials { bits: who.bits.keeping(keep)?, ..who })?;
        Ok(Reply::GO)
    }

    /// Records the bits before the kernel sets them, unless it would refuse to.
    pub(super) fn set_secure_bits(&mut self, caller: &Caller<'_>, bits: u64) -> Result<Reply> {
        let who = self.credentials(caller)?.clone();
        if let Some(bits) = who.bits.set(self.change_sets(caller).is_ok(), bits)? {
            self.become_(caller, Credentials { bits, ..who })?;
        }
        Ok(Reply::GO)
    }

    pub(super) fn drop_from_bound(&mut self, caller: &Caller<'_>) -> Result<Reply> {
        self.change_sets(caller)?;
        Ok(Reply::GO)
    }

    /// Handles changes of the bounding set, which require CAP_SETPCAP.
    fn change_sets(&mut self, caller: &Caller<'_>) -> Result<()> {
        // The container's first process prepares itself for the command.
        if !self.has_begun {
            return Ok(());
        }
        self.has_dropped_capabilities = true;
        if self.changes_sets(caller) { Ok(()) } else { Err(Errno::PERM) }
    }

    /// Returns true if the caller has CAP_SETPCAP, both in its emulated credentials and in the
    /// kernel, which performs the changes. In the kernel, a return to root does not restore
    /// capabilities.
    fn changes_sets(&self, caller: &Caller<'_>) -> bool {
        self.may(caller, Capability::CAP_SETPCAP) && caller.is_effective(Capability::CAP_SETPCAP)
    }

    /// Handles capget(2).
    pub(super) fn get_capabilities(&mut self, caller: &Caller<'_>, header: u64, sets: u64) -> Result<Reply> {
        let who = self.credentials(caller)?;
        if !self.has_begun || who.has_all() || sets == 0 {
            return Ok(Reply::GO);
        }
        let Some(parts) = parts_of(caller, header)? else { return Ok(Reply::GO) };
        let inheritable = caller.capabilities("CapInh:");
        let CapabilitySets { effective, permitted } = who.limited_to(caller.capabilities("CapPrm:"));
        let part = |i: usize| [effective, permitted, inheritable].map(|set| ((set >> (32 * i)) as u32).to_ne_bytes());
        let bytes: Vec<u8> = (0..parts).flat_map(part).flatten().collect();
        caller.write(sets, &bytes)?;
        Ok(Reply::value(0))
    }

    /// Handles capset(2). Records the sets before the kernel sets them, unless it would refuse to.
    pub(super) fn set_capabilities(&mut self, caller: &Caller<'_>, header: u64, sets: u64) -> Result<Reply> {
        if !self.has_begun {
            return Ok(Reply::GO);
        }
        self.has_dropped_capabilities = true;
        // The kernel refuses the header, or sets of another process, which cannot be changed.
        let Some(parts) = parts_of(caller, header)? else { return Ok(Reply::GO) };
        let mut bytes = vec![0; parts * SETS_SIZE];
        caller.read(sets, &mut bytes)?;
        let numbers = ids_of(&bytes);
        // Three sets of 32 capabilities each, and then the same of those with higher numbers.
        let set = |i: usize| u64::from(numbers[i]) | numbers.get(i + 3).map_or(0, |high| u64::from(*high) << 32);
        let known = |word: &str| caller.capabilities(word);
        let (inherited, permitted) = (known("CapInh:"), known("CapPrm:"));
        let who = self.credentials(caller)?.clone();
        let beyond = |set_to: u64| set(2) & all_capabilities() & !(inherited | set_to) != 0;
        if beyond(known("CapBnd:")) || beyond(who.limited_to(permitted).permitted) && !self.changes_sets(caller) {
            return Err(Errno::PERM);
        }
        // Capabilities that the kernel does not have are in no set.
        let new = CapabilitySets { effective: set(0) & all_capabilities(), permitted: set(1) & all_capabilities() };
        self.become_(caller, who.with_sets(permitted, new, set(2))?)?;
        Ok(Reply::GO)
    }

    pub(super) fn change_root(&mut self, caller: &Caller<'_>, path: u64) -> Result<Reply> {
        if self.may(caller, Capability::CAP_SYS_CHROOT) {
            self.roots.differ = true;
            return Ok(Reply::GO);
        }
        let at = PathArg { dir: HERE, path };
        match self.target(caller, PathAt { at, flags: 0 })?.kind() {
            FileKind::Dir => Err(Errno::PERM),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// Returns true if the caller may change the mode and the times of a file as its owner may.
    pub(super) fn may_as_owner(&self, caller: &Caller<'_>, target: &OpenedFile) -> Result<bool> {
        let user = self.credentials(caller)?.users.files;
        Ok(self.may(caller, Capability::CAP_FOWNER) || target.owner(&self.owners).is_none_or(|owner| owner.uid == user))
    }

    pub(super) fn change_mode(&mut self, caller: &Caller<'_>, file: Subject, mode: u32) -> Result<Reply> {
        if self.may(caller, Capability::CAP_FOWNER) && self.may(caller, Capability::CAP_FSETID) {
            return Ok(Reply::GO);
        }
        refuse_unknown_flags(file)?;
        let target = self.subject(caller, file)?;
        if !self.may_as_owner(caller, &target)? {
            return Err(Errno::PERM);
        }
        let who = self.credentials(caller)?;
        let foreign = target.owner(&self.owners).is_some_and(|owner| !who.is_in(owner.gid));
        let dropped = if foreign && !self.may(caller, Capability::CAP_FSETID) { SET_GID } else { 0 };
        rustix::fs::chmod(SharedProc::path_of(&target.fd), Mode::from_raw_mode(mode & 0o7777 & !dropped))?;
        Ok(Reply::value(0))
    }

    /// Returns true if the mode of a file lets the caller write to it (path_resolution(7)).
    pub(super) fn may_write(&self, caller: &Caller<'_>, target: &OpenedFile) -> Result<bool> {
        let who = self.credentials(caller)?;
        let Some(owner) = target.owner(&self.owners) else { return Ok(true) };
        let class = match who {
            who if who.users.files == owner.uid => 6,
            who if who.is_in(owner.gid) => 3,
            _ => 0,
        };
        Ok(target.stat.st_mode >> class & WRITE != 0 || self.may(caller, Capability::CAP_DAC_OVERRIDE))
    }

    /// Sets an extended attribute to a value (address, size and flags), or removes it.
    pub(super) fn set_attribute(
        &mut self,
        caller: &Caller<'_>,
        file: Subject,
        name: u64,
        value: Option<(u64, u64, u32)>,
    ) -> Result<Reply> {
        let needed = [Capability::CAP_SETFCAP, Capability::CAP_FOWNER, Capability::CAP_DAC_OVERRIDE];
        if needed.into_iter().all(|capability| self.may(caller, capability)) {
            return Ok(Reply::GO);
        }
        let name = caller.path(name)?;
        if name.is_empty() || name.as_bytes().len() > LONGEST_NAME {
            return Err(Errno::RANGE);
        }
        let value = value.map(|(address, size, flags)| Ok((value_of(caller, address, size)?, flags))).transpose()?;
        let target = self.subject(caller, file)?;
        let is = |prefix: &[u8]| name.as_bytes().starts_with(prefix);
        let takes_owner = is(b"system.posix_acl_");
        if is(b"security.") && !self.may(caller, Capability::CAP_SETFCAP)
            || takes_owner && !self.may_as_owner(caller, &target)?
        {
            return Err(Errno::PERM);
        }
        if is(b"user.") {
            self.check_writing_of_attributes(caller, &target)?;
        }
        let path = SharedProc::path_of(&target.fd);
        match value {
            Some((value, flags)) => rustix::fs::setxattr(path, &name, &value, XattrFlags::from_bits_retain(flags))?,
            None => rustix::fs::removexattr(path, &name)?,
        }
        Ok(Reply::value(0))
    }

    /// Fails unless the caller may set `user` attributes of a file (xattr(7)). Only regular files
    /// and directories have any.
    fn check_writing_of_attributes(&self, caller: &Caller<'_>, target: &OpenedFile) -> Result<()> {
        let is_shared = target.kind() == FileKind::Dir && target.stat.st_mode & STICKY != 0;
        match target.kind() {
            FileKind::File | FileKind::Dir if is_shared && !self.may_as_owner(caller, target)? => Err(Errno::PERM),
            FileKind::File | FileKind::Dir if !self.may_write(caller, target)? => Err(Errno::ACCESS),
            _ => Ok(()),
        }
    }

    /// Prepares for a set-id program; the kernel performs the execution.
    pub(super) fn execute(&mut self, caller: &Caller<'_>, file: PathAt) -> Result<Reply> {
        self.has_begun = true;
        let who = self.credentials(caller)?.clone();
        self.end_pending(caller, &who)?;
        if file.flags & CHECK_ONLY != 0 {
            return Ok(Reply::GO);
        }
        let target = self.set_id_program(caller, file);
        let owner = target.as_ref().and_then(|target| target.recorded(&self.owners)).unwrap_or_default().owner;
        let has = |bits: u32| target.as_ref().is_some_and(|program| program.stat.st_mode & bits == bits);
        let plain = who.after_exec(None, None);
        let changed = who.after_exec(has(0o4000).then_some(owner.uid), has(0o2010).then_some(owner.gid));
        let is_refused = changed.exceed(&who)
            && (self.is_watched(caller)
                || self.shares_directories(caller) && !self.may(caller, Capability::CAP_SETUID));
        let changed = if is_refused { plain.clone() } else { changed };
        if changed != who || plain != who {
            let program = target.map(|program| (program.stat.st_dev, program.stat.st_ino));
            let image = MemoryImage::of(&self.proc, caller.thread());
            self.expect(caller, Pending { before: who, image, program, changed, plain })?;
        }
        Ok(Reply::GO)
    }

    /// Returns true if the kernel refuses the caller the IDs of set-id programs, because another
    /// process that traces it would have them, too (ptrace(2)).
    fn is_watched(&self, caller: &Caller<'_>) -> bool {
        let is_able = |tracer| self.is_able_tracer(tracer) || self.may(caller, Capability::CAP_SETUID);
        caller.tracer().is_some_and(|tracer| !is_able(tracer))
    }

    /// Returns true if the caller shares its root and working directory with another process, which
    /// could change them while a set-id program runs. If processes have other IDs in /proc, this
    /// cannot be determined.
    fn shares_directories(&self, caller: &Caller<'_>) -> bool {
        let ids = |path: &str| -> Vec<u32> {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = rustix::fs::openat(&self.proc.dir, path, flags, Mode::empty()).and_then(rustix::fs::Dir::new);
            let entries = dir.into_iter().flatten().flatten();
            entries.filter_map(|entry| entry.file_name().to_str().ok()?.parse().ok()).collect()
        };
        let own = ids(&format!("{}/task", caller.thread()));
        !self.proc.outer
            && ids(".")
                .iter()
                .flat_map(|process| ids(&format!("{process}/task")))
                .any(|thread| !own.contains(&thread) && share_directories(caller.thread(), thread))
    }

    /// Returns true if the tracer may trace every process (CAP_SYS_PTRACE). Always returns false if
    /// processes have other IDs in /proc.
    fn is_able_tracer(&self, tracer: u32) -> bool {
        let capability = Capability::CAP_SYS_PTRACE;
        !self.proc.outer && self.known_credentials(tracer).has(capability) && self.proc.holds(tracer, capability)
    }

    /// Opens the file if it is a program whose set-id bits the kernel honors for the caller
    /// (execve(2)).
    fn set_id_program(&self, caller: &Caller<'_>, file: PathAt) -> Option<OpenedFile> {
        if file.flags & !(NO_FOLLOW | EMPTY_PATH) != 0 {
            return None;
        }
        let target = self.target(caller, file).ok()?;
        let mode = target.stat.st_mode;
        let may = target.kind() == FileKind::File && mode & 0o111 != 0 && mode & 0o6000 != 0;
        (may && permits_set_id(&target) && !caller.has_no_new_privileges()).then_some(target)
    }
}

/// Returns the set of all capabilities; the kernel ignores other bits.
fn all_capabilities() -> u64 {
    caps::all().iter().fold(0, |set, capability| set | capability.bitmask())
}

fn value_of(caller: &Caller<'_>, address: u64, size: u64) -> Result<Vec<u8>> {
    if size > LARGEST_VALUE {
        return Err(Errno::TOOBIG);
    }
    let mut value = vec![0; size as usize];
    if !value.is_empty() {
        caller.read(address, &mut value)?;
    }
    Ok(value)
}

/// Reads the header of a call about sets. Returns the number of parts that the sets have; `None` if
/// the kernel refuses the header, or if it names another process.
fn parts_of(caller: &Caller<'_>, header: u64) -> Result<Option<usize>> {
    let mut bytes = [0; HEADER];
    caller.read(header, &mut bytes)?;
    let [version, pid] =
        [&bytes[..4], &bytes[4..]].map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    let is_own = pid == 0 || caller.own_tid() == Some(pid);
    Ok((VERSIONS.contains(&version) && is_own).then_some(if version == SHORT { 1 } else { 2 }))
}

/// Returns true if the kernel honors set-id bits of the file: the mount permits them, and the file
/// is not a script. The mount of memfds does not permit them.
fn permits_set_id(target: &OpenedFile) -> bool {
    if rustix::fs::fstatvfs(&target.fd).is_ok_and(|fs| fs.f_flag.contains(StatVfsMountFlags::NOSUID)) {
        return false;
    }
    if target.is_nameless() {
        return false;
    }
    let mut start = [0; 4];
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(CWD, SharedProc::path_of(&target.fd), flags, Mode::empty());
    opened.is_ok_and(|file| rustix::io::read(&file, &mut start) == Ok(4)) && start == *b"\x7fELF"
}
