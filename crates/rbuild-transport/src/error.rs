//! Errors of the transport of images.

use std::io;
use std::path::Path;

use rbuild_layer::LayerError;
use rbuild_registry::{DownloadError, RegistryError};
use rbuild_remedy::Remedy;
use rbuild_store::StoreError;

use crate::archive_error::{ArchiveError, ArchiveProblem};
use crate::destination_full::{DestinationFull, WriteError};

/// An error of reading, writing or copying an image. The message of a variant with a source does
/// not repeat the source's; [`TransportError::message`] joins both.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A request to a registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A file could not be downloaded.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// A tar archive is invalid or exceeds a limit.
    #[error("{what}")]
    Layer {
        /// The archive.
        what: String,
        /// The cause.
        source: LayerError,
    },
    /// An archive or a layout has no image that can be loaded.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A file operation failed.
    #[error("{what}")]
    Kernel {
        /// The file, or the operation on it.
        what: String,
        /// The cause.
        source: rbuild_linux::Error,
    },
    /// Reading or writing a stream failed.
    #[error("{what}")]
    Io {
        /// The stream, or the operation on it.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// No space is left at the destination.
    #[error(transparent)]
    DestinationFull(#[from] DestinationFull),
    /// Any other error.
    #[error("{message}")]
    Other {
        /// The object and the problem.
        message: String,
        /// The remedy, if there is one.
        help: Option<Remedy>,
    },
}

/// The result of an operation on images.
pub type Result<T> = std::result::Result<T, TransportError>;

impl TransportError {
    pub(crate) fn other(message: impl Into<String>) -> TransportError {
        TransportError::Other { message: message.into(), help: None }
    }

    pub(crate) fn kernel(what: impl Into<String>) -> impl FnOnce(rbuild_linux::Error) -> TransportError {
        let what = what.into();
        move |source| TransportError::Kernel { what, source }
    }

    pub(crate) fn layer(what: impl Into<String>) -> impl FnOnce(LayerError) -> TransportError {
        let what = what.into();
        move |source| TransportError::Layer { what, source }
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> TransportError {
        let what = what.into();
        move |source| TransportError::Io { what, source }
    }

    /// Names the archive, if the error is about one.
    pub fn of_archive(self, path: &Path) -> TransportError {
        match self {
            TransportError::Archive(e) => e.of(path).into(),
            other => other,
        }
    }

    /// Returns the message, followed by those of its causes, as one sentence.
    pub fn message(&self) -> String {
        rbuild_remedy::sentence(self)
    }

    /// Returns the remedy, if there is one.
    pub fn help(&self) -> Option<Remedy> {
        match self {
            TransportError::Store(e) => e.remedy(),
            TransportError::Registry(e) => e.remedy(),
            TransportError::Download(DownloadError::Sink { source, .. }) => LayerError::remedy_of_io(source),
            TransportError::Download(e) => e.remedy(),
            TransportError::Layer { source, .. } if source.is_disk_full() => Some(Remedy::FreeSpace),
            TransportError::Layer { source, .. } => source.remedy(),
            TransportError::Archive(e) => e.remedy(),
            TransportError::Kernel { source, .. } => LayerError::remedy_of_kernel(source),
            TransportError::Io { source, .. } => LayerError::remedy_of_io(source),
            TransportError::DestinationFull(e) => Some(e.remedy()),
            TransportError::Other { help, .. } => help.clone(),
        }
    }
}

impl From<ArchiveProblem> for TransportError {
    fn from(problem: ArchiveProblem) -> TransportError {
        ArchiveError::from(problem).into()
    }
}

impl WriteError for TransportError {
    fn is_disk_full(&self) -> bool {
        self.help() == Some(Remedy::FreeSpace)
    }
}

#[cfg(test)]
mod tests {
    use rbuild_registry::{RegistryProblem, RemoteRepository};
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;

    #[test]
    fn messages_are_as_recorded() {
        let io = |errno| io::Error::from_raw_os_error(errno);
        let kernel = |errno| rbuild_linux::Error::new("openat", Path::new("/out/index.json"), io(errno));
        let place = RemoteRepository { registry: "r.io".into(), repository: "a/b".into() };
        let blocked = RegistryError::new(place, RegistryProblem::Blocked("`/etc/r.conf`".into()));
        let url = rbuild_image::SourceUrl::parse("https://a.io/x").unwrap();
        let full = TransportError::io("writing the archive")(io(28)).writing_to(Path::new("/out"));
        let errors = [
            TransportError::Store(StoreError::NoImage("demo:1".into())),
            TransportError::Registry(blocked),
            TransportError::layer("the archive `a.tar`")(LayerError::NotTar),
            TransportError::Download(DownloadError::Sink { url: Box::new(url), source: io(28) }),
            TransportError::Archive(ArchiveProblem::NoImage.into()),
            TransportError::kernel("the layout `/out`")(kernel(13)),
            TransportError::io("writing the archive")(io(5)),
            full,
            TransportError::other("the image `demo:1` has no layers"),
        ];
        let variants =
            variants!(TransportError { Store, Registry, Download, Layer, Archive, Kernel, Io, DestinationFull, Other });
        assert_recorded!("TransportError", variants.table(&errors, |e| e, TransportError::help));
    }
}
