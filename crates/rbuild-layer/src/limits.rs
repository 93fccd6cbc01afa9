//! What a stream may ask for before it is refused. Whoever means it raises the limit by its name.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::compress::{Compression, Decoder};
use crate::counting::Counting;
use crate::error::{LayerError, Result};
use crate::reader::{TarEntry, TarReader};

/// What a stream may ask for before it is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub entries: u64,
    /// Bytes of one path.
    pub path: u64,
    /// Parts of one path.
    pub depth: u64,
    /// Bytes of content in all, holes included.
    pub bytes: u64,
    /// Bytes of extended headers of one entry.
    pub header: u64,
    /// Bytes that may come of each compressed byte; counts for archives of more than 32 GiB.
    pub ratio: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        let (entries, path, depth) = (20_000_000, 64 * 1024, 4096);
        Limits { entries, path, depth, bytes: 1 << 44, header: 1 << 20, ratio: 1000 }
    }
}

/// Smaller archives may be compressed as far as anybody can.
const RATIO_FROM: u64 = 32 << 30;

/// Bytes of an archive that nothing asks for, beyond those that its compressed bytes stand for.
const UNASKED: u64 = 64 << 20;

impl Limits {
    /// Bytes that so many compressed ones may become.
    pub fn unpacked(&self, packed: u64) -> u64 {
        packed.saturating_mul(self.ratio).max(RATIO_FROM)
    }

    /// Bytes that so many compressed ones may become without being asked for. No less than what gzip makes of zeros (1032 of one).
    fn unasked(&self, packed: u64) -> u64 {
        packed.saturating_mul(self.ratio.saturating_add(self.ratio / 16)).saturating_add(UNASKED)
    }

    pub const NAMES: [&str; 6] = ["entries", "path", "depth", "bytes", "header", "ratio"];

    /// The limit of that name.
    pub fn of(&mut self, name: &str) -> Option<&mut u64> {
        match name {
            "entries" => Some(&mut self.entries),
            "path" => Some(&mut self.path),
            "depth" => Some(&mut self.depth),
            "bytes" => Some(&mut self.bytes),
            "header" => Some(&mut self.header),
            "ratio" => Some(&mut self.ratio),
            _ => None,
        }
    }

    /// Looks at the next entry, with the number of entries and of bytes of content up to and with it.
    pub(crate) fn check(&self, entry: &TarEntry, entries: u64, bytes: u64) -> Result<()> {
        if entries > self.entries {
            return Err(over("entries", self.entries, format!("the archive has more than {} entries", self.entries)));
        }
        if bytes > self.bytes {
            return Err(over(
                "bytes",
                self.bytes,
                format!("the archive has more than {} bytes of content", self.bytes),
            ));
        }
        let path = entry.path.as_encoded_bytes();
        let depth = path.iter().filter(|b| **b == b'/').count() as u64;
        let shown = || entry.path.to_string_lossy().chars().take(60).collect::<String>();
        if path.len() as u64 > self.path {
            return Err(over("path", self.path, format!("the archive entry {:?}… has too long a path", shown())));
        }
        if depth > self.depth {
            return Err(over("depth", self.depth, format!("the archive entry {:?}… has too long a path", shown())));
        }
        if path.contains(&0) || entry.link.as_encoded_bytes().contains(&0) {
            let name = entry.path.to_string_lossy().into_owned();
            return Err(LayerError::Entry { name, reason: "has a name with a zero byte".into() });
        }
        Ok(())
    }
}

/// The error for what is over a limit, which says how to raise it.
pub(crate) fn over(name: &str, limit: u64, what: String) -> LayerError {
    LayerError::Limit(format!("{what}; the limit is {limit}, and --limit {name}=N raises it"))
}

/// What a stream decompresses to, which ends in an error where that is more than its compressed bytes may become.
pub struct Bounded<R: Read> {
    stream: Decoder<Counting<R>>,
    packed: Arc<AtomicU64>,
    unpacked: u64,
    /// Bytes of what was asked for, where the others are bounded on their own.
    asked: Option<Arc<AtomicU64>>,
    limits: Limits,
}

impl<R: Read> Bounded<R> {
    pub fn new(source: R, limits: Limits) -> std::io::Result<Bounded<R>> {
        let packed = Arc::new(AtomicU64::new(0));
        let stream = Decoder::new(Counting::new(source, packed.clone()))?;
        Ok(Bounded { stream, packed, unpacked: 0, asked: None, limits })
    }

    /// Bounds all but the bytes counted in `asked` by a few and by what the compressed ones stand for.
    pub fn with_asked(source: R, limits: Limits, asked: Arc<AtomicU64>) -> std::io::Result<Bounded<R>> {
        Ok(Bounded { asked: Some(asked), ..Bounded::new(source, limits)? })
    }

    pub fn compression(&self) -> Compression {
        self.stream.compression()
    }

    /// Bytes that were read, after decompression.
    pub fn count(&self) -> u64 {
        self.unpacked
    }

