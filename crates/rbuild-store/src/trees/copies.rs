//! Snapshots by copying, for systems on which overlays cannot be mounted: a store on an overlay
//! file system, or a container that may not mount. Trees have the same form as with overlays; only
//! merging them and extracting changes differ.

mod diff;
mod links;
mod merge;

pub use diff::Baseline;
pub use links::cut_links;
pub(crate) use merge::copy_tree_entry;
pub use merge::{MergedFiles, MergedWhiteouts, merge};

#[cfg(test)]
mod tests;
