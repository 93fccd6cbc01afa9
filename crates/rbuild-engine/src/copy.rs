//! COPY and ADD: selected files into a root file system.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rbuild_image::Digest;
use rbuild_layer::{Compression, Limits, LooseFile, Owners, Unpacking, detect, is_tar, keep_in_layer, unpack};
use rbuild_linux::{Kind, RootDir, Stat, Timestamp, copy_file};
use rbuild_plan::CopyStep;
use rbuild_source::{Listed, Owner, Selected, SourceError, SourceTree, Stamp};

use crate::track::Track;
use crate::{keys, users};

/// A copy that went wrong: which source (by its place in the step), and what happened.
pub struct CopyError {
    pub source: Option<usize>,
    pub reason: Reason,
}

pub enum Reason {
    Source(SourceError),
    Kernel(rbuild_linux::Error),
    Layer(rbuild_layer::LayerError),
    Text(String),
}

impl From<SourceError> for Reason {
    fn from(e: SourceError) -> Reason {
        Reason::Source(e)
    }
}
impl From<rbuild_linux::Error> for Reason {
    fn from(e: rbuild_linux::Error) -> Reason {
        Reason::Kernel(e)
    }
}
impl From<rbuild_layer::LayerError> for Reason {
    fn from(e: rbuild_layer::LayerError) -> Reason {
        Reason::Layer(e)
    }
}

/// What a copy goes by besides its step.
#[derive(Clone, Copy, Default)]
pub struct Terms {
    /// Dates what is made up; seconds since 1970.
    pub now: i64,
    /// Of archives that ADD unpacks.
    pub limits: Limits,
}

/// Copies what the step selects from `source` into `root`. With a `track`, what an earlier copy has is left to it.
pub fn copy(
    step: &CopyStep,
    source: Option<&SourceTree<'_>>,
    root: &RootDir,
    terms: Terms,
    track: Option<&mut Track>,
) -> Result<(), CopyError> {
    let general = |reason: Reason| CopyError { source: None, reason };
    let chown = match &step.chown {
        Some(spec) => Some(users::owner(root, spec).map_err(|e| general(Reason::Text(e)))?),
        None => None,
    };
    let (dirs, links) = (Vec::new(), HashMap::new());
    let (made, here) = (HashSet::new(), Here::default());
    let mut copier = Copier { step, root, chown, terms, dirs, links, track, defers: Defers::Nothing, made, here };
    let others = step.sources.len() > 1;
    if let Some(tree) = source {
        for (i, pattern) in step.sources.iter().enumerate() {
            let at = |reason: Reason| CopyError { source: Some(i), reason };
            let items = keys::select(tree, step, pattern).map_err(|e| at(e.into()))?;
            copier.defers = match others || items.len() > 1 {
                _ if !step.inline.is_empty() => Defers::Nothing,
                false => Defers::Plain,
                // What comes out of archives is not tracked.
                true if step.unpack => Defers::Nothing,
                true => Defers::Tracked,
            };
            for item in items {
                copier.item(tree, &item).map_err(at)?;
            }
        }
    }
    for file in &step.inline {
        copier.inline(&file.name, file.content.as_bytes()).map_err(general)?;
    }
    copier.finish_dirs().map_err(general)
}

fn dir_over_file(path: &Path) -> Reason {
    Reason::Text(format!("{} is a file in the image, and the copy has a directory of that name", path.display()))
}

struct Copier<'a> {
    step: &'a CopyStep,
    root: &'a RootDir,
    chown: Option<(u32, u32)>,
    terms: Terms,
    /// Directories whose time is set once they are full: (path in the root, time).
    dirs: Vec<(PathBuf, Timestamp)>,
    /// Inodes of the source with several names, and the first copy.
    links: HashMap<(u32, u32, u64), PathBuf>,
    track: Option<&'a mut Track>,
    defers: Defers,
    /// Directories that are new in the root: nothing was there.
    made: HashSet<PathBuf>,
    here: Here,
}

