//! Caches in repositories of registries.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Cursor, Read};
use std::sync::Arc;
use std::time::Instant;

use rbuild_image::{BlobDigest, Reference, digest_of, parse_manifest};
use rbuild_linux::parallel::try_map;
use rbuild_registry::{Client, RegistryError, RegistryProblem, Repository, ResolvedTag, embedded};
use rbuild_store::{Store, Workspace};
use serde_json::Value;

use crate::blobs::{BlobInfo, BlobOrigin, BlobRead, BlobSink, BlobSource};
use crate::cache::artifact::{CacheDocuments, CachedSteps, KnownSteps, check_type, damaged_document, steps_to_extend};
use crate::cache::buildkit::{BuildKitCache, buildkit_config};
use crate::cache::imported::{WantedLayer, fetch_layer};
use crate::cache::inline::{image_entries, is_image};
use crate::cache::merge::{CacheNote, OwnSteps, WrittenCache, merged, own_share};
use crate::cache::records::{CacheRecords, RemoteSteps, read_any};
use crate::cache::shards::{RemoteCache, settle, union};
use crate::error::{Result, TransportError};
use crate::registry::Upload;

/// Number of connections.
const CONNECTIONS: usize = 6;
/// Maximum size of a document in bytes.
const MAX_DOCUMENT: u64 = 64 << 20;
/// Number of times that the steps are merged again because another machine wrote meanwhile.
const MERGES: usize = 8;

/// Reads the records of a cache in a registry, without its layers; all shards at once. Documents
/// that the store kept from the last time are not requested again. Returns `None` if there is no
/// such cache.
///
/// # Errors
///
/// Fails if the registry fails or refuses, or if a document is damaged, and nothing could be read.
#[tracing::instrument(target = "transport", name = "cache", level = "debug", skip_all, fields(name = %cache.name()))]
pub fn read_remote_cache(store: &Store, client: &Client, cache: &RemoteCache) -> Result<Option<RemoteSteps>> {
    let (mut found, mut failure) = (Vec::new(), None);
    let (mut faults, mut buildkit) = (Vec::new(), None);
    for shard in shards(store, client, &cache.names())? {
        match shard {
            Ok(Some(records)) => {
                found.push(records.steps);
                buildkit = match (buildkit, records.buildkit) {
                    (Some(known), Some(more)) => Some(BuildKitCache::joined(known, more)),
                    (known, more) => known.or(more),
                };
            }
            Ok(None) => {}
            Err(e) => {
                faults.push(e.message());
                failure = failure.or(Some(e));
            }
        }
    }
    match (found.is_empty(), failure) {
        (true, Some(e)) => Err(e),
        (true, None) => Ok(None),
        (false, _) => {
            faults.dedup();
            Ok(Some(RemoteSteps { steps: union(found).into_values().collect(), buildkit, faults }))
        }
    }
}

/// Reads the steps of several tags at once.
fn shards(store: &Store, client: &Client, names: &[Reference]) -> Result<Vec<Result<Option<CacheRecords>>>> {
    try_map(names.len().max(1), names, |name| {
        let repository = client.repository(name).map_err(TransportError::from);
        Ok(repository.and_then(|repository| current(store, &repository, name)))
    })
}

/// Returns the records of a tag, `None` if there is no such cache.
fn current(store: &Store, repository: &Repository, name: &Reference) -> Result<Option<CacheRecords>> {
    let digest = match name.digest() {
        Some(digest) => digest.blob(),
        None => match resolved(repository, name)? {
            Some(digest) => digest,
            None => return Ok(None),
        },
    };
    let documents = RemoteDocuments { store, repository, work: &Workspace::open(store)? };
    let manifest = match documents.manifest(&digest) {
        Err(TransportError::Registry(e)) if is_missing(&e) => return Ok(None),
        manifest => manifest?,
    };
    let blobs = match check_type(&manifest) {
        Ok(()) => documents.prefetched(&manifest)?,
        Err(_) => documents.of_others(&manifest)?,
    };
    read_any(&manifest, &blobs).map(Some)
}

