//! The verbs `cp` and `export`: copy files out of images, and out of and into running containers.

use std::io::{Read, Write};
use std::path::Path;

use rbuild_engine::{CopiedFiles, CopiedTo, CopyTarget, ImagePath, IncomingCopy, copy_in, copy_out};
use rbuild_image::ManifestDigest;
use rbuild_linux::{RootDir, Timestamp, quoted};
use rbuild_sandbox::{Builder, FirstProcess, RunnerMode, SandboxError, enter, root_mount_of};
use rbuild_store::{Container, ContainerState, Started, Store, StoreError};

use crate::args::{CpArgs, ExportArgs};
use crate::commands::containers::lookup;
use crate::commands::in_builder::{exit_code, store_config, store_in};
use crate::commands::named::{self, Purpose};
use crate::exit::{Failure, code};
use crate::input::output;
use crate::input::settings::Settings;
use crate::ui::hints::{self, OutputRemedy, VerbRemedy};

pub fn cp(settings: &Settings, args: CpArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let Some((files, path)) = source(&store, &args.source)? else {
        return match source(&store, &args.dest)? {
            Some((CopyOrigin::Container(root), dest)) => copy_into(settings, &store, &args, root, &dest),
            Some((CopyOrigin::Image(_), path)) => {
                let name = args.dest.strip_suffix(&path).and_then(|name| name.strip_suffix(':')).unwrap_or_default();
                if store.containers().find_container(name)?.is_some() {
                    let failure =
                        Failure::new(format!("container `{name}` has not been started, so it has no files yet"));
                    return Err(failure.help(VerbRemedy::StartFirst { name: name.into() }));
                }
                let failure = Failure::usage("files are copied into running containers only, not into images");
                Err(failure.help(VerbRemedy::UseCopy))
            }
            None => Err(no_source(&store, &args.source)),
        };
    };
    let source = ImagePath { path: &path, follow: args.follow_link };
    copy_from(settings, &store, files, source, &copy_target(&args.dest)?)
}

/// Writes the files of a container as a tar archive, without what is mounted in it.
pub fn export(settings: &Settings, args: ExportArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let container = lookup::find(&store, &args.container)?;
    let files = origin(&store, &container)?;
    let target = match args.output.as_deref() {
        None | Some("-") => output::stdout()?,
        Some(path) => output::file("the output", Path::new(path))?,
    };
    let all = ImagePath { path: "/", follow: false };
    copy_from(settings, &store, files, all, &CopyTarget::Tar(target))
}

/// Copies files of an image or a container in a builder process.
fn copy_from(
    settings: &Settings,
    store: &Store,
    files: CopyOrigin,
    source: ImagePath<'_>,
    target: &CopyTarget,
) -> Result<u8, Failure> {
    let (mut answer, mut answer_writer) = std::io::pipe().map_err(|e| Failure::caused("cannot create a pipe", &e))?;
    let ended = enter(&store_config(store), settings.isolation, |builder| {
        match copy(builder, store, files, source, target) {
            Ok(CopiedTo::Place) => i32::from(code::OK),
            // One byte reports that the caller must publish the file.
            Ok(CopiedTo::File) => match answer_writer.write_all(b"f") {
                Ok(()) => i32::from(code::OK),
                Err(_) => i32::from(code::FAILED),
            },
            Err(failure) => i32::from(failure.report()),
        }
    })?;
    // The reader sees the end of the answer only after this process has closed its copy of the
    // writer.
    drop(answer_writer);
    let mut bytes = Vec::new();
    let made_file = answer.read_to_end(&mut bytes).is_ok() && !bytes.is_empty();
    if ended.code == i32::from(code::OK)
        && made_file
        && let CopyTarget::Tar(file) | CopyTarget::Over(file) | CopyTarget::New { file: Some(file), .. } = target
    {
        file.publish().map_err(|e| output::unwritten("the destination", &file.path(), e))?;
    }
    Ok(exit_code(ended.code, ended.stopped))
}

