//! Errors of files that are written for the caller.

use std::ffi::OsStr;
use std::path::Path;

use rbuild_linux::{FileKind, RootDir};

use crate::error::{BuildError, Result};

pub(super) fn fail(path: &Path) -> impl FnOnce(rbuild_linux::Error) -> BuildError + use<> {
    BuildError::kernel(format!("writing the output file {}", path.display()))
}

/// Fails if a directory or a device is in the way: these are not replaced.
pub(super) fn clear_directory(dir: &RootDir, path: &Path, name: &OsStr) -> Result<()> {
    match dir.stat_name(name) {
        Ok(stat) if matches!(stat.kind, FileKind::CharDevice | FileKind::BlockDevice) => Err(is_device(path)),
        Ok(stat) if stat.kind == FileKind::Dir => Err(BuildError::Other {
            message: format!("{} is a directory in the output and a file in the result", path.display()),
            help: Some("remove that directory, or choose another output directory".into()),
        }),
        _ => Ok(()),
    }
}

pub(super) fn is_device(path: &Path) -> BuildError {
    BuildError::Other {
        message: format!("the output has {}, where a device is", path.display()),
        help: Some("remove that device, or choose another output directory".into()),
    }
}
