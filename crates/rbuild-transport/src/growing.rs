//! Blobs that are read while they are written.

use std::fs::File;
use std::io::{self, Read};
use std::sync::{Condvar, Mutex, PoisonError};

use rbuild_linux::parallel::locked;
use rbuild_linux::read_up_to;

use crate::blobs::BlobInfo;

/// Number of bytes by which a blob grows before its readers are woken.
const STEP: u64 = 256 << 10;

/// A blob that is being written into a file.
pub struct GrowingBlob {
    file: File,
    growth: Mutex<Growth>,
    changed: Condvar,
}

#[derive(Debug, Clone, Copy)]
enum Growth {
    /// So many bytes exist.
    Partial(u64),
    Complete(BlobInfo),
    /// No further byte is written.
    Abandoned,
}

/// The writer of a blob gave up.
#[derive(Debug, thiserror::Error)]
#[error("the layer was not completed")]
struct NotCompleted;

impl GrowingBlob {
    /// Returns the blob in a file that is open for reading, and empty.
    pub fn new(file: File) -> GrowingBlob {
        GrowingBlob { file, growth: Mutex::new(Growth::Partial(0)), changed: Condvar::new() }
    }

    /// Records the number of bytes that exist.
    pub fn grown(&self, size: u64) {
        let mut growth = locked(&self.growth);
        if let Growth::Partial(known) = *growth
            && size - known.min(size) >= STEP
        {
            *growth = Growth::Partial(size);
            self.changed.notify_all();
        }
    }

    /// Records that all bytes exist.
    pub fn complete(&self, info: BlobInfo) {
        *locked(&self.growth) = Growth::Complete(info);
        self.changed.notify_all();
    }

    /// Records that no further byte will be written, unless the blob is complete.
    pub fn abandon(&self) {
        let mut growth = locked(&self.growth);
        if let Growth::Partial(_) = *growth {
            *growth = Growth::Abandoned;
            self.changed.notify_all();
        }
    }

    /// Waits until the blob has at least that many bytes. Returns false if it ends before.
    pub(crate) fn reaches(&self, size: u64) -> bool {
        match self.wait(|known| known >= size) {
            Growth::Partial(_) => true,
            Growth::Complete(info) => info.size >= size,
            Growth::Abandoned => false,
        }
    }

    /// Waits until all bytes exist.
    ///
    /// # Errors
    ///
    /// Fails if the blob is abandoned.
    pub(crate) fn completed(&self) -> io::Result<BlobInfo> {
        match self.wait(|_| false) {
            Growth::Complete(info) => Ok(info),
            Growth::Partial(_) | Growth::Abandoned => Err(io::Error::other(NotCompleted)),
        }
    }

    /// Returns a reader from a position. It waits for bytes, and fails if the blob is abandoned.
    pub(crate) fn read_at(&self, at: u64) -> impl Read + '_ {
        GrowingReader { blob: self, at }
    }

    /// Waits until no byte will be added, or there are enough.
    fn wait(&self, is_enough: impl Fn(u64) -> bool) -> Growth {
        let mut growth = locked(&self.growth);
        while let Growth::Partial(size) = *growth
            && !is_enough(size)
        {
            growth = self.changed.wait(growth).unwrap_or_else(PoisonError::into_inner);
        }
        *growth
    }
}

struct GrowingReader<'a> {
    blob: &'a GrowingBlob,
    at: u64,
}

impl Read for GrowingReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let size = match self.blob.wait(|size| size > self.at) {
            Growth::Partial(size) => size,
            Growth::Complete(info) => info.size,
            Growth::Abandoned => return Err(io::Error::other(NotCompleted)),
        };
        read_up_to(&self.blob.file, buf, &mut self.at, size)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::thread::{scope, sleep};
    use std::time::Duration;

    use rbuild_image::BlobDigest;
    use rbuild_testkit::{Scratch, assert_recorded, no_remedy, variants};

    use super::*;

    fn blob() -> (File, GrowingBlob) {
        let dir = Scratch::new();
        let path = dir.join("blob");
        let file = File::create(&path).unwrap();
        let blob = GrowingBlob::new(File::open(&path).unwrap());
        (file, blob)
    }

    #[test]
    fn a_reader_waits_for_the_end_of_the_blob() {
        let (mut file, blob) = blob();
        let bytes = vec![7; 3 * STEP as usize + 5];
        scope(|threads| {
            let read = |at| {
                let mut all = Vec::new();
                blob.read_at(at).read_to_end(&mut all).map(|_| all)
            };
            let readers = [0, 2 * STEP, 3 * STEP + 5].map(|at| (at, threads.spawn(move || read(at))));
            let large = threads.spawn(|| (blob.reaches(STEP), blob.reaches(4 * STEP)));
            for (at, part) in bytes.chunks(STEP as usize).enumerate() {
                sleep(Duration::from_millis(10));
                file.write_all(part).unwrap();
                blob.grown(at as u64 * STEP + part.len() as u64);
            }
            sleep(Duration::from_millis(50));
            assert!(readers.iter().all(|(_, reader)| !reader.is_finished()), "the end is not known");
            let info = BlobInfo { digest: BlobDigest::of(&bytes), size: bytes.len() as u64 };
            blob.complete(info);
            for (at, reader) in readers {
                assert!(reader.join().unwrap().unwrap() == bytes[at as usize..]);
            }
            assert_eq!(large.join().unwrap(), (true, false));
            blob.abandon();
            assert_eq!(blob.completed().unwrap(), info);
        });
    }

    #[test]
    fn the_message_of_an_abandoned_blob_is_as_recorded() {
        assert_recorded!("NotCompleted", variants!(NotCompleted).table(&[NotCompleted], |e| e, no_remedy));
    }

    #[test]
    fn an_abandoned_blob_fails_its_readers() {
        let (_, blob) = blob();
        scope(|threads| {
            let reader = threads.spawn(|| blob.read_at(0).read(&mut [0]).unwrap_err().to_string());
            sleep(Duration::from_millis(10));
            blob.abandon();
            assert_eq!(reader.join().unwrap(), blob.completed().unwrap_err().to_string());
        });
        assert!(!blob.reaches(1));
    }
}
