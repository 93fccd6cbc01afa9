//! Files placed into a root directory instead of mounts, for the duration of a command.
//!
//! A command can treat them like its own files: move, link or replace them. Therefore every placed
//! entry, and the directory that it was placed into, is pinned by a descriptor and identified by
//! its inode. The cleanup removes entries by that identity, wherever they are and however many
//! names they have: none of them stays in the root directory, and covered files return to the
//! directory that they were in.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rbuild_linux::{Error, FileKind, Inode, PinnedEntry, RootDir, Stat, Timestamp, UidGid, walk};

use crate::error::{FileOrigin, MountProblem, RunnerProblem};
use crate::protocol::RunRequest;
use crate::runner::chroot::mount_content::{EntryAt, MountContent};
use crate::runner::mount_checks::{ResolvedMountPoints, check_devices, check_kernel_file_systems, check_mount_point};

/// Directory in the scratch directory for covered entries.
const COVERED: &str = "covered";

/// File in the scratch directory with the paths for [`restored_files`].
const RESTORED: &str = "restored";

/// Maximum size of [`RESTORED`] in bytes. All mounts of a command need less (PATH_MAX each).
const MAX_RESTORED: u64 = 16 << 20;

/// The mounts of a command, placed as files into its root directory.
pub(super) struct EmulatedMounts<'a> {
    root: &'a RootDir,
    scratch: &'a RootDir,
    /// In the order of placement: later ones may be inside earlier ones.
    mounts: Vec<EmulatedMount>,
    resolved: ResolvedMountPoints,
}

struct EmulatedMount {
    /// Path in the root directory, with links resolved.
    at: PathBuf,
    dir: RootDir,
    name: OsString,
    /// Missing parent directories that were created, topmost first.
    points: Vec<PlacedEntry>,
    /// The covered entry's name in [`COVERED`], and its metadata after it was moved there.
    covered: Option<(String, Stat)>,
    /// The content; `None` until it has been placed.
    content: Option<PlacedContent>,
}

/// The content of a mount as it was placed.
struct PlacedContent {
    entry: PlacedEntry,
    /// Entries created in it.
    inner: Vec<PlacedEntry>,
    /// The path that it is moved back to.
    home: Option<EntryAt>,
    /// True if its content is private to the command, such as a secret.
    is_text: bool,
}

/// An entry that was placed into the root directory.
struct PlacedEntry {
    pinned: PinnedEntry,
    kind: FileKind,
    /// Number of hard links that it may have.
    max_links: u32,
    dir: RootDir,
    dir_inode: Inode,
    name: OsString,
    location: EntryLocation,
}

/// Location of a placed entry when the command has ended.
enum EntryLocation {
    InPlace,
    Elsewhere(RootDir, OsString),
    Gone,
}

impl PlacedEntry {
    /// Pins an entry that must not get more hard links than it has now.
    fn of(dir: &RootDir, name: &OsStr) -> Result<PlacedEntry, Error> {
        let pinned = PinnedEntry::of(dir, name)?;
        let stat = pinned.stat()?;
        Ok(PlacedEntry {
            kind: stat.kind,
            max_links: if stat.kind == FileKind::Dir { u32::MAX } else { stat.nlink },
            pinned,
            dir: dir.try_clone()?,
            dir_inode: dir.stat_self()?.inode(),
            name: name.to_os_string(),
            location: EntryLocation::InPlace,
        })
    }

    /// Checks the original place. Returns true if the entry is there and has no other names.
    fn check_place(&mut self) -> Result<bool, Error> {
        let in_place = self.pinned.matches(&self.dir, &self.name);
        self.location = if in_place { EntryLocation::InPlace } else { EntryLocation::Gone };
        Ok(in_place && self.pinned.stat()?.nlink <= self.max_links)
    }

    /// Handles a name of the entry that was found in the root directory. Additional names of files
    /// are removed.
    fn handle_other_name(&mut self, dir: &RootDir, name: &OsStr) -> Result<(), Error> {
        if name == self.name && dir.stat_self()?.inode() == self.dir_inode {
            return Ok(());
        }
        if self.kind != FileKind::Dir {
            return preserving_mtime(dir, || dir.remove_file(name));
        }
        self.location = EntryLocation::Elsewhere(dir.try_clone()?, name.to_os_string());
        Ok(())
    }

    /// Returns the current directory and name of the entry, or `None` if it no longer exists.
    fn current_place(&self) -> Option<(&RootDir, &OsStr)> {
        match &self.location {
            EntryLocation::InPlace => Some((&self.dir, &self.name)),
            EntryLocation::Elsewhere(dir, name) => Some((dir, name)),
            EntryLocation::Gone => None,
        }
    }

