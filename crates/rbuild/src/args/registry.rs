//! Arguments of the verbs that access registries.

use std::path::PathBuf;

use clap::Args;
use rbuild_registry::ServerSettings;

/// Flags of all verbs that access registries.
#[derive(Args, Clone, Default)]
pub struct RegistryFlags {
    /// Verify certificates of registries; `false` also allows plain HTTP [default: true, except for
    /// registries on this machine]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub tls_verify: Option<bool>,
    /// Credentials for the registry that the command names; a build sends them to that of its push
    #[arg(long, value_name = "USER:PASSWORD", hide_env_values = true, env = "RBUILD_CREDS")]
    pub creds: Option<String>,
    /// Credentials file, in the format of docker and podman
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
    /// Directory with certificates for registries: *.crt are authorities, *.cert and *.key those of
    /// the client [default: HOST in the directories certs.d of podman and docker]
    #[arg(long, value_name = "DIR")]
    pub cert_dir: Option<PathBuf>,
    /// Settings of the configuration file.
    #[arg(skip)]
    pub servers: ServerSettings,
}

#[derive(Args)]
pub struct LoginArgs {
    /// Host of the registry, with its port if it has one [default: docker.io]
    pub registry: Option<String>,
    /// User name
    #[arg(short, long)]
    pub username: Option<String>,
    /// Password (visible to other users of the machine; prefer --password-stdin)
    #[arg(short, long)]
    pub password: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    pub password_stdin: bool,
    /// Credentials file to write [default: $REGISTRY_AUTH_FILE, else docker's config.json]
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
    /// Verify the registry's certificate
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub tls_verify: Option<bool>,
    /// Directory with certificates for the registry
    #[arg(long, value_name = "DIR")]
    pub cert_dir: Option<PathBuf>,
    /// Settings of the configuration file.
    #[arg(skip)]
    pub servers: ServerSettings,
}

#[derive(Args)]
pub struct LogoutArgs {
    /// Host of the registry, with its port if it has one [default: docker.io]
    pub registry: Option<String>,
    /// Another credentials file to remove the login from
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
}

#[derive(Args)]
pub struct PullArgs {
    /// Images to pull
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
    /// Platform to pull from a multi-platform image, or a list of platforms separated by commas;
    /// the name then refers to all of them [default: that of this machine]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<String>,
    /// Pull all platforms
    #[arg(long, conflicts_with = "platform")]
    pub all_platforms: bool,
    /// Pull all tags of the repositories that IMAGE names without a tag
    #[arg(short, long)]
    pub all_tags: bool,
    /// Print only the name
    #[arg(short, long)]
    pub quiet: bool,
    #[command(flatten)]
    pub registry: RegistryFlags,
}

#[derive(Args)]
pub struct PushArgs {
    /// Local image; pushed under its own name unless NAME is given
    pub image: String,
    /// Names in registries to push to
    #[arg(value_name = "NAME")]
    pub target: Vec<String>,
    /// Push all tags of the repository that IMAGE names without a tag
    #[arg(short, long, conflicts_with_all = ["target", "digestfile"])]
    pub all_tags: bool,
    /// Format of the manifests: oci or docker [default: that of the image]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Do not compress layers before pushing
    #[arg(long)]
    pub as_is: bool,
    /// Also push layers that must not be distributed and have URLs of their own
    #[arg(long)]
    pub allow_nondistributable_artifacts: bool,
    /// Write the digest of the manifest to a file
    #[arg(long, value_name = "FILE")]
    pub digestfile: Option<PathBuf>,
    /// Print only the name and the digest
    #[arg(short, long)]
    pub quiet: bool,
    #[command(flatten)]
    pub registry: RegistryFlags,
}
