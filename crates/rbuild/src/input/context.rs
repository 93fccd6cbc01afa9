//! Where files come from: the main context and its Dockerfile, and the named ones.

use std::io::{Cursor, IsTerminal, Read};
use std::path::{Path, PathBuf};

use rbuild_engine::ContextDir;
use rbuild_image::Platform;
use rbuild_linux::RootDir;
use rbuild_plan::{ContextSource, NamedContext};
use rbuild_source::{Owner, SourceError, SourceTree};
use rbuild_store::{Store, Workspace};

use crate::args::BuildArgs;
use crate::exit::Failure;
use crate::ui::terminal;

mod untrusted;

/// The main context with the Dockerfile.
pub struct MainContext {
    /// Absent when the Dockerfile came alone.
    pub dir: Option<ContextDir>,
    /// As it is shown in errors.
    pub dockerfile_name: String,
    pub dockerfile: Vec<u8>,
    /// The time of the newest file, if the context arrived as an archive.
    pub newest: Option<i64>,
    /// Holds the files of such an archive.
    pub arrived: Option<Workspace>,
}

const STDIN_NAME: &str = "Dockerfile (standard input)";

pub fn main(args: &BuildArgs, store: &Store) -> Result<MainContext, Failure> {
    let dockerfile_from_stdin = args.file.as_deref() == Some("-");
    match args.context.as_str() {
        "-" if dockerfile_from_stdin => {
            Err(Failure::usage("both the context and the Dockerfile cannot come from standard input"))
        }
        "-" => from_stdin(args, store),
        url if is_remote(url) => Err(Failure::usage(format!("a context from {url} is not supported yet"))
            .help("fetch it first, and give the directory")),
        dir if dockerfile_from_stdin => {
            let path = directory(dir)?;
            let ignore = ignore_of(&open(&path)?, &path)?;
            let dir = Some(ContextDir { path, ignore });
            let dockerfile = stdin_bytes()?;
            Ok(MainContext { dir, dockerfile_name: STDIN_NAME.into(), dockerfile, newest: None, arrived: None })
        }
        dir => from_directory(args, directory(dir)?),
    }
}

fn is_remote(text: &str) -> bool {
    text.contains("://") || text.starts_with("git@")
}

fn directory(dir: &str) -> Result<PathBuf, Failure> {
    match std::fs::canonicalize(dir) {
        Ok(path) if path.is_dir() => Ok(path),
        Ok(_) => Err(Failure::usage(format!("the context {dir} is a file")).help("give the directory that holds it")),
        Err(e) => Err(Failure::usage(format!("the context {dir}: {e}"))),
    }
}

fn stdin_bytes() -> Result<Vec<u8>, Failure> {
    if std::io::stdin().is_terminal() {
        return Err(Failure::usage("nothing comes from a terminal").help("pipe it in: … | rbuild build -"));
    }
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).map_err(stdin_failed)?;
    Ok(bytes)
}

fn stdin_failed(e: std::io::Error) -> Failure {
    Failure::new(format!("standard input: {e}"))
}

fn from_directory(args: &BuildArgs, context: PathBuf) -> Result<MainContext, Failure> {
    let root = open(&context)?;
    let (path, place) = match &args.file {
        Some(url) if is_remote(url) => {
            return Err(Failure::usage(format!("a Dockerfile from {url} is not supported yet")).help("fetch it first"));
        }
        Some(file) => (PathBuf::from(file), place_in(&context, &args.context, Path::new(file))),
        None => {
            let lower = !is_anything(&root, "Dockerfile") && is_anything(&root, "dockerfile");
            let name = if lower { "dockerfile" } else { "Dockerfile" };
            (context.join(name), Some(name.into()))
        }
    };
    let shown = match (&args.file, path.file_name()) {
        (None, Some(name)) if args.context == "." => name.to_string_lossy().into_owned(),
        (None, Some(name)) => Path::new(&args.context).join(name).to_string_lossy().into_owned(),
        _ => path.to_string_lossy().into_owned(),
    };
    let with_ending = |path: &Path| {
        let mut own = path.as_os_str().to_os_string();
        own.push(".dockerignore");
        PathBuf::from(own)
    };
    let (dockerfile, own) = match &place {
        Some(place) => {
            let read = untrusted::read(&root, place, &format!("the Dockerfile {shown}"))?;
            (read.ok_or_else(not_there), read_ignore(&root, &with_ending(place), &with_ending(&path))?)
        }
        // A file that is named and is not of the context is the caller's own choice, a pipe as well.
        None => (std::fs::read(&path), outer_ignore(&with_ending(&path))?),
    };
    let dockerfile = dockerfile.map_err(|e| no_dockerfile(&shown, &e))?;
    let ignore = match own {
        Some(text) => text,
        None => ignore_of(&root, &context)?,
    };
    let dir = Some(ContextDir { path: context, ignore });
    Ok(MainContext { dir, dockerfile_name: shown, dockerfile, newest: None, arrived: None })
}

