//! The records of any cache that can be read: of this program, in images, and of BuildKit.

use rbuild_store::CachedStep;
use serde::{Deserialize, Serialize};

use crate::blobs::BlobSource;
use crate::cache::artifact::{CachedSteps, ReadSteps, check_type, read_steps};
use crate::cache::buildkit::{BuildKitCache, is_buildkit_cache, read_buildkit};
use crate::cache::inline::read_inline;
use crate::cache::record_budget::RecordBudget;
use crate::cache::signature::RecordKeys;
use crate::error::Result;

/// The records of a cache in a registry.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RemoteSteps {
    /// The steps.
    pub steps: Vec<CachedStep>,
    /// The records of BuildKit.
    pub buildkit: Option<BuildKitCache>,
    /// True if records without a valid signature were ignored.
    pub has_unsigned: bool,
    /// The reasons why some of its parts cannot be read.
    pub faults: Vec<String>,
    /// True if parts are damaged or lost, which the next writer replaces or leaves out.
    pub has_damage: bool,
}

/// The records of a cache.
#[derive(Debug, Default)]
pub(crate) struct CacheRecords {
    pub steps: CachedSteps,
    /// Those of BuildKit.
    pub buildkit: Option<BuildKitCache>,
    /// True if records without a valid signature were ignored.
    pub has_unsigned: bool,
}

/// Reads the records of a cache, of an image, or of a cache of BuildKit. Only caches can be signed.
///
/// # Errors
///
/// Fails as [`read_steps`] does, or if an image has no records.
pub(crate) fn read_any(
    manifest: &[u8],
    blobs: &dyn BlobSource,
    keys: &RecordKeys,
    budget: &RecordBudget,
) -> Result<CacheRecords> {
    let Err(other) = check_type(manifest) else {
        let ReadSteps { steps, has_unsigned } = read_steps(manifest, blobs, keys, budget)?;
        return Ok(CacheRecords { steps, buildkit: None, has_unsigned });
    };
    if keys.are_required() {
        return Ok(CacheRecords { has_unsigned: true, ..CacheRecords::default() });
    }
    let buildkit = read_buildkit(manifest, blobs)?;
    // The entries of an index of BuildKit's cache are layers, not images.
    if is_buildkit_cache(manifest) {
        return Ok(CacheRecords { buildkit, ..CacheRecords::default() });
    }
    match (read_inline(manifest, blobs, budget)?, buildkit) {
        (None, None) => Err(other),
        (steps, buildkit) => Ok(CacheRecords { steps: steps.unwrap_or_default(), buildkit, ..CacheRecords::default() }),
    }
}

#[cfg(test)]
mod tests {
    use rbuild_image::BlobDigest;
    use serde_json::json;

    use super::*;
    use crate::cache::artifact::BUILDKIT_CONFIG;
    use crate::cache::artifact::tests::Memory;

    /// Older versions of BuildKit write an index whose entries are layers.
    #[test]
    fn an_index_of_layers_is_not_read_as_one_of_images() {
        let config = json!({"layers": [], "records": [{"digest": BlobDigest::of(b"step")}]}).to_string().into_bytes();
        let entry = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": BlobDigest::of(bytes).to_string(), "size": bytes.len()});
        let index = json!({"schemaVersion": 2, "manifests": [
            entry("application/vnd.oci.image.layer.v1.tar+gzip", b"layer"),
            entry(BUILDKIT_CONFIG, &config),
        ]});
        let blobs = Memory([(BlobDigest::of(&config), config)].into());
        let records =
            read_any(index.to_string().as_bytes(), &blobs, RecordKeys::none(), &RecordBudget::default()).unwrap();
        assert_eq!((records.steps.len(), records.buildkit.map(|cache| cache.len())), (0, Some(1)));
    }
}
