//! A test registry on a loopback address with injectable faults.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rbuild_image::BlobDigest;

mod answers;

use crate::http_request::{self, HttpRequest, decode};

/// A misbehavior.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Answers with this status, and `Retry-After` in seconds.
    Status(u16, Option<u64>),
    /// Closes the connection after this number of bytes of the body.
    Cut(usize),
    /// Ignores `Range`.
    NoRange,
    /// Refuses requests with `Range`.
    #[allow(dead_code, reason = "for the tests of the client")]
    RefusedRange,
    /// Sends the client to the same path of another server.
    Redirect(String),
    /// Changes the first byte of the body.
    Flip,
    /// Changes the last byte of the body.
    #[allow(dead_code, reason = "for the end-to-end tests")]
    FlipLast,
    /// Holds the last byte of the body back until the file exists, for a minute at most.
    #[allow(dead_code, reason = "for the end-to-end tests")]
    Hold(std::path::PathBuf),
    /// Refuses bodies of more bytes with 413.
    Most(usize),
    /// Omits a header.
    Without(&'static str),
    /// Waits before the answer.
    Stall(Duration),
    /// Sends the body byte by byte, with this pause.
    Trickle(Duration),
    /// Refuses with a text that repeats the Authorization of the request, and its password.
    Echo(&'static str),
    /// Refuses requests that have an Authorization with 403.
    Forbid,
    /// Adds a header.
    Header(&'static str, String),
}

/// A fault and the requests to which it applies.
pub struct NameRules {
    method: &'static str,
    path: String,
    fault: Fault,
    left: usize,
}

/// The protection of a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Access {
    Open,
    /// User and password.
    Basic(&'static str, &'static str),
    /// Tokens of its own server, for a user and password, each valid for this number of requests.
    Token(&'static str, &'static str, usize),
}

#[derive(Default)]
pub struct State {
    pub blobs: HashMap<(String, BlobDigest), Vec<u8>>,
    /// The `Range` headers of requests for blobs.
    pub ranges: Vec<String>,
    pub manifests: HashMap<(String, String), (String, Vec<u8>)>,
    /// Manifests that name missing blobs are refused, as most registries do.
    pub checks_manifests: bool,
    /// Number of tags in a page of the list; 1000 if it is not set.
    #[allow(dead_code, reason = "some tests list tags")]
    pub page: Option<usize>,
    /// The registry has the API for referrers.
    #[allow(dead_code, reason = "some tests list referrers")]
    pub lists_referrers: bool,
    /// Number of requests whose answer has not begun.
    open: usize,
    /// Largest number of such requests.
    #[allow(dead_code, reason = "for the tests of the client")]
    pub most_open: usize,
    uploads: HashMap<String, Vec<u8>>,
    /// Uploads that have received data of a request without an answer, or with a broken connection.
    /// As in Docker's registry, their locations are no longer valid.
    invalid: HashSet<String>,
    /// Pause before each 16 KiB of a body.
    #[allow(dead_code, reason = "for the end-to-end tests")]
    pub pause: Duration,
    rules: Vec<NameRules>,
    /// Method, path and query of each request, and `+` if it has an Authorization.
    pub log: Vec<String>,
    /// Values of the header `X-Meta-Test` of all requests.
    #[allow(dead_code, reason = "for the end-to-end tests")]
    pub meta: Vec<String>,
    /// Scopes of token requests.
    pub scopes: Vec<String>,
    /// Tokens with their scopes and the number of requests for which they are valid.
    tokens: HashMap<String, (String, usize)>,
    serial: usize,
}

#[derive(Clone)]
pub struct Registry {
    pub address: String,
    state: Arc<Mutex<State>>,
    access: Access,
}

struct Request {
    method: String,
    path: String,
    query: HashMap<String, String>,
    scopes: Vec<String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
    /// True if the location of its upload was no longer valid when it arrived.
    is_invalid: bool,
}

impl Request {
    fn upload(&self) -> Option<&str> {
        upload_of(&self.path)
    }
}

/// Returns the upload that a path names.
fn upload_of(path: &str) -> Option<&str> {
    path.split_once("/blobs/uploads/").map(|(_, id)| id).filter(|id| !id.is_empty())
}

struct Response {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Response {
    fn new(status: u16) -> Response {
        Response { status, headers: Vec::new(), body: Vec::new() }
    }

    fn with(mut self, name: &str, value: impl ToString) -> Response {
        self.headers.push((name.to_string(), value.to_string()));
        self
    }

    fn body(mut self, body: impl Into<Vec<u8>>) -> Response {
        self.body = body.into();
        self
    }

    fn error(status: u16, code: &str) -> Response {
        Response::new(status).body(format!(r#"{{"errors":[{{"code":"{code}","message":"test"}}]}}"#))
    }
}

impl Registry {
    pub fn start(access: Access) -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let registry = Registry { address, state: Arc::default(), access };
        let server = registry.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let server = server.clone();
                std::thread::spawn(move || server.serve(connection));
            }
        });
        registry
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Injects a fault into the next `count` requests with that method and a path containing
    /// `path`.
    pub fn fault(&self, method: &'static str, path: &str, fault: Fault, count: usize) {
        self.state().rules.push(NameRules { method, path: path.to_string(), fault, left: count });
    }

    /// Cancels all faults.
    pub fn behave(&self) {
        self.state().rules.clear();
    }

    pub fn add_blob(&self, repository: &str, bytes: &[u8]) -> BlobDigest {
        let digest = BlobDigest::of(bytes);
        self.state().blobs.insert((repository.to_string(), digest), bytes.to_vec());
        digest
    }

    pub fn add_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) -> BlobDigest {
        let digest = BlobDigest::of(bytes);
        for name in [tag.to_string(), digest.to_string()] {
            self.state().manifests.insert((repository.to_string(), name), (media_type.to_string(), bytes.to_vec()));
        }
        digest
    }

    /// Returns the number of uploads that were neither completed nor canceled.
    pub fn open_uploads(&self) -> usize {
        self.state().uploads.len()
    }

    /// Removes the blobs and the open uploads, as some registries do in time.
    #[allow(dead_code, reason = "for the end-to-end tests")]
    pub fn forget_blobs(&self) {
        let mut state = self.state();
        state.blobs.clear();
        state.uploads.clear();
    }

    /// Returns the requests since the last call.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state().log)
    }

    fn serve(&self, connection: TcpStream) {
        let mut reader = BufReader::new(connection.try_clone().unwrap());
        while let Some(mut head) = http_request::read_head(&mut reader) {
            let upload = upload_of(&head.path).map(str::to_string);
            let authorized = if head.headers.contains_key("authorization") { " +" } else { "" };
            let line = format!("{} {}{authorized}", head.method, head.path);
            let meta = head.headers.get("x-meta-test").cloned();
            let is_invalid = {
                let mut state = self.state();
                state.log.push(line);
                state.meta.extend(meta);
                upload.as_ref().is_some_and(|id| state.invalid.contains(id))
            };
            let pause = || {
                let mut state = self.state();
                state.invalid.extend(upload.clone());
                let pause = state.pause;
                drop(state);
                std::thread::sleep(pause);
            };
            if !http_request::read_body(&mut reader, &mut head, pause) {
                return;
            }
            let request = Request { is_invalid, ..parse(head) };
            let faults = self.faults(&request);
            if !self.answer(&request, &faults, &connection) {
                return;
            }
        }
    }

    fn faults(&self, request: &Request) -> Vec<Fault> {
        let mut state = self.state();
        let fits =
            |rule: &&mut NameRules| rule.left > 0 && rule.method == request.method && request.path.contains(&rule.path);
        let met = state.rules.iter_mut().filter(fits).map(|rule| {
            rule.left -= 1;
            rule.fault.clone()
        });
        met.collect()
    }

    /// Returns the response of a fault, which replaces that of the registry.
    fn faulty_response(request: &Request, faults: &[Fault]) -> Option<Response> {
        let mut response = None;
        for fault in faults {
            match fault {
                Fault::Status(status, after) => {
                    let answer = Response::error(*status, "FAULT");
                    response = Some(match after {
                        Some(seconds) => answer.with("Retry-After", seconds),
                        None => answer,
                    });
                }
                Fault::Redirect(to) => {
                    response = Some(Response::new(307).with("Location", format!("http://{to}{}?sig=s", request.path)));
                }
                Fault::Echo(password) => {
                    let sent = request.headers.get("authorization").cloned().unwrap_or_default();
                    let text =
                        format!("\u{1b}[31mdid not like Authorization: {sent} with {password}, token-1 or refresh");
                    response = Some(Response::new(403).body(text));
                }
                Fault::RefusedRange if request.headers.contains_key("range") => {
                    response = Some(Response::error(416, "RANGE"));
                }
                Fault::Forbid if request.headers.contains_key("authorization") => {
                    response = Some(Response::error(403, "DENIED"));
                }
                Fault::Most(bytes) if request.body.len() > *bytes => response = Some(Response::error(413, "SIZE")),
                Fault::Stall(time) => std::thread::sleep(*time),
                _ => {}
            }
        }
        response
    }

    fn note_open(&self) {
        let mut state = self.state();
        state.open += 1;
        state.most_open = state.most_open.max(state.open);
    }

    /// Answers a request. Returns false if the connection is to be closed.
    fn answer(&self, request: &Request, faults: &[Fault], mut connection: &TcpStream) -> bool {
        self.note_open();
        let mut response = Self::faulty_response(request, faults)
            .unwrap_or_else(|| self.respond(request, faults.contains(&Fault::NoRange)));
        {
            let mut state = self.state();
            state.open -= 1;
            if let Some(id) = request.upload().filter(|_| !request.is_invalid) {
                state.invalid.remove(id);
            }
        }
        let (mut cut, mut pause, mut held) = (None, None, None);
        for fault in faults {
            match fault {
                Fault::Flip if !response.body.is_empty() => response.body[0] ^= 1,
                Fault::FlipLast => response.body.iter_mut().next_back().into_iter().for_each(|byte| *byte ^= 1),
                Fault::Hold(file) => held = Some(file),
                Fault::Without(name) => response.headers.retain(|(header, _)| !header.eq_ignore_ascii_case(name)),
                Fault::Header(name, value) => response.headers.push((name.to_string(), value.clone())),
                Fault::Cut(bytes) => cut = Some(*bytes),
                Fault::Trickle(time) => pause = Some(*time),
                _ => {}
            }
        }
        let mut head = format!("HTTP/1.1 {} -\r\nContent-Length: {}\r\n", response.status, response.body.len());
        for (name, value) in &response.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let body = if request.method == "HEAD" { &[][..] } else { &response.body[..] };
        let sent = &body[..cut.unwrap_or(body.len()).min(body.len())];
        let written = connection.write_all(head.as_bytes()).and_then(|()| send(connection, sent, pause, held));
        if cut.is_some() {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
        written.is_ok() && cut.is_none()
    }
}

