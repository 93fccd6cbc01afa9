//! Partial unpacking: extracts a few paths of an image by reading its layers, without unpacking the
//! rest.

use std::collections::{BTreeSet, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rbuild_image::{Descriptor, DiffId, Hasher};
use rbuild_layer::{EntryKind, TarEntry};
use rbuild_linux::RootDir;
use rbuild_linux::parallel::{cores, try_map};

use crate::error::Result;
use crate::ids::CacheKey;
use crate::images::Image;
use crate::incoming_blobs::retry_restarted;
use crate::index_entries::digest;
use crate::once::{Lock, Once};
use crate::session::Session;
use crate::trees::copies::{MergedFiles, MergedWhiteouts, merge};
use crate::trees::id::TreeId;
use crate::trees::tree::LayerDigests;
use crate::trees::union::ImageTrees;
use crate::workspace::Workspace;

/// Maximum number of passes. Links may lead to further paths, each requiring another pass; beyond
/// this, unpacking the whole image is cheaper.
const MAX_PASSES: usize = 4;

impl ImageTrees<'_> {
    /// Returns a tree that contains the given paths (relative, normalized) as the image shows them,
    /// creating it once. Returns `None` if partial unpacking is not worthwhile or not possible: the
    /// image is unpacked already, or a path does not exist or requires too many passes.
    ///
    /// # Errors
    ///
    /// Fails if a layer cannot be read or unpacked, or if the build is canceled.
    #[tracing::instrument(target = "store", name = "partial", level = "debug", skip_all)]
    pub fn image_parts(
        &self,
        session: Session<'_>,
        image: &Image,
        wanted: &BTreeSet<PathBuf>,
    ) -> Result<Option<TreeId>> {
        let key = key(image, wanted, self.store.takes_devices());
        let find = || Ok(session.recorded(&key)?.map(Some));
        let make = || {
            let path = if self.is_unpacked(image)? { None } else { self.make_parts(session.work, image, wanted)? };
            path.map(|path| session.publish(&path, &key)).transpose()
        };
        self.store.once(Lock::ImageParts(key), find, make).map(Once::into_inner)
    }

    fn is_unpacked(&self, image: &Image) -> Result<bool> {
        for (_, diff_id) in image.layers()? {
            if self.store.trees().layer_tree(&diff_id)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes the tree, and returns its path; `None` if a path does not exist or requires too many
    /// passes.
    fn make_parts(&self, work: &Workspace, image: &Image, wanted: &BTreeSet<PathBuf>) -> Result<Option<PathBuf>> {
        let mut all = wanted.clone();
        for _ in 0..MAX_PASSES {
            let made = self.store.trees().new_tree(work)?;
            let fs = made.dir.sub("fs")?;
            let Some(mut further) = self.read_parts(work, image, &all, &fs)? else { return Ok(None) };
            // A path may be a hard link whose target is extracted in the next pass.
            let complete = further.is_subset(&all);
            for path in wanted {
                let Ok(real) = fs.resolve(path) else { return Ok(None) };
                let real = real.strip_prefix("/").unwrap_or(&real).to_path_buf();
                if complete && all.contains(&real) && !fs.exists(&real)? {
                    return Ok(None);
                }
                further.insert(real);
            }
            let before = all.len();
            all.extend(further);
            if all.len() == before {
                return Ok(Some(made.path));
            }
        }
        Ok(None)
    }

    /// Extracts the paths from all layers, several in parallel. Returns further paths that hard
    /// links lead to. Returns `None` if a layer refers to lower layers, or has entries below one of
    /// its own symbolic links: their location then depends on the complete file system.
    fn read_parts(
        &self,
        work: &Workspace,
        image: &Image,
        wanted: &BTreeSet<PathBuf>,
        fs: &RootDir,
    ) -> Result<Option<BTreeSet<PathBuf>>> {
        let layers = image.layers()?;
        let read = |(layer, diff_id): &(Descriptor, DiffId)| {
            retry_restarted(|| self.read_layer_parts(work, layer, diff_id, wanted))
        };
        let read = try_map(cores(), &layers, read)?;
        if read.iter().any(|parts| parts.crosses_link) || read.iter().skip(1).any(|parts| parts.has_lower_refs) {
            return Ok(None);
        }
        let open = read.iter().map(|parts| parts.dir.try_clone()).collect::<std::result::Result<Vec<_>, _>>()?;
        merge(&open, fs, MergedFiles::Linked, MergedWhiteouts::Applied)?;
        // Remove the extra hard links, so that link counts are those of the image.
        for parts in &read {
            work.dir().remove_all(parts.path.file_name().unwrap_or_default())?;
        }
        Ok(Some(read.into_iter().flat_map(|parts| parts.further).collect()))
    }

    fn read_layer_parts(
        &self,
        work: &Workspace,
        layer: &Descriptor,
        diff_id: &DiffId,
        wanted: &BTreeSet<PathBuf>,
    ) -> Result<LayerParts> {
        let (path, dir) = work.new_dir()?;
        let mut further = BTreeSet::new();
        let (mut dirs, mut has_lower_refs) = (HashSet::new(), false);
        let (mut passed, mut links) = (HashSet::new(), HashSet::new());
        let mut wants = |entry: &TarEntry| {
            // Unselected entries are checked as well, because their paths may resolve differently
            // above other layers.
            let path = rbuild_paths::inside(&entry.path).unwrap_or_default();
            has_lower_refs |= path.parent().is_some_and(|dir| !dir.as_os_str().is_empty() && !dirs.contains(dir));
            let linked = (entry.kind == EntryKind::HardLink).then(|| rbuild_paths::inside(&entry.link)).flatten();
            for parent in [Some(&path), linked.as_ref()].into_iter().flatten().filter_map(|path| path.parent()) {
                if !passed.contains(parent) {
                    passed.extend(parent.ancestors().map(Path::to_path_buf));
                }
            }
            match entry.kind {
                EntryKind::Dir => drop(dirs.insert(path)),
                EntryKind::Symlink => drop(links.insert(path)),
                _ => {}
            }
            match linked {
                Some(target) if is_wanted(entry, wanted) && !overlaps(&target, wanted) => {
                    further.insert(target);
                    false
                }
                _ => is_wanted(entry, wanted),
            }
        };
        let digests = LayerDigests { blob: digest(layer)?, diff_id: *diff_id };
        let got = self.store.trees().unpack_some_verified(&digests, &dir, &mut wants)?;
        has_lower_refs |= !got.lower_refs.is_empty();
        let crosses_link = !links.is_disjoint(&passed);
        Ok(LayerParts { path, dir, further, has_lower_refs, crosses_link })
    }
}

/// The selected content of one layer.
struct LayerParts {
    path: PathBuf,
    dir: RootDir,
    /// Further paths that hard links lead to.
    further: BTreeSet<PathBuf>,
    /// True if an entry has a parent directory without an entry of its own, or is a hard link to a
    /// file outside the layer.
    has_lower_refs: bool,
    /// True if the path of an entry contains a symbolic link of the layer itself.
    crosses_link: bool,
}

fn key(image: &Image, wanted: &BTreeSet<PathBuf>, takes_devices: bool) -> CacheKey {
    let mut hasher = Hasher::new();
    if takes_devices {
        hasher.field("devices");
    }
    hasher.field("parts 3").field(image.manifest_digest.bytes());
    for path in wanted {
        hasher.field(path.as_os_str().as_bytes());
    }
    hasher.finish()
}

/// Returns true if an entry affects one of the paths, or a path below or above one.
fn is_wanted(entry: &TarEntry, wanted: &BTreeSet<PathBuf>) -> bool {
    // Paths outside the root are rejected during unpacking.
    entry.subject().is_none_or(|path| overlaps(&path, wanted))
}

fn overlaps(path: &Path, wanted: &BTreeSet<PathBuf>) -> bool {
    wanted.iter().any(|wanted| path.starts_with(wanted) || wanted.starts_with(path))
}
