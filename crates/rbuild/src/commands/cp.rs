//! The verbs `create`, `cp`, `rm`, `ps` and `container prune`: copy files out of images with the
//! commands that scripts use with docker.

use std::io::{Read, Write};
use std::path::Path;

use rbuild_engine::{CopiedTo, CopyTarget, ImagePath, command_line, copy_out};
use rbuild_image::{ManifestDigest, Reference, quote};
use rbuild_linux::{Timestamp, quoted};
use rbuild_sandbox::{Builder, SandboxError, enter};
use rbuild_store::{Container, NamedImage, NewContainer, Store, StoreError};
use serde_json::json;

use crate::args::{ContainersArgs, CpArgs, CreateArgs, RmArgs};
use crate::commands::images::{ago, bad_format};
use crate::commands::in_builder::{exit_code, store_config, store_in};
use crate::commands::named::{self, Purpose};
use crate::commands::removing::removed_text;
use crate::commands::run;
use crate::exit::{Failure, code};
use crate::input::settings::Settings;
use crate::input::{flags, output};
use crate::template;
use crate::ui::hints::{self, OutputRemedy, VerbRemedy};
use crate::ui::terminal;

/// Number of characters of a command in a table.
const MAX_COMMAND: usize = 20;

pub fn create(settings: &Settings, args: CreateArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let platform = flags::platform(args.platform.as_deref())?;
    let image = named::find_for(&store, &args.words[0], platform.as_ref())?;
    let now = Timestamp::now();
    let salt = format!("{}.{:09} {}", now.sec, now.nsec, std::process::id());
    let entrypoint = args.ignored.entrypoint.map(run::entrypoint);
    let command = command_line(&image.config.config, entrypoint.as_deref(), &args.words[1..]);
    let container = store.containers().create_container(&NewContainer {
        name: args.name.as_deref(),
        image: &image.manifest_digest,
        image_name: &args.words[0],
        created: now.sec,
        command: &command,
        salt: &salt,
    })?;
    terminal::out(&format!("{}\n", container.id.hex()));
    Ok(code::OK)
}

/// Formats a command as `docker ps` does: in quotes, and shortened unless it is shown as a whole.
fn shown_command(command: &[String], whole: bool) -> String {
    let argument =
        |(at, word): (usize, &String)| if at > 0 && word.contains(' ') { format!("'{word}'") } else { word.clone() };
    let text = command.iter().enumerate().map(argument).collect::<Vec<_>>().join(" ");
    quote(&if whole || text.chars().count() <= MAX_COMMAND {
        text
    } else {
        text.chars().take(MAX_COMMAND - 1).collect::<String>() + "…"
    })
}

pub fn rm(settings: &Settings, args: RmArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let mut missing = 0;
    for wanted in &args.containers {
        match store.containers().find_container(wanted)? {
            Some(container) => {
                store.containers().remove_container(&container)?;
                terminal::out(&format!("{wanted}\n"));
            }
            // Docker: with -f, a missing container is not an error.
            None if args.force => {}
            None => {
                terminal::error(&format!("container `{wanted}` not found"), Some(&VerbRemedy::ListContainers.into()));
                missing += 1;
            }
        }
    }
    Ok(if missing == 0 { code::OK } else { code::FAILED })
}

/// Lists containers. None of them runs, and docker lists only running ones without `--all`.
pub fn list(settings: &Settings, args: ContainersArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let (mut rows, images) = (Vec::new(), store.images().list()?);
    for container in store.containers().list()?.into_iter().filter(|_| args.all) {
        let name = container.image_name.clone().or_else(|| first_name(&images, &container));
        let id = container.id.hex();
        let created = container.created.and_then(|time| jiff::Timestamp::from_second(time).ok());
        let command = container.command.as_ref().map(|command| shown_command(command, args.no_trunc));
        rows.push(json!({
            "ID": if args.no_trunc { id } else { container.id.short() },
            "Image": name.unwrap_or_else(|| container.image.short()),
            "Command": command.unwrap_or_default(),
            "CreatedAt": created.map(|time| time.to_string()).unwrap_or_default(),
            "RunningFor": container.created.map(ago).unwrap_or_default(),
            "Status": "Created", "State": "created", "Ports": "",
            "Names": container.name,
        }));
    }
    let headings = json!({
        "ID": "CONTAINER ID", "Image": "IMAGE", "Command": "COMMAND", "RunningFor": "CREATED", "CreatedAt": "CREATED AT",
        "Status": "STATUS", "State": "STATE", "Ports": "PORTS", "Names": "NAMES",
    });
    const USUAL: &str = "table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}";
    let format = if args.quiet { "{{.ID}}" } else { args.format.as_deref().unwrap_or(USUAL) };
    terminal::out(&template::rows_or_table(format, USUAL, &headings, &rows).map_err(bad_format)?);
    Ok(code::OK)
}

