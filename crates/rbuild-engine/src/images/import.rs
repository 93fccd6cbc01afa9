//! `import`: makes a single-layer image from a root file system archive.

use std::io::Read;

use rbuild_image::{DEFAULT_PATH, History, ImageConfig, ImageId, MediaType, Platform, Reference, descriptor};
use rbuild_remedy::{FileRemedy, ImageRemedy, Remedy, Warning};
use rbuild_store::{Staging, Store, Workspace};
use rbuild_transport::{WithWarnings, put_layer};

use crate::error::Result;
use crate::export::image::time;

/// Source and properties of an imported image.
pub struct Import<'a> {
    /// Origin of the archive, for the history: a file name, a URL, or `-`.
    pub from: &'a str,
    pub message: Option<&'a str>,
    pub name: Option<&'a Reference>,
    pub platform: Platform,
    /// Modifies the configuration after the defaults have been set.
    pub change: &'a dyn Fn(&mut ImageConfig) -> Result<()>,
    /// Seconds since 1970.
    pub now: i64,
}

/// Stores the archive as a layer, unchanged if layers may have its compression, and creates an
/// image with this layer.
pub fn import(store: &Store, source: impl Read + Send, import: &Import<'_>) -> Result<WithWarnings<ImageId>> {
    let work = Workspace::open(store)?;
    let archive = format!("the archive `{}`", import.from);
    let staging = Staging::open(store, &work)?;
    let layer = put_layer(&staging, source, &archive)?;
    let mut config = ImageConfig::empty(&import.platform);
    config.config.env = vec![format!("PATH={DEFAULT_PATH}")];
    (import.change)(&mut config)?;
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
    staging.publish("import", &[manifest], &[(manifest, import.name.cloned())])?;
    let warning = layer.is_image_archive.then(|| Warning {
        text: format!("{archive} is an image archive, but was imported as a plain root file system"),
        help: Some(Remedy::Image(ImageRemedy::LoadArchive)),
    });
    let deletes = layer.whiteout.map(|name| Warning {
        text: format!("{archive} contains `{name}`, which is a whiteout in an image"),
        help: Some(FileRemedy::RenameWhiteout.into()),
    });
    Ok(WithWarnings { found: config_digest.of_config(), warnings: warning.into_iter().chain(deletes).collect() })
}
