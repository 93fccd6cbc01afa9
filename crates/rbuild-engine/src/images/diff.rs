//! Finds the first difference between two images that should be identical.

use std::ffi::OsString;
use std::fmt;
use std::io::Read;

use rbuild_image::History;
use rbuild_layer::{Decoder, EntryKind, LayerError, TarEntry, TarReader};
use rbuild_linux::Xattrs;
use rbuild_store::{Image, Store};

use crate::error::{BuildError, Result};
use crate::error_context::ErrorContext;

/// The first difference between two images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// An entry of layer `number` (from 1) of `of`, which `made_by` created. The path is that of
    /// the first entry that differs.
    Layer { number: usize, of: usize, made_by: String, path: String, change: EntryChange },
    /// The numbers of layers differ.
    LayerCount(usize, usize),
    /// A field of the configuration, with both values as JSON.
    Configuration { field: FieldPath, values: (String, String) },
    /// Only the manifests differ: layers and configurations are equal.
    Manifest,
}

/// The path of a value in a JSON document, from the root. Prints as in `config.Env[1]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldPath(Vec<FieldKey>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum FieldKey {
    Name(String),
    Position(usize),
}

impl FieldPath {
    /// Returns the path of a field of the root.
    pub fn of(name: &str) -> FieldPath {
        FieldPath::default().and(FieldKey::Name(name.to_string()))
    }

    fn and(&self, key: FieldKey) -> FieldPath {
        FieldPath([self.0.as_slice(), &[key]].concat())
    }

    /// Returns the name of the field itself; `None` for an element of a list.
    pub fn name(&self) -> Option<&str> {
        match self.0.last() {
            Some(FieldKey::Name(name)) => Some(name),
            _ => None,
        }
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (depth, key) in self.0.iter().enumerate() {
            match key {
                FieldKey::Name(name) if depth == 0 => f.write_str(name)?,
                FieldKey::Name(name) => write!(f, ".{name}")?,
                FieldKey::Position(position) => write!(f, "[{position}]")?,
            }
        }
        Ok(())
    }
}

/// A difference between the entries of two layers. Pairs begin with the value in the first layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryChange {
    /// The first layer has an entry that the second one lacks.
    OnlyInFirst,
    /// The second layer has an entry that the first one lacks.
    OnlyInSecond,
    /// A property of the entry, with both values as text.
    Property { name: &'static str, values: (String, String) },
    /// Modification times, in seconds since the Unix epoch.
    Time(i64, i64),
    /// The contents, from this byte on.
    Content(usize),
    /// Bytes of the archives that do not belong to an entry.
    Padding,
}

/// Returns the first difference between two images of the store, `None` if their manifests are
/// equal.
pub fn first_difference(store: &Store, a: &Image, b: &Image) -> Result<Option<Difference>> {
    let (layers_a, layers_b) = (a.layers()?, b.layers()?);
    let made_by: Vec<&History> = a.config.history.iter().filter(|entry| !entry.empty_layer).collect();
    for (i, ((layer_a, diff_a), (layer_b, diff_b))) in layers_a.iter().zip(&layers_b).enumerate() {
        if diff_a == diff_b {
            continue;
        }
        let open = |layer| -> Result<_> {
            let digest = rbuild_image::digest_of(layer).map_err(rbuild_store::StoreError::damaged("descriptor"))?;
            let blob = Decoder::new(store.blobs().open_blob(&digest)?).map_err(BuildError::io(ErrorContext::Layer))?;
            Ok(TarReader::new(blob))
        };
        let fail = BuildError::layer(ErrorContext::LayerComparison);
        let (path, change) = first_entry(&mut open(layer_a)?, &mut open(layer_b)?).map_err(fail)?;
        let made_by = made_by.get(i).map_or(String::new(), |entry| entry.created_by.clone());
        return Ok(Some(Difference::Layer { number: i + 1, of: layers_a.len(), made_by, path, change }));
    }
    if layers_a.len() != layers_b.len() {
        return Ok(Some(Difference::LayerCount(layers_a.len(), layers_b.len())));
    }
    if a.manifest_digest == b.manifest_digest {
        return Ok(None);
    }
    let json = |image: &Image| serde_json::to_value(&image.config).unwrap_or_default();
    let found = first_value(&FieldPath::default(), &json(a), &json(b));
    Ok(Some(found.map_or(Difference::Manifest, |(field, values)| Difference::Configuration { field, values })))
}

