//! `pull`: an image from a registry into the store.

use rbuild_image::{
    BlobDigest, Descriptor, ImageConfig, ImageId, ImageManifest, ManifestDigest, Platform, Reference, digest_of,
    parse_index, parse_manifest,
};
use rbuild_layer::Counting;
use rbuild_registry::{Choice, Client, Document, Problem, RegistryError, Repository, Resolved, choose};
use rbuild_remedy::Remedy;
use rbuild_store::{LockId, Pulled, Staging, Store, Workspace};

use crate::error::{BuildError, Result};
use crate::transport::blobs::{TransferProgress, each_blob, total_size};
use crate::transport::load::is_layer;

/// Maximum size of a configuration in bytes, as for other sources of images.
const MAX_CONFIG: u64 = 16 << 20;
/// Maximum depth of indexes in indexes.
const MAX_DEPTH: usize = 3;

/// An image that was pulled, or was there.
#[derive(Debug, Clone)]
pub struct PulledImage {
    pub id: ImageId,
    /// Digest of the manifest.
    pub manifest: ManifestDigest,
    /// Digest that the name stands for in the registry: that of the manifest or an index.
    pub resolved: ManifestDigest,
    /// True if anything was downloaded.
    pub is_new: bool,
    /// Warnings, one sentence each.
    pub warnings: Vec<String>,
}

/// Pulls an image for a platform and names it. If its registry says that the store has it, nothing
/// is downloaded. Two processes that pull the same image download it once.
#[tracing::instrument(target = "engine", name = "pull", level = "debug", skip_all, fields(%name))]
pub fn pull(
    store: &Store,
    client: &Client,
    name: &Reference,
    platform: &Platform,
    progress: &TransferProgress<'_>,
) -> Result<PulledImage> {
    let repository = client.repository(name)?;
    let (resolved, document) = match (name.digest(), name.tag()) {
        (Some(digest), _) => (digest.blob(), None),
        (None, tag) => match repository.resolve(tag.unwrap_or("latest"))? {
            Resolved::Digest(digest) => (digest, None),
            Resolved::Document(document) => (document.digest, Some(document)),
        },
    };
    let resolved = resolved.of_manifest();
    let _lock = store.records().lock(&LockId::of(format!("pull {name} {platform}").as_bytes()))?;
    if let Some((known, image)) = store.images().pulled_image(name, platform)?
        && known.resolved == resolved
    {
        keep_name(store, name, &known.manifest)?;
        let (id, manifest) = (image.id, known.manifest);
        return Ok(PulledImage { id, manifest, resolved, is_new: false, warnings: Vec::new() });
    }
    let document = match document {
        Some(document) => document,
        None => repository.document(&resolved.blob())?,
    };
    let mut warnings = Vec::new();
    let document = manifest_for(&repository, document, platform, 0)?;
    let pulled =
        Transfer { repository: &repository, store, progress }.image(&document, name, platform, &mut warnings)?;
    store.images().note_pulled(name, platform, &Pulled { resolved, manifest: document.digest.of_manifest() })?;
    let manifest = document.digest.of_manifest();
    Ok(PulledImage { id: pulled, manifest, resolved, is_new: true, warnings })
}

/// Gives an image that is there its name, unless it has it.
fn keep_name(store: &Store, name: &Reference, manifest: &ManifestDigest) -> Result<()> {
    let Some(tag) = tag_of(name) else { return Ok(()) };
    let has =
        store.images().list()?.iter().any(|entry| entry.manifest == *manifest && entry.name.as_ref() == Some(&tag));
    if has { Ok(()) } else { Ok(store.images().tag(manifest, Some(&tag))?) }
}

/// Returns the name that a pulled image gets: none if it was asked for by digest.
fn tag_of(name: &Reference) -> Option<Reference> {
    name.digest().is_none().then(|| name.clone())
}

/// Returns the image manifest for a platform: the document itself, or the one that an index leads
/// to.
fn manifest_for(repository: &Repository, document: Document, platform: &Platform, depth: usize) -> Result<Document> {
    if !document.is_index() {
        return Ok(document);
    }
    let place = repository.place();
    let unreadable = |reason: String| BuildError::other(format!("{place}: the index {}: {reason}", document.digest));
    if depth == MAX_DEPTH {
        return Err(unreadable(format!("there are more than {MAX_DEPTH} indexes in each other")));
    }
    let index = parse_index(&document.bytes).map_err(|e| unreadable(e.to_string()))?;
    match choose(&index, platform) {
        Choice::Entry(entry) => {
            let digest = digest_of(&entry).map_err(|e| unreadable(e.to_string()))?;
            manifest_for(repository, repository.document(&digest)?, platform, depth + 1)
        }
        Choice::Others(others) => Err(BuildError::Other {
            message: format!("{place} has no image for {platform}, only for {}", others.join(", ")),
            help: others.first().map(|platform| Remedy::SelectPlatform { platform: platform.clone() }),
        }),
    }
}

