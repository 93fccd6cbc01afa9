//! The flags of `build`.
// Doc comments here are help texts, not Markdown.
#![allow(rustdoc::broken_intra_doc_links)]

use std::path::PathBuf;

use clap::{Args, ValueEnum};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProgressMode {
    /// A terminal is drawn on, everything else gets plain lines
    Auto,
    Tty,
    Plain,
    Quiet,
    /// One JSON document a line, as docker buildx writes them
    Rawjson,
    /// Groups of GitHub's workflow logs
    Github,
    /// Sections of GitLab's job logs
    Gitlab,
}

#[derive(Args)]
pub struct BuildArgs {
    /// Directory that COPY takes files from; `-` reads a Dockerfile from standard input
    #[arg(value_name = "CONTEXT", default_value = ".")]
    pub context: String,
    /// The Dockerfile [default: CONTEXT/Dockerfile]; `-` reads standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<String>,
    /// Name of the result (may be repeated)
    #[arg(short, long, value_name = "NAME[:TAG]")]
    pub tag: Vec<String>,
    /// Build this stage, by name or number
    #[arg(long, value_name = "STAGE")]
    pub target: Option<String>,
    /// Value of an ARG; without a value it is taken from the environment
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub build_arg: Vec<String>,
    /// Where the result goes: DIR, `-`, or type=local|tar|oci|docker|image[,dest=PATH]
    #[arg(short, long, value_name = "OUTPUT")]
    pub output: Vec<String>,
    /// Run every step again
    #[arg(long)]
    pub no_cache: bool,
    /// Run the steps of these stages again
    #[arg(long, value_name = "STAGE,…")]
    pub no_cache_filter: Vec<String>,
    /// What the result is for: os/arch[/variant]
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Vec<String>,
    /// Another source of files or images: NAME=DIR, NAME=docker-image://IMAGE or NAME=oci-layout://DIR[:TAG]
    #[arg(long, value_name = "NAME=SOURCE")]
    pub build_context: Vec<String>,
    /// Modes of the context's files: as-is, or git for 644 and 755 whatever the umask of the checkout [default: as-is]
    #[arg(long, value_name = "MODES", env = "RBUILD_CONTEXT_MODES")]
    pub context_modes: Option<String>,
    /// A secret for `RUN --mount=type=secret`: id=NAME[,src=FILE][,env=VARIABLE]
    #[arg(long, value_name = "SECRET")]
    pub secret: Vec<String>,
    /// An agent for `RUN --mount=type=ssh`: default, or ID=SOCKET-OR-KEY
    #[arg(long, value_name = "SSH")]
    pub ssh: Vec<String>,
    /// A name that commands can resolve
    #[arg(long, value_name = "NAME:ADDRESS")]
    pub add_host: Vec<String>,
    /// Size of each command's /dev/shm [default: 64m]
    #[arg(long, value_name = "SIZE")]
    pub shm_size: Option<String>,
    /// Limit of each command, for example nofile=1024:2048
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    pub ulimit: Vec<String>,
    /// A directory of this machine that every command sees
    #[arg(short, long, value_name = "SOURCE:TARGET[:ro]")]
    pub volume: Vec<String>,
    /// Make one layer of those of the build's steps; with `=all`, of the base's too
    #[arg(long, value_name = "WHICH", num_args = 0..=1, require_equals = true, default_missing_value = "steps")]
    pub squash: Option<String>,
    /// What is given leave for: security.insecure, local.delete, secret-in-image, network.host
    #[arg(long, value_name = "RIGHT")]
    pub allow: Vec<String>,
    /// Annotation of the result's manifest
    #[arg(long, value_name = "KEY=VALUE")]
    pub annotation: Vec<String>,
    /// Label of the result
    #[arg(long, value_name = "NAME=VALUE")]
    pub label: Vec<String>,
    /// Look for likely mistakes and build nothing
    #[arg(long)]
    pub check: bool,
    /// What to do with the Dockerfile: build, check, outline or targets, and `,format=json`
    #[arg(long, value_name = "CALL", default_value = "build")]
    pub call: String,
    /// Network of RUN: host (the default), isolated (its own, out through pasta or slirp4netns) or none
    #[arg(long, value_name = "MODE", default_value = "default")]
    pub network: String,
    /// How progress is shown [default: auto]
    #[arg(long, value_enum, env = "RBUILD_PROGRESS")]
    pub progress: Option<ProgressMode>,
    /// Print the image id and nothing else
    #[arg(short, long)]
    pub quiet: bool,
    /// Say for each step why it ran, or why it did not have to
    #[arg(long)]
    pub explain: bool,
    /// Build twice without cache, in different ways, and say where the results differ
    #[arg(long)]
    pub verify: bool,
    /// Write a page that shows where the time went and what takes room
    #[arg(long, value_name = "FILE.html")]
    pub timings: Option<PathBuf>,
    /// What follows a command that fails: `shell` opens one in its container
    #[arg(long, value_name = "WHAT")]
    pub on_error: Option<String>,
    /// Write the image id to a file
    #[arg(long, value_name = "FILE")]
    pub iidfile: Option<PathBuf>,
    /// Write digests and names of the result to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub metadata_file: Option<PathBuf>,
    /// Steps that run at a time [default: the number of cores, 4 at least]
    #[arg(long, value_name = "N", env = "RBUILD_JOBS")]
    pub jobs: Option<usize>,
    /// What the build cache may take when the build is over, for example 10g; the longest unused goes first
    #[arg(long, value_name = "SIZE", env = "RBUILD_CACHE_LIMIT")]
    pub cache_limit: Option<String>,
    /// The result is in the local store in any case
    #[arg(long, hide = true)]
    pub load: bool,
    /// Images are those of the local store in any case
    #[arg(long, hide = true)]
    pub pull: bool,
    /// Intermediate containers never stay
    #[arg(long, hide = true)]
    pub rm: bool,
    #[arg(long, hide = true)]
    pub force_rm: bool,
    #[arg(long, hide = true)]
    pub compress: bool,
    #[command(flatten)]
    pub left_out: LeftOut,
}