/// Returns the first path that differs between two layers, and the difference. Both must be sorted.
fn first_entry(
    a: &mut TarReader<impl Read>,
    b: &mut TarReader<impl Read>,
) -> std::result::Result<(String, EntryChange), LayerError> {
    loop {
        let name = |entry: &TarEntry| entry.path.to_string_lossy().trim_end_matches('/').to_string();
        match (a.next_entry()?, b.next_entry()?) {
            (None, None) => return Ok((String::new(), EntryChange::Padding)),
            (Some(only), None) => return Ok((name(&only), EntryChange::OnlyInFirst)),
            (None, Some(only)) => return Ok((name(&only), EntryChange::OnlyInSecond)),
            (Some(x), Some(y)) if x.path < y.path => return Ok((name(&x), EntryChange::OnlyInFirst)),
            (Some(x), Some(y)) if x.path > y.path => return Ok((name(&y), EntryChange::OnlyInSecond)),
            (Some(x), Some(y)) => {
                if let Some(change) = metadata(&x, &y).or(content(a, b)?) {
                    return Ok((name(&x), change));
                }
            }
        }
    }
}

fn metadata(x: &TarEntry, y: &TarEntry) -> Option<EntryChange> {
    let pair =
        |name: &'static str, a: String, b: String| (a != b).then_some(EntryChange::Property { name, values: (a, b) });
    let device = |entry: &TarEntry| format!("{}:{}", entry.rdev.0, entry.rdev.1);
    pair("type", noun(x.kind).into(), noun(y.kind).into())
        .or_else(|| pair("link target", x.link.to_string_lossy().into(), y.link.to_string_lossy().into()))
        .or_else(|| pair("mode", format!("{:o}", x.mode), format!("{:o}", y.mode)))
        .or_else(|| pair("owner", format!("{}:{}", x.uid, x.gid), format!("{}:{}", y.uid, y.gid)))
        .or_else(|| pair("size", x.size.to_string(), y.size.to_string()))
        .or_else(|| attribute(&x.xattrs, &y.xattrs))
        .or_else(|| pair("device", device(x), device(y)))
        .or_else(|| (x.mtime.sec != y.mtime.sec).then_some(EntryChange::Time(x.mtime.sec, y.mtime.sec)))
}

fn noun(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::File => "file",
        EntryKind::Dir => "directory",
        EntryKind::Symlink => "symbolic link",
        EntryKind::HardLink => "hard link",
        EntryKind::CharDevice => "character device",
        EntryKind::BlockDevice => "block device",
        EntryKind::Fifo => "FIFO",
    }
}

/// Returns the first extended attribute that differs. Bytes that are not text are
/// escaped.
fn attribute(x: &Xattrs, y: &Xattrs) -> Option<EntryChange> {
    let shown = |list: &Xattrs, name: &OsString| match list.get(name) {
        Some(value) => format!("{}={}", name.to_string_lossy(), value.escape_ascii()),
        None => format!("no {}", name.to_string_lossy()),
    };
    let differs = |name: &&OsString| shown(x, name) != shown(y, name);
    let name = x.keys().chain(y.keys()).find(differs)?;
    Some(EntryChange::Property { name: "attribute", values: (shown(x, name), shown(y, name)) })
}

