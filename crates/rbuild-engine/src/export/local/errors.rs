//! Errors of files that are written for the caller.

use std::ffi::OsStr;
use std::path::Path;

use rbuild_linux::{FileKind, RootDir};
use rbuild_remedy::Remedy;

use crate::error::{BuildError, Result};

pub(super) fn fail(path: &Path) -> impl FnOnce(rbuild_linux::Error) -> BuildError + use<> {
    BuildError::kernel(format!("writing the output file `{}`", path.display()))
}

/// Fails if a directory or a device is in the way: these are not replaced.
pub(super) fn clear_directory(dir: &RootDir, path: &Path, name: &OsStr) -> Result<()> {
    match dir.stat_name(name) {
        Ok(stat) if matches!(stat.kind, FileKind::CharDevice | FileKind::BlockDevice) => Err(is_device(path)),
        Ok(stat) if stat.kind == FileKind::Dir => Err(BuildError::Other {
            message: format!("`{}` is a directory in the output and a file in the result", path.display()),
            help: Some(Remedy::OtherOutput { obstacle: "directory" }),
        }),
        _ => Ok(()),
    }
}

pub(super) fn is_device(path: &Path) -> BuildError {
    BuildError::Other {
        message: format!("`{}` is a device in the output and will not be replaced", path.display()),
        help: Some(Remedy::OtherOutput { obstacle: "device" }),
    }
}
