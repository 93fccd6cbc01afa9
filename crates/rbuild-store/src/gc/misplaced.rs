//! Directories, links and other things in places where the store keeps regular files.

use std::ffi::{OsStr, OsString};

use rbuild_linux::{DirEntry, FileKind, RootDir};

use crate::error::{Result, naming};
use crate::store::Store;

/// Directory of the store for misplaced files and directories. Nothing reads or removes it.
const LOST: &str = "lost+found";

/// An entry of a directory of the store that the store did not create.
pub(super) struct Misplaced {
    name: OsString,
    kind: FileKind,
}

impl Misplaced {
    /// Returns the entry of the directory of blobs if it is not a regular file or not named after a
    /// digest.
    pub fn among_blobs(dir: &RootDir, entry: &DirEntry) -> Result<Option<Misplaced>> {
        let is_digest = entry.name.len() == 64
            && entry.name.as_encoded_bytes().iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        Misplaced::unless(is_digest, dir, entry)
    }

    /// Returns the entry of a directory of documents if it is not a regular file.
    pub fn among_documents(dir: &RootDir, entry: &DirEntry) -> Result<Option<Misplaced>> {
        Misplaced::unless(true, dir, entry)
    }

    fn unless(is_named_well: bool, dir: &RootDir, entry: &DirEntry) -> Result<Option<Misplaced>> {
        let kind = match entry.kind {
            Some(kind) => kind,
            None => match dir.stat_name(&entry.name) {
                Ok(stat) => stat.kind,
                // Another process removed it.
                Err(e) if e.is_not_found() => return Ok(None),
                Err(e) => return Err(e.into()),
            },
        };
        let fits = is_named_well && kind == FileKind::File;
        Ok((!fits).then(|| Misplaced { name: entry.name.clone(), kind }))
    }

    /// Returns the problem as a sentence. With `repair`, for which the caller must hold the
    /// exclusive lock, directories and regular files, which may be the only copy of something, are
    /// moved to [`LOST`]; anything else is removed. `path` is the path of `dir` in the store.
    pub fn put_away(&self, store: &Store, dir: &RootDir, path: &str, repair: bool) -> Result<String> {
        let name = self.name.to_string_lossy();
        let problem = match self.kind {
            FileKind::File => format!("{path}/{name} in the store is not named after a digest"),
            FileKind::Dir => format!("{path}/{name} in the store is a directory, not a file"),
            FileKind::Symlink => format!("{path}/{name} in the store is a symbolic link, not a file"),
            _ => format!("{path}/{name} in the store is not a regular file"),
        };
        if !repair {
            return Ok(problem);
        }
        match self.kind {
            FileKind::File | FileKind::Dir => {
                let moved = self.move_away(store, dir)?;
                Ok(format!("{problem}; it was moved to {LOST}/{}", moved.to_string_lossy()))
            }
            _ => {
                dir.remove_file(&self.name)?;
                Ok(problem)
            }
        }
    }

    /// Moves the entry to [`LOST`] and returns its name there.
    fn move_away(&self, store: &Store, dir: &RootDir) -> Result<OsString> {
        let lost = store.root.create_dir_all(LOST, 0o700, None, |_| ()).map_err(naming(&store.root, LOST))?;
        let mut name = self.name.clone();
        let mut others = 0;
        while lost.exists(OsStr::new(&name))? {
            others += 1;
            name = self.name.clone();
            name.push(format!(".{others}"));
        }
        dir.rename(&self.name, &lost, &name).map_err(naming(&store.root, LOST))?;
        Ok(name)
    }
}
