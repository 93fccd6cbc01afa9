//! The content of selected files as one digest: what a cache key says of them.
//!
//! Counted: names below the selected directory, kind, mode, owner, size, bytes, link target, device number, and
//! the extended attributes that reach an image. Not counted: times, and everything that was not selected.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rbuild_image::{Digest, Hasher};
use rbuild_linux::{Kind, RootDir, Stat};

use crate::select::{Owner, Selected, SourceError, SourceTree};

/// The digest of everything that the sources select, and the names that files are copied under.
pub fn content_digest(tree: &SourceTree<'_>, selected: &[Selected]) -> Result<Digest, SourceError> {
    let mut hasher = Hasher::new();
    hasher.field("content 2");
    for item in selected {
        if item.stat.kind == Kind::Dir {
            // What a directory is called counts only where it is kept.
            let kept = if item.kept { item.name.as_os_str().as_bytes() } else { b"" };
            hasher.field("dir").field(kept);
            header(&mut hasher, tree.owner, &item.stat);
            tree.walk::<SourceError>(&item.path, |dir, path, stat| {
                hasher.field(path.as_os_str().as_bytes());
                entry(&mut hasher, tree, dir, path, stat)
            })?;
            hasher.field("end");
        } else {
            hasher.field("file").field(item.name.as_os_str().as_bytes());
            let (dir, _) = tree.root.parent(&item.path)?;
            entry(&mut hasher, tree, &dir, &item.path, &item.stat)?;
        }
    }
    Ok(hasher.finish())
}

fn header(hasher: &mut Hasher, owner: Owner, stat: &Stat) {
    let (uid, gid) = owner.ids(stat);
    let kind: u32 = match stat.kind {
        // A socket is copied as an empty file.
        Kind::File | Kind::Socket => 0,
        Kind::Dir => 1,
        Kind::Symlink => 2,
        Kind::CharDevice => 3,
        Kind::BlockDevice => 4,
        Kind::Fifo => 5,
    };
    let mode = if stat.kind == Kind::Symlink { 0o777 } else { owner.mode(stat) };
    for number in [kind, mode, uid, gid, stat.rdev.0, stat.rdev.1] {
        hasher.update(&number.to_le_bytes());
    }
}

fn entry(
    hasher: &mut Hasher,
    tree: &SourceTree<'_>,
    dir: &RootDir,
    path: &Path,
    stat: &Stat,
) -> Result<(), SourceError> {
    let name = path.file_name().unwrap_or(OsStr::new(""));
    header(hasher, tree.owner, stat);
    match stat.kind {
        Kind::Dir => attributes(hasher, dir, name)?,
        Kind::Symlink => {
            hasher.field(dir.read_link(name)?.as_bytes());
        }
        Kind::File => {
            let known = tree.hashes.and_then(|hashes| hashes.get(stat));
            let digest = match known {
                Some(digest) => digest,
                None => {
                    let digest = file_digest(dir, name, path, stat)?;
                    if let Some(hashes) = tree.hashes {
                        hashes.put(stat, &digest);
                    }
                    digest
                }
            };
            hasher.update(digest.bytes());
        }
        _ => {}
    }
    Ok(())
}

fn attributes(hasher: &mut Hasher, dir: &RootDir, name: &OsStr) -> Result<(), SourceError> {
    for (attr, value) in dir.xattrs(name)?.iter().filter(|(attr, _)| rbuild_layer::keep_in_layer(attr)) {
        hasher.field(attr.as_bytes()).field(value);
    }
    Ok(())
}

/// A file's attributes, size and bytes.
fn file_digest(dir: &RootDir, name: &OsStr, path: &Path, stat: &Stat) -> Result<Digest, SourceError> {
    let mut hasher = Hasher::new();
    attributes(&mut hasher, dir, name)?;
    hasher.update(&stat.size.to_le_bytes());
    let mut file = dir.open_name(name)?;
    let mut buffer = [0u8; 64 * 1024];
    let mut left = stat.size;
    loop {
        let n = file.read(&mut buffer).map_err(|e| rbuild_linux::Error::new("read", path, e))?;
        if n == 0 {
            break;
        }
        left = left.checked_sub(n as u64).ok_or_else(|| SourceError::Changed(path.to_path_buf()))?;
        hasher.update(&buffer[..n]);
    }
    match left {
        0 => Ok(hasher.finish()),
        _ => Err(SourceError::Changed(path.to_path_buf())),
    }
}

#[cfg(test)]
mod tests;
