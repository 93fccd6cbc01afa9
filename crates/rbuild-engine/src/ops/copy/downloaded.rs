//! Downloaded files as sources of ADD.

use std::ffi::OsStr;
use std::path::Path;

use rbuild_linux::{Timestamp, file_stat};
use rbuild_plan::UrlSource;
use rbuild_source::Ignore;

use crate::ops::copy::archive::unpack_archive;
use crate::ops::copy::copier::{Copier, StoredDownloads};
use crate::ops::copy_error::CopyProblem;
use crate::ops::copy_file::copy_file;

/// Mode of downloaded files, as in BuildKit.
const MODE: u32 = 0o600;

/// Copies a downloaded file, or unpacks it.
pub(super) fn downloaded(copier: &mut Copier<'_>, file: &UrlSource, unpack: bool) -> Result<(), CopyProblem> {
    copier.settings.check()?;
    let step = copier.step;
    let exclude = Ignore::from_patterns(&step.exclude)?;
    if exclude.excludes(&file.name) {
        return Ok(());
    }
    let StoredDownloads { store, downloads } = copier.settings.downloaded;
    let download = downloads.get(file).map_err(|e| CopyProblem::Build(Box::new(e)))?;
    let open = || Ok(store.blobs().open_blob(&download.digest)?);
    if unpack && unpack_archive(copier, &open, Path::new(&step.dest), &|| Ok(()))? {
        return Ok(());
    }
    let (dir, name) = copier.file_place(OsStr::new(&file.name))?;
    let place = dir.real.join(&name);
    copier.written_to(&dir);
    copier.clear_place(&dir, &name)?;
    if let Some(incremental) = &mut copier.incremental {
        incremental.listing.cover(&place);
    }
    let content = open()?;
    let stat = file_stat(&content)?;
    copy_file(&content, &stat, &dir.handle.create_file(&name, MODE)?, copier.settings.cancel)?;
    dir.handle.chown(&name, copier.chown.unwrap_or_default())?;
    dir.handle.chmod(&name, copier.mode(MODE, false))?;
    // As in BuildKit, a file without a known time gets time 0.
    Ok(dir.handle.set_mtime(&name, Timestamp { sec: download.modified.unwrap_or(0), nsec: 0 })?)
}
