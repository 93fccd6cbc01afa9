//! Records of steps inside the configuration of an image. Their layers are those of the image.

use rbuild_image::{
    BlobDigest, Descriptor, DiffId, ImageConfig, ImageManifest, digest_of, is_attachment, is_image_config,
    parse_manifest,
};
use rbuild_registry::{decode_text, embeddable};
use rbuild_store::{CachedStep, StepLayer};
use serde_json::{Map, Value};

use crate::blobs::BlobSource;
use crate::cache::artifact::{CachedSteps, compressed, parse_lines};
use crate::cache::record_budget::RecordBudget;
use crate::error::{Result, TransportError};
use crate::media_types::form_of;

/// Key of the records in an image configuration.
pub const INLINE_RECORDS: &str = "rbuild.cache.v1";
/// Key of the records of BuildKit. Neither is inherited from a base image.
pub const FOREIGN_INLINE_RECORDS: &str = "moby.buildkit.cache.v0";
/// The fields of a record that the manifest of the image states.
const OF_MANIFEST: [&str; 6] = ["l", "m", "f", "s", "n", "e"];
/// Maximum number of images of an index that are read.
const MAX_IMAGES: usize = 16;

/// Returns the records of steps for the configuration of an image with their layers.
///
/// # Errors
///
/// Fails if a record cannot be encoded.
pub fn inline_records(steps: &[CachedStep]) -> Result<String> {
    let mut lines = Vec::new();
    for step in steps {
        let failed = TransportError::document("the cache");
        let mut record = serde_json::to_value(step).map_err(failed)?;
        if let Value::Object(fields) = &mut record {
            fields.retain(|name, _| !OF_MANIFEST.contains(&name.as_str()));
        }
        lines.extend(record.to_string().into_bytes());
        lines.push(b'\n');
    }
    let packed = compressed(&lines).map_err(TransportError::io("cannot compress the records of the cache"))?;
    Ok(embeddable(&packed))
}

/// Reads the records in the configuration of an image, or of the images of an index. Returns `None`
/// if it is something else.
///
/// # Errors
///
/// Fails if a document is missing or damaged. Those of an index may be, unless all are.
pub(crate) fn read_inline(
    manifest: &[u8],
    blobs: &dyn BlobSource,
    budget: &RecordBudget,
) -> Result<Option<CachedSteps>> {
    let document: Value = serde_json::from_slice(manifest).map_err(TransportError::document("the cache's manifest"))?;
    if !document["manifests"].is_array() {
        return steps_of_image(manifest, blobs, budget);
    }
    let mut found: Option<CachedSteps> = None;
    for steps in of_images(&document, blobs, |image| steps_of_image(image, blobs, budget))? {
        // The first record of a key applies.
        let all = found.get_or_insert_default();
        for (key, step) in steps {
            all.entry(key).or_insert(step);
        }
    }
    Ok(found)
}

/// Returns the entries of an index without attestations and other artifacts; none if the document
/// is no index.
pub(crate) fn image_entries(index: &Value) -> impl Iterator<Item = &Value> {
    let is_image = |entry: &&Value| {
        // An invalid entry is reported when it is read.
        !serde_json::from_value::<Descriptor>((*entry).clone()).is_ok_and(|entry| is_attachment(&entry))
    };
    index["manifests"].as_array().into_iter().flatten().filter(is_image).take(MAX_IMAGES)
}

/// Reads the images of an index with `read`, which returns `None` for one without records. Leaves
/// out attestations, and images that are missing or damaged.
///
/// # Errors
///
/// Fails if no image can be read.
pub(crate) fn of_images<T>(
    index: &Value,
    blobs: &dyn BlobSource,
    read: impl Fn(&[u8]) -> Result<Option<T>>,
) -> Result<Vec<T>> {
    let read = |entry: &Value| {
        let digest = entry["digest"].as_str().unwrap_or_default().parse();
        let digest: BlobDigest = digest.map_err(TransportError::document("the image index"))?;
        read(&blobs.document(&digest)?)
    };
    let (mut all, mut failure, mut has_readable) = (Vec::new(), None, false);
    for image in image_entries(index).map(read) {
        match image {
            Ok(found) => {
                has_readable = true;
                all.extend(found);
            }
            Err(e) => failure = failure.or(Some(e)),
        }
    }
    failure.filter(|_| !has_readable).map_or(Ok(all), Err)
}

/// Returns true if a manifest is that of an image, by the type of its configuration.
pub(crate) fn is_image(manifest: &ImageManifest) -> bool {
    is_image_config(manifest.config().media_type())
}

fn steps_of_image(manifest: &[u8], blobs: &dyn BlobSource, budget: &RecordBudget) -> Result<Option<CachedSteps>> {
    let manifest = parse_manifest(manifest).map_err(TransportError::document("the image manifest"))?;
    if !is_image(&manifest) {
        return Ok(None);
    }
    let digest = digest_of(manifest.config()).map_err(TransportError::document("the image manifest"))?;
    let config: ImageConfig = serde_json::from_slice(&blobs.document(&digest)?)
        .map_err(TransportError::document("the image configuration"))?;
    let Some(records) = config.rest.get(INLINE_RECORDS).and_then(Value::as_str) else { return Ok(None) };
    let packed = decode_text(records).ok_or_else(|| {
        TransportError::document("the records in the image configuration")("they are not encoded as base64")
    })?;
    let mut steps = CachedSteps::new();
    parse_lines(&packed, budget, &mut |line| {
        let step = completed(line, &manifest, &config.rootfs.diff_ids);
        if let Some(step) = step.filter(CachedStep::has_valid_times) {
            steps.entry(step.key).or_insert(step);
        }
    })?;
    Ok(Some(steps))
}

