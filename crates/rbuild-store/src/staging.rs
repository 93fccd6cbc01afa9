//! Staging of incoming blobs.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::sync::Mutex;

use rbuild_image::{BlobDigest, DiffId, ManifestDigest, Reference};
use rbuild_linux::RootDir;
use rbuild_linux::parallel::locked;
use serde::Serialize;

use crate::artifact::LostPlatforms;
use crate::blobs::{HashedBlob, NewBlob, read_document, to_document};
use crate::error::{Result, StoreError};
use crate::ids::BuildId;
use crate::index_entries::{IndexEntries, parts_of};
use crate::partial_blobs::PartialFile;
use crate::store::Store;
use crate::workspace::Workspace;

/// The incoming blobs of one transfer. They are staged outside the store's blobs until
/// [`Staging::publish`] publishes them, so a rejected transfer leaves no blobs in the store. Blobs
/// staged by a killed process are removed by the next one.
pub struct Staging<'a> {
    store: &'a Store,
    work: &'a Workspace,
    dir: RootDir,
    /// The staged blobs and their sizes in bytes.
    staged: Mutex<HashMap<BlobDigest, u64>>,
    /// Sizes of the stored blobs that were verified; `None` for missing and damaged ones.
    verified: Mutex<HashMap<BlobDigest, Option<u64>>>,
    /// Blobs and the diffIDs of their content.
    contents: Mutex<HashSet<(BlobDigest, DiffId)>>,
    watch: Option<&'a dyn StagingWatch>,
}

/// Receives the progress of blobs that are staged. An error ends the transfer.
pub trait StagingWatch: Sync {
    /// An attempt to receive a blob begins. `file` is open for reading.
    ///
    /// # Errors
    ///
    /// Like all other methods, fails if the blob is no longer needed.
    fn begun(&self, blob: &BlobDigest, file: &File) -> Result<()>;

    /// The file of the blob has that many bytes.
    fn grown(&self, blob: &BlobDigest, size: u64) -> Result<()>;

    /// The blob is complete and has the right digest.
    fn verified(&self, blob: &BlobDigest) -> Result<()>;

    /// The blob was in the store before.
    fn stored(&self, blob: &BlobDigest) -> Result<()>;
}

