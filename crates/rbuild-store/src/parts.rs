//! A few paths of an image, for who wants no more of it: its layers are read, and the rest is not written anywhere.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use rbuild_image::{Descriptor, Digest, Hasher};
use rbuild_layer::{EntryKind, Owners, TarEntry, Whiteouts, entry_path, unpack_some};
use rbuild_linux::{Kind, RootDir};

use crate::copies::{Files, Marks, merge};
use crate::error::Result;
use crate::images::{Image, digest};
use crate::layout::Store;
use crate::trees::{TreeId, same_digests};
use crate::workspace::Workspace;

/// Links may lead to further paths, which take another reading; after so many the whole image is the better way.
const READINGS: usize = 4;

impl Store {
    /// A tree that shows these paths (relative, clean) as the image has them, made once. `None` if it is not worth it, or not
    /// possible: the image is unpacked already, or a path is not there, or leads too far.
    pub fn image_parts(
        &self,
        work: &Workspace,
        image: &Image,
        wanted: &BTreeSet<PathBuf>,
        now: i64,
        build: &str,
    ) -> Result<Option<TreeId>> {
        let key = key(image, wanted, self.owners() == crate::Owners::Recorded);
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
            let mut further = self.read_parts(work, image, &all, &fs)?;
            // A path may be a hard link to what the next reading brings.
            let complete = further.is_subset(&all);
            for path in wanted {
                match follow(&fs, path)? {
                    Found::Missing(path) if complete && all.contains(&path) => return Ok(None),
                    Found::There(path) | Found::Missing(path) => further.insert(path),
                };
            }
            let before = all.len();
            all.extend(further);
            if all.len() == before {
                let tree = TreeId::of_step(&key);
                self.commit_tree(work, &path, &tree)?;
                self.put_record(&key, &tree, &key, now, build)?;
                return Ok(Some(tree));
            }
        }
        Ok(None)
    }

    /// Reads all layers for these paths, several side by side; gives what hard links lead to besides.
    fn read_parts(
        &self,
        work: &Workspace,
        image: &Image,
        wanted: &BTreeSet<PathBuf>,
        fs: &RootDir,
    ) -> Result<BTreeSet<PathBuf>> {
        let layers = image.layers()?;
        let read: Vec<OnceLock<Result<LayerParts>>> = layers.iter().map(|_| OnceLock::new()).collect();
        let next = AtomicUsize::new(0);
        let reader = || {
            while let Some(i) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|i| *i < layers.len()) {
                let (layer, diff_id) = &layers[i];
                let _ = read[i].set(self.read_layer_parts(work, layer, diff_id, wanted));
            }
        };
        let others = std::thread::available_parallelism().map_or(1, |n| n.get()).min(layers.len()).saturating_sub(1);
        std::thread::scope(|scope| {
            for _ in 0..others {
                scope.spawn(reader);
            }
            reader();
        });
        let read = read.into_iter().filter_map(OnceLock::into_inner).collect::<Result<Vec<_>>>()?;
        let open = read.iter().map(|parts| parts.dir.try_clone()).collect::<std::result::Result<Vec<_>, _>>()?;
        merge(&open, fs, Files::Linked, Marks::Done)?;
        // Files have one name again, as in the image.
        for parts in &read {
            work.dir().remove_all(parts.path.file_name().unwrap_or_default())?;
        }
        Ok(read.into_iter().flat_map(|parts| parts.further).collect())
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
        let mut wants = |entry: &TarEntry| {
            let linked = (entry.kind == EntryKind::HardLink).then(|| entry_path(&entry.link)).flatten();
            match linked {
                Some(target) if is_wanted(&entry.path, wanted) && !concerns(&target, wanted) => {
                    further.insert(target);
                    false
                }
                _ => is_wanted(&entry.path, wanted),
            }
        };
        let (whiteouts, owners) = (Whiteouts::Overlay, Owners::FromArchive);
        let digest = digest(layer)?;
        let got = unpack_some(self.open_blob(&digest)?, &dir, whiteouts, owners, self.limits(), &mut wants)?;
        same_digests(&got, &digest, diff_id)?;
        Ok(LayerParts { path, dir, further })
    }
}

/// What one layer has of the paths.
struct LayerParts {
    path: PathBuf,
    dir: RootDir,
    /// Where hard links lead to besides.
    further: BTreeSet<PathBuf>,
}

fn key(image: &Image, wanted: &BTreeSet<PathBuf>, recorded: bool) -> Digest {
    let mut hasher = Hasher::new();
    hasher.field("parts 1").field(image.manifest_digest.bytes()).field([u8::from(recorded)]);
    for path in wanted {
        hasher.field(path.as_os_str().as_bytes());
    }
    hasher.finish()
}

/// Whether an entry of that name says something of the paths: it is one, lies below one or above it, or deletes such.
fn is_wanted(name: &OsStr, wanted: &BTreeSet<PathBuf>) -> bool {
    let Some(path) = entry_path(name) else { return true };
    let last = path.file_name().unwrap_or_default().as_bytes();
    match last.strip_prefix(b".wh.") {
        Some(b".wh..opq") => concerns(path.parent().unwrap_or(Path::new("")), wanted),
        Some(hidden) => concerns(&path.with_file_name(OsStr::from_bytes(hidden)), wanted),
        None => concerns(&path, wanted),
    }
}

fn concerns(path: &Path, wanted: &BTreeSet<PathBuf>) -> bool {
    wanted.iter().any(|wanted| path.starts_with(wanted) || wanted.starts_with(path))
}

enum Found {
    /// By that path, on which no link lies.
    There(PathBuf),
    /// What the links lead to is not there, or not yet.
    Missing(PathBuf),
}

/// Links on the way to one path, as many as the kernel follows.
const MOST_LINKS: usize = 40;

/// Goes along a path and the symbolic links on it.
fn follow(fs: &RootDir, path: &Path) -> Result<Found> {
    let mut path = path.to_path_buf();
    'links: for _ in 0..MOST_LINKS {
        let mut at = PathBuf::new();
        let mut parts = path.iter();
        while let Some(part) = parts.next() {
            let found = fs.sub(&at).and_then(|dir| Ok((dir.stat_name(part)?, dir)));
            let Ok((stat, dir)) = found else { return Ok(Found::Missing(path)) };
            if stat.kind != Kind::Symlink {
                at.push(part);
                continue;
            }
            let target = dir.read_link(part)?;
            let mut led = if Path::new(&target).is_absolute() { PathBuf::new() } else { at };
            for step in Path::new(&target).components().chain(parts.map(Component::Normal)) {
                match step {
                    Component::Normal(name) => led.push(name),
                    Component::ParentDir => drop(led.pop()),
                    _ => {}
                }
            }
            path = led;
            continue 'links;
        }
        return Ok(Found::There(path));
    }
    Ok(Found::Missing(path))
}
