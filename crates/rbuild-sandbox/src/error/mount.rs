//! Mounts that cannot be made where they were requested.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use rbuild_linux::{FileKind, quoted};
use rbuild_remedy::{MountRemedy, Remedy};
use serde::{Deserialize, Serialize};

/// A mount that cannot be made at its target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct MountError {
    /// Path in the container, as requested.
    target: PathBuf,
    problem: MountProblem,
}

/// The origin of a file that prevents a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileOrigin {
    /// The root file system, which comes from the image.
    Image,
    /// Another mount of the same command.
    Mount,
}

/// The type of a file as a noun with its article.
type Noun = Cow<'static, str>;

/// The reason why a mount cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountProblem {
    /// The target is the procfs of the command.
    OverProcesses,
    /// The target is the root directory.
    OverRoot,
    /// The target is the directory of the command's devices, or at or below one of them.
    OverDevices { place: PathBuf },
    /// An entry of another type is at the target.
    Occupied { holder: FileOrigin, has: Noun, needs: Noun },
    /// `path` is above the target and not a directory.
    BelowAFile { holder: FileOrigin, path: PathBuf, has: Noun },
    /// The target, or the file that its symbolic link leads to, is in a file system of the kernel.
    InKernelFiles { place: Noun, link_to: Option<PathBuf> },
    /// A mount point is missing in a read-only mount.
    ReadOnly,
    /// A single file cannot be kept read-only for a command that may mount.
    SingleFile,
}

impl FileOrigin {
    fn noun(self) -> &'static str {
        match self {
            FileOrigin::Image => "the image",
            FileOrigin::Mount => "another mount",
        }
    }
}

impl MountProblem {
    pub(crate) fn in_the_way(holder: FileOrigin, has: FileKind, needs: FileKind) -> MountProblem {
        MountProblem::Occupied { holder, has: has.noun().into(), needs: needs.noun().into() }
    }

    pub(crate) fn below_a_file(holder: FileOrigin, path: &Path, has: &'static str) -> MountProblem {
        MountProblem::BelowAFile { holder, path: path.to_path_buf(), has: has.into() }
    }

    pub(crate) fn at(self, target: &Path) -> MountError {
        MountError { target: target.to_path_buf(), problem: self }
    }
}

impl MountError {
    /// Returns the path in the container, as requested.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Returns the action that makes the mount possible.
    pub fn remedy(&self) -> Remedy {
        match &self.problem {
            MountProblem::Occupied { holder: FileOrigin::Mount, .. }
            | MountProblem::BelowAFile { holder: FileOrigin::Mount, .. } => MountRemedy::OwnTarget.into(),
            MountProblem::Occupied { .. } | MountProblem::BelowAFile { .. } => MountRemedy::RemoveFile.into(),
            MountProblem::InKernelFiles { link_to: Some(_), .. } => MountRemedy::ReplaceLink.into(),
            MountProblem::SingleFile => MountRemedy::MountDirectory.into(),
            _ => Remedy::Mount(MountRemedy::OtherTarget),
        }
    }
}

impl fmt::Display for MountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = quoted(&self.target);
        match &self.problem {
            MountProblem::OverProcesses => {
                write!(f, "cannot mount on {target}: it is the command's procfs")
            }
            MountProblem::OverDevices { place } if place == Path::new("/dev") => {
                write!(f, "cannot mount on {target}: it is the command's device directory")
            }
            MountProblem::OverDevices { place } => {
                write!(f, "cannot mount on {target}: every command has its own {}", quoted(place))
            }
            MountProblem::OverRoot => write!(f, "cannot mount on {target}: it is the root directory"),
            MountProblem::Occupied { holder, has, needs } => {
                let holder = holder.noun();
                write!(f, "cannot mount on {target}: {holder} has {has} there, and {needs} is required")
            }
            MountProblem::BelowAFile { holder, path, has } => {
                write!(f, "cannot mount on {target}: {} has {has} at {}", holder.noun(), quoted(path))
            }
            MountProblem::InKernelFiles { place, link_to: None } => {
                write!(f, "cannot create the mount point {target} in {place}")
            }
            MountProblem::InKernelFiles { place, link_to: Some(real) } => {
                write!(f, "cannot create the mount point {target} in {place}: it is a link to {}", quoted(real))
            }
            MountProblem::ReadOnly => {
                write!(f, "cannot create the mount point {target} in a read-only mount")
            }
            MountProblem::SingleFile => {
                write!(
                    f,
                    "the volume at {target} is a single file; a command with all privileges could remount it writable"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;

    #[test]
    fn messages_are_as_recorded() {
        let devices = |place: &str| MountProblem::OverDevices { place: place.into() };
        let kernel =
            |link: Option<&str>| MountProblem::InKernelFiles { place: "/proc".into(), link_to: link.map(Into::into) };
        let below = |holder| MountProblem::below_a_file(holder, Path::new("/data"), "a file");
        let in_the_way = |holder| MountProblem::in_the_way(holder, FileKind::File, FileKind::Dir);
        let problems = [
            MountProblem::OverProcesses,
            MountProblem::OverRoot,
            devices("/dev"),
            devices("/dev/null"),
            in_the_way(FileOrigin::Image),
            in_the_way(FileOrigin::Mount),
            below(FileOrigin::Image),
            below(FileOrigin::Mount),
            kernel(None),
            kernel(Some("/proc/x")),
            MountProblem::ReadOnly,
            MountProblem::SingleFile,
        ];
        let errors = problems.map(|problem| problem.at(Path::new("/data/x")));
        let variants = variants!(MountProblem {
            OverProcesses,
            OverRoot,
            OverDevices,
            Occupied,
            BelowAFile,
            InKernelFiles,
            ReadOnly,
            SingleFile,
        });
        assert_recorded!("MountProblem", variants.table(&errors, |e| &e.problem, |e| Some(e.remedy())));
    }
}
