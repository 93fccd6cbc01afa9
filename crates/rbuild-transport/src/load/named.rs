//! Tracking of the members that an archive's documents refer to, while the archive is being read.

use std::collections::HashSet;

use rbuild_image::{Descriptor, digest_of, parse_index, parse_manifest};
use serde::Deserialize;

use crate::error::Result;
use crate::layout::blob_path;
use crate::member_name::clean;

/// Maximum size in bytes of a document that is parsed here; longer ones are read after the whole
/// archive has been imported.
const LONGEST: u64 = 1 << 20;

/// An image in Docker's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DockerItem {
    pub(super) config: String,
    #[serde(default)]
    pub(super) repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub(super) layers: Option<Vec<String>>,
}

/// Members that are kept without being referred to.
const FIXED: [&str; 3] = ["manifest.json", "index.json", "oci-layout"];

/// The members that an archive's documents refer to. It saves importing other members if the
/// documents precede them. Invalid documents are ignored here and reported when the images are
/// resolved.
#[derive(Default)]
pub(super) struct ReferencedMembers {
    names: HashSet<String>,
    /// Referenced members that have not been read yet.
    missing: HashSet<String>,
    /// Members that are manifests or indexes.
    documents: HashSet<String>,
    docker: bool,
    index: bool,
    /// True if a document was too long to be parsed here.
    unknown: bool,
}

impl ReferencedMembers {
    /// Returns true if a document refers to this member, which has not been read yet.
    pub(super) fn refers_to(&self, name: &str) -> bool {
        self.missing.contains(name)
    }

    /// Returns false if the member is not needed: both documents and all members that they refer to
    /// have been read, and it is not one of them.
    pub(super) fn may_need(&self, name: &str) -> bool {
        let is_complete = self.docker && self.index && !self.unknown && self.missing.is_empty();
        !is_complete || FIXED.contains(&name) || self.names.contains(name)
    }

    /// Records a member and, if it is a document, the members that it refers to.
    pub(super) fn record(&mut self, name: &str, size: u64, read: impl FnOnce() -> Result<Vec<u8>>) -> Result<()> {
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
            self.documents.insert(blob_path(&digest));
            self.part(entry);
        }
    }

    fn part(&mut self, part: &Descriptor) {
        if let Ok(digest) = digest_of(part) {
            self.name(blob_path(&digest));
        }
    }

    fn name(&mut self, name: String) {
        if self.names.insert(name.clone()) {
            self.missing.insert(name);
        }
    }
}
