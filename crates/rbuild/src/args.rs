//! Command-line arguments.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use rbuild_sandbox::IsolationRequest;

use crate::input::value::{self, ObjectType};

mod build;
mod containers;
mod registry;
mod volumes;

pub use build::{BuildArgs, ProgressMode};
pub use containers::{
    CommitArgs, ContainerFlags, ContainerNames, ContainerPruneArgs, ContainersArgs, CreateArgs, DiffArgs, ExecArgs,
    ExportArgs, KillArgs, LogsArgs, PortArgs, RenameArgs, RmArgs, RunArgs, StartArgs, StatsArgs, StopArgs, TopArgs,
    WaitArgs,
};
pub use registry::{LoginArgs, LogoutArgs, PullArgs, PushArgs, RegistryFlags};
pub use volumes::{VolumeCreateArgs, VolumeInspectArgs, VolumeListArgs, VolumePruneArgs, VolumeRemoveArgs};

#[derive(Parser)]
#[command(
    name = "rbuild",
    version,
    about = "Build images from Dockerfiles without Docker: one binary, no daemon, no root"
)]
pub struct Cli {
    #[command(flatten)]
    pub common: CommonFlags,
    #[command(subcommand)]
    pub verb: Verb,
}

/// Flags of all verbs.
#[derive(Args)]
pub struct CommonFlags {
    /// Directory of the store: images and build cache [default: $RBUILD_ROOT, else
    /// $XDG_DATA_HOME/rbuild, else ~/.local/share/rbuild]
    #[arg(long, global = true, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Set a limit on unpacked archives: entries, path, depth, bytes, header or ratio (for example
    /// bytes=20g)
    #[arg(long, global = true, value_name = "NAME=VALUE")]
    pub limit: Vec<String>,
    /// Isolation of commands: auto, userns, single-id or chroot [default: auto, the strongest
    /// available]
    #[arg(long, global = true, value_name = "MODE", env = "RBUILD_ISOLATION", value_parser = value::isolation)]
    pub isolation: Option<IsolationRequest>,
    /// Seconds to wait for a store lock held by a program other than rbuild [default: 15]
    #[arg(long, global = true, value_name = "SECONDS", env = "RBUILD_LOCK_TIMEOUT", value_parser = value::seconds)]
    pub lock_timeout: Option<u64>,
    /// Log to standard error, including warnings of libraries; RBUILD_LOG=engine=debug selects
    /// parts and levels
    #[arg(short = 'D', long, global = true)]
    pub debug: bool,
    /// Append a detailed log to FILE, as JSON lines
    #[arg(long, global = true, value_name = "FILE", env = "RBUILD_DEBUG_LOG")]
    pub debug_log: Option<PathBuf>,
}

