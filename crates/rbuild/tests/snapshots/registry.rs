//! A registry on a loopback address whose answers are lines of a case:
//!
//! `METHOD PATH STATUS [HEADER=VALUE…] [= BODY]`
//!
//! In all values, `$REGISTRY` is the host and port. Every other request is answered with status
//! 404.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

use crate::lab::words;

/// Starts a registry with these answers. Returns its host and port. The thread ends with the
/// process.
pub fn start(answers: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let answers = answers.replace("$REGISTRY", &host);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // The client may close the connection at any time.
            let _ = answer(stream, &answers);
        }
    });
    host
}

fn answer(stream: TcpStream, answers: &str) -> std::io::Result<()> {
    let mut first = [0];
    stream.peek(&mut first)?;
    if !first[0].is_ascii_uppercase() {
        // The handshake of TLS, which the client tries first.
        return Ok(());
    }
    let mut reader = BufReader::new(&stream);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        if header.trim().is_empty() {
            break;
        }
        if let Some(value) = header.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink())?;
    let wanted: Vec<&str> = request.split(' ').take(2).collect();
    let prefix = format!("{} ", wanted.join(" "));
    let line = answers.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or("404");
    let (head, body) = line.split_once(" = ").unwrap_or((line, ""));
    let parts = words(head);
    let mut reply = format!("HTTP/1.1 {} Reason\r\nconnection: close\r\n", parts[0]);
    for header in &parts[1..] {
        reply += &format!("{}\r\n", header.replacen('=', ": ", 1));
    }
    if !reply.contains("content-length") {
        reply += &format!("content-length: {}\r\n", body.len());
    }
    reply += "\r\n";
    if wanted[0] != "HEAD" {
        reply += body;
    }
    (&stream).write_all(reply.as_bytes())
}