/// Returns the digest of the tag in the repository that is pushed to, never that of a mirror.
fn resolved_for_push(repository: &Repository, name: &Reference) -> Result<Option<BlobDigest>> {
    Ok(match repository.resolve_pushed(tag_of(name))? {
        Some(ResolvedTag::Digest(digest)) => Some(digest),
        Some(ResolvedTag::Manifest(manifest)) => Some(manifest.digest),
        None => None,
    })
}

fn resolved(repository: &Repository, name: &Reference) -> Result<Option<BlobDigest>> {
    match repository.find(tag_of(name)) {
        Ok(Some(ResolvedTag::Digest(digest))) => Ok(Some(digest)),
        Ok(Some(ResolvedTag::Manifest(manifest))) => Ok(Some(manifest.digest)),
        Ok(None) => Ok(None),
        Err(e) if is_missing(&e) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn is_missing(e: &RegistryError) -> bool {
    matches!(&*e.problem, RegistryProblem::Missing { .. })
}

fn tag_of(name: &Reference) -> &str {
    name.tag().unwrap_or("latest")
}

/// The documents of a cache, which the store keeps for the next build.
struct RemoteDocuments<'a> {
    store: &'a Store,
    repository: &'a Repository,
    work: &'a Workspace,
}

impl RemoteDocuments<'_> {
    fn manifest(&self, digest: &BlobDigest) -> Result<Vec<u8>> {
        if let Some(bytes) = self.kept(digest) {
            return Ok(bytes);
        }
        let bytes = self.repository.document(digest)?.bytes;
        self.store.blobs().put_blob(self.work, &bytes[..])?;
        Ok(bytes)
    }

    /// Reads the configuration and the records of a manifest, all at once.
    fn prefetched(&self, manifest: &[u8]) -> Result<Prefetched> {
        let parsed = parse_manifest(manifest).map_err(TransportError::document("the cache's manifest"))?;
        let is_document = |kind: String| kind.starts_with("application/vnd.rbuild.cache.");
        let wanted = std::iter::once(parsed.config()).chain(parsed.layers());
        let wanted = wanted.filter(|part| is_document(part.media_type().to_string()));
        let (mut found, mut parts) = (HashMap::new(), Vec::new());
        for part in wanted {
            let digest = digest_of(part).map_err(TransportError::document("the cache's manifest"))?;
            match embedded(part) {
                Some(bytes) => drop(found.insert(digest, bytes)),
                None => parts.push(BlobInfo { digest, size: part.size() }),
            }
        }
        let read = try_map(CONNECTIONS, &parts, |part| Ok::<_, TransportError>((part.digest, self.blob(part)?)))?;
        found.extend(read);
        Ok(Prefetched(found))
    }

    /// Reads the configuration of a cache of BuildKit, that of an image, or those of the images of
    /// an index with their manifests.
    fn of_others(&self, manifest: &[u8]) -> Result<Prefetched> {
        let document: Value =
            serde_json::from_slice(manifest).map_err(TransportError::document("the cache's manifest"))?;
        if let Some(config) = buildkit_config(&document) {
            return Ok(Prefetched([(config.digest, self.blob(&config)?)].into()));
        }
        let (mut found, mut manifests) = (HashMap::<BlobDigest, Vec<u8>>::new(), vec![manifest.to_vec()]);
        if document["manifests"].is_array() {
            let digests = image_entries(&document).filter_map(|entry| entry["digest"].as_str()?.parse().ok());
            let digests: Vec<BlobDigest> = digests.collect();
            // A registry may not have the images of all platforms.
            let read = try_map(CONNECTIONS, &digests, |digest| match self.manifest(digest) {
                Err(TransportError::Registry(e)) if is_missing(&e) => Ok(None),
                manifest => manifest.map(Some),
            })?;
            let read = digests.into_iter().zip(read).filter_map(|(digest, manifest)| Some((digest, manifest?)));
            found.extend(read);
            manifests = found.values().cloned().collect();
        }
        let configs = manifests.iter().filter_map(|manifest| {
            let parsed = parse_manifest(manifest).ok()?;
            let digest = digest_of(parsed.config()).ok()?;
            is_image(&parsed).then(|| BlobInfo { digest, size: parsed.config().size() })
        });
        let configs: Vec<BlobInfo> = configs.collect();
        let is_index = document["manifests"].is_array();
        let read = try_map(CONNECTIONS, &configs, |part| match self.blob(part) {
            Err(TransportError::Document { .. }) if is_index => Ok(None),
            blob => Ok::<_, TransportError>(Some((part.digest, blob?))),
        })?;
        found.extend(read.into_iter().flatten());
        Ok(Prefetched(found))
    }

    fn blob(&self, part: &BlobInfo) -> Result<Vec<u8>> {
        if let Some(bytes) = self.kept(&part.digest) {
            return Ok(bytes);
        }
        if part.size > MAX_DOCUMENT {
            return Err(TransportError::other("its records exceed 64 MiB"));
        }
        let mut blob = BlobSource::open(self.repository, part)?;
        loop {
            let mut bytes = Vec::new();
            let read = (&mut blob).take(part.size).read_to_end(&mut bytes);
            match read.map_err(TransportError::reading("cannot read the cache")) {
                Err(TransportError::Registry(e)) if is_missing(&e) => return Err(damaged_document("it is missing")),
                read => read?,
            };
            let found = BlobDigest::of(&bytes);
            if found == part.digest {
                self.store.blobs().put_blob(self.work, &bytes[..])?;
                return Ok(bytes);
            }
            // A mirror may have sent it.
            if !blob.note_wrong(&found) {
                return Err(damaged_document(&blob.wrong_digest(&found).message()));
            }
            blob.start_at(0).map_err(TransportError::reading("cannot read the cache"))?;
        }
    }

    /// Returns a document of an earlier build, if it is undamaged.
    fn kept(&self, digest: &BlobDigest) -> Option<Vec<u8>> {
        self.store.blobs().read_document(digest).ok()
    }
}

