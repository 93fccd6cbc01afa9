use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rbuild_linux::RootDir;

use crate::error::Result;
use crate::layout::Store;
use crate::modes;

static SERIAL: AtomicU64 = AtomicU64::new(0);

/// One process's place for work in progress. What is still in it on drop is removed; what a killed process left
/// is removed by the next one that opens a workspace.
pub struct Workspace {
    tmp: RootDir,
    name: OsString,
    dir: RootDir,
    path: PathBuf,
    _lock: File,
}

impl Workspace {
    pub fn open(store: &Store) -> Result<Workspace> {
        let tmp = store.dir("tmp")?;
        if sweep(store, &tmp)? && store.lock_alone().is_ok() {
            store.remove_unpublished()?;
            store.lock_shared()?;
        }
        let (name, lock) = locked_name(store)?;
        tmp.create_dir(OsStr::new(&name), modes::dir())?;
        let dir = tmp.sub(&name)?;
        let path = store.path().join("tmp").join(&name);
        Ok(Workspace { tmp, name: name.into(), dir, path, _lock: lock })
    }

    pub fn dir(&self) -> &RootDir {
        &self.dir
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new empty directory with a name of its own, which may become a root directory.
    pub fn new_dir(&self) -> Result<(PathBuf, RootDir)> {
        self.new_dir_with(0o755)
    }

    pub(crate) fn new_dir_with(&self, mode: u32) -> Result<(PathBuf, RootDir)> {
        let name = self.unique("d");
        self.dir.create_dir(OsStr::new(&name), mode)?;
        Ok((self.path.join(&name), self.dir.sub(&name)?))
    }

    pub(crate) fn unique(&self, prefix: &str) -> String {
        format!("{prefix}{}", SERIAL.fetch_add(1, Ordering::Relaxed))
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        let _ = self.tmp.remove_all(&self.name);
        let mut lock = self.name.clone();
        lock.push(".lock");
        let _ = self.tmp.remove_file(&lock);
    }
}

/// A name that no other process has, and the lock that says so.
fn locked_name(store: &Store) -> Result<(String, File)> {
    loop {
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let nanos = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_nanos());
        let name = format!("{:x}-{nanos:x}-{serial}", std::process::id());
        let lock = store.open_lock(&format!("tmp/{name}.lock"))?;
        let failed = |e| rbuild_linux::Error::new("flock", &name, e);
        lock.lock().map_err(failed)?;
        // A sweep that had the lock between our open and our lock took it for one of the dead, and removed its file.
        if lock.metadata().map_err(failed)?.nlink() > 0 {
            return Ok((name, lock));
        }
    }
}

/// Removes the work of processes that are no more: those whose lock can be had. Tells whether there was any.
pub(crate) fn sweep(store: &Store, tmp: &RootDir) -> Result<bool> {
    let mut found = false;
    for entry in tmp.entries()? {
        let Some(name) = entry.name.to_str().and_then(|n| n.strip_suffix(".lock")) else {
            // Its lock is made before a place and goes after it: one without was left by a power cut.
            if !tmp.exists(format!("{}.lock", entry.name.to_string_lossy()))? {
                let _ = tmp.remove_all(&entry.name);
            }
            continue;
        };
        let Ok(lock) = File::open(store.path().join("tmp").join(&entry.name)) else { continue };
        if lock.try_lock().is_ok() {
            found = true;
            // Files of sub-ids can only be removed from inside the namespace; then the next builder does it.
            if tmp.remove_all(OsStr::new(name)).is_ok() {
                let _ = tmp.remove_file(&entry.name);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_writer_left_is_no_document_and_goes() {
        let dir = std::env::temp_dir().join(format!("rbuild-unpublished-{}", std::process::id()));
        let store = Store::open(&dir).unwrap();
        std::fs::create_dir_all(dir.join("containers")).unwrap();
        let left: Vec<_> = [".", "records", "results", "builds", "layers", "containers"]
            .iter()
            .map(|of| dir.join(of).join(".rbuild-7-1-000000aa.tmp"))
            .collect();
        let leave = || left.iter().for_each(|path| std::fs::write(path, b"").unwrap());
        leave();
        assert_eq!(store.check(false).unwrap().problems, Vec::<String>::new());
        assert!(store.containers().unwrap().is_empty());
        store.check(true).unwrap();
        assert!(left.iter().all(|path| !path.exists()), "a repair leaves none");
        store.lock_shared().unwrap();
        leave();
        std::fs::write(dir.join("tmp/dead.lock"), b"").unwrap();
        let other = Store::open(&dir).unwrap();
        drop(Workspace::open(&store).unwrap());
        assert!(left.iter().all(|path| path.exists()), "another process may be writing them");
        drop(other);
        std::fs::write(dir.join("tmp/dead.lock"), b"").unwrap();
        drop(Workspace::open(&store).unwrap());
        assert!(left.iter().all(|path| !path.exists()), "the next builder removes them");
        drop(store);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn places_of_the_living_are_never_swept() {
        let dir = std::env::temp_dir().join(format!("rbuild-workspace-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let store = Store::open(&dir).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let place = Workspace::open(&store).unwrap();
                        let (path, made) = place.new_dir().unwrap();
                        made.create_dir(OsStr::new("x"), 0o755).unwrap();
                        std::thread::yield_now();
                        std::fs::write(path.join("x/file"), b"still here").unwrap();
                    }
                });
            }
        });
        assert_eq!(std::fs::read_dir(dir.join("tmp")).unwrap().count(), 0);
        drop(store);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