impl<'a> Staging<'a> {
    /// Creates an empty staging area.
    ///
    /// # Errors
    ///
    /// Fails if its directory cannot be created.
    pub fn open(store: &'a Store, work: &'a Workspace) -> Result<Staging<'a>> {
        let (_, dir) = work.new_dir()?;
        let (staged, verified, contents) = Default::default();
        Ok(Staging { store, work, dir, staged, verified, contents, watch: None })
    }

    /// Returns the staging area with a receiver of its progress.
    pub fn watched(self, watch: &'a dyn StagingWatch) -> Staging<'a> {
        Staging { watch: Some(watch), ..self }
    }

    /// Returns the store.
    pub fn store(&self) -> &'a Store {
        self.store
    }

    /// Returns the size in bytes of a staged or stored blob, or `None` if there is none. A stored
    /// blob is verified once, unless that has been done since the machine was booted; a damaged one
    /// counts as missing, and is replaced by the one that is staged then.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn verified_size(&self, digest: &BlobDigest) -> Result<Option<u64>> {
        if let Some(size) = locked(&self.staged).get(digest) {
            return Ok(Some(*size));
        }
        if let Some(known) = locked(&self.verified).get(digest) {
            return Ok(*known);
        }
        let is_whole = self.store_has(digest)
            || match self.store.blobs().read_blob::<StoreError>(digest, |_| Ok(())) {
                Ok(()) => true,
                Err(StoreError::NoBlob(_) | StoreError::Damaged { .. }) => false,
                Err(e) => return Err(e),
            };
        let size = if is_whole { Some(self.store.blobs().blob_size(digest)?) } else { None };
        locked(&self.verified).insert(*digest, size);
        Ok(size)
    }

    /// Opens a staged or stored blob without verifying it.
    ///
    /// # Errors
    ///
    /// Fails with [`StoreError::NoBlob`] if there is none.
    pub fn open_blob(&self, digest: &BlobDigest) -> Result<File> {
        if locked(&self.staged).contains_key(digest) {
            Ok(self.dir.open_file(digest.hex())?)
        } else {
            self.store.blobs().open_blob(digest)
        }
    }

    /// Reads a small staged or stored blob into memory and verifies its digest.
    ///
    /// # Errors
    ///
    /// Fails if there is no such blob, or if its digest is wrong.
    pub fn read_document(&self, digest: &BlobDigest) -> Result<Vec<u8>> {
        read_document(self.open_blob(digest)?, digest)
    }

    /// Stages the bytes of `source` and returns their digest and size.
    ///
    /// # Errors
    ///
    /// Fails if `source` cannot be read or the blob cannot be written.
    pub fn put_blob(&self, source: impl Read) -> Result<(BlobDigest, u64)> {
        let mut blob = self.new_blob()?;
        blob.blob.fill(source)?;
        blob.finish()
    }

    /// Reports to the watch that a blob is in the store.
    ///
    /// # Errors
    ///
    /// Fails if the watch does.
    pub fn report_stored(&self, blob: &BlobDigest) -> Result<()> {
        self.watch.map_or(Ok(()), |watch| watch.stored(blob))
    }

    /// Stages the bytes of `source`, which should have that digest, and reports the progress to the
    /// watch. Returns their real digest and size.
    ///
    /// # Errors
    ///
    /// Fails if `source` cannot be read, if the blob cannot be written, or if the watch ends it.
    pub fn put_watched(&self, expected: &BlobDigest, source: impl Read) -> Result<(BlobDigest, u64)> {
        let Some(watch) = self.watch else { return self.put_blob(source) };
        let mut blob = self.new_blob()?;
        watch.begun(expected, &blob.blob.blob().reopen()?)?;
        blob.blob.fill_watched(source, &mut |size| watch.grown(expected, size))?;
        let (found, size) = blob.finish()?;
        if found == *expected {
            watch.verified(expected)?;
        }
        Ok((found, size))
    }

    /// Begins or continues the download of a blob that should have that digest and that size in
    /// bytes. Returns `None` if it is being downloaded elsewhere.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be opened, created or read.
    pub fn resume(&self, expected: &BlobDigest, size: u64) -> Result<Option<ResumedBlob<'_>>> {
        let Some(file) = PartialFile::open(self.store, expected)? else { return Ok(None) };
        if file.size()? > size {
            file.clear()?;
        }
        let written = file.reopen()?;
        let mut blob = HashedBlob::new(file);
        let at = blob.hash_written(written)?;
        Ok(Some(ResumedBlob { staging: self, expected: *expected, blob, at }))
    }

    /// Stages bytes in memory, unless they are staged or stored already.
    ///
    /// # Errors
    ///
    /// Fails if the blob cannot be written.
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<(BlobDigest, u64)> {
        let digest = BlobDigest::of(bytes);
        if !locked(&self.staged).contains_key(&digest) && !self.store_has(&digest) {
            self.put_blob(bytes)?;
        }
        Ok((digest, bytes.len() as u64))
    }

    /// Returns true if the store has the blob and its digest is verified; a power failure may have
    /// truncated it.
    fn store_has(&self, digest: &BlobDigest) -> bool {
        self.store.blobs().open_blob(digest).is_ok_and(|file| self.store.blobs().is_verified(&file))
    }

    /// Stages a value as a JSON document and returns its digest and size.
    ///
    /// # Errors
    ///
    /// Fails if the blob cannot be written.
    pub fn put_document<T: Serialize>(&self, value: &T) -> Result<(BlobDigest, u64)> {
        self.put_bytes(&to_document(value)?)
    }

    /// Starts a blob that is written incrementally.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be created.
    pub fn new_blob(&self) -> Result<StagingBlob<'_>> {
        Ok(StagingBlob { staging: self, blob: HashedBlob::new(self.store.blobs().new_blob(self.work)?) })
    }

    /// Records that the blob contains the layer with that diffID.
    pub fn note_layer(&self, blob: &BlobDigest, diff_id: &DiffId) {
        locked(&self.contents).insert((*blob, *diff_id));
    }

    /// Publishes the blobs that the given images need, syncs them to disk, and then names the
    /// images. `command` is the name of the command, for the ID of the sync mark.
    /// Returns the platforms that the names no longer refer to.
    ///
    /// # Errors
    ///
    /// Fails if an image is incomplete, or if the store cannot be written.
    pub fn publish(
        self,
        command: &'static str,
        images: &[ManifestDigest],
        named: &[(ManifestDigest, Option<Reference>)],
    ) -> Result<Vec<LostPlatforms>> {
        let kept = self.move_in(images).and_then(|()| {
            self.store.records().sync(&BuildId::of_command(command))?;
            let lost = self.store.images().platforms_lost_by(named)?;
            self.store.images().tag_all(named)?;
            Ok(lost)
        });
        if kept.is_err() {
            // The rest only takes space, which prune frees.
            let _ = self.store.gc().sweep_blobs();
        }
        kept
    }

    fn move_in(&self, images: &[ManifestDigest]) -> Result<()> {
        let needed = self.needed(images)?;
        let blobs = self.store.dir("blobs/sha256")?;
        for digest in locked(&self.staged).keys().filter(|digest| needed.contains(*digest)) {
            // Replacing a file is slow on some file systems.
            if self.store_has(digest) {
                continue;
            }
            let name = digest.hex();
            self.dir.rename(OsStr::new(&name), &blobs, OsStr::new(&name))?;
        }
        for (blob, diff_id) in locked(&self.contents).iter() {
            self.store.blobs().note_layer(blob, diff_id)?;
        }
        Ok(())
    }

    /// Returns the manifests of the images and of the attachments of indexes, their configurations
    /// and layers.
    fn needed(&self, images: &[ManifestDigest]) -> Result<HashSet<BlobDigest>> {
        let mut needed: HashSet<BlobDigest> = images.iter().map(ManifestDigest::blob).collect();
        for image in images {
            let document = self.read_document(&image.blob())?;
            match IndexEntries::of_any(&document, &|digest| self.read_document(&digest.blob()).ok()) {
                Some(entries) => needed.extend(self.needed(&entries.manifests())?),
                None => needed.extend(parts_of(&document)?),
            }
        }
        Ok(needed)
    }
}

