//! Content-addressed blobs.

use rbuild_remedy::counted;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;

use rbuild_image::BlobDigest;
use rbuild_layer::{ChunkHash, Compression, Decoder, GZIP_END, detect, gzip_may_have_members, gzip_unpacked_size};
use rbuild_linux::{AtomicFile, Error, RootDir, described};
use serde::Serialize;

use crate::error::{Result, StoreError};
use crate::modes;
use crate::store::Store;
use crate::workspace::Workspace;

/// Extended attribute that records the verification of a blob's digest.
const WHOLE: &str = "user.rbuild.whole";

/// Size of a copy chunk in bytes. It fits into the processor's cache, because the bytes are written
/// soon after they were read.
const CHUNK: usize = 256 << 10;

/// Maximum size in bytes of documents (manifests, configurations, indexes), which are read into
/// memory.
const MAX_DOCUMENT: u64 = 16 << 20;

/// Compressed size in bytes up to which the size recorded in gzip data is reliable. It is recorded
/// modulo 4 GiB, and no layer compresses to less than a twentieth.
const MAX_RELIABLE_GZIP: u64 = (4 << 30) / 20;

/// The blobs of a store.
#[derive(Clone, Copy)]
pub struct Blobs<'s> {
    pub(crate) store: &'s Store,
}

