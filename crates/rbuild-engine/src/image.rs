//! `import`: a root file system archive as an image of one layer.

use std::io::Read;

use rbuild_image::{DEFAULT_PATH, Digest, Hashed, History, ImageConfig, MediaType, Platform, Reference, descriptor};
use rbuild_layer::{Compression, Decoder, TarReader, detect};
use rbuild_store::{Store, Workspace};

use crate::assemble::time;
use crate::error::{BuildError, Result};

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
pub fn import(store: &Store, source: impl Read + Send, import: &Import<'_>) -> Result<Digest> {
    let work = Workspace::open(store)?;
    let what = format!("the archive {}", import.from);
    let (layer, size, diff_id, media_type) = put_layer(store, &work, source, &what)?;
    let mut config = ImageConfig::empty(&import.platform);
    config.config.env = vec![format!("PATH={DEFAULT_PATH}")];
    (import.change)(&mut config).map_err(BuildError::other)?;
    config.created = Some(time(import.now)?);
    config.rootfs.diff_ids = vec![diff_id];
    let default = format!("Imported from {}", import.from);
    config.history = vec![History {
        created: config.created.clone(),
        comment: import.message.unwrap_or(&default).to_string(),
        ..History::default()
    }];
    let (config_digest, config_size) = store.put_document(&work, &config)?;
    let manifest = rbuild_image::manifest(
        descriptor(MediaType::ImageConfig, &config_digest, config_size),
        vec![descriptor(media_type, &layer, size)],
    );
    let (manifest, _) = store.put_document(&work, &manifest)?;
    store.sync("import")?;
    store.tag(&manifest, import.name)?;
    Ok(config_digest)
}

/// Stores a layer of any compression; gives digest, size, diffID and media type. Every entry is read once, so
/// that an archive that is none is refused here.
pub(crate) fn put_layer(
    store: &Store,
    work: &Workspace,
    mut source: impl Read + Send,
    what: &str,
) -> Result<(Digest, u64, Digest, MediaType)> {
    let mut head = vec![0u8; 16];
    let mut filled = 0;
    while filled < head.len() {
        match source.read(&mut head[filled..]).map_err(BuildError::io(what))? {
            0 => break,
            n => filled += n,
        }
    }
    head.truncate(filled);
    let compression = detect(&head);
    let whole = std::io::Cursor::new(head).chain(source);
    let keep = matches!(compression, Compression::None | Compression::Gzip | Compression::Zstd);
    let (blob, size) = if keep {
        store.put_blob(work, whole)?
    } else {
        // Images hold no bzip2 and no xz: the archive is stored as the tar it is.
        let decoder = Decoder::new(whole).map_err(BuildError::io(what))?;
        store.put_blob(work, decoder)?
    };
    let diff_id = check_archive(store, &blob, what)?;
    let media_type = match compression {
        Compression::Gzip => MediaType::ImageLayerGzip,
        Compression::Zstd => MediaType::ImageLayerZstd,
        _ => MediaType::ImageLayer,
    };
    Ok((blob, size, diff_id, media_type))
}

/// Reads a stored archive to its end; gives the digest of its uncompressed bytes.
fn check_archive(store: &Store, blob: &Digest, what: &str) -> Result<Digest> {
    let decoder = Decoder::new(store.open_blob(blob)?).map_err(BuildError::io(what))?;
    let mut tee = Hashed::new(decoder);
    let mut tar = TarReader::new(&mut tee);
    while tar.next_entry().map_err(BuildError::layer(what))?.is_some() {}
    tar.drain().map_err(BuildError::layer(what))?;
    if tee.count() == 0 {
        return Err(BuildError::Other {
            message: format!("{what} is empty"),
            help: Some("a root file system comes as a tar, plain or compressed".into()),
        });
    }
    Ok(tee.finish().1)
}
