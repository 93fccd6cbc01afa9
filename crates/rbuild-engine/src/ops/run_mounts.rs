//! Mounts of `RUN --mount`: caches, files of contexts and stages, SSH agents.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use rbuild_dockerfile::{Diagnostic, Sharing, Span};
use rbuild_image::Hasher;
use rbuild_linux::{FileKind, RootDir, UidGid};
use rbuild_paths::SourcePattern;
use rbuild_plan::{
    CacheRoot, CopyItem, CopySource, CopyStep, FileSource, RunAgent, RunCache, RunMount, RunMountKind, RunStep,
    SecurityMode, TmpfsOptions, VertexId,
};
use rbuild_remedy::{MountRemedy, Remedy};
use rbuild_sandbox::{MountRequest, MountSource};
use rbuild_source::{Changes, Listing, Owner, Selected, Selection, SelectionHash, SourceTree};
use rbuild_store::{
    CacheId, CacheKey, CacheMount, CacheUse, CacheView, FILES, KeyInputs, KeyValue, KnownMount, LISTING, Lock,
    MergedFiles, Once, SnapshotBackend, Store, TreeId, Workspace,
};

use crate::builder_paths::BindPoint;
use crate::contexts::selection::{ContextMount, context_mounts, reads_context};
use crate::contexts::source_errors::source_error;
use crate::env::{MountOrigin, StepEnv};
use crate::error::{BuildError, Result};
use crate::error_context::ErrorContext;
use crate::ops::copy::{self, copy};
use crate::ops::copy_error::CopyError;
use crate::ops::copy_step::{copy_error, copy_settings, incremental_copy};
use crate::ops::incremental_copy::IncrementalCopy;
use crate::ops::shared_caches;
use crate::ops::ssh_agent::Agent;
use crate::ops::step_error::{Attempt, StepError};
use crate::prepare::demands::missing_agent;

/// Files of a context that a command mounts: a path in a tree of the store.
pub(crate) struct ContextPart {
    tree: TreeId,
    path: PathBuf,
}

/// The caches of a command, locked according to their sharing mode until this is dropped.
pub(crate) struct HeldCaches {
    /// The caches, each with the indices of the mounts that show it.
    caches: Vec<(Vec<usize>, CacheMount)>,
    /// Private copies of caches, used where mounts are not allowed, each with the index of its
    /// cache.
    views: Vec<(usize, CacheView)>,
}

impl HeldCaches {
    /// Returns the index of the cache that a mount shows.
    fn cache_of(&self, mount: usize) -> Result<usize> {
        let found = self.caches.iter().position(|(mounts, _)| mounts.contains(&mount));
        found.ok_or_else(|| BuildError::other("a cache mount has no cache"))
    }

    /// Copies the command's changes in private views back to the caches. `again` is true if the
    /// views are still needed afterwards.
    pub(crate) fn return_caches(self, store: &Store, work: &Workspace, again: bool) -> Result<()> {
        for (cache, view) in self.views {
            store.cache_mounts().merge_view(work, &self.caches[cache].1, view, again)?;
        }
        Ok(())
    }
}

/// Access of a command to mounted trees of the store.
#[derive(Clone, Copy)]
struct TreeAccess {
    read_only: bool,
    insecure: bool,
}

/// Directory of the builder's agent sockets; each is in its own subdirectory.
const LISTENING: &str = "/listening";

/// The initial content of a cache: its position in the Dockerfile, and its files if they come from
/// a context.
#[derive(Clone, Copy)]
struct Seed<'a> {
    span: Span,
    /// `from=` as written.
    from_name: Option<&'a str>,
    files: Option<&'a Selection>,
}

