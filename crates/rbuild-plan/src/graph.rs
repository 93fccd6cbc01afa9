//! The build graph: vertices, their steps, and the inputs between them.

use std::fmt;

use rbuild_container::{NetworkMode, SecurityMode, Ulimit};
use rbuild_dockerfile::{Sharing, Span, Vars};
use rbuild_image::{Checksum, DiffId, ImageConfig, ManifestDigest, Platform, SourceUrl};
use rbuild_paths::SourcePattern;

use crate::Chmod;
use crate::ids::{ContextId, VertexId, VolumeId};

/// The steps of one target, in topological order (inputs first).
#[derive(Debug, Clone)]
pub struct BuildGraph {
    pub vertices: Vec<Vertex>,
    /// The vertex of the result.
    pub target: VertexId,
    /// Configuration of the result, without `rootfs` and `history`.
    pub config: ImageConfig,
    /// Entries that the target adds to the history of its base image, in order.
    pub history: Vec<HistoryEntry>,
    /// `SOURCE_DATE_EPOCH` in seconds: the upper bound of all timestamps in the result.
    pub epoch: Option<i64>,
    /// Diagnostics that do not fail the build.
    pub warnings: Vec<rbuild_dockerfile::Diagnostic>,
}

impl BuildGraph {
    /// Returns the vertices with their identifiers, inputs first.
    pub fn numbered(&self) -> impl DoubleEndedIterator<Item = (VertexId, &Vertex)> {
        self.vertices.iter().enumerate().map(|(position, vertex)| (VertexId::new(position), vertex))
    }

    /// Returns the parent chain of a vertex, from itself down to its base.
    pub fn chain(&self, id: VertexId) -> impl Iterator<Item = VertexId> + use<'_> {
        std::iter::successors(Some(id), |id| self.vertices[*id].parent)
    }
}

/// One entry of the image history.
#[derive(Debug, Clone)]
pub struct HistoryEntry {
    pub created_by: String,
    /// The vertex with the layer that the entry describes; `None` for an empty layer.
    pub layer: Option<VertexId>,
}

/// Stage and number of a step. Prints as `builder 3/7`, or `3/7` in a file of one unnamed stage.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepName {
    /// Name of the stage; empty for the only stage of a file.
    pub stage: String,
    /// Number within the stage, from 1.
    pub number: usize,
    /// Number of steps of the stage.
    pub total: usize,
}

impl fmt::Display for StepName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StepName { stage, number, total } = self;
        let space = if stage.is_empty() { "" } else { " " };
        write!(f, "{stage}{space}{number}/{total}")
    }
}

/// Locations of words in the Dockerfile that a step depends on, for diagnostics. They are `None` if
/// the words are not in the Dockerfile.
#[derive(Debug, Clone, Copy, Default)]
pub struct WordSpans {
    /// The value of USER or `--chown`.
    pub owner: Option<Span>,
    /// The destination of COPY or ADD.
    pub dest: Option<Span>,
}

/// A step and its place in the graph.
#[derive(Debug, Clone)]
pub struct Vertex {
    pub step: Step,
    /// The vertex with the file system that the step modifies; `None` for a base.
    pub parent: Option<VertexId>,
    pub name: StepName,
    /// The instruction as shown to the user, with most variables expanded.
    pub text: String,
    /// Location of the instruction in the Dockerfile.
    pub span: Span,
    pub word_spans: WordSpans,
    /// Run the step even if its result is cached (`--no-cache`).
    pub ignore_cache: bool,
    /// The instruction is an ONBUILD trigger of the base image.
    pub is_trigger: bool,
}

/// An operation on a file system.
#[derive(Debug, Clone)]
pub enum Step {
    /// An empty file system.
    Scratch,
    /// The root file system of an image.
    Image {
        name: String,
        manifest: ManifestDigest,
        platform: Platform,
        /// The layers, lowest first.
        diff_ids: Vec<DiffId>,
    },
    Run(RunStep),
    Copy(CopyStep),
    Workdir(WorkdirStep),
}

