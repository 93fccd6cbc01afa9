//! A few paths of an image, for who wants no more of it: its layers are read, and the rest is not written anywhere.

use std::collections::{BTreeSet, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rbuild_image::{Descriptor, Digest, Hasher};
use rbuild_layer::{EntryKind, TarEntry, entry_path};
use rbuild_linux::RootDir;

use crate::copies::{Files, Marks, merge};
use crate::error::Result;
use crate::images::{Image, digest};
use crate::layout::Store;
use crate::side_by_side::side_by_side;
use crate::trees::TreeId;
use crate::workspace::Workspace;

/// Links may lead to further paths, which take another reading; after so many the whole image is the better way.
const READINGS: usize = 4;

impl Store {
    /// A tree that shows these paths (relative, clean) as the image has them, made once. `None` if it is not worth it, or not
    /// possible: the image is unpacked already, or a path is not there, or leads too far.
    #[tracing::instrument(target = "store", name = "partial", level = "debug", skip_all)]
    pub fn image_parts(
        &self,
        work: &Workspace,
        image: &Image,
        wanted: &BTreeSet<PathBuf>,
        now: i64,
        build: &str,
    ) -> Result<Option<TreeId>> {
        let key = key(image, wanted);
        if let Some(record) = self.record(&key)? {
            return Ok(Some(record.tree));
        }
        let mut missing = false;
        for (_, diff_id) in image.layers()? {
            missing |= self.layer_tree(&diff_id)?.is_none();
        }
        if !missing {
            return Ok(None);
        }
        let _alone = self.lock_step(&key)?;
        if let Some(record) = self.record(&key)? {
            return Ok(Some(record.tree));
        }
        let mut all = wanted.clone();
        for _ in 0..READINGS {
            let (path, made) = self.new_tree(work)?;
            let fs = made.sub("fs")?;
            let Some(mut further) = self.read_parts(work, image, &all, &fs)? else { return Ok(None) };
            // A path may be a hard link to what the next reading brings.
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
                let tree = self.step_tree(&key);
                self.commit_tree(work, &path, &tree)?;
                self.put_record(&key, &tree, &key, now, build)?;
                return Ok(Some(tree));
            }
        }
        Ok(None)
    }

    /// Reads all layers for these paths, several side by side; gives what hard links lead to besides. `None` if a layer leans
    /// on those below it, or puts something behind a link of its own: what it means shows only when all of it is there.
    fn read_parts(
        &self,
        work: &Workspace,
        image: &Image,
        wanted: &BTreeSet<PathBuf>,
        fs: &RootDir,
    ) -> Result<Option<BTreeSet<PathBuf>>> {
        let layers = image.layers()?;
        let read = |(layer, diff_id): &(Descriptor, Digest)| self.read_layer_parts(work, layer, diff_id, wanted);
        let read = side_by_side(&layers, read)?;
        if read.iter().any(|parts| parts.behind_link) || read.iter().skip(1).any(|parts| parts.leans) {
            return Ok(None);
        }
        let open = read.iter().map(|parts| parts.dir.try_clone()).collect::<std::result::Result<Vec<_>, _>>()?;
        merge(&open, fs, Files::Linked, Marks::Done)?;
        // Files have one name again, as in the image.
        for parts in &read {
            work.dir().remove_all(parts.path.file_name().unwrap_or_default())?;
        }
        Ok(Some(read.into_iter().flat_map(|parts| parts.further).collect()))
    }

    fn read_layer_parts(
        &self,
        work: &Workspace,
        layer: &Descriptor,
        diff_id: &Digest,
        wanted: &BTreeSet<PathBuf>,
    ) -> Result<LayerParts> {
        let (path, dir) = work.new_dir()?;
        let mut further = BTreeSet::new();
        let (mut dirs, mut leans) = (HashSet::new(), false);
        let (mut passed, mut links) = (HashSet::new(), HashSet::new());
        let mut wants = |entry: &TarEntry| {
            // Also of what is not wanted by this name: the name may be another one above other layers.
            let path = entry_path(&entry.path).unwrap_or_default();
            leans |= path.parent().is_some_and(|dir| !dir.as_os_str().is_empty() && !dirs.contains(dir));
            let linked = (entry.kind == EntryKind::HardLink).then(|| entry_path(&entry.link)).flatten();
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
                Some(target) if is_wanted(entry, wanted) && !concerns(&target, wanted) => {
                    further.insert(target);
                    false
                }
                _ => is_wanted(entry, wanted),
            }
        };
        let got = self.unpack_some_verified(&digest(layer)?, diff_id, &dir, &mut wants)?;
        leans |= !got.leaning.is_empty();
        let behind_link = !links.is_disjoint(&passed);
        Ok(LayerParts { path, dir, further, leans, behind_link })
    }
}

/// What one layer has of the paths.
struct LayerParts {
    path: PathBuf,
    dir: RootDir,
    /// Where hard links lead to besides.
    further: BTreeSet<PathBuf>,
    /// Something in it has no directory of its own, or is a link to what is not in it.
    leans: bool,
    /// The way to something in it leads through a symbolic link that it brings itself.
    behind_link: bool,
}

fn key(image: &Image, wanted: &BTreeSet<PathBuf>) -> Digest {
    let mut hasher = Hasher::new();
    hasher.field("parts 3").field(image.manifest_digest.bytes());
    for path in wanted {
        hasher.field(path.as_os_str().as_bytes());
    }
    hasher.finish()
}

/// Whether an entry says something of the paths: it is about one, or about what lies below or above one.
fn is_wanted(entry: &TarEntry, wanted: &BTreeSet<PathBuf>) -> bool {
    // What leads out of the root is an error, which unpacking tells.
    entry.subject().is_none_or(|path| concerns(&path, wanted))
}

fn concerns(path: &Path, wanted: &BTreeSet<PathBuf>) -> bool {
    wanted.iter().any(|wanted| path.starts_with(wanted) || wanted.starts_with(path))
}
