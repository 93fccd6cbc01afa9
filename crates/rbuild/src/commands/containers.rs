//! Verbs on containers.

pub mod command;
pub mod create;
pub mod exec;
pub mod image;
pub mod inspect;
pub mod list;
pub mod lookup;
pub mod output;
pub mod ports;
pub mod remove;
pub mod signals;
pub mod start;
