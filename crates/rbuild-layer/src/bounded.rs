//! Bounded decompression of untrusted streams.

use rbuild_remedy::counted;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rbuild_image::{BlobDigest, DiffId, Hashed};

use crate::compress::{Compression, Decoder};
use crate::counting::Counting;
use crate::error::{LayerError, Result};
use crate::limits::{Limits, exceeded};

/// A decompressing reader that fails once its output exceeds what the compressed input may expand
/// to.
pub struct Bounded<R: Read> {
    stream: Decoder<Counting<R>>,
    /// Compressed bytes read so far.
    packed: Arc<AtomicU64>,
    /// Decompressed bytes returned so far.
    unpacked: u64,
    /// Number of decompressed bytes that the consumer requested. Those are bounded by the consumer
    /// itself; the others get a tighter bound.
    requested: Option<Arc<AtomicU64>>,
    limits: Limits,
}

impl<R: Read> Bounded<R> {
    /// Starts decompressing `source` under the ratio limit of `limits`.
    ///
    /// # Errors
    ///
    /// Fails if the first bytes cannot be read, or if the decompressor cannot be set up.
    pub fn new(source: R, limits: Limits) -> std::io::Result<Bounded<R>> {
        let packed = Arc::new(AtomicU64::new(0));
        let stream = Decoder::new(Counting::new(source, packed.clone()))?;
        Ok(Bounded { stream, packed, unpacked: 0, requested: None, limits })
    }

    /// Starts decompressing `source` with a tighter bound. All bytes beyond those counted in
    /// `requested` must not exceed the size that the compressed input may expand to, plus a small
    /// allowance.
    ///
    /// # Errors
    ///
    /// Fails if the first bytes cannot be read, or if the decompressor cannot be set up.
    pub fn with_requested(source: R, limits: Limits, requested: Arc<AtomicU64>) -> std::io::Result<Bounded<R>> {
        Ok(Bounded { requested: Some(requested), ..Bounded::new(source, limits)? })
    }

    /// Returns the detected compression.
    pub fn compression(&self) -> Compression {
        self.stream.compression()
    }

    /// Returns the number of bytes read so far, after decompression.
    pub fn count(&self) -> u64 {
        self.unpacked
    }

    fn check(&self) -> Result<()> {
        let packed = self.packed.load(Ordering::Relaxed);
        let most = self.requested.as_ref().map_or(u64::MAX, |requested| {
            self.limits.unrequested(packed).saturating_add(requested.load(Ordering::Relaxed))
        });
        if self.unpacked <= self.limits.unpacked(packed).min(most) {
            return Ok(());
        }
        let (unpacked, ratio) = (self.unpacked, self.limits.ratio);
        let problem =
            format!("{packed} compressed bytes become {unpacked} bytes or more; the limit is a ratio of {ratio}");
        Err(LayerError::LimitExceeded { problem, name: Some("ratio") })
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.stream.read(buf)?;
        self.unpacked += n as u64;
        self.check().map_err(std::io::Error::other)?;
        Ok(n)
    }
}

/// Returns the digest and the diffID of a layer without parsing its content.
///
/// # Errors
///
/// Fails if the layer cannot be read or decompressed, or if it exceeds `limits`.
pub fn layer_digests(source: impl Read, limits: Limits) -> Result<(BlobDigest, DiffId)> {
    let failed = LayerError::decompressing("the content");
    let mut raw = Hashed::new(source);
    let mut plain = Hashed::new(Bounded::new(&mut raw, limits).map_err(&failed)?);
    let most = limits.stream();
    if io::copy(&mut (&mut plain).take(most.saturating_add(1)), &mut io::sink()).map_err(&failed)? > most {
        return Err(exceeded("bytes", most, format!("the layer has more than {}", counted(most, "byte"))));
    }
    let diff_id = plain.finish().1;
    // The digest also covers bytes that follow the end of the compressed stream.
    io::copy(&mut raw, &mut io::sink()).map_err(failed)?;
    Ok((raw.finish().1, diff_id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{RATIO_FROM, UNREQUESTED};
    use rbuild_testkit::{assert_recorded, message_row};

    #[test]
    fn decompression_bombs_are_rejected_and_well_compressed_archives_are_not() {
        let bounded = |unpacked, limits| {
            let mut bounded = Bounded::new(&[b'x'; 1000][..], limits).unwrap();
            std::io::copy(&mut bounded, &mut std::io::sink()).unwrap();
            Bounded { unpacked, ..bounded }
        };
        let limits = Limits::default();
        bounded(RATIO_FROM, limits).check().unwrap();
        let error = bounded(RATIO_FROM + 1, limits).check().unwrap_err();
        assert_recorded!("ratio", message_row("bomb", &error, error.remedy()));
        bounded(RATIO_FROM + 1, Limits { ratio: 1 << 40, ..limits }).check().unwrap();
    }

    /// Zeros after the end of an archive count towards the limit on its size.
    #[test]
    fn bytes_after_an_archive_count_towards_its_limit() {
        let mut layer = Vec::new();
        let mut tar = crate::TarWriter::new(&mut layer);
        tar.entry(&crate::TarEntry::plain_file("f", 0)).unwrap();
        tar.finish().unwrap();
        let mut packed = zstd::Encoder::new(Vec::new(), 1).unwrap();
        std::io::copy(&mut layer.chain(std::io::repeat(0).take((2 << 30) + (2 << 20))), &mut packed).unwrap();
        let packed = packed.finish().unwrap();
        for bytes in [1 << 10, 1 << 20, 1 << 44] {
            let limits = Limits { bytes, ..Limits::default() };
            let decoder = Bounded::new(&packed[..], limits).unwrap();
            let mut tar = crate::LimitedTar::new(decoder, limits);
            while tar.next_entry().unwrap().is_some() {}
            let error = tar.drain().unwrap_err();
            assert!(error.to_string().contains("follow the end of the archive"), "{error}");
            assert_eq!(layer_digests(&packed[..], limits).is_ok(), bytes > 1 << 30, "{bytes}");
        }
    }

    #[test]
    fn unrequested_bytes_have_a_tighter_bound() {
        let requested = Arc::new(AtomicU64::new(0));
        let bounded = |unpacked| {
            let mut bounded = Bounded::with_requested(&[b'x'; 1000][..], Limits::default(), requested.clone()).unwrap();
            std::io::copy(&mut bounded, &mut std::io::sink()).unwrap();
            Bounded { unpacked, ..bounded }
        };
        bounded(UNREQUESTED + 1_000_000).check().unwrap();
        let error = bounded(UNREQUESTED + 1_100_000).check().unwrap_err().to_string();
        assert!(error.contains("the limit is"), "{error}");
        requested.store(1 << 30, Ordering::Relaxed);
        bounded(UNREQUESTED + (1 << 30)).check().unwrap();
    }
}
