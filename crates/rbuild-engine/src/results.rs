//! Results of vertices, filled in while the build runs.

use std::sync::OnceLock;

use rbuild_plan::VertexId;
use rbuild_store::{CacheKey, ResultId, TreeId};

/// The outcome of a finished vertex.
#[derive(Debug, Clone)]
pub(crate) struct VertexResult {
    pub result: ResultId,
    /// The step's own tree. `None` for scratch and images, and for results of the other kind of
    /// owners whose files are not needed.
    pub tree: Option<TreeId>,
    pub created: i64,
    /// The definition key; `None` for scratch and images.
    pub key: Option<CacheKey>,
}

/// The outcomes of all vertices of a graph.
pub(crate) struct Results(Vec<OnceLock<VertexResult>>);

impl Results {
    /// Returns a table for `count` vertices, none of which is finished.
    pub fn new(count: usize) -> Results {
        Results((0..count).map(|_| OnceLock::new()).collect())
    }

    /// Records the outcome of a vertex. Later calls have no effect.
    pub fn set(&self, id: VertexId, done: VertexResult) {
        let _ = self.0[id].set(done);
    }

    /// Returns the outcome of a vertex, `None` if it is not finished.
    pub fn get(&self, id: VertexId) -> Option<&VertexResult> {
        self.0[id].get()
    }

    /// Returns the outcome of an input. Vertices run in dependency order, so it exists.
    pub fn done(&self, id: VertexId) -> &VertexResult {
        self.get(id).expect("inputs are done before their dependants")
    }

    /// Returns the outcomes in the order of the vertices.
    pub fn iter(&self) -> impl Iterator<Item = Option<&VertexResult>> {
        self.0.iter().map(OnceLock::get)
    }
}