/// A blob that is being written to the staging area.
pub struct StagingBlob<'a> {
    staging: &'a Staging<'a>,
    blob: HashedBlob<NewBlob<'a>>,
}

impl StagingBlob<'_> {
    /// Appends bytes.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be written.
    pub fn add(&mut self, bytes: &[u8]) -> Result<()> {
        self.blob.add(bytes)
    }

    /// Stages the blob and returns its digest and size.
    ///
    /// # Errors
    ///
    /// Fails if the blob cannot be written.
    pub fn finish(self) -> Result<(BlobDigest, u64)> {
        let (blob, digest, size) = self.blob.finish()?;
        blob.publish_in(&self.staging.dir, self.staging.store, &digest, size)?;
        locked(&self.staging.staged).insert(digest, size);
        Ok((digest, size))
    }
}

/// A blob that is downloaded in one or more attempts, by one or more processes.
pub struct ResumedBlob<'a> {
    staging: &'a Staging<'a>,
    expected: BlobDigest,
    blob: HashedBlob<PartialFile>,
    at: u64,
}

impl ResumedBlob<'_> {
    /// Returns the number of bytes downloaded before.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Appends the rest of the blob, and stages it if the digest is right. Reports the progress to
    /// the watch. Returns the real digest and size. If `rest` fails, or the process is killed, what
    /// has been written is kept.
    ///
    /// # Errors
    ///
    /// Fails if `rest` does, if the file cannot be written, or if the watch ends the transfer.
    pub fn finish(self, rest: impl Read) -> Result<(BlobDigest, u64)> {
        let ResumedBlob { staging, expected, mut blob, at } = self;
        let grown = |size: u64| staging.watch.map_or(Ok(()), |watch| watch.grown(&expected, size));
        if let Some(watch) = staging.watch {
            watch.begun(&expected, &blob.blob().reopen()?)?;
            grown(at)?;
        }
        if let Err(e) = blob.fill_watched(rest, &mut |size| grown(at + size)) {
            if e.is_disk_full() {
                blob.into_blob().remove()?;
            }
            return Err(e);
        }
        let (file, found, size) = blob.finish()?;
        if found != expected {
            file.remove()?;
            return Ok((found, size));
        }
        file.publish_in(&staging.dir, staging.store)?;
        locked(&staging.staged).insert(found, size);
        if let Some(watch) = staging.watch {
            watch.verified(&found)?;
        }
        Ok((found, size))
    }
}

