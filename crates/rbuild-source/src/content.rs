//! The content digest of selected files, for cache keys.
//!
//! The digest covers the names below the selected directory, the kept parent directories, and for
//! each file its kind, mode, owner, size, content, link target, device number, and the extended
//! attributes that are stored in images. It also covers hard links between the files. It does not
//! cover times, or files that are not selected.

use rbuild_linux::parallel::locked;
use std::collections::{BTreeSet, HashMap};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rbuild_image::Hasher;
use rbuild_linux::{FileKind, Inode, Stat, UidGid};

use crate::file::file_hash;
use crate::fingerprint::{Details, Fingerprint};
use crate::ids::SelectionHash;
use crate::scan::{Entry, hash_entries};
use crate::select::{CopiedPart, Owner, Selected, SourceError, SourceTree};

/// The content of a selection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SelectionContent {
    /// Digest for cache keys.
    pub digest: SelectionHash,
    /// Fingerprint of the metadata that was read for the digest, to detect changes between hashing
    /// and copying.
    pub fingerprint: Fingerprint,
}

/// The files that the sources of a step select, and their content at the time of selection.
///
/// A copy reads the files from which its key was computed. It never selects again, because the
/// context may have changed.
#[derive(Debug, Clone)]
pub struct Selection {
    /// The files and directories of each source, in the order of the sources.
    pub sources: Vec<Vec<Selected>>,
    /// Content of all sources together.
    pub content: SelectionContent,
}

/// Hard links between the files of all sources of a step, which a copy preserves.
#[derive(Default)]
pub struct HardLinks(Mutex<HashMap<Inode, BTreeSet<PathBuf>>>);

impl HardLinks {
    fn note(&self, path: &Path, stat: &Stat) {
        if stat.nlink > 1 && stat.kind != FileKind::Dir {
            let mut groups = locked(&self.0);
            groups.entry(stat.inode()).or_default().insert(path.to_path_buf());
        }
    }

    /// Adds the groups of two or more names to a digest, in order of their names. Returns the
    /// digest unchanged if there are none.
    pub fn added_to(self, digest: SelectionHash) -> SelectionHash {
        let groups = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        let groups: BTreeSet<BTreeSet<PathBuf>> = groups.into_values().filter(|names| names.len() > 1).collect();
        if groups.is_empty() {
            return digest;
        }
        let mut hasher = Hasher::new();
        hasher.field(digest.bytes());
        for names in groups {
            hasher.field("hard links").field(names.len().to_le_bytes());
            for name in names {
                hasher.field(name.as_os_str().as_bytes());
            }
        }
        hasher.finish()
    }
}

/// Returns the content of a selection, with the hard links in it. The digest includes the names
/// under which files are copied.
///
/// # Errors
///
/// Returns an error if a file cannot be read or changes while it is read.
pub fn content(tree: &SourceTree<'_>, selected: &[Selected]) -> Result<SelectionContent, SourceError> {
    let links = HardLinks::default();
    let SelectionContent { digest, fingerprint } = content_without_links(tree, selected, &links)?;
    Ok(SelectionContent { digest: links.added_to(digest), fingerprint })
}

/// Returns the content of a selection, and records its hard links in `links`. Files of different
/// sources of a step may be hard links to each other, so the caller adds the links to a digest over
/// all sources.
///
/// # Errors
///
/// Returns an error if a file cannot be read or changes while it is read.
#[tracing::instrument(
    target = "source",
    name = "content",
    level = "debug",
    skip_all,
    fields(selected = selected.len())
)]
pub fn content_without_links(
    tree: &SourceTree<'_>,
    selected: &[Selected],
    links: &HardLinks,
) -> Result<SelectionContent, SourceError> {
    let mut hasher = Hasher::new();
    let mut fingerprint = Fingerprint::default();
    hasher.field("content 5");
    for item in selected {
        fingerprint += item.fingerprint();
        let (kind, below) = match (item.stat.kind, item.take) {
            (FileKind::Dir, CopiedPart::Above) => ("directory above", false),
            (FileKind::Dir, CopiedPart::Kept) => ("directory", true),
            (FileKind::Dir, CopiedPart::Content) => ("content of a directory", true),
            _ => ("file", false),
        };
        // The name of a directory is part of the digest only if the directory itself is copied.
        let name = if item.stat.kind == FileKind::Dir && item.take == CopiedPart::Content {
            Path::new("")
        } else {
            &item.name
        };
        hasher.field(kind).field(name.as_os_str().as_bytes());
        if item.copies_entry() {
            let mut description = Vec::new();
            links.note(&item.path, &item.stat);
            let (parent, _) = tree.root.parent(&item.path).map_err(|e| SourceError::from(e).of_found(tree.root))?;
            let name = item.path.file_name().unwrap_or_default();
            let entry = Entry { parent: &parent, path: &item.path, name, stat: &item.stat };
            fingerprint += describe(&mut description, tree, &entry).map_err(|e| e.of_found(tree.root))?;
            hasher.update(&description);
        }
        if below {
            let noted = |out: &mut Vec<u8>, entry: &Entry<'_>| {
                links.note(entry.path, entry.stat);
                describe(out, tree, entry)
            };
            fingerprint += hash_entries(tree, item, &mut hasher, &noted)?;
            hasher.field("end");
        }
    }
    Ok(SelectionContent { digest: hasher.finish(), fingerprint })
}

fn field(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn header(out: &mut Vec<u8>, owner: Owner, stat: &Stat) {
    let UidGid { uid, gid } = owner.ids(stat);
    let kind: u32 = match stat.kind {
        // A socket is copied as an empty file.
        FileKind::File | FileKind::Socket => 0,
        FileKind::Dir => 1,
        FileKind::Symlink => 2,
        FileKind::CharDevice => 3,
        FileKind::BlockDevice => 4,
        FileKind::Fifo => 5,
    };
    let mode = if stat.kind == FileKind::Symlink { 0o777 } else { owner.mode(stat) };
    for number in [kind, mode, uid, gid, stat.rdev.0, stat.rdev.1] {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

/// Appends the hashed form of an entry to `out`.
fn describe(out: &mut Vec<u8>, tree: &SourceTree<'_>, entry: &Entry<'_>) -> Result<Fingerprint, SourceError> {
    let &Entry { parent, path, name, stat } = entry;
    header(out, tree.owner, stat);
    let details = Details::read(parent, name, stat)?;
    match &details {
        Details::Attributes(attributes) => {
            for (attr, value) in attributes {
                field(out, attr.as_bytes());
                field(out, value);
            }
        }
        Details::Target(target) => field(out, target.as_bytes()),
        Details::None if stat.kind == FileKind::File => {
            let known = tree.hashes.and_then(|hashes| hashes.get(stat));
            let digest = match known {
                Some(digest) => digest,
                None => {
                    let digest = file_hash(parent, name, path, stat)?;
                    if let Some(hashes) = tree.hashes {
                        hashes.put(stat, &digest);
                    }
                    digest
                }
            };
            out.extend_from_slice(digest.bytes());
        }
        Details::None => {}
    }
    Ok(Fingerprint::of_entry(path, tree.owner, stat, &details))
}

#[cfg(test)]
mod tests;
