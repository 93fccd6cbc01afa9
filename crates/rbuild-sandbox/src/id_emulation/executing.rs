//! Execution of set-id programs, which change the credentials of their process.
//!
//! Only afterwards is it known whether the kernel executed the requested program. Until then both
//! outcomes are stored, and the process or its descendants have the credentials that correspond to
//! the image they are found to have.

use std::os::fd::{AsFd, OwnedFd};

use rbuild_linux::Kind;
use rbuild_linux::notify::number_in;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatVfsMountFlags};

use super::caller::{Caller, Proc, Result};
use super::decode::{CHECK_ONLY, EMPTY_PATH, NO_FOLLOW, Named};
use super::files::Target;
use super::ids::Credentials;
use super::{Reply, Supervisor};

/// Identifies a program file by device and inode.
type File = (u64, u64);

/// Identifies a process's memory image: inherited on fork, and replaced on exec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The auxiliary vector on the initial stack, which includes random addresses.
    vectors: Vec<u8>,
    program: Option<File>,
}

impl Image {
    pub fn of(proc: &Proc, thread: u32) -> Option<Image> {
        let number = if proc.outer { number_in(proc.dir.as_fd(), thread)? } else { thread };
        let vectors = format!("{number}/auxv");
        let vectors = rustix::fs::openat(&proc.dir, vectors, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let program = rustix::fs::statat(&proc.dir, format!("{number}/exe"), AtFlags::empty()).ok();
        Some(Image { vectors: read(vectors)?, program: program.map(|stat| (stat.st_dev, stat.st_ino)) })
    }
}

fn read(file: OwnedFd) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::fs::File::from(file), &mut bytes).ok()?;
    Some(bytes)
}

/// A program that is about to be executed.
#[derive(Debug)]
pub struct Pending {
    /// Credentials and image of the process that requested the execution.
    before: Credentials,
    image: Option<Image>,
    /// The program that changes credentials, if it does.
    program: Option<File>,
    /// Credentials after that program was executed, and after any other.
    changed: Credentials,
    plain: Credentials,
}

impl Pending {
    /// Returns the credentials of a process with this image.
    pub fn who(&self, now: Option<Image>) -> &Credentials {
        match (now, &self.image) {
            (Some(now), Some(image)) if now.vectors != image.vectors => match self.program {
                Some(program) if now.program == Some(program) => &self.changed,
                _ => &self.plain,
            },
            _ => &self.before,
        }
    }
}

impl Supervisor {
    /// Prepares for a set-id program; the kernel performs the execution.
    pub(super) fn execute(&mut self, caller: &Caller<'_>, file: Named) -> Result<Reply> {
        let who = self.credentials(caller)?.clone();
        self.settle(caller, &who)?;
        if file.flags & CHECK_ONLY != 0 || (who.is_root() && !who.keeps) {
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

/// Returns true if the mount permits set-id programs and the file is not a script, whose set-id
/// bits are ignored.
fn honours_set_id(target: &Target) -> bool {
    if rustix::fs::fstatvfs(&target.fd).is_ok_and(|fs| fs.f_flag.contains(StatVfsMountFlags::NOSUID)) {
        return false;
    }
    let mut start = [0; 4];
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(CWD, Proc::path_of(&target.fd), flags, Mode::empty());
    opened.is_ok_and(|file| rustix::io::read(&file, &mut start) == Ok(4)) && start == *b"\x7fELF"
}

#[cfg(test)]
mod tests {
    use super::super::ids::Ids;
    use super::*;

    #[test]
    fn who_executes_a_program_is_told_by_what_was_executed() {
        let image = |vectors: &[u8], program| Some(Image { vectors: vectors.to_vec(), program: Some(program) });
        let user = Credentials { users: Ids::all(1000), ..Credentials::default() };
        let pending = Pending {
            before: Credentials { keeps: true, ..user.clone() },
            image: image(b"before", (1, 2)),
            program: Some((1, 3)),
            changed: user.after_exec(Some(0), None),
            plain: user.clone(),
        };
        // Not executed yet, or failed to; and a process that is gone cannot be examined.
        assert_eq!(pending.who(image(b"before", (1, 2))), &pending.before);
        assert_eq!(pending.who(image(b"before", (1, 3))), &pending.before);
        assert_eq!(pending.who(None), &pending.before);
        assert_eq!(pending.who(image(b"after", (1, 3))), &pending.changed);
        assert_eq!(pending.who(image(b"after", (1, 4))), &pending.plain);
    }
}
