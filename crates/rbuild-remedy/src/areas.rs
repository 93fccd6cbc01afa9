//! Remedies by area.

mod builds;
mod files;
mod images;
mod machine;

use crate::Remedy;

pub use builds::{BuildRemedy, CommandRemedy, DockerfileRemedy};
pub use files::{DiskRemedy, ExcludingRule, FileAccess, FileRemedy, MountRemedy};
pub use images::{ImageRemedy, ServerRemedy, StoreRemedy};
pub use machine::{IdRangeToGrant, IsolationRemedy, MachineRemedy, NetworkObstacle, SubIdGrant, SubIdObstacle};

/// Converts the remedies of areas.
macro_rules! areas {
    ($($variant:ident: $area:ty),*) => {
        $(impl From<$area> for Remedy {
            fn from(remedy: $area) -> Remedy {
                Remedy::$variant(remedy)
            }
        })*
    };
}

areas!(
    Disk: DiskRemedy,
    File: FileRemedy,
    Mount: MountRemedy,
    Machine: MachineRemedy,
    Isolation: IsolationRemedy,
    Store: StoreRemedy,
    Image: ImageRemedy,
    Server: ServerRemedy,
    Build: BuildRemedy,
    Command: CommandRemedy,
    Dockerfile: DockerfileRemedy
);
