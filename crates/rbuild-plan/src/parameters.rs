//! Parameters of a build.

use std::fmt;
use std::path::PathBuf;

use rbuild_container::{NetworkMode, Ulimit, Volume};
use rbuild_image::{ImageName, ManifestDigest, Platform, Reference, ReferenceError};

use crate::ids::ContextId;

/// Parameters of a build.
#[derive(Debug, Clone)]
pub struct Parameters {
    /// Target stage, by name or number; `None` for the last one.
    pub target: Option<String>,
    /// Names and values; the last occurrence of a name wins.
    pub build_args: Vec<(String, String)>,
    /// Labels of the result; they override the Dockerfile's.
    pub labels: Vec<(String, String)>,
    /// Network mode of RUN without `--network`.
    pub network: NetworkMode,
    /// Platform of this machine.
    pub host: Platform,
    /// Platform of the result.
    pub platform: Platform,
    /// The platform was requested. Otherwise the platform of the base image is kept.
    pub platform_given: bool,
    /// Foreign architectures that this machine can run through an emulator.
    pub emulated: Vec<String>,
    /// `--build-context`: replaces stages, base images and sources of `--from` by name.
    pub contexts: Vec<NamedContext>,
    pub no_cache: NoCache,
    /// Permit `RUN --security=insecure`.
    pub allow_insecure: bool,
    /// Permit `RUN --network=host`.
    pub allow_host_network: bool,
    /// `--add-host`: host names and their addresses.
    pub hosts: Vec<(String, String)>,
    /// Host directories mounted into every command.
    pub volumes: Vec<Volume>,
    /// Size of /dev/shm in bytes; `None` for the default.
    pub shm_size: Option<u64>,
    pub ulimits: Vec<Ulimit>,
    /// Value of `SOURCE_DATE_EPOCH=context`: modification time in seconds of the newest file of a
    /// context that was sent as an archive.
    pub context_epoch: Option<i64>,
    /// Upper bound of times, in seconds, for a build that has no `SOURCE_DATE_EPOCH`.
    pub default_epoch: Option<i64>,
}

impl Parameters {
    /// Returns the defaults: the last stage, for `platform`, on a machine of the platform `host`.
    pub fn new(host: Platform, platform: Platform) -> Parameters {
        Parameters {
            target: None,
            build_args: Vec::new(),
            labels: Vec::new(),
            network: NetworkMode::Host,
            host,
            platform,
            platform_given: false,
            emulated: Vec::new(),
            contexts: Vec::new(),
            no_cache: NoCache::default(),
            allow_insecure: false,
            allow_host_network: true,
            hosts: Vec::new(),
            volumes: Vec::new(),
            shm_size: None,
            ulimits: Vec::new(),
            context_epoch: None,
            default_epoch: None,
        }
    }
}

impl Parameters {
    /// Returns the directories of named contexts.
    pub fn named_dirs(&self) -> impl Iterator<Item = (ContextId, &ContextDir)> {
        self.contexts.iter().enumerate().filter_map(|(position, context)| match &context.source {
            ContextSource::Directory(dir) => Some((ContextId::new(position), dir)),
            ContextSource::Image(_) | ContextSource::Scratch => None,
        })
    }

    /// Returns the value of a build argument. The last occurrence of a name wins.
    pub fn build_arg(&self, name: &str) -> Option<&str> {
        self.build_args.iter().rev().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    /// Returns the named context that replaces the stage or image `name` for a platform.
    pub fn context_named(&self, name: &str, platform: &Platform) -> Option<&NamedContext> {
        self.context_index(name, platform).map(|index| &self.contexts[index])
    }

    /// Returns the position of the named context that replaces the stage or image `name` for a
    /// platform. A context for this platform only is preferred; of several, the last one applies.
    pub(crate) fn context_index(&self, name: &str, platform: &Platform) -> Option<ContextId> {
        if self.contexts.is_empty() || ["scratch", "context"].contains(&name.to_lowercase().as_str()) {
            return None;
        }
        let image = |n: &str| n.parse::<Reference>().ok();
        let wanted = image(name);
        let same = |n: &str| n.eq_ignore_ascii_case(name) || (wanted.is_some() && image(n) == wanted);
        let position = |own: Option<&Platform>| {
            self.contexts.iter().rposition(|context| context.platform.as_ref() == own && same(&context.name))
        };
        position(Some(platform)).or_else(|| position(None)).map(ContextId::new)
    }
}

/// A named context (`--build-context NAME=…` or `NAME::PLATFORM=…`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedContext {
    pub name: String,
    /// The only platform that it is for; `None` for all.
    pub platform: Option<Platform>,
    pub source: ContextSource,
}

impl fmt::Display for NamedContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.platform {
            Some(platform) => write!(f, "{}::{platform}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// A directory that serves as a build context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextDir {
    /// Absolute path.
    pub path: PathBuf,
    /// The ignore file that applies.
    pub ignore: Option<IgnoreFile>,
}

/// A file with patterns of paths that are not part of a build context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IgnoreFile {
    /// Path as shown in messages.
    pub path: PathBuf,
    /// Content.
    pub text: String,
}

/// Content of a named context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContextSource {
    Directory(ContextDir),
    /// An image of the store.
    Image(WrittenImage),
    Scratch,
}

/// An image name in a Dockerfile or an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenImage {
    /// The name as written, for messages.
    pub text: String,
    pub name: ImageName,
}

impl WrittenImage {
    /// Parses an image name.
    ///
    /// # Errors
    ///
    /// Fails if the text is neither an image reference nor a full digest.
    pub fn parse(text: &str) -> Result<WrittenImage, ReferenceError> {
        Ok(WrittenImage { text: text.to_string(), name: text.parse()? })
    }

    /// Returns the name of the image with that manifest.
    pub fn stored(manifest: ManifestDigest) -> WrittenImage {
        WrittenImage { text: manifest.to_string(), name: ImageName::Stored(manifest) }
    }
}

/// Steps that run even if their result is cached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NoCache {
    #[default]
    None,
    All,
    /// The steps of these stages, by name or number.
    Stages(Vec<String>),
}
