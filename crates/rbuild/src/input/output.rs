//! The value of `--output`.

use std::os::fd::AsFd;
use std::path::Path;

use rbuild_engine::{ImageForm, Output, OutputKind, Target};
use rbuild_image::Reference;
use rbuild_layer::Compression;
use rbuild_linux::{Destination, DestinationError, Directory};

use crate::exit::Failure;

/// A parsed output: what it is, where it goes, and the names it gives the image.
pub struct Parsed {
    pub kind: OutputKind,
    dest: Option<String>,
    pub names: Vec<Reference>,
    pub form: ImageForm,
    /// The directory becomes a mirror of the result.
    pub delete: bool,
    split: Option<bool>,
}

const TYPES: [&str; 6] = ["local", "tar", "oci", "docker", "image", "registry"];
const KEYS: [&str; 16] = [
    "type",
    "dest",
    "name",
    "tar",
    "compression",
    "compression-level",
    "force-compression",
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

/// Reads `DIR`, `-`, or CSV `type=…,key=value,…`.
pub fn parse(text: &str) -> Result<Parsed, Failure> {
    let bad = |what: String| Failure::usage(format!("--output {text}: {what}"));
    let short = |kind, dest: &str| Parsed {
        kind,
        dest: Some(dest.into()),
        names: Vec::new(),
        form: ImageForm::default(),
        delete: false,
        split: None,
    };
    if text == "-" {
        return Ok(short(OutputKind::Tar, "-"));
    }
    let fields = csv_record(text).map_err(bad)?;
    if let [only] = &fields[..]
        && !only.contains('=')
    {
        return Ok(short(OutputKind::Local, only));
    }
    let mut kind = None;
    let mut dest = None;
    let mut names = Vec::new();
    let mut form = ImageForm::default();
    let (mut tar, mut delete, mut split, mut packed) = (true, false, None, None);
    for field in &fields {
        let Some((key, value)) = field.split_once('=') else {
            return Err(bad(format!("`{field}` is not of the form key=value")));
        };
        match key.trim().to_lowercase().as_str() {
            "type" => kind = Some(output_kind(value).map_err(|f| bad(f.message).help(f.help.unwrap_or_default()))?),
            "dest" => dest = Some(value.to_string()),
            "name" => {
                for name in value.split(',').filter(|n| !n.is_empty()) {
                    names.push(name.parse().map_err(|e: rbuild_image::ReferenceError| bad(e.to_string()))?);
                }
            }
            // Their default meaning is what is done.
            "tar" => tar = switch(value).map_err(bad)?,
            "oci-mediatypes" if value == "true" => {}
            "rewrite-timestamp" => form.late_times = !switch(value).map_err(bad)?,
            "force-compression" => form.force = switch(value).map_err(bad)?,
            "compression" => packed = Some(compression(value).map_err(bad)?),
            "compression-level" => {
                form.layers.level = Some(value.parse().map_err(|_| bad(format!("`{value}` is not a level")))?);
            }
            "push" if value == "false" => {}
            "mode" if value == "copy" || value == "delete" => delete = value == "delete",
            "platform-split" => split = Some(switch(value).map_err(bad)?),
            known if KEYS.contains(&known) => return Err(bad(format!("`{known}={value}` is not supported yet"))),
            other => {
                let failure = bad(format!("there is no option `{other}`"));
                return Err(match rbuild_dockerfile::closest(other, KEYS) {
                    Some(close) => failure.help(format!("did you mean `{close}`?")),
                    None => failure,
                });
            }
        }
    }
    let Some(kind) = kind else { return Err(bad("it has no type".into()).help("add type=local, tar, oci or docker")) };
    let kind = match (kind, tar) {
        (kind, true) => kind,
        (OutputKind::OciArchive, false) => OutputKind::OciDirectory,
        _ => return Err(bad("only type=oci has a form without a tar".into())),
    };
    form.layers.compression = match kind {
        OutputKind::Image => packed.unwrap_or(ImageForm::of_store().layers.compression),
        _ => packed.unwrap_or_default(),
    };
    let levels = match form.layers.compression {
        Compression::Gzip => 0..=9,
        Compression::Zstd => 0..=22,
        _ => 0..=0,
    };
    if let Some(level) = form.layers.level.filter(|l| !levels.contains(l)) {
        let (name, most) = (form.layers.compression.name(), levels.end());
        return Err(bad(format!("{name} has no level {level}; {most} is its highest")));
    }
    if delete && kind != OutputKind::Local {
        return Err(bad("only type=local has mode=delete".into()));
    }
    Ok(Parsed { kind, dest, names, form, delete, split })
}

/// The fields of one CSV record.
pub fn csv_record(text: &str) -> Result<Vec<String>, String> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(text.as_bytes());
    match reader.records().next() {
        Some(Ok(record)) => Ok(record.iter().map(str::to_string).collect()),
        Some(Err(e)) => Err(e.to_string()),
        None => Err("it is empty".into()),
    }
}

