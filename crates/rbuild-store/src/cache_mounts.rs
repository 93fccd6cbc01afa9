//! Cache mounts: directories that persist between builds and are not part of any image.

mod cache;
mod known;
mod private_view;

pub use cache::{CacheMount, CacheMounts, CacheUse};
pub use known::KnownMount;
pub use private_view::CacheView;
