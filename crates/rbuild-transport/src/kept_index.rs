//! Stored indexes that are transferred as they are, with their attestations.

use rbuild_image::{Descriptor, ManifestDigest, MediaType, digest_of, parse_index, parse_manifest};
use rbuild_store::{Artifact, Store};

use crate::blobs::{BlobInfo, Document};
use crate::error::{Result, TransportError};

/// An index as the store has it.
pub struct KeptIndex {
    pub(crate) document: Document,
    /// Attestations and other artifacts that it lists, followed by the indexes in it.
    pub(crate) attachments: Vec<Attachment>,
}

/// An attestation or another artifact of an index, or an index in it.
#[derive(Clone)]
pub(crate) struct Attachment {
    pub document: Document,
    /// The blobs that the manifest refers to.
    pub blobs: Vec<BlobInfo>,
}

impl Attachment {
    /// Parses a manifest.
    pub(crate) fn of(bytes: Vec<u8>) -> Result<Attachment> {
        let parsed = parse_manifest(&bytes).map_err(TransportError::document("the manifest of an attestation"))?;
        let media_type = parsed.media_type().as_ref().map_or(MediaType::ImageManifest.to_string(), ToString::to_string);
        let blobs = parsed.layers().iter().chain([parsed.config()]).map(info).collect::<Result<_>>()?;
        Ok(Attachment { document: Document { media_type, bytes }, blobs })
    }

    /// Parses an index, whose manifests are those of the whole index.
    pub(crate) fn of_index(bytes: Vec<u8>) -> Result<Attachment> {
        Ok(Attachment { document: index_document(bytes)?, blobs: Vec::new() })
    }
}

/// Returns digest and size in a descriptor of a manifest.
fn info(part: &Descriptor) -> Result<BlobInfo> {
    let digest = digest_of(part).map_err(TransportError::document("the manifest of an attestation"))?;
    Ok(BlobInfo { digest, size: part.size() })
}

fn index_document(bytes: Vec<u8>) -> Result<Document> {
    let parsed = parse_index(&bytes).map_err(TransportError::document("the image index"))?;
    let media_type = parsed.media_type().as_ref().map_or(MediaType::ImageIndex.to_string(), ToString::to_string);
    Ok(Document { media_type, bytes })
}

impl KeptIndex {
    /// Reads the index of an artifact; `None` for a single image.
    ///
    /// # Errors
    ///
    /// Fails if a document is missing or damaged.
    pub fn of(store: &Store, artifact: &Artifact) -> Result<Option<KeptIndex>> {
        let Artifact::Index { digest, attachments, .. } = artifact else { return Ok(None) };
        let read = |digest: &ManifestDigest| store.blobs().read_document(&digest.blob());
        let document = index_document(read(digest)?)?;
        let attachments = attachments.iter().map(|digest| Attachment::of(read(digest)?));
        let indexes = artifact.indexes().iter().map(|digest| Attachment::of_index(read(digest)?));
        Ok(Some(KeptIndex { document, attachments: attachments.chain(indexes).collect::<Result<_>>()? }))
    }
}