/// Copies a path of this machine into a running container, in a builder process.
fn copy_into(settings: &Settings, store: &Store, args: &CpArgs, container: RootDir, dest: &str) -> Result<u8, Failure> {
    if args.source == "-" {
        return Err(Failure::usage("archives cannot be copied into containers").help(VerbRemedy::UnpackInContainer));
    }
    let path = std::path::absolute(&args.source).map_err(|e| Failure::caused("cannot find the source", &e))?;
    // Trailing parts, which are significant, are not part of the absolute path.
    let ending = ["/.", "/"].into_iter().find(|ending| args.source.ends_with(ending)).unwrap_or_default();
    let path = path.to_string_lossy().trim_end_matches("/.").trim_end_matches('/').to_string() + ending;
    let from = RootDir::open("/").map_err(|e| Failure::caused("cannot open the source", &e))?;
    let source = ImagePath { path: &path, follow: args.follow_link };
    let ended = enter(&store_config(store), settings.isolation, |builder| {
        let copied = builder.map_err(Failure::from).and_then(|builder| {
            let store = store_in(&builder, store)?;
            Ok(copy_in(&store, IncomingCopy { from, source, container, dest })?)
        });
        copied.map_or_else(|failure| i32::from(failure.report()), |()| i32::from(code::OK))
    })?;
    Ok(exit_code(ended.code, ended.stopped))
}

/// Returns the failure for a source that is not of the form `NAME:PATH`, or whose name is unknown.
fn no_source(store: &Store, text: &str) -> Failure {
    match text.split_once(":/") {
        Some((name, _)) if !name.is_empty() => {
            let message = format!("image or container `{name}` not found in the local store");
            let failure = Failure { message, ..named::no_image(store, name, Purpose::Use) };
            let containers = store.containers().list().unwrap_or_default();
            match rbuild_dockerfile::closest(name, containers.iter().map(|container| container.name.as_str())) {
                Some(close) => failure.help(hints::did_you_mean(close)),
                None => failure,
            }
        }
        Some((_, path)) => {
            let failure = Failure::usage(format!("`{text}`: the name before `:` is empty"));
            failure.help(VerbRemedy::WritePath { image: "IMAGE".into(), path: path.into() })
        }
        _ => {
            let failure = Failure::usage(format!("`{text}` is not IMAGE:/path or CONTAINER:/path"));
            // A tag contains no slash, so this may be a relative path.
            match text.rsplit_once(':').filter(|(name, _)| store.images().find_image(name).is_ok()) {
                Some((name, path)) => failure.help(VerbRemedy::WritePath { image: name.into(), path: path.into() }),
                None => failure.help(VerbRemedy::WritePath { image: text.into(), path: "path".into() }),
            }
        }
    }
}

/// Copies in the builder process.
fn copy(
    builder: Result<Builder, SandboxError>,
    store: &Store,
    files: CopyOrigin,
    source: ImagePath<'_>,
    target: &CopyTarget,
) -> Result<CopiedTo, Failure> {
    let builder = builder?;
    let store = store_in(&builder, store)?;
    let now = Timestamp::now().sec;
    Ok(match files {
        CopyOrigin::Image(manifest) => {
            let image = store.images().image(&manifest)?;
            copy_out(&store, CopiedFiles::Image(&image), source, target, &builder, now)?
        }
        CopyOrigin::Container(root) => copy_out(&store, CopiedFiles::Container(root), source, target, &builder, now)?,
    })
}

