//! Answers calls about identity and ownership.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use caps::Capability;
use rbuild_linux::namespaces::enter_mounts_of;
use rbuild_linux::seccomp::{self, Answer, InterceptedCall};
use rbuild_linux::{OwnerRecords, described, queue_limit, set_queue_limit};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::error::RunnerProblem;
use crate::id_emulation::caller::{Caller, Result, SharedProc};
use crate::id_emulation::caller_files::{OpenHow, RecordCache};
use crate::id_emulation::caller_roots::Roots;
use crate::id_emulation::credentials::{Credentials, SAME};
use crate::id_emulation::decode::{IdChange, IdKind, Request, decode, ids_of};
use crate::id_emulation::pending_exec::{MemoryImage, Pending};

/// Maximum number of groups accepted by setgroups(2).
const MAX_GROUPS: u32 = 65536;

pub(crate) struct Supervisor {
    pub(super) listener: Arc<OwnedFd>,
    pub(super) proc: Arc<SharedProc>,
    /// The records of the owners of the container's files.
    pub(super) owners: OwnerRecords,
    /// Without duplicates; the first entry is root's.
    pub(super) table: Vec<Credentials>,
    pub(super) places: HashMap<Credentials, u64>,
    /// Table indices of processes that may have executed a program since.
    pub(super) pending: HashMap<u64, Pending>,
    pub(super) roots: Roots,
    /// True once the container's first process has executed the command.
    pub(super) has_begun: bool,
    /// True once a process may have fewer capabilities in the kernel than its apparent identity
    /// has; /proc then has to be read for each.
    pub(super) has_dropped_capabilities: bool,
    pub(super) known: RecordCache,
}

/// A container whose calls are answered.
pub(crate) struct SupervisedContainer {
    /// The process ID of its first process.
    pub pid: u32,
    /// The credentials with which that process executes the command.
    pub credentials: Credentials,
    /// A /proc that shows its processes.
    pub proc: SharedProc,
    /// The records of the owners of its files.
    pub owners: OwnerRecords,
    /// True if its processes may leave its mount namespace.
    pub leaves_mounts: bool,
    /// True if its root lacks capabilities that Docker's has by default.
    pub lacks_capabilities: bool,
}

impl Supervisor {
    /// Creates the supervisor of a container. Moves the calling process into the container's mount
    /// namespace, with the container's `proc` as its working directory.
    pub fn enter(listener: OwnedFd, container: SupervisedContainer) -> std::result::Result<Supervisor, RunnerProblem> {
        let SupervisedContainer { pid, credentials, proc, owners, leaves_mounts, lacks_capabilities } = container;
        let pidfd = rbuild_linux::process::pidfd(pid)?;
        enter_mounts_of(pidfd.as_fd())?;
        seccomp::use_synchronous_wake_ups(listener.as_fd());
        rustix::process::fchdir(&proc.dir).map_err(RunnerProblem::of_call("fchdir", Path::new("/proc")))?;
        let root = Credentials::default();
        let places = HashMap::from([(root.clone(), 0)]);
        let mut supervisor = Supervisor {
            listener: Arc::new(listener),
            proc: Arc::new(proc),
            owners,
            table: vec![root],
            places,
            pending: HashMap::new(),
            roots: Roots::new(leaves_mounts).map_err(RunnerProblem::of_call("open", Path::new("/")))?,
            has_begun: false,
            has_dropped_capabilities: lacks_capabilities,
            known: RecordCache::default(),
        };
        supervisor.become_(&InitProcess(pid), credentials).map_err(|e| match e {
            Errno::NOMEM => RunnerProblem::LowQueueLimit,
            e => RunnerProblem::of_call("setresuid", described("the user of the command"))(e),
        })?;
        Ok(supervisor)
    }

