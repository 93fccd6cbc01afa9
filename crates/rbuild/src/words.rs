//! The words of the command line: verbs, help pages, and answers to words that are not known.

pub mod shape;
pub mod usage;
pub mod verbs;
