//! Remedies for errors of the machine and of isolation.

use std::borrow::Cow;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::SessionLimit;

/// A change of the machine, or of the user that rbuild runs as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MachineRemedy {
    /// Create a character device.
    CreateDevice {
        /// Name in `/dev`.
        name: Cow<'static, str>,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Raise the hard limit on message queues.
    RaiseQueueLimit,
    /// Grant sub-IDs, or start rbuild outside the program that intercepts its system calls.
    LeaveInterceptor,
    /// Choose another isolation mode, or run rbuild as root of a container.
    OtherMode,
    /// Run rbuild as root of a container, or permit user namespaces.
    BecomeRoot,
    /// Grant the container the missing capability, or run rbuild as an ordinary user.
    GrantCapability,
    /// Run rbuild as an ordinary user with sub-IDs, or in a namespace that maps ID 0.
    BecomeOrdinary,
    /// Grant the user sub-IDs.
    GrantSubIds(SubIdGrant),
    /// Grant the user more sub-IDs, so that images with higher IDs can be unpacked.
    GrantMoreSubIds {
        /// Their number.
        count: u32,
        /// The IDs.
        grant: SubIdGrant,
    },
    /// Install the programs that map sub-IDs.
    InstallSubIdHelpers,
    /// Restore the set-uid bit of a program.
    RestoreSetUid {
        /// The program.
        program: PathBuf,
    },
    /// Use a newer kernel, and a seccomp profile that permits clone3(2).
    PermitClone,
    /// Install an emulator for a platform, or build on a machine of that platform.
    InstallEmulator,
    /// Build on a machine of the platform, which cannot be emulated.
    BuildOnPlatform,
    /// Upgrade the kernel.
    UpgradeKernel,
    /// Make sub-IDs usable, or use the isolation mode that needs none.
    OrSingleId(SubIdObstacle),
    /// Make a private network possible, or use a network that needs no other program.
    OrOtherNetwork(NetworkObstacle),
    /// Raise a resource limit of the session that rbuild runs in.
    RaiseSessionLimit {
        /// The limit.
        limit: SessionLimit,
    },
    /// Check if the machine ran out of memory.
    CheckMemory,
}

/// Sub-IDs that a user needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubIdGrant {
    /// Name of the user, or its ID.
    pub user: String,
    /// User IDs, if they are needed.
    pub uids: Option<IdRangeToGrant>,
    /// Group IDs, if they are needed.
    pub gids: Option<IdRangeToGrant>,
}

/// A range of IDs that can be granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum IdRangeToGrant {
    /// A free range, by its first and its last ID.
    Free(u32, u32),
    /// No free range is known.
    Unknown,
}

/// The reason why sub-IDs cannot be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SubIdObstacle {
    /// no_new_privs is set.
    NoNewPrivileges,
    /// The programs are on a file system that is mounted with nosuid.
    NoSetUid,
}

/// The reason why a private network is impossible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NetworkObstacle {
    /// No program that carries the traffic is installed.
    NoCarrier,
    /// The TUN device does not exist.
    NoTun,
    /// The user may not open the TUN device.
    DeniedTun,
}

/// A change that permits the isolation of commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum IsolationRemedy {
    /// Grant more user or group IDs, or use an isolation mode that needs only one.
    GrantIds {
        /// The file that grants them.
        file: Cow<'static, str>,
    },
    /// Use a lower user or group ID.
    LowerId {
        /// The highest ID.
        most: u32,
    },
    /// Omit the network.
    OmitNetwork,
    /// Permit unprivileged user namespaces by a kernel setting.
    PermitNamespaces {
        /// The setting and its value, for sysctl(8).
        setting: Cow<'static, str>,
    },
    /// Start the surrounding container with an unmasked /proc.
    UnmaskProc,
    /// Start the surrounding container without a seccomp profile.
    UnconfineSeccomp,
    /// Remove what a security module or a seccomp profile denies.
    FindDenial,
    /// Check the programs and files that grant sub-IDs.
    CheckSubIds,
    /// Mount a procfs.
    MountProc,
}
