//! Root file systems of vertices: the trees of a vertex and its parents, stacked or merged.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock};

use rbuild_linux::parallel::locked;
use rbuild_linux::{RootDir, Timestamp, UidGid};
use rbuild_plan::{BuildGraph, Step, VertexId};
use rbuild_sandbox::Builder;
use rbuild_store::{Image, MergedTree, NewTree, Session, SnapshotBackend, Store, TreeId, WorkingTree, Workspace};

use crate::error::{BuildError, Result};
use crate::error_context::ErrorContext;
use crate::request::BuildRequest;
use crate::results::Results;

/// The trees of a graph's vertices, and the working directory of the build.
pub(crate) struct Rootfs<'a> {
    request: &'a BuildRequest,
    graph: &'a BuildGraph,
    store: &'a Store,
    builder: &'a Builder,
    results: Arc<Results>,
    pub work: Workspace,
    snapshots: OnceLock<SnapshotBackend>,
    /// Trees of image vertices, lowest first, once unpacked.
    unpacked: Vec<OnceLock<Vec<TreeId>>>,
    /// Trees of steps with files that are known to be on disk.
    materialized: Mutex<HashSet<TreeId>>,
    /// For each tree of a step, the trees of which it consists. Their files are known to be on
    /// disk.
    stacked: Mutex<HashMap<TreeId, Arc<StepTrees>>>,
}

/// The stacked trees of which a step's tree consists, lowest first.
struct StepTrees {
    trees: Vec<TreeId>,
    /// True if they neither contain nor hide a file.
    are_empty: bool,
}