/// Opens the destination of `cp`: standard output, a directory, a file, or a new path.
fn copy_target(dest: &str) -> Result<CopyTarget, Failure> {
    if dest == "-" {
        return Ok(CopyTarget::Tar(output::stdout()?));
    }
    let path = Path::new(dest);
    if path.is_dir() {
        return Ok(CopyTarget::Into(output::directory(path)?.base));
    }
    if path.exists() && !dest.ends_with('/') {
        return Ok(CopyTarget::Over(output::file("the destination", path)?));
    }
    let directory = output::directory(path)?;
    if directory.rest.components().count() > 1 {
        let missing = directory.base.label().join(directory.rest.parent().unwrap_or(Path::new("")));
        let failure = Failure::new(format!("the directory {} does not exist", quoted(missing)));
        return Err(failure.help(OutputRemedy::CreateFirst));
    }
    let file = (!dest.ends_with('/')).then(|| output::file("the destination", path)).transpose()?;
    Ok(CopyTarget::New { file, directory })
}

/// The files that a name stands for.
enum CopyOrigin {
    /// Those of an image.
    Image(ManifestDigest),
    /// Those of a running container, below its root directory.
    Container(RootDir),
}

/// Parses `NAME:PATH` and looks the name up; `None` if no container or image has it. Image names
/// may contain colons, so each colon is tried.
fn source(store: &Store, text: &str) -> Result<Option<(CopyOrigin, String)>, Failure> {
    for (at, _) in text.match_indices(':') {
        let (name, path) = (&text[..at], &text[at + 1..]);
        if name.is_empty() || path.is_empty() || name.starts_with(['/', '.']) {
            continue;
        }
        if let Some(container) = store.containers().find_container(name)? {
            let files = match (path.trim_matches(['/', '.']), store.containers().state(&container.id)?) {
                // All files, of which those of /proc cannot be copied.
                ("", _) => origin(store, &container)?,
                (_, ContainerState::Running(started)) => CopyOrigin::Container(root_of(name, &started)?),
                _ => origin(store, &container)?,
            };
            return Ok(Some((files, path.to_string())));
        }
        // A tag contains no slash, so text after a colon that starts with one is a path.
        if path.starts_with('/') {
            match store.images().find_image(name) {
                Ok((_, image)) => return Ok(Some((CopyOrigin::Image(image.manifest_digest), path.to_string()))),
                Err(StoreError::NoImage(_)) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(None)
}

/// Returns the files of a container without what is mounted in it.
fn origin(store: &Store, container: &Container) -> Result<CopyOrigin, Failure> {
    let name = &container.name;
    match store.containers().state(&container.id)? {
        ContainerState::Created => Ok(CopyOrigin::Image(container.image)),
        // There, nothing is mounted.
        ContainerState::Running(started) if RunnerMode::of_name(&started.isolation) == Some(RunnerMode::Chroot) => {
            Ok(CopyOrigin::Container(root_of(name, &started)?))
        }
        ContainerState::Running(started) => {
            let ended = || Failure::new(format!("container `{name}` has ended")).help(VerbRemedy::CopyWhileRunning);
            let process = started.open().ok_or_else(ended)?;
            let mount = root_mount_of(FirstProcess { pidfd: &process, pid: started.pid })?;
            let here = RootDir::open("/").map_err(|e| Failure::caused("cannot open the files of the container", &e))?;
            Ok(CopyOrigin::Container(here.with_fd(mount, "/")))
        }
        // Its files are removed at its end.
        _ => {
            let failure = Failure::new(format!("the files of container `{name}` were removed at its end"));
            Err(failure.help(VerbRemedy::CopyWhileRunning))
        }
    }
}

/// Opens the root directory of a running container.
fn root_of(name: &str, started: &Started) -> Result<RootDir, Failure> {
    let failed = |e: rbuild_linux::Error| Failure::caused(format!("cannot open the files of container `{name}`"), &e);
    let root = RootDir::open(format!("/proc/{}/root", started.pid)).map_err(failed)?;
    // Otherwise, the process may be another one by now.
    match started.open() {
        Some(_) => Ok(root),
        None => Err(Failure::new(format!("container `{name}` has ended")).help(VerbRemedy::CopyWhileRunning)),
    }
}
