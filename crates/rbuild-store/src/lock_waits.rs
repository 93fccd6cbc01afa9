//! Waiting for locks of other processes: indefinitely for other builds, for a limited time for
//! other programs.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rbuild_linux::{Conflict, LockHolder, LockKind, RootDir, credentials, described, lock_holders};

use crate::error::{Result, StoreError};

/// Delay after which a wait is reported.
const NOTICE_AFTER: Duration = Duration::from_secs(3);

/// Interval between checks of the lock's holders.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Returns true if waiting is canceled.
pub(crate) type SharedCancelCheck = Arc<dyn Fn() -> bool + Send + Sync>;

/// Settings for waiting on locks.
#[derive(Clone)]
pub struct LockWaiting {
    /// Maximum time that a program other than rbuild may hold a lock of the store.
    pub foreign: Duration,
    /// Receives messages about waits.
    pub notify: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Default for LockWaiting {
    fn default() -> LockWaiting {
        LockWaiting { foreign: Duration::from_secs(15), notify: Arc::new(|_| ()) }
    }
}

/// The state of an open store that waits need.
#[derive(Clone)]
pub(crate) struct Waits {
    /// The settings.
    pub waiting: LockWaiting,
    /// Cancels waits.
    pub stop: SharedCancelCheck,
    /// The /proc of the process that opened the store. That of a builder's PID namespace would not
    /// show the holders.
    pub proc: Option<Arc<RootDir>>,
    /// The process that opened the store.
    pub opened_by: LockUser,
}

/// The process that opened the store.
#[derive(Clone)]
pub(crate) struct LockUser {
    pid: u32,
    uid: u32,
    user: Option<String>,
}

impl Waits {
    /// Returns the state for a store that this process opens.
    pub fn new(waiting: LockWaiting) -> Waits {
        let uid = credentials::own_ids().uid;
        let opened_by = LockUser { pid: std::process::id(), uid, user: credentials::user_name(uid) };
        Waits { waiting, stop: Arc::new(|| false), proc: RootDir::open("/proc").ok().map(Arc::new), opened_by }
    }

    /// Returns the processes that hold a lock on a file, without this build's own.
    pub fn holders(&self, file: &File) -> Vec<LockHolder> {
        let mut holders = self.proc.as_ref().map_or(Vec::new(), |proc| lock_holders(proc, file));
        holders.retain(|holder| holder.pid != self.opened_by.pid);
        holders
    }

    /// Takes a shared or exclusive lock (flock(2)).
    pub fn lock(&self, name: &'static str, file: &File, kind: LockKind) -> Result<()> {
        let mut wait = Wait::new(self, name);
        let mut pause = Duration::from_millis(1);
        loop {
            let tried = match kind {
                LockKind::Shared => file.try_lock_shared(),
                LockKind::Exclusive => file.try_lock(),
            };
            match tried {
                Ok(()) => return Ok(()),
                Err(std::fs::TryLockError::WouldBlock) => wait.go_on(file, None)?,
                Err(std::fs::TryLockError::Error(e)) => {
                    return Err(rbuild_linux::Error::new("flock", described(format!("the store's {name}")), e).into());
                }
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(16));
        }
    }

    fn is_rbuild(&self, holder: &LockHolder) -> bool {
        let own = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
        ["rbuild", "docker", own.trim()].contains(&holder.command.as_str())
    }

    /// Returns a description of the holders.
    pub fn names(&self, holders: &[LockHolder]) -> String {
        self.opened_by.names(holders, credentials::own_ids().uid)
    }
}

impl LockUser {
    /// Returns a description of the holders. `here` is the ID that this user has in the namespace
    /// of the calling process.
    fn names(&self, holders: &[LockHolder], here: u32) -> String {
        let shown: Vec<String> = holders.iter().map(|holder| self.name(holder, here)).collect();
        if shown.is_empty() { "a process outside this PID namespace".into() } else { shown.join(", ") }
    }

    fn name(&self, holder: &LockHolder, here: u32) -> String {
        // In a builder's user namespace the caller is root, and unmapped users have this ID.
        const NOBODY: u32 = 65534;
        let command = if holder.command.is_empty() { "a process" } else { &holder.command };
        let user = match holder.uid {
            Some(uid) if uid == here => self.user.clone().unwrap_or_else(|| self.uid.to_string()),
            Some(NOBODY) if here != self.uid => "not mapped".into(),
            Some(uid) => credentials::user_name(uid).unwrap_or_else(|| uid.to_string()),
            None => "unknown".into(),
        };
        format!("{command} (PID {}, user {user})", holder.pid)
    }
}

/// The facts about a wait that decide whether it continues.
#[derive(Debug, Clone, Copy)]
struct WaitState {
    waited: Duration,
    /// Maximum time that a program other than rbuild may hold a lock.
    limit: Duration,
    conflict: Option<Conflict>,
    /// A holder is not rbuild.
    is_foreign: bool,
    /// The holders have made no progress for as long as `limit`.
    is_idle: bool,
    notified: bool,
}

/// A decision about a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WaitDecision {
    Continue,
    /// The wait continues, and is reported.
    Report(Blocker),
    /// Ends, because a program other than rbuild holds the lock.
    Held,
    /// Ends, because the holders make no progress.
    Idle,
}

