//! Errors of the store.

use std::error::Error;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rbuild_image::{BlobDigest, DiffId};
use rbuild_layer::LayerError;
use rbuild_linux::RootDir;
use rbuild_remedy::{DiskRemedy, ImageRemedy, Remedy, ReportedError, StoreRemedy};

/// The result of an operation on the store.
pub type Result<T> = std::result::Result<T, StoreError>;

/// An error of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error(transparent)]
    Kernel(rbuild_linux::Error),
    /// A layer could not be packed or unpacked.
    #[error(transparent)]
    Layer(#[from] rbuild_layer::LayerError),
    /// The store's directory cannot be created, opened or written.
    #[error("cannot use the store {}", rbuild_linux::quoted(.path))]
    Unusable { path: PathBuf, source: std::io::Error },
    /// The directory is not a store and contains other files.
    #[error(
        "cannot create a store in {}: the directory contains other files, such as {}",
        rbuild_linux::quoted(.path),
        rbuild_linux::quoted(Path::new(.entry))
    )]
    OtherDirectory { path: PathBuf, entry: OsString },
    /// The directory is an OCI layout that is not a store.
    #[error("cannot create a store in {}: the directory is an OCI layout", rbuild_linux::quoted(.0))]
    OciLayout(PathBuf),
    /// The store belongs to another user, and root would leave files in it that the owner cannot
    /// change.
    #[error("cannot use the store {} as root: it belongs to user {owner}", rbuild_linux::quoted(.path))]
    OfUser { path: PathBuf, owner: String },
    /// A newer program wrote the store.
    #[error(
        "cannot use the store {}: it was written by a newer rbuild (version {version}{})",
        rbuild_linux::quoted(.path), if features.is_empty() { String::new() } else { format!(", features: {features}") }
    )]
    Newer { path: PathBuf, version: u32, features: String },
    /// A document or blob is invalid.
    #[error("the store's {object} is damaged")]
    Damaged { object: String, source: Box<dyn Error + Send + Sync> },
    /// The document that states the store's format is invalid, so that the store cannot be opened.
    #[error("cannot use the store {}: its format.json is damaged", rbuild_linux::quoted(.path))]
    NoFormat { path: PathBuf, source: Box<dyn Error + Send + Sync> },
    /// There is no such blob.
    #[error("the store has no blob {0}")]
    NoBlob(BlobDigest),
    /// The bytes of a layer do not have the digest that names them.
    #[error("layer {blob} is corrupt: its digest is {found}")]
    WrongDigest { blob: BlobDigest, found: BlobDigest },
    /// A layer is not a valid archive, although its bytes have the digest that names them.
    #[error("layer {blob} cannot be unpacked")]
    InvalidLayer { blob: BlobDigest, source: LayerError },
    /// The content of a layer does not have the diffID that the image configuration states.
    #[error("layer {blob} has diffID {found}; the image configuration expects {expected}")]
    WrongDiffId { blob: BlobDigest, expected: DiffId, found: DiffId },
    /// There is no such image.
    #[error("image `{0}` not found in the local store")]
    NoImage(String),
    /// The name matches several images.
    #[error("`{name}` is ambiguous; it matches {found}")]
    Ambiguous { name: String, found: String },
    /// The image has names in several repositories, and was specified by its ID or digest.
    #[error("image `{image}` has names in several repositories: {names}")]
    SeveralNames { image: String, names: String },
    /// The container name is in use.
    #[error("container name `{0}` is already in use")]
    NameTaken(String),
    /// There is no such volume.
    #[error("volume `{0}` not found")]
    NoVolume(String),
    /// Containers mount the volume.
    #[error("volume `{0}` is in use by a container")]
    VolumeInUse(String),
    /// The files of a volume have owners of another isolation mode.
    #[error("the files of volume `{volume}` belong to isolation mode {mode}")]
    OtherIsolation { volume: String, mode: String },
    /// Other processes use the store. The text lists them.
    #[error("the store is in use by {0}")]
    Busy(String),
    /// A program other than rbuild held a lock for longer than `LockWaiting::foreign`.
    #[error("the store's {lock} is held by {holder}, which is not rbuild")]
    Held { lock: &'static str, holder: String },
    /// A program that may be rbuild holds a lock, and did no work for as long as
    /// `LockWaiting::foreign`.
    #[error("the store's {lock} is held by {holder}, which has made no progress")]
    Idle { lock: &'static str, holder: String },
    /// The store was copied without owners or attributes of its files.
    #[error("the store's files have lost their {0}: they were copied without them, or the user's sub-IDs have changed")]
    LostMetadata(&'static str),
    /// An image cannot be removed, because a container uses it.
    #[error("image `{name}` is used by container `{container}`")]
    UsedImage {
        /// The image as it was named by the caller.
        name: String,
        /// Name of the container.
        container: String,
    },
    /// A manifest, configuration or index is too large to be read into memory.
    #[error("the image's document {digest} is larger than {} MiB", .limit >> 20)]
    LargeDocument {
        /// The document.
        digest: BlobDigest,
        /// Maximum size in bytes.
        limit: u64,
    },
    /// The file system updates access times on every read (strictatime), which overwrites the
    /// owners recorded in them.
    #[error(
        "the store's file system updates access times on every read (strictatime), \
         which would overwrite the recorded owners of links"
    )]
    AccessTimes,
    /// An image could not be downloaded.
    #[error(transparent)]
    DownloadFailed(ReportedError),
    /// A blob that was read while it arrived has the wrong digest, or its pull has failed, and the
    /// blob is downloaded again.
    #[error("a blob that was being downloaded is downloaded again")]
    DownloadRestarted,
    /// The build was canceled while it waited for another one.
    #[error("the build was canceled while it waited for another one")]
    Canceled,
}

