//! Execution of set-id programs, which change the credentials of their process.

use caps::Capability;
use rbuild_linux::{FileKind, notify};
use rustix::fs::{CWD, Mode, OFlags, StatVfsMountFlags};

use crate::id_emulation::caller::{Caller, Result, SharedProc};
use crate::id_emulation::decode::{CHECK_ONLY, EMPTY_PATH, NO_FOLLOW, PathAt};
use crate::id_emulation::files::OpenedFile;
use crate::id_emulation::pending::{MemoryImage, Pending};
use crate::id_emulation::supervisor::{Reply, Supervisor};

impl Supervisor {
    /// Prepares for a set-id program; the kernel performs the execution.
    pub(super) fn execute(&mut self, caller: &Caller<'_>, file: PathAt) -> Result<Reply> {
        self.has_begun = true;
        let who = self.credentials(caller)?.clone();
        self.settle(caller, &who)?;
        if file.flags & CHECK_ONLY != 0 {
            return Ok(Reply::GO);
        }
        let target = self.set_id_program(caller, file);
        let owner = target.as_ref().and_then(|target| target.recorded(&self.owners)).unwrap_or_default();
        let has = |bits: u32| target.as_ref().is_some_and(|program| program.stat.st_mode & bits == bits);
        let plain = who.after_exec(None, None);
        let changed = who.after_exec(has(0o4000).then_some(owner.uid), has(0o2010).then_some(owner.gid));
        let is_refused = changed.gain_over(&who)
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
    /// could change them while a set-id program runs. Where processes have other numbers in /proc,
    /// this cannot be determined.
    fn shares_directories(&self, caller: &Caller<'_>) -> bool {
        let numbers = |path: &str| -> Vec<u32> {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = rustix::fs::openat(&self.proc.dir, path, flags, Mode::empty()).and_then(rustix::fs::Dir::new);
            let entries = dir.into_iter().flatten().flatten();
            entries.filter_map(|entry| entry.file_name().to_str().ok()?.parse().ok()).collect()
        };
        let own = numbers(&format!("{}/task", caller.thread()));
        !self.proc.outer
            && numbers(".")
                .iter()
                .flat_map(|process| numbers(&format!("{process}/task")))
                .any(|thread| !own.contains(&thread) && notify::share_directories(caller.thread(), thread))
    }

    /// Returns true if the tracer may trace every process (CAP_SYS_PTRACE). No command may where
    /// processes have other numbers in /proc.
    fn is_able_tracer(&self, tracer: u32) -> bool {
        let capability = Capability::CAP_SYS_PTRACE;
        !self.proc.outer && self.known_credentials(tracer).has(capability) && self.proc.holds(tracer, capability)
    }

    /// Opens the file if it is a program whose set-id bits the kernel honours for the caller
    /// (execve(2)).
    fn set_id_program(&self, caller: &Caller<'_>, file: PathAt) -> Option<OpenedFile> {
        if file.flags & !(NO_FOLLOW | EMPTY_PATH) != 0 {
            return None;
        }
        let target = self.target(caller, file).ok()?;
        let mode = target.stat.st_mode;
        let may = target.kind() == FileKind::File && mode & 0o111 != 0 && mode & 0o6000 != 0;
        (may && honours_set_id(&target) && !caller.gains_nothing()).then_some(target)
    }
}

/// Returns true if the mount permits set-id programs, which that of memfds does not, and the file
/// is not a script, whose set-id bits are ignored.
fn honours_set_id(target: &OpenedFile) -> bool {
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
