//! Cache keys: digests of everything that must be equal for a cached result to be reused.
//!
//! A step's *definition key* covers the operation and the results of its inputs. If a step depends
//! only on the content of an input (COPY from another stage), it also has a *content key*. Its
//! result is then identified by the content key, and later steps do not depend on the steps that
//! made the content.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rbuild_dockerfile::{Diagnostic, Span};
use rbuild_image::Hasher;
use rbuild_linux::{OwnerRecords, RootDir, quoted};
use rbuild_plan::{
    ContextDir, ContextId, CopyItem, CopyStep, FileSource, IgnoreFile, RunCache, RunMount, RunMountKind, RunStep, Step,
    StepPart, Vertex, VertexId,
};
use rbuild_remedy::{BuildRemedy, DockerfileRemedy, FileRemedy, Remedy};
use rbuild_sandbox::Builder;
use rbuild_source::{
    CopiedPart, Fingerprint, HardLinks, HashCache, Ignore, IgnoreError, Owner, Selected, Selection, SelectionContent,
    SelectionHash, SourceError, SourceTree, StoreDir, content, content_without_links,
};
use rbuild_store::{CacheKey, FILES, FROM, PARENT, ResultId, Store};

use crate::builder_paths::BindPoint;
use crate::error::{BuildError, Result};
use crate::error_context::ErrorContext;
use crate::prepare::downloads::DownloadedFiles;
use crate::request::BuildRequest;

/// A build context, as read by keys and steps.
pub struct Context {
    root: RootDir,
    ignore: Ignore,
    owner: Owner,
    hashes: Arc<HashCache>,
    store: Arc<StoreDir>,
}

impl Context {
    fn open(path: &Path, ignore: Option<&IgnoreFile>, shared: &SharedByContexts<'_>) -> Result<Context> {
        let SharedByContexts { owner, hashes, owners, store } = shared;
        let failed = || BuildError::kernel(ErrorContext::BuildContext);
        let root = RootDir::open(path).map_err(failed())?.with_owners(owners);
        if store.is(&root.stat_self().map_err(failed())?) {
            let message = "the build context is the store of this build".to_string();
            return Err(BuildError::Other { message, help: Some(FileRemedy::OtherDirectory.into()) });
        }
        let parse = |file: &IgnoreFile| {
            Ignore::parse(&file.text).map_err(|e| BuildError::Other {
                message: format!("the ignore file {}, {e}", quoted(&file.path)),
                help: Some(FileRemedy::CorrectPattern.into()),
            })
        };
        let ignore = ignore.map(parse).transpose()?.unwrap_or_default();
        Ok(Context { root, ignore, owner: *owner, hashes: Arc::clone(hashes), store: store.clone() })
    }

    /// Returns the files of the context that a build may read.
    pub fn tree(&self) -> SourceTree<'_> {
        SourceTree {
            ignore: Some(&self.ignore),
            store: Some(&self.store),
            hashes: Some(&self.hashes),
            ..SourceTree::whole(&self.root, self.owner)
        }
    }
}

/// All build contexts of a build.
pub struct Contexts {
    main: Option<Context>,
    named: HashMap<ContextId, Context>,
    store: Arc<StoreDir>,
}

/// Properties that all contexts of a build have in common.
struct SharedByContexts<'a> {
    owner: Owner,
    hashes: &'a Arc<HashCache>,
    owners: &'a OwnerRecords,
    store: Arc<StoreDir>,
}

/// The files of a stage or an image that a step copies from.
pub struct StageFiles {
    root: RootDir,
    hashes: HashCache,
}

impl StageFiles {
    /// Returns the files below `root`.
    pub fn new(root: RootDir) -> StageFiles {
        StageFiles { root, hashes: HashCache::for_once() }
    }

    /// Returns all files of the stage or image.
    pub fn tree(&self) -> SourceTree<'_> {
        SourceTree { hashes: Some(&self.hashes), ..SourceTree::whole(&self.root, Owner::AsIs) }
    }
}

/// The process that opens the contexts; it determines their paths.
#[derive(Clone, Copy)]
pub enum Viewpoint<'a> {
    Launcher,
    Builder(&'a Builder),
}