fn open(context: &Path) -> Result<RootDir, Failure> {
    RootDir::open(context)
        .map_err(|e| Failure::new(format!("the context {}: {}", context.display(), std::io::Error::from(e))))
}

fn is_anything(context: &RootDir, name: &str) -> bool {
    context.exists(name).unwrap_or(true)
}

/// Where in the context a file is that was named on the command line: by the directories as they are, or as they are
/// written, which links of the context may belie. `None` if it is not in it.
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

fn not_there() -> std::io::Error {
    std::io::Error::from_raw_os_error(NO_ENTRY)
}

/// ENOENT of Linux.
const NO_ENTRY: i32 = 2;

fn no_dockerfile(shown: &str, e: &std::io::Error) -> Failure {
    match e.kind() {
        std::io::ErrorKind::NotFound => {
            let path = Path::new(shown);
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let other = dir.join("Containerfile");
            let help = match other.is_file() {
                true => format!("build {0}: -f {0}", other.display()),
                false => "name another file with -f FILE, or another directory as the context".to_string(),
            };
            Failure::new(format!("there is no Dockerfile {shown}")).help(help)
        }
        std::io::ErrorKind::PermissionDenied => {
            Failure::new(format!("the Dockerfile {shown} may not be read by this user"))
        }
        _ => Failure::new(format!("the Dockerfile {shown}: {e}")),
    }
}

/// A tar of any compression with the context in it, or a Dockerfile without one.
fn from_stdin(args: &BuildArgs, store: &Store) -> Result<MainContext, Failure> {
    if std::io::stdin().is_terminal() {
        return Err(Failure::usage("no context comes from a terminal").help("pipe it in: tar -c . | rbuild build -"));
    }
    let mut stdin = std::io::stdin();
    let mut head = Vec::new();
    stdin.by_ref().take(512).read_to_end(&mut head).map_err(stdin_failed)?;
    let packed = rbuild_layer::detect(&head) != rbuild_layer::Compression::None;
    if packed || rbuild_layer::is_tar(&head) {
        return from_archive(args, store, Cursor::new(head).chain(stdin));
    }
    if let Some(file) = &args.file {
        let failure = Failure::usage(format!("standard input brings a Dockerfile, and -f {file} names another"));
        return Err(failure.help("leave -f out, or pipe in a tar"));
    }
    let mut dockerfile = head;
    stdin.read_to_end(&mut dockerfile).map_err(stdin_failed)?;
    Ok(MainContext { dir: None, dockerfile_name: STDIN_NAME.into(), dockerfile, newest: None, arrived: None })
}

/// Unpacks a context into the store's place for work in progress. Ignore files do not apply: who made the archive
/// chose what is in it.
fn from_archive(args: &BuildArgs, store: &Store, archive: impl Read + Send) -> Result<MainContext, Failure> {
    let failed = |e: String| Failure::new(format!("the context from standard input: {e}"));
    let work = Workspace::open(store)?;
    let (path, dir) = work.new_dir()?;
    // Owners do not count: files of a context are root's, as those of a directory are.
    let (uid, gid) = rbuild_linux::process::own_ids();
    let owners = rbuild_layer::Owners::Always(uid, gid);
    let how = rbuild_layer::Unpacking::archive(owners, store.limits());
    let unpack = || rbuild_layer::unpack(archive, &dir, how);
    rbuild_linux::process::without_umask(unpack).map_err(|e| failed(e.to_string()))?;
    let name = match &args.file {
        Some(file) => file.trim_start_matches("./").to_string(),
        None if matches!(dir.exists("Dockerfile"), Ok(false)) && matches!(dir.exists("dockerfile"), Ok(true)) => {
            "dockerfile".to_string()
        }
        None => "Dockerfile".to_string(),
    };
    // A path that is absolute is a file of the machine, not of the archive.
    let dockerfile = if name.starts_with('/') {
        std::fs::read(&name).map_err(|e| no_dockerfile(&name, &e))?
    } else {
        let read = untrusted::read(&dir, Path::new(&name), &format!("the Dockerfile {name}"))?;
        read.ok_or_else(|| no_dockerfile(&name, &not_there()))?
    };
    let newest = newest(&dir).map_err(|e| failed(e.to_string()))?;
    let dir = Some(ContextDir { path, ignore: String::new() });
    Ok(MainContext { dir, dockerfile_name: name, dockerfile, newest, arrived: Some(work) })
}

