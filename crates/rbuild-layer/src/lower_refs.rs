//! References from a layer to the layers below it: directories it uses without describing, and hard
//! links to files it does not contain.
//!
//! Layers are unpacked independently of each other. Most are self-contained; the others are
//! completed from their lower layers later.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// References to lower layers. Paths are normalized and relative to the root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LowerRefs {
    /// Non-empty directories without an entry of their own, parents first. If the lower layers have
    /// a directory there, this one takes its metadata; if they have a symbolic link, the content
    /// belongs to the link's target.
    pub dirs: Vec<PathBuf>,
    /// Hard links to files outside the layer, as link path and target path.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// True if no entry describes the root directory, which then keeps the metadata of the lower
    /// layers. Most layers made by Docker are like this.
    pub root: bool,
}

impl LowerRefs {
    /// Returns true if the layer's content is self-contained; `root` does not count.
    pub fn is_empty(&self) -> bool {
        self.dirs.is_empty() && self.links.is_empty()
    }

    /// Serializes the references for a file next to the tree: records `d DIR`, and `l LINK`
    /// followed by `t TARGET`, each terminated by a zero byte, preceded by a record `r ` if the
    /// root is not described.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut put = |tag: u8, path: &Path| {
            bytes.extend_from_slice(&[tag, b' ']);
            bytes.extend_from_slice(path.as_os_str().as_bytes());
            bytes.push(0);
        };
        if self.root {
            put(b'r', Path::new(""));
        }
        self.dirs.iter().for_each(|dir| put(b'd', dir));
        for (name, file) in &self.links {
            put(b'l', name);
            put(b't', file);
        }
        bytes
    }

    /// Parses the output of [`LowerRefs::to_bytes`]. Returns `None` if the format is invalid.
    pub fn from_bytes(bytes: &[u8]) -> Option<LowerRefs> {
        let mut lower_refs = LowerRefs::default();
        let mut name = None;
        for line in bytes.strip_suffix(b"\0").into_iter().flat_map(|lines| lines.split(|b| *b == 0)) {
            let path = PathBuf::from(OsStr::from_bytes(line.get(2..)?));
            match (&line[..2], name.take()) {
                (b"r ", None) if path.as_os_str().is_empty() => lower_refs.root = true,
                (b"d ", None) => lower_refs.dirs.push(path),
                (b"l ", None) => name = Some(path),
                (b"t ", Some(name)) => lower_refs.links.push((name, path)),
                _ => return None,
            }
        }
        (name.is_none() && (bytes.is_empty() || bytes.ends_with(b"\0"))).then_some(lower_refs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lower_refs_round_trip() {
        let odd = PathBuf::from(OsStr::from_bytes(b"a\xff\n/b"));
        let all = LowerRefs { dirs: vec!["a".into(), odd.clone()], links: vec![("x/y".into(), odd)], root: false };
        let rootless = LowerRefs { root: true, ..LowerRefs::default() };
        for lower_refs in [LowerRefs::default(), LowerRefs { root: true, ..all.clone() }, all, rootless] {
            assert_eq!(LowerRefs::from_bytes(&lower_refs.to_bytes()), Some(lower_refs));
        }
        for junk in [&b"d"[..], b"d x", b"l x\0", b"t x\0", b"\0", b"q x\0", b"r x\0", b"l x\0d y\0"] {
            assert_eq!(LowerRefs::from_bytes(junk), None, "{junk:?}");
        }
    }
}
