//! Errors of packing and unpacking layers.

use std::io;
use std::path::PathBuf;

use rbuild_linux::{KernelProblem, into_carried, quoted};
use rbuild_remedy::{DiskRemedy, FileRemedy, ImageRemedy, Remedy, sentence};

use crate::entry::TarEntry;

/// The result of an operation on layers.
pub type Result<T> = std::result::Result<T, LayerError>;

/// Operation of errors of the stream that receives an archive.
pub(crate) const WRITING: &str = "cannot write the archive";

/// An error in layer bytes, or in the tree that they are packed from or unpacked into.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The content does not begin as an archive does.
    #[error("the content is not a tar archive")]
    NotTar,
    /// The archive ends inside the named part.
    #[error("the archive ends in the middle of {0}")]
    Truncated(String),
    /// The archive violates its format.
    #[error("the archive is damaged: {0}")]
    Damaged(String),
    /// One entry is invalid or cannot be created.
    #[error("archive entry {} {reason}", quoted(.name))]
    Entry {
        /// Path of the entry, as written in the archive.
        name: String,
        /// The problem, as the rest of a sentence about the entry.
        reason: String,
    },
    /// The owner of one entry is not available here.
    #[error("cannot set the owner of archive entry {}", quoted(.name))]
    Owner {
        /// Path of the entry, as written in the archive.
        name: String,
        /// The failed change of the owner.
        source: KernelProblem,
    },
    /// One entry cannot be created.
    #[error("cannot unpack archive entry {}", quoted(.name))]
    Create {
        /// Path of the entry, as written in the archive.
        name: String,
        /// The failed operation.
        source: KernelProblem,
    },
    /// A limit was exceeded.
    #[error("{problem}")]
    LimitExceeded {
        /// The problem, with the limit.
        problem: String,
        /// Name of the limit in `Limits`, if it can be raised.
        name: Option<&'static str>,
    },
    /// A file changed while it was being packed.
    #[error("{} changed while it was being read", quoted(.0))]
    Changed(PathBuf),
    /// A file name begins with `.wh.`, which would delete a file when the layer is applied.
    #[error(
        "{} cannot be in an image: names that begin with `.wh.` are whiteouts",
        quoted(.0)
    )]
    WhiteoutName(PathBuf),
    /// The caller canceled unpacking.
    #[error("unpacking was canceled")]
    Canceled,
    /// A file operation failed.
    #[error(transparent)]
    Kernel(#[from] rbuild_linux::Error),
    /// Reading or writing a stream failed.
    #[error("{context}")]
    Io {
        /// The operation, such as "writing the layer".
        context: String,
        /// The error of the stream.
        source: io::Error,
    },
}

impl LayerError {
    /// Returns the error for a limit that cannot be raised.
    pub(crate) fn fixed_limit(problem: String) -> LayerError {
        LayerError::LimitExceeded { problem, name: None }
    }

    /// Returns the error for an entry whose unpacking failed. A full disk is reported as such,
    /// without the entry.
    pub(crate) fn of_entry(self, entry: &TarEntry) -> LayerError {
        match self {
            LayerError::Kernel(cause) if !cause.is_disk_full() => {
                let name = entry.path.to_string_lossy().into_owned();
                LayerError::Create { name, source: cause.without_object() }
            }
            other => other,
        }
    }

    /// Returns true if the archive itself is the cause: it is invalid or incomplete.
    pub fn is_of_content(&self) -> bool {
        use LayerError::{Damaged, Entry, NotTar, Truncated};
        matches!(self, NotTar | Truncated(_) | Damaged(_) | Entry { .. })
    }