/// Returns the mounts of a command, and its caches. `parts` are its mounts of contexts, in order;
/// `selected_files` are the files that the command reads from contexts.
pub(crate) fn mounts(
    env: &StepEnv<'_>,
    id: VertexId,
    run: &RunStep,
    parts: Vec<ContextPart>,
    selected_files: &[Selection],
) -> Attempt<(Vec<MountRequest>, HeldCaches)> {
    let (steps, insecure) = (&run.mounts, run.security == SecurityMode::Insecure);
    let mut held = HeldCaches { caches: caches(env, id, steps, selected_files)?, views: Vec::new() };
    let mut parts = parts.into_iter();
    let mut requests = Vec::new();
    for (i, mount) in steps.iter().enumerate() {
        let source = match &mount.kind {
            RunMountKind::Tmpfs { size } => MountSource::Tmpfs(TmpfsOptions { size: *size, ..TmpfsOptions::default() }),
            RunMountKind::Cache(step) => {
                let number = held.cache_of(i)?;
                let part = cache_part(&held.caches[number].1, step, mount.span)?;
                cache_source(env, &mut held, number, part, TreeAccess { read_only: mount.read_only, insecure })?
            }
            RunMountKind::Volume { id, .. } => MountSource::Machine(env.builder.path(&BindPoint::Volume(*id).path())),
            RunMountKind::Bind { from: FileSource::Vertex(from), source } => {
                stage_mount(env, *from, source, TreeAccess { read_only: mount.read_only, insecure })?
            }
            RunMountKind::Bind { .. } => {
                let part = parts.next().ok_or_else(|| BuildError::other("a part of the context is missing"))?;
                trees_mount(env, &[part.tree], part.path, TreeAccess { read_only: mount.read_only, insecure })?
            }
        };
        requests.push(MountRequest { target: mount.target.clone(), source, read_only: mount.read_only });
    }
    Ok((requests, held))
}

/// Locks the caches of a command; returns each with the indices of the mounts that show it. Each
/// cache is locked only once, in the strictest sharing mode of its mounts; otherwise a command
/// would wait for itself. Caches are locked in the order of their IDs to avoid deadlocks between
/// commands.
fn caches(
    env: &StepEnv<'_>,
    vertex: VertexId,
    steps: &[RunMount],
    selected_files: &[Selection],
) -> Attempt<Vec<(Vec<usize>, CacheMount)>> {
    let mut wanted: BTreeMap<CacheId, Vec<(usize, &RunCache, Seed<'_>)>> = BTreeMap::new();
    let mut unused = selected_files.iter();
    for (i, mount) in steps.iter().enumerate() {
        let files = if reads_context(mount) { unused.next() } else { None };
        if let RunMountKind::Cache(step) = &mount.kind {
            let seed = Seed { span: mount.span, from_name: mount.from_name.as_deref(), files };
            wanted.entry(cache_id(env, step, seed)?).or_default().push((i, step, seed));
        }
    }
    let mut caches: Vec<(Vec<usize>, CacheMount)> = Vec::new();
    for (id, mounts) in wanted {
        let (_, first, seed) = mounts[0];
        let mut origin = MountOrigin::EarlierBuild;
        let may_hold_secrets = !env.request.secrets.is_empty();
        let known = KnownMount { id, name: first.id.clone(), may_hold_secrets, origin: None };
        let sharing = mounts.iter().map(|(_, step, _)| cache_use(step)).max().unwrap_or(CacheUse::Shared);
        let cache = env.store.cache_mounts().cache_mount(&env.rootfs.work, &id, sharing, |dir| {
            origin = MountOrigin::ThisBuild;
            env.store.cache_mounts().note_new(&known)?;
            match shared_caches::restore(env, &id, &first.id, dir)? {
                Some(cache) => {
                    let restored = KnownMount { origin: Some(cache), ..known.clone() };
                    Ok::<_, StepError>(env.store.cache_mounts().note_new(&restored)?)
                }
                None => fill_cache(env, vertex, first, seed, dir),
            }
        })?;
        env.store.cache_mounts().note_used(&known)?;
        env.note_mount(&id, &first.id, origin);
        caches.push((mounts.iter().map(|(i, ..)| *i).collect(), cache));
    }
    Ok(caches)
}

/// Returns the directory of a cache that a mount shows, which is created if necessary. `span` is
/// that of the mount.
fn cache_part<'s>(cache: &CacheMount, step: &'s RunCache, span: Span) -> Result<&'s str> {
    // With `from`, `source` is the path that the cache was initialized from.
    let part = if step.from.is_some() { "/" } else { step.source.as_str() };
    if part != "/" {
        cache.dir.create_dir_all(part, 0o755, None, |_| ()).map_err(|e| {
            if e.is_gone() {
                BuildError::Unmet(vec![not_a_directory(span, &step.id, part)])
            } else {
                BuildError::kernel(ErrorContext::CacheDirectory { id: &step.id, part })(e)
            }
        })?;
    }
    Ok(part)
}

