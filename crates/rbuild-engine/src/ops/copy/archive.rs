//! Unpacking of archives by ADD.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rbuild_layer::{Compression, Decoder, EntryKind, Owners, Unpacking, detect, is_tar, unpack_some};
use rbuild_linux::RootDir;
use rbuild_source::{Details, Fingerprint, Selected, SourceTree};

use crate::ops::copy::copier::Copier;
use crate::ops::copy_error::CopyProblem;
use crate::ops::copy_file::unchanged;

/// Mode of the directory that an archive is unpacked into. The step's `--chmod` does not apply to
/// it.
const DEST_MODE: u32 = 0o755;

/// Opens a file for reading from its beginning; can be called several times.
type Opener<'a> = &'a dyn Fn() -> Result<File, CopyProblem>;

/// Unpacks a selected file into the destination if it is an archive. Returns false if it is not.
pub(super) fn unpack_selected(
    copier: &mut Copier<'_>,
    tree: &SourceTree<'_>,
    item: &Selected,
    dest: &Path,
) -> Result<bool, CopyProblem> {
    let open = || Ok(tree.root.open_file(&item.path)?);
    let (source, name) = tree.root.parent(&item.path)?;
    let unpacked = unpack_archive(copier, &open, dest, &|| unchanged(&source, &name, &item.stat))?;
    if unpacked {
        copier.add_fingerprint(Fingerprint::of_entry(&item.path, tree.owner, &item.stat, &Details::None));
    }
    Ok(unpacked)
}

/// Unpacks a file into the destination if it is an archive. Returns false if it is not. `check`
/// fails if the file has changed in the meantime.
pub(super) fn unpack_archive(
    copier: &mut Copier<'_>,
    open: Opener<'_>,
    dest: &Path,
    check: &dyn Fn() -> Result<(), CopyProblem>,
) -> Result<bool, CopyProblem> {
    if !is_archive(open)? {
        return Ok(false);
    }
    let dir = copier.dir(dest, DEST_MODE)?;
    let owners = copier.chown.map_or(Owners::FromArchive, Owners::Always);
    let cancel = copier.settings.cancel;
    let options = Unpacking { stop: &|| cancel.is_canceled(), ..Unpacking::archive(owners, copier.settings.limits) };
    let mut described = Vec::new();
    let unpacked = unpack_some(open()?, &dir.handle, options, &mut |entry| {
        described.extend(rbuild_paths::inside(&entry.path).filter(|_| entry.kind == EntryKind::Dir));
        true
    });
    // This check precedes that of the result of unpacking, because a file that is being written may
    // appear corrupt.
    check()?;
    unpacked?;
    covered_by_archive(copier, &dir.real, &dir.handle, described)?;
    Ok(true)
}

/// Discards records that the archive may have invalidated: everything the step wrote below the
/// destination, and pending modification times of directories that the archive describes.
fn covered_by_archive(
    copier: &mut Copier<'_>,
    dest: &Path,
    dir: &RootDir,
    described: Vec<PathBuf>,
) -> Result<(), CopyProblem> {
    copier.links.clear();
    if let Some(incremental) = &mut copier.incremental {
        incremental.listing.cover_below(dest);
    }
    for path in described.into_iter().filter(|path| !path.as_os_str().is_empty()) {
        let real = dir.resolve(&path)?;
        copier.times.remove(&dest.join(real.strip_prefix("/").unwrap_or(&real)));
    }
    Ok(())
}

/// Returns true if a file is a tar archive. A compressed file is a tar archive if its content is
/// one.
fn is_archive(open: Opener<'_>) -> Result<bool, CopyProblem> {
    let mut head = Vec::new();
    open()?
        .take(512)
        .read_to_end(&mut head)
        .map_err(|e| rbuild_linux::Error::new("read", rbuild_linux::described("the archive"), e))?;
    if detect(&head) == Compression::None {
        return Ok(is_tar(&head));
    }
    let mut inner = Vec::new();
    let decoded = Decoder::new(open()?).and_then(|d| d.take(512).read_to_end(&mut inner));
    Ok(decoded.is_ok() && is_tar(&inner))
}
