//! Copies a single source entry, immediately or later.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rbuild_layer::{ExternalFile, keep_in_layer};
use rbuild_linux::{EntryCopy, FileKind, FileStamp, RootDir, SocketCopies, Stat, UidGid, copy_entry};
use rbuild_source::{ContentHash, Details, Fingerprint, ListedSource, SourceTree};

use crate::ops::copy::copier::{Copier, Defers};
use crate::ops::copy::destination::DestDir;
use crate::ops::copy_error::CopyProblem;
use crate::ops::copy_file::unchanged;

/// An entry of the source.
#[derive(Clone, Copy)]
pub(super) struct Origin<'a> {
    /// Parent directory.
    pub dir: &'a RootDir,
    /// Name in the parent directory.
    pub name: &'a OsStr,
    /// Path in the source.
    pub path: &'a Path,
    /// True if others may change the source during the copy.
    pub may_change: bool,
}

/// A name in a directory of the root.
#[derive(Clone, Copy)]
pub(super) struct DestEntry<'a> {
    pub dir: &'a DestDir,
    pub name: &'a OsStr,
}

impl DestEntry<'_> {
    /// Returns the resolved path.
    fn real(self) -> PathBuf {
        self.dir.real.join(self.name)
    }
}

/// Owner and mode of a copied entry.
#[derive(Clone, Copy)]
struct EntryMeta {
    owner: UidGid,
    mode: u32,
}

impl Copier<'_> {
    /// Copies one entry of the source to a name in a directory. Of a directory, only the directory
    /// itself is copied, not its contents.
    pub(super) fn entry(
        &mut self,
        tree: &SourceTree<'_>,
        origin: Origin<'_>,
        stat: &Stat,
        to: DestEntry<'_>,
    ) -> Result<(), CopyProblem> {
        self.settings.check()?;
        let owner = self.chown.unwrap_or_else(|| tree.owner.ids(stat));
        let meta = EntryMeta { owner, mode: self.mode(tree.owner.mode(stat), stat.kind == FileKind::Dir) };
        let details = Details::read(origin.dir, origin.name, stat)?;
        self.note(tree, origin.path, stat, &details, to);
        match stat.kind {
            FileKind::Dir => self.put_dir(&details, stat, to, meta),
            _ if self.may_defer(to, stat) => {
                self.cover(&to.real());
                self.defer(origin, stat, to, meta)
            }
            _ => self.put(origin, &details, stat, to, meta),
        }
    }

    fn put_dir(
        &mut self,
        details: &Details,
        stat: &Stat,
        to: DestEntry<'_>,
        EntryMeta { owner, mode }: EntryMeta,
    ) -> Result<(), CopyProblem> {
        let DestEntry { dir, name } = to;
        let place = self.entry_dir(dir, name)?;
        let attrs = match details {
            Details::Attributes(attributes) => attributes.iter(),
            Details::Target(_) | Details::None => Default::default(),
        };
        if place == to.real() {
            dir.handle.chown(name, owner)?;
            dir.handle.chmod(name, mode)?;
            for (attr, value) in attrs {
                dir.handle.set_xattr(name, attr, value)?;
            }
        } else {
            let behind = self.root.sub(&place)?;
            behind.set_own_meta(owner, mode, stat.mtime)?;
            for (attr, value) in attrs {
                behind.set_xattr(OsStr::new(""), attr, value)?;
            }
        }
        self.times.insert(place, stat.mtime);
        Ok(())
    }

    fn put(
        &mut self,
        origin: Origin<'_>,
        details: &Details,
        stat: &Stat,
        DestEntry { dir, name }: DestEntry<'_>,
        EntryMeta { owner, mode }: EntryMeta,
    ) -> Result<(), CopyProblem> {
        let Origin { dir: source, name: source_name, path: _, may_change } = origin;
        self.clear_place(dir, name)?;
        let to = &dir.handle;
        if stat.nlink > 1 && stat.kind == FileKind::File {
            if let Some(first) = self.links.first(stat) {
                let (first_dir, first_name) = self.root.parent(first)?;
                return Ok(to.hard_link(&first_dir, &first_name, name)?);
            }
            self.links.put(stat, dir.real.join(name));
        }
        let copy = EntryCopy {
            owner,
            mode,
            // The fingerprint contains this target.
            target: match details {
                Details::Target(target) => Some(target.as_os_str()),
                Details::Attributes(_) | Details::None => None,
            },
            sockets: SocketCopies::Files,
            keep_attribute: Some(keep_in_layer),
            go_on: &|| !self.settings.cancel.is_canceled(),
        };
        if copy_entry(source, source_name, stat, to, name, &copy)?.is_break() {
            return Err(CopyProblem::Canceled);
        }
        if may_change && stat.kind == FileKind::File {
            unchanged(source, source_name, stat)?;
        }
        Ok(())
    }

    /// Records the source and the destination of an entry.
    pub(super) fn note(
        &mut self,
        tree: &SourceTree<'_>,
        source: &Path,
        stat: &Stat,
        details: &Details,
        to: DestEntry<'_>,
    ) {
        self.add_fingerprint(Fingerprint::of_entry(source, tree.owner, stat, details));
        // Files of other stages are identified by their content, not by their modification times.
        let (Some(hashes), Some(incremental)) = (tree.hashes, &mut self.incremental) else { return };
        let digest = match details {
            Details::Target(target) => Some(ContentHash::of_link_target(target.as_bytes())),
            _ if stat.kind == FileKind::File => hashes.last_read(stat),
            _ => None,
        };
        let stamp = (hashes.is_settled(stat) && stat.kind == FileKind::File).then(|| FileStamp::of(stat));
        let mode = stat.kind.bits() | tree.owner.mode(stat);
        incremental.listing.put(&to.real(), ListedSource { source, mode, stamp, digest });
    }

    /// Returns true if the entry is a file that may be written later. Nothing that blocks it may
    /// exist at the destination.
    fn may_defer(&self, DestEntry { dir, name }: DestEntry<'_>, stat: &Stat) -> bool {
        let plain = stat.kind == FileKind::File && stat.nlink == 1;
        if !plain
            || self.defers == Defers::Nothing
            || !self.incremental.as_ref().is_some_and(|incremental| incremental.defers)
        {
            return false;
        }
        if self.defers == Defers::Plain && dir.made {
            return true;
        }
        match dir.handle.stat_name(name) {
            Err(_) => true,
            // The existing file may come from this copy.
            Ok(there) => there.kind != FileKind::Dir && self.defers == Defers::Plain,
        }
    }

    /// Defers the writing of a file.
    fn defer(
        &mut self,
        origin: Origin<'_>,
        stat: &Stat,
        DestEntry { dir, name }: DestEntry<'_>,
        EntryMeta { owner, mode }: EntryMeta,
    ) -> Result<(), CopyProblem> {
        let now = self.now();
        let Some(incremental) = &mut self.incremental else { return Ok(()) };
        let source_dir = origin.path.parent().unwrap_or(Path::new(""));
        let (source, name) = (origin.name.into(), name.into());
        let file = ExternalFile { source, name, stat: *stat, owner, mode, unchanged: false };
        let tracked = self.defers == Defers::Tracked;
        if incremental.later(source_dir, &dir.real, file, tracked) && !dir.made {
            // The directory must be part of the layer, as it would be if the file were written now.
            let (dir, own) = (dir.handle.sub(".")?, dir.handle.stat_self()?);
            dir.set_own_meta(own.owner(), own.mode, now)?;
        }
        Ok(())
    }
}
