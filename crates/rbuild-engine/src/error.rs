//! Errors of builds and image commands.

use std::error::Error;
use std::fmt;

use rbuild_dockerfile::{Diagnostic, Help, Span};
use rbuild_layer::LayerError;
use rbuild_registry::{DownloadError, RegistryError};
use rbuild_remedy::{DiskRemedy, FileRemedy, Remedy};
use rbuild_sandbox::{Refusal, RunnerError, SandboxError};
use rbuild_source::SourceError;
use rbuild_store::{BuildId, StoreError, remedy_of_kernel};
use rbuild_transport::{ArchiveError, DestinationFull, TransportError, WriteError};

/// An error of a build or an image command. The message of a variant with a source does not repeat
/// the source's; [`BuildError::message`] joins both.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Errors in the Dockerfile, with source positions.
    #[error("{}", first(.0))]
    Dockerfile(Vec<Diagnostic>),
    /// Requirements of the Dockerfile that the build cannot meet, with source positions.
    #[error("{}", first(.0))]
    Unmet(Vec<Diagnostic>),
    #[error(transparent)]
    Step(Box<StepFailure>),
    #[error(transparent)]
    Store(StoreError),
    #[error("{context}")]
    Layer { context: String, source: LayerError },
    /// An archive or a layout contains no usable image.
    #[error(transparent)]
    Archive(ArchiveError),
    #[error("{context}")]
    Kernel { context: String, source: rbuild_linux::Error },
    #[error("{context}")]
    Io { context: String, source: std::io::Error },
    /// The files of a tree cannot be read.
    #[error("{context}")]
    Source { context: String, source: SourceError },
    /// The shell that was requested for a failure did not start.
    #[error("cannot start the shell")]
    NoShell(#[source] RunnerError),
    /// No space is left at the destination.
    #[error(transparent)]
    DestinationFull(#[from] DestinationFull),
    /// A request to a registry failed.
    #[error(transparent)]
    Registry(RegistryError),
    /// A file could not be downloaded.
    #[error(transparent)]
    Download(DownloadError),
    /// This machine does not allow the required isolation.
    #[error(transparent)]
    Refused(Refusal),
    #[error(transparent)]
    Sandbox(SandboxError),
    /// Canceled by a signal, or because another step failed.
    #[error("the build was canceled")]
    Canceled,
    /// The error has already been reported.
    #[error("the build failed")]
    AlreadyReported,
    /// An image could not be transferred for another reason.
    #[error(transparent)]
    Transport(Box<TransportError>),
    /// A function that the caller passed failed.
    #[error(transparent)]
    Caller(Box<dyn Error + Send + Sync>),
    #[error("{message}")]
    Other { message: String, help: Option<Remedy> },
}

/// The failure of a step.
#[derive(Debug)]
pub struct StepFailure {
    pub span: Span,
    /// Label of the step. It begins with the platform if the build has several.
    pub label: String,
    /// True if the build has several platforms.
    pub of_several: bool,
    pub text: String,
    /// A word of the instruction that caused the failure, such as the name of a missing program.
    pub word: Option<String>,
    /// The reason: a text, or an error with its causes.
    pub reason: Box<dyn Error + Send + Sync>,
    pub help: Option<Remedy>,
    /// The last lines of the command's output.
    pub log: Vec<String>,
    /// ID of the build that keeps the complete output, if `log` is only a part of it.
    pub more: Option<BuildId>,
    /// Time of the failure on the clock of [`rbuild_linux::clock::monotonic_nanoseconds`]. Used to
    /// find the first of several failures.
    pub at: u64,
}

impl StepFailure {
    /// Returns the reason, followed by its causes, as one sentence. If the build has several
    /// platforms, the label precedes it.
    pub fn message(&self) -> String {
        let reason = rbuild_remedy::sentence(&*self.reason);
        if self.of_several { format!("[{}] {reason}", self.label) } else { reason }
    }
}

impl fmt::Display for StepFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

impl Error for StepFailure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.reason.source()
    }
}

