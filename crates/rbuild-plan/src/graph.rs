use rbuild_dockerfile::{Sharing, Span};
use rbuild_image::{Digest, ImageConfig};

use crate::Chmod;
use crate::scope::Vars;

/// A vertex by its place in [`BuildGraph::vertices`].
pub type VertexId = usize;

/// The steps of one target, in an order where inputs come first.
#[derive(Debug, Clone)]
pub struct BuildGraph {
    pub vertices: Vec<Vertex>,
    pub target: VertexId,
    /// The result's configuration without root file system and history.
    pub config: ImageConfig,
    /// What the target adds to its base's history, in order.
    pub history: Vec<HistoryEntry>,
    /// SOURCE_DATE_EPOCH, in seconds: no time in the result is later.
    pub epoch: Option<i64>,
    /// Things to tell the user that are not errors.
    pub warnings: Vec<rbuild_dockerfile::Diagnostic>,
}

#[derive(Debug, Clone)]
pub struct HistoryEntry {
    pub created_by: String,
    /// The vertex whose layer it describes; `None` for an entry without one.
    pub layer: Option<VertexId>,
}

#[derive(Debug, Clone)]
pub struct Vertex {
    pub step: Step,
    /// The file system that the step changes.
    pub parent: Option<VertexId>,
    /// `builder 3/7`, as people see it.
    pub label: String,
    /// The instruction, expanded as far as people should see it.
    pub text: String,
    /// The instruction in the Dockerfile.
    pub span: Span,
    /// What earlier builds made of it does not count.
    pub ignore_cache: bool,
}

#[derive(Debug, Clone)]
pub enum Step {
    /// An empty file system.
    Scratch,
    Image {
        name: String,
        manifest: Digest,
    },
    Run(RunStep),
    Copy(CopyStep),
    Workdir(WorkdirStep),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    Host,
    /// One of the build's own, from which the outside can be reached.
    Isolated,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    Sandbox,
    /// All capabilities of the namespace, and nothing masked.
    Insecure,
}

#[derive(Debug, Clone)]
pub struct RunStep {
    pub args: Vec<String>,
    /// In order; each name once.
    pub env: Vars,
    /// Reaches the command without counting for the cache.
    pub proxies: Vec<(String, String)>,
    pub cwd: String,
    /// As USER has it; empty for root.
    pub user: String,
    pub network: Network,
    pub security: Security,
    pub hostname: String,
    /// Lines for /etc/hosts: a name, and its address.
    pub hosts: Vec<(String, String)>,
    pub mounts: Vec<MountStep>,
    pub secrets: Vec<SecretStep>,
    pub agents: Vec<AgentStep>,
    /// Bytes of /dev/shm, if they were asked for.
    pub shm_size: Option<u64>,
    pub ulimits: Vec<Ulimit>,
    /// A here-document that is a program: its name and text. The command runs it from `/dev/pipes/NAME`.
    pub script: Option<InlineFile>,
}

/// A limit on what a command's processes may use (setrlimit(2)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulimit {
    /// Upper case and with its prefix, `RLIMIT_NOFILE`.
    pub name: String,
    pub soft: u64,
    pub hard: u64,
}

/// A secret that the command sees, as a file, as a variable, or both.
#[derive(Debug, Clone)]
pub struct SecretStep {
    pub id: String,
    /// Absolute.
    pub target: Option<String>,
    pub env: Option<String>,
    pub required: bool,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub span: Span,
}

/// A socket of an ssh agent that the command sees.
#[derive(Debug, Clone)]
pub struct AgentStep {
    pub id: String,
    /// Absolute.
    pub target: String,
    pub required: bool,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub span: Span,
}

#[derive(Debug, Clone)]
pub struct MountStep {
    /// Absolute.
    pub target: String,
    pub read_only: bool,
    pub kind: MountKindStep,
    pub span: Span,
}

#[derive(Debug, Clone)]
pub enum MountKindStep {
    Bind {
        from: From,
        source: String,
    },
    Cache(CacheStep),
    Tmpfs {
        size: Option<u64>,
    },
    /// A directory of the machine that the caller gives to every command, by its place among
    /// [`crate::Parameters::volumes`].
    Volume {
        index: usize,
        source: String,
    },
}

/// A directory that lasts between builds.
#[derive(Debug, Clone)]
pub struct CacheStep {
    pub id: String,
    pub sharing: Sharing,
    /// What a new cache starts with.
    pub from: Option<From>,
    /// The part of it that is mounted; the root is all of it.
    pub source: String,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum From {
    /// The build context.
    #[default]
    Context,
    /// A directory among [`crate::Parameters::contexts`], by its place there.
    Named(usize),
    Vertex(VertexId),
}

#[derive(Debug, Clone, Default)]
pub struct CopyStep {
    pub from: From,
    pub sources: Vec<String>,
    /// Here-documents.
    pub inline: Vec<InlineFile>,
    /// Absolute.
    pub dest: String,
    /// The destination is written as a directory.
    pub dest_is_dir: bool,
    /// `user[:group]`, by name or number.
    pub chown: Option<String>,
    pub chmod: Option<Chmod>,
    /// Patterns of what is left out, relative to each source.
    pub exclude: Vec<String>,
    pub names: SourceNames,
    /// The copy stands on nothing: it does not look at what is below, and what is below does not count for it.
    pub link: bool,
    /// ADD: regular files that are archives are unpacked.
    pub unpack: bool,
    /// Where each source stands, for errors.
    pub source_spans: Vec<Span>,
    /// The stage, image or context that `--from` names, for errors.
    pub from_name: Option<String>,
}

/// What the sources of a step say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SourceNames {
    /// Paths, or patterns of them.
    #[default]
    Patterns,
    /// Patterns that keep directories, from the pivot `/./` on if they have one (`--parents`).
    Parents,
    /// Paths, whatever characters are in them.
    Literal,
}

#[derive(Debug, Clone)]
pub struct InlineFile {
    pub name: String,
    pub content: String,
}

#[derive(Debug, Clone)]
pub struct WorkdirStep {
    /// Absolute, not the root.
    pub path: String,
    /// Who owns what is made; as USER has it.
    pub user: String,
    /// The time of what is made, in seconds; the build's own if not given.
    pub time: Option<i64>,
}

impl Vertex {
    /// Everything that the step reads, its parent first.
    pub fn inputs(&self) -> Vec<VertexId> {
        let mut inputs: Vec<VertexId> = self.parent.into_iter().collect();
        let mut add = |from: &From| {
            if let From::Vertex(id) = from {
                inputs.push(*id);
            }
        };
        match &self.step {
            Step::Copy(copy) => add(&copy.from),
            Step::Run(run) => run.mounts.iter().for_each(|m| match &m.kind {
                MountKindStep::Bind { from, .. } => add(from),
                MountKindStep::Cache(cache) => cache.from.iter().for_each(&mut add),
                MountKindStep::Tmpfs { .. } | MountKindStep::Volume { .. } => {}
            }),
            Step::Scratch | Step::Image { .. } | Step::Workdir(_) => {}
        }
        inputs.sort_unstable();
        inputs.dedup();
        inputs
    }
}
