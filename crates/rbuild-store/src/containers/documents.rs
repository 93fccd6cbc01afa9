//! The documents of containers: their names and images.

use rbuild_image::{Hasher, ManifestDigest};
use rbuild_linux::Timestamp;
use serde::{Deserialize, Serialize};

use crate::durability::Durability;
use crate::error::{Result, StoreError};
use crate::ids::ContainerId;
use crate::modes;
use crate::store::Store;

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// ID of the container.
    pub id: ContainerId,
    /// Name, unique in the store.
    pub name: String,
    /// Manifest of its image, which is kept as long as the container exists.
    pub image: ManifestDigest,
    /// Name by which the image was specified; `None` in containers made by older versions.
    #[serde(default)]
    pub image_name: Option<String>,
    /// Time of its creation in seconds since the Unix epoch; `None` as above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<i64>,
    /// Nanoseconds of that time within the second; 0 in containers made by older versions.
    #[serde(default)]
    pub created_nanos: u32,
    /// The command that it would run, with the entry point; `None` as above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// True if it was created by its start, and does not remain if that is interrupted.
    #[serde(default)]
    pub created_by_start: bool,
}

/// A container to create.
#[derive(Debug, Clone, Copy)]
pub struct NewContainer<'a> {
    /// Name; `None` for a generated one.
    pub name: Option<&'a str>,
    /// Manifest of its image.
    pub image: &'a ManifestDigest,
    /// Name by which the image was specified.
    pub image_name: &'a str,
    /// The time.
    pub created: Timestamp,
    /// The command that it would run, with the entry point.
    pub command: &'a [String],
    /// A text that no other container has.
    pub salt: &'a str,
    /// The events that its record survives.
    pub durability: Durability,
}

impl NewContainer<'_> {
    /// Returns the ID that the container gets.
    pub fn id(&self) -> ContainerId {
        let mut hasher = Hasher::new();
        hasher.field("container").field(self.image.bytes()).field(self.salt);
        hasher.finish()
    }
}

/// Directory of the documents.
pub(super) const DIR: &str = "containers";

/// The containers of the store.
#[derive(Clone, Copy)]
pub struct Containers<'s> {
    pub(crate) store: &'s Store,
}

impl Containers<'_> {
    /// Writes the document of a container. It exists from then on.
    pub(super) fn write_document(&self, container: &Container, durability: Durability) -> Result<()> {
        self.store.root.create_dir_all(DIR, modes::dir(), None, |_| ())?;
        self.store.write_with(DIR, &format!("{}.json", container.id.hex()), container, durability)
    }

    /// Returns the container with that ID.
    pub(super) fn document(&self, id: &ContainerId) -> Result<Option<Container>> {
        self.store.read_if_whole(&format!("{DIR}/{}.json", id.hex()))
    }

    /// Returns all containers, except those whose documents a power failure left unreadable.
    ///
    /// # Errors
    ///
    /// Fails if a document cannot be read.
    pub fn list(&self) -> Result<Vec<Container>> {
        Ok(self.store.whole_documents(DIR)?.into_iter().map(|(_, container)| container).collect())
    }

    /// Finds a container by name, ID, or ID prefix of at least four digits.
    ///
    /// # Errors
    ///
    /// Fails if a document cannot be read.
    pub fn find_container(&self, wanted: &str) -> Result<Option<Container>> {
        let all = self.list()?;
        if let Some(named) = all.iter().find(|container| container.name == wanted) {
            return Ok(Some(named.clone()));
        }
        let has_prefix = |container: &&Container| wanted.len() >= 4 && container.id.hex().starts_with(wanted);
        match all.iter().filter(has_prefix).collect::<Vec<_>>()[..] {
            [] => Ok(None),
            [only] => Ok(Some(only.clone())),
            ref several => {
                let found: Vec<String> = several.iter().map(|container| container.id.short()).collect();
                Err(StoreError::Ambiguous { name: wanted.to_string(), found: found.join(", ") })
            }
        }
    }
}
