//! The documents of a cache: a manifest, whose first layer contains the records of steps, followed
//! by the layers that these name.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};

use rbuild_image::{BlobDigest, MediaType, is_image_config, parse_manifest};
use rbuild_layer::{Decoder, LAYER_FORMAT};
use rbuild_registry::embeddable;
use rbuild_remedy::ServerRemedy;
use rbuild_store::{CacheKey, CachedStep};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::blobs::{BlobSource, Document};
use crate::cache::note::CacheNote;
use crate::cache::record_budget::RecordBudget;
use crate::cache::signature::RecordKeys;
use crate::cache::step_count::StepCount;
use crate::error::{Result, TransportError};

/// Type of the artifact.
pub(crate) const ARTIFACT: &str = "application/vnd.rbuild.cache.v1+json";
const CONFIG: &str = "application/vnd.rbuild.cache.config.v1+json";
const RECORDS: &str = "application/vnd.rbuild.cache.records.v1+jsonl+zstd";
/// Media type of the configuration of BuildKit's caches.
pub(crate) const BUILDKIT_CONFIG: &str = "application/vnd.buildkit.cacheconfig.v0";
/// Annotation with the signature of a blob of records.
const SIGNATURE: &str = "io.rbuild.signature";
/// Annotation with the diffID of a layer.
const DIFF_ID: &str = "io.rbuild.diffid";

/// Maximum size of the uncompressed records in bytes.
const MAX_RECORDS: u64 = 64 << 20;
/// Maximum number of records.
const MAX_LINES: usize = 1_000_000;
/// Size in bytes up to which the configuration and the records are also in the manifest itself.
pub(crate) const MAX_EMBEDDED: usize = 64 << 10;
/// Level of the compression of records.
const LEVEL: i32 = 9;

/// The steps of a cache by key.
pub type CachedSteps = BTreeMap<CacheKey, CachedStep>;

/// The configuration of a cache. Readers ignore unknown fields.
#[derive(Serialize, Deserialize)]
struct CacheConfig {
    version: u32,
    /// Format of the layers. Layers of another format are not used.
    #[serde(default)]
    layer_format: u32,
    /// Number of steps, for people.
    #[serde(default)]
    steps: usize,
}

/// The documents and the blob of records of a cache, ready to be written. Equal steps have equal
/// bytes.
pub(crate) struct CacheDocuments {
    pub manifest: Document,
    /// The configuration and the records, which the manifest refers to.
    pub blobs: Vec<Vec<u8>>,
}

impl CacheDocuments {
    /// Returns the documents of a cache with these steps, signed if there is a key for it.
    pub fn of(steps: &CachedSteps, keys: &RecordKeys) -> Result<CacheDocuments> {
        let failed = |e: serde_json::Error| TransportError::document("the cache")(e);
        let mut lines = Vec::new();
        for step in steps.values() {
            serde_json::to_writer(&mut lines, step).map_err(failed)?;
            lines.push(b'\n');
        }
        let records = compressed(&lines).map_err(TransportError::io("cannot compress the records of the cache"))?;
        let count = StepCount::of(steps.values()).steps;
        let config = CacheConfig { version: 1, layer_format: LAYER_FORMAT, steps: count };
        let config = serde_json::to_vec(&config).map_err(failed)?;
        let blob = |media_type: &str, bytes: &[u8]| {
            let digest = BlobDigest::of(bytes).to_string();
            let mut descriptor = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
            if bytes.len() <= MAX_EMBEDDED {
                descriptor["data"] = json!(embeddable(bytes));
            }
            descriptor
        };
        let mut signed = blob(RECORDS, &records);
        if let Some(signature) = keys.sign(&BlobDigest::of(&records)) {
            signed["annotations"] = json!({SIGNATURE: signature});
        }
        let mut layers = vec![signed];
        let mut listed = BTreeSet::new();
        for layer in steps.values().map(|step| &step.layer).filter(|layer| listed.insert(layer.blob)) {
            layers.push(json!({
                "mediaType": layer.media_type.to_string(),
                "digest": layer.blob.to_string(),
                "size": layer.size,
                "annotations": {DIFF_ID: layer.diff_id.to_string()},
            }));
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MediaType::ImageManifest.to_string(),
            "artifactType": ARTIFACT,
            "config": blob(CONFIG, &config),
            "layers": layers,
        });
        let bytes = serde_json::to_vec(&manifest).map_err(failed)?;
        let manifest = Document { media_type: MediaType::ImageManifest.to_string(), bytes };
        Ok(CacheDocuments { manifest, blobs: vec![config, records] })
    }
}

