//! The flags of `build`.
// Doc comments are help texts here, not Markdown.
#![allow(rustdoc::broken_intra_doc_links)]

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use rbuild_engine::PullPolicy;
use rbuild_plan::NetworkMode;

use crate::args::registry::RegistryFlags;
use crate::input::value;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProgressMode {
    /// tty on a terminal, github or gitlab in their CI jobs, else plain
    Auto,
    /// Lines that are redrawn
    Tty,
    /// Lines in order
    Plain,
    /// Nothing but errors
    #[value(alias = "none")]
    Quiet,
    /// One JSON document per line, as docker buildx writes it
    Rawjson,
    /// Groups of GitHub workflow logs
    Github,
    /// Sections of GitLab job logs
    Gitlab,
}

#[derive(Args)]
pub struct BuildArgs {
    /// Build context: a directory, the http(s) URL of a tar archive or a Dockerfile, or `-` to read
    /// either from standard input
    #[arg(value_name = "CONTEXT", default_value = ".")]
    pub context: String,
    /// Path or http(s) URL of the Dockerfile, or `-` for standard input [default:
    /// CONTEXT/Dockerfile]
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<String>,
    /// Name of the image (repeatable)
    #[arg(short, long, value_name = "NAME[:TAG]")]
    pub tag: Vec<String>,
    /// Stage to build, by name or number [default: the last]
    #[arg(long, value_name = "STAGE")]
    pub target: Option<String>,
    /// Set a build argument; without a value, take it from the environment
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub build_arg: Vec<String>,
    /// Output: DIR, `-` for a tar on standard output, or
    /// type=local|tar|oci|docker|image|registry|cacheonly[,dest=PATH]
    #[arg(short, long, value_name = "OUTPUT")]
    pub output: Vec<String>,
    /// Do not use the cache
    #[arg(long)]
    pub no_cache: bool,
    /// Read another cache: type=local,src=DIR or type=registry,ref=NAME[,required] (repeatable)
    #[arg(long, value_name = "CACHE")]
    pub cache_from: Vec<String>,
    /// Write the steps to another cache after the build: type=local,dest=DIR or
    /// type=registry,ref=NAME[,mode=max] (repeatable)
    #[arg(long, value_name = "CACHE")]
    pub cache_to: Vec<String>,
    /// Wait for another machine that builds the same steps for a cache in a registry that this
    /// build reads and writes [default: true if the registry answers within 50 ms]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub cache_claim: Option<bool>,
    /// Do not use the cache for these stages
    #[arg(long, value_name = "STAGE,…")]
    pub no_cache_filter: Vec<String>,
    /// Target platform: OS/ARCH[/VARIANT] (repeatable)
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Vec<String>,
    /// Named build context: NAME=DIR, NAME=docker-image://IMAGE, NAME=oci-layout://DIR[:TAG] or
    /// NAME=URL, a directory with the file `context`
    #[arg(long, value_name = "NAME=SOURCE")]
    pub build_context: Vec<String>,
    /// File modes of the context: as-is, or git for 644 and 755 regardless of the umask [default:
    /// as-is]
    #[arg(long, value_name = "MODES", env = "RBUILD_CONTEXT_MODES", value_parser = value::context_modes)]
    pub context_modes: Option<bool>,
    /// Secret for `RUN --mount=type=secret`: id=NAME[,src=FILE][,env=VARIABLE]
    #[arg(long, value_name = "SECRET")]
    pub secret: Vec<String>,
    /// SSH agent for `RUN --mount=type=ssh`: default, or ID=SOCKET-OR-KEY
    #[arg(long, value_name = "SSH")]
    pub ssh: Vec<String>,
    /// Add an entry to /etc/hosts for commands
    #[arg(long, value_name = "NAME:ADDRESS")]
    pub add_host: Vec<String>,
    /// Size of /dev/shm for commands [default: 64m]
    #[arg(long, value_name = "SIZE")]
    pub shm_size: Option<String>,
    /// Resource limit for commands, for example nofile=1024:2048
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    pub ulimit: Vec<String>,
    /// Mount a file or directory of this machine for all commands
    #[arg(short, long, value_name = "SOURCE:TARGET[:ro]")]
    pub volume: Vec<String>,
    /// Merge the layers of the build into one; with `=all`, also those of the base image
    #[arg(long, value_name = "WHICH", num_args = 0..=1, require_equals = true, default_missing_value = "steps")]
    pub squash: Option<String>,
    /// Grant an entitlement: security.insecure, network.host, local.delete or secret-in-image
    #[arg(long, value_name = "ENTITLEMENT")]
    pub allow: Vec<String>,
    /// Add an annotation to the manifest
    #[arg(long, value_name = "KEY=VALUE")]
    pub annotation: Vec<String>,
    /// Add a label to the image
    #[arg(long, value_name = "NAME=VALUE")]
    pub label: Vec<String>,
    /// Check the Dockerfile for likely mistakes, without building
    #[arg(long)]
    pub check: bool,
    /// Action: build, check, outline or targets, with `,format=json` for JSON
    #[arg(long, value_name = "CALL", default_value = "build")]
    pub call: String,
    /// Network mode for RUN: host, isolated (private, with outbound access through pasta or
    /// slirp4netns) or none [default: host]
    #[arg(long, value_name = "MODE", default_value = "default", hide_default_value = true)]
    #[arg(value_parser = value::network)]
    pub network: NetworkMode,
    /// Style of the progress output [default: auto]
    #[arg(long, value_enum, env = "RBUILD_PROGRESS")]
    pub progress: Option<ProgressMode>,
    /// Print only the image ID and errors, without progress and warnings
    #[arg(short, long)]
    pub quiet: bool,
    /// Show for each step why it ran or was cached
    #[arg(long)]
    pub explain: bool,
    /// Build twice without cache and report the first difference; without SOURCE_DATE_EPOCH, the
    /// image is dated a day back
    #[arg(long)]
    pub verify: bool,
    /// Write a page with the timeline of the build and the sizes of its layers
    #[arg(long, value_name = "FILE.html", value_parser = value::html_file)]
    pub timings: Option<PathBuf>,
    /// Action when a command fails: fail, or shell to open one in its container [default: fail]
    #[arg(long, value_name = "ACTION")]
    pub on_error: Option<String>,
    /// Write the image ID to a file
    #[arg(long, value_name = "FILE")]
    pub iidfile: Option<PathBuf>,
    /// Write names and digests of the image to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub metadata_file: Option<PathBuf>,
    /// Maximum number of concurrent steps [default: number of cores, at least 4]
    #[arg(long, value_name = "N", env = "RBUILD_JOBS", value_parser = value::jobs, allow_negative_numbers = true)]
    pub jobs: Option<usize>,
    /// Evict the least recently used cache entries above this size after the build, for example 10g
    #[arg(long, value_name = "SIZE", env = "RBUILD_CACHE_LIMIT", value_parser = value::size)]
    #[arg(allow_negative_numbers = true)]
    pub cache_limit: Option<u64>,
    /// Ignore file to use instead of .dockerignore
    #[arg(long, value_name = "FILE")]
    pub ignorefile: Option<PathBuf>,
    /// Accepted for compatibility; the same as `--squash=all`
    #[arg(long, hide = true)]
    pub squash_all: bool,
    /// Accepted for compatibility; the same as SOURCE_DATE_EPOCH
    #[arg(long, hide = true)]
    pub timestamp: Option<String>,
    /// Accepted for compatibility; steps are always cached
    #[arg(long, hide = true)]
    pub layers: bool,
    #[arg(long, hide = true)]
    pub disable_content_trust: bool,
    /// Accepted for compatibility; the image is always in the local store
    #[arg(long, hide = true)]
    pub load: bool,
    /// Pull images: missing (only those not in the store), always or never [default: missing]
    #[arg(long, value_name = "WHEN", num_args = 0..=1, require_equals = true, default_missing_value = "always")]
    #[arg(env = "RBUILD_PULL", value_parser = value::pull)]
    pub pull: Option<PullPolicy>,
    /// Push the image under its names, as `--output type=registry` does
    #[arg(long)]
    pub push: bool,
    #[command(flatten)]
    pub registry: RegistryFlags,
    /// Accepted for compatibility; containers are always removed
    #[arg(long, hide = true)]
    pub rm: bool,
    #[arg(long, hide = true)]
    pub force_rm: bool,
    #[arg(long, hide = true)]
    pub compress: bool,
    #[command(flatten)]
    pub ignored: IgnoredBuildFlags,
}

/// Flags of docker that scripts pass and rbuild does not support. They only cause a warning.
#[derive(Args)]
pub struct IgnoredBuildFlags {
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
    builder: Option<String>,
    #[arg(long, hide = true)]
    attest: Vec<String>,
    #[arg(long, hide = true)]
    format: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    provenance: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    sbom: Option<String>,
}

impl IgnoredBuildFlags {
    /// Returns the flags that were given and would have an effect in docker.
    pub fn given(&self) -> Vec<&'static str> {
        let asks =
            |value: &Option<String>| value.as_deref().is_some_and(|v| rbuild_dockerfile::parse_bool(v) != Some(false));
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
            ("--builder", self.builder.is_some()),
            ("--attest", self.attest.iter().any(|a| !a.contains("disabled=true"))),
            ("--format", self.format.is_some()),
            ("--provenance", asks(&self.provenance)),
            ("--sbom", asks(&self.sbom)),
        ];
        all.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
    }
}
