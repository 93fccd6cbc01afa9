//! What compressed layers hold. A blob's name says which bytes it is, an image's configuration which layer it should be; that
//! the two are the same shows when it is decompressed. This is done once for each pair, and noted.

use rbuild_image::Digest;
use rbuild_layer::{Compression, detect, layer_digests};
use rbuild_linux::Error;

use crate::error::{Result, StoreError};
use crate::layout::Store;
use crate::side_by_side::side_by_side;

/// Ends the names of such notes. The names say all: the notes are empty, and true for ever.
const HOLDS: &str = ".holds";

/// The blob that a note in `layers` is about.
pub(crate) fn noted_blob(name: &str) -> Option<&str> {
    Some(name.strip_suffix(HOLDS)?.split_once('-')?.1)
}

impl Store {
    /// Makes sure that each blob (first) is the layer with that diffID (second) when it is decompressed. Nothing is
    /// decompressed that was found right before.
    pub fn check_layers(&self, layers: &[(Digest, Digest)]) -> Result<()> {
        side_by_side(layers, |(blob, diff_id)| self.check_layer(blob, diff_id)).map(drop)
    }

    pub(crate) fn check_layer(&self, blob: &Digest, diff_id: &Digest) -> Result<()> {
        if self.root.exists(note_path(blob, diff_id))? || self.is_plain_layer(blob, diff_id)? {
            return Ok(());
        }
        self.read_layer(blob, diff_id)?;
        self.note_layer(blob, diff_id)
    }

    /// Reads a layer to its end, whatever is known of it.
    pub(crate) fn read_layer(&self, blob: &Digest, diff_id: &Digest) -> Result<()> {
        let (stored, found) = layer_digests(self.open_blob(blob)?, self.limits())?;
        compare(blob, stored)?;
        compare_content(blob, diff_id, found)
    }

    /// Notes that the blob was decompressed, or was made by compressing, and that the layer with that diffID is what it holds.
    pub fn note_layer(&self, blob: &Digest, diff_id: &Digest) -> Result<()> {
        // What is not compressed has one digest for both.
        if blob == diff_id || self.root.exists(note_path(blob, diff_id))? {
            return Ok(());
        }
        self.write("layers", &note_name(blob, diff_id), &())
    }

    /// Whether the blob is the layer itself. A compressed blob may have been named as its own content.
    fn is_plain_layer(&self, blob: &Digest, diff_id: &Digest) -> Result<bool> {
        use std::os::unix::fs::FileExt;
        if blob != diff_id {
            return Ok(false);
        }
        let mut head = [0u8; 8];
        let n = self.open_blob(blob)?.read_at(&mut head, 0).map_err(|e| Error::new("pread", blob.to_string(), e))?;
        Ok(detect(&head[..n]) == Compression::None)
    }
}

/// Compares the digest that a blob has with its name.
pub(crate) fn compare(blob: &Digest, found: Digest) -> Result<()> {
    match found == *blob {
        true => Ok(()),
        false => Err(StoreError::WrongLayer { which: "digest", blob: *blob, expected: *blob, found }),
    }
}

/// Compares the diffID of what a blob holds with that of the layer that it should be.
pub(crate) fn compare_content(blob: &Digest, diff_id: &Digest, found: Digest) -> Result<()> {
    match found == *diff_id {
        true => Ok(()),
        false => Err(StoreError::WrongLayer { which: "diffID", blob: *blob, expected: *diff_id, found }),
    }
}

fn note_name(blob: &Digest, diff_id: &Digest) -> String {
    format!("{}-{}{HOLDS}", diff_id.hex(), blob.hex())
}

fn note_path(blob: &Digest, diff_id: &Digest) -> String {
    format!("layers/{}", note_name(blob, diff_id))
}
