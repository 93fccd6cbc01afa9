//! Unpacks a layer or an archive into a directory.
//!
//! The directory acts as the root: the kernel resolves every path, and every target of a hard link,
//! inside it. Modes and times of directories are set at the end, deepest first, so that read-only
//! directories can be filled.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rbuild_image::{BlobDigest, DiffId, Hasher};
use rbuild_linux::{Kind, RootDir, Timestamp, set_file_owner};

use crate::bounded::Bounded;
use crate::compress::Compression;
use crate::entry::{EntryKind, TarEntry};
use crate::error::{LayerError, Result};
use crate::limits::Limits;
use crate::lower_refs::LowerRefs;
use crate::read_ahead::with_read_ahead;
use crate::reader::TarReader;
use crate::write_behind::{Filled, Finisher, SMALL, Unfinished};
use crate::xattrs::{OPAQUE, ORIGIN, keep_in_tree};

mod content;

use content::{read_content, write_content};

/// Prefix of the names of whiteouts.
pub(crate) const WHITEOUT: &[u8] = b".wh.";
/// Name of the entry that marks its directory as opaque.
const OPAQUE_WHITEOUT: &[u8] = b".wh..wh..opq";

/// Interpretation of `.wh.*` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whiteouts {
    /// Whiteouts of an image layer; they become overlay whiteouts.
    Overlay,
    /// Ordinary names, as in an archive unpacked by `ADD`.
    Plain,
}

/// Ownership of unpacked files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// The IDs in the archive.
    FromArchive,
    /// This user and group ID.
    Always(u32, u32),
}

/// Digests, sizes and references of an unpacked archive.
#[derive(Debug, Clone)]
pub struct Unpacked {
    /// Digest of the bytes as read, compressed.
    pub digest: BlobDigest,
    /// Number of bytes as read, compressed.
    pub size: u64,
    /// Digest of the bytes after decompression.
    pub diff_id: DiffId,
    /// Number of bytes after decompression.
    pub unpacked: u64,
    /// Number of entries.
    pub entries: u64,
    /// References to lower layers; empty unless the archive is a layer.
    pub lower_refs: LowerRefs,
}

/// Returns true if unpacking is cancelled.
pub type Stop<'a> = &'a (dyn Fn() -> bool + Sync);

/// Options for unpacking.
#[derive(Clone, Copy)]
pub struct Unpacking<'a> {
    /// Interpretation of `.wh.*` names.
    pub whiteouts: Whiteouts,
    /// Ownership of unpacked files.
    pub owners: Owners,
    /// Limits on the archive.
    pub limits: Limits,
    /// Digest of the bytes as read, if it has been verified already. It is then not computed again.
    pub known: Option<BlobDigest>,
    /// Nanoseconds of the modification times of the entries, in their order, if the archive is a
    /// layer with a [`Remainder`](crate::Remainder).
    pub nanoseconds: Option<&'a [u32]>,
    /// Polled before every read. Unpacking fails with [`LayerError::Stopped`] once it returns true.
    pub stop: Stop<'a>,
}

impl Unpacking<'_> {
    /// Returns the options for a layer of an image.
    pub fn layer(limits: Limits) -> Unpacking<'static> {
        Unpacking { whiteouts: Whiteouts::Overlay, ..Unpacking::archive(Owners::FromArchive, limits) }
    }

    /// Returns the options for an archive of files.
    pub fn archive(owners: Owners, limits: Limits) -> Unpacking<'static> {
        Unpacking { whiteouts: Whiteouts::Plain, owners, limits, known: None, nanoseconds: None, stop: &|| false }
    }
}

/// Unpacks a tar archive of any compression into `root`.
///
/// After an error the directory contains part of the archive. Unpack into a private directory, and
/// publish it after comparing the digests.
///
/// # Errors
///
/// Fails if the archive cannot be read, is damaged or exceeds a limit, if an entry cannot be
/// created, or if unpacking is cancelled.
pub fn unpack(source: impl Read + Send, root: &RootDir, how: Unpacking<'_>) -> Result<Unpacked> {
    unpack_some(source, root, how, &mut |_| true)
}

