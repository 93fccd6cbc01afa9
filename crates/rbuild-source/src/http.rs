//! HTTP downloads.

use std::io::Read;
use std::time::Duration;

use rbuild_remedy::Remedy;
use thiserror::Error;

/// A response whose body is being downloaded.
pub struct Fetched {
    /// The body. Reading fails if the connection closes before `size` bytes were received.
    pub body: Box<dyn Read + Send>,
    /// Size in bytes, if the server sent it.
    pub size: Option<u64>,
}

/// A failed download.
#[derive(Debug, Error)]
pub enum FetchError {
    #[error("{url}: the server returned HTTP status {status}")]
    Status { url: String, status: u16 },
    #[error("{url}")]
    Failed { url: String, source: Box<dyn std::error::Error + Send + Sync> },
}

impl FetchError {
    /// Returns a hint for the user.
    pub fn remedy(&self) -> Remedy {
        let text = match self {
            FetchError::Status { status: 401 | 403, .. } => "download the file and pass its path",
            FetchError::Status { status: 404 | 410, .. } => "check the address",
            FetchError::Status { .. } => "try again later, or download the file and pass its path",
            FetchError::Failed { .. } => return Remedy::CheckNetwork,
        };
        text.into()
    }
}

/// Timeout for connecting, and again for the start of the response.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Returns true for HTTP and HTTPS URLs.
pub fn is_url(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

/// Starts a download. Follows redirects, uses the proxies of the environment, and trusts the
/// certificates of the system.
///
/// # Errors
///
/// Returns an error if the server cannot be reached or does not return a success status.
#[tracing::instrument(target = "source", name = "fetch", level = "debug", skip_all)]
pub fn fetch(url: &str) -> Result<Fetched, FetchError> {
    let tls = ureq::tls::TlsConfig::builder().root_certs(ureq::tls::RootCerts::PlatformVerifier).build();
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .tls_config(tls)
        .timeout_connect(Some(TIMEOUT))
        .timeout_recv_response(Some(TIMEOUT))
        .user_agent(concat!("rbuild/", env!("CARGO_PKG_VERSION")))
        .build()
        .into();
    let failed = |e: ureq::Error| match e {
        ureq::Error::StatusCode(status) => FetchError::Status { url: url.to_string(), status },
        ureq::Error::Io(e) => FetchError::Failed { url: url.to_string(), source: e.into() },
        e => FetchError::Failed { url: url.to_string(), source: e.into() },
    };
    let answer = agent.get(url).call().map_err(failed)?;
    let body = answer.into_body();
    let size = body.content_length();
    let reader = FullBody { body: body.into_reader(), left: size };
    Ok(Fetched { body: Box::new(reader), size })
}

/// A reader that fails if the body ends early.
struct FullBody<R> {
    body: R,
    left: Option<u64>,
}

impl<R: Read> Read for FullBody<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let early = |left: u64| {
            let what = format!("the server closed the connection {left} bytes before the end");
            Err(std::io::Error::new(std::io::ErrorKind::ConnectionAborted, what))
        };
        match (self.body.read(buf), &mut self.left) {
            (Ok(0), Some(left)) if *left > 0 && !buf.is_empty() => early(*left),
            (Err(_), Some(left)) if *left > 0 => early(*left),
            (Ok(n), Some(left)) => {
                *left = left.saturating_sub(n as u64);
                Ok(n)
            }
            (other, _) => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    /// Answers each connection with the next response, whatever the request.
    fn serve(answers: Vec<String>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for answer in answers {
                let (mut connection, _) = listener.accept().unwrap();
                let mut request = [0; 1024];
                let _ = connection.read(&mut request).unwrap();
                connection.write_all(answer.as_bytes()).unwrap();
            }
        });
        format!("http://{address}/file.tar")
    }

    #[test]
    fn truncated_downloads_fail() {
        let whole = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
        let short = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nhello";
        let moved = "HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let gone = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let url = serve([moved, whole, short, gone].map(String::from).to_vec());
        let mut text = String::new();
        let mut fetched = fetch(&url).unwrap();
        fetched.body.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), fetched.size), ("hello", Some(5)));
        fetch(&url).unwrap().body.read_to_string(&mut text).unwrap_err();
        assert!(matches!(fetch(&url), Err(FetchError::Status { status: 404, .. })));
        let refused = fetch("http://127.0.0.1:1/x").err().unwrap();
        assert!(
            matches!(refused, FetchError::Failed { .. }) && refused.to_string().contains("127.0.0.1:1"),
            "{refused}"
        );
    }

    #[test]
    fn messages_are_as_recorded() {
        let url = || "https://a.io/x".to_string();
        let status = |status| FetchError::Status { url: url(), status };
        let failed = FetchError::Failed { url: url(), source: std::io::Error::from_raw_os_error(111).into() };
        let errors = [status(401), status(404), status(500), failed];
        let variants = variants!(FetchError { Status, Failed });
        assert_recorded!("FetchError", variants.table(&errors, |e| e, |e| Some(e.remedy())));
    }
}
