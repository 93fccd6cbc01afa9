//! Files that builds downloaded, with the validators for asking their servers for changes.
//!
//! The content is a blob. Notes refer to it: one for the URL, and one for each checksum that it is
//! known by. Losing a note only costs a download.

use std::ffi::OsString;
use std::fs::File;

use rbuild_image::{BlobDigest, Checksum, ChecksumHasher, Hasher, SourceUrl};
use serde::{Deserialize, Serialize};

use crate::blobs::{HashedBlob, NewBlob};
use crate::error::{Result, StoreError};
use crate::ids::DownloadName;
use crate::modes;
use crate::store::Store;
use crate::workspace::Workspace;

/// Directory of the notes.
pub(crate) const DIR: &str = "downloads";

/// A stored file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Download {
    /// Digest of the content.
    pub digest: BlobDigest,
    /// Number of bytes.
    pub size: u64,
    /// The `ETag` header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// The `Last-Modified` header, in seconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified: Option<i64>,
}

/// The downloaded files of a store.
#[derive(Clone, Copy)]
pub struct Downloads<'s> {
    pub(crate) store: &'s Store,
}

fn file_of(kind: &str, text: &str) -> String {
    let mut hasher = Hasher::new();
    hasher.field("download 1").field(kind).field(text);
    format!("{}.json", hasher.finish::<DownloadName>().hex())
}

fn file_of_url(url: &SourceUrl) -> String {
    file_of("url", &url.target())
}

fn file_of_checksum(checksum: &Checksum) -> String {
    file_of("checksum", &checksum.to_string())
}

impl<'s> Downloads<'s> {
    /// Returns the file that was last downloaded from a URL, if it is still complete.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn of_url(&self, url: &SourceUrl) -> Result<Option<Download>> {
        self.complete_download(&file_of_url(url))
    }

    /// Returns a downloaded file with this checksum, if it is still complete. One from `url` is
    /// preferred.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn of_checksum(&self, checksum: &Checksum, url: &SourceUrl) -> Result<Option<Download>> {
        let known = self.complete_download(&file_of_checksum(checksum))?;
        let Some(known) = known else { return Ok(None) };
        let from_url = self.of_url(url)?.filter(|download| download.digest == known.digest);
        Ok(Some(from_url.unwrap_or(known)))
    }

    /// Records the file for its URL and for the checksums of its content.
    ///
    /// # Errors
    ///
    /// Fails if a note cannot be written.
    pub fn note(&self, url: &SourceUrl, checksums: &[Checksum], download: &Download) -> Result<()> {
        self.store.root.create_dir_all(DIR, modes::dir(), None, |_| ())?;
        self.store.write(DIR, &file_of_url(url), download)?;
        checksums.iter().try_for_each(|checksum| self.store.write(DIR, &file_of_checksum(checksum), download))
    }

    /// Starts to receive a file. `checksum` computes another checksum besides its digest.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be created.
    pub fn receive<'w>(
        &self,
        work: &'w Workspace,
        checksum: impl Fn() -> Option<ChecksumHasher> + 'w,
    ) -> Result<IncomingFile<'s, 'w>> {
        let blob = HashedBlob::new(self.store.blobs().new_blob(work)?);
        Ok(IncomingFile { store: self.store, work, blob, checksum: checksum(), new_checksum: Box::new(checksum) })
    }

    /// Returns the download of a note whose content is complete.
    fn complete_download(&self, file: &str) -> Result<Option<Download>> {
        let Some(download) = self.store.read_if_whole::<Download>(&format!("{DIR}/{file}"))? else { return Ok(None) };
        let is_whole = self.store.blobs().has_complete_blob(&download.digest, download.size)?
            && match self.store.blobs().open_verified(&download.digest)? {
                Some(_) => true,
                None => match self.store.blobs().read_blob::<StoreError>(&download.digest, |_| Ok(())) {
                    Ok(()) => true,
                    Err(StoreError::NoBlob(_) | StoreError::Damaged { .. }) => false,
                    Err(e) => return Err(e),
                },
            };
        if !is_whole {
            return Ok(None);
        }
        self.store.gc().note_use(DIR, file)?;
        Ok(Some(download))
    }

    /// Returns all notes with the names of their files.
    pub(crate) fn notes(&self) -> Result<Vec<(OsString, Download)>> {
        self.store.whole_documents(DIR)
    }
}

/// A file that is being downloaded.
pub struct IncomingFile<'s, 'w> {
    store: &'s Store,
    work: &'w Workspace,
    blob: HashedBlob<NewBlob<'w>>,
    checksum: Option<ChecksumHasher>,
    new_checksum: Box<dyn Fn() -> Option<ChecksumHasher> + 'w>,
}

impl<'s, 'w> IncomingFile<'s, 'w> {
    /// Discards what has been received.
    ///
    /// # Errors
    ///
    /// Fails if a new file cannot be created.
    pub fn restart(&mut self) -> Result<()> {
        self.blob = HashedBlob::new(self.store.blobs().new_blob(self.work)?);
        self.checksum = (self.new_checksum)();
        Ok(())
    }

    /// Appends bytes.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be written.
    pub fn add(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if let Some(checksum) = &mut self.checksum {
            checksum.update(bytes);
        }
        self.blob.add(bytes).map_err(std::io::Error::other)
    }

    /// Ends the file. It is not part of the store before it is published.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be written.
    pub fn finish(self) -> Result<ReceivedFile<'s, 'w>> {
        let (blob, digest, size) = self.blob.finish()?;
        Ok(ReceivedFile { store: self.store, blob, digest, size, checksum: self.checksum.map(ChecksumHasher::finish) })
    }
}

