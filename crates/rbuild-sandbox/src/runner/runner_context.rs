//! Properties of the builder's environment that later runners need.

use rbuild_linux::OwnerRecords;

use crate::namespace::network::Isolated;

/// The processes that /proc shows to the builder and in containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProcView {
    /// Those of their own PID namespace.
    Own,
    /// Those of the PID namespace in which rbuild was started, with the IDs of that namespace.
    Outer,
}

/// The builder's environment as runners find it.
pub(crate) struct RunnerContext {
    /// The records that determine the owners of the builder's files.
    pub owners: OwnerRecords,
    /// The processes that /proc shows.
    pub proc: ProcView,
    /// The isolated network of the build, if there is one.
    pub isolated: Option<Isolated>,
}