impl<'a> Rootfs<'a> {
    /// Opens the working directory of a build.
    pub fn new(
        request: &'a BuildRequest,
        graph: &'a BuildGraph,
        store: &'a Store,
        builder: &'a Builder,
        results: Arc<Results>,
    ) -> Result<Rootfs<'a>> {
        Ok(Rootfs {
            request,
            graph,
            store,
            builder,
            results,
            work: Workspace::open(store)?,
            snapshots: if request.copies { SnapshotBackend::Copies.into() } else { OnceLock::new() },
            unpacked: graph.vertices.iter().map(|_| OnceLock::new()).collect(),
            materialized: Mutex::default(),
            stacked: Mutex::default(),
        })
    }

    /// Returns the build's session with the store.
    pub fn session(&self) -> Session<'_> {
        Session::new(self.store, &self.work, &self.request.build_id, self.request.now)
    }

    /// Unpacks the image of a vertex, or only the paths in `wanted`, if these are given and that is
    /// possible. Returns the number of layers that this call unpacked. `moved` counts the bytes of
    /// the layers.
    pub fn unpack(
        &self,
        id: VertexId,
        image: &Image,
        wanted: Option<&BTreeSet<PathBuf>>,
        moved: &AtomicU64,
    ) -> Result<usize> {
        let part = match wanted {
            Some(wanted) => self.store.image_trees().image_parts(self.session(), image, wanted)?,
            None => None,
        };
        let (trees, unpacked) = match part {
            Some(tree) => (vec![tree], 0),
            None => self.store.trees().unpack_image(self.session().counting(moved), image)?,
        };
        let _ = self.unpacked[id].set(trees);
        Ok(unpacked)
    }

    /// Returns the tree of a finished step.
    pub fn own_tree(&self, id: VertexId) -> Result<&TreeId> {
        let tree = self.results.done(id).tree.as_ref();
        tree.ok_or_else(|| BuildError::other("the files of a step are used that were not needed at the start"))
    }

    /// Returns the files of a step's tree, unpacking them if only a layer is stored.
    pub fn files_of(&self, tree: &TreeId) -> Result<RootDir> {
        self.materialize(tree)?;
        Ok(self.store.trees().tree(tree)?)
    }

    fn materialize(&self, tree: &TreeId) -> Result<()> {
        if !locked(&self.materialized).contains(tree) {
            self.store.lazy_trees().materialize(&self.work, tree)?;
            locked(&self.materialized).insert(tree.clone());
        }
        Ok(())
    }

    /// Returns the trees of which a step's tree consists, with their files on disk.
    fn stacked(&self, id: VertexId) -> Result<Arc<StepTrees>> {
        let tree = self.own_tree(id)?;
        if let Some(known) = locked(&self.stacked).get(tree) {
            return Ok(known.clone());
        }
        if self.store.lazy_trees().lacks_root(tree)? {
            let (owner, mode) = self.root_over(&self.trees_below(id)?)?;
            self.store.lazy_trees().set_root(tree, owner, mode)?;
        }
        let trees = self.store.changed_trees().stacked(&self.work, tree)?;
        let are_empty = matches!(&trees[..], [tree] if self.store.trees().is_empty(tree)?);
        let found = Arc::new(StepTrees { trees, are_empty });
        locked(&self.stacked).insert(tree.clone(), found.clone());
        Ok(found)
    }

    /// Returns the trees of a vertex and its parents, lowest first, with their files on disk. Many
    /// commands write nothing; their empty trees are omitted, because the kernel needs time for
    /// each tree of an overlay. The topmost tree has the metadata of the root directory and is
    /// never omitted.
    pub fn trees(&self, id: VertexId) -> Result<Vec<TreeId>> {
        let mut own = Vec::new();
        for id in self.graph.chain(id) {
            match &self.graph.vertices[id].step {
                Step::Image { .. } => {
                    let base = self.unpacked[id].get();
                    let base = base.ok_or_else(|| BuildError::other("an image is used before it is unpacked"))?;
                    own.extend(base.iter().rev().cloned());
                }
                Step::Scratch => {}
                Step::Run(_) | Step::Copy(_) | Step::Workdir(_) => {
                    let stacked = self.stacked(id)?;
                    if own.is_empty() || !stacked.are_empty {
                        own.extend(stacked.trees.iter().rev().cloned());
                    }
                }
            }
        }
        own.reverse();
        Ok(own)
    }

    /// Returns the trees below that of a vertex. A linked copy has none: it does not read its
    /// parent.
    pub fn trees_below(&self, id: VertexId) -> Result<Vec<TreeId>> {
        let vertex = &self.graph.vertices[id];
        let linked = matches!(&vertex.step, Step::Copy(step) if step.link);
        vertex.parent.filter(|_| !linked).map_or(Ok(Vec::new()), |parent| self.trees(parent))
    }

    /// Returns the method of stacking trees, probed on first use.
    pub fn snapshots(&self) -> Result<SnapshotBackend> {
        if let Some(known) = self.snapshots.get() {
            return Ok(*known);
        }
        let found = snapshots(self.builder, &self.work)?;
        Ok(*self.snapshots.get_or_init(|| found))
    }

    /// Returns a read-only view of the complete root file system of a vertex.
    pub fn view(&self, id: VertexId) -> Result<RootDir> {
        Ok(self.snapshots()?.view(self.store, &self.work, &self.trees(id)?)?)
    }

    /// Returns the complete root file system of a vertex, read in place if that is possible.
    pub fn merged(&self, id: VertexId) -> Result<MergedTree> {
        let trees = self.trees(id)?;
        match MergedTree::of_trees(self.store, &trees)? {
            Some(merged) => Ok(merged),
            None => Ok(self.snapshots()?.view(self.store, &self.work, &trees)?.into()),
        }
    }

    /// Creates the tree for a vertex; returns its directory, which contains `fs`.
    pub fn new_tree(&self, id: VertexId) -> Result<NewTree> {
        self.new_tree_over(&self.trees_below(id)?)
    }

    /// Returns the owner and the mode of the root directory of a tree above these.
    fn root_over(&self, trees: &[TreeId]) -> Result<(UidGid, u32)> {
        let Some(top) = trees.last() else { return Ok((UidGid::ROOT, 0o755)) };
        let stat = self.store.trees().tree(top)?.stat_self();
        let stat = stat.map_err(BuildError::kernel(ErrorContext::StepDirectory))?;
        Ok((stat.owner(), stat.mode))
    }

    /// Creates a tree to be stacked on others. Its root has the owner and mode of the root that it
    /// covers.
    pub fn new_tree_over(&self, trees: &[TreeId]) -> Result<NewTree> {
        let made = self.store.trees().new_tree(&self.work)?;
        let fail = || BuildError::kernel(ErrorContext::StepDirectory);
        let fs = made.dir.sub("fs").map_err(fail())?;
        let (owner, mode) = self.root_over(trees)?;
        fs.set_own_meta(owner, mode, Timestamp { sec: self.request.now, nsec: 0 }).map_err(fail())?;
        Ok(made)
    }

    /// Returns a step's root file system for writing: the trees below it with its own tree, in the
    /// directory `path`, on top.
    pub fn writable(&self, trees: &[TreeId], path: &Path) -> Result<WorkingTree> {
        Ok(self.snapshots()?.working(self.store, &self.work, trees, &path.join("fs"))?)
    }

    /// Removes a directory of the working directory in the background.
    pub fn remove_later(&self, path: &Path) {
        path.file_name().into_iter().for_each(|name| self.work.remove_later(name));
    }

    /// Removes a directory of the working directory. Errors are ignored: it is removed with the
    /// working directory at the latest.
    pub fn remove(&self, path: &Path) {
        if let Some(name) = path.file_name() {
            let _ = self.work.dir().remove_all(name);
        }
    }
}

/// Returns the method by which the builder stacks trees of its store.
pub fn snapshots(builder: &Builder, work: &Workspace) -> Result<SnapshotBackend> {
    Ok(if builder.is_bare() { SnapshotBackend::Copies } else { SnapshotBackend::probe(work)? })
}
