//! Errors of COPY and ADD.

use rbuild_layer::LayerError;
use rbuild_source::SourceError;
use rbuild_store::StoreError;

use crate::ops::users::UnknownUser;

/// A failed copy: the index of the source in the step, if one is to blame, and the reason.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct CopyError {
    pub index: Option<usize>,
    pub reason: Reason,
}

/// The reason why a copy failed.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Kernel(#[from] rbuild_linux::Error),
    #[error(transparent)]
    Layer(LayerError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    User(#[from] UnknownUser),
    #[error("{0}")]
    Text(String),
    /// The destination does not fit the files of the image.
    #[error("{0}")]
    Destination(String),
    /// The build was cancelled.
    #[error("the build was stopped")]
    Stopped,
}

impl From<LayerError> for Reason {
    fn from(e: LayerError) -> Reason {
        match e {
            LayerError::Stopped => Reason::Stopped,
            e => Reason::Layer(e),
        }
    }
}