/// Flags of docker's that scripts pass and that do nothing here. A build does without them and says so.
#[derive(Args)]
pub struct LeftOut {
    #[arg(short, long, hide = true)]
    memory: Option<String>,
    #[arg(long, hide = true)]
    memory_swap: Option<String>,
    #[arg(short, long, hide = true)]
    cpu_shares: Option<String>,
    #[arg(long, hide = true)]
    cpu_period: Option<String>,
    #[arg(long, hide = true)]
    cpu_quota: Option<String>,
    #[arg(long, hide = true)]
    cpuset_cpus: Option<String>,
    #[arg(long, hide = true)]
    cpuset_mems: Option<String>,
    #[arg(long, hide = true)]
    cgroup_parent: Option<String>,
    #[arg(long, hide = true)]
    resource: Vec<String>,
    #[arg(long, hide = true)]
    security_opt: Vec<String>,
    #[arg(long, hide = true)]
    cache_from: Vec<String>,
    #[arg(long, hide = true)]
    cache_to: Vec<String>,
    #[arg(long, hide = true)]
    builder: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    provenance: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    sbom: Option<String>,
}

impl LeftOut {
    /// Those that were given and ask for something that will be missed.
    pub fn given(&self) -> Vec<&'static str> {
        let asks = |value: &Option<String>| value.as_deref().is_some_and(|v| v != "false");
        let all = [
            ("--memory", self.memory.is_some()),
            ("--memory-swap", self.memory_swap.is_some()),
            ("--cpu-shares", self.cpu_shares.is_some()),
            ("--cpu-period", self.cpu_period.is_some()),
            ("--cpu-quota", self.cpu_quota.is_some()),
            ("--cpuset-cpus", self.cpuset_cpus.is_some()),
            ("--cpuset-mems", self.cpuset_mems.is_some()),
            ("--cgroup-parent", self.cgroup_parent.is_some()),
            ("--resource", !self.resource.is_empty()),
            ("--security-opt", !self.security_opt.is_empty()),
            ("--cache-from", !self.cache_from.is_empty()),
            ("--cache-to", !self.cache_to.is_empty()),
            ("--builder", self.builder.is_some()),
            ("--provenance", asks(&self.provenance)),
            ("--sbom", asks(&self.sbom)),
        ];
        all.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
    }
}
