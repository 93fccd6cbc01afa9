//! SHA-256 hashing of fields and streams.

use sha2::{Digest as _, Sha256};

/// An identifier that is a SHA-256 hash. Implemented by the types that [`id_type!`](crate::id_type)
/// defines.
pub trait Sha256Id {
    /// Returns the identifier with this binary value.
    fn from_bytes(bytes: [u8; 32]) -> Self;

    /// Returns the identifier with these 64 lower-case hexadecimal digits, or `None` if the text is
    /// anything else.
    fn from_hex(digits: &str) -> Option<Self>
    where
        Self: Sized,
    {
        parse_hex(digits).map(Self::from_bytes)
    }
}

/// Parses 64 lower-case hexadecimal digits.
pub(crate) fn parse_hex(hex: &str) -> Option<[u8; 32]> {
    if hex.len() != 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut bytes = [0; 32];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(bytes)
}

/// Incremental SHA-256. [`Hasher::field`] prefixes each field with its length, so two different
/// lists of fields cannot have the same input.
///
/// ```
/// use rbuild_image::{BlobDigest, Hasher};
///
/// let mut hasher = Hasher::new();
/// hasher.update(b"he");
/// hasher.update(b"llo");
/// assert_eq!(hasher.finish::<BlobDigest>(), BlobDigest::of(b"hello"));
/// ```
#[derive(Clone, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// Returns a hasher without input.
    pub fn new() -> Hasher {
        Hasher::default()
    }

    /// Adds raw bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Adds a field: its length as 8 bytes little-endian, and its bytes.
    pub fn field(&mut self, bytes: impl AsRef<[u8]>) -> &mut Hasher {
        let bytes = bytes.as_ref();
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// Returns the hash of the input, as the kind of identifier that the caller needs.
    pub fn finish<T: Sha256Id>(self) -> T {
        T::from_bytes(self.0.finalize().into())
    }
}

impl std::io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A reader or writer that hashes and counts the bytes passing through it.
///
/// ```
/// use std::io::Write;
/// use rbuild_image::{BlobDigest, Hashed};
///
/// let mut out = Hashed::new(Vec::new());
/// out.write_all(b"hello")?;
/// let (bytes, digest, size) = out.finish::<BlobDigest>();
/// assert_eq!((bytes.as_slice(), digest, size), (&b"hello"[..], BlobDigest::of(b"hello"), 5));
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Hashed<T> {
    /// The wrapped reader or writer.
    pub inner: T,
    hasher: Hasher,
    count: u64,
}

impl<T> Hashed<T> {
    /// Wraps a reader or writer.
    pub fn new(inner: T) -> Hashed<T> {
        Hashed { inner, hasher: Hasher::new(), count: 0 }
    }

    /// Returns the number of bytes so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns the wrapped value, and the hash and number of the bytes.
    pub fn finish<D: Sha256Id>(self) -> (T, D, u64) {
        (self.inner, self.hasher.finish(), self.count)
    }

    fn record(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.count += bytes.len() as u64;
    }
}

impl<R: std::io::Read> std::io::Read for Hashed<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.record(&buf[..n]);
        Ok(n)
    }
}

impl<W: std::io::Write> std::io::Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.record(&bytes[..n]);
        Ok(n)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}
