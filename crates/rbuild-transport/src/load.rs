//! `load`: imports images from a tar archive or an OCI image layout, as written by Docker, Podman,
//! skopeo or rbuild.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rbuild_image::{
    BlobDigest, Descriptor, ManifestDigest, Platform, REF_NAME, Reference, leads_to_images, parse_index,
};
use rbuild_linux::quoted;
use rbuild_remedy::{ImageRemedy, Remedy, Warning, counted};
use rbuild_store::{LostPlatforms, Staging, Store, Workspace};

use crate::archive_error::{ArchiveProblem, SkippedPlatforms};
use crate::error::{Result, TransportError};
use crate::media_types::is_index;

mod docker;
mod found;
mod index;
mod manifest;
pub(crate) mod members;
pub(crate) mod named;
mod whole_index;

use docker::docker_items;
use found::{CheckedImage, FoundImages, unreadable};
pub use found::{WantedPlatform, WithWarnings};
use index::{IndexMatch, IndexResolver, name_of};
use members::IncomingParts;
use named::DockerItem;

/// An image that was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// ID of the image, or digest of the index of several platforms.
    pub id: BlobDigest,
    /// The names that it got, in the order of the source.
    pub names: Vec<Reference>,
    /// Platforms that these names no longer refer to.
    pub lost: Vec<LostPlatforms>,
}

/// Reads an archive of any compression to its end and stores its images under their names.
///
/// # Errors
///
/// Fails if the archive is damaged or incomplete, exceeds a limit, or has no image for the wanted
/// platform. The store is unchanged then.
pub fn load(store: &Store, source: impl Read, wanted: &WantedPlatform) -> Result<WithWarnings<Vec<Loaded>>> {
    let work = Workspace::open(store)?;
    store_all(IncomingParts::of_archive(Staging::open(store, &work)?, source)?, wanted)
}

/// Stores the images of an OCI image layout directory under their names. `moved` counts the bytes
/// read.
///
/// # Errors
///
/// Fails if the layout is damaged or incomplete, or has no image for the wanted platform. The store
/// is unchanged then.
pub fn load_directory(
    store: &Store,
    dir: &Path,
    wanted: &WantedPlatform,
    moved: &Arc<AtomicU64>,
) -> Result<WithWarnings<Vec<Loaded>>> {
    let work = Workspace::open(store)?;
    store_all(IncomingParts::of_directory(Staging::open(store, &work)?, dir, moved)?, wanted)
        .map_err(|e| e.of_layout(dir))
}

/// Imports one image of an OCI image layout without a name; returns its manifest digest. `wanted`
/// is a tag or a digest; without it, the only image is taken, or the one tagged `latest`. If the
/// image has several platforms, the one for `platform` is taken.
///
/// # Errors
///
/// Fails if the layout is damaged or incomplete, or does not have exactly one image of that kind.
pub fn import_from_layout(
    store: &Store,
    dir: &Path,
    wanted: Option<&str>,
    platform: &Platform,
) -> Result<WithWarnings<ManifestDigest>> {
    let work = Workspace::open(store)?;
    let members = IncomingParts::of_directory(Staging::open(store, &work)?, dir, &Arc::default())?;
    let Some(text) = members.document("index.json")? else {
        return Err(TransportError::other(format!("the OCI layout {} has no index.json", quoted(dir))));
    };
    let index = parse_index(&text).map_err(unreadable("index.json"))?;
    let tag = |d: &Descriptor| d.annotations().as_ref().and_then(|a| a.get(REF_NAME).cloned()).unwrap_or_default();
    let entries: Vec<&Descriptor> = index.manifests().iter().filter(|entry| leads_to_images(entry)).collect();
    let fits = |d: &&Descriptor| match wanted {
        Some(wanted) => tag(d) == wanted || d.digest().to_string() == wanted,
        None => tag(d) == "latest" || entries.len() == 1,
    };
    let Some(entry) = entries.iter().copied().find(fits) else {
        let tags: Vec<String> = entries.iter().copied().map(tag).filter(|t| !t.is_empty()).collect();
        return Err(TransportError::Other {
            message: format!("the OCI layout `{}` has no image `{}`", dir.display(), wanted.unwrap_or("latest")),
            help: Some(if tags.is_empty() { ImageRemedy::UseDigest.into() } else { Remedy::UseOneOf { words: tags } }),
        });
    };
    let platform = WantedPlatform::Host(platform.clone());
    let mut layout = IndexResolver::new(&members, &platform);
    let resolution = layout.enter(entry).map_err(|e| e.of_layout(dir))?;
    let image = match resolution.reached {
        IndexMatch::One(image) => image,
        IndexMatch::None if !resolution.skipped.others.is_empty() => {
            let others: Vec<&str> = resolution.skipped.others.iter().map(String::as_str).collect();
            return Err(only_others(dir, platform.platform(), &others));
        }
        IndexMatch::None | IndexMatch::Several(_) => return Err(not_one(dir, layout.images.len())),
    };
    let warnings = layout_warning(&members)?.into_iter().collect();
    members.staging.publish("load", &[image.manifest], &[])?;
    Ok(WithWarnings { found: image.manifest, warnings })
}

