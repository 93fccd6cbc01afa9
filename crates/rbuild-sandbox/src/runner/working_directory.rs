//! The working directory of a command.

use std::io::ErrorKind;

use rbuild_linux::{FileKind, RootDir, UidGid};

use crate::error::RunnerProblem;

/// Creates the working directory and its missing parents with that owner, as BuildKit and runc do:
/// an earlier command may have removed it, or the base image may only name it.
///
/// # Errors
///
/// Fails if it is not a directory, or cannot be created.
pub(crate) fn create(root: &RootDir, cwd: &str, owner: UidGid) -> Result<(), RunnerProblem> {
    match root.stat_follow(cwd) {
        Ok(stat) if stat.kind == FileKind::Dir => return Ok(()),
        Ok(_) => return Err(RunnerProblem::WorkingDirectoryIsAFile(cwd.to_string())),
        Err(e) if e.is_not_found() => {}
        Err(e) => return Err(e.into()),
    }
    // Resolves dangling links, too.
    let real = root.resolve(cwd)?;
    match root.create_dir_all(&real, 0o755, Some(owner), |_| ()) {
        Ok(_) => Ok(()),
        Err(e) if matches!(e.kind(), ErrorKind::NotADirectory | ErrorKind::AlreadyExists) => {
            Err(RunnerProblem::WorkingDirectoryIsAFile(cwd.to_string()))
        }
        // A mount that covers it may be read-only.
        Err(e) if e.kind() == ErrorKind::ReadOnlyFilesystem => Err(RunnerProblem::NoWorkingDirectory(cwd.to_string())),
        Err(e) => Err(e.into()),
    }
}
