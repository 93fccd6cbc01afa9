//! Text forms of results, for comparison line by line.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;

/// Returns a short description of the content.
pub fn shown(bytes: &[u8]) -> String {
    if bytes.len() <= 24 {
        return format!("\"{}\"", bytes.escape_ascii());
    }
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("{} bytes {:016x}", bytes.len(), hasher.finish())
}

/// Returns the entries of a tar, in their order.
pub fn entries(tar: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(tar);
    let mut lines = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let mut attributes = String::new();
        for attribute in entry.pax_extensions().unwrap().into_iter().flatten().flatten() {
            let key = attribute.key_bytes();
            if key.starts_with(b"SCHILY") || key.starts_with(b"RBUILD") {
                attributes += &format!(" {}={}", key.escape_ascii(), attribute.value_bytes().escape_ascii());
            }
        }
        let header = entry.header();
        let link = entry.link_name_bytes().map_or(String::new(), |l| format!(" -> {}", l.escape_ascii()));
        lines.push(format!(
            "{} {:?} {:o} {}:{} @{}{attributes}{link} {}",
            entry.path_bytes().escape_ascii(),
            header.entry_type(),
            header.mode().unwrap(),
            header.uid().unwrap(),
            header.gid().unwrap(),
            header.mtime().unwrap(),
            shown(&content),
        ));
    }
    lines
}

/// Returns the documents and layers of an image archive as lines.
pub fn image(tar: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(tar);
    let mut files = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        files.insert(entry.path().unwrap().display().to_string(), content);
    }
    let parse = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).ok();
    let blob = |v: &serde_json::Value| format!("blobs/{}", v.as_str().unwrap_or("none").replace(':', "/"));
    let Some(index) = files.get("index.json").and_then(|b| parse(b)) else { return entries(tar) };
    let mut lines = vec![format!("index {index}")];
    let Some(manifest) = files.get(&blob(&index["manifests"][0]["digest"])).and_then(|b| parse(b)) else {
        return lines;
    };
    let config = files.get(&blob(&manifest["config"]["digest"]));
    lines.push(format!("config {}", config.map_or("none".into(), |c| String::from_utf8_lossy(c).into_owned())));
    for (number, layer) in manifest["layers"].as_array().into_iter().flatten().enumerate() {
        let Some(bytes) = files.get(&blob(&layer["digest"])) else { continue };
        let unpacked = if bytes.starts_with(&[0x1f, 0x8b]) { unzipped(bytes) } else { bytes.clone() };
        lines.extend(entries(&unpacked).into_iter().map(|l| format!("layer {number}: {l}")));
    }
    // Documents contain digests of layers, so the layers are compared first.
    lines.rotate_left(2);
    lines
}

/// Drops modification times, and everything that depends on them.
pub fn without_times(image: Vec<String>) -> Vec<String> {
    let layers = image.into_iter().filter(|line| line.starts_with("layer "));
    let without = |line: &str| -> String {
        let words = line.split(' ').filter(|word| !(word.starts_with('@') && word[1..].parse::<i64>().is_ok()));
        words.collect::<Vec<_>>().join(" ")
    };
    layers.map(|line| without(&line)).collect()
}

fn unzipped(bytes: &[u8]) -> Vec<u8> {
    crate::lab::unzipped(bytes)
}

/// Returns the first lines that only one of two results has, or `None` if they are equal.
pub fn difference(incremental: &[String], fresh: &[String]) -> Option<String> {
    if incremental == fresh {
        return None;
    }
    let only = |in_this: &[String], not_in: &[String]| -> String {
        let missing: Vec<String> = in_this.iter().filter(|l| !not_in.contains(l)).take(6).map(|l| clipped(l)).collect();
        missing.join("\n    ")
    };
    Some(format!("  incremental:\n    {}\n  fresh:\n    {}", only(incremental, fresh), only(fresh, incremental)))
}

fn clipped(line: &str) -> String {
    line.chars().take(900).collect()
}
