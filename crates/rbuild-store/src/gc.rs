//! Garbage collection by budget, pruning on demand, and the check of the store.

pub(crate) mod budget;
pub(crate) mod damage;
pub(crate) mod fsck;
mod misplaced;
pub(crate) mod prune;
pub(crate) mod usage;

#[cfg(test)]
mod tests;
