//! The verbs `import`, `save` and `load`: images from and to archives.

use rbuild_dockerfile::Help;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use rbuild_engine::{BuildError, Import};
use rbuild_image::{ImageConfig, Platform, PlatformError, Reference, SourceUrl, hide_logins};
use rbuild_layer::LayerError;
use rbuild_linux::quoted;
use rbuild_remedy::{BuildRemedy, ImageRemedy, Remedy};
use rbuild_store::{Artifact, FoundImage, Store};
use rbuild_transport::{ArchiveFormat, KeptIndex, NamedArtifact, WantedPlatform, save_size};

use crate::args::{ImportArgs, LoadArgs, SaveArgs};
use crate::commands::named::{self, Purpose};
use crate::commands::transfer;
use crate::exit::{Failure, code};
use crate::input::settings::Settings;
use crate::input::stdin::{self, StdinUse};
use crate::input::{file_names, flags, output, value};
use crate::ui::hints::{self, Hint, InputRemedy, OutputRemedy};
use crate::ui::terminal;
use crate::ui::transfer_bar::TransferBar;

fn open(path: &Path) -> Result<File, Failure> {
    File::open(path).map_err(|e| {
        let failure = Failure::new(format!("cannot open {}: {}", quoted(path), flags::reason(&e)));
        match e.kind() {
            std::io::ErrorKind::NotFound => {
                failure.help(file_names::instead_of(path, &file_names::beside(path), InputRemedy::CorrectPath))
            }
            _ => failure.because(&e),
        }
    })
}

/// Returns the name of a file in messages: a path, or a URL without login and query.
fn shown(path: &str) -> String {
    SourceUrl::parse(path).map_or_else(|_| path.to_string(), |url| url.to_string())
}

/// Opens a file, or downloads it if its path is a URL.
fn open_or_download(store: &Store, path: &str, quiet: bool) -> Result<File, Failure> {
    match url(path)? {
        Some(url) => transfer::download_once(store, &url, quiet),
        None => open(Path::new(path)),
    }
}

/// Starts the bar of a transfer, which draws nothing with `--quiet`.
fn bar(quiet: bool, doing: &str, total: Option<u64>) -> TransferBar {
    if quiet { TransferBar::hidden() } else { TransferBar::start(doing, total) }
}

/// Parses a URL; `None` if the text is a path.
fn url(text: &str) -> Result<Option<SourceUrl>, Failure> {
    let shown = hide_logins(text);
    if SourceUrl::has_scheme(text) {
        let invalid = |e| Failure::usage(format!("`{shown}`: the URL is invalid: {e}"));
        return SourceUrl::parse(text).map(Some).map_err(invalid);
    }
    if text.contains("://") {
        let failure = Failure::usage(format!("cannot fetch `{shown}`: only http and https URLs are supported"));
        return Err(failure.help(InputRemedy::DownloadFile));
    }
    Ok(None)
}

