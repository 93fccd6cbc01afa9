//! Import of the images that the index of an OCI layout refers to.

use std::collections::{HashMap, HashSet};

use rbuild_image::{
    BlobDigest, Descriptor, ImageIndex, ManifestDigest, Platform, REF_NAME, Reference, leads_to_images, parse_index,
};

use crate::archive_error::SkippedPlatforms;
use crate::error::{Result, TransportError};
use crate::load::found::{CheckedImage, WantedPlatform, unreadable};
use crate::load::manifest::{digest_in, import_blob, import_image};
use crate::load::members::IncomingParts;
use crate::load::whole_index::WholeIndex;
use crate::media_types::is_index;

const MAX_INDEX_DEPTH: usize = 4;
/// Maximum number of entries of an index of indexes that is kept as a whole, counted as often as
/// they occur.
const MAX_ENTRIES: usize = 1000;

/// The images for the wanted platform that an index entry refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IndexMatch {
    None,
    One(CheckedImage),
    /// More than one; holds the last of them.
    Several(CheckedImage),
}

impl IndexMatch {
    pub(super) fn last(self) -> Option<CheckedImage> {
        match self {
            IndexMatch::None => None,
            IndexMatch::One(image) | IndexMatch::Several(image) => Some(image),
        }
    }

    fn and(self, next: IndexMatch) -> IndexMatch {
        match (self, next) {
            (reached, IndexMatch::None) | (IndexMatch::None, reached) => reached,
            (IndexMatch::One(a), IndexMatch::One(b)) if a == b => next,
            (_, IndexMatch::One(last) | IndexMatch::Several(last)) => IndexMatch::Several(last),
        }
    }
}

/// The result of an index entry.
#[derive(Debug, Clone)]
pub(super) struct ResolvedEntry {
    pub reached: IndexMatch,
    pub skipped: SkippedPlatforms,
}

/// Resolves index entries recursively. Each digest is resolved once.
pub(super) struct IndexResolver<'m, 'a> {
    members: &'m IncomingParts<'a>,
    /// Results by digest. The flag is true if the digest was read as an index.
    seen: HashMap<(BlobDigest, bool), ResolvedEntry>,
    /// Numbers of entries of indexes, as [`IndexResolver::count_entries`] returns them.
    counts: HashMap<BlobDigest, usize>,
    /// All images found so far, in order, each once.
    pub images: Vec<CheckedImage>,
    manifests: HashSet<ManifestDigest>,
    wanted: &'m WantedPlatform,
}

impl<'m, 'a> IndexResolver<'m, 'a> {
    pub(super) fn new(members: &'m IncomingParts<'a>, wanted: &'m WantedPlatform) -> IndexResolver<'m, 'a> {
        let (seen, counts, images, manifests) = Default::default();
        IndexResolver { members, seen, counts, images, manifests, wanted }
    }

    /// Imports the images that an entry of the layout's own index refers to. An image that the
    /// entry names directly is accepted for any platform, unless one was requested.
    pub(super) fn enter(&mut self, entry: &Descriptor) -> Result<ResolvedEntry> {
        if !leads_to_images(entry) {
            return Ok(ResolvedEntry { reached: IndexMatch::None, skipped: SkippedPlatforms::default() });
        }
        let foreign = Platform::of(entry).filter(|own| self.wanted.given() && !self.wanted.platform().accepts(own));
        match foreign.filter(|_| !is_index(entry.media_type())) {
            Some(platform) => {
                let mut skipped = SkippedPlatforms::default();
                self.skip(entry, &platform, &mut skipped)?;
                Ok(ResolvedEntry { reached: IndexMatch::None, skipped })
            }
            None => self.follow(entry, 0),
        }
    }

    /// Records the platform of an image that is skipped.
    fn skip(&self, entry: &Descriptor, platform: &Platform, skipped: &mut SkippedPlatforms) -> Result<()> {
        if platform.os == "unknown" {
            return Ok(());
        }
        let set = if self.members.is_complete(entry)? { &mut skipped.others } else { &mut skipped.absent };
        set.insert(platform.to_string());
        Ok(())
    }

