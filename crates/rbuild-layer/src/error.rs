//! Errors of packing and unpacking layers.

use std::io;
use std::path::PathBuf;

/// The result of an operation on layers.
pub type Result<T> = std::result::Result<T, LayerError>;

/// An error in layer bytes, or in the tree that they are packed from or unpacked into.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The archive ends inside the named part.
    #[error("the archive ends in the middle of {0}")]
    Truncated(String),
    /// The archive violates its format.
    #[error("the archive is damaged: {0}")]
    Damaged(String),
    /// One entry is invalid or cannot be created.
    #[error("the archive entry {name:?} {reason}")]
    Entry {
        /// Path of the entry, as written in the archive.
        name: String,
        /// The problem, as the rest of a sentence about the entry.
        reason: String,
    },
    /// A limit was exceeded; see `Limits`.
    #[error("{0}")]
    Limit(String),
    /// A file changed while it was being packed.
    #[error("{} changed while it was read", .0.display())]
    Changed(PathBuf),
    /// A file name begins with `.wh.`, which would delete a file when the layer is applied.
    #[error(
        "{} cannot be in an image: a name that begins with `.wh.` deletes something in a layer; rename or remove it",
        .0.display()
    )]
    Deletion(PathBuf),
    /// The caller cancelled unpacking.
    #[error("it was stopped")]
    Stopped,
    /// A file operation failed.
    #[error("{0}")]
    Kernel(#[from] rbuild_linux::Error),
    /// Reading or writing a stream failed.
    #[error("{context}: {source}")]
    Io {
        /// The stream or the operation on it.
        context: String,
        /// The error of the stream.
        source: io::Error,
    },
}

impl LayerError {
    pub(crate) fn io(context: impl Into<String>) -> impl FnOnce(io::Error) -> LayerError {
        let context = context.into();
        move |source| match source.downcast::<LayerError>() {
            // A [`LayerError`] that passed through a reader.
            Ok(known) => known,
            Err(source) => match source.kind() {
                io::ErrorKind::UnexpectedEof => LayerError::Truncated(context),
                io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
                    LayerError::Damaged(format!("{context}: {source}"))
                }
                _ => LayerError::Io { context, source },
            },
        }
    }

    /// Returns true if no space, or no quota, is left where the tree or the blob is written.
    pub fn is_disk_full(&self) -> bool {
        match self {
            LayerError::Kernel(e) => e.is_disk_full(),
            LayerError::Io { source, .. } => {
                source.kind() == io::ErrorKind::StorageFull || source.kind() == io::ErrorKind::QuotaExceeded
            }
            _ => false,
        }
    }
}
