//! Direct export of an image: new layers are packed straight into the archive or layout, and are
//! therefore written only once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rbuild_linux::{Destination, Directory};
use rbuild_store::{PackedLayer, TreeId};
use rbuild_transport::{
    ArchiveFormat, ArchiveWriter, LayoutWriter, NamedArtifact, WriteError, check_layers, copy_images, save_directory,
};

use crate::destination::begin;
use crate::env::StepEnv;
use crate::error::{BuildError, Result};
use crate::error_context::ErrorContext;
use crate::event::BuildPhase;
use crate::export::image;
use crate::export::packing_error::not_packed;
use crate::exports::{Export, FinishedImage, ImageForm};

/// Writes the image of a finished build to a direct export; returns its description.
#[tracing::instrument(target = "engine", name = "export", level = "debug", skip_all)]
pub(crate) fn export(env: &StepEnv<'_>, export: &Export) -> Result<FinishedImage> {
    let phase = env.events.begin(BuildPhase::Archive, None);
    let moved = &phase.meter.moved;
    let made = match export {
        Export::Layout { to, form } => layout(env, form, to, moved).map_err(|e| e.writing_to(&to.path()))?,
        Export::Archive { format, to, form } => {
            archive(env, form, to, *format, moved).map_err(|e| e.writing_to(&to.path()))?
        }
        Export::Files { .. } | Export::Tar { .. } | Export::Store { .. } | Export::CacheOnly => {
            return Err(BuildError::other("an export without an archive is not written directly"));
        }
    };
    phase.end();
    Ok(made)
}

fn archive(
    env: &StepEnv<'_>,
    form: &ImageForm,
    dest: &Destination,
    format: ArchiveFormat,
    moved: &Arc<AtomicU64>,
) -> Result<FinishedImage> {
    let mut archive = ArchiveWriter::begin(begin(dest)?)?;
    let mut packed = Vec::new();
    for tree in image::own_trees(env)? {
        packed.push(archive.layer(|out| pack(env, form, &tree, out, moved))?);
    }
    let saved = saved(env, form, &packed)?;
    let made = FinishedImage { is_stored: false, ..FinishedImage::stored(&saved.images[0]) };
    let (images, known) = ([saved], BTreeSet::new());
    check_layers(env.store, &images, &known)?;
    copy_images(&env.store.blobs(), &archive, &images, &known, moved)?;
    let mut file = archive.finish(&images, format)?;
    // A duplicate layer that was dropped may have been longer than everything written after it.
    let end = std::io::Seek::stream_position(&mut file).and_then(|end| file.set_len(end));
    end.map_err(BuildError::io(ErrorContext::OutputArchive))?;
    Ok(made)
}

fn layout(env: &StepEnv<'_>, form: &ImageForm, dir: &Directory, moved: &Arc<AtomicU64>) -> Result<FinishedImage> {
    let layout = LayoutWriter::open(dir)?;
    let mut packed = Vec::new();
    for tree in image::own_trees(env)? {
        packed.push(layout.put(|layer: &PackedLayer| layer.digest, |out| pack(env, form, &tree, out, moved))?);
    }
    let saved = saved(env, form, &packed)?;
    let made = FinishedImage { is_stored: false, ..FinishedImage::stored(&saved.images[0]) };
    save_directory(env.store, &[saved], &BTreeSet::new(), dir, moved)?;
    Ok(made)
}

fn pack(
    env: &StepEnv<'_>,
    form: &ImageForm,
    tree: &TreeId,
    out: impl std::io::Write,
    moved: &AtomicU64,
) -> Result<PackedLayer> {
    let variant = image::variant(env, form);
    let stop = || env.cancel.is_canceled();
    let packed = env.store.layers().counting(moved).pack_tree_to(&env.rootfs.work, tree, variant, out, &stop);
    packed.map_err(|e| not_packed(env, tree, e))
}

fn saved(env: &StepEnv<'_>, form: &ImageForm, packed: &[PackedLayer]) -> Result<NamedArtifact> {
    let manifest = image::documents(env, form, packed)?;
    Ok(NamedArtifact { images: vec![env.store.images().image(&manifest)?], index: None, names: Vec::new() })
}
