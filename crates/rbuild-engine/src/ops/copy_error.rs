//! Errors of COPY and ADD.

use std::path::PathBuf;

use rbuild_layer::LayerError;
use rbuild_linux::quoted;
use rbuild_remedy::FileRemedy;
use rbuild_source::{IgnoreError, SourceError};
use rbuild_store::StoreError;

use crate::error::BuildError;
use crate::ops::users::UnknownUser;

/// A failed copy: the index of the source in the step, if one caused the failure, and the reason.
#[derive(Debug, thiserror::Error)]
#[error("{problem}")]
pub struct CopyError {
    pub index: Option<usize>,
    pub problem: CopyProblem,
}

/// The reason why a copy failed.
#[derive(Debug, thiserror::Error)]
pub enum CopyProblem {
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
    #[error(transparent)]
    Path(#[from] PathConflict),
    /// The build was canceled.
    #[error("the build was canceled")]
    Canceled,
}

/// A conflict between an existing file of the image and a copied one at the same path. Paths are in
/// the image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathConflict {
    #[error("{} is not a directory in the image", quoted(.0))]
    NotADirectory(PathBuf),
    #[error("{} is a file in the image; several sources require a directory", quoted(.0))]
    SeveralOverFile(PathBuf),
    #[error("{} would be a file and a directory; several sources require a directory", quoted(.0))]
    FileAndDirectory(PathBuf),
    #[error("{} is a file in the image and a directory in the source", quoted(.0))]
    DirectoryOverFile(PathBuf),
    #[error("{} is a directory in the image and a file in the source", quoted(.0))]
    FileOverDirectory(PathBuf),
}

impl PathConflict {
    /// Returns the remedy if the destination of the copy is the cause, and `None` if one of the
    /// sources is.
    pub fn remedy(&self) -> Option<FileRemedy> {
        match self {
            PathConflict::NotADirectory(_) | PathConflict::SeveralOverFile(_) => Some(FileRemedy::ChooseDestination),
            PathConflict::FileAndDirectory(_) => Some(FileRemedy::EndWithSlash),
            PathConflict::DirectoryOverFile(_) | PathConflict::FileOverDirectory(_) => None,
        }
    }
}

impl From<LayerError> for CopyProblem {
    fn from(e: LayerError) -> CopyProblem {
        match e {
            LayerError::Canceled => CopyProblem::Canceled,
            e => CopyProblem::Layer(e),
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
            CopyProblem::Source(SourceError::BadPattern("a[".into())),
            CopyProblem::Kernel(kernel),
            CopyProblem::Layer(LayerError::NotTar),
            CopyProblem::Store(StoreError::NoImage("demo:1".into())),
            CopyProblem::User(UnknownUser::User("web".into())),
            CopyProblem::Exclude(IgnoreError { line: 1, reason: "`!` without a pattern".into() }),
            CopyProblem::Build(Box::new(BuildError::other("a file of the plan was never downloaded"))),
            CopyProblem::Path(PathConflict::DirectoryOverFile("/srv".into())),
            CopyProblem::Canceled,
        ];
        let variants = variants!(CopyProblem { Source, Kernel, Layer, Store, User, Exclude, Build, Path, Canceled });
        assert_recorded!("CopyError", variants.table(&reasons, |e| e, no_remedy));
        let conflicts = [
            PathConflict::NotADirectory("/srv".into()),
            PathConflict::SeveralOverFile("/srv".into()),
            PathConflict::FileAndDirectory("/srv".into()),
            PathConflict::DirectoryOverFile("/usr/bin".into()),
            PathConflict::FileOverDirectory("/a\nb".into()),
        ];
        let variants = variants!(PathConflict {
            NotADirectory,
            SeveralOverFile,
            FileAndDirectory,
            DirectoryOverFile,
            FileOverDirectory,
        });
        assert_recorded!("PathConflict", variants.table(&conflicts, |e| e, PathConflict::remedy));
    }
}