/// Documents in memory.
struct Prefetched(HashMap<BlobDigest, Vec<u8>>);

impl BlobSource for Prefetched {
    fn size(&self, digest: &BlobDigest) -> Result<Option<u64>> {
        Ok(self.0.get(digest).map(|bytes| bytes.len() as u64))
    }

    fn document(&self, digest: &BlobDigest) -> Result<Vec<u8>> {
        self.0.get(digest).cloned().ok_or_else(|| TransportError::other("a document of the cache is missing"))
    }

    fn open(&self, part: &BlobInfo) -> Result<Box<dyn BlobRead + '_>> {
        let bytes =
            self.0.get(&part.digest).ok_or_else(|| TransportError::other("a document of the cache is missing"))?;
        Ok(Box::new(DocumentBlob(Cursor::new(&bytes[..]))))
    }
}

/// A document in memory that is uploaded.
struct DocumentBlob<'a>(Cursor<&'a [u8]>);

impl Read for DocumentBlob<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl BlobRead for DocumentBlob<'_> {
    fn start_at(&mut self, at: u64) -> io::Result<()> {
        self.0.set_position(at);
        Ok(())
    }

    fn wrong_digest(&self, found: &BlobDigest) -> TransportError {
        TransportError::other(format!("a document of the cache has the digest {found}"))
    }
}

/// Downloads layers of caches into the store. Returns for each the reason why it cannot be used, if
/// it cannot.
///
/// # Errors
///
/// Fails if the store cannot be written.
pub fn fetch_remote_layers(store: &Store, client: &Client, wanted: &[WantedLayer]) -> Result<Vec<Option<String>>> {
    let work = Workspace::open(store)?;
    let mut repositories = HashMap::new();
    for WantedLayer { name, .. } in wanted {
        let repository = || client.repository(name).map_err(TransportError::from);
        repositories.entry(name.to_string()).or_insert_with(repository);
    }
    try_map(CONNECTIONS, wanted, |layer| {
        let fetched = match &repositories[&layer.name.to_string()] {
            Ok(repository) => fetch_layer(store, &work, repository, &layer.blob).map_err(|e| e.message()),
            Err(e) => Err(e.message()),
        };
        Ok(fetched.err())
    })
}

