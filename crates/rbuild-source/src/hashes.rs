//! Cache of file digests, keyed by stat(2) metadata.
//!
//! A file with unchanged inode, size and times is assumed to have the same content and attributes.
//! The assumption only holds if its times were older than the time of reading by more than the
//! granularity of file system clocks. Files that were modified more recently are not cached (git
//! has the same rule for its index).

use rbuild_linux::parallel::locked;
use std::collections::BTreeMap;
use std::sync::Mutex;

use rbuild_linux::{FileStamp, Stat};

use crate::ids::ContentHash;

const MAGIC: &[u8; 16] = b"rbuild-hashes 2\n";
/// Bytes of a record: device, inode, size, two times, digest.
const RECORD: usize = 80;
/// Bytes of the key of a record: device and inode.
const KEY: usize = 16;
/// Offset of the digest in a record.
const DIGEST: usize = 48;

/// Minimum age in seconds of a file's times when it is read.
const MARGIN: i64 = 2;

/// A cache of file digests. Safe to use from several threads.
#[derive(Debug)]
pub struct HashCache {
    /// The loaded file. Its records are sorted by device and inode.
    loaded: Vec<u8>,
    /// Records added since it was loaded.
    found: Mutex<BTreeMap<[u8; KEY], [u8; RECORD]>>,
    /// Records of files that are too recent to be cached: they could still be written within the
    /// same clock tick. Only used by [`HashCache::last_read`].
    young: Mutex<BTreeMap<[u8; KEY], [u8; RECORD]>>,
    /// Files with a time at or after this one (seconds since 1970) are not cached.
    horizon: i64,
}

impl HashCache {
    /// Loads a cache from the output of [`HashCache::bytes`]. Invalid input yields an empty cache.
    /// `now` is in seconds since 1970.
    pub fn new(bytes: Vec<u8>, now: i64) -> HashCache {
        let valid = bytes.strip_prefix(MAGIC).is_some_and(|records| records.len() % RECORD == 0);
        let loaded = if valid { bytes } else { Vec::new() };
        HashCache { loaded, found: Mutex::default(), young: Mutex::default(), horizon: now - MARGIN }
    }

    /// Returns an empty cache that trusts no metadata: digests are only available from
    /// [`HashCache::last_read`]. Used for files that do not change during a build and are later
    /// compared by content.
    pub fn for_once() -> HashCache {
        HashCache { loaded: Vec::new(), found: Mutex::default(), young: Mutex::default(), horizon: i64::MIN }
    }

    /// Returns the cached digest of the file with these metadata.
    pub fn get(&self, stat: &Stat) -> Option<ContentHash> {
        let stamp = FileStamp::of(stat);
        let digest = |found: &[u8]| {
            let same = found[..DIGEST] == stamp.bytes()[..];
            same.then(|| found[DIGEST..].try_into().ok().map(ContentHash::from_bytes)).flatten()
        };
        if let Some(digest) = self.find(&stamp.bytes()[..KEY]).and_then(digest) {
            return Some(digest);
        }
        let found = locked(&self.found);
        found.get(&stamp.bytes()[..KEY]).and_then(|found| digest(found))
    }

    /// Returns the digest of a file when it was last read. A recent file may have changed since.
    pub fn last_read(&self, stat: &Stat) -> Option<ContentHash> {
        let stamp = FileStamp::of(stat);
        let young = locked(&self.young);
        let found = young.get(&stamp.bytes()[..KEY]).filter(|found| found[..DIGEST] == stamp.bytes()[..]);
        let digest = found.and_then(|found| found[DIGEST..].try_into().ok().map(ContentHash::from_bytes));
        drop(young);
        digest.or_else(|| self.get(stat))
    }

    /// Returns true if the file is old enough for its metadata to prove that it has not been
    /// written since.
    pub fn is_settled(&self, stat: &Stat) -> bool {
        stat.mtime.sec.max(stat.ctime.sec) < self.horizon
    }