/// Returns the source of a mount of the directory `part` of a cache, which has the index `number`:
/// the cache itself, or a private copy if mounts are not allowed, or if the command could make a
/// read-only mount writable. Changes to a copy of a read-only mount are discarded.
fn cache_source(
    env: &StepEnv<'_>,
    held: &mut HeldCaches,
    number: usize,
    part: &str,
    access: TreeAccess,
) -> Result<MountSource> {
    let cache = &held.caches[number].1;
    if env.builder.is_bare() || access.read_only && access.insecure {
        let view = env.store.cache_mounts().create_view(&env.rootfs.work, cache, Path::new(part), access.read_only)?;
        let dir = view.path.clone();
        if !access.read_only {
            held.views.push((number, view));
        }
        return Ok(MountSource::Part { dir, path: "/".into() });
    }
    if part == "/" {
        return Ok(MountSource::Bind(cache.path.clone()));
    }
    Ok(MountSource::BindBelow { dir: cache.path.clone(), path: PathBuf::from(part) })
}

/// Returns the diagnostic about a `source` in a cache that a command has created as another kind of
/// file than a directory.
fn not_a_directory(span: Span, id: &str, part: &str) -> Diagnostic {
    let d = Diagnostic::new(span, format!("`{part}` in the cache mount `{id}` is not a directory"));
    d.help(Remedy::from(MountRemedy::OtherCacheDirectory))
}

/// Returns the ID of a cache. Initial content, owner and mode are part of it.
fn cache_id(env: &StepEnv<'_>, step: &RunCache, seed: Seed<'_>) -> Result<CacheId> {
    let RunCache { id, id_in_key: _, sharing: _, from, source, root } = step;
    let mut hasher = Hasher::new();
    hasher.field("cache 1").field(id);
    match root {
        &CacheRoot::DEFAULT => {}
        CacheRoot::Stated { mode, uid, gid } => {
            hasher.field("owner").field(format!("{mode:o} {uid} {gid}"));
        }
        CacheRoot::OfSource { .. } => {
            hasher.field("owner").field("source");
        }
    }
    match from {
        Some(FileSource::Vertex(id)) => {
            hasher.field("from").field(env.done(*id).result.bytes()).field(source);
        }
        Some(FileSource::Context | FileSource::Named(_)) => {
            let files = seed.files.ok_or_else(|| BuildError::other("the content of a cache's files is missing"))?;
            hasher.field("files").field(files.content.digest.bytes());
        }
        None => {}
    }
    Ok(hasher.finish())
}

/// Fills a new cache with its initial content. Fails with [`StepError::ContextChanged`] if the
/// context no longer has the content that the cache's ID was computed from.
fn fill_cache(env: &StepEnv<'_>, id: VertexId, step: &RunCache, seed: Seed<'_>, dir: &RootDir) -> Attempt<()> {
    let set_root = |owner: UidGid, mode: u32| {
        let fail = BuildError::kernel(ErrorContext::CacheMount(&step.id));
        dir.set_own_meta(owner, mode, now(env.request.now)).map_err(fail)
    };
    if let CacheRoot::Stated { mode, uid, gid } = step.root {
        set_root(UidGid::new(uid, gid), mode)?;
    }
    let Some(from) = step.from else { return Ok(()) };
    let set_root_of = |item: &Selected, owner: UidGid| match (step.root, item.stat.kind == FileKind::Dir) {
        (CacheRoot::OfSource { .. }, true) => set_root(owner, item.stat.mode & 0o7777),
        (CacheRoot::OfSource { .. }, false) => set_root(UidGid::new(0, 0), 0o755),
        (CacheRoot::Stated { .. }, _) => Ok(()),
    };
    let copied = files_of(from, seed.from_name, &step.source, seed.span);
    let mut incremental = IncrementalCopy::default();
    let mut fill = |tree: &SourceTree<'_>, selected: &[Vec<Selected>]| {
        let files = copy::SelectedFiles { tree, selected };
        copy(&copied, Some(files), dir, copy_settings(env), Some(&mut incremental))
            .map_err(|e| copy_error(env, id, &copied, e))
    };
    match (from, seed.files) {
        (FileSource::Vertex(stage), _) => {
            let root = &env.rootfs.view(stage)?;
            let tree = SourceTree::whole(root, Owner::AsIs);
            let item = tree.select_literal(&step.source).map_err(|e| source_error(e, seed.span, seed.from_name))?;
            set_root_of(&item, UidGid::new(item.stat.uid, item.stat.gid))?;
            fill(&tree, &[vec![item]])?;
        }
        (FileSource::Context | FileSource::Named(_), Some(files)) => {
            let context = env.contexts.of(from, seed.span)?;
            let context = context.ok_or_else(|| BuildError::other("a cache of the context names a stage"))?;
            if let Some(item) = files.sources.iter().flatten().next() {
                set_root_of(item, UidGid::new(0, 0))?;
            }
            fill(&context.tree(), &files.sources)?;
        }
        (FileSource::Context | FileSource::Named(_), None) => {}
    }
    match seed.files {
        Some(files) if files.content.fingerprint != incremental.fingerprint => Err(StepError::ContextChanged),
        _ => Ok(()),
    }
}