/// Stores all images in one transaction and tags them.
#[tracing::instrument(target = "transport", name = "load", level = "debug", skip_all)]
fn store_all(members: IncomingParts<'_>, wanted: &WantedPlatform) -> Result<WithWarnings<Vec<Loaded>>> {
    let WithWarnings { found, mut warnings } = images(&members, wanted)?;
    warnings.extend(found.skipped(wanted));
    let FoundImages { images, names, skipped: _ } = found;
    if images.is_empty() {
        warnings.push("the input lists no image; nothing was loaded".into());
    }
    let manifests: Vec<ManifestDigest> = images.iter().map(|image| image.manifest).collect();
    let with_names = names.iter().map(|(image, name)| (image.manifest, Some(name.clone())));
    let tags: Vec<_> = manifests.iter().map(|manifest| (*manifest, None)).chain(with_names).collect();
    let lost = members.staging.publish("load", &manifests, &tags)?;
    let (mut all, mut places, mut told) = (Vec::new(), HashMap::new(), HashSet::new());
    for CheckedImage { id, .. } in images {
        places.entry(id).or_insert_with(|| {
            all.push(Loaded { id, names: Vec::new(), lost: Vec::new() });
            all.len() - 1
        });
    }
    for (CheckedImage { id, .. }, name) in names {
        if told.insert((id, name.to_string())) {
            let image = &mut all[places[&id]];
            image.lost.extend(lost.iter().filter(|lost| lost.name == name).cloned());
            image.names.push(name);
        }
    }
    Ok(WithWarnings { found: all, warnings })
}

fn images(members: &IncomingParts<'_>, wanted: &WantedPlatform) -> Result<WithWarnings<FoundImages>> {
    let text = members.document("index.json")?;
    let index = text.as_ref().and_then(|text| parse_index(text).ok());
    // For an image of several platforms, `manifest.json` has only the platform that its writer
    // chose, so the index is used instead.
    let several = index.iter().flat_map(|index| index.manifests()).any(|entry| is_index(entry.media_type()));
    let docker = if several { None } else { members.document("manifest.json")? };
    match (docker, text) {
        (Some(text), _) => {
            let items: Option<Vec<DockerItem>> = serde_json::from_slice(&text).map_err(unreadable("manifest.json"))?;
            let entries = index.map(|index| index.manifests().clone()).unwrap_or_default();
            let loaded = docker_items(members, items.unwrap_or_default(), &entries)?;
            of_platform(members, loaded, wanted)
        }
        (None, Some(text)) => of_layout(members, &text, wanted),
        (None, None) => Err(ArchiveProblem::NoImage.into()),
    }
}