impl StoreError {
    /// Returns a function that converts the reason why a document or blob is invalid: a text, or an
    /// error.
    pub fn damaged<E: Into<Box<dyn Error + Send + Sync>>>(object: impl Into<String>) -> impl FnOnce(E) -> StoreError {
        let object = object.into();
        move |source| StoreError::Damaged { object, source: source.into() }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, StoreError::Kernel(e) if e.is_not_found())
    }

    /// Returns true if no space, or no quota, is left.
    pub fn is_disk_full(&self) -> bool {
        match self {
            StoreError::Kernel(e) => e.is_disk_full(),
            StoreError::Layer(e) => e.is_disk_full(),
            StoreError::Unusable { source, .. } => rbuild_linux::is_disk_full(source),
            _ => false,
        }
    }

    /// Returns the error number of the kernel, if the kernel refused an operation.
    pub fn errno(&self) -> Option<i32> {
        match self {
            StoreError::Kernel(e) => e.errno(),
            StoreError::Layer(e) => e.errno(),
            StoreError::Unusable { source, .. } => source.raw_os_error(),
            StoreError::DownloadFailed(e) => e.errno,
            _ => None,
        }
    }

    /// Returns the remedy, if there is one.
    pub fn remedy(&self) -> Option<Remedy> {
        match self {
            StoreError::Unusable { .. } if self.is_disk_full() => Some(Remedy::Disk(DiskRemedy::FreeSpace)),
            StoreError::Unusable { .. } => Some(Remedy::Store(StoreRemedy::OtherStore)),
            StoreError::OciLayout(dir) => Some(StoreRemedy::LoadLayout { dir: dir.clone() }.into()),
            StoreError::OtherDirectory { .. } => Some(Remedy::Store(StoreRemedy::EmptyDirectory)),
            StoreError::OfUser { owner, .. } => Some(Remedy::Store(StoreRemedy::BecomeOwner { user: owner.clone() })),
            StoreError::Newer { .. } => Some(Remedy::Store(StoreRemedy::NewerProgram)),
            StoreError::NoFormat { path, .. } => {
                Some(Remedy::Store(StoreRemedy::RemoveFormat { file: path.join("format.json") }))
            }
            StoreError::NoImage(name) => Some(Remedy::Image(ImageRemedy::ObtainImage { name: name.clone() })),
            StoreError::Ambiguous { .. } => Some(ImageRemedy::LongerPrefix.into()),
            StoreError::SeveralNames { .. } => Some(Remedy::Image(ImageRemedy::UntagEach)),
            StoreError::NameTaken(name) => Some(Remedy::Image(ImageRemedy::RemoveContainer { name: name.clone() })),
            StoreError::NoVolume(_) => Some(StoreRemedy::ListVolumes.into()),
            StoreError::VolumeInUse(_) => Some(StoreRemedy::RemoveUsers.into()),
            StoreError::OtherIsolation { mode, .. } => {
                Some(Remedy::Store(StoreRemedy::UseIsolation { mode: mode.clone() }))
            }
            StoreError::Busy(_) => Some(StoreRemedy::AwaitBuilds.into()),
            StoreError::Held { lock, .. } | StoreError::Idle { lock, .. } => {
                Some(Remedy::Store(StoreRemedy::EndLockHolder { lock: lock.to_string() }))
            }
            StoreError::UsedImage { container, .. } => {
                Some(Remedy::Image(ImageRemedy::FreeImage { container: container.clone() }))
            }
            StoreError::LostMetadata(_) => Some(Remedy::Store(StoreRemedy::RestoreStore)),
            StoreError::AccessTimes => Some(StoreRemedy::RelaxAccessTimes.into()),
            StoreError::DownloadFailed(e) => e.remedy.clone(),
            StoreError::InvalidLayer { .. } | StoreError::WrongDiffId { .. } => {
                Some(Remedy::Image(ImageRemedy::ReplaceImage))
            }
            StoreError::Damaged { .. } | StoreError::NoBlob(_) | StoreError::WrongDigest { .. } => {
                Some(Remedy::Store(StoreRemedy::RepairStore))
            }
            _ if self.is_disk_full() => Some(Remedy::Disk(DiskRemedy::FreeSpace)),
            StoreError::Kernel(e) | StoreError::Layer(LayerError::Kernel(e)) => remedy_of_kernel(e),
            StoreError::Layer(e) => e.remedy(),
            _ => None,
        }
    }
}

