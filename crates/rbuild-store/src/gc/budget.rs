//! Garbage collection: keeps the build cache within a budget, and evicts entries that have not been
//! used for a long time.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;

use rbuild_image::BlobDigest;
use rbuild_linux::{FileKind, RootDir, Timestamp, write_atomic};

use crate::cache::records::Record;
use crate::downloads;
use crate::error::Result;
use crate::exclusive_lock::ExclusiveLock;
use crate::gc::freed::Freed;
use crate::gc::measure::{each_below, tree_bytes};
use crate::gc::prune::Gc;
use crate::gc::trash::{Discarded, Trash};
use crate::modes;
use crate::partial_blobs;
use crate::trees::id::TreeId;
use crate::trees::tree::{INODES, LISTING};

/// Limits on the build cache. Only entries to which all limits apply are evicted; without limits,
/// none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Budget<'a> {
    /// Size in bytes of trees, their packed layers, downloaded files, interrupted downloads and
    /// cache mounts, down to which the least recently used entries are evicted; `None` for no limit
    /// to what is evicted.
    pub bytes: Option<u64>,
    /// Time in seconds since the Unix epoch. Entries used later stay.
    pub used_since: Option<i64>,
    /// Name of a cache. Entries that were not imported from it stay.
    pub origin: Option<&'a str>,
}

/// A part of the cache that is evicted as a whole.
struct Evictable {
    dir: &'static str,
    name: String,
    last_use: i64,
    bytes: u64,
    /// Documents that refer to it.
    documents: Vec<(&'static str, String)>,
    /// Name of the cache that it was imported from.
    origin: Option<String>,
}

impl Evictable {
    fn tree(name: &str, last_use: i64) -> Evictable {
        Evictable { dir: "trees", name: name.to_string(), last_use, bytes: 0, documents: Vec::new(), origin: None }
    }
}

/// Minimum interval between two recorded uses of an entry, in seconds.
const MIN_USE_INTERVAL: i64 = 3600;

impl Gc<'_> {
    /// Evicts the least recently used entries until the cache is within the budget. Named images
    /// and their content are kept. Does nothing while another process uses the store; the last
    /// process cleans up.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read or an entry cannot be removed.
    #[tracing::instrument(target = "store", name = "collect", level = "debug", skip_all)]
    pub fn collect(&self, budget: Budget<'_>) -> Result<Freed> {
        let mut trash = Trash::new(self.store);
        if let Some(alone) = ExclusiveLock::try_take(self.store)? {
            self.evict(budget, &mut trash)?;
            alone.end()?;
        }
        trash.empty()
    }

    /// Evicts entries as [`Gc::collect`] does, at the request of a user.
    ///
    /// # Errors
    ///
    /// Fails with [`crate::StoreError::Busy`] while another process uses the store, or if an entry
    /// cannot be removed.
    #[tracing::instrument(target = "store", name = "prune", level = "debug", skip_all)]
    pub fn prune_within(&self, budget: Budget<'_>) -> Result<Freed> {
        let mut trash = Trash::new(self.store);
        let alone = ExclusiveLock::take(self.store)?;
        self.evict(budget, &mut trash)?;
        alone.end()?;
        trash.empty()
    }

