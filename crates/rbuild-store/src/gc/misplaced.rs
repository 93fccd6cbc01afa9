//! Directories, links and other things in places where the store keeps regular files.

use std::ffi::{OsStr, OsString};

use rbuild_linux::{DirEntry, FileKind, RootDir};

use crate::error::{Result, naming};
use crate::store::Store;

/// Directory of the store for misplaced files and directories. Nothing reads or removes it. It is
/// not called `lost+found`: that one belongs to the file system if the store is a mount point.
const ASIDE: &str = "misplaced";

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

    /// Returns the problem as a clause. `path` is the path of the entry's directory in the store.
    pub fn problem(&self, path: &str) -> String {
        let name = self.name.to_string_lossy();
        match self.kind {
            FileKind::File => format!("{path}/{name} in the store is not named after a digest"),
            FileKind::Dir => format!("{path}/{name} in the store is a directory, not a file"),
            FileKind::Symlink => format!("{path}/{name} in the store is a symbolic link, not a file"),
            _ => format!("{path}/{name} in the store is not a regular file"),
        }
    }

    /// Moves a directory or a regular file, which may be the only copy of something, to [`ASIDE`],
    /// and returns its path there; removes anything else. The caller holds the exclusive lock.
    pub fn put_away(&self, store: &Store, dir: &RootDir, path: &str) -> Result<Option<String>> {
        let path = format!("{path}/{}", self.name.to_string_lossy());
        if !matches!(self.kind, FileKind::File | FileKind::Dir) {
            dir.remove_file(&self.name).map_err(naming(&store.root, &path))?;
            return Ok(None);
        }
        let aside = store.root.create_dir_all(ASIDE, 0o700, None, |_| ()).map_err(naming(&store.root, ASIDE))?;
        let mut name = self.name.clone();
        let mut others = 0;
        while aside.exists(OsStr::new(&name)).map_err(naming(&store.root, ASIDE))? {
            others += 1;
            name = self.name.clone();
            name.push(format!(".{others}"));
        }
        dir.rename(&self.name, &aside, &name).map_err(naming(&store.root, &path))?;
        Ok(Some(format!("{ASIDE}/{}", name.to_string_lossy())))
    }
}
