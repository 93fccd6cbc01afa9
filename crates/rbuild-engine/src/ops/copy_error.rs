//! Errors of COPY and ADD.

use rbuild_layer::LayerError;
use rbuild_source::SourceError;

/// A failed copy: the index of the source in the step, if one is to blame, and the reason.
pub struct CopyError {
    pub source: Option<usize>,
    pub reason: Reason,
}

pub enum Reason {
    Source(SourceError),
    Kernel(rbuild_linux::Error),
    Layer(rbuild_layer::LayerError),
    Text(String),
    /// The build was cancelled.
    Stopped,
}

impl From<SourceError> for Reason {
    fn from(e: SourceError) -> Reason {
        Reason::Source(e)
    }
}
impl From<rbuild_linux::Error> for Reason {
    fn from(e: rbuild_linux::Error) -> Reason {
        Reason::Kernel(e)
    }
}
impl From<rbuild_layer::LayerError> for Reason {
    fn from(e: rbuild_layer::LayerError) -> Reason {
        match e {
            LayerError::Stopped => Reason::Stopped,
            e => Reason::Layer(e),
        }
    }
}
