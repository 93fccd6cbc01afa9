//! One module per verb of the command line, and modules that several of them use.

pub mod build;
mod build_once;
mod cache_export;
pub mod check;
pub mod confirm;
pub mod containers;
pub mod cp;
pub mod debug;
pub mod doctor;
pub mod explain;
mod fetcher;
pub mod images;
mod in_builder;
pub mod inspect;
mod lint;
pub mod login;
pub mod logs;
pub mod man;
mod named;
mod outline;
pub mod removing;
mod result;
pub mod run;
pub mod save_load;
mod timings;
pub mod transfer;
mod verify;
