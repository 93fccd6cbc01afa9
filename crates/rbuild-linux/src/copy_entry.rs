//! Copies of single directory entries with their metadata.

use std::ffi::OsStr;
use std::ops::ControlFlow;

use crate::copy::copy_file_while;
use crate::error::Result;
use crate::meta::{FileKind, Stat, UidGid};
use crate::rootdir::RootDir;

/// Treatment of sockets, which are useless without their process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketCopies {
    /// A socket that no process listens on.
    Sockets,
    /// An empty regular file.
    Files,
}

/// Properties of the copy of an entry. The modification time is always that of the original.
#[derive(Clone, Copy)]
pub struct EntryCopy<'a> {
    /// Owner of the copy.
    pub owner: UidGid,
    /// Mode of the copy. Symbolic links have none.
    pub mode: u32,
    /// Target of a symbolic link, if it has been read before.
    pub target: Option<&'a OsStr>,
    /// Treatment of sockets.
    pub sockets: SocketCopies,
    /// Selects the extended attributes of a regular file that are copied. With `None`, they are not
    /// read.
    pub keep_attribute: Option<fn(&OsStr) -> bool>,
    /// Called every few megabytes of a regular file. The copy ends early when it returns false.
    pub go_on: &'a dyn Fn() -> bool,
}

impl EntryCopy<'_> {
    /// Returns the properties of an exact copy without extended attributes.
    pub fn of(stat: &Stat) -> EntryCopy<'static> {
        EntryCopy {
            owner: stat.owner(),
            mode: stat.mode,
            target: None,
            sockets: SocketCopies::Sockets,
            keep_attribute: None,
            go_on: &|| true,
        }
    }
}

