use std::fs::File;
use std::path::PathBuf;

use rbuild_image::{Platform, Reference};
use rbuild_linux::RootDir;
use rbuild_plan::Network;

/// What somebody asked for, all of it read and decided; no environment and no clock come in later.
pub struct BuildRequest {
    /// As it is shown in errors.
    pub dockerfile_name: String,
    pub dockerfile: Vec<u8>,
    /// Absent when the Dockerfile came alone.
    pub context: Option<PathBuf>,
    /// The text of the ignore file that applies.
    pub ignore: String,
    pub target: Option<String>,
    pub build_args: Vec<(String, String)>,
    pub labels: Vec<(String, String)>,
    pub tags: Vec<Reference>,
    pub network: Network,
    pub platform: Platform,
    pub no_cache: bool,
    /// Secrets by their ids. Their values go to the commands that ask for them, and nowhere else.
    pub secrets: Vec<(String, Vec<u8>)>,
    pub outputs: Vec<Output>,
    /// Vertices that run at a time.
    pub jobs: usize,
    /// The resolver file that commands see.
    pub resolv_conf: String,
    /// Seconds since 1970 when the build began.
    pub now: i64,
    /// SOURCE_DATE_EPOCH: no time in the image's documents is later.
    pub epoch: Option<i64>,
    /// Names this build in the store's records.
    pub build_id: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputKind {
    /// A directory.
    Local,
    /// The file system as one tar.
    Tar,
    /// An OCI image layout as a tar.
    OciArchive,
    /// A docker-archive that is an OCI image layout too.
    DockerArchive,
    /// The local store.
    Image,
}

pub struct Output {
    pub kind: OutputKind,
    pub dest: Destination,
}

/// Where an output goes. Directories are held open, so that they can be reached from any mount namespace.
pub enum Destination {
    None,
    /// The file or directory at `rest` below an open directory; what is missing on the way is made.
    Path {
        base: RootDir,
        rest: PathBuf,
    },
    Stdout(File),
}

impl BuildRequest {
    /// Whether the result has to become an image of the store.
    pub fn wants_image(&self) -> bool {
        let files_only = |o: &Output| matches!(o.kind, OutputKind::Local | OutputKind::Tar);
        !self.tags.is_empty() || self.outputs.is_empty() || !self.outputs.iter().all(files_only)
    }
}
