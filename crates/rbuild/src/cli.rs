//! The command line: verbs, help pages, and errors about unknown words.

pub mod clap_command;
pub mod completion;
mod description;
pub mod error_pages;
pub mod man;
pub mod substitutes;
pub mod topics;
pub mod usage;
pub mod verb_groups;
pub mod verbs;
