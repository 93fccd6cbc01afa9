//! Remedies for errors of servers, images and the store.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{RegistryAction, Remedy};

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
    /// Create the bucket or container, or correct its name.
    CreateBucket,
    /// Check the access key of an object store and its permissions.
    CheckObjectLogin,
    /// Use another tag, or have the image pushed again.
    PushAgain,
    /// Use a tag of its own for a cache, instead of that of an image.
    UseCacheTag,
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
    /// Write the registry before a name that has none and is therefore one of Docker Hub.
    NameRegistry {
        /// The name.
        name: String,
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
    /// List the volumes.
    ListVolumes,
    /// Remove the containers that use a volume.
    RemoveUsers,
    /// Use the isolation mode of a volume.
    UseIsolation {
        /// Name of the mode.
        mode: String,
    },
}
