//! Remedies by area.

use std::borrow::Cow;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{RegistryAction, Remedy, SessionLimit};

/// A change of files, or another choice of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileRemedy {
    /// Remove the symbolic link that refers to itself.
    RemoveLinkLoop,
    /// Shorten the name.
    ShortenName,
    /// Rename or remove a file that has the name of a whiteout.
    RenameOrRemove,
    /// Rename a file that would be read as a whiteout, if it is meant as a file.
    RenameWhiteout,
    /// Permit the user an operation on a file.
    Permit {
        /// The operation.
        access: FileAccess,
        /// The file.
        path: PathBuf,
    },
    /// Permit the user to execute a program.
    PermitProgram {
        /// The program.
        program: String,
    },
    /// Check the permissions of a file and of its directories.
    CheckPermissions,
    /// Use a file on a writable file system.
    WritableFileSystem,
    /// Correct the content.
    Correct {
        /// The file or the variable, as messages name it.
        place: String,
    },
    /// End the program that keeps the file locked, or try again later.
    AwaitLock,
    /// Choose another directory.
    OtherDirectory,
    /// Create the directory, or remove the trailing slash.
    CreateDirectory,
    /// Pass a directory, existing or new.
    PassDirectory,
    /// Pass the path of the special file itself, or choose another destination.
    PassSpecialFile,
    /// Choose another destination.
    ChooseDestination,
    /// End the destination with a slash if it is a directory.
    EndWithSlash,
    /// Correct a pattern of an ignore file.
    CorrectPattern,
    /// Remove the pattern that excludes a file from the ignore file.
    RemovePattern,
    /// Exclude the store from the build context.
    IgnoreStore {
        /// Path in the context.
        path: String,
    },
    /// Use a store outside the build context.
    MoveStore,
    /// Permit the user to read a file of the build context, or exclude it.
    PermitOrIgnore {
        /// The file.
        path: PathBuf,
    },
    /// Copy a file into the root that its link leads out of.
    CopyInto {
        /// The root, as messages name it.
        root: String,
    },
    /// Correct a link, or remove it from the instruction.
    CorrectLink,
    /// Wait until nothing writes to the files.
    AwaitWriters,
    /// Correct a path that does not exist.
    CorrectPath {
        /// The root that the path is relative to.
        root: String,
    },
    /// Remove what is in the way of an output, or use another output directory.
    OtherOutput {
        /// The kind of file that is in the way.
        obstacle: Cow<'static, str>,
    },
}

/// An operation on a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FileAccess {
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Locking.
    Lock,
}

/// A change of mounts, or of what they cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MountRemedy {
    /// Give each mount its own target.
    OwnTarget,
    /// Use another target, or remove the file from the image.
    RemoveFile,
    /// Replace the link in the image.
    ReplaceLink,
    /// Mount the directory of the file instead.
    MountDirectory,
    /// Use another target for a mount.
    OtherTarget,
    /// Mount the volume read-only.
    ReadOnlyVolume,
    /// Mount another directory of a cache, or all of it.
    OtherCacheDirectory,
}

/// A change of the machine, or of the user that rbuild runs as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MachineRemedy {
    /// Create a character device.
    CreateDevice {
        /// Name in `/dev`.
        name: Cow<'static, str>,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Raise the hard limit on message queues.
    RaiseQueueLimit,
    /// Grant sub-IDs, or start rbuild outside the program that intercepts its system calls.
    LeaveInterceptor,
    /// Choose another isolation mode, or run rbuild as root of a container.
    OtherMode,
    /// Run rbuild as root of a container, or permit user namespaces.
    BecomeRoot,
    /// Grant the container the missing capability, or run rbuild as an ordinary user.
    GrantCapability,
    /// Run rbuild as an ordinary user with sub-IDs, or in a namespace that maps ID 0.
    BecomeOrdinary,
    /// Grant the user sub-IDs.
    GrantSubIds(SubIdGrant),
    /// Grant the user more sub-IDs, so that images with higher IDs can be unpacked.
    GrantMoreSubIds {
        /// Their number.
        count: u32,
        /// The IDs.
        grant: SubIdGrant,
    },
    /// Install the programs that map sub-IDs.
    InstallSubIdHelpers,
    /// Restore the set-uid bit of a program.
    RestoreSetUid {
        /// The program.
        program: PathBuf,
    },
    /// Use a newer kernel, and a seccomp profile that permits clone3(2).
    PermitClone,
    /// Install an emulator for a platform, or build on a machine of that platform.
    InstallEmulator,
    /// Build on a machine of the platform, which cannot be emulated.
    BuildOnPlatform,
    /// Upgrade the kernel.
    UpgradeKernel,
    /// Make sub-IDs usable, or use the isolation mode that needs none.
    OrSingleId(SubIdObstacle),
    /// Make a private network possible, or use a network that needs no other program.
    OrOtherNetwork(NetworkObstacle),
    /// Raise a resource limit of the session that rbuild runs in.
    RaiseSessionLimit {
        /// The limit.
        limit: SessionLimit,
    },
    /// Check if the machine ran out of memory.
    CheckMemory,
}