    /// Imports all images of an index that the layout's own index lists. If it contains indexes and
    /// too many entries, imports only the images for the wanted platform.
    pub(super) fn enter_whole(&mut self, entry: &Descriptor) -> Result<ResolvedEntry> {
        let digest = digest_in(entry)?;
        if let Some(known) = self.seen.get(&(digest, true)) {
            return Ok(known.clone());
        }
        import_blob(self.members, entry, "the manifest")?;
        let index = parse_index(&self.members.staging.read_document(&digest)?).map_err(unreadable("index"))?;
        let has_indexes = index.manifests().iter().any(|entry| is_index(entry.media_type()));
        if has_indexes && self.count_entries(entry, 0)? > MAX_ENTRIES {
            return self.follow(entry, 0);
        }
        let whole = WholeIndex::import(self.members, self.wanted, &index)?;
        let reached = match whole.content(&digest)? {
            Some(image) => {
                if self.manifests.insert(image.manifest) {
                    self.images.push(image);
                }
                IndexMatch::One(image)
            }
            None => IndexMatch::None,
        };
        let resolution = ResolvedEntry { reached, skipped: whole.skipped };
        self.seen.insert((digest, true), resolution.clone());
        Ok(resolution)
    }

    /// Returns the number of the entries of an index and of the indexes in it, as often as they
    /// occur. One that is nested too deep has more entries than any other.
    fn count_entries(&mut self, entry: &Descriptor, depth: usize) -> Result<usize> {
        let digest = digest_in(entry)?;
        if let Some(known) = self.counts.get(&digest) {
            return Ok(*known);
        }
        let mut count = 0usize;
        if depth >= MAX_INDEX_DEPTH {
            count = usize::MAX;
        } else if self.members.has(&digest)? {
            import_blob(self.members, entry, "the manifest")?;
            let index = parse_index(&self.members.staging.read_document(&digest)?).map_err(unreadable("index"))?;
            for entry in index.manifests() {
                let below = if is_index(entry.media_type()) { self.count_entries(entry, depth + 1)? } else { 0 };
                count = count.saturating_add(below).saturating_add(1);
            }
        }
        self.counts.insert(digest, count);
        Ok(count)
    }

    /// Imports everything that an entry refers to.
    fn follow(&mut self, entry: &Descriptor, depth: usize) -> Result<ResolvedEntry> {
        let digest = import_blob(self.members, entry, "the manifest")?;
        let is_index = is_index(entry.media_type());
        if let Some(known) = self.seen.get(&(digest, is_index)) {
            return Ok(known.clone());
        }
        let text = self.members.staging.read_document(&digest)?;
        if is_index && depth >= MAX_INDEX_DEPTH {
            return Err(TransportError::other(format!(
                "the image's index {digest} is nested more than {MAX_INDEX_DEPTH} levels deep"
            )));
        }
        let resolution = if is_index {
            self.follow_all(&parse_index(&text).map_err(unreadable("index"))?, depth)?
        } else {
            let manifest = digest.of_manifest();
            let image = CheckedImage { manifest, id: import_image(self.members, &text)?.blob() };
            if self.manifests.insert(manifest) {
                self.images.push(image);
            }
            ResolvedEntry { reached: IndexMatch::One(image), skipped: SkippedPlatforms::default() }
        };
        self.seen.insert((digest, is_index), resolution.clone());
        Ok(resolution)
    }

    fn follow_all(&mut self, index: &ImageIndex, depth: usize) -> Result<ResolvedEntry> {
        let mut all = ResolvedEntry { reached: IndexMatch::None, skipped: SkippedPlatforms::default() };
        for entry in index.manifests().iter().filter(|entry| leads_to_images(entry)) {
            match Platform::of(entry) {
                Some(platform) if !self.wanted.platform().accepts(&platform) => {
                    self.skip(entry, &platform, &mut all.skipped)?;
                }
                _ => {
                    let next = self.follow(entry, depth + 1)?;
                    all.reached = all.reached.and(next.reached);
                    all.skipped.add(next.skipped);
                }
            }
        }
        Ok(all)
    }
}

/// Returns the image name in an entry; `None` for a bare tag.
pub(super) fn name_of(entry: &Descriptor) -> Option<Reference> {
    let annotations = entry.annotations().as_ref()?;
    let name = annotations.get("io.containerd.image.name").or_else(|| annotations.get(REF_NAME))?;
    name.contains([':', '/']).then(|| name.parse().ok()).flatten()
}
