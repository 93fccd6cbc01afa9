//! Whether a result holds the value of a secret that the build was given.

use std::io::Read;

use memchr::memmem::Finder;
use rbuild_linux::{Kind, RootDir};
use rbuild_source::{Owner, SourceError, SourceTree};

use crate::error::{BuildError, Result};

/// Shorter values are found by chance.
const SHORTEST: usize = 8;
const CHUNK: usize = 1 << 20;

/// An error of a walk, whoever made it.
struct Walk(BuildError);

impl From<SourceError> for Walk {
    fn from(e: SourceError) -> Walk {
        Walk(BuildError::other(format!("looking for secrets: {e}")))
    }
}

impl From<BuildError> for Walk {
    fn from(e: BuildError) -> Walk {
        Walk(e)
    }
}

/// The values to look for, each with the id of its secret.
pub(crate) struct Leaks<'a>(Vec<(&'a str, Finder<'a>)>);

impl<'a> Leaks<'a> {
    pub fn new(secrets: &'a [(String, Vec<u8>)]) -> Leaks<'a> {
        let long =
            secrets.iter().map(|(id, value)| (id.as_str(), value.trim_ascii())).filter(|(_, v)| v.len() >= SHORTEST);
        Leaks(long.map(|(id, value)| (id, Finder::new(value))).collect())
    }

    /// Whether there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The secret whose value is in the text.
    pub fn in_text(&self, text: &[u8]) -> Option<&'a str> {
        self.0.iter().find(|(_, value)| value.find(text).is_some()).map(|(id, _)| *id)
    }

    /// The first file of a tree that holds a value: the secret, and the path.
    pub fn in_tree(&self, tree: &RootDir) -> Result<Option<(&'a str, String)>> {
        let source = SourceTree { root: tree, ignore: None, exclude: None, owner: Owner::AsIs, hashes: None };
        let mut found = None;
        source
            .walk::<Walk>("".as_ref(), |dir, path, stat| {
                let shown = || format!("/{}", path.display());
                if found.is_some() {
                    return Ok(());
                }
                let name = path.file_name().unwrap_or_default();
                let hit = match stat.kind {
                    Kind::File => {
                        let file = dir.open_name(name).map_err(BuildError::kernel(shown()))?;
                        self.in_stream(file).map_err(BuildError::io(shown()))?
                    }
                    Kind::Symlink => {
                        let link = dir.read_link(name).map_err(BuildError::kernel(shown()))?;
                        self.in_text(link.as_encoded_bytes())
                    }
                    _ => None,
                };
                found = hit.or_else(|| self.in_text(name.as_encoded_bytes())).map(|id| (id, shown()));
                Ok(())
            })
            .map_err(|Walk(e)| e)?;
        Ok(found)
    }

    fn in_stream(&self, mut source: impl Read) -> std::io::Result<Option<&'a str>> {
        let overlap = self.0.iter().map(|(_, v)| v.needle().len() - 1).max().unwrap_or(0);
        let mut window = Vec::with_capacity(CHUNK + overlap);
        loop {
            let n = source.by_ref().take(CHUNK as u64).read_to_end(&mut window)?;
            if let Some(id) = self.in_text(&window) {
                return Ok(Some(id));
            }
            if n == 0 {
                return Ok(None);
            }
            // The beginning of a value may stand at the end.
            window.drain(..window.len().saturating_sub(overlap));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_across_the_ends_of_pieces() {
        let secrets = [
            ("a".to_string(), b"correct horse\n".to_vec()),
            ("b".to_string(), vec![b'x'; 3000]),
            ("c".into(), b"short".to_vec()),
        ];
        let leaks = Leaks::new(&secrets);
        for at in [0, 1, CHUNK - 5, CHUNK, 2 * CHUNK - 13, 2 * CHUNK - 1, 3 * CHUNK + 17] {
            for (id, value) in [("a", &b"correct horse"[..]), ("b", &[b'x'; 3000][..])] {
                let mut text = vec![b'.'; 4 * CHUNK];
                text[at..at + value.len()].copy_from_slice(value);
                assert_eq!(leaks.in_stream(&text[..]).unwrap(), Some(id), "{id} at {at}");
            }
        }
        assert_eq!(leaks.in_stream(&b"correct hors short xxxx"[..]).unwrap(), None);
        assert!(Leaks::new(&secrets[2..]).is_empty());
    }
}
