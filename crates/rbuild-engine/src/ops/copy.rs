//! COPY and ADD: copies selected files into a root file system.

mod archive;
mod copier;
mod destination;
mod downloaded;
mod entry;
mod items;
mod place;

pub(crate) use copier::{CopySettings, StoredDownloads};
pub(crate) use items::{SelectedFiles, copy};