    /// Returns the loaded records.
    fn known(&self) -> &[u8] {
        self.loaded.get(MAGIC.len()..).unwrap_or_default()
    }

    /// Finds a loaded record by binary search.
    fn find(&self, key: &[u8]) -> Option<&[u8]> {
        let known = self.known();
        let at = |i: usize| &known[i * RECORD..(i + 1) * RECORD];
        let (mut low, mut high) = (0, known.len() / RECORD);
        while low < high {
            let middle = (low + high) / 2;
            match at(middle)[..KEY].cmp(key) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Some(at(middle)),
            }
        }
        None
    }

    /// Records a digest. `stat` must have been taken before the file was read.
    pub fn put(&self, stat: &Stat, digest: &ContentHash) {
        let mut record = record(stat);
        record[DIGEST..].copy_from_slice(digest.bytes());
        let mut key = [0; KEY];
        key.copy_from_slice(&record[..KEY]);
        let map = if self.is_settled(stat) { &self.found } else { &self.young };
        locked(map).insert(key, record);
    }

    /// Serializes the cache. Returns `None` if nothing was added.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        let mut records = locked(&self.found).clone();
        if records.is_empty() {
            return None;
        }
        // Keep unused records for builds of other targets or directories, up to a limit.
        if self.known().len() / RECORD <= 4 * records.len() + 100_000 {
            for old in self.known().chunks_exact(RECORD) {
                if let (Ok(key), Ok(record)) = (old[..KEY].try_into(), old.try_into()) {
                    records.entry(key).or_insert(record);
                }
            }
        }
        Some(MAGIC.iter().chain(records.values().flatten()).copied().collect())
    }
}

/// Returns the record of a file without its digest.
fn record(stat: &Stat) -> [u8; RECORD] {
    let mut out = [0; RECORD];
    out[..DIGEST].copy_from_slice(FileStamp::of(stat).bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use rbuild_linux::RootDir;
    use rbuild_testkit::Scratch;
    use std::ffi::OsStr;

    #[test]
    fn a_digest_is_cached_until_the_file_changes() {
        let dir = Scratch::new();
        for i in 0..50 {
            std::fs::write(dir.join(format!("f{i}")), format!("{i}")).unwrap();
        }
        let root = RootDir::open(&dir).unwrap();
        let stat = |i: i32| root.stat_name(OsStr::new(&format!("f{i}"))).unwrap();
        let digest = |i: i32| ContentHash::of_link_target(format!("{i}").as_bytes());
        let now = stat(0).ctime.sec;
        // A file that was just written is not cached.
        let young = HashCache::new(Vec::new(), now);
        young.put(&stat(1), &digest(1));
        assert_eq!(young.bytes(), None);
        let cache = HashCache::new(Vec::new(), now + 10);
        (0..50).for_each(|i| cache.put(&stat(i), &digest(i)));
        let bytes = cache.bytes().unwrap();
        let again = HashCache::new(bytes.clone(), now + 20);
        assert!((0..50).all(|i| again.get(&stat(i)) == Some(digest(i))));
        assert_eq!(again.bytes(), None);
        // Same size and modification time, other content: the change time differs.
        let before = stat(7);
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(dir.join("f7"), "8").unwrap();
        root.set_mtime(OsStr::new("f7"), before.mtime).unwrap();
        assert_eq!(again.get(&stat(7)), None);
        // A new digest replaces the old one; other records stay.
        again.put(&stat(7), &digest(8));
        let third = HashCache::new(again.bytes().unwrap(), now + 30);
        assert_eq!((third.get(&stat(7)), third.get(&stat(8))), (Some(digest(8)), Some(digest(8))));
        // Invalid input yields an empty cache.
        for junk in [&b"junk"[..], &bytes[..bytes.len() - 1], b""] {
            assert_eq!(HashCache::new(junk.to_vec(), now).get(&stat(1)), None);
        }
    }
}
