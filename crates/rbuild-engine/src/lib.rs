//! The build engine: executes a build request (prepare, key, execute, export), and implements
//! commands on images.
//!
//! This crate prints nothing. Progress is reported as [`Event`]s on one channel.

mod build;
mod builder_paths;
mod cache;
mod containers;
mod contexts;
mod copy_warnings;
mod destination;
mod downloads;
mod env;
mod error;
mod error_context;
mod escapes;
mod event;
mod events;
mod export;
mod exports;
mod images;
mod journal;
mod network_access;
mod ops;
mod prepare;
mod record;
mod redact;
mod request;
mod results;
mod rootfs;
mod schedule;
mod secret_scan;
mod solve;
mod ssh_keys;
mod warning;
mod whole_store;

pub use build::{answer, answer_lent, execute};
pub use builder_paths::{binds, volume_binds};
pub use containers::arriving::unpack_arriving;
pub use containers::changes::{ChangeKind, ChangedFiles, Commit};
pub use containers::detached::invoke_detached;
pub use containers::inside::{InnerCommand, invoke_inside};
pub use containers::run::{ContainerCommand, Invocation, command_line, invoke};
pub use downloads::DownloadedFiles;
pub use error::{BuildError, StepFailure};
pub use escapes::{may_have_controls, push_colored, without_escapes};
pub use event::{Event, Meter, StepOutcome, Warning};
pub use events::Events;
pub use exports::{
    BuildReport, CacheExport, CacheMode, Export, FinishedImage, FinishedIndex, ImageForm, MountChoice, ReportedStep,
    ReportedSteps, Requirements, Split, Squash, StepCounts,
};
pub use images::copy_out::{CopiedFiles, CopiedTo, CopyTarget, ImagePath, IncomingCopy, copy_in, copy_out};
pub use images::diff::{Difference, EntryChange, FieldPath, first_difference};
pub use images::import::{Import, import};
pub use network_access::{Fetch, FullName, ImageRequest, NetworkAccess, PullImages};
pub use ops::container::{DEFAULT_SHM, limit_remedy};
pub use prepare::resolve::{stored_image, with_similar_name};
pub use prepare::{Prepared, PreparedBuild, check, prepare, warn_of_store};
pub use rbuild_plan::{ContextDir, IgnoreFile, UrlSource};
pub use redact::SecretValues;
pub use request::{AgentSource, BuildRequest, PullPolicy};
pub use rootfs::snapshots;
pub use ssh_keys::PrivateKey;
pub use whole_store::{ImportReport, StoreChoice, StoreContent, import_steps, pack_store};