fn newest(dir: &RootDir) -> Result<Option<i64>, SourceError> {
    let tree = SourceTree { root: dir, ignore: None, exclude: None, owner: Owner::Root, hashes: None };
    let mut newest = None;
    tree.walk::<SourceError>(Path::new(""), |_, _, stat| {
        newest = newest.max(Some(stat.mtime.sec));
        Ok(())
    })?;
    Ok(newest)
}

/// The patterns of a context's own ignore file.
fn ignore_of(context: &RootDir, path: &Path) -> Result<String, Failure> {
    const NAME: &str = ".dockerignore";
    Ok(read_ignore(context, Path::new(NAME), &path.join(NAME))?.unwrap_or_default())
}

fn read_ignore(context: &RootDir, path: &Path, shown: &Path) -> Result<Option<String>, Failure> {
    let bytes = untrusted::read(context, path, &format!("the ignore file {}", shown.display()))?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// An ignore file beside a Dockerfile that is not of the context.
fn outer_ignore(path: &Path) -> Result<Option<String>, Failure> {
    let failed = |what: String| Failure::new(format!("the ignore file {}: {what}", path.display()));
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_file() => Err(failed("it is not a regular file".into())),
        Ok(_) => {
            let bytes = std::fs::read(path).map_err(|e| failed(e.to_string()))?;
            Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
        }
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(failed(e.to_string())),
    }
}

type Named = (Vec<NamedContext>, Vec<Option<ContextDir>>);

/// Reads `NAME=DIR`, `NAME=docker-image://REF`, `NAME=oci-layout://DIR[:TAG|@DIGEST]`; images of layouts are taken
/// into the store.
pub fn named(given: &[String], store: &Store, platform: &Platform) -> Result<Named, Failure> {
    let (mut contexts, mut dirs) = (Vec::new(), Vec::new());
    for text in given {
        let bad = |what: String| Failure::usage(format!("--build-context {text}: {what}"));
        let (name, value) = text.split_once('=').ok_or_else(|| bad("it is not of the form NAME=SOURCE".into()))?;
        if name.is_empty() || value.is_empty() {
            return Err(bad("it is not of the form NAME=SOURCE".into()));
        }
        let mut dir = None;
        let source = match value.split_once("://") {
            Some(("docker-image", "scratch")) => ContextSource::Scratch,
            Some(("docker-image", image)) => ContextSource::Image(image.to_string()),
            Some(("oci-layout", layout)) => {
                let own = name.split_once("::").and_then(|(_, platform)| platform.parse().ok());
                ContextSource::Image(layout_image(store, layout, own.as_ref().unwrap_or(platform))?)
            }
            Some(("target" | "input", _)) => {
                return Err(bad("only a bake file can name another target".into())
                    .help("build the other target to a directory or an image first"));
            }
            _ if is_remote(value) => {
                return Err(bad("contexts from other machines are not supported yet".into()).help("fetch it first"));
            }
            _ => {
                let path = directory(value).map_err(|f| bad(f.message))?;
                let ignore = ignore_of(&open(&path)?, &path)?;
                dir = Some(ContextDir { path, ignore });
                ContextSource::Directory
            }
        };
        contexts.push(NamedContext { name: name.to_string(), source });
        dirs.push(dir);
    }
    Ok((contexts, dirs))
}

/// Takes `DIR[:TAG|@DIGEST]` into the store and gives the name under which a plan finds it.
fn layout_image(store: &Store, layout: &str, platform: &Platform) -> Result<String, Failure> {
    let (dir, wanted) = match layout.split_once('@') {
        Some((dir, digest)) => (dir, Some(digest)),
        // A tag holds no slash.
        None => match layout.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) {
            Some((dir, tag)) => (dir, Some(tag)),
            None => (layout, None),
        },
    };
    let taken = rbuild_engine::take_from_layout(store, Path::new(dir), wanted, platform)?;
    taken.warnings.iter().for_each(|warning| terminal::warning(&format!("{layout}: {warning}")));
    Ok(taken.found.to_string())
}
