//! Arguments of the commands on volumes.

use clap::Args;

#[derive(Args)]
pub struct VolumeListArgs {
    /// Print only names
    #[arg(short, long)]
    pub quiet: bool,
    /// Filter: name=PART, label=NAME[=VALUE] or dangling=true|false (not used by a container)
    #[arg(short, long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// Output format: `json`, `table TEMPLATE` or a Go template
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}

#[derive(Args)]
pub struct VolumeCreateArgs {
    /// Name of the volume [default: a generated one]
    pub name: Option<String>,
    /// Label of the volume
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub label: Vec<String>,
    #[arg(short, long, hide = true, value_parser = ["local"])]
    pub driver: Option<String>,
}

#[derive(Args)]
pub struct VolumeRemoveArgs {
    /// Names of volumes
    #[arg(required = true, value_name = "VOLUME")]
    pub volumes: Vec<String>,
    /// Ignore missing volumes
    #[arg(short, long)]
    pub force: bool,
}

#[derive(Args)]
pub struct VolumeInspectArgs {
    /// Names of volumes
    #[arg(required = true, value_name = "VOLUME")]
    pub volumes: Vec<String>,
    /// Output format for each of them: `json` or a Go template
    #[arg(short, long, value_name = "FORMAT")]
    pub format: Option<String>,
}

#[derive(Args)]
pub struct VolumePruneArgs {
    /// Include volumes with a name of yours
    #[arg(short, long)]
    pub all: bool,
    /// Do not ask for confirmation; only rbuild that was called as `docker` asks
    #[arg(short, long)]
    pub force: bool,
}