    fn check(&self) -> Result<()> {
        let packed = self.packed.load(Ordering::Relaxed);
        let most = self
            .asked
            .as_ref()
            .map_or(u64::MAX, |asked| self.limits.unasked(packed).saturating_add(asked.load(Ordering::Relaxed)));
        if self.unpacked <= self.limits.unpacked(packed).min(most) {
            return Ok(());
        }
        let what = format!("{packed} compressed bytes become more than {}", self.unpacked);
        Err(over("ratio", self.limits.ratio, what))
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

/// The entries of an archive, of which none is over a limit.
pub struct LimitedTar<R> {
    tar: TarReader<R>,
    limits: Limits,
    entries: u64,
    bytes: u64,
}

impl<R: Read> LimitedTar<R> {
    pub fn new(stream: R, limits: Limits) -> LimitedTar<R> {
        LimitedTar { tar: TarReader::with_header_limit(stream, limits.header), limits, entries: 0, bytes: 0 }
    }

    /// The next entry, `None` at the end of the archive.
    pub fn next_entry(&mut self) -> Result<Option<TarEntry>> {
        let Some(entry) = self.tar.next_entry()? else { return Ok(None) };
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(entry.whole_size());
        self.limits.check(&entry, self.entries, self.bytes)?;
        Ok(Some(entry))
    }

    /// Reads content of the current entry; 0 at its end.
    pub fn read_content(&mut self, buf: &mut [u8]) -> Result<usize> {
        self.tar.read_content(buf)
    }

    /// Reads the stream to its end.
    pub fn drain(self) -> Result<()> {
        self.tar.drain()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bomb_is_refused_and_a_well_packed_archive_is_not() {
        let bounded = |unpacked, limits| {
            let mut bounded = Bounded::new(&[b'x'; 1000][..], limits).unwrap();
            std::io::copy(&mut bounded, &mut std::io::sink()).unwrap();
            Bounded { unpacked, ..bounded }
        };
        let limits = Limits::default();
        bounded(RATIO_FROM, limits).check().unwrap();
        let error = bounded(RATIO_FROM + 1, limits).check().unwrap_err().to_string();
        assert!(error.contains("--limit ratio=N"), "{error}");
        bounded(RATIO_FROM + 1, Limits { ratio: 1 << 40, ..limits }).check().unwrap();
    }

    #[test]
    fn what_nobody_asks_for_is_bounded_sooner() {
        let asked = Arc::new(AtomicU64::new(0));
        let bounded = |unpacked| {
            let mut bounded = Bounded::with_asked(&[b'x'; 1000][..], Limits::default(), asked.clone()).unwrap();
            std::io::copy(&mut bounded, &mut std::io::sink()).unwrap();
            Bounded { unpacked, ..bounded }
        };
        bounded(UNASKED + 1_000_000).check().unwrap();
        let error = bounded(UNASKED + 1_100_000).check().unwrap_err().to_string();
        assert!(error.contains("--limit ratio=N"), "{error}");
        asked.store(1 << 30, Ordering::Relaxed);
        bounded(UNASKED + (1 << 30)).check().unwrap();
    }

    /// As long as what is read of it comes, its length is no sign of a bomb.
    #[test]
    fn a_large_file_that_is_not_compressed_may_stand_first() {
        let mut header = Vec::new();
        crate::TarWriter::new(&mut header).entry(&TarEntry::plain_file("large", RATIO_FROM * 2)).unwrap();
        let source = header.chain(std::io::repeat(b'x')).take(4 << 20);
        let mut tar = LimitedTar::new(Bounded::new(source, Limits::default()).unwrap(), Limits::default());
        assert_eq!(tar.next_entry().unwrap().unwrap().size, RATIO_FROM * 2);
        let mut buffer = [0; 4096];
        for _ in 0..500 {
            assert!(tar.read_content(&mut buffer).unwrap() > 0);
        }
    }

    /// Every later entry is read with what a global header says.
    #[test]
    fn a_global_header_has_few_attributes() {
        let archive = |times: usize| {
            let mut header = tar::Header::new_ustar();
            let record = |n: usize| format!("1000 SCHILY.xattr.user.{n:04}={}\n", "x".repeat(971));
            assert_eq!(record(1).len(), 1000);
            let records: Vec<u8> = (0..times).flat_map(|n| record(n).into_bytes()).collect();
            header.set_entry_type(tar::EntryType::XGlobalHeader);
            header.set_size(records.len() as u64);
            header.set_cksum();
            let padding = vec![0; records.len().next_multiple_of(512) - records.len()];
            [header.as_bytes(), &records[..], &padding, &[0; 1024]].concat()
        };
        let read = |times| LimitedTar::new(&archive(times)[..], Limits::default()).next_entry();
        assert!(read(50).unwrap().is_none());
        let error = read(70).unwrap_err().to_string();
        assert!(error.contains("attributes for all entries"), "{error}");
    }

    #[test]
    fn every_limit_has_its_name() {
        for name in Limits::NAMES {
            assert!(Limits::default().of(name).is_some(), "{name}");
        }
        assert!(Limits::default().of("speed").is_none());
    }
}