/// The download of one image.
struct Transfer<'a> {
    repository: &'a Repository,
    store: &'a Store,
    progress: &'a TransferProgress<'a>,
}

impl Transfer<'_> {
    /// Downloads an image and names it. Returns its id.
    fn image(
        &self,
        document: &Document,
        name: &Reference,
        platform: &Platform,
        warnings: &mut Vec<String>,
    ) -> Result<ImageId> {
        let manifest = parse_manifest(&document.bytes).map_err(|e| self.odd(format!("the manifest: {e}")))?;
        self.check_types(&manifest)?;
        let work = Workspace::open(self.store)?;
        let staging = Staging::open(self.store, &work)?;
        staging.put_bytes(&document.bytes)?;
        let config = manifest.config();
        let id = digest_of(config).map_err(|e| self.odd(e.to_string()))?;
        if config.size() > MAX_CONFIG {
            return Err(
                self.odd(format!("its configuration has {} bytes, and {MAX_CONFIG} at most are read", config.size()))
            );
        }
        self.blob(&staging, &id, config.size())?;
        let text = staging.read_document(&id)?;
        let config: ImageConfig =
            serde_json::from_slice(&text).map_err(|e| self.odd(format!("the configuration {id}: {e}")))?;
        let (layers, diff_ids) = (manifest.layers().len(), config.rootfs.diff_ids.len());
        if layers != diff_ids {
            return Err(self.odd(format!("its manifest has {layers} layers and its configuration {diff_ids}")));
        }
        let own = config.platform();
        if !platform.takes(&own) {
            warnings.push(format!("{} is an image for {own}, and {platform} was asked for", name.familiar()));
        }
        self.layers(&staging, manifest.layers())?;
        let manifest = document.digest.of_manifest();
        staging.keep("pull", &[manifest], &[(manifest, tag_of(name))])?;
        Ok(id.of_config())
    }

    fn odd(&self, reason: String) -> BuildError {
        BuildError::other(format!("{}: {reason}", self.repository.place()))
    }

    /// Fails unless the manifest is that of an image whose layers are archives.
    fn check_types(&self, manifest: &ImageManifest) -> Result<()> {
        let config = manifest.config().media_type().to_string();
        let is_image = ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"]
            .contains(&&*config);
        let kind = manifest.artifact_type().as_ref().map(ToString::to_string).or((!is_image).then_some(config));
        if let Some(kind) = kind {
            return Err(self.odd(format!("it is an artifact of the type {kind}, and no image")));
        }
        match manifest.layers().iter().find(|layer| !is_layer(layer.media_type())) {
            Some(odd) => {
                Err(self.odd(format!("the layer {} is of the unknown type {}", odd.digest(), odd.media_type())))
            }
            None => Ok(()),
        }
    }

    /// Downloads the layers that the store lacks, several at once and the largest first.
    fn layers(&self, staging: &Staging<'_>, layers: &[Descriptor]) -> Result<()> {
        let mut missing: Vec<(BlobDigest, u64)> = Vec::new();
        for layer in layers {
            let digest = digest_of(layer).map_err(|e| self.odd(e.to_string()))?;
            let here = self.store.blobs().has_whole_blob(&digest, layer.size())?;
            if !here && !missing.iter().any(|(known, _)| *known == digest) {
                missing.push((digest, layer.size()));
            }
        }
        missing.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
        (self.progress.total)(total_size(&missing));
        each_blob(&missing, self.progress, |digest, size| self.blob(staging, digest, size))
    }

    /// Downloads a blob, once more if its digest is wrong.
    fn blob(&self, staging: &Staging<'_>, digest: &BlobDigest, size: u64) -> Result<()> {
        if staging.size(digest)? == Some(size) && self.store.blobs().has_whole_blob(digest, size)? {
            return Ok(());
        }
        let mut wrong: Option<RegistryError> = None;
        for _ in 0..2 {
            let mut reader = self.repository.blob(digest, size);
            let put = staging.put_blob(Counting::new(&mut reader, self.progress.moved.clone()));
            match (put, reader.take_error()) {
                (_, Some(e)) => return Err(e.into()),
                (Err(e), None) => return Err(e.into()),
                (Ok((found, _)), None) if found == *digest => return Ok(()),
                (Ok((found, _)), None) => wrong = Some(reader.wrong_digest(found)),
            }
        }
        let nothing = || {
            let problem = Problem::Unsupported(format!("blob {digest} cannot be read"));
            RegistryError::new(self.repository.place().clone(), problem)
        };
        Err(wrong.unwrap_or_else(nothing).into())
    }
}
