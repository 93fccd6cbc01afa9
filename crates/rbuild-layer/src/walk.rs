//! Walks a tree in the order of the archive's entries.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;

use rbuild_linux::{DirStack, FileKind, Inode, RootDir, Stat, Timestamp};

use crate::entry::{EntryKind, TarEntry};
use crate::error::{LayerError, Result};
use crate::external::{ExternalDir, ExternalFiles};
use crate::item::{PackItem, SMALL, read_small};
use crate::options::{Times, WhiteoutEncoding};
use crate::whiteout::{self, is_whiteout, whiteout_of};
use crate::xattrs::{is_lost, keep_in_layer, marks_opaque};

/// A directory that is being listed.
struct OpenDir {
    path: PathBuf,
    entries: Vec<OsString>,
    external: ExternalDir,
}

/// Maximum number of entries in a batch sent to the packing thread.
const BATCH: usize = 64;
/// File content in bytes after which a batch is sent.
const BATCH_BYTES: usize = 1 << 20;
/// Yields the archive items of a tree, in order.
pub(crate) struct Walk {
    /// The directory at the top of the stack.
    dirs: DirStack,
    /// Directories being listed, deepest last, with their entries in reverse order.
    stack: Vec<OpenDir>,
    /// An item that precedes the next entry.
    pending: Option<PackItem>,
    items: Items,
    external: ExternalFiles,
}

impl Walk {
    pub(crate) fn new(
        tree: &RootDir,
        folder: &Path,
        whiteouts: WhiteoutEncoding,
        times: Times,
        external: ExternalFiles,
    ) -> Result<Walk> {
        let dirs = DirStack::new(tree.try_clone()?);
        let items = Items::new(whiteouts, times);
        let mut walk = Walk { dirs, stack: Vec::new(), pending: None, items, external };
        walk.open(folder.to_path_buf())?;
        Ok(walk)
    }

    /// Walks one entry of a directory under its own name, including its descendants.
    pub(crate) fn of_entry(dir: &RootDir, name: &OsStr, whiteouts: WhiteoutEncoding, times: Times) -> Result<Walk> {
        let mut external = ExternalFiles::default();
        let (path, external_dir) = (PathBuf::new(), external.remove_dir(Path::new("")));
        let top = OpenDir { path, entries: vec![name.to_os_string()], external: external_dir };
        let dirs = DirStack::new(dir.try_clone()?);
        Ok(Walk { dirs, stack: vec![top], pending: None, items: Items::new(whiteouts, times), external })
    }

    /// Starts listing the last directory of the path.
    fn open(&mut self, path: PathBuf) -> Result<()> {
        let dir = self.dirs.last();
        if self.items.whiteouts == WhiteoutEncoding::Encode && !path.as_os_str().is_empty() {
            let opaque = marks_opaque(&dir.xattrs(OsStr::new(""))?);
            if opaque {
                let mark = TarEntry { mode: 0, ..TarEntry::plain_file(path.join(whiteout::OPAQUE), 0) };
                self.pending = Some(PackItem::Header(mark));
            }
        }
        let mut entries: Vec<OsString> = dir.entries()?.into_iter().map(|e| e.name).collect();
        entries.reverse();
        let external = self.external.remove_dir(&path);
        self.stack.push(OpenDir { path, entries, external });
        Ok(())
    }

    /// Returns the next item, or `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<PackItem>> {
        loop {
            if let Some(item) = self.pending.take() {
                return Ok(Some(item));
            }
            let Some(top) = self.stack.last_mut() else {
                return Ok(std::mem::take(&mut self.items.incomplete).then_some(PackItem::Incomplete));
            };
            if let Some(sourced) = top.external.before(top.entries.last()) {
                check_name(&sourced.file.name, &top.path, self.items.whiteouts)?;
                return top.external.item(&sourced, &top.path, self.items.times, &mut self.external).map(Some);
            }
            let Some(name) = top.entries.pop() else {
                self.stack.pop();
                self.dirs.leave()?;
                continue;
            };
            let path = top.path.join(&name);
            let dir = self.dirs.last();
            let stat = dir.stat_name(&name)?;
            let item = self.items.item(dir, &name, &path, &stat)?;
            if stat.kind == FileKind::Dir {
                self.dirs.enter(&name)?;
                self.open(path)?;
            }
            if let Some(item) = item {
                return Ok(Some(item));
            }
        }
    }

    /// Sends all remaining items in batches, until the receiver is dropped or an error occurs.
    pub(crate) fn send_all(mut self, sender: &SyncSender<Result<Vec<PackItem>>>) {
        loop {
            let (mut batch, mut bytes) = (Vec::new(), 0);
            while batch.len() < BATCH && bytes < BATCH_BYTES {
                match self.next() {
                    Ok(Some(item)) => {
                        bytes += if let PackItem::Small(_, content) = &item { content.len() } else { 0 };
                        batch.push(item);
                    }
                    Ok(None) => {
                        let _ = sender.send(Ok(batch));
                        return;
                    }
                    Err(e) => {
                        let _ = sender.send(Ok(batch)).and_then(|()| sender.send(Err(e)));
                        return;
                    }
                }
            }
            if sender.send(Ok(batch)).is_err() {
                return;
            }
        }
    }
}

