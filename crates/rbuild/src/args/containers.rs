//! Arguments of the commands on containers.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use rbuild_engine::PullPolicy;
use rbuild_plan::NetworkMode;
use rbuild_store::RestartPolicy;

use crate::args::registry::RegistryFlags;
use crate::input::value::{self, GroupLimit, Lines, Moment, Nanoseconds, SignalNumber};

#[derive(Args)]
#[command(disable_help_flag = true, override_usage = "rbuild run [OPTIONS] IMAGE [COMMAND]...")]
pub struct RunArgs {
    /// Run it in the background, and print its ID
    #[arg(short, long)]
    pub detach: bool,
    #[command(flatten)]
    pub container: ContainerFlags,
}

#[derive(Args)]
#[command(disable_help_flag = true, override_usage = "rbuild create [OPTIONS] IMAGE [COMMAND]...")]
pub struct CreateArgs {
    #[command(flatten)]
    pub container: ContainerFlags,
}

/// Flags of `run` and `create`.
#[derive(Args)]
pub struct ContainerFlags {
    /// Image to run, and a command to run instead of its CMD
    #[arg(required = true, trailing_var_arg = true, value_name = "IMAGE")]
    pub words: Vec<String>,
    /// Name of the container
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Remove the container when it ends
    #[arg(long)]
    pub rm: bool,
    /// Start the command again when it ends, in the background: no, on-failure, on-failure:MAXIMUM,
    /// always or unless-stopped [default: no]
    #[arg(long, value_name = "POLICY", value_parser = value::restart)]
    pub restart: Option<RestartPolicy>,
    /// Publish a port: forward it from this machine to the container, in an isolated network
    #[arg(short, long, value_name = "[[ADDRESS:]PORT:]CONTAINER-PORT[/PROTOCOL]")]
    pub publish: Vec<String>,
    /// Publish all ports that the image exposes, at free ports of this machine
    #[arg(short = 'P', long)]
    pub publish_all: bool,
    /// Connect standard input
    #[arg(short, long)]
    pub interactive: bool,
    /// Allocate a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Set an environment variable; without a value, pass it on from the environment
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Mount a file or directory of this machine, or a volume by its name; without a source, an
    /// anonymous volume
    #[arg(short, long, value_name = "[SOURCE:]TARGET[:ro]")]
    pub volume: Vec<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User and group of the command, by name or ID
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Add a group to those of the user, by name or ID
    #[arg(long, value_name = "GROUP")]
    pub group_add: Vec<String>,
    /// Program to run instead of the image's ENTRYPOINT
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Platform to select from a multi-platform image [default: that of this machine]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<String>,
    /// Network mode: host, isolated (private, with outbound access through pasta or slirp4netns;
    /// also bridge) or none [default: host, or isolated if ports are published]
    #[arg(long, value_name = "MODE", visible_alias = "net", value_parser = value::container_network)]
    pub network: Option<NetworkMode>,
    /// Add an entry to /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS")]
    pub add_host: Vec<String>,
    /// Name server of the container [default: those of this machine]
    #[arg(long, value_name = "ADDRESS", value_parser = value::address)]
    pub dns: Vec<IpAddr>,
    /// Domain in which names are searched
    #[arg(long, value_name = "DOMAIN")]
    pub dns_search: Vec<String>,
    /// Option of the resolver (resolv.conf(5))
    #[arg(long, value_name = "OPTION", alias = "dns-opt")]
    pub dns_option: Vec<String>,
    /// Host name [default: the short ID of the container]
    #[arg(short = 'h', long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Size of /dev/shm [default: 64m]
    #[arg(long, value_name = "SIZE")]
    pub shm_size: Option<String>,
    /// Resource limit, for example nofile=1024:2048
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    pub ulimit: Vec<String>,
    /// Limit the memory of the container, for example 512m
    #[arg(short, long, value_name = "SIZE", value_parser = value::memory)]
    pub memory: Option<GroupLimit>,
    /// Limit the processor time of the container, for example 1.5 processors
    #[arg(long, value_name = "NUMBER", value_parser = value::cpus)]
    pub cpus: Option<GroupLimit>,
    /// Limit the number of processes and threads of the container
    #[arg(long, value_name = "NUMBER", value_parser = value::processes, allow_hyphen_values = true)]
    pub pids_limit: Option<GroupLimit>,
    /// Set environment variables from a file of NAME=VALUE lines
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    // The text is for the terminal: brackets are no links.
    #[allow(rustdoc::broken_intra_doc_links)]
    /// Mount a volume ([type=volume,][source=NAME,]target=PATH[,readonly]), a file or directory
    /// (type=bind,source=PATH,target=PATH[,readonly]), or an empty file system in memory
    /// (type=tmpfs,target=PATH[,tmpfs-size=SIZE][,tmpfs-mode=MODE])
    #[arg(long, value_name = "MOUNT")]
    pub mount: Vec<String>,
    /// Mount an empty file system in memory
    #[arg(long, value_name = "TARGET[:OPTION,...]")]
    pub tmpfs: Vec<String>,
    /// Start the command below a small first process, which forwards signals and reaps processes
    #[arg(long)]
    pub init: bool,
    /// Show a device of this machine, which this user must be allowed to open
    #[arg(long, value_name = "PATH[:TARGET[:rwm]]")]
    pub device: Vec<String>,
    /// Forbid writing to the files of the image
    #[arg(long)]
    pub read_only: bool,
    /// Add a capability, by name, or ALL
    #[arg(long, value_name = "NAME")]
    pub cap_add: Vec<String>,
    /// Drop a capability, by name, or ALL
    #[arg(long, value_name = "NAME")]
    pub cap_drop: Vec<String>,
    /// Give the command all capabilities of a user namespace of its own, and most system calls
    #[arg(long)]
    pub privileged: bool,
    /// Security option: no-new-privileges
    #[arg(long, value_name = "OPTION")]
    pub security_opt: Vec<String>,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    pub help: Option<bool>,
    /// Label of the container
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub label: Vec<String>,
    /// Set labels from a file of NAME=VALUE lines
    #[arg(long, value_name = "FILE")]
    pub label_file: Vec<PathBuf>,
    /// Signal that `rbuild stop` sends [default: that of the image, else SIGTERM]
    #[arg(long, value_name = "SIGNAL", value_parser = value::signal)]
    pub stop_signal: Option<SignalNumber>,
    /// Seconds that `rbuild stop` waits before it kills the container [default: 10]
    #[arg(long, value_name = "SECONDS", value_parser = value::seconds)]
    pub stop_timeout: Option<u64>,
    /// Write the ID of the container to FILE
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<PathBuf>,
    /// Expose a port, for --publish-all
    #[arg(long, value_name = "PORT[/PROTOCOL]")]
    pub expose: Vec<String>,
    /// Pull the image: missing (only if it is not in the store), always or never [default: missing]
    #[arg(long, value_name = "WHEN", env = "RBUILD_PULL", value_parser = value::pull)]
    pub pull: Option<PullPolicy>,
    /// Do not show the progress of a pull
    #[arg(short, long)]
    pub quiet: bool,
    /// Do not check the health of the container, whatever the image specifies
    #[arg(long)]
    pub no_healthcheck: bool,
    #[command(flatten)]
    pub health: HealthFlags,
    #[command(flatten)]
    pub registry: RegistryFlags,
    #[command(flatten)]
    pub ignored: IgnoredContainerFlags,
}

