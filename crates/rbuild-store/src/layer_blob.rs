//! Blobs of layers that are being packed.

use std::io::{self, Write};

use rbuild_image::BlobDigest;

use crate::blobs::NewBlob;
use crate::error::Result;
use crate::packing::{PackingProgress, PackingWatch};
use crate::store::Store;

/// The blob of a layer that is being packed.
pub(crate) struct LayerBlob<'a> {
    blob: NewBlob<'a>,
    size: u64,
    progress: Option<Box<dyn PackingProgress + 'a>>,
}

impl<'a> LayerBlob<'a> {
    pub fn new(blob: NewBlob<'a>, watch: Option<&'a dyn PackingWatch>) -> Result<LayerBlob<'a>> {
        let progress = match watch {
            Some(watch) => Some(watch.begun(blob.reopen()?)),
            None => None,
        };
        Ok(LayerBlob { blob, size: 0, progress })
    }

    /// Publishes the blob.
    ///
    /// # Errors
    ///
    /// Fails as [`NewBlob::publish`] does.
    pub fn publish(self, store: &Store, digest: &BlobDigest, size: u64) -> Result<()> {
        self.blob.publish(store, digest, size)?;
        if let Some(progress) = self.progress {
            progress.packed(digest, size);
        }
        Ok(())
    }
}

impl Write for LayerBlob<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.blob.write(bytes)?;
        self.size += n as u64;
        if let Some(progress) = &mut self.progress {
            progress.grown(self.size);
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.blob.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::sync::Mutex;

    use rbuild_image::{MediaType, descriptor};
    use rbuild_layer::LayerForm;
    use rbuild_testkit::Scratch;

    use super::*;
    use crate::workspace::Workspace;

    /// The file of a blob, the sizes that it had, and its digest.
    type NotedBlob = (File, Vec<u64>, Option<BlobDigest>);

    #[derive(Default)]
    struct Noted(Mutex<Vec<NotedBlob>>);

    struct Noting<'a>(&'a Noted, usize);

    impl PackingWatch for Noted {
        fn begun(&self, file: File) -> Box<dyn PackingProgress + '_> {
            let mut all = self.0.lock().unwrap();
            all.push((file, Vec::new(), None));
            Box::new(Noting(self, all.len() - 1))
        }

        fn has(&self, _layer: &BlobDigest) -> bool {
            false
        }
    }

    impl PackingProgress for Noting<'_> {
        fn grown(&mut self, size: u64) {
            self.0.0.lock().unwrap()[self.1].1.push(size);
        }

        fn packed(self: Box<Self>, digest: &BlobDigest, _size: u64) {
            self.0.0.lock().unwrap()[self.1].2 = Some(*digest);
        }
    }

    #[test]
    fn a_watch_sees_a_layer_grow_and_end() {
        let dir = Scratch::new();
        let store = Store::open(&dir).unwrap();
        let work = Workspace::open(&store).unwrap();
        let bytes = vec![0; 10 << 20];
        let (digest, size) = store.blobs().put_blob(&work, &bytes[..]).unwrap();
        let layer = descriptor(MediaType::ImageLayer, &digest, size);
        let (noted, form) = (Noted::default(), LayerForm::GZIP);
        let layers = store.layers().watched_by(Some(&noted));
        let packed = layers.repack_layer(&work, &layer, &digest.of_plain_layer(), form).unwrap();
        assert!(layers.repack_layer(&work, &layer, &digest.of_plain_layer(), form).unwrap() == packed);
        let missing = descriptor(MediaType::ImageLayer, &BlobDigest::of(b"missing"), 7);
        layers.repack_layer(&work, &missing, &digest.of_plain_layer(), LayerForm::ZSTD).unwrap_err();
        let mut noted = noted.0.into_inner().unwrap();
        assert_eq!(noted.len(), 2, "nothing is packed twice");
        let (mut file, sizes, end) = noted.remove(0);
        assert!(sizes.is_sorted() && sizes.last() == Some(&packed.size), "{sizes:?}");
        assert_eq!(end, Some(packed.digest));
        let mut written = Vec::new();
        file.read_to_end(&mut written).unwrap();
        assert_eq!(BlobDigest::of(&written), packed.digest);
        assert_eq!(noted[0].2, None, "it failed");
    }
}