/// The part of the store that is awaited, and its holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blocker {
    /// A lock file, held by a program other than rbuild.
    Foreign,
    /// A lock file, held by rbuild.
    Lock,
    /// A key, held by one of the running builds.
    Key,
}

impl WaitState {
    fn next(&self) -> WaitDecision {
        if self.is_foreign && self.waited >= self.limit {
            return WaitDecision::Held;
        }
        // Any program can use rbuild's name, so a holder of the whole lock must make progress.
        if self.conflict.is_none() && self.is_idle {
            return WaitDecision::Idle;
        }
        if self.notified || self.waited < NOTICE_AFTER {
            return WaitDecision::Continue;
        }
        WaitDecision::Report(match (self.is_foreign, self.conflict) {
            (true, _) => Blocker::Foreign,
            (false, None) => Blocker::Lock,
            (false, Some(_)) => Blocker::Key,
        })
    }
}

impl Blocker {
    /// Returns the report of a wait for these holders of a lock file.
    fn report(self, lock: &str, holders: &str) -> String {
        match self {
            Blocker::Foreign => format!("waiting for {holders}, which holds the store's {lock} and is not rbuild"),
            Blocker::Lock => format!("waiting for {holders}, which holds the store's {lock}"),
            Blocker::Key => format!(
                "waiting for {holders}, which runs the same step, unpacks the same layer or uses the same cache mount"
            ),
        }
    }
}

/// A wait for one lock.
pub(crate) struct Wait<'a> {
    waits: &'a Waits,
    /// Name of the lock file.
    name: &'static str,
    began: Instant,
    /// Elapsed time at which the holders are checked next.
    look: Duration,
    notified: bool,
    /// True if the wait has been reported in the debug log.
    logged: bool,
    /// The last progress of the holders, and the elapsed time at which it was first observed.
    at_work: (Vec<(u32, u64)>, Duration),
    /// The lock held by all builds; one of them holds the awaited key.
    builds: Option<&'a File>,
}

impl Wait<'_> {
    /// Creates a wait for the lock file `name`.
    pub fn new<'a>(waits: &'a Waits, name: &'static str) -> Wait<'a> {
        let look = NOTICE_AFTER.min(waits.waiting.foreign);
        Wait {
            waits,
            name,
            began: Instant::now(),
            look,
            notified: false,
            logged: false,
            at_work: Default::default(),
            builds: None,
        }
    }

    /// Creates a wait for a key of `steps.lock`. `lock` is the one held by all builds.
    pub fn for_key<'a>(waits: &'a Waits, lock: &'a File) -> Wait<'a> {
        let mut wait = Wait::new(waits, "steps.lock");
        wait.builds = Some(lock);
        wait
    }

    /// Checks whether to continue waiting. `conflict` describes the conflicting lock, if it reveals
    /// whether rbuild holds it.
    ///
    /// # Errors
    ///
    /// Fails with [`StoreError::Canceled`], [`StoreError::Held`] or [`StoreError::Idle`] if waiting
    /// should end.
    pub fn go_on(&mut self, file: &File, conflict: Option<Conflict>) -> Result<()> {
        if (self.waits.stop)() {
            return Err(StoreError::Canceled);
        }
        if !self.logged {
            self.logged = true;
            tracing::debug!(target: "store", lock = self.name, "waiting for a lock");
        }
        let waited = self.began.elapsed();
        if waited < self.look {
            return Ok(());
        }
        self.look = waited + POLL_INTERVAL;
        let waits = self.waits;
        let holders = waits.holders(file);
        let is_foreign = match conflict {
            Some(conflict) => conflict == Conflict::Foreign,
            None => holders.is_empty() || holders.iter().any(|holder| !waits.is_rbuild(holder)),
        };
        let (limit, notified) = (waits.waiting.foreign, self.notified);
        let is_idle = self.is_idle(&holders, waited);
        let (lock, holder) = (self.name, || waits.names(&holders));
        match (WaitState { waited, limit, conflict, is_foreign, is_idle, notified }).next() {
            WaitDecision::Continue => Ok(()),
            WaitDecision::Held => Err(StoreError::Held { lock, holder: holder() }),
            WaitDecision::Idle => Err(StoreError::Idle { lock, holder: holder() }),
            WaitDecision::Report(holding) => {
                self.report(holding, holders);
                Ok(())
            }
        }
    }

    /// Returns true if the holders have made no progress for as long as another program may hold a
    /// lock.
    fn is_idle(&mut self, holders: &[LockHolder], waited: Duration) -> bool {
        let now: Vec<(u32, u64)> = holders.iter().map(|holder| (holder.pid, holder.work)).collect();
        if now != self.at_work.0 {
            self.at_work = (now, waited);
        }
        waited - self.at_work.1 >= self.waits.waiting.foreign
    }

    /// Reports the wait. The holder of a key is not visible, so all builds are named.
    fn report(&mut self, holding: Blocker, mut holders: Vec<LockHolder>) {
        self.notified = true;
        if holding == Blocker::Key {
            holders = self.builds.map_or(Vec::new(), |lock| self.waits.holders(lock));
            holders.retain(|holder| self.waits.is_rbuild(holder));
            if holders.is_empty() {
                return;
            }
        }
        (self.waits.waiting.notify)(&holding.report(self.name, &self.waits.names(&holders)));
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if self.logged {
            let seconds = self.began.elapsed().as_secs_f64();
            tracing::debug!(target: "store", lock = self.name, seconds, "the wait for a lock ended");
        }
    }
}

