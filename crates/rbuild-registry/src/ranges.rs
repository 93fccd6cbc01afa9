//! Download of a blob in ranges over several connections.
//!
//! The ranges are requested in order, and read in order. Those that arrive before their turn are
//! kept in memory: one for each connection, and one more.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use rbuild_image::BlobDigest;
use rbuild_linux::parallel::{locked, start};

use crate::blob_connections::CountedConnection;
use crate::blob_request::{BlobRequest, OpenRange};
use crate::error::RegistryProblem;
use crate::range_policy::RangePolicy;
use crate::session::EndpointSession;
use crate::stall::StallReader;

/// Size of a read in bytes.
const CHUNK: usize = 64 << 10;

/// The rest of a blob, which threads download in ranges.
pub(crate) struct Ranges {
    download: Arc<RangeDownload>,
    threads: usize,
}

struct RangeDownload {
    session: Arc<EndpointSession>,
    digest: BlobDigest,
    size: u64,
    range_policy: RangePolicy,
    state: Mutex<RangeState>,
    changed: Condvar,
}

struct RangeState {
    /// Beginning of the next range to request.
    next: u64,
    /// The ranges that were requested and not read completely, in order.
    ranges: VecDeque<Range>,
    /// Number of threads.
    threads: usize,
    /// True once a range could not be downloaded.
    has_failed: bool,
    /// True once no one reads any more.
    is_over: bool,
    /// URL that the endpoint redirected to.
    redirected: Option<String>,
}

/// A range of the blob.
struct Range {
    start: u64,
    size: usize,
    /// The bytes that have arrived.
    bytes: Vec<u8>,
    /// Number of bytes that were read.
    taken: usize,
}

/// The rest of the blob can be requested over one connection.
#[derive(Debug)]
pub(crate) struct RangesFailed;

impl Ranges {
    /// Starts to download the bytes of a blob of `size` bytes from `at`. `redirected` is the URL
    /// that the endpoint redirected the last request to. Returns `None` if no thread can be
    /// started, or if no second connection is allowed.
    pub(crate) fn start(
        session: &Arc<EndpointSession>,
        digest: BlobDigest,
        at: u64,
        size: u64,
        redirected: Option<String>,
    ) -> Option<Ranges> {
        let range_policy = session.shared().options.ranges;
        let state =
            RangeState { next: at, ranges: VecDeque::new(), threads: 0, has_failed: false, is_over: false, redirected };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let session = session.clone();
        let download = Arc::new(RangeDownload { session, digest, size, range_policy, state, changed });
        let mut ranges = Ranges { download, threads: 0 };
        // The first thread has the connection of the reader.
        let second = ranges.another()?;
        (ranges.start_thread(None) && ranges.start_thread(Some(second))).then_some(ranges)
    }

    /// Counts another connection, if one is allowed.
    fn another(&self) -> Option<CountedConnection> {
        let RangeDownload { session, range_policy, .. } = &*self.download;
        let total = session.endpoint.connections.map_or(range_policy.total, |most| most.min(range_policy.total));
        session.shared().blob_connections.another(total)
    }

    fn start_thread(&mut self, connection: Option<CountedConnection>) -> bool {
        let download = self.download.clone();
        locked(&download.state).threads += 1;
        let started = start(move || {
            let _connection = connection;
            // A panic must not leave the reader waiting.
            let _end = ThreadEnd(&download);
            download.run();
        });
        if started.is_err() {
            locked(&self.download.state).threads -= 1;
        }
        self.threads += usize::from(started.is_ok());
        started.is_ok()
    }

    /// Reads the next bytes, which must be some. Waits for them.
    ///
    /// # Errors
    ///
    /// Fails if the next bytes could not be downloaded.
    pub(crate) fn read(&mut self, buf: &mut [u8]) -> Result<usize, RangesFailed> {
        let (n, is_range_over) = self.download.take(buf)?;
        if is_range_over
            && self.threads < self.download.range_policy.connections
            && let Some(connection) = self.another()
        {
            self.start_thread(Some(connection));
        }
        Ok(n)
    }
}