impl Blobs<'_> {
    /// Returns true if the blob exists. It may be incomplete after a power failure.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn has_blob(&self, digest: &BlobDigest) -> Result<bool> {
        Ok(self.store.root.exists(format!("blobs/sha256/{}", digest.hex()))?)
    }

    /// Returns true if the blob exists at its full size; after a power failure it would be shorter.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn has_complete_blob(&self, digest: &BlobDigest, size: u64) -> Result<bool> {
        match self.blob_size(digest) {
            Ok(found) => Ok(found == size),
            Err(StoreError::NoBlob(_)) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Returns the size of a blob in bytes.
    ///
    /// # Errors
    ///
    /// Fails with [`StoreError::NoBlob`] if there is none.
    pub fn blob_size(&self, digest: &BlobDigest) -> Result<u64> {
        match self.store.root.stat(format!("blobs/sha256/{}", digest.hex())) {
            Ok(stat) => Ok(stat.size),
            Err(e) => Err(self.unreadable(digest, e)),
        }
    }

    /// Opens a blob without verifying it. Callers that read it to the end compare the digest.
    ///
    /// # Errors
    ///
    /// Fails with [`StoreError::NoBlob`] if there is none, and with [`StoreError::Damaged`] if
    /// something else is in its place.
    pub fn open_blob(&self, digest: &BlobDigest) -> Result<File> {
        let opened = self.store.root.open_file(format!("blobs/sha256/{}", digest.hex()));
        let file = opened.map_err(|e| self.unreadable(digest, e))?;
        let kind = file.metadata().map_err(|e| Error::new("fstat", described(format!("blob {digest}")), e))?;
        if kind.is_file() {
            Ok(file)
        } else {
            Err(StoreError::damaged(format!("blob {digest}"))("it is not a regular file"))
        }
    }

    /// Returns the error for a blob that cannot be opened.
    fn unreadable(&self, digest: &BlobDigest, e: Error) -> StoreError {
        if e.is_not_found() {
            StoreError::NoBlob(*digest)
        } else {
            e.within(format!("blob {digest} in {}", self.store.place())).into()
        }
    }

    /// Opens a blob if its digest has been verified already. Otherwise returns `None`.
    ///
    /// # Errors
    ///
    /// Fails with [`StoreError::NoBlob`] if there is none.
    pub fn open_verified(&self, digest: &BlobDigest) -> Result<Option<File>> {
        let file = self.open_blob(digest)?;
        Ok(self.is_verified(&file).then_some(file))
    }

    /// Returns the uncompressed size of a layer in bytes. Gzip written by this program records it
    /// at the end; other gzip records the size of its last member in the last four bytes, modulo 4
    /// GiB (RFC 1952). If that may differ from the total, and for other compressions, the blob is
    /// decompressed and counted.
    pub(crate) fn unpacked_size(&self, digest: &BlobDigest) -> Result<u64> {
        use std::os::unix::fs::FileExt;
        let size = self.blob_size(digest)?;
        let file = self.open_blob(digest)?;
        let failed = |call, e| Error::new(call, described(format!("blob {digest}")), e);
        let (mut head, mut end) = ([0u8; 8], [0u8; GZIP_END]);
        let n = file.read_at(&mut head, 0).map_err(|e| failed("pread", e))?;
        match (detect(&head[..n]), size.checked_sub(GZIP_END as u64)) {
            (Compression::None, _) => return Ok(size),
            (Compression::Gzip, Some(at)) => {
                file.read_exact_at(&mut end, at).map_err(|e| failed("pread", e))?;
                // The number is untrusted.
                if let Some(stated) =
                    gzip_unpacked_size(&end).filter(|stated| *stated <= self.store.limits().unpacked(size))
                {
                    return Ok(stated);
                }
                let one = size < MAX_RELIABLE_GZIP && !gzip_may_have_members(&file).map_err(|e| failed("read", e))?;
                if let Some(last) = end.last_chunk().filter(|_| one) {
                    return Ok(u64::from(u32::from_le_bytes(*last)));
                }
            }
            _ => {}
        }
        // Layers that expand further are never unpacked.
        let most = self.store.limits().unpacked(size);
        let decoder = Decoder::new(self.open_blob(digest)?);
        let decoded = decoder.and_then(|d| std::io::copy(&mut d.take(most), &mut std::io::sink()));
        Ok(decoded.map_err(|e| failed("read", e))?)
    }

    /// Reads a small blob into memory and verifies its digest.
    ///
    /// # Errors
    ///
    /// Fails if there is no such blob, or if its digest is wrong.
    pub fn read_document(&self, digest: &BlobDigest) -> Result<Vec<u8>> {
        read_document(self.open_blob(digest)?, digest)
    }

    /// Stores the bytes of `source` and returns their digest and size.
    ///
    /// # Errors
    ///
    /// Fails if `source` cannot be read or the blob cannot be written.
    pub fn put_blob(&self, work: &Workspace, source: impl Read) -> Result<(BlobDigest, u64)> {
        let mut blob = HashedBlob::new(self.new_blob(work)?);
        blob.fill(source)?;
        let (blob, digest, size) = blob.finish()?;
        blob.publish(self.store, &digest, size)?;
        Ok((digest, size))
    }

    /// Reads a blob in order and passes its bytes to `take`. The digest is verified, unless that
    /// has been done since the machine was booted and the file has not changed since.
    ///
    /// # Errors
    ///
    /// Fails if there is no such blob, if its digest is wrong, or if `take` fails.
    pub fn read_blob<E: From<StoreError>>(
        &self,
        digest: &BlobDigest,
        mut take: impl FnMut(&[u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let mut file = self.open_blob(digest)?;
        let failed = |e| StoreError::from(Error::new("read", described(format!("blob {digest}")), e));
        let known = self.is_verified(&file);
        let mut hash = (!known).then(ChunkHash::new);
        let mut chunk = Vec::new();
        loop {
            chunk.resize(CHUNK, 0);
            match file.read(&mut chunk) {
                Ok(0) => break,
                Ok(n) => chunk.truncate(n),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(failed(e).into()),
            }
            take(&chunk)?;
            if let Some(hash) = &mut hash {
                chunk = hash.push(chunk);
            }
        }
        match hash.map(ChunkHash::finish::<BlobDigest>) {
            Some((found, _)) if found != *digest => {
                Err(StoreError::damaged(format!("blob {digest}"))(format!("its digest is {found}")).into())
            }
            Some(_) => {
                self.note_verified(&file);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Returns the verification note of a blob: the status of its file, and the boot ID, because a
    /// power failure can lose content and keep the note.
    fn verification_note(&self, file: &File) -> Option<Vec<u8>> {
        let m = file.metadata().ok()?;
        let (boot, ino, size) = (self.store.boot(), m.ino(), m.len());
        Some(format!("{boot} {} {ino} {size} {}.{:09}", m.dev(), m.mtime(), m.mtime_nsec()).into_bytes())
    }

    /// Returns true if the digest has been verified since the machine was booted and the file has
    /// not changed since.
    pub fn is_verified(&self, file: &File) -> bool {
        let noted = rbuild_linux::file_xattr(file, WHOLE);
        noted.is_some() && noted == self.verification_note(file)
    }

    /// Records that the digest is verified. Does nothing if the file system has no extended
    /// attributes or the blob is not writable.
    pub fn note_verified(&self, file: &File) {
        if let Some(note) = self.verification_note(file) {
            rbuild_linux::set_file_xattr(file, WHOLE, &note);
        }
    }

    /// Stores a value as a JSON document and returns its digest and size.
    ///
    /// # Errors
    ///
    /// Fails if the blob cannot be written.
    pub fn put_document<T: Serialize>(&self, work: &Workspace, value: &T) -> Result<(BlobDigest, u64)> {
        self.put_blob(work, &to_document(value)?[..])
    }

    /// Starts a blob that is written incrementally.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be created.
    pub fn new_blob<'a>(&self, work: &'a Workspace) -> Result<NewBlob<'a>> {
        Ok(NewBlob { file: AtomicFile::create(work.dir(), modes::file())?, work })
    }
}

/// Reads a small blob to its end and verifies its digest.
pub(crate) fn read_document(blob: File, digest: &BlobDigest) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let failed = |e| Error::new("read", described(format!("blob {digest}")), e);
    blob.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(StoreError::LargeDocument { digest: *digest, limit: MAX_DOCUMENT });
    }
    let found = BlobDigest::of(&bytes);
    if found != *digest {
        return Err(StoreError::damaged(format!("blob {digest}"))(format!("its digest is {found}")));
    }
    Ok(bytes)
}

pub(crate) fn to_document<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(StoreError::damaged("document"))
}