/// Returns the images that `index.json` refers to. An entry for other platforms only is a warning,
/// or an error if no image is left.
fn of_layout(members: &IncomingParts<'_>, text: &[u8], wanted: &WantedPlatform) -> Result<WithWarnings<FoundImages>> {
    let index = parse_index(text).map_err(unreadable("index.json"))?;
    let mut layout = IndexResolver::new(members, wanted);
    let (mut names, mut skipped) = (Vec::new(), SkippedPlatforms::default());
    // Platforms of entries that have no image for the wanted one.
    let mut unreached = SkippedPlatforms::default();
    let mut warnings: Vec<Warning> = layout_warning(members)?.into_iter().collect();
    for entry in index.manifests() {
        let resolution = match wanted {
            WantedPlatform::All(_) | WantedPlatform::Any(_) if is_index(entry.media_type()) => {
                layout.enter_whole(entry)?
            }
            _ => layout.enter(entry)?,
        };
        let name = name_of(entry);
        if resolution.reached != IndexMatch::None {
            skipped.add(resolution.skipped);
        } else if !resolution.skipped.is_empty() {
            let image = name.as_ref().map_or_else(|| entry.digest().to_string(), |name| name.familiar());
            let missing = wanted.only_others(&resolution.skipped);
            warnings.push(Warning { text: format!("{image} {missing}"), help: missing.remedy() });
            unreached.add(resolution.skipped);
        }
        names.extend(resolution.reached.last().zip(name));
    }
    if layout.images.is_empty() && !unreached.is_empty() {
        return Err(ArchiveProblem::OtherPlatforms(Box::new(wanted.only_others(&unreached))).into());
    }
    Ok(WithWarnings { found: FoundImages { images: layout.images, names, skipped }, warnings })
}

/// Keeps only images of the wanted platform. `manifest.json` does not state platforms, so they are
/// read from the configurations.
fn of_platform(
    members: &IncomingParts<'_>,
    loaded: WithWarnings<FoundImages>,
    wanted: &WantedPlatform,
) -> Result<WithWarnings<FoundImages>> {
    if !wanted.given() {
        return Ok(loaded);
    }
    let WithWarnings { found: FoundImages { images, mut names, .. }, warnings } = loaded;
    let (mut kept, mut skipped) = (Vec::new(), SkippedPlatforms::default());
    for image in images {
        let platform = members.platform(&image.id.of_config())?;
        if wanted.platform().accepts(&platform) {
            kept.push(image);
        } else {
            skipped.others.insert(platform.to_string());
        }
    }
    if kept.is_empty() && !skipped.is_empty() {
        return Err(ArchiveProblem::OtherPlatforms(Box::new(wanted.only_others(&skipped))).into());
    }
    names.retain(|(image, _)| kept.contains(image));
    Ok(WithWarnings { found: FoundImages { images: kept, names, skipped }, warnings })
}

/// Returns the error about a layout whose image is for other platforms.
fn only_others(dir: &Path, platform: &Platform, others: &[&str]) -> TransportError {
    let (dir, others) = (quoted(dir), others.join(", "));
    TransportError::other(format!("the OCI layout {dir} has no image of that name for {platform}, only for {others}"))
}

/// Returns the error about a layout that does not have exactly one image for a name and a platform.
fn not_one(dir: &Path, count: usize) -> TransportError {
    let images = counted(count as u64, "image");
    TransportError::other(format!("the OCI layout {} has {images} of that name for this platform", quoted(dir)))
}

/// Returns a warning if the `oci-layout` file is missing, which marks a directory as a layout (OCI
/// image layout, "oci-layout file").
fn layout_warning(members: &IncomingParts<'_>) -> Result<Option<Warning>> {
    let missing = members.document("oci-layout")?.is_none();
    Ok(missing.then(|| "the OCI layout has no oci-layout file; its index.json is used all the same".into()))
}

#[cfg(test)]
mod tests;
