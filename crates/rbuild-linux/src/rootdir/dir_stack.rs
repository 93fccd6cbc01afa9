//! Directory-tree traversal with a bounded number of open descriptors.
//!
//! Only the last directories of a deep path stay open. An ancestor is reopened as the parent of the
//! one below it when the traversal returns to it, and must be the same directory as before.

use std::ffi::OsStr;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::Result;
use crate::meta::Inode;
use crate::rootdir::dir::RootDir;

/// Maximum number of directories of one path that are open at a time.
const MAX_OPEN_DIRS: usize = 48;

/// Maximum depth of a tree in a full traversal.
pub const MAX_DEPTH: usize = 2048;

/// A path of nested directories. Always contains the top, where the traversal began.
#[derive(Debug)]
pub struct DirStack {
    top: RootDir,
    steps: Vec<StackedDir>,
    most: usize,
}

#[derive(Debug)]
enum StackedDir {
    Open(RootDir),
    /// Identified by its inode, which is checked when it is reopened.
    Closed(Inode),
}

impl DirStack {
    /// Starts a traversal that refuses directories more than [`MAX_DEPTH`] levels down.
    pub fn new(top: RootDir) -> DirStack {
        DirStack { top, steps: Vec::new(), most: MAX_DEPTH }
    }

    /// Starts a traversal without a depth limit, for removal.
    pub fn endless(top: RootDir) -> DirStack {
        DirStack { most: usize::MAX, ..DirStack::new(top) }
    }

    /// Returns the deepest directory of the path.
    pub fn last(&self) -> &RootDir {
        match self.steps.last() {
            Some(StackedDir::Open(dir)) => dir,
            // Unreachable: the last directory is opened before it becomes the last.
            Some(StackedDir::Closed(_)) | None => &self.top,
        }
    }

    /// Descends into a directory of the last one.
    pub fn enter(&mut self, name: &OsStr) -> Result<&RootDir> {
        let below = self.last().sub(name)?;
        self.push(below)?;
        Ok(self.last())
    }

    /// Descends into a directory that the caller has opened.
    pub fn push(&mut self, below: RootDir) -> Result<()> {
        if self.steps.len() >= self.most {
            let reason = format!("directories are nested more than {MAX_DEPTH} levels deep");
            return Err(below.error("walking", "", std::io::Error::other(reason)));
        }
        if let Some(far) = self.steps.len().checked_sub(MAX_OPEN_DIRS)
            && let StackedDir::Open(dir) = &self.steps[far]
        {
            self.steps[far] = StackedDir::Closed(dir.stat_self()?.inode());
        }
        self.steps.push(StackedDir::Open(below));
        Ok(())
    }

    /// Ascends by one directory; stays at the top.
    pub fn leave(&mut self) -> Result<()> {
        let Some(StackedDir::Open(below)) = self.steps.pop() else { return Ok(()) };
        if let Some(StackedDir::Closed(inode)) = self.steps.last() {
            let above = above(&below, *inode)?;
            self.steps.pop();
            self.steps.push(StackedDir::Open(above));
        }
        Ok(())
    }

    /// Returns the depth below the top.
    pub fn depth(&self) -> usize {
        self.steps.len()
    }

    /// Returns a new descriptor of the directory at that depth.
    pub fn nth(&self, depth: usize) -> Result<RootDir> {
        let Some(at) = depth.checked_sub(1) else { return self.top.try_clone() };
        let open = self.steps.iter().enumerate().skip(at);
        let first = open.into_iter().find_map(|(i, step)| match step {
            StackedDir::Open(dir) => Some((i, dir)),
            StackedDir::Closed(_) => None,
        });
        let Some((mut i, first)) = first else { return self.top.try_clone() };
        let mut dir = first.try_clone()?;
        while i > at {
            i -= 1;
            if let StackedDir::Closed(inode) = &self.steps[i] {
                dir = above(&dir, *inode)?;
            }
        }
        Ok(dir)
    }
}

/// Opens the parent of a directory. Fails with ESTALE unless it has that inode.
fn above(below: &RootDir, inode: Inode) -> Result<RootDir> {
    let label = below.label().parent().unwrap_or(below.label()).to_path_buf();
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(below.fd(), c"..", flags, Mode::empty());
    let dir = below.with_fd_and_place(fd.map_err(|e| below.error("openat", "", e))?, &label);
    if dir.stat_self()?.inode() == inode { Ok(dir) } else { Err(dir.error("openat", "", Errno::STALE)) }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::Scratch;

    use super::*;

    #[test]
    fn deep_traversal_bounds_open_descriptors() {
        let scratch = Scratch::new();
        let root = RootDir::open(&scratch).unwrap();
        let mut dirs = DirStack::new(root.try_clone().unwrap());
        let mut inodes = Vec::new();
        for _ in 0..300 {
            dirs.last().create_dir(OsStr::new("d"), 0o755).unwrap();
            inodes.push(dirs.enter(OsStr::new("d")).unwrap().stat_self().unwrap().ino);
        }
        assert!(dirs.steps.iter().filter(|step| matches!(step, StackedDir::Open(_))).count() <= MAX_OPEN_DIRS);
        for depth in [300, 299, 200, 1] {
            assert_eq!(dirs.nth(depth).unwrap().stat_self().unwrap().ino, inodes[depth - 1]);
        }
        assert_eq!(dirs.nth(0).unwrap().stat_self().unwrap().ino, root.stat_self().unwrap().ino);
        while let Some(inode) = inodes.pop() {
            assert_eq!(dirs.last().stat_self().unwrap().ino, inode);
            dirs.leave().unwrap();
            dirs.last().remove_dir(OsStr::new("d")).unwrap();
        }
        assert_eq!((dirs.depth(), dirs.last().entries().unwrap().len()), (0, 0));
    }

    #[test]
    fn the_depth_limit_is_worded_as_recorded() {
        let scratch = Scratch::new();
        std::fs::create_dir_all(scratch.join("a/b")).unwrap();
        let mut dirs = DirStack { most: 1, ..DirStack::new(RootDir::open(&scratch).unwrap()) };
        dirs.enter(OsStr::new("a")).unwrap();
        let e = dirs.enter(OsStr::new("b")).unwrap_err();
        let row = rbuild_testkit::message_row("too deep", &e, e.remedy());
        rbuild_testkit::assert_recorded!("dir_stack", row.replace(&*scratch.to_string_lossy(), "[dir]"));
    }
}