/// Flags that change the HEALTHCHECK of an image.
#[derive(Args)]
pub struct HealthFlags {
    /// Command that checks the health of the container in a shell; exit code 0 means healthy
    #[arg(long, value_name = "COMMAND")]
    pub health_cmd: Option<String>,
    /// Time between two checks [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = value::check_time)]
    pub health_interval: Option<Nanoseconds>,
    /// Time after which a check has failed [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = value::check_time)]
    pub health_timeout: Option<Nanoseconds>,
    /// Number of consecutive failures after which the container is unhealthy [default: 3]
    #[arg(long, value_name = "NUMBER", value_parser = value::retries)]
    pub health_retries: Option<u32>,
    /// Time after the start during which failures do not count [default: 0s]
    #[arg(long, value_name = "TIME", value_parser = value::check_time)]
    pub health_start_period: Option<Nanoseconds>,
    /// Time between two checks during the start period [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = value::check_time)]
    pub health_start_interval: Option<Nanoseconds>,
}

impl HealthFlags {
    /// Returns true if one of the flags was given.
    pub fn is_given(&self) -> bool {
        let times = [self.health_interval, self.health_timeout, self.health_start_period, self.health_start_interval];
        self.health_cmd.is_some() || self.health_retries.is_some() || times.iter().any(Option::is_some)
    }
}

