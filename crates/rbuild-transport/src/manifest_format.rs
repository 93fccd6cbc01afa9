//! Conversion of manifests between the formats of OCI and Docker.

use rbuild_image::{Descriptor, ImageManifest, MediaType};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Media types of configurations and layers: those of OCI, and the corresponding ones of Docker.
const PARTS: [(&str, &str); 6] = [
    ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"),
    ("application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar"),
    ("application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip"),
    ("application/vnd.oci.image.layer.v1.tar+zstd", "application/vnd.docker.image.rootfs.diff.tar.zstd"),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar"),
    (
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ),
];

/// The format of the manifests of a push.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ManifestFormat {
    /// That of the store.
    #[default]
    Stored,
    /// That of OCI.
    Oci,
    /// Docker's version 2, schema 2, which has no annotations, artifact types and subjects.
    Docker,
}

impl ManifestFormat {
    /// Returns a manifest in this format.
    pub(crate) fn convert(self, manifest: &ImageManifest) -> ImageManifest {
        let mut converted = manifest.clone();
        let document = match self {
            ManifestFormat::Stored => return converted,
            ManifestFormat::Oci => OCI_MANIFEST,
            ManifestFormat::Docker => {
                converted.set_annotations(None);
                converted.set_artifact_type(None);
                converted.set_subject(None);
                DOCKER_MANIFEST
            }
        };
        converted.set_media_type(Some(MediaType::from(document)));
        converted.set_config(self.part(manifest.config()));
        converted.set_layers(manifest.layers().iter().map(|layer| self.part(layer)).collect());
        converted
    }

    /// Returns the descriptor of a configuration or a layer in this format.
    fn part(self, part: &Descriptor) -> Descriptor {
        let own = part.media_type().to_string();
        let known = PARTS.iter().find(|(oci, docker)| own == *oci || own == *docker);
        let mut converted = part.clone();
        let media_type = match (self, known) {
            (ManifestFormat::Oci, Some((oci, _))) => oci,
            (ManifestFormat::Docker, Some((_, docker))) => docker,
            (ManifestFormat::Stored, _) | (_, None) => return converted,
        };
        converted.set_media_type(MediaType::from(*media_type));
        if self == ManifestFormat::Docker {
            converted.set_annotations(None);
            converted.set_artifact_type(None);
            converted.set_data(None);
        }
        converted
    }

    /// Returns the media type of an index of several platforms.
    pub(crate) fn index_type(self) -> &'static str {
        match self {
            ManifestFormat::Stored | ManifestFormat::Oci => OCI_INDEX,
            ManifestFormat::Docker => DOCKER_INDEX,
        }
    }
}

#[cfg(test)]
mod tests {
    use rbuild_image::{BlobDigest, descriptor, manifest};

    use super::*;

    #[test]
    fn all_media_types_are_converted_and_converted_back() {
        let blob = BlobDigest::of(b"x");
        let of = |media_type: &str| descriptor(MediaType::from(media_type), &blob, 1);
        let layers: Vec<Descriptor> = PARTS[1..].iter().map(|(oci, _)| of(oci)).collect();
        let oci = manifest(of(PARTS[0].0), layers);
        let docker = ManifestFormat::Docker.convert(&oci);
        let types = |manifest: &ImageManifest| -> Vec<String> {
            let parts = manifest.layers().iter().chain([manifest.config()]).map(|part| part.media_type().to_string());
            parts.chain(manifest.media_type().as_ref().map(ToString::to_string)).collect()
        };
        let want = PARTS[1..].iter().chain(&PARTS[..1]).map(|(_, docker)| *docker).chain([DOCKER_MANIFEST]);
        assert_eq!(types(&docker), want.collect::<Vec<_>>());
        assert_eq!(ManifestFormat::Oci.convert(&docker), oci);
        assert_eq!(ManifestFormat::Docker.convert(&docker), docker);
        for format in [ManifestFormat::Stored, ManifestFormat::Oci] {
            assert_eq!(format.convert(&oci), oci);
        }
        // An unknown type has no counterpart.
        let other = manifest(of(PARTS[0].0), vec![of("application/x")]);
        assert_eq!(ManifestFormat::Docker.convert(&other).layers(), other.layers());
    }

    #[test]
    fn the_format_of_docker_has_no_annotations() {
        let mut noted = manifest(descriptor(MediaType::ImageConfig, &BlobDigest::of(b"x"), 1), Vec::new());
        noted.set_annotations(Some([("a".to_string(), "b".to_string())].into()));
        noted.set_artifact_type(Some(MediaType::from("example/a")));
        noted.set_subject(Some(descriptor(MediaType::ImageManifest, &BlobDigest::of(b"y"), 1)));
        let mut config = noted.config().clone();
        config.set_data(Some("eA==".to_string()));
        noted.set_config(config);
        let has = |manifest: &ImageManifest| {
            let kept = [manifest.annotations().is_some(), manifest.subject().is_some()];
            [kept, [manifest.artifact_type().is_some(), manifest.config().data().is_some()]].concat()
        };
        assert_eq!(has(&ManifestFormat::Oci.convert(&noted)), [true; 4]);
        assert_eq!(has(&ManifestFormat::Docker.convert(&noted)), [false; 4]);
    }
}