/// Sub-IDs that a user needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubIdGrant {
    /// Name of the user, or its ID.
    pub user: String,
    /// User IDs, if they are needed.
    pub uids: Option<IdRangeToGrant>,
    /// Group IDs, if they are needed.
    pub gids: Option<IdRangeToGrant>,
}

/// A range of IDs that can be granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum IdRangeToGrant {
    /// A free range, by its first and its last ID.
    Free(u32, u32),
    /// No free range is known.
    Unknown,
}

/// The reason why sub-IDs cannot be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SubIdObstacle {
    /// no_new_privs is set.
    NoNewPrivileges,
    /// The programs are on a file system that is mounted with nosuid.
    NoSetUid,
}

/// The reason why a private network is impossible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NetworkObstacle {
    /// No program that carries the traffic is installed.
    NoCarrier,
    /// The TUN device does not exist.
    NoTun,
    /// The user may not open the TUN device.
    DeniedTun,
}

/// A change of a request to a server, or of the settings for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerRemedy {
    /// Try again.
    TryAgain,
    /// Try again later, or contact the operator of the registry.
    AwaitRegistry,
    /// Try again later, or contact the operator of the server.
    AwaitServer,
    /// Check the name and the tag of an image.
    CheckTag,
    /// Check the name, or create the repository.
    CreateRepository,
    /// Use another tag, or have the image pushed again.
    PushAgain,
    /// Push to a tag instead of a digest.
    PushToTag,
    /// Check the address of the registry.
    CheckRegistry,
    /// Check the address of the file.
    CheckAddress,
    /// Check the user name and the password.
    CheckPassword,
    /// Check the login for a server.
    CheckLogin,
    /// Install the certificate of the server's authority.
    TrustAuthority {
        /// The server.
        host: String,
    },
    /// Remove the rule that blocks the registry.
    RemoveRule {
        /// The file with the rule, as messages name it.
        file: String,
    },
    /// Convert the image to a supported format.
    ConvertImage,
    /// Install the credential helper, or remove it from the file.
    InstallHelper,
    /// Check the credential helper, or log in again.
    CheckHelper,
    /// Remove a login.
    RemoveLogin {
        /// The file or the variable with the login, as messages name it.
        place: String,
    },
    /// Set the variable HOME.
    SetHome,
    /// Correct the configuration of registries.
    CorrectRegistries,
    /// Correct the variable with the address of the proxy.
    CorrectProxy,
    /// Name a registry by its host.
    UseHost,
    /// Write the name of an image with its registry.
    WriteRegistry {
        /// A name with a registry.
        example: String,
    },
    /// Check the connection to a server.
    CheckNetwork,
    /// Check the port and the program that listens on it: the machine refused the connection.
    CheckPort,
    /// Log in to the registry, unless another name was meant.
    LogInOrCorrectName {
        /// Host of the registry.
        registry: String,
        /// The name of a stored image or of a stage that may have been meant.
        name: String,
    },
    /// Change something about a registry.
    Registry {
        /// Host of the registry.
        registry: String,
        /// The change.
        action: RegistryAction,
    },
}

/// A change of an image, an archive or a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageRemedy {
    /// Write the name of an image in its form.
    CorrectName,
    /// Use a longer prefix of the ID.
    LongerPrefix,
    /// Use a digest.
    UseDigest,
    /// Check the source of a file, or correct its checksum.
    CheckSource,
    /// Convert the layers to tar.
    ConvertLayers,
    /// Write to another directory, or remove the damaged layout.
    OtherLayout,
    /// Pass a tar archive.
    PassTar,
    /// Remove the damaged image and obtain it again.
    ReplaceImage,
    /// Bring an image of this name into the store.
    ObtainImage {
        /// The name by which it was requested.
        name: String,
    },
    /// Write the whole ID of an image instead of a prefix.
    WriteWholeId {
        /// The ID.
        id: String,
    },
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
    /// Load the file as an image, not as a root file system.
    LoadArchive,
    /// Import the file as a root file system, not as an image.
    ImportFiles,
    /// Pass an archive, as a file or through a pipe.
    PassArchive,
    /// Obtain an archive again that is damaged or incomplete.
    TransferAgain,
    /// Load the image that the incomplete archive is based on.
    LoadBase,
    /// Select a platform that is available.
    SelectPlatform {
        /// A platform that is available.
        platform: String,
    },
    /// Raise a limit on archives.
    RaiseLimit {
        /// Name of the limit.
        name: String,
    },
    /// Remove the reason why the registry was not contacted, or use the image of the store.
    UseStoredImage {
        /// Removal of the reason.
        first: Option<Box<Remedy>>,
    },
}

