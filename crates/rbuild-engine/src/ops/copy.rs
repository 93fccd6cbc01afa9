//! COPY and ADD: copies selected files into a root file system.

mod archive;
mod copier;
mod destination;
mod entry;
mod place;

pub(crate) use copier::{Terms, copy};
