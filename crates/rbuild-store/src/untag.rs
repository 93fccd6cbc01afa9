//! Removal of names, and of images by their IDs.

use std::collections::HashSet;

use rbuild_image::{Descriptor, ImageId, ManifestDigest, Reference};

use crate::error::{Result, StoreError};
use crate::images::{FoundImage, Images};
use crate::index_entries::{manifest_in, name_of};

impl Images<'_> {
    /// Removes a name, or an image with all its names, and the notes on the pulls of these names.
    /// Returns the removed names, and the image's ID if no image of the index has it any more.
    ///
    /// An ID refers to all images that have it: several manifests may have the same configuration,
    /// with layers in different forms. The digest of a manifest refers to that manifest only.
    ///
    /// # Errors
    ///
    /// Fails if there is no such image or if the index cannot be written. Unless `force` is true,
    /// also fails if the image has names in several repositories and `wanted` is none of them, or
    /// if a container uses the image and `wanted` is its last name.
    pub fn untag(&self, wanted: &str, force: bool) -> Result<(Vec<String>, Option<ImageId>)> {
        let FoundImage { name, image, entry, .. } = self.find(wanted)?;
        let of_id = self.entries_of(&image.id)?;
        let hex = wanted.strip_prefix("sha256:").unwrap_or(wanted);
        let by_id = name.is_none() && image.id.hex().starts_with(hex);
        let container = self.container_of(&image.id)?;
        let remove = |entries: &mut Vec<Descriptor>| {
            let has_id = |d: &Descriptor| manifest_in(d).is_ok_and(|d| of_id.contains(&d));
            let ours = |d: &Descriptor| if by_id { has_id(d) } else { manifest_in(d).is_ok_and(|d| d == entry) };
            if !entries.iter().any(ours) {
                // It is a part of an index.
                return Err(StoreError::NoImage(wanted.to_string()));
            }
            let names: Vec<Reference> = entries.iter().filter(|d| ours(d)).filter_map(name_of).collect();
            let gone: Vec<Reference> = match &name {
                Some(name) if !name.is_pinned() => {
                    entries.retain(|d| name_of(d).as_ref() != Some(name));
                    vec![name.clone()]
                }
                _ if !force && names.iter().any(|name| !name.is_of_repository(&names[0])) => {
                    let names = names.iter().map(Reference::familiar).collect::<Vec<_>>().join(", ");
                    return Err(StoreError::SeveralNames { image: wanted.to_string(), names });
                }
                _ => {
                    entries.retain(|d| !ours(d));
                    names
                }
            };
            let left = entries.iter().any(has_id);
            match container {
                Some(container) if !left && !force => {
                    Err(StoreError::UsedImage { name: wanted.to_string(), container })
                }
                // The content stays as long as the container.
                held => Ok((gone, (!left && held.is_none()).then_some(image.id))),
            }
        };
        let (gone, id) = self.change_index_and(remove, |(gone, _)| self.forget_names(gone))?;
        Ok((gone.iter().map(Reference::familiar).collect(), id))
    }

    /// Returns the manifests or indexes of the entries that have an image with that ID.
    fn entries_of(&self, id: &ImageId) -> Result<HashSet<ManifestDigest>> {
        let has_id = |manifest: &ManifestDigest| self.image(manifest).is_ok_and(|image| image.id == *id);
        let mut entries = self.list()?;
        entries.retain(|entry| entry.artifact.images().iter().any(has_id));
        Ok(entries.into_iter().map(|entry| *entry.artifact.digest()).collect())
    }

    /// Returns the name of a container that uses an image with that ID.
    fn container_of(&self, id: &ImageId) -> Result<Option<String>> {
        let uses = |manifest: &ManifestDigest| self.image(manifest).is_ok_and(|image| image.id == *id);
        let held = self.store.containers().list()?.into_iter().find(|held| uses(&held.image));
        Ok(held.map(|held| held.name))
    }
}
