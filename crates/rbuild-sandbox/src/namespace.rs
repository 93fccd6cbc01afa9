//! The builder's namespaces: choice of the isolation mode, entry, ID maps, network.

pub(crate) mod checks;
pub(crate) mod enter;
pub(crate) mod isolation;
pub(crate) mod machine;
pub(crate) mod network;
