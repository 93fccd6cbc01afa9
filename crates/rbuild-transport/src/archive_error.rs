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
    is_layout: bool,
    problem: ArchiveProblem,
}

/// A problem of an archive.
#[derive(Debug)]
pub(crate) enum ArchiveProblem {
    /// Invalid, or exceeds a limit.
    Invalid(LayerError),
    /// Cannot be read.
    Unreadable(io::Error),
    /// Lacks this member, which a manifest of the archive refers to.
    Lacks(String),
    /// Has no bytes.
    Empty,
    /// Has none of the documents that list images.
    NoImage,
    /// Has images for other platforms only.
    OtherPlatforms(Box<OtherPlatforms>),
}

/// Platforms of images that were skipped. Attestations have the platform `unknown` and do not
/// count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SkippedPlatforms {
    /// Those whose images can be loaded.
    pub others: BTreeSet<String>,
    /// Those that an index lists without the content of their images.
    pub absent: BTreeSet<String>,
}

impl SkippedPlatforms {
    pub(crate) fn is_empty(&self) -> bool {
        self.others.is_empty() && self.absent.is_empty()
    }

    pub(crate) fn add(&mut self, more: SkippedPlatforms) {
        self.others.extend(more.others);
        self.absent.extend(more.absent);
    }
}

/// The platforms of an image that does not exist for the wanted platform.
#[derive(Debug, Clone)]
pub(crate) struct OtherPlatforms {
    /// The wanted platform.
    pub wanted: Platform,
    /// The platforms of the image.
    pub skipped: SkippedPlatforms,
}

/// Formats the problem as the rest of a sentence about the image or its source.
impl fmt::Display for OtherPlatforms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |platforms: &BTreeSet<String>| platforms.iter().cloned().collect::<Vec<_>>().join(", ");
        write!(f, "has no image for {}", self.wanted)?;
        match &self.skipped {
            SkippedPlatforms { others, absent } if others.is_empty() => {
                write!(f, "; its index lists {} without their content", list(absent))
            }
            SkippedPlatforms { others, .. } => write!(f, ", only for {}", list(others)),
        }
    }
}

impl OtherPlatforms {
    /// Returns the remedy, if there is one.
    pub fn remedy(&self) -> Option<Remedy> {
        self.skipped
            .others
            .first()
            .map(|platform| Remedy::Image(ImageRemedy::SelectPlatform { platform: platform.clone() }))
    }
}

impl ArchiveError {
    /// Names the file or the directory.
    pub fn of(self, path: &Path) -> ArchiveError {
        ArchiveError { path: Some(path.to_path_buf()), ..self }
    }

    /// Names the directory of a layout.
    pub fn of_layout(self, path: &Path) -> ArchiveError {
        ArchiveError { is_layout: true, ..self.of(path) }
    }

    /// Returns the remedy, if there is one.
    pub fn remedy(&self) -> Option<Remedy> {
        match &self.problem {
            ArchiveProblem::Invalid(e) if e.is_disk_full() => Some(Remedy::Disk(DiskRemedy::FreeSpace)),
            ArchiveProblem::Invalid(LayerError::NotTar) => Some(Remedy::Image(ImageRemedy::PassTar)),
            ArchiveProblem::Invalid(LayerError::Truncated(_) | LayerError::Damaged(_)) => {
                Some(Remedy::Image(ImageRemedy::TransferAgain))
            }
            ArchiveProblem::Invalid(e) => e.remedy(),
            ArchiveProblem::Unreadable(e) => LayerError::remedy_of_io(e),
            ArchiveProblem::Lacks(_) => Some(Remedy::Image(ImageRemedy::TransferAgain)),
            ArchiveProblem::Empty => Some(Remedy::Image(ImageRemedy::PassArchive)),
            ArchiveProblem::NoImage => Some(Remedy::Image(ImageRemedy::ImportFiles)),
            ArchiveProblem::OtherPlatforms(platforms) => platforms.remedy(),
        }
    }
}

impl From<ArchiveProblem> for ArchiveError {
    fn from(problem: ArchiveProblem) -> ArchiveError {
        ArchiveError { path: None, is_layout: false, problem }
    }
}

impl fmt::Display for ArchiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if matches!(self.problem, ArchiveProblem::Invalid(_) | ArchiveProblem::Unreadable(_)) {
            f.write_str("cannot read ")?;
        }
        f.write_str(if self.is_layout { "the OCI layout" } else { "the archive" })?;
        if let Some(path) = &self.path {
            write!(f, " {}", quoted(path))?;
        }
        match &self.problem {
            ArchiveProblem::Invalid(_) | ArchiveProblem::Unreadable(_) => Ok(()),
            ArchiveProblem::Lacks(name) => write!(f, " lacks `{name}`, which its manifest refers to"),
            ArchiveProblem::Empty => f.write_str(" is empty"),
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
            ArchiveProblem::Lacks(_)
            | ArchiveProblem::Empty
            | ArchiveProblem::NoImage
            | ArchiveProblem::OtherPlatforms(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;

    #[test]
    fn messages_are_as_recorded() {
        let platforms = |list: [&str; 2]| list.map(String::from).into();
        let skipped = SkippedPlatforms {
            others: platforms(["linux/arm64", "linux/amd64"]),
            absent: platforms(["linux/386", "linux/riscv64"]),
        };
        let others = OtherPlatforms { wanted: "linux/s390x".parse().unwrap(), skipped };
        let absent = SkippedPlatforms { others: BTreeSet::new(), ..others.skipped.clone() };
        let absent = OtherPlatforms { skipped: absent, ..others.clone() };
        let limit =
            LayerError::LimitExceeded { problem: "the archive has more than 10 entries".into(), name: Some("entries") };
        let problems = [
            ArchiveProblem::Invalid(LayerError::NotTar),
            ArchiveProblem::Invalid(limit),
            ArchiveProblem::Unreadable(io::Error::from_raw_os_error(5)),
            ArchiveProblem::Lacks("a".into()),
            ArchiveProblem::Empty,
            ArchiveProblem::NoImage,
            ArchiveProblem::OtherPlatforms(Box::new(others)),
            ArchiveProblem::OtherPlatforms(Box::new(absent)),
        ];
        let errors = problems.map(ArchiveError::from).map(|e| e.of(Path::new("x.tar")));
        let variants = variants!(ArchiveProblem { Invalid, Unreadable, Lacks, Empty, NoImage, OtherPlatforms });
        assert_recorded!("ArchiveProblem", variants.table(&errors, |e| &e.problem, ArchiveError::remedy));
        let unnamed = ArchiveError::from(ArchiveProblem::Lacks("a".into()));
        assert_eq!(unnamed.to_string(), "the archive lacks `a`, which its manifest refers to");
        let layout = unnamed.of_layout(Path::new("dir"));
        assert_eq!(layout.to_string(), "the OCI layout `dir` lacks `a`, which its manifest refers to");
    }
}
