//! Opens build contexts: the main one with its Dockerfile and ignore file, and named ones.

use rbuild_dockerfile::Help;
use std::error::Error;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use rbuild_engine::{ContextDir, IgnoreFile, Warning};
use rbuild_image::{Platform, SourceUrl, hide_logins};
use rbuild_linux::{RootDir, quoted};
use rbuild_plan::{ContextSource, NamedContext, WrittenImage};
use rbuild_source::{Owner, SourceError, SourceTree};
use rbuild_store::{Store, Workspace};

use crate::args::BuildArgs;
use crate::cli::usage;
use crate::exit::Failure;
use crate::input::stdin::{self, StdinUse};
use crate::input::value;
use crate::input::{file_names, flags};
use crate::ui::diagnostics::STDIN_NAME;
use crate::ui::hints::{Hint, InputRemedy, UsageRemedy};
use crate::ui::terminal;

mod remote;
mod untrusted;

#[cfg(test)]
mod tests;

pub use remote::FetchFile;

/// The main build context and the Dockerfile.
pub struct MainContext {
    /// `None` if standard input was a Dockerfile without a context.
    pub dir: Option<ContextDir>,
    /// Name of the Dockerfile for errors.
    pub dockerfile_name: String,
    pub dockerfile: Vec<u8>,
    /// Modification time of a context from an archive or a URL, in seconds since the Unix epoch:
    /// that of the server, or of the newest file.
    pub newest: Option<i64>,
    /// The directory with the files of an archive or from a URL; removed when this is dropped.
    pub unpacked: Option<Workspace>,
}

/// A Dockerfile that is not part of the context.
struct OuterDockerfile {
    /// Name for errors.
    name: String,
    bytes: Vec<u8>,
}

/// The inputs of the main context.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    args: &'a BuildArgs,
    store: &'a Store,
    fetch: &'a FetchFile<'a>,
}

/// Opens the main context and reads the Dockerfile. Files from URLs are downloaded by `fetch`.
pub fn main(args: &BuildArgs, store: &Store, fetch: &FetchFile<'_>) -> Result<MainContext, Failure> {
    let inputs = Inputs { args, store, fetch };
    let text = args.context.as_str();
    if text == "-" {
        return match args.file.as_deref() {
            Some("-") => Err(Failure::usage("the context and the Dockerfile cannot both be standard input")
                .help(InputRemedy::PassOneAsPath)),
            _ => inputs.stdin_context(),
        };
    }
    if let Some(url) = remote::file_url("the context", text)? {
        return inputs.url_context(&url);
    }
    if is_remote(text) {
        return Err(remote::unsupported("the context", text));
    }
    let path = directory(text).map_err(|failure| match usage::detached_value("build", text) {
        Some(remedy) => failure.help(remedy),
        None => failure,
    })?;
    let Some(OuterDockerfile { name, bytes }) = inputs.outer_dockerfile()? else { return from_directory(args, path) };
    let ignore = match &args.ignorefile {
        Some(file) => Some(given_ignore(file)?),
        None => ignore_of(&open(&path)?, text)?,
    };
    let dir = Some(ContextDir { path, ignore });
    Ok(MainContext { dir, dockerfile_name: name, dockerfile: bytes, newest: None, unpacked: None })
}

impl Inputs<'_> {
    /// Reads the Dockerfile if it is standard input or a URL.
    fn outer_dockerfile(&self) -> Result<Option<OuterDockerfile>, Failure> {
        let Some(text) = self.args.file.as_deref() else { return Ok(None) };
        if text == "-" {
            return Ok(Some(OuterDockerfile { name: STDIN_NAME.into(), bytes: stdin_bytes()? }));
        }
        let Some(url) = remote::file_url("the Dockerfile", text)? else { return Ok(None) };
        let bytes = self.store.blobs().read_document(&(self.fetch)(&url)?.digest)?;
        Ok(Some(OuterDockerfile { name: url.to_string(), bytes }))
    }

    /// Downloads the context: a tar archive, compressed or not, or a file. Without `-f`, that file
    /// is the Dockerfile.
    fn url_context(&self, url: &SourceUrl) -> Result<MainContext, Failure> {
        let download = (self.fetch)(url)?;
        let mut head = Vec::new();
        let file = self.store.blobs().open_blob(&download.digest)?;
        file.take(512).read_to_end(&mut head).map_err(|e| remote::unread(&e))?;
        if is_archive(&head) {
            let context = self.archive_context(&format!("`{url}`"), self.store.blobs().open_blob(&download.digest)?)?;
            return Ok(MainContext { newest: download.modified.or(context.newest), ..context });
        }
        let OuterDockerfile { name, bytes } = match (self.outer_dockerfile()?, &self.args.file) {
            (Some(outer), _) => outer,
            (None, Some(file)) => {
                return Err(two_dockerfiles(&format!("`{url}`"), file, InputRemedy::OmitFileOrPassUrl));
            }
            (None, None) => {
                OuterDockerfile { name: url.to_string(), bytes: self.store.blobs().read_document(&download.digest)? }
            }
        };
        let (path, work) = remote::one_file(self.store, &download)?;
        let dir = Some(ContextDir { path, ignore: self.given_ignore()? });
        let (dockerfile_name, dockerfile) = (name, bytes);
        Ok(MainContext { dir, dockerfile_name, dockerfile, newest: download.modified, unpacked: Some(work) })
    }
}

