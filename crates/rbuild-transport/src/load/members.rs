//! Access to the parts of images in an archive or a directory.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rbuild_image::{BlobDigest, Descriptor, DiffId, ImageConfig, ImageId, Platform, digest_of, parse_manifest};
use rbuild_layer::{Bounded, Compression, Counting, EntryKind, LimitedTar, detect};
use rbuild_remedy::{ImageRemedy, Remedy};
use rbuild_store::Staging;

use crate::archive_error::ArchiveProblem;
use crate::blobs::{BlobInfo, BlobSink, BlobSource};
use crate::error::{Result, TransportError};
use crate::layout::{LayoutSource, blob_path, digest_in, wrong_digest};
use crate::load::found::unreadable;
use crate::load::named::ReferencedMembers;
use crate::member_name::clean;

/// A member of an archive.
#[derive(Debug, Clone)]
enum Member {
    Blob(BlobDigest, u64),
    /// A link to another member. Old docker-archives use links between equal layers.
    Link(String),
}

/// The source of image parts.
enum PartSource {
    /// Archive members by name; their content has already been imported.
    Archive(HashMap<String, Member>),
    /// A layout directory, and a counter of the bytes read from it.
    Layout(LayoutSource, Arc<AtomicU64>),
}

/// The parts of images that are being imported into a store. Each is read at most once.
pub(super) struct IncomingParts<'a> {
    pub staging: Staging<'a>,
    place: PartSource,
    /// Digests and sizes of the parts requested so far, by name.
    known: RefCell<HashMap<String, (BlobDigest, u64)>>,
    /// DiffIDs of the configurations that have been read.
    configs: RefCell<HashMap<ImageId, Rc<Vec<DiffId>>>>,
    compressions: RefCell<HashMap<BlobDigest, Compression>>,
}

/// Maximum size in bytes of content that is held in memory; longer content is streamed to disk.
const SMALL: u64 = 64 << 10;

/// Maximum number of names in an error message.
const LISTED: usize = 20;

fn read_archive(staging: &Staging<'_>, source: impl Read) -> Result<HashMap<String, Member>> {
    let limits = staging.store().limits();
    let (asked, read) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let source = Counting::new(source, read.clone());
    let stream = Bounded::with_requested(source, limits, asked.clone()).map_err(ArchiveProblem::Unreadable)?;
    let mut tar = LimitedTar::new(stream, limits);
    let (mut members, mut named) = (HashMap::new(), ReferencedMembers::default());
    while let Some(entry) = tar.next_entry().map_err(ArchiveProblem::Invalid)? {
        let name = clean(&entry.path.to_string_lossy());
        match entry.kind {
            EntryKind::File => {
                if !named.may_need(&name) {
                    continue;
                }
                if named.refers_to(&name) {
                    asked.fetch_add(entry.size, Ordering::Relaxed);
                }
                let (digest, size) = put_content(staging, &mut tar, entry.size)?;
                if digest_in(&name).is_some_and(|promised| promised != digest) {
                    return Err(wrong_digest(&name, &digest));
                }
                named.record(&name, size, || Ok(staging.read_document(&digest)?))?;
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
    tar.drain().map_err(ArchiveProblem::Invalid)?;
    if read.load(Ordering::Relaxed) == 0 {
        return Err(ArchiveProblem::Empty.into());
    }
    Ok(members)
}

/// Imports the content of the current entry. Small content that occurs repeatedly is written once.
fn put_content<R: Read>(staging: &Staging<'_>, tar: &mut LimitedTar<R>, size: u64) -> Result<(BlobDigest, u64)> {
    if size > SMALL {
        return Ok(staging.put_blob(MemberReader(tar))?);
    }
    let mut bytes = Vec::new();
    MemberReader(tar).read_to_end(&mut bytes).map_err(ArchiveProblem::Unreadable)?;
    Ok(staging.put_bytes(&bytes)?)
}

/// The content of the current entry as a reader.
struct MemberReader<'a, R: Read>(&'a mut LimitedTar<R>);

impl<R: Read> Read for MemberReader<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.read_content(buf).map_err(std::io::Error::other)
    }
}

fn lacks(name: &str) -> TransportError {
    ArchiveProblem::Lacks(name.to_string()).into()
}

