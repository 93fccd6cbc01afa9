//! Cache keys: digests of everything that must be equal for a cached result to be reused.
//!
//! A step's *definition key* covers the operation and the results of its inputs. If a step depends
//! only on the content of an input (COPY from another stage), it also has a *content key*. Its
//! result is then identified by the content key, and later steps do not depend on the steps that
//! made the content.
//!
//! Keys are functions of values: the files that a step reads from contexts are selected before.

use rbuild_image::Hasher;
use rbuild_plan::{BuildGraph, FileSource, RunCache, RunMountKind, Step, StepPart, Vertex, VertexId};
use rbuild_source::{Selection, SelectionHash};
use rbuild_store::{CacheKey, FILES, FROM, FilesHash, KeyInputs, KeyPart, KeyValue, PARENT, ResultId, VARIABLE};

use crate::downloads::DownloadedFiles;
use crate::error::Result;

/// Version of the form of keys. Steps of builds with another version are not compared with those of
/// this one.
pub const KEY_VERSION: u32 = 5;

/// A component of a cache key.
enum KeyComponent<'a> {
    /// A property of the step itself.
    Own(StepPart<'a>),
    /// An input of the step, represented by its result.
    Input(&'static str, VertexId),
    /// Content of files from a context.
    Files(&'static str, SelectionHash),
}

/// Content that a step reads and that its definition key identifies in another way than by content.
pub enum ReadContent {
    /// Selected files of a context, a stage or an image.
    Files(SelectionHash),
    /// The whole file system that a vertex made.
    Result(ResultId),
}

impl ReadContent {
    fn bytes(&self) -> &[u8; 32] {
        match self {
            ReadContent::Files(files) => files.bytes(),
            ReadContent::Result(result) => result.bytes(),
        }
    }
}

/// The results of the inputs of a step.
pub struct InputResults(Vec<(VertexId, ResultId)>);

impl InputResults {
    /// Collects the results of the [`Vertex::inputs`] of a step.
    pub fn of(inputs: &[VertexId], result_of: impl Fn(VertexId) -> ResultId) -> InputResults {
        InputResults(inputs.iter().map(|id| (*id, result_of(*id))).collect())
    }

    fn get(&self, id: VertexId) -> &ResultId {
        let found = self.0.iter().find(|(input, _)| *input == id);
        &found.expect("a step reads only its inputs").1
    }
}

/// A definition key with its components in readable form, which explanations compare.
pub struct Keyed {
    pub key: CacheKey,
    /// The components. They may contain secrets: `explain::masked` must be applied before they are
    /// stored or displayed.
    pub inputs: KeyInputs,
}

/// The values that all keys of a build depend on.
pub struct KeyBuilder<'a> {
    pub downloads: &'a DownloadedFiles,
    pub salt: Option<&'a str>,
}

impl KeyBuilder<'_> {
    /// Returns the definition key of a step; `None` for scratch and images, which have no key.
    /// `selected_files` are the files that the step reads from contexts.
    pub fn definition(
        &self,
        vertex: &Vertex,
        results: &InputResults,
        selected_files: &[Selection],
    ) -> Result<Option<CacheKey>> {
        self.hash(vertex, results, selected_files, |_| ())
    }

    /// Returns the definition key of a step of `graph`, with its components.
    pub fn keyed(
        &self,
        graph: &BuildGraph,
        vertex: &Vertex,
        results: &InputResults,
        selected_files: &[Selection],
    ) -> Result<Option<Keyed>> {
        let mut inputs = KeyInputs { version: KEY_VERSION, parts: Vec::new(), is_reduced: false };
        let add = |component: &KeyComponent<'_>| inputs.parts.push(key_part(component, graph, results));
        let key = self.hash(vertex, results, selected_files, add)?;
        Ok(key.map(|key| Keyed { key, inputs }))
    }

    /// Returns the digest of all steps of a build, with the files that are known before anything
    /// runs. Builds with the same digest do the same. `selected_files` has an entry for each vertex
    /// of the graph.
    pub fn whole_build<'s>(
        &self,
        graph: &BuildGraph,
        selected_files: impl IntoIterator<Item = &'s [Selection]>,
    ) -> Result<CacheKey> {
        let mut hasher = Hasher::new();
        // The results of steps are not known yet. Their definitions take the place of these.
        let mut definitions: Vec<ResultId> = Vec::with_capacity(graph.vertices.len());
        for (vertex, files) in graph.vertices.iter().zip(selected_files) {
            let inputs = InputResults::of(&vertex.inputs(), |id| definitions[id]);
            let key = self.definition(vertex, &inputs, files)?;
            let definition = key.map_or_else(|| source_result(&vertex.step), ResultId::from);
            hasher.field(definition.bytes());
            definitions.push(definition);
        }
        Ok(hasher.finish())
    }

    /// Hashes the components of a definition key, and calls `each` with them, which borrow from
    /// temporary values.
    fn hash(
        &self,
        vertex: &Vertex,
        results: &InputResults,
        selected_files: &[Selection],
        mut each: impl FnMut(&KeyComponent<'_>),
    ) -> Result<Option<CacheKey>> {
        let mut hasher = Hasher::new();
        hasher.field(format!("step {KEY_VERSION}"));
        if let Some(salt) = self.salt {
            hasher.field("salt").field(salt);
        }
        let mut put = |part: KeyComponent<'_>| {
            match &part {
                KeyComponent::Own(part) => hasher.field(part.name()).field(&*part.value()),
                KeyComponent::Input(name, id) => hasher.field(name).field(results.get(*id).bytes()),
                KeyComponent::Files(name, digest) => hasher.field(name).field(digest.bytes()),
            };
            each(&part);
        };
        if let Some(parent) = vertex.parent {
            put(KeyComponent::Input(PARENT, parent));
        }
        vertex.step.parts(&mut |part| put(KeyComponent::Own(part)));
        let mut files = selected_files.iter().map(|selection| KeyComponent::Files(FILES, selection.content.digest));
        match &vertex.step {
            Step::Scratch | Step::Image { .. } => return Ok(None),
            Step::Workdir(_) => {}
            Step::Run(run) => {
                for mount in &run.mounts {
                    match &mount.kind {
                        RunMountKind::Bind { from: FileSource::Vertex(id), source } => {
                            put(KeyComponent::Own(StepPart::Own("mounted path", source.as_bytes())));
                            put(KeyComponent::Input(FROM, *id));
                        }
                        RunMountKind::Cache(RunCache { from: Some(FileSource::Vertex(id)), .. }) => {
                            put(KeyComponent::Input(FROM, *id));
                        }
                        RunMountKind::Bind { .. } | RunMountKind::Cache(RunCache { from: Some(_), .. }) => {
                            files.next().into_iter().for_each(&mut put)
                        }
                        _ => {}
                    }
                }
            }
            Step::Copy(copy) => match copy.from {
                FileSource::Vertex(id) => {
                    copy.source_parts(&mut |part| put(KeyComponent::Own(part)));
                    put(KeyComponent::Input(FROM, id));
                }
                FileSource::Context | FileSource::Named(_) => {
                    files.for_each(&mut put);
                    self.downloads.parts(copy, &mut |part| put(KeyComponent::Own(part)))?;
                }
            },
        }
        Ok(Some(hasher.finish()))
    }
}