/// Unpacks only the entries for which `wants` returns true. The stream is still read and hashed to
/// its end.
///
/// # Errors
///
/// Fails as [`unpack`] does.
pub fn unpack_some(
    source: impl Read + Send,
    root: &RootDir,
    how: Unpacking<'_>,
    wants: &mut dyn FnMut(&TarEntry) -> bool,
) -> Result<Unpacked> {
    let mut raw = Tee::new(source, how.known.is_none());
    let decoder = Bounded::new(&mut raw, how.limits).map_err(LayerError::io("the start of the archive"))?;
    // An uncompressed archive has one digest for both.
    let plain = decoder.compression() == Compression::None;
    let (_, result, diff_id) = with_read_ahead(decoder, !plain, |stream| {
        let mut tee = Tee::new(Stoppable { stream, stop: how.stop }, false);
        let mut target = Target::new(root, how)?;
        let mut reader = TarReader::with_header_limit(&mut tee, how.limits.header);
        let mut nanoseconds = how.nanoseconds.unwrap_or_default().iter();
        while let Some(mut entry) = reader.next_entry()? {
            entry.mtime.nsec = nanoseconds.next().copied().unwrap_or(entry.mtime.nsec);
            if wants(&entry) {
                target.apply(&entry, &mut reader).map_err(|e| e.of_entry(&entry))?;
            }
        }
        reader.drain(how.limits.tail(target.bytes))?;
        let entries = target.entries;
        let lower_refs = target.finish()?;
        Ok::<_, LayerError>((tee.count, entries, lower_refs))
    });
    let (unpacked, entries, lower_refs) = result?;
    // The digest also covers bytes that follow the end of the compressed stream.
    std::io::copy(&mut raw, &mut std::io::sink()).map_err(LayerError::io("the end of the archive"))?;
    let digest: BlobDigest = how.known.unwrap_or_else(|| raw.hasher.unwrap_or_default().finish());
    Ok(Unpacked {
        digest,
        size: raw.count,
        diff_id: diff_id.unwrap_or(digest.of_plain_layer()),
        unpacked,
        entries,
        lower_refs,
    })
}

/// Counts the bytes read, and hashes them on request.
struct Tee<R> {
    stream: R,
    hasher: Option<Hasher>,
    count: u64,
}

impl<R> Tee<R> {
    fn new(stream: R, hashes: bool) -> Tee<R> {
        Tee { stream, hasher: hashes.then(Hasher::new), count: 0 }
    }
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.stream.read(buf)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buf[..n]);
        }
        self.count += n as u64;
        Ok(n)
    }
}

/// Fails reads once unpacking is cancelled.
struct Stoppable<'a, R> {
    stream: R,
    stop: Stop<'a>,
}

impl<R: Read> Read for Stoppable<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if (self.stop)() {
            return Err(std::io::Error::other(LayerError::Stopped));
        }
        self.stream.read(buf)
    }
}

/// The state of unpacking into one root.
struct Target<'a> {
    root: &'a RootDir,
    how: Unpacking<'a>,
    entries: u64,
    bytes: u64,
    /// The directory of the last entry, which most entries share with their predecessor.
    parent: (PathBuf, RootDir),
    finisher: Finisher,
    /// Hard links whose targets may follow in the archive, by the path of the link.
    later: BTreeMap<PathBuf, TarEntry>,
    /// Mode and time of directories, applied at the end.
    dirs: BTreeMap<PathBuf, (u32, Timestamp)>,
    /// Directories without an entry of their own, created because an entry is inside them.
    implied: BTreeSet<PathBuf>,
    buffer: Vec<u8>,
}

fn entry_error(entry: &TarEntry, reason: impl Into<String>) -> LayerError {
    LayerError::Entry { name: entry.path.to_string_lossy().into_owned(), reason: reason.into() }
}

impl TarEntry {
    /// Returns the path that the entry affects: its own, or for a whiteout the deleted path.
    /// Returns `None` if the path is outside the root.
    pub fn subject(&self) -> Option<PathBuf> {
        let path = rbuild_paths::inside(&self.path)?;
        let name = path.file_name().unwrap_or_default().as_bytes();
        if name == OPAQUE_WHITEOUT {
            return Some(path.parent().unwrap_or(Path::new("")).to_path_buf());
        }
        Some(match name.strip_prefix(WHITEOUT) {
            Some(hidden) => path.with_file_name(OsStr::from_bytes(hidden)),
            None => path,
        })
    }
}

