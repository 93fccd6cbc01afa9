//! What an image is: digests, names, platforms, and the documents that tie them together.
//!
//! Values only: no I/O, no clock, no environment. A document that came with a digest is kept as bytes elsewhere;
//! what is parsed here is never written back in its place.

mod config;
mod digest;
mod go;
mod name;
mod platform;

pub use config::{Healthcheck, History, ImageConfig, RootFs, RunConfig};
pub use digest::{Digest, DigestError, Hashed, Hasher};
pub use go::{human_duration, human_size, quote};
pub use name::{ImageName, Reference, ReferenceError};
pub use platform::Platform;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

pub use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType};

/// The `PATH` of an image that names none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Annotation under which a layout names its entries (OCI image layout, "org.opencontainers.image.ref.name").
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A descriptor of `size` bytes with that digest.
pub fn descriptor(media_type: MediaType, digest: &Digest, size: u64) -> Descriptor {
    let digest: oci_spec::image::Digest = digest.to_string().parse().expect("our digests are valid");
    Descriptor::new(media_type, size, digest)
}

/// The manifest of one image.
pub fn manifest(config: Descriptor, layers: Vec<Descriptor>) -> ImageManifest {
    oci_spec::image::ImageManifestBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageManifest)
        .config(config)
        .layers(layers)
        .build()
        .expect("all that a manifest must have is given")
}

/// Reads a manifest. As for other tools, a list that is `null` or not there is empty.
pub fn parse_manifest(text: &[u8]) -> serde_json::Result<ImageManifest> {
    with_list(text, "layers")
}

/// Reads an index. As for other tools, a list that is `null` or not there is empty.
pub fn parse_index(text: &[u8]) -> serde_json::Result<ImageIndex> {
    with_list(text, "manifests")
}

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

/// The digest a descriptor names, if it is a SHA-256.
pub fn digest_of(d: &Descriptor) -> Result<Digest, DigestError> {
    d.digest().to_string().parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_that_are_null_are_empty() {
        let digest = Digest::of(b"config");
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
