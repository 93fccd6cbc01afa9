//! Copies files out of an image without a container, and out of and into running containers.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use rbuild_layer::{Times, TreePacker, WhiteoutEncoding};
use rbuild_linux::{Destination, Directory, FileKind, RootDir, Stat, copy_contents, copy_file, quoted, set_file_time};
use rbuild_remedy::{FileRemedy, ImageRemedy, Remedy};
use rbuild_sandbox::Builder;
use rbuild_store::{BuildId, Image, Session, Store, Workspace};
use rbuild_transport::{WriteError, write_destination};

use crate::destination::begin;
use crate::error::{BuildError, Result};
use crate::error_context::ErrorContext;
use crate::export::local;
use crate::rootfs::snapshots;

/// Destination of copied files. The variants are the states of the destination path.
pub enum CopyTarget {
    /// A tar archive of the copied files.
    Tar(Destination),
    /// An existing directory, which the files are copied into.
    Into(RootDir),
    /// An existing file of any type other than a directory.
    Over(Destination),
    /// A path that does not exist: a file or directory is created there. `file` is `None` if the
    /// path ends in a slash, which allows only a directory.
    New { file: Option<Destination>, directory: Directory },
}

/// The part of the target that [`copy_out`] wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopiedTo {
    /// The target's file. The caller, which opened it, publishes it.
    File,
    /// A file, link or directory that already has its final name.
    Place,
}

/// An entry of an image that is being copied.
struct CopiedEntry<'a> {
    view: &'a RootDir,
    path: PathBuf,
    stat: Stat,
    /// Name when copied into a directory.
    name: OsString,
    contents_only: bool,
}

/// A path in an image that is copied.
#[derive(Debug, Clone, Copy)]
pub struct ImagePath<'a> {
    /// If it ends in `/.`, the contents of the directory are copied.
    pub path: &'a str,
    /// True if the target of a symbolic link is copied instead of the link.
    pub follow: bool,
}

/// The files that are copied from.
pub enum CopiedFiles<'a> {
    /// Those of an image.
    Image(&'a Image),
    /// Those of a running container: its root directory, opened by the launcher.
    Container(RootDir),
}

/// Files of this machine that are copied into a running container.
pub struct IncomingCopy<'a> {
    /// The root directory of this machine.
    pub from: RootDir,
    /// Absolute path of the source.
    pub source: ImagePath<'a>,
    /// The root directory of the container, opened by the launcher.
    pub container: RootDir,
    /// Path in the container.
    pub dest: &'a str,
}

/// Copies a path of this machine into a running container. Must run as root of a user namespace
/// with the IDs of the container's. The copies belong to root.
pub fn copy_in(store: &Store, copy: IncomingCopy<'_>) -> Result<()> {
    let IncomingCopy { from, source, container, dest } = copy;
    let work = Workspace::open(store)?;
    let root = work.dir().with_fd(container.into_fd(), "/");
    let asked = PathBuf::from("/").join(dest.trim_start_matches('/'));
    let fail = || BuildError::kernel(ErrorContext::ContainerFiles);
    let place = root.resolve(&asked).map_err(fail())?;
    let entry = CopiedEntry::find(&from, source, true)?;
    let there = match root.stat(&place) {
        Ok(stat) => Some(stat.kind),
        Err(e) if e.is_not_found() => None,
        Err(e) => return Err(fail()(e)),
    };
    if there == Some(FileKind::Dir) {
        return entry.copy_into(&root.sub(&place).map_err(fail())?);
    }
    if entry.is_dir() && there.is_some() {
        return Err(CopyOutError::OverFile(&place).into());
    }
    let missing = place.parent().filter(|parent| !root.exists(parent).unwrap_or(false));
    if let Some(dir) = missing.or((!entry.is_dir() && dest.ends_with('/')).then_some(&place)) {
        return Err(CopyOutError::NoDirectory(dir).into());
    }
    let (dir, name) = root.parent(&place).map_err(fail())?;
    if !entry.is_dir() {
        return entry.put(&dir, &name);
    }
    entry.create(&dir, &name)
}

