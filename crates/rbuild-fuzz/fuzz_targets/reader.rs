//! Reads arbitrary bytes as an archive without unpacking it. Reading must terminate, and entries
//! must survive being written and read again.
#![no_main]

use std::io::Read;
use std::os::unix::ffi::OsStrExt;

use libfuzzer_sys::fuzz_target;
use rbuild_layer::{Decoder, EntryKind, TarEntry, TarReader, TarWriter};

/// Maximum number of decompressed bytes to read.
const MAX_BYTES: u64 = 4 << 20;

fuzz_target!(|bytes: &[u8]| {
    let Ok(decoder) = Decoder::new(bytes) else { return };
    let mut reader = TarReader::new(decoder.take(MAX_BYTES));
    let mut piece = [0; 700];
    while let Ok(Some(entry)) = reader.next_entry() {
        let mut count = 0;
        loop {
            match reader.read_content(&mut piece) {
                Ok(0) => break assert_eq!(count, entry.size, "a whole file is as long as its header states"),
                Ok(n) => count += n as u64,
                Err(_) => return,
            }
        }
        written_again(&entry);
    }
});

fn written_again(entry: &TarEntry) {
    let names = [&entry.path, &entry.link].into_iter().chain(entry.xattrs.keys());
    // No file system permits such names.
    if names.into_iter().any(|name| name.as_bytes().contains(&0)) {
        return;
    }
    let entry = TarEntry { size: 0, sparse: None, ..entry.clone() };
    let mut writer = TarWriter::new(Vec::new());
    // A header can claim larger device numbers than archives permit.
    if writer.entry(&entry).is_err() {
        return;
    }
    let bytes = writer.finish().unwrap();
    let mut reader = TarReader::new(&bytes[..]);
    let again = reader.next_entry().unwrap().unwrap();
    assert!(reader.next_entry().unwrap().is_none());
    let told = |entry: &TarEntry| {
        let mut path = entry.path.as_bytes().to_vec();
        if entry.kind == EntryKind::Dir && !path.ends_with(b"/") {
            path.push(b'/');
        }
        // Other types have no device numbers.
        let rdev = matches!(entry.kind, EntryKind::CharDevice | EntryKind::BlockDevice).then_some(entry.rdev);
        (path, entry.kind, entry.mode, (entry.uid, entry.gid), entry.mtime.sec, rdev)
    };
    assert_eq!(told(&again), told(&entry));
    assert_eq!((&again.link, &again.xattrs), (&entry.link, &entry.xattrs));
}
