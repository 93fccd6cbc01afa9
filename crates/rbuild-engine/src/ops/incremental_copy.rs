//! Tracking of copied files across builds, and deferred writing. Deferred files are written after
//! the step's file system has been unmounted: straight into the tree, without an overlay, by
//! several threads.
//!
//! Files that are unchanged since an earlier copy from the same context become hard links to it,
//! path by path, which preserves the hard links within a result. Files of trees are never modified
//! in place (overlays copy them up, copied file systems contain copies), so two trees may share a
//! file. A copy that differs little from the earlier one is stored as changes to it (`changes`).

mod changes;
mod finish;
mod state;

pub use state::IncrementalCopy;
