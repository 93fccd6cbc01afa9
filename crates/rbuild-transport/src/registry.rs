//! Repositories of registries as sources and sinks.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rbuild_image::{BlobDigest, Hasher};
use rbuild_layer::Counting;
use rbuild_registry::{BlobReader, PushOutcome, Repository, UploadBlob};

use crate::blobs::{BlobInfo, BlobOrigin, BlobRead, BlobSink, BlobSource, Document};
use crate::error::{Result, TransportError};
use crate::verifying::Verifying;

impl BlobRead for BlobReader<'_> {
    fn start_at(&mut self, at: u64) -> io::Result<()> {
        BlobReader::start_at(self, at);
        Ok(())
    }

    fn note_wrong(&self, found: &BlobDigest) -> bool {
        BlobReader::note_wrong(self, found)
    }

    fn wrong_digest(&self, found: &BlobDigest) -> TransportError {
        BlobReader::wrong_digest(self, *found).into()
    }
}

impl BlobSource for Repository {
    fn size(&self, _digest: &BlobDigest) -> Result<Option<u64>> {
        Ok(None)
    }

    fn document(&self, digest: &BlobDigest) -> Result<Vec<u8>> {
        Ok(Repository::document(self, digest)?.bytes)
    }

    fn open(&self, part: &BlobInfo) -> Result<Box<dyn BlobRead + '_>> {
        Ok(Box::new(self.blob(&part.digest, part.size)))
    }

    fn at_once(&self) -> usize {
        self.connections()
    }

    fn resumes(&self) -> bool {
        true
    }
}

/// A repository whose image has layers that are downloaded from other URLs.
pub(crate) struct WithUrls<'a> {
    pub repository: &'a Repository,
    /// The URLs that the manifest states for layers that must not be distributed.
    pub urls: &'a HashMap<BlobDigest, Vec<String>>,
}

impl BlobSource for WithUrls<'_> {
    fn size(&self, digest: &BlobDigest) -> Result<Option<u64>> {
        BlobSource::size(self.repository, digest)
    }

    fn document(&self, digest: &BlobDigest) -> Result<Vec<u8>> {
        BlobSource::document(self.repository, digest)
    }

    fn open(&self, part: &BlobInfo) -> Result<Box<dyn BlobRead + '_>> {
        let blob = self.repository.blob(&part.digest, part.size);
        Ok(match self.urls.get(&part.digest) {
            Some(urls) => Box::new(blob.with_urls(urls)),
            None => Box::new(blob),
        })
    }

    fn at_once(&self) -> usize {
        BlobSource::at_once(self.repository)
    }

    fn resumes(&self) -> bool {
        true
    }
}

/// A repository that receives an image.
pub(crate) struct Upload<'a> {
    pub repository: &'a Repository,
    /// Blobs that other repositories of the registry have, with the paths of these.
    pub elsewhere: HashMap<BlobDigest, String>,
    /// Blobs that have to be downloaded before they can be uploaded.
    pub remote: HashSet<BlobDigest>,
}

impl Upload<'_> {
    /// Returns a repository that receives blobs of this machine only.
    pub fn to(repository: &Repository) -> Upload<'_> {
        Upload { repository, elsewhere: HashMap::new(), remote: HashSet::new() }
    }
}

impl BlobSink for Upload<'_> {
    fn at_once(&self) -> usize {
        self.repository.connections()
    }

    fn copy(&self, source: &dyn BlobSource, part: &BlobInfo, moved: &Arc<AtomicU64>) -> Result<BlobOrigin> {
        let BlobInfo { digest, size } = *part;
        let open = |at| {
            let mut blob = source.open(part).map_err(io::Error::other)?;
            blob.start_at(at)?;
            // The registry alone can verify the digest of an upload that is continued.
            let hasher = (at == 0 && blob.verified().is_none()).then(Hasher::new);
            let verifying = Verifying::new(blob, *part, hasher, at);
            Ok(Box::new(Counting::new(verifying, moved.clone())) as Box<dyn Read + '_>)
        };
        let mount_from = self.elsewhere.get(&digest).map(String::as_str);
        let is_remote = self.remote.contains(&digest);
        let pushed = self.repository.push_blob(&UploadBlob { digest, size, open: &open, mount_from, is_remote });
        let pushed = pushed.map_err(TransportError::pushing)?;
        if pushed != PushOutcome::Uploaded {
            moved.fetch_add(size, Ordering::Relaxed);
        }
        Ok(match pushed {
            PushOutcome::Uploaded => BlobOrigin::Source,
            PushOutcome::AlreadyPresent => BlobOrigin::Sink,
            PushOutcome::Mounted => BlobOrigin::OtherRepository,
        })
    }

    fn put_document(&self, document: &Document) -> Result<()> {
        let reference = document.digest().to_string();
        self.repository.push_document(&reference, &document.media_type, &document.bytes)?;
        Ok(())
    }
}
