//! Cache mounts: directories that persist between builds and are not part of any image.

mod cache;
mod lent;

pub use cache::{CacheMount, CacheMounts, CacheUse};
pub use lent::LentCache;
