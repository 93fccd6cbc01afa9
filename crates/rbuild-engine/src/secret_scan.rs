//! Search for the values of the build's secrets: in file contents, names and texts.

use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;

use memchr::memmem::Finder;
use rbuild_linux::{FileKind, RootDir, Stat};
use rbuild_source::{Owner, SourceError, SourceTree};
use rbuild_store::{SecretHash, Verdict};
use serde_json::Value;

use crate::error::{BuildError, Result};
use crate::error_context::ErrorContext;

/// Minimum length of a value to search for. Shorter values occur by chance.
pub(crate) const MIN_SEARCHED: usize = 8;
const CHUNK: usize = 1 << 20;

/// An error of a directory walk, from the walk itself or from the visitor.
struct WalkError(BuildError);

impl From<SourceError> for WalkError {
    fn from(e: SourceError) -> WalkError {
        let context = ErrorContext::SecretSearch;
        WalkError(match e {
            SourceError::Kernel(e) => BuildError::kernel(context)(e),
            source => BuildError::Source { context: context.into(), source },
        })
    }
}

impl From<BuildError> for WalkError {
    fn from(e: BuildError) -> WalkError {
        WalkError(e)
    }
}

/// Returns ID and value of the secrets whose values are long enough to search for.
pub(crate) fn searched(secrets: &[(String, Vec<u8>)]) -> impl Iterator<Item = (&str, &[u8])> {
    secrets.iter().map(|(id, value)| (id.as_str(), value.trim_ascii())).filter(|(_, v)| v.len() >= MIN_SEARCHED)
}

/// A value to search for.
struct SearchedValue<'a> {
    id: &'a str,
    hash: SecretHash,
    value: Finder<'a>,
}

/// All values to search for.
pub(crate) struct Leaks<'a>(Vec<SearchedValue<'a>>);

/// The first place where a secret's value was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leak<'a> {
    pub id: &'a str,
    pub place: String,
}

/// The result of a search: for each value, the first place where it was found.
pub(crate) struct FoundSecret<'a, 'b> {
    leaks: &'b Leaks<'a>,
    places: Vec<Option<String>>,
}

impl<'a> Leaks<'a> {
    /// Creates a search. `hashes` are the hashes of the [`searched`] secrets, in order.
    pub fn new(secrets: &'a [(String, Vec<u8>)], hashes: &[SecretHash]) -> Leaks<'a> {
        let wanted = searched(secrets).zip(hashes);
        Leaks(wanted.map(|((id, value), hash)| SearchedValue { id, hash: *hash, value: Finder::new(value) }).collect())
    }

    /// Returns true if there is nothing to search for.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns true if the value of the secret with this ID is searched for.
    pub fn has(&self, id: &str) -> bool {
        self.0.iter().any(|wanted| wanted.id == id)
    }

    /// Returns the ID of a secret whose value is in the text.
    pub fn in_text(&self, text: &[u8]) -> Option<&'a str> {
        self.0.iter().find(|wanted| wanted.value.find(text).is_some()).map(|wanted| wanted.id)
    }

    /// Returns the ID of a secret whose value is in a JSON document. Decoded keys and strings are
    /// searched, not their escaped form.
    pub fn in_document(&self, document: &Value) -> Option<&'a str> {
        match document {
            Value::String(text) => self.in_text(text.as_bytes()),
            Value::Array(values) => values.iter().find_map(|value| self.in_document(value)),
            Value::Object(fields) => {
                fields.iter().find_map(|(key, value)| self.in_text(key.as_bytes()).or_else(|| self.in_document(value)))
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => None,
        }
    }

    /// Searches a tree: file contents, names, targets of symbolic links and extended attributes.
    pub fn in_tree(&self, tree: &RootDir) -> Result<FoundSecret<'a, '_>> {
        let mut search = Search { found: self.nothing(), window: Vec::new() };
        search.attributes(tree, OsStr::new(""), Path::new(""))?;
        let source = SourceTree::whole(tree, Owner::AsIs);
        let visit = |dir: &RootDir, path: &Path, stat: &Stat| Ok(search.entry(dir, path, stat)?);
        source.walk::<WalkError>("".as_ref(), visit).map_err(|WalkError(e)| e)?;
        Ok(search.found)
    }

    fn nothing(&self) -> FoundSecret<'a, '_> {
        FoundSecret { leaks: self, places: vec![None; self.0.len()] }
    }
}

impl<'a> FoundSecret<'a, '_> {
    /// Returns the first of the secrets that was found, in the order of the search.
    pub fn first(&self) -> Option<Leak<'a>> {
        let mut all = self.leaks.0.iter().zip(&self.places);
        all.find_map(|(wanted, place)| Some(Leak { id: wanted.id, place: place.clone()? }))
    }

    /// Returns the result in the form in which it is stored with the tree.
    pub fn verdict(&self) -> Verdict {
        let mut verdict = Verdict::default();
        for (wanted, place) in self.leaks.0.iter().zip(&self.places) {
            if place.is_some() { &mut verdict.held } else { &mut verdict.absent }.push(wanted.hash);
        }
        verdict
    }

    fn is_complete(&self) -> bool {
        self.places.iter().all(Option::is_some)
    }

    fn look(&mut self, text: &[u8], place: &dyn Fn() -> String) {
        for (wanted, found) in self.leaks.0.iter().zip(&mut self.places) {
            if found.is_none() && wanted.value.find(text).is_some() {
                *found = Some(place());
            }
        }
    }
}

