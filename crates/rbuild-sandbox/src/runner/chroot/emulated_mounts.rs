//! Files placed into a root directory instead of mounts, for the duration of a command.
//!
//! A command can treat them like its own files: move, link or replace them. Therefore every placed
//! entry is held by a descriptor and identified by its inode, wherever it is and however many names
//! it has; the directories it was placed into are held, too. The cleanup removes entries by that
//! identity: none of them stays in the root directory, and covered files return to the same
//! directory they were in.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rbuild_linux::{Error, FileKind, Inode, PinnedEntry, RootDir, Stat, Timestamp, Trail, UidGid};

use crate::error::{FileOrigin, MountProblem, RunnerProblem};
use crate::protocol::RunRequest;
use crate::runner::chroot::content::{EntryAt, MountContent};
use crate::runner::mount_checks::{ResolvedMountPoints, fitting_place, outside_of_the_devices, outside_of_the_kernels};

/// Directory in the scratch directory that holds covered entries meanwhile.
const COVERED: &str = "covered";

/// File in the scratch directory with the paths for [`restored_files`].
const RESTORED: &str = "restored";

/// Size limit of [`RESTORED`]; more than all mounts of a command can need (PATH_MAX each).
const MAX_RESTORED: u64 = 16 << 20;

/// The mounts of a command, placed as files into its root directory.
pub(super) struct EmulatedMounts<'a> {
    root: &'a RootDir,
    scratch: &'a RootDir,
    /// In the order of placement: later ones may be inside earlier ones.
    mounts: Vec<Mounted>,
    resolved: ResolvedMountPoints,
}

struct Mounted {
    /// Path in the root directory, with links resolved.
    at: PathBuf,
    dir: RootDir,
    name: OsString,
    /// Missing parent directories that were created, topmost first.
    points: Vec<Tracked>,
    /// The covered entry's name in [`COVERED`], and its metadata after it was moved there.
    covered: Option<(String, Stat)>,
    /// `None` until it has been placed.
    content: Option<PlacedContent>,
}

/// The content of a mount as it was placed.
struct PlacedContent {
    entry: Tracked,
    /// Entries created in it.
    inner: Vec<Tracked>,
    /// The path that it is moved back to.
    home: Option<EntryAt>,
    /// Its content is private to the command (a secret, for instance).
    is_text: bool,
}

/// An entry that was placed into the root directory.
struct Tracked {
    held: PinnedEntry,
    kind: FileKind,
    /// Maximum number of hard links it may have.
    most_names: u32,
    dir: RootDir,
    dir_inode: Inode,
    name: OsString,
    found: EntryLocation,
}

/// Location of a placed entry when the command has ended.
enum EntryLocation {
    InPlace,
    Elsewhere(RootDir, OsString),
    Gone,
}

impl Tracked {
    /// Tracks an entry that may have no more hard links than it has now.
    fn of(dir: &RootDir, name: &OsStr) -> Result<Tracked, Error> {
        let held = PinnedEntry::of(dir, name)?;
        let stat = held.stat()?;
        Ok(Tracked {
            kind: stat.kind,
            most_names: if stat.kind == FileKind::Dir { u32::MAX } else { stat.nlink },
            held,
            dir: dir.try_clone()?,
            dir_inode: dir.stat_self()?.inode(),
            name: name.to_os_string(),
            found: EntryLocation::InPlace,
        })
    }

    /// Checks the original place. Returns true if the entry is there and has no other names.
    fn look(&mut self) -> Result<bool, Error> {
        let in_place = self.held.is(&self.dir, &self.name);
        self.found = if in_place { EntryLocation::InPlace } else { EntryLocation::Gone };
        Ok(in_place && self.held.stat()?.nlink <= self.most_names)
    }

    /// Handles a name of the entry found elsewhere. Additional names of files are removed.
    fn meet(&mut self, dir: &RootDir, name: &OsStr) -> Result<(), Error> {
        if name == self.name && dir.stat_self()?.inode() == self.dir_inode {
            return Ok(());
        }
        if self.kind != FileKind::Dir {
            return preserving_mtime(dir, || dir.remove_file(name));
        }
        self.found = EntryLocation::Elsewhere(dir.try_clone()?, name.to_os_string());
        Ok(())
    }

