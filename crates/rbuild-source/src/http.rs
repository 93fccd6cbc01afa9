//! Files that are fetched by HTTP.

use std::io::Read;
use std::time::Duration;

use thiserror::Error;

/// A file on its way.
pub struct Fetched {
    /// Ends in an error if the server closes the connection before the end of what it promised.
    pub body: Box<dyn Read + Send>,
    /// Bytes, if the server says it.
    pub size: Option<u64>,
}

#[derive(Debug, Error)]
pub enum FetchError {
    #[error("{url}: the server answers {status}")]
    Status { url: String, status: u16 },
    #[error("{url}: {reason}")]
    Failed { url: String, reason: String },
}

impl FetchError {
    /// What may help.
    pub fn remedy(&self) -> &'static str {
        match self {
            FetchError::Status { status: 401 | 403, .. } => {
                "the server wants to know who asks: fetch the file with curl, and give the file"
            }
            FetchError::Status { status: 404 | 410, .. } => "nothing is there: check the address",
            FetchError::Status { .. } => "try again later, or fetch the file by other means",
            FetchError::Failed { .. } => {
                "check the network and the name; a proxy is taken from http_proxy and https_proxy"
            }
        }
    }
}

/// How long a server may take to take the connection, and then to begin its answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether it looks like something to fetch.
pub fn is_url(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

/// Asks for a file. Redirects are followed, proxies taken from the environment, and certificates are those that the
/// machine trusts.
#[tracing::instrument(target = "source", name = "fetch", level = "debug", skip_all)]
pub fn fetch(url: &str) -> Result<Fetched, FetchError> {
    let tls = ureq::tls::TlsConfig::builder().root_certs(ureq::tls::RootCerts::PlatformVerifier).build();
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .tls_config(tls)
        .timeout_connect(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE))
        .user_agent(concat!("rbuild/", env!("CARGO_PKG_VERSION")))
        .build()
        .into();
    let failed = |e: ureq::Error| match e {
        ureq::Error::StatusCode(status) => FetchError::Status { url: url.to_string(), status },
        e => FetchError::Failed { url: url.to_string(), reason: e.to_string() },
    };
    let answer = agent.get(url).call().map_err(failed)?;
    let body = answer.into_body();
    let size = body.content_length();
    let reader = Whole { body: body.into_reader(), left: size };
    Ok(Fetched { body: Box::new(reader), size })
}

/// A body that may not end early.
struct Whole<R> {
    body: R,
    left: Option<u64>,
}

impl<R: Read> Read for Whole<R> {
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
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    /// Answers each connection with the next of these, whatever is asked.
    fn serve(answers: Vec<String>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for answer in answers {
                let (mut connection, _) = listener.accept().unwrap();
                let mut asked = [0; 1024];
                let _ = connection.read(&mut asked).unwrap();
                connection.write_all(answer.as_bytes()).unwrap();
            }
        });
        format!("http://{address}/file.tar")
    }

    #[test]
    fn files_come_whole_or_not_at_all() {
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
}
