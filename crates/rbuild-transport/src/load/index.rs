//! Import of the images that the index of an OCI layout refers to.

use std::collections::{BTreeSet, HashMap, HashSet};

use rbuild_image::{BlobDigest, Descriptor, ImageIndex, ManifestDigest, Platform, REF_NAME, Reference, parse_index};

use crate::error::{Result, TransportError};
use crate::load::found::{CheckedImage, WantedPlatform, unreadable};
use crate::load::manifest::{import_blob, import_image};
use crate::load::members::IncomingParts;
use crate::media_types::is_index;

const MAX_INDEX_DEPTH: usize = 4;

/// The images for the wanted platform that an index entry refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reached {
    None,
    One(CheckedImage),
    /// More than one; holds the last of them.
    Several(CheckedImage),
}

impl Reached {
    pub(super) fn last(self) -> Option<CheckedImage> {
        match self {
            Reached::None => None,
            Reached::One(image) | Reached::Several(image) => Some(image),
        }
    }

    fn and(self, next: Reached) -> Reached {
        match (self, next) {
            (reached, Reached::None) | (Reached::None, reached) => reached,
            (Reached::One(a), Reached::One(b)) if a == b => next,
            (_, Reached::One(last) | Reached::Several(last)) => Reached::Several(last),
        }
    }
}

/// Resolves index entries recursively. Each digest is resolved once.
pub(super) struct IndexResolver<'m, 'a> {
    members: &'m IncomingParts<'a>,
    /// Results by digest. The flag is true if the digest was read as an index.
    seen: HashMap<(BlobDigest, bool), Reached>,
    /// All images found so far, in order, each once.
    pub images: Vec<CheckedImage>,
    manifests: HashSet<ManifestDigest>,
    wanted: &'m WantedPlatform,
    /// Platforms of the images that were skipped.
    pub others: BTreeSet<String>,
}

impl<'m, 'a> IndexResolver<'m, 'a> {
    pub(super) fn new(members: &'m IncomingParts<'a>, wanted: &'m WantedPlatform) -> IndexResolver<'m, 'a> {
        let (seen, images, manifests, others) = Default::default();
        IndexResolver { members, seen, images, manifests, wanted, others }
    }

    /// Imports everything that an entry of the layout's own index refers to. An image that the
    /// entry names directly is accepted for any platform, unless one was requested.
    pub(super) fn enter(&mut self, entry: &Descriptor) -> Result<Reached> {
        let foreign = Platform::of(entry).filter(|own| self.wanted.given() && !self.wanted.platform().accepts(own));
        match foreign.filter(|_| !is_index(entry.media_type())) {
            Some(platform) => {
                self.skip(&platform);
                Ok(Reached::None)
            }
            None => self.follow(entry, 0),
        }
    }

    /// Records the platform of an image that is skipped. Attestations have the platform `unknown`
    /// and do not count.
    fn skip(&mut self, platform: &Platform) {
        if platform.os != "unknown" {
            self.others.insert(platform.to_string());
        }
    }

    /// Imports everything that an entry refers to.
    fn follow(&mut self, entry: &Descriptor, depth: usize) -> Result<Reached> {
        let digest = import_blob(self.members, entry, "the manifest")?;
        let is_index = is_index(entry.media_type());
        if let Some(known) = self.seen.get(&(digest, is_index)) {
            return Ok(*known);
        }
        let text = self.members.staging.read_document(&digest)?;
        if is_index && depth >= MAX_INDEX_DEPTH {
            return Err(TransportError::other(format!(
                "index {digest} of the archive is nested more than {MAX_INDEX_DEPTH} levels deep"
            )));
        }
        let reached = match is_index {
            true => self.follow_all(&parse_index(&text).map_err(unreadable("an index"))?, depth)?,
            false => {
                let manifest = digest.of_manifest();
                let image = CheckedImage { manifest, id: import_image(self.members, &text)? };
                if self.manifests.insert(manifest) {
                    self.images.push(image);
                }
                Reached::One(image)
            }
        };
        self.seen.insert((digest, is_index), reached);
        Ok(reached)
    }

    fn follow_all(&mut self, index: &ImageIndex, depth: usize) -> Result<Reached> {
        let mut all = Reached::None;
        for entry in index.manifests() {
            match Platform::of(entry) {
                Some(platform) if !self.wanted.platform().accepts(&platform) => self.skip(&platform),
                _ => all = all.and(self.follow(entry, depth + 1)?),
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