/// Copies the entry `name` of `from`, which is not a directory and has the metadata `stat`, to the
/// unused name `to_name` in `to`. Holes of files are preserved, hard links are not. Breaks, with an
/// incomplete copy, if `go_on` returned false.
///
/// # Errors
///
/// Fails if the entry cannot be read or created, or if its metadata cannot be set.
pub fn copy_entry(
    from: &RootDir,
    name: &OsStr,
    stat: &Stat,
    to: &RootDir,
    to_name: &OsStr,
    copy: &EntryCopy<'_>,
) -> Result<ControlFlow<()>> {
    match (stat.kind, copy.sockets) {
        (FileKind::File, _) => {
            let read = from.open_name(name)?;
            if copy_file_while(&read, stat, &to.create_file(to_name, 0o600)?, copy.go_on)?.is_none() {
                return Ok(ControlFlow::Break(()));
            }
        }
        (FileKind::Symlink, _) => match copy.target {
            Some(target) => to.create_symlink(target, to_name)?,
            None => to.create_symlink(&from.read_link(name)?, to_name)?,
        },
        (FileKind::Socket, SocketCopies::Files) => drop(to.create_file(to_name, 0o600)?),
        (kind, _) => to.create_node(to_name, kind, copy.mode, stat.rdev)?,
    }
    to.chown(to_name, copy.owner)?;
    if stat.kind != FileKind::Symlink {
        to.chmod(to_name, copy.mode)?;
    }
    if let (FileKind::File, Some(keep)) = (stat.kind, copy.keep_attribute) {
        for (attribute, value) in from.xattrs(name)?.iter().filter(|(attribute, _)| keep(attribute)) {
            to.set_xattr(to_name, attribute, value)?;
        }
    }
    to.set_mtime(to_name, stat.mtime)?;
    Ok(ControlFlow::Continue(()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    use rbuild_testkit::Scratch;

    use super::*;
    use crate::meta::Timestamp;

    /// A scratch directory that contains one entry of each kind that an ordinary user can create.
    struct Entries {
        dir: RootDir,
        _scratch: Scratch,
    }

    impl Entries {
        fn new() -> Entries {
            let path = Scratch::new();
            let dir = RootDir::open(&path).unwrap();
            dir.create_file(OsStr::new("file"), 0o600).unwrap().write_all(b"content").unwrap();
            dir.set_xattr(OsStr::new("file"), OsStr::new("user.kept"), b"1").unwrap();
            dir.set_xattr(OsStr::new("file"), OsStr::new("user.dropped"), b"1").unwrap();
            dir.create_symlink(OsStr::new("nowhere"), OsStr::new("link")).unwrap();
            dir.create_node(OsStr::new("fifo"), FileKind::Fifo, 0o600, (0, 0)).unwrap();
            drop(UnixListener::bind(path.join("socket")).unwrap());
            for name in ["file", "fifo", "socket"] {
                dir.chmod(OsStr::new(name), 0o2751).unwrap();
            }
            for name in ["file", "link", "fifo", "socket"] {
                dir.set_mtime(OsStr::new(name), Timestamp { sec: 5, nsec: 7 }).unwrap();
            }
            Entries { dir, _scratch: path }
        }

        fn try_copy<'a>(&self, name: &str, copy: impl FnOnce(&Stat) -> EntryCopy<'a>) -> ControlFlow<()> {
            let dir = &self.dir;
            let stat = dir.stat_name(OsStr::new(name)).unwrap();
            copy_entry(dir, OsStr::new(name), &stat, dir, OsStr::new("copy"), &copy(&stat)).unwrap()
        }

        fn copy(&self, name: &str, copy: impl FnOnce(&Stat) -> EntryCopy<'static>) -> Stat {
            assert!(self.try_copy(name, copy).is_continue());
            self.dir.stat_name(OsStr::new("copy")).unwrap()
        }

        fn remove_copy(&self) {
            self.dir.remove_file(OsStr::new("copy")).unwrap();
        }
    }

    #[test]
    fn copies_have_the_metadata_of_the_originals() {
        let entries = Entries::new();
        for name in ["file", "link", "fifo", "socket"] {
            let stat = entries.dir.stat_name(OsStr::new(name)).unwrap();
            let copy = entries.copy(name, EntryCopy::of);
            let seen = |s: &Stat| (s.kind, s.mode, s.owner(), s.mtime, s.size, s.nlink);
            assert_eq!(seen(&copy), seen(&stat), "{name}");
            entries.remove_copy();
        }
        entries.copy("file", EntryCopy::of);
        assert_eq!(entries.dir.read("copy", 100).unwrap(), b"content");
        assert!(entries.dir.xattrs(OsStr::new("copy")).unwrap().is_empty());
        entries.remove_copy();
        entries.copy("link", EntryCopy::of);
        assert_eq!(entries.dir.read_link(OsStr::new("copy")).unwrap(), "nowhere");
    }

    #[test]
    fn properties_of_copies_can_differ() {
        let entries = Entries::new();
        let keep: fn(&OsStr) -> bool = |attribute| attribute == "user.kept";
        let file =
            entries.copy("file", |stat| EntryCopy { mode: 0o640, keep_attribute: Some(keep), ..EntryCopy::of(stat) });
        assert_eq!(file.mode, 0o640);
        let attributes = entries.dir.xattrs(OsStr::new("copy")).unwrap();
        assert_eq!(attributes.keys().collect::<Vec<_>>(), ["user.kept"]);
        entries.remove_copy();
        entries.copy("link", |stat| EntryCopy { target: Some(OsStr::new("else")), ..EntryCopy::of(stat) });
        assert_eq!(entries.dir.read_link(OsStr::new("copy")).unwrap(), "else");
        entries.remove_copy();
        let socket = entries.copy("socket", |stat| EntryCopy { sockets: SocketCopies::Files, ..EntryCopy::of(stat) });
        assert_eq!((socket.kind, socket.mode, socket.size), (FileKind::File, 0o2751, 0));
        entries.remove_copy();
        // A file with a hole is copied in parts, and one of this size not by a reflink.
        let sparse = entries.dir.create_file(OsStr::new("sparse"), 0o600).unwrap();
        (&sparse).write_all(&[7; 4096]).unwrap();
        sparse.set_len(60_000).unwrap();
        let copy = |go_on: bool| {
            let go_on = move || go_on;
            entries.try_copy("sparse", |stat| EntryCopy { go_on: &go_on, ..EntryCopy::of(stat) })
        };
        assert!(copy(false).is_break());
        entries.remove_copy();
        assert!(copy(true).is_continue());
        assert_eq!(entries.dir.read("copy", 1 << 20).unwrap().len(), 60_000);
    }
}