fn content(
    a: &mut TarReader<impl Read>,
    b: &mut TarReader<impl Read>,
) -> std::result::Result<Option<EntryChange>, LayerError> {
    let (mut x, mut y) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut at = 0;
    loop {
        let (n, m) = (fill(a, &mut x)?, fill(b, &mut y)?);
        if let Some(i) = (0..n.min(m)).find(|i| x[*i] != y[*i]) {
            return Ok(Some(EntryChange::Content(at + i)));
        }
        if n == 0 {
            return Ok(None);
        }
        at += n;
    }
}

fn fill(reader: &mut TarReader<impl Read>, buffer: &mut [u8]) -> std::result::Result<usize, LayerError> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read_content(&mut buffer[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

/// Returns the path of the first value that differs between two JSON documents, with both values.
fn first_value(
    path: &FieldPath,
    a: &serde_json::Value,
    b: &serde_json::Value,
) -> Option<(FieldPath, (String, String))> {
    use serde_json::Value::{Array, Null, Object};
    match (a, b) {
        (Object(x), Object(y)) => {
            let names: std::collections::BTreeSet<&String> = x.keys().chain(y.keys()).collect();
            names.into_iter().find_map(|name| {
                let path = path.and(FieldKey::Name(name.clone()));
                first_value(&path, x.get(name).unwrap_or(&Null), y.get(name).unwrap_or(&Null))
            })
        }
        (Array(x), Array(y)) if x.len() == y.len() => {
            x.iter().zip(y).enumerate().find_map(|(i, (x, y))| first_value(&path.and(FieldKey::Position(i)), x, y))
        }
        _ => (a != b).then(|| (path.clone(), (a.to_string(), b.to_string()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rbuild_linux::Timestamp;
    use serde_json::json;

    fn entry(kind: EntryKind) -> TarEntry {
        TarEntry {
            path: "a".into(),
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Timestamp { sec: 0, nsec: 0 },
            size: 0,
            link: OsString::new(),
            rdev: (0, 0),
            xattrs: Xattrs::new(),
            sparse: None,
        }
    }

    #[test]
    fn differing_properties_have_readable_values() {
        let with = |change: fn(&mut TarEntry)| {
            let mut changed = entry(EntryKind::CharDevice);
            change(&mut changed);
            changed
        };
        let cases = [
            (with(|e| e.kind = EntryKind::Dir), "type", "character device", "directory"),
            (with(|e| e.mode = 0o600), "mode", "644", "600"),
            (with(|e| e.uid = 7), "owner", "0:0", "7:0"),
            (with(|e| e.rdev = (1, 3)), "device", "0:0", "1:3"),
            (
                with(|e| drop(e.xattrs.insert("user.a".into(), vec![b'x', 0]))),
                "attribute",
                "no user.a",
                "user.a=x\\x00",
            ),
        ];
        for (changed, name, first, second) in cases {
            let values = (first.to_string(), second.to_string());
            let expected = EntryChange::Property { name, values };
            assert_eq!(metadata(&entry(EntryKind::CharDevice), &changed), Some(expected));
        }
        let later = with(|e| e.mtime.sec = 5);
        assert_eq!(metadata(&entry(EntryKind::CharDevice), &later), Some(EntryChange::Time(0, 5)));
    }

    #[test]
    fn the_first_differing_value_is_named_by_its_path() {
        let a = json!({"created": "x", "config": {"Env": ["A=1", "B=2"]}});
        let b = json!({"created": "x", "config": {"Env": ["A=1", "B=3"]}});
        let values = (r#""B=2""#.to_string(), r#""B=3""#.to_string());
        let root = FieldPath::default();
        let (path, found) = first_value(&root, &a, &b).unwrap();
        assert_eq!((path.to_string().as_str(), path.name(), found), ("config.Env[1]", None, values));
        assert_eq!(first_value(&root, &a, &a), None);
        let later = json!({"created": "y"});
        assert_eq!(first_value(&root, &json!({"created": "x"}), &later).unwrap().0, FieldPath::of("created"));
    }
}
