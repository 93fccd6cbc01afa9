//! OCI image layouts in directories, as sources and sinks (OCI image specification, "image
//! layout").

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rbuild_image::BlobDigest;
use rbuild_linux::umask::by_umask;
use rbuild_linux::{AtomicFile, Directory, RootDir, quoted, write_atomic};
use rbuild_remedy::{ImageRemedy, Remedy};
use serde_json::{Value, json};

use crate::blobs::{BlobInfo, BlobOrigin, BlobRead, BlobSink, BlobSource, Document, copy_verified};
use crate::error::{Result, TransportError};

/// Maximum size of a document in bytes.
const MAX_DOCUMENT: u64 = 16 << 20;

/// Returns the path of a blob in a layout.
pub(crate) fn blob_path(digest: &BlobDigest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Returns the digest in the path of a blob.
pub(crate) fn digest_in(path: &str) -> Option<BlobDigest> {
    path.strip_prefix("blobs/sha256/").and_then(|hex| format!("sha256:{hex}").parse().ok())
}

/// Returns the error for a blob whose digest differs from its path.
pub(crate) fn wrong_digest(path: &str, found: &BlobDigest) -> TransportError {
    let message = format!("the image's `{path}` is corrupt: its digest is {found}");
    TransportError::Other { message, help: Some(Remedy::Image(ImageRemedy::TransferAgain)) }
}

/// A layout that is read.
pub(crate) struct LayoutSource {
    root: RootDir,
}

impl LayoutSource {
    /// Opens the directory of a layout.
    pub(crate) fn open(dir: &Path) -> Result<LayoutSource> {
        let failed =
            |e: rbuild_linux::Error| TransportError::OpenLayout { layout: dir.into(), source: e.without_object() };
        Ok(LayoutSource { root: RootDir::open(dir).map_err(failed)? })
    }

    /// Opens any file.
    pub(crate) fn file(&self, path: &str) -> Result<File> {
        self.root.open_file(path).map_err(TransportError::kernel(format!("the image's `{path}`")))
    }

    /// Reads a small file; returns `None` if there is none.
    pub(crate) fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        match self.root.read(path, MAX_DOCUMENT) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(TransportError::kernel(format!("the image's `{path}`"))(e)),
        }
    }
}

struct LayoutBlob {
    path: String,
    file: File,
}

impl Read for LayoutBlob {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read(buf)
    }
}

impl BlobRead for LayoutBlob {
    fn start_at(&mut self, at: u64) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(at)).map(drop)
    }

    fn wrong_digest(&self, found: &BlobDigest) -> TransportError {
        wrong_digest(&self.path, found)
    }
}

impl BlobSource for LayoutSource {
    fn size(&self, digest: &BlobDigest) -> Result<Option<u64>> {
        let path = blob_path(digest);
        match self.root.stat(&path) {
            Ok(stat) => Ok(Some(stat.size)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(TransportError::kernel(format!("the image's `{path}`"))(e)),
        }
    }

    fn document(&self, digest: &BlobDigest) -> Result<Vec<u8>> {
        let path = blob_path(digest);
        let failed = TransportError::kernel(format!("the image's `{path}`"));
        let bytes = self.root.read(&path, MAX_DOCUMENT).map_err(failed)?;
        match BlobDigest::of(&bytes) {
            found if found == *digest => Ok(bytes),
            found => Err(wrong_digest(&path, &found)),
        }
    }

    fn open(&self, part: &BlobInfo) -> Result<Box<dyn BlobRead + '_>> {
        let path = blob_path(&part.digest);
        let file = self.file(&path)?;
        Ok(Box::new(LayoutBlob { path, file }))
    }
}

/// A layout that is written. Its other images and blobs are kept.
pub struct LayoutWriter {
    root: RootDir,
    blobs: RootDir,
}

impl LayoutWriter {
    /// Opens the directory of a layout, and creates it if necessary.
    ///
    /// # Errors
    ///
    /// Fails if it cannot be created.
    pub fn open(dest: &Directory) -> Result<LayoutWriter> {
        let failed = || TransportError::kernel(format!("cannot write the layout {}", quoted(dest.path())));
        let root = dest.base.create_dir_all(&dest.rest, by_umask(0o777), None, |_| ()).map_err(failed())?;
        let blobs = root.create_dir_all("blobs/sha256", by_umask(0o777), None, |_| ()).map_err(failed())?;
        Ok(LayoutWriter { root, blobs })
    }

