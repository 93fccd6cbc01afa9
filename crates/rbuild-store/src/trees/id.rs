//! Names of trees, and of the documents about them.

use rbuild_image::DiffId;
use rbuild_linux::OwnerMode;
use serde::{Deserialize, Serialize};

use crate::ids::ResultId;

/// The name of a tree in the store.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TreeId(String);

impl TreeId {
    /// Returns true if the name contains a full digest. Trees of earlier versions, with shorter
    /// names, are invalid: their owners and devices were recorded in attributes that anyone could
    /// set.
    pub(crate) fn is_current(&self) -> bool {
        self.0.len() == 65 || (self.0.len() == 66 && self.is_stored_as_changes())
    }

    /// Returns the name of the same tree if it is stored as changes. Programs without support for
    /// such trees treat the longer name as that of another version.
    pub(crate) fn stored_as_changes(&self) -> TreeId {
        TreeId(format!("{}{AS_CHANGES}", self.0))
    }

    pub(crate) fn is_stored_as_changes(&self) -> bool {
        self.0.ends_with(AS_CHANGES)
    }

    pub(crate) fn name(&self) -> &str {
        &self.0
    }

    /// Returns the tree of changes inside this one, if it is stored as changes.
    pub(crate) fn changes(&self) -> TreeId {
        TreeId(format!("{}/{CHANGES}", self.0))
    }

    /// Returns the tree in that directory of `trees`.
    pub(crate) fn of_dir(name: &str) -> TreeId {
        TreeId(name.to_string())
    }

    /// Returns the tree of a step with that result.
    pub(crate) fn of_step(result: &ResultId, owners: OwnerMode) -> TreeId {
        let kind = if owners == OwnerMode::Given { 's' } else { 'w' };
        TreeId(format!("{kind}{}", result.hex()))
    }

    /// Returns the tree of the layer with that diffID.
    pub fn of_layer(diff_id: &DiffId, owners: OwnerMode) -> TreeId {
        let kind = if owners == OwnerMode::Given { 'l' } else { 'r' };
        TreeId(format!("{kind}{}", diff_id.hex()))
    }

    /// Returns the tree of the layer with that diffID, for builders that use no device nodes, if
    /// another one with device nodes has the name of [`TreeId::of_layer`].
    pub(crate) fn without_devices(diff_id: &DiffId) -> TreeId {
        TreeId(format!("n{}", diff_id.hex()))
    }
}

/// Directory inside a tree that is stored as changes.
pub(crate) const CHANGES: &str = "changes";

/// Last character in the name of a tree that is stored as changes; not a hexadecimal digit.
const AS_CHANGES: char = '+';

/// Suffix before `.json` in the names of documents about trees with recorded owners.
const RECORDED: &str = "-recorded";

/// Returns the name of the document about the tree of a step or layer. `hex` is the key of the step
/// or the diffID of the layer.
pub(crate) fn document_of(hex: &str, owners: OwnerMode) -> String {
    format!("{hex}{}.json", if owners == OwnerMode::Given { "" } else { RECORDED })
}

/// Returns the digest in such a name, in hexadecimal.
pub(crate) fn digest_in(document: &str) -> &str {
    let name = document.strip_suffix(".json").unwrap_or(document);
    name.strip_suffix(RECORDED).unwrap_or(name)
}
