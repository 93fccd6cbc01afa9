//! The documents of containers: their names and images.

use std::ffi::OsStr;

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

const DIR: &str = "containers";

/// Lock file of the processes that create a container with a given name.
pub(super) const NAMES_LOCK: &str = "containers.lock";

/// The containers of the store.
#[derive(Clone, Copy)]
pub struct Containers<'s> {
    pub(crate) store: &'s Store,
}

impl Containers<'_> {
    /// Creates a container after `prepare` has created what belongs to it.
    pub(super) fn create_with<T>(
        &self,
        new: &NewContainer<'_>,
        prepare: impl FnOnce(&ContainerId) -> Result<T>,
    ) -> Result<(Container, T)> {
        let NewContainer { name: given, image, image_name, created, command, salt: _, durability } = *new;
        let id = new.id();
        let name = given.map_or_else(|| format!("rbuild_{}", id.short()), str::to_string);
        self.store.root.create_dir_all(DIR, modes::dir(), None, |_| ())?;
        // A generated name is as unique as the ID.
        let _names = given.map(|_| self.store.lock_file(NAMES_LOCK)).transpose()?;
        if given.is_some() && self.list()?.iter().any(|c| c.name == name) {
            return Err(StoreError::NameTaken(name));
        }
        let prepared = prepare(&id)?;
        let (image_name, command) = (Some(image_name.to_string()), Some(command.to_vec()));
        let Timestamp { sec, nsec } = created;
        let container =
            Container { id, name, image: *image, image_name, created: Some(sec), created_nanos: nsec, command };
        self.store.write_with(DIR, &format!("{}.json", id.hex()), &container, durability)?;
        Ok((container, prepared))
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
        let by_id = |c: &&Container| wanted.len() >= 4 && c.id.hex().starts_with(wanted);
        Ok(all.iter().find(|c| c.name == wanted).or_else(|| all.iter().find(by_id)).cloned())
    }

    /// Removes a container, which must not be running. Does nothing if it no longer exists.
    ///
    /// # Errors
    ///
    /// Fails if its files cannot be removed.
    pub fn remove_container(&self, id: &ContainerId) -> Result<()> {
        self.store.remove_note(DIR, OsStr::new(&format!("{}.json", id.hex())))?;
        self.remove_run(id)
    }
}
