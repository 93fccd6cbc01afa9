//! Reuse of results made under an isolation mode that records owners differently. Such a result is
//! a cache hit like any other; its tree is converted to this builder's owners only where its files
//! or its layer are needed.

use rbuild_image::Digest;
use rbuild_plan::{Step, VertexId};
use rbuild_store::Record;

use crate::error::Result;
use crate::execute::Executor;
use crate::prepare::Known;

impl Executor<'_> {
    /// Returns the state of each vertex for this builder. A hit whose tree is needed but cannot be
    /// converted to this builder's owners becomes [`Known::Open`].
    pub(crate) fn settle(&self) -> Result<Vec<Known>> {
        let mut known = self.prepared.known.clone();
        loop {
            let mut reopened = vec![false; known.len()];
            for id in self.needed(&known)? {
                let (Known::Hit(record), Some(key)) = (&known[id], self.prepared.keys[id]) else { continue };
                match self.ours(&key, record.clone())? {
                    Some(ours) => known[id] = Known::Hit(ours),
                    None => {
                        // A forced RUN (whose result differs from its key) may give another result
                        // when it runs again.
                        let is_run = matches!(self.prepared.graph.vertices[id].step, Step::Run(_));
                        reopened[id] = is_run && record.result != key;
                        known[id] = Known::Open;
                    }
                }
            }
            self.reopen_above(&mut known, &mut reopened);
            if self.needed(&known)?.iter().all(|id| self.is_settled(&known[*id])) {
                return Ok(known);
            }
        }
    }

    fn is_settled(&self, known: &Known) -> bool {
        !matches!(known, Known::Hit(record) if !self.store.is_ours(&record.tree))
    }

    /// Reopens all vertices that depend, directly or not, on one whose result may change. They are
    /// looked up again once their inputs are done.
    fn reopen_above(&self, known: &mut [Known], reopened: &mut [bool]) {
        for (id, vertex) in self.prepared.graph.vertices.iter().enumerate() {
            if vertex.inputs().iter().any(|input| reopened[*input]) {
                reopened[id] = true;
                known[id] = Known::Open;
            }
        }
    }

    /// Returns the vertices that the build runs and those whose trees it needs.
    fn needed(&self, known: &[Known]) -> Result<Vec<VertexId>> {
        let graph = &self.prepared.graph;
        let mut queue = Vec::new();
        if matches!(known[graph.target], Known::Open) || self.needs_trees(&known[graph.target])? {
            queue.push(graph.target);
        }
        let mut seen = vec![false; known.len()];
        let mut found = Vec::new();
        while let Some(id) = queue.pop() {
            if std::mem::replace(&mut seen[id], true) {
                continue;
            }
            found.push(id);
            match known[id] {
                Known::Open => queue.extend(graph.vertices[id].inputs()),
                _ => queue.extend(graph.vertices[id].parent),
            }
        }
        Ok(found)
    }

    /// Returns true if the build needs the trees of the target. It does not if every requested
    /// image of the target's result is already in the store.
    fn needs_trees(&self, target: &Known) -> Result<bool> {
        let request = self.request;
        let is_direct = request.outputs.iter().any(|output| request.is_direct(output));
        if self.wants_files() || request.weigh || is_direct || !self.leaks.is_empty() {
            return Ok(true);
        }
        let Some(result) = target.result() else { return Ok(true) };
        for form in request.forms() {
            if self.store.result(&self.prepared.image_key(&result, request, &form))?.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the record with a tree that has this builder's owners, converting the tree if
    /// necessary. Returns `None` if the step must be run again here.
    pub(crate) fn ours(&self, key: &Digest, record: Record) -> Result<Option<Record>> {
        if self.store.is_ours(&record.tree) {
            return Ok(Some(record));
        }
        Ok(self.store.adopt(&self.work, key, &record, &self.request.build_id)?)
    }
}
