//! Cache keys: what must be equal for a step's result to be used again.
//!
//! A step's *definition key* is made of the operation and the results of its inputs. Where an input counts by its
//! content (COPY from another stage), there is a *content key* too; the step's own result is named by that one,
//! so that later steps do not notice how the same content came about.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rbuild_dockerfile::{Diagnostic, Span};
use rbuild_image::{Digest, Hasher};
use rbuild_linux::RootDir;
use rbuild_plan::{CacheStep, CopyStep, From, MountKindStep, MountStep, RunStep, SourceNames, Step, Vertex, VertexId};
use rbuild_sandbox::Builder;
use rbuild_source::{
    Content, HardLinks, HashCache, Ignore, Owner, Selected, Sight, SourceError, SourceTree, Take, content,
    content_without_links,
};

use crate::error::{BuildError, Result};
use crate::places::Place;
use crate::request::{BuildRequest, ContextDir};

/// A directory of the caller's as keys and steps read it.
pub struct Context {
    root: RootDir,
    ignore: Ignore,
    owner: Owner,
    hashes: Arc<HashCache>,
}

impl Context {
    fn open(path: &Path, ignore: &str, owner: Owner, hashes: &Arc<HashCache>) -> Result<Context> {
        let root = RootDir::open(path).map_err(BuildError::kernel("the build context"))?;
        let ignore = Ignore::parse(ignore).map_err(|e| BuildError::Other {
            message: format!("the ignore file, {e}"),
            help: Some("each line is one pattern; `!pattern` takes files back in".into()),
        })?;
        Ok(Context { root, ignore, owner, hashes: hashes.clone() })
    }

    pub fn tree(&self) -> SourceTree<'_> {
        SourceTree {
            root: &self.root,
            ignore: Some(&self.ignore),
            exclude: None,
            owner: self.owner,
            hashes: Some(&self.hashes),
        }
    }
}

/// All the directories that a build may read.
pub struct Contexts {
    main: Option<Context>,
    named: Vec<Option<Context>>,
}

/// The files of a stage or an image that a step copies from.
pub struct StageFiles {
    root: RootDir,
    hashes: HashCache,
}

impl StageFiles {
    pub fn new(root: RootDir) -> StageFiles {
        StageFiles { root, hashes: HashCache::for_once() }
    }

    pub fn tree(&self) -> SourceTree<'_> {
        SourceTree { root: &self.root, ignore: None, exclude: None, owner: Owner::AsIs, hashes: Some(&self.hashes) }
    }
}

/// Who looks, and so under which paths.
#[derive(Clone, Copy)]
pub enum Viewpoint<'a> {
    Launcher,
    Builder(&'a Builder),
}

impl Contexts {
    pub fn open(request: &BuildRequest, from: Viewpoint<'_>, hashes: &Arc<HashCache>) -> Result<Contexts> {
        let owner = if request.git_modes { Owner::RootWithGitModes } else { Owner::Root };
        let open = |dir: &ContextDir, place: Place| match from {
            Viewpoint::Launcher => Context::open(&dir.path, &dir.ignore, owner, hashes),
            Viewpoint::Builder(builder) => Context::open(&builder.path(&place.path()), &dir.ignore, owner, hashes),
        };
        let main = request.context.as_ref().map(|dir| open(dir, Place::Context)).transpose()?;
        let named = request.named.iter().enumerate();
        let named = named.map(|(i, dir)| dir.as_ref().map(|dir| open(dir, Place::Named(i))).transpose());
        Ok(Contexts { main, named: named.collect::<Result<_>>()? })
    }

    /// The directory that a step reads; `None` if it reads another step's files. An error if there is none.
    pub fn of(&self, from: From, span: Span) -> Result<Option<&Context>> {
        let found = match from {
            From::Vertex(_) => return Ok(None),
            From::Context => self.main.as_ref(),
            From::Named(i) => self.named.get(i).and_then(Option::as_ref),
        };
        found.map(Some).ok_or_else(|| {
            let d = Diagnostic::new(span, "there is no build context to take files from");
            BuildError::Unmet(vec![d.help("the Dockerfile came alone; give a context directory")])
        })
    }
}

impl Contexts {
    /// The content of a part of a context.
    pub fn content_of(&self, span: Span, from: From, source: &str) -> Result<Content> {
        let context = self.of(from, span)?;
        let tree = context.ok_or_else(|| BuildError::other("a mount of the context names a stage"))?.tree();
        let selected = tree.select_literal(source).map_err(|e| source_error(e, span))?;
        content(&tree, &[selected]).map_err(|e| source_error(e, span))
    }
}