fn switch(value: &str) -> Result<bool, String> {
    match value {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        other => Err(format!("`{other}` is neither true nor false")),
    }
}

fn compression(name: &str) -> Result<Compression, String> {
    match name {
        "gzip" => Ok(Compression::Gzip),
        "zstd" => Ok(Compression::Zstd),
        "uncompressed" => Ok(Compression::None),
        "estargz" => Err("estargz is not supported; gzip, zstd and uncompressed are".into()),
        other => Err(format!("`{other}` is not a compression; gzip, zstd and uncompressed are")),
    }
}

fn output_kind(name: &str) -> Result<OutputKind, Failure> {
    match name {
        "local" => Ok(OutputKind::Local),
        "tar" => Ok(OutputKind::Tar),
        "oci" => Ok(OutputKind::OciArchive),
        "docker" => Ok(OutputKind::DockerArchive),
        "image" => Ok(OutputKind::Image),
        "registry" => {
            Err(Failure::usage("pushing to a registry is not supported yet").help("write type=oci,dest=FILE"))
        }
        other => {
            let failure = Failure::usage(format!("`{other}` is not an output type"));
            Err(match rbuild_dockerfile::closest(other, TYPES) {
                Some(close) => failure.help(format!("did you mean `{close}`?")),
                None => failure.help(format!("the types are {}", TYPES.join(", "))),
            })
        }
    }
}

impl Parsed {
    /// Whether files may be taken away there without asking: below the working directory, and not that itself.
    pub fn is_below(&self, cwd: &Path) -> bool {
        let Some(dest) = &self.dest else { return false };
        let path = cwd.join(dest);
        // What is not there yet cannot be a link out of here; what is, is followed.
        let real = path.ancestors().find_map(|p| Some((std::fs::canonicalize(p).ok()?, path.strip_prefix(p).ok()?)));
        let leaves = |rest: &Path| rest.components().any(|c| c == std::path::Component::ParentDir);
        match (real, std::fs::canonicalize(cwd)) {
            (Some((real, rest)), Ok(cwd)) => {
                !leaves(rest) && real.join(rest) != cwd && real.join(rest).starts_with(&cwd)
            }
            _ => false,
        }
    }

    /// The output is a stream of bytes to standard output.
    pub fn is_stdout(&self) -> bool {
        let is_archive = matches!(self.kind, OutputKind::Tar | OutputKind::OciArchive | OutputKind::DockerArchive);
        // `type=docker` without a file means the store.
        is_archive && self.dest.as_deref().map_or(self.kind != OutputKind::DockerArchive, |dest| dest == "-")
    }