    /// Answers calls until the process of the pidfd `ended` has ended.
    pub fn serve(&mut self, ended: &OwnedFd) {
        let ends_with_callers = seccomp::receiving_ends();
        loop {
            // Here receiving also returns when all callers have ended, so polling first is
            // unnecessary.
            if ends_with_callers && let Ok(Some(call)) = seccomp::receive(self.listener.as_fd()) {
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
                if let Ok(Some(call)) = seccomp::receive(self.listener.as_fd()) {
                    self.reply(&call);
                }
            } else if !end.is_empty() || !calls.is_empty() {
                return;
            }
        }
    }

    fn reply(&mut self, call: &InterceptedCall) {
        let (listener, proc) = (self.listener.clone(), self.proc.clone());
        let caller = Caller { call, listener: listener.as_fd(), proc: &proc };
        let asked = decode(call.number, call.architecture, call.args);
        let answer = match asked.map(|request| self.decide(request, &caller)) {
            Some(Ok(Reply::Answer(answer))) => answer,
            Some(Ok(Reply::File { fd, close_on_exec })) => {
                match seccomp::answer_with_fd(self.listener.as_fd(), call, &fd, close_on_exec) {
                    Ok(()) => return,
                    Err(e) => {
                        Answer::Fail(Errno::from_raw_os_error(e.raw_os_error().unwrap_or(Errno::MFILE.raw_os_error())))
                    }
                }
            }
            Some(Err(errno)) => Answer::Fail(errno),
            None => Answer::Go,
        };
        seccomp::answer(self.listener.as_fd(), call, answer);
    }

    fn place_of(&self, thread: u32) -> u64 {
        queue_limit(thread).map_or(0, |(soft, hard)| hard.saturating_sub(soft))
    }

    /// Returns the credentials of the caller. Fails if it no longer waits: the credentials found
    /// may be those of another process with the same ID.
    pub(super) fn credentials(&self, caller: &Caller<'_>) -> Result<&Credentials> {
        let who = self.known_credentials(caller.thread());
        caller.still_waits()?;
        Ok(who)
    }

    /// Returns the credentials of the thread that has that ID now.
    pub(super) fn known_credentials(&self, thread: u32) -> &Credentials {
        let place = self.place_of(thread);
        match self.pending.get(&place) {
            Some(pending) => pending.resolve(MemoryImage::of(&self.proc, thread)),
            // A program that uses this limit for its own purposes is treated as root.
            None => self.table.get(usize::try_from(place).unwrap_or(0)).unwrap_or(&self.table[0]),
        }
    }

    /// Returns true if the caller's apparent identity has that capability, and the kernel has not
    /// taken it from the caller.
    pub(super) fn may(&self, caller: &Caller<'_>, capability: Capability) -> bool {
        self.credentials(caller).is_ok_and(|who| who.has(capability))
            && (!self.has_dropped_capabilities || caller.is_permitted(capability))
    }

    fn may_set(&self, caller: &Caller<'_>, of: IdKind) -> bool {
        self.may(caller, if of == IdKind::Users { Capability::CAP_SETUID } else { Capability::CAP_SETGID })
    }

    pub(super) fn become_(&mut self, thread: &impl Thread, who: Credentials) -> Result<()> {
        if let Some(place) = self.places.get(&who) {
            return store_index(thread, *place);
        }
        let place = self.table.len() as u64;
        store_index(thread, place)?;
        self.table.push(who.clone());
        self.places.insert(who, place);
        Ok(())
    }

    /// Marks a thread whose credentials depend on the program that it executes next.
    pub(super) fn expect(&mut self, caller: &Caller<'_>, pending: Pending) -> Result<()> {
        let place = self.table.len() as u64;
        store_index(caller, place)?;
        // A placeholder: its index is looked up in `pending` first.
        self.table.push(Credentials::default());
        self.pending.insert(place, pending);
        Ok(())
    }

    /// Ends the pending state of a thread whose credentials have been determined as `who`.
    pub(super) fn end_pending(&mut self, caller: &Caller<'_>, who: &Credentials) -> Result<()> {
        let is_pending = self.pending.contains_key(&self.place_of(caller.thread()));
        if is_pending { self.become_(caller, who.clone()) } else { Ok(()) }
    }