/// The reason why a command was not started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the command")]
pub(crate) struct NotStarted(#[source] pub(crate) RunnerError);

/// Result of a build or an image command.
pub type Result<T> = std::result::Result<T, BuildError>;

fn first(diagnostics: &[Diagnostic]) -> &str {
    diagnostics.first().map_or("", |d| &d.message)
}

impl BuildError {
    /// Returns an error with this message and without a remedy.
    pub fn other(message: impl Into<String>) -> BuildError {
        BuildError::Other { message: message.into(), help: None }
    }

    /// Returns a conversion of kernel errors. `context` is the object or the operation.
    pub fn kernel(context: impl Into<String>) -> impl FnOnce(rbuild_linux::Error) -> BuildError {
        let context = context.into();
        move |source| BuildError::Kernel { context, source }
    }

    /// Returns a conversion of layer errors. `context` is the object or the operation.
    pub(crate) fn layer(context: impl Into<String>) -> impl FnOnce(LayerError) -> BuildError {
        let context = context.into();
        move |source| BuildError::Layer { context, source }
    }

    /// Returns a conversion of errors of writing an archive. `context` is the archive.
    pub(crate) fn writing(context: impl Into<String>) -> impl FnOnce(LayerError) -> BuildError {
        let context = context.into();
        move |e| match e.into_write_failure() {
            Ok(source) => BuildError::Io { context: format!("cannot write {context}"), source },
            Err(source) => BuildError::Layer { context, source },
        }
    }

    /// Returns a conversion of I/O errors. `context` is the object or the operation.
    pub(crate) fn io(context: impl Into<String>) -> impl FnOnce(std::io::Error) -> BuildError {
        let context = context.into();
        move |source| BuildError::Io { context, source }
    }

    /// Sets the remedy of a step failure.
    pub(crate) fn with_help(mut self, help: Option<Remedy>) -> BuildError {
        if let BuildError::Step(failure) = &mut self {
            failure.help = help;
        }
        self
    }

    /// Sets the time at which a step failed, which is earlier than the time at which the failure
    /// was detected.
    pub(crate) fn happened(mut self, at: u64) -> BuildError {
        if let BuildError::Step(failure) = &mut self {
            failure.at = at;
        }
        self
    }

    /// Returns the message, followed by those of its causes, as one sentence.
    pub fn message(&self) -> String {
        match self {
            BuildError::Step(failure) => failure.message(),
            other => rbuild_remedy::sentence(other),
        }
    }

    /// Returns the help, if there is any.
    pub fn help(&self) -> Option<Help> {
        match self {
            BuildError::Dockerfile(list) | BuildError::Unmet(list) => list.first().and_then(|d| d.help.clone()),
            other => other.remedy().map(Help::from),
        }
    }

    /// Returns the remedy, if there is one outside the Dockerfile.
    fn remedy(&self) -> Option<Remedy> {
        match self {
            BuildError::Step(f) => f.help.clone(),
            BuildError::Store(e) => e.remedy(),
            BuildError::Layer { source, .. } if source.is_disk_full() => Some(Remedy::Disk(DiskRemedy::FreeSpace)),
            BuildError::Layer { source, .. } => source.remedy(),
            BuildError::Archive(e) => e.remedy(),
            BuildError::Kernel { source, .. } => remedy_of_kernel(source),
            BuildError::Io { source, .. } => LayerError::remedy_of_io(source),
            BuildError::Source { source: SourceError::Kernel(e), .. } => remedy_of_kernel(e),
            BuildError::Source { source: SourceError::Changed(_), .. } => Some(FileRemedy::AwaitWriters.into()),
            BuildError::NoShell(e) => e.remedy(),
            BuildError::DestinationFull(e) => Some(e.remedy()),
            BuildError::Refused(r) => Some(r.remedy.clone()),
            BuildError::Other { help, .. } => help.clone(),
            BuildError::Registry(e) => e.remedy(),
            BuildError::Download(e) => rbuild_transport::remedy_of_download(e),
            BuildError::Sandbox(e) => e.remedy(),
            BuildError::Transport(e) => e.help(),
            BuildError::Source { .. }
            | BuildError::Dockerfile(_)
            | BuildError::Unmet(_)
            | BuildError::Canceled
            | BuildError::AlreadyReported
            | BuildError::Caller(_) => None,
        }
    }
}

impl WriteError for BuildError {
    fn is_disk_full(&self) -> bool {
        self.remedy() == Some(Remedy::Disk(DiskRemedy::FreeSpace))
    }
}

impl From<StoreError> for BuildError {
    fn from(e: StoreError) -> BuildError {
        match e {
            StoreError::Canceled | StoreError::Layer(LayerError::Canceled) => BuildError::Canceled,
            e => BuildError::Store(e),
        }
    }
}

impl From<RegistryError> for BuildError {
    fn from(e: RegistryError) -> BuildError {
        BuildError::Registry(e)
    }
}

impl From<TransportError> for BuildError {
    fn from(e: TransportError) -> BuildError {
        match e {
            TransportError::Store(e) => e.into(),
            TransportError::Download(e) => BuildError::Download(e),
            TransportError::Registry(e) => e.into(),
            TransportError::Layer { context, source } => BuildError::Layer { context, source },
            TransportError::Archive(e) => BuildError::Archive(e),
            e @ (TransportError::OpenLayout { .. }
            | TransportError::Document { .. }
            | TransportError::Artifact { .. }
            | TransportError::NoImage { .. }
            | TransportError::LayoutIndex { .. }) => BuildError::Transport(Box::new(e)),
            TransportError::Kernel { context, source } => BuildError::Kernel { context, source },
            TransportError::Io { context, source } => BuildError::Io { context, source },
            TransportError::DestinationFull(e) => e.into(),
            TransportError::Other { message, help } => BuildError::Other { message, help },
        }
    }
}

impl From<SandboxError> for BuildError {
    fn from(e: SandboxError) -> BuildError {
        match e {
            SandboxError::Refused(r) => BuildError::Refused(r),
            other => BuildError::Sandbox(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rbuild_registry::{RegistryProblem, RemoteRepository};
    use rbuild_sandbox::{Phase, RunnerProblem};
    use rbuild_testkit::{Scratch, assert_recorded, variants};

    use super::*;

    /// Returns the error for a file that is not an archive.
    fn no_archive() -> BuildError {
        let dir = Scratch::new();
        let store = rbuild_store::Store::open(&dir).unwrap();
        let loaded = rbuild_transport::load(&store, &[7u8; 600][..], &rbuild_transport::WantedPlatform::new(None));
        loaded.err().unwrap().of_archive(Path::new("x.tar")).into()
    }

    #[test]
    fn messages_of_commands_that_were_not_started_are_as_recorded() {
        let e = NotStarted(RunnerError { phase: Phase::Command, problem: RunnerProblem::NoCommand });
        assert_recorded!("NotStarted", variants!(NotStarted).table(&[e], |e| e, |e| e.0.remedy()));
    }

    #[test]
    fn a_failure_of_a_step_keeps_its_causes() {
        let source = std::io::Error::from_raw_os_error(28);
        let failure = StepFailure {
            span: Span { start: 0, end: 1 },
            label: String::new(),
            of_several: false,
            text: String::new(),
            word: None,
            reason: Box::new(LayerError::Io { context: "the archive".into(), source }),
            help: None,
            log: Vec::new(),
            more: None,
            at: 0,
        };
        let e = BuildError::Step(Box::new(failure));
        let causes = std::iter::successors(Some(&e as &(dyn Error + 'static)), |e| (*e).source());
        let errnos: Vec<_> = causes.filter_map(|e| e.downcast_ref::<std::io::Error>()?.raw_os_error()).collect();
        assert_eq!(errnos, [28], "{e:?}");
    }

    #[test]
    fn an_error_of_the_transport_keeps_its_causes() {
        let kernel = rbuild_linux::Error::new("openat", Path::new("/out"), std::io::Error::from_raw_os_error(13));
        let e: BuildError =
            TransportError::OpenLayout { layout: "/out".into(), source: kernel.without_object() }.into();
        let cause = e.source().and_then(|cause| cause.downcast_ref::<rbuild_linux::KernelProblem>());
        assert_eq!(cause.and_then(|cause| cause.whole().errno()), Some(13), "{e:?}");
        assert_eq!(e.message(), "cannot open the OCI layout `/out`: permission denied");
    }

    fn failed_step() -> BuildError {
        BuildError::Step(Box::new(StepFailure {
            span: Span { start: 0, end: 1 },
            label: "build 2/3".into(),
            of_several: false,
            text: "RUN false".into(),
            word: None,
            reason: "the command failed with exit code 1".into(),
            help: Some(Remedy::Command(rbuild_remedy::CommandRemedy::InspectFailure)),
            log: Vec::new(),
            more: None,
            at: 0,
        }))
    }

    #[test]
    fn messages_are_as_recorded() {
        let io = |errno| std::io::Error::from_raw_os_error(errno);
        let kernel = |errno| rbuild_linux::Error::new("openat", Path::new("/out/a"), io(errno));
        let place = RemoteRepository { registry: "r.io".into(), repository: "a/b".into() };
        let span = Span { start: 0, end: 1 };
        let found = || vec![Diagnostic::new(span, "unknown instruction `FORM`").help(Remedy::did_you_mean("FROM"))];
        let url = Box::new(rbuild_image::SourceUrl::parse("https://a.io/x").unwrap());
        let refusal = Refusal {
            reason: "`/proc` is not mounted".into(),
            remedy: Remedy::Isolation(rbuild_remedy::IsolationRemedy::MountProc),
            source: Some(io(1)),
        };
        let errors = [
            BuildError::Dockerfile(found()),
            BuildError::Unmet(found()),
            failed_step(),
            BuildError::Store(StoreError::NoImage("demo:1".into())),
            BuildError::layer("the archive `a.tar`")(LayerError::NotTar),
            no_archive(),
            BuildError::kernel("the output `/out`")(kernel(13)),
            BuildError::io("standard output")(io(28)),
            BuildError::io("standard output")(io(5)).writing_to(Path::new("/out")),
            BuildError::io("the archive")(io(28)).writing_to(Path::new("/out")),
            BuildError::Source { context: "searching for secrets".into(), source: SourceError::TooDeep("a".into()) },
            BuildError::Source { context: "searching for secrets".into(), source: SourceError::Changed("a".into()) },
            BuildError::NoShell(RunnerError { phase: Phase::Command, problem: RunnerProblem::NoCommand }),
            BuildError::Registry(RegistryError::new(place, RegistryProblem::Blocked("`/etc/r.conf`".into()))),
            TransportError::from(DownloadError::Sink { url, source: io(28) }).into(),
            BuildError::Refused(refusal),
            BuildError::Sandbox(SandboxError::Killed("the process that runs the command")),
            TransportError::OpenLayout { layout: "/out".into(), source: kernel(13).without_object() }.into(),
            BuildError::Canceled,
            BuildError::AlreadyReported,
            BuildError::Caller("the fetcher ended without an answer".into()),
            BuildError::other("the image has no files"),
        ];
        let variants = variants!(BuildError {
            Dockerfile,
            Unmet,
            Step,
            Store,
            Layer,
            Archive,
            Kernel,
            Io,
            Source,
            NoShell,
            DestinationFull,
            Registry,
            Download,
            Refused,
            Sandbox,
            Transport,
            Canceled,
            AlreadyReported,
            Caller,
            Other,
        });
        assert_recorded!("BuildError", variants.table(&errors, |e| e, BuildError::help));
    }
}
