//! Uploads that servers keep until they are completed or canceled.

use std::collections::HashMap;
use std::io;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rbuild_linux::parallel::{locked, start};

/// Time in which a server is expected to cancel an upload. Without an answer, it removes the upload
/// some time later.
const CANCEL_TIME: Duration = Duration::from_millis(1500);

/// Cancels an upload at its server.
pub(crate) type CancelUpload = Box<dyn FnOnce() + Send>;

/// The open uploads of the clients that share this value.
#[derive(Clone, Default)]
pub struct OpenUploads(Arc<Shared>);

#[derive(Default)]
struct Shared {
    uploads: Mutex<Uploads>,
    changed: Condvar,
}

#[derive(Default)]
struct Uploads {
    is_ending: bool,
    /// Number of requests without an answer that open or cancel an upload.
    pending: usize,
    open: HashMap<u64, OpenEntry>,
    /// Number of uploads that were opened.
    count: u64,
}

struct OpenEntry {
    cancel: CancelUpload,
    /// True while a request sends data. Its upload is canceled after it.
    is_busy: bool,
}

/// The error of transfers that are interrupted because the program ends.
#[derive(Debug, thiserror::Error)]
#[error("the transfer was interrupted")]
struct InterruptedTransfer;

impl OpenUploads {
    /// Ends all transfers and cancels the open uploads, side by side: those to which a request
    /// sends data once that has ended. Waits for the answers of the servers, 1.5 s at most.
    pub fn cancel_all(&self) {
        let deadline = Instant::now() + CANCEL_TIME;
        locked(&self.0.uploads).is_ending = true;
        loop {
            let idle = {
                let mut uploads = locked(&self.0.uploads);
                let idle: Vec<_> = uploads.open.extract_if(|_, entry| !entry.is_busy).collect();
                uploads.pending += idle.len();
                idle
            };
            idle.into_iter().for_each(|(_, entry)| drop(UploadRequest(self.clone()).cancel(entry.cancel)));
            let uploads = locked(&self.0.uploads);
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { break };
            if uploads.pending == 0 && uploads.open.is_empty() {
                break;
            }
            if uploads.open.values().all(|entry| entry.is_busy) {
                drop(self.0.changed.wait_timeout(uploads, left));
            }
        }
    }

    /// Returns true once the transfers end.
    pub fn is_ending(&self) -> bool {
        locked(&self.0.uploads).is_ending
    }

    /// Fails once the transfers end.
    pub(crate) fn check(&self) -> io::Result<()> {
        if self.is_ending() { Err(ending()) } else { Ok(()) }
    }

    /// Announces a request that opens an upload. Fails once the transfers end.
    pub(crate) fn begin(&self) -> io::Result<UploadRequest> {
        let mut uploads = locked(&self.0.uploads);
        if uploads.is_ending {
            return Err(ending());
        }
        uploads.pending += 1;
        Ok(UploadRequest(self.clone()))
    }
}

fn ending() -> io::Error {
    io::Error::other(InterruptedTransfer)
}

/// A counted request that opens or cancels an upload.
pub(crate) struct UploadRequest(OpenUploads);

impl UploadRequest {
    /// Returns the upload that the request opened.
    pub(crate) fn opened(self, cancel: CancelUpload) -> OpenUpload {
        let mut uploads = locked(&self.0.0.uploads);
        uploads.count += 1;
        let id = uploads.count;
        uploads.open.insert(id, OpenEntry { cancel, is_busy: false });
        OpenUpload { all: self.0.clone(), id }
    }

    /// Cancels an upload on a thread of its own. The receiver is told when that is done.
    fn cancel(self, cancel: CancelUpload) -> Receiver<()> {
        let (ended, receiver) = channel();
        let canceling = move || {
            cancel();
            drop(self);
            let _ = ended.send(());
        };
        // Without a thread, the server removes the upload after some time.
        let _ = start(canceling);
        receiver
    }
}

impl Drop for UploadRequest {
    fn drop(&mut self) {
        locked(&self.0.0.uploads).pending -= 1;
        self.0.0.changed.notify_all();
    }
}

/// An open upload, which is canceled when it is dropped.
pub(crate) struct OpenUpload {
    all: OpenUploads,
    id: u64,
}