impl Contexts {
    /// Opens the contexts. Files that represent devices are recognized if they are in the owner
    /// records of the store.
    pub fn open(
        request: &BuildRequest,
        from: Viewpoint<'_>,
        hashes: &Arc<HashCache>,
        store: &Store,
    ) -> Result<Contexts> {
        let shared = SharedByContexts {
            owner: if request.git_modes { Owner::RootWithGitModes } else { Owner::Root },
            hashes,
            owners: store.owner_records(),
            store: Arc::new(StoreDir::new(store.inode()?)),
        };
        let open = |dir: &ContextDir, place: BindPoint| match from {
            Viewpoint::Launcher => Context::open(&dir.path, dir.ignore.as_ref(), &shared),
            Viewpoint::Builder(builder) => Context::open(&builder.path(&place.path()), dir.ignore.as_ref(), &shared),
        };
        let main = request.context.as_ref().map(|dir| open(dir, BindPoint::Context)).transpose()?;
        let named = request.parameters.named_dirs();
        let named = named.map(|(id, dir)| Ok((id, open(dir, BindPoint::Named(id))?))).collect::<Result<_>>()?;
        Ok(Contexts { main, named, store: shared.store })
    }

    /// Returns the path of the store in a context, if it was skipped there.
    pub fn skipped_store(&self) -> Option<&Path> {
        self.store.skipped_path()
    }

    /// Returns the context that a step reads, `None` if it reads another step's files. Fails if the
    /// build has no such context.
    pub fn of(&self, from: FileSource, span: Span) -> Result<Option<&Context>> {
        let found = match from {
            FileSource::Vertex(_) => return Ok(None),
            FileSource::Context => self.main.as_ref(),
            FileSource::Named(id) => self.named.get(&id),
        };
        found.map(Some).ok_or_else(|| {
            let d = Diagnostic::new(span, "there is no build context to copy from");
            BuildError::Unmet(vec![d.help(Remedy::Build(BuildRemedy::PassContext))])
        })
    }
}

impl Contexts {
    /// Selects the files that a mount takes from a context.
    fn mounted(&self, mount: &ContextMount<'_>) -> Result<Selection> {
        let context = self.of(mount.from, mount.span)?;
        let tree = context.ok_or_else(|| BuildError::other("a mount of the context names a stage"))?.tree();
        let fail = |e| source_error(e, mount.span, mount.from_name);
        let selected = vec![tree.select_literal(mount.source).map_err(fail)?];
        let content = content(&tree, &selected).map_err(fail)?;
        Ok(Selection { sources: vec![selected], content })
    }
}

/// Returns the patterns of `--exclude`.
pub fn exclusions(copy: &CopyStep) -> Result<Ignore> {
    Ignore::from_patterns(&copy.exclude).map_err(|e| {
        let span = copy.sources.first().map(|source| source.span).unwrap_or_default();
        BuildError::Dockerfile(vec![bad_exclusion(&e, span)])
    })
}

/// Returns the diagnostic about an invalid pattern of `--exclude`.
pub fn bad_exclusion(e: &IgnoreError, span: Span) -> Diagnostic {
    Diagnostic::new(span, format!("--exclude: {}", e.reason))
}