/// What one source of a COPY selects.
pub fn select(tree: &SourceTree<'_>, copy: &CopyStep, source: &str) -> std::result::Result<Vec<Selected>, SourceError> {
    match copy.names {
        SourceNames::Patterns => tree.select(source),
        SourceNames::Parents => tree.select_with_parents(source),
        SourceNames::Literal => tree.select_literal(source).map(|item| vec![item]),
    }
}

/// The patterns of `--exclude`.
pub fn exclusions(copy: &CopyStep) -> Result<Ignore> {
    Ignore::from_patterns(&copy.exclude).map_err(|e| {
        let span = copy.source_spans.first().copied().unwrap_or_default();
        BuildError::Dockerfile(vec![Diagnostic::new(span, format!("--exclude: {}", e.reason))])
    })
}

/// One thing that a key is made of.
pub enum Part<'a> {
    /// Of the step itself.
    Own(&'static str, &'a [u8]),
    /// What the step reads; it counts by its result.
    Input(&'static str, VertexId),
    /// Files of a context.
    Files(&'static str, Digest),
}

/// What keys of a build are made with.
pub struct Keys<'a> {
    pub contexts: &'a Contexts,
    pub salt: Option<&'a str>,
    pub result_of: &'a dyn Fn(VertexId) -> Digest,
}

impl Keys<'_> {
    /// The definition key of a step whose inputs all have results; each part of it is given to `note`, too. `taken` is
    /// what it takes from contexts, as [`Keys::taken`] tells it. `None` for what has no key: scratch and images.
    pub fn definition(
        &self,
        vertex: &Vertex,
        taken: &[Content],
        note: &mut dyn FnMut(&Part<'_>),
    ) -> Result<Option<Digest>> {
        let mut hasher = Hasher::new();
        hasher.field("step 3");
        if let Some(salt) = self.salt {
            hasher.field("salt").field(salt);
        }
        let mut put = |part: Part<'_>| {
            match &part {
                Part::Own(name, value) => hasher.field(name).field(value),
                Part::Input(name, id) => hasher.field(name).field((self.result_of)(*id).bytes()),
                Part::Files(name, digest) => hasher.field(name).field(digest.bytes()),
            };
            note(&part);
        };
        if let Some(parent) = vertex.parent {
            put(Part::Input(PARENT, parent));
        }
        vertex.step.parts(&mut |name, value| put(Part::Own(name, value)));
        let mut taken = taken.iter().map(|content| Part::Files(FILES, content.digest));
        match &vertex.step {
            Step::Scratch | Step::Image { .. } => return Ok(None),
            Step::Workdir(_) => {}
            Step::Run(run) => {
                for mount in &run.mounts {
                    match &mount.kind {
                        MountKindStep::Bind { from: From::Vertex(id), source } => {
                            put(Part::Own("mounted path", source.as_bytes()));
                            put(Part::Input(FROM, *id));
                        }
                        MountKindStep::Cache(CacheStep { from: Some(From::Vertex(id)), .. }) => {
                            put(Part::Input(FROM, *id));
                        }
                        MountKindStep::Bind { .. } | MountKindStep::Cache(CacheStep { from: Some(_), .. }) => {
                            taken.next().into_iter().for_each(&mut put)
                        }
                        _ => {}
                    }
                }
            }
            Step::Copy(copy) => match copy.from {
                From::Vertex(id) => {
                    copy.source_parts(&mut |name, value| put(Part::Own(name, value)));
                    put(Part::Input(FROM, id));
                }
                From::Context | From::Named(_) => taken.for_each(put),
            },
        }
        Ok(Some(hasher.finish()))
    }

    /// What a step takes from contexts, by its content: a copy once, if at all, and a command with each mount of one.
    pub fn taken(&self, vertex: &Vertex) -> Result<Vec<Content>> {
        match &vertex.step {
            Step::Copy(copy) if !copy.sources.is_empty() => {
                let context = self.contexts.of(copy.from, copy.source_spans[0])?;
                context.map(|context| sources_content(&context.tree(), copy)).into_iter().collect()
            }
            Step::Run(run) => context_mounts(run)
                .map(|mount| self.contexts.content_of(mount.span, mount.from, mount.source))
                .collect(),
            _ => Ok(Vec::new()),
        }
    }

    /// Finds what was changed last of all that a step takes from contexts.
    pub fn changed_last(&self, vertex: &Vertex) -> Option<PathBuf> {
        match &vertex.step {
            Step::Copy(copy) => {
                let context = self.contexts.of(copy.from, vertex.span).ok()??;
                let exclude = exclusions(copy).ok()?;
                let tree = SourceTree { exclude: Some(&exclude), ..context.tree() };
                let items = copy.sources.iter().filter_map(|source| select(&tree, copy, source).ok());
                tree.changed_last(&items.flatten().collect::<Vec<_>>())
            }
            Step::Run(run) => context_mounts(run).find_map(|mount| {
                let tree = self.contexts.of(mount.from, mount.span).ok()??.tree();
                tree.changed_last(&[tree.select_literal(mount.source).ok()?])
            }),
            _ => None,
        }
    }
}