/// Mounts files of another stage. A command's changes to them are discarded.
fn stage_mount(env: &StepEnv<'_>, from: VertexId, source: &str, access: TreeAccess) -> Result<MountSource> {
    trees_mount(env, &env.rootfs.trees(from)?, Path::new("/").join(source.trim_start_matches('/')), access)
}

fn trees_mount(env: &StepEnv<'_>, trees: &[TreeId], path: PathBuf, access: TreeAccess) -> Result<MountSource> {
    let snapshots = env.rootfs.snapshots()?;
    if snapshots == SnapshotBackend::Overlay {
        let lowers = env.store.trees().lower_dirs(&env.rootfs.work, trees)?;
        return Ok(MountSource::Trees { lowers, path });
    }
    // Without mounts there is no read-only access, and a command that may mount can make a
    // mount writable again. Both get a copy instead of hard links to the store.
    let stays = access.read_only && !access.insecure && !env.builder.is_bare();
    let files = if stays { MergedFiles::Linked } else { MergedFiles::Copied };
    let (dir, _) = snapshots.merged(env.store, &env.rootfs.work, trees, files)?;
    Ok(MountSource::Part { dir, path })
}

/// Returns the files of contexts that a command mounts, in order. `selected_files` are the files
/// that the key was computed from. Also returns the changes since the earlier run with the key
/// inputs `before`, if they are known.
pub(crate) fn context_parts(
    env: &StepEnv<'_>,
    id: VertexId,
    run: &RunStep,
    selected_files: &[Selection],
    before: Option<&KeyInputs>,
) -> Attempt<(Vec<ContextPart>, Option<Changes>)> {
    let earlier: Vec<Option<SelectionHash>> = before.map(content_digests).unwrap_or_default();
    // If the number of mounts differs, they cannot be matched with the earlier ones.
    let mut earlier = Some(earlier).filter(|earlier| earlier.len() == selected_files.len()).into_iter().flatten();
    let (mut parts, mut all) = (Vec::new(), None);
    for (mount, selection) in context_mounts(run).zip(selected_files) {
        let earlier = earlier.next().flatten();
        if mount.seeds_cache {
            continue;
        }
        let (part, changes) = context_part(env, id, &mount, selection, earlier)?;
        parts.push(part);
        if let Some(changes) = changes {
            all.get_or_insert_with(Changes::default).and(changes);
        }
    }
    Ok((parts, all))
}

/// Returns files of a context as a tree: filtered by the ignore file, owned by root, and
/// unaffected by later changes to the context. Files that are unchanged since the `earlier`
/// content are taken from its tree.
fn context_part(
    env: &StepEnv<'_>,
    id: VertexId,
    mount: &ContextMount<'_>,
    selection: &Selection,
    earlier: Option<SelectionHash>,
) -> Attempt<(ContextPart, Option<Changes>)> {
    let Some(context) = env.contexts.of(mount.from, mount.span)? else {
        return Err(BuildError::other("a mount of the context names a stage").into());
    };
    let tree = context.tree();
    let item = selection.sources.iter().flatten().next();
    let item = item.ok_or_else(|| BuildError::other("a mount of the context selects nothing"))?;
    let is_dir = item.stat.kind == FileKind::Dir;
    let path = if is_dir { PathBuf::from("/") } else { Path::new("/").join(&item.name) };
    let key = part_key(env, &selection.content.digest);
    let earlier = earlier.map(|earlier| env.store.records().record(&part_key(env, &earlier))).transpose()?.flatten();
    let mut incremental =
        earlier.map_or(Ok(IncrementalCopy::default()), |record| incremental_copy(env, &record.tree))?;
    let mounted = MountedFiles { mount, selection, tree };
    let fill = |dir: &RootDir| fill_part(env, id, &mounted, &mut incremental, dir);
    let made = env.rootfs.session().tree_once(Lock::ContextPart, &key, fill)?;
    let changes = match &made {
        Once::Found(found) => {
            let listing = Listing::from_bytes(&env.store.trees().tree_note(found, LISTING)?);
            incremental.changes_to(&listing)
        }
        Once::Made(_) => incremental.changes(),
    };
    Ok((ContextPart { tree: made.into_inner(), path }, changes))
}

/// The files of a context that a mount shows.
struct MountedFiles<'a> {
    mount: &'a ContextMount<'a>,
    selection: &'a Selection,
    /// The context.
    tree: SourceTree<'a>,
}

