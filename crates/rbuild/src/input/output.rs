//! Parses the values of `--output` and opens their destinations.

use std::os::fd::AsFd;
use std::path::Path;

use rbuild_dockerfile::CsvError;
use rbuild_engine::{Export, ImageForm, Split, Squash};
use rbuild_image::Reference;
use rbuild_layer::LayerForm;
use rbuild_linux::{Destination, DestinationError, Directory, quoted};
use rbuild_remedy::{DiskRemedy, Remedy, sentence};
use rbuild_transport::ArchiveFormat;

use crate::exit::Failure;
use crate::input::value;
use crate::ui::hints::{self, Hint, OutputRemedy};

/// Value of `type` in `--output`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OutputKind {
    Local,
    Tar,
    OciArchive,
    /// `type=oci,tar=false`.
    OciDirectory,
    DockerArchive,
    Image,
    CacheOnly,
}

/// A parsed `--output`, not yet opened.
pub struct ParsedOutput {
    kind: OutputKind,
    dest: Option<String>,
    /// Names for the image.
    pub names: Vec<Reference>,
    form: ImageForm,
    /// Deletes files of the directory that the result does not contain (`mode=delete`).
    pub delete: bool,
    /// Pushes the image to its registries.
    pub push: bool,
    split: Split,
}

const TYPES: [&str; 7] = ["local", "tar", "oci", "docker", "image", "registry", "cacheonly"];
const KEYS: [&str; 17] = [
    "type",
    "dest",
    "name",
    "tar",
    "compression",
    "compression-level",
    "force-compression",
    "prefer-nondist-layers",
    "oci-mediatypes",
    "rewrite-timestamp",
    "push",
    "unpack",
    "mode",
    "platform-split",
    "store",
    "annotation",
    "context",
];

/// Fields of a `type=…,key=value,…` output while they are parsed.
struct Fields {
    kind: Option<OutputKind>,
    dest: Option<String>,
    names: Vec<Reference>,
    form: ImageForm,
    tar: bool,
    delete: bool,
    push: bool,
    split: Split,
    layers: Option<LayerForm>,
    level: Option<i32>,
}

impl Default for Fields {
    fn default() -> Fields {
        Fields {
            kind: None,
            dest: None,
            names: Vec::new(),
            form: ImageForm::default(),
            tar: true,
            delete: false,
            push: false,
            split: Split::default(),
            layers: None,
            level: None,
        }
    }
}

/// Parses `DIR`, `-`, or CSV `type=…,key=value,…`.
pub fn parse(text: &str) -> Result<ParsedOutput, Failure> {
    let shown = if text.is_empty() { "''" } else { text };
    let named = |failure: Failure| Failure { message: format!("--output {shown}: {}", failure.message), ..failure };
    let short = |kind, dest: &str| ParsedOutput {
        kind,
        dest: Some(dest.into()),
        names: Vec::new(),
        form: ImageForm::default(),
        delete: false,
        push: false,
        split: Split::default(),
    };
    if text == "-" {
        return Ok(short(OutputKind::Tar, "-"));
    }
    let fields = csv_fields(text).map_err(|e| named(Failure::usage(e.to_string()).help(OutputRemedy::OutputForm)))?;
    if let [only] = &fields[..]
        && !only.contains('=')
    {
        return Ok(short(OutputKind::Local, only));
    }
    let mut parsed = Fields::default();
    for field in &fields {
        parsed.set(field).map_err(named)?;
    }
    parsed.finish().map_err(named)
}

