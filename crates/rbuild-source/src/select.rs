use std::path::{Path, PathBuf};

use rbuild_linux::{Kind, RootDir, Stat};

use crate::glob::Glob;
use crate::hashes::HashCache;
use crate::ignore::Ignore;

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Names the path as the Dockerfile wrote it, and what there is of similar name.
    #[error("`{path}` is not there")]
    NotFound { path: String, similar: Option<String>, ignored: bool },
    #[error("`{0}` is not a pattern")]
    BadPattern(String),
    #[error("{0}")]
    Kernel(#[from] rbuild_linux::Error),
    #[error("{0:?} changed while it was read")]
    Changed(PathBuf),
}

/// Who owns the files as far as the build is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Everything is root's: what a checkout says about owners means nothing (the build context).
    Root,
    /// And modes are those that git keeps, 644 or 755, whatever the umask of the checkout was.
    RootWithGitModes,
    AsIs,
}

impl Owner {
    /// User and group that a file counts as.
    pub fn ids(self, stat: &Stat) -> (u32, u32) {
        match self {
            Owner::AsIs => (stat.uid, stat.gid),
            Owner::Root | Owner::RootWithGitModes => (0, 0),
        }
    }

    /// The mode that a file counts as.
    pub fn mode(self, stat: &Stat) -> u32 {
        match (self, stat.kind) {
            (Owner::RootWithGitModes, Kind::Dir) => 0o755,
            (Owner::RootWithGitModes, Kind::File) if stat.mode & 0o100 == 0 => 0o644,
            (Owner::RootWithGitModes, Kind::File) => 0o755,
            _ => stat.mode,
        }
    }
}

/// A directory that steps take files from.
pub struct SourceTree<'a> {
    pub root: &'a RootDir,
    pub ignore: Option<&'a Ignore>,
    /// What is left out of each source, by paths relative to it (a file's own name for a file).
    pub exclude: Option<&'a Ignore>,
    pub owner: Owner,
    /// What is known of files that were read before.
    pub hashes: Option<&'a HashCache>,
}

/// One thing that a source of COPY names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// Relative to the root, links resolved.
    pub path: PathBuf,
    /// The name it was selected by; with kept directories, the path from the pivot on.
    pub name: PathBuf,
    /// Directories keep their names too.
    pub kept: bool,
    pub stat: Stat,
}

