//! Caches in the cache service of GitHub Actions. Its entries never change, so that each write of a
//! manifest is an entry of its own, with the next number. GitHub limits the number of requests:
//! small layers are uploaded together, in packs.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt;
use std::io::{self, Read};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rbuild_image::{BlobDigest, Hasher};
use rbuild_linux::Timestamp;
use rbuild_linux::parallel::{locked, try_map};
use rbuild_registry::{ActionsCache, ActionsPlace, Client, EntryContent, NewestEntry};
use rbuild_store::{Store, Workspace};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::blobs::{BlobInfo, BlobOrigin, BlobRead, BlobSource};
use crate::cache::artifact::{CacheDocuments, MAX_EMBEDDED, check_type, damaged_document, read_steps};
use crate::cache::memory::Prefetched;
use crate::cache::place::{CacheStore, FoundManifest, LayerUpload, ManifestContent, Replacement};
use crate::cache::record_budget::RecordBudget;
use crate::cache::records::RemoteSteps;
use crate::cache::remote_documents::RemoteDocuments;
use crate::cache::shards::{tag_of_scope, union};
use crate::cache::signature::RecordKeys;
use crate::error::{Result, TransportError};
use crate::verifying::Verifying;

/// Maximum size of an index in bytes.
const MAX_INDEX: u64 = 16 << 20;
/// Size in bytes below which layers are packed.
const SMALL: u64 = 1 << 20;
/// Size in bytes at which a pack is complete.
const PACK: u64 = 32 << 20;
/// Number of uploads at once, as in BuildKit.
const AT_ONCE: usize = 4;
/// Time before the index is read again because another machine is writing it.
const CONFLICT: Duration = Duration::from_secs(1);

/// A cache in the cache service of GitHub Actions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GithubCache {
    /// The service.
    pub place: ActionsPlace,
    /// Number of the token among the logins of the client.
    pub login: Option<usize>,
    /// Name of the cache.
    pub scope: String,
    /// Maximum duration of reading the records, of downloading layers, and of writing.
    pub timeout: Duration,
}

impl fmt::Display for GithubCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gha:{}", self.scope)
    }
}

impl GithubCache {
    /// Opens the cache. Connects to nothing.
    pub(crate) fn open(&self, client: &Client) -> Result<OpenGithubCache> {
        let service = ActionsCache::open(client, &self.place, self.login)?.within(self.timeout);
        let mut scopes = service.scopes();
        // A token in another form may be one of another service.
        if scopes.is_empty() {
            scopes.push(String::new());
        }
        let (cache, deadline) = (self.clone(), Instant::now() + self.timeout);
        Ok(OpenGithubCache {
            service,
            cache,
            scopes,
            deadline,
            packs: Mutex::default(),
            knows_packs: Mutex::default(),
            conflict: Mutex::default(),
        })
    }

    /// Returns the beginning of the keys of indexes in a scope of the token.
    fn index(&self, scope: &str) -> String {
        let name = tag_of_scope("rbuild-index", &self.scope);
        format!("{name}-1-{}#", &BlobDigest::of(scope.as_bytes()).hex()[..8])
    }
}

/// The content of an index.
#[derive(Serialize, Deserialize)]
struct ActionsIndex {
    /// The layers in packs: for the key of each, the layers with their positions.
    #[serde(default)]
    packs: BTreeMap<String, Vec<LayerPosition>>,
    manifest: Box<RawValue>,
}

/// The newest index of a scope.
struct FoundIndex {
    number: u64,
    /// The manifest, or the damage of the index.
    manifest: Result<Vec<u8>>,
}

/// A layer in a pack, and its position in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct LayerPosition(BlobDigest, u64);

/// The packs that have layers, and the positions of these.
type Packs = BTreeMap<BlobDigest, (String, u64)>;