/// A mount that takes a part of a context: where it is asked for, and what part of which.
pub struct ContextMount<'a> {
    pub span: Span,
    pub from: From,
    pub source: &'a str,
    /// The part is what a new cache begins with, and is not mounted itself.
    pub seeds_cache: bool,
}

/// Whether a mount takes a part of a context.
pub fn takes_context(mount: &MountStep) -> bool {
    match &mount.kind {
        MountKindStep::Bind { from, .. } | MountKindStep::Cache(CacheStep { from: Some(from), .. }) => {
            !matches!(from, From::Vertex(_))
        }
        _ => false,
    }
}

/// The mounts that take a part of a context, in order.
pub fn context_mounts(run: &RunStep) -> impl Iterator<Item = ContextMount<'_>> {
    run.mounts.iter().filter_map(|mount| {
        let (from, source, seeds_cache) = match &mount.kind {
            MountKindStep::Bind { from, source } => (*from, source, false),
            MountKindStep::Cache(CacheStep { from: Some(from), source, .. }) => (*from, source, true),
            _ => return None,
        };
        takes_context(mount).then_some(ContextMount { span: mount.span, from, source, seeds_cache })
    })
}

/// Names of the parts that are not the step's own.
pub const PARENT: &str = "the file system below";
pub const FROM: &str = "what it reads";
pub const FILES: &str = "files of the context";

/// The key of a step by what it reads, and by what it stands on unless that is nothing (a linked copy).
pub fn content_key(vertex: &Vertex, salt: Option<&str>, parent: Option<&Digest>, contents: &[Digest]) -> Digest {
    let mut hasher = Hasher::new();
    hasher.field("content step 3").field(salt.unwrap_or_default());
    match parent {
        Some(parent) => hasher.field(parent.bytes()),
        None => hasher.field("linked"),
    };
    vertex.step.parts(&mut |name, value| {
        hasher.field(name).field(value);
    });
    for content in contents {
        hasher.field(FILES).field(content.bytes());
    }
    hasher.finish()
}

