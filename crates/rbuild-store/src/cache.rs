//! Cache records, and the inputs that their keys were computed from.

pub(crate) mod all_steps;
pub(crate) mod build_index;
pub(crate) mod records;