/// Returns true for `-`, which stands for standard input or output.
fn is_stdio(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Returns the size of a regular file in bytes; `None` for pipes and devices.
fn size(file: &File) -> Option<u64> {
    file.metadata().ok().filter(std::fs::Metadata::is_file).map(|m| m.len())
}

pub fn import(settings: &Settings, args: ImportArgs) -> Result<u8, Failure> {
    let name: Option<Reference> = args.name.as_deref().map(value::new_image_name).transpose()?;
    let platform = flags::platform(args.platform.as_deref())?.unwrap_or_else(Platform::host);
    let store = settings.open()?;
    let (source, total) = match args.file.as_str() {
        "-" => (Box::new(stdin::piped(StdinUse::Archive)?) as Box<dyn Read + Send>, None),
        path => {
            let file = open_or_download(&store, path, args.quiet)?;
            let total = size(&file);
            (Box::new(file) as Box<dyn Read + Send>, total)
        }
    };
    let bar = bar(args.quiet, &format!("importing {}", shown(&args.file)), total);
    let source = bar.reading(source);
    let change = |config: &mut ImageConfig| change_config(config, &args.change);
    let now = creation_time()?;
    let imported = rbuild_engine::import(
        &store,
        source,
        &Import {
            from: &shown(&args.file),
            message: args.message.as_deref(),
            name: name.as_ref(),
            platform,
            change: &change,
            now,
        },
    );
    let imported = imported.map_err(|e| match e {
        e @ BuildError::Layer { source: LayerError::NotTar, .. } => {
            Failure::from(e).help(Remedy::Image(ImageRemedy::PassTar))
        }
        e => e.into(),
    })?;
    drop(bar);
    imported.warnings.iter().for_each(|warning| terminal::warning(warning.clone().convert::<Help>()));
    terminal::out(&format!("{}\n", imported.found));
    Ok(code::OK)
}

/// Returns the time of creation of an imported image: SOURCE_DATE_EPOCH, or the current time.
fn creation_time() -> Result<i64, Failure> {
    let text = std::env::var("SOURCE_DATE_EPOCH").unwrap_or_default();
    if text.is_empty() { Ok(rbuild_linux::Timestamp::now().sec) } else { epoch(&text) }
}

fn epoch(text: &str) -> Result<i64, Failure> {
    text.parse().map_err(|_| {
        Failure::usage(format!("SOURCE_DATE_EPOCH={text}: not a number of seconds"))
            .help(Remedy::Build(BuildRemedy::TimeOfCommit))
    })
}

/// Instructions that `--change` accepts. They are planned as a Dockerfile `FROM scratch`.
const CHANGES: [&str; 11] = [
    "CMD",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "HEALTHCHECK",
    "LABEL",
    "ONBUILD",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

fn change_config(config: &mut ImageConfig, changes: &[String]) -> Result<(), BuildError> {
    if changes.is_empty() {
        return Ok(());
    }
    for change in changes {
        check_change(change, change.split_whitespace().next().unwrap_or(""))?;
    }
    let text = format!("FROM scratch\n{}\n", changes.join("\n"));
    let first = |list: Vec<rbuild_dockerfile::Diagnostic>| {
        let d = &list[0];
        let failure = Failure::new(format!("--change: {}", d.message));
        BuildError::Caller(Box::new(Failure { help: d.help.as_ref().map(Hint::from), ..failure }))
    };
    let file = rbuild_dockerfile::parse(text.as_bytes()).map_err(first)?;
    // A change may have several lines.
    for stage in &file.stages[1..] {
        check_change(&stage.keyword.text, &stage.keyword.text)?;
    }
    for instruction in &file.stages[0].instructions {
        check_change(&instruction.keyword.text, &instruction.keyword.text)?;
    }
    let params = rbuild_plan::Parameters::new(Platform::host(), config.platform());
    match rbuild_plan::plan(&file, &params, &Default::default()).map_err(first)? {
        rbuild_plan::Plan::Graph(graph) => config.config = graph.config.config,
        rbuild_plan::Plan::Needs(_) => return Err(BuildError::other("--change must not name an image")),
    }
    Ok(())
}

/// Fails if an instruction of a `--change` does not change the configuration.
fn check_change(change: &str, keyword: &str) -> Result<(), BuildError> {
    if CHANGES.contains(&keyword.to_uppercase().as_str()) {
        return Ok(());
    }
    let message = format!("--change `{change}`: this instruction cannot change an image configuration");
    let words = CHANGES.map(String::from).to_vec();
    Err(BuildError::Other { message, help: Some(Remedy::UseOneOf { words }) })
}

/// The form in which `save` writes images.
enum SaveForm {
    Archive(ArchiveFormat),
    /// An OCI layout.
    Directory,
}

impl SaveForm {
    /// `name` is the word of `--format`; `oci-dir` is podman's.
    fn of_name(name: &str) -> Result<SaveForm, Failure> {
        match name {
            "docker-archive" => Ok(SaveForm::Archive(ArchiveFormat::Docker)),
            "oci-archive" => Ok(SaveForm::Archive(ArchiveFormat::Oci)),
            "oci" | "oci-dir" => Ok(SaveForm::Directory),
            other => Err(Failure::usage(format!("--format {other}: unknown archive format"))
                .help(hints::use_one_of(&["docker-archive", "oci-archive", "oci"]))),
        }
    }
}

pub fn save(settings: &Settings, args: SaveArgs) -> Result<u8, Failure> {
    let form = SaveForm::of_name(&args.format)?;
    let store = settings.open()?;
    let images = saved_images(&store, &args.images)?;
    let mut known = BTreeSet::new();
    for wanted in &args.exclude {
        known.extend(rbuild_transport::layer_blobs(&named::find(&store, wanted, Purpose::Use)?.1)?);
    }
    for path in &args.since {
        known.extend(rbuild_transport::archive_blobs(open(path)?, &path.display().to_string(), store.limits())?);
    }
    let SaveForm::Archive(format) = form else {
        let Some(path) = args.output.as_ref().filter(|path| !is_stdio(path)) else {
            let message = format!("--format {} writes a directory, not to standard output", args.format);
            return Err(Failure::usage(message).help(OutputRemedy::AddDirectory));
        };
        let dir = output::directory(path)?;
        let bar = TransferBar::start("saving", Some(save_size(&store, &images, &known)?));
        rbuild_transport::save_directory(&store, &images, &known, &dir, bar.moved())?;
        return Ok(code::OK);
    };
    let dest = match &args.output {
        Some(path) if !is_stdio(path) => output::archive(path)?,
        _ => output::stdout()?,
    };
    let bar = TransferBar::start("saving", Some(save_size(&store, &images, &known)?));
    rbuild_transport::save_to(&store, &images, &known, format, &dest, bar.moved())?;
    drop(bar);
    dest.publish().map_err(|e| output::unwritten("the output", &dest.path(), e))?;
    Ok(code::OK)
}

/// Returns the images to save, each once, with all names by which they are requested.
fn saved_images(store: &Store, wanted: &[String]) -> Result<Vec<NamedArtifact>, Failure> {
    let mut known: Vec<Artifact> = Vec::new();
    let mut images: Vec<NamedArtifact> = Vec::new();
    for wanted in wanted {
        let FoundImage { name, artifact, .. } = named::find_entry(store, wanted)?;
        let name = name.filter(|n| !n.is_pinned());
        match known.iter().position(|known| *known == artifact) {
            Some(at) => images[at].names.extend(name),
            None => {
                let (all, index) = (store.images().images_of(&artifact)?, KeptIndex::of(store, &artifact)?);
                images.push(NamedArtifact { images: all, index, names: name.into_iter().collect() });
                known.push(artifact);
            }
        }
    }
    Ok(images)
}

pub fn load(settings: &Settings, args: LoadArgs) -> Result<u8, Failure> {
    let given = args.platform.as_deref().map(str::parse).transpose();
    let given = given.map_err(|e: PlatformError| Failure::usage(e.to_string()))?;
    let wanted = if args.all_platforms { WantedPlatform::Any(Platform::host()) } else { WantedPlatform::new(given) };
    let store = settings.open()?;
    let loaded = match &args.input {
        Some(path) if path.is_dir() => {
            let bar = bar(args.quiet, &format!("loading {}", shown(&path.to_string_lossy())), None);
            rbuild_transport::load_directory(&store, path, &wanted, bar.moved())?
        }
        Some(path) if !is_stdio(path) => {
            let file = open_or_download(&store, &path.to_string_lossy(), args.quiet)?;
            let bar = bar(args.quiet, &format!("loading {}", shown(&path.to_string_lossy())), size(&file));
            rbuild_transport::load(&store, bar.reading(file), &wanted).map_err(|e| e.of_archive(path))?
        }
        _ => {
            let bar = bar(args.quiet, "loading", None);
            rbuild_transport::load(&store, bar.reading(stdin::piped(StdinUse::Archive)?), &wanted)?
        }
    };
    loaded.warnings.iter().for_each(|warning| terminal::warning(warning.clone().convert::<Help>()));
    for image in loaded.found {
        image.lost.iter().for_each(|lost| terminal::note(&lost.to_string()));
        if image.names.is_empty() {
            terminal::out(&format!("Loaded image ID: {}\n", image.id));
        }
        for name in &image.names {
            terminal::out(&format!("Loaded image: {}\n", name.familiar()));
        }
    }
    Ok(code::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_of_urls_and_changes_are_as_recorded() {
        let urls = ["https://joe:secret@a.io/%x", "http://", "ftp://a.io/x"]
            .map(|text| url(text).map(drop).expect_err(text).text());
        let changes = [
            "RUN x",
            "from x",
            "CMD",
            "ENV a",
            "CMD x\nRUN y",
            "CMD x\nCOPY --from=a b c",
            "CMD x\nFROM a",
            "EXPOSE x",
        ];
        let changes = changes.map(|change| {
            let changed = change_config(&mut ImageConfig::empty(&Platform::host()), &[change.to_string()]);
            format!("{change:?}: {}", changed.map_or_else(|e| Failure::from(e).text(), |()| "accepted\n".into()))
        });
        let epoch = epoch("soon").unwrap_err().text();
        rbuild_testkit::assert_recorded!("import", urls.concat() + &changes.concat() + &epoch);
    }
}
