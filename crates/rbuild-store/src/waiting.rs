//! Waits for the locks of other processes: for other builds as long as they take, for anybody else not without end.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rbuild_linux::{Conflict, LockHolder, LockKind, RootDir, lock_holders, process};

use crate::error::{Result, StoreError};

/// When it is said for whom a wait is.
const SAY: Duration = Duration::from_secs(3);

/// Time between two looks at who holds a lock.
const LOOK: Duration = Duration::from_secs(1);

/// Whether a wait for somebody else's lock is to end.
pub(crate) type Stop = Arc<dyn Fn() -> bool + Send + Sync>;

/// How waits for locks go.
#[derive(Clone)]
pub struct Patience {
    /// How long a program that is no rbuild may hold a lock of the store.
    pub foreign: Duration,
    /// Tells the caller for whom it waits.
    pub tell: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { foreign: Duration::from_secs(15), tell: Arc::new(|_| ()) }
    }
}

/// What an open store knows for its waits.
#[derive(Clone)]
pub(crate) struct Waits {
    pub patience: Patience,
    pub stop: Stop,
    /// The /proc of the process that opened the store: a builder's own would not show the holders.
    pub proc: Option<Arc<RootDir>>,
    pub opened_by: Opener,
}

#[derive(Clone)]
pub(crate) struct Opener {
    pid: u32,
    uid: u32,
    user: Option<String>,
}

impl Waits {
    pub fn new(patience: Patience) -> Waits {
        let uid = process::own_ids().0;
        let opened_by = Opener { pid: std::process::id(), uid, user: process::user_name(uid) };
        Waits { patience, stop: Arc::new(|| false), proc: RootDir::open("/proc").ok().map(Arc::new), opened_by }
    }

    /// The processes that hold a lock on a file, this build's own left out.
    pub fn holders(&self, file: &File) -> Vec<LockHolder> {
        let mut holders = self.proc.as_ref().map_or(Vec::new(), |proc| lock_holders(proc, file));
        holders.retain(|holder| holder.pid != self.opened_by.pid);
        holders
    }

    /// Takes a lock for this process alone or with others (flock(2)).
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
                Err(std::fs::TryLockError::Error(e)) => return Err(rbuild_linux::Error::new("flock", name, e).into()),
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(16));
        }
    }

    fn is_rbuild(&self, holder: &LockHolder) -> bool {
        let own = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
        ["rbuild", "docker", own.trim()].contains(&holder.command.as_str())
    }

    /// The holders by name.
    pub fn names(&self, holders: &[LockHolder]) -> String {
        let shown: Vec<String> = holders.iter().map(|holder| self.name(holder)).collect();
        if shown.is_empty() { "a process that cannot be seen from here".into() } else { shown.join(", ") }
    }

    fn name(&self, holder: &LockHolder) -> String {
        // In a builder's namespace the caller is root, and whoever has no number there has this one.
        const NOBODY: u32 = 65534;
        let here = process::own_ids().0;
        let command = if holder.command.is_empty() { "a process" } else { &holder.command };
        let user = match holder.uid {
            Some(uid) if uid == here => self.opened_by.user.clone().unwrap_or_else(|| self.opened_by.uid.to_string()),
            Some(NOBODY) if here != self.opened_by.uid => "another one".into(),
            Some(uid) => process::user_name(uid).unwrap_or_else(|| uid.to_string()),
            None => "unknown".into(),
        };
        format!("{command} (pid {}, user {user})", holder.pid)
    }
}

/// One wait.
pub(crate) struct Wait<'a> {
    waits: &'a Waits,
    /// The lock's file.
    name: &'static str,
    began: Instant,
    /// When the holders are looked at again.
    look: Duration,
    told: bool,
    /// How far the holders had got in their work, and when that was seen first.
    at_work: (Vec<(u32, u64)>, Duration),
    /// All builds have this lock; one of them has the key that is waited for.
    builds: Option<&'a File>,
}

impl Wait<'_> {
    pub fn new<'a>(waits: &'a Waits, name: &'static str) -> Wait<'a> {
        let look = SAY.min(waits.patience.foreign);
        Wait { waits, name, began: Instant::now(), look, told: false, at_work: Default::default(), builds: None }
    }

    /// A wait for a key of `steps.lock`; `lock` is the one that all builds have.
    pub fn for_key<'a>(waits: &'a Waits, lock: &'a File) -> Wait<'a> {
        Wait { builds: Some(lock), ..Wait::new(waits, "steps.lock") }
    }

    /// Whether to go on; `conflict` is what stands in the way, where that says whether it is an rbuild's.
    pub fn go_on(&mut self, file: &File, conflict: Option<Conflict>) -> Result<()> {
        if (self.waits.stop)() {
            return Err(StoreError::Stopped);
        }
        let waited = self.began.elapsed();
        if waited < self.look {
            return Ok(());
        }
        self.look = waited + LOOK;
        let waits = self.waits;
        let holders = waits.holders(file);
        let is_foreign = match conflict {
            Some(conflict) => conflict == Conflict::Foreign,
            None => holders.is_empty() || holders.iter().any(|holder| !waits.is_rbuild(holder)),
        };
        if is_foreign && waited >= waits.patience.foreign {
            return Err(StoreError::Held { lock: self.name, holder: waits.names(&holders) });
        }
        // Anybody can have our name: who has a whole lock works, or is not waited for.
        if conflict.is_none() && self.is_idle(&holders, waited) {
            return Err(StoreError::Idle { lock: self.name, holder: waits.names(&holders) });
        }
        if !self.told && waited >= SAY {
            self.told = true;
            match (is_foreign, conflict) {
                (true, _) => self.tell(&holders, format!("which holds the store's {} and is no rbuild", self.name)),
                (false, None) => self.tell(&holders, format!("which holds the store's {}", self.name)),
                (false, Some(_)) => self.tell_of_builds(),
            }
        }
        Ok(())
    }

    /// Whether the holders have done nothing for as long as a foreign one would be waited for.
    fn is_idle(&mut self, holders: &[LockHolder], waited: Duration) -> bool {
        let now: Vec<(u32, u64)> = holders.iter().map(|holder| (holder.pid, holder.work)).collect();
        if now != self.at_work.0 {
            self.at_work = (now, waited);
        }
        waited - self.at_work.1 >= self.waits.patience.foreign
    }

    fn tell_of_builds(&self) {
        let mut builds = self.builds.map_or(Vec::new(), |lock| self.waits.holders(lock));
        builds.retain(|holder| self.waits.is_rbuild(holder));
        if !builds.is_empty() {
            self.tell(&builds, "which runs the same step or uses the same cache mount".into());
        }
    }

    fn tell(&self, holders: &[LockHolder], what: String) {
        (self.waits.patience.tell)(&format!("waiting for {}, {what}", self.waits.names(holders)));
    }
}

/// Opens a lock file of the store. One that an earlier version left open to everybody is closed to them by its owner.
pub(crate) fn open_lock(store: &Path, name: &str) -> rbuild_linux::Result<File> {
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
    let path = store.join(name);
    let mut how = File::options();
    how.read(true).write(true).create(true).truncate(false).mode(crate::modes::lock());
    let failed = |e| rbuild_linux::Error::new("openat", &path, e);
    let file = how.open(&path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if found.mode() & 0o007 != 0 && found.uid() == rbuild_linux::process::own_ids().0 {
        // A file system without modes has nobody to keep away.
        let _ = file.set_permissions(std::fs::Permissions::from_mode(found.mode() & 0o770));
    }
    Ok(file)
}
