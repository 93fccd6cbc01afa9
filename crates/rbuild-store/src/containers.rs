//! Names for images that scripts copy files out of: `create`, `cp` and `rm` as they are used without running anything.

use std::ffi::OsStr;

use rbuild_image::{Digest, Hasher};
use serde::{Deserialize, Serialize};

use crate::error::{Result, StoreError};
use crate::layout::Store;
use crate::modes;

/// What `create` made. There is no process and there are no files of its own: it stands for its image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    pub id: Digest,
    pub name: String,
    /// Manifest of its image, which stays as long as this does.
    pub image: Digest,
}

const DIR: &str = "containers";

impl Store {
    /// A container of the image under that name, or under a made-up one. `salt` is different each time.
    pub fn create_container(&self, name: Option<&str>, image: &Digest, salt: &str) -> Result<Container> {
        let mut hasher = Hasher::new();
        hasher.field("container").field(image.bytes()).field(salt);
        let id = hasher.finish();
        let name = name.map_or_else(|| format!("rbuild_{}", &id.hex()[..8]), str::to_string);
        self.root.create_dir_all(DIR, modes::dir(), None, |_| ())?;
        if self.containers()?.iter().any(|c| c.name == name) {
            return Err(StoreError::NameTaken(name));
        }
        let container = Container { id, name, image: *image };
        self.write_durable(DIR, &format!("{}.json", id.hex()), &container)?;
        Ok(container)
    }

    pub fn containers(&self) -> Result<Vec<Container>> {
        if !self.root.exists(DIR)? {
            return Ok(Vec::new());
        }
        let entries = self.documents(DIR)?;
        let read = |name: &OsStr| self.read_if_any(&format!("{DIR}/{}", name.to_string_lossy()));
        let found: Vec<Option<Container>> = entries.iter().map(|e| read(&e.name)).collect::<Result<_>>()?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Finds a container by name, or by its id or the beginning of it.
    pub fn find_container(&self, wanted: &str) -> Result<Option<Container>> {
        let all = self.containers()?;
        let by_id = |c: &&Container| wanted.len() >= 4 && c.id.hex().starts_with(wanted);
        Ok(all.iter().find(|c| c.name == wanted).or_else(|| all.iter().find(by_id)).cloned())
    }

    pub fn remove_container(&self, container: &Container) -> Result<()> {
        Ok(self.dir(DIR)?.remove_file(OsStr::new(&format!("{}.json", container.id.hex())))?)
    }
}
