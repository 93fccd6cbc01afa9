//! Writes the outputs of a build.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use rbuild_image::{ManifestDigest, Reference};
use rbuild_layer::{Times, TreePacker, WhiteoutEncoding};
use rbuild_linux::{Destination, Directory, RootDir};
use rbuild_sandbox::Cancel;
use rbuild_store::{Image, MergedTree, Staging, Store, Workspace};
use rbuild_transport::{
    NamedArtifact, WriteError, index_of_images, preferred, save_directory, save_to, write_destination,
};

use crate::error::{BuildError, Result};
use crate::error_context::ErrorContext;
use crate::event::BuildPhase;
use crate::events::Events;
use crate::export::local;
use crate::exports::{BuildReport, Export, FinishedImage, FinishedIndex, ImageForm, Requirements};
use crate::request::BuildRequest;

/// The files of the result for one platform, as `F`.
pub(crate) struct View<F> {
    /// Directory below the root of the output; empty if the output contains the files of one
    /// platform only.
    pub folder: PathBuf,
    pub files: F,
    /// Modification time for all files, if it is fixed.
    pub epoch: Option<i64>,
}

/// Writes the files of the result into a directory. With `delete`, removes all other files there.
/// `stop` and `moved` are passed to [`local::export`]. Returns the number of entries that were
/// written, without directories.
#[tracing::instrument(target = "engine", name = "export", level = "debug", skip_all)]
pub(crate) fn directory(
    to: &Directory,
    delete: bool,
    views: &[View<MergedTree>],
    stop: Option<&Cancel>,
    moved: &AtomicU64,
) -> Result<u64> {
    let Directory { base, rest } = to;
    let mut written = 0;
    for view in views {
        let rest = rest.join(&view.folder);
        let place = base.label().join(&rest);
        let fail = BuildError::kernel(ErrorContext::OutputDirectory(&place));
        let dest = base.create_dir_all(&rest, 0o755, None, |_| ()).map_err(fail)?;
        if delete {
            local::remove_others(&view.files, &dest)?;
        }
        written += local::export(&view.files, &dest, view.epoch, stop, moved).map_err(|e| e.writing_to(&place))?;
    }
    Ok(written)
}

/// Writes the files of the result as a tar archive. `moved` counts its bytes.
#[tracing::instrument(target = "engine", name = "export", level = "debug", skip_all)]
pub(crate) fn tar(to: &Destination, views: &[View<RootDir>], moved: &AtomicU64) -> Result<()> {
    write_destination(to, |out| {
        let failed = || BuildError::writing(ErrorContext::OutputTar);
        let mut out = MeteredWriter { out, moved };
        let mut tar = TreePacker::new(WhiteoutEncoding::Literal, &mut out);
        for view in views {
            let times = view.epoch.map_or(Times::AsIs, Times::Always);
            tar.pack(&view.files, &view.folder, times).map_err(failed())?;
        }
        tar.finish().map(|_| ()).map_err(failed())
    })
}

/// A writer that counts its bytes.
struct MeteredWriter<'a, W> {
    out: W,
    moved: &'a AtomicU64,
}

impl<W: Write> Write for MeteredWriter<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.moved.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// Tags an image, or the index of the images of several platforms, atomically: with all of the
/// names or none of them, even if other builds run concurrently. Without names, it is kept
/// untagged. Returns the index.
fn tag_all(store: &Store, images: &[Image], tags: &[Reference]) -> Result<Option<FinishedIndex>> {
    let named = |digest| match tags {
        [] => vec![(digest, None)],
        tags => tags.iter().map(|tag| (digest, Some(tag.clone()))).collect(),
    };
    match images {
        [only] => {
            store.images().tag_all(&named(only.manifest_digest))?;
            Ok(None)
        }
        several => {
            let work = Workspace::open(store)?;
            let staging = Staging::open(store, &work)?;
            let (digest, size) = staging.put_bytes(&index_of_images(several)?)?;
            let digest = digest.of_manifest();
            staging.publish("index", &[digest], &named(digest))?;
            Ok(Some(FinishedIndex { digest, size }))
        }
    }
}

/// Writes the archives and names the result. `platforms` has the images of each platform, in
/// the order of the forms.
#[tracing::instrument(target = "engine", name = "export", level = "debug", skip_all)]
pub(crate) fn publish(
    request: &BuildRequest,
    required: &Requirements,
    store: &Store,
    platforms: &[Vec<(ImageForm, ManifestDigest)>],
    events: &Events,
) -> Result<BuildReport> {
    let mut firsts = Vec::new();
    for manifests in platforms {
        firsts.extend(manifests.first().map(|(_, manifest)| store.images().image(manifest)).transpose()?);
    }
    let chosen = preferred(firsts.iter().map(|image| image.config.platform()));
    let Some(image) = firsts.get(chosen) else { return Ok(BuildReport::default()) };
    for export in request.exports.iter().filter(|export| !required.is_direct(export)) {
        let (Export::Archive { form, .. } | Export::Layout { form, .. }) = export else { continue };
        let mut images = Vec::new();
        for manifests in platforms {
            let made = manifests.iter().find(|(made, _)| made == form);
            let (_, manifest) = made.ok_or_else(|| BuildError::other("an export has no image"))?;
            images.push(store.images().image(manifest)?);
        }
        let sizes = images.iter().map(image_bytes).sum::<Result<u64>>()?;
        let phase = events.begin(BuildPhase::Archive, Some(sizes));
        let moved = &phase.meter.moved;
        let entries = [NamedArtifact { images, index: None, names: request.tags.clone() }];
        match export {
            Export::Layout { to, .. } => save_directory(store, &entries, &BTreeSet::new(), to, moved)?,
            Export::Archive { format, to, .. } => {
                save_to(store, &entries, &BTreeSet::new(), *format, to, moved)?;
            }
            Export::Files { .. } | Export::Tar { .. } | Export::Store { .. } | Export::CacheOnly => {}
        }
        phase.end();
    }
    // Names are set last, so a failed build sets none.
    let index = tag_all(store, &firsts, &request.tags)?;
    let platforms = firsts.iter().map(|image| image.manifest_digest).collect();
    Ok(BuildReport { image: Some(FinishedImage::stored(image)), platforms, index, ..BuildReport::default() })
}

/// Returns the size of the layers of an image, as they are stored.
fn image_bytes(image: &Image) -> Result<u64> {
    Ok(image.layers()?.iter().map(|(layer, _)| layer.size()).sum())
}
