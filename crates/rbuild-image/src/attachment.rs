//! Entries of an image index that are not images: attestations and other artifacts.

use oci_spec::image::{Descriptor, ImageManifest, MediaType};

use crate::digest::ManifestDigest;
use crate::platform::Platform;

/// Annotation with the type of a manifest that refers to another one of its index.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
/// Annotation with the digest of the manifest that such a manifest refers to.
const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";

/// Media type of Docker's manifests.
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Types of configurations in such manifests that say nothing about their content.
const UNSPECIFIC_TYPES: [&str; 4] = ["", "application/json", "application/octet-stream", "text/html"];

/// Returns true if an entry of an index is an attestation or another artifact. BuildKit gives
/// attestations the platform `unknown/unknown`, so that clients do not choose them. The artifact
/// type of an image is the media type of its configuration (image-spec, "Descriptors") or empty.
pub fn is_attachment(entry: &Descriptor) -> bool {
    let is_unknown = Platform::of(entry).is_some_and(|platform| platform.os == "unknown");
    let is_artifact =
        entry.artifact_type().as_ref().is_some_and(|kind| !kind.as_ref().is_empty() && !is_image_config(kind));
    is_unknown || annotation(entry, REFERENCE_TYPE).is_some() || is_artifact
}

/// Returns true if an entry of an index is an image or an index, which may contain images. Entries
/// of unknown types have to be ignored (image-spec, image-index.md, "manifests").
pub fn leads_to_images(entry: &Descriptor) -> bool {
    let is_known = matches!(entry.media_type(), MediaType::ImageManifest | MediaType::ImageIndex)
        || entry.media_type().as_ref().starts_with("application/vnd.docker.distribution.manifest.");
    is_known && !is_attachment(entry)
}

/// Returns true for the media types of configurations of images.
pub fn is_image_config(kind: &MediaType) -> bool {
    match kind {
        MediaType::ImageConfig => true,
        MediaType::Other(kind) => kind == "application/vnd.docker.container.image.v1+json",
        _ => false,
    }
}

/// Returns the type of a manifest that is not that of an image.
///
/// Registries and clients gave configurations of Docker's manifests other types
/// (distribution/distribution#1621). Docker, whose manifests are always those of images, accepts
/// them.
pub fn artifact_type(manifest: &ImageManifest) -> Option<&MediaType> {
    let is_docker = manifest.media_type().as_ref().is_some_and(|kind| kind.as_ref() == DOCKER_MANIFEST);
    let is_config = |kind: &MediaType| is_image_config(kind) || is_docker && UNSPECIFIC_TYPES.contains(&kind.as_ref());
    let stated = manifest.artifact_type().as_ref().filter(|kind| !kind.as_ref().is_empty());
    let other = stated.filter(|kind| !is_image_config(kind));
    other.or_else(|| Some(manifest.config().media_type()).filter(|kind| !is_config(kind)))
}

/// Returns the manifest that an attestation of an index refers to.
pub fn attested(entry: &Descriptor) -> Option<ManifestDigest> {
    annotation(entry, REFERENCE_DIGEST)?.parse().ok()
}

fn annotation<'a>(entry: &'a Descriptor, name: &str) -> Option<&'a str> {
    entry.annotations().as_ref()?.get(name).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use crate::parse_index;

    use super::*;

    #[test]
    fn entries_without_a_platform_for_images_are_attachments() {
        let digest = format!("sha256:{}", "1".repeat(64));
        let kind = "application/vnd.oci.image.manifest.v1+json";
        for (more, is_it, subject) in [
            (String::new(), false, None),
            (r#","platform":{"os":"linux","architecture":"amd64"}"#.into(), false, None),
            (r#","platform":{"os":"unknown","architecture":"unknown"}"#.into(), true, None),
            (r#","artifactType":"example/x""#.into(), true, None),
            (r#","artifactType":"""#.into(), false, None),
            (r#","artifactType":"application/vnd.oci.image.config.v1+json""#.into(), false, None),
            (r#","artifactType":"application/vnd.docker.container.image.v1+json""#.into(), false, None),
            (
                format!(
                    r#","annotations":{{"{REFERENCE_TYPE}":"attestation-manifest","{REFERENCE_DIGEST}":"{digest}"}}"#
                ),
                true,
                Some(digest.clone()),
            ),
        ] {
            let entry = format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":1{more}}}"#);
            let index = parse_index(format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#).as_bytes()).unwrap();
            let entry = &index.manifests()[0];
            assert_eq!(is_attachment(entry), is_it, "{more}");
            assert_eq!(leads_to_images(entry), !is_it, "{more}");
            assert_eq!(attested(entry).map(|digest| digest.to_string()), subject, "{more}");
        }
    }

    #[test]
    fn manifests_of_images_have_configurations_of_images() {
        let digest = format!("sha256:{}", "1".repeat(64));
        let oci = "application/vnd.oci.image.manifest.v1+json";
        for (kind, config, more, want) in [
            (oci, "application/vnd.oci.image.config.v1+json", "", None),
            (oci, "application/vnd.oci.image.config.v1+json", r#","artifactType":"""#, None),
            (oci, "application/vnd.oci.image.config.v1+json", r#","artifactType":"example/x""#, Some("example/x")),
            (oci, "application/octet-stream", "", Some("application/octet-stream")),
            (oci, "application/vnd.cncf.helm.config.v1+json", "", Some("application/vnd.cncf.helm.config.v1+json")),
            (DOCKER_MANIFEST, "application/vnd.docker.container.image.v1+json", "", None),
            (DOCKER_MANIFEST, "application/octet-stream", "", None),
            (DOCKER_MANIFEST, "", "", None),
            (
                DOCKER_MANIFEST,
                "application/vnd.docker.plugin.v1+json",
                "",
                Some("application/vnd.docker.plugin.v1+json"),
            ),
        ] {
            let config = format!(r#"{{"mediaType":"{config}","digest":"{digest}","size":1}}"#);
            let text = format!(r#"{{"schemaVersion":2,"mediaType":"{kind}","config":{config},"layers":[]{more}}}"#);
            let manifest = crate::parse_manifest(text.as_bytes()).unwrap();
            assert_eq!(artifact_type(&manifest).map(|kind| kind.to_string()).as_deref(), want, "{text}");
        }
    }

    #[test]
    fn only_known_types_lead_to_images() {
        for (kind, want) in [
            ("application/vnd.oci.image.manifest.v1+json", true),
            ("application/vnd.oci.image.index.v1+json", true),
            ("application/vnd.docker.distribution.manifest.v2+json", true),
            ("application/vnd.docker.distribution.manifest.list.v2+json", true),
            ("application/vnd.oci.artifact.manifest.v1+json", false),
            ("application/vnd.example.signature.v1+json", false),
            ("text/plain", false),
        ] {
            let entry = crate::descriptor(MediaType::from(kind), &crate::BlobDigest::of(b""), 0);
            assert_eq!(leads_to_images(&entry), want, "{kind}");
        }
    }
}
