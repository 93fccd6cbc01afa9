//! Mounts of containers.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A host directory mounted into the container of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub target: String,
    /// True if the command must not write to it.
    pub read_only: bool,
}

/// An empty file system in the memory of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TmpfsMount {
    /// Absolute path in the container.
    pub target: String,
    /// Properties of the file system.
    pub options: TmpfsOptions,
    /// True if the command must not write to it.
    pub read_only: bool,
}

/// Properties of a tmpfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TmpfsOptions {
    /// Maximum size in bytes; `None` for half of the memory.
    pub size: Option<u64>,
    /// Mode of its root directory; `None` for that of the directory that it covers.
    pub mode: Option<u32>,
    /// True if programs in it cannot be executed.
    pub no_programs: bool,
}

/// A mount of a container that is not one of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerMount {
    /// A file or directory of the host.
    Bind(Volume),
    /// An empty file system in memory.
    Tmpfs(TmpfsMount),
    /// A directory with a name, which outlives the container.
    Named(NamedVolume),
}

/// A volume with a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedVolume {
    /// The name.
    pub name: String,
    /// Absolute path in the container.
    pub target: String,
    /// True if the command must not write to it.
    pub read_only: bool,
    /// The origin of its name. Earlier builds did not record it.
    #[serde(default)]
    pub origin: VolumeOrigin,
}

/// The origin of the name of a volume. All but a given one are generated for one container, and the
/// volume is anonymous.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum VolumeOrigin {
    /// The name is given.
    #[default]
    Given,
    /// `-v` with a path alone, which is a property of the container like the paths that its image
    /// declares.
    Path,
    /// `--mount` without a source.
    Mount,
    /// The image declares the volume and the command line does not. Omitted where no writable
    /// volume can be mounted.
    Image,
}

impl NamedVolume {
    /// Returns true if the name was generated for one container.
    pub fn is_anonymous(&self) -> bool {
        self.origin != VolumeOrigin::Given
    }
}

impl ContainerMount {
    /// Returns the name of the volume that is mounted, if it has one.
    pub fn volume(&self) -> Option<&str> {
        match self {
            ContainerMount::Named(volume) => Some(&volume.name),
            ContainerMount::Bind(_) | ContainerMount::Tmpfs(_) => None,
        }
    }

    /// Returns the path of an anonymous volume that is a property of the container like the paths
    /// that its image declares.
    pub fn anonymous_target(&self) -> Option<&str> {
        match self {
            ContainerMount::Named(NamedVolume { target, origin: VolumeOrigin::Path, .. }) => Some(target),
            _ => None,
        }
    }

    /// Returns true if the image declares it and the command line does not.
    pub fn is_of_image(&self) -> bool {
        matches!(self, ContainerMount::Named(NamedVolume { origin: VolumeOrigin::Image, .. }))
    }

    /// Returns its absolute path in the container, as it was specified.
    pub fn target(&self) -> &str {
        match self {
            ContainerMount::Bind(Volume { target, .. })
            | ContainerMount::Tmpfs(TmpfsMount { target, .. })
            | ContainerMount::Named(NamedVolume { target, .. }) => target,
        }
    }
}