/// Returns true if `head`, the beginning of a file, is that of a tar archive or of a compressed
/// file.
fn is_archive(head: &[u8]) -> bool {
    rbuild_layer::detect(head) != rbuild_layer::Compression::None || rbuild_layer::is_tar(head)
}

fn is_remote(text: &str) -> bool {
    text.contains("://") || text.starts_with("git@")
}

fn directory(dir: &str) -> Result<PathBuf, Failure> {
    match std::fs::canonicalize(dir) {
        Ok(path) if path.is_dir() => Ok(path),
        Ok(_) => Err(Failure::usage(format!("the context `{dir}` is not a directory")).help(InputRemedy::PassParent)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let failure = Failure::usage(format!("the context `{dir}` does not exist"));
            Err(if crate::cli::verbs::is_verb(dir) {
                failure.help(UsageRemedy::PutFirst { verb: dir.into() })
            } else {
                failure.help(InputRemedy::PassContext)
            })
        }
        Err(e) => Err(Failure::usage(format!("cannot open the context `{dir}`: {}", flags::reason(&e))).because(&e)),
    }
}

fn stdin_bytes() -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    stdin::piped(StdinUse::Dockerfile)?.read_to_end(&mut bytes).map_err(stdin::failed)?;
    Ok(bytes)
}

/// Returns the failure for an input that is a Dockerfile and not an archive, while `-f` selects
/// another Dockerfile.
fn two_dockerfiles(given: &str, file: &str, remedy: InputRemedy) -> Failure {
    let file = hide_logins(file);
    Failure::usage(format!("{given} is a Dockerfile, and -f selects another: `{file}`")).help(remedy)
}

fn from_directory(args: &BuildArgs, context: PathBuf) -> Result<MainContext, Failure> {
    let root = open(&context)?;
    let (path, place) = match args.file.as_deref() {
        Some(url) if is_remote(url) => return Err(remote::unsupported("the Dockerfile", url)),
        Some("") => return Err(Failure::usage("-f requires the name of a file").help(InputRemedy::OmitFile)),
        Some(file) => (PathBuf::from(file), place_in(&context, &args.context, Path::new(file))),
        None => {
            let names = ["Dockerfile", "dockerfile", "Containerfile"];
            let name = names.into_iter().find(|name| is_anything(&root, name)).unwrap_or("Dockerfile");
            (context.join(name), Some(name.into()))
        }
    };
    let shown = match (&args.file, path.file_name()) {
        (None, Some(name)) if args.context == "." => name.to_string_lossy().into_owned(),
        (None, Some(name)) => Path::new(&args.context).join(name).to_string_lossy().into_owned(),
        _ => path.to_string_lossy().into_owned(),
    };
    let ignore_path = |path: &Path| {
        let mut own = path.as_os_str().to_os_string();
        own.push(".dockerignore");
        PathBuf::from(own)
    };
    let (dockerfile, own) = match &place {
        Some(place) => {
            let read = untrusted::read(&root, place, &format!("the Dockerfile {}", quoted(&shown)))?;
            (read.ok_or_else(not_found), read_ignore(&root, &ignore_path(place), &ignore_path(&path))?)
        }
        // A file outside the context was chosen by the caller and is therefore trusted. It may be a
        // pipe.
        None => (std::fs::read(&path), outer_ignore(&ignore_path(&path))?),
    };
    let dockerfile = dockerfile.map_err(|e| {
        let failure = no_dockerfile(&shown, &e, &file_names::beside(Path::new(&shown)));
        let in_context = Path::new(&args.context).join(&path);
        match e.kind() {
            std::io::ErrorKind::NotFound if args.context != "." && path.is_relative() && in_context.is_file() => {
                failure.help(InputRemedy::PathFromHere { path: in_context })
            }
            _ => failure,
        }
    })?;
    let ignore = match (&args.ignorefile, own) {
        (Some(path), _) => Some(given_ignore(path)?),
        (None, Some(file)) => Some(file),
        (None, None) => ignore_of(&root, &args.context)?,
    };
    let dir = Some(ContextDir { path: context, ignore });
    Ok(MainContext { dir, dockerfile_name: shown, dockerfile, newest: None, unpacked: None })
}

