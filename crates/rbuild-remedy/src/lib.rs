//! Remedies for errors, as values.
//!
//! Libraries can determine the remedy of an error, but do not name the command line that applies
//! it. They return a [`Remedy`]; the command line puts it into words.

#![warn(missing_docs)]

mod areas;
mod similar;

use std::error::Error;
use std::path::PathBuf;

pub use areas::{
    CommandRemedy, FileAccess, FileRemedy, IdRangeToGrant, ImageRemedy, MachineRemedy, MountRemedy, NetworkObstacle,
    ServerRemedy, SubIdGrant, SubIdObstacle,
};
pub use similar::{closest, closest_file};

/// Returns the message of an error, followed by those of its causes, as one sentence.
pub fn sentence(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remedy {
    /// Change files, or choose others.
    File(FileRemedy),
    /// Change mounts.
    Mount(MountRemedy),
    /// Change the machine or the user.
    Machine(MachineRemedy),
    /// Change a request to a server.
    Server(ServerRemedy),
    /// Change an image, an archive or the store.
    Image(ImageRemedy),
    /// Change a step.
    Command(CommandRemedy),
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
    /// Use the time of a commit, in seconds since 1970.
    TimeOfCommit,
    /// Free space on the disk of the store.
    FreeSpace,
    /// Free space on another disk, or use another disk.
    FreeSpaceAt {
        /// A path on the full disk.
        place: PathBuf,
    },
    /// Free space on the disk to which standard output or standard error goes.
    FreeOutput,
    /// Use another directory for the store.
    OtherStore,
    /// Correct the owner or the mode of a file of the store, or use another directory.
    OwnStore,
    /// Use a newer program, or another directory for the store.
    NewerProgram,
    /// Remove the damaged file that states the store's format, so that it is written again.
    RemoveFormat {
        /// The file.
        file: PathBuf,
    },
    /// Restore the owners and attributes of the files of the store, or empty it.
    RestoreStore,
    /// Remove the damaged image and obtain it again.
    ReplaceImage,
    /// Remove what is damaged in the store, and obtain the image again.
    RepairStore,
    /// End the program that holds this lock, or wait longer for it.
    EndLockHolder {
        /// File name of the lock in the store.
        lock: String,
    },
    /// Bring an image of this name into the store.
    ObtainImage {
        /// The name by which it was requested.
        name: String,
    },
    /// Write the whole ID of an image, of which a prefix was given.
    WriteWholeId {
        /// The ID.
        id: String,
    },
    /// Correct a path that does not exist.
    CorrectPath {
        /// The root that the path is relative to.
        root: String,
    },
    /// Remove what is in the way of an output, or use another output directory.
    OtherOutput {
        /// The kind of file that is in the way.
        obstacle: &'static str,
    },
    /// Use another target for a mount.
    OtherTarget,
    /// List the images with their digests.
    ListImages,
    /// List the files of the image.
    ListFiles,
    /// Remove the container that uses the image.
    FreeImage {
        /// Name of the container.
        container: String,
    },
    /// Remove the names of an image one by one, or all at once.
    UntagEach,
    /// Remove the container, or choose another name.
    RemoveContainer {
        /// Name of the container.
        name: String,
    },
    /// Give a command to run.
    GiveCommand,
    /// Load the file as an image, not as a root file system.
    LoadArchive,
    /// Import the file as a root file system, not as an image.
    ImportFiles,
    /// Obtain an archive again that is damaged or incomplete.
    TransferAgain,
    /// Load the image that the incomplete archive is based on.
    LoadBase,
    /// Select a platform that is available.
    SelectPlatform {
        /// A platform that is available.
        platform: String,
    },
    /// Grant more user or group IDs, or use an isolation mode that needs only one.
    GrantIds {
        /// The file that grants them.
        file: std::borrow::Cow<'static, str>,
    },
    /// Use a lower user or group ID.
    LowerId {
        /// The highest ID.
        most: u32,
    },
    /// Raise a limit on archives.
    RaiseLimit {
        /// Name of the limit.
        name: String,
    },
    /// Raise a resource limit of the session that rbuild runs in.
    RaiseSessionLimit {
        /// The limit.
        limit: SessionLimit,
    },
    /// Check whether the machine ran out of memory.
    CheckMemory,
    /// Check the connection to a server.
    CheckNetwork,
    /// Open a shell in the container of the command that failed.
    InspectFailure,
    /// Raise the resource limits of the command.
    RaiseUlimits {
        /// The limits that were set.
        limits: String,
    },
    /// Give the argument a default value, or a value for this build.
    SetArgument,
    /// Grant an entitlement to the Dockerfile.
    Allow {
        /// Name of the entitlement.
        entitlement: &'static str,
    },
    /// Read the secret from its mount, or allow its value in the image.
    KeepSecretOut,
    /// Pass a secret to the build.
    PassSecret {
        /// ID of the secret.
        id: String,
    },
    /// Pass an SSH agent to the build.
    PassAgent {
        /// ID of the agent.
        id: String,
    },
    /// Pass the optional secrets and agents that a command was run without.
    PassMissing {
        /// IDs of the secrets.
        secrets: Vec<String>,
        /// IDs of the agents.
        agents: Vec<String>,
    },
    /// Pass a build context.
    PassContext,
    /// Omit the network.
    OmitNetwork,
    /// Mount the volume read-only.
    ReadOnlyVolume,
    /// Permit unprivileged user namespaces by a kernel setting.
    PermitNamespaces {
        /// The setting and its value, for sysctl(8).
        setting: &'static str,
    },
    /// Start the surrounding container with an unmasked /proc.
    UnmaskProc,
    /// Start the surrounding container without a seccomp profile.
    UnconfineSeccomp,
    /// Remove what a security module or a seccomp profile denies.
    FindDenial,
    /// Check the programs and files that grant sub-IDs.
    CheckSubIds,
    /// Mount a procfs.
    MountProc,
    /// Remove the reason why the registry was not contacted, or use the image of the store.
    UseStoredImage {
        /// Removal of the reason, as an imperative.
        first: Option<String>,
    },
    /// Change something about a registry.
    Registry {
        /// Host of the registry.
        registry: String,
        /// The change.
        action: RegistryAction,
    },
}

/// A resource limit of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SessionLimit {
    /// Open files of a process.
    Files,
    /// Processes and threads.
    Processes,
}

/// A change that makes a registry answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
