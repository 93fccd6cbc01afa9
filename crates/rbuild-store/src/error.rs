use std::path::PathBuf;

use rbuild_image::Digest;

pub type Result<T> = std::result::Result<T, StoreError>;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{0}")]
    Kernel(#[from] rbuild_linux::Error),
    #[error("{0}")]
    Layer(#[from] rbuild_layer::LayerError),
    #[error("the store {path} cannot be used: {reason}")]
    Unusable { path: PathBuf, reason: String, remedy: &'static str },
    #[error("the store's {what} is damaged: {reason}")]
    Damaged { what: String, reason: String },
    #[error("the store has no blob {0}")]
    NoBlob(Digest),
    /// A layer that is not what the image says: `which` is its digest, or the diffID of what it holds.
    #[error("the {which} of the layer {blob} is {found}, but {expected} was promised")]
    WrongLayer { which: &'static str, blob: Digest, expected: Digest, found: Digest },
    #[error("no image is called `{0}`")]
    NoImage(String),
    #[error("`{name}` fits several images: {found}")]
    Ambiguous { name: String, found: String },
    #[error("there is a container `{0}` already")]
    NameTaken(String),
    /// Who uses it.
    #[error("the store is in use by {0}")]
    Busy(String),
    /// A program that is no rbuild has a lock for longer than it is waited for.
    #[error("the store's {lock} is held by {holder}, which is no rbuild")]
    Held { lock: &'static str, holder: String },
    /// A program that may be an rbuild has a lock, and has done nothing for as long as it was waited for.
    #[error("the store's {lock} is held by {holder}, which does nothing")]
    Idle { lock: &'static str, holder: String },
    /// A copy of a store without all that files have.
    #[error(
        "the files of the store have lost their {0}: it was copied without them, or its user has other sub-ids than before"
    )]
    Stripped(&'static str),
    /// The build that waited for another one was stopped.
    #[error("the build was stopped while it waited for another one")]
    Stopped,
}

impl StoreError {
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, StoreError::Kernel(e) if e.is_not_found())
    }

    pub fn is_disk_full(&self) -> bool {
        match self {
            StoreError::Kernel(e) => e.is_disk_full(),
            StoreError::Layer(e) => e.is_disk_full(),
            _ => false,
        }
    }

    /// What to do about it, where there is something to do.
    pub fn remedy(&self) -> Option<String> {
        match self {
            StoreError::Unusable { remedy, .. } => Some(remedy.to_string()),
            StoreError::NoImage(name) => {
                Some(format!("bring it in with `rbuild import FILE {name}` or `rbuild load -i FILE`"))
            }
            StoreError::NameTaken(name) => Some(format!("remove it first: rbuild rm {name}")),
            StoreError::Busy(_) => Some("try again when the other builds are done".into()),
            StoreError::Held { lock, .. } | StoreError::Idle { lock, .. } => Some(format!(
                "end that program (`fuser {lock}` in the store names it, too), or wait for it longer with RBUILD_LOCK_TIMEOUT=SECONDS"
            )),
            StoreError::Stripped(_) => Some(
                "copy it again with all that its files have, as root (`cp -a`, `rsync -aHXU`), or empty its cache: `rbuild prune -a`"
                    .into(),
            ),
            StoreError::WrongLayer { .. } => {
                Some("remove the image, and load it again from an archive that whoever made it wrote anew".into())
            }
            StoreError::Damaged { .. } | StoreError::NoBlob(_) => {
                Some("remove the image and bring it in again; `rbuild prune -a` empties the cache".into())
            }
            _ if self.is_disk_full() => Some("free some space: `rbuild prune -a` empties the build cache".into()),
            _ => None,
        }
    }
}
