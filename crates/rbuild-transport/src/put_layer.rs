//! Storing of a layer from a stream.

use rbuild_remedy::ImageRemedy;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{Cursor, Read};
use std::path::Path;

use rbuild_image::{BlobDigest, DiffId, Hasher, MediaType};
use rbuild_layer::whiteout::is_whiteout;
use rbuild_layer::{Bounded, Compression, LimitedTar, detect};
use rbuild_store::{Staging, StagingBlob};

use crate::error::{Result, TransportError};
use crate::member_name::clean;

/// A layer that was stored.
pub struct PutLayer {
    /// Digest of the blob.
    pub digest: BlobDigest,
    /// Size of the blob in bytes.
    pub size: u64,
    /// Digest of the uncompressed bytes.
    pub diff_id: DiffId,
    /// Media type for the manifest.
    pub media_type: MediaType,
    /// True if the files in it are those of a docker-archive or an OCI layout.
    pub is_image_archive: bool,
    /// The first entry whose name begins with `.wh.`, which deletes something.
    pub whiteout: Option<String>,
}

/// Stores a layer of any compression. Reads every entry, so that a stream that is not an archive,
/// or one that exceeds the limits, is refused here.
///
/// # Errors
///
/// Fails if the stream is empty, is not an archive or exceeds a limit, or if the store cannot be
/// written.
pub fn put_layer(staging: &Staging<'_>, source: impl Read, origin: &str) -> Result<PutLayer> {
    let limits = staging.store().limits();
    let unread = format!("cannot read {origin}");
    let mut head = Vec::new();
    let mut source = source;
    source.by_ref().take(16).read_to_end(&mut head).map_err(TransportError::reading(&*unread))?;
    let compression = detect(&head);
    // Image layers are never compressed with bzip2 or xz; such an archive is stored uncompressed.
    let keep = matches!(compression, Compression::None | Compression::Gzip | Compression::Zstd);
    let stored = RefCell::new(staging.new_blob()?);
    let mut raw = TeeReader::new(Cursor::new(head).chain(source), keep.then_some(&stored));
    let decoder = Bounded::new(&mut raw, limits).map_err(TransportError::reading(&*unread))?;
    let mut plain = TeeReader::new(decoder, (!keep).then_some(&stored));
    plain.hasher = matches!(compression, Compression::Gzip | Compression::Zstd).then(Hasher::new);
    let ArchiveFacts { is_image_archive, whiteout } = read_entries(LimitedTar::new(&mut plain, limits), &unread)?;
    if plain.source.count() == 0 {
        return Err(TransportError::Other {
            message: format!("{origin} is empty"),
            help: Some(ImageRemedy::PassTar.into()),
        });
    }
    let content = plain.hasher.take().map(Hasher::finish);
    // Trailing bytes after the compressed stream count towards the digest, too.
    std::io::copy(&mut raw, &mut std::io::sink()).map_err(TransportError::reading(&*unread))?;
    let (digest, size) = stored.into_inner().finish()?;
    let diff_id = content.unwrap_or(digest.of_plain_layer());
    staging.note_layer(&digest, &diff_id);
    let media_type = match compression {
        Compression::Gzip => MediaType::ImageLayerGzip,
        Compression::Zstd => MediaType::ImageLayerZstd,
        _ => MediaType::ImageLayer,
    };
    Ok(PutLayer { digest, size, diff_id, media_type, is_image_archive, whiteout })
}

/// A reader that stores or hashes everything read through it.
struct TeeReader<'s, 'a, R> {
    source: R,
    stored: Option<&'s RefCell<StagingBlob<'a>>>,
    hasher: Option<Hasher>,
}

impl<'s, 'a, R: Read> TeeReader<'s, 'a, R> {
    fn new(source: R, stored: Option<&'s RefCell<StagingBlob<'a>>>) -> Self {
        TeeReader { source, stored, hasher: None }
    }
}

impl<R: Read> Read for TeeReader<'_, '_, R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.source.read(buf)?;
        if let Some(stored) = self.stored {
            stored.borrow_mut().add(&buf[..n]).map_err(std::io::Error::other)?;
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buf[..n]);
        }
        Ok(n)
    }
}

/// Files at the top level of image archives. A root directory hardly ever has them.
const IMAGE_DOCUMENTS: [&str; 3] = ["manifest.json", "index.json", "oci-layout"];

/// Properties of an archive, derived from its entry names.
struct ArchiveFacts {
    is_image_archive: bool,
    whiteout: Option<String>,
}

/// Reads an archive to its end. `unread` is the message of a failure.
fn read_entries<R: Read>(mut tar: LimitedTar<R>, unread: &str) -> Result<ArchiveFacts> {
    let (mut documents, mut whiteout) = (BTreeSet::new(), None);
    while let Some(entry) = tar.next_entry().map_err(TransportError::reading_layer(unread))? {
        let name = clean(&entry.path.to_string_lossy());
        documents.extend(IMAGE_DOCUMENTS.into_iter().filter(|document| name == **document));
        if whiteout.is_none() && Path::new(&name).file_name().is_some_and(is_whiteout) {
            whiteout = Some(name);
        }
    }
    tar.drain().map_err(TransportError::reading_layer(unread))?;
    // A docker-archive always has `manifest.json`, an OCI layout both of the others.
    let is_image_archive = documents.contains("manifest.json") || documents.len() == 2;
    Ok(ArchiveFacts { is_image_archive, whiteout })
}
