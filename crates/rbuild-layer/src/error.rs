use std::io;
use std::path::PathBuf;

pub type Result<T> = std::result::Result<T, LayerError>;

/// What can be wrong with layer bytes, or with the tree that takes or gives them.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error("the archive ends in the middle of {0}")]
    Truncated(String),
    #[error("the archive is damaged: {0}")]
    Damaged(String),
    #[error("the archive entry {name:?} {reason}")]
    Entry { name: String, reason: String },
    #[error("{0}")]
    Limit(String),
    #[error("{} changed while it was read", .0.display())]
    Changed(PathBuf),
    #[error(
        "{} cannot be in an image: a name that begins with `.wh.` deletes something in a layer; rename or remove it",
        .0.display()
    )]
    Deletion(PathBuf),
    /// Whoever unpacks wants it no more.
    #[error("it was stopped")]
    Stopped,
    #[error("{0}")]
    Kernel(#[from] rbuild_linux::Error),
    #[error("{context}: {source}")]
    Io { context: String, source: io::Error },
}

impl LayerError {
    pub(crate) fn io(context: impl Into<String>) -> impl FnOnce(io::Error) -> LayerError {
        let context = context.into();
        move |source| match source.downcast::<LayerError>() {
            // It came through a reader.
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

    /// No space left where the tree or the blob is written.
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