/// Other flags of docker, which only cause a warning: those that limit resources in other ways.
#[derive(Args)]
pub struct IgnoredContainerFlags {
    #[arg(long, hide = true)]
    memory_swap: Option<String>,
    #[arg(short, long, hide = true)]
    cpu_shares: Option<String>,
    #[arg(long, hide = true)]
    cpuset_cpus: Option<String>,
}

impl IgnoredContainerFlags {
    /// Returns the flags that were given.
    pub fn given(&self) -> Vec<&'static str> {
        let all = [
            ("--memory-swap", self.memory_swap.is_some()),
            ("--cpu-shares", self.cpu_shares.is_some()),
            ("--cpuset-cpus", self.cpuset_cpus.is_some()),
        ];
        all.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
    }
}

#[derive(Args)]
pub struct StartArgs {
    #[command(flatten)]
    pub targets: ContainerNames,
    /// Run it in the foreground, and end with its exit code
    #[arg(short, long)]
    pub attach: bool,
    /// Connect standard input; implies --attach
    #[arg(short, long)]
    pub interactive: bool,
}

/// The containers that a verb concerns.
#[derive(Args)]
pub struct ContainerNames {
    /// Names or IDs of containers
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

#[derive(Args)]
pub struct RmArgs {
    #[command(flatten)]
    pub targets: ContainerNames,
    /// Kill running containers, and ignore missing ones
    #[arg(short, long)]
    pub force: bool,
    /// Remove the anonymous volumes of the containers as well
    #[arg(short, long)]
    pub volumes: bool,
}

#[derive(Args, Default)]
pub struct ContainersArgs {
    /// Include containers that are not running
    #[arg(short, long)]
    pub all: bool,
    /// Print only IDs
    #[arg(short, long)]
    pub quiet: bool,
    /// Filter: id=ID, name=NAME, status=STATUS, exited=CODE, health=HEALTH, ancestor=IMAGE or
    /// label=NAME[=VALUE]
    #[arg(short, long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// Show only the container created last, in any state
    #[arg(short, long)]
    pub latest: bool,
    /// Show only this number of containers created last, in any state
    #[arg(short = 'n', long, value_name = "NUMBER")]
    pub last: Option<usize>,
    /// Do not truncate IDs and commands
    #[arg(long)]
    pub no_trunc: bool,
    /// Output format: `json`, `table TEMPLATE` or a Go template
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}

#[derive(Args)]
pub struct ContainerPruneArgs {
    /// Do not ask for confirmation; only rbuild that was called as `docker` asks
    #[arg(short, long)]
    pub force: bool,
}

#[derive(Args)]
pub struct LogsArgs {
    /// Name or ID of a container, build ID or a prefix of it, or `latest` for the last build
    #[arg(value_name = "CONTAINER|BUILD")]
    pub name: Option<String>,
    /// Label of a step of a build: `linux/amd64 builder 3/7`, `builder 3/7` or `3/7`
    pub step: Option<String>,
    /// Go on with new output until the container ends
    #[arg(short, long)]
    pub follow: bool,
    /// Show only this number of lines at the end of a container's output, or of builds in the list
    #[arg(short = 'n', long, value_name = "LINES", value_parser = value::lines)]
    pub tail: Option<Lines>,
    /// Show only output after this time, or builds started after it: a duration before now (10s,
    /// 1h30m) or a time (2026-01-31T12:00:00Z)
    #[arg(long, value_name = "TIME", value_parser = value::moment)]
    pub since: Option<Moment>,
    /// Show only output before this time, or builds started before it, in the forms of --since
    #[arg(long, value_name = "TIME", value_parser = value::moment)]
    pub until: Option<Moment>,
    /// Show the time of each line of a container's output
    #[arg(short, long)]
    pub timestamps: bool,
    /// Output format for builds: `json`, `table TEMPLATE` or a Go template
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}

#[derive(Args)]
#[command(override_usage = "rbuild exec [OPTIONS] CONTAINER COMMAND...")]
pub struct ExecArgs {
    /// Running container, and the command to run in it
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, value_names = ["CONTAINER", "COMMAND"])]
    pub words: Vec<String>,
    /// Run it in the background; its output is discarded
    #[arg(short, long)]
    pub detach: bool,
    /// Connect standard input
    #[arg(short, long)]
    pub interactive: bool,
    /// Allocate a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Set an environment variable; without a value, pass it on from the environment
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Set environment variables from a file of NAME=VALUE lines
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// User and group of the command, by name or ID [default: those of the container]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Working directory [default: that of the container]
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
}

