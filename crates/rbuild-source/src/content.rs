//! The content of selected files as one digest: what a cache key says of them.
//!
//! Counted: names below the selected directory, kind, mode, owner, size, bytes, link target, device number, and
//! the extended attributes that reach an image. Not counted: times, and everything that was not selected.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rbuild_image::{Digest, Hasher};
use rbuild_linux::{Kind, RootDir, Stat};

use crate::file::file_digest;
use crate::select::{Owner, Selected, SourceError, SourceTree};
use crate::stamp::Stamp;

/// What a selection holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    pub digest: Digest,
    /// The sum of the files' stamps.
    pub stamps: u64,
}

/// The digest of everything that the sources select, and the names that files are copied under.
pub fn content(tree: &SourceTree<'_>, selected: &[Selected]) -> Result<Content, SourceError> {
    let mut hasher = Hasher::new();
    let stamps = AtomicU64::new(0);
    let describe = |out: &mut Vec<u8>, dir: &RootDir, path: &Path, stat: &Stat| {
        if stat.kind == Kind::File {
            stamps.fetch_add(Stamp::of(stat).sum(), Ordering::Relaxed);
        }
        entry(out, tree, dir, path, stat)
    };
    hasher.field("content 3");
    for item in selected {
        let mut said = Vec::new();
        if item.stat.kind == Kind::Dir {
            // What a directory is called counts only where it is kept.
            let kept = if item.kept { item.name.as_os_str().as_bytes() } else { b"" };
            hasher.field("dir").field(kept);
            header(&mut said, tree.owner, &item.stat);
            hasher.update(&said);
            tree.digest(&item.path, &mut hasher, &describe)?;
            hasher.field("end");
        } else {
            hasher.field("file").field(item.name.as_os_str().as_bytes());
            let (dir, _) = tree.root.parent(&item.path)?;
            describe(&mut said, &dir, &item.path, &item.stat)?;
            hasher.update(&said);
        }
    }
    Ok(Content { digest: hasher.finish(), stamps: stamps.into_inner() })
}

fn field(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn header(out: &mut Vec<u8>, owner: Owner, stat: &Stat) {
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
        out.extend_from_slice(&number.to_le_bytes());
    }
}

fn entry(out: &mut Vec<u8>, tree: &SourceTree<'_>, dir: &RootDir, path: &Path, stat: &Stat) -> Result<(), SourceError> {
    let name = path.file_name().unwrap_or(OsStr::new(""));
    header(out, tree.owner, stat);
    match stat.kind {
        Kind::Dir => attributes(dir, name, |bytes| field(out, bytes))?,
        Kind::Symlink => field(out, dir.read_link(name)?.as_bytes()),
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
            out.extend_from_slice(digest.bytes());
        }
        _ => {}
    }
    Ok(())
}

fn attributes(dir: &RootDir, name: &OsStr, mut tell: impl FnMut(&[u8])) -> Result<(), SourceError> {
    for (attr, value) in dir.xattrs(name)?.iter().filter(|(attr, _)| rbuild_layer::keep_in_layer(attr)) {
        tell(attr.as_bytes());
        tell(value);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