impl SourceTree<'_> {
    /// What `source` names: one thing, or with a pattern any number of them in the order of their names. Links
    /// that are named are followed inside the root.
    pub fn select(&self, source: &str) -> Result<Vec<Selected>, SourceError> {
        let mut found = self.select_all(source)?;
        // A file is left out by its own name; what is below a directory, while it is walked.
        found.retain(|s| s.stat.kind == Kind::Dir || !self.exclude.is_some_and(|e| e.excludes(&base_name(&s.name))));
        Ok(found)
    }

    /// As [`SourceTree::select`], but `**` crosses directories, and each name is the path from the pivot `/./` on
    /// (the whole path without one).
    pub fn select_with_parents(&self, source: &str) -> Result<Vec<Selected>, SourceError> {
        let (above, kept) = source.split_once("/./").unwrap_or(("", source));
        let cut = clean_parts(above).len();
        let mut found = match kept.contains("**") || above.contains("**") {
            true => self.select_deep(source)?,
            false => self.select(source)?,
        };
        let parts = clean_parts(source);
        for item in &mut found {
            // The path as it was written, not as links resolve it: patterns have been filled in part by part.
            let written: PathBuf =
                if parts.iter().any(|p| is_pattern(p)) { item.path.clone() } else { parts.iter().collect() };
            item.name = written.components().skip(cut).collect();
            item.kept = true;
        }
        Ok(found)
    }

    fn select_deep(&self, source: &str) -> Result<Vec<Selected>, SourceError> {
        let pattern = clean_parts(source).join("/");
        let glob = Glob::new(&pattern, true).ok_or_else(|| SourceError::BadPattern(source.to_string()))?;
        let mut found: Vec<Selected> = Vec::new();
        self.walk::<SourceError>(Path::new(""), |_, path, stat| {
            let below_found =
                found.last().is_some_and(|last| last.stat.kind == Kind::Dir && path.starts_with(&last.path));
            if !below_found && glob.matches(&path.to_string_lossy()) {
                found.push(Selected { path: path.to_path_buf(), name: path.to_path_buf(), kept: true, stat: *stat });
            }
            Ok(())
        })?;
        Ok(found)
    }

    fn select_all(&self, source: &str) -> Result<Vec<Selected>, SourceError> {
        let parts = clean_parts(source);
        if !parts.iter().any(|p| is_pattern(p)) {
            let path: PathBuf = parts.iter().collect();
            return match self.named(&path)? {
                Some(selected) => Ok(vec![selected]),
                None => Err(self.not_found(source, &path)),
            };
        }
        let globs: Vec<Glob> = parts
            .iter()
            .map(|p| Glob::new(p, false).ok_or_else(|| SourceError::BadPattern(source.to_string())))
            .collect::<Result<_, _>>()?;
        let mut found = vec![PathBuf::new()];
        for glob in &globs {
            let mut next = Vec::new();
            for dir in &found {
                let Ok(handle) = self.root.sub(dir) else { continue };
                for entry in handle.entries()? {
                    // Bytes that are no text count as one character each.
                    if glob.matches(&entry.name.to_string_lossy()) {
                        next.push(dir.join(&entry.name));
                    }
                }
            }
            found = next;
        }
        Ok(found.iter().map(|p| self.named(p)).collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }

    fn named(&self, path: &Path) -> Result<Option<Selected>, SourceError> {
        if self.ignored(path) && !self.may_hold_kept(path) {
            return Ok(None);
        }
        let resolved = self.root.resolve(path)?;
        let real = resolved.strip_prefix("/").unwrap_or(&resolved).to_path_buf();
        let name = PathBuf::from(path.file_name().unwrap_or_default());
        match self.root.stat(&real) {
            Ok(stat) if stat.is_whiteout() => Ok(None),
            Ok(stat) => Ok(Some(Selected { path: real, name, kept: false, stat })),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// An excluded directory still counts if something below it may be taken back in.
    fn may_hold_kept(&self, path: &Path) -> bool {
        self.ignore.is_some_and(Ignore::has_negations) && matches!(self.root.stat(path), Ok(s) if s.kind == Kind::Dir)
    }

    pub(crate) fn ignored(&self, path: &Path) -> bool {
        match self.ignore {
            Some(ignore) if !ignore.is_empty() && !path.as_os_str().is_empty() => {
                ignore.excludes(&path.to_string_lossy())
            }
            _ => false,
        }
    }

    fn not_found(&self, source: &str, path: &Path) -> SourceError {
        let ignored = self.ignored(path) && self.root.exists(path).unwrap_or(false);
        let (dir, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
        let names: Vec<String> = self
            .root
            .sub(dir)
            .and_then(|d| d.entries())
            .unwrap_or_default()
            .iter()
            .filter(|e| !self.ignored(&dir.join(&e.name)))
            .filter_map(|e| e.name.to_str().map(str::to_string))
            .collect();
        let wanted = name.to_string_lossy();
        let similar = closest(&wanted, &names).map(|n| dir.join(n).to_string_lossy().into_owned());
        SourceError::NotFound { path: source.to_string(), similar, ignored }
    }
}

fn is_pattern(part: &str) -> bool {
    part.contains(['*', '?', '[', '\\'])
}

fn base_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The parts of a source path: relative to the root, never above it.
fn clean_parts(source: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for part in source.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part.to_string()),
        }
    }
    parts
}

/// The name nearest to `wanted`: the same but for case or ending, or with most of its beginning.
fn closest<'a>(wanted: &str, names: &'a [String]) -> Option<&'a str> {
    let stem = |s: &str| s.to_lowercase().split('.').next().unwrap_or("").to_string();
    let common = |a: &str, b: &str| a.chars().zip(b.chars()).take_while(|(x, y)| x == y).count();
    let want = wanted.to_lowercase();
    names
        .iter()
        .map(|n| {
            let lower = n.to_lowercase();
            let reversed = |s: &str| s.chars().rev().collect::<String>();
            let same = common(&want, &lower) + common(&reversed(&want), &reversed(&lower));
            (if lower == want { 1000 } else { same }, n)
        })
        .filter(|(same, n)| {
            *same >= 1000 || stem(n) == stem(&want) || same + 2 >= want.chars().count().max(n.chars().count())
        })
        .max_by_key(|(same, _)| *same)
        .map(|(_, n)| n.as_str())
}
