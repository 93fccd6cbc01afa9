//! Build contexts and the files that steps select from them.

pub(crate) mod selection;
pub(crate) mod source_errors;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rbuild_dockerfile::{Diagnostic, Span};
use rbuild_linux::{OwnerRecords, RootDir, quoted};
use rbuild_plan::{ContextDir, ContextId, FileSource, IgnoreFile, Step, Vertex};
use rbuild_remedy::{BuildRemedy, FileRemedy, Remedy};
use rbuild_sandbox::Builder;
use rbuild_source::{HashCache, Ignore, Owner, Selection, SourceTree, StoreDir, content};
use rbuild_store::Store;

use crate::builder_paths::BindPoint;
use crate::contexts::selection::{ContextMount, context_mounts, exclusions, selection};
use crate::contexts::source_errors::source_error;
use crate::error::{BuildError, Result};
use crate::error_context::ErrorContext;
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
        if store.matches(&root.stat_self().map_err(failed())?) {
            let message = "the build context is the store of this build".to_string();
            return Err(BuildError::Other { message, help: Some(FileRemedy::OtherDirectory.into()) });
        }
        let parse = |file: &IgnoreFile| {
            Ignore::parse(&file.text).map(|ignore| ignore.from_file(&file.path)).map_err(|e| BuildError::Other {
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

/// The files that a copy selects from another stage or image.
pub struct StageSelection {
    pub files: StageFiles,
    pub selection: Selection,
}

/// The files that a step reads from its sources.
#[derive(Clone, Copy)]
pub struct ReadFiles<'a> {
    /// Those of contexts, as they were when the key was computed.
    pub contexts: &'a [Selection],
    /// Those of another stage.
    pub stage: Option<&'a StageSelection>,
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

    /// Selects the files that a step reads from contexts. For a copy the result has at most one
    /// item, for a command one per mount of a context.
    pub fn selected_files(&self, vertex: &Vertex) -> Result<Vec<Selection>> {
        match &vertex.step {
            Step::Copy(copy) => {
                let Some(first) = copy.first_files() else { return Ok(Vec::new()) };
                let context = self.of(copy.from, first.span)?;
                context.map(|context| selection(&context.tree(), copy)).into_iter().collect()
            }
            Step::Run(run) => context_mounts(run).map(|mount| self.mounted(&mount)).collect(),
            _ => Ok(Vec::new()),
        }
    }

    /// Selects the files that a mount reads from a context.
    fn mounted(&self, mount: &ContextMount<'_>) -> Result<Selection> {
        let context = self.of(mount.from, mount.span)?;
        let tree = context.ok_or_else(|| BuildError::other("a mount of the context names a stage"))?.tree();
        let fail = |e| source_error(e, mount.span, mount.from_name);
        let selected = vec![tree.select_literal(mount.source).map_err(fail)?];
        let content = content(&tree, &selected).map_err(fail)?;
        Ok(Selection { sources: vec![selected], content })
    }

    /// Returns the path of the most recently changed file among those that a step selected from
    /// contexts.
    pub fn changed_last(&self, vertex: &Vertex, selected_files: &[Selection]) -> Option<PathBuf> {
        match &vertex.step {
            Step::Copy(copy) => {
                let context = self.of(copy.from, vertex.span).ok()??;
                let exclude = exclusions(copy).ok()?;
                let tree = SourceTree { exclude: Some(&exclude), ..context.tree() };
                tree.changed_last(&selected_files.first()?.sources.concat())
            }
            Step::Run(run) => context_mounts(run).zip(selected_files).find_map(|(mount, selection)| {
                let tree = self.of(mount.from, mount.span).ok()??.tree();
                tree.changed_last(&selection.sources.concat())
            }),
            _ => None,
        }
    }
}
