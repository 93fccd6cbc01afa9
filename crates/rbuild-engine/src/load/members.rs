//! The parts of images as an archive or a directory has them.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rbuild_image::Digest;
use rbuild_layer::{Counting, Decoder, EntryKind, TarReader};
use rbuild_linux::RootDir;
use rbuild_store::{Store, Workspace};

use crate::error::{BuildError, Result};

/// What the archive has under a name.
#[derive(Debug, Clone)]
enum Member {
    Blob(Digest, u64),
    /// Old docker-archives link equal layers to each other.
    Link(String),
}

/// Longest index of a layout directory, in bytes.
const MAX_DOCUMENT: u64 = 16 << 20;

/// Where the parts of images are.
enum Place {
    /// In the store already, by the names they had in the archive.
    Archive(HashMap<String, Member>),
    /// In a directory; bytes that are read of it are counted.
    Directory(RootDir, Arc<AtomicU64>),
}

/// The parts of images, on their way into a store.
pub(super) struct Members<'a> {
    pub store: &'a Store,
    pub work: &'a Workspace,
    place: Place,
}

fn read_archive(store: &Store, work: &Workspace, source: impl Read) -> Result<HashMap<String, Member>> {
    let what = "the archive";
    let mut tar = TarReader::new(Decoder::new(source).map_err(BuildError::io(what))?);
    let mut members = HashMap::new();
    while let Some(entry) = tar.next_entry().map_err(BuildError::layer(what))? {
        let name = clean(&entry.path.to_string_lossy());
        match entry.kind {
            EntryKind::File => {
                let (digest, size) = store.put_blob(work, Content(&mut tar))?;
                if promised(&name).is_some_and(|p| p != digest) {
                    return Err(wrong_digest(&name, &digest));
                }
                members.insert(name, Member::Blob(digest, size));
            }
            EntryKind::Symlink | EntryKind::HardLink => {
                let target = entry.link.to_string_lossy().into_owned();
                let base =
                    if entry.kind == EntryKind::Symlink { name.rsplit_once('/').map_or("", |(d, _)| d) } else { "" };
                let target = clean(&format!("{base}/{target}"));
                members.insert(name, Member::Link(target));
            }
            _ => {}
        }
    }
    tar.drain().map_err(BuildError::layer(what))?;
    Ok(members)
}

/// The content of the current entry as a reader.
struct Content<'a, R: Read>(&'a mut TarReader<R>);

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.read_content(buf).map_err(std::io::Error::other)
    }
}

pub(crate) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// What the digest in a blob's name promises.
pub(crate) fn promised(name: &str) -> Option<Digest> {
    name.strip_prefix("blobs/sha256/").and_then(|hex| format!("sha256:{hex}").parse().ok())
}

fn wrong_digest(name: &str, found: &Digest) -> BuildError {
    BuildError::Other {
        message: format!("the archive's {name} has the digest {found}"),
        help: Some(super::DAMAGED.into()),
    }
}

pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

impl<'a> Members<'a> {
    /// Reads an archive of any compression to its end.
    pub(super) fn of_archive(store: &'a Store, work: &'a Workspace, source: impl Read) -> Result<Members<'a>> {
        Ok(Members { store, work, place: Place::Archive(read_archive(store, work, source)?) })
    }

    /// An OCI image layout directory; `moved` counts the bytes that are read.
    pub(super) fn of_directory(
        store: &'a Store,
        work: &'a Workspace,
        dir: &Path,
        moved: &Arc<AtomicU64>,
    ) -> Result<Members<'a>> {
        let root = RootDir::open(dir).map_err(BuildError::kernel(format!("the OCI layout {}", dir.display())))?;
        Ok(Members { store, work, place: Place::Directory(root, moved.clone()) })
    }

    /// A part by its name, in the store.
    pub(super) fn blob(&self, name: &str) -> Result<(Digest, u64)> {
        match &self.place {
            Place::Archive(members) => match promised(&clean(name)) {
                // What was left out because we have it.
                Some(digest) if !members.contains_key(&clean(name)) && self.store.has_blob(&digest)? => {
                    Ok((digest, self.store.blob_size(&digest)?))
                }
                _ => Self::member(members, name),
            },
            Place::Directory(dir, moved) => self.file(dir, moved, &clean(name)),
        }
    }

    fn file(&self, dir: &RootDir, moved: &Arc<AtomicU64>, name: &str) -> Result<(Digest, u64)> {
        let fail = || BuildError::kernel(format!("the image's {name}"));
        if let Some(digest) = promised(name) {
            // Left out because we have it, or in the store at its full length.
            let there = match dir.stat(name) {
                Ok(stat) => self.store.has_whole_blob(&digest, stat.size)?,
                Err(e) if e.is_not_found() => self.store.has_blob(&digest)?,
                Err(e) => return Err(fail()(e)),
            };
            if there {
                return Ok((digest, self.store.blob_size(&digest)?));
            }
        }
        let file = dir.open_file(name).map_err(fail())?;
        let (digest, size) = self.store.put_blob(self.work, Counting::new(file, moved.clone()))?;
        match promised(name) {
            Some(promised) if promised != digest => Err(wrong_digest(name, &digest)),
            _ => Ok((digest, size)),
        }
    }

    fn member(members: &HashMap<String, Member>, name: &str) -> Result<(Digest, u64)> {
        let mut name = clean(name);
        for _ in 0..16 {
            match members.get(&name) {
                Some(Member::Blob(digest, size)) => return Ok((*digest, *size)),
                Some(Member::Link(to)) => name = to.clone(),
                None => break,
            }
        }
        Err(BuildError::Other {
            message: format!("the archive lacks {name}, which its manifest names"),
            help: Some("it was cut short; write or transfer it again".into()),
        })
    }

    /// Says which of the layers are neither in the archive nor in the store; none is fetched or guessed.
    pub(super) fn nothing_missing<'n>(&self, names: impl Iterator<Item = &'n str>) -> Result<()> {
        let Place::Archive(members) = &self.place else { return Ok(()) };
        let mut missing = Vec::new();
        for name in names {
            let here = members.contains_key(&clean(name));
            let known = promised(&clean(name));
            if !here && !known.map_or(Ok(false), |digest| self.store.has_blob(&digest))? {
                missing.push(known.map_or_else(|| name.to_string(), |digest| digest.to_string()));
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let count = missing.len();
        Err(BuildError::Other {
            message: format!("{count} layers are neither in the archive nor in the store: {}", missing.join(", ")),
            help: Some("it was written without its base (save --exclude or --since): load the base first".into()),
        })
    }

    pub(super) fn document(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match &self.place {
            Place::Archive(members) => match members.get(name) {
                Some(Member::Blob(digest, _)) => Ok(Some(self.store.read_document(digest)?)),
                _ => Ok(None),
            },
            Place::Directory(dir, _) => match dir.read(name, MAX_DOCUMENT) {
                Ok(text) => Ok(Some(text)),
                Err(e) if e.is_not_found() => Ok(None),
                Err(e) => Err(BuildError::kernel(format!("the image's {name}"))(e)),
            },
        }
    }
}
