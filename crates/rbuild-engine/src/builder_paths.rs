//! Paths of the caller's files in the builder. The builder's root file system consists of these
//! bind mounts and shows nothing else of the machine.

use std::path::{Path, PathBuf};

use rbuild_plan::{ContextId, VolumeId};

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

/// Returns the bind mounts that the builder needs: path on the machine, path in the builder.
pub fn binds(request: &BuildRequest) -> Vec<(PathBuf, PathBuf)> {
    let bind = |source: &Path, place: BindPoint| (source.to_path_buf(), place.path());
    let mut binds: Vec<_> = request.context.iter().map(|c| bind(&c.path, BindPoint::Context)).collect();
    let named = request.named.iter().enumerate();
    binds.extend(named.filter_map(|(i, c)| Some(bind(&c.as_ref()?.path, BindPoint::Named(ContextId::new(i))))));
    binds.extend(request.volumes.iter().enumerate().map(|(i, path)| bind(path, BindPoint::Volume(VolumeId::new(i)))));
    binds.extend(request.agents.iter().enumerate().filter_map(|(i, (_, agent))| match agent {
        AgentSource::Socket(path) => Some(bind(path, BindPoint::Agent(i))),
        AgentSource::Keys(_) => None,
    }));
    binds
}
