//! Digests of files that were read before, by what stat(2) says of them.
//!
//! A file whose size, times and inode are what they were has the bytes and the attributes that it had. That is only
//! true if the times are older than the moment of reading by more than a file system's clock is coarse: a file that was
//! written just before is read again the next time, as git does it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use rbuild_image::Digest;
use rbuild_linux::Stat;

use crate::stamp::Stamp;

const MAGIC: &[u8; 16] = b"rbuild-hashes 2\n";
/// Device, inode, size, two times, digest.
const RECORD: usize = 80;
const KEY: usize = 16;
const DIGEST: usize = 48;

/// Seconds that times must be older than the moment of reading.
const MARGIN: i64 = 2;

/// What is known of the files of a build's contexts.
#[derive(Debug)]
pub struct HashCache {
    /// Records, sorted by device and inode.
    known: Vec<u8>,
    found: Mutex<BTreeMap<[u8; KEY], [u8; RECORD]>>,
    /// Of files that may still be written within the same tick of the clock: what they held when they were read.
    young: Mutex<BTreeMap<[u8; KEY], [u8; RECORD]>>,
    /// Files with a time from then on (seconds since 1970) are not remembered.
    horizon: i64,
}

impl HashCache {
    /// From the bytes that [`HashCache::bytes`] gave; anything else is an empty cache. `now` in seconds since 1970.
    pub fn new(bytes: &[u8], now: i64) -> HashCache {
        let records = bytes.strip_prefix(MAGIC).filter(|r| r.len() % RECORD == 0).unwrap_or_default();
        HashCache { known: records.to_vec(), found: Mutex::default(), young: Mutex::default(), horizon: now - MARGIN }
    }

    /// For files that nobody writes while they are looked at, and that are told apart later by what they hold: what was
    /// read is known by [`HashCache::last_read`], and no time tells anything.
    pub fn for_once() -> HashCache {
        HashCache { known: Vec::new(), found: Mutex::default(), young: Mutex::default(), horizon: i64::MIN }
    }

    /// The digest of the file that has these metadata.
    pub fn get(&self, stat: &Stat) -> Option<Digest> {
        let stamp = Stamp::of(stat);
        let digest = |found: &[u8]| {
            let same = found[..DIGEST] == stamp.bytes()[..];
            same.then(|| found[DIGEST..].try_into().ok().map(Digest::from_bytes)).flatten()
        };
        if let Some(digest) = self.find(&stamp.bytes()[..KEY]).and_then(digest) {
            return Some(digest);
        }
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.get(&stamp.bytes()[..KEY]).and_then(|found| digest(found))
    }

    /// The digest that a file had when it was last read, which for a young file it need not have any more.
    pub fn last_read(&self, stat: &Stat) -> Option<Digest> {
        let stamp = Stamp::of(stat);
        let young = self.young.lock().unwrap_or_else(PoisonError::into_inner);
        let found = young.get(&stamp.bytes()[..KEY]).filter(|found| found[..DIGEST] == stamp.bytes()[..]);
        let digest = found.and_then(|found| found[DIGEST..].try_into().ok().map(Digest::from_bytes));
        drop(young);
        digest.or_else(|| self.get(stat))
    }

    /// Whether the stamp of a file tells that it was not written since: it is older than the clock is coarse.
    pub fn tells(&self, stat: &Stat) -> bool {
        stat.mtime.sec.max(stat.ctime.sec) < self.horizon
    }

    fn find(&self, key: &[u8]) -> Option<&[u8]> {
        let at = |i: usize| &self.known[i * RECORD..(i + 1) * RECORD];
        let (mut low, mut high) = (0, self.known.len() / RECORD);
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

    /// Remembers what a file held. `stat` was taken before it was read.
    pub fn put(&self, stat: &Stat, digest: &Digest) {
        let mut record = record(stat);
        record[DIGEST..].copy_from_slice(digest.bytes());
        let mut key = [0; KEY];
        key.copy_from_slice(&record[..KEY]);
        let map = if self.tells(stat) { &self.found } else { &self.young };
        map.lock().unwrap_or_else(PoisonError::into_inner).insert(key, record);
    }

    /// What to keep for the next time; `None` if nothing new was learnt.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        let mut records = self.found.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if records.is_empty() {
            return None;
        }
        // What was not looked at may come back (another target, another directory), but not for ever.
        if self.known.len() / RECORD <= 4 * records.len() + 100_000 {
            for old in self.known.chunks_exact(RECORD) {
                if let (Ok(key), Ok(record)) = (old[..KEY].try_into(), old.try_into()) {
                    records.entry(key).or_insert(record);
                }
            }
        }
        Some(MAGIC.iter().chain(records.values().flatten()).copied().collect())
    }
}

/// The record of a file, its digest left out.
fn record(stat: &Stat) -> [u8; RECORD] {
    let mut out = [0; RECORD];
    out[..DIGEST].copy_from_slice(Stamp::of(stat).bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use rbuild_linux::RootDir;
    use std::ffi::OsStr;

    #[test]
    fn a_file_is_known_until_anything_about_it_changes() {
        let dir = std::env::temp_dir().join(format!("rbuild-hashes-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for i in 0..50 {
            std::fs::write(dir.join(format!("f{i}")), format!("{i}")).unwrap();
        }
        let root = RootDir::open(&dir).unwrap();
        let stat = |i: i32| root.stat_name(OsStr::new(&format!("f{i}"))).unwrap();
        let digest = |i: i32| Digest::of(format!("{i}").as_bytes());
        let now = stat(0).ctime.sec;
        // Just written: not remembered.
        let young = HashCache::new(b"", now);
        young.put(&stat(1), &digest(1));
        assert_eq!(young.bytes(), None);
        let cache = HashCache::new(b"", now + 10);
        (0..50).for_each(|i| cache.put(&stat(i), &digest(i)));
        let bytes = cache.bytes().unwrap();
        let again = HashCache::new(&bytes, now + 20);
        assert!((0..50).all(|i| again.get(&stat(i)) == Some(digest(i))));
        assert_eq!(again.bytes(), None);
        // Same size, same modification time, other bytes: the change time tells.
        let before = stat(7);
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(dir.join("f7"), "8").unwrap();
        root.set_mtime(OsStr::new("f7"), before.mtime).unwrap();
        assert_eq!(again.get(&stat(7)), None);
        // A new digest takes the place of the old one, and the others stay.
        again.put(&stat(7), &digest(8));
        let third = HashCache::new(&again.bytes().unwrap(), now + 30);
        assert_eq!((third.get(&stat(7)), third.get(&stat(8))), (Some(digest(8)), Some(digest(8))));
        // What is no cache is an empty one.
        for junk in [&b"junk"[..], &bytes[..bytes.len() - 1], b""] {
            assert_eq!(HashCache::new(junk, now).get(&stat(1)), None);
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
