//! Properties of the container of a command: chosen by flags and a Dockerfile, hashed into the
//! command's cache key, and applied by the sandbox.

#![warn(missing_docs)]

mod capabilities;
mod mounts;
mod ports;

use std::str::FromStr;

pub use capabilities::{Capabilities, UnknownCapability};
pub use mounts::{ContainerMount, NamedVolume, TmpfsMount, TmpfsOptions, Volume, VolumeOrigin};
pub use ports::{ContainerPort, InvalidPort, PortProtocol, PublishedPort};
use serde::{Deserialize, Serialize};

/// Network of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NetworkMode {
    /// The network namespace in which rbuild was started.
    Host,
    /// The build's own network, with outbound access through another program.
    Isolated,
    /// A loopback interface only.
    None,
}

impl NetworkMode {
    /// Returns the name of the mode.
    pub fn name(self) -> &'static str {
        match self {
            NetworkMode::Host => "host",
            NetworkMode::Isolated => "isolated",
            NetworkMode::None => "none",
        }
    }

    /// Returns the mode with that name.
    pub fn of_name(name: &str) -> Option<NetworkMode> {
        [NetworkMode::Host, NetworkMode::Isolated, NetworkMode::None].into_iter().find(|mode| mode.name() == name)
    }
}

/// Security mode of a command (`RUN --security`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SecurityMode {
    /// Docker's default capabilities and system calls.
    Sandbox,
    /// All capabilities of a user namespace of its own, and no masked paths.
    Insecure,
}

/// A resource limit of a command's processes (setrlimit(2)). [`u64::MAX`] means unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// The resource.
    pub resource: Resource,
    /// The limit that applies, in the unit of the resource.
    pub soft: u64,
    /// The limit up to which processes may raise it.
    pub hard: u64,
}

/// Limits on the resources of all processes of a container together. `None` means unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GroupLimits {
    /// Memory in bytes; as much again of swap space.
    pub memory: Option<u64>,
    /// Processor time in thousandths of one processor.
    pub milli_cpus: Option<u64>,
    /// Number of processes and threads.
    pub processes: Option<u64>,
}

impl GroupLimits {
    /// Returns true if nothing is limited.
    pub fn is_empty(self) -> bool {
        self == GroupLimits::default()
    }
}

macro_rules! resources {
    ($($name:ident $word:literal $description:literal)+) => {
        /// A resource that setrlimit(2) limits.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum Resource {
            $(#[doc = $description] $name,)+
        }

        impl Resource {
            /// All resources, sorted by name.
            pub const ALL: &'static [Resource] = &[$(Resource::$name),+];

            /// Returns the name without `RLIMIT_`, in lower case.
            pub fn name(self) -> &'static str {
                match self {
                    $(Resource::$name => $word,)+
                }
            }
        }
    };
}

resources! {
    Core "core" "Size of core files in bytes."
    Cpu "cpu" "Processor time in seconds."
    Data "data" "Size of the data segment in bytes."
    Fsize "fsize" "Size of files in bytes."
    Locks "locks" "Number of locks."
    Memlock "memlock" "Locked memory in bytes."
    Msgqueue "msgqueue" "Size of POSIX message queues in bytes."
    Nice "nice" "Ceiling of the nice value."
    Nofile "nofile" "Number of open files, plus one."
    Nproc "nproc" "Number of processes of the user."
    Rss "rss" "Resident memory in bytes."
    Rtprio "rtprio" "Ceiling of the real-time priority."
    Rttime "rttime" "Processor time between blocking calls, in microseconds."
    Sigpending "sigpending" "Number of queued signals."
    Stack "stack" "Size of the stack in bytes."
}

/// A name that is not the name of a [`Resource`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownResource;

impl FromStr for Resource {
    type Err = UnknownResource;

    /// Parses a name without `RLIMIT_`, in lower case.
    fn from_str(name: &str) -> Result<Resource, UnknownResource> {
        Resource::ALL.iter().copied().find(|resource| resource.name() == name).ok_or(UnknownResource)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_resources_are_parsed() {
        for resource in Resource::ALL {
            assert_eq!(resource.name().parse(), Ok(*resource));
        }
        for name in ["", "NOFILE", "RLIMIT_NOFILE", "nofiles"] {
            assert_eq!(name.parse::<Resource>(), Err(UnknownResource));
        }
    }
}