/// An open cache in the cache service of GitHub Actions.
pub(crate) struct OpenGithubCache {
    service: ActionsCache,
    cache: GithubCache,
    /// The scopes of the token, of which the first one is written.
    scopes: Vec<String>,
    deadline: Instant,
    /// The packs of the indexes that were read.
    packs: Mutex<Packs>,
    /// True once all indexes were read.
    knows_packs: Mutex<bool>,
    /// The number of the index that could not be followed by another one, and the times.
    conflict: Mutex<(u64, u64)>,
}

impl OpenGithubCache {
    /// Reads the records of all scopes, except for those that cannot be read. Returns `None` if
    /// there is no such cache.
    pub fn read(&self, store: &Store, keys: &RecordKeys, budget: &RecordBudget) -> Result<Option<RemoteSteps>> {
        let documents = RemoteDocuments { store, blobs: self, work: &Workspace::open(store)?, budget };
        let read = |index: Result<Option<FoundIndex>>| {
            let Some(FoundIndex { manifest, .. }) = index? else { return Ok(None) };
            let manifest = manifest?;
            read_steps(&manifest, &documents.prefetched(&manifest)?, keys, budget).map(Some)
        };
        let (mut found, mut all, mut failure) = (Vec::new(), RemoteSteps::default(), None);
        for (number, (scope, index)) in self.scopes.iter().zip(self.indexes()).enumerate() {
            match read(index) {
                Ok(Some(records)) => {
                    all.has_unsigned |= records.has_unsigned;
                    found.push(records.steps);
                }
                Ok(None) => {}
                Err(e) => {
                    // Only the first one can be written again.
                    all.has_damage |= number == 0 && e.is_damage();
                    let scope = if scope.is_empty() { String::new() } else { format!("{scope}: ") };
                    all.faults.push(scope + &e.message());
                    failure = failure.or(Some(e));
                }
            }
        }
        match failure {
            Some(e) if found.is_empty() => Err(e),
            _ if found.is_empty() => Ok(None),
            _ => Ok(Some(RemoteSteps { steps: union(found).into_values().collect(), ..all })),
        }
    }

    /// Reads the newest index of each scope, in their order.
    fn indexes(&self) -> Vec<Result<Option<FoundIndex>>> {
        let read = |scope: &String| Ok::<_, Infallible>(self.index(scope));
        try_map(self.scopes.len(), &self.scopes, read).unwrap_or_else(|never| match never {})
    }

    /// Reads the newest index of a scope, and notes its packs.
    fn index(&self, scope: &str) -> Result<Option<FoundIndex>> {
        let prefix = self.cache.index(scope);
        let Some(NewestEntry { key, content }) = self.service.newest(&prefix, MAX_INDEX)? else { return Ok(None) };
        let number = key.strip_prefix(&prefix).and_then(|number| number.parse().ok()).unwrap_or(0);
        let manifest = content.ok_or_else(|| damaged_document("it is missing"));
        Ok(Some(FoundIndex { number, manifest: manifest.and_then(|bytes| self.manifest_in(&bytes)) }))
    }

    /// Returns the manifest in an index, and notes the packs of the index.
    fn manifest_in(&self, index: &[u8]) -> Result<Vec<u8>> {
        let index: ActionsIndex =
            serde_json::from_slice(index).map_err(TransportError::document("the index of the cache"))?;
        let manifest = index.manifest.get().as_bytes().to_vec();
        check_type(&manifest).map_err(|e| TransportError::document("the index of the cache")(e.message()))?;
        let mut packs = locked(&self.packs);
        for (pack, layers) in index.packs {
            packs.extend(layers.into_iter().map(|LayerPosition(digest, at)| (digest, (pack.clone(), at))));
        }
        Ok(manifest)
    }

    /// Returns the key of the entry with a layer, and the position of the layer.
    fn location(&self, digest: &BlobDigest) -> Result<(String, u64)> {
        // Others wait until the indexes are read.
        let mut knows_packs = locked(&self.knows_packs);
        if !*knows_packs {
            // Layers of an index that cannot be read are missing.
            self.indexes();
            *knows_packs = true;
        }
        drop(knows_packs);
        let packed = locked(&self.packs).get(digest).cloned();
        Ok(packed.unwrap_or_else(|| (key_of(digest), 0)))
    }

