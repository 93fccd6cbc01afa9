use std::path::PathBuf;

use rbuild_image::{Platform, Reference};
use rbuild_layer::{Compression, LayerForm};
use rbuild_linux::{Destination, Directory};
use rbuild_plan::Parameters;
use rbuild_sandbox::Carrier;

use crate::ops::redact::SecretValues;
use crate::prepare::resolve::PullPolicy;

/// A build request with all inputs read and resolved. The build reads neither the environment nor
/// the clock.
pub struct BuildRequest {
    /// Name of the Dockerfile in errors.
    pub dockerfile_name: String,
    pub dockerfile: Vec<u8>,
    /// Parameters of the plan for the first platform.
    pub parameters: Parameters,
    /// All target platforms, in order; empty if none was requested.
    pub platforms: Vec<Platform>,
    /// `None` if only a Dockerfile was given.
    pub context: Option<ContextDir>,
    /// Directories of named contexts, at the same index as in [`Parameters::contexts`].
    pub named: Vec<Option<ContextDir>>,
    /// Occasions to ask registries for images.
    pub pull: PullPolicy,
    /// Reduces the modes of context files to those that git keeps.
    pub git_modes: bool,
    /// Directories of [`Parameters::volumes`], as absolute paths.
    pub volumes: Vec<PathBuf>,
    pub tags: Vec<Reference>,
    /// Annotations of the manifest.
    pub annotations: Vec<(String, String)>,
    /// Secrets by ID. Their values are passed only to the commands that mount them.
    pub secrets: Vec<(String, Vec<u8>)>,
    /// Assembles root file systems by copying, even where the kernel supports overlay mounts.
    pub copies: bool,
    /// Cache namespace. Part of every key, so that the build neither reads nor populates the shared
    /// cache.
    pub salt: Option<String>,
    /// Records the sizes of the result's layers and their largest files.
    pub weigh: bool,
    /// After a command has failed, starts a shell in its container on the caller's terminal.
    pub shell_on_error: bool,
    /// Allows the value of a secret in the result.
    pub allow_leaks: bool,
    /// SSH agents by ID.
    pub agents: Vec<(String, AgentSource)>,
    pub outputs: Vec<Output>,
    /// Squashing of the image that is made without an output.
    pub squash: Squash,
    /// Maximum number of vertices that run concurrently.
    pub jobs: usize,
    /// Content of `/etc/resolv.conf` for commands.
    pub resolv_conf: String,
    /// The program that provides isolated networks with outbound access, if any command may need
    /// it.
    pub carrier: Option<Carrier>,
    /// Start of the build, in seconds since 1970.
    pub now: i64,
    /// Maximum size of the build cache after the build, in bytes.
    pub cache_limit: Option<u64>,
    /// ID of this build in the store's records.
    pub build_id: String,
}

/// A directory that serves as a build context.
#[derive(Debug, Clone)]
pub struct ContextDir {
    /// Absolute path.
    pub path: PathBuf,
    /// Content of the ignore file that applies.
    pub ignore: String,
}

/// The backend of an SSH agent mount.
#[derive(Debug, Clone)]
pub enum AgentSource {
    /// The caller's agent.
    Socket(PathBuf),
    /// Private keys that the build serves itself.
    Keys(Vec<crate::PrivateKey>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputKind {
    /// A directory.
    Local,
    /// The root file system as a tar archive.
    Tar,
    /// An OCI image layout as a tar archive.
    OciArchive,
    /// An OCI image layout as a directory.
    OciDirectory,
    /// A docker-archive that is also an OCI image layout.
    DockerArchive,
    /// An image in the local store.
    Image,
}

impl OutputKind {
    /// Returns true if the output is the files of the result, not an image.
    pub(crate) fn is_files(self) -> bool {
        matches!(self, OutputKind::Local | OutputKind::Tar)
    }
}

pub struct Output {
    pub kind: OutputKind,
    pub target: Target,
    /// Form of the image; unused for file outputs.
    pub form: ImageForm,
    /// Deletes files in the directory that the result does not have.
    pub delete: bool,
    /// Writes each platform to a directory of its own. By default, if there are several platforms.
    pub split: Option<bool>,
}

/// Properties of an image that do not change the files in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ImageForm {
    pub layers: LayerForm,
    /// Repacks layers of the base in this form, too. Otherwise they are kept as they are.
    pub force: bool,
    /// Keeps modification times in new layers that are later than SOURCE_DATE_EPOCH.
    pub late_times: bool,
    pub squash: Squash,
}

impl ImageForm {
    /// Returns the form of images in the local store. Their layers are compressed only on export.
    pub fn of_store() -> ImageForm {
        let layers = LayerForm { compression: Compression::None, level: None };
        ImageForm { layers, ..ImageForm::default() }
    }
}

/// The layers that are merged into one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Squash {
    #[default]
    None,
    /// The layers of the build's own steps.
    Steps,
    /// All layers, including those of the base.
    All,
}

impl Squash {
    /// Returns the number that stands for this choice in keys. It must not change.
    pub(crate) fn number(self) -> u8 {
        match self {
            Squash::None => 0,
            Squash::Steps => 1,
            Squash::All => 2,
        }
    }
}

/// Destination of an output. Files and directories are held open, so that they can be reached from
/// any mount namespace.
pub enum Target {
    Store,
    Directory(Directory),
    /// A file that is complete when the build ends; the caller, who opened it, publishes it then.
    File(Destination),
}

impl BuildRequest {
    /// Returns the secret values to be masked in everything that is reported or recorded.
    pub fn secret_values(&self) -> SecretValues {
        SecretValues::of(&self.secrets)
    }

    /// Returns the parameters of the plans, one for each platform.
    pub fn plans(&self) -> Vec<Parameters> {
        let others = self.platforms.iter().skip(1).cloned();
        let others = others.map(|platform| Parameters { platform, ..self.parameters.clone() });
        std::iter::once(self.parameters.clone()).chain(others).collect()
    }

    /// Returns true if the result is needed as files, not only as the layers of its steps.
    pub(crate) fn wants_files(&self) -> bool {
        self.outputs.iter().any(|o| o.kind.is_files()) || self.forms().iter().any(|form| form.squash == Squash::All)
    }

    /// Returns true if an output can be written directly: an image that is not kept in the store,
    /// and whose layers need no more work than copying. Its layers are packed into the output only.
    pub(crate) fn is_direct(&self, output: &Output) -> bool {
        let ImageForm { layers, force, late_times: _, squash } = output.form;
        let archive =
            matches!(output.kind, OutputKind::OciArchive | OutputKind::OciDirectory | OutputKind::DockerArchive)
                && matches!(output.target, Target::Directory(_) | Target::File(Destination::Regular(_)));
        let kept = !self.tags.is_empty() || self.platforms.len() > 1;
        archive && !kept && layers.compression == Compression::None && !force && squash == Squash::None
    }

    /// Returns the forms of the images to be made and kept. The first one is tagged.
    pub fn forms(&self) -> Vec<ImageForm> {
        let kept = |o: &&Output| !o.kind.is_files() && !self.is_direct(o);
        let mut images: Vec<&Output> = self.outputs.iter().filter(kept).collect();
        images.sort_by_key(|o| o.kind != OutputKind::Image);
        let mut forms: Vec<ImageForm> = Vec::new();
        for output in images {
            if !forms.contains(&output.form) {
                forms.push(output.form);
            }
        }
        if forms.is_empty() && (!self.tags.is_empty() || self.outputs.is_empty()) {
            forms.push(ImageForm { squash: self.squash, ..ImageForm::of_store() });
        }
        forms
    }
}
