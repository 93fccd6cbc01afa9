//! Outputs: images packed from trees, archives, and files in directories.

pub(crate) mod cache_steps;
pub(crate) mod image;
pub(crate) mod lent_image;
pub(crate) mod local;
pub(crate) mod outputs;
pub(crate) mod packing_error;
pub(crate) mod stream;
