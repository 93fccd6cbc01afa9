//! Identifiers that are SHA-256 hashes. Each kind has its own type, so that one cannot be
//! passed for another.

use crate::hash::parse_hex;

/// A text that is not a SHA-256 digest. Contains its first 100 characters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid digest `{0}`: expected sha256:<64 hexadecimal digits>")]
pub struct DigestError(pub String);

/// Parses `sha256:` and 64 lower-case hexadecimal digits (OCI image-spec, descriptor.md,
/// "Digests").
///
/// # Errors
///
/// Fails if the text is anything else.
#[doc(hidden)]
pub fn parse_sha256(text: &str) -> Result<[u8; 32], DigestError> {
    let bytes = text.strip_prefix("sha256:").and_then(parse_hex);
    bytes.ok_or_else(|| DigestError(text.chars().take(100).collect()))
}

/// Returns bytes as lower-case hexadecimal digits.
#[doc(hidden)]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Defines types for identifiers that are SHA-256 hashes.
///
/// A type defined with `digest` prints as `sha256:` and 64 lower-case hexadecimal digits, one
/// defined with `key` as the digits alone. Both are serialized with the prefix.
///
/// ```
/// rbuild_image::id_type! {
///     /// Identifier of a thing.
///     key ThingId;
/// }
/// let id = ThingId::of(b"a thing");
/// assert_eq!(id.to_string(), id.hex());
/// assert_eq!(serde_json::to_string(&id)?, format!("\"sha256:{id}\""));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[macro_export]
macro_rules! id_type {
    ($($(#[$doc:meta])* $form:ident $name:ident;)+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        // A private type need not use all of them.
        #[allow(dead_code)]
        impl $name {
            /// Returns the SHA-256 of `bytes`.
            pub fn of(bytes: &[u8]) -> $name {
                let mut hasher = $crate::Hasher::new();
                hasher.update(bytes);
                hasher.finish()
            }

            /// Returns the identifier with this binary value.
            pub fn from_bytes(bytes: [u8; 32]) -> $name {
                $name(bytes)
            }

            /// Returns the binary value.
            pub fn bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// Returns the 64 lower-case hexadecimal digits.
            pub fn hex(&self) -> String {
                $crate::hex(&self.0)
            }

            /// Returns the first twelve hexadecimal digits, the short form shown to users.
            pub fn short(&self) -> String {
                $crate::hex(&self.0[..6])
            }
        }

        impl $crate::Sha256Id for $name {
            fn from_bytes(bytes: [u8; 32]) -> $name {
                $name(bytes)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}{}", $crate::id_type!(@prefix $form), self.hex())
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{self}")
            }
        }

        impl $crate::serde::Serialize for $name {
            fn serialize<S: $crate::serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(&format_args!("sha256:{}", self.hex()))
            }
        }

        impl<'de> $crate::serde::Deserialize<'de> for $name {
            fn deserialize<D: $crate::serde::Deserializer<'de>>(d: D) -> Result<$name, D::Error> {
                let text = <String as $crate::serde::Deserialize>::deserialize(d)?;
                $crate::parse_sha256(&text).map($name).map_err($crate::serde::de::Error::custom)
            }
        }

        $crate::id_type!(@parse $form $name);
    )+};
    (@prefix digest) => { "sha256:" };
    (@prefix key) => { "" };
    (@parse digest $name:ident) => {
        impl std::str::FromStr for $name {
            type Err = $crate::DigestError;
            fn from_str(text: &str) -> Result<$name, $crate::DigestError> {
                $crate::parse_sha256(text).map($name)
            }
        }
    };
    (@parse key $name:ident) => {};
}

id_type! {
    /// Digest of a blob as it is stored and transferred, which may be compressed.
    digest BlobDigest;
    /// Digest of the uncompressed bytes of a layer (OCI image-spec, config.md, "Layer DiffID").
    digest DiffId;
    /// Digest of an image configuration, which identifies the image (OCI image-spec, config.md,
    /// "ImageID").
    digest ImageId;
    /// Digest of an image manifest, or of an index of manifests.
    digest ManifestDigest;
    /// Digest by which a user names an image: an [`ImageId`] or a [`ManifestDigest`].
    digest ImageDigest;
}

impl BlobDigest {
    /// Returns the same digest as that of a manifest, for a blob that is known to be one.
    pub fn of_manifest(self) -> ManifestDigest {
        ManifestDigest(self.0)
    }

    /// Returns the same digest as an image ID, for a blob that is known to be a configuration.
    pub fn of_config(self) -> ImageId {
        ImageId(self.0)
    }

    /// Returns the same digest as a diffID, for a blob that is known to be an uncompressed layer.
    pub fn of_plain_layer(self) -> DiffId {
        DiffId(self.0)
    }
}

impl ManifestDigest {
    /// Returns the digest of the blob that contains the manifest.
    pub fn blob(&self) -> BlobDigest {
        BlobDigest(self.0)
    }
}

impl ImageId {
    /// Returns the digest of the blob that contains the configuration.
    pub fn blob(&self) -> BlobDigest {
        BlobDigest(self.0)
    }
}

impl DiffId {
    /// Returns the digest of the blob that contains the layer without compression.
    pub fn plain_blob(&self) -> BlobDigest {
        BlobDigest(self.0)
    }
}

impl ImageDigest {
    /// Returns true if this is the ID of the image.
    pub fn is_id(&self, id: &ImageId) -> bool {
        self.0 == id.0
    }

    /// Returns the digest as that of a manifest.
    pub fn as_manifest(&self) -> ManifestDigest {
        ManifestDigest(self.0)
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, no_remedy, variants};

    use super::*;

    id_type! {
        /// A key.
        key TestKey;
    }

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn digests_round_trip_and_invalid_ones_are_rejected_as_recorded() {
        let d = BlobDigest::of(b"");
        assert_eq!(d.to_string(), format!("sha256:{EMPTY}"));
        assert_eq!(d.to_string().parse(), Ok(d));
        let long = "a".repeat(200);
        let invalid =
            ["", "sha256:", "sha512:00", "sha256:E3", &d.to_string()[..70], &d.to_string().to_uppercase(), &long];
        let errors = invalid.map(|text| text.parse::<BlobDigest>().expect_err(text));
        assert_recorded!("DigestError", variants!(DigestError).table(&errors, |e| e, no_remedy));
    }

    #[test]
    fn fields_are_length_prefixed() {
        let hash = |parts: &[&str]| {
            let mut h = crate::Hasher::new();
            for p in parts {
                h.field(p);
            }
            h.finish::<BlobDigest>()
        };
        assert_ne!(hash(&["ab", "c"]), hash(&["a", "bc"]));
        assert_ne!(hash(&["ab"]), hash(&["ab", ""]));
    }

    #[test]
    fn cache_keys_print_without_the_algorithm_and_are_stored_with_it() {
        let key = TestKey::of(b"");
        assert_eq!((key.to_string(), key.hex(), key.short()), (EMPTY.into(), EMPTY.into(), EMPTY[..12].into()));
        let document = serde_json::to_string(&key).unwrap();
        assert_eq!(document, format!("\"sha256:{EMPTY}\""));
        assert_eq!(document, serde_json::to_string(&BlobDigest::of(b"")).unwrap());
        assert_eq!(serde_json::from_str::<TestKey>(&document).unwrap(), key);
    }
}
