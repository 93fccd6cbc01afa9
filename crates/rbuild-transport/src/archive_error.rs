//! Errors of archives and layouts that images are loaded from.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rbuild_image::Platform;
use rbuild_layer::LayerError;
use rbuild_linux::quoted;
use rbuild_remedy::{DiskRemedy, ImageRemedy, Remedy};

/// An archive, or a layout in its place, from which no image can be loaded. One that is read from a
/// stream has no name until [`ArchiveError::of`] sets it.
#[derive(Debug)]
pub struct ArchiveError {
    path: Option<PathBuf>,
    problem: ArchiveProblem,
}

/// A problem of an archive.
#[derive(Debug)]
pub(crate) enum ArchiveProblem {
    /// It is invalid or exceeds a limit.
    Invalid(LayerError),
    /// It cannot be read.
    Unreadable(io::Error),
    /// It lacks this member, which a manifest of it refers to.
    Lacks(String),
    /// It has none of the documents that list images.
    NoImage,
    /// Its images are for other platforms.
    OtherPlatforms(Box<OtherPlatforms>),
}

/// The platforms of an image that does not exist for the wanted platform.
#[derive(Debug, Clone)]
pub(crate) struct OtherPlatforms {
    /// The wanted platform.
    pub wanted: Platform,
    /// The platforms of the image.
    pub others: BTreeSet<String>,
}

/// Formats the problem as the rest of a sentence about the image or its source.
impl fmt::Display for OtherPlatforms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let others: Vec<&str> = self.others.iter().map(String::as_str).collect();
        write!(f, "has no image for {}, only for {}", self.wanted, others.join(", "))
    }
}

impl OtherPlatforms {
    /// Returns the remedy, if there is one.
    pub fn remedy(&self) -> Option<Remedy> {
        self.others.first().map(|platform| Remedy::Image(ImageRemedy::SelectPlatform { platform: platform.clone() }))
    }
}

impl ArchiveError {
    /// Names the file or the directory.
    pub fn of(self, path: &Path) -> ArchiveError {
        ArchiveError { path: Some(path.to_path_buf()), ..self }
    }

    /// Returns the remedy, if there is one.
    pub fn remedy(&self) -> Option<Remedy> {
        match &self.problem {
            ArchiveProblem::Invalid(e) if e.is_disk_full() => Some(Remedy::Disk(DiskRemedy::FreeSpace)),
            ArchiveProblem::Invalid(e) => e.remedy(),
            ArchiveProblem::Unreadable(e) => LayerError::remedy_of_io(e),
            ArchiveProblem::Lacks(_) => Some(Remedy::Image(ImageRemedy::TransferAgain)),
            ArchiveProblem::NoImage => Some(Remedy::Image(ImageRemedy::ImportFiles)),
            ArchiveProblem::OtherPlatforms(platforms) => platforms.remedy(),
        }
    }
}

impl From<ArchiveProblem> for ArchiveError {
    fn from(problem: ArchiveProblem) -> ArchiveError {
        ArchiveError { path: None, problem }
    }
}

impl fmt::Display for ArchiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if matches!(self.problem, ArchiveProblem::Invalid(_) | ArchiveProblem::Unreadable(_)) {
            f.write_str("cannot read ")?;
        }
        f.write_str("the archive")?;
        if let Some(path) = &self.path {
            write!(f, " {}", quoted(path))?;
        }
        match &self.problem {
            ArchiveProblem::Invalid(_) | ArchiveProblem::Unreadable(_) => Ok(()),
            ArchiveProblem::Lacks(name) => write!(f, " lacks `{name}`, which its manifest refers to"),
            ArchiveProblem::NoImage => f.write_str(" contains no image: it has neither manifest.json nor index.json"),
            ArchiveProblem::OtherPlatforms(platforms) => write!(f, " {platforms}"),
        }
    }
}

impl Error for ArchiveError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.problem {
            ArchiveProblem::Invalid(e) => Some(e),
            ArchiveProblem::Unreadable(e) => Some(e),
            ArchiveProblem::Lacks(_) | ArchiveProblem::NoImage | ArchiveProblem::OtherPlatforms(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;

    #[test]
    fn messages_are_as_recorded() {
        let others = OtherPlatforms {
            wanted: "linux/s390x".parse().unwrap(),
            others: ["linux/arm64", "linux/amd64"].map(String::from).into(),
        };
        let limit = LayerError::Limit { problem: "the archive has more than 10 entries".into(), name: Some("entries") };
        let problems = [
            ArchiveProblem::Invalid(LayerError::NotTar),
            ArchiveProblem::Invalid(limit),
            ArchiveProblem::Unreadable(io::Error::from_raw_os_error(5)),
            ArchiveProblem::Lacks("a".into()),
            ArchiveProblem::NoImage,
            ArchiveProblem::OtherPlatforms(Box::new(others)),
        ];
        let errors = problems.map(ArchiveError::from).map(|e| e.of(Path::new("x.tar")));
        let variants = variants!(ArchiveProblem { Invalid, Unreadable, Lacks, NoImage, OtherPlatforms });
        assert_recorded!("ArchiveProblem", variants.table(&errors, |e| &e.problem, ArchiveError::remedy));
        let unnamed = ArchiveError::from(ArchiveProblem::Lacks("a".into()));
        assert_eq!(unnamed.to_string(), "the archive lacks `a`, which its manifest refers to");
    }
}
