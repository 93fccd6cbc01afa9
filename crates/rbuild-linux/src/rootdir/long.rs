//! Resolution of paths longer than the kernel accepts in one call (PATH_MAX, 4096 bytes including
//! the terminator).
//!
//! Such paths are opened piece by piece. Each piece is resolved without following links, which
//! would resolve against the previous piece instead of the root. A link is read and replaced by its
//! target, so that a long path resolves like a short one.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, Result};

/// Length of a path resolved in one call, in bytes; leaves room for a last name of up to 255 bytes.
pub(super) const MAX_AT_ONCE: usize = 3072;

/// Maximum number of symbolic links that one resolution follows, as in the kernel (MAXSYMLINKS).
pub const MAX_SYMLINKS: usize = 40;

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);
const UNFOLLOWED: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW);

/// Opens a path of any length below `root`.
pub(super) fn open(root: BorrowedFd<'_>, path: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    let mut way = Resolution::new(root, &unresolved(path));
    loop {
        let piece = way.next_piece()?;
        let last = way.todo.is_empty();
        match open_without_links(way.here(), &piece, if last { flags } else { DIRECTORY }, mode) {
            Ok(fd) if last => return Ok(fd),
            Ok(fd) => way.go(fd, piece),
            Err(Errno::LOOP) => way.follow(piece, last && flags.contains(OFlags::NOFOLLOW))?,
            Err(e) => return Err(e),
        }
    }
}

/// Returns true if all components of a path exist and none of them is a link.
pub(super) fn has_no_link(root: BorrowedFd<'_>, parts: &[OsString]) -> bool {
    if parts.is_empty() || parts.iter().any(|part| part == "..") {
        return false;
    }
    let mut way = Resolution::new(root, parts);
    while !way.todo.is_empty() {
        let Ok(piece) = way.next_piece() else { return false };
        match open_without_links(way.here(), &piece, OFlags::PATH, Mode::empty()) {
            Ok(fd) => way.go(fd, piece),
            Err(_) => return false,
        }
    }
    true
}

/// Opens a piece of a path, refusing links.
fn open_without_links(dir: BorrowedFd<'_>, piece: &[OsString], flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    let path: PathBuf = if piece.is_empty() { ".".into() } else { piece.iter().collect() };
    let resolve = IN_ROOT.union(ResolveFlags::NO_SYMLINKS);
    openat2_by(dir, &path, flags, mode, resolve)
}

/// A path resolution in progress.
struct Resolution<'a> {
    root: BorrowedFd<'a>,
    /// The directory at `done`; `None` means the root.
    at: Option<OwnedFd>,
    done: Vec<OsString>,
    /// Remaining components, in reverse order.
    todo: Vec<OsString>,
    links: usize,
}

