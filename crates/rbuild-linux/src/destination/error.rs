//! Errors of output files.

use std::fmt;
use std::path::PathBuf;

use rbuild_remedy::sentence;
use rustix::io::Errno;

use crate::error::{Error, quoted};

/// An output that cannot be opened or written.
#[derive(Debug)]
pub enum DestinationError {
    /// A directory in place of a file.
    IsDirectory(PathBuf),
    /// A path that ends with a slash, at which nothing exists.
    EndsWithSlash(PathBuf),
    /// Another file in place of a directory.
    NotDirectory(PathBuf),
    /// Carries the parent directory of the destination.
    NotWritable(PathBuf, Errno),
    /// A descriptor that is not open for writing.
    NotForWriting(PathBuf),
    /// A socket, which cannot be opened.
    Socket(PathBuf),
    /// A symbolic link that leads to itself.
    LinkLoop(PathBuf),
    /// Another failed operation.
    Kernel(Error),
}

impl fmt::Display for DestinationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DestinationError::IsDirectory(path) => write!(f, "{} is a directory", quoted(path)),
            DestinationError::EndsWithSlash(path) => {
                write!(f, "{} ends with `/`, so it is the path of a directory", quoted(path))
            }
            DestinationError::NotDirectory(path) => write!(f, "{} is a file, not a directory", quoted(path)),
            DestinationError::NotWritable(path, e) => {
                write!(f, "the directory {} is not writable: {}", quoted(path), sentence(&std::io::Error::from(*e)))
            }
            DestinationError::NotForWriting(path) => write!(f, "{} is open for reading only", quoted(path)),
            DestinationError::Socket(path) => write!(f, "{} is a socket", quoted(path)),
            DestinationError::LinkLoop(path) => write!(f, "too many levels of symbolic links at {}", quoted(path)),
            DestinationError::Kernel(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for DestinationError {}

impl From<Error> for DestinationError {
    fn from(e: Error) -> DestinationError {
        DestinationError::Kernel(e)
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, no_remedy, variants};

    use super::*;

    #[test]
    fn messages_are_as_recorded() {
        let path = || PathBuf::from("/out/a.tar");
        let errors = [
            DestinationError::IsDirectory(path()),
            DestinationError::EndsWithSlash("/out/".into()),
            DestinationError::NotDirectory(path()),
            DestinationError::NotWritable("/out".into(), Errno::ROFS),
            DestinationError::NotForWriting("/dev/fd/3".into()),
            DestinationError::Socket(path()),
            DestinationError::LinkLoop(path()),
            DestinationError::Kernel(Error::new("openat", path(), Errno::NOSPC)),
        ];
        let variants = variants!(DestinationError {
            IsDirectory,
            EndsWithSlash,
            NotDirectory,
            NotWritable,
            NotForWriting,
            Socket,
            LinkLoop,
            Kernel
        });
        assert_recorded!("DestinationError", variants.table(&errors, |e| e, no_remedy));
    }
}
