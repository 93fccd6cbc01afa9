//! Copies the contents of one file.

use std::ffi::OsStr;
use std::fs::File;

use rbuild_linux::{FileStamp, RootDir, Stat, copy_file_while};
use rbuild_sandbox::Cancel;
use rbuild_source::SourceError;

use crate::ops::copy_error::CopyProblem;

/// Copies the contents of a file. Returns [`CopyProblem::Canceled`] if the build is canceled during
/// the copy.
pub(crate) fn copy_file(from: &File, stat: &Stat, to: &File, cancel: &Cancel) -> Result<(), CopyProblem> {
    match copy_file_while(from, stat, to, &|| !cancel.is_canceled())? {
        Some(_) => Ok(()),
        None => Err(CopyProblem::Canceled),
    }
}

/// Fails if a file has changed since it was selected: the key was computed from its former
/// contents.
pub(crate) fn unchanged(dir: &RootDir, name: &OsStr, was: &Stat) -> Result<(), CopyProblem> {
    match dir.stat_name(name) {
        Ok(now) if FileStamp::of(was).is_unchanged(&FileStamp::of(&now)) => Ok(()),
        _ => Err(SourceError::Changed(dir.label().join(name)).into()),
    }
}
