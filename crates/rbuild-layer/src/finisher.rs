//! Owners, modes and times of new files, set on a thread of its own while the next files are written.

use std::fs::File;
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use rbuild_linux::{Timestamp, set_file_owner, set_file_time};

/// A file that has its content.
pub struct Filled {
    pub file: File,
    /// In the archive, for errors.
    pub path: PathBuf,
    /// User, group and mode, if they are not what the file was born with.
    pub owner: Option<(u32, u32, u32)>,
    pub mtime: Timestamp,
}

/// What a file could not be given.
pub struct Unfinished {
    pub path: PathBuf,
    pub owner: Option<(u32, u32, u32)>,
    pub error: rbuild_linux::Error,
}

/// Files that are finished here before it is worth a thread.
const FEW: usize = 100;
/// Files that go over at a time, and how many times may wait: all of them are open.
const BATCH: usize = 32;
const WAITING: usize = 4;

/// The way to the thread, and what it says when it ends.
type Other = (SyncSender<Vec<Filled>>, JoinHandle<Result<(), Unfinished>>);

#[derive(Default)]
pub struct Finisher {
    count: usize,
    batch: Vec<Filled>,
    other: Option<Other>,
}

impl Finisher {
    /// Finishes a file, now or soon. An error may be that of an earlier one.
    pub fn take(&mut self, filled: Filled) -> Result<(), Unfinished> {
        self.count += 1;
        if self.count <= FEW {
            return finish(filled);
        }
        self.batch.push(filled);
        if self.batch.len() < BATCH {
            return Ok(());
        }
        self.pass_on()
    }

    fn pass_on(&mut self) -> Result<(), Unfinished> {
        let (sender, _) = self.other.get_or_insert_with(|| {
            let (sender, receiver) = sync_channel::<Vec<Filled>>(WAITING);
            let thread = std::thread::spawn(move || receiver.into_iter().flatten().try_for_each(finish));
            (sender, thread)
        });
        match sender.send(std::mem::take(&mut self.batch)) {
            Ok(()) => Ok(()),
            // It ended, because something went wrong.
            Err(_) => self.end(),
        }
    }

    /// Waits until everything is finished.
    pub fn end(&mut self) -> Result<(), Unfinished> {
        let rest = std::mem::take(&mut self.batch).into_iter().try_for_each(finish);
        match self.other.take() {
            None => rest,
            Some((sender, thread)) => {
                drop(sender);
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).and(rest)
            }
        }
    }
}

impl Drop for Finisher {
    fn drop(&mut self) {
        // After an error nobody asks any more; the thread must not outlive what it works on.
        let _ = self.end();
    }
}

fn finish(filled: Filled) -> Result<(), Unfinished> {
    let Filled { file, path, owner, mtime } = filled;
    let owned = owner.map_or(Ok(()), |(uid, gid, mode)| set_file_owner(&file, uid, gid, mode));
    owned.and_then(|()| set_file_time(&file, mtime)).map_err(|error| Unfinished { path, owner, error })
}