fn open(context: &Path) -> Result<RootDir, Failure> {
    RootDir::open(context).map_err(|e| {
        Failure::new(format!("cannot open the context {}: {}", quoted(context), e.of_object())).because(&e)
    })
}

fn is_anything(context: &RootDir, name: &str) -> bool {
    context.exists(name).unwrap_or(true)
}

/// Returns the path inside the context of a file named on the command line; `None` if it is
/// outside. Paths are compared first with symbolic links resolved, and then as written, because a
/// directory of the context may be a symbolic link.
fn place_in(context: &Path, typed_context: &str, file: &Path) -> Option<PathBuf> {
    let name = file.file_name()?;
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Ok(parent) = std::fs::canonicalize(parent)
        && let Ok(inside) = parent.strip_prefix(context)
    {
        return Some(inside.join(name));
    }
    let (written, typed) = (std::path::absolute(file).ok()?, std::path::absolute(typed_context).ok()?);
    if written.components().any(|part| part == std::path::Component::ParentDir) {
        return None;
    }
    [context, &typed].iter().find_map(|context| written.strip_prefix(context).ok()).map(Path::to_path_buf)
}

fn not_found() -> std::io::Error {
    std::io::Error::from_raw_os_error(NO_ENTRY)
}

/// ENOENT.
const NO_ENTRY: i32 = 2;

/// Returns the failure for a Dockerfile that cannot be read. `names` are those in its directory.
fn no_dockerfile(shown: &str, e: &std::io::Error, names: &[String]) -> Failure {
    match e.kind() {
        std::io::ErrorKind::NotFound => {
            let help = file_names::instead_of(Path::new(shown), names, InputRemedy::PassDockerfile);
            Failure::new(format!("the Dockerfile {} does not exist", quoted(shown))).help(help)
        }
        _ => Failure::new(format!("cannot read the Dockerfile {}: {}", quoted(shown), flags::reason(e))).because(e),
    }
}

impl Inputs<'_> {
    /// Reads standard input: a tar archive of the context, compressed or not, or a Dockerfile
    /// alone.
    fn stdin_context(&self) -> Result<MainContext, Failure> {
        let mut stdin = stdin::piped(StdinUse::Context)?;
        let mut head = Vec::new();
        stdin.by_ref().take(512).read_to_end(&mut head).map_err(stdin::failed)?;
        if is_archive(&head) {
            return self.archive_context("from standard input", Cursor::new(head).chain(stdin));
        }
        if let Some(file) = &self.args.file {
            return Err(two_dockerfiles("standard input", file, InputRemedy::OmitFileOrPipe));
        }
        let mut dockerfile = head;
        stdin.read_to_end(&mut dockerfile).map_err(stdin::failed)?;
        Ok(MainContext { dir: None, dockerfile_name: STDIN_NAME.into(), dockerfile, newest: None, unpacked: None })
    }

    /// Reads the ignore file that the caller named; `None` if the caller named none.
    fn given_ignore(&self) -> Result<Option<IgnoreFile>, Failure> {
        self.args.ignorefile.as_deref().map(given_ignore).transpose()
    }

    /// Unpacks a context into the store's working directory. An ignore file in the archive does not
    /// apply, because the creator of the archive chose its files.
    fn archive_context(&self, origin: &str, archive: impl Read + Send) -> Result<MainContext, Failure> {
        let failed = |e: &(dyn Error + 'static)| Failure::caused(format!("cannot unpack the context {origin}"), e);
        let work = Workspace::open(self.store)?;
        let (path, dir) = work.new_dir()?;
        // Owners are ignored: all files of a context belong to root, as in a directory.
        let owners = rbuild_layer::Owners::Always(rbuild_linux::credentials::own_ids());
        let options = rbuild_layer::Unpacking::archive(owners, self.store.limits());
        let unpack = || rbuild_layer::unpack(archive, &dir, options);
        rbuild_linux::umask::without_umask(unpack).map_err(|e| failed(&e))?;
        let OuterDockerfile { name, bytes } = match self.outer_dockerfile()? {
            Some(outer) => outer,
            None => dockerfile_in(&dir, self.args.file.as_deref())?,
        };
        let newest = newest(&dir).map_err(|e| failed(&e))?;
        let dir = Some(ContextDir { path, ignore: self.given_ignore()? });
        Ok(MainContext { dir, dockerfile_name: name, dockerfile: bytes, newest, unpacked: Some(work) })
    }
}