impl Resolution<'_> {
    fn new<'a>(root: BorrowedFd<'a>, parts: &[OsString]) -> Resolution<'a> {
        Resolution { root, at: None, done: Vec::new(), todo: parts.iter().rev().cloned().collect(), links: 0 }
    }

    fn here(&self) -> BorrowedFd<'_> {
        self.at.as_ref().map_or(self.root, |fd| fd.as_fd())
    }

    fn go(&mut self, to: OwnedFd, piece: Vec<OsString>) {
        self.at = Some(to);
        self.done.extend(piece);
    }

    /// Returns the next components that can be opened in one call. `..` ascends along `done`, which
    /// contains no links.
    fn next_piece(&mut self) -> Result<Vec<OsString>> {
        while self.todo.last().is_some_and(|part| part == "..") {
            self.todo.pop();
            self.done.pop();
            self.at = None;
            let mut again = Resolution::new(self.root, &self.done);
            while !again.todo.is_empty() {
                let piece = again.next_piece()?;
                let fd = open_without_links(again.here(), &piece, DIRECTORY, Mode::empty())?;
                again.go(fd, piece);
            }
            self.at = again.at;
        }
        let (mut piece, mut bytes) = (Vec::new(), 0);
        while let Some(part) = self.todo.last().filter(|part| *part != "..") {
            bytes += part.len() + 1;
            if bytes > MAX_AT_ONCE && !piece.is_empty() {
                break;
            }
            piece.extend(self.todo.pop());
        }
        Ok(piece)
    }

    /// Resolves a piece up to its first link, and replaces that link by its target. A link in the
    /// last component is kept if the caller does not follow it.
    fn follow(&mut self, piece: Vec<OsString>, last_stays: bool) -> Result<()> {
        let mut parts = piece.into_iter();
        while let Some(part) = parts.next() {
            if last_stays && parts.len() == 0 {
                return Err(Errno::LOOP);
            }
            let fd = rustix::fs::openat(self.here(), &part, UNFOLLOWED | OFlags::CLOEXEC, Mode::empty())?;
            let target = match rustix::fs::readlinkat(&fd, c"", Vec::new()) {
                Ok(target) => OsString::from_vec(target.into_bytes()),
                // Not a link (readlink(2)).
                Err(Errno::INVAL | Errno::NOENT) => {
                    self.go(fd, vec![part]);
                    continue;
                }
                Err(e) => return Err(e),
            };
            self.links += 1;
            if self.links > MAX_SYMLINKS {
                return Err(Errno::LOOP);
            }
            self.todo.extend(parts.rev());
            self.todo.extend(unresolved(Path::new(&target)).into_iter().rev());
            if target.as_bytes().first() == Some(&b'/') {
                (self.at, self.done) = (None, Vec::new());
            }
            return Ok(());
        }
        // The link was replaced meanwhile; all components were opened.
        self.links += 1;
        if self.links > MAX_SYMLINKS { Err(Errno::LOOP) } else { Ok(()) }
    }
}

pub(super) const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

pub(super) fn openat2_by(
    dir: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    // EAGAIN: a rename or mount raced with the resolution, and has to be retried
    // (openat2(2)).
    for _ in 0..128 {
        match rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, mode, resolve) {
            Err(Errno::AGAIN) => continue,
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

pub(super) fn unresolved(path: &Path) -> Vec<OsString> {
    rbuild_paths::unresolved(path).map(OsString::from).collect()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use rbuild_testkit::Scratch;

    use super::*;
    use crate::rootdir::RootDir;

    #[test]
    fn long_paths_resolve_like_short_ones() {
        let scratch = Scratch::new();
        let root = RootDir::open(&scratch).unwrap();
        let deep: PathBuf = std::iter::repeat_n("d", 5_000).collect();
        let end = root.create_dir_all(&deep, 0o755, None, |_| ()).unwrap();
        end.create_file(OsStr::new("f"), 0o644).unwrap();
        root.create_symlink(OsStr::new("/d/./d"), OsStr::new("top")).unwrap();
        end.create_symlink(OsStr::new("/d"), OsStr::new("up")).unwrap();
        end.create_symlink(OsStr::new("round"), OsStr::new("round")).unwrap();
        let inode = |path: &Path| root.stat(path).map(|stat| stat.ino);
        let file = inode(&deep.join("f")).unwrap();
        let below: PathBuf = std::iter::repeat_n("d", 4_998).collect();
        assert_eq!(inode(&Path::new("top").join(&below).join("f")).unwrap(), file);
        assert_eq!(inode(&deep.join("up").join(&below).join("d/f")).unwrap(), file);
        assert_eq!(inode(&deep.join("..").join("d/f")).unwrap(), file);
        assert_eq!(root.resolve(deep.join("up/x")).unwrap(), Path::new("/d/x"));
        assert_eq!(root.resolve(&deep).unwrap(), Path::new("/").join(&deep));
        assert!(root.stat(deep.join("round")).unwrap().kind == crate::FileKind::Symlink);
        assert_eq!(root.stat_follow(deep.join("round")).unwrap_err().errno(), Some(libc::ELOOP));
        assert!(root.stat(deep.join("none")).unwrap_err().is_not_found());
        root.remove_all(OsStr::new("d")).unwrap();
    }
}
