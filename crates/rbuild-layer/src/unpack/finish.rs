//! Work at the end of an archive: hard links that precede their targets, modes and times of
//! directories, and references to lower layers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rbuild_linux::{FileKind, RootDir, quoted};

use crate::entry::TarEntry;
use crate::error::{LayerError, Result};
use crate::lower_refs::LowerRefs;
use crate::unpack::metadata::unfinished;
use crate::unpack::options::Whiteouts;
use crate::unpack::target::{LinkOutcome, UnpackTarget, entry_error};

/// Maximum length of a chain of hard links, each preceding its target.
const MAX_LINK_CHAIN: usize = 40;

impl UnpackTarget<'_> {
    /// Creates the hard links that precede their targets, which may be such links themselves. In a
    /// layer, those that remain may refer to lower layers.
    fn link_later(&mut self) -> Result<()> {
        for _ in 0..MAX_LINK_CHAIN {
            for (path, entry) in std::mem::take(&mut self.later) {
                let (parent, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
                self.enter_parent(&entry, parent)?;
                if let LinkOutcome::TargetMissing = self.hard_link(&entry, name)? {
                    self.later.insert(path, entry);
                }
            }
            if self.later.is_empty() {
                return Ok(());
            }
        }
        if self.options.whiteouts == Whiteouts::Overlay {
            return Ok(());
        }
        let reason = |entry: &TarEntry| format!("links to {}, which is not in the archive", quoted(&entry.link));
        self.later.values().next().map_or(Ok(()), |entry| Err(entry_error(entry, reason(entry))))
    }

    pub(super) fn finish(mut self) -> Result<LowerRefs> {
        self.link_later()?;
        self.files.end().map_err(unfinished)?;
        self.finish_dirs()?;
        if self.options.whiteouts == Whiteouts::Overlay { self.lower_refs() } else { Ok(LowerRefs::default()) }
    }

    /// Returns the references to lower layers. Paths are those of the tree, with the archive's own
    /// symbolic links resolved.
    fn lower_refs(&self) -> Result<LowerRefs> {
        let real = |path: &Path| -> Result<PathBuf> {
            let path = self.root.resolve(path)?;
            Ok(path.strip_prefix("/").unwrap_or(&path).to_path_buf())
        };
        let mut dirs = BTreeSet::new();
        for dir in &self.implied {
            // A cyclic symbolic link may have replaced it.
            let Ok(dir) = real(dir) else { continue };
            // The resolved path may have an entry of its own, or a later entry may have replaced
            // it.
            let described = self.dirs.contains_key(&dir) && !self.implied.contains(&dir);
            if !described && matches!(self.root.stat(&dir), Ok(stat) if stat.kind == FileKind::Dir) {
                dirs.insert(dir);
            }
        }
        let mut links = Vec::new();
        for (path, entry) in &self.later {
            let (above, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
            links.extend(
                rbuild_paths::inside(&entry.link)
                    .map(|file| Ok::<_, LayerError>((real(above)?.join(name), file)))
                    .transpose()?,
            );
        }
        let root = !self.dirs.contains_key(Path::new(""));
        Ok(LowerRefs { dirs: dirs.into_iter().collect(), links, root })
    }

    /// Sets modes and times of directories, deepest first.
    fn finish_dirs(&self) -> Result<()> {
        let mut parent: Option<(PathBuf, RootDir)> = None;
        for (path, (mode, mtime)) in self.dirs.iter().rev() {
            let Some(name) = path.file_name() else {
                let own = self.root.stat_self()?;
                self.root.set_own_meta(own.owner(), *mode, *mtime)?;
                continue;
            };
            let above = path.parent().unwrap_or(Path::new(""));
            if parent.as_ref().is_none_or(|(p, _)| p != above) {
                parent = match self.root.sub(above) {
                    Ok(dir) => Some((above.to_path_buf(), dir)),
                    // A later entry replaced it.
                    Err(_) => continue,
                };
            }
            let Some((_, dir)) = &parent else { continue };
            if !matches!(dir.stat_name(name), Ok(stat) if stat.kind == FileKind::Dir) {
                continue;
            }
            dir.chmod(name, *mode)?;
            dir.set_mtime(name, *mtime)?;
        }
        Ok(())
    }
}
