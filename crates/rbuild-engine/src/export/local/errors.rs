//! Existing files that block an output, and errors of writing it.

use std::ffi::OsStr;
use std::path::Path;

use rbuild_linux::{FileKind, RootDir, quoted};
use rbuild_remedy::{FileRemedy, Remedy};

use crate::error::{BuildError, Result};
use crate::error_context::ErrorContext;

pub(super) fn fail(path: &Path) -> impl FnOnce(rbuild_linux::Error) -> BuildError + use<'_> {
    move |source| BuildError::Kernel { context: ErrorContext::OutputFile(path).into(), source }
}

/// Fails if the path is a directory or a device, which are not replaced.
pub(super) fn clear_directory(dir: &RootDir, path: &Path, name: &OsStr) -> Result<()> {
    match dir.stat_name(name) {
        Ok(stat) if matches!(stat.kind, FileKind::CharDevice | FileKind::BlockDevice) => Err(is_device(path)),
        Ok(stat) if stat.kind == FileKind::Dir => Err(is_directory(path)),
        _ => Ok(()),
    }
}

fn is_device(path: &Path) -> BuildError {
    BuildError::Other {
        message: format!("{} is a device in the output and will not be replaced", quoted(path)),
        help: Some(Remedy::File(FileRemedy::OtherOutput { obstacle: "device".into() })),
    }
}

fn is_directory(path: &Path) -> BuildError {
    BuildError::Other {
        message: format!("{} is a directory in the output and a file in the result", quoted(path)),
        help: Some(Remedy::File(FileRemedy::OtherOutput { obstacle: "directory".into() })),
    }
}

/// The entry of the output at the path of a directory of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// Nothing.
    None,
    /// A directory, into which the files of the result are merged.
    Directory,
    /// Another kind of file, which the directory replaces.
    File,
}

/// Returns the existing entry at the path of a directory. Fails for a device, which is not
/// replaced.
pub(super) fn obstacle(dir: &RootDir, path: &Path, name: &OsStr) -> Result<Obstacle> {
    let found = match dir.stat_name(name) {
        Err(e) if e.is_not_found() => return Ok(Obstacle::None),
        other => other.map_err(fail(path))?,
    };
    match found.kind {
        FileKind::Dir => Ok(Obstacle::Directory),
        FileKind::CharDevice | FileKind::BlockDevice => Err(is_device(path)),
        _ => Ok(Obstacle::File),
    }
}

/// Returns true if the output has a directory of that name. Removes any other file; fails for a
/// device.
pub(super) fn has_directory(dir: &RootDir, path: &Path, name: &OsStr) -> Result<bool> {
    match obstacle(dir, path, name)? {
        Obstacle::None => Ok(false),
        Obstacle::Directory => Ok(true),
        Obstacle::File => dir.remove_file(name).map(|()| false).map_err(fail(path)),
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;

    #[test]
    fn blocking_files_are_reported_as_recorded() {
        let path = Path::new("usr/bin/a");
        let denied = rbuild_linux::Error::new("openat", path, std::io::Error::from_raw_os_error(13));
        let errors = [is_device(path), is_directory(path), fail(path)(denied)];
        assert_recorded!("output-files", variants!(BuildError).table(&errors, |e| e, BuildError::help));
    }
}
