//! COPY and ADD: copies selected files into a root file system.

mod archive;
mod copier;
mod destination;
mod entry;
mod items;
mod place;

pub(crate) use copier::Terms;
pub(crate) use items::{SelectedFiles, copy};