/// What a mount shows of a stage, as a digest: its own mode and owner count, its name does not. `None` if it is not there.
pub fn mounted_content(stage: &StageFiles, source: &str) -> std::result::Result<Option<Digest>, SourceError> {
    let tree = stage.tree();
    match tree.select_literal(source) {
        Ok(item) => {
            let item = Selected { name: "mounted".into(), take: Take::Kept, ..item };
            Ok(Some(content(&tree, &[item])?.digest))
        }
        Err(SourceError::NotFound { .. } | SourceError::DeadLink { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The content of all sources of a COPY, in order.
pub fn sources_content(tree: &SourceTree<'_>, copy: &CopyStep) -> Result<Content> {
    let exclude = exclusions(copy)?;
    let tree = SourceTree { exclude: Some(&exclude), ..*tree };
    let mut hasher = Hasher::new();
    let mut sight = Sight::default();
    let links = HardLinks::default();
    for (source, span) in copy.sources.iter().zip(&copy.source_spans) {
        let fail = |e| copy_source_error(e, *span, copy);
        let selected = select(&tree, copy, source).map_err(fail)?;
        let one = content_without_links(&tree, &selected, &links).map_err(fail)?;
        hasher.field(one.digest.bytes());
        sight += one.sight;
    }
    Ok(Content { digest: links.added_to(hasher.finish()), sight })
}

/// A selection that went wrong, at the word that asked for it.
pub fn source_error(e: SourceError, span: Span) -> BuildError {
    let d = Diagnostic::new(span, e.to_string());
    BuildError::Unmet(vec![match e {
        SourceError::NotFound { ignored: true, .. } => d.help("the file exists, but the ignore file leaves it out"),
        SourceError::NotFound { similar: Some(name), .. } => d.help(format!("did you mean `{name}`?")),
        SourceError::NotFound { .. } => d.help("paths are relative to the root of the build context"),
        SourceError::DeadLink { .. } => d.help("mend the link or leave it out; links that are named are followed"),
        SourceError::Changed(_) => d.help("let what writes the files finish, then build again"),
        SourceError::BadPattern(_) => d.help("write `[[]` for a bracket that is part of a name"),
        SourceError::BehindLink { .. } => d.help("name the path that the link leads to"),
        SourceError::Kernel(_) | SourceError::TooDeep(_) => d,
    }])
}

/// The same of a COPY, which may be from somewhere else than the build context.
pub fn copy_source_error(e: SourceError, span: Span, copy: &CopyStep) -> BuildError {
    match (&e, &copy.from_name) {
        (SourceError::NotFound { similar, .. }, Some(name)) => {
            let d = Diagnostic::new(span, format!("{e} in `{name}`"));
            BuildError::Unmet(vec![match similar {
                Some(close) => d.help(format!("did you mean `{close}`?")),
                None => d.help(format!("paths are relative to the root of `{name}`")),
            }])
        }
        _ => source_error(e, span),
    }
}

/// What a step without a key of its own is worth to others.
pub fn source_result(step: &Step) -> Digest {
    let mut hasher = Hasher::new();
    match step {
        Step::Image { manifest, name: _ } => hasher.field("image").field(manifest.bytes()),
        _ => hasher.field("scratch"),
    };
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use rbuild_dockerfile::parse;
    use rbuild_image::Platform;
    use rbuild_plan::{Parameters, Plan, plan};

    use super::*;

    /// The keys of all steps of a Dockerfile that stands on nothing; content of contexts counts as given.
    fn keys(source: &str) -> Vec<String> {
        let platform: Platform = "linux/amd64".parse().unwrap();
        let file = parse(source.as_bytes()).unwrap();
        let Ok(Plan::Graph(graph)) = plan(&file, &Parameters::new(platform), &HashMap::new()) else { panic!() };
        let contexts = Contexts { main: None, named: Vec::new() };
        let mut results: Vec<Digest> = Vec::new();
        let mut found = Vec::new();
        for vertex in &graph.vertices {
            let result_of = |i: VertexId| results[i];
            let keys = Keys { contexts: &contexts, salt: None, result_of: &result_of };
            let content = Content { digest: Digest::of(b"what is copied"), sight: Sight::default() };
            let key = keys.definition(vertex, &[content], &mut |_| ()).unwrap();
            found.extend(key.map(|key| key.hex()[..16].to_string()));
            results.push(key.unwrap_or_else(|| source_result(&vertex.step)));
        }
        found
    }

    const EVERYTHING: &str = "FROM scratch AS a\nARG WHO=me\nENV E=1\nWORKDIR /w\nCOPY --chown=1:2 --chmod=644 x /y/\n\
        USER 3\nRUN --network=none --mount=type=cache,target=/c --mount=type=secret,id=s make all\n\
        FROM scratch\nCOPY --from=a --link /w /v\nADD <<F /f\ntext\nF\n";

    /// Caches of all users are worth something as long as these stay: change them on purpose, and the number in "step 3" with them.
    #[test]
    fn keys_are_what_they_were() {
        assert_eq!(keys(EVERYTHING), PINNED);
    }

    const PINNED: [&str; 5] =
        ["920187c06abd605c", "6d23bee0ee4bf979", "2b663b97fe4737fb", "1e98613deb4f9736", "645c3d8d540c7ad6"];

    #[test]
    fn what_a_step_is_changes_its_key_and_those_that_stand_on_it_and_no_others() {
        let before = keys(EVERYTHING);
        // What changes, and the first of the steps that notice: all later ones stand on it.
        let cases = [
            ("WORKDIR /w", "WORKDIR /z", 0),
            ("ENV E=1", "ENV E=2", 2),
            ("ARG WHO=me", "ARG WHO=you", 2),
            ("--chown=1:2", "--chown=1:3", 1),
            ("--chmod=644", "--chmod=600", 1),
            ("x /y/", "x /y", 1),
            ("USER 3", "USER 4", 2),
            ("--network=none ", "", 2),
            ("make all", "make", 2),
            ("--link /w /v", "/w /v", 3),
            ("/w /v", "/w /u", 3),
            ("/w /v", "/q /v", 3),
            ("text", "other text", 4),
            ("/f\n", "/g\n", 4),
            ("type=secret,id=s", "type=secret,id=other", 2),
            // What comments and spaces say is nothing.
            ("WORKDIR /w", "# a comment\nWORKDIR   /w", 5),
        ];
        for (old, new, first) in cases {
            let source = EVERYTHING.replacen(old, new, 1);
            assert_ne!(source, EVERYTHING, "{old}");
            let differ: Vec<usize> =
                keys(&source).iter().zip(&before).enumerate().filter(|(_, (a, b))| a != b).map(|(i, _)| i).collect();
            let expected: Vec<usize> = (first..before.len()).collect();
            assert_eq!(differ, expected, "{old} → {new}");
        }
    }
}