    fn remove(&self) -> Result<(), Error> {
        self.current_place().map_or(Ok(()), |(dir, name)| preserving_mtime(dir, || dir.remove_all(name)))
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

    pub(super) fn place_all(&mut self, request: &RunRequest) -> Result<(), RunnerProblem> {
        self.scratch.create_dir_all(COVERED, 0o755, None, |_| ())?;
        for (target, content) in [
            ("/proc", MountContent::Empty(0o555)),
            ("/sys", MountContent::Empty(0o555)),
            ("/dev", MountContent::Devices),
            ("/etc/hosts", MountContent::Text(request.hosts.as_bytes(), 0o644, UidGid::ROOT)),
            ("/etc/resolv.conf", MountContent::Text(request.resolv_conf.as_bytes(), 0o644, UidGid::ROOT)),
        ] {
            self.place(target, content)?;
        }
        for wanted in request.mounts.iter().filter(|wanted| !wanted.is_of_dev()) {
            let target = Path::new(&wanted.target);
            let real = self.root.resolve(target).map_err(|e| RunnerProblem::of_mount_point(target, e))?;
            check_devices(target, &real)?;
            self.place(&wanted.target, MountContent::of(wanted, |target| self.covered_mode(target))?)?;
        }
        Ok(())
    }

    /// Returns the mode of the directory at `target`, unless it exists only as a mount point.
    fn covered_mode(&self, target: &Path) -> Option<u32> {
        let stat = self.root.stat_follow(target).ok().filter(|stat| stat.kind == FileKind::Dir)?;
        let mut points = self.mounts.iter().flat_map(|mount| &mount.points);
        let is_point = points.any(|point| point.pinned.inode() == stat.inode());
        (!is_point).then_some(stat.mode)
    }

    fn place(&mut self, target: &str, content: MountContent<'_>) -> Result<(), RunnerProblem> {
        let fail = |e: Error| RunnerProblem::of_mount_point(Path::new(target), e);
        let needs = if content.is_dir()? { FileKind::Dir } else { FileKind::File };
        let at = self.resolve_target(Path::new(target), needs)?;
        let Some(name) = at.file_name().map(OsStr::to_os_string) else {
            return Err(MountProblem::OverRoot.at(Path::new(target)).into());
        };
        let (dir, points) = self.directory_of(&at).map_err(fail)?;
        let is_there = dir.stat_name(&name).is_ok();
        self.resolved.add(at.clone(), needs);
        self.mounts.push(EmulatedMount { at, dir, name, points, covered: None, content: None });
        self.place_content(is_there, content).map_err(fail)
    }

    /// Returns `target` with links resolved, if a mount can be there.
    fn resolve_target(&self, target: &Path, needs: FileKind) -> Result<PathBuf, RunnerProblem> {
        let real = self.root.resolve(target).map_err(|e| RunnerProblem::of_mount_point(target, e))?;
        check_kernel_file_systems(target, &real)?;
        self.resolved.allows(target, &real, needs)?;
        let holder = if self.resolved.covers(&real) { FileOrigin::Mount } else { FileOrigin::Image };
        check_mount_point(self.root, target, &real, needs, holder)?;
        Ok(real)
    }

    /// Returns the directory that holds `at`, creating missing parents.
    fn directory_of(&self, at: &Path) -> Result<(RootDir, Vec<PlacedEntry>), Error> {
        let mut dir = self.root.try_clone()?;
        let mut points = Vec::new();
        for part in at.parent().into_iter().flat_map(Path::components) {
            let Component::Normal(name) = part else { continue };
            if !dir.exists(name)? {
                preserving_mtime(&dir, || dir.create_dir(name, 0o755).and_then(|()| dir.chmod(name, 0o755)))?;
                points.push(PlacedEntry::of(&dir, name)?);
            }
            dir = dir.sub(name)?;
        }
        Ok((dir, points))
    }

    /// Places the content of the last mount, moving away an existing entry.
    fn place_content(&mut self, occupied: bool, source: MountContent<'_>) -> Result<(), Error> {
        let number = self.mounts.len();
        let Some(EmulatedMount { dir, name, covered, content, .. }) = self.mounts.last_mut() else { return Ok(()) };
        let mtime = dir.stat_self()?.mtime;
        if occupied {
            let kept_name = number.to_string();
            let kept = self.scratch.sub(COVERED)?;
            dir.rename(name, &kept, OsStr::new(&kept_name))?;
            *covered = Some((kept_name.clone(), kept.stat_name(OsStr::new(&kept_name))?));
        }
        source.make(dir, name)?;
        let mut inner = Vec::new();
        if matches!(source, MountContent::Devices) {
            let made = dir.sub(&*name)?;
            inner = made.entries()?.iter().map(|e| PlacedEntry::of(&made, &e.name)).collect::<Result<_, _>>()?;
        }
        let mut entry = PlacedEntry::of(dir, name)?;
        if matches!(source, MountContent::Moved(_) | MountContent::Copied(_)) {
            // Files of a mount may be hard-linked into the result, even if the mount is a single
            // file.
            entry.max_links = u32::MAX;
        }
        let is_text = matches!(source, MountContent::Text(..));
        let home = if let MountContent::Moved(home) = source { Some(home) } else { None };
        *content = Some(PlacedContent { entry, inner, home, is_text });
        dir.set_own_mtime(mtime)
    }

    /// Removes everything that was placed. All processes of the command must have ended.
    pub(super) fn remove_all(&mut self) -> Result<(), Error> {
        let mounts = std::mem::take(&mut self.mounts);
        self.remove_mounts(mounts)
    }

    fn remove_mounts(&self, mut mounts: Vec<EmulatedMount>) -> Result<(), Error> {
        let times =
            mounts.iter().flat_map(EmulatedMount::directories).map(|dir| Ok((dir.try_clone()?, mtime_of(dir)?)));
        let times = times.collect::<Result<Vec<_>, Error>>()?;
        self.find_moved(&mut mounts)?;
        // Mounts may be nested: return those that are kept before anything is removed.
        let own: HashSet<Inode> =
            mounts.iter().flat_map(EmulatedMount::placed_entries).map(|entry| entry.pinned.inode()).collect();
        for mounted in mounts.iter().rev() {
            mounted.return_entry(&own)?;
        }
        for mounted in mounts.iter().rev() {
            mounted.remove()?;
        }
        let kept = self.scratch.sub(COVERED)?;
        let mut restored = Vec::new();
        for mounted in mounts.iter().rev() {
            if mounted.restore_covered(&kept)? {
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
    fn find_moved(&self, mounts: &mut [EmulatedMount]) -> Result<(), Error> {
        let mut missing = HashMap::new();
        for entry in mounts.iter_mut().flat_map(EmulatedMount::entries_mut) {
            if !entry.check_place()? {
                missing.insert(entry.pinned.inode(), entry);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        walk(self.root, |dir, _, name, stat| match missing.get_mut(&stat.inode()) {
            Some(entry) => entry.handle_other_name(dir, name),
            None => Ok(()),
        })
    }
}

fn mtime_of(dir: &RootDir) -> Result<Timestamp, Error> {
    Ok(dir.stat_self()?.mtime)
}

impl EmulatedMount {
    fn entries_mut(&mut self) -> impl Iterator<Item = &mut PlacedEntry> {
        let content = self.content.iter_mut().flat_map(|m| std::iter::once(&mut m.entry).chain(&mut m.inner));
        self.points.iter_mut().chain(content)
    }

    /// Returns the placed entry and those created in it.
    fn placed_entries(&self) -> impl Iterator<Item = &PlacedEntry> {
        self.content.iter().flat_map(|m| std::iter::once(&m.entry).chain(&m.inner))
    }

    /// Returns the directories whose times must stay as the command left them.
    fn directories(&self) -> impl Iterator<Item = &RootDir> {
        self.points.iter().map(|point| &point.dir).chain([&self.dir])
    }

    /// Moves an entry back to its original place. If the command removed it, the replacement by the
    /// command is moved there, or else an empty directory is created. `own` are the inodes of all
    /// placed entries; they do not count as replacements.
    fn return_entry(&self, own: &HashSet<Inode>) -> Result<(), Error> {
        let Some(PlacedContent { entry, home: Some((home, old)), .. }) = &self.content else { return Ok(()) };
        if let Some((dir, name)) = entry.current_place() {
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
                let stat = entry.pinned.stat()?;
                home.create_dir(old, 0o700)?;
                home.sub(old)?.set_own_meta(stat.owner(), stat.mode, stat.mtime)
            }
        }
    }

    fn remove(&self) -> Result<(), Error> {
        let Some(PlacedContent { entry, inner, home: None, is_text }) = &self.content else { return Ok(()) };
        entry.remove()?;
        for moved in inner.iter().filter(|inner| matches!(inner.location, EntryLocation::Elsewhere(..))) {
            moved.remove()?;
        }
        // A hard link outside of the root directory, which a command can create, must not reveal
        // the content.
        if *is_text && entry.pinned.stat()?.nlink > 0 {
            entry.pinned.truncate()?;
        }
        Ok(())
    }

    /// Restores the covered entry, and removes the directories that were created unless the command
    /// has put something into them. Returns true if the covered entry was a file and is unchanged.
    fn restore_covered(&self, kept: &RootDir) -> Result<bool, Error> {
        let mut is_unchanged = false;
        if self.content.is_some() || self.covered.is_some() {
            self.dir.remove_all(&self.name)?;
        }
        if let Some((kept_name, stat)) = &self.covered {
            let kept_name = OsStr::new(kept_name);
            is_unchanged = stat.kind != FileKind::Dir && kept.stat_name(kept_name)? == *stat;
            match kept.rename(kept_name, &self.dir, &self.name) {
                // The command removed the directory itself, with everything in it.
                Err(e) if e.is_not_found() => is_unchanged = false,
                other => other?,
            }
        }
        for (dir, name) in self.points.iter().rev().filter_map(PlacedEntry::current_place) {
            // Fails if it is not empty; then it is more than a mount point and stays.
            let _ = preserving_mtime(dir, || dir.remove_dir(name));
        }
        Ok(is_unchanged)
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