    fn decide(&mut self, request: Request, caller: &Caller<'_>) -> Result<Reply> {
        match request {
            Request::OwnId { of, effective } => {
                let ids = self.credentials(caller)?.ids(of);
                Ok(Reply::value(if effective { ids.effective } else { ids.real }))
            }
            Request::OwnIds { of, to } => {
                let ids = self.credentials(caller)?.ids(of);
                for (address, id) in to.into_iter().zip([ids.real, ids.effective, ids.saved]) {
                    caller.write(address, &id.to_ne_bytes())?;
                }
                Ok(Reply::value(0))
            }
            Request::Groups { size, to } => self.groups(caller, size, to),
            Request::SetGroups { count, from } => self.set_groups(caller, count, from),
            Request::SetIds { of, change } => self.set_ids(caller, of, change),
            Request::SetFileId { of, id } => self.set_file_id(caller, of, id),
            Request::KeepCapabilities(keep) => self.keep_capabilities(caller, keep),
            Request::SetSecureBits(bits) => self.set_secure_bits(caller, bits),
            Request::DropFromBound => self.drop_from_bound(caller),
            Request::GetCapabilities { header, sets } => self.get_capabilities(caller, header, sets),
            Request::SetCapabilities { header, sets } => self.set_capabilities(caller, header, sets),
            Request::Other | Request::ChangeLimit { new: 0, .. } => Ok(Reply::GO),
            // The limit is reserved for rbuild; setting it (as su does, through pam_limits) appears
            // to succeed.
            Request::SetLimit => Ok(Reply::value(0)),
            Request::ChangeLimit { new: _, old } => {
                if old != 0 {
                    let (_, hard) = queue_limit(caller.thread()).map_err(errno)?;
                    caller.write(old, &[hard.to_ne_bytes(), hard.to_ne_bytes()].concat())?;
                }
                Ok(Reply::value(0))
            }
            Request::ChangeRoot { path } => self.change_root(caller, path),
            Request::ChangeMode { file, mode } => self.change_mode(caller, file, mode),
            Request::SetAttribute { file, name, value, size, flags } => {
                self.set_attribute(caller, file, name, Some((value, size, flags)))
            }
            Request::RemoveAttribute { file, name } => self.set_attribute(caller, file, name, None),
            Request::Stat { file, to } => self.stat(caller, file, to),
            Request::StatX { file, mask, to } => self.statx(caller, file, mask, to),
            Request::ChangeOwner { file, owner } => self.chown(caller, file, owner),
            Request::MakeNode { at, mode, device } => self.make_node(caller, at, mode, device),
            Request::MakeDir { at, mode } => self.make_dir(caller, at, mode),
            Request::SymLink { target, at } => self.symlink(caller, target, at),
            Request::Open { at, flags, mode } => self.open(caller, at, OpenHow::plain(flags, mode)),
            Request::OpenHow { at, how, size } => self.open_how(caller, at, how, size),
            Request::Execute { file } => self.execute(caller, file),
            Request::ListAttributes { file, to, size } => self.list_attributes(caller, file, to, size),
            Request::SetTimes { file, times } => self.set_times(caller, file, times),
        }
    }

    fn groups(&self, caller: &Caller<'_>, size: i32, to: u64) -> Result<Reply> {
        let groups = &self.credentials(caller)?.more_groups;
        let count = groups.len();
        if size < 0 || (size > 0 && (size as usize) < count) {
            return Err(Errno::INVAL);
        }
        if size > 0 {
            let bytes: Vec<u8> = groups.iter().flat_map(|g| g.to_ne_bytes()).collect();
            caller.write(to, &bytes)?;
        }
        Ok(Reply::value(count as u32))
    }

