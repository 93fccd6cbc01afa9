//! Answers for a container in which only one id is mapped: its processes may be anybody, and its files belong to whomever
//! they were given. The owners of files are written down ([`rbuild_linux::Recorded`]); who a process is stands in a table here,
//! and the place in that table is told by a limit of the process that no program looks at (the size of its message
//! queues), because the kernel itself hands limits on to children at the very moment of a fork, and keeps them over an exec.
//!
//! This is for truthful results, not a boundary: towards the kernel all processes of the container are its root.

mod calls;
mod files;
mod ids;

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use rbuild_linux::Kind;
use rbuild_linux::notify::{self, Answer, Call, Guise, Layout};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use calls::{Asked, CREATES, I386, of_number};
pub(crate) use calls::{When, numbers};
pub(crate) use files::Proc;
use files::{Guised, HERE, Known, Place, Result, Target, hands_on_group, path_at};
use ids::SAME;
pub(crate) use ids::{Credentials, Ids};

/// Groups that setgroups(2) takes.
const MOST_GROUPS: u64 = 65536;

// Of prctl(2): PR_SET_KEEPCAPS, and PR_SET_SECUREBITS with SECBIT_KEEP_CAPS.
const KEEP_CAPABILITIES: u32 = 8;
const SECURE_BITS: u32 = 28;
const KEEPING: u64 = 1 << 4;

pub(crate) struct Supervisor {
    listener: OwnedFd,
    proc: Proc,
    /// Each once; the first is root's.
    table: Vec<Credentials>,
    places: HashMap<Credentials, u64>,
    chrooted: bool,
    known: Known,
}

impl Supervisor {
    /// For the container whose first process has that pid. Takes the calling process into the container's mounts, and leaves it
    /// with `proc` as its working directory.
    pub fn enter(
        listener: OwnedFd,
        proc: Proc,
        pid: u32,
        first: Credentials,
    ) -> std::result::Result<Supervisor, String> {
        let text = |e: rbuild_linux::Error| e.to_string();
        let pidfd = rbuild_linux::process::pidfd(pid).map_err(text)?;
        notify::enter_mounts_of(pidfd.as_fd()).map_err(text)?;
        notify::take_turns(listener.as_fd());
        rustix::process::fchdir(&proc.dir).map_err(|e| format!("fchdir: {e}"))?;
        let root = Credentials::default();
        let places = HashMap::from([(root.clone(), 0)]);
        let mut supervisor =
            Supervisor { listener, proc, table: vec![root], places, chrooted: false, known: Known::default() };
        supervisor.become_(pid, first).map_err(|e| format!("the first ids: {e}"))?;
        Ok(supervisor)
    }

