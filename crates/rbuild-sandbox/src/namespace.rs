//! The builder's namespaces: choice of the isolation mode, entry, ID maps, network.

pub(crate) mod enter;
pub(crate) mod isolation;
pub(crate) mod network;
pub(crate) mod newuidmap;
