//! The schedule of a build, computed from the graph before the first step: the vertices to run,
//! their inputs and their dependants.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;

use rbuild_image::ManifestDigest;
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
        if exports_files {
            queue.extend(schedule.with_files(graph, graph.target));
        } else if schedule.open[graph.target] {
            queue.push_back(graph.target);
        }
        while let Some(id) = queue.pop_front() {
            if schedule.inputs.contains_key(&id) {
                continue;
            }
            let inputs = schedule.inputs_of(graph, id);
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

    /// Returns the images whose files are needed.
    pub fn images(&self, graph: &BuildGraph) -> impl Iterator<Item = ManifestDigest> {
        self.inputs.keys().filter_map(|id| match &graph.vertices[*id].step {
            Step::Image { manifest, .. } => Some(*manifest),
            _ => None,
        })
    }

    /// Returns the vertices that must be done before `id`. A linked copy needs the result of its
    /// parent, but none of the files below it.
    fn inputs_of(&self, graph: &BuildGraph, id: VertexId) -> BTreeSet<VertexId> {
        let vertex = &graph.vertices[id];
        let is_read = |input: &VertexId| match &vertex.step {
            Step::Copy(copy) if copy.link => copy.from == FileSource::Vertex(*input),
            _ => true,
        };
        let (read, known): (Vec<_>, Vec<_>) = vertex.inputs().into_iter().partition(is_read);
        let files = read.into_iter().flat_map(|input| self.with_files(graph, input));
        files.chain(known.into_iter().filter(|input| self.open[*input])).collect()
    }

    /// Returns the vertices that must be done before the files of `id` are available: `id` itself
    /// if it is open, which implies the vertices below it unless it is a linked copy; the image
    /// below cached steps.
    fn with_files(&self, graph: &BuildGraph, id: VertexId) -> Vec<VertexId> {
        let mut found = Vec::new();
        for id in graph.chain(id) {
            let step = &graph.vertices[id].step;
            let is_image = matches!(step, Step::Image { .. });
            if self.open[id] || is_image {
                found.push(id);
            }
            if is_image || (self.open[id] && !matches!(step, Step::Copy(copy) if copy.link)) {
                break;
            }
        }
        found
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
            let below = vertex.parent.filter(|_| !copy.link);
            let stands_on_it = below.is_some_and(|parent| self.with_files(graph, parent).contains(&id));
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
