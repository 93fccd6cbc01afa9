//! A tar reader for untrusted archives.

use std::io::Read;

use crate::entry::TarEntry;
use crate::error::Result;
use crate::limits::Limits;
use crate::reader::TarReader;

/// A [`TarReader`] that enforces [`Limits`] on every entry.
pub struct LimitedTar<R> {
    tar: TarReader<R>,
    limits: Limits,
    entries: u64,
    bytes: u64,
}

impl<R: Read> LimitedTar<R> {
    /// Starts reading an uncompressed archive.
    pub fn new(stream: R, limits: Limits) -> LimitedTar<R> {
        LimitedTar { tar: TarReader::with_header_limit(stream, limits.header), limits, entries: 0, bytes: 0 }
    }

    /// Returns the next entry, or `None` at the end of the archive.
    ///
    /// # Errors
    ///
    /// Fails if the archive cannot be read, is damaged, or exceeds a limit.
    pub fn next_entry(&mut self) -> Result<Option<TarEntry>> {
        let Some(entry) = self.tar.next_entry()? else { return Ok(None) };
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(entry.whole_size());
        self.limits.check(&entry, self.entries, self.bytes)?;
        Ok(Some(entry))
    }

    /// Reads content of the current entry; returns 0 at its end.
    ///
    /// # Errors
    ///
    /// Fails if the archive cannot be read or ends inside the content.
    pub fn read_content(&mut self, buf: &mut [u8]) -> Result<usize> {
        self.tar.read_content(buf)
    }

    /// Reads the stream to its end.
    ///
    /// # Errors
    ///
    /// Fails if the stream cannot be read, or if more follows the archive than the limits allow.
    pub fn drain(self) -> Result<()> {
        self.tar.drain(self.limits.tail(self.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bounded::Bounded;
    use crate::limits::RATIO_FROM;

    /// A large size in a header is not a sign of a decompression bomb while the input grows along
    /// with the output.
    #[test]
    fn a_large_uncompressed_first_file_is_accepted() {
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

    /// Attributes of a global header apply to every later entry, so their total size is limited.
    #[test]
    fn global_headers_with_too_many_attributes_are_rejected() {
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
}