/// A component of a cache key.
pub enum KeyComponent<'a> {
    /// A property of the step itself.
    Own(StepPart<'a>),
    /// An input of the step, represented by its result.
    Input(&'static str, VertexId),
    /// Content of files from a context.
    Files(&'static str, SelectionHash),
}

/// Content that a step reads and that its definition key identifies in another way than by content.
pub enum Read {
    /// Selected files of a context, a stage or an image.
    Files(SelectionHash),
    /// The whole file system that a vertex made.
    Result(ResultId),
}

impl Read {
    fn bytes(&self) -> &[u8; 32] {
        match self {
            Read::Files(files) => files.bytes(),
            Read::Result(result) => result.bytes(),
        }
    }
}

/// The values that all keys of a build depend on.
pub struct KeyMaker<'a> {
    pub contexts: &'a Contexts,
    pub downloads: &'a DownloadedFiles,
    pub salt: Option<&'a str>,
    pub result_of: &'a dyn Fn(VertexId) -> ResultId,
}

impl KeyMaker<'_> {
    /// Returns the definition key of a step whose inputs all have results; `None` for scratch and
    /// images, which have no key. Each component of the key is also passed to `note`. `taken` are
    /// the files that the step reads from contexts, as returned by [`KeyMaker::taken`].
    pub fn definition(
        &self,
        vertex: &Vertex,
        taken: &[Selection],
        note: &mut dyn FnMut(&KeyComponent<'_>),
    ) -> Result<Option<CacheKey>> {
        let mut hasher = Hasher::new();
        hasher.field("step 4");
        if let Some(salt) = self.salt {
            hasher.field("salt").field(salt);
        }
        let mut put = |part: KeyComponent<'_>| {
            match &part {
                KeyComponent::Own(part) => hasher.field(part.name()).field(&*part.value()),
                KeyComponent::Input(name, id) => hasher.field(name).field((self.result_of)(*id).bytes()),
                KeyComponent::Files(name, digest) => hasher.field(name).field(digest.bytes()),
            };
            note(&part);
        };
        if let Some(parent) = vertex.parent {
            put(KeyComponent::Input(PARENT, parent));
        }
        vertex.step.parts(&mut |part| put(KeyComponent::Own(part)));
        let mut taken = taken.iter().map(|selection| KeyComponent::Files(FILES, selection.content.digest));
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
                            taken.next().into_iter().for_each(&mut put)
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
                    taken.for_each(&mut put);
                    self.downloads.parts(copy, &mut |part| put(KeyComponent::Own(part)))?;
                }
            },
        }
        Ok(Some(hasher.finish()))
    }

    /// Selects the files that a step takes from contexts. For a copy the result has at most one
    /// item, for a command one per mount of a context.
    pub fn taken(&self, vertex: &Vertex) -> Result<Vec<Selection>> {
        match &vertex.step {
            Step::Copy(copy) => {
                let Some(first) = copy.first_files() else { return Ok(Vec::new()) };
                let context = self.contexts.of(copy.from, first.span)?;
                context.map(|context| selection(&context.tree(), copy)).into_iter().collect()
            }
            Step::Run(run) => context_mounts(run).map(|mount| self.contexts.mounted(&mount)).collect(),
            _ => Ok(Vec::new()),
        }
    }

    /// Returns the path of the most recently changed file among those that a step takes from
    /// contexts.
    pub fn changed_last(&self, vertex: &Vertex, taken: &[Selection]) -> Option<PathBuf> {
        match &vertex.step {
            Step::Copy(copy) => {
                let context = self.contexts.of(copy.from, vertex.span).ok()??;
                let exclude = exclusions(copy).ok()?;
                let tree = SourceTree { exclude: Some(&exclude), ..context.tree() };
                tree.changed_last(&taken.first()?.sources.concat())
            }
            Step::Run(run) => context_mounts(run).zip(taken).find_map(|(mount, selection)| {
                let tree = self.contexts.of(mount.from, mount.span).ok()??.tree();
                tree.changed_last(&selection.sources.concat())
            }),
            _ => None,
        }
    }
}

/// A mount that takes files from a context: its position in the Dockerfile, the context, and the
/// path in it.
pub struct ContextMount<'a> {
    pub span: Span,
    pub from: FileSource,
    /// `from=` as written.
    pub from_name: Option<&'a str>,
    pub source: &'a str,
    /// True if the files are the initial content of a cache, and not mounted themselves.
    pub seeds_cache: bool,
}

/// Returns true if a mount takes files from a context.
pub fn takes_context(mount: &RunMount) -> bool {
    match &mount.kind {
        RunMountKind::Bind { from, .. } | RunMountKind::Cache(RunCache { from: Some(from), .. }) => {
            !matches!(from, FileSource::Vertex(_))
        }
        _ => false,
    }
}

/// Returns the mounts that take files from a context, in order.
pub fn context_mounts(run: &RunStep) -> impl Iterator<Item = ContextMount<'_>> {
    run.mounts.iter().filter_map(|mount| {
        let (from, source, seeds_cache) = match &mount.kind {
            RunMountKind::Bind { from, source } => (*from, source, false),
            RunMountKind::Cache(RunCache { from: Some(from), source, .. }) => (*from, source, true),
            _ => return None,
        };
        let from_name = mount.from_name.as_deref();
        takes_context(mount).then_some(ContextMount { span: mount.span, from, from_name, source, seeds_cache })
    })
}