impl<'a> Target<'a> {
    fn new(root: &'a RootDir, how: Unpacking<'a>) -> Result<Target<'a>> {
        Ok(Target {
            root,
            how,
            entries: 0,
            bytes: 0,
            parent: (PathBuf::new(), root.try_clone()?),
            finisher: Finisher::default(),
            later: BTreeMap::new(),
            dirs: BTreeMap::new(),
            implied: BTreeSet::new(),
            buffer: vec![0; 256 * 1024],
        })
    }

    fn apply<R: Read>(&mut self, entry: &TarEntry, content: &mut TarReader<R>) -> Result<()> {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(entry.whole_size());
        self.how.limits.check(entry, self.entries, self.bytes)?;
        let path = rbuild_paths::inside(&entry.path)
            .ok_or_else(|| entry_error(entry, "leaves the archive's root with `..`"))?;
        let Some(name) = path.file_name() else { return self.apply_root(entry) };
        let name = name.to_os_string();
        self.enter_parent(entry, path.parent().unwrap_or(Path::new("")))?;
        // If several entries have the same name, the last one wins.
        self.forget_links(&path, entry.kind);
        if self.how.whiteouts == Whiteouts::Overlay && name.as_bytes().starts_with(WHITEOUT) {
            return self.whiteout(entry, &name);
        }
        self.create(entry, &path, &name, content)
    }

    /// Discards pending hard links at `path`, and those below it unless it becomes a directory.
    fn forget_links(&mut self, path: &Path, kind: EntryKind) {
        self.later.remove(path);
        if kind == EntryKind::Dir || self.later.is_empty() {
            return;
        }
        let below =
            self.later.range(path.to_path_buf()..).map(|(link, _)| link).take_while(|link| link.starts_with(path));
        for link in below.cloned().collect::<Vec<_>>() {
            self.later.remove(&link);
        }
    }

    fn ids(&self, entry: &TarEntry) -> Result<(u32, u32)> {
        match self.how.owners {
            Owners::Always(uid, gid) => Ok((uid, gid)),
            Owners::FromArchive => {
                // The highest ID is invalid: to chown(2) it means "unchanged".
                let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
                let ids = id(entry.uid).zip(id(entry.gid));
                let odd = || format!("belongs to {}:{}, and there are ids below 4294967295 only", entry.uid, entry.gid);
                ids.ok_or_else(|| entry_error(entry, odd()))
            }
        }
    }

    fn apply_root(&mut self, entry: &TarEntry) -> Result<()> {
        // The root entry of an archive does not describe the directory that it is added to.
        if entry.kind != EntryKind::Dir || self.how.whiteouts == Whiteouts::Plain {
            return match entry.kind {
                EntryKind::Dir => Ok(()),
                _ => Err(entry_error(entry, "would replace the root directory")),
            };
        }
        let (uid, gid) = self.ids(entry)?;
        self.root.set_own_meta(uid, gid, entry.mode, entry.mtime).map_err(|e| self.owner_hint(entry, e))?;
        self.dirs.insert(PathBuf::new(), (entry.mode, entry.mtime));
        Ok(())
    }

    fn enter_parent(&mut self, entry: &TarEntry, parent: &Path) -> Result<()> {
        if self.parent.0.as_os_str() == parent.as_os_str() {
            return Ok(());
        }
        let dir = match self.root.sub(parent) {
            Ok(dir) => dir,
            Err(e) if e.is_not_found() => {
                let (implied, dirs) = (&mut self.implied, &mut self.dirs);
                // The parent may be a symbolic link whose target does not exist yet, or exists in
                // lower layers only.
                let real = self.root.resolve(parent)?;
                let real = real.strip_prefix("/").unwrap_or(&real);
                self.root.create_dir_all(real, IMPLIED_MODE, None, |made| {
                    implied.insert(made.to_path_buf());
                    // The time of the entry that caused it, so that the result is reproducible.
                    dirs.insert(made.to_path_buf(), (IMPLIED_MODE, entry.mtime));
                })?
            }
            Err(e) if e.errno() == Some(NOT_A_DIRECTORY) => {
                if self.replace_deletion(entry, parent)? {
                    return self.enter_parent(entry, parent);
                }
                return Err(entry_error(entry, "lies below something that is not a directory"));
            }
            Err(e) => return Err(e.into()),
        };
        self.parent = (parent.to_path_buf(), dir);
        Ok(())
    }

    /// Replaces the topmost whiteout on the way to `path` by an opaque directory. Returns false if
    /// there is none. This happens when a layer deletes a directory and has files below it without
    /// an entry for the new directory.
    fn replace_deletion(&mut self, entry: &TarEntry, path: &Path) -> Result<bool> {
        if self.how.whiteouts == Whiteouts::Plain {
            return Ok(false);
        }
        let mut above: Vec<&Path> = path.ancestors().filter(|p| !p.as_os_str().is_empty()).collect();
        above.reverse();
        for path in above {
            // Symbolic links of the layer may lead there.
            let path = self.root.resolve(path)?;
            let (dir, name) = self.root.parent(&path)?;
            let stat = dir.stat_name(&name)?;
            if !dir.is_whiteout(&name, &stat)? {
                continue;
            }
            dir.remove_all(&name)?;
            dir.create_dir(&name, IMPLIED_MODE)?;
            let made = dir.sub(&name)?;
            made.set_xattr(OsStr::new(""), OsStr::new(OPAQUE), b"y")?;
            let path = path.strip_prefix("/").unwrap_or(&path).to_path_buf();
            // No lower layer describes it.
            self.dirs.insert(path, (IMPLIED_MODE, entry.mtime));
            return Ok(true);
        }
        Ok(false)
    }

    fn whiteout(&mut self, entry: &TarEntry, name: &OsStr) -> Result<()> {
        let (above, dir) = (&self.parent.0, &self.parent.1);
        if name.as_bytes() == OPAQUE_WHITEOUT {
            return Ok(dir.set_xattr(OsStr::new(""), OsStr::new(OPAQUE), b"y")?);
        }
        let hidden = OsStr::from_bytes(&name.as_bytes()[WHITEOUT.len()..]);
        if hidden.is_empty() || hidden == "." || hidden == ".." || hidden.as_bytes().starts_with(WHITEOUT) {
            // `.wh..wh.plnk` and the like are metadata of AUFS, not whiteouts.
            return match hidden.as_bytes().starts_with(WHITEOUT) {
                true => Ok(()),
                false => Err(entry_error(entry, "deletes nothing that has a name")),
            };
        }
        // If the lower layers lack the directory, the kernel would list its whiteouts without this
        // mark.
        dir.set_xattr(OsStr::new(""), OsStr::new(ORIGIN), b"")?;
        // Whiteouts apply to lower layers only, regardless of the order of entries: this layer's
        // own files stay.
        if dir.exists(hidden)? {
            let stat = dir.stat_name(hidden)?;
            if stat.kind == Kind::Dir {
                dir.sub(hidden)?.set_xattr(OsStr::new(""), OsStr::new(OPAQUE), b"y")?;
                // The lower layers no longer describe it.
                let path = self.root.resolve(above)?.join(hidden);
                self.implied.remove(path.strip_prefix("/").unwrap_or(&path));
            }
            return Ok(());
        }
        Ok(dir.create_whiteout(hidden)?)
    }

    fn create<R: Read>(&mut self, entry: &TarEntry, path: &Path, name: &OsStr, tar: &mut TarReader<R>) -> Result<()> {
        let ids = self.ids(entry)?;
        let dir = &self.parent.1;
        let mut made = true;
        match entry.kind {
            EntryKind::File => return self.create_file(entry, path, name, tar),
            EntryKind::Dir => made = self.create_dir(name)?,
            EntryKind::Symlink if entry.link.is_empty() => {
                return Err(entry_error(entry, "is a symbolic link to nothing"));
            }
            EntryKind::Symlink => place(dir, name, |dir| dir.create_symlink(&entry.link, name))?,
            EntryKind::HardLink => {
                if self.hard_link(entry, name)? == Linked::TargetMissing {
                    self.later.insert(path.to_path_buf(), entry.clone());
                }
                return Ok(());
            }
            EntryKind::CharDevice if entry.rdev == (0, 0) => {
                return Err(entry_error(entry, "is a device 0:0, which a layer may not hold"));
            }
            EntryKind::CharDevice => {
                place(dir, name, |dir| dir.create_node(name, Kind::CharDevice, entry.mode, entry.rdev))?
            }
            EntryKind::BlockDevice => {
                place(dir, name, |dir| dir.create_node(name, Kind::BlockDevice, entry.mode, entry.rdev))?
            }
            EntryKind::Fifo => place(dir, name, |dir| dir.create_node(name, Kind::Fifo, entry.mode, entry.rdev))?,
        }
        self.set_meta(entry, path, name, ids, made)
    }

    fn create_file<R: Read>(
        &mut self,
        entry: &TarEntry,
        path: &Path,
        name: &OsStr,
        tar: &mut TarReader<R>,
    ) -> Result<()> {
        let file = place(&self.parent.1, name, |dir| dir.create_file(name, entry.mode & 0o777))?;
        // Writing the content later would undo attributes set now.
        let later = entry.size <= SMALL && entry.sparse.is_none() && entry.xattrs.is_empty();
        let bytes = if later {
            read_content(entry, tar, self.finisher.content())?;
            entry.size as usize
        } else {
            write_content(&file, path, entry, tar, &mut self.buffer)?;
            0
        };
        self.finish_file(file, bytes, entry, path, name)
    }

    /// Creates a directory, in place of a file of that name. Returns false if it existed.
    fn create_dir(&self, name: &OsStr) -> Result<bool> {
        let dir = &self.parent.1;
        match dir.create_dir(name, 0o700) {
            Ok(()) => return Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e.into()),
        }
        if dir.stat_name(name)?.kind == Kind::Dir {
            return Ok(false);
        }
        dir.remove_all(name)?;
        dir.create_dir(name, 0o700)?;
        // The whiteout, or the layer's earlier file, hid the lower layers.
        if self.how.whiteouts == Whiteouts::Overlay {
            dir.sub(name)?.set_xattr(OsStr::new(""), OsStr::new(OPAQUE), b"y")?;
        }
        Ok(true)
    }

    fn set_meta(&mut self, entry: &TarEntry, path: &Path, name: &OsStr, ids: (u32, u32), made: bool) -> Result<()> {
        let dir = &self.parent.1;
        if ids != (0, 0) || !made {
            dir.chown(name, ids.0, ids.1).map_err(|e| self.owner_hint(entry, e))?;
        }
        for (attr, value) in entry.xattrs.iter().filter(|(attr, _)| keep_in_tree(attr)) {
            dir.set_xattr(name, attr, value)?;
        }
        match entry.kind {
            EntryKind::Dir => {
                self.dirs.insert(path.to_path_buf(), (entry.mode, entry.mtime));
                self.implied.remove(path);
                return Ok(());
            }
            EntryKind::Symlink => {}
            // chown(2) clears set-id bits.
            _ if entry.mode & 0o7000 != 0 || ids != (0, 0) => dir.chmod(name, entry.mode)?,
            _ => {}
        }
        Ok(dir.set_mtime(name, entry.mtime)?)
    }

    /// Sets the metadata of a file that is still open and was created with its permission bits. The
    /// file receives the next `bytes` bytes of the finisher's buffer.
    fn finish_file(&mut self, file: File, bytes: usize, entry: &TarEntry, path: &Path, name: &OsStr) -> Result<()> {
        let ids = self.ids(entry)?;
        // Changing the owner and writing both clear set-id bits.
        let mut owner = (entry.mode & 0o7000 != 0 || ids != (0, 0)).then_some((ids.0, ids.1, entry.mode));
        // Changing the owner removes capabilities, so attributes are set after it.
        if !entry.xattrs.is_empty() {
            if let Some((uid, gid, mode)) = owner.take() {
                set_file_owner(&file, uid, gid, mode).map_err(|e| self.owner_hint(entry, e))?;
            }
            for (attr, value) in entry.xattrs.iter().filter(|(attr, _)| keep_in_tree(attr)) {
                self.parent.1.set_xattr(name, attr, value)?;
            }
        }
        let filled = Filled { file, bytes, path: path.to_path_buf(), owner, mtime: entry.mtime };
        self.finisher.take(filled).map_err(unfinished)
    }

    fn hard_link(&self, entry: &TarEntry, name: &OsStr) -> Result<Linked> {
        let leaves = || entry_error(entry, format!("links to {:?}, which leaves the archive's root", entry.link));
        let target = rbuild_paths::inside(&entry.link).ok_or_else(leaves)?;
        let Some(target_name) = target.file_name() else { return Err(leaves()) };
        let found = self.root.sub(target.parent().unwrap_or(Path::new("")));
        let found = found.and_then(|from| from.stat_name(target_name).map(|stat| (from, stat)));
        let (from, stat) = match found {
            Ok(found) => found,
            Err(e) if e.is_not_found() || e.errno() == Some(NOT_A_DIRECTORY) => return Ok(Linked::TargetMissing),
            Err(e) => return Err(e.into()),
        };
        if self.how.whiteouts == Whiteouts::Overlay && from.is_whiteout(target_name, &stat)? {
            return Ok(Linked::TargetMissing);
        }
        if stat.kind == Kind::Dir {
            return Err(entry_error(entry, "is a hard link to a directory"));
        }
        let dir = &self.parent.1;
        match dir.hard_link(&from, target_name, name) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                if stat.inode() != dir.stat_name(name)?.inode() {
                    dir.remove_all(name)?;
                    dir.hard_link(&from, target_name, name)?;
                }
            }
            other => other?,
        }
        Ok(Linked::Done)
    }

    /// Creates the hard links that precede their targets, which may be such links themselves. In a
    /// layer, those that remain may refer to lower layers.
    fn link_later(&mut self) -> Result<()> {
        for _ in 0..MOST_LINKED {
            for (path, entry) in std::mem::take(&mut self.later) {
                let (parent, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
                self.enter_parent(&entry, parent)?;
                if let Linked::TargetMissing = self.hard_link(&entry, name)? {
                    self.later.insert(path, entry);
                }
            }
            if self.later.is_empty() {
                return Ok(());
            }
        }
        if self.how.whiteouts == Whiteouts::Overlay {
            return Ok(());
        }
        let reason = |entry: &TarEntry| format!("links to {:?}, which the archive does not bring", entry.link);
        self.later.values().next().map_or(Ok(()), |entry| Err(entry_error(entry, reason(entry))))
    }

    fn owner_hint(&self, entry: &TarEntry, e: rbuild_linux::Error) -> LayerError {
        owner_error(entry.path.to_string_lossy().into_owned(), e)
    }

    fn finish(mut self) -> Result<LowerRefs> {
        self.link_later()?;
        self.finisher.end().map_err(unfinished)?;
        self.finish_dirs()?;
        if self.how.whiteouts == Whiteouts::Overlay { self.lower_refs() } else { Ok(LowerRefs::default()) }
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
            if !described && matches!(self.root.stat(&dir), Ok(stat) if stat.kind == Kind::Dir) {
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
                self.root.set_own_meta(own.uid, own.gid, *mode, *mtime)?;
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
            if !matches!(dir.stat_name(name), Ok(stat) if stat.kind == Kind::Dir) {
                continue;
            }
            dir.chmod(name, *mode)?;
            dir.set_mtime(name, *mtime)?;
        }
        Ok(())
    }
}

/// Mode of a directory without an entry, the common default of tar implementations.
const IMPLIED_MODE: u32 = 0o755;

/// Maximum length of a chain of hard links, each preceding its target.
const MOST_LINKED: usize = 40;

/// The outcome of creating a hard link.
#[derive(PartialEq, Eq)]
enum Linked {
    Done,
    TargetMissing,
}

fn unfinished(Unfinished { path, error }: Unfinished) -> LayerError {
    owner_error(path.to_string_lossy().into_owned(), error)
}

fn owner_error(name: String, e: rbuild_linux::Error) -> LayerError {
    if e.unmapped().is_some() { LayerError::Owner { name, cause: e } } else { e.into() }
}

// `ENOTDIR`.
const NOT_A_DIRECTORY: i32 = 20;

/// Creates a file system object at `name`. An existing one is removed first, never written into.
fn place<T>(dir: &RootDir, name: &OsStr, create: impl Fn(&RootDir) -> rbuild_linux::Result<T>) -> Result<T> {
    match create(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            dir.remove_all(name)?;
            Ok(create(dir)?)
        }
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests;