/// Which files may be put in place later.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Defers {
    Nothing,
    /// The step copies one thing: nothing in it comes to where something else of it is.
    Plain,
    /// A later entry may come to the same place, and covers what was there.
    Tracked,
}

/// The directory of the entry that was looked at last.
#[derive(Default)]
struct Here {
    path: PathBuf,
    /// Its real path in the root.
    real: PathBuf,
    made: bool,
}

/// Where an entry comes from: its parent, its name there, its path in the source.
type Origin<'a> = (&'a RootDir, &'a OsStr, &'a Path);
/// Where it goes to: its parent, its path in the root, its name.
type Place<'a> = (&'a RootDir, &'a Path, &'a OsStr);

impl Copier<'_> {
    fn owner(&self, tree_owner: Owner, stat: &Stat) -> (u32, u32) {
        self.chown.unwrap_or_else(|| tree_owner.ids(stat))
    }

    fn mode(&self, mode: u32, is_dir: bool) -> u32 {
        self.step.chmod.as_ref().map_or(mode, |c| c.apply(mode, is_dir))
    }

    /// Makes a directory that the destination asks for, with what is missing above it.
    fn make_dir(&mut self, path: &Path) -> Result<RootDir, Reason> {
        let mode = self.mode(0o755, true);
        let mut made = Vec::new();
        let result = self.root.create_dir_all(path, mode, self.chown, |p| made.push(p.to_path_buf()));
        for path in &made {
            self.no_file_later(path)?;
        }
        self.made.extend(made.iter().cloned());
        self.dirs.extend(made.into_iter().map(|p| (p, Timestamp { sec: self.terms.now, nsec: 0 })));
        result.map_err(|e| match e.kind() {
            std::io::ErrorKind::NotADirectory => {
                Reason::Text(format!("{} is not a directory in the image", path.display()))
            }
            _ => e.into(),
        })
    }

    fn item(&mut self, tree: &SourceTree<'_>, item: &Selected) -> Result<(), Reason> {
        let mut dest = PathBuf::from(&self.step.dest);
        if item.kept {
            self.kept_dirs(tree, item, &dest)?;
            dest.push(&item.name);
        }
        if item.stat.kind == Kind::Dir {
            self.make_dir(&dest)?;
            return self.directory(tree, item, &dest);
        }
        if self.step.unpack && item.stat.kind == Kind::File && self.unpack_archive(tree, item, &dest)? {
            return Ok(());
        }
        let (dir_path, name) = match (item.kept, dest.file_name()) {
            (true, Some(name)) => (dest.parent().unwrap_or(Path::new("/")).to_path_buf(), name.to_os_string()),
            _ => self.file_place(&dest, item.name.as_os_str())?,
        };
        let dir = self.make_dir(&dir_path)?;
        let (source_dir, _) = tree.root.parent(&item.path)?;
        let source_name = item.path.file_name().unwrap_or_default();
        self.entry(tree, (&source_dir, source_name, &item.path), &item.stat, (&dir, &dir_path.join(&name), &name))
    }

    /// Makes the directories that `--parents` keeps above an item (and the item, if it is one) as the source has them.
    fn kept_dirs(&mut self, tree: &SourceTree<'_>, item: &Selected, dest: &Path) -> Result<(), Reason> {
        let depth = item.path.components().count().saturating_sub(item.name.components().count());
        let own = usize::from(item.stat.kind != Kind::Dir);
        let kept = item.name.components().count() - own;
        let mut source: PathBuf = item.path.components().take(depth).collect();
        let mut at = dest.to_path_buf();
        for part in item.name.components().take(kept) {
            source.push(part);
            at.push(part);
            if self.root.stat_follow(&at).is_ok() {
                continue;
            }
            let dir = self.make_dir(at.parent().unwrap_or(Path::new("/")))?;
            let (source_dir, source_name) = tree.root.parent(&source)?;
            let stat = source_dir.stat_name(&source_name)?;
            let name = at.file_name().unwrap_or_default().to_os_string();
            self.entry(tree, (&source_dir, &source_name, &source), &stat, (&dir, &at, &name))?;
        }
        Ok(())
    }

    /// The directory and the name that a single file gets.
    fn file_place(&self, dest: &Path, name: &OsStr) -> Result<(PathBuf, OsString), Reason> {
        let into_dir =
            self.step.dest_is_dir || matches!(self.root.stat_follow(dest), Ok(stat) if stat.kind == Kind::Dir);
        match (into_dir, dest.file_name()) {
            (false, Some(last)) => Ok((dest.parent().unwrap_or(Path::new("/")).to_path_buf(), last.to_os_string())),
            _ => Ok((dest.to_path_buf(), name.to_os_string())),
        }
    }

    fn directory(&mut self, tree: &SourceTree<'_>, item: &Selected, dest: &Path) -> Result<(), Reason> {
        let mut open: (PathBuf, RootDir) = (PathBuf::new(), self.root.sub(dest)?);
        tree.walk::<Reason>(&item.path, |source, path, stat| {
            let parent = path.parent().unwrap_or(Path::new(""));
            if open.0.as_os_str() != parent.as_os_str() {
                open = (parent.to_path_buf(), self.open_dest(&dest.join(parent))?);
            }
            let name = path.file_name().unwrap_or_default();
            self.entry(tree, (source, name, &item.path.join(path)), stat, (&open.1, &dest.join(path), name))
        })
    }

    /// A directory below the destination. Excluded parents of kept files were not visited and are made here.
    fn open_dest(&mut self, path: &Path) -> Result<RootDir, Reason> {
        match self.root.sub(path) {
            Err(e) if e.is_not_found() => self.make_dir(path),
            other => Ok(other?),
        }
    }

    fn entry(
        &mut self,
        tree: &SourceTree<'_>,
        (source, source_name, source_path): Origin<'_>,
        stat: &Stat,
        (dir, path, name): Place<'_>,
    ) -> Result<(), Reason> {
        let (uid, gid) = self.owner(tree.owner, stat);
        let mode = self.mode(tree.owner.mode(stat), stat.kind == Kind::Dir);
        if self.track.is_some() {
            self.note(tree, (source, source_name, source_path), stat, (path, name))?;
            if self.may_defer((dir, path, name), stat)? {
                self.take_back(path, name)?;
                let (source, name) = (source_name.into(), name.into());
                let later = LooseFile { source, name, stat: *stat, uid, gid, mode, unchanged: false };
                return self.defer(source_path, dir, later);
            }
        }
        if stat.kind == Kind::Dir {
            self.make_entry_dir(dir, path, name)?;
        } else {
            self.take_back(path, name)?;
            // One thing alone comes to no place twice.
            if self.clear_place(dir, path, name)? && self.defers != Defers::Plain {
                self.links.retain(|_, first| first.as_path() != path);
            }
            if stat.nlink > 1 && stat.kind == Kind::File {
                if let Some(first) = self.links.get(&stat.inode()) {
                    let (first_dir, first_name) = self.root.parent(first)?;
                    return Ok(dir.hard_link(&first_dir, &first_name, name)?);
                }
                self.links.insert(stat.inode(), path.to_path_buf());
            }
            match stat.kind {
                Kind::File => {
                    let from = source.open_name(source_name)?;
                    copy_file(&from, stat, &dir.create_file(name, 0o600)?)?;
                }
                Kind::Symlink => dir.create_symlink(&source.read_link(source_name)?, name)?,
                // A socket means nothing without its process; it arrives as an empty file.
                Kind::Socket => drop(dir.create_file(name, 0o600)?),
                Kind::Fifo | Kind::CharDevice | Kind::BlockDevice => {
                    dir.create_node(name, stat.kind, mode, stat.rdev)?
                }
                Kind::Dir => {}
            }
        }
        dir.chown(name, uid, gid)?;
        if stat.kind == Kind::Symlink {
            return Ok(dir.set_mtime(name, stat.mtime)?);
        }
        dir.chmod(name, mode)?;
        if matches!(stat.kind, Kind::File | Kind::Dir) {
            for (attr, value) in source.xattrs(source_name)?.iter().filter(|(attr, _)| keep_in_layer(attr)) {
                dir.set_xattr(name, attr, value)?;
            }
        }
        if stat.kind == Kind::Dir {
            self.dirs.push((path.to_path_buf(), stat.mtime));
            return Ok(());
        }
        Ok(dir.set_mtime(name, stat.mtime)?)
    }

    /// The directory of an entry.
    fn here(&mut self, path: &Path) -> Result<&Here, Reason> {
        let dir = path.parent().unwrap_or(Path::new("/"));
        if self.here.path.as_os_str() != dir.as_os_str() {
            let real = self.root.resolve(dir)?;
            let real = real.strip_prefix("/").unwrap_or(&real).to_path_buf();
            self.here = Here { path: dir.to_path_buf(), real, made: self.made.contains(dir) };
        }
        Ok(&self.here)
    }

    /// Writes down what goes where.
    fn note(
        &mut self,
        tree: &SourceTree<'_>,
        (source, source_name, source_path): Origin<'_>,
        stat: &Stat,
        (path, name): (&Path, &OsStr),
    ) -> Result<(), Reason> {
        // Files of other stages are told apart by what they are, not by when they were written.
        let Some(hashes) = tree.hashes else { return Ok(()) };
        let real = self.here(path)?.real.join(name);
        let Some(track) = &mut self.track else { return Ok(()) };
        let digest = match stat.kind {
            Kind::File => {
                track.stamps = track.stamps.wrapping_add(Stamp::of(stat).sum());
                hashes.last_read(stat)
            }
            Kind::Symlink => Some(Digest::of(source.read_link(source_name)?.as_bytes())),
            _ => None,
        };
        let stamp = (hashes.tells(stat) && stat.kind == Kind::File).then(|| Stamp::of(stat));
        let mode = stat.kind.bits() | tree.owner.mode(stat);
        track.listing.put(&real, Listed { source: source_path, mode, stamp, digest });
        Ok(())
    }

    /// Whether what is copied is a file that can be put in place later: nothing that is there now is in its way.
    fn may_defer(&mut self, (dir, path, name): Place<'_>, stat: &Stat) -> Result<bool, Reason> {
        let plain = stat.kind == Kind::File && stat.nlink == 1;
        if !plain || self.defers == Defers::Nothing || !self.track.as_ref().is_some_and(|track| track.defers) {
            return Ok(false);
        }
        if self.defers == Defers::Plain && self.here(path)?.made {
            return Ok(true);
        }
        Ok(match dir.stat_name(name) {
            Err(_) => true,
            // This copy may have put it there.
            Ok(there) => there.kind != Kind::Dir && self.defers == Defers::Plain,
        })
    }

    /// What was to be put there later is covered by what comes now.
    fn take_back(&mut self, path: &Path, name: &OsStr) -> Result<(), Reason> {
        if self.defers == Defers::Tracked {
            let place = self.here(path)?.real.join(name);
            self.track.iter_mut().for_each(|track| track.take_back(&place));
        }
        Ok(())
    }

    /// A directory does not take the place of a file.
    fn no_file_later(&self, path: &Path) -> Result<(), Reason> {
        if self.defers != Defers::Tracked {
            return Ok(());
        }
        let real = self.root.resolve(path)?;
        match self.track.as_ref().is_some_and(|t| t.goes_to(real.strip_prefix("/").unwrap_or(&real))) {
            true => Err(dir_over_file(path)),
            false => Ok(()),
        }
    }

    /// Leaves a file of the directory that was looked at last for later.
    fn defer(&mut self, source: &Path, dir: &RootDir, file: LooseFile) -> Result<(), Reason> {
        let Some(track) = &mut self.track else { return Ok(()) };
        let source_dir = source.parent().unwrap_or(Path::new(""));
        let tracked = self.defers == Defers::Tracked;
        if track.later(source_dir, &self.here.real, file, tracked) && !self.here.made {
            // The directory has to be in the tree then, as it would be if the file were written now.
            let (dir, own) = (dir.sub(".")?, dir.stat_self()?);
            dir.set_own_meta(own.uid, own.gid, own.mode, Timestamp { sec: self.terms.now, nsec: 0 })?;
        }
        Ok(())
    }

    fn make_entry_dir(&mut self, dir: &RootDir, path: &Path, name: &OsStr) -> Result<(), Reason> {
        match dir.create_dir(name, 0o755) {
            Ok(()) => {
                self.no_file_later(path)?;
                self.made.insert(path.to_path_buf());
                Ok(())
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => match self.root.stat_follow(path)?.kind {
                Kind::Dir => Ok(()),
                _ => Err(dir_over_file(path)),
            },
            Err(e) => Err(e.into()),
        }
    }

    /// Removes what a file takes the place of, and says whether there was anything; a directory is not replaced.
    fn clear_place(&self, dir: &RootDir, path: &Path, name: &OsStr) -> Result<bool, Reason> {
        match dir.stat_name(name) {
            Ok(stat) if stat.kind == Kind::Dir => Err(Reason::Text(format!(
                "{} is a directory in the image, and the copy has a file of that name",
                path.display()
            ))),
            Ok(_) => {
                dir.remove_file(name)?;
                Ok(true)
            }
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Unpacks the file into the destination if its content is an archive.
    fn unpack_archive(&mut self, tree: &SourceTree<'_>, item: &Selected, dest: &Path) -> Result<bool, Reason> {
        let mut head = [0u8; 512];
        let mut file = tree.root.open_file(&item.path)?;
        let mut filled = 0;
        while filled < head.len() {
            match file.read(&mut head[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(rbuild_linux::Error::new("read", &item.path, e).into()),
            }
        }
        // Compressed bytes are an archive if a tar is inside.
        let is_tar = match detect(&head[..filled]) {
            Compression::None => is_tar(&head[..filled]),
            _ => {
                let mut inner = Vec::new();
                let file = tree.root.open_file(&item.path)?;
                let decoded = rbuild_layer::Decoder::new(file).and_then(|d| d.take(512).read_to_end(&mut inner));
                decoded.is_ok() && is_tar(&inner)
            }
        };
        if !is_tar {
            return Ok(false);
        }
        if let Some(track) = &mut self.track {
            track.stamps = track.stamps.wrapping_add(Stamp::of(&item.stat).sum());
        }
        let dir = self.make_dir(dest)?;
        let owners = self.chown.map_or(Owners::FromArchive, |(uid, gid)| Owners::Always(uid, gid));
        unpack(tree.root.open_file(&item.path)?, &dir, Unpacking::archive(owners, self.terms.limits))?;
        Ok(true)
    }

    /// A here-document as a file.
    fn inline(&mut self, name: &str, content: &[u8]) -> Result<(), Reason> {
        let (dir_path, name) = self.file_place(Path::new(&self.step.dest), OsStr::new(name))?;
        let dir = self.make_dir(&dir_path)?;
        self.clear_place(&dir, &dir_path.join(&name), &name)?;
        let mut file = dir.create_file(&name, 0o644)?;
        file.write_all(content).map_err(|e| rbuild_linux::Error::new("write", dir_path.join(&name), e))?;
        let (uid, gid) = self.chown.unwrap_or((0, 0));
        dir.chown(&name, uid, gid)?;
        dir.chmod(&name, self.mode(0o644, false))?;
        Ok(dir.set_mtime(&name, Timestamp { sec: self.terms.now, nsec: 0 })?)
    }

    fn finish_dirs(&mut self) -> Result<(), Reason> {
        for (path, mtime) in std::mem::take(&mut self.dirs).into_iter().rev() {
            let real = self.root.resolve(&path)?;
            let (dir, name) = self.root.parent(&real)?;
            if !name.is_empty() {
                dir.set_mtime(&name, mtime)?;
            }
        }
        Ok(())
    }
}
