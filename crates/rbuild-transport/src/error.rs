//! Errors of the transport of images.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use rbuild_layer::LayerError;
use rbuild_linux::{KernelProblem, carried, into_carried, quoted};
use rbuild_registry::{DownloadError, RegistryError, RegistryProblem};
use rbuild_remedy::{DiskRemedy, ImageRemedy, Remedy, ServerRemedy};
use rbuild_store::{StoreError, remedy_of_kernel};

use crate::archive_error::{ArchiveError, ArchiveProblem};
use crate::destination_full::{DestinationFull, WriteError};

/// An error of reading, writing or copying an image. The message of a variant with a source does
/// not repeat the source's; [`TransportError::message`] joins both.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The store failed.
    #[error(transparent)]
    Store(StoreError),
    /// A request to a registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A file could not be downloaded.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// A tar archive is invalid or exceeds a limit.
    #[error("{context}")]
    Layer {
        /// The archive.
        context: String,
        /// The cause.
        source: LayerError,
    },
    /// An archive or a layout has no image that can be loaded.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The directory of an OCI layout cannot be opened.
    #[error("cannot open the OCI layout {}", quoted(.layout))]
    OpenLayout {
        /// The directory.
        layout: PathBuf,
        /// The cause.
        source: KernelProblem,
    },
    /// A file operation failed.
    #[error("{context}")]
    Kernel {
        /// The file, or the operation on it.
        context: String,
        /// The cause.
        source: rbuild_linux::Error,
    },
    /// Reading or writing a stream failed.
    #[error("{context}")]
    Io {
        /// The stream, or the operation on it.
        context: String,
        /// The cause.
        source: io::Error,
    },
    /// A document, or a digest in it, is invalid.
    #[error("{context}")]
    Document {
        /// The document.
        context: String,
        /// The cause.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The `index.json` of an output layout cannot be extended.
    #[error("index.json is not an OCI image index")]
    LayoutIndex {
        /// The cause.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A manifest is not that of an image.
    #[error("{place}: it is an artifact of type {kind}, not an image")]
    Artifact {
        /// The repository or the archive.
        place: String,
        /// The type of the artifact, or of its configuration.
        kind: String,
    },
    /// An index lists no image.
    #[error("{place} has no image for {platform}: its index lists no image for any platform")]
    NoImage {
        /// The repository.
        place: String,
        /// The requested platform.
        platform: String,
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

    pub(crate) fn document<E: Into<Box<dyn Error + Send + Sync>>>(
        context: impl Into<String>,
    ) -> impl FnOnce(E) -> Self {
        let context = context.into();
        move |source| TransportError::Document { context, source: source.into() }
    }

    pub(crate) fn layout_index(source: impl Into<Box<dyn Error + Send + Sync>>) -> TransportError {
        TransportError::LayoutIndex { source: source.into() }
    }

    pub(crate) fn kernel(context: impl Into<String>) -> impl FnOnce(rbuild_linux::Error) -> TransportError {
        let context = context.into();
        move |source| TransportError::Kernel { context, source }
    }

    pub(crate) fn layer(context: impl Into<String>) -> impl FnOnce(LayerError) -> TransportError {
        let context = context.into();
        move |source| TransportError::Layer { context, source }
    }

    /// Returns the error of a failed read of an archive: that of the store that the reader writes
    /// to, or else that of the archive.
    pub(crate) fn reading_layer(context: impl Into<String>) -> impl FnOnce(LayerError) -> TransportError {
        let context = context.into();
        move |e| match e {
            LayerError::Io { context: place, source } => match into_carried::<StoreError>(source) {
                Ok(e) => TransportError::Store(e),
                Err(source) => TransportError::Layer { context, source: LayerError::Io { context: place, source } },
            },
            source => TransportError::Layer { context, source },
        }
    }

    pub(crate) fn io(context: impl Into<String>) -> impl FnOnce(io::Error) -> TransportError {
        let context = context.into();
        move |source| TransportError::Io { context, source }
    }

    /// Returns the error of a failed read: that of the source, which the reader of a blob returned,
    /// or else that of the stream.
    pub(crate) fn reading(context: impl Into<String>) -> impl FnOnce(io::Error) -> TransportError {
        let context = context.into();
        move |e| match into_carried::<RegistryError>(e).map(TransportError::Registry) {
            Ok(e) => e,
            Err(e) => into_carried::<StoreError>(e).map_or_else(TransportError::io(context), TransportError::Store),
        }
    }

    /// Returns the error of a failed upload: that of the source, if reading the data failed.
    pub(crate) fn pushing(RegistryError { place, problem }: RegistryError) -> TransportError {
        let problem = match *problem {
            RegistryProblem::Local { data, source } => match into_carried::<TransportError>(source) {
                Ok(e) => return e,
                Err(source) => RegistryProblem::Local { data, source },
            },
            other => other,
        };
        TransportError::Registry(RegistryError::new(place, problem))
    }

    /// Names the archive, if the error is about one.
    pub fn of_archive(self, path: &Path) -> TransportError {
        match self {
            TransportError::Archive(e) => e.of(path).into(),
            other => other,
        }
    }

    /// Names the directory of a layout, if the error is about one.
    pub fn of_layout(self, path: &Path) -> TransportError {
        match self {
            TransportError::Archive(e) => e.of_layout(path).into(),
            other => other,
        }
    }

    /// Returns true if a server does not have the object of a request.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, TransportError::Registry(e) if matches!(&*e.problem, RegistryProblem::Missing { .. }))
    }

    /// Returns true if content is missing or damaged where it was read from, so that it will be at
    /// the next time, too.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            TransportError::Document { .. } => true,
            TransportError::Registry(e) => {
                matches!(&*e.problem, RegistryProblem::Missing { .. } | RegistryProblem::Digest { .. })
            }
            _ => false,
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
            TransportError::Download(e) => remedy_of_download(e),
            TransportError::Layer { source, .. } if source.is_disk_full() => Some(Remedy::Disk(DiskRemedy::FreeSpace)),
            TransportError::Layer { source, .. } => source.remedy(),
            TransportError::Archive(e) => e.remedy(),
            TransportError::OpenLayout { source, .. } => remedy_of_kernel(source.whole()),
            TransportError::Kernel { source, .. } => remedy_of_kernel(source),
            TransportError::Io { source, .. } => LayerError::remedy_of_io(source),
            TransportError::DestinationFull(e) => Some(e.remedy()),
            TransportError::Document { .. } | TransportError::Artifact { .. } => None,
            TransportError::NoImage { .. } => Some(ServerRemedy::PushAgain.into()),
            TransportError::LayoutIndex { .. } => Some(ImageRemedy::OtherLayout.into()),
            TransportError::Other { help, .. } => help.clone(),
        }
    }
}