#[derive(Subcommand)]
pub enum Verb {
    /// Build from a Dockerfile (the default command)
    Build(Box<BuildArgs>),
    /// Create an image from a root file system archive
    Import(ImportArgs),
    /// Write images to an archive
    Save(SaveArgs),
    /// Load images from an archive
    Load(LoadArgs),
    /// Pull images from a registry
    Pull(PullArgs),
    /// Push an image to a registry
    Push(PushArgs),
    /// Log in to a registry
    Login(LoginArgs),
    /// Log out of a registry
    Logout(LogoutArgs),
    /// Run a command in a container
    Run(Box<RunArgs>),
    /// Run a command in a running container
    Exec(ExecArgs),
    /// Start containers that were created
    Start(StartArgs),
    /// Stop running containers
    Stop(StopArgs),
    /// Restart containers on the same files
    Restart(StopArgs),
    /// Send a signal to running containers
    Kill(KillArgs),
    /// Pause all processes of running containers
    Pause(ContainerNames),
    /// Continue paused containers
    Unpause(ContainerNames),
    /// List the processes of a running container
    Top(TopArgs),
    /// Show what running containers use: processors, memory, network and disks
    Stats(StatsArgs),
    /// Give a container another name
    Rename(RenameArgs),
    /// Write the files of a container as a tar archive
    Export(ExportArgs),
    /// Wait for the end of containers, and print their exit codes
    Wait(WaitArgs),
    /// List the published ports of a container
    Port(PortArgs),
    /// List the files that a running container has changed
    Diff(DiffArgs),
    /// Create an image from the files of a running container
    Commit(CommitArgs),
    /// List images
    Images(ImagesArgs),
    /// Show the history of an image
    History(HistoryArgs),
    /// Show the properties of an image or a container as JSON
    Inspect(InspectArgs),
    /// Give an image another name
    Tag(TagArgs),
    /// Remove images
    Rmi(RmiArgs),
    /// Remove dangling images and unused build cache
    ///
    /// Without --all, this removes images without a name that no other image needs, results of
    /// steps that no build can find anymore, and what interrupted builds left. What the next build
    /// can use stays: --all removes that as well, or --filter and --keep-storage the part that was
    /// not used lately. Images with a name, containers and volumes always stay.
    Prune(PruneArgs),
    /// Write the build cache to a directory or an archive
    #[command(name = "cache-export")]
    CacheExport(CacheExportArgs),
    /// Read a build cache from a directory or an archive
    #[command(name = "cache-import")]
    CacheImport(CacheImportArgs),
    /// Remove unused build cache; keep all images
    ///
    /// Without --all, this removes results of steps that no build can find anymore, and what
    /// interrupted builds left. What the next build can use stays: --all removes that as well, or
    /// --filter and --keep-storage the part that was not used lately.
    #[command(name = "builder-prune", hide = true)]
    BuilderPrune(PruneArgs),
    /// Remove containers that are not running, dangling images and unused build cache
    ///
    /// With --all, this removes every image that no container uses, and the whole build cache.
    #[command(name = "system-prune", hide = true)]
    SystemPrune(SystemPruneArgs),
    /// Remove dangling images; with --all, every image that no container uses
    #[command(name = "image-prune", hide = true)]
    ImagePrune(ImagePruneArgs),
    /// List containers
    #[command(name = "ps")]
    Containers(ContainersArgs),
    /// Remove all containers that are not running
    #[command(name = "container-prune", hide = true)]
    ContainerPrune(ContainerPruneArgs),
    /// List volumes
    #[command(name = "volume-ls", hide = true)]
    VolumeList(VolumeListArgs),
    /// Create a volume
    #[command(name = "volume-create", hide = true)]
    VolumeCreate(VolumeCreateArgs),
    /// Remove volumes that no container uses
    #[command(name = "volume-rm", hide = true)]
    VolumeRemove(VolumeRemoveArgs),
    /// Show the properties of volumes as JSON
    #[command(name = "volume-inspect", hide = true)]
    VolumeInspect(VolumeInspectArgs),
    /// Remove all anonymous volumes that no container uses
    #[command(name = "volume-prune", hide = true)]
    VolumePrune(VolumePruneArgs),
    /// Copy files out of an image or a container, or into a running container
    Cp(CpArgs),
    /// Create a container without starting it
    Create(Box<CreateArgs>),
    /// Remove containers
    Rm(RmArgs),
    /// Show the output of a container or of a build, or list recent builds
    Logs(LogsArgs),
    /// Show disk usage of the store
    ///
    /// RECLAIMABLE is what `rbuild system prune --all` frees, and for volumes what
    /// `rbuild volume prune --all` frees. `rbuild prune --all` frees that of blobs, trees, cache
    /// mounts and build logs. Without --all, what the next build can use stays.
    Df(DfArgs),
    /// Check the integrity of the store
    Fsck(FsckArgs),
    /// Check what this machine supports, and suggest changes
    Doctor(DoctorArgs),
    /// Explain a lint rule or an error
    Explain(ExplainArgs),
    /// Print a completion script for a shell
    Completion {
        /// Shell to print the script for
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print a manual page, or write all of them to a directory
    Man(ManArgs),
    /// Commands for tests and editors
    Debug {
        #[command(subcommand)]
        verb: DebugVerb,
    },
}

#[derive(Subcommand)]
pub enum DebugVerb {
    /// Check the syntax of a Dockerfile
    Parse {
        /// Dockerfile to read
        file: PathBuf,
    },
    /// Print the parsed Dockerfile before expansion, one S-expression per instruction
    Ast {
        /// Dockerfile to read
        file: PathBuf,
    },
    /// Expand words: JSON requests on standard input, answers on standard output
    Expand,
    /// Match ignore patterns: JSON requests on standard input, answers on standard output
    Ignore,
}

#[derive(Args)]
pub struct ManArgs {
    /// Command whose page is printed [default: the page of the program]
    #[arg(value_name = "COMMAND")]
    pub command: Option<String>,
    /// Write the pages of all commands to DIR, which is created if it does not exist
    #[arg(short, long, value_name = "DIR", conflicts_with = "command")]
    pub output: Option<PathBuf>,
}

#[derive(Args)]
pub struct ImportArgs {
    /// Tar archive (plain, gzip, bzip2, xz or zstd), http(s) URL, or `-` for standard input
    pub file: String,
    /// Name of the image
    pub name: Option<String>,
    /// Apply a Dockerfile instruction to the configuration, for example `CMD ["sh"]`
    #[arg(short, long, value_name = "INSTRUCTION")]
    pub change: Vec<String>,
    /// Comment for the history
    #[arg(short, long)]
    pub message: Option<String>,
    /// Platform of the image [default: that of this machine]
    #[arg(long)]
    pub platform: Option<String>,
    /// Do not show the progress of a download
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Args)]
pub struct SaveArgs {
    /// Images to write
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
    /// Output file, or `-` for standard output [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Archive format: docker-archive, oci-archive, or oci (oci-dir) for a directory
    #[arg(long, default_value = "docker-archive")]
    pub format: String,
    /// Omit layers of this image, which the receiver already has
    #[arg(long, value_name = "IMAGE")]
    pub exclude: Vec<String>,
    /// Omit layers in this archive, which the receiver has already loaded
    #[arg(long, value_name = "FILE")]
    pub since: Vec<PathBuf>,
}

