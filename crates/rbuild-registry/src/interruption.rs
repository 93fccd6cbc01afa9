//! Reasons why a connection failed or broke.

use std::io;
use std::time::Duration;

use rbuild_remedy::counted;

/// The reason why a connection could not be made or ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Interruption {
    #[error("the host name does not exist")]
    NoHost,
    #[error("the server does not speak TLS")]
    NotTls,
    #[error("no connection within {} s", .0.as_secs())]
    NoConnection(Duration),
    #[error("no response within {} s", .0.as_secs())]
    NoResponse(Duration),
    /// The connection broke `left` bytes before the end of a blob.
    #[error("the connection broke {} before the end", counted(*left, "byte"))]
    Broken { left: u64, source: io::Error },
    /// The server closed the connection `left` bytes before the end of a blob.
    #[error("the connection ended {} before the end", counted(*left, "byte"))]
    Ended { left: u64 },
    /// The connection broke during the download of a file.
    #[error("the connection broke at byte {at}")]
    BrokenAt { at: u64, source: io::Error },
    /// The server closed the connection before the announced end of a file.
    #[error("the connection ended at byte {at} of {size}")]
    EndedAt { at: u64, size: u64 },
    /// The connection broke during the download of a document.
    #[error("the connection broke")]
    BrokenOff(#[source] io::Error),
    /// The bytes that arrived violate the protocol.
    #[error("the server's reply is malformed")]
    Malformed(#[source] io::Error),
    #[error("fewer than {least} bytes in {} s", idle.as_secs())]
    Stalled { least: u64, idle: Duration },
    #[error("the transfer took longer than {} s", .0.as_secs())]
    Slow(Duration),
}

impl Interruption {
    /// Returns the reason why a read failed: a violation of the protocol, or else the result of
    /// `broken`.
    pub fn of_read(e: io::Error, broken: impl FnOnce(io::Error) -> Interruption) -> Interruption {
        match e.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(ureq::Error::Protocol(_)) => Interruption::Malformed(e),
            _ => broken(e),
        }
    }
}

impl From<Interruption> for io::Error {
    fn from(interruption: Interruption) -> io::Error {
        io::Error::new(io::ErrorKind::TimedOut, interruption)
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, no_remedy, variants};

    use super::*;

    #[test]
    fn messages_are_as_recorded() {
        let reset = || io::Error::from_raw_os_error(104);
        let interruptions = [
            Interruption::NoHost,
            Interruption::NotTls,
            Interruption::NoConnection(Duration::from_secs(10)),
            Interruption::NoResponse(Duration::from_secs(60)),
            Interruption::Broken { left: 1, source: reset() },
            Interruption::Ended { left: 20 },
            Interruption::BrokenAt { at: 5, source: reset() },
            Interruption::EndedAt { at: 5, size: 25 },
            Interruption::BrokenOff(reset()),
            Interruption::Malformed(io::Error::other("chunk length cannot be read as a number")),
            Interruption::Stalled { least: 1024, idle: Duration::from_secs(60) },
            Interruption::Slow(Duration::from_secs(300)),
        ];
        let variants = variants!(Interruption {
            NoHost,
            NotTls,
            NoConnection,
            NoResponse,
            Broken,
            Ended,
            BrokenAt,
            EndedAt,
            BrokenOff,
            Malformed,
            Stalled,
            Slow,
        });
        assert_recorded!("Interruption", variants.table(&interruptions, |e| e, no_remedy));
    }
}