    /// Opens what the output needs to be written from anywhere.
    pub fn open(&self) -> Result<Output, Failure> {
        let target = match (self.kind, self.dest.as_deref()) {
            (OutputKind::Image, None) => Target::Store,
            // `type=docker` without a file means the local engine, which is the store here.
            (OutputKind::DockerArchive, None) => {
                let (kind, target) = (OutputKind::Image, Target::Store);
                return Ok(Output { kind, target, form: self.form, delete: false, split: None });
            }
            (OutputKind::Image, Some(_)) => return Err(Failure::usage("an output of type=image takes no dest")),
            (OutputKind::Local, None) => return Err(Failure::usage("an output of type=local needs dest=DIR")),
            (OutputKind::OciDirectory, None) => {
                return Err(Failure::usage("an output of type=oci,tar=false needs dest=DIR"));
            }
            (OutputKind::Local | OutputKind::OciDirectory, Some("-")) => {
                return Err(Failure::usage("a directory cannot go to standard output").help("use type=tar,dest=-"));
            }
            (OutputKind::Local | OutputKind::OciDirectory, Some(path)) => {
                Target::Directory(directory(Path::new(path))?)
            }
            (_, None | Some("-")) => Target::File(stdout()?),
            (_, Some(path)) => Target::File(archive(Path::new(path))?),
        };
        Ok(Output { kind: self.kind, target, form: self.form, delete: self.delete, split: self.split })
    }
}

/// Standard output as a place for an archive; refused if it is a terminal.
pub fn stdout() -> Result<Destination, Failure> {
    let fd = std::io::stdout().as_fd().try_clone_to_owned();
    let file = fd.map(std::fs::File::from).map_err(|e| Failure::new(format!("standard output: {e}")))?;
    no_terminal(Destination::of_file(file, "standard output"))
}

/// Opens a named file for an archive.
pub fn archive(path: &Path) -> Result<Destination, Failure> {
    no_terminal(file("the output", path)?)
}

fn no_terminal(dest: Destination) -> Result<Destination, Failure> {
    if dest.is_terminal() {
        return Err(Failure::usage("an archive is not written to a terminal").help("give a file, or pipe it on"));
    }
    Ok(dest)
}

/// Opens a named file to be written when there is something to write; `what` says what it is to the caller.
pub fn file(what: &str, path: &Path) -> Result<Destination, Failure> {
    Destination::open(path).map_err(|e| refused(what, path, e))
}

/// Finds a directory that is to be written.
pub fn directory(path: &Path) -> Result<Directory, Failure> {
    Directory::find(path).map_err(|e| refused("the output directory", path, e))
}

/// Why a file or a directory cannot be written.
pub fn refused(what: &str, path: &Path, e: DestinationError) -> Failure {
    let help = match &e {
        DestinationError::IsDirectory(_) => "give the path of a file",
        DestinationError::NotDirectory(_) => "give the path of a directory, or of one to be made",
        DestinationError::NotWritable(..) => "choose another place, or change the directory's owner or mode",
        DestinationError::NotForWriting(_) => "open it for writing",
        DestinationError::Socket(_) => "give a file, a fifo or a device",
        DestinationError::LinkLoop(_) => "give a path whose links come to an end",
        DestinationError::Kernel(_) => "give a path that can be written",
    };
    Failure::new(format!("{what} {}: {e}", path.display())).help(help)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_forms() {
        for (text, kind, dest) in [
            ("bin", OutputKind::Local, Some("bin")),
            ("-", OutputKind::Tar, Some("-")),
            ("type=local,dest=bin", OutputKind::Local, Some("bin")),
            ("dest=x.tar,type=oci", OutputKind::OciArchive, Some("x.tar")),
            ("type=docker,\"dest=a,b.tar\"", OutputKind::DockerArchive, Some("a,b.tar")),
            ("type=tar", OutputKind::Tar, None),
            ("type=image,name=a:1", OutputKind::Image, None),
        ] {
            let got = parse(text).unwrap_or_else(|e| panic!("{text}: {e:?}"));
            assert_eq!((got.kind, got.dest.as_deref()), (kind, dest), "{text}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, want) in [
            ("dest=x", "no type"),
            ("type=lcoal,dest=x", "did you mean `local`"),
            ("type=local,dst=x", "did you mean `dest`"),
            ("type=oci,compression=estargz", "estargz is not supported"),
            ("type=oci,compression=gzip,compression-level=12", "9 is its highest"),
            ("type=local,x", "key=value"),
        ] {
            let Err(f) = parse(text) else { panic!("{text}") };
            let all = format!("{} {}", f.message, f.help.unwrap_or_default());
            assert!(all.contains(want), "{text}: {all}");
        }
    }
}
