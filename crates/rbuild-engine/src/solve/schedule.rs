//! The schedule of a build, computed from the graph before the first step: the vertices to run,
//! their inputs and their dependants.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;

use rbuild_plan::{BuildGraph, FileSource, Step, VertexId};

/// The vertices to run.
pub(crate) struct Schedule {
    /// For each vertex, true if it is neither a source nor cached.
    open: Vec<bool>,
    /// True if the files of the target are exported.
    exports_files: bool,
    /// The vertices to run, each with those that must be done before it.
    inputs: BTreeMap<VertexId, BTreeSet<VertexId>>,
    /// For each vertex, those to run that wait for it.
    dependants: Vec<Vec<VertexId>>,
}

impl Schedule {
    /// Schedules the open vertices that are needed, and the images below them. `exports_files`
    /// is true if the files of the target are needed even if it is cached.
    pub fn of(graph: &BuildGraph, open: Vec<bool>, exports_files: bool) -> Schedule {
        let dependants = vec![Vec::new(); open.len()];
        let mut schedule = Schedule { open, exports_files, inputs: BTreeMap::new(), dependants };
        let mut queue = VecDeque::new();
        if schedule.open[graph.target] {
            queue.push_back(graph.target);
        } else if exports_files {
            queue.extend(schedule.bottom(graph, graph.target));
        }
        while let Some(id) = queue.pop_front() {
            if schedule.inputs.contains_key(&id) {
                continue;
            }
            let below = graph.vertices[id].inputs().into_iter();
            let inputs: BTreeSet<VertexId> = below.filter_map(|input| schedule.bottom(graph, input)).collect();
            for input in &inputs {
                schedule.dependants[*input].push(id);
                queue.push_back(*input);
            }
            schedule.inputs.insert(id, inputs);
        }
        schedule
    }

    /// Returns the vertices to run, in the order of the graph, each with the vertices that have to
    /// be done before it.
    pub fn vertices(&self) -> impl Iterator<Item = (VertexId, &BTreeSet<VertexId>)> {
        self.inputs.iter().map(|(id, inputs)| (*id, inputs))
    }

    /// Returns the vertices to run that wait for this one.
    pub fn dependants(&self, id: VertexId) -> &[VertexId] {
        &self.dependants[id]
    }

    /// Returns true if the files of a vertex are needed only for the images made from it.
    pub fn is_only_in_images(&self, graph: &BuildGraph, id: VertexId) -> bool {
        id == graph.target && self.dependants[id].is_empty() && !self.exports_files
    }

    /// Returns the vertex that must run before the files of `id` are available: `id` itself if it
    /// is open, the image below it if it is a cache hit, `None` if it is based on scratch.
    fn bottom(&self, graph: &BuildGraph, id: VertexId) -> Option<VertexId> {
        let is_bottom = |id: &VertexId| self.open[*id] || matches!(graph.vertices[*id].step, Step::Image { .. });
        graph.chain(id).find(is_bottom)
    }

    /// Returns the paths that copies read from an image, if nothing else needs the image. Returns
    /// `None` if the whole image is needed, for example for patterns, which can be resolved only in
    /// the complete tree.
    pub fn parts_wanted(&self, graph: &BuildGraph, id: VertexId) -> Option<BTreeSet<PathBuf>> {
        let Step::Image { manifest, .. } = &graph.vertices[id].step else { return None };
        let same = |other: &VertexId| {
            *other != id
                && matches!(&graph.vertices[*other].step, Step::Image { manifest: theirs, .. } if theirs == manifest)
        };
        if self.dependants[id].is_empty() || self.inputs.keys().any(same) {
            return None;
        }
        let mut wanted = BTreeSet::new();
        for dependant in &self.dependants[id] {
            let vertex = &graph.vertices[*dependant];
            let Step::Copy(copy) = &vertex.step else { return None };
            let stands_on_it = vertex.parent.and_then(|parent| self.bottom(graph, parent)) == Some(id);
            if copy.from != FileSource::Vertex(id) || stands_on_it {
                return None;
            }
            for source in &copy.sources {
                wanted.insert(source.pattern()?.path().filter(|path| !path.as_os_str().is_empty())?.to_path_buf());
            }
        }
        Some(wanted)
    }

    /// Returns the steps that wait for other steps, with those steps. Images are not included,
    /// because they are unpacked and are not steps.
    pub fn waits(&self, graph: &BuildGraph) -> BTreeMap<VertexId, Vec<VertexId>> {
        let is_step = |id: &VertexId| !matches!(graph.vertices[*id].step, Step::Image { .. } | Step::Scratch);
        let steps = |inputs: &BTreeSet<VertexId>| inputs.iter().copied().filter(is_step).collect::<Vec<_>>();
        let waits = self.vertices().map(|(id, inputs)| (id, steps(inputs)));
        waits.filter(|(_, inputs)| !inputs.is_empty()).collect()
    }
}

#[cfg(test)]
mod tests;
