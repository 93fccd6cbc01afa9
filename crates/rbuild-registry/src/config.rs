//! Settings files of Podman and containerd, and certificates.

pub(crate) mod certs;
pub(crate) mod hosts;
pub(crate) mod registries;
