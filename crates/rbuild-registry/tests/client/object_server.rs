//! A small object store on a loopback address, which speaks the protocols of S3 and Azure. It
//! verifies signatures and conditions strictly.

use std::collections::BTreeMap;
use std::io::{BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::http_request::{self, HttpRequest, decode};

pub const KEY_ID: &str = "AKIDEXAMPLE";
pub const SECRET: &str = "sEcRet/kEy+of=tests";
pub const SESSION: &str = "token-of-a-session";
/// The key of the Azure account `account`.
pub const ACCOUNT_KEY: &str = "a2V5LW9mLXRoZS1hY2NvdW50";
/// A shared access signature.
pub const SAS: &str = "sv=2021-08-06&sp=rwc&sig=sIgNaTuRe%2Bof%2Ftests";
/// The end of the token of a job of GitHub.
pub const TOKEN_END: &str = "sIgNaTuReOfToKeN";
/// The signatures of URLs of GitHub.
const URL_SIGNATURE: &str = "sig=sIgNeD";

/// A fault of the server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Status(u16),
    /// The status 429, with `Retry-After` in seconds.
    Throttle(u64),
    /// The connection is closed after that many bytes of the body.
    Cut(usize),
    /// A bit of the body is wrong.
    Flip,
    /// The answer comes later.
    Stall(Duration),
}

struct Rule {
    method: &'static str,
    path: String,
    fault: Fault,
    left: usize,
}

#[derive(Clone)]
pub struct Object {
    pub bytes: Vec<u8>,
    pub etag: String,
    pub modified: String,
}

#[derive(Default)]
pub struct State {
    /// Objects by path, which begins with the bucket.
    pub objects: BTreeMap<String, Object>,
    /// Buckets and containers that exist; all if it is empty.
    pub buckets: Vec<String>,
    pub log: Vec<String>,
    rules: Vec<Rule>,
    parts: BTreeMap<(String, String), Vec<u8>>,
    written: usize,
    /// Entries of GitHub's cache service by key: the number of the content, and true once it is
    /// complete.
    pub entries: BTreeMap<String, (usize, bool)>,
    /// URLs with numbers below this one are expired.
    pub expired: usize,
    urls: usize,
}

/// Returns a token of a job, which may write the scope `refs/heads/x`.
pub fn job_token() -> String {
    let scopes = r#"[{"Scope":"refs/heads/main","Permission":1},{"Scope":"refs/heads/x","Permission":3}]"#;
    let claims = serde_json::json!({"ac": scopes}).to_string();
    format!("e30.{}.{TOKEN_END}", BASE64_URL_SAFE_NO_PAD.encode(claims))
}

pub struct ObjectServer {
    pub address: String,
    state: Arc<Mutex<State>>,
}

struct Request {
    method: String,
    /// Path as it was sent.
    path: String,
    query: Vec<(String, String)>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

type Reply = (u16, Vec<(&'static str, String)>, Vec<u8>);

impl ObjectServer {
    pub fn start() -> ObjectServer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let state = shared.clone();
                std::thread::spawn(move || serve(&connection, &state));
            }
        });
        ObjectServer { address, state }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Makes the next `count` requests with that method and path fail.
    pub fn fault(&self, method: &'static str, path: &str, fault: Fault, count: usize) {
        self.state().rules.push(Rule { method, path: path.into(), fault, left: count });
    }

    /// Forgets all faults.
    pub fn behave(&self) {
        self.state().rules.clear();
    }

    /// Returns the requests since the last call.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state().log)
    }
}

impl Request {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn is_azure(&self) -> bool {
        self.headers.contains_key("x-ms-version")
    }
}