/// Returns the key of a step by the content that it reads and by its parent's result. `parent` is
/// `None` for a linked copy, whose files do not depend on it.
pub fn content_key(vertex: &Vertex, salt: Option<&str>, parent: Option<&ResultId>, contents: &[Read]) -> CacheKey {
    let mut hasher = Hasher::new();
    hasher.field("content step 4").field(salt.unwrap_or_default());
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

/// Returns the digest of the content that a mount of a stage shows; `None` if the path does not
/// exist. The digest includes mode and owner of the mounted file or directory itself, but not its
/// name.
pub fn mounted_content(stage: &StageFiles, source: &str) -> std::result::Result<Option<SelectionHash>, SourceError> {
    let tree = stage.tree();
    match tree.select_literal(source) {
        Ok(item) => {
            let item = Selected { name: "mounted".into(), take: CopiedPart::Kept, ..item };
            Ok(Some(content(&tree, &[item])?.digest))
        }
        Err(SourceError::NotFound { .. } | SourceError::DeadLink { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Selects the files of all sources of a COPY. A source that is downloaded selects none.
pub fn selection(tree: &SourceTree<'_>, copy: &CopyStep) -> Result<Selection> {
    let exclude = exclusions(copy)?;
    let tree = SourceTree { exclude: Some(&exclude), ..*tree };
    let mut hasher = Hasher::new();
    let mut fingerprint = Fingerprint::default();
    let links = HardLinks::default();
    let mut sources = Vec::with_capacity(copy.sources.len());
    for source in &copy.sources {
        let CopyItem::Files(pattern) = &source.item else {
            sources.push(Vec::new());
            continue;
        };
        let fail = |e| source_error(e, source.span, copy.from_name.as_deref());
        let selected = tree.select(pattern).map_err(fail)?;
        let one = content_without_links(&tree, &selected, &links).map_err(fail)?;
        hasher.field(one.digest.bytes());
        fingerprint += one.fingerprint;
        sources.push(selected);
    }
    Ok(Selection { sources, content: SelectionContent { digest: links.added_to(hasher.finish()), fingerprint } })
}

/// Converts a selection error to a diagnostic at the source in the Dockerfile. `from` is the stage,
/// context or image as written; `None` for the build context.
pub fn source_error(e: SourceError, span: Span, from: Option<&str>) -> BuildError {
    let root = from.map_or("the build context".to_string(), |from| format!("`{from}`"));
    let message = match (&e, from) {
        (SourceError::NotFound { .. }, Some(from)) => format!("{e} in `{from}`"),
        (SourceError::DeadLink { path, target }, _) => {
            format!("`{path}` is a symbolic link to `{}`, which does not exist in {root}", target.display())
        }
        _ => e.to_string(),
    };
    let d = Diagnostic::new(span, message);
    BuildError::Unmet(vec![match e {
        SourceError::NotFound { ignored: true, .. } => d.help(Remedy::from(FileRemedy::RemovePattern)),
        SourceError::NotFound { similar: Some(name), .. } if name.contains(' ') => {
            d.help(Remedy::from(DockerfileRemedy::UseJsonForm { name }))
        }
        SourceError::NotFound { similar: Some(name), path, .. } => {
            let root = if path.starts_with('/') { "/" } else { "" };
            d.help(Remedy::did_you_mean(format!("{root}{name}")))
        }
        SourceError::NotFound { path, .. } if path.starts_with("-") => {
            d.help(Remedy::from(DockerfileRemedy::WriteFlag))
        }
        SourceError::NotFound { path, .. } if path.contains("://") => d.help(Remedy::from(DockerfileRemedy::UseAdd)),
        SourceError::NotFound { path, .. } if Path::new(&path).starts_with("..") && from.is_none() => {
            d.help(Remedy::from(FileRemedy::CopyInto { root }))
        }
        SourceError::NotFound { .. } => d.help(Remedy::File(FileRemedy::CorrectPath { root })),
        SourceError::DeadLink { target, .. } if target.is_absolute() => {
            d.help(Remedy::from(FileRemedy::CopyInto { root }))
        }
        SourceError::DeadLink { .. } => d.help(Remedy::from(FileRemedy::CorrectLink)),
        SourceError::Changed(_) => d.help(Remedy::from(FileRemedy::AwaitWriters)),
        SourceError::BadPattern(text) if text.starts_with('[') => {
            d.help(Remedy::from(DockerfileRemedy::SeparateItems))
        }
        SourceError::BadPattern(_) => d.help(Remedy::from(DockerfileRemedy::EscapeBracket)),
        SourceError::CrossesLink { .. } => d.help(Remedy::from(DockerfileRemedy::NameLinkTarget)),
        SourceError::InStore(_) => d.help(Remedy::from(FileRemedy::MoveStore)),
        // A path of the context; those of stages are always readable.
        SourceError::Kernel(e) if e.kind() == io::ErrorKind::PermissionDenied && from.is_none() => {
            match e.object().path() {
                Some(path) => d.help(Remedy::from(FileRemedy::PermitOrIgnore { path: path.components().collect() })),
                None => d,
            }
        }
        SourceError::Kernel(_) | SourceError::TooDeep(_) => d,
    }])
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
mod tests {
    use rbuild_dockerfile::parse;
    use rbuild_image::Platform;
    use rbuild_plan::{Parameters, Plan, plan};
    use rbuild_testkit::assert_recorded;

    use super::*;

    #[test]
    fn sources_that_cannot_be_copied_are_reported_as_recorded() {
        let not_found = |path: &str, similar: Option<&str>, ignored| SourceError::NotFound {
            path: path.into(),
            similar: similar.map(str::to_string),
            ignored,
        };
        let dead_link = |target: &str| SourceError::DeadLink { path: "a".into(), target: target.into() };
        let kernel = rbuild_linux::Error::new("openat", Path::new("a"), std::io::Error::from_raw_os_error(13));
        let errors = [
            not_found("a", None, false),
            not_found("a", None, true),
            not_found("a", Some("b"), false),
            not_found("/a", Some("b"), false),
            not_found("a", Some("b c"), false),
            not_found("-a", None, false),
            not_found("git://a.io/b", None, false),
            not_found("../a", None, false),
            dead_link("/b"),
            dead_link("b"),
            SourceError::BadPattern("[a".into()),
            SourceError::BadPattern("a[".into()),
            SourceError::CrossesLink { path: "a/b".into(), link: "a".into() },
            SourceError::Changed("a".into()),
            SourceError::TooDeep("a".into()),
            SourceError::InStore("a".into()),
            SourceError::Kernel(kernel),
        ];
        let row = |e: SourceError, from| {
            let BuildError::Unmet(found) = source_error(e, Span::default(), from) else { panic!() };
            found.into_iter().map(|d| format!("{}\n  help: {:?}\n", d.message, d.help)).collect::<String>()
        };
        let of_stage = [not_found("a", None, false), not_found("../a", None, false), dead_link("/b")];
        let mut table: String = errors.into_iter().map(|e| row(e, None)).collect();
        table.extend(of_stage.map(|e| row(e, Some("build"))));
        let pattern = Ignore::from_patterns(&["[a".to_string()]).map(drop).unwrap_err();
        assert_recorded!("sources", table + &bad_exclusion(&pattern, Span::default()).message);
    }

    /// Returns the keys of all steps of a Dockerfile based on scratch. The content of contexts is a
    /// constant.
    fn keys(source: &str) -> Vec<String> {
        let platform: Platform = "linux/amd64".parse().unwrap();
        let file = parse(source.as_bytes()).unwrap();
        let Ok(Plan::Graph(graph)) = plan(&file, &Parameters::new(platform.clone(), platform), &HashMap::new()) else {
            panic!()
        };
        let store = Arc::new(StoreDir::new((0, 0, 0)));
        let contexts = Contexts { main: None, named: HashMap::new(), store };
        let mut results: Vec<ResultId> = Vec::new();
        let mut found = Vec::new();
        for vertex in &graph.vertices {
            let result_of = |i: VertexId| results[i];
            let downloads = DownloadedFiles::default();
            let keys = KeyMaker { contexts: &contexts, downloads: &downloads, salt: None, result_of: &result_of };
            let content =
                SelectionContent { digest: SelectionHash::of(b"what is copied"), fingerprint: Fingerprint::default() };
            let taken = Selection { sources: Vec::new(), content };
            let key = keys.definition(vertex, &[taken], &mut |_| ()).unwrap();
            found.extend(key.map(|key| key.hex()[..16].to_string()));
            results.push(key.map_or_else(|| source_result(&vertex.step), ResultId::from));
        }
        found
    }

    const EVERYTHING: &str = "FROM scratch AS a\nARG WHO=me\nENV E=1\nWORKDIR /w\nCOPY --chown=1:2 --chmod=644 x /y/\n\
        USER 3\nRUN --network=none --mount=type=cache,target=/c --mount=type=secret,id=s make all\n\
        FROM scratch\nCOPY --from=a --link /w /v\nADD <<F /f\ntext\nF\n";

    /// A changed key empties the caches of all users. Change keys only on purpose, and change the
    /// number in "step 4" as well.
    #[test]
    fn cache_keys_are_pinned() {
        assert_eq!(keys(EVERYTHING), PINNED);
    }

    const PINNED: [&str; 5] =
        ["d8ae52c85adbf011", "c92a39e37d5f8db7", "71ee2733b5ab0a2b", "863663fd3006b531", "32e2f9fe51c640b1"];

    #[test]
    fn a_changed_step_changes_its_own_key_and_those_of_its_dependants_only() {
        let before = keys(EVERYTHING);
        // Each case replaces text; the number is the first step whose key changes. All later steps
        // depend on it.
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
            // Comments and spaces are not part of keys.
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