pub(crate) fn compressed(lines: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = zstd::Encoder::new(Vec::new(), LEVEL)?;
    encoder.write_all(lines)?;
    encoder.finish()
}

/// The steps of a cache that may be used.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct ReadSteps {
    pub steps: CachedSteps,
    /// True if the cache has records without a valid signature, which were ignored.
    pub has_unsigned: bool,
}

/// Reads the steps of a cache from its manifest and the blobs of records. Lines in an unknown form
/// are ignored unless all lines of a blob are, and so are blobs that `keys` do not accept.
///
/// # Errors
///
/// Fails if the manifest is that of something else, or if a document is missing or damaged.
pub(crate) fn read_steps(
    manifest: &[u8],
    blobs: &dyn BlobSource,
    keys: &RecordKeys,
    budget: &RecordBudget,
) -> Result<ReadSteps> {
    check_type(manifest)?;
    let parsed = parse_manifest(manifest).map_err(TransportError::document("the cache's manifest"))?;
    let digest = |descriptor: &rbuild_image::Descriptor| {
        rbuild_image::digest_of(descriptor).map_err(TransportError::document("the cache's manifest"))
    };
    let config = blobs.document(&digest(parsed.config())?)?;
    if order_of_format(&config)?.is_ne() {
        return Err(TransportError::other("it was written by a version of rbuild with another format"));
    }
    let mut read = ReadSteps::default();
    let mut rest = RecordLimits::of(budget);
    for layer in parsed.layers().iter().filter(|layer| layer.media_type().to_string() == RECORDS) {
        let digest = digest(layer)?;
        let signature = layer.annotations().as_ref().and_then(|all| all.get(SIGNATURE));
        if !keys.accept(&digest, signature.map(String::as_str)) {
            // The tag of a cache whose shards have all steps has none of its own.
            let packed = blobs.document(&digest)?;
            rest.parse(&packed, &mut |_| read.has_unsigned = true)?;
            continue;
        }
        let packed = blobs.document(&digest)?;
        let (mut has_lines, mut is_known) = (false, false);
        rest.parse(&packed, &mut |line| {
            has_lines = true;
            let Ok(step) = serde_json::from_slice::<CachedStep>(line) else { return };
            is_known = true;
            // The first record of a key applies.
            if step.has_valid_times() {
                read.steps.entry(step.key).or_insert(step);
            }
        })?;
        if has_lines && !is_known {
            return Err(damaged_records("no line of them is a record"));
        }
    }
    Ok(read)
}

/// The bytes and lines of records that may still be read from a cache, and from all of them.
struct RecordLimits<'a> {
    bytes: u64,
    lines: usize,
    all: &'a RecordBudget,
}

impl RecordLimits<'_> {
    fn of(all: &RecordBudget) -> RecordLimits<'_> {
        RecordLimits { bytes: MAX_RECORDS, lines: MAX_LINES, all }
    }

    /// Decompresses records, and calls `found` with each line.
    fn parse(&mut self, packed: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<()> {
        let failed = || damaged_records;
        let mut lines = BufReader::new(Decoder::new(packed).map_err(failed())?);
        let mut line = Vec::new();
        loop {
            line.clear();
            let size = (&mut lines).take(self.bytes + 1).read_until(b'\n', &mut line).map_err(failed())? as u64;
            if size == 0 {
                return Ok(());
            }
            self.bytes = self.bytes.checked_sub(size).ok_or_else(too_large)?;
            self.all.take(size)?;
            if line.ends_with(b"\n") {
                line.pop();
            }
            if !line.is_empty() {
                self.lines = self.lines.checked_sub(1).ok_or_else(too_large)?;
                found(&line);
            }
        }
    }
}

/// Decompresses the records of one cache, and calls `found` with each line.
///
/// # Errors
///
/// Fails if they are damaged or exceed the limits.
pub(crate) fn parse_lines(packed: &[u8], budget: &RecordBudget, found: &mut dyn FnMut(&[u8])) -> Result<()> {
    RecordLimits::of(budget).parse(packed, found)
}

