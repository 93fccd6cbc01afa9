//! What a layer takes for granted of the layers below it.
//!
//! Layers are unpacked apart from each other. Most tell everything about what they hold; others have files in directories
//! that no entry of theirs describes, or further names for files of a lower layer.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Paths are relative to the root and clean.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leaning {
    /// Directories that hold something and have no entry of their own; those above come first. Where the layers below have a
    /// directory, it should look like that one; where they have a link, what it holds belongs where the link leads.
    pub dirs: Vec<PathBuf>,
    /// Hard links to files that the layer does not bring: the name, and the file.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// No entry describes the root directory, which is what it is below, then. Docker's own layers are mostly like that.
    pub root: bool,
}

impl Leaning {
    /// Whether all that lies in the layer stands by itself.
    pub fn is_empty(&self) -> bool {
        self.dirs.is_empty() && self.links.is_empty()
    }

    /// For a note beside the tree: `d PATH` and `l NAME`, `t FILE`, each with a zero behind it; `r ` first where the
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

    /// The same read back; `None` if that is no such note.
    pub fn from_bytes(bytes: &[u8]) -> Option<Leaning> {
        let mut leaning = Leaning::default();
        let mut name = None;
        for line in bytes.strip_suffix(b"\0").into_iter().flat_map(|lines| lines.split(|b| *b == 0)) {
            let path = PathBuf::from(OsStr::from_bytes(line.get(2..)?));
            match (&line[..2], name.take()) {
                (b"r ", None) if path.as_os_str().is_empty() => leaning.root = true,
                (b"d ", None) => leaning.dirs.push(path),
                (b"l ", None) => name = Some(path),
                (b"t ", Some(name)) => leaning.links.push((name, path)),
                _ => return None,
            }
        }
        (name.is_none() && (bytes.is_empty() || bytes.ends_with(b"\0"))).then_some(leaning)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written() {
        let odd = PathBuf::from(OsStr::from_bytes(b"a\xff\n/b"));
        let all = Leaning { dirs: vec!["a".into(), odd.clone()], links: vec![("x/y".into(), odd)], root: false };
        let rootless = Leaning { root: true, ..Leaning::default() };
        for leaning in [Leaning::default(), Leaning { root: true, ..all.clone() }, all, rootless] {
            assert_eq!(Leaning::from_bytes(&leaning.to_bytes()), Some(leaning));
        }
        for junk in [&b"d"[..], b"d x", b"l x\0", b"t x\0", b"\0", b"q x\0", b"r x\0", b"l x\0d y\0"] {
            assert_eq!(Leaning::from_bytes(junk), None, "{junk:?}");
        }
    }
}
