//! What a build reads: a directory, which of its files a step selects, and what they contain.
//!
//! The same selection serves the build context and the file systems of other stages; paths are resolved inside
//! the source's root and never leave it. Nothing here writes.

mod content;
mod glob;
mod hashes;
mod ignore;
mod select;

pub use content::content_digest;
pub use glob::Glob;
pub use hashes::HashCache;
pub use ignore::{Ignore, IgnoreError};
pub use select::{Owner, Selected, SourceError, SourceTree};