/// Returns the error for records that are damaged.
fn damaged_records(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> TransportError {
    TransportError::document("the records of the cache are damaged")(cause)
}

/// Compares the format of a configuration with that of this program: an older one is less.
fn order_of_format(config: &[u8]) -> Result<Ordering> {
    let config = config_of(config)?;
    Ok((config.version, config.layer_format).cmp(&(1, LAYER_FORMAT)))
}

fn config_of(bytes: &[u8]) -> Result<CacheConfig> {
    serde_json::from_slice(bytes).map_err(TransportError::document("the cache's configuration"))
}

/// A cache that is extended.
pub(crate) enum KnownSteps {
    Whole(ReadSteps),
    /// A document is missing, or has wrong bytes. The cache is replaced.
    Damaged,
    /// An older version of the program wrote the layers. The cache is replaced.
    OlderFormat,
    /// A newer version of the program uses the cache.
    NewerFormat,
}

impl KnownSteps {
    /// Returns the steps that stay when the cache is extended, and the remark on the others.
    pub fn kept(&self) -> (CachedSteps, CacheNote) {
        match self {
            KnownSteps::Whole(read) => {
                (read.steps.clone(), if read.has_unsigned { CacheNote::Unsigned } else { CacheNote::None })
            }
            // A cache that is damaged is replaced, but nothing else.
            KnownSteps::Damaged => (CachedSteps::new(), CacheNote::Replaced),
            KnownSteps::OlderFormat => (CachedSteps::new(), CacheNote::OlderFormat),
            KnownSteps::NewerFormat => (CachedSteps::new(), CacheNote::NewerFormat),
        }
    }
}

/// Reads the steps of a cache before it is written. `blobs` returns the error
/// [`TransportError::Document`] for documents that are missing or have the wrong digest.
///
/// # Errors
///
/// Fails if the manifest is that of something else, or if a document cannot be read now.
pub(crate) fn steps_to_extend(
    manifest: &[u8],
    blobs: &dyn BlobSource,
    keys: &RecordKeys,
    budget: &RecordBudget,
) -> Result<KnownSteps> {
    check_type(manifest)?;
    let order = || -> Result<Ordering> {
        let parsed = parse_manifest(manifest).map_err(TransportError::document("the cache's manifest"))?;
        let digest = rbuild_image::digest_of(parsed.config()).map_err(TransportError::document("the manifest"))?;
        order_of_format(&blobs.document(&digest)?)
    };
    match read_steps(manifest, blobs, keys, budget) {
        Ok(steps) => Ok(KnownSteps::Whole(steps)),
        Err(TransportError::Document { .. }) => Ok(KnownSteps::Damaged),
        Err(e) => match order()? {
            Ordering::Less => Ok(KnownSteps::OlderFormat),
            Ordering::Equal => Err(e),
            Ordering::Greater => Ok(KnownSteps::NewerFormat),
        },
    }
}

/// Returns the error for a document that is missing or has the wrong digest.
pub(crate) fn damaged_document(problem: &str) -> TransportError {
    TransportError::document("a document of the cache")(problem)
}

/// Checks that a manifest is that of a cache, so that the tag of something else is never read or
/// replaced as one.
///
/// # Errors
///
/// Fails if it is that of something else.
pub(crate) fn check_type(manifest: &[u8]) -> Result<()> {
    let document: Value = serde_json::from_slice(manifest).map_err(TransportError::document("the cache's manifest"))?;
    if document["artifactType"] == ARTIFACT {
        return Ok(());
    }
    let config = document["config"]["mediaType"].as_str();
    let (kind, help) = match config {
        Some(BUILDKIT_CONFIG) => ("a cache of BuildKit, which is only read", None),
        Some(config) if is_image_config(&MediaType::from(config)) && document["artifactType"].is_null() => {
            ("an image, not a cache", Some(ServerRemedy::UseCacheTag.into()))
        }
        _ => ("not a cache of rbuild", None),
    };
    Err(TransportError::Other { message: format!("it is {kind}"), help })
}

fn too_large() -> TransportError {
    TransportError::other("its records exceed 64 MiB or 1000000 steps")
}

#[cfg(test)]
pub mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::blobs::BlobRead;
    use crate::cache::merge::MAX_LAYERS;

    /// Returns a step whose layer contains `content`.
    pub(crate) fn step(name: &str, content: &[u8], used: i64) -> CachedStep {
        let (key, result) = (CacheKey::of(name.as_bytes()), CacheKey::of(format!("result {name}").as_bytes()));
        let blob = BlobDigest::of(content);
        serde_json::from_value(json!({
            "k": key, "r": result, "l": blob, "d": blob, "m": "application/vnd.oci.image.layer.v1.tar",
            "f": "uncompressed", "s": content.len(), "u": content.len(), "o": [0, 0, 493], "t": [7, 0],
            "c": 7, "n": used,
        }))
        .unwrap()
    }

    pub(crate) fn steps(list: impl IntoIterator<Item = CachedStep>) -> CachedSteps {
        list.into_iter().map(|step| (step.key, step)).collect()
    }

    /// Blobs in memory.
    pub(crate) struct Memory(pub HashMap<BlobDigest, Vec<u8>>);

    impl BlobSource for Memory {
        fn size(&self, digest: &BlobDigest) -> Result<Option<u64>> {
            Ok(self.0.get(digest).map(|bytes| bytes.len() as u64))
        }
        fn document(&self, digest: &BlobDigest) -> Result<Vec<u8>> {
            self.0.get(digest).cloned().ok_or_else(|| TransportError::other("missing"))
        }
        fn open(&self, _: &crate::blobs::BlobInfo) -> Result<Box<dyn BlobRead + '_>> {
            panic!("layers are not read")
        }
    }

    fn read(manifest: &[u8], blobs: &Memory) -> Result<CachedSteps> {
        read_steps(manifest, blobs, RecordKeys::none(), &RecordBudget::default()).map(|read| read.steps)
    }

    fn written(steps: &CachedSteps) -> (Vec<u8>, Memory) {
        let CacheDocuments { manifest, blobs } = CacheDocuments::of(steps, RecordKeys::none()).unwrap();
        (manifest.bytes, Memory(blobs.into_iter().map(|bytes| (BlobDigest::of(&bytes), bytes)).collect()))
    }

    #[test]
    fn steps_are_read_as_they_were_written_without_their_layers() {
        let two = steps([step("a", b"one", 5), step("b", b"one", 6), step("c", b"two", 7)]);
        let (manifest, blobs) = written(&two);
        assert_eq!(read(&manifest, &blobs).unwrap(), two);
        assert_eq!(written(&two).0, manifest, "equal steps have equal bytes");
        let parsed: Value = serde_json::from_slice(&manifest).unwrap();
        // Steps with equal layers share one descriptor.
        assert_eq!(parsed["layers"].as_array().unwrap().len(), 3);
        assert_eq!(parsed["artifactType"], ARTIFACT);
        let none = written(&CachedSteps::new());
        assert!(read(&none.0, &none.1).unwrap().is_empty());
    }

    #[test]
    fn records_without_a_valid_signature_are_ignored() {
        const KEY: &str = include_str!("signature/test-key");
        const PUBLIC: &str = include_str!("signature/test-key.pub");
        let signing = RecordKeys::default().signing_with(KEY.as_bytes()).unwrap();
        let (trusting, all) = (RecordKeys::default().trusting(PUBLIC).unwrap(), steps([step("a", b"one", 5)]));
        for (keys, reader, want) in [
            (&signing, &trusting, ReadSteps { steps: all.clone(), has_unsigned: false }),
            (&signing, RecordKeys::none(), ReadSteps { steps: all.clone(), has_unsigned: false }),
            (RecordKeys::none(), &trusting, ReadSteps { steps: CachedSteps::new(), has_unsigned: true }),
        ] {
            let CacheDocuments { manifest, blobs } = CacheDocuments::of(&all, keys).unwrap();
            let blobs = Memory(blobs.into_iter().map(|bytes| (BlobDigest::of(&bytes), bytes)).collect());
            assert_eq!(read_steps(&manifest.bytes, &blobs, reader, &RecordBudget::default()).unwrap(), want);
        }
        let none = CacheDocuments::of(&CachedSteps::new(), RecordKeys::none()).unwrap();
        let blobs = Memory(none.blobs.into_iter().map(|bytes| (BlobDigest::of(&bytes), bytes)).collect());
        let read = read_steps(&none.manifest.bytes, &blobs, &trusting, &RecordBudget::default()).unwrap();
        assert_eq!(read, ReadSteps::default());
    }

    /// The digest of a manifest is that of all documents below it.
    #[test]
    fn the_format_is_pinned() {
        let document = &CacheDocuments::of(&steps([step("a", b"one", 5)]), RecordKeys::none()).unwrap();
        let lines = Decoder::new(&document.blobs[1][..]).and_then(|mut lines| {
            let mut text = String::new();
            lines.read_to_string(&mut text).map(|_| text)
        });
        let (a, r, one) = (CacheKey::of(b"a"), CacheKey::of(b"result a"), BlobDigest::of(b"one"));
        let line = format!(
            "{{\"k\":\"sha256:{a}\",\"r\":\"sha256:{r}\",\"l\":\"{one}\",\"d\":\"{one}\",\
             \"m\":\"application/vnd.oci.image.layer.v1.tar\",\"f\":\"uncompressed\",\"s\":3,\"u\":3,\
             \"o\":[0,0,493],\"t\":[7,0],\"c\":7,\"n\":5}}\n"
        );
        assert_eq!(lines.unwrap(), line);
        let config = format!("{{\"version\":1,\"layer_format\":{LAYER_FORMAT},\"steps\":1}}");
        assert_eq!(String::from_utf8_lossy(&document.blobs[0]), config);
    }

    #[test]
    fn other_and_damaged_documents_are_reported_and_unknown_lines_ignored() {
        let (manifest, blobs) = written(&steps([step("a", b"one", 5)]));
        let changed = |old: &str, new: &str| String::from_utf8_lossy(&manifest).replace(old, new).into_bytes();
        for (manifest, want) in [
            (b"[".to_vec(), "manifest"),
            (b"{}".to_vec(), "it is not a cache of rbuild"),
            (changed(ARTIFACT, "x"), "it is not a cache of rbuild"),
            (changed(ARTIFACT, "x").into_iter().collect::<Vec<u8>>(), "it is not a cache of rbuild"),
            (
                String::from_utf8(changed(ARTIFACT, ""))
                    .unwrap()
                    .replace(CONFIG, "application/vnd.buildkit.cacheconfig.v0")
                    .into(),
                "a cache of BuildKit",
            ),
            (changed("sha256:", "sha512:"), "manifest"),
        ] {
            let e = read(&manifest, &blobs).unwrap_err();
            assert!(e.message().contains(want), "{want}: {}", e.message());
        }
        assert!(read(&manifest, &Memory(HashMap::new())).is_err());
        let lines = [b"junk\n{}\n".as_slice(), &serde_json::to_vec(&step("b", b"two", 1)).unwrap()].concat();
        let packed = compressed(&lines).unwrap();
        let records = BlobDigest::of(&blobs.0.values().find(|bytes| !bytes.starts_with(b"{")).unwrap()[..]);
        let manifest = changed(&records.to_string(), &BlobDigest::of(&packed).to_string());
        let mut blobs = blobs;
        blobs.0.insert(BlobDigest::of(&packed), packed);
        assert_eq!(read(&manifest, &blobs).unwrap(), steps([step("b", b"two", 1)]));
    }

    /// Returns the cache of one step with other records.
    fn with_records(packed: Vec<u8>) -> (Vec<u8>, Memory) {
        let (manifest, mut blobs) = written(&steps([step("a", b"one", 5)]));
        let records = BlobDigest::of(&blobs.0.values().find(|bytes| !bytes.starts_with(b"{")).unwrap()[..]);
        let manifest =
            String::from_utf8_lossy(&manifest).replace(&records.to_string(), &BlobDigest::of(&packed).to_string());
        blobs.0.insert(BlobDigest::of(&packed), packed);
        (manifest.into_bytes(), blobs)
    }

    /// Single lines may be those of another version; a blob of which nothing can be read is none.
    #[test]
    fn records_of_which_nothing_can_be_read_are_damaged() {
        let line = [&serde_json::to_vec(&step("b", b"two", 1)).unwrap()[..], b"\n"].concat();
        let whole = compressed(&line).unwrap();
        for (packed, want) in [
            (b"garbage".to_vec(), "no line of them is a record"),
            (b"\x1f\x8b\x08\0\0\0\0\0".to_vec(), ""),
            (whole[..whole.len() - 3].to_vec(), ""),
            (compressed(b"{}\n{\"k\":1}\n").unwrap(), "no line of them is a record"),
        ] {
            let (manifest, blobs) = with_records(packed);
            let e = read(&manifest, &blobs).unwrap_err();
            let message = e.message();
            assert!(matches!(e, TransportError::Document { .. }), "{message}");
            assert!(
                message.starts_with("the records of the cache are damaged: ") && message.contains(want),
                "{message}"
            );
            let known = steps_to_extend(&manifest, &blobs, RecordKeys::none(), &RecordBudget::default()).unwrap();
            assert!(matches!(known, KnownSteps::Damaged));
        }
        let (manifest, blobs) = with_records(compressed(b"").unwrap());
        assert!(read(&manifest, &blobs).unwrap().is_empty());
        // Readers detect the compression.
        let (manifest, blobs) = with_records(line);
        assert_eq!(read(&manifest, &blobs).unwrap().len(), 1);
    }

    /// A cache of an older version is replaced, one of a newer version is not.
    #[test]
    fn caches_of_other_versions_are_told_apart() {
        let (manifest, blobs) = written(&steps([step("a", b"one", 5)]));
        let config = blobs.0.values().find(|bytes| bytes.starts_with(b"{")).unwrap().clone();
        for (version, format, is_older) in [(1, LAYER_FORMAT - 1, true), (1, LAYER_FORMAT + 1, false), (2, 1, false)] {
            let other = json!({"version": version, "layer_format": format}).to_string().into_bytes();
            let manifest = String::from_utf8_lossy(&manifest)
                .replace(&BlobDigest::of(&config).to_string(), &BlobDigest::of(&other).to_string());
            let blobs = Memory(blobs.0.clone().into_iter().chain([(BlobDigest::of(&other), other)]).collect());
            let known = steps_to_extend(manifest.as_bytes(), &blobs, RecordKeys::none(), &RecordBudget::default());
            match known.unwrap() {
                KnownSteps::OlderFormat => assert!(is_older, "{version} {format}"),
                KnownSteps::NewerFormat => assert!(!is_older, "{version} {format}"),
                KnownSteps::Whole(_) | KnownSteps::Damaged => panic!("{version} {format}"),
            }
            assert!(read(manifest.as_bytes(), &blobs).unwrap_err().message().contains("another format"));
        }
    }

    /// Registries accept manifests of 4 MB, and so does this program.
    #[test]
    fn a_manifest_of_the_largest_number_of_layers_is_accepted() {
        let all = (0..MAX_LAYERS).map(|n| step(&format!("step {n}"), format!("{n}").as_bytes(), 5));
        let manifest = CacheDocuments::of(&steps(all), RecordKeys::none()).unwrap().manifest.bytes;
        assert!(manifest.len() < 1_100_000, "{}", manifest.len());
    }

    #[test]
    fn records_are_limited() {
        let (manifest, blobs) = with_records(compressed(&vec![b'\n'; MAX_RECORDS as usize + 1]).unwrap());
        let e = read(&manifest, &blobs).unwrap_err();
        assert!(e.message().contains("exceed 64 MiB"), "{}", e.message());
    }

    #[test]
    fn the_records_of_all_caches_are_limited_together() {
        let (manifest, blobs) = written(&steps([step("a", b"one", 5)]));
        let read = |budget: &RecordBudget| read_steps(&manifest, &blobs, RecordKeys::none(), budget);
        let size = serde_json::to_vec(&step("a", b"one", 5)).unwrap().len() as u64 + 1;
        let budget = RecordBudget::of(2 * size + 9);
        assert!(read(&budget).is_ok() && read(&budget).is_ok());
        let e = read(&budget).unwrap_err();
        assert_eq!(e.message(), "the records of all caches exceed 256 MiB");
        let e = parse_lines(&compressed(&[b'x'; 99]).unwrap(), &RecordBudget::of(98), &mut |_| {}).unwrap_err();
        assert_eq!(e.message(), "the records of all caches exceed 256 MiB");
    }
}