/// A command to run (RUN).
#[derive(Debug, Clone)]
pub struct RunStep {
    /// Platform of the stage.
    pub platform: Platform,
    /// Program and arguments. A command in shell form begins with the words of SHELL.
    pub args: Vec<String>,
    /// Environment, in order; each name occurs once.
    pub env: Vars,
    /// Proxy settings from build arguments that no ARG declares: visible to the command, but not
    /// part of its cache key.
    pub proxies: Vec<(String, String)>,
    /// Absolute working directory.
    pub cwd: String,
    /// Value of USER; empty for root.
    pub user: String,
    pub network: NetworkMode,
    pub security: SecurityMode,
    pub hostname: String,
    /// Entries of /etc/hosts: host name and address.
    pub hosts: Vec<(String, String)>,
    pub mounts: Vec<RunMount>,
    pub secrets: Vec<RunSecret>,
    pub agents: Vec<RunAgent>,
    /// Size of /dev/shm in bytes; `None` for the default.
    pub shm_size: Option<u64>,
    pub ulimits: Vec<Ulimit>,
    /// A here-document that starts with `#!`. The command executes it as `/dev/pipes/NAME`.
    pub script: Option<InlineFile>,
}

/// A secret exposed to a command as a file, an environment variable, or both.
#[derive(Debug, Clone)]
pub struct RunSecret {
    pub id: String,
    /// Absolute path of the file.
    pub target: Option<String>,
    /// Name of the environment variable.
    pub env: Option<String>,
    /// True if the build fails without the secret.
    pub required: bool,
    /// Permission bits of the file.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub span: Span,
}

/// An SSH agent socket exposed to a command.
#[derive(Debug, Clone)]
pub struct RunAgent {
    pub id: String,
    /// Absolute path of the socket.
    pub target: String,
    /// True if the build fails without the agent.
    pub required: bool,
    /// Permission bits of the socket.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub span: Span,
}

/// A file system mounted while a command runs.
#[derive(Debug, Clone)]
pub struct RunMount {
    /// Absolute path of the mount point.
    pub target: String,
    pub read_only: bool,
    pub kind: RunMountKind,
    /// `from=` as written; `None` for the build context. Only for messages.
    pub from_name: Option<String>,
    pub span: Span,
}

/// Source of a mount.
#[derive(Debug, Clone)]
pub enum RunMountKind {
    /// A file or directory of a context, a stage or an image (`--mount=type=bind`).
    Bind {
        from: FileSource,
        /// Path in the tree of `from`.
        source: String,
    },
    Cache(RunCache),
    Tmpfs {
        /// Size in bytes; `None` for the default.
        size: Option<u64>,
    },
    /// A host directory mounted into every command.
    Volume {
        id: VolumeId,
        /// Absolute path on the host, for the cache key.
        source: String,
    },
}

/// A directory that persists between builds (`--mount=type=cache`).
#[derive(Debug, Clone)]
pub struct RunCache {
    pub id: String,
    /// True if the ID is part of the step's key.
    pub id_in_key: bool,
    pub sharing: Sharing,
    /// Initial content of a new cache.
    pub from: Option<FileSource>,
    /// Directory of the cache that is mounted; `/` mounts the whole cache.
    pub source: String,
    pub root: CacheRoot,
}

/// Owner and permissions of the root directory of a new cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheRoot {
    /// As stated. The mode has only permission bits.
    Stated { mode: u32, uid: u32, gid: u32 },
    /// Those of the directory that the cache is initialized from. What the mount states has no
    /// effect, but is part of the step's key.
    OfSource { mode: u32, uid: u32, gid: u32 },
}

impl CacheRoot {
    pub const DEFAULT: CacheRoot = CacheRoot::Stated { mode: 0o755, uid: 0, gid: 0 };
}

/// The file tree that a copy or mount reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FileSource {
    /// The build context.
    #[default]
    Context,
    /// A named context that is a directory.
    Named(ContextId),
    /// The file system of a vertex: a stage or an image.
    Vertex(VertexId),
}

