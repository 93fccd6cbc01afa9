//! Reading of archives that rbuild has written.

use std::process::{Command, Stdio};

/// Decompresses gzip.
pub fn unzipped(bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new("gzip").arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &bytes));
    let out = child.wait_with_output().unwrap();
    let _ = writer.join();
    out.stdout
}

/// Lists the entries of a tar: mode, owner, path and link of each.
pub fn listing(tar: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap().map(|e| {
        let e = e.unwrap();
        let h = e.header();
        let link = e.link_name().unwrap().map_or(String::new(), |l| format!(" -> {}", l.display()));
        let path = e.path().unwrap().display().to_string();
        format!("{:o} {}:{} {path}{link}", h.mode().unwrap(), h.uid().unwrap(), h.gid().unwrap())
    });
    entries.collect()
}

/// Returns the contents of the regular files of a tar, by path.
pub fn contents(tar: &[u8]) -> std::collections::HashMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap().map(|e| {
        let mut e = e.unwrap();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut e, &mut content).unwrap();
        (e.path().unwrap().display().to_string(), content)
    });
    entries.collect()
}