fn serve(connection: &TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(connection.try_clone().unwrap());
    while let Some(request) = read_request(&mut reader) {
        let (fault, (status, mut headers, mut body)) = {
            let mut state = state.lock().unwrap();
            let query: String = request.query.iter().map(|(name, _)| format!(" ?{name}")).collect();
            state.log.push(format!("{} {}{query}", request.method, decode(&request.path)));
            let path = decode(&request.path);
            let fits = |rule: &&mut Rule| rule.left > 0 && rule.method == request.method && path.contains(&rule.path);
            let fault = state.rules.iter_mut().find(fits).map(|rule| {
                rule.left -= 1;
                rule.fault
            });
            let reply = match fault {
                Some(Fault::Status(status)) => error(status, "InjectedFault"),
                Some(Fault::Throttle(seconds)) => {
                    let (status, mut headers, body) = error(429, "InjectedFault");
                    headers.push(("Retry-After", seconds.to_string()));
                    (status, headers, body)
                }
                _ if path.starts_with("/twirp/") => state.serve_job(&request, &path),
                _ => state.refusal(&request).unwrap_or_else(|| state.answer(&request, &path)),
            };
            (fault, reply)
        };
        if let Some(Fault::Stall(time)) = fault {
            std::thread::sleep(time);
        }
        if fault == Some(Fault::Flip) && !body.is_empty() {
            body[0] ^= 1;
        }
        let mut head = format!("HTTP/1.1 {status} -\r\n");
        if request.method != "HEAD" || !headers.iter().any(|(name, _)| *name == "Content-Length") {
            headers.push(("Content-Length", body.len().to_string()));
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        let sent = match fault {
            Some(Fault::Cut(most)) => &body[..most.min(body.len())],
            _ if request.method == "HEAD" => &[],
            _ => &body[..],
        };
        let mut connection = connection;
        let written = connection.write_all(head.as_bytes()).and_then(|()| connection.write_all(sent));
        if written.is_err() || matches!(fault, Some(Fault::Cut(_))) {
            let _ = connection.shutdown(std::net::Shutdown::Both);
            return;
        }
    }
}

impl State {
    /// Answers a request to GitHub's cache service.
    fn serve_job(&mut self, request: &Request, path: &str) -> Reply {
        if request.header("authorization") != format!("Bearer {}", job_token()) {
            return (401, Vec::new(), br#"{"code":"unauthenticated","msg":"bad token"}"#.to_vec());
        }
        let asked: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        assert_eq!(asked["version"].as_str().unwrap().len(), 64);
        let key = asked["key"].as_str().unwrap();
        self.urls += 1;
        let url = |number: usize| {
            format!("http://{}/gha/{number}?{URL_SIGNATURE}&number={}", request.header("host"), self.urls)
        };
        let answer = match path.rsplit('/').next().unwrap() {
            "GetCacheEntryDownloadURL" => {
                let prefixes = asked["restore_keys"].as_array().unwrap();
                let fits = |known: &str| {
                    known == key || prefixes.iter().any(|prefix| known.starts_with(prefix.as_str().unwrap()))
                };
                let found = self.entries.iter().filter(|(known, (_, is_complete))| *is_complete && fits(known));
                match found.max_by_key(|(known, (number, _))| (known.as_str() == key, *number)) {
                    Some((known, (number, _))) => {
                        serde_json::json!({"ok": true, "signed_download_url": url(*number), "matched_key": known})
                    }
                    None => serde_json::json!({"ok": false, "signed_download_url": "", "matched_key": ""}),
                }
            }
            "CreateCacheEntry" => {
                if self.entries.contains_key(key) {
                    return (409, Vec::new(), br#"{"code":"already_exists","msg":"it exists"}"#.to_vec());
                }
                let number = self.entries.len();
                self.entries.insert(key.to_string(), (number, false));
                serde_json::json!({"ok": true, "signed_upload_url": url(number)})
            }
            "FinalizeCacheEntryUpload" => {
                let (number, is_complete) = self.entries.get_mut(key).unwrap();
                let size = self.objects[&number.to_string()].bytes.len().to_string();
                *is_complete = asked["size_bytes"] == size;
                serde_json::json!({"ok": *is_complete, "entry_id": "1"})
            }
            _ => return error(404, "BadRoute"),
        };
        (200, Vec::new(), answer.to_string().into_bytes())
    }

    /// Returns the refusal of a request that is not signed correctly.
    fn refusal(&self, request: &Request) -> Option<Reply> {
        if request.path.starts_with("/gha/") {
            let number: usize = request.parameter("number").and_then(|number| number.parse().ok()).unwrap_or(0);
            let is_signed = request.parameter("sig") == Some("sIgNeD") && number > self.expired;
            return (!is_signed).then(|| error(403, "AuthenticationFailed"));
        }
        refusal(request)
    }

    fn answer(&mut self, request: &Request, path: &str) -> Reply {
        let is_azure = request.is_azure();
        // Azure's accounts are in the path here.
        let path = path.trim_start_matches('/');
        let path = if is_azure { path.split_once('/').map_or("", |(_, rest)| rest) } else { path };
        let bucket = path.split('/').next().unwrap_or_default().to_string();
        if request.parameter("restype") == Some("container") {
            self.buckets.push(bucket);
            return (201, Vec::new(), Vec::new());
        }
        if !self.buckets.is_empty() && !self.buckets.contains(&bucket) {
            return error(404, if is_azure { "ContainerNotFound" } else { "NoSuchBucket" });
        }
        match request.method.as_str() {
            "GET" | "HEAD" => self.read(request, path),
            "PUT" if request.parameter("partNumber").is_some() || request.parameter("comp") == Some("block") => {
                let part = request.parameter("partNumber").map(|number| format!("{number:0>5}"));
                let part = part.or_else(|| request.parameter("blockid").map(str::to_string)).unwrap();
                self.parts.insert((path.to_string(), part.clone()), request.body.clone());
                (if is_azure { 201 } else { 200 }, vec![("ETag", format!("\"part-{part}\""))], Vec::new())
            }
            "PUT" if request.parameter("comp") == Some("blocklist") => self.join(request, path),
            "PUT" if request.headers.contains_key("x-amz-copy-source") => {
                let source = decode(request.header("x-amz-copy-source").trim_start_matches('/'));
                assert_eq!((source.as_str(), request.header("x-amz-metadata-directive")), (path, "REPLACE"));
                let Some(object) = self.objects.get(path).cloned() else { return error(404, "NoSuchKey") };
                self.put(path, object.bytes);
                (200, Vec::new(), b"<CopyObjectResult/>".to_vec())
            }
            "PUT" => self.write(request, path),
            "POST" if request.parameter("uploads").is_some() => (
                200,
                Vec::new(),
                b"<InitiateMultipartUploadResult><UploadId>upload 1</UploadId></InitiateMultipartUploadResult>"
                    .to_vec(),
            ),
            "POST" => self.join(request, path),
            "DELETE" => (204, Vec::new(), Vec::new()),
            _ => error(405, "MethodNotAllowed"),
        }
    }

    fn put(&mut self, path: &str, bytes: Vec<u8>) -> String {
        self.written += 1;
        let etag = format!("\"v{}\"", self.written);
        let modified = httpdate::fmt_http_date(std::time::SystemTime::now());
        self.objects.insert(path.to_string(), Object { bytes, etag: etag.clone(), modified });
        etag
    }

    fn read(&self, request: &Request, path: &str) -> Reply {
        let Some(object) = self.objects.get(path) else {
            return error(404, if request.is_azure() { "BlobNotFound" } else { "NoSuchKey" });
        };
        let mut headers = vec![("ETag", object.etag.clone()), ("Last-Modified", object.modified.clone())];
        if request.method == "HEAD" {
            headers.push(("Content-Length", object.bytes.len().to_string()));
            return (200, headers, Vec::new());
        }
        let Some(range) = request.headers.get("range") else { return (200, headers, object.bytes.clone()) };
        let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        let first: usize = first.parse().unwrap();
        let last = last.parse().unwrap_or(usize::MAX).min(object.bytes.len() - 1);
        headers.push(("Content-Range", format!("bytes {first}-{last}/{}", object.bytes.len())));
        (206, headers, object.bytes[first..=last].to_vec())
    }

    fn write(&mut self, request: &Request, path: &str) -> Reply {
        if request.is_azure() && request.header("x-ms-blob-type") != "BlockBlob" {
            return error(400, "MissingRequiredHeader");
        }
        let known = self.objects.get(path).map(|object| object.etag.as_str());
        let if_match = request.headers.get("if-match").map(String::as_str);
        if (request.header("if-none-match") == "*" && known.is_some()) || (if_match.is_some() && if_match != known) {
            return error(412, "PreconditionFailed");
        }
        let etag = self.put(path, request.body.clone());
        (if request.is_azure() { 201 } else { 200 }, vec![("ETag", etag)], Vec::new())
    }

    /// Joins the parts of an upload in the order of a list.
    fn join(&mut self, request: &Request, path: &str) -> Reply {
        let list = String::from_utf8(request.body.clone()).unwrap();
        let names: Vec<String> = list
            .split(if request.is_azure() { "<Latest>" } else { "<PartNumber>" })
            .skip(1)
            .map(|rest| rest.split('<').next().unwrap().to_string())
            .map(|name| if request.is_azure() { name } else { format!("{name:0>5}") })
            .collect();
        let mut bytes = Vec::new();
        for name in names {
            match self.parts.remove(&(path.to_string(), name)) {
                Some(part) => bytes.extend(part),
                None => return error(400, "InvalidPart"),
            }
        }
        let etag = self.put(path, bytes);
        (if request.is_azure() { 201 } else { 200 }, vec![("ETag", etag)], b"<CompleteMultipartUploadResult/>".to_vec())
    }
}

fn error(status: u16, code: &str) -> Reply {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>the reason</Message></Error>");
    (status, vec![("x-ms-error-code", code.to_string())], body.into_bytes())
}

/// Returns the refusal of a request that is not signed correctly.
fn refusal(request: &Request) -> Option<Reply> {
    if request.is_azure() {
        let is_signed = request.header("authorization") == azure_authorization(request);
        let sas = SAS.split('&').all(|pair| {
            let (name, value) = pair.split_once('=').unwrap();
            request.parameter(name) == Some(decode(value).as_str())
        });
        return (!is_signed && !sas).then(|| error(403, "AuthenticationFailed"));
    }
    if request.header("authorization").is_empty() {
        return Some(error(403, "AccessDenied"));
    }
    let hash = hex(&Sha256::digest(&request.body));
    if request.header("x-amz-content-sha256") != hash {
        return Some(error(400, "XAmzContentSHA256Mismatch"));
    }
    let session = request.header("x-amz-security-token");
    let is_own = session.is_empty() || session == SESSION;
    (!is_own || request.header("authorization") != aws_authorization(request))
        .then(|| error(403, "SignatureDoesNotMatch"))
}

/// Returns the only correct value of `Authorization` for a request to S3.
fn aws_authorization(request: &Request) -> String {
    let given = request.header("authorization");
    let region = given.split('/').nth(2).unwrap_or_default();
    let moment = request.header("x-amz-date");
    let day = moment.get(..8).unwrap_or_default();
    let is_signed =
        |name: &&String| *name == "host" || name.starts_with("x-amz-") || name.starts_with("if-") || *name == "range";
    let names: Vec<&String> = request.headers.keys().filter(is_signed).collect();
    let lines: String = names.iter().map(|name| format!("{name}:{}\n", request.header(name))).collect();
    let names = names.into_iter().cloned().collect::<Vec<_>>().join(";");
    let mut query: Vec<String> =
        request.query.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
    query.sort();
    let Request { method, path, .. } = request;
    let canonical =
        format!("{method}\n{path}\n{}\n{lines}\n{names}\n{}", query.join("&"), request.header("x-amz-content-sha256"));
    let scope = format!("{day}/{region}/s3/aws4_request");
    let text = format!("AWS4-HMAC-SHA256\n{moment}\n{scope}\n{}", hex(&Sha256::digest(canonical.as_bytes())));
    let mut key = format!("AWS4{SECRET}").into_bytes();
    for part in [day, region, "s3", "aws4_request", &text] {
        key = mac(&key, part);
    }
    format!("AWS4-HMAC-SHA256 Credential={KEY_ID}/{scope},SignedHeaders={names},Signature={}", hex(&key))
}

fn azure_authorization(request: &Request) -> String {
    let length = request.header("content-length").trim_matches('0');
    let length = if length.is_empty() { "" } else { request.header("content-length") };
    let standard = ["content-md5", "content-type", "date", "if-modified-since", "if-match", "if-none-match"];
    let standard: String = standard.iter().map(|name| format!("{}\n", request.header(name))).collect();
    let own: String = request
        .headers
        .iter()
        .filter(|(name, _)| name.starts_with("x-ms-"))
        .map(|(name, value)| format!("{name}:{value}\n"))
        .collect();
    let mut query: Vec<String> = request.query.iter().map(|(name, value)| format!("\n{name}:{value}")).collect();
    query.sort();
    let text = format!(
        "{}\n\n\n{length}\n{standard}\n{}\n{own}/account{}{}",
        request.method,
        request.header("range"),
        request.path,
        query.concat()
    );
    let key = BASE64_STANDARD.decode(ACCOUNT_KEY).unwrap();
    format!("SharedKey account:{}", BASE64_STANDARD.encode(mac(&key, &text)))
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).unwrap();
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { (byte as char).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let HttpRequest { method, path, query, headers, body } = http_request::read_request(reader)?;
    let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(name), decode(value))
    });
    Some(Request { method, path, query: pairs.collect(), headers, body })
}