/// Returns a conversion for errors about the file or directory `name` of the store: their messages
/// contain the name.
pub(crate) fn naming(root: &RootDir, name: &str) -> impl FnOnce(rbuild_linux::Error) -> StoreError {
    move |e| {
        let place = root.place().expect("the root of a store has a name");
        e.within(format!("{name} in {place}")).into()
    }
}

/// Messages do not contain paths of the store, so the log gets them.
impl From<rbuild_linux::Error> for StoreError {
    fn from(e: rbuild_linux::Error) -> StoreError {
        if !e.is_not_found() && e.object().place().is_some() {
            tracing::debug!(target: "store", object = ?e.object(), error = %e, "a file operation failed");
        }
        StoreError::Kernel(e)
    }
}

/// Returns the remedy of a failed file operation, which may be one on a file of the store.
pub fn remedy_of_kernel(e: &rbuild_linux::Error) -> Option<Remedy> {
    let remedy = LayerError::remedy_of_kernel(e);
    if remedy.is_some() || e.object().place().is_none() {
        return remedy;
    }
    match e.kind() {
        ErrorKind::PermissionDenied => Some(Remedy::Store(StoreRemedy::OwnStore)),
        ErrorKind::ReadOnlyFilesystem => Some(Remedy::Store(StoreRemedy::OtherStore)),
        ErrorKind::NotFound | ErrorKind::IsADirectory | ErrorKind::NotADirectory => {
            Some(Remedy::Store(StoreRemedy::RepairStore))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rbuild_testkit::{assert_recorded, variants};

    use super::*;

    fn failures_of_the_kernel() -> Vec<StoreError> {
        let kernel = |place: &str, call, errno| {
            let e = rbuild_linux::Error::new(call, Path::new("/s/tmp/17/upper"), failed(errno));
            StoreError::Kernel(e.within(format!("{place} `/s`")))
        };
        let snapshots = "the snapshots in the store";
        let blob = "blob sha256:ca97 in the store";
        let outside = rbuild_linux::Error::new("openat", Path::new("/d/a"), failed(13));
        vec![
            kernel("the store", "openat", 2),
            kernel("the store", "creat", 13),
            kernel("the store", "renameat", 28),
            kernel("the store", "creat", 30),
            kernel(snapshots, "openat", 2),
            kernel(snapshots, "openat", 13),
            kernel(snapshots, "mkdirat", 28),
            kernel(snapshots, "statx", 5),
            kernel(snapshots, "openat", 24),
            kernel(snapshots, "openat", 40),
            kernel(blob, "openat", 13),
            StoreError::Kernel(outside),
        ]
    }

    fn failures_of_the_store() -> Vec<StoreError> {
        let unusable = |errno| StoreError::Unusable { path: "/s".into(), source: failed(errno) };
        let newer = |features: &str| StoreError::Newer { path: "/s".into(), version: 9, features: features.into() };
        let (digest, found) = (BlobDigest::of(b"a"), BlobDigest::of(b"b"));
        let holder = || "bash (PID 7, user root)".to_string();
        vec![
            StoreError::Layer(LayerError::NotTar),
            unusable(13),
            unusable(28),
            StoreError::OtherDirectory { path: "/home/ada".into(), entry: "notes".into() },
            StoreError::OciLayout("/home/ada/layout".into()),
            StoreError::OfUser { path: "/s".into(), owner: "ada".into() },
            newer("trees"),
            newer(""),
            StoreError::NoFormat { path: "/s".into(), source: "missing field `version`".into() },
            StoreError::damaged("index.json")("it has no manifests"),
            StoreError::NoBlob(digest),
            StoreError::WrongDigest { blob: digest, found },
            StoreError::InvalidLayer { blob: digest, source: LayerError::NotTar },
            StoreError::WrongDiffId { blob: digest, expected: DiffId::of(b"a"), found: DiffId::of(b"b") },
            StoreError::NoImage("demo:1".into()),
            StoreError::Ambiguous { name: "3f".into(), found: "3f01, 3f02".into() },
            StoreError::SeveralNames { image: "3f01".into(), names: "a:1, b:1".into() },
            StoreError::NameTaken("web".into()),
            StoreError::NoVolume("db".into()),
            StoreError::VolumeInUse("db".into()),
            StoreError::OtherIsolation { volume: "db".into(), mode: "userns".into() },
            StoreError::Busy(holder()),
            StoreError::Held { lock: "lock", holder: holder() },
            StoreError::Idle { lock: "lock", holder: holder() },
            StoreError::LostMetadata("owners"),
            StoreError::UsedImage { name: "demo:1".into(), container: "web".into() },
            StoreError::LargeDocument { digest, limit: 4 << 20 },
            StoreError::AccessTimes,
            StoreError::DownloadFailed(ReportedError {
                message: "r.io/a: GET /v2/a/blobs/sha256:ca97 at r.io: connection refused".into(),
                errno: Some(111),
                remedy: Some(rbuild_remedy::ServerRemedy::CheckNetwork.into()),
            }),
            StoreError::DownloadRestarted,
            StoreError::Canceled,
        ]
    }

    #[test]
    fn messages_are_as_recorded() {
        let errors: Vec<_> = failures_of_the_kernel().into_iter().chain(failures_of_the_store()).collect();
        let variants = variants!(StoreError {
            Kernel,
            Layer,
            Unusable,
            OtherDirectory,
            OciLayout,
            OfUser,
            Newer,
            NoFormat,
            Damaged,
            NoBlob,
            WrongDigest,
            InvalidLayer,
            WrongDiffId,
            NoImage,
            Ambiguous,
            SeveralNames,
            NameTaken,
            NoVolume,
            VolumeInUse,
            OtherIsolation,
            Busy,
            Held,
            Idle,
            LostMetadata,
            UsedImage,
            LargeDocument,
            AccessTimes,
            DownloadFailed,
            DownloadRestarted,
            Canceled,
        });
        assert_recorded!("StoreError", variants.table(&errors, |e| e, StoreError::remedy));
    }

    fn failed(errno: i32) -> std::io::Error {
        std::io::Error::from_raw_os_error(errno)
    }
}