    /// Returns true if the cache may exceed `most` bytes. Adds up recorded sizes only, because the
    /// caller may lack permission to read some trees: returns true if the size of a tree has not
    /// been recorded yet, or if there are cache mounts, whose sizes change. Files that
    /// trees share count for each of them.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn may_exceed(&self, most: u64) -> Result<bool> {
        if !self.store.dir("mounts")?.entries()?.is_empty() {
            return Ok(true);
        }
        let downloaded: u64 =
            self.downloaded_items()?.iter().chain(&self.partial_items()?).map(|item| item.bytes).sum();
        let Some(mut left) = most.checked_sub(downloaded) else { return Ok(true) };
        for entry in self.store.dir("trees")?.entries()? {
            let name = entry.name.to_string_lossy();
            let Some(bytes) = self.recorded_size(&format!("trees/{name}")) else { return Ok(true) };
            match left.checked_sub(bytes + self.packed_bytes(&name)?) {
                Some(rest) => left = rest,
                None => return Ok(true),
            }
        }
        Ok(false)
    }

    /// Returns the disk usage of all trees except those of containers, in bytes. Files that trees
    /// share count once. Trees are walked only if their sizes have not been recorded yet.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub(crate) fn bytes_of_unused_trees(&self) -> Result<u64> {
        let pinned = self.store.containers().pinned_trees()?;
        let mut items = Vec::new();
        for entry in self.store.dir("trees")?.entries()? {
            let name = entry.name.to_string_lossy();
            if !pinned.contains(&*name) {
                items.push(Evictable { bytes: self.tree_size(&name)?, ..Evictable::tree(&name, i64::MIN) });
            }
        }
        self.count_once(&mut items)?;
        Ok(items.iter().map(|item| item.bytes).sum())
    }

    /// Evicts entries. Those that this process may not remove stay, with their documents. The
    /// caller holds the exclusive lock.
    fn evict(&self, budget: Budget<'_>, trash: &mut Trash<'_>) -> Result<()> {
        if budget == Budget::default() {
            return Ok(());
        }
        let pinned = self.store.containers().pinned_trees()?;
        let mut items = self.items()?;
        items.retain(|item| item.dir != "trees" || !pinned.contains(&item.name));
        items.sort_by(|a, b| (a.last_use, &a.name).cmp(&(b.last_use, &b.name)));
        let sum = |items: &[Evictable]| items.iter().map(|i| i.bytes).sum::<u64>();
        if budget.bytes.is_some_and(|most| sum(&items) > most) {
            self.count_once(&mut items)?;
        }
        let mut left = sum(&items);
        let mut has_unused_blobs = false;
        for item in items {
            let is_old = budget.used_since.is_none_or(|since| item.last_use < since);
            let is_of_origin = budget.origin.is_none_or(|origin| item.origin.as_deref() == Some(origin));
            let is_over = budget.bytes.is_none_or(|most| left > most);
            if !is_old || !is_of_origin || !is_over {
                continue;
            }
            // An entry that cannot be evicted must not force out newer ones.
            left -= item.bytes;
            // An image may use the same blob as a download, so it is removed and counted with all
            // unused blobs.
            let is_download = item.dir == downloads::DIR;
            let name = OsStr::new(&item.name);
            if !is_download && !self.store.dir(item.dir)?.is_removable(name)? {
                trash.freed.unremovable += 1;
                continue;
            }
            // Remove documents first, so that after a crash none refers to a missing entry.
            for (dir, document) in &item.documents {
                trash.freed.records += 1;
                self.store.dir(dir)?.remove_all(OsStr::new(document))?;
            }
            let reason = match (budget.origin, budget.used_since) {
                (Some(_), _) => "imported",
                (None, Some(_)) => "not used for too long",
                (None, None) => "the cache is over its limit",
            };
            has_unused_blobs |= is_download || item.dir == "trees";
            if !is_download {
                trash.discard(Discarded { dir: item.dir, name, bytes: Some(item.bytes), reason })?;
            }
        }
        if trash.freed.records > 0 {
            self.prune_key_inputs()?;
        }
        if has_unused_blobs {
            self.remove_unused_blobs(trash)?;
        }
        Ok(())
    }

    fn items(&self) -> Result<Vec<Evictable>> {
        let mut trees: HashMap<String, Evictable> = HashMap::new();
        let records = self.store.dir("records")?;
        for entry in self.store.documents("records")? {
            let file = entry.name.to_string_lossy().into_owned();
            let Ok(Some(record)) = self.store.read_if_any::<Record>(&format!("records/{file}")) else { continue };
            name_tree(&mut trees, record.tree.name(), last_use(&records, &entry.name)?, ("records", file));
            if let (Some(item), Some(origin)) = (trees.get_mut(record.tree.name()), record.origin) {
                item.origin = Some(origin.cache);
            }
        }
        let layers = self.store.dir("layers")?;
        for entry in self.store.documents("layers")? {
            let file = entry.name.to_string_lossy().into_owned();
            if let Some(tree) = self.store.trees().tree_of_document(&file)? {
                name_tree(&mut trees, tree.name(), last_use(&layers, &entry.name)?, ("layers", file.clone()));
            }
        }
        self.keep_bases(&mut trees)?;
        // Nothing refers to trees of executions that were repeated, so they are evicted first.
        for entry in self.store.dir("trees")?.entries()? {
            trees
                .entry(entry.name.to_string_lossy().into_owned())
                .or_insert_with_key(|name| Evictable::tree(name, i64::MIN));
        }
        let mut items = Vec::new();
        for (_, mut tree) in trees {
            tree.bytes = self.tree_size(&tree.name)? + self.packed_bytes(&tree.name)?;
            items.push(tree);
        }
        items.extend(self.downloaded_items()?);
        items.extend(self.partial_items()?);
        items.extend(self.mount_items()?);
        Ok(items)
    }

    fn mount_items(&self) -> Result<Vec<Evictable>> {
        let mounts = self.store.dir("mounts")?;
        let mut items = Vec::new();
        for entry in mounts.entries()? {
            let name = entry.name.to_string_lossy().into_owned();
            let bytes = mounts.sub(&entry.name).map_or(0, |dir| tree_bytes(&dir));
            let last_use = last_use(&mounts, &entry.name)?;
            let origin = self.store.cache_mounts().origin(&name)?;
            items.push(Evictable { dir: "mounts", name, last_use, bytes, documents: Vec::new(), origin });
        }
        Ok(items)
    }

    /// Returns the names of the caches from which entries of the store were imported.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be read.
    pub fn origins(&self) -> Result<BTreeSet<String>> {
        let mut origins = BTreeSet::new();
        for entry in self.store.documents("records")? {
            let path = format!("records/{}", entry.name.to_string_lossy());
            if let Ok(Some(Record { origin: Some(origin), .. })) = self.store.read_if_any(&path) {
                origins.insert(origin.cache);
            }
        }
        for entry in self.store.dir("mounts")?.entries()? {
            origins.extend(self.store.cache_mounts().origin(&entry.name.to_string_lossy())?);
        }
        Ok(origins)
    }

    /// Returns the blobs whose download was interrupted.
    fn partial_items(&self) -> Result<Vec<Evictable>> {
        if !self.store.root.exists(partial_blobs::DIR)? {
            return Ok(Vec::new());
        }
        let dir = self.store.dir(partial_blobs::DIR)?;
        let mut items = Vec::new();
        for entry in dir.entries()? {
            let stat = match dir.stat_name(&entry.name) {
                // A download has just ended.
                Err(e) if e.is_not_found() => continue,
                other => other?,
            };
            let name = entry.name.to_string_lossy().into_owned();
            let (last_use, bytes) = (stat.mtime.sec, stat.blocks * 512);
            items.push(Evictable {
                dir: partial_blobs::DIR,
                name,
                last_use,
                bytes,
                documents: Vec::new(),
                origin: None,
            });
        }
        Ok(items)
    }

    /// Returns the downloaded files, each with all of its notes.
    fn downloaded_items(&self) -> Result<Vec<Evictable>> {
        let mut items: HashMap<BlobDigest, Evictable> = HashMap::new();
        for (file, download) in self.store.downloads().notes()? {
            let used = last_use(&self.store.dir(downloads::DIR)?, &file)?;
            let item = items.entry(download.digest).or_insert_with_key(|digest| Evictable {
                dir: downloads::DIR,
                name: digest.hex(),
                last_use: used,
                bytes: download.size,
                documents: Vec::new(),
                origin: None,
            });
            item.last_use = item.last_use.max(used);
            item.documents.push((downloads::DIR, file.to_string_lossy().into_owned()));
        }
        Ok(items.into_values().collect())
    }

    /// Attributes files shared by several trees only to the tree evicted last, because only then
    /// their space is freed. The items are in order of eviction.
    fn count_once(&self, items: &mut [Evictable]) -> Result<()> {
        let mut seen = HashSet::new();
        for item in items.iter_mut().rev().filter(|item| item.dir == "trees") {
            for (inode, bytes) in self.linkable_files(&item.name)? {
                if !seen.insert(inode) {
                    item.bytes = item.bytes.saturating_sub(bytes);
                }
            }
        }
        Ok(())
    }

    /// Returns inodes and disk usage of the files of a tree that other trees may share. Computed
    /// once and stored next to the tree. Only copies have such files, as they are made by linking.
    fn linkable_files(&self, name: &str) -> Result<Vec<(u64, u64)>> {
        if !self.store.root.exists(format!("trees/{name}/{LISTING}"))? {
            return Ok(Vec::new());
        }
        let known = self.store.trees().tree_note(&TreeId::of_dir(name), INODES)?;
        if !known.is_empty() {
            let number = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
            return Ok(known.chunks_exact(16).map(|c| (number(&c[..8]), number(&c[8..]))).collect());
        }
        let dir = self.store.dir(format!("trees/{name}"))?;
        let mut files = Vec::new();
        each_below(&dir, &mut |stat| {
            if stat.kind == FileKind::File {
                files.push((stat.ino, stat.blocks * 512));
            }
        });
        // Hard links within the tree count once.
        files.sort_unstable();
        files.dedup();
        let bytes: Vec<u8> =
            files.iter().flat_map(|(inode, bytes)| [inode.to_le_bytes(), bytes.to_le_bytes()]).flatten().collect();
        write_atomic(&dir, OsStr::new(INODES), &bytes, modes::file())?;
        Ok(files)
    }

    /// Ensures that the base of a tree that is stored as changes is evicted after that tree, and
    /// together with the documents of the tree.
    fn keep_bases(&self, trees: &mut HashMap<String, Evictable>) -> Result<()> {
        let mut bases = Vec::new();
        for (name, item) in trees.iter() {
            if let Some(note) = self.store.changed_trees().changes_note(&TreeId::of_dir(name))? {
                bases.push((note.base, item.last_use, item.documents.clone()));
            }
        }
        for (base, last_use, documents) in bases {
            let base = base.name();
            let item = trees.entry(base.to_string()).or_insert_with_key(|name| Evictable::tree(name, last_use));
            // If both were used at the same time, the base is evicted last.
            item.last_use = item.last_use.max(last_use.saturating_add(1));
            item.documents.extend(documents);
        }
        Ok(())
    }

    /// Returns the disk usage of a finished tree in bytes. Computed once and stored next to it.
    fn tree_size(&self, name: &str) -> Result<u64> {
        let place = format!("trees/{name}");
        if let Some(bytes) = self.recorded_size(&place) {
            return Ok(bytes);
        }
        let Ok(tree) = self.store.root.sub(&place) else { return Ok(0) };
        let bytes = tree_bytes(&tree);
        self.store.write(&place, "bytes.json", &bytes)?;
        Ok(bytes)
    }

    /// Returns the recorded disk usage of a tree.
    fn recorded_size(&self, place: &str) -> Option<u64> {
        self.store.read_if_any(&format!("{place}/bytes.json")).ok().flatten()
    }

    fn packed_bytes(&self, name: &str) -> Result<u64> {
        let Ok(blobs) = self.store.layers().packed_blobs(OsStr::new(name)) else { return Ok(0) };
        Ok(blobs.iter().map(|blob| self.store.blobs().blob_size(blob).unwrap_or(0)).sum())
    }

    /// Records that a document or a cache mount is used now.
    pub(crate) fn note_use(&self, dir: &str, name: &str) -> Result<()> {
        let dir = self.store.dir(dir)?;
        let now = Timestamp::now().sec;
        if now - last_use(&dir, OsStr::new(name))? > MIN_USE_INTERVAL {
            // A read-only store remains usable.
            let _ = dir.set_mtime(OsStr::new(name), Timestamp { sec: now, nsec: 0 });
        }
        Ok(())
    }
}

/// Adds a document that refers to a tree, and its last use.
fn name_tree(trees: &mut HashMap<String, Evictable>, name: &str, last_use: i64, document: (&'static str, String)) {
    let item = trees.entry(name.to_string()).or_insert_with_key(|name| Evictable::tree(name, last_use));
    item.last_use = item.last_use.max(last_use);
    item.documents.push(document);
}

fn last_use(dir: &RootDir, name: &OsStr) -> Result<i64> {
    Ok(dir.stat_name(name)?.mtime.sec)
}
