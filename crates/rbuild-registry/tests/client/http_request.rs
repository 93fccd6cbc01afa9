//! Requests as the test servers receive them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;

pub struct HttpRequest {
    pub method: String,
    /// Path as it was sent.
    pub path: String,
    /// Query as it was sent.
    pub query: String,
    /// Headers, with names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

/// Reads the next request of a connection. Returns `None` at the end of the connection, even within
/// a request.
#[allow(dead_code, reason = "some servers read head and body separately")]
pub fn read_request(reader: &mut BufReader<TcpStream>) -> Option<HttpRequest> {
    let mut request = read_head(reader)?;
    read_body(reader, &mut request, || {}).then_some(request)
}

/// Reads the next request of a connection, without its body.
pub fn read_head(reader: &mut BufReader<TcpStream>) -> Option<HttpRequest> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_string(), words.next()?.to_string());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_string());
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    Some(HttpRequest { method, path: path.to_string(), query: query.to_string(), headers, body: Vec::new() })
}

/// Reads the body of a request. Calls `pause` before each piece of it. Returns false if the
/// connection ends before.
pub fn read_body(reader: &mut BufReader<TcpStream>, request: &mut HttpRequest, pause: impl Fn()) -> bool {
    let HttpRequest { headers, body, .. } = request;
    if let Some(length) = headers.get("content-length").and_then(|length| length.parse::<u64>().ok()) {
        read_pieces(reader, length, body, &pause)
    } else {
        !headers.contains_key("transfer-encoding") || read_chunks(reader, body, &pause).is_some()
    }
}

fn read_pieces(reader: &mut BufReader<TcpStream>, length: u64, body: &mut Vec<u8>, pause: &impl Fn()) -> bool {
    let mut left = length;
    while left > 0 {
        pause();
        match reader.take(left.min(16 << 10)).read_to_end(body) {
            Ok(n @ 1..) => left -= n as u64,
            _ => return false,
        }
    }
    true
}

/// Reads a body in chunks of the transfer encoding.
fn read_chunks(reader: &mut BufReader<TcpStream>, body: &mut Vec<u8>, pause: &impl Fn()) -> Option<()> {
    let mut size = 1;
    while size > 0 {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        size = u64::from_str_radix(line.trim_end(), 16).ok()?;
        read_pieces(reader, size, body, pause).then_some(())?;
        reader.read_line(&mut line).ok()?;
    }
    Some(())
}

/// Decodes a text with percent signs.
pub fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        rest = match (first, hex) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                &tail[2..]
            }
            (byte, _) => {
                bytes.push(*byte);
                tail
            }
        };
    }
    String::from_utf8(bytes).unwrap()
}