/// Returns a name of the image of a container. Containers that were created by older versions do
/// not record it.
fn first_name(images: &[NamedImage], container: &Container) -> Option<String> {
    images
        .iter()
        .filter(|e| e.artifact.images().contains(&container.image))
        .find_map(|e| e.name.as_ref())
        .map(Reference::familiar)
}

/// Removes all containers.
pub fn prune(settings: &Settings) -> Result<u8, Failure> {
    let store = settings.open()?;
    let mut text = String::new();
    for container in store.containers().list()? {
        store.containers().remove_container(&container)?;
        text += &format!("{}\n", container.id.hex());
    }
    let freed = store.gc().sweep_blobs()?;
    terminal::out(&removed_text("Deleted Containers", &text, freed.bytes));
    Ok(code::OK)
}

pub fn cp(settings: &Settings, args: CpArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let Some((manifest, path)) = source(&store, &args.source)? else {
        if source(&store, &args.dest)?.is_some() {
            return Err(Failure::usage("cp copies files out of images, not into them").help(VerbRemedy::UseCopy));
        }
        return Err(no_source(&store, &args.source));
    };
    let source = ImagePath { path: &path, follow: args.follow_link };
    let target = copy_target(&args.dest)?;
    let (mut answer, mut answer_writer) = std::io::pipe().map_err(|e| Failure::caused("cannot create a pipe", &e))?;
    let ended = enter(&store_config(&store), settings.isolation, |builder| {
        match copy(builder, &store, &manifest, source, &target) {
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
        && let CopyTarget::Tar(file) | CopyTarget::Over(file) | CopyTarget::New { file: Some(file), .. } = &target
    {
        file.publish().map_err(|e| output::unwritten("the destination", &file.path(), e))?;
    }
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
    manifest: &ManifestDigest,
    source: ImagePath<'_>,
    target: &CopyTarget,
) -> Result<CopiedTo, Failure> {
    let builder = builder?;
    let store = store_in(&builder, store)?;
    let image = store.images().image(manifest)?;
    Ok(copy_out(&store, &image, source, target, &builder, Timestamp::now().sec)?)
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

/// Parses `NAME:PATH` and looks the name up; `None` if no container or image has it. Image names
/// may contain colons, so each colon is tried.
fn source(store: &Store, text: &str) -> Result<Option<(ManifestDigest, String)>, Failure> {
    for (at, _) in text.match_indices(':') {
        let (name, path) = (&text[..at], &text[at + 1..]);
        if name.is_empty() || path.is_empty() || name.starts_with(['/', '.']) {
            continue;
        }
        if let Some(container) = store.containers().find_container(name)? {
            return Ok(Some((container.image, path.to_string())));
        }
        // A tag contains no slash, so text after a colon that starts with one is a path.
        if path.starts_with('/') {
            match store.images().find_image(name) {
                Ok((_, image)) => return Ok(Some((image.manifest_digest, path.to_string()))),
                Err(StoreError::NoImage(_)) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_in_docker() {
        let words = |text: &str| text.split_whitespace().map(String::from).collect::<Vec<_>>();
        let shell = ["sh".to_string(), "-c".to_string(), "echo a b && sleep 10".to_string()];
        assert_eq!(shown_command(&shell, true), "\"sh -c 'echo a b && sleep 10'\"");
        assert_eq!(shown_command(&shell, false), "\"sh -c 'echo a b && …\"");
        assert_eq!(shown_command(&words("sleep 100"), false), "\"sleep 100\"");
    }
}
