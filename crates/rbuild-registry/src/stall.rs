//! Limits on the duration of transfers: a stalled or too slow transfer is an error.

use std::io::{self, ErrorKind, Read};
use std::time::{Duration, Instant};

use crate::interruption::Interruption;
use crate::retry_policy::RetryPolicy;

/// Minimum number of bytes that must be transferred within each period of the idle timeout. Without
/// it, a server that accepts or sends single bytes would never time out.
pub(crate) const TRICKLE: u64 = 1024;

/// Detects stalled transfers.
pub(crate) struct StallDetector {
    idle: Duration,
    since: Instant,
    moved: u64,
}

impl StallDetector {
    pub(crate) fn new(idle: Duration) -> StallDetector {
        StallDetector { idle, since: Instant::now(), moved: 0 }
    }

    /// Counts bytes. Returns false if too few were transferred within a period.
    pub(crate) fn progresses(&mut self, bytes: u64) -> bool {
        self.moved += bytes;
        if self.since.elapsed() < self.idle {
            return true;
        }
        let enough = self.moved >= TRICKLE;
        (self.since, self.moved) = (Instant::now(), 0);
        enough
    }

    /// Returns the reason of a failure.
    pub(crate) fn interruption(&self) -> Interruption {
        Interruption::Stalled { least: TRICKLE, idle: self.idle }
    }
}

/// A reader that fails if it is not read fast enough. Used for request bodies, which a server may
/// accept too slowly.
pub(crate) struct StallReader<R> {
    inner: R,
    stall: StallDetector,
}

impl<R: Read> StallReader<R> {
    pub(crate) fn new(inner: R, idle: Duration) -> StallReader<R> {
        StallReader { inner, stall: StallDetector::new(idle) }
    }
}

impl<R: Read> Read for StallReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        if n == 0 || self.stall.progresses(n as u64) { Ok(n) } else { Err(self.stall.interruption().into()) }
    }
}

/// Reads a document within the time for a whole operation. Returns at most `limit` + 1 bytes; the
/// additional byte shows that the limit is exceeded.
pub(crate) fn read_document(source: impl Read, limit: u64, retry_policy: RetryPolicy) -> io::Result<Vec<u8>> {
    let (start, mut stall) = (Instant::now(), StallDetector::new(retry_policy.idle));
    let (mut source, mut bytes, mut part) = (source.take(limit.saturating_add(1)), Vec::new(), [0; 8 << 10]);
    loop {
        let n = match source.read(&mut part) {
            Ok(0) => return Ok(bytes),
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            other => other?,
        };
        bytes.extend_from_slice(&part[..n]);
        if !stall.progresses(n as u64) {
            return Err(stall.interruption().into());
        }
        if start.elapsed() > retry_policy.whole {
            return Err(Interruption::Slow(retry_policy.whole).into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Yields at most that many bytes per read, after a pause.
    struct Slow(usize, Duration);

    impl Read for Slow {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            std::thread::sleep(self.1);
            Ok(self.0.min(buf.len()))
        }
    }

    #[test]
    fn documents_end_in_time() {
        let retry_policy = RetryPolicy {
            idle: Duration::from_millis(50),
            whole: Duration::from_millis(300),
            ..RetryPolicy::default()
        };
        let pause = Duration::from_millis(5);
        let reason = |source| read_document(source, u64::MAX, retry_policy).unwrap_err().to_string();
        assert!(reason(Slow(1, pause)).contains("fewer than 1024 bytes"));
        assert!(reason(Slow(4000, pause)).contains("took longer than"));
        assert_eq!(read_document(Slow(10, Duration::ZERO), 99, retry_policy).unwrap().len(), 100);
        let mut taken = StallReader::new(Slow(1, pause), retry_policy.idle);
        assert_eq!(io::copy(&mut taken, &mut io::sink()).unwrap_err().kind(), ErrorKind::TimedOut);
    }
}