/// Copies a path out of an image or a container. Must run as root of the store's user namespace. A
/// directory is copied under its own name into an existing directory, unless only its contents are
/// copied. `now` is the current time in seconds since the Unix epoch.
pub fn copy_out(
    store: &Store,
    files: CopiedFiles<'_>,
    source: ImagePath<'_>,
    target: &CopyTarget,
    builder: &Builder,
    now: i64,
) -> Result<CopiedTo> {
    let work = Workspace::open(store)?;
    let id = BuildId::of_command("cp");
    let view = match files {
        CopiedFiles::Image(image) => {
            let (trees, _) = store.trees().unpack_image(Session::new(store, &work, &id, now), image)?;
            snapshots(builder, &work)?.view(store, &work, &trees)?
        }
        CopiedFiles::Container(root) => work.dir().with_fd(root.into_fd(), "/"),
    };
    let source = CopiedEntry::find(&view, source, false)?;
    let (copied, place) = match target {
        CopyTarget::Tar(dest) => (source.tar(dest).map(|()| CopiedTo::File), dest.path()),
        CopyTarget::Into(dir) => (source.copy_into(dir).map(|()| CopiedTo::Place), dir.label().to_path_buf()),
        CopyTarget::Over(dest) => (source.copy_over(dest), dest.path()),
        CopyTarget::New { file, directory } => (source.copy_new(file.as_ref(), directory), directory.path()),
    };
    copied.map_err(|e| e.writing_to(&place))
}

impl<'a> CopiedEntry<'a> {
    /// Finds a path. `is_local` is true if it is one of this machine.
    fn find(view: &'a RootDir, ImagePath { path, follow }: ImagePath<'_>, is_local: bool) -> Result<CopiedEntry<'a>> {
        let fail = || BuildError::kernel(ErrorContext::ImageFiles);
        let contents_only = path.ends_with("/.") || path == ".";
        let asked = PathBuf::from("/").join(path.trim_start_matches('/'));
        let follows = follow || contents_only || path.ends_with('/');
        let wanted = if follows { view.resolve(&asked).map_err(fail())? } else { asked.clone() };
        let stat = match view.stat(&wanted) {
            Ok(stat) => stat,
            Err(e) if e.is_not_found() && is_local => return Err(CopyOutError::NoSource(&asked).into()),
            Err(e) if e.is_not_found() => {
                let close = close_path(view, &wanted);
                return Err(CopyOutError::Missing { path, close }.into());
            }
            Err(e) => return Err(fail()(e)),
        };
        if path.ends_with('/') && stat.kind != FileKind::Dir {
            return Err(CopyOutError::NotDirectory(path).into());
        }
        // The target of a symbolic link is copied under the link's name.
        let name = asked.file_name().or(wanted.file_name()).unwrap_or_default().to_os_string();
        Ok(CopiedEntry { view, path: wanted, stat, name, contents_only })
    }
}

/// Returns the most similar path in the directory of one that does not exist.
fn close_path(view: &RootDir, wanted: &Path) -> Option<String> {
    let (dir, name) = (wanted.parent()?, wanted.file_name()?.to_str()?);
    let entries = view.sub(dir).and_then(|dir| dir.entries()).ok()?;
    let names: Vec<String> = entries.into_iter().filter_map(|entry| entry.name.into_string().ok()).collect();
    let close = rbuild_remedy::closest_file(name, &names)?;
    Some(dir.join(close).to_string_lossy().into_owned())
}

fn writing(shown: &Path) -> impl FnOnce(rbuild_linux::Error) -> BuildError + use<> {
    BuildError::kernel(ErrorContext::CopiedFile(shown).to_string())
}

