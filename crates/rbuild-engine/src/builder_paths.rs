//! Paths of the caller's files in the builder. The builder's root file system contains these bind
//! mounts and no other files of the machine.

use std::path::{Path, PathBuf};

use rbuild_plan::{ContextDir, ContextId, Volume, VolumeId};

use crate::request::{AgentSource, BuildRequest};

/// A host path that is bound into the builder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BindPoint {
    Context,
    Named(ContextId),
    Volume(VolumeId),
    Agent(usize),
}

impl BindPoint {
    pub(crate) fn path(self) -> PathBuf {
        match self {
            BindPoint::Context => "/context".into(),
            BindPoint::Named(i) => format!("/contexts/{i}").into(),
            BindPoint::Volume(i) => format!("/volumes/{i}").into(),
            BindPoint::Agent(i) => format!("/agents/{i}").into(),
        }
    }
}

/// Returns the directories of all contexts, the main one first.
pub(crate) fn context_dirs(request: &BuildRequest) -> impl Iterator<Item = (BindPoint, &ContextDir)> {
    let main = request.context.iter().map(|dir| (BindPoint::Context, dir));
    main.chain(request.parameters.named_dirs().map(|(id, dir)| (BindPoint::Named(id), dir)))
}

/// Returns the bind mounts through which the builder reaches the directories of volumes.
pub fn volume_binds(volumes: &[Volume]) -> Vec<(PathBuf, PathBuf)> {
    let numbered = volumes.iter().enumerate();
    numbered.map(|(i, volume)| (volume.source.clone(), BindPoint::Volume(VolumeId::new(i)).path())).collect()
}

/// Returns the bind mounts that the builder needs: path on the machine, path in the builder.
pub fn binds(request: &BuildRequest) -> Vec<(PathBuf, PathBuf)> {
    let bind = |source: &Path, place: BindPoint| (source.to_path_buf(), place.path());
    let mut binds: Vec<_> = context_dirs(request).map(|(place, dir)| bind(&dir.path, place)).collect();
    binds.extend(volume_binds(&request.parameters.volumes));
    binds.extend(request.agents.iter().enumerate().filter_map(|(i, (_, agent))| match agent {
        AgentSource::Socket(path) => Some(bind(path, BindPoint::Agent(i))),
        AgentSource::Keys(_) => None,
    }));
    binds
}
