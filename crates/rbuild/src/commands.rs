//! One module per verb of the command line.

pub mod build;
pub mod check;
pub mod cp;
pub mod debug;
pub mod doctor;
pub mod images;
pub mod logs;
pub mod run;
pub mod save_load;
pub mod verify;
