//! Content that descriptors contain.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rbuild_image::{BlobDigest, Descriptor, digest_of};

/// Returns the content that a descriptor contains (`data`). Returns `None` if there is none, or if
/// it does not have the size and the digest that the descriptor states.
pub fn embedded(descriptor: &Descriptor) -> Option<Vec<u8>> {
    let bytes = BASE64_STANDARD.decode(descriptor.data().as_deref()?).ok()?;
    let fits = bytes.len() as u64 == descriptor.size() && digest_of(descriptor).ok()? == BlobDigest::of(&bytes);
    fits.then_some(bytes)
}

/// Decodes base64; `None` if the text is something else.
pub fn decode_text(text: &str) -> Option<Vec<u8>> {
    BASE64_STANDARD.decode(text).ok()
}

/// Returns content in the form in which a descriptor contains it (`data`).
pub fn embeddable(content: &[u8]) -> String {
    BASE64_STANDARD.encode(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_encoded_as_it_is_read() {
        let content = b"content";
        let mut descriptor =
            rbuild_image::descriptor(rbuild_image::MediaType::ImageConfig, &BlobDigest::of(content), 7);
        descriptor.set_data(Some(embeddable(content)));
        assert_eq!(embedded(&descriptor).as_deref(), Some(&content[..]));
    }

    #[test]
    fn content_that_does_not_fit_is_ignored() {
        let digest = BlobDigest::of(b"{}");
        for (data, size, fits) in [
            (Some("e30="), 2, true),
            (Some("e30="), 3, false),
            (Some("W10="), 2, false),
            (Some("e30"), 2, false),
            (Some("!"), 2, false),
            (Some(""), 2, false),
            (None, 2, false),
        ] {
            let mut descriptor = rbuild_image::descriptor(rbuild_image::MediaType::ImageConfig, &digest, size);
            descriptor.set_data(data.map(str::to_string));
            assert_eq!(embedded(&descriptor), fits.then(|| b"{}".to_vec()), "{data:?} {size}");
        }
    }
}