impl Drop for Ranges {
    fn drop(&mut self) {
        locked(&self.download.state).is_over = true;
        self.download.changed.notify_all();
    }
}

/// Notes the end of a thread.
struct ThreadEnd<'a>(&'a RangeDownload);

impl Drop for ThreadEnd<'_> {
    fn drop(&mut self) {
        let mut state = locked(&self.0.state);
        state.threads -= 1;
        state.has_failed |= std::thread::panicking();
        drop(state);
        self.0.changed.notify_all();
    }
}

impl RangeDownload {
    /// Downloads one range after another.
    fn run(&self) {
        while let Some((start, size)) = self.next() {
            if let Err(problem) = self.download(start, size) {
                let reason = rbuild_remedy::sentence(&problem);
                tracing::debug!(target: "registry", start, size, reason, "range failed");
                locked(&self.state).has_failed = true;
                return;
            }
        }
    }

    /// Waits until another range may be requested. Returns its beginning and size; `None` at the
    /// end.
    fn next(&self) -> Option<(u64, usize)> {
        let mut state = locked(&self.state);
        while !state.is_over && !state.has_failed && state.next < self.size {
            if state.ranges.len() <= state.threads {
                let start = state.next;
                let size = self.range_policy.range.min(self.size - start);
                state.next += size;
                let size = usize::try_from(size).unwrap_or(usize::MAX);
                state.ranges.push_back(Range { start, size, bytes: Vec::with_capacity(size), taken: 0 });
                return Some((start, size));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    fn download(&self, start: u64, size: usize) -> Result<(), RegistryProblem> {
        let OpenRange { body, .. } = self.open(start, start + size as u64)?;
        let idle = self.session.shared().http.retry_policy().idle;
        let mut body = StallReader::new(body, idle);
        let (mut chunk, mut left) = (vec![0; CHUNK.min(size)], size);
        let request = BlobRequest { digest: self.digest, at: start, size: self.size };
        while left > 0 {
            let most = chunk.len().min(left);
            let n = match body.read(&mut chunk[..most]) {
                Ok(0) => return Err(request.ended(&self.session.endpoint.host, start + (size - left) as u64)),
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(request.broken(&self.session.endpoint.host, start + (size - left) as u64, e)),
            };
            left -= n;
            let mut state = locked(&self.state);
            if state.is_over || state.has_failed {
                return Ok(());
            }
            if let Some(range) = state.ranges.iter_mut().find(|range| range.start == start) {
                range.bytes.extend_from_slice(&chunk[..n]);
            }
            drop(state);
            self.changed.notify_all();
        }
        // The end of the body returns the connection to the pool.
        let _ = body.read(&mut chunk);
        Ok(())
    }

    /// Opens a range, at the URL that the endpoint redirected to before, unless it has expired.
    fn open(&self, start: u64, end: u64) -> Result<OpenRange, RegistryProblem> {
        let request = BlobRequest { digest: self.digest, at: start, size: self.size };
        let redirected = locked(&self.state).redirected.clone();
        if let Some(url) = redirected
            && let Ok(open) = request.open_range(&self.session, Some(&url), end)
        {
            return Ok(open);
        }
        let open = request.open_range(&self.session, None, end)?;
        locked(&self.state).redirected.clone_from(&open.redirected);
        Ok(open)
    }

    /// Waits for bytes and takes them. Also returns true if they are the last ones of a range.
    fn take(&self, buf: &mut [u8]) -> Result<(usize, bool), RangesFailed> {
        let mut state = locked(&self.state);
        loop {
            if let Some(range) = state.ranges.front_mut()
                && range.taken < range.bytes.len()
            {
                let n = buf.len().min(range.bytes.len() - range.taken);
                buf[..n].copy_from_slice(&range.bytes[range.taken..range.taken + n]);
                range.taken += n;
                let is_over = range.taken == range.size;
                if is_over {
                    state.ranges.pop_front();
                    drop(state);
                    self.changed.notify_all();
                }
                return Ok((n, is_over));
            }
            // Without threads, nothing arrives any more.
            if state.has_failed || state.threads == 0 {
                return Err(RangesFailed);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