    /// Answers until the process behind `ended` has ended.
    pub fn serve(&mut self, ended: &OwnedFd) {
        let told_of_the_end = notify::receiving_ends();
        loop {
            // Waiting for a call and receiving it are one then.
            if told_of_the_end && let Ok(Some(call)) = notify::receive(self.listener.as_fd()) {
                self.reply(&call);
                continue;
            }
            let mut fds = [PollFd::new(&self.listener, PollFlags::IN), PollFd::new(ended, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(_) => return,
            }
            let (calls, end) = (fds[0].revents(), fds[1].revents());
            if calls.contains(PollFlags::IN) {
                if let Ok(Some(call)) = notify::receive(self.listener.as_fd()) {
                    self.reply(&call);
                }
            } else if !end.is_empty() || !calls.is_empty() {
                return;
            }
        }
    }

    fn reply(&mut self, call: &Call) {
        let answer = match of_number(call.number, call.architecture).map(|asked| self.decide(asked, call)) {
            Some(Ok(Reply::Answer(answer))) => answer,
            Some(Ok(Reply::File { fd, close_on_exec })) => {
                match notify::answer_with_fd(self.listener.as_fd(), call, &fd, close_on_exec) {
                    Ok(()) => return,
                    Err(e) => {
                        Answer::Fail(Errno::from_raw_os_error(e.raw_os_error().unwrap_or(Errno::MFILE.raw_os_error())))
                    }
                }
            }
            Some(Err(errno)) => Answer::Fail(errno),
            None => Answer::Go,
        };
        notify::answer(self.listener.as_fd(), call, answer);
    }

    fn credentials(&self, thread: u32) -> &Credentials {
        let place = notify::queue_limit(thread).map_or(0, |(soft, hard)| hard.saturating_sub(soft));
        // Somebody else's use of that limit is as good as none.
        self.table.get(usize::try_from(place).unwrap_or(0)).unwrap_or(&self.table[0])
    }

    fn become_(&mut self, thread: u32, who: Credentials) -> Result<()> {
        let (_, hard) = notify::queue_limit(thread).map_err(|_| Errno::SRCH)?;
        let known = self.places.get(&who).copied();
        let place = known.unwrap_or(self.table.len() as u64);
        // The limit has room for so many, and no more.
        let soft = hard.checked_sub(place).ok_or(Errno::NOMEM)?;
        if known.is_none() {
            self.table.push(who.clone());
            self.places.insert(who, place);
        }
        notify::set_queue_limit(thread, soft, hard).map_err(|_| Errno::PERM)
    }

    fn decide(&mut self, asked: Asked, call: &Call) -> Result<Reply> {
        use Asked::*;
        let arg = |i: usize| call.args[i];
        let id = |i: usize| call.args[i] as u32;
        let dir = |i: usize| call.args[i] as i32;
        match asked {
            GetUid | GetEffectiveUid | GetGid | GetEffectiveGid => {
                let who = self.credentials(call.thread);
                Ok(Reply::value(match asked {
                    GetUid => who.users.real,
                    GetEffectiveUid => who.users.effective,
                    GetGid => who.groups.real,
                    _ => who.groups.effective,
                }))
            }
            GetResUid | GetResGid => {
                let who = self.credentials(call.thread);
                let ids = if asked == GetResUid { who.users } else { who.groups };
                for (i, id) in [ids.real, ids.effective, ids.saved].into_iter().enumerate() {
                    put(call, arg(i), &id.to_ne_bytes())?;
                }
                Ok(Reply::value(0))
            }
            GetGroups => {
                let groups = &self.credentials(call.thread).more_groups;
                let (room, count) = (arg(0) as i32, groups.len());
                if room < 0 || (room > 0 && (room as usize) < count) {
                    return Err(Errno::INVAL);
                }
                if room > 0 {
                    let bytes: Vec<u8> = groups.iter().flat_map(|g| g.to_ne_bytes()).collect();
                    put(call, arg(1), &bytes)?;
                }
                Ok(Reply::value(count as u32))
            }
            SetGroups => {
                if !self.credentials(call.thread).able() {
                    return Err(Errno::PERM);
                }
                if arg(0) > MOST_GROUPS {
                    return Err(Errno::INVAL);
                }
                let mut bytes = vec![0; arg(0) as usize * 4];
                if !bytes.is_empty()
                    && !matches!(notify::read_memory(call.thread, arg(1), &mut bytes), Ok(n) if n == bytes.len())
                {
                    return Err(Errno::FAULT);
                }
                let groups: Vec<u32> =
                    bytes.chunks_exact(4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect();
                if groups.contains(&SAME) {
                    return Err(Errno::INVAL);
                }
                let who = self.credentials(call.thread).clone();
                self.become_(call.thread, Credentials { more_groups: groups, ..who })?;
                Ok(Reply::value(0))
            }
            SetUid | SetReUid | SetResUid | SetGid | SetReGid | SetResGid => {
                let who = self.credentials(call.thread).clone();
                let able = who.able();
                let users = matches!(asked, SetUid | SetReUid | SetResUid);
                let ids = if users { who.users } else { who.groups };
                let new = match asked {
                    SetUid | SetGid => ids.set(able, id(0)),
                    SetReUid | SetReGid => ids.set_two(able, id(0), id(1)),
                    _ => ids.set_three(able, [id(0), id(1), id(2)]),
                };
                let new = new?;
                let who = match users {
                    true => who.with_users(new),
                    false => Credentials { groups: new, ..who },
                };
                self.become_(call.thread, who)?;
                Ok(Reply::value(0))
            }
            SetFsUid | SetFsGid => {
                let mut who = self.credentials(call.thread).clone();
                let able = who.able();
                let ids = if asked == SetFsUid { &mut who.users } else { &mut who.groups };
                let before = ids.files;
                *ids = ids.set_files(able, id(0));
                self.become_(call.thread, who)?;
                Ok(Reply::value(before))
            }
            Stat => self.stat(call, HERE, arg(0), 0, arg(1)),
            LinkStat => self.stat(call, HERE, arg(0), AtFlags::SYMLINK_NOFOLLOW.bits(), arg(1)),
            FileStat => self.stat(call, dir(0), 0, AtFlags::EMPTY_PATH.bits(), arg(1)),
            StatAt => self.stat(call, dir(0), arg(1), id(3), arg(2)),
            StatX => {
                let Some((file, guise)) = self.guise(call, dir(0), arg(1), id(2)) else { return Ok(Reply::GO) };
                put(call, arg(4), &notify::statx_bytes(file.named(), id(3), &guise).map_err(errno)?)?;
                Ok(Reply::value(0))
            }
            Chown => self.chown(call, self.place(call, HERE, arg(0)).and_then(|p| p.target(true)), id(1), id(2)),
            LinkChown => self.chown(call, self.place(call, HERE, arg(0)).and_then(|p| p.target(false)), id(1), id(2)),
            FileChown => {
                let file = self.proc.file(call.thread, dir(0)).and_then(Target::of);
                if file.is_ok() && self.proc.is_path_only(call.thread, dir(0)) {
                    return Err(Errno::BADF);
                }
                self.chown(call, file, id(1), id(2))
            }
            ChownAt => self.chown(call, self.target(call, dir(0), arg(1), id(4)), id(2), id(3)),
            MakeNode => self.make_node(call, HERE, arg(0), id(1), arg(2)),
            MakeNodeAt => self.make_node(call, dir(0), arg(1), id(2), arg(3)),
            MakeDir => self.make_dir(call, HERE, arg(0), id(1)),
            MakeDirAt => self.make_dir(call, dir(0), arg(1), id(2)),
            SymLink => self.symlink(call, arg(0), HERE, arg(1)),
            SymLinkAt => self.symlink(call, arg(0), dir(1), arg(2)),
            Open => self.open(call, HERE, arg(0), id(1), id(2)),
            OpenAt => self.open(call, dir(0), arg(1), id(2), id(3)),
            Create => self.open(call, HERE, arg(0), (OFlags::CREATE | OFlags::WRONLY | OFlags::TRUNC).bits(), id(1)),
            OpenAt2 => {
                let mut how = [0u8; 24];
                let whole = matches!(notify::read_memory(call.thread, arg(2), &mut how), Ok(24));
                let word = |i: usize| u64::from_ne_bytes(how[i * 8..i * 8 + 8].try_into().unwrap_or_default());
                // What resolves in a way of its own is rare, and opened as it asks.
                if !whole || word(2) != 0 || word(0) as u32 & CREATES == 0 {
                    return Ok(Reply::GO);
                }
                self.open(call, dir(0), arg(1), word(0) as u32, word(1) as u32)
            }
            Execute => self.execute(call, HERE, arg(0), 0),
            ExecuteAt => self.execute(call, dir(0), arg(1), id(4)),
            Control => {
                let keeps = match id(0) {
                    KEEP_CAPABILITIES => arg(1) != 0,
                    SECURE_BITS => arg(1) & KEEPING != 0,
                    _ => return Ok(Reply::GO),
                };
                let who = Credentials { keeps, ..self.credentials(call.thread).clone() };
                self.become_(call.thread, who)?;
                Ok(Reply::GO)
            }
            // It is ours: whoever sets it (su does, by way of pam_limits) is told that it is set.
            SetLimit => Ok(Reply::value(0)),
            ChangeLimit if arg(2) == 0 => Ok(Reply::GO),
            ChangeLimit => {
                if arg(3) != 0 {
                    let (_, hard) = notify::queue_limit(call.thread).map_err(errno)?;
                    put(call, arg(3), &[hard.to_ne_bytes(), hard.to_ne_bytes()].concat())?;
                }
                Ok(Reply::value(0))
            }
            ChangeRoot => {
                self.chrooted = true;
                Ok(Reply::GO)
            }
        }
    }

    fn place(&self, call: &Call, dir: i32, path: u64) -> Result<Place> {
        Place::of(&self.proc, call.thread, dir, path_at(call.thread, path)?, self.chrooted)
    }

    /// The file that a call names with a directory, a path and flags (AT_SYMLINK_NOFOLLOW, AT_EMPTY_PATH).
    fn target(&self, call: &Call, dir: i32, path: u64, flags: u32) -> Result<Target> {
        let path = if path == 0 { CString::default() } else { path_at(call.thread, path)? };
        self.target_of(call, dir, path, AtFlags::from_bits_retain(flags))
    }

    fn target_of(&self, call: &Call, dir: i32, path: CString, flags: AtFlags) -> Result<Target> {
        if path.is_empty() {
            if !flags.contains(AtFlags::EMPTY_PATH) {
                return Err(Errno::NOENT);
            }
            return Target::of(self.proc.directory(call.thread, dir)?);
        }
        Place::of(&self.proc, call.thread, dir, path, self.chrooted)?.target(!flags.contains(AtFlags::SYMLINK_NOFOLLOW))
    }

    /// How a file is to look that a call asks about. `None` if as the kernel says: nothing is written down, or this process
    /// finds nothing. Most calls of all are of this kind, and most find nothing.
    fn guise(&mut self, call: &Call, dir: i32, path: u64, flags: u32) -> Option<(Guised, Guise)> {
        let path = if path == 0 { CString::default() } else { path_at(call.thread, path).ok()? };
        let flags = AtFlags::from_bits_retain(flags);
        if path.is_empty() && !flags.contains(AtFlags::EMPTY_PATH) {
            return None;
        }
        match self.chrooted {
            false => self.known.look(&self.proc, call.thread, dir, &path, flags),
            true => self.target_of(call, dir, path, flags).ok()?.guised(),
        }
    }

    fn stat(&mut self, call: &Call, dir: i32, path: u64, flags: u32, to: u64) -> Result<Reply> {
        let Some((file, guise)) = self.guise(call, dir, path, flags) else { return Ok(Reply::GO) };
        let layout = if call.architecture == I386 { Layout::I386 } else { Layout::Native };
        put(call, to, &notify::stat_bytes(file.named(), &guise, layout).map_err(errno)?)?;
        Ok(Reply::value(0))
    }

    fn chown(&mut self, call: &Call, target: Result<Target>, uid: u32, gid: u32) -> Result<Reply> {
        let Ok(target) = target else { return Ok(Reply::GO) };
        let who = self.credentials(call.thread);
        let before = target.recorded().unwrap_or_default();
        let keep = |id: u32, old: u32| if id == SAME { old } else { id };
        let (uid, gid) = (keep(uid, before.uid), keep(gid, before.gid));
        if !who.able() {
            let own = who.users.files == before.uid && uid == before.uid;
            let member = gid == before.gid || gid == who.groups.files || who.more_groups.contains(&gid);
            if !own || !member {
                return Err(Errno::PERM);
            }
        }
        // Has the kernel do what it does with every change of owner: copies the file up, and takes set-id bits away.
        rustix::fs::chownat(&target.fd, c"", None, None, AtFlags::EMPTY_PATH)?;
        self.own(&target, uid, gid, before.device)?;
        Ok(Reply::value(0))
    }

    /// Owner of what the caller makes in a directory; `None` if that is root with its group.
    fn maker(&self, call: &Call, dir: &Target) -> Option<(u32, u32)> {
        let who = self.credentials(call.thread);
        let owner = (who.users.files, dir.group_for_new().unwrap_or(who.groups.files));
        (owner != (0, 0)).then_some(owner)
    }

    /// Whether what the caller makes at a path belongs to root and its group, as far as that shows without opening anything.
    fn makes_for_root(&self, call: &Call, dir: i32, path: u64) -> bool {
        let who = self.credentials(call.thread);
        let root = !self.chrooted && (who.users.files, who.groups.files) == (0, 0);
        root && path_at(call.thread, path).is_ok_and(|path| !hands_on_group(&self.proc, call.thread, dir, &path))
    }

    fn mode(&self, call: &Call, mode: u32) -> Mode {
        Mode::from_raw_mode(mode & 0o7777 & !self.proc.umask(call.thread))
    }

    /// Writes down whose a file is.
    fn own(&mut self, target: &Target, uid: u32, gid: u32, device: Option<(Kind, u32, u32)>) -> Result<()> {
        target.own(uid, gid, device)?;
        self.known.forget(target)
    }

    fn own_new(
        &mut self,
        dir: &Target,
        name: &CString,
        owner: (u32, u32),
        device: Option<(Kind, u32, u32)>,
    ) -> Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = Target::of(rustix::fs::openat(&dir.fd, name, flags, Mode::empty())?)?;
        self.own(&made, owner.0, owner.1, device)
    }

    fn make_node(&mut self, call: &Call, dir: i32, path: u64, mode: u32, device: u64) -> Result<Reply> {
        let Ok((parent, name)) = self.place(call, dir, path).and_then(|p| p.parent()) else { return Ok(Reply::GO) };
        let maker = self.maker(call, &parent);
        let kind = match FileType::from_raw_mode(mode) {
            FileType::CharacterDevice => Some(Kind::CharDevice),
            FileType::BlockDevice => Some(Kind::BlockDevice),
            _ => None,
        };
        let numbers = (rustix::fs::major(device), rustix::fs::minor(device));
        match (kind, maker) {
            (None, None) => return Ok(Reply::GO),
            (None, Some(owner)) => {
                let kind = match FileType::from_raw_mode(mode) {
                    FileType::Unknown => FileType::RegularFile,
                    kind => kind,
                };
                rustix::fs::mknodat(&parent.fd, &name, kind, self.mode(call, mode), 0)?;
                self.own_new(&parent, &name, owner, None)?;
            }
            (Some(kind), maker) => {
                if !self.credentials(call.thread).able() {
                    return Err(Errno::PERM);
                }
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                drop(rustix::fs::openat(&parent.fd, &name, flags, self.mode(call, mode))?);
                self.own_new(&parent, &name, maker.unwrap_or_default(), Some((kind, numbers.0, numbers.1)))?;
            }
        }
        Ok(Reply::value(0))
    }

    fn make_dir(&mut self, call: &Call, dir: i32, path: u64, mode: u32) -> Result<Reply> {
        if self.makes_for_root(call, dir, path) {
            return Ok(Reply::GO);
        }
        let Ok((parent, name)) = self.place(call, dir, path).and_then(|p| p.parent()) else { return Ok(Reply::GO) };
        let Some(owner) = self.maker(call, &parent) else { return Ok(Reply::GO) };
        rustix::fs::mkdirat(&parent.fd, &name, self.mode(call, mode))?;
        self.own_new(&parent, &name, owner, None)?;
        Ok(Reply::value(0))
    }

    fn symlink(&mut self, call: &Call, text: u64, dir: i32, path: u64) -> Result<Reply> {
        if self.makes_for_root(call, dir, path) {
            return Ok(Reply::GO);
        }
        let Ok((parent, name)) = self.place(call, dir, path).and_then(|p| p.parent()) else { return Ok(Reply::GO) };
        let Some(owner) = self.maker(call, &parent) else { return Ok(Reply::GO) };
        rustix::fs::symlinkat(path_at(call.thread, text)?, &parent.fd, &name)?;
        self.own_new(&parent, &name, owner, None)?;
        Ok(Reply::value(0))
    }

    /// An open that may make a file. One that finds a file is the kernel's own affair, and so is one through a link: those of
    /// /dev lead into a /proc that is not this process's.
    fn open(&mut self, call: &Call, dir: i32, path: u64, flags: u32, mode: u32) -> Result<Reply> {
        let unnamed = flags & CREATES & !0o100 != 0;
        if !unnamed && self.makes_for_root(call, dir, path) {
            return Ok(Reply::GO);
        }
        let Ok(place) = self.place(call, dir, path) else { return Ok(Reply::GO) };
        let parent = if unnamed { place.target(true) } else { place.parent().map(|(parent, _)| parent) };
        let Ok(parent) = parent else { return Ok(Reply::GO) };
        let Some((uid, gid)) = self.maker(call, &parent) else { return Ok(Reply::GO) };
        if !unnamed && place.target(false).is_ok() {
            return Ok(Reply::GO);
        }
        let fd = place.open(OFlags::from_bits_retain(flags), self.mode(call, mode))?;
        self.own(&Target::of(fd.try_clone().map_err(|_| Errno::MFILE)?)?, uid, gid, None)?;
        let close_on_exec = OFlags::from_bits_retain(flags).contains(OFlags::CLOEXEC);
        Ok(Reply::File { fd, close_on_exec })
    }

    /// Programs with set-id bits change who their caller is; the rest is the kernel's.
    fn execute(&mut self, call: &Call, dir: i32, path: u64, flags: u32) -> Result<Reply> {
        let who = self.credentials(call.thread).clone();
        if who.is_root() && !who.keeps {
            return Ok(Reply::GO);
        }
        let Ok(target) = self.target(call, dir, path, flags) else { return Ok(Reply::GO) };
        let mode = target.stat.st_mode;
        if target.kind() != Kind::File || mode & 0o111 == 0 {
            return Ok(Reply::GO);
        }
        let owner = target.recorded().unwrap_or_default();
        let user = (mode & 0o4000 != 0).then_some(owner.uid);
        let group = (mode & 0o2010 == 0o2010).then_some(owner.gid);
        let new = who.after_exec(user, group);
        if new != who {
            self.become_(call.thread, new)?;
        }
        Ok(Reply::GO)
    }
}

enum Reply {
    Answer(Answer),
    /// A new file, for the caller to have.
    File {
        fd: OwnedFd,
        close_on_exec: bool,
    },
}

impl Reply {
    const GO: Reply = Reply::Answer(Answer::Go);

    fn value(value: u32) -> Reply {
        Reply::Answer(Answer::Value(value.into()))
    }
}

fn put(call: &Call, address: u64, bytes: &[u8]) -> Result<()> {
    notify::write_memory(call.thread, address, bytes).map_err(|_| Errno::FAULT)
}

fn errno(e: std::io::Error) -> Errno {
    Errno::from_raw_os_error(e.raw_os_error().unwrap_or(Errno::IO.raw_os_error()))
}