    fn failed(&self) -> impl FnOnce(rbuild_linux::Error) -> TransportError {
        TransportError::kernel(format!("cannot write the layout {}", quoted(self.root.label())))
    }

    /// Writes a blob. Its digest need not be known before `fill` returns.
    ///
    /// # Errors
    ///
    /// Fails if `fill` fails or the file cannot be written.
    pub fn put<T, E: From<TransportError>>(
        &self,
        digest_of: impl FnOnce(&T) -> BlobDigest,
        fill: impl FnOnce(&mut File) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let mut file = AtomicFile::create(&self.blobs, by_umask(0o666)).map_err(self.failed())?;
        let made = fill(file.file())?;
        file.publish(OsStr::new(&digest_of(&made).hex())).map_err(self.failed())?;
        Ok(made)
    }

    /// Returns true if the layout has the blob at its full size. A power failure may have shortened
    /// it, because layouts are not synced to disk.
    pub(crate) fn has(&self, digest: &BlobDigest, size: u64) -> Result<bool> {
        match self.blobs.stat(digest.hex()) {
            Ok(stat) => Ok(stat.size == size),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(self.failed()(e)),
        }
    }

    /// Returns the same layout for reading.
    pub(crate) fn source(&self) -> Result<LayoutSource> {
        Ok(LayoutSource { root: self.root.try_clone().map_err(self.failed())? })
    }

    /// Replaces `index.json` by what `change` makes of the existing one, as
    /// [`LayoutWriter::change_index_if`] does.
    pub(crate) fn change_index(&self, change: impl FnOnce(Option<&[u8]>) -> Result<Value>) -> Result<()> {
        self.change_index_if(|existing| change(existing).map(Some))
    }

    /// Replaces `index.json` by what `change` makes of the existing one, unless that is nothing.
    /// Waits for other writers of the index, which lock the layout's directory (flock(2)).
    pub(crate) fn change_index_if(&self, change: impl FnOnce(Option<&[u8]>) -> Result<Option<Value>>) -> Result<()> {
        let lock = File::from(self.root.sub("").map_err(self.failed())?.into_fd());
        lock.lock().map_err(TransportError::io(format!("cannot lock the layout {}", quoted(self.root.label()))))?;
        let existing = match self.root.read("index.json", MAX_DOCUMENT) {
            Ok(bytes) => Some(bytes),
            Err(e) if e.is_not_found() => None,
            Err(e) => return Err(self.failed()(e)),
        };
        let Some(index) = change(existing.as_deref())? else { return Ok(()) };
        self.put_file("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))?;
        self.put_file("index.json", &index)
    }

    /// Writes a blob that is in memory, unless the layout has it.
    pub(crate) fn put_bytes(&self, bytes: &[u8]) -> Result<()> {
        let digest = BlobDigest::of(bytes);
        if self.has(&digest, bytes.len() as u64)? { Ok(()) } else { self.replace_bytes(bytes) }
    }

    /// Writes a blob in place of the one that the layout may have, which is damaged.
    pub(crate) fn replace_bytes(&self, bytes: &[u8]) -> Result<()> {
        let failed = TransportError::io("cannot write the image");
        self.put(|()| BlobDigest::of(bytes), |out| out.write_all(bytes).map_err(failed))
    }

    fn put_file(&self, name: &str, value: &Value) -> Result<()> {
        let bytes = serde_json::to_vec(value).map_err(TransportError::document(name))?;
        write_atomic(&self.root, OsStr::new(name), &bytes, by_umask(0o666)).map_err(self.failed())
    }
}

impl BlobSink for LayoutWriter {
    fn copy(&self, source: &dyn BlobSource, part: &BlobInfo, moved: &Arc<AtomicU64>) -> Result<BlobOrigin> {
        if self.has(&part.digest, part.size)? {
            return Ok(BlobOrigin::Sink);
        }
        self.put(|_| part.digest, |out| copy_verified(&mut *source.open(part)?, &part.digest, out, moved))?;
        Ok(BlobOrigin::Source)
    }

    fn put_document(&self, document: &Document) -> Result<()> {
        self.put_bytes(&document.bytes)
    }
}