impl Fields {
    /// Sets one field from `key=value`.
    fn set(&mut self, field: &str) -> Result<(), Failure> {
        let bad = |message: String| Failure::usage(message);
        let Some((key, value)) = field.split_once('=') else {
            let failure = bad(format!("`{field}` is not of the form key=value"));
            return Err(failure.help(OutputRemedy::OutputForm));
        };
        let switch = || value::switch(value).map_err(|bad| bad.of(format!("`{key}={value}`")));
        match key.trim().to_lowercase().as_str() {
            "type" => {
                self.kind = Some(output_kind(value)?);
                self.push |= value == "registry";
            }
            "dest" => self.dest = Some(value.to_string()),
            "name" => {
                for name in value.split(',').filter(|n| !n.is_empty()) {
                    self.names.push(value::new_image_name(name)?);
                }
            }
            "tar" => self.tar = switch()?,
            // The supported value is the default behavior.
            "oci-mediatypes" if switch()? => {}
            "push" => self.push |= switch()?,
            "rewrite-timestamp" => self.form.late_times = !switch()?,
            "force-compression" => self.form.force = switch()?,
            "prefer-nondist-layers" => self.form.distributes = !switch()?,
            "compression" => self.layers = Some(layer_form(value)?),
            "compression-level" => {
                let failure = |_| bad(format!("`{value}` is not a compression level")).help(OutputRemedy::NumericLevel);
                self.level = Some(value.parse().map_err(failure)?);
            }
            "mode" => {
                self.delete = match value {
                    "copy" => false,
                    "delete" => true,
                    other => {
                        let failure = bad(format!("unknown mode `{other}`"));
                        return Err(failure.help(hints::suggestion(other, &["copy", "delete"])));
                    }
                }
            }
            "platform-split" => {
                self.split = if switch()? { Split::Always } else { Split::Never };
            }
            known if KEYS.contains(&known) => return Err(bad(format!("`{known}={value}` is not supported yet"))),
            other => {
                return Err(bad(format!("unknown option `{other}`")).help(hints::suggestion(other, &KEYS)));
            }
        }
        Ok(())
    }

    /// Checks the fields against each other.
    fn finish(self) -> Result<ParsedOutput, Failure> {
        let bad = |message: String| Failure::usage(message);
        let Fields { kind, dest, names, mut form, tar, delete, push, split, layers, level } = self;
        let Some(kind) = kind else {
            return Err(bad("the type is missing".into()).help(OutputRemedy::AddType));
        };
        let kind = match (kind, tar) {
            (kind, true) => kind,
            (OutputKind::OciArchive, false) => OutputKind::OciDirectory,
            _ => return Err(bad("tar=false requires type=oci".into())),
        };
        form.layers = match kind {
            // As in BuildKit, options of images are ignored for other outputs.
            OutputKind::Local | OutputKind::Tar | OutputKind::CacheOnly => LayerForm::default(),
            OutputKind::Image if !push => layers.unwrap_or(ImageForm::of_store().layers),
            OutputKind::DockerArchive if dest.is_none() => layers.unwrap_or(ImageForm::of_store().layers),
            _ => layers.unwrap_or_default(),
        };
        let has_image = !matches!(kind, OutputKind::Local | OutputKind::Tar | OutputKind::CacheOnly);
        if let (Some(level), true) = (level, has_image) {
            form.layers = form.layers.with_level(level).map_err(|e| {
                let (form, most) = (e.form(), e.most());
                bad(e.to_string()).help(OutputRemedy::LevelRange { form, most })
            })?;
        }
        if delete && kind != OutputKind::Local {
            return Err(bad("mode=delete requires type=local".into()));
        }
        if kind == OutputKind::Image && dest.is_some() {
            return Err(bad("an image in the store or a registry has no dest".into()).help(OutputRemedy::NameImage));
        }
        if kind == OutputKind::CacheOnly && dest.is_some() {
            return Err(bad("type=cacheonly writes nothing and has no dest".into()));
        }
        if push && kind != OutputKind::Image {
            return Err(bad("push=true requires type=image".into()));
        }
        Ok(ParsedOutput { kind, dest, names, form, delete, push, split })
    }
}

/// Splits a CSV record into its fields.
///
/// # Errors
///
/// Fails if the text is empty, or a quote is misplaced or not closed.
pub fn csv_fields(text: &str) -> Result<Vec<String>, CsvError> {
    Ok(rbuild_dockerfile::csv_record(text)?.into_iter().map(|field| field.text).collect())
}

const COMPRESSIONS: [&str; 3] = ["gzip", "zstd", "uncompressed"];

