//! Archives that ADD unpacks.

use std::io::Read;
use std::path::{Path, PathBuf};

use rbuild_layer::{Compression, Decoder, EntryKind, Owners, Unpacking, detect, entry_path, is_tar, unpack_some};
use rbuild_linux::RootDir;
use rbuild_source::{Details, Selected, Sight, SourceTree};

use super::{Copier, Reason, unchanged};

/// Of the directory that an archive is unpacked into, whatever mode the step gives to files.
const DEST_MODE: u32 = 0o755;

impl Copier<'_> {
    /// Unpacks the file into the destination if its content is an archive.
    pub(super) fn unpack_archive(
        &mut self,
        tree: &SourceTree<'_>,
        item: &Selected,
        dest: &Path,
    ) -> Result<bool, Reason> {
        if !is_archive(tree.root, &item.path)? {
            return Ok(false);
        }
        let dir = self.dir(dest, DEST_MODE)?;
        let owners = self.chown.map_or(Owners::FromArchive, |(uid, gid)| Owners::Always(uid, gid));
        let cancel = self.terms.cancel;
        let how = Unpacking { stop: &|| cancel.is_cancelled(), ..Unpacking::archive(owners, self.terms.limits) };
        let mut described = Vec::new();
        let unpacked = unpack_some(tree.root.open_file(&item.path)?, &dir.handle, how, &mut |entry| {
            described.extend(entry_path(&entry.path).filter(|_| entry.kind == EntryKind::Dir));
            true
        });
        // One that was written meanwhile may have been no archive for a moment.
        let (source, name) = tree.root.parent(&item.path)?;
        unchanged(&source, &name, &item.stat)?;
        unpacked?;
        self.covered_by_archive(&dir.real, &dir.handle, described)?;
        self.see(Sight::of_entry(&item.path, tree.owner, &item.stat, &Details::None));
        Ok(true)
    }

    /// Nothing that the step put below the destination need still be what it was; directories that the archive describes have
    /// its times.
    fn covered_by_archive(&mut self, dest: &Path, dir: &RootDir, described: Vec<PathBuf>) -> Result<(), Reason> {
        self.links.clear();
        if let Some(track) = &mut self.track {
            track.listing.cover_below(dest);
        }
        for path in described.into_iter().filter(|path| !path.as_os_str().is_empty()) {
            let real = dir.resolve(&path)?;
            self.times.remove(&dest.join(real.strip_prefix("/").unwrap_or(&real)));
        }
        Ok(())
    }
}

/// Whether a file holds a tar. Compressed bytes are an archive if a tar is inside.
fn is_archive(root: &RootDir, path: &Path) -> Result<bool, Reason> {
    let mut head = Vec::new();
    let file = root.open_file(path)?;
    file.take(512).read_to_end(&mut head).map_err(|e| rbuild_linux::Error::new("read", path, e))?;
    if detect(&head) == Compression::None {
        return Ok(is_tar(&head));
    }
    let mut inner = Vec::new();
    let decoded = Decoder::new(root.open_file(path)?).and_then(|d| d.take(512).read_to_end(&mut inner));
    Ok(decoded.is_ok() && is_tar(&inner))
}
