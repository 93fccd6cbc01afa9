//! Changes of the files of a running container: `diff` and `commit`.

use std::path::{Path, PathBuf};

use rbuild_image::{History, ImageConfig, ImageId, MediaType, Reference, descriptor};
use rbuild_layer::LayerForm;
use rbuild_linux::{FileKind, RootDir};
use rbuild_sandbox::Builder;
use rbuild_store::{BuildId, Image, LayerVariant, Session, Staging, Store, Workspace};

use crate::error::{BuildError, Result};
use crate::error_context::ErrorContext;
use crate::export::image::time;
use crate::rootfs::snapshots;

/// A change of a file, as docker shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    Added,
    Changed,
    Deleted,
}

/// A container that runs.
#[derive(Clone, Copy)]
pub struct ChangedFiles<'a> {
    /// The image of the container.
    pub image: &'a Image,
    /// The directory with its changes, an upper directory of an overlay, below the store.
    pub upper: &'a Path,
}

/// The properties of an image that is made from a container.
pub struct Commit<'a> {
    pub name: Option<&'a Reference>,
    pub message: &'a str,
    pub author: Option<&'a str>,
    /// The command of the container, for the history.
    pub command: &'a str,
    /// Changes the configuration of the container's image.
    pub change: &'a dyn Fn(&mut ImageConfig),
    /// Seconds since 1970.
    pub now: i64,
}

impl ChangedFiles<'_> {
    fn open(&self, store: &Store, work: &Workspace) -> Result<RootDir> {
        let upper = RootDir::open(store.path().join(self.upper)).map_err(fail())?;
        Ok(work.dir().with_fd(upper.into_fd(), "/"))
    }

    /// Returns the changed paths with the kinds of their changes, sorted. Must run as root of the
    /// store's user namespace. `now` is in seconds since the Unix epoch.
    ///
    /// # Errors
    ///
    /// Fails if a file cannot be read, or if the container has ended.
    pub fn list(&self, store: &Store, builder: &Builder, now: i64) -> Result<Vec<(PathBuf, ChangeKind)>> {
        let work = Workspace::open(store)?;
        let id = BuildId::of_command("diff");
        let (trees, _) = store.trees().unpack_image(Session::new(store, &work, &id, now), self.image)?;
        let view = snapshots(builder, &work)?.view(store, &work, &trees)?;
        let mut changes = Vec::new();
        let mut dirs = vec![(self.open(store, &work)?, PathBuf::from("/"))];
        while let Some((dir, path)) = dirs.pop() {
            for entry in dir.entries().map_err(fail())? {
                let stat = dir.stat_name(&entry.name).map_err(fail())?;
                let path = path.join(&entry.name);
                if dir.is_whiteout(&entry.name, &stat).map_err(fail())? {
                    changes.push((path, ChangeKind::Deleted));
                    continue;
                }
                let kind = if view.exists(&path).map_err(fail())? { ChangeKind::Changed } else { ChangeKind::Added };
                changes.push((path.clone(), kind));
                if stat.kind == FileKind::Dir {
                    dirs.push((dir.sub(&entry.name).map_err(fail())?, path));
                }
            }
        }
        changes.sort();
        Ok(changes)
    }

    /// Makes an image of the container's image and the changes. Must run as root of the store's
    /// user namespace.
    ///
    /// # Errors
    ///
    /// Fails if a file cannot be read, changes meanwhile, or cannot be written to the store.
    pub fn commit(&self, store: &Store, commit: &Commit<'_>) -> Result<ImageId> {
        let work = Workspace::open(store)?;
        let variant = LayerVariant::exact(LayerForm::default());
        let layer = store.layers().pack_changes(&work, &self.open(store, &work)?, variant)?;
        let mut config = self.image.config.clone();
        (commit.change)(&mut config);
        config.created = Some(time(commit.now)?);
        config.rootfs.diff_ids.push(layer.diff_id);
        config.history.push(History {
            created: config.created.clone(),
            created_by: commit.command.into(),
            comment: commit.message.into(),
            author: commit.author.map(str::to_string),
            ..History::default()
        });
        let staging = Staging::open(store, &work)?;
        let (config_digest, config_size) = staging.put_document(&config)?;
        let layers = self.image.manifest.layers().iter().cloned().chain([layer.descriptor()]);
        let config = descriptor(MediaType::ImageConfig, &config_digest, config_size);
        let manifest = rbuild_image::manifest(config, layers.collect());
        let manifest = staging.put_document(&manifest)?.0.of_manifest();
        staging.publish("commit", &[manifest], &[(manifest, commit.name.cloned())])?;
        Ok(config_digest.of_config())
    }
}

fn fail() -> impl FnOnce(rbuild_linux::Error) -> BuildError {
    BuildError::kernel(ErrorContext::ContainerFiles)
}
