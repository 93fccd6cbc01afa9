//! Image data types: digests, references, platforms, and the OCI documents that connect them. Also
//! URLs and checksums of files that builds download.
//!
//! This crate only contains values: no I/O, no clock, no environment. A document that arrived with
//! a digest must be stored as the original bytes; serializing a parsed document may produce others.
//!
//! ```
//! use rbuild_image::{BlobDigest, MediaType, descriptor, digest_of, manifest, parse_manifest};
//!
//! let (config, layer) = (BlobDigest::of(b"{}"), BlobDigest::of(b"a layer"));
//! let document = manifest(
//!     descriptor(MediaType::ImageConfig, &config, 2),
//!     vec![descriptor(MediaType::ImageLayer, &layer, 7)],
//! );
//! let parsed = parse_manifest(&serde_json::to_vec(&document)?)?;
//! assert_eq!(digest_of(parsed.config()), Ok(config));
//! # Ok::<(), serde_json::Error>(())
//! ```

#![warn(missing_docs)]

mod attachment;
mod checksum;
mod config;
mod digest;
mod go;
mod hash;
mod name;
mod platform;
mod source_url;

pub use attachment::{artifact_type, attested, is_attachment, is_image_config, leads_to_images};
pub use checksum::{Checksum, ChecksumAlgorithm, ChecksumError, ChecksumHasher};
pub use config::{HealthcheckConfig, History, ImageConfig, RootFs, RunConfig};
pub use digest::{BlobDigest, DiffId, DigestError, ImageDigest, ImageId, ManifestDigest};
#[doc(hidden)]
pub use digest::{hex, parse_sha256};
pub use go::{human_duration, human_size, quote};
pub use hash::{Hashed, Hasher, Sha256Id};
pub use name::{ImageName, Reference, ReferenceError};
pub use platform::{ARCHITECTURES, Platform, PlatformError};
pub use source_url::{SourceUrl, SourceUrlError, hide_logins};

#[doc(hidden)]
pub use serde;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

pub use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType};

/// Default `PATH` for images that do not set one.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Annotation with the name of an entry in an OCI image layout (OCI image-spec, annotations.md).
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Returns the descriptor of a blob of `size` bytes.
pub fn descriptor(media_type: MediaType, digest: &BlobDigest, size: u64) -> Descriptor {
    let digest: oci_spec::image::Digest =
        digest.to_string().parse().expect("a BlobDigest prints as a valid OCI digest");
    Descriptor::new(media_type, size, digest)
}

/// Returns an image manifest with schema version 2 and the OCI media type.
pub fn manifest(config: Descriptor, layers: Vec<Descriptor>) -> ImageManifest {
    oci_spec::image::ImageManifestBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageManifest)
        .config(config)
        .layers(layers)
        .build()
        .expect("all required fields are set")
}

/// Parses an image manifest. As in Go tools, a `layers` list that is `null` or missing is empty.
///
/// # Errors
///
/// Returns an error if the text is not a manifest.
pub fn parse_manifest(text: &[u8]) -> serde_json::Result<ImageManifest> {
    with_list(text, "layers")
}

/// Parses an image index. As in Go tools, a `manifests` list that is `null` or missing is empty.
///
/// # Errors
///
/// Returns an error if the text is not an index.
pub fn parse_index(text: &[u8]) -> serde_json::Result<ImageIndex> {
    #[derive(Deserialize)]
    struct Index {
        manifests: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        platform: Option<Listed>,
    }
    #[derive(Deserialize)]
    struct Listed {
        #[serde(rename = "os.version")]
        version: Option<String>,
        #[serde(rename = "os.features")]
        features: Option<Vec<String>>,
    }
    let mut index: ImageIndex = with_list(text, "manifests")?;
    if !text.windows(4).any(|part| part == b"\"os.") {
        return Ok(index);
    }
    // oci-spec has other names for these two.
    let listed: Index = with_list(text, "manifests")?;
    let mut entries = index.manifests().clone();
    for (entry, found) in entries.iter_mut().zip(listed.manifests) {
        if let (Some(mut platform), Some(found)) = (entry.platform().clone(), found.platform) {
            platform.set_os_version(found.version).set_os_features(found.features);
            entry.set_platform(Some(platform));
        }
    }
    index.set_manifests(entries);
    Ok(index)
}

