//! Entries of the wrong kind in the store, such as directories where it keeps regular files.

use std::ffi::{OsStr, OsString};

use rbuild_linux::{DirEntry, FileKind, RootDir};

use crate::error::{Result, naming};
use crate::gc::damage::{Misplacement, StoreDamage};
use crate::store::Store;

/// Directory of the store for misplaced files and directories. Nothing reads or removes it. The
/// name is not `lost+found`, which belongs to the file system if the store is a mount point. If the
/// name is taken, a number is appended.
const MISPLACED_DIR: &str = "misplaced";

/// An entry of a directory of the store that the store did not create.
pub(super) struct Misplaced {
    name: OsString,
    kind: FileKind,
    /// True if the store needs a directory of that name.
    is_instead: bool,
}

/// Number of hexadecimal digits of a digest.
const DIGITS: usize = 64;

fn starts_with_digest(name: &[u8]) -> bool {
    name.get(..DIGITS).is_some_and(|start| start.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// Returns the path of an entry of a directory of the store.
fn path_in(dir: &str, name: &OsStr) -> String {
    let name = name.to_string_lossy();
    if dir.is_empty() { name.into_owned() } else { format!("{dir}/{name}") }
}

impl Misplaced {
    /// Returns the entry of the directory of blobs if it is not a regular file or not named after a
    /// digest.
    pub fn among_blobs(dir: &RootDir, entry: &DirEntry) -> Result<Option<Misplaced>> {
        let name = entry.name.as_encoded_bytes();
        Misplaced::unless(name.len() == DIGITS && starts_with_digest(name), dir, entry)
    }

    /// Returns the entry of a directory of documents if it is not a regular file or not named as a
    /// document.
    pub fn among_documents(dir: &RootDir, entry: &DirEntry) -> Result<Option<Misplaced>> {
        let name = entry.name.as_encoded_bytes();
        Misplaced::unless(starts_with_digest(name) && name.ends_with(b".json"), dir, entry)
    }

    /// Returns the entry at a path where the store needs a directory, if it is something else.
    pub fn instead_of(parent: &RootDir, name: &str) -> Result<Option<Misplaced>> {
        match parent.stat_name(OsStr::new(name)) {
            Ok(stat) if stat.kind == FileKind::Dir => Ok(None),
            Ok(stat) => Ok(Some(Misplaced { name: name.into(), kind: stat.kind, is_instead: true })),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e.into()),
        }
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
        Ok((!fits).then(|| Misplaced { name: entry.name.clone(), kind, is_instead: false }))
    }

    /// Returns the damage. `dir` is the path of the entry's directory in the store.
    pub fn damage(&self, dir: &str) -> StoreDamage {
        let misplacement = match self.kind {
            _ if self.is_instead => Misplacement::NoDirectory,
            FileKind::File => Misplacement::OtherName,
            FileKind::Dir => Misplacement::Directory,
            FileKind::Symlink => Misplacement::Symlink,
            _ => Misplacement::Special,
        };
        StoreDamage::Misplaced { path: path_in(dir, &self.name), misplacement }
    }

    /// Moves a directory or a regular file, which may be the only copy of something, to the
    /// directory [`MISPLACED_DIR`], and returns its path there; removes anything else. The caller
    /// holds the exclusive lock.
    pub fn quarantine(&self, store: &Store, dir: &RootDir, path: &str) -> Result<Option<String>> {
        let path = path_in(path, &self.name);
        if !matches!(self.kind, FileKind::File | FileKind::Dir) {
            dir.remove_file(&self.name).map_err(naming(&store.root, &path))?;
            return Ok(None);
        }
        let (aside, place) = open_misplaced_dir(&store.root)?;
        let mut name = self.name.clone();
        let mut others = 0;
        while aside.exists(OsStr::new(&name)).map_err(naming(&store.root, &place))? {
            others += 1;
            name = self.name.clone();
            name.push(format!(".{others}"));
        }
        dir.rename(&self.name, &aside, &name).map_err(naming(&store.root, &path))?;
        Ok(Some(format!("{place}/{}", name.to_string_lossy())))
    }
}

/// Opens the first of `misplaced`, `misplaced.1` and so on that is a directory or does not exist,
/// and creates it if necessary. Returns it with its name.
fn open_misplaced_dir(store: &RootDir) -> Result<(RootDir, String)> {
    let mut name = MISPLACED_DIR.to_string();
    for number in 1.. {
        match store.stat_name(OsStr::new(&name)) {
            Ok(stat) if stat.kind != FileKind::Dir => name = format!("{MISPLACED_DIR}.{number}"),
            Err(e) if !e.is_not_found() => return Err(naming(store, &name)(e)),
            _ => break,
        }
    }
    let dir = store.create_dir_all(&name, 0o700, None, |_| ()).map_err(naming(store, &name))?;
    Ok((dir, name))
}
