//! What a build reads: a directory, which of its files a step selects, and what they contain; and files from elsewhere.
//!
//! The same selection serves the build context and the file systems of other stages; paths are resolved inside
//! the source's root and never leave it. Nothing here writes.

mod content;
mod file;
mod glob;
mod hashes;
mod http;
mod ignore;
mod listing;
mod parents;
mod select;
mod sight;
mod similar;
mod stamp;
mod walk;

pub use content::{Content, content};
pub use glob::Glob;
pub use hashes::HashCache;
pub use http::{FetchError, Fetched, fetch, is_url};
pub use ignore::{Ignore, IgnoreError};
pub use listing::{Changes, Listed, Listing};
pub use select::{Owner, Selected, SourceError, SourceTree, Take, is_pattern};
pub use sight::{Details, Sight};
pub use stamp::Stamp;