    /// Returns the directory and name where it currently is.
    fn place(&self) -> Option<(&RootDir, &OsStr)> {
        match &self.found {
            EntryLocation::InPlace => Some((&self.dir, &self.name)),
            EntryLocation::Elsewhere(dir, name) => Some((dir, name)),
            EntryLocation::Gone => None,
        }
    }

    fn remove(&self) -> Result<(), Error> {
        self.place().map_or(Ok(()), |(dir, name)| preserving_mtime(dir, || dir.remove_all(name)))
    }
}

/// Runs `work` and restores the directory's modification time.
fn preserving_mtime<T>(dir: &RootDir, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let mtime = dir.stat_self()?.mtime;
    let done = work()?;
    dir.set_own_mtime(mtime)?;
    Ok(done)
}

impl EmulatedMounts<'_> {
    pub(super) fn new<'a>(root: &'a RootDir, scratch: &'a RootDir) -> EmulatedMounts<'a> {
        EmulatedMounts { root, scratch, mounts: Vec::new(), resolved: ResolvedMountPoints::default() }
    }

    pub(super) fn put(&mut self, request: &RunRequest) -> Result<(), RunnerProblem> {
        self.scratch.create_dir_all(COVERED, 0o755, None, |_| ())?;
        for (target, what) in [
            ("/proc", MountContent::Empty(0o555)),
            ("/sys", MountContent::Empty(0o555)),
            ("/dev", MountContent::Devices),
            ("/etc/hosts", MountContent::Text(request.hosts.as_bytes(), 0o644, UidGid::ROOT)),
            ("/etc/resolv.conf", MountContent::Text(request.resolv_conf.as_bytes(), 0o644, UidGid::ROOT)),
        ] {
            self.mount(target, what)?;
        }
        for wanted in request.mounts.iter().filter(|wanted| !wanted.is_of_dev()) {
            let target = Path::new(&wanted.target);
            let real = self.root.resolve(target).map_err(|e| RunnerProblem::of_mount_point(target, e))?;
            outside_of_the_devices(target, &real)?;
            self.mount(&wanted.target, MountContent::of(wanted)?)?;
        }
        Ok(())
    }

    fn mount(&mut self, target: &str, what: MountContent<'_>) -> Result<(), RunnerProblem> {
        let fail = |e: Error| RunnerProblem::of_mount_point(Path::new(target), e);
        let needs = if what.is_dir()? { FileKind::Dir } else { FileKind::File };
        let at = self.place_of(Path::new(target), needs)?;
        let Some(name) = at.file_name().map(OsStr::to_os_string) else {
            return Err(MountProblem::OverRoot.at(Path::new(target)).into());
        };
        let (dir, points) = self.directory_of(&at).map_err(fail)?;
        let is_there = dir.stat_name(&name).is_ok();
        self.resolved.add(at.clone(), needs);
        self.mounts.push(Mounted { at, dir, name, points, covered: None, content: None });
        self.cover(is_there, what).map_err(fail)
    }

    /// Returns `target` with links resolved, if a mount can be there.
    fn place_of(&self, target: &Path, needs: FileKind) -> Result<PathBuf, RunnerProblem> {
        let real = self.root.resolve(target).map_err(|e| RunnerProblem::of_mount_point(target, e))?;
        outside_of_the_kernels(target, &real)?;
        self.resolved.allows(target, &real, needs)?;
        let holder = if self.resolved.covers(&real) { FileOrigin::Mount } else { FileOrigin::Image };
        fitting_place(self.root, target, (&real, needs), holder)?;
        Ok(real)
    }

    /// Returns the directory that holds `at`, creating missing parents.
    fn directory_of(&self, at: &Path) -> Result<(RootDir, Vec<Tracked>), Error> {
        let mut dir = self.root.try_clone()?;
        let mut points = Vec::new();
        for part in at.parent().into_iter().flat_map(Path::components) {
            let Component::Normal(name) = part else { continue };
            if !dir.exists(name)? {
                preserving_mtime(&dir, || dir.create_dir(name, 0o755).and_then(|()| dir.chmod(name, 0o755)))?;
                points.push(Tracked::of(&dir, name)?);
            }
            dir = dir.sub(name)?;
        }
        Ok((dir, points))
    }

    /// Places the content of the last mount, moving away an existing entry.
    fn cover(&mut self, occupied: bool, what: MountContent<'_>) -> Result<(), Error> {
        let number = self.mounts.len();
        let Some(Mounted { dir, name, covered, content, .. }) = self.mounts.last_mut() else { return Ok(()) };
        let mtime = dir.stat_self()?.mtime;
        if occupied {
            let kept_name = number.to_string();
            let kept = self.scratch.sub(COVERED)?;
            dir.rename(name, &kept, OsStr::new(&kept_name))?;
            *covered = Some((kept_name.clone(), kept.stat_name(OsStr::new(&kept_name))?));
        }
        what.make(dir, name)?;
        let mut inner = Vec::new();
        if matches!(what, MountContent::Devices) {
            let made = dir.sub(&*name)?;
            inner = made.entries()?.iter().map(|e| Tracked::of(&made, &e.name)).collect::<Result<_, _>>()?;
        }
        let mut entry = Tracked::of(dir, name)?;
        if matches!(what, MountContent::Lent(_) | MountContent::Copied(_)) {
            // Files of a mount may be hard-linked into the result, even if the mount is a single
            // file.
            entry.most_names = u32::MAX;
        }
        let is_text = matches!(what, MountContent::Text(..));
        let home = if let MountContent::Lent(home) = what { Some(home) } else { None };
        *content = Some(PlacedContent { entry, inner, home, is_text });
        dir.set_own_mtime(mtime)
    }

    /// Removes everything that was placed. All processes of the command must have ended.
    pub(super) fn take_back(&mut self) -> Result<(), Error> {
        let mounts = std::mem::take(&mut self.mounts);
        self.move_back(mounts)
    }

    fn move_back(&self, mut mounts: Vec<Mounted>) -> Result<(), Error> {
        let times = mounts.iter().flat_map(Mounted::directories).map(|dir| Ok((dir.try_clone()?, mtime_of(dir)?)));
        let times = times.collect::<Result<Vec<_>, Error>>()?;
        self.find_moved(&mut mounts)?;
        // Mounts may be nested: return those that are kept before anything is removed.
        let own: HashSet<Inode> =
            mounts.iter().flat_map(Mounted::placed_entries).map(|tracked| tracked.held.inode()).collect();
        for mounted in mounts.iter().rev() {
            mounted.return_entry(&own)?;
        }
        for mounted in mounts.iter().rev() {
            mounted.remove()?;
        }
        let kept = self.scratch.sub(COVERED)?;
        let mut restored = Vec::new();
        for mounted in mounts.iter().rev() {
            if mounted.uncover(&kept)? {
                restored.push(mounted.at.as_os_str().as_bytes());
            }
        }
        for (dir, mtime) in times {
            dir.set_own_mtime(mtime)?;
        }
        if !restored.is_empty() {
            let mut file = self.scratch.create_file(OsStr::new(RESTORED), 0o600)?;
            let failed = |e| self.scratch.error("write", RESTORED, e);
            std::io::Write::write_all(&mut file, &restored.join(&0)).map_err(failed)?;
        }
        Ok(())
    }

    /// Searches for entries that are not, or not only, in their original place.
    fn find_moved(&self, mounts: &mut [Mounted]) -> Result<(), Error> {
        let mut missing = HashMap::new();
        for tracked in mounts.iter_mut().flat_map(Mounted::tracked) {
            if !tracked.look()? {
                missing.insert(tracked.held.inode(), tracked);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        walk(self.root, |dir, name, stat| match missing.get_mut(&stat.inode()) {
            Some(tracked) => tracked.meet(dir, name),
            None => Ok(()),
        })
    }
}

fn mtime_of(dir: &RootDir) -> Result<Timestamp, Error> {
    Ok(dir.stat_self()?.mtime)
}

/// Calls `each` for every entry below `root`, directories before their contents.
fn walk(root: &RootDir, mut each: impl FnMut(&RootDir, &OsStr, &Stat) -> Result<(), Error>) -> Result<(), Error> {
    let mut trail = Trail::new(root.try_clone()?);
    let mut levels = vec![root.entries()?];
    while let Some(entries) = levels.last_mut() {
        let Some(entry) = entries.pop() else {
            levels.pop();
            trail.leave()?;
            continue;
        };
        let dir = trail.last();
        let stat = dir.stat_name(&entry.name)?;
        each(dir, &entry.name, &stat)?;
        if stat.kind == FileKind::Dir {
            levels.push(trail.enter(&entry.name)?.entries()?);
        }
    }
    Ok(())
}

impl Mounted {
    fn tracked(&mut self) -> impl Iterator<Item = &mut Tracked> {
        let content = self.content.iter_mut().flat_map(|m| std::iter::once(&mut m.entry).chain(&mut m.inner));
        self.points.iter_mut().chain(content)
    }

    /// Returns the placed entry and those created in it.
    fn placed_entries(&self) -> impl Iterator<Item = &Tracked> {
        self.content.iter().flat_map(|m| std::iter::once(&m.entry).chain(&m.inner))
    }

    /// Returns the directories whose times must stay as the command left them.
    fn directories(&self) -> impl Iterator<Item = &RootDir> {
        self.points.iter().map(|point| &point.dir).chain([&self.dir])
    }

    /// Returns a lent entry to its original place. If the command removed it, its replacement, or
    /// else an empty directory, goes there. `own` are the inodes of everything placed, none of
    /// which counts as the command's replacement.
    fn return_entry(&self, own: &HashSet<Inode>) -> Result<(), Error> {
        let Some(PlacedContent { entry, home: Some((home, old)), .. }) = &self.content else { return Ok(()) };
        if let Some((dir, name)) = entry.place() {
            return preserving_mtime(dir, || dir.rename(name, home, old));
        }
        if entry.kind != FileKind::Dir {
            return Ok(());
        }
        match self.dir.stat_name(&self.name) {
            Ok(stat) if stat.kind == FileKind::Dir && !own.contains(&stat.inode()) => {
                self.dir.rename(&self.name, home, old)
            }
            _ => {
                let stat = entry.held.stat()?;
                home.create_dir(old, 0o700)?;
                home.sub(old)?.set_own_meta(stat.owner(), stat.mode, stat.mtime)
            }
        }
    }

    fn remove(&self) -> Result<(), Error> {
        let Some(PlacedContent { entry, inner, home: None, is_text }) = &self.content else { return Ok(()) };
        entry.remove()?;
        for moved in inner.iter().filter(|inner| matches!(inner.found, EntryLocation::Elsewhere(..))) {
            moved.remove()?;
        }
        // A hard link outside of the root directory, which a command can create, must not reveal
        // the content.
        if *is_text && entry.held.stat()?.nlink > 0 {
            entry.held.truncate()?;
        }
        Ok(())
    }

    /// Restores the covered entry, and removes the directories that were created unless the command
    /// has put something into them. Returns true if the covered entry was a file and is unchanged.
    fn uncover(&self, kept: &RootDir) -> Result<bool, Error> {
        let mut as_it_was = false;
        if self.content.is_some() || self.covered.is_some() {
            self.dir.remove_all(&self.name)?;
        }
        if let Some((kept_name, stat)) = &self.covered {
            let kept_name = OsStr::new(kept_name);
            as_it_was = stat.kind != FileKind::Dir && kept.stat_name(kept_name)? == *stat;
            match kept.rename(kept_name, &self.dir, &self.name) {
                // The command removed the directory itself, with everything in it.
                Err(e) if e.is_not_found() => as_it_was = false,
                other => other?,
            }
        }
        for (dir, name) in self.points.iter().rev().filter_map(Tracked::place) {
            // Fails if it is not empty; then it is more than a mount point and stays.
            let _ = preserving_mtime(dir, || dir.remove_dir(name));
        }
        Ok(as_it_was)
    }
}

/// Returns the paths of files that were covered while a command ran and that it did not change.
/// Moving them away and back changes their change times (statx(2), stx_ctime) and nothing else.
/// `scratch` is the scratch directory of the request.
pub fn restored_files(scratch: &RootDir) -> rbuild_linux::Result<Vec<PathBuf>> {
    let paths = match scratch.read(RESTORED, MAX_RESTORED) {
        Ok(paths) => paths,
        Err(e) if e.is_not_found() => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    Ok(paths.split(|byte| *byte == 0).map(|path| PathBuf::from(OsString::from_vec(path.to_vec()))).collect())
}
