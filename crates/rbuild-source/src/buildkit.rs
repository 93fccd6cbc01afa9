//! Digests of files as BuildKit computes them (cache/contenthash in BuildKit), to find steps in its
//! caches.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rbuild_image::{BlobDigest, Hasher};
use rbuild_linux::{FileKind, RootDir, Stat};

use crate::select::{Selected, SourceError, SourceTree};

/// Number of bytes that are read at once.
const CHUNK: usize = 128 << 10;

/// An entry of a directory.
struct Child {
    name: OsString,
    /// That of the file, or of the header of a directory.
    digest: BlobDigest,
    is_dir: bool,
}

/// Returns BuildKit's digest of a selected file, or of a directory with all that is selected
/// below it. Returns `None` for files that BuildKit does not transfer in the same form:
/// devices, sockets and FIFOs.
///
/// # Errors
///
/// Fails if a file cannot be read.
pub fn buildkit_digest(tree: &SourceTree<'_>, item: &Selected) -> Result<Option<BlobDigest>, SourceError> {
    if item.path.as_os_str().is_empty() {
        // The root directory has no header.
        return directory(tree, item, BlobDigest::of(b""));
    }
    let (parent, _) = tree.root.parent(&item.path).map_err(|e| SourceError::from(e).of_found(tree.root))?;
    let name = item.path.file_name().unwrap_or_default();
    match entry(tree, &parent, name, &item.stat)? {
        Some(header) if item.stat.kind == FileKind::Dir => directory(tree, item, header),
        found => Ok(found),
    }
}

fn directory(tree: &SourceTree<'_>, item: &Selected, header: BlobDigest) -> Result<Option<BlobDigest>, SourceError> {
    let mut children: HashMap<PathBuf, Vec<Child>> = HashMap::new();
    let mut is_usable = true;
    tree.walk_selected::<SourceError>(item, |parent, path, stat| {
        let name = path.file_name().unwrap_or_default();
        match entry(tree, parent, name, stat)? {
            Some(digest) => {
                let above = path.parent().unwrap_or(Path::new("")).to_path_buf();
                let is_dir = stat.kind == FileKind::Dir;
                children.entry(above).or_default().push(Child { name: name.to_os_string(), digest, is_dir });
            }
            None => is_usable = false,
        }
        Ok(())
    })?;
    Ok(is_usable.then(|| digest_of_directory(&children, Path::new(""), &header)))
}

/// Returns the digest of a file, or of the header of a directory.
fn entry(
    tree: &SourceTree<'_>,
    parent: &RootDir,
    name: &OsStr,
    stat: &Stat,
) -> Result<Option<BlobDigest>, SourceError> {
    let owner = tree.owner.ids(stat);
    let (mode, kind, size) = match stat.kind {
        FileKind::File => (tree.owner.mode(stat), '0', stat.size),
        FileKind::Dir => (tree.owner.mode(stat), '5', 0),
        FileKind::Symlink => (0o777, '2', 0),
        FileKind::Socket | FileKind::CharDevice | FileKind::BlockDevice | FileKind::Fifo => return Ok(None),
    };
    let target = match stat.kind {
        FileKind::Symlink => parent.read_link(name)?,
        _ => OsString::new(),
    };
    let mut hasher = Hasher::new();
    let mode = mode & 0o7777;
    hasher.update(format!("namemode{mode}uid{}gid{}size{size}typeflag{kind}linkname", owner.uid, owner.gid).as_bytes());
    hasher.update(target.as_bytes());
    hasher.update(b"unamegnamedevmajor0devminor0");
    if stat.kind == FileKind::File && size > 0 {
        let mut file = parent.open_name(name)?;
        let mut buffer = vec![0; CHUNK];
        loop {
            let read = file.read(&mut buffer);
            match read.map_err(|e| rbuild_linux::Error::new("read", Path::new(name), e))? {
                0 => break,
                n => hasher.update(&buffer[..n]),
            }
        }
    }
    Ok(Some(hasher.finish()))
}

/// Returns the digest of a directory: of its header, and of the names and digests of its entries,
/// in order of their names.
fn digest_of_directory(children: &HashMap<PathBuf, Vec<Child>>, path: &Path, header: &BlobDigest) -> BlobDigest {
    let mut hasher = Hasher::new();
    hasher.update(b"\0");
    hasher.update(header.to_string().as_bytes());
    let mut below: Vec<&Child> = children.get(path).into_iter().flatten().collect();
    below.sort_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
    for child in below {
        let digest = if child.is_dir {
            digest_of_directory(children, &path.join(&child.name), &child.digest)
        } else {
            child.digest
        };
        hasher.update(b"\0");
        hasher.update(child.name.as_bytes());
        hasher.update(digest.to_string().as_bytes());
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rbuild_paths::SourcePattern;
    use rbuild_testkit::Scratch;

    use super::*;
    use crate::select::Owner;

    fn digest(root: &Path, source: &str) -> Option<String> {
        let root = RootDir::open(root).unwrap();
        let tree = SourceTree::whole(&root, Owner::Root);
        let selected = tree.select(&SourcePattern::parse(source)).unwrap();
        buildkit_digest(&tree, &selected[0]).unwrap().map(|digest| digest.to_string())
    }

    fn write(path: &Path, text: &str) {
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    }

    /// The digest of the first case is one that docker 20.10.24 computed.
    #[test]
    fn files_and_directories_have_the_digests_of_buildkit() {
        let place = Scratch::new();
        write(&place.join("a"), "a\n");
        let of_a = digest(&place, "a").unwrap();
        let text = "namemode420uid0gid0size2typeflag0linknameunamegnamedevmajor0devminor0a\n";
        assert_eq!(of_a, BlobDigest::of(text.as_bytes()).to_string());
        let dir = place.join("d");
        std::fs::create_dir(&dir).unwrap();
        std::fs::create_dir(dir.join("b")).unwrap();
        for path in [&dir, &dir.join("b")] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        write(&dir.join("b.txt"), "");
        std::os::unix::fs::symlink("b.txt", dir.join("b/link")).unwrap();
        let of = |bytes: &[u8]| BlobDigest::of(bytes).to_string();
        let header = of(b"namemode493uid0gid0size0typeflag5linknameunamegnamedevmajor0devminor0");
        let link = of(b"namemode511uid0gid0size0typeflag2linknameb.txtunamegnamedevmajor0devminor0");
        let empty = of(b"namemode420uid0gid0size0typeflag0linknameunamegnamedevmajor0devminor0");
        let b = of(format!("\0{header}\0link{link}").as_bytes());
        let d = of(format!("\0{header}\0b{b}\0b.txt{empty}").as_bytes());
        assert_eq!(digest(&place, "d").unwrap(), d);
        let root = of(format!("\0{}\0a{of_a}\0d{d}", of(b"")).as_bytes());
        assert_eq!(digest(&place, ".").unwrap(), root);
        assert!(std::process::Command::new("mkfifo").arg(dir.join("fifo")).status().unwrap().success());
        assert_eq!(digest(&place, "d"), None);
    }
}