/// A blob that is being written.
pub struct NewBlob<'a> {
    file: AtomicFile<'a>,
    work: &'a Workspace,
}

impl NewBlob<'_> {
    /// Opens the bytes that have been written, for reading.
    pub(crate) fn reopen(&self) -> Result<File> {
        Ok(self.work.dir().open_name(self.file.temp_name())?)
    }

    /// Publishes the blob. The caller has computed the digest of the bytes it wrote.
    ///
    /// # Errors
    ///
    /// Fails if the size is not that of the bytes written, or if the file cannot be renamed.
    pub fn publish(self, store: &Store, digest: &BlobDigest, size: u64) -> Result<()> {
        self.publish_in(&store.dir("blobs/sha256")?, store, digest, size)
    }

    /// Publishes the blob in another directory of the store's file system.
    pub(crate) fn publish_in(mut self, dir: &RootDir, store: &Store, digest: &BlobDigest, size: u64) -> Result<()> {
        let written = self.file.file().metadata().map_err(|e| Error::new("fstat", described("a blob"), e))?.len();
        if written != size {
            let reason = format!("{written} of {} were written", counted(size, "byte"));
            return Err(StoreError::damaged(format!("blob {digest}"))(reason));
        }
        store.blobs().note_verified(self.file.file());
        // An existing blob may have been damaged by a power failure, so it is always replaced.
        let name = self.work.unique("blob");
        self.file.publish(OsStr::new(&name))?;
        self.work.dir().rename(OsStr::new(&name), dir, OsStr::new(&digest.hex()))?;
        Ok(())
    }
}

impl Write for NewBlob<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// A file of the store that receives a blob.
pub(crate) trait BlobFile: Write {
    /// Returns the directory of the file.
    fn dir(&self) -> &RootDir;
}

impl BlobFile for NewBlob<'_> {
    fn dir(&self) -> &RootDir {
        self.work.dir()
    }
}

/// A blob whose digest is computed while it is written, on another thread if it is large.
pub(crate) struct HashedBlob<W> {
    blob: W,
    hash: ChunkHash,
    chunk: Vec<u8>,
}

impl<W: BlobFile> HashedBlob<W> {
    /// Starts to write and hash a blob.
    pub fn new(blob: W) -> HashedBlob<W> {
        HashedBlob { blob, hash: ChunkHash::new(), chunk: Vec::new() }
    }