#[derive(Args)]
pub struct LoadArgs {
    /// Input file, http(s) URL, OCI layout directory, or `-` for standard input [default: standard
    /// input]
    #[arg(short, long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Platform to load from a multi-platform image [default: all platforms]
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// Load all platforms of a multi-platform image even if that of this machine is not among them
    #[arg(long, conflicts_with = "platform")]
    pub all_platforms: bool,
    /// Do not show progress
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Args, Default)]
pub struct ImagesArgs {
    /// Show only this repository or name; may be a pattern
    pub name: Option<String>,
    /// Also list forms of named images that have no name themselves, such as compressed ones
    #[arg(short, long)]
    pub all: bool,
    /// Print only IDs
    #[arg(short, long)]
    pub quiet: bool,
    /// Show the digests of images in their registries
    #[arg(long)]
    pub digests: bool,
    /// Show the platforms of each image
    #[arg(long, conflicts_with_all = ["quiet", "format", "digests"])]
    pub tree: bool,
    /// Filter: dangling=true|false, reference=PATTERN, label=NAME[=VALUE], before=IMAGE,
    /// since=IMAGE or until=24h, for images that are older
    #[arg(short, long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// Output format: `json`, `table TEMPLATE` or a Go template
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Do not truncate IDs
    #[arg(long)]
    pub no_trunc: bool,
}

#[derive(Args)]
pub struct HistoryArgs {
    /// Image to show
    pub image: String,
    /// Output format: `json`, `table TEMPLATE` or a Go template
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Print only IDs
    #[arg(short, long)]
    pub quiet: bool,
    /// Do not truncate commands
    #[arg(long)]
    pub no_trunc: bool,
    /// Print sizes and times in human-readable form
    #[arg(
        short = 'H',
        long,
        default_value = "true",
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub human: bool,
}

#[derive(Args)]
pub struct InspectArgs {
    /// Images or containers to show
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// Output format for each of them: `json` or a Go template
    #[arg(short, long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Show only objects of this type: image or container [default: containers, else images]
    #[arg(long = "type", value_name = "TYPE", value_parser = value::object_type)]
    pub kind: Option<ObjectType>,
    /// Verify the digests and diffIDs of all blobs of images
    #[arg(long)]
    pub verify: bool,
    /// Show the manifests in the registries of images that refer to them, such as signatures
    #[arg(long, conflicts_with_all = ["verify", "kind"])]
    pub referrers: bool,
    #[command(flatten)]
    pub registry: RegistryFlags,
}

#[derive(Args)]
pub struct TagArgs {
    /// Image to name
    pub image: String,
    /// Name to add
    pub name: String,
}

#[derive(Args)]
pub struct RmiArgs {
    /// Images to remove
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
    /// Remove an image that has names in several repositories; ignore missing images
    #[arg(short, long)]
    pub force: bool,
    /// Accepted for compatibility
    #[arg(long, hide = true)]
    pub no_prune: bool,
}

#[derive(Args)]
pub struct PruneArgs {
    /// Remove the whole build cache, including cache mounts and the logs of builds
    #[arg(short, long)]
    pub all: bool,
    /// Remove only entries unused for this long (until=24h), or imported from this cache
    /// (origin=CACHE)
    #[arg(long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// Keep the most recently used entries, up to this size
    #[arg(long, value_name = "SIZE", visible_alias = "max-used-space")]
    pub keep_storage: Option<String>,
    /// Do not ask for confirmation; only rbuild that was called as `docker` asks
    #[arg(short, long)]
    pub force: bool,
    #[arg(long, hide = true)]
    pub verbose: bool,
    #[arg(long, hide = true)]
    pub volumes: bool,
}

