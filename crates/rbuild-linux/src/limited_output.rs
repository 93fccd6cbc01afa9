//! Output of a child that is given a limited time.

use std::io::{self, PipeReader, Read};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

/// Output and end of a child.
#[derive(Debug, PartialEq, Eq)]
pub struct LimitedOutput {
    /// The beginning of the output.
    pub bytes: Vec<u8>,
    /// True if the child has ended in time.
    pub has_ended: bool,
}

/// Reads the output of a child until it has ended, at most for `time`. Keeps the first `limit`
/// bytes, and discards the rest. `child` is a pidfd. The caller has closed its copy of the other
/// end of the pipe.
///
/// # Errors
///
/// Fails if the pipe cannot be read.
pub fn limited_output(
    mut pipe: &PipeReader,
    child: &OwnedFd,
    limit: usize,
    time: Duration,
) -> io::Result<LimitedOutput> {
    rustix::fs::fcntl_setfl(pipe, OFlags::NONBLOCK)?;
    let began = Instant::now();
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 16 << 10]);
    let mut is_open = true;
    loop {
        let left = time.saturating_sub(began.elapsed());
        let timeout =
            Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        let mut fds = vec![PollFd::new(child, PollFlags::IN)];
        if is_open {
            fds.push(PollFd::new(pipe, PollFlags::IN));
        }
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let has_ended = !fds[0].revents().is_empty();
        loop {
            match pipe.read(&mut buffer) {
                Ok(0) => {
                    is_open = false;
                    break;
                }
                Ok(read) => bytes.extend_from_slice(&buffer[..read.min(limit - bytes.len())]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
            if began.elapsed() >= time {
                break;
            }
        }
        if has_ended || began.elapsed() >= time {
            return Ok(LimitedOutput { bytes, has_ended });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::process::pidfd;

    #[test]
    fn output_and_time_are_limited() {
        for (script, time, expected, has_ended) in [
            ("echo abcdefghij; exit 3", 20_000, "abcde", true),
            ("echo ab; exec sleep 100", 300, "ab\n", false),
            ("exec yes", 200, "y\ny\ny", false),
            // A process of the background keeps the pipe open.
            ("sleep 2 & echo ab", 20_000, "ab\n", true),
        ] {
            let (reader, writer) = io::pipe().unwrap();
            let mut child =
                Command::new("sh").args(["-c", script]).stdout(writer).stdin(Stdio::null()).spawn().unwrap();
            let process = pidfd(child.id()).unwrap();
            let output = limited_output(&reader, &process, 5, Duration::from_millis(time)).unwrap();
            let _ = child.kill();
            child.wait().unwrap();
            let bytes = expected.as_bytes().to_vec();
            assert_eq!(output, LimitedOutput { bytes, has_ended }, "{script}");
        }
    }
}
