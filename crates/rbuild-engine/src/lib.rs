//! The build engine: takes a request to its result (resolve, key, prune, execute, export), and
//! implements the image commands around builds.
//!
//! This crate prints nothing. Progress is reported as [`Event`]s on one channel.

mod agent;
mod archive;
mod assemble;
mod compare;
mod copy;
mod copy_out;
mod demands;
mod direct;
mod error;
mod event;
mod execute;
mod export;
mod history;
mod image;
mod invoke;
mod journal;
mod keys;
mod leaks;
mod load;
mod local;
mod log_tail;
mod mask;
mod mounts;
mod places;
mod prepare;
mod private_key;
mod refusal;
mod request;
mod schedule;
mod steps;
mod track;
mod users;
mod vertex;
mod why;

pub use archive::{ArchiveFormat, Saved, archive_blobs, layer_blobs, save_directory, save_size, save_to};
pub use compare::{Difference, first_difference};
pub use copy_out::{CopiedTo, CopyTarget, copy_out};
pub use error::{BuildError, StepFailure};
pub use event::{Event, Events, StepOutcome};
pub use execute::{execute, snapshots};
pub use image::{Import, import};
pub use invoke::{Invocation, invoke, volume_binds};
pub use load::{Incoming, Loaded, Wanted, load, load_directory, take_from_layout};
pub use mask::SecretValues;
pub use places::binds;
pub use prepare::{Prepared, prepare};
pub use private_key::PrivateKey;
pub use request::{AgentSource, BuildRequest, ContextDir, ImageForm, Output, OutputKind, Squash, Target};

/// The result of a finished build.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Finished {
    /// Image ID (configuration digest) and manifest digest, if an image was requested.
    pub image: Option<(rbuild_image::Digest, rbuild_image::Digest)>,
}
