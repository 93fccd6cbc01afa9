//! Finishes new files on a separate thread while the next ones are created: the content of small
//! files, and owner, mode and time of all files.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use rbuild_linux::parallel::start;
use rbuild_linux::{OwnerRecords, Timestamp, UidGid, set_file_owner, set_file_time};

/// A file that has its content, or receives the next `bytes` bytes of its batch.
pub struct Filled {
    /// The open file.
    pub file: File,
    /// Number of bytes to take from the content of the batch.
    pub bytes: usize,
    /// Path in the archive, for messages.
    pub path: PathBuf,
    /// User ID, group ID and mode, if they differ from those at creation.
    pub owner: Option<(UidGid, u32)>,
    /// Modification time to set.
    pub mtime: Timestamp,
}

/// Maximum size in bytes of a file whose content is buffered in the batch.
pub const SMALL: u64 = 32 << 10;

/// A failure to write a file or to set its metadata.
pub struct Unfinished {
    /// Path in the archive.
    pub path: PathBuf,
    /// The failed operation.
    pub error: rbuild_linux::Error,
}

/// Number of files finished on the calling thread before another one is started.
const FEW: usize = 100;
/// Maximum number of files in a batch. All files in queued batches are open.
const BATCH: usize = 32;
/// Content in bytes after which a batch is sent.
const BATCH_BYTES: usize = 128 << 10;
/// Capacity of the queue, in batches.
const WAITING: usize = 4;

/// Files, and the concatenated content of those that have not been written yet.
#[derive(Default)]
struct Batch {
    files: Vec<Filled>,
    content: Vec<u8>,
}

/// The queue to the thread, and the handle that yields its result.
type WriterThread = (SyncSender<Batch>, JoinHandle<Result<(), Unfinished>>);

/// Finishes files in batches, after the first [`FEW`] on a separate thread.
pub struct FileWriter {
    /// The records of owners of the directory that the files are in.
    owners: Option<OwnerRecords>,
    count: usize,
    batch: Batch,
    thread: Option<WriterThread>,
}

impl FileWriter {
    /// Returns a writer of files in a directory with these records of owners.
    pub fn new(owners: Option<&OwnerRecords>) -> FileWriter {
        FileWriter { owners: owners.cloned(), count: 0, batch: Batch::default(), thread: None }
    }

    /// Returns the buffer to which the content of the next unwritten file is appended.
    pub fn content(&mut self) -> &mut Vec<u8> {
        &mut self.batch.content
    }

    /// Finishes a file, immediately or later.
    ///
    /// # Errors
    ///
    /// Fails if a file cannot be finished, which may be an earlier one.
    pub fn take(&mut self, filled: Filled) -> Result<(), Unfinished> {
        self.count += 1;
        self.batch.files.push(filled);
        if self.count <= FEW {
            return std::mem::take(&mut self.batch).finish(self.owners.as_ref());
        }
        if self.batch.files.len() < BATCH && self.batch.content.len() < BATCH_BYTES {
            return Ok(());
        }
        self.pass_on()
    }

    fn pass_on(&mut self) -> Result<(), Unfinished> {
        if self.thread.is_none() {
            let (sender, receiver) = sync_channel::<Batch>(WAITING);
            let owners = self.owners.clone();
            let thread = start(move || receiver.into_iter().try_for_each(|batch| batch.finish(owners.as_ref())));
            self.thread = thread.ok().map(|thread| (sender, thread));
        }
        // Without a thread the caller finishes the files.
        let Some((sender, _)) = &self.thread else {
            return std::mem::take(&mut self.batch).finish(self.owners.as_ref());
        };
        match sender.send(std::mem::take(&mut self.batch)) {
            Ok(()) => Ok(()),
            // The thread has ended because of an error, which `end` returns.
            Err(_) => self.end(),
        }
    }

    /// Waits until all files are finished.
    ///
    /// # Errors
    ///
    /// Fails with the first error of the thread, or else that of the last batch.
    pub fn end(&mut self) -> Result<(), Unfinished> {
        let rest = std::mem::take(&mut self.batch).finish(self.owners.as_ref());
        match self.thread.take() {
            None => rest,
            Some((sender, thread)) => {
                drop(sender);
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).and(rest)
            }
        }
    }
}

impl Drop for FileWriter {
    fn drop(&mut self) {
        // Wait for the thread after an error as well, so that it does not outlive the tree.
        let _ = self.end();
    }
}

impl Batch {
    fn finish(self, owners: Option<&OwnerRecords>) -> Result<(), Unfinished> {
        let mut content = &self.content[..];
        for filled in self.files {
            let Filled { mut file, bytes, path, owner, mtime } = filled;
            // After a read error the buffer may be shorter than the files require.
            let (own, rest) = content.split_at(bytes.min(content.len()));
            content = rest;
            let written = file.write_all(own).map_err(|e| rbuild_linux::Error::new("write", &path, e));
            // Writing and changing the owner both clear set-id bits.
            let set_owner = |(ids, mode)| set_file_owner(&file, owners, ids, mode);
            let owned = written.and_then(|()| owner.map_or(Ok(()), set_owner));
            let timed = owned.and_then(|()| set_file_time(&file, owners, mtime));
            timed.map_err(|error| Unfinished { path, error })?;
        }
        Ok(())
    }
}