/// Rejects a name that a layer would interpret as a whiteout.
fn check_name(name: &OsStr, above: &Path, whiteouts: WhiteoutEncoding) -> Result<()> {
    if whiteouts != WhiteoutEncoding::Literal && is_whiteout(name) {
        Err(LayerError::WhiteoutName(Path::new("/").join(above).join(name)))
    } else {
        Ok(())
    }
}

/// Makes the archive items of directory entries.
struct Items {
    whiteouts: WhiteoutEncoding,
    times: Times,
    /// First path of each inode with several hard links.
    links: HashMap<Inode, PathBuf>,
    /// True if the archive lacks files or attributes of the tree, until [`PackItem::Incomplete`]
    /// has been returned.
    incomplete: bool,
}

impl Items {
    fn new(whiteouts: WhiteoutEncoding, times: Times) -> Items {
        Items { whiteouts, times, links: HashMap::new(), incomplete: false }
    }

    /// Returns the archive item of a directory entry, or `None` for a socket.
    fn item(&mut self, dir: &RootDir, name: &OsStr, path: &Path, stat: &Stat) -> Result<Option<PackItem>> {
        if self.whiteouts == WhiteoutEncoding::Encode && dir.is_whiteout(name, stat)? {
            return Ok(whiteout_item(path, name));
        }
        check_name(name, path.parent().unwrap_or(Path::new("")), self.whiteouts)?;
        let Some(mut entry) = entry(path, stat, self.times) else {
            self.incomplete = true;
            return Ok(None);
        };
        if entry.kind == EntryKind::Symlink {
            // The kernel reports 0777 for every symbolic link and ignores its mode.
            entry.mode = 0o777;
            entry.link = dir.read_link(name)?;
        }
        if entry.kind != EntryKind::Dir && stat.nlink > 1 {
            if let Some(first) = self.links.get(&stat.inode()) {
                entry.kind = EntryKind::HardLink;
                entry.link = first.as_os_str().to_os_string();
                return Ok(Some(PackItem::Header(entry)));
            }
            self.links.insert(stat.inode(), path.to_path_buf());
        }
        if matches!(entry.kind, EntryKind::File | EntryKind::Dir) {
            entry.xattrs = dir.xattrs(name)?;
            self.incomplete |= entry.xattrs.keys().any(|attr| is_lost(attr));
            entry.xattrs.retain(|attr, _| keep_in_layer(attr));
        }
        if entry.kind != EntryKind::File || stat.size == 0 {
            return Ok(Some(PackItem::Header(entry)));
        }
        entry.size = stat.size;
        let file = dir.open_name(name)?;
        if stat.size > SMALL {
            return Ok(Some(PackItem::Large(entry, file, None)));
        }
        let content = read_small(&file, &entry)?;
        Ok(Some(PackItem::Small(entry, content)))
    }
}

/// Returns the item of a whiteout. A name with the prefix of whiteouts cannot be in a lower layer,
/// and its whiteout would have another meaning, so none is written.
fn whiteout_item(path: &Path, name: &OsStr) -> Option<PackItem> {
    if is_whiteout(name) {
        return None;
    }
    let path = path.with_file_name(whiteout_of(name));
    Some(PackItem::Header(TarEntry { mode: 0, ..TarEntry::plain_file(path, 0) }))
}

/// Returns the entry of a file without links, attributes and content; `None` for a socket, which is
/// useless without the process that bound it.
fn entry(path: &Path, stat: &Stat, times: Times) -> Option<TarEntry> {
    let kind = match stat.kind {
        FileKind::File => EntryKind::File,
        FileKind::Dir => EntryKind::Dir,
        FileKind::Symlink => EntryKind::Symlink,
        FileKind::CharDevice => EntryKind::CharDevice,
        FileKind::BlockDevice => EntryKind::BlockDevice,
        FileKind::Fifo => EntryKind::Fifo,
        FileKind::Socket => return None,
    };
    Some(TarEntry {
        path: path.as_os_str().to_os_string(),
        kind,
        mode: stat.mode,
        uid: u64::from(stat.uid),
        gid: u64::from(stat.gid),
        mtime: Timestamp { sec: times.of(stat.mtime.sec), ..stat.mtime },
        size: 0,
        link: OsString::new(),
        rdev: stat.rdev,
        xattrs: Default::default(),
        sparse: None,
    })
}
