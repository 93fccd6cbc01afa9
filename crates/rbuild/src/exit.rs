//! Exit codes, and errors that are reported on the terminal.

use std::error::Error;
use std::io;

use rbuild_engine::{BuildError, SecretValues};
use rbuild_layer::LayerError;
use rbuild_linux::{KernelProblem, carried};
use rbuild_registry::{ConfigError, RegistryError};
use rbuild_remedy::{DiskRemedy, FileRemedy, Remedy, ReportedError, sentence};
use rbuild_source::SourceError;
use rbuild_store::{StoreError, remedy_of_kernel};
use rbuild_transport::TransportError;
use serde::{Deserialize, Serialize};

use crate::ui::hints::Hint;

pub mod code {
    pub const OK: u8 = 0;
    pub const FAILED: u8 = 1;
    pub const USAGE: u8 = 2;
    /// This machine does not allow the requested isolation.
    pub const REFUSED: u8 = 3;
    /// A bug in rbuild (EX_SOFTWARE of sysexits.h).
    pub const BUG: u8 = 70;
    /// Exit code of the docker command for usage errors, and of `run` for all failures of its own.
    pub const DOCKER_USAGE: u8 = 125;
    /// Exit code of a builder whose work was canceled, and of rbuild after SIGINT.
    pub const INTERRUPTED: u8 = 130;
}

/// Returns the exit code after a signal that requested the end of this process: 128 and the number
/// of the signal, as in shells.
pub fn interrupted() -> u8 {
    rbuild_linux::end_request().map_or(code::INTERRUPTED, |signal| 128 + signal as u8)
}

/// A message and an exit code. Passed between processes as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    pub code: u8,
    pub message: String,
    pub help: Option<Hint>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Failure {}

impl Failure {
    pub fn new(message: impl Into<String>) -> Failure {
        Failure { code: code::FAILED, message: message.into(), help: None }
    }