/// Parses the name of a compression.
pub fn layer_form(name: &str) -> Result<LayerForm, Failure> {
    match name {
        "gzip" => Ok(LayerForm::GZIP),
        "zstd" => Ok(LayerForm::ZSTD),
        "uncompressed" => Ok(LayerForm::Uncompressed),
        "estargz" => Err(Failure::usage("compression=estargz is not supported").help(hints::use_one_of(&COMPRESSIONS))),
        other => {
            Err(Failure::usage(format!("unknown compression `{other}`")).help(hints::suggestion(other, &COMPRESSIONS)))
        }
    }
}

fn output_kind(name: &str) -> Result<OutputKind, Failure> {
    match name {
        "local" => Ok(OutputKind::Local),
        "tar" => Ok(OutputKind::Tar),
        "oci" => Ok(OutputKind::OciArchive),
        "docker" => Ok(OutputKind::DockerArchive),
        "image" | "registry" => Ok(OutputKind::Image),
        "cacheonly" => Ok(OutputKind::CacheOnly),
        other => {
            let failure = Failure::usage(format!("unknown type `{other}`"));
            Err(failure.help(hints::suggestion(other, &TYPES)))
        }
    }
}

impl ParsedOutput {
    /// Returns true if the destination is strictly below the working directory, where files may be
    /// deleted without `--allow local.delete`.
    pub fn is_below(&self, cwd: &Path) -> bool {
        let Some(dest) = &self.dest else { return false };
        let path = cwd.join(dest);
        // Symbolic links in the existing part of the path are resolved. The rest does not exist, so
        // it contains none.
        let real = path.ancestors().find_map(|p| Some((std::fs::canonicalize(p).ok()?, path.strip_prefix(p).ok()?)));
        let leaves = |rest: &Path| rest.components().any(|c| c == std::path::Component::ParentDir);
        match (real, std::fs::canonicalize(cwd)) {
            (Some((real, rest)), Ok(cwd)) => {
                !leaves(rest) && real.join(rest) != cwd && real.join(rest).starts_with(&cwd)
            }
            _ => false,
        }
    }

    /// Returns true if the output is written to standard output.
    pub fn is_stdout(&self) -> bool {
        let is_archive = matches!(self.kind, OutputKind::Tar | OutputKind::OciArchive | OutputKind::DockerArchive);
        // Without dest, type=docker means the local engine, which for rbuild is the store.
        is_archive && self.dest.as_deref().map_or(self.kind != OutputKind::DockerArchive, |dest| dest == "-")
    }

    /// Opens the destination. The builder can then write to it from its own namespaces.
    pub fn open(&self, squash: Squash) -> Result<Export, Failure> {
        let form = ImageForm { squash, ..self.form };
        match self.kind {
            OutputKind::Local => {
                let to = self.directory("--output type=local requires dest=DIR")?;
                Ok(Export::Files { to, delete: self.delete, split: self.split })
            }
            OutputKind::Tar => Ok(Export::Tar { to: self.archive()?, split: self.split }),
            OutputKind::OciArchive => Ok(Export::Archive { format: ArchiveFormat::Oci, to: self.archive()?, form }),
            OutputKind::OciDirectory => {
                let to = self.directory("--output type=oci,tar=false requires dest=DIR")?;
                Ok(Export::Layout { to, form })
            }
            // Without dest, type=docker means the local engine, which for rbuild is the store.
            OutputKind::DockerArchive if self.dest.is_none() => Ok(Export::Store { form }),
            OutputKind::DockerArchive => {
                Ok(Export::Archive { format: ArchiveFormat::Docker, to: self.archive()?, form })
            }
            OutputKind::Image => Ok(Export::Store { form }),
            OutputKind::CacheOnly => Ok(Export::CacheOnly),
        }
    }

    /// Opens the destination as a directory. `missing` is the error message if there is no
    /// destination.
    fn directory(&self, missing: &str) -> Result<Directory, Failure> {
        match self.dest.as_deref() {
            None => Err(Failure::usage(missing).help(OutputRemedy::AddDestination)),
            Some("-") => {
                Err(Failure::usage("a directory cannot be written to standard output").help(OutputRemedy::WriteTar))
            }
            Some(path) => directory(Path::new(path)),
        }
    }

