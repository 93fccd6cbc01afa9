//! File systems put together by copying, where the kernel mounts no overlays: a store on an overlay, a container that
//! may not mount. Trees keep their form; only how they are put on each other and taken off again differs.

mod changes;
mod links;
mod merge;

pub use changes::Before;
pub use links::cut_links;
pub(crate) use merge::copy_entry;
pub use merge::{Files, Marks, merge};

#[cfg(test)]
mod tests;
