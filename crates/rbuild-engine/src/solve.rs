//! The solver: executes the vertices of the graph in parallel, and refuses results that a build may
//! not have.

pub(crate) mod executor;
pub(crate) mod records;
pub(crate) mod refusal;
pub(crate) mod vertex;