    fn check_time(&self) -> Result<()> {
        if Instant::now() < self.deadline {
            return Ok(());
        }
        Err(TransportError::other(format!("it was not written within {} s", self.cache.timeout.as_secs())))
    }

    /// Uploads a layer. Returns its origin.
    fn put(&self, source: &dyn BlobSource, part: &BlobInfo) -> Result<BlobOrigin> {
        let open = |at| Ok(Box::new(opened(source, part, at)?) as Box<dyn Read + '_>);
        let content = EntryContent { size: part.size, open: &open };
        let is_new = self.service.create(&key_of(&part.digest), &content).map_err(TransportError::pushing)?;
        Ok(if is_new { BlobOrigin::Source } else { BlobOrigin::Sink })
    }

    /// Uploads layers as one entry.
    fn put_pack(&self, source: &dyn BlobSource, parts: &[BlobInfo], salt: &str) -> Result<()> {
        let mut names = salt.to_string();
        parts.iter().for_each(|part| names += &part.digest.to_string());
        let key = format!("rbuild-pack-1-{}", BlobDigest::of(names.as_bytes()).hex());
        let open = |at| Ok(Box::new(PackReader { source, parts, skipped: at, open: None }) as Box<dyn Read + '_>);
        let size = parts.iter().map(|part| part.size).sum();
        self.service.create(&key, &EntryContent { size, open: &open }).map_err(TransportError::pushing)?;
        let mut packs = locked(&self.packs);
        let mut at = 0;
        for part in parts {
            packs.insert(part.digest, (key.clone(), at));
            at += part.size;
        }
        Ok(())
    }
}

/// Returns the key of the entry with a blob.
fn key_of(digest: &BlobDigest) -> String {
    format!("rbuild-blob-1-{digest}")
}

fn opened<'a>(source: &'a dyn BlobSource, part: &BlobInfo, at: u64) -> io::Result<Verifying<'a>> {
    let mut blob = source.open(part).map_err(io::Error::other)?;
    blob.start_at(at)?;
    let hasher = (at == 0 && blob.verified().is_none()).then(Hasher::new);
    Ok(Verifying::new(blob, *part, hasher, at))
}

/// The bytes of several blobs, one after the other.
struct PackReader<'a> {
    source: &'a dyn BlobSource,
    /// The blobs that are not read yet; the first one may be open.
    parts: &'a [BlobInfo],
    /// Number of bytes to skip.
    skipped: u64,
    open: Option<Verifying<'a>>,
}

impl Read for PackReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let [part, rest @ ..] = self.parts {
            if self.skipped >= part.size && self.open.is_none() {
                (self.skipped, self.parts) = (self.skipped - part.size, rest);
                continue;
            }
            let blob = match &mut self.open {
                Some(blob) => blob,
                None => self.open.insert(opened(self.source, part, std::mem::take(&mut self.skipped))?),
            };
            match blob.read(buf)? {
                0 => (self.open, self.parts) = (None, rest),
                n => return Ok(n),
            }
        }
        Ok(0)
    }
}

impl BlobSource for OpenGithubCache {
    fn size(&self, _digest: &BlobDigest) -> Result<Option<u64>> {
        Ok(None)
    }

    fn document(&self, digest: &BlobDigest) -> Result<Vec<u8>> {
        let bytes = self.service.read(&key_of(digest), MAX_INDEX)?.ok_or_else(|| damaged_document("it is missing"))?;
        if BlobDigest::of(&bytes) == *digest { Ok(bytes) } else { Err(damaged_document("it has the wrong digest")) }
    }

    fn open(&self, part: &BlobInfo) -> Result<Box<dyn BlobRead + '_>> {
        let (key, at) = self.location(&part.digest)?;
        Ok(Box::new(self.service.blob(&key, at, &part.digest, part.size)))
    }

    fn resumes(&self) -> bool {
        true
    }
}