/// Returns the remedy of a failed download. Its sink is a file of the store.
pub fn remedy_of_download(e: &DownloadError) -> Option<Remedy> {
    match e {
        DownloadError::Server { .. } => e.remedy(),
        DownloadError::Sink { source, .. } => {
            carried::<StoreError>(source).map_or_else(|| LayerError::remedy_of_io(source), StoreError::remedy)
        }
    }
}

/// Restores an error of the source of a blob that passed through the store as the error of a
/// stream. An error of a layer is one of the archive that contains the blob.
impl From<StoreError> for TransportError {
    fn from(e: StoreError) -> TransportError {
        let StoreError::Kernel(e) = e else { return TransportError::Store(e) };
        let e = match e.into_carried::<RegistryError>() {
            Ok(e) => return TransportError::Registry(e),
            Err(e) => e,
        };
        match e.into_carried::<LayerError>() {
            Ok(e) => ArchiveProblem::Invalid(e).into(),
            Err(e) => TransportError::Store(e.into_carried::<StoreError>().unwrap_or_else(StoreError::Kernel)),
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
        self.help() == Some(Remedy::Disk(DiskRemedy::FreeSpace))
    }
}

#[cfg(test)]
mod tests {
    use rbuild_registry::RemoteRepository;
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;

    fn blocked() -> RegistryError {
        let place = RemoteRepository { registry: "r.io".into(), repository: "a/b".into() };
        RegistryError::new(place, RegistryProblem::Blocked("`/etc/r.conf`".into()))
    }