/// Sends a body: byte by byte with pauses, or the last byte only once the file `held` exists.
fn send(
    mut connection: &TcpStream,
    sent: &[u8],
    pause: Option<Duration>,
    held: Option<&std::path::PathBuf>,
) -> std::io::Result<()> {
    if let Some(pause) = pause {
        for byte in sent {
            connection.write_all(&[*byte])?;
            std::thread::sleep(pause);
        }
        return Ok(());
    }
    let (now, later) = sent.split_at(sent.len() - usize::from(held.is_some() && !sent.is_empty()));
    connection.write_all(now)?;
    if let Some(file) = held {
        let start = std::time::Instant::now();
        while !file.exists() && start.elapsed().as_secs() < 60 {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    connection.write_all(later)
}

fn parse(request: HttpRequest) -> Request {
    let HttpRequest { method, path, query, headers, body } = request;
    let form = if headers.get("content-type").is_some_and(|t| t.contains("form")) {
        String::from_utf8_lossy(&body).into_owned()
    } else {
        String::new()
    };
    let pairs: Vec<(String, String)> = [&query, &form]
        .iter()
        .flat_map(|text| text.split('&'))
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_string(), decode(value)))
        .collect();
    let scopes = pairs.iter().filter(|(name, _)| name == "scope").map(|(_, value)| value.clone()).collect();
    Request { method, path, query: pairs.into_iter().collect(), scopes, headers, body, is_invalid: false }
}