/// An upload of one entry.
enum EntryUpload {
    Layer(BlobInfo),
    Pack(Vec<BlobInfo>),
}

impl EntryUpload {
    fn parts(&self) -> &[BlobInfo] {
        match self {
            EntryUpload::Layer(part) => std::slice::from_ref(part),
            EntryUpload::Pack(parts) => parts,
        }
    }
}

/// Divides layers into entries. Damaged layers are packed, too, because entries cannot be replaced.
fn entries(parts: &[BlobInfo], damaged: &BTreeSet<BlobDigest>) -> Vec<EntryUpload> {
    let (mut uploads, mut pack, mut size) = (Vec::new(), Vec::new(), 0);
    for part in parts {
        if part.size >= SMALL && !damaged.contains(&part.digest) {
            uploads.push(EntryUpload::Layer(*part));
            continue;
        }
        pack.push(*part);
        size += part.size;
        if size >= PACK {
            uploads.push(EntryUpload::Pack(std::mem::take(&mut pack)));
            size = 0;
        }
    }
    uploads.extend((!pack.is_empty()).then_some(EntryUpload::Pack(pack)));
    uploads
}

impl CacheStore for OpenGithubCache {
    fn name(&self) -> String {
        self.cache.to_string()
    }

    fn current(&self) -> Result<Option<FoundManifest>> {
        let Some(scope) = self.scopes.first() else { return Ok(None) };
        // There is no tag of something else with the key of an index.
        Ok(self.index(scope)?.map(|FoundIndex { number, manifest }| FoundManifest {
            revision: number.to_string(),
            content: manifest.map_or(ManifestContent::Damaged, ManifestContent::Read),
        }))
    }

    fn blobs(&self) -> &dyn BlobSource {
        self
    }

    fn has_blob(&self, part: &BlobInfo) -> Result<bool> {
        Ok(self.service.has(&self.location(&part.digest)?.0)?)
    }

    fn upload(
        &self,
        source: &dyn BlobSource,
        parts: &[BlobInfo],
        damaged: &BTreeSet<BlobDigest>,
    ) -> Result<Vec<LayerUpload>> {
        let is_here = |part: &&BlobInfo| matches!(source.size(&part.digest), Ok(Some(size)) if size == part.size);
        let here: Vec<BlobInfo> = parts.iter().filter(is_here).copied().collect();
        let salt = if damaged.is_empty() { String::new() } else { Timestamp::now().sec.to_string() };
        let uploads = entries(&here, damaged);
        let origins = try_map(AT_ONCE, &uploads, |upload| {
            self.check_time()?;
            let origin = match upload {
                EntryUpload::Layer(part) => self.put(source, part),
                EntryUpload::Pack(parts) => self.put_pack(source, parts, &salt).map(|()| BlobOrigin::Source),
            };
            match origin {
                Ok(origin) => Ok(Some(origin)),
                // The service refuses everything, or the store lacks this layer.
                Err(TransportError::Registry(e)) => Err(TransportError::Registry(e)),
                Err(_) => Ok(None),
            }
        })?;
        let mut done: BTreeMap<BlobDigest, BlobOrigin> = BTreeMap::new();
        for (upload, origin) in uploads.iter().zip(origins) {
            done.extend(upload.parts().iter().filter_map(|part| Some((part.digest, origin?))));
        }
        let outcome = |part: &BlobInfo| done.get(&part.digest).map_or(LayerUpload::Lacking, |o| LayerUpload::There(*o));
        Ok(parts.iter().map(outcome).collect())
    }

