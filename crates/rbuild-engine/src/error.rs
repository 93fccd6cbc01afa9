use std::path::Path;

use rbuild_dockerfile::{Diagnostic, Span};
use rbuild_layer::LayerError;
use rbuild_sandbox::{Refusal, SandboxError};
use rbuild_store::StoreError;

/// What to do where the disk of the store is full.
const STORE_IS_FULL: &str = "free some space: `rbuild prune -a` empties the build cache";

/// Why a build or an image verb did not do what it was asked.
#[derive(Debug)]
pub enum BuildError {
    /// The Dockerfile is wrong, with places in it.
    Dockerfile(Vec<Diagnostic>),
    /// The Dockerfile asks for something that cannot be had, with places in it.
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
    /// This machine cannot isolate.
    Refused(Refusal),
    Sandbox(String),
    /// Stopped by a signal, or because another step failed.
    Cancelled,
    /// The context changed while it was copied; it is to be looked at again.
    Moved,
    /// Somebody was told of it already.
    Told,
    Other {
        message: String,
        help: Option<String>,
    },
}

/// A step that failed.
#[derive(Debug)]
pub struct StepFailure {
    pub span: Span,
    pub label: String,
    pub text: String,
    /// What happened, in a sentence.
    pub reason: String,
    pub help: Option<String>,
    /// The last lines of what the command printed.
    pub log: Vec<String>,
    /// The build's name, under which all lines are kept, if there are more.
    pub more: Option<String>,
    /// The moment, on the clock of [`rbuild_linux::process::moment`]: of several failures it tells which was first.
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

    /// The same of a step that failed at that moment, which was before anybody here knew of it.
    pub(crate) fn happened(mut self, at: u64) -> BuildError {
        if let BuildError::Step(failure) = &mut self {
            failure.at = at;
        }
        self
    }

    /// The same of something that writes to `place`, which is not in the store: there the disk is full.
    pub(crate) fn writing_to(self, place: &Path) -> BuildError {
        if self.help().as_deref() != Some(STORE_IS_FULL) {
            return self;
        }
        let help = format!("free some space on the disk of {}, or write to another one", place.display());
        BuildError::Other { message: self.message(), help: Some(help) }
    }

    /// The sentence that says what happened.
    pub fn message(&self) -> String {
        match self {
            BuildError::Dockerfile(list) | BuildError::Unmet(list) => {
                list.first().map(|d| d.message.clone()).unwrap_or_default()
            }
            BuildError::Step(f) => f.reason.clone(),
            BuildError::Store(e) => e.to_string(),
            BuildError::Layer { what, source } => format!("{what}: {source}"),
            BuildError::Kernel { what, source } => format!("{what}: {source}"),
            BuildError::Refused(r) => r.reason.clone(),
            BuildError::Sandbox(text) => text.clone(),
            BuildError::Cancelled => "the build was stopped".into(),
            BuildError::Told => "the build failed".into(),
            BuildError::Moved => "the build context changed while it was read".into(),
            BuildError::Other { message, .. } => message.clone(),
        }
    }

    /// What to do about it.
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

impl From<SandboxError> for BuildError {
    fn from(e: SandboxError) -> BuildError {
        match e {
            SandboxError::Refused(r) => BuildError::Refused(r),
            other => BuildError::Sandbox(other.to_string()),
        }
    }
}