    /// Appends a stream up to its end.
    pub fn fill(&mut self, source: impl Read) -> Result<()> {
        self.fill_watched(source, &mut |_| Ok(()))
    }

    /// Appends a stream up to its end. Calls `watch` with the number of bytes in the file whenever
    /// it has grown.
    pub fn fill_watched(&mut self, mut source: impl Read, watch: &mut dyn FnMut(u64) -> Result<()>) -> Result<()> {
        let mut size = 0;
        loop {
            self.chunk.reserve_exact(CHUNK);
            let read = (&mut source).take(CHUNK as u64).read_to_end(&mut self.chunk);
            if let Err(e) = read {
                // Another download may resume after the last byte written.
                self.pass_on()?;
                return Err(Error::new("read", described("the incoming data"), e).into());
            }
            if self.chunk.is_empty() {
                return Ok(());
            }
            size += self.chunk.len() as u64;
            self.pass_on()?;
            watch(size)?;
        }
    }

    /// Adds bytes to the digest that have been written before. Returns their number.
    pub fn hash_written(&mut self, mut written: impl Read) -> Result<u64> {
        let mut size = 0;
        loop {
            let read = (&mut written).take(CHUNK as u64).read_to_end(&mut self.chunk);
            size += read.map_err(|e| Error::new("read", described("a blob"), e))? as u64;
            if self.chunk.is_empty() {
                return Ok(size);
            }
            self.chunk = self.hash.push(std::mem::take(&mut self.chunk));
            self.chunk.clear();
        }
    }

    /// Returns the blob while it is being written.
    pub fn blob(&self) -> &W {
        &self.blob
    }

    /// Returns the blob without computing its digest.
    pub fn into_blob(self) -> W {
        self.blob
    }

    /// Appends bytes.
    pub fn add(&mut self, bytes: &[u8]) -> Result<()> {
        self.chunk.extend_from_slice(bytes);
        if self.chunk.len() >= CHUNK { self.pass_on() } else { Ok(()) }
    }

    fn pass_on(&mut self) -> Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        if let Err(e) = self.blob.write_all(&self.chunk) {
            let dir = self.blob.dir();
            let place = dir.place().expect("the directories of a store have its name");
            return Err(dir.error("write", OsStr::new("."), e).within(format!("the layers in {place}")).into());
        }
        self.chunk = self.hash.push(std::mem::take(&mut self.chunk));
        self.chunk.clear();
        Ok(())
    }

    /// Returns the blob, its digest and its size.
    pub fn finish(mut self) -> Result<(W, BlobDigest, u64)> {
        self.pass_on()?;
        let (digest, size) = self.hash.finish();
        Ok((self.blob, digest, size))
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{Scratch, assert_recorded, message_row};

    use super::*;

    /// A blob on a full disk.
    struct Full(RootDir);

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::Error::from_raw_os_error(28))
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl BlobFile for Full {
        fn dir(&self) -> &RootDir {
            &self.0
        }
    }

    /// A stream that breaks.
    struct Broken;

    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::from_raw_os_error(104))
        }
    }

    #[test]
    fn failures_are_worded_as_recorded() {
        let place = Scratch::new();
        let store = Store::open(&place).unwrap();
        let work = Workspace::open(&store).unwrap();
        let digest = BlobDigest::of(b"layer");
        let new = || store.blobs().new_blob(&work).unwrap();
        let missing = store.blobs().open_blob(&digest).unwrap_err();
        let mut short = new();
        short.write_all(b"laye").unwrap();
        std::fs::create_dir(place.join("blobs/sha256").join(digest.hex())).unwrap();
        let rows = [
            ("no such blob", missing),
            ("a directory in its place", store.blobs().open_blob(&digest).unwrap_err()),
            ("fewer bytes", short.publish(&store, &digest, 5).unwrap_err()),
            ("a broken stream", HashedBlob::new(new()).fill(Broken).unwrap_err()),
            ("a full disk", HashedBlob::new(Full(store.dir("tmp").unwrap())).fill(&b"layer"[..]).unwrap_err()),
        ];
        let rows = rows.map(|(name, e)| message_row(name, &e, e.remedy()));
        assert_recorded!("blobs", rows.concat().replace(&*place.to_string_lossy(), "[store]"));
    }
}
