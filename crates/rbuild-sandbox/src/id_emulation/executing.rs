//! Execution of set-id programs, which change the credentials of their process.

use rbuild_linux::Kind;
use rustix::fs::{CWD, Mode, OFlags, StatVfsMountFlags};

use crate::id_emulation::caller::{Caller, Proc, Result};
use crate::id_emulation::decode::{CHECK_ONLY, EMPTY_PATH, NO_FOLLOW, Named};
use crate::id_emulation::files::Target;
use crate::id_emulation::pending::{Image, Pending};
use crate::id_emulation::supervisor::{Reply, Supervisor};

impl Supervisor {
    /// Prepares for a set-id program; the kernel performs the execution.
    pub(super) fn execute(&mut self, caller: &Caller<'_>, file: Named) -> Result<Reply> {
        let who = self.credentials(caller)?.clone();
        self.settle(caller, &who)?;
        if file.flags & CHECK_ONLY != 0 {
            return Ok(Reply::GO);
        }
        let target = self.set_id_program(caller, file);
        let owner = target.as_ref().and_then(Target::recorded).unwrap_or_default();
        let has = |bits: u32| target.as_ref().is_some_and(|program| program.stat.st_mode & bits == bits);
        let changed = who.after_exec(has(0o4000).then_some(owner.uid), has(0o2010).then_some(owner.gid));
        let plain = who.after_exec(None, None);
        if changed != who || plain != who {
            let program = target.map(|program| (program.stat.st_dev, program.stat.st_ino));
            let image = Image::of(&self.proc, caller.thread());
            self.expect(caller, Pending { before: who, image, program, changed, plain })?;
        }
        Ok(Reply::GO)
    }

    /// Opens the file if it is a program whose set-id bits the kernel honours for the caller
    /// (execve(2)).
    fn set_id_program(&self, caller: &Caller<'_>, file: Named) -> Option<Target> {
        if file.flags & !(NO_FOLLOW | EMPTY_PATH) != 0 {
            return None;
        }
        let target = self.target(caller, file).ok()?;
        let mode = target.stat.st_mode;
        let may = target.kind() == Kind::File && mode & 0o111 != 0 && mode & 0o6000 != 0;
        (may && honours_set_id(&target) && !caller.gains_nothing()).then_some(target)
    }
}

/// Returns true if the mount permits set-id programs, which that of memfds does not, and the file
/// is not a script, whose set-id bits are ignored.
fn honours_set_id(target: &Target) -> bool {
    if rustix::fs::fstatvfs(&target.fd).is_ok_and(|fs| fs.f_flag.contains(StatVfsMountFlags::NOSUID)) {
        return false;
    }
    let path = rustix::fs::readlinkat(CWD, Proc::path_of(&target.fd), Vec::new());
    if target.stat.st_nlink == 0 && path.is_ok_and(|path| path.to_bytes().starts_with(b"/memfd:")) {
        return false;
    }
    let mut start = [0; 4];
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(CWD, Proc::path_of(&target.fd), flags, Mode::empty());
    opened.is_ok_and(|file| rustix::io::read(&file, &mut start) == Ok(4)) && start == *b"\x7fELF"
}
