//! File operations performed on behalf of the caller.

use std::ffi::{CStr, CString};

use caps::Capability;
use rbuild_linux::seccomp::{Layout, ReportedStat, stat_bytes, statx_bytes};
use rbuild_linux::{FileKind, MAX_SYMLINKS, Recorded, UidGid, has_free_descriptor, latest_modification};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::id_emulation::caller::{Caller, Result, SharedProc};
use crate::id_emulation::caller_files::{NamedPath, OpenHow, OpenedFile, SET_GID, SeenPath, StatFile, passes_group_on};
use crate::id_emulation::calls::{CREATES, I386};
use crate::id_emulation::credentials::SAME;
use crate::id_emulation::decode::{
    NAMING, NOW, OMIT, OPEN_HOW, PathArg, PathAt, QUERYING, SYNCHRONIZING, Subject, Time, TimeForm, TimesAt, open_how,
    without,
};
use crate::id_emulation::supervisor::{Reply, Supervisor, errno};

/// The kernel's limit for a list of attribute names, in bytes (xattr(7)).
const MAX_XATTR_LIST: usize = 64 * 1024;

/// The bit of a mask of statx(2) that the kernel refuses, `STATX__RESERVED`.
const RESERVED: u32 = 0x8000_0000;

/// The mode bit of a set-user-ID program.
const SET_USER: u32 = 0o4000;

/// The mode bits of a set-group-ID program.
const SET_GROUP_PROGRAM: u32 = 0o2010;

/// Maximum number of attempts to open a file that other processes create and remove.
const MAX_ATTEMPTS: usize = 1000;

/// The file that an open with O_CREAT refers to.
enum OpenSubject {
    /// A file that this process does not open, as the kernel does not create it.
    ByKernel,
    Existing(OpenedFile),
    /// The directory and name of a new file.
    New(OpenedFile, CString),
}

impl Supervisor {
    fn place<'a>(&'a self, caller: &Caller<'a>, at: PathArg) -> Result<NamedPath<'a>> {
        NamedPath::of(caller, at.dir, caller.path(at.path)?, &self.roots)
    }

    pub(super) fn target(&self, caller: &Caller<'_>, file: PathAt) -> Result<OpenedFile> {
        self.target_of(caller, file.at.dir, caller.path_or_none(file.at.path)?, AtFlags::from_bits_retain(file.flags))
    }

    fn target_of(&self, caller: &Caller<'_>, dir: i32, path: CString, flags: AtFlags) -> Result<OpenedFile> {
        if path.is_empty() {
            if !flags.contains(AtFlags::EMPTY_PATH) {
                return Err(Errno::NOENT);
            }
            return OpenedFile::of(caller.directory(dir)?);
        }
        let place = NamedPath::of(caller, dir, path, &self.roots)?;
        match place.target(!flags.contains(AtFlags::SYMLINK_NOFOLLOW)) {
            Err(e) if !flags.contains(AtFlags::SYMLINK_NOFOLLOW) => self.follow_links(caller, place).ok_or(e),
            found => found,
        }
    }

