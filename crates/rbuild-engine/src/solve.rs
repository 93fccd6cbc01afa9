//! The solver: schedules the vertices of the graph and executes them in parallel.

pub(crate) mod executor;
pub(crate) mod records;
pub(crate) mod results;
pub(crate) mod schedule;
pub(crate) mod vertex;
