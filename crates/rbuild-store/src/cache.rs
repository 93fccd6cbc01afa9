//! Cache records, and the inputs that their keys were computed from.

pub(crate) mod inputs;
pub(crate) mod records;
