//! Caches in tar archives, which contain an OCI image layout.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::sync::Arc;

use rbuild_image::{MediaType, REF_NAME};
use rbuild_layer::{Bounded, EntryKind, LimitedTar, Limits};
use rbuild_linux::RootDir;
use rbuild_store::CachedStep;
use serde_json::json;

use crate::archive::ArchiveWriter;
use crate::archive_error::ArchiveProblem;
use crate::blobs::{BlobInfo, BlobSink, BlobSource, Document};
use crate::cache::artifact::{ARTIFACT, CacheDocuments, CachedSteps};
use crate::cache::merge::WrittenCache;
use crate::cache::signature::RecordKeys;
use crate::cache::step_count::StepCount;
use crate::error::{Result, TransportError};
use crate::layout::digest_in;
use crate::member_name::clean;

/// Size of the buffer for content in bytes.
const BUFFER: usize = 64 << 10;

/// Writes a cache with these steps to an archive, signed if there is a key for it. `source` has
/// their layers.
///
/// # Errors
///
/// Fails if a layer is missing or damaged, or if the archive cannot be written.
pub fn write_cache_archive(
    out: impl Write + Send,
    tag: &str,
    steps: &[CachedStep],
    source: &dyn BlobSource,
    keys: &RecordKeys,
) -> Result<WrittenCache> {
    let steps: CachedSteps = steps.iter().map(|step| (step.key, step.clone())).collect();
    let documents = CacheDocuments::of(&steps, keys)?;
    let archive = ArchiveWriter::begin(out)?;
    let mut written = WrittenCache { content: StepCount::of(steps.values()), ..WrittenCache::default() };
    let mut layers: Vec<BlobInfo> =
        steps.values().map(|step| BlobInfo { digest: step.layer.blob, size: step.layer.size }).collect();
    layers.sort_by_key(|layer| layer.digest);
    layers.dedup_by_key(|layer| layer.digest);
    for layer in &layers {
        archive.copy(source, layer, &Arc::default())?;
        written.layers += 1;
        written.bytes += layer.size;
    }
    for bytes in documents.blobs {
        archive.put_document(&Document { media_type: String::new(), bytes })?;
    }
    archive.put_document(&documents.manifest)?;
    let index = json!({
        "schemaVersion": 2,
        "mediaType": MediaType::ImageIndex.to_string(),
        "manifests": [{
            "mediaType": MediaType::ImageManifest.to_string(),
            "artifactType": ARTIFACT,
            "digest": documents.manifest.digest().to_string(),
            "size": documents.manifest.bytes.len(),
            "annotations": {REF_NAME: tag},
        }],
    });
    archive.finish_layout(index)?;
    Ok(written)
}

/// Unpacks the archive of a cache, of any compression, into an empty directory. Members that do not
/// belong to an OCI image layout are ignored.
///
/// # Errors
///
/// Fails if the archive is damaged or exceeds the limits, or if the directory cannot be written.
pub fn unpack_cache_archive(source: impl Read, dir: &RootDir, limits: Limits) -> Result<()> {
    let failed = || TransportError::kernel("cannot unpack the archive".to_string());
    let blobs = dir.create_dir_all("blobs/sha256", 0o700, None, |_| ()).map_err(failed())?;
    let stream = Bounded::new(source, limits).map_err(ArchiveProblem::Unreadable)?;
    let mut tar = LimitedTar::new(stream, limits);
    let mut buffer = vec![0; BUFFER];
    while let Some(entry) = tar.next_entry().map_err(ArchiveProblem::Invalid)? {
        let name = clean(&entry.path.to_string_lossy());
        let place = match digest_in(&name) {
            Some(digest) => Some((&blobs, digest.hex())),
            None if matches!(name.as_str(), "index.json" | "oci-layout") => Some((dir, name.clone())),
            None => None,
        };
        let (EntryKind::File, Some((place, name))) = (&entry.kind, place) else { continue };
        let name = OsStr::new(&name);
        // The last one of several members applies.
        let _ = place.remove_file(name);
        let mut file = place.create_file(name, 0o600).map_err(failed())?;
        loop {
            let count = tar.read_content(&mut buffer).map_err(ArchiveProblem::Invalid)?;
            if count == 0 {
                break;
            }
            file.write_all(&buffer[..count]).map_err(TransportError::io("cannot unpack the archive"))?;
        }
    }
    tar.drain().map_err(ArchiveProblem::Invalid)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rbuild_linux::Directory;
    use rbuild_testkit::Scratch;

    use super::*;
    use crate::cache::artifact::tests::{step, steps};
    use crate::cache::local::open_local;
    use crate::cache::record_budget::RecordBudget;
    use crate::layout::LayoutWriter;

    #[test]
    fn an_archive_is_read_as_a_directory() {
        let place = Scratch::new();
        let two = [step("a", b"one", 5), step("b", b"two", 6), step("c", b"two", 7)];
        let layout = Scratch::new();
        let sources = LayoutWriter::open(&Directory::find(&place.join("layers")).unwrap()).unwrap();
        [b"one", b"two"].iter().for_each(|bytes| sources.put_bytes(*bytes).unwrap());
        let mut out = Vec::new();
        let none = RecordKeys::none();
        let written = write_cache_archive(&mut out, "latest", &two, &sources.source().unwrap(), none).unwrap();
        assert_eq!((written.content.steps, written.layers, written.bytes), (3, 2, 6));
        let packed = zstd::encode_all(&out[..], 1).unwrap();
        for (number, archive) in [out.clone(), packed].iter().enumerate() {
            let path = place.join(number.to_string());
            std::fs::create_dir(&path).unwrap();
            unpack_cache_archive(&archive[..], &RootDir::open(&path).unwrap(), Limits::default()).unwrap();
            let (records, blobs) =
                open_local(&path, "latest", RecordKeys::none(), &RecordBudget::default()).unwrap().unwrap();
            assert_eq!(records.steps, steps(two.clone()));
            assert_eq!(blobs.size(&two[0].layer.blob).unwrap(), Some(3));
        }
        let dir = RootDir::open(&layout).unwrap();
        assert!(unpack_cache_archive(&out[..out.len() / 2], &dir, Limits::default()).is_err());
        assert!(unpack_cache_archive(&b"junk"[..], &dir, Limits::default()).is_err());
    }
}