/// A cache in a registry that a machine writes to.
#[derive(Debug, Clone, Copy)]
pub struct RemoteTarget<'a> {
    /// The cache.
    pub cache: &'a RemoteCache,
    /// Name of the machine, which determines its shard.
    pub machine: &'a str,
}

/// Adds the steps of a build to a cache in a registry: uploads the layers that the repository
/// lacks, and the documents if they change. If another machine writes meanwhile, its steps stay.
/// Layers that neither the store nor the repository has are left out with their steps. Only the
/// shard of this machine is written, and steps that the other shards have are left to them.
///
/// # Errors
///
/// Fails if the registry fails or refuses.
#[tracing::instrument(
    target = "transport",
    name = "cache",
    level = "debug",
    skip_all,
    fields(name = %target.cache.name())
)]
pub fn write_remote_cache(
    store: &Store,
    client: &Client,
    target: RemoteTarget<'_>,
    ours: &OwnSteps<'_>,
) -> Result<WrittenCache> {
    let RemoteTarget { cache, machine } = target;
    let own_name = cache.name_of(machine);
    let others: Vec<Reference> = cache.names().into_iter().filter(|name| *name != own_name).collect();
    // One that cannot be read is as if it were empty: steps are written twice.
    let others = shards(store, client, &others)?.into_iter().filter_map(|shard| Some(shard.ok()??.steps));
    let others = union(others);
    let (steps, limits) = own_share(ours, &others, cache.shards());
    let written = write_shard(store, client, &own_name, &OwnSteps { steps: &steps, limits, ..*ours })?;
    Ok(WrittenCache { steps: written.steps + others.len(), ..written })
}

/// Adds steps to one tag.
fn write_shard(store: &Store, client: &Client, name: &Reference, ours: &OwnSteps<'_>) -> Result<WrittenCache> {
    let repository = client.repository(name)?;
    let upload = Upload { repository: &repository, elsewhere: HashMap::new(), remote: Default::default() };
    let (mut written, mut there) = (WrittenCache::default(), BTreeSet::new());
    let (mut uploaded, mut failed) = (BTreeSet::new(), BTreeSet::new());
    let mut known = known_steps(store, &repository, name)?;
    let mut is_distrusted = false;
    for _ in 0..=MERGES {
        let (before, theirs) = match &known {
            Some((digest, KnownSteps::Whole(steps))) => (Some(*digest), steps.clone()),
            Some((digest, KnownSteps::Damaged)) => {
                written.note = CacheNote::Replaced;
                (Some(*digest), CachedSteps::new())
            }
            Some((_, KnownSteps::OtherFormat)) => {
                written.note = CacheNote::OtherFormat;
                return Ok(written);
            }
            None => (None, CachedSteps::new()),
        };
        // Several steps may have the layer that is lost.
        let (lost, usable): (Vec<_>, Vec<_>) = theirs.values().partition(|step| ours.lost.contains(&step.key));
        let lost: BTreeSet<BlobDigest> = lost.into_iter().map(|step| step.layer.blob).collect();
        let recorded: BTreeSet<BlobDigest> =
            usable.into_iter().map(|step| step.layer.blob).filter(|blob| !lost.contains(blob)).collect();
        if is_distrusted {
            let list: Vec<BlobDigest> = recorded.difference(&there).copied().collect();
            let found =
                try_map(CONNECTIONS, &list, |blob| Ok::<_, TransportError>((*blob, repository.has_blob(blob)?)))?;
            there.extend(found.into_iter().filter(|(_, is_there)| *is_there).map(|(blob, _)| blob));
        } else {
            there.extend(recorded);
        }
        let mut all = merged(theirs, ours);
        let new: Vec<BlobInfo> = {
            let layers = all.values().map(|step| BlobInfo { digest: step.layer.blob, size: step.layer.size });
            let mut listed = BTreeSet::new();
            layers.filter(|part| !there.contains(&part.digest) && listed.insert(part.digest)).collect()
        };
        let outcomes = try_map(CONNECTIONS, &new, |part| {
            Ok::<_, TransportError>(match upload.copy(&store.blobs(), part, &Arc::default()) {
                Ok(origin) => Ok((*part, origin)),
                // The registry refuses everything, or the store lacks this layer.
                Err(TransportError::Registry(e)) => return Err(e.into()),
                Err(_) => Err(part.digest),
            })
        })?;
        for outcome in outcomes {
            match outcome {
                Ok((part, origin)) => {
                    there.insert(part.digest);
                    uploaded.insert(part.digest);
                    if origin == BlobOrigin::Source {
                        written.layers += 1;
                        written.bytes += part.size;
                    }
                }
                Err(lacking) => drop(failed.insert(lacking)),
            }
        }
        all.retain(|_, step| !failed.contains(&step.layer.blob));
        written.steps = all.len();
        let documents = CacheDocuments::of(&all)?;
        // A shard without steps is not begun.
        if before == Some(documents.manifest.digest()) || (before.is_none() && all.is_empty()) {
            written.is_unchanged = true;
            return Ok(written);
        }
        match put(&upload, &documents, name, before) {
            Ok(true) => {}
            Ok(false) => {
                known = known_steps(store, &repository, name)?;
                continue;
            }
            // Layers that the records name are gone, although no build has needed them.
            Err(TransportError::Registry(e)) if !is_distrusted && lacks_layers(&e) => {
                is_distrusted = true;
                there.clone_from(&uploaded);
                continue;
            }
            Err(e) => return Err(e),
        }
        // The next build reads them from the store.
        let work = Workspace::open(store)?;
        for bytes in documents.blobs.iter().chain([&documents.manifest.bytes]) {
            store.blobs().put_blob(&work, &bytes[..])?;
        }
        return Ok(written);
    }
    Err(TransportError::other(format!("other machines wrote to `{}` all the time", name.familiar())))
}

