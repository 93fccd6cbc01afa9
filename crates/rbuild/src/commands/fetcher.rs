//! Fetchers: separate processes for pulls, pushes and downloads of a build.
//!
//! A fetcher is forked by the launcher, in the caller's namespaces, because the resolver, the
//! certificates and the credentials are available only there. Only fetchers read credentials and
//! communicate with registries. The launcher remains single-threaded. The builder, which is started
//! later and handles hostile images, has no credentials in its memory.

pub mod caches;
pub mod claims;
pub mod downloads;
pub mod early_push;
pub mod ending;
mod forked;
pub mod layer_server;
pub mod pulls;
pub mod pushes;
pub mod single_pull;
mod task;
pub mod unpacking_pull;
