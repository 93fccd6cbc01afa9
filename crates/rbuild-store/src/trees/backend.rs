//! Snapshots: file systems composed of trees, by overlay mounts or by copying.

use std::path::{Path, PathBuf};

use rbuild_linux::{RootDir, detached_overlay};

use crate::error::Result;
use crate::store::Store;
use crate::trees::copies::{Baseline, MergedFiles, MergedWhiteouts, merge};
use crate::trees::id::TreeId;
use crate::trees::stack::distinct;
use crate::workspace::Workspace;

/// The method of stacking trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotBackend {
    /// Overlay mounts.
    Overlay,
    /// Copying or hard-linking files.
    Copies,
}

/// A writable snapshot, and the state needed to extract its changes.
pub struct WorkingTree {
    /// Root directory.
    pub root: RootDir,
    before: Option<Baseline>,
}

/// Temporary mount point for overlays on kernels that cannot mount them detached.
const SCRATCH: &str = "/mnt";

impl SnapshotBackend {
    /// Returns the method supported by the store's file system and this process's privileges.
    ///
    /// # Errors
    ///
    /// Fails if a directory cannot be created.
    pub fn probe(work: &Workspace) -> Result<SnapshotBackend> {
        let (lower, upper, scratch) = (work.new_dir()?.0, work.new_dir()?.0, work.new_dir()?.0);
        let made = detached_overlay(&[lower], Some((&upper, &scratch)), Path::new(SCRATCH));
        // On an overlay file system, mounting succeeds but creating marks fails.
        let works = made.is_ok_and(|fd| {
            let root = RootDir::from_fd(fd, "/");
            root.create_dir("probe".as_ref(), 0o755).and_then(|()| root.remove_dir("probe".as_ref())).is_ok()
        });
        Ok(if works { SnapshotBackend::Overlay } else { SnapshotBackend::Copies })
    }

    /// Returns a read-only view of the trees (lowest first).
    ///
    /// # Errors
    ///
    /// Fails if mounting or copying fails.
    pub fn view(self, store: &Store, work: &Workspace, trees: &[TreeId]) -> Result<RootDir> {
        if self == SnapshotBackend::Copies {
            return Ok(work.dir().with_fd(self.merged(store, work, trees, MergedFiles::Linked)?.1.into_fd(), "/"));
        }
        let mut lowers = store.trees().lower_dirs(work, trees)?;
        // An overlay without an upper directory needs two lower ones.
        while lowers.len() < 2 {
            lowers.push(work.new_dir()?.0);
        }
        Ok(work.dir().with_fd(detached_overlay(&lowers, None, Path::new(SCRATCH))?, "/"))
    }

    /// Returns a writable snapshot of the trees for work that replaces files and never writes in
    /// place. Its changes become the tree in the directory `upper`.
    ///
    /// # Errors
    ///
    /// Fails if mounting or copying fails.
    pub fn working(self, store: &Store, work: &Workspace, trees: &[TreeId], upper: &Path) -> Result<WorkingTree> {
        if trees.is_empty() {
            return Ok(WorkingTree { root: work.dir().open_alike(upper)?.shown_as_root(), before: None });
        }
        if self == SnapshotBackend::Copies {
            let (_, root) = self.merged(store, work, trees, MergedFiles::Linked)?;
            let before = Baseline::of(&root, true)?;
            return Ok(WorkingTree { root: work.dir().with_fd(root.into_fd(), "/"), before: Some(before) });
        }
        let (scratch, _) = work.new_dir()?;
        let fd =
            detached_overlay(&store.trees().lower_dirs(work, trees)?, Some((upper, &scratch)), Path::new(SCRATCH))?;
        Ok(WorkingTree { root: work.dir().with_fd(fd, "/"), before: None })
    }

    /// Returns a directory with the merged content of the trees, and its path.
    ///
    /// # Errors
    ///
    /// Fails if copying fails.
    pub fn merged(
        self,
        store: &Store,
        work: &Workspace,
        trees: &[TreeId],
        files: MergedFiles,
    ) -> Result<(PathBuf, RootDir)> {
        let (path, root) = work.new_dir()?;
        for tree in distinct(trees) {
            merge(&[store.trees().tree(tree)?], &root, files, MergedWhiteouts::Applied)?;
        }
        Ok((path, root))
    }
}

impl WorkingTree {
    /// Returns true if files may be added directly to the tree after the work, because its changes
    /// are not extracted by comparing the directory with its earlier state.
    pub fn takes_files(&self) -> bool {
        self.before.is_none()
    }

    /// Moves the changes into the tree in the directory `upper`.
    ///
    /// # Errors
    ///
    /// Fails if the changes cannot be read or moved.
    pub fn finish(self, upper: &Path) -> Result<()> {
        match self.before {
            Some(before) => Ok(before.changes(&self.root, &self.root.open_alike(upper)?)?),
            None => Ok(()),
        }
    }
}