    /// Opens the destination as a file, or standard output if there is no destination.
    fn archive(&self) -> Result<Destination, Failure> {
        match self.dest.as_deref() {
            None | Some("-") => stdout(),
            Some(path) => archive(Path::new(path)),
        }
    }
}

/// Returns standard output as the destination of an archive.
///
/// # Errors
///
/// Fails if standard output is a terminal.
pub fn stdout() -> Result<Destination, Failure> {
    let fd = std::io::stdout().as_fd().try_clone_to_owned();
    let file = fd.map(std::fs::File::from).map_err(|e| Failure::caused("cannot open standard output", &e))?;
    no_terminal(Destination::of_file(file, "standard output"))
}

/// Opens a file as the destination of an archive; a terminal is an error.
pub fn archive(path: &Path) -> Result<Destination, Failure> {
    no_terminal(file("the output", path)?)
}

fn no_terminal(dest: Destination) -> Result<Destination, Failure> {
    if dest.is_terminal() {
        return Err(Failure::usage("refusing to write an archive to a terminal").help(OutputRemedy::LeaveTerminal));
    }
    Ok(dest)
}

/// Opens a file that will be written later. `purpose` describes it in errors, for example "the ID
/// file".
pub fn file(purpose: &str, path: &Path) -> Result<Destination, Failure> {
    Destination::open(path).map_err(|e| refused(purpose, path, e))
}

/// Opens the destination directory, or the nearest existing parent if it is yet to be created.
pub fn directory(path: &Path) -> Result<Directory, Failure> {
    Directory::find(path).map_err(|e| refused("the output directory", path, e))
}

/// Converts the error of a destination. `purpose` describes it, for example "the ID file".
pub fn refused(purpose: &str, path: &Path, e: DestinationError) -> Failure {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.exists());
    let remedy = match &e {
        DestinationError::NotWritable(dir, _) if parent.is_some_and(|parent| parent != dir) => {
            let missing = quoted(parent.unwrap_or(dir));
            let reason = format!("{missing} does not exist, and this user cannot create it");
            return Failure::new(format!("cannot write {purpose} {}: {reason}", quoted(path)))
                .help(OutputRemedy::CreateParent);
        }
        DestinationError::Kernel(e) => return unwritten(purpose, path, e),
        DestinationError::IsDirectory(_) | DestinationError::EndsWithSlash(_) => OutputRemedy::PassFile,
        DestinationError::NotDirectory(_) => OutputRemedy::PassDirectory,
        DestinationError::NotWritable(..) => OutputRemedy::OtherPath,
        DestinationError::NotForWriting(_) => OutputRemedy::OpenForWriting,
        DestinationError::Socket(_) => OutputRemedy::ReplaceSocket,
        DestinationError::LinkLoop(_) => OutputRemedy::RemoveLinkLoop,
    };
    Failure::new(format!("cannot write {purpose} {}: {e}", quoted(path))).help(remedy)
}

