//! Parses the values of `--cache-from` and `--cache-to`, and opens the caches.

mod fields;
mod keys;
mod sources;
mod targets;
#[cfg(test)]
mod tests;

pub use fields::{insecure_registries, mount_choice};
pub use keys::{signing_with, trusted_keys};
pub use sources::{CacheReader, ReadCache, check_signed, remote_sources, sources};
pub use targets::{CachePlace, CacheTarget, targets};
