//! Resolution of an output path to the file it names.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;

use crate::destination::error::DestinationError;
use crate::error::Error;
use crate::rootdir::MAX_SYMLINKS;

pub(super) enum FoundPlace {
    /// A file that this process has open.
    Descriptor(File),
    /// An existing file. Its path may contain links.
    Existing(PathBuf),
    /// A path that does not exist yet: `rest` is missing in the directory `base`.
    Missing { base: PathBuf, rest: PathBuf },
}

/// Resolves the links of a path, including dangling ones.
pub(super) fn find(path: &Path) -> std::result::Result<FoundPlace, DestinationError> {
    let mut at = std::path::absolute(path).map_err(|e| Error::new("getcwd", path, e))?;
    for _ in 0..=MAX_SYMLINKS {
        let (there, rest) = deepest(&at)?;
        let is_link = there.symlink_metadata().is_ok_and(|m| m.is_symlink());
        if is_link {
            let above = there.parent().unwrap_or(Path::new("/"));
            let real = std::fs::canonicalize(above).map_err(|e| Error::new("realpath", above, e))?;
            if real.starts_with("/proc") && rest.as_os_str().is_empty() {
                return own_descriptor(&real, there.file_name().unwrap_or_default(), &there);
            }
            let target = std::fs::read_link(&there).map_err(|e| Error::new("readlink", &there, e))?;
            at = real.join(target).join(rest).components().collect();
            continue;
        }
        if rest.as_os_str().is_empty() {
            return Ok(FoundPlace::Existing(there));
        }
        if !there.is_dir() {
            return Err(DestinationError::NotDirectory(there));
        }
        if let Some(part) = rest.components().find(|part| !matches!(part, Component::Normal(_))) {
            return Err(Error::new("open", there.join(part), Errno::NOENT).into());
        }
        return Ok(FoundPlace::Missing { base: there, rest });
    }
    Err(DestinationError::LinkLoop(path.to_path_buf()))
}

/// Splits a path after its last existing component, which may be a dangling link.
fn deepest(path: &Path) -> std::result::Result<(PathBuf, PathBuf), DestinationError> {
    for there in path.ancestors() {
        match there.symlink_metadata() {
            Ok(_) => {
                let rest = path.strip_prefix(there).unwrap_or(Path::new(""));
                return Ok((there.to_path_buf(), rest.components().collect()));
            }
            Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {}
            Err(e) => return Err(Error::new("lstat", there, e).into()),
        }
    }
    Err(Error::new("lstat", path, Errno::NOENT).into())
}

/// Resolves a link below /proc. If it names a descriptor of this process, returns that open file
/// itself.
fn own_descriptor(dir: &Path, name: &OsStr, link: &Path) -> std::result::Result<FoundPlace, DestinationError> {
    let own = std::fs::canonicalize("/proc/self").map_err(|e| Error::new("realpath", Path::new("/proc/self"), e))?;
    let is_own = dir == own.join("fd") || (dir.starts_with(own.join("task")) && dir.ends_with("fd"));
    let number: Option<i32> = name.to_str().and_then(|name| name.parse().ok());
    match number.filter(|_| is_own) {
        Some(number) => {
            let fd = crate::syscalls::duplicate(number).map_err(|e| Error::new("dup", link, e))?;
            Ok(FoundPlace::Descriptor(File::from(fd)))
        }
        None => Ok(FoundPlace::Existing(link.to_path_buf())),
    }
}
