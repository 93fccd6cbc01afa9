//! Compression detection and streaming decompression.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

use flate2::bufread::GzDecoder;

/// The compression of a layer that is read. `LayerForm` has those that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// No compression.
    None,
    /// Gzip (RFC 1952).
    Gzip,
    /// Zstandard (RFC 8878).
    Zstd,
    /// Bzip2.
    Bzip2,
    /// Xz.
    Xz,
}

impl Compression {
    /// Returns the name used in messages and in `LayerForm::name`.
    pub fn name(self) -> &'static str {
        match self {
            Compression::None => "uncompressed",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
            Compression::Bzip2 => "bzip2",
            Compression::Xz => "xz",
        }
    }
}

/// Number of leading bytes that identify every compression.
const LONGEST_MAGIC: u64 = 6;

/// Detects the compression from the first bytes of a stream. Six bytes are enough.
///
/// ```
/// use rbuild_layer::{Compression, detect};
///
/// assert_eq!(detect(&[0x1f, 0x8b, 8, 0, 0, 0]), Compression::Gzip);
/// assert_eq!(detect(b"ustar"), Compression::None);
/// ```
pub fn detect(head: &[u8]) -> Compression {
    // Skippable frames (0x184D2A5?) may precede a zstd frame (RFC 8878, 3.1.2).
    let skippable = head.len() >= 4 && head[1..4] == [0x2a, 0x4d, 0x18] && head[0] & 0xf0 == 0x50;
    match head {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        _ if skippable => Compression::Zstd,
        [b'B', b'Z', b'h', ..] => Compression::Bzip2,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
        _ => Compression::None,
    }
}

/// A decompressing reader that detects the compression from the content.
pub struct Decoder<R: Read> {
    inner: Inner<BufReader<Chain<Cursor<Vec<u8>>, R>>>,
    compression: Compression,
}

enum Inner<R: BufRead> {
    Plain(R),
    Gzip(Box<GzipMembers<R>>),
    Zstd(zstd::Decoder<'static, R>),
    Bzip2(bzip2::bufread::MultiBzDecoder<R>),
    Xz(liblzma::bufread::XzDecoder<R>),
}

impl<R: Read> Decoder<R> {
    /// Detects the compression of `source` and starts decompressing.
    ///
    /// # Errors
    ///
    /// Fails if the first bytes cannot be read, or if the decompressor cannot be set up.
    pub fn new(mut source: R) -> io::Result<Decoder<R>> {
        // The first read of a pipe may return a single byte.
        let mut head = Vec::new();
        source.by_ref().take(LONGEST_MAGIC).read_to_end(&mut head)?;
        let compression = detect(&head);
        let reader = BufReader::with_capacity(256 * 1024, Cursor::new(head).chain(source));
        let inner = match compression {
            Compression::None => Inner::Plain(reader),
            Compression::Gzip => Inner::Gzip(Box::new(GzipMembers::new(reader))),
            Compression::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(reader)?;
                // 128 MiB: the window that `zstd -d` accepts by default.
                decoder.window_log_max(27)?;
                Inner::Zstd(decoder)
            }
            Compression::Bzip2 => Inner::Bzip2(bzip2::bufread::MultiBzDecoder::new(reader)),
            Compression::Xz => Inner::Xz(liblzma::bufread::XzDecoder::new_multi_decoder(reader)),
        };
        Ok(Decoder { inner, compression })
    }

    /// Returns the detected compression.
    pub fn compression(&self) -> Compression {
        self.compression
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.inner {
            Inner::Plain(r) => r.read(buf),
            Inner::Gzip(r) => r.read(buf),
            Inner::Zstd(r) => r.read(buf),
            Inner::Bzip2(r) => r.read(buf),
            Inner::Xz(r) => r.read(buf),
        }
    }
}

/// Decompresses the members of a gzip file (RFC 1952, section 2.2). As with gzip(1), zero bytes may
/// follow the last one.
struct GzipMembers<R: BufRead> {
    /// `None` only while the next member takes the place of one that has ended.
    member: Option<GzDecoder<R>>,
    /// True if zero bytes followed the member.
    is_padded: bool,
}

