//! Remedies for errors, as values.
//!
//! Libraries can determine the remedy of an error, but do not name the command line that applies
//! it. They return a [`Remedy`]; the command line puts it into words. Remedies cross the boundaries
//! of processes, as part of a [`ReportedError`].

#![warn(missing_docs)]

mod areas;
mod json;
mod reported;
mod similar;

use std::error::Error;
use std::io;

use serde::{Deserialize, Serialize};

pub use areas::{
    BuildRemedy, CommandRemedy, DiskRemedy, DockerfileRemedy, ExcludingRule, FileAccess, FileRemedy, IdRangeToGrant,
    ImageRemedy, IsolationRemedy, MachineRemedy, MountRemedy, NetworkObstacle, ServerRemedy, StoreRemedy, SubIdGrant,
    SubIdObstacle,
};
pub use json::type_message;
pub use reported::ReportedError;
pub use similar::{closest, closest_file};

/// Returns the message of an error, followed by those of its causes, as one sentence. Errors of the
/// kernel are in the words of [`message`].
pub fn sentence(error: &(dyn Error + 'static)) -> String {
    let mut text = message(error);
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&message(cause));
        next = cause.source();
    }
    text
}

/// Returns the message of an error without its causes. That of an error of the kernel begins in
/// lower case and lacks the error number, as the rest of a sentence does. That of an error of JSON
/// names types of JSON.
pub fn message(error: &(dyn Error + 'static)) -> String {
    if let Some(error) = error.downcast_ref() {
        return json::message(error);
    }
    let text = error.to_string();
    let Some(errno) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) else { return text };
    let words = text.strip_suffix(&format!(" (os error {errno})")).unwrap_or(&text);
    let mut letters = words.chars();
    match (letters.next(), letters.clone().next()) {
        // Not an abbreviation, such as "RPC" or "I/O".
        (Some(first), Some(second)) if second.is_lowercase() => first.to_lowercase().chain(letters).collect(),
        _ => words.to_string(),
    }
}

/// Returns a number with a noun in the singular or plural.
///
/// ```
/// use rbuild_remedy::counted;
/// let texts = [counted(0, "byte"), counted(1, "entry"), counted(2, "entry")];
/// assert_eq!(texts, ["0 bytes", "1 entry", "2 entries"]);
/// ```
pub fn counted(number: u64, noun: &str) -> String {
    match noun.strip_suffix('y') {
        _ if number == 1 => format!("{number} {noun}"),
        Some(stem) => format!("{number} {stem}ies"),
        None => format!("{number} {noun}s"),
    }
}

/// An action that removes the cause of an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Remedy {
    /// Use another word.
    DidYouMean {
        /// The word, as it is to be written.
        word: String,
    },
    /// Use one of the possible words.
    UseOneOf {
        /// The words.
        words: Vec<String>,
    },
    /// Change the use of a disk.
    Disk(DiskRemedy),
    /// Change files, or choose others.
    File(FileRemedy),
    /// Change mounts.
    Mount(MountRemedy),
    /// Change the machine or the user.
    Machine(MachineRemedy),
    /// Permit the isolation of commands, or use another one.
    Isolation(IsolationRemedy),
    /// Change the store.
    Store(StoreRemedy),
    /// Change an image, an archive or a container.
    Image(ImageRemedy),
    /// Change a request to a server.
    Server(ServerRemedy),
    /// Change the request of a build.
    Build(BuildRemedy),
    /// Change a step.
    Command(CommandRemedy),
    /// Change the Dockerfile.
    Dockerfile(DockerfileRemedy),
}

/// A resource limit of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SessionLimit {
    /// Open files of a process.
    Files,
    /// Processes and threads.
    Processes,
}

/// A change that makes a registry answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RegistryAction {
    /// Log in to the registry, unless the name is wrong.
    LogIn,
    /// Check the login and its permissions, or log in as another user.
    CheckLogin,
    /// Log in for a higher rate limit, or configure a mirror.
    RaiseRateLimit,
    /// Install the certificate of the registry's authority.
    TrustAuthority,
    /// Allow plain HTTP for the registry.
    AllowPlainHttp,
}

impl RegistryAction {
    /// All changes.
    pub const ALL: [RegistryAction; 5] = [
        RegistryAction::LogIn,
        RegistryAction::CheckLogin,
        RegistryAction::RaiseRateLimit,
        RegistryAction::TrustAuthority,
        RegistryAction::AllowPlainHttp,
    ];
}

impl Remedy {
    /// Returns the suggestion of another word.
    pub fn did_you_mean(word: impl std::fmt::Display) -> Remedy {
        Remedy::DidYouMean { word: word.to_string() }
    }
}

/// A warning, as one sentence. `H` is the type of its remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning<H = Remedy> {
    /// The sentence.
    pub text: String,
    /// The remedy, if there is one.
    pub help: Option<H>,
}

impl<H> Warning<H> {
    /// Converts the remedy.
    pub fn convert<K: From<H>>(self) -> Warning<K> {
        Warning { text: self.text, help: self.help.map(K::from) }
    }
}

impl<H> From<String> for Warning<H> {
    fn from(text: String) -> Warning<H> {
        Warning { text, help: None }
    }
}

impl<H> From<&str> for Warning<H> {
    fn from(text: &str) -> Warning<H> {
        text.to_string().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Outer(io::Error);

    impl std::fmt::Display for Outer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("cannot read `a`")
        }
    }

    impl Error for Outer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn errors_of_the_kernel_are_in_lower_case_and_without_their_numbers() {
        let kernel = io::Error::from_raw_os_error;
        for (error, want) in [
            (kernel(28), "no space left on device"),
            (kernel(71), "protocol error"),
            (kernel(9999), "unknown error 9999"),
            (io::Error::other("Exit"), "Exit"),
            (io::Error::other("ended (os error 5)"), "ended (os error 5)"),
            (io::Error::other(Outer(kernel(13))), "cannot read `a`: permission denied"),
        ] {
            assert_eq!(sentence(&error), want);
            assert_eq!(sentence(&Outer(error)), format!("cannot read `a`: {want}"));
        }
        assert_eq!(message(&Outer(kernel(28))), "cannot read `a`");
        assert!(message(&kernel(11)).starts_with("resource temporarily unavailable"));
    }
}