/// Returns a component in readable form.
fn key_part(component: &KeyComponent<'_>, graph: &BuildGraph, results: &InputResults) -> KeyPart {
    let (name, value) = match component {
        KeyComponent::Own(StepPart::Own(name, value)) => {
            (*name, KeyValue::Text(String::from_utf8_lossy(value).into_owned()))
        }
        KeyComponent::Own(StepPart::Variable(name, value)) => {
            (VARIABLE, KeyValue::Variable { name: name.to_string(), value: value.to_string() })
        }
        KeyComponent::Files(name, digest) => (*name, KeyValue::Files(FilesHash::from_bytes(*digest.bytes()))),
        KeyComponent::Input(name, id) => {
            let (vertex, result) = (&graph.vertices[*id], *results.get(*id));
            let value = match &vertex.step {
                Step::Image { name, manifest, .. } => {
                    KeyValue::Image { name: name.clone(), manifest: *manifest, result }
                }
                _ => KeyValue::Step { label: vertex.name.to_string(), result },
            };
            (*name, value)
        }
    };
    KeyPart { name: name.to_string(), value }
}

/// Returns the key of a step by the content that it reads and by its parent's result. `parent` is
/// `None` for a linked copy, whose files do not depend on it.
pub fn content_key(
    vertex: &Vertex,
    salt: Option<&str>,
    parent: Option<&ResultId>,
    contents: &[ReadContent],
) -> CacheKey {
    let mut hasher = Hasher::new();
    hasher.field(format!("content step {KEY_VERSION}")).field(salt.unwrap_or_default());
    match parent {
        Some(parent) => hasher.field(parent.bytes()),
        None => hasher.field("linked"),
    };
    vertex.step.parts(&mut |part| {
        hasher.field(part.name()).field(&*part.value());
    });
    for content in contents {
        hasher.field(FILES).field(content.bytes());
    }
    hasher.finish()
}

/// Returns the result digest of a step that has no key. The digest of an image covers its files and
/// its platform; everything else in its configuration is in the keys of the steps that it affects.
pub fn source_result(step: &Step) -> ResultId {
    let mut hasher = Hasher::new();
    let Step::Image { platform, diff_ids, name: _, manifest: _ } = step else {
        hasher.field("scratch");
        return hasher.finish();
    };
    hasher.field("image 2").field(platform.to_string());
    for diff_id in diff_ids {
        hasher.field(diff_id.bytes());
    }
    hasher.finish()
}

#[cfg(test)]
mod tests;
