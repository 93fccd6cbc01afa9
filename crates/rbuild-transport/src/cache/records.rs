//! The records of any cache that can be read: of this program, in images, and of BuildKit.

use rbuild_store::CachedStep;
use serde::{Deserialize, Serialize};

use crate::blobs::BlobSource;
use crate::cache::artifact::{CachedSteps, check_type, read_steps};
use crate::cache::buildkit::{BuildKitCache, read_buildkit};
use crate::cache::inline::read_inline;
use crate::error::Result;

/// The records of a cache in a registry.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RemoteSteps {
    /// The steps.
    pub steps: Vec<CachedStep>,
    /// The records of BuildKit.
    pub buildkit: Option<BuildKitCache>,
    /// The reasons why some of its shards cannot be read.
    pub faults: Vec<String>,
}

/// The records of a cache.
#[derive(Debug, Default)]
pub(crate) struct CacheRecords {
    pub steps: CachedSteps,
    /// Those of BuildKit.
    pub buildkit: Option<BuildKitCache>,
}

/// Reads the records of a cache, of an image, or of a cache of BuildKit.
///
/// # Errors
///
/// Fails as [`read_steps`] does, or if an image has no records.
pub(crate) fn read_any(manifest: &[u8], blobs: &dyn BlobSource) -> Result<CacheRecords> {
    let Err(other) = check_type(manifest) else {
        return Ok(CacheRecords { steps: read_steps(manifest, blobs)?, buildkit: None });
    };
    let buildkit = read_buildkit(manifest, blobs)?;
    match (read_inline(manifest, blobs)?, buildkit) {
        (None, None) => Err(other),
        (steps, buildkit) => Ok(CacheRecords { steps: steps.unwrap_or_default(), buildkit }),
    }
}
