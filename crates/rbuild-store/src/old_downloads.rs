//! Interrupted downloads that are too old to be resumed.

use std::ffi::OsStr;

use rbuild_linux::Timestamp;

use crate::store::Store;

/// Directory with the first bytes of blobs whose download was interrupted.
pub(crate) const DIR: &str = "partial";

/// Maximum time in seconds since the last byte of an interrupted download.
const MAX_AGE: i64 = 24 * 60 * 60;

/// Removes the files of downloads that were interrupted more than a day ago. Errors are ignored:
/// the next attempt may succeed.
pub(crate) fn remove(store: &Store) {
    let Ok(dir) = store.dir(DIR) else { return };
    let oldest = Timestamp::now().sec.saturating_sub(MAX_AGE);
    for entry in dir.entries().unwrap_or_default() {
        let is_old = |name: &OsStr| dir.stat_name(name).is_ok_and(|stat| stat.mtime.sec < oldest);
        if !is_old(&entry.name) {
            continue;
        }
        // A download that has just been resumed holds the lock.
        if let Ok(file) = dir.open_name(&entry.name)
            && file.try_lock().is_ok()
            && is_old(&entry.name)
        {
            let _ = dir.remove_file(&entry.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::time::{Duration, UNIX_EPOCH};

    use rbuild_image::BlobDigest;
    use rbuild_testkit::Scratch;

    use super::*;
    use crate::partial_blobs::PartialFile;
    use crate::workspace::Workspace;

    #[test]
    fn interrupted_downloads_are_kept_for_a_day() {
        let place = Scratch::new();
        let store = Store::open(&place).unwrap();
        let aged = |text: &str, hours: u64| {
            let digest = BlobDigest::of(text.as_bytes());
            let mut file = PartialFile::open(&store, &digest).unwrap().unwrap();
            file.write_all(b"bl").unwrap();
            let path = place.join(DIR).join(digest.hex());
            let written = Duration::from_secs(Timestamp::now().sec as u64 - hours * 3600);
            File::options().append(true).open(&path).unwrap().set_modified(UNIX_EPOCH + written).unwrap();
            (file, path)
        };
        let (new, old, held) = (aged("new", 23), aged("old", 25), aged("held", 25));
        drop((new.0, old.0));
        drop(Workspace::open(&store).unwrap());
        assert_eq!([&new.1, &old.1, &held.1].map(|path| path.exists()), [true, false, true]);
        drop(held.0);
        drop(Workspace::open(&store).unwrap());
        assert!(!held.1.exists());
    }
}
