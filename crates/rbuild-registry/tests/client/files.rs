//! A web server with files on a loopback address, with injectable faults.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// A file, and settings for serving it.
#[derive(Debug, Clone, Default)]
pub struct ServedFile {
    pub body: Vec<u8>,
    pub etag: Option<&'static str>,
    pub modified: Option<&'static str>,
    pub headers: Vec<(&'static str, String)>,
    /// The value of `Authorization` that it requires.
    pub login: Option<&'static str>,
    /// The URL to which requests are redirected.
    pub moved: Option<String>,
    /// Requests with `Range` or conditions are answered like others.
    pub plain: bool,
    /// Sent without a length.
    pub chunked: bool,
    /// Ranges are sent regardless of `If-Range`.
    pub any_range: bool,
}

impl ServedFile {
    pub fn new(body: impl Into<Vec<u8>>) -> ServedFile {
        ServedFile { body: body.into(), ..ServedFile::default() }
    }

    pub fn tagged(body: impl Into<Vec<u8>>, etag: &'static str) -> ServedFile {
        ServedFile { etag: Some(etag), ..ServedFile::new(body) }
    }

    pub fn dated(body: impl Into<Vec<u8>>, modified: &'static str) -> ServedFile {
        ServedFile { modified: Some(modified), ..ServedFile::new(body) }
    }
}

/// A misbehavior.
#[derive(Debug, Clone)]
pub enum Trouble {
    /// Answers with this status, and `Retry-After` in seconds.
    Status(u16, Option<u64>),
    /// Closes the connection after this number of bytes of the body.
    Cut(usize),
    /// Sends this number of bytes as if they were the whole body or range.
    Short(usize),
    /// Closes the connection like `Cut`, and then has another version, of which it sends ranges
    /// regardless of `If-Range`.
    Replace(usize, Box<ServedFile>),
    /// Waits in the middle of the body.
    Stall(Duration),
}

#[derive(Default)]
struct State {
    files: HashMap<String, ServedFile>,
    troubles: Vec<Trouble>,
    /// Method and path of each request, with the conditions and `+` if it has an Authorization.
    log: Vec<String>,
}

#[derive(Clone)]
pub struct FileServer {
    pub address: String,
    state: Arc<Mutex<State>>,
}

impl FileServer {
    pub fn start() -> FileServer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = FileServer { address, state: Arc::default() };
        let serving = server.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let server = serving.clone();
                std::thread::spawn(move || server.serve(&connection));
            }
        });
        server
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn put(&self, path: &str, file: ServedFile) {
        self.state().files.insert(path.to_string(), file);
    }

    pub fn remove(&self, path: &str) {
        self.state().files.remove(path);
    }

    /// Injects these faults into the next requests, one each.
    pub fn trouble(&self, troubles: impl IntoIterator<Item = Trouble>) {
        self.state().troubles = troubles.into_iter().collect();
    }

    /// Returns the requests since the last call.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state().log)
    }

    fn serve(&self, connection: &TcpStream) {
        let mut lines = BufReader::new(connection).lines();
        loop {
            let Some(Ok(first)) = lines.next() else { return };
            let mut headers = HashMap::new();
            for line in lines.by_ref() {
                match line.unwrap_or_default().split_once(':') {
                    Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.trim().to_string()),
                    None => break,
                };
            }
            if self.answer(connection, &first, &headers).is_none() {
                let _ = connection.shutdown(std::net::Shutdown::Both);
                return;
            }
        }
    }

    /// Answers a request. Returns `None` if the connection is to be closed.
    fn answer(&self, mut to: &TcpStream, first: &str, headers: &HashMap<String, String>) -> Option<()> {
        let header = |name: &str| headers.get(name).map(String::as_str);
        let mut words = first.split(' ');
        let (method, target) = (words.next()?, words.next()?);
        let conditions = ["if-none-match", "if-modified-since", "range", "if-range"];
        let mut entry = format!("{method} {target}");
        for name in conditions.into_iter().filter(|name| headers.contains_key(*name)) {
            entry.push_str(&format!(" {name}: {}", headers[name]));
        }
        entry.push_str(if headers.contains_key("authorization") { " +" } else { "" });
        let (file, trouble) = {
            let mut state = self.state();
            state.log.push(entry);
            let trouble = if state.troubles.is_empty() { None } else { Some(state.troubles.remove(0)) };
            (state.files.get(target).cloned(), trouble)
        };
        let mut reply = |status: u16, more: &str, length: usize| {
            write!(to, "HTTP/1.1 {status} x\r\nContent-Length: {length}\r\n{more}\r\n").ok()
        };
        if let Some(Trouble::Status(status, after)) = trouble {
            let more = after.map_or(String::new(), |seconds| format!("Retry-After: {seconds}\r\n"));
            return reply(status, &more, 0);
        }
        let Some(file) = file else { return reply(404, "", 0) };
        if file.login.is_some_and(|login| header("authorization") != Some(login)) {
            return reply(401, "", 0);
        }
        if let Some(url) = &file.moved {
            return reply(302, &format!("Location: {url}\r\n"), 0);
        }
        let mut more: String = file.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        more.extend(file.etag.map(|etag| format!("ETag: {etag}\r\n")));
        more.extend(file.modified.map(|date| format!("Last-Modified: {date}\r\n")));
        let current = file.etag.is_some() && header("if-none-match") == file.etag
            || file.modified.is_some() && header("if-modified-since") == file.modified;
        if current && !file.plain {
            return reply(304, &more, 0);
        }
        let from = header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        let from: usize =
            from.filter(|_| !file.plain && (file.any_range || header("if-range") == file.etag)).unwrap_or(0);
        let body = &file.body[from.min(file.body.len())..];
        if file.chunked && from == 0 {
            return send_chunks(to, &more, body, trouble.as_ref());
        }
        let body = if let Some(Trouble::Short(length)) = trouble { &body[..length] } else { body };
        if from > 0 {
            let range = format!("Content-Range: bytes {from}-{}/{}\r\n", file.body.len() - 1, file.body.len());
            reply(206, &format!("{more}{range}"), body.len())?;
        } else {
            reply(200, &more, body.len())?;
        }
        self.send(to, target, body, trouble)
    }

    /// Sends a body. Returns `None` if the connection is to be closed.
    fn send(&self, mut to: &TcpStream, target: &str, body: &[u8], trouble: Option<Trouble>) -> Option<()> {
        match trouble {
            Some(Trouble::Cut(at)) => {
                to.write_all(&body[..at.min(body.len())]).ok()?;
                None
            }
            Some(Trouble::Replace(at, next)) => {
                self.put(target, ServedFile { any_range: true, ..*next });
                to.write_all(&body[..at.min(body.len())]).ok()?;
                None
            }
            Some(Trouble::Stall(time)) => {
                let (first, rest) = body.split_at(body.len() / 2);
                to.write_all(first).ok()?;
                std::thread::sleep(time);
                to.write_all(rest).ok()
            }
            _ => to.write_all(body).ok(),
        }
    }
}

/// Sends a body in chunks. Returns `None` if the connection is to be closed.
fn send_chunks(mut to: &TcpStream, headers: &str, body: &[u8], trouble: Option<&Trouble>) -> Option<()> {
    write!(to, "HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n{headers}\r\n").ok()?;
    let mut sent = 0;
    for chunk in body.chunks(1000) {
        write!(to, "{:x}\r\n", chunk.len()).ok()?;
        to.write_all(chunk).ok()?;
        write!(to, "\r\n").ok()?;
        sent += chunk.len();
        if matches!(trouble, Some(Trouble::Cut(at)) if sent >= *at) {
            return None;
        }
    }
    write!(to, "0\r\n\r\n").ok()
}