impl<'a> IncomingParts<'a> {
    /// Reads an archive of any compression to its end.
    pub(super) fn of_archive(staging: Staging<'a>, source: impl Read) -> Result<IncomingParts<'a>> {
        let place = PartSource::Archive(read_archive(&staging, source)?);
        Ok(IncomingParts::new(staging, place))
    }

    /// Opens an OCI image layout directory; `moved` counts the bytes read.
    pub(super) fn of_directory(staging: Staging<'a>, dir: &Path, moved: &Arc<AtomicU64>) -> Result<IncomingParts<'a>> {
        Ok(IncomingParts::new(staging, PartSource::Layout(LayoutSource::open(dir)?, moved.clone())))
    }

    fn new(staging: Staging<'a>, place: PartSource) -> IncomingParts<'a> {
        let (known, configs, compressions) = Default::default();
        IncomingParts { staging, place, known, configs, compressions }
    }

    /// Returns the diffIDs in a configuration.
    pub(super) fn diff_ids(&self, id: &ImageId, document: &str) -> Result<Rc<Vec<DiffId>>> {
        if let Some(known) = self.configs.borrow().get(id) {
            return Ok(known.clone());
        }
        let text = self.staging.read_document(&id.blob())?;
        let config: ImageConfig = serde_json::from_slice(&text).map_err(unreadable(document))?;
        let diff_ids = Rc::new(config.rootfs.diff_ids);
        self.configs.borrow_mut().insert(*id, diff_ids.clone());
        Ok(diff_ids)
    }

    /// Returns the platform in a configuration.
    pub(super) fn platform(&self, id: &ImageId) -> Result<Platform> {
        let text = self.staging.read_document(&id.blob())?;
        let config: ImageConfig = serde_json::from_slice(&text).map_err(unreadable("configuration"))?;
        Ok(config.platform())
    }

    /// Returns the compression of an imported layer.
    pub(super) fn compression(&self, blob: &BlobDigest) -> Result<Compression> {
        if let Some(known) = self.compressions.borrow().get(blob) {
            return Ok(*known);
        }
        let mut head = [0u8; 16];
        let n =
            self.staging.open_blob(blob)?.read_at(&mut head, 0).map_err(TransportError::io("cannot read a layer"))?;
        let compression = detect(&head[..n]);
        self.compressions.borrow_mut().insert(*blob, compression);
        Ok(compression)
    }

    /// Imports a part by its name; returns digest and size.
    pub(super) fn blob(&self, name: &str) -> Result<(BlobDigest, u64)> {
        if let Some(known) = self.known.borrow().get(name) {
            return Ok(*known);
        }
        let found = self.find(&clean(name))?;
        self.known.borrow_mut().insert(name.to_string(), found);
        Ok(found)
    }

    fn find(&self, name: &str) -> Result<(BlobDigest, u64)> {
        match &self.place {
            // Omitted by the sender because the store has it.
            PartSource::Archive(members) if !members.contains_key(name) => match digest_in(name) {
                Some(digest) => Ok((digest, self.staging.verified_size(&digest)?.ok_or_else(|| lacks(name))?)),
                None => Err(lacks(name)),
            },
            PartSource::Archive(members) => Self::member(members, name),
            PartSource::Layout(layout, moved) => self.file(layout, moved, name),
        }
    }

    /// Returns true if the source or the store has a blob.
    pub(super) fn has(&self, digest: &BlobDigest) -> Result<bool> {
        let is_here = match &self.place {
            PartSource::Archive(members) => members.contains_key(&blob_path(digest)),
            PartSource::Layout(layout, _) => layout.size(digest)?.is_some(),
        };
        Ok(is_here || self.staging.verified_size(digest)?.is_some())
    }

    /// Returns true if the source or the store has the content of an image or an attestation. A
    /// list of manifests counts as one: its entries are checked when it is requested.
    pub(super) fn is_complete(&self, entry: &Descriptor) -> Result<bool> {
        let Ok(digest) = digest_of(entry) else { return Ok(false) };
        if !self.has(&digest)? {
            return Ok(false);
        }
        let Some(text) = self.document(&blob_path(&digest))? else { return Ok(true) };
        let Ok(manifest) = parse_manifest(&text) else { return Ok(true) };
        for part in manifest.layers().iter().chain([manifest.config()]) {
            if let Ok(part) = digest_of(part)
                && !self.has(&part)?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn file(&self, layout: &LayoutSource, moved: &Arc<AtomicU64>, name: &str) -> Result<(BlobDigest, u64)> {
        let Some(digest) = digest_in(name) else {
            return Ok(self.staging.put_blob(Counting::new(layout.file(name)?, moved.clone()))?);
        };
        let (known, found) = (self.staging.verified_size(&digest)?, layout.size(&digest)?);
        let size = match (known, found) {
            // Skipped because the store has it, or already imported with the same size.
            (Some(known), found) if found.is_none_or(|found| found == known) => return Ok((digest, known)),
            (_, Some(found)) => found,
            (_, None) => return layout.file(name).and_then(|_| Err(lacks(name))),
        };
        self.staging.copy(layout, &BlobInfo { digest, size }, moved)?;
        Ok((digest, size))
    }

    fn member(members: &HashMap<String, Member>, name: &str) -> Result<(BlobDigest, u64)> {
        let mut name = name;
        for _ in 0..16 {
            match members.get(name) {
                Some(Member::Blob(digest, size)) => return Ok((*digest, *size)),
                Some(Member::Link(to)) => name = to,
                None => break,
            }
        }
        Err(lacks(name))
    }

    /// Fails with a list of the layers that are neither in the archive nor in the store. None are
    /// fetched from elsewhere.
    pub(super) fn nothing_missing<'n>(&self, names: impl Iterator<Item = &'n str>) -> Result<()> {
        let PartSource::Archive(members) = &self.place else { return Ok(()) };
        let mut missing = Vec::new();
        for name in names {
            if self.known.borrow().contains_key(name) {
                continue;
            }
            let name = clean(name);
            if members.contains_key(&name) {
                continue;
            }
            let known = digest_in(&name);
            if known.map_or(Ok(None), |digest| self.staging.verified_size(&digest))?.is_none() {
                missing.push(known.map_or(name, |digest| digest.to_string()));
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let count = missing.len();
        let are = if count == 1 { "layer is" } else { "layers are" };
        let more = if count > LISTED { ", …" } else { "" };
        missing.truncate(LISTED);
        let listed = missing.join(", ");
        Err(TransportError::Other {
            message: format!("{count} {are} missing from the archive and the store: {listed}{more}"),
            help: Some(Remedy::Image(ImageRemedy::LoadBase)),
        })
    }

    pub(super) fn document(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match &self.place {
            PartSource::Archive(members) => match members.get(name) {
                Some(Member::Blob(digest, _)) => Ok(Some(self.staging.read_document(digest)?)),
                _ => Ok(None),
            },
            PartSource::Layout(layout, _) => layout.read(name),
        }
    }
}