/// Copies the mounted files of a context into a new tree. Fails with [`StepError::ContextChanged`]
/// if the context no longer has the content of the tree's key.
fn fill_part(
    env: &StepEnv<'_>,
    id: VertexId,
    mounted: &MountedFiles<'_>,
    incremental: &mut IncrementalCopy,
    dir: &RootDir,
) -> Attempt<()> {
    let MountedFiles { mount, selection, tree } = mounted;
    let root = dir.sub("fs").map_err(BuildError::kernel(ErrorContext::ContextMount))?;
    root.set_own_meta(UidGid::ROOT, 0o755, now(env.request.now))
        .map_err(BuildError::kernel(ErrorContext::ContextMount))?;
    let copied = files_of(mount.from, mount.from_name, mount.source, mount.span);
    let fail = |e| copy_error(env, id, &copied, e);
    incremental.defers = true;
    let files = copy::SelectedFiles { tree, selected: &selection.sources };
    copy(&copied, Some(files), &root, copy_settings(env), Some(incremental)).map_err(fail)?;
    incremental
        .finish(None, tree.root, &root, &env.cancel)
        .map_err(|problem| fail(CopyError { index: None, problem }))?;
    if selection.content.fingerprint != incremental.fingerprint {
        return Err(StepError::ContextChanged);
    }
    env.store.trees().put_note(dir, LISTING, &incremental.listing.to_bytes())?;
    Ok(())
}

fn part_key(env: &StepEnv<'_>, content: &SelectionHash) -> CacheKey {
    let mut hasher = Hasher::new();
    hasher.field("context mount 3").field(content.bytes()).field(env.request.salt.as_deref().unwrap_or_default());
    hasher.finish()
}

/// Starts the SSH agents of a command. They serve until dropped.
pub(crate) fn agents<'s>(env: &StepEnv<'_>, steps: &'s [RunAgent]) -> Result<Vec<(Agent, &'s RunAgent)>> {
    static SERIAL: AtomicUsize = AtomicUsize::new(0);
    let mut agents = Vec::new();
    for step in steps {
        let Some(place) = env.request.agents.iter().position(|(id, _)| *id == step.id) else {
            if step.required {
                return Err(BuildError::Unmet(vec![missing_agent(step)]));
            }
            continue;
        };
        let serial = SERIAL.fetch_add(1, Ordering::SeqCst);
        // Without a root file system of its own, the builder uses its writable working
        // directory.
        let listening = if env.builder.is_bare() { env.rootfs.work.path().join("agents") } else { LISTENING.into() };
        let dir = listening.join(serial.to_string());
        let socket = env.builder.path(&BindPoint::Agent(place).path());
        let agent = Agent::listen(dir, env.store.owner_records(), &env.request.agents[place].1, &socket, step)
            .map_err(BuildError::io(ErrorContext::AgentSocket))?;
        agents.push((agent, step));
    }
    Ok(agents)
}

/// Returns the content digests of the context mounts among the recorded inputs of a key, in order.
fn content_digests(key_inputs: &KeyInputs) -> Vec<Option<SelectionHash>> {
    let contents = key_inputs.parts.iter().filter(|part| part.name == FILES);
    contents
        .map(
            |part| {
                if let KeyValue::Files(hash) = part.value {
                    Some(SelectionHash::from_bytes(*hash.bytes()))
                } else {
                    None
                }
            },
        )
        .collect()
}

fn now(seconds: i64) -> rbuild_linux::Timestamp {
    rbuild_linux::Timestamp { sec: seconds, nsec: 0 }
}

fn cache_use(step: &RunCache) -> CacheUse {
    match step.sharing {
        Sharing::Shared => CacheUse::Shared,
        Sharing::Private => CacheUse::Private,
        Sharing::Locked => CacheUse::Locked,
    }
}

/// Returns a COPY of one source to the root.
fn files_of(from: FileSource, from_name: Option<&str>, source: &str, span: Span) -> CopyStep {
    CopyStep {
        from,
        from_name: from_name.map(str::to_string),
        sources: vec![CopySource { item: CopyItem::Files(SourcePattern::literal(source)), span }],
        dest: "/".into(),
        dest_is_dir: true,
        ..CopyStep::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_sources_that_are_not_directories_are_reported_as_recorded() {
        let Diagnostic { message, help, .. } = not_a_directory(Span::default(), "/cache", "a/b");
        rbuild_testkit::assert_recorded!("cache-sources", format!("{message}\n  help: {help:?}"));
    }
}