/// Files to copy (COPY and ADD).
#[derive(Debug, Clone, Default)]
pub struct CopyStep {
    pub from: FileSource,
    pub sources: Vec<CopySource>,
    /// Here-documents, copied as files.
    pub inline: Vec<InlineFile>,
    /// Absolute destination path.
    pub dest: String,
    /// The destination is written as a directory (`dir/`, `.`).
    pub dest_is_dir: bool,
    /// `user[:group]`, by name or number.
    pub chown: Option<String>,
    /// Mode of the copied files, instead of that of the sources.
    pub chmod: Option<Chmod>,
    /// `--exclude` patterns, relative to each source.
    pub exclude: Vec<String>,
    /// `--parents`: the sources keep their parent directories.
    pub parents: bool,
    /// `--link`: the copy neither reads its parent nor depends on it.
    pub link: bool,
    /// Unpack regular files of the tree that are archives (the default of ADD).
    pub unpack: bool,
    /// Stage, image or context named by `--from`, for diagnostics.
    pub from_name: Option<String>,
}

/// A source of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopySource {
    pub item: CopyItem,
    /// Location in the Dockerfile, for diagnostics.
    pub span: Span,
}

/// The files that a source of a copy denotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyItem {
    /// Files of the tree that the step reads.
    Files(SourcePattern),
    /// A file that is downloaded before the step (ADD).
    Download {
        file: UrlSource,
        /// Unpack the file if it is an archive.
        unpack: bool,
    },
}

impl CopySource {
    /// Returns the pattern of files of the tree that the step reads.
    pub fn pattern(&self) -> Option<&SourcePattern> {
        match &self.item {
            CopyItem::Files(pattern) => Some(pattern),
            CopyItem::Download { .. } => None,
        }
    }

    /// Returns the file to download.
    pub fn download(&self) -> Option<&UrlSource> {
        match &self.item {
            CopyItem::Files(_) => None,
            CopyItem::Download { file, .. } => Some(file),
        }
    }
}

/// A file to download.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UrlSource {
    pub url: SourceUrl,
    /// Name of the file at the destination.
    pub name: String,
    /// The checksum that the file must have.
    pub checksum: Option<Checksum>,
}

/// A file whose content is given in the Dockerfile.
#[derive(Debug, Clone)]
pub struct InlineFile {
    /// File name without a directory.
    pub name: String,
    pub content: String,
}

/// A directory to create if it is missing (WORKDIR).
#[derive(Debug, Clone)]
pub struct WorkdirStep {
    /// Absolute path; never `/`.
    pub path: String,
    /// Owner of created directories: the value of USER.
    pub user: String,
    /// Modification time of created directories in seconds; `None` for the build's time.
    pub time: Option<i64>,
}

impl CopyStep {
    /// Returns the first source that is taken from the tree that the step reads.
    pub fn first_files(&self) -> Option<&CopySource> {
        self.sources.iter().find(|source| source.pattern().is_some())
    }
}

impl Vertex {
    /// Returns the vertices that the step reads, including its parent: sorted, without duplicates.
    pub fn inputs(&self) -> Vec<VertexId> {
        let mut inputs: Vec<VertexId> = self.parent.into_iter().collect();
        let mut add = |from: &FileSource| {
            if let FileSource::Vertex(id) = from {
                inputs.push(*id);
            }
        };
        match &self.step {
            Step::Copy(copy) => add(&copy.from),
            Step::Run(run) => run.mounts.iter().for_each(|m| match &m.kind {
                RunMountKind::Bind { from, .. } => add(from),
                RunMountKind::Cache(cache) => cache.from.iter().for_each(&mut add),
                RunMountKind::Tmpfs { .. } | RunMountKind::Volume { .. } => {}
            }),
            Step::Scratch | Step::Image { .. } | Step::Workdir(_) => {}
        }
        inputs.sort_unstable();
        inputs.dedup();
        inputs
    }
}