/// A file that has been downloaded.
pub struct ReceivedFile<'s, 'w> {
    store: &'s Store,
    blob: NewBlob<'w>,
    /// Digest of the content.
    pub digest: BlobDigest,
    /// Number of bytes.
    pub size: u64,
    /// The other checksum, if it was wanted.
    pub checksum: Option<Checksum>,
}

impl ReceivedFile<'_, '_> {
    /// Opens the content.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be opened.
    pub fn open(&self) -> Result<File> {
        self.blob.reopen()
    }

    /// Makes the file a blob of the store.
    ///
    /// # Errors
    ///
    /// Fails if it cannot be renamed.
    pub fn publish(self) -> Result<()> {
        self.blob.publish(self.store, &self.digest, self.size)
    }
}

#[cfg(test)]
mod tests {
    use rbuild_image::ChecksumAlgorithm;
    use rbuild_testkit::Scratch;

    use super::*;
    use crate::gc::budget::Budget;
    use crate::gc::prune::DanglingImages;

    struct Scene {
        store: Store,
        url: SourceUrl,
        dir: Scratch,
    }

    impl Scene {
        fn new() -> Scene {
            let dir = Scratch::new();
            let store = Store::open(&dir).unwrap();
            Scene { store, url: SourceUrl::parse("https://joe:pw@a.io/x?q#f").unwrap(), dir }
        }

        fn receive(&self, content: &[u8]) -> (Download, Vec<Checksum>) {
            let work = Workspace::open(&self.store).unwrap();
            let algorithm = ChecksumAlgorithm::Sha512;
            let mut file = self.store.downloads().receive(&work, || Some(algorithm.hasher())).unwrap();
            file.add(b"to be discarded").unwrap();
            file.restart().unwrap();
            content.chunks(3).for_each(|part| file.add(part).unwrap());
            let received = file.finish().unwrap();
            assert_eq!((received.digest, received.size), (BlobDigest::of(content), content.len() as u64));
            let sums = vec![received.digest.to_string().parse().unwrap(), received.checksum.clone().unwrap()];
            assert_eq!(sums[1], Checksum::of(algorithm, content));
            let (digest, size) = (received.digest, received.size);
            received.publish().unwrap();
            let download = Download { digest, size, etag: Some("\"1\"".into()), modified: Some(7) };
            self.store.downloads().note(&self.url, &sums, &download).unwrap();
            (download, sums)
        }
    }

    #[test]
    fn files_are_found_by_url_and_by_checksum_while_they_are_complete() {
        let scene = Scene::new();
        let (download, sums) = scene.receive(b"content");
        let downloads = scene.store.downloads();
        let other = SourceUrl::parse("https://a.io/x").unwrap();
        assert_eq!(downloads.of_url(&scene.url).unwrap().as_ref(), Some(&download));
        assert_eq!(downloads.of_url(&other).unwrap(), None, "another query");
        for sum in &sums {
            assert_eq!(downloads.of_checksum(sum, &other).unwrap().as_ref(), Some(&download), "{sum}");
        }
        let later = Download { modified: Some(9), ..download.clone() };
        downloads.note(&other, &[], &later).unwrap();
        assert_eq!(downloads.of_checksum(&sums[0], &other).unwrap(), Some(later), "its own URL's");
        let documents = std::fs::read_dir(scene.dir.join(DIR)).unwrap();
        let all: String = documents.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap()).collect();
        assert!(!all.contains("pw") && !all.contains("a.io"), "{all}");
        let blob = scene.dir.join("blobs/sha256").join(download.digest.hex());
        std::fs::write(&blob, b"CONTENT").unwrap();
        assert_eq!(downloads.of_url(&scene.url).unwrap(), None, "damaged");
        std::fs::remove_file(&blob).unwrap();
        assert_eq!(downloads.of_checksum(&sums[1], &other).unwrap(), None, "gone");
    }

    #[test]
    fn a_file_that_is_not_published_leaves_nothing() {
        let scene = Scene::new();
        let work = Workspace::open(&scene.store).unwrap();
        let mut file = scene.store.downloads().receive(&work, || None).unwrap();
        file.add(b"content").unwrap();
        drop(file.finish().unwrap());
        drop(work);
        let count = |dir: &str| std::fs::read_dir(scene.dir.join(dir)).unwrap().count();
        assert_eq!((count("blobs/sha256"), count("tmp")), (0, 0));
    }

    #[test]
    fn prune_keeps_downloads_and_the_budget_evicts_them() {
        let scene = Scene::new();
        let (download, _) = scene.receive(&[7; 9000]);
        let has = || scene.store.downloads().of_url(&scene.url).unwrap().is_some();
        assert_eq!(scene.store.gc().prune(false, DanglingImages::Remove).unwrap().blobs, 0);
        scene.store.gc().sweep_blobs().unwrap();
        assert!(has());
        assert_eq!([8999, 9000].map(|most| scene.store.gc().may_exceed(most).unwrap()), [true, false]);
        scene.store.gc().collect(Budget { bytes: Some(9000), ..Budget::default() }).unwrap();
        assert!(has());
        // The disk usage of a file that is being written is not yet certain.
        rbuild_linux::sync_filesystem(&scene.store.root).unwrap();
        let freed = scene.store.gc().collect(Budget { bytes: Some(8999), ..Budget::default() }).unwrap();
        assert_eq!((has(), freed.blobs), (false, 1), "{freed:?}");
        assert!(freed.bytes >= 9000, "{freed:?}");
        assert!(!scene.store.blobs().has_blob(&download.digest).unwrap());
        scene.receive(b"again");
        assert_eq!(scene.store.gc().prune(true, DanglingImages::Remove).unwrap().blobs, 1);
        assert!(!has() && scene.store.gc().check(false).unwrap().damage.is_empty());
    }
}