impl CopiedEntry<'_> {
    fn is_dir(&self) -> bool {
        self.stat.kind == FileKind::Dir
    }

    /// Writes the entry as a tar archive: under its own name, with all its contents.
    fn tar(&self, dest: &Destination) -> Result<()> {
        write_destination(dest, |out| {
            let mut tar = TreePacker::new(WhiteoutEncoding::Literal, out);
            let (dir, name) = self.view.parent(&self.path).map_err(BuildError::kernel(ErrorContext::ImageFiles))?;
            let packed = if self.contents_only || name.is_empty() {
                let dir = self.view.sub(&self.path).map_err(BuildError::kernel(ErrorContext::ImageFiles))?;
                tar.pack(&dir, Path::new(""), Times::AsIs)
            } else {
                tar.pack_entry(&dir, &name, Times::AsIs)
            };
            packed.and_then(|()| tar.finish()).map_err(BuildError::writing(ErrorContext::CopiedTar))
        })
    }

    fn copy_into(&self, dir: &RootDir) -> Result<()> {
        if !self.is_dir() {
            return self.put(dir, &self.name);
        }
        if self.contents_only || self.name.is_empty() {
            return self.merge(dir);
        }
        let shown = dir.label().join(&self.name);
        match dir.stat_follow(&self.name) {
            Ok(there) if there.kind != FileKind::Dir => Err(CopyOutError::OverFile(&shown).into()),
            Ok(_) => self.merge(&dir.sub(&self.name).map_err(writing(&shown))?),
            Err(_) => self.create(dir, &self.name),
        }
    }

    /// Copies a directory to a new one, which gets its mode and its time.
    fn create(&self, parent: &RootDir, name: &OsStr) -> Result<()> {
        let shown = parent.label().join(name);
        parent.create_dir(name, 0o700).map_err(writing(&shown))?;
        self.merge(&parent.sub(name).map_err(writing(&shown))?)?;
        parent.chmod(name, self.stat.mode).map_err(writing(&shown))?;
        parent.set_mtime(name, self.stat.mtime).map_err(writing(&shown))
    }

    fn copy_over(&self, dest: &Destination) -> Result<CopiedTo> {
        match (self.stat.kind, dest.place()) {
            (FileKind::Dir, _) => Err(CopyOutError::OverFile(&dest.path()).into()),
            (FileKind::Symlink, Some((dir, rest))) => {
                let (dir, name) = dir.parent(rest).map_err(writing(&dest.path()))?;
                self.put(&dir, &name).map(|()| CopiedTo::Place)
            }
            (FileKind::Symlink, None) => Err(CopyOutError::NotReplaced(&dest.path()).into()),
            _ => self.write(dest).map(|()| CopiedTo::File),
        }
    }

    fn copy_new(&self, file: Option<&Destination>, directory: &Directory) -> Result<CopiedTo> {
        let Directory { base, rest } = directory;
        let shown = directory.path();
        if self.is_dir() {
            let (parent, name) = match (rest.parent(), rest.file_name()) {
                (Some(parent), Some(name)) if parent != Path::new("") => {
                    (&base.create_dir_all(parent, 0o755, None, |_| ()).map_err(writing(&shown))?, name)
                }
                _ => (base, rest.as_os_str()),
            };
            return self.create(parent, name).map(|()| CopiedTo::Place);
        }
        match file {
            None => Err(CopyOutError::NoDirectory(&shown).into()),
            Some(_) if self.stat.kind == FileKind::Symlink => {
                self.put(base, rest.as_os_str()).map(|()| CopiedTo::Place)
            }
            Some(dest) => {
                self.write(dest)?;
                dest.set_mode(self.stat.mode).map_err(writing(&shown))?;
                Ok(CopiedTo::File)
            }
        }
    }

    fn open(&self) -> Result<File> {
        let fail = || BuildError::kernel(ErrorContext::ImageFiles);
        if self.stat.kind != FileKind::File {
            return Err(CopyOutError::Special(&self.path).into());
        }
        let (dir, name) = self.view.parent(&self.path).map_err(fail())?;
        dir.open_name(&name).map_err(fail())
    }

    fn write(&self, dest: &Destination) -> Result<()> {
        let (from, to) = (self.open()?, begin(dest)?);
        if dest.place().is_none() {
            let copied = copy_contents(&from, to);
            return copied.map(drop).map_err(writing(&dest.path()));
        }
        copy_file(&from, &self.stat, to).map_err(writing(&dest.path()))?;
        set_file_time(to, None, self.stat.mtime).map_err(writing(&dest.path()))
    }

    /// Writes a file or a symbolic link as a direct child of a directory. Fails if a device, FIFO
    /// or socket exists there: they can be written to if they are the destination itself, but are
    /// never replaced.
    fn put(&self, dir: &RootDir, name: &OsStr) -> Result<()> {
        let shown = dir.label().join(name);
        let there = dir.stat_name(name).ok().map(|stat| stat.kind);
        match (self.stat.kind, there) {
            (_, Some(FileKind::Dir)) => Err(CopyOutError::OverDirectory(&shown).into()),
            (FileKind::Symlink, None | Some(FileKind::File | FileKind::Symlink)) => {
                let fail = || BuildError::kernel(ErrorContext::ImageFiles);
                let (from, from_name) = self.view.parent(&self.path).map_err(fail())?;
                let target = from.read_link(&from_name).map_err(fail())?;
                local::replace(dir, &shown, name, |dir, temp| dir.create_symlink(&target, temp))
            }
            (FileKind::Symlink, Some(_)) => Err(CopyOutError::NotReplaced(&shown).into()),
            (_, Some(FileKind::CharDevice | FileKind::BlockDevice | FileKind::Fifo | FileKind::Socket)) => {
                Err(CopyOutError::NotReplaced(&shown).into())
            }
            (_, None | Some(FileKind::File | FileKind::Symlink)) => {
                let from = self.open()?;
                let mut file = rbuild_linux::AtomicFile::create(dir, 0o600).map_err(writing(&shown))?;
                copy_file(&from, &self.stat, file.file()).map_err(writing(&shown))?;
                file.finish(self.stat.mode, self.stat.mtime, name).map_err(writing(&shown))
            }
        }
    }

    fn merge(&self, dir: &RootDir) -> Result<()> {
        let from = self.view.sub(&self.path).map_err(BuildError::kernel(ErrorContext::ImageFiles))?;
        local::export(&from.into(), dir, None, None, &AtomicU64::new(0)).map(|_| ())
    }
}

