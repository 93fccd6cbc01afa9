//! Finds the first difference between two images that should be identical.

use std::io::Read;

use rbuild_image::History;
use rbuild_layer::{Decoder, LayerError, TarEntry, TarReader};
use rbuild_store::{Image, Store};

use crate::error::{BuildError, Result};

/// The first difference between two images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// Layer `number` (from 1) of `of`; the command that created it, the first path that differs,
    /// and the difference.
    Layer { number: usize, of: usize, made_by: String, path: String, what: String },
    /// A field of the configuration and its two values.
    Configuration { what: String },
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
            let digest = rbuild_image::digest_of(layer).map_err(|e| BuildError::other(e.to_string()))?;
            let blob = Decoder::new(store.blobs().open_blob(&digest)?).map_err(BuildError::io("a layer"))?;
            Ok(TarReader::new(blob))
        };
        let fail = BuildError::layer("comparing the layers");
        let (path, what) = first_entry(&mut open(layer_a)?, &mut open(layer_b)?).map_err(fail)?;
        let made_by = made_by.get(i).map_or(String::new(), |entry| entry.created_by.clone());
        return Ok(Some(Difference::Layer { number: i + 1, of: layers_a.len(), made_by, path, what }));
    }
    if layers_a.len() != layers_b.len() {
        let what = format!("one has {} layers, the other {}", layers_a.len(), layers_b.len());
        return Ok(Some(Difference::Configuration { what }));
    }
    if a.manifest_digest == b.manifest_digest {
        return Ok(None);
    }
    let json = |image: &Image| serde_json::to_value(&image.config).unwrap_or_default();
    let what = first_value("", &json(a), &json(b)).unwrap_or_else(|| "the manifests are not the same".into());
    Ok(Some(Difference::Configuration { what }))
}

/// Returns the first path that differs between two layers, and the difference. Both must be sorted.
fn first_entry(
    a: &mut TarReader<impl Read>,
    b: &mut TarReader<impl Read>,
) -> std::result::Result<(String, String), LayerError> {
    loop {
        let name = |entry: &TarEntry| entry.path.to_string_lossy().trim_end_matches('/').to_string();
        match (a.next_entry()?, b.next_entry()?) {
            (None, None) => return Ok((String::new(), "the bytes between the files".into())),
            (Some(only), None) => return Ok((name(&only), "is only in the first".into())),
            (None, Some(only)) => return Ok((name(&only), "is only in the second".into())),
            (Some(x), Some(y)) if x.path != y.path => {
                let which = if x.path < y.path { "first" } else { "second" };
                let only = if x.path < y.path { &x } else { &y };
                return Ok((name(only), format!("is only in the {which}")));
            }
            (Some(x), Some(y)) => {
                if let Some(what) = metadata(&x, &y).or(content(a, b)?) {
                    return Ok((name(&x), what));
                }
            }
        }
    }
}

fn metadata(x: &TarEntry, y: &TarEntry) -> Option<String> {
    let pair = |what: &str, a: String, b: String| (a != b).then(|| format!("{what} {a} and {b}"));
    pair("kind", format!("{:?}", x.kind), format!("{:?}", y.kind))
        .or_else(|| pair("link to", x.link.to_string_lossy().into(), y.link.to_string_lossy().into()))
        .or_else(|| pair("mode", format!("{:o}", x.mode), format!("{:o}", y.mode)))
        .or_else(|| pair("owner", format!("{}:{}", x.uid, x.gid), format!("{}:{}", y.uid, y.gid)))
        .or_else(|| pair("size", x.size.to_string(), y.size.to_string()))
        .or_else(|| pair("attributes", format!("{:?}", x.xattrs), format!("{:?}", y.xattrs)))
        .or_else(|| pair("device", format!("{:?}", x.rdev), format!("{:?}", y.rdev)))
        .or_else(|| pair("time", x.mtime.sec.to_string(), y.mtime.sec.to_string()))
}

fn content(
    a: &mut TarReader<impl Read>,
    b: &mut TarReader<impl Read>,
) -> std::result::Result<Option<String>, LayerError> {
    let (mut x, mut y) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut at = 0;
    loop {
        let (n, m) = (fill(a, &mut x)?, fill(b, &mut y)?);
        if let Some(i) = (0..n.min(m)).find(|i| x[*i] != y[*i]) {
            return Ok(Some(format!("content, from byte {} on", at + i)));
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
fn first_value(path: &str, a: &serde_json::Value, b: &serde_json::Value) -> Option<String> {
    use serde_json::Value::{Array, Null, Object};
    match (a, b) {
        (Object(x), Object(y)) => {
            let names: std::collections::BTreeSet<&String> = x.keys().chain(y.keys()).collect();
            names.into_iter().find_map(|name| {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                first_value(&path, x.get(name).unwrap_or(&Null), y.get(name).unwrap_or(&Null))
            })
        }
        (Array(x), Array(y)) if x.len() == y.len() => {
            x.iter().zip(y).enumerate().find_map(|(i, (x, y))| first_value(&format!("{path}[{i}]"), x, y))
        }
        _ => (a != b).then(|| format!("{path} is {a} and {b}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_value_is_named_by_its_path() {
        let a = json!({"created": "x", "config": {"Env": ["A=1", "B=2"]}});
        let b = json!({"created": "x", "config": {"Env": ["A=1", "B=3"]}});
        assert_eq!(first_value("", &a, &b).unwrap(), "config.Env[1] is \"B=2\" and \"B=3\"");
        assert_eq!(first_value("", &a, &a), None);
    }
}
