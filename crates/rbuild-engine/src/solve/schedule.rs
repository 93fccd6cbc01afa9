//! The schedule of a build, computed from the graph before the first step: the vertices to run,
//! their order and their dependants.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use rbuild_plan::{From, SourceNames, Step, VertexId};

use crate::event::Event;
use crate::prepare::lookup::Known;
use crate::solve::executor::{Done, Executor};

impl Executor<'_> {
    /// Returns the parent chain of the target, from the target down to its base.
    pub(crate) fn chain(&self) -> impl Iterator<Item = VertexId> {
        let graph = &self.prepared.graph;
        std::iter::successors(Some(graph.target), |v| graph.vertices[*v].parent)
    }

    /// Schedules the open vertices that are needed, and the images below them.
    pub(crate) fn schedule(&mut self) {
        let graph = &self.prepared.graph;
        for (id, known) in self.prepared.known.iter().enumerate() {
            let done = match known {
                Known::Source(result) => Done { result: *result, tree: None, created: self.request.now, key: None },
                Known::Hit(r) => {
                    let key = self.prepared.keys[id];
                    Done { result: r.result, tree: Some(r.tree.clone()), created: r.created, key }
                }
                // Nothing needs its files, or the lookup would have adopted them.
                Known::Foreign(r) => {
                    Done { result: r.result(), tree: None, created: r.created(), key: self.prepared.keys[id] }
                }
                Known::Open => continue,
            };
            let _ = self.done[id].set(done);
        }
        let wants_files = self.wants.needs_files();
        let mut queue = VecDeque::new();
        match self.prepared.known[graph.target] {
            Known::Open => queue.push_back(graph.target),
            _ if wants_files => queue.extend(self.bottom(graph.target)),
            _ => {}
        }
        while let Some(id) = queue.pop_front() {
            if !self.scheduled.insert(id) {
                continue;
            }
            let mut inputs: Vec<VertexId> =
                graph.vertices[id].inputs().into_iter().filter_map(|input| self.bottom(input)).collect();
            inputs.sort_unstable();
            inputs.dedup();
            self.waiting[id].store(inputs.len(), Ordering::SeqCst);
            for input in inputs {
                self.dependants[input].push(id);
                queue.push_back(input);
            }
        }
    }

    /// Returns true if the files of a vertex are needed only for the images made from it.
    pub(crate) fn is_only_in_images(&self, id: VertexId) -> bool {
        id == self.prepared.graph.target && self.dependants[id].is_empty() && !self.wants.needs_files()
    }

    /// Returns the vertex that must run before the files of `id` are available: `id` itself if it
    /// is open, the image below it if it is a cache hit, `None` if it is based on scratch.
    pub(crate) fn bottom(&self, id: VertexId) -> Option<VertexId> {
        let mut at = id;
        loop {
            let vertex = &self.prepared.graph.vertices[at];
            match (&self.prepared.known[at], &vertex.step) {
                (Known::Open, _) | (_, Step::Image { .. }) => return Some(at),
                (_, Step::Scratch) => return None,
                _ => at = vertex.parent?,
            }
        }
    }

    /// Returns the paths that copies take from an image, if nothing else needs it. Returns `None`
    /// if the whole image is needed, as for patterns, which only the complete tree can resolve.
    pub(crate) fn parts_wanted(&self, id: VertexId) -> Option<BTreeSet<PathBuf>> {
        let graph = &self.prepared.graph;
        let Step::Image { manifest, .. } = &graph.vertices[id].step else { return None };
        let same = |other: &VertexId| {
            *other != id
                && matches!(&graph.vertices[*other].step, Step::Image { manifest: theirs, .. } if theirs == manifest)
        };
        if self.dependants[id].is_empty() || self.scheduled.iter().any(same) {
            return None;
        }
        let mut wanted = BTreeSet::new();
        for dependant in &self.dependants[id] {
            let vertex = &graph.vertices[*dependant];
            let Step::Copy(copy) = &vertex.step else { return None };
            let stands_on_it = vertex.parent.and_then(|parent| self.bottom(parent)) == Some(id);
            if copy.from != From::Vertex(id) || stands_on_it || copy.names == SourceNames::Parents {
                return None;
            }
            for source in &copy.sources {
                let path = rbuild_paths::inside(source.as_ref())?;
                if path.as_os_str().is_empty() || rbuild_paths::is_pattern(source) {
                    return None;
                }
                wanted.insert(path);
            }
        }
        Some(wanted)
    }

    /// Reports the steps that wait for others. Images are unpacked without being steps, so they do
    /// not count.
    pub(crate) fn tell_who_waits(&self) {
        let graph = &self.prepared.graph;
        let is_step = |id: &VertexId| !matches!(graph.vertices[*id].step, Step::Image { .. } | Step::Scratch);
        let mut inputs: BTreeMap<VertexId, Vec<usize>> = BTreeMap::new();
        for input in self.scheduled.iter().filter(|id| is_step(id)) {
            for dependant in &self.dependants[*input] {
                inputs.entry(*dependant).or_default().push(*input);
            }
        }
        for (step, mut inputs) in inputs {
            inputs.sort_unstable();
            let (label, text) = (graph.vertices[step].name.to_string(), graph.vertices[step].text.clone());
            self.events.send(Event::Waiting { step, label, text, inputs });
        }
    }
}
