use std::path::{Path, PathBuf};

use rbuild_linux::{RootDir, detached_overlay};

use crate::copies::{Before, Files, Marks, merge};
use crate::error::Result;
use crate::layout::Store;
use crate::stack::distinct;
use crate::trees::TreeId;
use crate::workspace::Workspace;

/// How trees are put on each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Snapshots {
    /// By the kernel.
    Overlay,
    /// By copying files.
    Copies,
}

/// A directory that is worked in, and the way back from it to a tree.
pub struct Working {
    pub root: RootDir,
    before: Option<Before>,
}

/// Where an overlay is mounted for a moment on kernels that know no other way.
const SCRATCH: &str = "/mnt";

impl Snapshots {
    /// What the store's file system and this process's rights allow.
    pub fn probe(work: &Workspace) -> Result<Snapshots> {
        let (lower, upper, scratch) = (work.new_dir()?.0, work.new_dir()?.0, work.new_dir()?.0);
        let made = detached_overlay(&[lower], Some((&upper, &scratch)), Path::new(SCRATCH));
        // A file system that is an overlay itself takes the mount and then keeps no marks.
        let works = made.is_ok_and(|fd| {
            let root = RootDir::from_fd(fd, "/");
            root.create_dir("probe".as_ref(), 0o755).and_then(|()| root.remove_dir("probe".as_ref())).is_ok()
        });
        Ok(if works { Snapshots::Overlay } else { Snapshots::Copies })
    }

    /// What the trees (the lowest first) show together, for reading.
    pub fn view(self, store: &Store, work: &Workspace, trees: &[TreeId]) -> Result<RootDir> {
        if self == Snapshots::Copies {
            return Ok(RootDir::from_fd(self.merged(store, work, trees, Files::Linked)?.1.into_fd(), "/"));
        }
        let mut lowers = store.lower_dirs(trees);
        // An overlay without an upper directory wants two lower ones.
        while lowers.len() < 2 {
            lowers.push(work.new_dir()?.0);
        }
        Ok(RootDir::from_fd(detached_overlay(&lowers, None, Path::new(SCRATCH))?, "/"))
    }

    /// The trees together, for work that replaces files and never writes in place; what it leaves becomes the tree
    /// whose directory `upper` is.
    pub fn working(self, store: &Store, work: &Workspace, trees: &[TreeId], upper: &Path) -> Result<Working> {
        if trees.is_empty() {
            return Ok(Working { root: RootDir::open(upper)?, before: None });
        }
        if self == Snapshots::Copies {
            let (_, root) = self.merged(store, work, trees, Files::Linked)?;
            let before = Before::of(&root, true)?;
            return Ok(Working { root: RootDir::from_fd(root.into_fd(), "/"), before: Some(before) });
        }
        let (scratch, _) = work.new_dir()?;
        let fd = detached_overlay(&store.lower_dirs(trees), Some((upper, &scratch)), Path::new(SCRATCH))?;
        Ok(Working { root: RootDir::from_fd(fd, "/"), before: None })
    }

    /// The trees together in a directory of their own; its path.
    pub fn merged(self, store: &Store, work: &Workspace, trees: &[TreeId], files: Files) -> Result<(PathBuf, RootDir)> {
        let (path, root) = work.new_dir()?;
        let open = distinct(trees).into_iter().map(|tree| store.tree(tree)).collect::<Result<Vec<_>>>()?;
        merge(&open, &root, files, Marks::Done)?;
        Ok((path, root))
    }
}

impl Working {
    /// Whether files may be put straight into the tree when the work is finished: nobody looks at the tree then to see
    /// what was done.
    pub fn takes_files(&self) -> bool {
        self.before.is_none()
    }

    /// Brings the work home into the tree that it was for.
    pub fn finish(self, upper: &Path) -> Result<()> {
        match self.before {
            Some(before) => Ok(before.changes(&self.root, &RootDir::open(upper)?)?),
            None => Ok(()),
        }
    }
}
