//! What the documents of an archive name, as far as they have come.

use std::collections::HashSet;

use rbuild_image::{Descriptor, Digest, digest_of, parse_index, parse_manifest};
use serde::Deserialize;

use crate::error::Result;

/// Longer documents are read when all of the archive is there.
const LONGEST: u64 = 1 << 20;

/// An image of docker's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DockerItem {
    pub(super) config: String,
    #[serde(default)]
    pub(super) repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub(super) layers: Option<Vec<String>>,
}

/// Names that no document has to name.
const FIXED: [&str; 3] = ["manifest.json", "index.json", "oci-layout"];

/// The members that an archive's documents name, for an archive whose documents come before what they name. Nothing is refused here:
/// that is for whoever follows the documents.
#[derive(Default)]
pub(super) struct Named {
    names: HashSet<String>,
    /// Those that were not met since they were named.
    missing: HashSet<String>,
    /// Those that are manifests or indexes.
    documents: HashSet<String>,
    docker: bool,
    index: bool,
    /// A document was too long to be read here.
    unknown: bool,
}

impl Named {
    /// Whether a document has named this member, which was not met since.
    pub(super) fn asks_for(&self, name: &str) -> bool {
        self.missing.contains(name)
    }

    /// Whether a member may be of use. It is not if both documents were met and all that they lead to after them.
    pub(super) fn may_need(&self, name: &str) -> bool {
        let is_complete = self.docker && self.index && !self.unknown && self.missing.is_empty();
        !is_complete || FIXED.contains(&name) || self.names.contains(name)
    }

    /// Takes note of a member and, if it is a document, of what it names.
    pub(super) fn met(&mut self, name: &str, size: u64, read: impl FnOnce() -> Result<Vec<u8>>) -> Result<()> {
        self.missing.remove(name);
        let is_document = matches!(name, "manifest.json" | "index.json") || self.documents.contains(name);
        if !is_document {
            return Ok(());
        }
        self.docker |= name == "manifest.json";
        self.index |= name == "index.json";
        if size > LONGEST {
            self.unknown = true;
            return Ok(());
        }
        let text = read()?;
        if name == "manifest.json" {
            let items: Option<Vec<DockerItem>> = serde_json::from_slice(&text).unwrap_or_default();
            for item in items.unwrap_or_default() {
                self.name(clean(&item.config));
                item.layers.unwrap_or_default().iter().for_each(|layer| self.name(clean(layer)));
            }
        } else if let Ok(index) = parse_index(&text) {
            index.manifests().iter().for_each(|entry| self.document(entry));
        }
        if let Ok(manifest) = parse_manifest(&text) {
            manifest.layers().iter().chain([manifest.config()]).for_each(|part| self.part(part));
        }
        Ok(())
    }

    fn document(&mut self, entry: &Descriptor) {
        if let Ok(digest) = digest_of(entry) {
            self.documents.insert(blob_name(&digest));
            self.part(entry);
        }
    }

    fn part(&mut self, part: &Descriptor) {
        if let Ok(digest) = digest_of(part) {
            self.name(blob_name(&digest));
        }
    }

    fn name(&mut self, name: String) {
        if self.names.insert(name.clone()) {
            self.missing.insert(name);
        }
    }
}

pub(crate) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