/// Opens a lock file of the store. If an earlier version made it accessible to all users, the owner
/// restricts it.
pub(crate) fn open_lock(store: &Path, name: &str) -> rbuild_linux::Result<File> {
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
    let path = store.join(name);
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(crate::modes::lock());
    let failed = |e| rbuild_linux::Error::new("openat", &path, e);
    let file = options.open(&path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if found.mode() & 0o007 != 0 && found.uid() == rbuild_linux::credentials::own_ids().uid {
        // On file systems without modes there is nothing to restrict.
        let _ = file.set_permissions(std::fs::Permissions::from_mode(found.mode() & 0o770));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, message_row};

    use super::*;

    fn holder(command: &str, uid: Option<u32>) -> LockHolder {
        LockHolder { pid: 7, command: command.into(), uid, work: 0, is_stopped: false }
    }

    #[test]
    fn waits_are_reported_and_end_as_recorded() {
        let (foreign, key) = (Some(Conflict::Foreign), Some(Conflict::Key));
        let usual = WaitState {
            waited: Duration::from_secs(3),
            limit: Duration::from_secs(15),
            conflict: None,
            is_foreign: false,
            is_idle: false,
            notified: false,
        };
        let late = Duration::from_secs(15);
        let cases = [
            ("at first", WaitState { waited: Duration::from_secs(2), ..usual }),
            ("lock of rbuild", usual),
            ("again", WaitState { notified: true, ..usual }),
            ("key of a build", WaitState { conflict: key, ..usual }),
            ("lock of another program", WaitState { is_foreign: true, ..usual }),
            ("key of another program", WaitState { is_foreign: true, conflict: foreign, ..usual }),
            ("lock of another program, late", WaitState { is_foreign: true, waited: late, ..usual }),
            ("key of another program, late", WaitState { is_foreign: true, conflict: foreign, waited: late, ..usual }),
            ("lock of an idle process", WaitState { is_idle: true, waited: late, notified: true, ..usual }),
            ("key of an idle build", WaitState { is_idle: true, waited: late, notified: true, conflict: key, ..usual }),
            ("long builds", WaitState { waited: 100 * late, notified: true, conflict: key, ..usual }),
        ];
        let caller = LockUser { pid: 1, uid: 1000, user: Some("me".into()) };
        let rows = cases.map(|(name, facts)| {
            let (lock, holder) = ("steps.lock", caller.names(&[holder("make", Some(0))], 1000));
            let ends = |e: StoreError| message_row(name, &e, e.remedy());
            match facts.next() {
                WaitDecision::Continue => format!("{name}: (continues)\n"),
                WaitDecision::Report(holding) => format!("{name}: {}\n", holding.report(lock, &holder)),
                WaitDecision::Held => ends(StoreError::Held { lock, holder }),
                WaitDecision::Idle => ends(StoreError::Idle { lock, holder }),
            }
        });
        assert_recorded!("waits", rows.concat());
    }

    #[test]
    fn lock_holders_are_described_as_recorded() {
        let named = LockUser { pid: 1, uid: 1000, user: Some("me".into()) };
        let nameless = LockUser { user: None, ..named.clone() };
        let rows = [
            named.names(&[], 1000),
            named.names(&[holder("make", Some(1000)), holder("", None)], 1000),
            nameless.names(&[holder("make", Some(1000))], 1000),
            named.names(&[holder("make", Some(0))], 1000),
            named.names(&[holder("make", Some(4_000_000_000))], 1000),
            // In the user namespace of a build, the caller is root.
            named.names(&[holder("make", Some(0)), holder("make", Some(65534))], 0),
        ];
        assert_recorded!("lock-holders", rows.map(|row| format!("{row}\n")).concat());
    }
}
