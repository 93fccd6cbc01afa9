//! Verbs on containers.

pub mod abandoned;
pub mod background;
pub mod changes;
pub mod command;
pub mod create;
pub mod exec;
pub mod foreground;
pub mod id_file;
pub mod image;
pub mod inspect;
pub mod launch;
pub mod limits;
pub mod list;
pub mod lookup;
pub mod output;
pub mod ports;
pub mod remove;
pub mod restart;
pub mod restarts;
pub mod settings;
pub mod signals;
pub mod start;