/// A change of a step, or of the files that its command needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandRemedy {
    /// Give the account a valid ID in an earlier step.
    ValidAccountId,
    /// Use a numeric ID, or add the account in an earlier step.
    AddAccount,
    /// Use a numeric ID, or an image with that account.
    OtherAccount,
    /// Correct the JSON form, or use the shell form.
    CorrectJson {
        /// The mistake.
        mistake: String,
    },
    /// Make the program executable (exit code 126).
    MakeExecutable,
    /// Install the program, or correct its path or its script (exit code 127).
    InstallProgram,
    /// Use an image with a shell, or the form of the command that needs none.
    UseImageWithShell,
    /// Install a program that does not exist, or correct its name or PATH.
    ProvideProgram,
    /// Check if the machine ran out of memory (exit code 137).
    CheckMemoryOfCode,
    /// Find the cause of the signal that the exit code stands for.
    FindSignal {
        /// The exit code.
        code: i32,
    },
    /// Pass the number of a stage.
    PassStageNumber,
    /// Add the key to an SSH agent and pass its socket.
    AddKeyToAgent,
    /// Convert a key to the format of OpenSSH.
    ConvertKey,
    /// Open a shell in the container of the command that failed.
    InspectFailure,
    /// Raise the resource limits of the command.
    RaiseUlimits {
        /// The limits that were set.
        limits: String,
    },
}

/// Space on a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskRemedy {
    /// Free space on the disk of the store.
    FreeSpace,
    /// Free space on the disk of the store, which is full, or use another disk.
    FreeStore,
    /// Free space on another disk, or use another disk.
    FreeSpaceAt {
        /// A path on the full disk.
        place: PathBuf,
    },
    /// Free space on the disk to which standard output or standard error goes.
    FreeOutput,
}

/// A change that permits the isolation of commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum IsolationRemedy {
    /// Grant more user or group IDs, or use an isolation mode that needs only one.
    GrantIds {
        /// The file that grants them.
        file: Cow<'static, str>,
    },
    /// Use a lower user or group ID.
    LowerId {
        /// The highest ID.
        most: u32,
    },
    /// Omit the network.
    OmitNetwork,
    /// Permit unprivileged user namespaces by a kernel setting.
    PermitNamespaces {
        /// The setting and its value, for sysctl(8).
        setting: Cow<'static, str>,
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
}

/// A change of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoreRemedy {
    /// Use another directory for the store.
    OtherStore,
    /// Use a directory without files, or one that does not exist.
    EmptyDirectory,
    /// Load the images of an OCI layout into a store elsewhere.
    LoadLayout {
        /// The layout.
        dir: PathBuf,
    },
    /// Run the command as the owner of the store, or use another directory for the store.
    BecomeOwner {
        /// Name of the owner, or the number of one without a name.
        user: String,
    },
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
    /// Remove what is damaged in the store, and obtain the image again.
    RepairStore,
    /// End the program that holds this lock, or wait longer for it.
    EndLockHolder {
        /// File name of the lock in the store.
        lock: String,
    },
    /// Try again when the other builds have finished.
    AwaitBuilds,
    /// Mount the file system of the store with relatime or noatime, or move the store.
    RelaxAccessTimes,
}

/// A change of the request of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BuildRemedy {
    /// Use the time of a commit, in seconds since 1970.
    TimeOfCommit,
    /// Give a command to run.
    GiveCommand,
    /// Give the argument a default value, or a value for this build.
    SetArgument,
    /// Declare the argument.
    DeclareArgument {
        /// Name of the argument.
        name: String,
    },
    /// Grant an entitlement to the Dockerfile.
    Allow {
        /// Name of the entitlement.
        entitlement: Cow<'static, str>,
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
}

/// A change of the Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DockerfileRemedy {
    /// Move a stage above its use.
    MoveStage,
    /// Move a stage above its use, or give it another name than that of the image that is meant.
    MoveOrRenameStage,
    /// Remove the option of a RUN that names a device.
    RemoveDevice,
    /// Remove the directive that names another frontend.
    RemoveSyntax,
    /// Write a flag with two dashes.
    WriteFlag,
    /// Use ADD for a URL.
    UseAdd,
    /// Use the JSON form for a name with spaces.
    UseJsonForm {
        /// The name.
        name: String,
    },
    /// Separate the items of the JSON form, or escape the bracket of a pattern.
    SeparateItems,
    /// Escape the bracket of a pattern.
    EscapeBracket,
    /// Name the path that a link leads to.
    NameLinkTarget,
}

/// Converts the remedies of areas.
macro_rules! areas {
    ($($variant:ident: $area:ty),*) => {
        $(impl From<$area> for Remedy {
            fn from(remedy: $area) -> Remedy {
                Remedy::$variant(remedy)
            }
        })*
    };
}

areas!(
    Disk: DiskRemedy,
    File: FileRemedy,
    Mount: MountRemedy,
    Machine: MachineRemedy,
    Isolation: IsolationRemedy,
    Store: StoreRemedy,
    Image: ImageRemedy,
    Server: ServerRemedy,
    Build: BuildRemedy,
    Command: CommandRemedy,
    Dockerfile: DockerfileRemedy
);
