//! The images that the index of a layout leads to.

use std::collections::{HashMap, HashSet};

use rbuild_image::{Descriptor, Digest, ImageIndex, Platform, REF_NAME, Reference};

use super::manifest::{is_index, take, take_image};
use super::members::Members;
use super::{Image, parse};
use crate::error::Result;

const MAX_INDEX_DEPTH: usize = 4;

/// The images that an entry leads to, for this platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reached {
    None,
    One(Image),
    /// The last of them.
    Several(Image),
}

impl Reached {
    pub(super) fn last(self) -> Option<Image> {
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

/// Follows the entries of indexes, each digest once, however often it is named.
pub(super) struct Layout<'m, 'a> {
    members: &'m Members<'a>,
    /// What the digests lead to, as indexes or as manifests.
    seen: HashMap<(Digest, bool), Reached>,
    /// All images so far, in order, each once.
    pub images: Vec<Image>,
    manifests: HashSet<Digest>,
}

impl<'m, 'a> Layout<'m, 'a> {
    pub(super) fn new(members: &'m Members<'a>) -> Layout<'m, 'a> {
        Layout { members, seen: HashMap::new(), images: Vec::new(), manifests: HashSet::new() }
    }

    /// Takes in all that an entry leads to.
    pub(super) fn follow(&mut self, entry: &Descriptor, depth: usize) -> Result<Reached> {
        let digest = take(self.members, entry, "the manifest")?;
        let is_index = is_index(entry.media_type());
        if let Some(known) = self.seen.get(&(digest, is_index)) {
            return Ok(*known);
        }
        let text = self.members.staging.read_document(&digest)?;
        let reached = match is_index && depth < MAX_INDEX_DEPTH {
            true => self.follow_all(&parse(&text, "an index")?, depth)?,
            false => {
                let image = Image { manifest: digest, id: take_image(self.members, &text)? };
                if self.manifests.insert(digest) {
                    self.images.push(image);
                }
                Reached::One(image)
            }
        };
        self.seen.insert((digest, is_index), reached);
        Ok(reached)
    }

    fn follow_all(&mut self, index: &ImageIndex, depth: usize) -> Result<Reached> {
        let host = Platform::host();
        let fits = |d: &&Descriptor| match d.platform() {
            Some(p) => p.os().to_string() == host.os && p.architecture().to_string() == host.arch,
            None => true,
        };
        let inner = index.manifests().iter().filter(fits);
        inner.map(|entry| self.follow(entry, depth + 1)).try_fold(Reached::None, |all, next| Ok(all.and(next?)))
    }
}

/// The name that an entry gives to its image. A bare tag is none.
pub(super) fn name_of(entry: &Descriptor) -> Option<Reference> {
    let annotations = entry.annotations().as_ref()?;
    let name = annotations.get("io.containerd.image.name").or_else(|| annotations.get(REF_NAME))?;
    name.contains([':', '/']).then(|| name.parse().ok()).flatten()
}
