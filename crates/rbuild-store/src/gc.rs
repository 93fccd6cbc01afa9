//! Garbage collection by budget, pruning on demand, and the check of the store.

pub(crate) mod budget;
pub(crate) mod damage;
pub(crate) mod freed;
pub(crate) mod fsck;
pub(crate) mod measure;
mod misplaced;
pub(crate) mod prune;
pub(crate) mod trash;
pub(crate) mod usage;

#[cfg(test)]
mod tests;