#[derive(Args)]
pub struct StopArgs {
    #[command(flatten)]
    pub targets: ContainerNames,
    /// Seconds to wait before the container is killed [default: that of the container, else 10]
    #[arg(short, long, value_name = "SECONDS", visible_alias = "timeout", value_parser = value::seconds)]
    pub time: Option<u64>,
    /// Signal to send [default: that of the container, else SIGTERM]
    #[arg(short, long, value_name = "SIGNAL", value_parser = value::signal)]
    pub signal: Option<SignalNumber>,
}

#[derive(Args)]
pub struct KillArgs {
    #[command(flatten)]
    pub targets: ContainerNames,
    /// Signal to send, by name or number
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL", value_parser = value::signal)]
    pub signal: SignalNumber,
}

#[derive(Args)]
pub struct RenameArgs {
    /// Name or ID of the container
    #[arg(value_name = "CONTAINER")]
    pub container: String,
    /// New name
    #[arg(value_name = "NAME")]
    pub name: String,
}

#[derive(Args)]
pub struct ExportArgs {
    /// Running container, or one that was never started
    #[arg(value_name = "CONTAINER")]
    pub container: String,
    /// Write the archive to FILE instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<String>,
}

#[derive(Args)]
pub struct TopArgs {
    /// Running container
    #[arg(value_name = "CONTAINER")]
    pub container: String,
    /// Output format: `json`, `table TEMPLATE` or a Go template
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}

#[derive(Args)]
pub struct StatsArgs {
    /// Running containers [default: all]
    #[arg(value_name = "CONTAINER")]
    pub containers: Vec<String>,
    /// Print one measurement; without a terminal, this is the default
    #[arg(long)]
    pub no_stream: bool,
    /// Do not truncate IDs
    #[arg(long)]
    pub no_trunc: bool,
    /// Accepted for compatibility; containers that do not run use nothing
    #[arg(short, long, hide = true)]
    pub all: bool,
    /// Output format: `json`, `table TEMPLATE` or a Go template
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}

#[derive(Args)]
pub struct WaitArgs {
    #[command(flatten)]
    pub targets: ContainerNames,
}

#[derive(Args)]
pub struct DiffArgs {
    /// Running container
    #[arg(value_name = "CONTAINER")]
    pub container: String,
}

#[derive(Args)]
pub struct CommitArgs {
    /// Running container
    #[arg(value_name = "CONTAINER")]
    pub container: String,
    /// Name of the image
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Comment for the history
    #[arg(short, long)]
    pub message: Option<String>,
    /// Author, for the history
    #[arg(short, long)]
    pub author: Option<String>,
    /// Accepted for compatibility; the container is never paused
    #[arg(short, long, hide = true)]
    pub pause: bool,
    #[arg(short, long, hide = true)]
    pub quiet: bool,
}

#[derive(Args)]
pub struct PortArgs {
    /// Container with published ports
    #[arg(value_name = "CONTAINER")]
    pub container: String,
    /// Show only the address of this port of the container
    #[arg(value_name = "PORT[/PROTOCOL]")]
    pub port: Option<String>,
}
