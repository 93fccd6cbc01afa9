//! The persistent store: blobs and image names as a valid OCI layout, file trees, cache records and
//! cache mounts.
//!
//! ```text
//! ROOT/
//!   format.json            version and feature sets; checked before anything else is touched
//!   lock                   held shared by every process, exclusively by prune
//!   alone.lock             held by a process that takes or holds `lock` exclusively
//!   steps.lock             one byte per step key: equal steps of several processes run once
//!   index.lock             held while index.json is replaced
//!   secrets.key            32 random bytes that key the digests of secrets
//!   owners.key             32 random bytes that name the attribute of recorded owners
//!   owners/                files that reveal the loss of owners or attributes
//!   oci-layout index.json blobs/sha256/HEX
//!   trees/ID/fs/           files of one step or one layer, in overlay form
//!   trees/ID/folded.json   the files exist as that layer only, or were unpacked from it
//!   trees/ID/changes.json  the tree consists of another one and of the changes in `changes`
//!   trees/ID/changes/fs/   changes to another tree, in overlay form
//!   trees/ID/remainder      metadata of the tree that its layer does not contain
//!   trees/ID/leaning       references of a layer to the layers below it
//!   trees/ID/listing       source files of a copy from the build context
//!   trees/ID/warnings.json warnings of a copy, which are repeated when the tree is reused
//!   trees/ID/secrets.json  secrets searched for in the tree, and those found
//!   trees/ID/stand-ins     the tree may contain placeholders of devices
//!   trees/ID/devices       the tree contains device nodes
//!   trees/ID/layer-*.json  layers packed from the tree, one per form, on demand
//!   trees/ID/bytes.json    disk usage, computed on demand
//!   trees/ID/files         inodes and sizes of a copy's files, computed on demand
//!   layers/HEX.json        diffID -> tree
//!   layers/HEX.size        diffID -> uncompressed size
//!   layers/*.holds         diffID and blob: the blob contains that layer
//!   layers/*.repacked      diffID and form -> the layer in that form
//!   records/HEX*.json      cache key -> tree, one per kind of owners, written after the tree
//!   accounts/HEX.json      the parts that a record's key was computed from
//!   ledgers/HEX.json       steps and keys of the last build of a Dockerfile in a directory
//!   results/HEX.json       key of a finished image -> its manifest
//!   builds/ID.synced       everything that build wrote has been synced to disk
//!   mounts/HEX/            one cache mount
//!   hashes/HEX             cached digests of build context files
//!   pulled/HEX.json        the manifest that a name resolved to in its registry
//!   pushed/HEX.json        the digest that an image was pushed as
//!   downloads/HEX.json     URL or checksum -> a blob, with its validators
//!   containers/HEX.json    a container: its name and its image
//!   runs/HEX/              settings, process, lock and output of a container that was started
//!   logs/ID/               log of a build (build.json) and the output of its steps
//!   tmp/ID/ tmp/ID.lock    one process's work in progress; swept when its lock is free
//! ```
//!
//! Files appear atomically by rename. A record is valid only if it was written since the last boot,
//! or if its build was synced. Other records, which a power failure may have damaged, are ignored,
//! never repaired.

mod artifact;
mod blobs;
mod cache;
mod cache_mounts;
mod containers;
mod contents;
mod directories;
mod downloads;
mod durability;
mod error;
mod exclusive_lock;
mod facets;
mod gc;
mod ids;
mod images;
mod incoming_blobs;
mod index_entries;
mod keys;
mod layer_blob;
mod layers;
mod lock_waits;
mod logs;
mod modes;
mod old_downloads;
mod once;
mod packing;
mod partial_blobs;
mod pulled;
mod repo_digests;
mod secrets;
mod sentinel;
mod session;
mod staging;
mod store;
mod trees;
mod untag;
mod volumes;
mod workspace;

pub use artifact::{Artifact, LostPlatforms, NamedImage};
pub use blobs::Blobs;
pub use cache::all_steps::KnownStep;
pub use cache::build_index::{BuildIndex, FILES, FROM, IndexedStep, KeyInputs, KeyPart, KeyValue, PARENT, VARIABLE};
pub use cache::records::{ForeignRecord, LayerOrigin, Record, RecordOrigin, RecordedImage, RecordedStep, Records};
pub use cache_mounts::{CacheMount, CacheMounts, CacheUse, CacheView, KnownMount};
pub use containers::{
    Container, ContainerChanges, ContainerState, Containers, DnsSettings, EndRequest, Ended, Health, HealthCheck,
    HealthFile, HealthResult, HealthStatus, LastEnd, MAX_HEALTH_OUTPUT, NameChange, NewContainer, OutputFrame,
    OutputReader, OutputStream, OutputWriter, PendingRequest, RestartFiles, RestartPolicy, RunLock, RunSettings,
    RunWatch, SecuritySettings, StartAttempt, Started,
};
pub use downloads::{Download, Downloads, IncomingFile, ReceivedFile};
pub use durability::Durability;
pub use error::{Result, StoreError, remedy_of_kernel};
pub use gc::budget::Budget;
pub use gc::damage::{BlobFault, CheckFailure, FoundDamage, ImageFault, ImageLabel, Misplacement, StoreDamage};
pub use gc::freed::Freed;
pub use gc::fsck::Checked;
pub use gc::prune::{DanglingImages, Gc};
pub use gc::usage::{DiskUsage, Usage};
pub use ids::{
    BuildId, BuildIdError, BuildIndexName, CacheId, CacheKey, ContainerId, FilesHash, HashesName, ImageKey, LockId,
    ResultId, SecretHash,
};
pub use images::{FoundImage, Image, Images};
pub use incoming_blobs::{IncomingBlobs, PullId};
pub use layers::{LayerVariant, Layers, PackedLayer};
pub use lock_waits::LockWaiting;
pub use logs::{
    BuildLog, BuildStatus, FailureLog, LayerLog, LogLock, Logs, PhaseLog, StepLog, StepLogFile, StepOutcome,
};
pub use once::{Lock, Once};
pub use packing::{PackingProgress, PackingWatch};
pub use pulled::Pulled;
pub use rbuild_linux::OwnerMode;
pub use repo_digests::{RepoDigest, RepoDigests};
pub use secrets::{SecretVerdicts, Verdict};
pub use session::Session;
pub use staging::{ResumedBlob, Staging, StagingBlob, StagingWatch};
pub use store::Store;
pub use trees::backend::{SnapshotBackend, WorkingTree};
pub use trees::cached_steps::{CachedStep, MountNote, StepLayer, StepNote};
pub use trees::changes::{ChangedTrees, EarlierFiles};
pub use trees::copies::{Baseline, MergedFiles, cut_links};
pub use trees::id::TreeId;
pub use trees::lazy::LazyTrees;
pub use trees::merged::{MergedDir, MergedEntry, MergedPath, MergedTree};
pub use trees::tree::{LISTING, NewTree, Trees};
pub use trees::union::{ImageTrees, StackedFiles};
pub use volumes::{StoredVolume, Volumes};
pub use workspace::Workspace;
