//! `import`: makes a single-layer image from a root file system archive.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{Cursor, Read};

use rbuild_image::{
    BlobDigest, DEFAULT_PATH, DiffId, Hasher, History, ImageConfig, ImageId, MediaType, Platform, Reference, descriptor,
};
use rbuild_layer::{Bounded, Compression, LimitedTar, detect};
use rbuild_remedy::Remedy;
use rbuild_store::{Receiving, Staging, Store, Workspace};

use crate::error::{BuildError, Result};
use crate::event::Warning;
use crate::export::image::time;
use crate::transport::load::{Incoming, clean};

/// Source and properties of an imported image.
pub struct Import<'a> {
    /// Origin of the archive, for the history: a file name, a URL, or `-`.
    pub from: &'a str,
    pub message: Option<&'a str>,
    pub name: Option<&'a Reference>,
    pub platform: Platform,
    /// Modifies the configuration after the defaults have been set.
    pub change: &'a dyn Fn(&mut ImageConfig) -> std::result::Result<(), String>,
    /// Seconds since 1970.
    pub now: i64,
}

/// Stores the archive as a layer, unchanged if images may have its compression, and makes an image
/// of it.
pub fn import(store: &Store, source: impl Read + Send, import: &Import<'_>) -> Result<Incoming<ImageId>> {
    let work = Workspace::open(store)?;
    let what = format!("the archive {}", import.from);
    let staging = Staging::open(store, &work)?;
    let layer = put_layer(&staging, source, &what)?;
    let mut config = ImageConfig::empty(&import.platform);
    config.config.env = vec![format!("PATH={DEFAULT_PATH}")];
    (import.change)(&mut config).map_err(BuildError::other)?;
    config.created = Some(time(import.now)?);
    config.rootfs.diff_ids = vec![layer.diff_id];
    let default = format!("Imported from {}", import.from);
    config.history = vec![History {
        created: config.created.clone(),
        comment: import.message.unwrap_or(&default).to_string(),
        ..History::default()
    }];
    let (config_digest, config_size) = staging.put_document(&config)?;
    let manifest = rbuild_image::manifest(
        descriptor(MediaType::ImageConfig, &config_digest, config_size),
        vec![descriptor(layer.media_type, &layer.digest, layer.size)],
    );
    let manifest = staging.put_document(&manifest)?.0.of_manifest();
    staging.keep("import", &[manifest], &[(manifest, import.name.cloned())])?;
    let warning = layer.is_image_archive.then(|| Warning {
        text: format!("{what} is an image archive, whose files are now those of the image"),
        help: Some(Remedy::LoadArchive),
    });
    Ok(Incoming { found: config_digest.of_config(), warnings: warning.into_iter().collect() })
}

/// A layer that was stored.
pub(crate) struct PutLayer {
    pub digest: BlobDigest,
    pub size: u64,
    pub diff_id: DiffId,
    pub media_type: MediaType,
    /// True if the files in it are those of a docker-archive or an OCI layout.
    pub is_image_archive: bool,
}

/// Stores a layer of any compression. Reads every entry, so that a stream that is not an archive,
/// or one that exceeds the limits, is refused here.
pub(crate) fn put_layer(staging: &Staging<'_>, source: impl Read, what: &str) -> Result<PutLayer> {
    let limits = staging.store().limits();
    let mut head = Vec::new();
    let mut source = source;
    source.by_ref().take(16).read_to_end(&mut head).map_err(BuildError::io(what))?;
    let compression = detect(&head);
    // Image layers are never compressed with bzip2 or xz; such an archive is stored uncompressed.
    let keep = matches!(compression, Compression::None | Compression::Gzip | Compression::Zstd);
    let stored = RefCell::new(staging.receive()?);
    let mut raw = Passing::new(Cursor::new(head).chain(source), keep.then_some(&stored));
    let decoder = Bounded::new(&mut raw, limits).map_err(BuildError::io(what))?;
    let mut plain = Passing::new(decoder, (!keep).then_some(&stored));
    plain.hasher = matches!(compression, Compression::Gzip | Compression::Zstd).then(Hasher::new);
    let is_image_archive = read_entries(LimitedTar::new(&mut plain, limits), what)?;
    if plain.source.count() == 0 {
        return Err(BuildError::Other {
            message: format!("{what} is empty"),
            help: Some("a root file system comes as a tar, plain or compressed".into()),
        });
    }
    let content = plain.hasher.take().map(Hasher::finish);
    // Trailing bytes after the compressed stream count towards the digest, too.
    std::io::copy(&mut raw, &mut std::io::sink()).map_err(BuildError::io(what))?;
    let (digest, size) = stored.into_inner().finish()?;
    let diff_id = content.unwrap_or(digest.of_plain_layer());
    staging.note_layer(&digest, &diff_id);
    let media_type = match compression {
        Compression::Gzip => MediaType::ImageLayerGzip,
        Compression::Zstd => MediaType::ImageLayerZstd,
        _ => MediaType::ImageLayer,
    };
    Ok(PutLayer { digest, size, diff_id, media_type, is_image_archive })
}

/// A reader that stores or hashes everything read through it.
struct Passing<'s, 'a, R> {
    source: R,
    stored: Option<&'s RefCell<Receiving<'a>>>,
    hasher: Option<Hasher>,
}

impl<'s, 'a, R: Read> Passing<'s, 'a, R> {
    fn new(source: R, stored: Option<&'s RefCell<Receiving<'a>>>) -> Self {
        Passing { source, stored, hasher: None }
    }
}

impl<R: Read> Read for Passing<'_, '_, R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.source.read(buf)?;
        if let Some(stored) = self.stored {
            stored.borrow_mut().add(&buf[..n])?;
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buf[..n]);
        }
        Ok(n)
    }
}

/// Files at the top level of image archives. A root directory hardly ever has them.
const IMAGE_DOCUMENTS: [&str; 3] = ["manifest.json", "index.json", "oci-layout"];

/// Reads an archive to its end. Returns true if it is an image archive.
fn read_entries<R: Read>(mut tar: LimitedTar<R>, what: &str) -> Result<bool> {
    let mut documents = BTreeSet::new();
    while let Some(entry) = tar.next_entry().map_err(BuildError::layer(what))? {
        documents.extend(IMAGE_DOCUMENTS.into_iter().filter(|name| clean(&entry.path.to_string_lossy()) == **name));
    }
    tar.drain().map_err(BuildError::layer(what))?;
    // A docker-archive always has `manifest.json`, an OCI layout both of the others.
    Ok(documents.contains("manifest.json") || documents.len() == 2)
}