/// Returns the platform of a descriptor as it is written in an index, if it has one.
pub fn platform_document(d: &Descriptor) -> Option<Value> {
    let listed = d.platform().as_ref()?;
    let mut document = json!({"architecture": listed.architecture().to_string(), "os": listed.os().to_string()});
    let members = [
        ("os.version", listed.os_version().as_ref().map(|version| json!(version))),
        ("os.features", listed.os_features().as_ref().map(|features| json!(features))),
        ("variant", listed.variant().as_ref().map(|variant| json!(variant))),
        ("features", listed.features().as_ref().map(|features| json!(features))),
    ];
    for (name, value) in members {
        if let Some(value) = value {
            document[name] = value;
        }
    }
    Some(document)
}

/// Parses a document, with an empty array for `list` if it is `null` or missing.
fn with_list<T: DeserializeOwned>(text: &[u8], list: &str) -> serde_json::Result<T> {
    serde_json::from_slice(text).or_else(|e| {
        let mut document: Map<String, Value> = serde_json::from_slice(text)?;
        let entry = document.entry(list).or_insert(Value::Null);
        if !entry.is_null() {
            return Err(e);
        }
        *entry = Value::Array(Vec::new());
        serde_json::from_value(Value::Object(document))
    })
}

/// Returns the digest of a descriptor.
///
/// # Errors
///
/// Returns an error if the digest is not a SHA-256.
pub fn digest_of(d: &Descriptor) -> Result<BlobDigest, DigestError> {
    d.digest().to_string().parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_of_an_index_are_complete() {
        let platforms = [
            r#"{"architecture":"amd64","os":"windows","os.version":"10.0.1","os.features":["win32k"]}"#,
            r#"{"architecture":"arm","os":"linux","variant":"v6"}"#,
            r#"{"architecture":"other","os":"linux","features":["a"]}"#,
        ];
        let (media_type, digest) = (MediaType::ImageManifest, BlobDigest::of(b"x"));
        let entries = platforms.map(|platform| {
            format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":1,"platform":{platform}}}"#)
        });
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
        let index = parse_index(text.as_bytes()).unwrap();
        for (entry, platform) in index.manifests().iter().zip(platforms) {
            assert_eq!(platform_document(entry).unwrap(), serde_json::from_str::<Value>(platform).unwrap());
        }
        assert_eq!(platform_document(&descriptor(media_type, &digest, 1)), None);
        let invalid = text.replace("\"10.0.1\"", "1");
        assert!(parse_index(invalid.as_bytes()).is_err());
    }

    #[test]
    fn null_and_missing_lists_are_empty() {
        let digest = BlobDigest::of(b"config");
        let config =
            format!(r#"{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":6}}"#);
        for layers in [r#","layers":[]"#, r#","layers":null"#, ""] {
            let text = format!(r#"{{"schemaVersion":2,"config":{config}{layers}}}"#);
            assert!(parse_manifest(text.as_bytes()).unwrap().layers().is_empty(), "{text}");
            assert!(parse_manifest(text.replace(&config, "null").as_bytes()).is_err());
        }
        for manifests in [r#","manifests":[]"#, r#","manifests":null"#, ""] {
            let text = format!(r#"{{"schemaVersion":2{manifests}}}"#);
            assert!(parse_index(text.as_bytes()).unwrap().manifests().is_empty(), "{text}");
        }
        assert!(parse_index(br#"{"schemaVersion":2,"manifests":{}}"#).is_err());
        assert!(parse_index(b"null").is_err());
    }
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
