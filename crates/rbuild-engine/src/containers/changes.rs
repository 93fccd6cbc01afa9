//! Changes of the files of a running container: `diff` and `commit`.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use rbuild_image::{History, ImageConfig, ImageId, MediaType, Reference, descriptor};
use rbuild_layer::{LayerForm, marks_opaque};
use rbuild_linux::{FileKind, Result as KernelResult, RootDir};
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
        let root = ChangedDir { path: "/".into(), upper: self.open(store, &work)?, lower: Some(view) };
        let mut dirs = vec![root];
        while let Some(dir) = dirs.pop() {
            dir.compare(&mut changes, &mut dirs).map_err(fail())?;
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
        if let Some(author) = commit.author {
            config.author = Some(author.to_string());
        }
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

/// A directory with changes.
struct ChangedDir {
    path: PathBuf,
    /// The directory of the container's changes.
    upper: RootDir,
    /// The directory of the image with that path, if there is one.
    lower: Option<RootDir>,
}

impl ChangedDir {
    /// Adds the changes of the directory to `changes`, and the directories in it to `dirs`. Files
    /// that the container removes meanwhile are left out.
    fn compare(self, changes: &mut Vec<(PathBuf, ChangeKind)>, dirs: &mut Vec<ChangedDir>) -> KernelResult<()> {
        let ChangedDir { path, upper, lower } = self;
        let names: Vec<OsString> = upper.entries()?.into_iter().map(|entry| entry.name).collect();
        for name in &names {
            let Some(stat) = if_present(upper.stat_name(name))? else { continue };
            let of_image = lower.as_ref().map(|lower| if_present(lower.stat_name(name))).transpose()?.flatten();
            let path = path.join(name);
            if if_present(upper.is_whiteout(name, &stat))?.unwrap_or(false) {
                changes.extend(of_image.map(|_| (path, ChangeKind::Deleted)));
                continue;
            }
            let kind = if of_image.is_some() { ChangeKind::Changed } else { ChangeKind::Added };
            changes.push((path.clone(), kind));
            let inner = if stat.kind == FileKind::Dir { if_present(upper.sub(name))? } else { None };
            let Some(inner) = inner else { continue };
            let lower = lower.as_ref().filter(|_| of_image.is_some_and(|stat| stat.kind == FileKind::Dir));
            dirs.push(ChangedDir { path, upper: inner, lower: lower.map(|lower| lower.sub(name)).transpose()? });
        }
        // An opaque directory hides everything that the image has there.
        if let Some(lower) = lower
            && marks_opaque(&upper.xattrs(OsStr::new(""))?)
        {
            let hidden = lower.entries()?.into_iter().filter(|entry| !names.contains(&entry.name));
            changes.extend(hidden.map(|entry| (path.join(entry.name), ChangeKind::Deleted)));
        }
        Ok(())
    }
}

/// Returns `None` if a file does not exist.
fn if_present<T>(found: KernelResult<T>) -> KernelResult<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.is_gone() => Ok(None),
        Err(e) => Err(e),
    }
}

fn fail() -> impl FnOnce(rbuild_linux::Error) -> BuildError {
    BuildError::kernel(ErrorContext::ContainerFiles)
}