/// Reads the Dockerfile of a context from an archive.
fn dockerfile_in(dir: &RootDir, file: Option<&str>) -> Result<OuterDockerfile, Failure> {
    let name = match file {
        Some(file) => file.trim_start_matches("./").to_string(),
        None if matches!(dir.exists("Dockerfile"), Ok(false)) && matches!(dir.exists("dockerfile"), Ok(true)) => {
            "dockerfile".to_string()
        }
        None => "Dockerfile".to_string(),
    };
    // An absolute path names a file on this machine, not in the archive.
    let bytes = if name.starts_with('/') {
        std::fs::read(&name).map_err(|e| no_dockerfile(&name, &e, &file_names::beside(Path::new(&name))))?
    } else {
        let read = untrusted::read(dir, Path::new(&name), &format!("the Dockerfile {}", quoted(&name)))?;
        let names = || {
            let parent = Path::new(&name).parent().unwrap_or(Path::new(""));
            let entries = dir.sub(parent).and_then(|dir| dir.entries()).unwrap_or_default();
            entries.into_iter().filter_map(|entry| entry.name.into_string().ok()).collect::<Vec<_>>()
        };
        read.ok_or_else(|| {
            let failure = no_dockerfile(&name, &not_found(), &names());
            Failure { message: failure.message + " in the archive", ..failure }
        })?
    };
    Ok(OuterDockerfile { name, bytes })
}

/// Returns the newest modification time below a directory, in seconds since the Unix epoch.
fn newest(dir: &RootDir) -> Result<Option<i64>, SourceError> {
    let tree = SourceTree::whole(dir, Owner::Root);
    let mut newest = None;
    tree.walk::<SourceError>(Path::new(""), |_, _, stat| {
        newest = newest.max(Some(stat.mtime.sec));
        Ok(())
    })?;
    Ok(newest)
}

