//! Media types of images, in the versions of OCI and Docker.

use rbuild_image::{Descriptor, MediaType};

/// Docker's media types for layers; those of OCI are variants of [`MediaType`].
const DOCKER_LAYERS: [&str; 5] = [
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

pub(crate) fn is_index(media_type: &MediaType) -> bool {
    matches!(media_type, MediaType::ImageIndex) || media_type.as_ref() == DOCKER_INDEX
}

/// Returns true for layers that must not be distributed. Their URLs are used; those of others are
/// ignored, because any manifest could make clients contact any server.
pub(crate) fn is_nondistributable(media_type: &MediaType) -> bool {
    match media_type {
        MediaType::ImageLayerNonDistributable
        | MediaType::ImageLayerNonDistributableGzip
        | MediaType::ImageLayerNonDistributableZstd => true,
        other => other.as_ref().starts_with("application/vnd.docker.image.rootfs.foreign."),
    }
}

/// Returns a layer with the type of one that may be distributed.
pub fn distributable(mut layer: Descriptor) -> Descriptor {
    if is_nondistributable(layer.media_type()) {
        let plain = layer.media_type().to_string().replace(".nondistributable.", ".").replace(".foreign.", ".");
        layer.set_media_type(MediaType::from(plain.as_str()));
        layer.set_urls(None);
    }
    layer
}

pub(crate) fn is_layer(media_type: &MediaType) -> bool {
    match media_type {
        MediaType::ImageLayer
        | MediaType::ImageLayerGzip
        | MediaType::ImageLayerZstd
        | MediaType::ImageLayerNonDistributable
        | MediaType::ImageLayerNonDistributableGzip
        | MediaType::ImageLayerNonDistributableZstd => true,
        other => DOCKER_LAYERS.contains(&other.as_ref()),
    }
}

/// Returns the form of layers of a media type: `uncompressed`, `gzip` or `zstd`.
pub(crate) fn form_of(media_type: &str) -> Option<&'static str> {
    match media_type {
        "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
            Some("uncompressed")
        }
        "application/vnd.oci.image.layer.v1.tar+gzip" | "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
            Some("gzip")
        }
        "application/vnd.oci.image.layer.v1.tar+zstd" | "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
            Some("zstd")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rbuild_image::{BlobDigest, descriptor};

    use super::*;

    #[test]
    fn layers_that_may_be_distributed_have_the_usual_types() {
        let oci = "application/vnd.oci.image.layer";
        let docker = "application/vnd.docker.image.rootfs";
        for (given, want) in [
            (format!("{oci}.nondistributable.v1.tar"), format!("{oci}.v1.tar")),
            (format!("{oci}.nondistributable.v1.tar+gzip"), format!("{oci}.v1.tar+gzip")),
            (format!("{oci}.nondistributable.v1.tar+zstd"), format!("{oci}.v1.tar+zstd")),
            (format!("{docker}.foreign.diff.tar.gzip"), format!("{docker}.diff.tar.gzip")),
            (format!("{oci}.v1.tar+gzip"), format!("{oci}.v1.tar+gzip")),
        ] {
            let mut layer = descriptor(MediaType::from(given.as_str()), &BlobDigest::of(b""), 0);
            layer.set_urls(Some(vec!["https://a.io/".into()]));
            let made = distributable(layer);
            assert_eq!(made.media_type().to_string(), want);
            assert!(is_layer(made.media_type()) && !is_nondistributable(made.media_type()), "{want}");
            assert_eq!(made.urls().is_some(), given == want);
        }
    }
}