/// Returns true if a registry refuses a manifest because it lacks something that it names.
fn lacks_layers(e: &RegistryError) -> bool {
    matches!(&*e.problem, RegistryProblem::Status { status: 400, .. } | RegistryProblem::Missing { .. })
}

/// Returns the digest of the cache that is extended, and its steps.
fn known_steps(store: &Store, repository: &Repository, name: &Reference) -> Result<Option<(BlobDigest, KnownSteps)>> {
    let Some(digest) = resolved_for_push(repository, name)? else { return Ok(None) };
    let documents = RemoteDocuments { store, repository, work: &Workspace::open(store)? };
    let manifest = documents.manifest(&digest)?;
    let steps = match check_type(&manifest).and_then(|()| documents.prefetched(&manifest)) {
        Ok(blobs) => steps_to_extend(&manifest, &blobs)?,
        // The type is checked first: only a cache is replaced.
        Err(TransportError::Document { .. }) if check_type(&manifest).is_ok() => KnownSteps::Damaged,
        Err(e) => return Err(e),
    };
    Ok(Some((digest, steps)))
}

/// Uploads the documents of a cache, and then its tag if that has the digest `before`. Returns
/// false if another machine wrote the tag before or at the same time.
fn put(upload: &Upload<'_>, documents: &CacheDocuments, name: &Reference, before: Option<BlobDigest>) -> Result<bool> {
    let blobs: HashMap<BlobDigest, Vec<u8>> =
        documents.blobs.iter().map(|bytes| (BlobDigest::of(bytes), bytes.clone())).collect();
    let parts: Vec<BlobInfo> =
        blobs.iter().map(|(digest, bytes)| BlobInfo { digest: *digest, size: bytes.len() as u64 }).collect();
    let source = Prefetched(blobs);
    try_map(CONNECTIONS, &parts, |part| upload.copy(&source, part, &Arc::default()))?;
    let checked = Instant::now();
    if resolved_for_push(upload.repository, name)? != before {
        return Ok(false);
    }
    let manifest = &documents.manifest;
    upload.repository.push_document(tag_of(name), &manifest.media_type, &manifest.bytes)?;
    settle(checked.elapsed());
    Ok(resolved_for_push(upload.repository, name)? == Some(manifest.digest()))
}
