//! What outlives a build: blobs and names as a valid OCI layout, file trees, cache records, cache mounts.
//!
//! ```text
//! ROOT/
//!   format.json            version and feature sets; checked before anything else is touched
//!   lock                   held shared by everyone, exclusively by prune
//!   steps.lock             one byte a step key: equal steps of several processes run once
//!   index.lock             held while index.json is replaced
//!   secrets.key            32 bytes that make the marks of secrets this store's own
//!   oci-layout index.json blobs/sha256/HEX
//!   trees/ID/fs/           one step's or one layer's files, in overlay form
//!   trees/ID/folded.json   the files are there as that layer only, or were unpacked from it
//!   trees/ID/leaning      what a layer takes for granted of those below it
//!   trees/ID/listing       what a copy took from the context
//!   trees/ID/secrets.json  which secrets were looked for in it, and which it holds
//!   trees/ID/layer-*.json  the layers that were made of it, one a form, once something asked
//!   trees/ID/bytes.json    how much it takes, once something asked
//!   trees/ID/files         inodes and bytes of a copy's files, once something asked
//!   layers/HEX.json        diffID -> tree
//!   layers/*.holds         diffID and blob: the blob is that layer
//!   layers/*.repacked      diffID and form -> the layer in that form
//!   records/HEX.json       cache key -> tree, written after the tree is in place
//!   accounts/HEX.json      what the key of a record was made of
//!   ledgers/HEX.json       the steps last built from a Dockerfile in a place, with their keys
//!   results/HEX.json       key of a finished image -> its manifest
//!   builds/ID.synced       everything that build wrote is on the disk
//!   mounts/HEX/            one cache mount
//!   hashes/HEX             what is known of files of contexts
//!   containers/HEX.json    a name for an image, made by `create`
//!   logs/ID/               what a build did (build.json), and what its steps printed
//!   tmp/ID/ tmp/ID.lock    one process's work in progress; swept when its lock is free
//! ```
//! Files appear by rename or not at all. A record counts only if it was written since the last boot, or if its
//! build was synced: after a power cut the rest is ignored, never repaired.

mod accounts;
mod adopt;
mod blobs;
mod caches;
mod collect;
mod containers;
mod contents;
mod copies;
mod error;
mod folded;
mod images;
mod keys;
mod layers;
mod layout;
mod logs;
mod mend;
mod modes;
mod parts;
mod pile;
mod prune;
mod records;
mod secrets;
mod side_by_side;
mod snapshots;
mod stack;
mod staging;
mod stand_ins;
mod trees;
mod verify;
mod waiting;
mod witness;
mod workspace;

pub use accounts::{Account, Ledger, LedgerStep};
pub use caches::{CacheMount, CacheUse, LentCache};
pub use collect::Budget;
pub use containers::Container;
pub use copies::{Before, Files, cut_links};
pub use error::{Result, StoreError};
pub use images::{Image, NamedImage};
pub use layers::PackedLayer;
pub use layout::{Owners, Store};
pub use logs::{BuildLog, LayerLog, LogLock, PhaseLog, StepLog, StepLogFile};
pub use prune::{Freed, Usage};
pub use records::Record;
pub use secrets::{SecretMark, Verdict};
pub use snapshots::{Snapshots, Working};
pub use staging::{Receiving, Staging};
pub use trees::{LISTING, TreeId};
pub use verify::Checked;
pub use waiting::Patience;
pub use workspace::Workspace;
