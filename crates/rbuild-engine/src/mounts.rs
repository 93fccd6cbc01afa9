//! What `RUN --mount` gives to commands: caches, parts of the context, agents.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use rbuild_dockerfile::{Sharing, Span};
use rbuild_image::{Digest, Hasher};
use rbuild_linux::RootDir;
use rbuild_plan::{
    AgentStep, CacheStep, CopyStep, From, MountKindStep, MountStep, RunStep, Security, SourceNames, VertexId,
};
use rbuild_sandbox::{MountRequest, Source};
use rbuild_source::{Changes, Content, Listing, Owner, SourceTree};
use rbuild_store::{Account, CacheMount, CacheUse, Files, LISTING, LentCache, Snapshots, Store, TreeId, Workspace};

use crate::agent::Agent;
use crate::copy::{CopyError, copy};
use crate::demands::missing_agent;
use crate::error::{BuildError, Result};
use crate::execute::Executor;
use crate::keys::{self, FILES, source_error};
use crate::places::Place;
use crate::track::Track;

/// A part of a context that a command mounts: a path in a tree of the store.
pub(crate) struct ContextPart {
    tree: TreeId,
    path: PathBuf,
}

/// The caches of a command, which are its own, as far as their sharing goes, until this is dropped.
pub(crate) struct HeldCaches {
    /// Each with the mounts that show it, by number.
    caches: Vec<(Vec<usize>, CacheMount)>,
    /// What the command works in where nothing can be mounted, each with the number of its cache.
    lent: Vec<(usize, LentCache)>,
}

impl HeldCaches {
    /// Has the caches keep what the command changed in what was lent, which is to be used `again` or not.
    pub(crate) fn bring_home(self, store: &Store, work: &Workspace, again: bool) -> Result<()> {
        for (cache, lent) in self.lent {
            store.return_cache(work, &self.caches[cache].1, lent, again)?;
        }
        Ok(())
    }
}

/// Rights of the command for which trees of the store are mounted.
#[derive(Clone, Copy)]
struct TreesFor {
    read_only: bool,
    insecure: bool,
}

/// Where the builder listens on behalf of agents; each in a directory of its own.
const LISTENING: &str = "/listening";

/// Of the files that a cache begins with: where they are asked for, and what they are if they come from a context.
#[derive(Clone, Copy)]
struct Seed<'a> {
    span: Span,
    content: Option<&'a Content>,
}