#[cfg(test)]
mod tests {
    use rbuild_image::{ImageConfig, MediaType, Platform, descriptor, manifest};
    use rbuild_testkit::Scratch;

    use super::*;

    /// An image of one layer with these bytes, and one blob that it does not need.
    fn image(staging: &Staging<'_>, layer: &[u8]) -> ManifestDigest {
        image_for(staging, layer, &Platform::host())
    }

    fn image_for(staging: &Staging<'_>, layer: &[u8], platform: &Platform) -> ManifestDigest {
        staging.put_blob(&b"of no use"[..]).unwrap();
        let (digest, size) = staging.put_blob(layer).unwrap();
        let mut config = ImageConfig::empty(platform);
        config.rootfs.diff_ids = vec![digest.of_plain_layer()];
        let (id, id_size) = staging.put_document(&config).unwrap();
        let layer = descriptor(MediaType::ImageLayer, &digest, size);
        staging
            .put_document(&manifest(descriptor(MediaType::ImageConfig, &id, id_size), vec![layer]))
            .unwrap()
            .0
            .of_manifest()
    }

    #[test]
    fn a_rejected_load_leaves_nothing_and_removes_nothing_of_another() {
        let dir = Scratch::new();
        let store = Store::open(&dir).unwrap();
        let (work, other_work) = (Workspace::open(&store).unwrap(), Workspace::open(&store).unwrap());
        let blobs = || std::fs::read_dir(dir.join("blobs/sha256")).unwrap().count();
        let (refused, kept) = (Staging::open(&store, &work).unwrap(), Staging::open(&store, &other_work).unwrap());
        let manifest = image(&refused, b"layer");
        refused.note_layer(&manifest.blob(), &DiffId::of(b"x"));
        assert_eq!(image(&kept, b"layer"), manifest);
        assert_eq!(refused.verified_size(&BlobDigest::of(b"layer")).unwrap(), Some(5));
        assert_eq!(blobs(), 0);
        let name: Reference = "a:1".parse().unwrap();
        kept.publish("load", &[manifest], &[(manifest, Some(name.clone()))]).unwrap();
        drop(refused);
        drop((work, other_work));
        assert_eq!(
            (blobs(), std::fs::read_dir(dir.join("layers")).unwrap().count()),
            (3, 0),
            "what images need is kept"
        );
        assert_eq!(std::fs::read_dir(dir.join("tmp")).unwrap().count(), 0);
        assert_eq!(
            store.images().list().unwrap(),
            [crate::NamedImage { name: Some(name), manifest, artifact: crate::Artifact::Image(manifest) }]
        );
        assert!(store.gc().check(false).unwrap().damage.is_empty());
        // Complete blobs of the store are not written again; truncated ones are.
        let layer = dir.join("blobs/sha256").join(BlobDigest::of(b"layer").hex());
        let inode = || std::os::unix::fs::MetadataExt::ino(&layer.metadata().unwrap());
        let before = inode();
        for _ in 0..2 {
            let work = Workspace::open(&store).unwrap();
            let staging = Staging::open(&store, &work).unwrap();
            image(&staging, b"layer");
            staging.publish("load", &[manifest], &[]).unwrap();
            assert_eq!(std::fs::read(&layer).unwrap(), b"layer");
            std::fs::write(&layer, b"lay").unwrap();
        }
        assert_ne!(inode(), before);
    }