    /// Returns the error number of the kernel, if the kernel refused an operation.
    pub fn errno(&self) -> Option<i32> {
        match self {
            LayerError::Kernel(e) => e.errno(),
            LayerError::Owner { source, .. } | LayerError::Create { source, .. } => source.whole().errno(),
            LayerError::Io { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// Returns the error of the stream that an archive was written to, if that failed.
    ///
    /// # Errors
    ///
    /// Returns any other error as it is.
    pub fn into_write_failure(self) -> std::result::Result<io::Error, LayerError> {
        match self {
            LayerError::Io { context, source } if context == WRITING => Ok(source),
            other => Err(other),
        }
    }

    /// Returns the remedy, if there is one.
    pub fn remedy(&self) -> Option<Remedy> {
        match self {
            LayerError::LimitExceeded { name: Some(name), .. } => {
                Some(Remedy::Image(ImageRemedy::RaiseLimit { name: name.to_string() }))
            }
            LayerError::Owner { source, .. } => source.whole().remedy(),
            LayerError::Create { .. } => None,
            LayerError::Kernel(e) => e.carried::<LayerError>().map_or_else(|| e.remedy(), LayerError::remedy),
            LayerError::Io { source, .. } => rbuild_linux::remedy_of(source),
            LayerError::WhiteoutName(_) => Some(FileRemedy::RenameOrRemove.into()),
            _ => None,
        }
    }

    /// Returns a conversion for errors of reading `part`, a noun, from an archive or a layer.
    pub(crate) fn reading(part: impl Into<String>) -> impl FnOnce(io::Error) -> LayerError {
        let part = part.into();
        move |source| match into_carried::<LayerError>(source) {
            // A [`LayerError`] that passed through a reader.
            Ok(known) => known,
            Err(source) => match source.kind() {
                io::ErrorKind::UnexpectedEof => LayerError::Truncated(part),
                io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
                    LayerError::Damaged(format!("{part}: {}", sentence(&source)))
                }
                _ => LayerError::Io { context: format!("reading {part}"), source },
            },
        }
    }

    /// Returns a conversion for errors of reading `part` at places where only the compression can
    /// reveal that the archive is incomplete.
    pub(crate) fn decompressing(part: &'static str) -> impl Fn(io::Error) -> LayerError {
        move |source| match source.kind() {
            io::ErrorKind::UnexpectedEof => LayerError::reading("the compressed data")(source),
            _ => LayerError::reading(part)(source),
        }
    }

    /// Returns a conversion for errors of an operation on a stream, such as "writing the layer".
    pub(crate) fn io(context: impl Into<String>) -> impl FnOnce(io::Error) -> LayerError {
        let context = context.into();
        move |source| match into_carried::<LayerError>(source) {
            Ok(known) => known,
            Err(source) => LayerError::Io { context, source },
        }
    }

    /// Returns the remedy of a stream's error, which may be one of layers.
    pub fn remedy_of_io(e: &io::Error) -> Option<Remedy> {
        match rbuild_linux::carried::<LayerError>(e) {
            _ if rbuild_linux::is_disk_full(e) => Some(Remedy::Disk(DiskRemedy::FreeSpace)),
            Some(e) => e.remedy(),
            None => rbuild_linux::remedy_of(e),
        }
    }

    /// Returns the remedy of a failed file operation, whose cause may be an error of layers.
    pub fn remedy_of_kernel(e: &rbuild_linux::Error) -> Option<Remedy> {
        if e.is_disk_full() {
            return Some(Remedy::Disk(DiskRemedy::FreeSpace));
        }
        e.carried::<LayerError>().map_or_else(|| e.remedy(), LayerError::remedy)
    }

    /// Returns true if no space, or no quota, is left where the tree or the blob is written.
    pub fn is_disk_full(&self) -> bool {
        match self {
            LayerError::Kernel(e) => e.is_disk_full(),
            LayerError::Io { source, .. } => rbuild_linux::is_disk_full(source),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rbuild_testkit::{assert_recorded, variants};

    use super::*;

    #[test]
    fn messages_are_as_recorded() {
        let kernel = |errno| rbuild_linux::Error::new("openat", Path::new("/d/a"), io::Error::from_raw_os_error(errno));
        let nested = rbuild_linux::Error::new("read", Path::new("/d/a"), io::Error::other(LayerError::NotTar));
        let name = || "a/b\n".to_string();
        let unmapped = LayerError::Owner { name: name(), source: kernel(22).without_object() };
        let errors = [
            LayerError::NotTar,
            LayerError::Truncated("an extended header".into()),
            LayerError::Damaged("the checksum of a header is wrong".into()),
            LayerError::Entry { name: name(), reason: "has an absolute path".into() },
            unmapped,
            LayerError::Create { name: name(), source: kernel(17).without_object() },
            LayerError::Create { name: name(), source: kernel(36).without_object() },
            LayerError::LimitExceeded { problem: "the archive has more than 10 entries".into(), name: Some("entries") },
            LayerError::fixed_limit("a header of the archive exceeds 1 MiB".into()),
            LayerError::Changed("src/a".into()),
            LayerError::WhiteoutName("src/.wh.a".into()),
            LayerError::Canceled,
            LayerError::Kernel(kernel(13)),
            LayerError::Kernel(nested),
            LayerError::io("writing the layer")(io::Error::from_raw_os_error(28)),
            LayerError::io("writing the layer")(io::Error::other(LayerError::NotTar)),
            LayerError::reading("the content")(io::Error::from_raw_os_error(5)),
            LayerError::reading("the content")(io::ErrorKind::UnexpectedEof.into()),
            LayerError::reading("the content")(io::Error::new(io::ErrorKind::InvalidData, "no gzip")),
            LayerError::reading("the content")(io::Error::other(LayerError::Canceled)),
        ];
        let variants = variants!(LayerError {
            NotTar,
            Truncated,
            Damaged,
            Entry,
            Owner,
            Create,
            LimitExceeded,
            Changed,
            WhiteoutName,
            Canceled,
            Kernel,
            Io,
        });
        assert_recorded!("LayerError", variants.table(&errors, |e| e, LayerError::remedy));
    }
}
