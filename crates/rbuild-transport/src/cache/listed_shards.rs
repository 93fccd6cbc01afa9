//! The names of shards in the manifest of a cache.

use std::collections::{BTreeMap, HashSet};

use rbuild_image::BlobDigest;
use serde_json::{Map, Value, json};

use crate::cache::shards::MAX_SHARDS;
use crate::error::{Result, TransportError};

/// Annotation with the numbers of shards and the digests of their manifests.
const SHARDS: &str = "io.rbuild.cache.shards";

/// Digests of the manifests of shards.
pub(crate) type ShardDigests = BTreeMap<u32, BlobDigest>;

/// Returns the shards that a manifest names.
pub(crate) fn listed_shards(manifest: &[u8]) -> ShardDigests {
    let document: Option<Value> = serde_json::from_slice(manifest).ok();
    let text = document.as_ref().and_then(|document| document["annotations"][SHARDS].as_str());
    let listed: Option<ShardDigests> = text.and_then(|text| serde_json::from_str(text).ok());
    // Each machine writes its own steps: one that is named twice would only be read twice.
    let mut seen = HashSet::new();
    let is_valid = |(number, digest): &(u32, BlobDigest)| *number < MAX_SHARDS && seen.insert(*digest);
    listed.unwrap_or_default().into_iter().filter(is_valid).collect()
}

/// Returns a manifest that names these shards instead of others.
pub(crate) fn with_shards(manifest: &[u8], shards: &ShardDigests) -> Result<Vec<u8>> {
    let failed = || TransportError::document("the cache's manifest");
    let mut document: Value = serde_json::from_slice(manifest).map_err(failed())?;
    let all = document.as_object_mut().ok_or_else(|| TransportError::other("the cache's manifest is no object"))?;
    let mut annotations = match all.shift_remove("annotations") {
        Some(Value::Object(annotations)) => annotations,
        _ => Map::new(),
    };
    annotations.shift_remove(SHARDS);
    if !shards.is_empty() {
        annotations.insert(SHARDS.into(), json!(serde_json::to_string(shards).map_err(failed())?));
    }
    if !annotations.is_empty() {
        all.insert("annotations".into(), Value::Object(annotations));
    }
    serde_json::to_vec(&document).map_err(failed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::artifact::tests::{step, steps};
    use crate::cache::artifact::{CacheDocuments, check_type};
    use crate::cache::signature::RecordKeys;

    #[test]
    fn a_tag_names_shards_and_keeps_its_own_steps() {
        let digest = |name: &str| BlobDigest::of(name.as_bytes());
        let plain = CacheDocuments::of(&steps([step("a", b"one", 5)]), RecordKeys::none()).unwrap().manifest.bytes;
        assert!(listed_shards(&plain).is_empty());
        let two = ShardDigests::from([(3, digest("three")), (12, digest("twelve"))]);
        let named = with_shards(&plain, &two).unwrap();
        assert_eq!(listed_shards(&named), two);
        assert_eq!(with_shards(&named, &ShardDigests::new()).unwrap(), plain, "equal steps have equal bytes");
        let one = ShardDigests::from([(0, digest("zero"))]);
        assert_eq!(listed_shards(&with_shards(&named, &one).unwrap()), one);
        check_type(&named).unwrap();
        let twice = ShardDigests::from([(1, digest("one")), (2, digest("one"))]);
        assert_eq!(listed_shards(&with_shards(&named, &twice).unwrap()).len(), 1);
        // Anything else names none.
        for text in
            ["[", "{}", "{\"annotations\":1}", "{\"annotations\":{\"io.rbuild.cache.shards\":\"{\\\"x\\\":1}\"}}"]
        {
            assert!(listed_shards(text.as_bytes()).is_empty(), "{text}");
        }
        let many = with_shards(&plain, &ShardDigests::from([(MAX_SHARDS, digest("x"))])).unwrap();
        assert!(listed_shards(&many).is_empty());
        assert!(with_shards(b"[]", &one).is_err());
    }
}
