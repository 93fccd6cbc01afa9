//! Facts about the builder's world that outlive the moment of its making.

use crate::network::Isolated;

/// Processes that /proc shows in the builder's world and in containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proc {
    /// Those of their own pid namespace.
    Own,
    /// Those of the pid namespace in which rbuild was started, by the numbers that they have there.
    Outer,
}

/// The builder's world as runners find it.
pub(crate) struct Surroundings {
    pub proc: Proc,
    pub isolated: Option<Isolated>,
}
