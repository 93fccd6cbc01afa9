use std::path::PathBuf;

use rbuild_image::{Platform, Reference};
use rbuild_layer::{Compression, LayerForm};
use rbuild_linux::{Destination, Directory};
use rbuild_plan::Parameters;
use rbuild_sandbox::Carrier;

use crate::mask::SecretValues;

/// What somebody asked for, all of it read and decided; no environment and no clock come in later.
pub struct BuildRequest {
    /// As it is shown in errors.
    pub dockerfile_name: String,
    pub dockerfile: Vec<u8>,
    /// What the plan is made with, for the first platform.
    pub parameters: Parameters,
    /// All platforms to build for, in order; empty if none was asked for.
    pub platforms: Vec<Platform>,
    /// Absent when the Dockerfile came alone.
    pub context: Option<ContextDir>,
    /// The directories among the named contexts, each at the place of [`Parameters::contexts`].
    pub named: Vec<Option<ContextDir>>,
    /// Files of contexts have the modes that git keeps.
    pub git_modes: bool,
    /// The directories of [`Parameters::volumes`], absolute.
    pub volumes: Vec<PathBuf>,
    pub tags: Vec<Reference>,
    /// Of the manifest.
    pub annotations: Vec<(String, String)>,
    /// Secrets by their ids. Their values go to the commands that ask for them, and nowhere else.
    pub secrets: Vec<(String, Vec<u8>)>,
    /// File systems are put together by copying, also where the kernel would mount overlays.
    pub copies: bool,
    /// Keeps the build apart from all others: nothing comes from the cache, and nobody else gets anything from it.
    pub salt: Option<String>,
    /// What layers and files of the result take is to be remembered.
    pub weigh: bool,
    /// A command that fails is followed by a shell in its container, on the caller's terminal.
    pub shell_on_error: bool,
    /// The result may hold a value of a secret.
    pub allow_leaks: bool,
    /// Agents for ssh mounts, by their ids.
    pub agents: Vec<(String, AgentSource)>,
    pub outputs: Vec<Output>,
    /// Of the image that no output asks for.
    pub squash: Squash,
    /// Vertices that run at a time.
    pub jobs: usize,
    /// The resolver file that commands see.
    pub resolv_conf: String,
    /// What an isolated network takes; there is one if commands are to have it.
    pub carrier: Option<Carrier>,
    /// Seconds since 1970 when the build began.
    pub now: i64,
    /// Bytes that the build cache may take when the build is over.
    pub cache_limit: Option<u64>,
    /// Names this build in the store's records.
    pub build_id: String,
}

/// A directory that files are copied from.
#[derive(Debug, Clone)]
pub struct ContextDir {
    /// Absolute.
    pub path: PathBuf,
    /// The text of the ignore file that applies.
    pub ignore: String,
}

/// What answers when a command asks an ssh agent.
#[derive(Debug, Clone)]
pub enum AgentSource {
    /// The caller's own agent.
    Socket(PathBuf),
    /// Private keys, served by the build itself.
    Keys(Vec<crate::PrivateKey>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputKind {
    /// A directory.
    Local,
    /// The file system as one tar.
    Tar,
    /// An OCI image layout as a tar.
    OciArchive,
    /// An OCI image layout as a directory.
    OciDirectory,
    /// A docker-archive that is an OCI image layout too.
    DockerArchive,
    /// The local store.
    Image,
}

pub struct Output {
    pub kind: OutputKind,
    pub target: Target,
    /// Of what is an image.
    pub form: ImageForm,
    /// What a directory has and the result has not is taken away.
    pub delete: bool,
    /// Each platform has a directory of its own; if not given, as soon as there are several.
    pub split: Option<bool>,
}

/// How an image is made of the same files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ImageForm {
    pub layers: LayerForm,
    /// Layers of the base are packed in this form too; else they stay as they came.
    pub force: bool,
    /// Files in new layers keep times that are later than SOURCE_DATE_EPOCH.
    pub late_times: bool,
    pub squash: Squash,
}

impl ImageForm {
    /// What stays in the local store is not packed until somebody takes it elsewhere.
    pub fn of_store() -> ImageForm {
        let layers = LayerForm { compression: Compression::None, level: None };
        ImageForm { layers, ..ImageForm::default() }
    }
}

/// Which layers become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Squash {
    #[default]
    None,
    /// Those of the build's own steps.
    Steps,
    /// All of them: nothing of the base stays recognisable.
    All,
}

/// The place that an output goes to. Files and directories are held open, so that they can be reached from any mount namespace.
pub enum Target {
    Store,
    Directory(Directory),
    /// Complete when the build is over; its opener publishes it then.
    File(Destination),
}

impl BuildRequest {
    /// The values that nothing which is said or kept of the build may show.
    pub fn secret_values(&self) -> SecretValues {
        SecretValues::of(&self.secrets)
    }

    /// What the plans are made with, one for each platform.
    pub fn plans(&self) -> Vec<Parameters> {
        let others = self.platforms.iter().skip(1).cloned();
        let others = others.map(|platform| Parameters { platform, ..self.parameters.clone() });
        std::iter::once(self.parameters.clone()).chain(others).collect()
    }

    /// Whether an output is an image that nobody keeps, and that takes no more work than copying it would: its layers are
    /// written where they go and nowhere else.
    pub(crate) fn is_direct(&self, output: &Output) -> bool {
        let ImageForm { layers, force, late_times: _, squash } = output.form;
        let archive =
            matches!(output.kind, OutputKind::OciArchive | OutputKind::OciDirectory | OutputKind::DockerArchive)
                && matches!(output.target, Target::Directory(_) | Target::File(Destination::Regular(_)));
        let kept = !self.tags.is_empty() || self.platforms.len() > 1;
        archive && !kept && layers.compression == Compression::None && !force && squash == Squash::None
    }

    /// The images that the build has to make of its result and keep; the first is the one that gets the names.
    pub fn forms(&self) -> Vec<ImageForm> {
        let files_only = |o: &&Output| matches!(o.kind, OutputKind::Local | OutputKind::Tar);
        let kept = |o: &&Output| !files_only(o) && !self.is_direct(o);
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