    fn set_groups(&mut self, caller: &Caller<'_>, count: u32, from: u64) -> Result<Reply> {
        let who = self.credentials(caller)?.clone();
        if !self.may_set(caller, IdKind::Groups) {
            return Err(Errno::PERM);
        }
        if count > MAX_GROUPS {
            return Err(Errno::INVAL);
        }
        let mut bytes = vec![0; count as usize * 4];
        if !bytes.is_empty() {
            caller.read(from, &mut bytes)?;
        }
        let mut groups = ids_of(&bytes);
        // As the kernel keeps them.
        groups.sort_unstable();
        if groups.contains(&SAME) {
            return Err(Errno::INVAL);
        }
        self.become_(caller, Credentials { more_groups: groups, ..who })?;
        Ok(Reply::value(0))
    }

    fn set_file_id(&mut self, caller: &Caller<'_>, of: IdKind, id: u32) -> Result<Reply> {
        let who = self.credentials(caller)?.clone();
        let (before, able) = (who.ids(of), self.may_set(caller, of));
        let new = before.set_files(able, id);
        let who = match of {
            IdKind::Users => who.with_file_user(new),
            IdKind::Groups => who.with(of, new),
        };
        self.become_(caller, who)?;
        Ok(Reply::value(before.files))
    }

    fn set_ids(&mut self, caller: &Caller<'_>, of: IdKind, change: IdChange) -> Result<Reply> {
        let who = self.credentials(caller)?.clone();
        let (ids, able) = (who.ids(of), self.may_set(caller, of));
        let new = match change {
            IdChange::One(id) => ids.set(able, id),
            IdChange::Two(real, effective) => ids.set_two(able, real, effective),
            IdChange::Three(wanted) => ids.set_three(able, wanted),
        }?;
        let who = match of {
            IdKind::Users => who.with_users(new),
            IdKind::Groups => who.with(of, new),
        };
        self.become_(caller, who)?;
        Ok(Reply::value(0))
    }
}

/// Stores a table index in a thread's process. If the thread ends before the index is stored,
/// another thread may have its ID; the limit of that thread is then restored.
fn store_index(thread: &impl Thread, place: u64) -> Result<()> {
    let (soft, hard) = queue_limit(thread.id()).map_err(|_| Errno::SRCH)?;
    // The index cannot exceed the hard limit.
    let new = hard.checked_sub(place).ok_or(Errno::NOMEM)?;
    thread.still_has_id()?;
    set_queue_limit(thread.id(), new, hard).map_err(|_| Errno::PERM)?;
    thread.still_has_id().inspect_err(|_| {
        let _ = set_queue_limit(thread.id(), soft, hard);
    })
}

/// A thread that is identified by its ID.
pub(super) trait Thread {
    fn id(&self) -> u32;

    /// Fails if it may have ended, and the ID may be that of another thread.
    fn still_has_id(&self) -> Result<()>;
}

impl Thread for Caller<'_> {
    fn id(&self) -> u32 {
        self.thread()
    }

    fn still_has_id(&self) -> Result<()> {
        self.still_waits()
    }
}

/// The first process of a container, a child of this process. Its PID is not reused until it has
/// been waited for.
struct InitProcess(u32);

impl Thread for InitProcess {
    fn id(&self) -> u32 {
        self.0
    }

    fn still_has_id(&self) -> Result<()> {
        Ok(())
    }
}

pub(super) enum Reply {
    Answer(Answer),
    /// Returns a new file to the caller.
    File {
        fd: OwnedFd,
        close_on_exec: bool,
    },
}

impl Reply {
    pub(super) const GO: Reply = Reply::Answer(Answer::Go);

    pub(super) fn value(value: u32) -> Reply {
        Reply::Answer(Answer::Value(value.into()))
    }
}

pub(super) fn errno(e: std::io::Error) -> Errno {
    Errno::from_raw_os_error(e.raw_os_error().unwrap_or(Errno::IO.raw_os_error()))
}

#[cfg(test)]
mod tests;