    /// Opens the file that links lead to, if they end in a path of /proc to one of the caller's own
    /// files, as `/dev/stdout` does. Otherwise returns `None`.
    fn follow_links<'a>(&'a self, caller: &Caller<'a>, mut place: NamedPath<'a>) -> Option<OpenedFile> {
        for _ in 0..MAX_SYMLINKS {
            let (parent, name) = place.parent().ok()?;
            // The text of a link in /proc is not the path of its target.
            if parent.is_in_proc() {
                return None;
            }
            let text = rustix::fs::readlinkat(&parent.fd, &name, Vec::new()).ok()?;
            place = place.follow_link(caller, parent, text, &self.roots).ok()?;
            if let Ok(target) = place.target(true) {
                return Some(target);
            }
        }
        None
    }

    pub(super) fn subject(&self, caller: &Caller<'_>, file: Subject) -> Result<OpenedFile> {
        match file {
            Subject::Open(fd) => OpenedFile::of(caller.open_file(fd)?),
            Subject::Named(file) => self.target(caller, file),
        }
    }

    /// Returns the owner to report for a queried file, or `None` to leave the call to the kernel:
    /// there is no record, or this process cannot find the file. Most calls are of this kind, and
    /// most files have no record.
    fn reported(&mut self, caller: &Caller<'_>, file: PathAt) -> Option<(StatFile, ReportedStat)> {
        let path = caller.path_or_none(file.at.path).ok()?;
        let flags = AtFlags::from_bits_retain(file.flags);
        // The kernel refuses these.
        let refused = file.flags & !QUERYING != 0 || file.flags & SYNCHRONIZING == SYNCHRONIZING;
        if refused || path.is_empty() && !flags.contains(AtFlags::EMPTY_PATH) {
            return None;
        }
        if self.roots.differ || caller.proc.outer {
            self.target_of(caller, file.at.dir, path, flags).ok()?.reported_stat(&self.owners)
        } else {
            self.known.look(&self.owners, SeenPath::of(caller, file.at.dir, &path, flags).ok()?)
        }
    }

    pub(super) fn stat(&mut self, caller: &Caller<'_>, file: PathAt, to: u64) -> Result<Reply> {
        let Some((file, reported)) = self.reported(caller, file) else { return Ok(Reply::GO) };
        let layout = if caller.call.architecture == I386 { Layout::I386 } else { Layout::Native };
        caller.write(to, &stat_bytes(file.named(), &reported, layout).map_err(errno)?)?;
        Ok(Reply::value(0))
    }

    pub(super) fn statx(&mut self, caller: &Caller<'_>, file: PathAt, mask: u32, to: u64) -> Result<Reply> {
        if mask & RESERVED != 0 {
            return Err(Errno::INVAL);
        }
        let Some((file, reported)) = self.reported(caller, file) else { return Ok(Reply::GO) };
        caller.write(to, &statx_bytes(file.named(), mask, &reported).map_err(errno)?)?;
        Ok(Reply::value(0))
    }

    /// Lists a file's attributes without the owner attribute. Never left to the kernel: a command
    /// that learned the name could set the attribute.
    pub(super) fn list_attributes(&self, caller: &Caller<'_>, file: Subject, to: u64, size: u64) -> Result<Reply> {
        refuse_unknown_flags(file)?;
        let mut names = vec![0; MAX_XATTR_LIST];
        let n = rustix::fs::listxattr(SharedProc::path_of(&self.subject(caller, file)?.fd), &mut names[..])?;
        let names = without(&names[..n], self.owners.attribute().as_encoded_bytes());
        if size > 0 {
            if size < names.len() as u64 {
                return Err(Errno::RANGE);
            }
            caller.write(to, &names)?;
        }
        Ok(Reply::value(names.len() as u32))
    }

    /// Sets a file's times, except an access time that records its owner. Never left to the kernel,
    /// whatever the file appears to be: it could be replaced by another one in the meantime.
    pub(super) fn set_times(&mut self, caller: &Caller<'_>, file: Subject, times: TimesAt) -> Result<Reply> {
        let TimesAt { form, width, address } = times;
        let mut bytes = [0; 32];
        let bytes = &mut bytes[..form.size(width)];
        let now = (0, NOW);
        let [access, modification] = match address {
            0 => [now, now],
            address => {
                caller.read(address, bytes)?;
                form.read(width, bytes).ok_or(Errno::INVAL)?
            }
        };
        // The kernel does not resolve the path.
        if form == TimeForm::Nanoseconds && (access.1, modification.1) == (OMIT, OMIT) {
            return Ok(Reply::value(0));
        }
        refuse_unknown_flags(file)?;
        let target = self.subject(caller, file)?;
        let are_given = (access.1, modification.1) != (NOW, NOW);
        if !self.may_as_owner(caller, &target)? {
            if are_given {
                return Err(Errno::PERM);
            }
            if !self.may_write(caller, &target)? {
                return Err(Errno::ACCESS);
            }
        }
        let access = if matches!(target.kind(), FileKind::File | FileKind::Dir) { access } else { (0, OMIT) };
        let modification = (modification.0.min(latest_modification(target.kind())), modification.1);
        let time = |(sec, nsec): Time| Timespec { tv_sec: sec, tv_nsec: nsec };
        let times = Timestamps { last_access: time(access), last_modification: time(modification) };
        rustix::fs::utimensat(&target.fd, c"", &times, AtFlags::EMPTY_PATH)?;
        Ok(Reply::value(0))
    }

    /// Implements chown(2). An ID that is [`SAME`] does not change.
    pub(super) fn chown(&mut self, caller: &Caller<'_>, file: Subject, new: UidGid) -> Result<Reply> {
        refuse_unknown_flags(file)?;
        let target = self.subject(caller, file)?;
        let who = self.credentials(caller)?;
        let Recorded { owner: old, device } = target.recorded(&self.owners).unwrap_or_default();
        if !self.may(caller, Capability::CAP_CHOWN) {
            let is_own = who.users.files == old.uid;
            let may_user = new.uid == SAME || is_own && new.uid == old.uid;
            let may_group = new.gid == SAME || is_own && (new.gid == old.gid || who.is_in(new.gid));
            if !may_user || !may_group {
                return Err(Errno::PERM);
            }
        }
        // The kernel removes set-id bits below. Only a caller that may change the mode may have
        // them removed.
        let mode = target.stat.st_mode;
        let drops_bits = mode & SET_USER != 0 || mode & SET_GROUP_PROGRAM == SET_GROUP_PROGRAM;
        if drops_bits && target.kind() != FileKind::Dir && !self.may_as_owner(caller, &target)? {
            return Err(Errno::PERM);
        }
        let changed = |new: u32, old: u32| if new == SAME { old } else { new };
        let owner = UidGid::new(changed(new.uid, old.uid), changed(new.gid, old.gid));
        // Makes the kernel apply the side effects of a change of owner: copy-up, and removal of
        // set-id bits.
        rustix::fs::chownat(&target.fd, c"", None, None, AtFlags::EMPTY_PATH)?;
        self.own(&target, owner, device)?;
        Ok(Reply::value(0))
    }

    /// Returns the owner of a file that the caller creates in a directory; `None` for root and its
    /// group.
    fn owner_of_new(&self, caller: &Caller<'_>, dir: &OpenedFile) -> Result<Option<UidGid>> {
        let who = self.credentials(caller)?;
        let gid = dir.group_for_new(&self.owners).unwrap_or(who.groups.files);
        Ok(Some(UidGid { uid: who.users.files, gid }).filter(|owner| *owner != UidGid::ROOT))
    }

    /// Returns true if a file that the caller creates at a path belongs to root and its group, as
    /// far as can be determined without opening anything.
    fn creates_for_root(&self, caller: &Caller<'_>, at: PathArg) -> bool {
        let Ok(who) = self.credentials(caller) else { return false };
        let root = !self.roots.differ && UidGid::new(who.users.files, who.groups.files) == UidGid::ROOT;
        root && caller.path(at.path).is_ok_and(|path| !passes_group_on(caller, at.dir, &path, &self.roots))
    }

    /// Returns the mode of a new file that is not a directory. Like the kernel, drops the
    /// set-group-ID bit of a program whose group comes from its directory if its creator is not a
    /// member of that group.
    fn mode_in(&self, caller: &Caller<'_>, dir: &OpenedFile, mode: u32) -> Result<Mode> {
        let who = self.credentials(caller)?;
        let foreign = mode & SET_GROUP_PROGRAM == SET_GROUP_PROGRAM
            && dir.group_for_new(&self.owners).is_some_and(|group| !who.is_in(group));
        let dropped = if foreign && !self.may(caller, Capability::CAP_FSETID) { SET_GID } else { 0 };
        Ok(Mode::from_raw_mode(mode & 0o7777 & !dropped))
    }

    /// Records a file's owner.
    fn own(&mut self, target: &OpenedFile, owner: UidGid, device: Option<(FileKind, u32, u32)>) -> Result<()> {
        target.own(&self.owners, Recorded { owner, device })?;
        self.known.forget(target)
    }

    fn own_new(
        &mut self,
        dir: &OpenedFile,
        name: &CString,
        owner: UidGid,
        device: Option<(FileKind, u32, u32)>,
    ) -> Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = OpenedFile::of(rustix::fs::openat(&dir.fd, name, flags, Mode::empty())?)?;
        self.own(&made, owner, device)
    }

    pub(super) fn make_node(&mut self, caller: &Caller<'_>, at: PathArg, mode: u32, device: u32) -> Result<Reply> {
        if !is_makeable(mode) {
            return Ok(Reply::GO);
        }
        let (parent, name) = match self.place(caller, at).and_then(|p| p.parent_of_leaf()) {
            Ok(found) => found,
            Err(e) => return self.unless_for_root(caller, e),
        };
        let maker = self.owner_of_new(caller, &parent)?;
        let kind = match FileType::from_raw_mode(mode) {
            FileType::CharacterDevice => Some(FileKind::CharDevice),
            FileType::BlockDevice => Some(FileKind::BlockDevice),
            _ => None,
        };
        let numbers = (rustix::fs::major(device.into()), rustix::fs::minor(device.into()));
        match (kind, maker) {
            (None, None) => return Ok(Reply::GO),
            (None, Some(owner)) => {
                let kind = match FileType::from_raw_mode(mode) {
                    FileType::Unknown => FileType::RegularFile,
                    kind => kind,
                };
                let mode = self.mode_in(caller, &parent, mode)?;
                with_umask_of(caller, || rustix::fs::mknodat(&parent.fd, &name, kind, mode, 0))?;
                self.own_new(&parent, &name, owner, None)?;
            }
            (Some(kind), maker) => {
                if !self.may(caller, Capability::CAP_MKNOD) {
                    return Err(Errno::PERM);
                }
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                let mode = self.mode_in(caller, &parent, mode)?;
                drop(with_umask_of(caller, || rustix::fs::openat(&parent.fd, &name, flags, mode))?);
                self.own_new(&parent, &name, maker.unwrap_or_default(), Some((kind, numbers.0, numbers.1)))?;
            }
        }
        Ok(Reply::value(0))
    }

    pub(super) fn make_dir(&mut self, caller: &Caller<'_>, at: PathArg, mode: u32) -> Result<Reply> {
        if self.creates_for_root(caller, at) {
            return Ok(Reply::GO);
        }
        let (parent, name) = match self.place(caller, at).and_then(|p| p.parent()) {
            Ok(found) => found,
            Err(e) => return self.unless_for_root(caller, e),
        };
        let Some(owner) = self.owner_of_new(caller, &parent)? else { return Ok(Reply::GO) };
        let mode = Mode::from_raw_mode(mode & 0o7777);
        with_umask_of(caller, || rustix::fs::mkdirat(&parent.fd, &name, mode))?;
        self.own_new(&parent, &name, owner, None)?;
        Ok(Reply::value(0))
    }

    pub(super) fn symlink(&mut self, caller: &Caller<'_>, text: u64, at: PathArg) -> Result<Reply> {
        if self.creates_for_root(caller, at) {
            return Ok(Reply::GO);
        }
        let (parent, name) = match self.place(caller, at).and_then(|p| p.parent_of_leaf()) {
            Ok(found) => found,
            Err(e) => return self.unless_for_root(caller, e),
        };
        let Some(owner) = self.owner_of_new(caller, &parent)? else { return Ok(Reply::GO) };
        rustix::fs::symlinkat(caller.path(text)?, &parent.fd, &name)?;
        self.own_new(&parent, &name, owner, None)?;
        Ok(Reply::value(0))
    }

    /// Leaves calls that the kernel refuses to the kernel.
    pub(super) fn open_how(&mut self, caller: &Caller<'_>, at: PathArg, how: u64, size: u64) -> Result<Reply> {
        if !OPEN_HOW.contains(&size) {
            return Ok(Reply::GO);
        }
        let mut bytes = vec![0; size as usize];
        if caller.read(how, &mut bytes).is_err() {
            return Ok(Reply::GO);
        }
        let Some((flags, mode, resolve)) = open_how(&bytes) else { return Ok(Reply::GO) };
        self.open(caller, at, OpenHow { flags, mode, resolve })
    }

    /// Handles an open that may create a file. The kernel would create it as root. Therefore only
    /// two kinds of calls are left to the kernel: those that create files of root anyway, and those
    /// that do not create a file even if other processes change names concurrently.
    pub(super) fn open(&mut self, caller: &Caller<'_>, at: PathArg, how: OpenHow) -> Result<Reply> {
        let unnamed = how.flags.bits() & CREATES & !OFlags::CREATE.bits() != 0;
        // With O_PATH, an open creates nothing.
        let creates_none = how.flags.contains(OFlags::PATH);
        if creates_none || !unnamed && how.resolve.is_empty() && self.creates_for_root(caller, at) {
            return Ok(Reply::GO);
        }
        if !unnamed && how.flags.contains(OFlags::DIRECTORY) {
            return Err(Errno::INVAL);
        }
        // The kernel numbers the descriptor first, so that this failure changes no file.
        if !has_free_descriptor(caller.thread()) {
            return Err(Errno::MFILE);
        }
        if unnamed {
            let place = self.place_resolved(caller, at, how);
            return match place.and_then(|place| place.target(true)) {
                Ok(dir) => Ok(self.create(caller, &dir, c".", how)?.unwrap_or(Reply::GO)),
                Err(e) => self.unless_for_root(caller, e),
            };
        }
        for _ in 0..MAX_ATTEMPTS {
            let found = self.place_resolved(caller, at, how).and_then(|place| self.locate(caller, place, how));
            let found = match found {
                Err(e) => return self.unless_for_root(caller, e),
                Ok(found) => found,
            };
            match found {
                OpenSubject::ByKernel => return Ok(Reply::GO),
                OpenSubject::Existing(file) => return self.open_existing(caller, &file, how),
                OpenSubject::New(dir, name) => match self.create(caller, &dir, &name, how) {
                    // Another process has created it.
                    Err(Errno::EXIST) if !how.flags.contains(OFlags::EXCL) => {}
                    made => return Ok(made?.unwrap_or(Reply::GO)),
                },
            }
        }
        Err(Errno::AGAIN)
    }

    fn place_resolved<'a>(&'a self, caller: &Caller<'a>, at: PathArg, how: OpenHow) -> Result<NamedPath<'a>> {
        NamedPath::resolved(caller, at.dir, caller.path(at.path)?, &self.roots, how.resolve)
    }

    /// Creates and opens a file, or an unnamed one in `dir`. Returns `None` if it belongs to root
    /// and its group.
    fn create(&mut self, caller: &Caller<'_>, dir: &OpenedFile, name: &CStr, how: OpenHow) -> Result<Option<Reply>> {
        let Some(owner) = self.owner_of_new(caller, dir)? else { return Ok(None) };
        let alone = if how.flags.contains(OFlags::CREATE) { OFlags::EXCL } else { OFlags::empty() };
        let mode = self.mode_in(caller, dir, how.mode)?;
        let open = || rustix::fs::openat(&dir.fd, name, how.flags | alone | OFlags::CLOEXEC, mode);
        let fd = with_umask_of(caller, open)?;
        self.own(&OpenedFile::of(fd.try_clone().map_err(|_| Errno::MFILE)?)?, owner, None)?;
        Ok(Some(Reply::File { fd, close_on_exec: how.flags.contains(OFlags::CLOEXEC) }))
    }

    /// Opens an existing file with the flags of a call that would create it.
    fn open_existing(&self, caller: &Caller<'_>, file: &OpenedFile, how: OpenHow) -> Result<Reply> {
        match file.kind() {
            _ if how.flags.contains(OFlags::EXCL) => return Err(Errno::EXIST),
            FileKind::File if !file.is_in_proc() && self.opens_all(caller) => {}
            FileKind::Dir => return Err(Errno::ISDIR),
            FileKind::Symlink => return Err(Errno::LOOP),
            FileKind::Socket => return Err(Errno::NXIO),
            // Opening a FIFO may wait for another process, and files of /proc and devices depend on
            // the process that opens them.
            _ => return Ok(Reply::GO),
        }
        // The descriptor keeps referring to this file even if another file gets its name.
        let flags = (how.flags - (OFlags::CREATE | OFlags::NOFOLLOW)) | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = match rustix::fs::openat(CWD, SharedProc::path_of(&file.fd), flags, Mode::empty()) {
            // Another process, which may itself wait for an answer, has a lease on the file. The
            // kernel makes the caller wait for it (fcntl(2), F_SETLEASE).
            Err(Errno::AGAIN) if !how.flags.contains(OFlags::NONBLOCK) => return Ok(Reply::GO),
            opened => opened?,
        };
        if !how.flags.contains(OFlags::NONBLOCK) {
            rustix::fs::fcntl_setfl(&fd, rustix::fs::fcntl_getfl(&fd)? - OFlags::NONBLOCK)?;
        }
        Ok(Reply::File { fd, close_on_exec: how.flags.contains(OFlags::CLOEXEC) })
    }

    /// Returns true if file modes restrict the caller no more than this process.
    fn opens_all(&self, caller: &Caller<'_>) -> bool {
        !self.has_dropped_capabilities || caller.is_effective(Capability::CAP_DAC_OVERRIDE)
    }

    /// Returns the file that an open with O_CREAT refers to, after following links.
    fn locate<'a>(&'a self, caller: &Caller<'a>, mut place: NamedPath<'a>, how: OpenHow) -> Result<OpenSubject> {
        // The kernel creates no directory.
        if place.names_directory() {
            return Ok(OpenSubject::ByKernel);
        }
        let follow = !how.flags.intersects(OFlags::EXCL | OFlags::NOFOLLOW);
        if let Ok(file) = place.target(follow) {
            return Ok(OpenSubject::Existing(file));
        }
        for _ in 0..MAX_SYMLINKS {
            let (parent, name) = place.parent()?;
            let Ok(text) = rustix::fs::readlinkat(&parent.fd, &name, Vec::new()) else {
                return Ok(OpenSubject::New(parent, name));
            };
            // Links in /proc lead to existing files.
            if parent.is_in_proc() {
                return Ok(OpenSubject::ByKernel);
            }
            // Programs do not combine the two, and determining such a link's target is not worth
            // the complexity.
            if !follow || !how.resolve.is_empty() {
                return Err(Errno::LOOP);
            }
            place = place.follow_link(caller, parent, text, &self.roots)?;
            if place.names_directory() {
                return Ok(OpenSubject::ByKernel);
            }
            // Links in /proc to the caller's own files cannot be followed here, only identified by
            // name.
            if let Ok(file) = place.target(true) {
                return Ok(OpenSubject::Existing(file));
            }
        }
        Err(Errno::LOOP)
    }

    /// Leaves the error to the kernel, unless the kernel could follow a path that this process
    /// cannot, and create a file owned by root.
    fn unless_for_root(&self, caller: &Caller<'_>, e: Errno) -> Result<Reply> {
        let who = self.credentials(caller)?;
        if UidGid::new(who.users.files, who.groups.files) == UidGid::ROOT { Ok(Reply::GO) } else { Err(e) }
    }
}

/// Creates a file with the caller's umask in place of this process's. The kernel applies it only in
/// directories without default permissions (acl(5)).
fn with_umask_of<T>(caller: &Caller<'_>, create: impl FnOnce() -> T) -> T {
    let own = rustix::process::umask(Mode::from_raw_mode(caller.umask()));
    let created = create();
    rustix::process::umask(own);
    created
}

/// Fails with EINVAL, before anything is looked up, if a call has unknown flags.
pub(super) fn refuse_unknown_flags(file: Subject) -> Result<()> {
    match file {
        Subject::Named(PathAt { flags, .. }) if flags & !NAMING != 0 => Err(Errno::INVAL),
        _ => Ok(()),
    }
}

/// Returns true if mknod(2) can create files of that mode; the kernel refuses all others.
fn is_makeable(mode: u32) -> bool {
    match FileType::from_raw_mode(mode) {
        FileType::Directory | FileType::Symlink => false,
        FileType::Unknown => mode & 0o170_000 == 0,
        _ => true,
    }
}
