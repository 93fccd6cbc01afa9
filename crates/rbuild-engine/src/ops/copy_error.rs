//! Errors of COPY and ADD.

use rbuild_layer::LayerError;
use rbuild_remedy::FileRemedy;
use rbuild_source::{IgnoreError, SourceError};
use rbuild_store::StoreError;

use crate::error::BuildError;
use crate::ops::users::UnknownUser;

/// A failed copy: the index of the source in the step, if one caused the failure, and the reason.
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
    /// A pattern of `--exclude` is invalid.
    #[error(transparent)]
    Exclude(#[from] IgnoreError),
    #[error(transparent)]
    Build(Box<BuildError>),
    #[error("{0}")]
    Text(String),
    /// The destination does not fit the files of the image.
    #[error("{text}")]
    Destination { text: String, remedy: FileRemedy },
    /// The build was canceled.
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

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, no_remedy, variants};

    use super::*;

    #[test]
    fn messages_are_as_recorded() {
        let kernel =
            rbuild_linux::Error::new("openat", std::path::Path::new("a"), std::io::Error::from_raw_os_error(13));
        let reasons = [
            Reason::Source(SourceError::BadPattern("a[".into())),
            Reason::Kernel(kernel),
            Reason::Layer(LayerError::NotTar),
            Reason::Store(StoreError::NoImage("demo:1".into())),
            Reason::User(UnknownUser::User("web".into())),
            Reason::Exclude(IgnoreError { line: 1, reason: "`!` without a pattern".into() }),
            Reason::Build(Box::new(BuildError::other("a file of the plan was never downloaded"))),
            Reason::Text("`a` is not an archive".into()),
            Reason::Destination {
                text: "`/srv` is a file in the image".into(),
                remedy: FileRemedy::AnotherDestination,
            },
            Reason::Stopped,
        ];
        let variants =
            variants!(Reason { Source, Kernel, Layer, Store, User, Exclude, Build, Text, Destination, Stopped });
        assert_recorded!("CopyError", variants.table(&reasons, |e| e, no_remedy));
    }
}
