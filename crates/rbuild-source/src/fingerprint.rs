//! Fingerprints of selected files, to detect changes between hashing and copying.

use std::ffi::{OsStr, OsString};
use std::hash::Hasher;
use std::ops::AddAssign;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rbuild_linux::{FileKind, FileStamp, RootDir, Stat, UidGid, Xattrs};

use crate::select::{Owner, Selected, SourceError};

/// An order-independent fingerprint of a selection: names, kinds, modes, owners, link targets,
/// attributes of directories, sizes and times of files. It differs if a relevant file is changed,
/// created, removed or renamed between two passes. It detects concurrent changes, but is not
/// collision resistant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fingerprint(u64);

impl AddAssign for Fingerprint {
    fn add_assign(&mut self, other: Fingerprint) {
        self.0 = self.0.wrapping_add(other.0);
    }
}

/// Data of an entry that stat(2) does not return. Read once, for hashing and for copying.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Details {
    /// Extended attributes of a directory that are stored in images.
    Attributes(Xattrs),
    /// Target of a symbolic link.
    Target(OsString),
    /// Nothing: any other kind of file.
    None,
}

impl Details {
    /// Reads the details of the child `name` of `parent`.
    pub fn read(parent: &RootDir, name: &OsStr, stat: &Stat) -> Result<Details, SourceError> {
        Ok(match stat.kind {
            FileKind::Dir => {
                let mut attributes = parent.xattrs(name)?;
                attributes.retain(|attr, _| rbuild_layer::keep_in_layer(attr));
                Details::Attributes(attributes)
            }
            FileKind::Symlink => Details::Target(parent.read_link(name)?),
            _ => Details::None,
        })
    }
}

impl Fingerprint {
    /// Returns the fingerprint of a copied entry. `path` is relative to the root of the source.
    pub fn of_entry(path: &Path, owner: Owner, stat: &Stat, details: &Details) -> Fingerprint {
        let mut print = FingerprintHasher::default();
        print.bytes(path.as_os_str().as_bytes());
        print.numbers(stat.kind.bits(), if stat.kind == FileKind::Symlink { 0 } else { owner.mode(stat) });
        let UidGid { uid, gid } = owner.ids(stat);
        print.numbers(uid, gid);
        print.numbers(stat.rdev.0, stat.rdev.1);
        match details {
            Details::Attributes(attributes) => attributes.iter().for_each(|(attr, value)| {
                print.bytes(attr.as_bytes());
                print.bytes(value);
            }),
            Details::Target(target) => print.bytes(target.as_bytes()),
            Details::None => {}
        }
        if stat.kind == FileKind::File {
            print.0.write_u64(FileStamp::of(stat).sum());
        }
        print.end()
    }
}

impl Selected {
    /// Returns the fingerprint of the selected name, without the content.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut print = FingerprintHasher::default();
        print.bytes(self.path.as_os_str().as_bytes());
        print.bytes(self.name.as_os_str().as_bytes());
        print.numbers(self.stat.kind.bits(), self.take as u32);
        print.end()
    }
}

#[derive(Default)]
struct FingerprintHasher(std::hash::DefaultHasher);

impl FingerprintHasher {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.write_usize(bytes.len());
        self.0.write(bytes);
    }

    fn numbers(&mut self, one: u32, other: u32) {
        self.0.write_u64(u64::from(one) << 32 | u64::from(other));
    }

    fn end(self) -> Fingerprint {
        Fingerprint(self.0.finish())
    }
}
