//! Paths of several components: creation of missing directories, and resolution of links.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::error::Result;
use crate::meta::FileKind;
use crate::rootdir::dir::RootDir;
use crate::rootdir::long::{self, clean_dotted};

impl RootDir {
    /// Creates the directory `path` and its missing parents, each with `mode` and `owner`, and
    /// calls `made` with the path of each new one. Symlinks in the path are followed inside the
    /// root.
    pub fn create_dir_all(
        &self,
        path: impl AsRef<Path>,
        mode: u32,
        owner: Option<(u32, u32)>,
        mut made: impl FnMut(&Path),
    ) -> Result<RootDir> {
        let parts: Vec<OsString> =
            rbuild_paths::os_in_root(path.as_ref()).into_iter().map(OsStr::to_os_string).collect();
        let (mut at, mut walked) = self.nearest(&parts)?;
        for part in parts.into_iter().skip(walked.components().count()) {
            let next = walked.join(&part);
            // A link is resolved against the root, not against `at`.
            let found = match at.stat_name(&part) {
                Ok(stat) if stat.kind == FileKind::Dir => at.sub(&part),
                Ok(_) => self.sub(&next),
                Err(e) => Err(e),
            };
            match found {
                Ok(dir) => at = dir,
                Err(e) if e.is_not_found() => {
                    match at.create_dir(&part, mode) {
                        Ok(()) => {}
                        // Another process or thread created it in between; or a dangling link
                        // exists, which remains an error.
                        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                            at = self.sub(&next).map_err(|_| e)?;
                            walked = next;
                            continue;
                        }
                        Err(e) => return Err(e),
                    }
                    if let Some((uid, gid)) = owner {
                        at.chown(&part, uid, gid)?;
                    }
                    at.chmod(&part, mode)?;
                    made(&next);
                    at = at.sub(&part)?;
                }
                Err(e) => return Err(e),
            }
            walked = next;
        }
        Ok(at)
    }

    /// Returns the directory of a path if it exists, else its parent, else the root; with its path.
    /// Most of a deep path usually exists, and this opens it in one call.
    fn nearest(&self, parts: &[OsString]) -> Result<(RootDir, PathBuf)> {
        for there in [parts.len(), parts.len().saturating_sub(1)] {
            let path: PathBuf = parts[..there].iter().collect();
            match self.sub(&path) {
                Ok(dir) => return Ok((dir, path)),
                Err(e) if e.is_not_found() => {}
                Err(_) => break,
            }
        }
        Ok((self.try_clone()?, PathBuf::new()))
    }

    /// Replaces all symbolic links in the existing part of the path and appends the rest unchanged.
    /// The result is absolute and contains no `..`. It describes a single moment, so use it for
    /// naming files, not for accessing them.
    pub fn resolve(&self, path: impl AsRef<Path>) -> Result<PathBuf> {
        Ok(self.resolve_by(path, |_| true)?.unwrap_or_default())
    }

    /// Like [`RootDir::resolve`], but returns `None` on a link for which `may_follow` returns
    /// false.
    pub fn resolve_by(&self, path: impl AsRef<Path>, may_follow: impl Fn(&Path) -> bool) -> Result<Option<PathBuf>> {
        let mut done = PathBuf::from("/");
        let mut todo: Vec<OsString> = clean_dotted(path.as_ref());
        if long::has_no_link(self.fd(), &todo) {
            done.extend(todo);
            return Ok(Some(done));
        }
        todo.reverse();
        // The directory `done`, if it is one.
        let mut at = Some(self.try_clone()?);
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if part == ".." {
                done.pop();
                at = self.sub(&done).ok();
                continue;
            }
            let here = done.join(&part);
            let found = at.as_ref().map(|dir| (dir, dir.stat_name(&part)));
            match found {
                Some((dir, Ok(stat))) if stat.kind == FileKind::Symlink => {
                    if !may_follow(here.strip_prefix("/").unwrap_or(&here)) {
                        return Ok(None);
                    }
                    links += 1;
                    if links > long::MOST_LINKS {
                        return Err(self.err("openat2", path.as_ref(), Errno::LOOP));
                    }
                    let target = PathBuf::from(dir.read_link(&part)?);
                    if target.is_absolute() {
                        done = PathBuf::from("/");
                        at = Some(self.try_clone()?);
                    }
                    todo.extend(clean_dotted(&target).into_iter().rev());
                    continue;
                }
                Some((dir, Ok(stat))) if stat.kind == FileKind::Dir => at = Some(dir.sub(&part)?),
                Some((_, Err(e))) if !e.is_not_found() && e.errno() != Some(libc::ENOTDIR) => return Err(e),
                _ => at = None,
            }
            done = here;
        }
        Ok(Some(done))
    }
}