    #[test]
    fn the_error_of_a_source_is_kept_through_readers_and_the_store() {
        let through_store = |e: io::Error| {
            let read = rbuild_linux::Error::new("read", rbuild_linux::described("the incoming data"), e);
            TransportError::from(StoreError::from(read))
        };
        let through_registry = |e: io::Error| {
            let place = RemoteRepository { registry: "r.io".into(), repository: "a/b".into() };
            let source = io::Error::other(TransportError::reading("x")(e));
            TransportError::pushing(RegistryError::new(place, RegistryProblem::Local { data: "the layer", source }))
        };
        for (carry, own) in [
            (&through_store as &dyn Fn(io::Error) -> TransportError, "cannot read the incoming data"),
            (&through_registry, "x"),
            (&|e| TransportError::reading("x")(e), "x"),
        ] {
            let e = carry(io::Error::other(blocked()));
            assert!(matches!(e, TransportError::Registry(_)), "{e:?}");
            assert_eq!((e.message(), e.help()), (blocked().message(), blocked().remedy()));
            let e = carry(io::Error::other(StoreError::NameTaken("web".into())));
            assert!(matches!(e, TransportError::Store(StoreError::NameTaken(_))), "{e:?}");
            let e = carry(io::Error::from_raw_os_error(5));
            assert_eq!(e.message(), format!("{own}: input/output error"));
        }
    }

    #[test]
    fn a_blob_that_an_archive_cuts_short_is_a_fault_of_the_archive() {
        let cause = io::Error::other(LayerError::NotTar);
        let read = rbuild_linux::Error::new("read", rbuild_linux::described("the incoming data"), cause);
        let e = TransportError::from(StoreError::from(read)).of_archive(Path::new("a.tar"));
        assert_eq!(e.message(), "cannot read the archive `a.tar`: the content is not a tar archive");
    }

    #[test]
    fn an_invalid_document_keeps_its_cause() {
        let cause = serde_json::from_str::<Vec<u8>>("[").unwrap_err();
        let text = rbuild_remedy::message(&cause);
        let e = TransportError::document("cannot read index.json of the image")(cause);
        let kept = e.source().and_then(|cause| cause.downcast_ref::<serde_json::Error>());
        assert!(kept.is_some_and(serde_json::Error::is_eof), "{e:?}");
        assert_eq!(e.message(), format!("cannot read index.json of the image: {text}"));
    }

    #[test]
    fn an_output_layout_with_an_invalid_index_keeps_the_cause() {
        let e = crate::documents::extended_index(Some(b"["), &[]).unwrap_err();
        let kept = e.source().and_then(|cause| cause.downcast_ref::<serde_json::Error>());
        assert!(kept.is_some_and(serde_json::Error::is_eof), "{e:?}");
        assert_eq!(e.help(), Some(ImageRemedy::OtherLayout.into()));
    }

    #[test]
    fn messages_are_as_recorded() {
        let io = |errno| io::Error::from_raw_os_error(errno);
        let kernel = |errno| rbuild_linux::Error::new("openat", Path::new("/out/index.json"), io(errno));
        let url = rbuild_image::SourceUrl::parse("https://a.io/x").unwrap();
        let full = TransportError::io("cannot write the archive")(io(28)).writing_to(Path::new("/out"));
        let errors = [
            TransportError::Store(StoreError::NoImage("demo:1".into())),
            TransportError::Registry(blocked()),
            TransportError::layer("the archive `a.tar`")(LayerError::NotTar),
            TransportError::Download(DownloadError::Sink { url: Box::new(url), source: io(28) }),
            TransportError::Archive(ArchiveProblem::NoImage.into()),
            TransportError::OpenLayout { layout: "/out".into(), source: kernel(13).without_object() },
            TransportError::kernel("the layout `/out`")(kernel(13)),
            TransportError::io("cannot write the archive")(io(5)),
            TransportError::document("r.io/a/b: the manifest")("missing field `config`"),
            TransportError::layout_index("it lists no manifests"),
            TransportError::Artifact { place: "r.io/a/b".into(), kind: "example/sbom".into() },
            TransportError::NoImage { place: "r.io/a/b".into(), platform: "linux/amd64".into() },
            full,
            TransportError::other("the image `demo:1` has no layers"),
        ];
        let variants = variants!(TransportError {
            Store,
            Registry,
            Download,
            Layer,
            Archive,
            OpenLayout,
            Kernel,
            Io,
            Document,
            LayoutIndex,
            Artifact,
            NoImage,
            DestinationFull,
            Other
        });
        assert_recorded!("TransportError", variants.table(&errors, |e| e, TransportError::help));
    }
}
