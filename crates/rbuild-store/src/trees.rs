//! Trees: the files of steps and layers.

pub(crate) mod adopt;
pub(crate) mod backend;
pub(crate) mod cached_steps;
pub(crate) mod changes;
pub(crate) mod copies;
pub(crate) mod device_placeholders;
pub(crate) mod fixup;
pub(crate) mod id;
pub(crate) mod lazy;
pub(crate) mod merged;
pub(crate) mod notes;
pub(crate) mod partial;
pub(crate) mod stack;
pub(crate) mod tree;
pub(crate) mod union;
