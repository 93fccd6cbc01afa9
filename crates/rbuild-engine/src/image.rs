//! `import`: a root file system archive as an image of one layer.

use std::collections::BTreeSet;
use std::io::Read;

use rbuild_image::{DEFAULT_PATH, Digest, Hashed, History, ImageConfig, MediaType, Platform, Reference, descriptor};
use rbuild_layer::{Compression, Decoder, TarReader, detect};
use rbuild_store::{Store, Workspace};

use crate::assemble::time;
use crate::error::{BuildError, Result};
use crate::load::{Incoming, clean};

/// What to import, and what to say of it.
pub struct Import<'a> {
    /// Where it comes from, for the history: a file name, a URL, or `-`.
    pub from: &'a str,
    pub message: Option<&'a str>,
    pub name: Option<&'a Reference>,
    pub platform: Platform,
    /// Changes the configuration, after the defaults were set.
    pub change: &'a dyn Fn(&mut ImageConfig) -> std::result::Result<(), String>,
    /// Seconds since the epoch.
    pub now: i64,
}

/// Stores the archive as a layer (as it is, if images may hold its compression) and makes an image of it.
pub fn import(store: &Store, source: impl Read + Send, import: &Import<'_>) -> Result<Incoming<Digest>> {
    let work = Workspace::open(store)?;
    let what = format!("the archive {}", import.from);
    let layer = put_layer(store, &work, source, &what)?;
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
    let (config_digest, config_size) = store.put_document(&work, &config)?;
    let manifest = rbuild_image::manifest(
        descriptor(MediaType::ImageConfig, &config_digest, config_size),
        vec![descriptor(layer.media_type, &layer.digest, layer.size)],
    );
    let (manifest, _) = store.put_document(&work, &manifest)?;
    store.sync("import")?;
    store.tag(&manifest, import.name)?;
    let warning = layer.is_image_archive.then(|| {
        format!("{what} is an image archive, whose files are now those of the image; `rbuild load -i FILE` takes in the image in it")
    });
    Ok(Incoming { found: config_digest, warnings: warning.into_iter().collect() })
}

/// A layer that was stored.
pub(crate) struct PutLayer {
    pub digest: Digest,
    pub size: u64,
    pub diff_id: Digest,
    pub media_type: MediaType,
    /// Its files are those of a docker-archive or an OCI layout.
    pub is_image_archive: bool,
}

/// Stores a layer of any compression. Every entry is read once, so that an archive that is none is refused here.
pub(crate) fn put_layer(store: &Store, work: &Workspace, mut source: impl Read + Send, what: &str) -> Result<PutLayer> {
    let mut head = Vec::new();
    source.by_ref().take(16).read_to_end(&mut head).map_err(BuildError::io(what))?;
    let compression = detect(&head);
    let whole = std::io::Cursor::new(head).chain(source);
    let keep = matches!(compression, Compression::None | Compression::Gzip | Compression::Zstd);
    let (digest, size) = if keep {
        store.put_blob(work, whole)?
    } else {
        // Images hold no bzip2 and no xz: the archive is stored as the tar it is.
        let decoder = Decoder::new(whole).map_err(BuildError::io(what))?;
        store.put_blob(work, decoder)?
    };
    let (diff_id, is_image_archive) = check_archive(store, &digest, what)?;
    store.note_layer(&digest, &diff_id)?;
    let media_type = match compression {
        Compression::Gzip => MediaType::ImageLayerGzip,
        Compression::Zstd => MediaType::ImageLayerZstd,
        _ => MediaType::ImageLayer,
    };
    Ok(PutLayer { digest, size, diff_id, media_type, is_image_archive })
}

/// What stands at the top of archives of images, and hardly in a root directory.
const IMAGE_DOCUMENTS: [&str; 3] = ["manifest.json", "index.json", "oci-layout"];

/// Reads a stored archive to its end; gives the digest of its uncompressed bytes, and whether it is one of images.
fn check_archive(store: &Store, blob: &Digest, what: &str) -> Result<(Digest, bool)> {
    let decoder = Decoder::new(store.open_blob(blob)?).map_err(BuildError::io(what))?;
    let mut tee = Hashed::new(decoder);
    let mut tar = TarReader::new(&mut tee);
    let mut documents = BTreeSet::new();
    while let Some(entry) = tar.next_entry().map_err(BuildError::layer(what))? {
        documents.extend(IMAGE_DOCUMENTS.into_iter().filter(|name| clean(&entry.path.to_string_lossy()) == **name));
    }
    tar.drain().map_err(BuildError::layer(what))?;
    if tee.count() == 0 {
        return Err(BuildError::Other {
            message: format!("{what} is empty"),
            help: Some("a root file system comes as a tar, plain or compressed".into()),
        });
    }
    // Those of docker have the first for ever, layouts the others.
    let is_images = documents.contains("manifest.json") || documents.len() == 2;
    Ok((tee.finish().1, is_images))
}
