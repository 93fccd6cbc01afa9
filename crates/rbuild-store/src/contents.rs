//! Verification of compressed layers. The name of a blob is the digest of its bytes, and the image
//! configuration contains the diffID of the layer. Only decompression shows that the two belong
//! together. It is done once for each pair, and the result is recorded.

use std::sync::atomic::Ordering;

use rbuild_image::{BlobDigest, DiffId};
use rbuild_layer::{Compression, LayerError, detect, layer_digests};
use rbuild_linux::parallel::{cores, try_map};
use rbuild_linux::{Error, described};

use crate::blobs::Blobs;
use crate::error::{Result, StoreError};
use crate::incoming_blobs::retry_restarted;

/// Suffix of the names of such records. The names contain all information; the files are empty and
/// remain valid forever.
const HOLDS: &str = ".holds";
/// Suffix of the names of records of layers that cannot be unpacked in this store.
const UNUSABLE: &str = ".unusable";

/// Returns the blob that a record in `layers` refers to.
pub(crate) fn noted_blob(name: &str) -> Option<&str> {
    Some([HOLDS, UNUSABLE].iter().find_map(|suffix| name.strip_suffix(suffix))?.split_once('-')?.1)
}

impl Blobs<'_> {
    /// Verifies for each blob and diffID that the blob decompresses to the layer with that diffID.
    /// Pairs that have been verified before are not decompressed again.
    ///
    /// # Errors
    ///
    /// Fails with [`StoreError::WrongDigest`] or [`StoreError::WrongDiffId`] on a mismatch, or if a
    /// blob cannot be read.
    pub fn check_layers(&self, layers: &[(BlobDigest, DiffId)]) -> Result<()> {
        try_map(cores(), layers, |(blob, diff_id)| self.check_layer(blob, diff_id)).map(drop)
    }

    pub(crate) fn check_layer(&self, blob: &BlobDigest, diff_id: &DiffId) -> Result<()> {
        if self.store.root.exists(note_path(blob, diff_id))?
            || retry_restarted(|| self.check_incoming(blob, diff_id))?
            || self.is_plain_layer(blob, diff_id)?
        {
            return Ok(());
        }
        self.read_layer(blob, diff_id)?;
        self.note_layer(blob, diff_id)
    }

    /// Verifies a layer while it is being downloaded. Returns false if it is not being downloaded.
    fn check_incoming(&self, blob: &BlobDigest, diff_id: &DiffId) -> Result<bool> {
        let Some(mut incoming) = self.store.incoming.open(blob, self.store.stop())? else { return Ok(false) };
        let read = layer_digests(&mut incoming, self.store.limits());
        incoming.confirm()?;
        compare_content(blob, diff_id, read?.1)?;
        self.note_layer(blob, diff_id)?;
        Ok(true)
    }

    /// Verifies a layer by reading it to its end, even if it has been verified before.
    pub(crate) fn read_layer(&self, blob: &BlobDigest, diff_id: &DiffId) -> Result<()> {
        let (stored, found) = layer_digests(self.open_blob(blob)?, self.store.limits())
            .map_err(|e| if e.is_of_content() { self.invalid_layer(blob, e) } else { e.into() })?;
        compare(blob, stored)?;
        compare_content(blob, diff_id, found)
    }

    /// Returns the error for a layer whose content is not a valid archive: either its file is
    /// damaged, or the image has always been invalid.
    pub(crate) fn invalid_layer(&self, blob: &BlobDigest, source: LayerError) -> StoreError {
        match self.read_blob(blob, |_| Ok(())) {
            Ok(()) => StoreError::InvalidLayer { blob: *blob, source },
            Err(damage) => damage,
        }
    }

    /// Records that the blob contains the layer with that diffID. The caller must have decompressed
    /// or created the blob.
    ///
    /// # Errors
    ///
    /// Fails if the record cannot be written.
    pub fn note_layer(&self, blob: &BlobDigest, diff_id: &DiffId) -> Result<()> {
        // An uncompressed layer has one digest for both.
        if *blob == diff_id.plain_blob() || self.store.root.exists(note_path(blob, diff_id))? {
            return Ok(());
        }
        self.store.write("layers", &note_name(blob, diff_id), &())
    }

    /// Records that a layer of a cache cannot be unpacked in this store, so that it is not used
    /// again.
    pub(crate) fn note_unusable(&self, blob: &BlobDigest, diff_id: &DiffId) -> Result<()> {
        self.store.write("layers", &format!("{}{UNUSABLE}", pair_name(blob, diff_id)), &())?;
        self.store.gave_up_layers.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Returns true if [`Blobs::note_unusable`] recorded a layer.
    pub(crate) fn is_unusable(&self, blob: &BlobDigest, diff_id: &DiffId) -> Result<bool> {
        let name = format!("{}{UNUSABLE}", pair_name(blob, diff_id));
        Ok(self.store.root.exists(format!("layers/{name}"))?)
    }

    /// Returns true if the blob is the uncompressed layer. The content is tested as well, because
    /// an image may declare the digest of a compressed blob as its diffID.
    fn is_plain_layer(&self, blob: &BlobDigest, diff_id: &DiffId) -> Result<bool> {
        use std::os::unix::fs::FileExt;
        if *blob != diff_id.plain_blob() {
            return Ok(false);
        }
        let mut head = [0u8; 8];
        let failed = |e| Error::new("pread", described(format!("blob {blob}")), e);
        let n = self.open_blob(blob)?.read_at(&mut head, 0).map_err(failed)?;
        Ok(detect(&head[..n]) == Compression::None)
    }
}

/// Compares the digest of a blob with its name.
pub(crate) fn compare(blob: &BlobDigest, found: BlobDigest) -> Result<()> {
    if found == *blob { Ok(()) } else { Err(StoreError::WrongDigest { blob: *blob, found }) }
}

/// Compares the diffID of a blob's content with the expected one.
pub(crate) fn compare_content(blob: &BlobDigest, diff_id: &DiffId, found: DiffId) -> Result<()> {
    if found == *diff_id { Ok(()) } else { Err(StoreError::WrongDiffId { blob: *blob, expected: *diff_id, found }) }
}

fn pair_name(blob: &BlobDigest, diff_id: &DiffId) -> String {
    format!("{}-{}", diff_id.hex(), blob.hex())
}

fn note_name(blob: &BlobDigest, diff_id: &DiffId) -> String {
    format!("{}{HOLDS}", pair_name(blob, diff_id))
}

fn note_path(blob: &BlobDigest, diff_id: &DiffId) -> String {
    format!("layers/{}", note_name(blob, diff_id))
}