/// Returns a step with the layer that the image has for it.
fn completed(line: &[u8], manifest: &ImageManifest, diff_ids: &[DiffId]) -> Option<CachedStep> {
    let mut fields: Map<String, Value> = serde_json::from_slice(line).ok()?;
    let diff_id: DiffId = fields.get("d")?.as_str()?.parse().ok()?;
    let position = diff_ids.iter().position(|known| *known == diff_id)?;
    let layer = manifest.layers().get(position).filter(|_| manifest.layers().len() == diff_ids.len())?;
    let form = form_of(layer.media_type().as_ref())?;
    let media_type = StepLayer::media_type_of(form)?;
    fields.insert("l".into(), layer.digest().to_string().into());
    fields.insert("m".into(), media_type.to_string().into());
    fields.insert("f".into(), form.into());
    fields.insert("s".into(), layer.size().into());
    serde_json::from_value(Value::Object(fields)).ok()
}

#[cfg(test)]
mod tests {
    use rbuild_image::MediaType;
    use serde_json::json;

    use super::*;
    use crate::cache::artifact::tests::{Memory, step, steps};

    fn image(layers: &[&[u8]], records: Option<String>) -> (Vec<u8>, Memory) {
        let diff_ids: Vec<String> = layers.iter().map(|layer| BlobDigest::of(layer).to_string()).collect();
        let mut config =
            json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        if let Some(records) = records {
            config[INLINE_RECORDS] = records.into();
        }
        let config = serde_json::to_vec(&config).unwrap();
        let layer = |bytes: &&[u8]| {
            let digest = BlobDigest::of(&[b"packed ", *bytes].concat()).to_string();
            json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": 9})
        };
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": BlobDigest::of(&config).to_string(), "size": config.len()},
            "layers": layers.iter().map(layer).collect::<Vec<_>>()});
        (serde_json::to_vec(&manifest).unwrap(), Memory([(BlobDigest::of(&config), config)].into()))
    }

    #[test]
    fn records_in_an_image_refer_to_its_layers() {
        let made = [step("a", b"one", 5), step("b", b"two", 6), step("gone", b"three", 7)];
        let records = inline_records(&made).unwrap();
        let (manifest, blobs) = image(&[b"base", b"one", b"two"], Some(records.clone()));
        let found = read_inline(&manifest, &blobs, &RecordBudget::default()).unwrap().unwrap();
        let want = made[..2].iter().map(|step| {
            let mut step = step.clone();
            let content: &[u8] = if step.key == made[0].key { b"packed one" } else { b"packed two" };
            step.layer.blob = BlobDigest::of(content);
            (step.layer.size, step.used) = (9, 0);
            (step.layer.form, step.layer.media_type) = ("gzip".into(), MediaType::ImageLayerGzip);
            step
        });
        assert_eq!(found, steps(want));
        assert_eq!(inline_records(&made).unwrap(), records, "equal steps have equal bytes");
        let mut blobs = blobs;
        let mut put = |bytes: Vec<u8>| {
            let digest = BlobDigest::of(&bytes);
            blobs.0.insert(digest, bytes);
            digest.to_string()
        };
        let own = json!({"digest": put(manifest)});
        let nested = json!({"digest": put(br#"{"schemaVersion": 2, "manifests": []}"#.to_vec())});
        let missing = json!({"digest": BlobDigest::of(b"missing").to_string()});
        let attestation = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": own["digest"], "size": 1, "annotations": {"vnd.docker.reference.type": "attestation-manifest"}});
        let many = vec![attestation.clone(); MAX_IMAGES];
        let read = |entries: &[Value]| {
            read_inline(
                json!({"schemaVersion": 2, "manifests": entries}).to_string().as_bytes(),
                &blobs,
                &RecordBudget::default(),
            )
        };
        assert_eq!(read(&[nested.clone(), missing.clone(), json!({}), own.clone()]).unwrap(), Some(found.clone()));
        assert_eq!(read(&[&many[..], &[own]].concat()).unwrap(), Some(found));
        assert_eq!(read(&[attestation]).unwrap(), None);
        assert!(read(&[missing]).is_err() && read(&[nested]).is_err());
    }

    #[test]
    fn hostile_and_missing_records_are_errors_or_none() {
        let (manifest, blobs) = image(&[b"one"], None);
        assert_eq!(read_inline(&manifest, &blobs, &RecordBudget::default()).unwrap(), None);
        for (records, is_error) in [
            ("!".to_string(), true),
            (embeddable(b"not compressed"), false),
            (embeddable(&[b"\x28\xb5\x2f\xfd", &[0xff; 9][..]].concat()), true),
            (embeddable(&compressed(b"junk\n{\"d\":\"x\"}\n{}\n").unwrap()), false),
            (embeddable(&compressed(&vec![b'\n'; (64 << 20) + 1]).unwrap()), true),
        ] {
            let (manifest, blobs) = image(&[b"one"], Some(records));
            let read = read_inline(&manifest, &blobs, &RecordBudget::default());
            assert_eq!(read.is_err(), is_error);
            assert!(read.is_err() || read.unwrap().unwrap().is_empty());
        }
    }
}
