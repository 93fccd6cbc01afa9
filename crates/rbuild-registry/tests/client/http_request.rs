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
pub fn read_request(reader: &mut BufReader<TcpStream>) -> Option<HttpRequest> {
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
    let mut body = Vec::new();
    if let Some(length) = headers.get("content-length").and_then(|length| length.parse::<u64>().ok()) {
        let size = reader.take(length).read_to_end(&mut body).ok()?;
        if size as u64 != length {
            return None;
        }
    } else if headers.contains_key("transfer-encoding") {
        read_chunks(reader, &mut body)?;
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    Some(HttpRequest { method, path: path.to_string(), query: query.to_string(), headers, body })
}

/// Reads a body in chunks of the transfer encoding.
fn read_chunks(reader: &mut BufReader<TcpStream>, body: &mut Vec<u8>) -> Option<()> {
    let mut size = 1;
    while size > 0 {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        size = u64::from_str_radix(line.trim_end(), 16).ok()?;
        reader.take(size).read_to_end(body).ok()?;
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