    fn replace(&self, documents: &CacheDocuments, before: Option<&FoundManifest>) -> Result<Replacement> {
        self.check_time()?;
        let large: Vec<Vec<u8>> = documents.blobs.iter().filter(|bytes| bytes.len() > MAX_EMBEDDED).cloned().collect();
        let source = Prefetched::of(&large);
        try_map(AT_ONCE, &source.parts(), |part| self.put(&source, part))?;
        let failed = || TransportError::document("the index of the cache");
        let manifest: Box<RawValue> = serde_json::from_slice(&documents.manifest.bytes).map_err(failed())?;
        let mut packs: BTreeMap<String, Vec<LayerPosition>> = BTreeMap::new();
        for (digest, (pack, at)) in locked(&self.packs).clone() {
            if manifest.get().contains(&digest.to_string()) {
                packs.entry(pack).or_default().push(LayerPosition(digest, at));
            }
        }
        let bytes = serde_json::to_vec(&ActionsIndex { packs, manifest }).map_err(failed())?;
        let known = before.and_then(|found| found.revision.parse::<u64>().ok()).unwrap_or(0);
        let skipped =
            Some(*locked(&self.conflict)).filter(|(number, _)| *number == known).map_or(0, |(_, times)| times);
        let scope = self.scopes.first().map_or("", String::as_str);
        let key = format!("{}{}", self.cache.index(scope), known.saturating_add(1 + skipped));
        let open = |at: u64| {
            let rest = bytes.get(usize::try_from(at).unwrap_or(usize::MAX)..).unwrap_or_default();
            Ok(Box::new(rest) as Box<dyn Read + '_>)
        };
        if self.service.create(&key, &EntryContent { size: bytes.len() as u64, open: &open })? {
            return Ok(Replacement::Done);
        }
        // A machine that was interrupted may never finish the next number.
        *locked(&self.conflict) = (known, skipped + 1);
        std::thread::sleep(CONFLICT.min(self.deadline.saturating_duration_since(Instant::now())));
        Ok(Replacement::Conflict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::artifact::tests::Memory;

    #[test]
    fn small_and_damaged_layers_are_packed() {
        let part = |name: &[u8], size| BlobInfo { digest: BlobDigest::of(name), size };
        let parts = [part(b"a", 10), part(b"b", SMALL), part(b"c", SMALL - 1), part(b"d", PACK), part(b"e", 5)];
        let sizes = |damaged: &[&[u8]]| -> Vec<Vec<u64>> {
            let damaged = damaged.iter().map(|name| BlobDigest::of(name)).collect();
            entries(&parts, &damaged).iter().map(|e| e.parts().iter().map(|part| part.size).collect()).collect()
        };
        assert_eq!(sizes(&[]), [vec![SMALL], vec![PACK], vec![10, SMALL - 1, 5]]);
        assert_eq!(sizes(&[b"d"]), [vec![SMALL], vec![10, SMALL - 1, PACK], vec![5]]);
    }

    #[test]
    fn a_pack_is_read_from_any_position() {
        let texts: [&[u8]; 4] = [b"one", b"", b"three", b"four"];
        let parts = texts.map(|text| BlobInfo { digest: BlobDigest::of(text), size: text.len() as u64 });
        let source = Prefetched::of(&texts.map(<[u8]>::to_vec));
        let whole = texts.concat();
        for at in 0..=whole.len() {
            let mut read = Vec::new();
            let mut reader = PackReader { source: &source, parts: &parts, skipped: at as u64, open: None };
            reader.read_to_end(&mut read).unwrap();
            assert_eq!(read, whole[at..], "{at}");
        }
        let missing = Memory(Default::default());
        assert_eq!(missing.size(&parts[0].digest).unwrap(), None);
    }

    #[test]
    fn indexes_have_the_names_of_their_scopes() {
        let cache = |scope: &str| GithubCache {
            place: ActionsPlace { url: "https://a.io".into(), version: "1".into() },
            login: None,
            scope: scope.into(),
            timeout: Duration::ZERO,
        };
        let main = cache("main").index("refs/heads/main");
        assert!(main.starts_with("rbuild-index-main-1-") && main.ends_with('#'), "{main}");
        let names = [main, cache("main").index("refs/heads/x"), cache("a/b").index(""), cache("a-b").index("")];
        let distinct: BTreeSet<&String> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
    }
}
