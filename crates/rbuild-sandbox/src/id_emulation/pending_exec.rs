//! Credentials of processes that are about to execute a set-id program.
//!
//! Only afterwards is it known whether the kernel executed the requested program. Until then both
//! outcomes are stored, and the process or its descendants have the credentials that correspond to
//! the image they are found to have.

use std::os::fd::{AsFd, OwnedFd};

use rbuild_linux::process::tid_in;
use rustix::fs::{AtFlags, Mode, OFlags};

use crate::id_emulation::caller::SharedProc;
use crate::id_emulation::credentials::Credentials;

/// Identifies a program file by device and inode.
pub type File = (u64, u64);

/// Identifies a process's memory image: inherited on fork, and replaced on exec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryImage {
    /// The auxiliary vector on the initial stack, which includes random addresses.
    vectors: Vec<u8>,
    program: Option<File>,
}

impl MemoryImage {
    /// Returns the image of a thread; `None` if it cannot be read.
    pub fn of(proc: &SharedProc, thread: u32) -> Option<MemoryImage> {
        let tid = if proc.outer { tid_in(proc.dir.as_fd(), thread)? } else { thread };
        let vectors = format!("{tid}/auxv");
        let vectors = rustix::fs::openat(&proc.dir, vectors, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let program = rustix::fs::statat(&proc.dir, format!("{tid}/exe"), AtFlags::empty()).ok();
        Some(MemoryImage { vectors: read(vectors)?, program: program.map(|stat| (stat.st_dev, stat.st_ino)) })
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
    pub before: Credentials,
    pub image: Option<MemoryImage>,
    /// The program that changes credentials, if it does.
    pub program: Option<File>,
    /// Credentials after that program was executed, and after any other.
    pub changed: Credentials,
    pub plain: Credentials,
}

impl Pending {
    /// Returns the credentials of a process with this image.
    pub fn resolve(&self, now: Option<MemoryImage>) -> &Credentials {
        match (now, &self.image) {
            (Some(now), Some(image)) if now.vectors != image.vectors => match self.program {
                Some(program) if now.program == Some(program) => &self.changed,
                _ => &self.plain,
            },
            _ => &self.before,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id_emulation::credentials::Ids;

    #[test]
    fn pending_credentials_are_resolved_by_the_executed_image() {
        let image = |vectors: &[u8], program| Some(MemoryImage { vectors: vectors.to_vec(), program: Some(program) });
        let user = Credentials { users: Ids::all(1000), ..Credentials::default() };
        let pending = Pending {
            before: Credentials { more_groups: vec![7], ..user.clone() },
            image: image(b"before", (1, 2)),
            program: Some((1, 3)),
            changed: user.after_exec(Some(0), None),
            plain: user.clone(),
        };
        // Not executed yet, or failed to; and a process that is gone cannot be examined.
        assert_eq!(pending.resolve(image(b"before", (1, 2))), &pending.before);
        assert_eq!(pending.resolve(image(b"before", (1, 3))), &pending.before);
        assert_eq!(pending.resolve(None), &pending.before);
        assert_eq!(pending.resolve(image(b"after", (1, 3))), &pending.changed);
        assert_eq!(pending.resolve(image(b"after", (1, 4))), &pending.plain);
    }
}
