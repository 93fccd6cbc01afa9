//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

mod build;
mod verbs;

pub use build::{BuildArgs, ProgressMode};
pub use verbs::with_verb;

#[derive(Parser)]
#[command(name = "rbuild", version, about = "docker build without Docker: one binary, no daemon, no root")]
pub struct Cli {
    /// Where images and the build cache are kept [default: $RBUILD_ROOT, else ~/.local/share/rbuild]
    #[arg(long, global = true, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// What archives that come in may ask for: entries, path, depth, bytes, header or ratio
    #[arg(long, global = true, value_name = "NAME=VALUE")]
    pub limit: Vec<String>,
    /// How commands are kept apart: auto, userns, single-id or chroot [default: auto, the best that this machine allows]
    #[arg(long, global = true, value_name = "RUNG", env = "RBUILD_ISOLATION")]
    pub isolation: Option<String>,
    /// How long to wait for a program that is no rbuild and holds a lock of the store [default: 15]
    #[arg(long, global = true, value_name = "SECONDS", env = "RBUILD_LOCK_TIMEOUT")]
    pub lock_timeout: Option<u64>,
    /// Log to standard error, with the warnings of libraries; RBUILD_LOG=engine=debug chooses parts and levels
    #[arg(short = 'D', long, global = true)]
    pub debug: bool,
    /// Append a log of everything that rbuild does to FILE, as JSON lines
    #[arg(long, global = true, value_name = "FILE", env = "RBUILD_DEBUG_LOG")]
    pub debug_log: Option<PathBuf>,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Subcommand)]
pub enum Verb {
    /// Build from a Dockerfile (the verb may be left out)
    Build(Box<BuildArgs>),
    /// Make an image of a root file system archive
    Import(ImportArgs),
    /// Write images to an archive
    Save(SaveArgs),
    /// Read images from an archive
    Load(LoadArgs),
    /// Run a command in a container of an image, in the foreground
    Run(RunArgs),
    /// List images
    Images(ImagesArgs),
    /// Show how an image was made
    History(HistoryArgs),
    /// Show an image as JSON
    Inspect(InspectArgs),
    /// Give an image another name
    Tag(TagArgs),
    /// Remove images
    Rmi(RmiArgs),
    /// Give back space
    Prune(PruneArgs),
    /// Remove images that have no name, or all that no container holds
    #[command(name = "image-prune", hide = true)]
    ImagePrune(ImagePruneArgs),
    /// List what `create` made
    #[command(name = "ps", hide = true)]
    Containers(ContainersArgs),
    /// Remove all that `create` made
    #[command(name = "container-prune", hide = true)]
    ContainerPrune(ContainerPruneArgs),
    /// Copy files out of an image
    Cp(CpArgs),
    /// Name an image for `cp`; nothing runs
    Create(CreateArgs),
    /// Remove what `create` made
    Rm(RmArgs),
    /// List the last builds, or show what the steps of one printed
    Logs(LogsArgs),
    /// Show what the store holds
    Df,
    /// Check what the store holds
    Fsck(FsckArgs),
    /// Show what this machine allows, and what to change
    Doctor,
    /// Print what a shell needs to complete this command
    Completion {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Plumbing for tests and editors
    Debug {
        #[command(subcommand)]
        verb: DebugVerb,
    },
}

#[derive(Subcommand)]
pub enum DebugVerb {
    /// Whether FILE is a valid Dockerfile; if not, why
    Parse { file: PathBuf },
    /// The parse before expansion, one S-expression an instruction
    Ast { file: PathBuf },
    /// Word expansion: JSON requests on standard input, answers on standard output
    Expand,
    /// Ignore rules: JSON requests on standard input, answers on standard output
    Ignore,
}

#[derive(Args)]
pub struct ImportArgs {
    /// A tar (plain, gzip, bzip2, xz or zstd), or `-` for standard input
    pub file: String,
    /// Name of the image
    pub name: Option<String>,
    /// Set a part of the configuration, as the Dockerfile instruction would
    #[arg(short, long, value_name = "INSTRUCTION")]
    pub change: Vec<String>,
    /// Comment in the history
    #[arg(short, long)]
    pub message: Option<String>,
    /// Platform that the image says it is for
    #[arg(long)]
    pub platform: Option<String>,
}

#[derive(Args)]
pub struct SaveArgs {
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
    /// File to write; standard output if not given
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// docker-archive, oci-archive, or oci for a directory
    #[arg(long, default_value = "docker-archive")]
    pub format: String,
    /// Leave out the layers of this image: the other side has it
    #[arg(long, value_name = "IMAGE")]
    pub exclude: Vec<String>,
    /// Leave out the layers of this archive: the other side has loaded it
    #[arg(long, value_name = "FILE")]
    pub since: Vec<PathBuf>,
}

#[derive(Args)]
pub struct LoadArgs {
    /// File to read; standard input if not given
    #[arg(short, long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Platform of which images are taken; of this machine's where there are several, if not given
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Args)]
pub struct ImagesArgs {
    /// Only this name
    pub name: Option<String>,
    /// Images without a name too
    #[arg(short, long)]
    pub all: bool,
    /// Ids only
    #[arg(short, long)]
    pub quiet: bool,
    /// Manifest digests too
    #[arg(long)]
    pub digests: bool,
    /// dangling=true|false, reference=PATTERN, label=NAME[=VALUE], before=IMAGE or since=IMAGE
    #[arg(short, long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// `json`, `table TEMPLATE` or a Go template
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Whole ids
    #[arg(long)]
    pub no_trunc: bool,
}