/// Reads the ignore file of a context; `None` if there is none. Messages contain the path of the
/// context as given.
fn ignore_of(context: &RootDir, given: &str) -> Result<Option<IgnoreFile>, Failure> {
    let path = Path::new(if given == "." { "" } else { given });
    // As in podman, .containerignore takes precedence.
    for name in [".containerignore", ".dockerignore"] {
        if let Some(file) = read_ignore(context, Path::new(name), &path.join(name))? {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

/// Reads the file of `--ignorefile`.
fn given_ignore(path: &Path) -> Result<IgnoreFile, Failure> {
    let failed = |e: std::io::Error| {
        Failure::usage(format!("cannot read the ignore file {}: {}", quoted(path), flags::reason(&e))).because(&e)
    };
    Ok(ignore_file(path, &std::fs::read(path).map_err(failed)?))
}

fn ignore_file(path: &Path, bytes: &[u8]) -> IgnoreFile {
    IgnoreFile { path: path.to_path_buf(), text: String::from_utf8_lossy(bytes).into_owned() }
}

fn read_ignore(context: &RootDir, path: &Path, shown: &Path) -> Result<Option<IgnoreFile>, Failure> {
    let bytes = untrusted::read(context, path, &format!("the ignore file {}", quoted(shown)))?;
    Ok(bytes.map(|bytes| ignore_file(shown, &bytes)))
}

/// Reads the ignore file next to a Dockerfile outside the context; `None` if there is none.
fn outer_ignore(path: &Path) -> Result<Option<IgnoreFile>, Failure> {
    let failed = |e: &std::io::Error| {
        Failure::new(format!("cannot read the ignore file {}: {}", quoted(path), flags::reason(e))).because(e)
    };
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_file() => {
            Err(Failure::new(format!("the ignore file {} is not a regular file", quoted(path))))
        }
        Ok(_) => {
            let bytes = std::fs::read(path).map_err(|e| failed(&e))?;
            Ok(Some(ignore_file(path, &bytes)))
        }
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(failed(&e)),
    }
}

/// Named contexts, and the directories with files from URLs, which are removed when they are
/// dropped.
#[derive(Default)]
pub struct NamedContexts {
    pub contexts: Vec<NamedContext>,
    pub downloaded: Vec<Workspace>,
}

/// Parses the values of `--build-context`: `NAME=DIR`, `NAME=docker-image://REF`,
/// `NAME=oci-layout://DIR[:TAG|@DIGEST]` or `NAME=URL`. Loads images of OCI layouts into the store,
/// and downloads files.
pub fn named(
    given: &[String],
    store: &Store,
    platform: &Platform,
    fetch: &FetchFile<'_>,
) -> Result<NamedContexts, Failure> {
    let mut named = NamedContexts::default();
    for text in given {
        let bad = |problem: String| Failure::usage(format!("--build-context {}: {problem}", hide_logins(text)));
        let form = || bad("not of the form NAME=SOURCE".into()).help(InputRemedy::NamedContextForm);
        let (written, value) = text.split_once('=').ok_or_else(form)?;
        let (name, own) = written.split_once("::").map_or((written, None), |(name, platform)| (name, Some(platform)));
        if name.is_empty() || value.is_empty() {
            return Err(form());
        }
        let own = own.map(str::parse::<Platform>).transpose();
        let own = own.map_err(|e| bad(e.to_string()).help(flags::platform_hint(&e, &["linux"])))?;
        let source = match value.split_once("://") {
            Some(("docker-image", "scratch")) => ContextSource::Scratch,
            Some(("docker-image", image)) => {
                let invalid = |e| {
                    let failure = value::invalid_name(image, &e);
                    Failure { help: failure.help, ..bad(failure.message) }
                };
                ContextSource::Image(WrittenImage::parse(image).map_err(invalid)?)
            }
            Some(("oci-layout", layout)) => {
                ContextSource::Image(layout_image(store, layout, own.as_ref().unwrap_or(platform))?)
            }
            Some(("target" | "input", _)) => {
                return Err(bad("targets of bake files are not supported".into()).help(InputRemedy::BuildTarget));
            }
            _ => {
                if let Some(url) = remote::file_url("the context", value)? {
                    let (path, work) = remote::one_file(store, &fetch(&url)?)?;
                    named.downloaded.push(work);
                    ContextSource::Directory(ContextDir { path, ignore: None })
                } else if is_remote(value) {
                    let failure = bad("remote contexts of this kind are not supported yet".into());
                    return Err(failure.help(InputRemedy::DownloadDirectory));
                } else {
                    let refused = |failure: Failure| {
                        let help = image_instead(written, value).map(Hint::from).or(failure.help);
                        Failure { help, ..bad(failure.message) }
                    };
                    let path = directory(value).map_err(refused)?;
                    let ignore = ignore_of(&open(&path)?, value)?;
                    ContextSource::Directory(ContextDir { path, ignore })
                }
            }
        };
        named.contexts.push(NamedContext { name: name.to_string(), platform: own, source });
    }
    Ok(named)
}

/// Returns the remedy for a named context that is no directory, but may be the name of an image.
fn image_instead(name: &str, value: &str) -> Option<InputRemedy> {
    let is_path = value.starts_with(['.', '/']) || value.ends_with('/') || Path::new(value).exists();
    let is_image = !is_path && WrittenImage::parse(value).is_ok();
    is_image.then(|| InputRemedy::PassDirectoryOrImage { name: name.into(), image: value.into() })
}

/// Loads `DIR[:TAG|@DIGEST]` into the store and returns the image.
fn layout_image(store: &Store, layout: &str, platform: &Platform) -> Result<WrittenImage, Failure> {
    let (dir, wanted) = match layout.split_once('@') {
        Some((dir, digest)) => (dir, Some(digest)),
        // A tag contains no slash.
        None => match layout.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) {
            Some((dir, tag)) => (dir, Some(tag)),
            None => (layout, None),
        },
    };
    let loaded = rbuild_transport::import_from_layout(store, Path::new(dir), wanted, platform)?;
    loaded.warnings.iter().for_each(|warning| {
        terminal::warning(Warning {
            text: format!("{layout}: {}", warning.text),
            help: warning.help.clone().map(Help::from),
        })
    });
    Ok(WrittenImage::stored(loaded.found))
}