impl<R: BufRead> GzipMembers<R> {
    fn new(source: R) -> GzipMembers<R> {
        GzipMembers { member: Some(GzDecoder::new(source)), is_padded: false }
    }
}

impl<R: BufRead> Read for GzipMembers<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = self.member.as_mut().filter(|_| !buf.is_empty()) {
            match member.read(buf)? {
                0 => {}
                n => return Ok(n),
            }
            if !skip_padding(member.get_mut(), &mut self.is_padded)? {
                return Ok(0);
            }
            if self.is_padded {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "data after the padding of gzip data"));
            }
            self.member = self.member.take().map(|member| GzDecoder::new(member.into_inner()));
        }
        Ok(0)
    }
}

/// Skips zero bytes, and sets `is_padded` if there are any. Returns true if other bytes follow.
fn skip_padding(source: &mut impl BufRead, is_padded: &mut bool) -> io::Result<bool> {
    loop {
        let bytes = source.fill_buf()?;
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        let (is_end, has_more) = (bytes.is_empty(), zeros < bytes.len());
        source.consume(zeros);
        *is_padded |= zeros > 0;
        if is_end || has_more {
            return Ok(has_more);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn compression_is_detected_by_content() {
        let plain = b"some bytes, some bytes, some bytes".repeat(50);
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gz.write_all(&plain).unwrap();
        let gz = gz.finish().unwrap();
        let mut bz = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::default());
        bz.write_all(&plain).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&plain).unwrap();
        let two_members = [gz.clone(), gz.clone()].concat();
        let padded = [&two_members[..], &[0; 1000]].concat();
        let skippable =
            [&[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9], &zstd::encode_all(&plain[..], 1).unwrap()[..]].concat();
        for (bytes, want, times) in [
            (plain.clone(), Compression::None, 1),
            (gz, Compression::Gzip, 1),
            (two_members, Compression::Gzip, 2),
            (padded, Compression::Gzip, 2),
            (zstd::encode_all(&plain[..], 1).unwrap(), Compression::Zstd, 1),
            (skippable, Compression::Zstd, 1),
            (bz.finish().unwrap(), Compression::Bzip2, 1),
            (xz.finish().unwrap(), Compression::Xz, 1),
        ] {
            let mut decoder = Decoder::new(&bytes[..]).unwrap();
            assert_eq!(decoder.compression(), want);
            let mut out = Vec::new();
            decoder.read_to_end(&mut out).unwrap();
            assert_eq!(out, plain.repeat(times), "{want:?}");
        }
    }

    #[test]
    fn only_zeros_may_follow_the_last_gzip_member() {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gz.write_all(b"text").unwrap();
        let gz = gz.finish().unwrap();
        let all = |parts: &[&[u8]]| Decoder::new(&parts.concat()[..]).unwrap().read_to_end(&mut Vec::new());
        assert_eq!(all(&[&gz, &[0; 300_000]]).unwrap(), 4);
        for rest in [&b"x"[..], b"\0x", &[&[0, 0], &gz[..]].concat()] {
            all(&[&gz, rest]).unwrap_err();
        }
    }

    /// Returns one byte per read, as a pipe may.
    #[test]
    fn compression_is_detected_one_byte_at_a_time() {
        struct Slow<'a>(&'a [u8]);
        impl Read for Slow<'_> {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                let n = buf.len().min(1);
                self.0.read(&mut buf[..n])
            }
        }
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gz.write_all(b"some bytes").unwrap();
        let gz = gz.finish().unwrap();
        let zst = zstd::encode_all(&b"some bytes"[..], 1).unwrap();
        for bytes in [&gz[..], &zst, b"some bytes"] {
            let mut out = String::new();
            Decoder::new(Slow(bytes)).unwrap().read_to_string(&mut out).unwrap();
            assert_eq!(out, "some bytes");
        }
    }

    #[test]
    fn a_truncated_stream_is_an_error() {
        let gz = {
            let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            e.write_all(&b"abc".repeat(9000)).unwrap();
            e.finish().unwrap()
        };
        for cut in [5, gz.len() / 2, gz.len() - 1] {
            let result = Decoder::new(&gz[..cut]).and_then(|mut d| d.read_to_end(&mut Vec::new()));
            assert!(result.is_err(), "cut at {cut}");
        }
    }
}