    /// Returns a failure with the exit code for usage errors.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure { code: code::USAGE, ..Failure::new(message) }
    }

    /// Returns the failure for a signal that requested the end of the program.
    pub fn interrupted() -> Failure {
        Failure { code: interrupted(), ..Failure::new("interrupted") }
    }

    /// Returns true if the failure is that of an interruption.
    pub fn is_interruption(&self) -> bool {
        self.code == interrupted()
    }

    /// Returns a failure with its cause: the message of `cause` follows `message`, and its remedy
    /// is the help.
    pub fn caused(message: impl std::fmt::Display, cause: &(dyn Error + 'static)) -> Failure {
        Failure::new(format!("{message}: {}", sentence(cause))).because(cause)
    }

    /// Returns the failure for data that could not be written to standard output.
    pub fn lost_output(cause: &io::Error) -> Failure {
        let failure = Failure::caused("cannot write to standard output", cause);
        if rbuild_linux::is_disk_full(cause) { failure.help(Remedy::Disk(DiskRemedy::FreeOutput)) } else { failure }
    }

    /// Adds the hint of a remedy, printed below the message.
    pub fn help(mut self, remedy: impl Into<Hint>) -> Failure {
        self.help = Some(remedy.into());
        self
    }

    /// Sets the help to the remedy of the cause, if it has one.
    pub fn because(self, cause: &(dyn Error + 'static)) -> Failure {
        Failure { help: remedy_of(cause).as_ref().map(Hint::from).or(self.help), ..self }
    }

    /// Masks the values of secrets.
    pub fn masked(self, values: &SecretValues) -> Failure {
        Failure { message: values.mask(self.message), help: self.help.map(|help| help.masked(values)), ..self }
    }

    /// Returns the failure with the exit code for usage errors of the docker command.
    pub fn of_docker(self) -> Failure {
        Failure { code: code::DOCKER_USAGE, ..self }
    }

    /// Returns the failure as one of a verb. That of `run` has another exit code than the command
    /// that it runs, as in docker.
    pub fn of_verb(self, verb: &str) -> Failure {
        let is_own = matches!(self.code, code::FAILED | code::USAGE | code::REFUSED);
        if verb == "run" && is_own { self.of_docker() } else { self }
    }

    /// Prints the message and returns the exit code.
    pub fn report(&self) -> u8 {
        crate::ui::terminal::error(&self.message, self.help.as_ref());
        self.code
    }
}

/// Converts an error to the form in which this process reports it to another.
pub fn reported(error: &(dyn Error + 'static), remedy: Option<Remedy>) -> ReportedError {
    ReportedError { message: sentence(error), errno: errno_of(error), remedy }
}

/// Returns the errno in a chain of errors, if there is one. Transparent errors do not list their
/// inner error as a source, so it is searched separately.
fn errno_of(error: &(dyn Error + 'static)) -> Option<i32> {
    let own = |error: &(dyn Error + 'static)| match error.downcast_ref::<io::Error>() {
        Some(e) => e.raw_os_error().or_else(|| carried::<rbuild_linux::Error>(e)?.errno()),
        None => match (error.downcast_ref(), error.downcast_ref::<StoreError>(), error.downcast_ref::<KernelProblem>())
        {
            (Some(TransportError::Store(e)), ..) | (_, Some(e), _) => e.errno(),
            (.., Some(e)) => e.whole().errno(),
            _ => match error.downcast_ref() {
                Some(BuildError::Dockerfile(list) | BuildError::Unmet(list)) => list.first()?.errno,
                _ => error.downcast_ref::<rbuild_linux::Error>()?.errno(),
            },
        },
    };
    std::iter::successors(Some(error), |error| (*error).source()).find_map(own)
}

#[cfg(test)]
impl Failure {
    /// Returns the text that [`Failure::report`] prints on a terminal without colors.
    pub fn text(&self) -> String {
        crate::ui::terminal::error_text(&self.message, self.help.as_ref(), false)
    }
}

/// Returns the remedy of the first error in the chain that has one. For a full disk, this is the
/// remedy for the disk of the store.
fn remedy_of(error: &(dyn Error + 'static)) -> Option<Remedy> {
    let mut next = Some(error);
    while let Some(error) = next {
        let remedy = if let Some(e) = error.downcast_ref::<io::Error>() {
            LayerError::remedy_of_io(e).or_else(|| of_kind(e.kind()))
        } else if let Some(e) = error.downcast_ref::<rbuild_linux::Error>() {
            remedy_of_kernel(e).or_else(|| of_kind(e.kind()))
        } else if let Some(SourceError::Kernel(e)) = error.downcast_ref() {
            remedy_of_kernel(e).or_else(|| of_kind(e.kind()))
        } else if let Some(e) = error.downcast_ref::<LayerError>() {
            if e.is_disk_full() { Some(Remedy::Disk(DiskRemedy::FreeSpace)) } else { e.remedy() }
        } else {
            None
        };
        if remedy.is_some() {
            return remedy;
        }
        next = error.source();
    }
    None
}

fn of_kind(kind: io::ErrorKind) -> Option<Remedy> {
    match kind {
        io::ErrorKind::PermissionDenied => Some(FileRemedy::CheckPermissions.into()),
        _ => None,
    }
}

/// Returns the exit code for a build error.
pub fn build_code(e: &BuildError) -> u8 {
    match e {
        BuildError::Dockerfile(_) => code::USAGE,
        BuildError::Refused(_) => code::REFUSED,
        BuildError::Canceled => interrupted(),
        _ => code::FAILED,
    }
}

/// Returns the hint for a build error.
pub fn help_of(e: &BuildError) -> Option<Hint> {
    match e {
        BuildError::Caller(e) => e.downcast_ref::<Failure>()?.help.clone(),
        e => e.help().as_ref().map(Hint::from),
    }
}

impl From<BuildError> for Failure {
    fn from(e: BuildError) -> Failure {
        match e {
            BuildError::Caller(e) => match e.downcast::<Failure>() {
                Ok(failure) => *failure,
                Err(e) => Failure::new(sentence(&*e)),
            },
            e => Failure { code: build_code(&e), message: e.message(), help: help_of(&e) },
        }
    }
}

impl From<TransportError> for Failure {
    fn from(e: TransportError) -> Failure {
        BuildError::from(e).into()
    }
}

impl From<StoreError> for Failure {
    fn from(e: StoreError) -> Failure {
        Failure { code: code::FAILED, message: sentence(&e), help: e.remedy().as_ref().map(Hint::from) }
    }
}

impl From<RegistryError> for Failure {
    fn from(e: RegistryError) -> Failure {
        let help = e.remedy().as_ref().map(Hint::from);
        Failure { code: code::FAILED, message: e.message(), help }
    }
}

impl From<ConfigError> for Failure {
    fn from(e: ConfigError) -> Failure {
        Failure { code: code::FAILED, message: sentence(&e), help: e.remedy().as_ref().map(Hint::from) }
    }
}

impl From<rbuild_sandbox::SandboxError> for Failure {
    fn from(e: rbuild_sandbox::SandboxError) -> Failure {
        BuildError::from(e).into()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_error_number_of_a_diagnostic_is_reported() {
        let d = rbuild_dockerfile::Diagnostic::new(Default::default(), "pulling `debian` failed");
        let of = |errno| BuildError::Unmet(vec![rbuild_dockerfile::Diagnostic { errno, ..d.clone() }]);
        assert_eq!([None, Some(28)].map(|errno| reported(&of(errno), None).errno), [None, Some(28)]);
    }

    #[test]
    fn a_reported_error_keeps_its_error_number_and_its_remedy() {
        let io = |errno: nix::errno::Errno| io::Error::from_raw_os_error(errno as i32);
        let kernel = || rbuild_linux::Error::new("write", Path::new("/s/b"), io(nix::errno::Errno::ENOSPC));
        let place = rbuild_registry::RemoteRepository { registry: "r.io".into(), repository: "a".into() };
        let local = rbuild_registry::RegistryProblem::Local { data: "the layer", source: io::Error::from(kernel()) };
        let layout = TransportError::OpenLayout { layout: "/l".into(), source: kernel().without_object() };
        for e in [
            TransportError::Store(kernel().into()),
            TransportError::Store(StoreError::Unusable { path: "/s".into(), source: io(nix::errno::Errno::ENOSPC) }),
            TransportError::Registry(RegistryError::new(place, local)),
            layout,
        ] {
            let reported = reported(&e, e.help());
            assert_eq!((&reported.message, &reported.remedy), (&e.message(), &e.help()));
            assert_eq!(reported.errno, Some(nix::errno::Errno::ENOSPC as i32), "{e:?}");
            let sent = serde_json::to_string(&reported).unwrap();
            assert_eq!(serde_json::from_str::<ReportedError>(&sent).unwrap(), reported);
        }
    }

    #[test]
    fn the_hints_of_failures_are_as_recorded() {
        let io = |errno: nix::errno::Errno| io::Error::from_raw_os_error(errno as i32);
        let kernel = |errno| rbuild_linux::Error::new("openat", Path::new("/d/f"), io(errno));
        let archive =
            LayerError::LimitExceeded { problem: "the archive has more than 10 entries".into(), name: Some("entries") };
        let causes: [Box<dyn Error>; 9] = [
            Box::new(io(nix::errno::Errno::ENOSPC)),
            Box::new(io(nix::errno::Errno::EMFILE)),
            Box::new(io(nix::errno::Errno::EACCES)),
            Box::new(io(nix::errno::Errno::EIO)),
            Box::new(io::Error::from(kernel(nix::errno::Errno::EMFILE))),
            Box::new(SourceError::Kernel(kernel(nix::errno::Errno::EACCES))),
            Box::new(kernel(nix::errno::Errno::ENOSPC)),
            Box::new(io::Error::other(archive)),
            Box::new(LayerError::NotTar),
        ];
        let files = causes.iter().map(|cause| Failure::caused("cannot read the file", &**cause));
        let outputs = [nix::errno::Errno::ENOSPC, nix::errno::Errno::EIO].map(|e| Failure::lost_output(&io(e)));
        rbuild_testkit::assert_recorded!(
            "Failure",
            files.chain(outputs).map(|failure| failure.text()).collect::<String>()
        );
        let own = Failure::new("x").help(Remedy::did_you_mean("own"));
        assert_eq!(own.clone().because(&io(nix::errno::Errno::EIO)).help, own.help);
    }
}
