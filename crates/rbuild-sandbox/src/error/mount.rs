//! Mounts that cannot be made where they were requested.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use rbuild_linux::{FileKind, shown_path};
use rbuild_remedy::Remedy;
use serde::{Deserialize, Serialize};

/// A mount that cannot be made at its target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct MountError {
    /// Path in the container, as requested.
    target: PathBuf,
    problem: MountProblem,
}

/// The owner of a file that is in the way of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileOrigin {
    Image,
    /// Another mount of the same command.
    Mount,
}

/// The type of a file as a noun with its article.
type Noun = Cow<'static, str>;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountProblem {
    /// The target is the procfs of the command.
    OverProcesses,
    OverRoot,
    /// The target is the directory of the command's devices, or at or below one of them.
    OverDevices {
        place: PathBuf,
    },
    /// An entry of another type is at the target.
    InTheWay {
        holder: FileOrigin,
        has: Noun,
        needs: Noun,
    },
    /// `path` is above the target and not a directory.
    BelowAFile {
        holder: FileOrigin,
        path: PathBuf,
        has: Noun,
    },
    /// The target, or the target of its symlink, is in a file system of the kernel.
    InKernelFiles {
        place: Noun,
        link_to: Option<PathBuf>,
    },
    /// A mount point is missing in a read-only mount.
    ReadOnly,
    /// A single file cannot be kept read-only for a command that may mount.
    SingleFile,
}

impl FileOrigin {
    /// Returns the beginning of a sentence about a file that is in the way.
    fn has(self) -> &'static str {
        match self {
            FileOrigin::Image => "the image has",
            FileOrigin::Mount => "another mount has",
        }
    }
}

impl MountProblem {
    pub(crate) fn in_the_way(holder: FileOrigin, has: FileKind, needs: FileKind) -> MountProblem {
        MountProblem::InTheWay { holder, has: has.noun().into(), needs: needs.noun().into() }
    }

    pub(crate) fn below_a_file(holder: FileOrigin, path: &Path, has: &'static str) -> MountProblem {
        MountProblem::BelowAFile { holder, path: path.to_path_buf(), has: has.into() }
    }

    pub(crate) fn at(self, target: &Path) -> MountError {
        MountError { target: target.to_path_buf(), problem: self }
    }
}

impl MountError {
    /// Returns the action that makes the mount possible.
    pub fn remedy(&self) -> Remedy {
        let text = match &self.problem {
            MountProblem::OverProcesses
            | MountProblem::OverRoot
            | MountProblem::OverDevices { .. }
            | MountProblem::ReadOnly => "mount it elsewhere",
            MountProblem::InTheWay { holder: FileOrigin::Image, .. } => "replace it where the image is made",
            MountProblem::BelowAFile { holder: FileOrigin::Image, .. } => {
                "mount it elsewhere, or replace the file where the image is made"
            }
            MountProblem::InTheWay { .. } | MountProblem::BelowAFile { .. } => "give each mount a target of its own",
            MountProblem::InKernelFiles { link_to: None, .. } => "mount it elsewhere",
            MountProblem::InKernelFiles { link_to: Some(_), .. } => "replace the link where the image is made",
            MountProblem::SingleFile => "mount its directory instead",
        };
        text.into()
    }
}

impl fmt::Display for MountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = shown_path(&self.target);
        match &self.problem {
            MountProblem::OverProcesses => {
                write!(f, "cannot mount on {target}: it is the command's procfs")
            }
            MountProblem::OverDevices { place } if place == Path::new("/dev") => {
                write!(f, "{target} is where the command has its devices; nothing else can be mounted there")
            }
            MountProblem::OverDevices { place } => {
                let place = shown_path(place);
                write!(f, "every command has {place}; nothing else can be mounted there")?;
                if target == place { Ok(()) } else { write!(f, ", as {target} would be") }
            }
            MountProblem::OverRoot => write!(f, "{target} is the root directory; nothing can be mounted over it"),
            MountProblem::InTheWay { holder, has, needs } => {
                write!(f, "cannot mount on {target}: {} {has} there, and {needs} is required", holder.has())
            }
            MountProblem::BelowAFile { holder, path, has } => {
                let path = shown_path(path);
                write!(f, "{} {has} at {path}, below which {target} cannot be mounted", holder.has())
            }
            MountProblem::InKernelFiles { place, link_to: None } => {
                write!(f, "cannot create the mount point {target} in {place}")
            }
            MountProblem::InKernelFiles { place, link_to: Some(real) } => {
                let real = shown_path(real);
                write!(f, "{target} is a link that leads to {real} in {place}, where no mount point can be created")
            }
            MountProblem::ReadOnly => {
                write!(f, "{target} lies in a read-only mount that has no such entry to be mounted on")
            }
            MountProblem::SingleFile => write!(
                f,
                "the volume at {target} is a single file, which cannot be kept read-only for RUN --security=insecure"
            ),
        }
    }
}