/// The reason why an entry cannot be copied to its destination. Paths are on this machine, unless
/// stated otherwise.
#[derive(Debug, Clone)]
enum CopyOutError<'a> {
    /// The image has no file of that path, but perhaps one of a similar path.
    Missing {
        path: &'a str,
        close: Option<String>,
    },
    /// The path in the image ends in a slash, but is not a directory.
    NotDirectory(&'a str),
    /// The path in the image is a device, a FIFO or a socket.
    Special(&'a Path),
    /// The source on this machine does not exist.
    NoSource(&'a Path),
    NoDirectory(&'a Path),
    OverDirectory(&'a Path),
    OverFile(&'a Path),
    NotReplaced(&'a Path),
}

impl From<CopyOutError<'_>> for BuildError {
    fn from(reason: CopyOutError<'_>) -> BuildError {
        let message = match &reason {
            CopyOutError::Missing { path, .. } => format!("`{path}` does not exist in the image"),
            CopyOutError::NotDirectory(path) => format!("`{path}` is not a directory in the image"),
            CopyOutError::Special(path) => {
                format!("{} is neither a file, a directory nor a symbolic link", quoted(path))
            }
            CopyOutError::NoSource(path) => format!("{} does not exist", quoted(path)),
            CopyOutError::NoDirectory(path) => format!("the directory {} does not exist", quoted(path)),
            CopyOutError::OverDirectory(path) => format!("{} is a directory, and a file in the image", quoted(path)),
            CopyOutError::OverFile(path) => format!("{} is a file, and a directory in the image", quoted(path)),
            CopyOutError::NotReplaced(path) => {
                format!("{} is not a regular file and will not be replaced", quoted(path))
            }
        };
        let help = match reason {
            CopyOutError::Missing { close: Some(close), .. } => Some(Remedy::did_you_mean(close)),
            CopyOutError::Missing { close: None, .. } => Some(Remedy::Image(ImageRemedy::ListFiles)),
            CopyOutError::NotDirectory(_) | CopyOutError::Special(_) | CopyOutError::NoSource(_) => None,
            CopyOutError::NoDirectory(_) => Some(FileRemedy::CreateDirectory.into()),
            CopyOutError::OverDirectory(_) | CopyOutError::NotReplaced(_) => Some(FileRemedy::PassSpecialFile.into()),
            CopyOutError::OverFile(_) => Some(FileRemedy::PassDirectory.into()),
        };
        BuildError::Other { message, help }
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;

    #[test]
    fn messages_are_as_recorded() {
        let path = Path::new("out/a");
        let reasons = [
            CopyOutError::Missing { path: "/etc/nosuch", close: None },
            CopyOutError::Missing { path: "/etc/pasword", close: Some("/etc/passwd".into()) },
            CopyOutError::NotDirectory("/etc/passwd/"),
            CopyOutError::Special(Path::new("/dev/null")),
            CopyOutError::NoSource(path),
            CopyOutError::NoDirectory(path),
            CopyOutError::OverDirectory(path),
            CopyOutError::OverFile(path),
            CopyOutError::NotReplaced(path),
        ];
        let variants = variants!(CopyOutError {
            Missing,
            NotDirectory,
            Special,
            NoSource,
            NoDirectory,
            OverDirectory,
            OverFile,
            NotReplaced
        });
        let words = |reason: &CopyOutError<'_>| {
            let e = BuildError::from(reason.clone());
            format!("{e}\n  remedy: {:?}", e.help())
        };
        assert_recorded!("CopyOutError", variants.words(&reasons, words));
    }
}
