//! Files out of an image, without a container.

use std::fs::File;
use std::path::{Path, PathBuf};

use rbuild_layer::{Deletions, Times, TreePacker};
use rbuild_linux::{AtomicFile, Kind, RootDir, Stat, copy_file};
use rbuild_plan::{CopyStep, From};
use rbuild_sandbox::Builder;
use rbuild_source::{Owner, SourceTree};
use rbuild_store::{Image, Store, Workspace};

use crate::copy::{Reason, Terms, copy};
use crate::error::{BuildError, Result};
use crate::execute::snapshots;
use crate::local;

/// Where copied files go.
pub enum CopyTarget {
    /// A tar.
    Tar(File),
    /// `rest` below an open directory, as cp(1) means its last argument.
    Place { base: RootDir, rest: PathBuf, ends_with_slash: bool },
}

/// Copies `path` of the image; needs to be root of the store's namespace. A directory goes into an existing
/// directory under its own name, unless the path ends in `/.`; links are copied as links unless `follow`.
pub fn copy_out(
    store: &Store,
    image: &Image,
    path: &str,
    follow: bool,
    target: &CopyTarget,
    builder: &Builder,
) -> Result<()> {
    let work = Workspace::open(store)?;
    let (trees, _) = store.unpack_image(&work, image, "cp")?;
    let view = snapshots(builder, &work)?.view(store, &work, &trees)?;
    let fail = || BuildError::kernel("the image's files");
    let contents_only = path.ends_with("/.") || path == ".";
    let wanted = PathBuf::from("/").join(path.trim_start_matches('/'));
    let wanted =
        if follow || contents_only || path.ends_with('/') { view.resolve(&wanted).map_err(fail())? } else { wanted };
    let stat = match view.stat(&wanted) {
        Ok(stat) => stat,
        Err(e) if e.is_not_found() => {
            return Err(BuildError::Other {
                message: format!("the image has no {path}"),
                help: Some("paths are absolute; `rbuild save IMAGE | tar -t` lists layers".into()),
            });
        }
        Err(e) => return Err(fail()(e)),
    };
    match target {
        CopyTarget::Tar(file) => tar(&view, &wanted, &work, file),
        CopyTarget::Place { base, rest, ends_with_slash } => {
            place(&view, &wanted, &stat, contents_only, (base, rest, *ends_with_slash))
        }
    }
}

/// One entry under its own name, with all that is in it.
fn tar(view: &RootDir, wanted: &Path, work: &Workspace, file: &File) -> Result<()> {
    let (_, dir) = work.new_dir()?;
    let source = wanted.to_string_lossy().into_owned();
    let name = wanted.file_name().map_or_else(|| "/".into(), |n| format!("/{}", n.to_string_lossy()));
    let is_dir = matches!(view.stat_follow(wanted), Ok(s) if s.kind == Kind::Dir);
    let step = CopyStep {
        from: From::Context,
        sources: vec![source],
        source_spans: vec![Default::default()],
        dest: if is_dir { name } else { "/".into() },
        dest_is_dir: true,
        ..CopyStep::default()
    };
    let tree = SourceTree { root: view, ignore: None, exclude: None, owner: Owner::AsIs, hashes: None };
    copy(&step, Some(&tree), &dir, Terms::default(), None).map_err(|e| match e.reason {
        Reason::Kernel(source) => BuildError::Kernel { what: "copying".into(), source },
        Reason::Source(e) => BuildError::other(e.to_string()),
        Reason::Layer(e) => BuildError::other(e.to_string()),
        Reason::Text(text) => BuildError::other(text),
    })?;
    let mut out = file;
    let mut tar = TreePacker::new(Deletions::None, &mut out);
    let packed = tar.pack(&dir, Path::new(""), Times::AsIs).and_then(|()| tar.finish());
    packed.map_err(BuildError::layer("the tar"))
}

fn place(
    view: &RootDir,
    wanted: &Path,
    stat: &Stat,
    contents_only: bool,
    (base, rest, ends_with_slash): (&RootDir, &Path, bool),
) -> Result<()> {
    let shown = base.label().join(rest);
    let fail = || BuildError::kernel(format!("writing {}", shown.display()));
    let existing = base.stat_follow(rest).ok().map(|s| s.kind);
    let name = wanted.file_name().map(PathBuf::from).unwrap_or_default();
    let rest = match existing {
        Some(Kind::Dir) if !contents_only => rest.join(&name),
        _ => rest.to_path_buf(),
    };
    if stat.kind == Kind::Dir {
        if existing.is_some_and(|kind| kind != Kind::Dir) {
            return Err(BuildError::other(format!("{} is a file, and the image has a directory", shown.display())));
        }
        let dest = base.create_dir_all(&rest, 0o755, None, |_| ()).map_err(fail())?;
        return local::export(&view.sub(wanted).map_err(fail())?, &dest, None);
    }
    if ends_with_slash && existing.is_none() {
        return Err(BuildError::Other {
            message: format!("the directory {} does not exist", shown.display()),
            help: Some("make it first, or leave the slash out".into()),
        });
    }
    let dir = base.sub(rest.parent().unwrap_or(Path::new(""))).map_err(fail())?;
    let target = rest.file_name().unwrap_or_default();
    let (source, source_name) = view.parent(wanted).map_err(fail())?;
    match stat.kind {
        Kind::File => {
            let mut file = AtomicFile::create(&dir, 0o600).map_err(fail())?;
            copy_file(&source.open_name(&source_name).map_err(fail())?, stat, file.file()).map_err(fail())?;
            dir.chmod(file.temp_name(), stat.mode).map_err(fail())?;
            dir.set_mtime(file.temp_name(), stat.mtime).map_err(fail())?;
            file.publish(target).map_err(fail())
        }
        Kind::Symlink => {
            if existing.is_some() {
                dir.remove_file(target).map_err(fail())?;
            }
            let link = source.read_link(&source_name).map_err(fail())?;
            dir.create_symlink(&link, target).map_err(fail())
        }
        _ => Err(BuildError::other(format!("{} is neither a file nor a directory nor a link", wanted.display()))),
    }
}
