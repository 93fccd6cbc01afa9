use std::path::Path;

use rbuild_dockerfile::{Diagnostic, Span};
use rbuild_layer::LayerError;
use rbuild_registry::RegistryError;
use rbuild_sandbox::{Refusal, SandboxError};
use rbuild_store::StoreError;

/// Hint for a full disk under the store.
const STORE_IS_FULL: &str = "free some space: `rbuild prune -a` empties the build cache";

/// An error of a build or an image command.
#[derive(Debug)]
pub enum BuildError {
    /// Errors in the Dockerfile, with source positions.
    Dockerfile(Vec<Diagnostic>),
    /// Requirements of the Dockerfile that the build cannot meet, with source positions.
    Unmet(Vec<Diagnostic>),
    Step(Box<StepFailure>),
    Store(StoreError),
    Layer {
        what: String,
        source: LayerError,
    },
    Kernel {
        what: String,
        source: rbuild_linux::Error,
    },
    /// A request to a registry failed.
    Registry(RegistryError),
    /// This machine does not allow the required isolation.
    Refused(Refusal),
    Sandbox(String),
    /// Cancelled by a signal, or because another step failed.
    Cancelled,
    /// The build context changed while it was copied. The build must start over with a new look at
    /// it.
    Moved,
    /// The error has already been reported.
    Told,
    Other {
        message: String,
        help: Option<String>,
    },
}

/// The failure of a step.
#[derive(Debug)]
pub struct StepFailure {
    pub span: Span,
    pub label: String,
    pub text: String,
    /// The reason, as a sentence.
    pub reason: String,
    pub help: Option<String>,
    /// The last lines of the command's output.
    pub log: Vec<String>,
    /// The build ID under which the complete output is kept, if `log` is only a part of it.
    pub more: Option<String>,
    /// Time of the failure on the clock of [`rbuild_linux::process::moment`]. Used to find the
    /// first of several failures.
    pub at: u64,
}

pub type Result<T> = std::result::Result<T, BuildError>;

impl BuildError {
    pub fn other(message: impl Into<String>) -> BuildError {
        BuildError::Other { message: message.into(), help: None }
    }

    pub(crate) fn kernel(what: impl Into<String>) -> impl FnOnce(rbuild_linux::Error) -> BuildError {
        let what = what.into();
        move |source| BuildError::Kernel { what, source }
    }

    pub(crate) fn layer(what: impl Into<String>) -> impl FnOnce(LayerError) -> BuildError {
        let what = what.into();
        move |source| BuildError::Layer { what, source }
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> BuildError {
        let what = what.into();
        move |e| BuildError::Other { help: disk_full(&e), message: format!("{what}: {e}") }
    }

    /// Sets the time of a step failure that happened before it was noticed here.
    pub(crate) fn happened(mut self, at: u64) -> BuildError {
        if let BuildError::Step(failure) = &mut self {
            failure.at = at;
        }
        self
    }

    /// Corrects the hint of a write to `place`, which is outside the store: if a disk is full, it
    /// is the disk of `place`.
    pub(crate) fn writing_to(self, place: &Path) -> BuildError {
        if self.help().as_deref() != Some(STORE_IS_FULL) {
            return self;
        }
        let help = format!("free some space on the disk of {}, or write to another one", place.display());
        BuildError::Other { message: self.message(), help: Some(help) }
    }

    /// Returns the error message, one sentence.
    pub fn message(&self) -> String {
        match self {
            BuildError::Dockerfile(list) | BuildError::Unmet(list) => {
                list.first().map(|d| d.message.clone()).unwrap_or_default()
            }
            BuildError::Step(f) => f.reason.clone(),
            BuildError::Store(e) => e.to_string(),
            BuildError::Layer { what, source } => format!("{what}: {source}"),
            BuildError::Kernel { what, source } => format!("{what}: {source}"),
            BuildError::Registry(e) => e.to_string(),
            BuildError::Refused(r) => r.reason.clone(),
            BuildError::Sandbox(text) => text.clone(),
            BuildError::Cancelled => "the build was stopped".into(),
            BuildError::Told => "the build failed".into(),
            BuildError::Moved => "the build context changed while it was read".into(),
            BuildError::Other { message, .. } => message.clone(),
        }
    }

    /// Returns a hint on how to fix the error.
    pub fn help(&self) -> Option<String> {
        let full = STORE_IS_FULL.to_string();
        match self {
            BuildError::Dockerfile(list) | BuildError::Unmet(list) => list.first().and_then(|d| d.help.clone()),
            BuildError::Step(f) => f.help.clone(),
            BuildError::Store(e) => e.remedy(),
            BuildError::Layer { source, .. } => source.is_disk_full().then_some(full),
            BuildError::Kernel { source, .. } => source.is_disk_full().then_some(full),
            BuildError::Refused(r) => Some(r.remedy.clone()),
            BuildError::Other { help, .. } => help.clone(),
            // The command line has the words: they name its verbs and flags.
            BuildError::Registry(_) => None,
            BuildError::Sandbox(_) | BuildError::Cancelled | BuildError::Told | BuildError::Moved => None,
        }
    }
}

pub(crate) fn disk_full(e: &std::io::Error) -> Option<String> {
    matches!(e.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
        .then(|| STORE_IS_FULL.to_string())
}

impl From<StoreError> for BuildError {
    fn from(e: StoreError) -> BuildError {
        match e {
            StoreError::Stopped | StoreError::Layer(LayerError::Stopped) => BuildError::Cancelled,
            e => BuildError::Store(e),
        }
    }
}

impl From<RegistryError> for BuildError {
    fn from(e: RegistryError) -> BuildError {
        BuildError::Registry(e)
    }
}

impl From<SandboxError> for BuildError {
    fn from(e: SandboxError) -> BuildError {
        match e {
            SandboxError::Refused(r) => BuildError::Refused(r),
            other => BuildError::Sandbox(other.to_string()),
        }
    }
}
