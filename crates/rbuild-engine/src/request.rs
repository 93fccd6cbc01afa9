use std::path::PathBuf;
use std::sync::Arc;

use rbuild_image::{Platform, Reference};
use rbuild_plan::{ContextDir, Parameters};
use rbuild_sandbox::Carrier;
use rbuild_store::BuildId;
use rbuild_transport::ImportedCaches;

use crate::exports::{CacheExport, Export, Requirements, Squash};
use crate::redact::SecretValues;

/// Determines when registries are contacted for images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PullPolicy {
    /// If the store has no image of that name and platform.
    #[default]
    Missing,
    /// In every build.
    Always,
    /// Never.
    Never,
}

/// A build request with all inputs read and resolved. The build reads neither the environment nor
/// the clock.
pub struct BuildRequest {
    /// Name of the Dockerfile in errors.
    pub dockerfile_name: String,
    pub dockerfile: Vec<u8>,
    /// Parameters of the plan for the first platform.
    pub parameters: Parameters,
    /// All target platforms, in order; empty if none was requested.
    pub platforms: Vec<Platform>,
    /// `None` if only a Dockerfile was given.
    pub context: Option<ContextDir>,
    /// Determines when registries are contacted for images.
    pub pull: PullPolicy,
    /// Reduces the modes of context files to those that git records (644 and 755).
    pub git_modes: bool,
    pub tags: Vec<Reference>,
    /// True if the image is pushed under all of its names, and there is no other output. It is then
    /// not kept in the store if that saves the download of its layers.
    pub is_only_pushed: bool,
    /// Annotations of the manifest.
    pub annotations: Vec<(String, String)>,
    /// Secrets by ID. Their values are passed only to the commands that mount them.
    pub secrets: Vec<(String, Vec<u8>)>,
    /// Assembles root file systems by copying, even where the kernel supports overlay mounts.
    pub copies: bool,
    /// Cache namespace. Part of every key, so that the build neither reads nor populates the shared
    /// cache.
    pub salt: Option<String>,
    /// Records the sizes of the result's layers and their largest files.
    pub record_sizes: bool,
    /// After a command has failed, starts a shell in its container on the caller's terminal.
    pub shell_on_error: bool,
    /// Allows the value of a secret in the result.
    pub allow_leaks: bool,
    /// SSH agents by ID.
    pub agents: Vec<(String, AgentSource)>,
    pub exports: Vec<Export>,
    /// Squashing of the image that is made if there is no export.
    pub squash: Squash,
    /// Maximum number of vertices that run concurrently.
    pub jobs: usize,
    /// Content of `/etc/resolv.conf` for commands.
    pub resolv_conf: String,
    /// The program that provides isolated networks with outbound access, if any command may need
    /// it.
    pub carrier: Option<Carrier>,
    /// Start of the build, in seconds since 1970.
    pub now: i64,
    /// Maximum size of the build cache after the build, in bytes.
    pub cache_limit: Option<u64>,
    /// Caches that are read besides the store.
    pub caches: Arc<ImportedCaches>,
    /// Caches that the steps are written to.
    pub cache_exports: Vec<CacheExport>,
    /// Adds the records of the image's own steps to its configuration.
    pub inline_cache: bool,
    /// Name of this machine in the caches that it writes, if it has one.
    pub runner: Option<String>,
    /// ID of this build in the store's records.
    pub build_id: BuildId,
}

/// The backend of an SSH agent mount.
#[derive(Debug, Clone)]
pub enum AgentSource {
    /// The caller's agent.
    Socket(PathBuf),
    /// Private keys that the build serves itself.
    Keys(Vec<crate::PrivateKey>),
}

impl BuildRequest {
    /// Returns the secret values to be masked in everything that is reported or recorded.
    pub fn secret_values(&self) -> SecretValues {
        SecretValues::of(&self.secrets)
    }

    /// Returns the parameters of the plans, one for each platform.
    pub fn plans(&self) -> Vec<Parameters> {
        let others = self.platforms.iter().skip(1).cloned();
        let others = others.map(|platform| Parameters { platform, ..self.parameters.clone() });
        std::iter::once(self.parameters.clone()).chain(others).collect()
    }

    /// Returns the images and files that the build must produce for its exports.
    pub fn requirements(&self) -> Requirements {
        let required = Requirements::of(&self.exports, !self.tags.is_empty(), self.platforms.len(), self.squash);
        // The records are those of layers in the store.
        if self.inline_cache { required.with_layers_in_store(&self.exports) } else { required }
    }
}