impl OpenUpload {
    /// Replaces the way in which the upload is canceled. No request sends data to it.
    pub(crate) fn moved(&self, cancel: CancelUpload) {
        locked(&self.all.0.uploads).open.insert(self.id, OpenEntry { cancel, is_busy: false });
        self.all.0.changed.notify_all();
    }

    /// Records whether a request sends data to the upload.
    pub(crate) fn set_busy(&self, is_busy: bool) {
        if let Some(entry) = locked(&self.all.0.uploads).open.get_mut(&self.id) {
            entry.is_busy = is_busy;
        }
        self.all.0.changed.notify_all();
    }

    /// Records that the upload is complete.
    pub(crate) fn complete(self) {
        locked(&self.all.0.uploads).open.remove(&self.id);
        self.all.0.changed.notify_all();
    }
}

impl Drop for OpenUpload {
    fn drop(&mut self) {
        let open = {
            let mut uploads = locked(&self.all.0.uploads);
            let open = uploads.open.remove(&self.id);
            uploads.pending += usize::from(open.is_some());
            open
        };
        if let Some(entry) = open {
            let canceled = UploadRequest(self.all.clone()).cancel(entry.cancel);
            let _ = canceled.recv_timeout(CANCEL_TIME);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread::sleep;

    use rbuild_testkit::{assert_recorded, no_remedy, variants};

    use super::*;

    fn counting(count: &Arc<AtomicU32>) -> CancelUpload {
        let count = count.clone();
        Box::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        })
    }

    #[test]
    fn each_upload_is_completed_or_canceled_once() {
        let (uploads, count) = (OpenUploads::default(), Arc::new(AtomicU32::new(0)));
        let canceled = || count.load(Ordering::Relaxed);
        uploads.begin().unwrap().opened(counting(&count)).complete();
        assert_eq!(canceled(), 0);
        drop(uploads.begin().unwrap().opened(counting(&count)));
        assert_eq!(canceled(), 1);
        let moved = uploads.begin().unwrap().opened(Box::new(|| panic!("the old place")));
        moved.moved(counting(&count));
        let (other, late) = (uploads.begin().unwrap().opened(counting(&count)), uploads.begin().unwrap());
        // The answer to a request arrives while the others are canceled.
        let start_late = count.clone();
        let answered = std::thread::spawn(move || {
            sleep(Duration::from_millis(200));
            drop(late.opened(counting(&start_late)));
        });
        uploads.cancel_all();
        assert_eq!(canceled(), 4);
        drop((moved, other));
        answered.join().unwrap();
        assert_eq!(canceled(), 4);
        assert!(uploads.begin().is_err() && uploads.check().is_err());
    }

    #[test]
    fn an_upload_is_canceled_after_the_request_that_sends_its_data() {
        for ends in [true, false] {
            let (uploads, count) = (OpenUploads::default(), Arc::new(AtomicU32::new(0)));
            let upload = uploads.begin().unwrap().opened(counting(&count));
            upload.set_busy(true);
            let canceling = {
                let uploads = uploads.clone();
                std::thread::spawn(move || uploads.cancel_all())
            };
            sleep(Duration::from_millis(300));
            assert_eq!(count.load(Ordering::Relaxed), 0);
            if ends {
                upload.set_busy(false);
            }
            canceling.join().unwrap();
            assert_eq!(count.load(Ordering::Relaxed), u32::from(ends));
        }
    }

    #[test]
    fn a_server_without_an_answer_is_not_waited_for_long() {
        let (uploads, slow) = (OpenUploads::default(), || Box::new(|| sleep(Duration::from_secs(9))));
        let start = Instant::now();
        let open: Vec<OpenUpload> = (0..9).map(|_| uploads.begin().unwrap().opened(slow())).collect();
        uploads.cancel_all();
        drop(open);
        assert!(start.elapsed() >= CANCEL_TIME && start.elapsed().as_millis() < 1900, "{:?}", start.elapsed());
    }

    #[test]
    fn the_message_of_an_ended_transfer_is_as_recorded() {
        assert_recorded!(
            "InterruptedTransfer",
            variants!(InterruptedTransfer).table(&[InterruptedTransfer], |e| e, no_remedy)
        );
    }
}