/// State of a search through a tree.
struct Search<'a, 'b> {
    found: FoundSecret<'a, 'b>,
    window: Vec<u8>,
}

impl Search<'_, '_> {
    fn entry(&mut self, dir: &RootDir, path: &Path, stat: &Stat) -> Result<()> {
        if self.found.is_complete() {
            return Ok(());
        }
        let shown = || format!("/{}", path.display());
        let name = path.file_name().unwrap_or_default();
        self.found.look(path.as_os_str().as_encoded_bytes(), &shown);
        match stat.kind {
            FileKind::File => {
                let file = dir.open_name(name).map_err(BuildError::kernel(shown()))?;
                self.stream(file, &shown).map_err(BuildError::io(shown()))?;
            }
            FileKind::Symlink => {
                let link = dir.read_link(name).map_err(BuildError::kernel(shown()))?;
                self.found.look(link.as_encoded_bytes(), &shown);
            }
            _ => {}
        }
        self.attributes(dir, name, path)
    }

    fn attributes(&mut self, dir: &RootDir, name: &OsStr, path: &Path) -> Result<()> {
        let shown = || format!("/{}", path.display());
        for (attribute, value) in dir.xattrs(name).map_err(BuildError::kernel(shown()))? {
            let place = || format!("the attribute {} of {}", attribute.display(), shown());
            self.found.look(attribute.as_encoded_bytes(), &place);
            self.found.look(&value, &place);
        }
        Ok(())
    }

    fn stream(&mut self, mut source: impl Read, place: &dyn Fn() -> String) -> std::io::Result<()> {
        let overlap = self.found.leaks.0.iter().map(|w| w.value.needle().len() - 1).max().unwrap_or(0);
        self.window.clear();
        loop {
            let n = source.by_ref().take(CHUNK as u64).read_to_end(&mut self.window)?;
            self.found.look(&self.window, place);
            if n == 0 || self.found.is_complete() {
                return Ok(());
            }
            // The chunk may end with the beginning of a value.
            self.window.drain(..self.window.len().saturating_sub(overlap));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rbuild_store::Store;
    use rbuild_testkit::Scratch;

    fn secrets() -> [(String, Vec<u8>); 3] {
        [("a".into(), b"correct horse\n".to_vec()), ("b".into(), vec![b'x'; 3000]), ("c".into(), b"short".to_vec())]
    }

    /// Returns a scratch directory with a store, and the hashes of the secrets.
    fn hashes(secrets: &[(String, Vec<u8>)]) -> (Scratch, Vec<SecretHash>) {
        let dir = Scratch::new();
        let store = Store::open(&dir.join("store")).unwrap();
        let hashes = store.secrets().secret_hashes(searched(secrets).map(|(_, value)| value)).unwrap();
        (dir, hashes)
    }

    #[test]
    fn values_are_found_across_chunk_boundaries() {
        let secrets = secrets();
        let (_dir, hashes) = hashes(&secrets);
        let leaks = Leaks::new(&secrets, &hashes);
        let in_stream = |text: &[u8]| {
            let mut search = Search { found: leaks.nothing(), window: Vec::new() };
            search.stream(text, &|| "here".into()).unwrap();
            search.found.first().map(|leak| leak.id)
        };
        for at in [0, 1, CHUNK - 5, CHUNK, 2 * CHUNK - 13, 2 * CHUNK - 1, 3 * CHUNK + 17] {
            for (id, value) in [("a", &b"correct horse"[..]), ("b", &[b'x'; 3000][..])] {
                let mut text = vec![b'.'; 4 * CHUNK];
                text[at..at + value.len()].copy_from_slice(value);
                assert_eq!(in_stream(&text[..]), Some(id), "{id} at {at}");
            }
        }
        assert_eq!(in_stream(&b"correct hors short xxxx"[..]), None);
        assert!(Leaks::new(&secrets[2..], &[]).is_empty());
    }

    #[test]
    fn names_links_and_documents_are_searched() {
        let secrets = [("t".to_string(), b"two/parts\"quoted\"".to_vec())];
        let (dir, hashes) = hashes(&secrets);
        let leaks = Leaks::new(&secrets, &hashes);
        let tree = dir.join("tree");
        std::fs::create_dir_all(tree.join("in/two")).unwrap();
        let found = |tree: &Path| leaks.in_tree(&RootDir::open(tree).unwrap()).unwrap().first().map(|leak| leak.place);
        assert_eq!(found(&tree), None);
        std::fs::write(tree.join("in/two/parts\"quoted\""), "").unwrap();
        assert_eq!(found(&tree).unwrap(), "/in/two/parts\"quoted\"");
        std::fs::remove_file(tree.join("in/two/parts\"quoted\"")).unwrap();
        std::os::unix::fs::symlink("two/parts\"quoted\"", tree.join("link")).unwrap();
        assert_eq!(found(&tree).unwrap(), "/link");
        for document in ["two/parts\"quoted\"", "x=two/parts\"quoted\""] {
            let document = serde_json::json!({"a": [{"b": document}]});
            assert_eq!(leaks.in_document(&document), Some("t"));
            assert_eq!(leaks.in_text(document.to_string().as_bytes()), None);
        }
        assert_eq!(leaks.in_document(&serde_json::json!({"two/parts\"quoted\"": 1})), Some("t"));
    }
}