    /// On a file system without user attributes, only the staging area records that a blob was
    /// verified.
    #[test]
    fn a_stored_blob_is_verified_once() {
        let dir = Scratch::new();
        let store = Store::open(&dir).unwrap();
        let work = Workspace::open(&store).unwrap();
        let first = Staging::open(&store, &work).unwrap();
        let manifest = image(&first, b"layer");
        first.publish("load", &[manifest], &[]).unwrap();
        let (layer, missing) = (BlobDigest::of(b"layer"), BlobDigest::of(b"none"));
        let staging = Staging::open(&store, &work).unwrap();
        let sizes = || [&layer, &missing].map(|digest| staging.verified_size(digest).unwrap());
        assert_eq!(sizes(), [Some(5), None]);
        std::fs::write(dir.join("blobs/sha256").join(layer.hex()), b"spoil").unwrap();
        assert_eq!(sizes(), [Some(5), None]);
        assert_eq!(Staging::open(&store, &work).unwrap().verified_size(&layer).unwrap(), None);
        assert_eq!(staging.put_blob(&b"none"[..]).unwrap().1, 4);
        assert_eq!(staging.verified_size(&missing).unwrap(), Some(4));
    }

    /// The bytes of a stream that breaks off.
    fn broken(bytes: &[u8]) -> impl Read + '_ {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::ConnectionReset.into())
            }
        }
        bytes.chain(Broken)
    }

    #[test]
    fn an_interrupted_download_is_continued_and_verified_as_a_whole() {
        let dir = Scratch::new();
        let store = Store::open(&dir).unwrap();
        let work = Workspace::open(&store).unwrap();
        let staging = Staging::open(&store, &work).unwrap();
        let digest = BlobDigest::of(b"layer");
        let resume = || staging.resume(&digest, 5).unwrap();
        let first = resume().unwrap();
        assert!(resume().is_none(), "one download at a time");
        assert_eq!(first.at(), 0);
        first.finish(broken(b"la")).unwrap_err();
        let second = resume().unwrap();
        assert_eq!(second.at(), 2);
        assert_eq!(second.finish(&b"yer"[..]).unwrap(), (digest, 5));
        assert_eq!(staging.verified_size(&digest).unwrap(), Some(5));
        // A wrong beginning does not survive, nor does one that is too long.
        resume().unwrap().finish(broken(b"lo")).unwrap_err();
        assert_eq!(resume().unwrap().finish(&b"yer"[..]).unwrap(), (BlobDigest::of(b"loyer"), 5));
        assert_eq!(resume().unwrap().at(), 0);
        resume().unwrap().finish(broken(b"layers")).unwrap_err();
        assert_eq!(resume().unwrap().at(), 0);
        // A link in place of the file is not followed.
        let file = dir.join("partial").join(digest.hex());
        assert!(!file.exists(), "an empty one is not kept");
        std::os::unix::fs::symlink(dir.join("elsewhere"), &file).unwrap();
        assert!(staging.resume(&digest, 5).is_err() && !dir.join("elsewhere").exists());
        std::fs::remove_file(&file).unwrap();
        resume().unwrap().finish(broken(b"lay")).unwrap_err();
        drop(staging);
        drop(work);
        let partial = || std::fs::read_dir(dir.join("partial")).unwrap().count();
        // The removal of an image keeps it for the next pull.
        store.gc().sweep_blobs().unwrap();
        assert_eq!(partial(), 1);
        let freed = store.gc().prune(false, crate::DanglingImages::Remove).unwrap();
        assert_eq!((freed.blobs, partial()), (1, 0));
    }

    #[test]
    fn an_index_and_its_images_are_kept_under_each_name() {
        let dir = Scratch::new();
        let store = Store::open(&dir).unwrap();
        let work = Workspace::open(&store).unwrap();
        let staging = Staging::open(&store, &work).unwrap();
        let other = "linux/s390x".parse().unwrap();
        let images = [image(&staging, b"one"), image_for(&staging, b"two", &other)];
        let entry = |m: &ManifestDigest| {
            descriptor(MediaType::ImageManifest, &m.blob(), staging.verified_size(&m.blob()).unwrap().unwrap())
        };
        let statement = staging.put_blob(&b"statement"[..]).unwrap();
        let part = |(digest, size): (BlobDigest, u64)| descriptor(MediaType::from("example/x"), &digest, size);
        let attestation = manifest(part(staging.put_bytes(b"{}").unwrap()), vec![part(statement)]);
        let attestation = staging.put_document(&attestation).unwrap().0.of_manifest();
        let mut entries =
            serde_json::to_value(images.iter().chain([&attestation]).map(entry).collect::<Vec<_>>()).unwrap();
        entries[2]["platform"] = serde_json::json!({"os": "unknown", "architecture": "unknown"});
        let index = format!(r#"{{"schemaVersion":2,"manifests":{entries}}}"#);
        let digest = staging.put_bytes(index.as_bytes()).unwrap().0.of_manifest();
        let (name, other): (Reference, Reference) = ("a:1".parse().unwrap(), "a:2".parse().unwrap());
        staging.publish("index", &[digest], &[(digest, Some(name.clone()))]).unwrap();
        drop(work);
        let artifact = crate::Artifact::Index {
            digest,
            images: images.to_vec(),
            attachments: vec![attestation],
            indexes: Vec::new(),
        };
        let found = store.images().find("a:1").unwrap();
        assert_eq!((&found.artifact, found.image.manifest_digest), (&artifact, images[0]));
        store.images().tag(&digest, Some(&other)).unwrap();
        store.images().untag("a:1", false).unwrap();
        assert_eq!(store.gc().prune(true, crate::DanglingImages::Remove).unwrap().blobs, 0);
        // A name that passes to one image of the index loses the other platforms.
        let lost = |named: &[(ManifestDigest, &Reference)]| {
            let named: Vec<_> = named.iter().map(|(manifest, name)| (*manifest, Some((*name).clone()))).collect();
            store.images().platforms_lost_by(&named).unwrap().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(lost(&[(digest, &other), (images[0], &other)]), ["a:2 no longer has linux/s390x"]);
        assert_eq!(lost(&[(images[0], &other), (digest, &other), (images[0], &name)]), [""; 0]);
        let alone = store.images().find(&images[1].hex()[..12]).unwrap();
        assert_eq!(alone.artifact, crate::Artifact::Image(images[1]));
        assert_eq!(store.images().find(&digest.hex()[..12]).unwrap().artifact, artifact);
        assert!(store.gc().check(false).unwrap().damage.is_empty());
        let path = dir.join("blobs/sha256").join(statement.0.hex());
        std::fs::rename(&path, dir.join("statement")).unwrap();
        assert!(!store.gc().check(false).unwrap().damage.is_empty(), "an attestation is a part of the index");
        std::fs::rename(dir.join("statement"), &path).unwrap();
        let (names, gone) = store.images().untag(&digest.hex()[..12], false).unwrap();
        assert_eq!((names, gone.is_some(), store.images().list().unwrap().len()), (vec!["a:2".to_string()], true, 0));
    }
}