impl Executor<'_> {
    /// The mounts of a command, and the caches among them. `parts` are those of contexts, in order, and `taken` the content of
    /// all that the command takes from there.
    pub(crate) fn mounts(
        &self,
        run: &RunStep,
        parts: Vec<ContextPart>,
        taken: &[Content],
    ) -> Result<(Vec<MountRequest>, HeldCaches)> {
        let (steps, insecure) = (&run.mounts, run.security == Security::Insecure);
        let mut held = HeldCaches { caches: self.caches(steps, taken)?, lent: Vec::new() };
        let mut parts = parts.into_iter();
        let mut requests = Vec::new();
        for (i, mount) in steps.iter().enumerate() {
            let source = match &mount.kind {
                MountKindStep::Tmpfs { size } => Source::Tmpfs { size: *size },
                MountKindStep::Cache(step) => self.cache_source(&mut held, (i, mount.read_only), step)?,
                MountKindStep::Volume { index, .. } => {
                    Source::Machine(self.builder.path(&Place::Volume(*index).path()))
                }
                MountKindStep::Bind { from: From::Vertex(from), source } => {
                    self.stage_mount(*from, source, TreesFor { read_only: mount.read_only, insecure })?
                }
                MountKindStep::Bind { .. } => {
                    let part = parts.next().ok_or_else(|| BuildError::other("a part of the context is missing"))?;
                    self.trees_mount(&[part.tree], part.path, TreesFor { read_only: mount.read_only, insecure })?
                }
            };
            requests.push(MountRequest { target: mount.target.clone(), source, read_only: mount.read_only });
        }
        Ok((requests, held))
    }

    /// The caches of a command, each with the mounts that show it. A command has each once, for all its mounts of that cache,
    /// so that it does not wait for itself, and in the strictest way that one of them asks for. They are taken in the order of
    /// their ids, so that commands that wait for each other's cannot wait in a circle.
    fn caches(&self, steps: &[MountStep], taken: &[Content]) -> Result<Vec<(Vec<usize>, CacheMount)>> {
        let mut wanted: BTreeMap<Digest, Vec<(usize, &CacheStep, Seed<'_>)>> = BTreeMap::new();
        let mut taken = taken.iter();
        for (i, mount) in steps.iter().enumerate() {
            let content = if keys::takes_context(mount) { taken.next() } else { None };
            if let MountKindStep::Cache(step) = &mount.kind {
                let seed = Seed { span: mount.span, content };
                wanted.entry(self.cache_id(step, seed)?).or_default().push((i, step, seed));
            }
        }
        let mut caches: Vec<(Vec<usize>, CacheMount)> = Vec::new();
        for (id, mounts) in wanted {
            let (_, first, seed) = mounts[0];
            let how = mounts.iter().map(|(_, step, _)| cache_use(step)).max().unwrap_or(CacheUse::Shared);
            let cache = self.store.cache_mount(&self.work, &id, how, |dir| self.fill_cache(first, seed, dir))?;
            caches.push((mounts.iter().map(|(i, ..)| *i).collect(), cache));
        }
        Ok(caches)
    }

    /// What a mount of a cache shows: the cache itself, or what is lent of it where nothing can be mounted. What is written to one that
    /// is read-only stays there.
    fn cache_source(
        &self,
        held: &mut HeldCaches,
        (mount, read_only): (usize, bool),
        step: &CacheStep,
    ) -> Result<Source> {
        let found = held.caches.iter().position(|(mounts, _)| mounts.contains(&mount));
        let number = found.ok_or_else(|| BuildError::other("a cache mount has no cache"))?;
        let cache = &held.caches[number].1;
        // With `from`, the source was the part of it that the cache began with.
        let part = if step.from.is_some() { "/" } else { step.source.as_str() };
        if self.builder.is_bare() {
            let lent = self.store.lend_cache(&self.work, cache, Path::new(part), read_only)?;
            let dir = lent.path.clone();
            if !read_only {
                held.lent.push((number, lent));
            }
            return Ok(Source::Part { dir, path: "/".into() });
        }
        if part == "/" {
            return Ok(Source::Bind(cache.path.clone()));
        }
        let fail = BuildError::kernel(format!("{part} in the cache mount {}", step.id));
        cache.dir.create_dir_all(part, 0o755, None, |_| ()).map_err(fail)?;
        Ok(Source::BindBelow { dir: cache.path.clone(), path: PathBuf::from(part) })
    }

    /// Names a cache: one that began with other files, or for another owner or mode, is another one.
    fn cache_id(&self, step: &CacheStep, seed: Seed<'_>) -> Result<Digest> {
        let CacheStep { id, sharing: _, from, source, mode, uid, gid } = step;
        let mut hasher = Hasher::new();
        hasher.field("cache 1").field(id);
        if (*mode, *uid, *gid) != (0o755, 0, 0) {
            hasher.field("owner").field(format!("{mode:o} {uid} {gid}"));
        }
        match from {
            Some(From::Vertex(id)) => {
                hasher.field("from").field(self.done(*id).result.bytes()).field(source);
            }
            Some(From::Context | From::Named(_)) => {
                let content =
                    seed.content.ok_or_else(|| BuildError::other("the content of a cache's files is missing"))?;
                hasher.field("files").field(content.digest.bytes());
            }
            None => {}
        }
        Ok(hasher.finish())
    }

    /// What a new cache starts with: what it is named by, or the context is another one by now.
    fn fill_cache(&self, step: &CacheStep, Seed { span, content }: Seed<'_>, dir: &RootDir) -> Result<()> {
        let fail = || BuildError::kernel(format!("the cache mount {}", step.id));
        dir.set_own_meta(step.uid, step.gid, step.mode, now(self.request.now)).map_err(fail())?;
        let Some(from) = step.from else { return Ok(()) };
        let files = files_of(from, &step.source, span);
        let view;
        let tree = match from {
            From::Vertex(id) => {
                view = self.view(id)?;
                Some(SourceTree { root: &view, ignore: None, exclude: None, owner: Owner::AsIs, hashes: None })
            }
            _ => self.contexts.of(from, span)?.map(|c| c.tree()),
        };
        let mut track = Track::default();
        copy(&files, tree.as_ref(), dir, self.terms(), Some(&mut track)).map_err(|e| self.copy_error(0, &files, e))?;
        match content {
            Some(content) if content.sight != track.sight => Err(BuildError::Moved),
            _ => Ok(()),
        }
    }

    /// A part of another stage. What a command writes to it is thrown away.
    fn stage_mount(&self, from: VertexId, source: &str, access: TreesFor) -> Result<Source> {
        self.trees_mount(&self.trees(from)?, Path::new("/").join(source.trim_start_matches('/')), access)
    }

    fn trees_mount(&self, trees: &[TreeId], path: PathBuf, access: TreesFor) -> Result<Source> {
        let snapshots = self.snapshots()?;
        if snapshots == Snapshots::Overlay {
            let lowers = self.store.lower_dirs(trees);
            return Ok(Source::Trees { lowers, path });
        }
        // Where nothing can be mounted, nothing can be made read-only either; and a command that may mount makes it writable again.
        let stays = access.read_only && !access.insecure && !self.builder.is_bare();
        let files = if stays { Files::Linked } else { Files::Copied };
        let (dir, _) = snapshots.merged(self.store, &self.work, trees, files)?;
        Ok(Source::Part { dir, path })
    }

    /// The parts of contexts that a command mounts, in order, with what was `taken` from them for its key; and what is
    /// different in them since the command was last run here with the key of that account, where that is known.
    pub(crate) fn context_parts(
        &self,
        run: &RunStep,
        taken: &[Content],
        before: Option<&Account>,
    ) -> Result<(Vec<ContextPart>, Option<Changes>)> {
        let earlier: Vec<Option<Digest>> = before.map(content_digests).unwrap_or_default();
        // Another number of mounts: which was which is not known.
        let mut earlier = Some(earlier).filter(|earlier| earlier.len() == taken.len()).into_iter().flatten();
        let (mut parts, mut all) = (Vec::new(), None);
        for (mount, content) in keys::context_mounts(run).zip(taken) {
            let earlier = earlier.next().flatten();
            if mount.seeds_cache {
                continue;
            }
            let mount = (mount.span, mount.from, mount.source);
            let (part, changes) = self.context_part(mount, content, earlier)?;
            parts.push(part);
            if let Some(changes) = changes {
                all.get_or_insert_with(Changes::default).and(changes);
            }
        }
        Ok((parts, all))
    }

    /// A part of the context as a tree: filtered by the ignore file, owned by root, and still while files change. What an
    /// `earlier` one of that content has unchanged is taken from it.
    fn context_part(
        &self,
        (span, from, source): (Span, From, &str),
        content: &Content,
        earlier: Option<Digest>,
    ) -> Result<(ContextPart, Option<Changes>)> {
        let Some(context) = self.contexts.of(from, span)? else {
            return Err(BuildError::other("a mount of the context names a stage"));
        };
        let tree = context.tree();
        let item = tree.select_literal(source).map_err(|e| source_error(e, span))?;
        let is_dir = item.stat.kind == rbuild_linux::Kind::Dir;
        let path = if is_dir { PathBuf::from("/") } else { Path::new("/").join(&item.name) };
        let key = self.part_key(&content.digest);
        let part = ContextPart { tree: self.store.step_tree(&key), path };
        let _alone = self.store.lock_step(&key)?;
        let earlier = earlier.map(|earlier| self.store.record(&self.part_key(&earlier))).transpose()?.flatten();
        let mut track = earlier.map_or(Ok(Track::default()), |record| self.track(&record.tree))?;
        if self.store.record(&key)?.is_some() {
            let listing = Listing::from_bytes(&self.store.tree_note(&part.tree, LISTING)?);
            return Ok((part, track.changes_to(&listing)));
        }
        let (made, dir) = self.store.new_tree(&self.work)?;
        self.prepare_root(&[], &dir)?;
        let root = dir.sub("fs").map_err(BuildError::kernel("the context's directory"))?;
        let files = files_of(from, source, span);
        let fail = |e| self.copy_error(0, &files, e);
        track.defers = true;
        copy(&files, Some(&tree), &root, self.terms(), Some(&mut track)).map_err(fail)?;
        track.finish(tree.root, &root, &self.cancel).map_err(|reason| fail(CopyError { source: None, reason }))?;
        if content.sight != track.sight {
            return Err(BuildError::Moved);
        }
        self.store.put_note(&dir, LISTING, &track.listing.to_bytes())?;
        self.store.commit_tree(&self.work, &made, &part.tree)?;
        self.store.put_record(&key, &part.tree, &key, self.request.now, &self.request.build_id)?;
        Ok((part, track.changes()))
    }

    fn part_key(&self, content: &Digest) -> Digest {
        let mut hasher = Hasher::new();
        hasher.field("context mount 2").field(content.bytes()).field(self.request.salt.as_deref().unwrap_or_default());
        hasher.finish()
    }

    /// The agents that a command may ask, until they are dropped.
    pub(crate) fn agents<'s>(&self, steps: &'s [AgentStep]) -> Result<Vec<(Agent, &'s AgentStep)>> {
        static SERIAL: AtomicUsize = AtomicUsize::new(0);
        let mut agents = Vec::new();
        for step in steps {
            let Some(place) = self.request.agents.iter().position(|(id, _)| *id == step.id) else {
                if step.required {
                    return Err(BuildError::Unmet(vec![missing_agent(step)]));
                }
                continue;
            };
            let serial = SERIAL.fetch_add(1, Ordering::SeqCst);
            // Without a root of its own, the builder listens where it may write.
            let listening = if self.builder.is_bare() { self.work.path().join("agents") } else { LISTENING.into() };
            let dir = listening.join(serial.to_string());
            let socket = self.builder.path(&Place::Agent(place).path());
            let agent = Agent::listen(dir, &self.request.agents[place].1, &socket, step)
                .map_err(BuildError::io("listening for the ssh agent"))?;
            agents.push((agent, step));
        }
        Ok(agents)
    }
}

/// The content of the parts of contexts that a command with that account mounted, in order.
fn content_digests(account: &Account) -> Vec<Option<Digest>> {
    let contents = account.parts.iter().filter(|(name, _)| name == FILES);
    contents.map(|(_, hex)| format!("sha256:{hex}").parse().ok()).collect()
}

fn now(seconds: i64) -> rbuild_linux::Timestamp {
    rbuild_linux::Timestamp { sec: seconds, nsec: 0 }
}

fn cache_use(step: &CacheStep) -> CacheUse {
    match step.sharing {
        Sharing::Shared => CacheUse::Shared,
        Sharing::Private => CacheUse::Private,
        Sharing::Locked => CacheUse::Locked,
    }
}

/// The copy of one source to the root.
fn files_of(from: From, source: &str, span: Span) -> CopyStep {
    CopyStep {
        from,
        sources: vec![source.to_string()],
        names: SourceNames::Literal,
        source_spans: vec![span],
        dest: "/".into(),
        dest_is_dir: true,
        ..CopyStep::default()
    }
}
