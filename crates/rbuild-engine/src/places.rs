//! Where the builder finds what its caller has: its small root holds these binds and nothing else of the machine.

use std::path::{Path, PathBuf};

use crate::request::{AgentSource, BuildRequest};

/// Something of the caller's, and its place in the builder's world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Context,
    Named(usize),
    Volume(usize),
    Agent(usize),
}

impl Place {
    pub(crate) fn path(self) -> PathBuf {
        match self {
            Place::Context => "/context".into(),
            Place::Named(i) => format!("/contexts/{i}").into(),
            Place::Volume(i) => format!("/volumes/{i}").into(),
            Place::Agent(i) => format!("/agents/{i}").into(),
        }
    }
}

/// What of the machine the builder is to see: where it is, and where the builder looks for it.
pub fn binds(request: &BuildRequest) -> Vec<(PathBuf, PathBuf)> {
    let bind = |source: &Path, place: Place| (source.to_path_buf(), place.path());
    let mut binds: Vec<_> = request.context.iter().map(|c| bind(&c.path, Place::Context)).collect();
    let named = request.named.iter().enumerate();
    binds.extend(named.filter_map(|(i, c)| Some(bind(&c.as_ref()?.path, Place::Named(i)))));
    binds.extend(request.volumes.iter().enumerate().map(|(i, path)| bind(path, Place::Volume(i))));
    binds.extend(request.agents.iter().enumerate().filter_map(|(i, (_, agent))| match agent {
        AgentSource::Socket(path) => Some(bind(path, Place::Agent(i))),
        AgentSource::Keys(_) => None,
    }));
    binds
}
