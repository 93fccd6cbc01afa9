//! Reads the sources of a build: selects files of a directory, and hashes their content.
//!
//! Selection works the same for the build context and for the file systems of other stages. Paths
//! are resolved inside the root of the source and never leave it. This crate does not write.

mod buildkit;
mod content;
mod file;
mod fingerprint;
mod hashes;
mod ids;
mod ignore;
mod listing;
mod parents;
mod scan;
mod select;
mod walk;

pub use buildkit::buildkit_digest;
pub use content::{HardLinks, Selection, SelectionContent, content, content_without_links};
pub use fingerprint::{Details, Fingerprint};
pub use hashes::HashCache;
pub use ids::{ContentHash, SelectionHash};
pub use ignore::{Ignore, IgnoreError};
pub use listing::{Changes, ListedSource, Listing};
pub use select::{CopiedPart, Owner, Selected, SourceError, SourceTree, StoreDir};