#[derive(Args)]
pub struct SystemPruneArgs {
    /// Include images with a name that no container uses, and the whole build cache with its cache
    /// mounts and the logs of builds
    #[arg(short, long)]
    pub all: bool,
    /// Remove only containers and images created before this time, and build cache unused since:
    /// until=24h
    #[arg(long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// Keep the most recently used build cache, up to this size
    #[arg(long, value_name = "SIZE")]
    pub keep_storage: Option<String>,
    /// Do not ask for confirmation; rbuild that was not called as `docker` asks only on a terminal,
    /// and only with --all
    #[arg(short, long)]
    pub force: bool,
    #[arg(long, hide = true)]
    pub volumes: bool,
}

#[derive(Args)]
pub struct CacheExportArgs {
    /// Directory of the cache, whose steps of other machines stay; an archive if the name ends with
    /// `.tar`, or `-` for standard output
    pub dest: PathBuf,
    /// Tag of the cache in the directory or archive
    #[arg(long, default_value = "latest")]
    pub tag: String,
    /// Cache mounts to write: all, or IDs separated by `;` [default: none]
    #[arg(long, value_name = "IDS")]
    pub mounts: Option<String>,
    /// Size of a compressed cache mount above which it is not written
    #[arg(long, value_name = "SIZE", default_value = "2g")]
    pub mounts_max: String,
    /// Size of all layers; the steps that were used last are written
    #[arg(long, value_name = "SIZE", default_value = "5g")]
    pub max_size: String,
    /// Compression of layers: gzip, zstd or uncompressed
    #[arg(long, value_name = "FORM", default_value = "gzip")]
    pub compression: String,
    /// File of an Ed25519 private key that signs the records; steps in a directory whose records
    /// have no valid signature are dropped
    // A key in place of its file begins with hyphens, and must not be shown as an unknown flag.
    #[arg(long, value_name = "KEYFILE", allow_hyphen_values = true)]
    pub sign: Option<PathBuf>,
}

#[derive(Args)]
pub struct CacheImportArgs {
    /// Directory or archive of the cache, or `-` for standard input
    pub source: PathBuf,
    /// Tag of the cache in the directory or archive
    #[arg(long, default_value = "latest")]
    pub tag: String,
    /// Cache mounts to restore: all, none, or IDs separated by `;`
    #[arg(long, value_name = "IDS", default_value = "all")]
    pub mounts: String,
    /// File of an Ed25519 public key, or several separated by `;`: import nothing from a cache
    /// whose records have no valid signature of one of them
    #[arg(long, value_name = "PUBKEY", allow_hyphen_values = true)]
    pub verify: Option<String>,
}

#[derive(Args)]
pub struct ImagePruneArgs {
    /// Include images with a name
    #[arg(short, long)]
    pub all: bool,
    /// Filter: until=24h or label=NAME[=VALUE]
    #[arg(long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// Do not ask for confirmation; rbuild that was not called as `docker` asks only on a terminal,
    /// and only with --all
    #[arg(short, long)]
    pub force: bool,
}

#[derive(Args)]
pub struct DfArgs {
    /// Also list the images and the containers
    #[arg(short, long, conflicts_with = "format")]
    pub verbose: bool,
    /// Output format: `json`, `table TEMPLATE` or a Go template
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}

#[derive(Args)]
pub struct DoctorArgs {
    /// Output format: `json`, or else one line per property of the machine
    #[arg(long, value_name = "FORMAT", value_parser = value::json_only)]
    pub format: Option<String>,
}

#[derive(Args)]
pub struct ExplainArgs {
    /// Name of a rule, as `--check` prints it, name or message of an error, or exit code; `-` reads
    /// a log from standard input; without one, all are listed
    #[arg(value_name = "RULE|ERROR", trailing_var_arg = true)]
    pub text: Vec<String>,
}

#[derive(Args)]
pub struct FsckArgs {
    /// Remove damaged entries
    #[arg(long)]
    pub repair: bool,
}

#[derive(Args)]
pub struct CpArgs {
    /// IMAGE:/path, CONTAINER:/path, or a path of this machine
    #[arg(value_name = "SOURCE")]
    pub source: String,
    /// Destination file or directory, or CONTAINER:/path; `-` writes a tar archive to standard
    /// output
    pub dest: String,
    /// Copy the target of a symbolic link
    #[arg(short = 'L', long)]
    pub follow_link: bool,
    /// Accepted for compatibility; files belong to the caller
    #[arg(short, long, hide = true)]
    pub archive: bool,
    #[arg(short, long, hide = true)]
    pub quiet: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
