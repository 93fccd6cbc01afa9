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

/// The digest a descriptor names, if it is a SHA-256.
pub fn digest_of(d: &Descriptor) -> Result<Digest, DigestError> {
    d.digest().to_string().parse()
}
