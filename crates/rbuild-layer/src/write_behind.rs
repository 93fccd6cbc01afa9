//! The content of small new files, and owners, modes and times of all of them, on a thread of its own while the next files
//! are made.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use rbuild_linux::{Timestamp, set_file_owner, set_file_time};

/// A file that has its content, or gets the next so many bytes of its batch.
pub struct Filled {
    pub file: File,
    pub bytes: usize,
    /// In the archive, for errors.
    pub path: PathBuf,
    /// User, group and mode, if they are not what the file was born with.
    pub owner: Option<(u32, u32, u32)>,
    pub mtime: Timestamp,
}

/// What is held for it at the most while its batch grows.
pub const SMALL: u64 = 32 << 10;

/// What a file could not be given.
pub struct Unfinished {
    pub path: PathBuf,
    pub error: rbuild_linux::Error,
}

/// Files that are finished here before it is worth a thread.
const FEW: usize = 100;
/// Files and bytes that go over at a time, and how many times may wait: all of them are open.
const BATCH: usize = 32;
const BATCH_BYTES: usize = 128 << 10;
const WAITING: usize = 4;

/// Files, and the content of those that have none yet, one after the other.
#[derive(Default)]
struct Batch {
    files: Vec<Filled>,
    content: Vec<u8>,
}

/// The way to the thread, and what it says when it ends.
type Other = (SyncSender<Batch>, JoinHandle<Result<(), Unfinished>>);

#[derive(Default)]
pub struct Finisher {
    count: usize,
    batch: Batch,
    other: Option<Other>,
}

impl Finisher {
    /// Where the content of the next file is put that is not written yet.
    pub fn content(&mut self) -> &mut Vec<u8> {
        &mut self.batch.content
    }

    /// Finishes a file, now or soon. An error may be that of an earlier one.
    pub fn take(&mut self, filled: Filled) -> Result<(), Unfinished> {
        self.count += 1;
        self.batch.files.push(filled);
        if self.count <= FEW {
            return std::mem::take(&mut self.batch).finish();
        }
        if self.batch.files.len() < BATCH && self.batch.content.len() < BATCH_BYTES {
            return Ok(());
        }
        self.pass_on()
    }

    fn pass_on(&mut self) -> Result<(), Unfinished> {
        let (sender, _) = self.other.get_or_insert_with(|| {
            let (sender, receiver) = sync_channel::<Batch>(WAITING);
            let thread = std::thread::spawn(move || receiver.into_iter().try_for_each(Batch::finish));
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
        let rest = std::mem::take(&mut self.batch).finish();
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

impl Batch {
    fn finish(self) -> Result<(), Unfinished> {
        let mut content = &self.content[..];
        for filled in self.files {
            let Filled { mut file, bytes, path, owner, mtime } = filled;
            // What was read before an error may be less.
            let (own, rest) = content.split_at(bytes.min(content.len()));
            content = rest;
            let written = file.write_all(own).map_err(|e| rbuild_linux::Error::new("write", &path, e));
            // Writing and changing the owner clear set-id bits.
            let owned =
                written.and_then(|()| owner.map_or(Ok(()), |(uid, gid, mode)| set_file_owner(&file, uid, gid, mode)));
            let timed = owned.and_then(|()| set_file_time(&file, mtime));
            timed.map_err(|error| Unfinished { path, error })?;
        }
        Ok(())
    }
}