/// Converts an error of writing or publishing a file. The hint depends on the kernel's error.
pub fn unwritten(purpose: &str, path: &Path, e: impl std::borrow::Borrow<rbuild_linux::Error>) -> Failure {
    let e = e.borrow();
    let help = match e.kind() {
        _ if e.is_disk_full() => Remedy::Disk(DiskRemedy::FreeSpaceAt { place: path.to_path_buf() }).into(),
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => OutputRemedy::OtherPath.into(),
        _ => e.remedy().map_or(OutputRemedy::WritablePath.into(), Hint::from),
    };
    Failure::new(format!("cannot write {purpose} {}: {}", quoted(path), sentence(e.cause()))).help(help)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_forms_are_parsed() {
        for (text, kind, dest) in [
            ("bin", OutputKind::Local, Some("bin")),
            ("-", OutputKind::Tar, Some("-")),
            ("type=local,dest=bin", OutputKind::Local, Some("bin")),
            ("dest=x.tar,type=oci", OutputKind::OciArchive, Some("x.tar")),
            ("type=docker,\"dest=a,b.tar\"", OutputKind::DockerArchive, Some("a,b.tar")),
            ("type=tar", OutputKind::Tar, None),
            ("type=image,name=a:1", OutputKind::Image, None),
            ("type=registry,name=a:1", OutputKind::Image, None),
            ("type=image,push=true", OutputKind::Image, None),
            ("type=cacheonly", OutputKind::CacheOnly, None),
            ("type=cacheonly,compression=zstd,compression-level=30", OutputKind::CacheOnly, None),
            ("type=local,dest=x,compression=gzip,force-compression=true", OutputKind::Local, Some("x")),
            ("type=tar,dest=x,compression=uncompressed,compression-level=12", OutputKind::Tar, Some("x")),
        ] {
            let got = parse(text).unwrap_or_else(|e| panic!("{text}: {e:?}"));
            assert_eq!((got.kind, got.dest.as_deref()), (kind, dest), "{text}");
        }
    }

    #[test]
    fn layers_of_the_store_are_not_compressed_by_default() {
        let gzip = LayerForm::GZIP;
        for (text, want) in [
            ("type=image", LayerForm::Uncompressed),
            ("type=docker", LayerForm::Uncompressed),
            ("type=docker,compression=gzip", gzip),
            ("type=docker,dest=x.tar", gzip),
            ("type=image,push=true", gzip),
            ("type=registry", gzip),
        ] {
            assert_eq!(parse(text).unwrap_or_else(|e| panic!("{text}: {e:?}")).form.layers, want, "{text}");
        }
    }

    #[test]
    fn errors_name_the_problem() {
        for (text, want) in [
            ("dest=x", "the type is missing"),
            ("type=lcoal,dest=x", "did you mean `local`"),
            ("type=local,dst=x", "did you mean `dest`"),
            ("type=oci,compression=estargz", "estargz is not supported"),
            ("type=oci,compression=gzip,compression-level=12", "the highest is 9"),
            ("type=local,x", "key=value"),
            ("type=local,\"dest=x", "unclosed quote"),
            ("type=local,dest=\"x\"", "quotes enclose a whole field"),
            ("", "the value is empty"),
            ("type=oci,push=true", "requires type=image"),
            ("type=cacheonly,push=true", "requires type=image"),
            ("type=cacheonly,dest=x", "writes nothing and has no dest"),
            ("", "--output '': "),
            ("type=registry,dest=x", "has no dest pass its name with name=NAME"),
            ("type=local,dest=x,mode=merge", "unknown mode `merge` use copy or delete"),
            ("type=local,dest=x,mode=deleet", "unknown mode `deleet` did you mean `delete`"),
            ("type=oci,oci-mediatypes=maybe", "`oci-mediatypes=maybe`"),
            ("type=oci,oci-mediatypes=false", "`oci-mediatypes=false` is not supported yet"),
            ("type=oci,compression=gizp", "unknown compression `gizp` did you mean `gzip`"),
        ] {
            let Err(f) = parse(text) else { panic!("{text}") };
            let all = format!("{} {}", f.message, f.help.map_or(String::new(), |help| help.to_string()));
            assert!(all.contains(want), "{text}: {all}");
        }
    }

    #[test]
    fn the_hint_of_an_unwritten_file_depends_on_the_error() {
        use nix::errno::Errno;
        let other_path = Hint::from(OutputRemedy::OtherPath).to_string();
        for (errno, want) in [
            (Errno::ENOSPC, "free some space on the disk of `/out/id`, or use another disk"),
            (Errno::EDQUOT, "free some space on the disk of `/out/id`, or use another disk"),
            (Errno::EACCES, &other_path),
            (Errno::EROFS, &other_path),
            (Errno::ENAMETOOLONG, "shorten the name"),
            (Errno::EIO, "pass a writable path"),
        ] {
            let cause = std::io::Error::from_raw_os_error(errno as i32);
            let text = sentence(&cause);
            let e = rbuild_linux::Error::new("write", Path::new("/out/id"), cause);
            let failure = unwritten("the ID file", Path::new("/out/id"), e);
            assert_eq!(failure.message, format!("cannot write the ID file `/out/id`: {text}"));
            assert_eq!(failure.help.unwrap().to_string(), want);
        }
    }
}
