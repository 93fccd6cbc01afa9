use std::ffi::{OsStr, OsString};
use std::hash::Hasher;
use std::ops::AddAssign;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rbuild_linux::{Kind, RootDir, Stat, Xattrs};

use crate::select::{Owner, Selected, SourceError};
use crate::stamp::Stamp;

/// Everything that was seen of a selection, added up in any order: names, kinds, modes, owners, targets of links,
/// attributes of directories, sizes and times of files. What counts and was changed, made, removed or renamed between
/// two looks makes them differ. Against files that change meanwhile, not against somebody who wants looks to be equal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sight(u64);

impl AddAssign for Sight {
    fn add_assign(&mut self, other: Sight) {
        self.0 = self.0.wrapping_add(other.0);
    }
}

/// What is not in the metadata of an entry, and is read once, for who looks and for who copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Details {
    /// Of a directory: those that images hold.
    Attributes(Xattrs),
    /// Of a link.
    Target(OsString),
    None,
}

impl Details {
    pub fn read(parent: &RootDir, name: &OsStr, stat: &Stat) -> Result<Details, SourceError> {
        Ok(match stat.kind {
            Kind::Dir => {
                let mut attributes = parent.xattrs(name)?;
                attributes.retain(|attr, _| rbuild_layer::keep_in_layer(attr));
                Details::Attributes(attributes)
            }
            Kind::Symlink => Details::Target(parent.read_link(name)?),
            _ => Details::None,
        })
    }
}

impl Sight {
    /// Of an entry that is copied; `path` is relative to the root of the source.
    pub fn of_entry(path: &Path, owner: Owner, stat: &Stat, details: &Details) -> Sight {
        let mut look = Look::default();
        look.bytes(path.as_os_str().as_bytes());
        look.numbers(stat.kind.bits(), if stat.kind == Kind::Symlink { 0 } else { owner.mode(stat) });
        let (uid, gid) = owner.ids(stat);
        look.numbers(uid, gid);
        look.numbers(stat.rdev.0, stat.rdev.1);
        match details {
            Details::Attributes(attributes) => attributes.iter().for_each(|(attr, value)| {
                look.bytes(attr.as_bytes());
                look.bytes(value);
            }),
            Details::Target(target) => look.bytes(target.as_bytes()),
            Details::None => {}
        }
        if stat.kind == Kind::File {
            look.0.write_u64(Stamp::of(stat).sum());
        }
        look.end()
    }
}

impl Selected {
    /// What a source selects, whatever is in it.
    pub fn sight(&self) -> Sight {
        let mut look = Look::default();
        look.bytes(self.path.as_os_str().as_bytes());
        look.bytes(self.name.as_os_str().as_bytes());
        look.numbers(self.stat.kind.bits(), self.take as u32);
        look.end()
    }
}

#[derive(Default)]
struct Look(std::hash::DefaultHasher);

impl Look {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.write_usize(bytes.len());
        self.0.write(bytes);
    }

    fn numbers(&mut self, one: u32, other: u32) {
        self.0.write_u64(u64::from(one) << 32 | u64::from(other));
    }

    fn end(self) -> Sight {
        Sight(self.0.finish())
    }
}