#[derive(Args)]
pub struct HistoryArgs {
    pub image: String,
    /// `json`, `table TEMPLATE` or a Go template
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    #[arg(short, long)]
    pub quiet: bool,
    /// Whole texts
    #[arg(long)]
    pub no_trunc: bool,
    /// Sizes and times in people's words
    #[arg(short = 'H', long, default_value = "true", action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub human: bool,
}

#[derive(Args)]
pub struct InspectArgs {
    #[arg(required = true)]
    pub images: Vec<String>,
    /// `json` or a Go template, for each image
    #[arg(short, long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Everything is an image
    #[arg(long = "type", hide = true)]
    pub kind: Option<String>,
    /// Read every blob, and compare digests and diffIDs
    #[arg(long)]
    pub verify: bool,
}

#[derive(Args)]
pub struct TagArgs {
    pub image: String,
    pub name: String,
}

#[derive(Args)]
pub struct RmiArgs {
    #[arg(required = true)]
    pub images: Vec<String>,
    /// Also an image with several names; no error if there is none
    #[arg(short, long)]
    pub force: bool,
}

#[derive(Args)]
pub struct PruneArgs {
    /// The whole build cache and the cache mounts too
    #[arg(short, long)]
    pub all: bool,
    /// Only what was not used for so long: until=24h
    #[arg(long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// Keep this much of the cache, the most recently used
    #[arg(long, value_name = "SIZE", visible_alias = "max-used-space")]
    pub keep_storage: Option<String>,
    /// Nobody is asked in any case
    #[arg(short, long, hide = true)]
    pub force: bool,
}

#[derive(Args)]
pub struct ImagePruneArgs {
    /// Images with a name, too
    #[arg(short, long)]
    pub all: bool,
    /// until=24h, or label=NAME[=VALUE]
    #[arg(long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// Nobody is asked in any case
    #[arg(short, long, hide = true)]
    pub force: bool,
}

#[derive(Args)]
pub struct ContainersArgs {
    /// Those that do not run, too; none that `create` made does
    #[arg(short, long)]
    pub all: bool,
    /// Ids only
    #[arg(short, long)]
    pub quiet: bool,
    /// Whole ids
    #[arg(long)]
    pub no_trunc: bool,
    /// `json`, `table TEMPLATE` or a Go template
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}

#[derive(Args)]
pub struct ContainerPruneArgs {
    /// Nobody is asked in any case
    #[arg(short, long, hide = true)]
    pub force: bool,
}

#[derive(Args)]
pub struct LogsArgs {
    /// The beginning of a build's name, or `latest`
    pub build: Option<String>,
    /// One step, by its label: `builder 3/7` or `3/7`
    pub step: Option<String>,
}

#[derive(Args)]
pub struct FsckArgs {
    /// Take out what is broken
    #[arg(long)]
    pub repair: bool,
}

#[derive(Args)]
pub struct CpArgs {
    /// IMAGE:/path, or the name that `create` gave
    #[arg(value_name = "IMAGE:PATH")]
    pub source: String,
    /// A file or directory; `-` writes a tar to standard output
    pub dest: String,
    /// Copy what a link points to
    #[arg(short = 'L', long)]
    pub follow_link: bool,
    /// Owners are the caller's in any case
    #[arg(short, long, hide = true)]
    pub archive: bool,
    #[arg(short, long, hide = true)]
    pub quiet: bool,
}

#[derive(Args)]
pub struct RunArgs {
    pub image: String,
    /// Takes the place of the image's CMD
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
    /// Pass standard input on
    #[arg(short, long)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// A variable; without a value it is taken from the environment
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// A directory of this machine that the command sees
    #[arg(short, long, value_name = "SOURCE:TARGET[:ro]")]
    pub volume: Vec<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Takes the place of the image's ENTRYPOINT
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// host (the default), isolated (its own, out through pasta or slirp4netns) or none
    #[arg(long, value_name = "MODE", default_value = "default", visible_alias = "net")]
    pub network: String,
    /// A name that the command can resolve
    #[arg(long, value_name = "NAME:ADDRESS")]
    pub add_host: Vec<String>,
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Size of /dev/shm [default: 64m]
    #[arg(long, value_name = "SIZE")]
    pub shm_size: Option<String>,
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    pub ulimit: Vec<String>,
    /// Nothing stays in any case
    #[arg(long, hide = true)]
    pub rm: bool,
    #[arg(long, hide = true)]
    pub name: Option<String>,
    #[arg(long, hide = true)]
    pub init: bool,
    #[arg(long, hide = true)]
    pub pull: Option<String>,
}

#[derive(Args)]
pub struct CreateArgs {
    pub image: String,
    /// Taken for the sake of scripts; nothing runs
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub command: Vec<String>,
    #[arg(long)]
    pub name: Option<String>,
}

#[derive(Args)]
pub struct RmArgs {
    #[arg(required = true)]
    pub containers: Vec<String>,
    /// No error if there is none
    #[arg(short, long)]
    pub force: bool,
    #[arg(short, long, hide = true)]
    pub volumes: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_typed_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
