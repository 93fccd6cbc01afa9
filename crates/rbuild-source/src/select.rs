use std::path::{Path, PathBuf};

use rbuild_linux::{Kind, RootDir, Stat};

use crate::glob::Glob;
use crate::hashes::HashCache;
use crate::ignore::Ignore;
use crate::similar::closest;

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Names the path as the Dockerfile wrote it, and what there is of similar name.
    #[error("`{path}` is not there")]
    NotFound { path: String, similar: Option<String>, ignored: bool },
    #[error("`{path}` is not there: it is a link to {}", target.display())]
    DeadLink { path: String, target: PathBuf },
    #[error("`{0}` is not a pattern: a class `[…]` in it is empty, not closed, or has a `-` without its two ends")]
    BadPattern(String),
    #[error("`{path}` leads through `{}`, a link, which --parents does not follow", link.display())]
    BehindLink { path: String, link: PathBuf },
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
    /// How much of it, and under which name.
    pub take: Take,
    pub stat: Stat,
}

/// How much of a selected thing is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    /// A file under its last name, or all that is in a directory.
    Content,
    /// As it is, under the whole name.
    Kept,
    /// A directory alone, for what is kept below it; the name is empty for the one that all names begin at.
    Above,
}

impl Selected {
    /// The path that exclusions of what is below begin with.
    pub(crate) fn seen_as(&self) -> &Path {
        match self.take {
            Take::Content => Path::new(""),
            Take::Kept | Take::Above => &self.name,
        }
    }

    /// Whether it is copied itself, and not only what is in it.
    pub fn counts_itself(&self) -> bool {
        self.stat.kind != Kind::Dir || (self.take != Take::Content && !self.name.as_os_str().is_empty())
    }
}

impl SourceTree<'_> {
    /// What the pattern `source` names, in the order of the names, or the one thing if it is no pattern. Links that are
    /// named are followed inside the root; those that a pattern would have to pass through are not.
    pub fn select(&self, source: &str) -> Result<Vec<Selected>, SourceError> {
        let mut found = if is_pattern(source) { self.matching(source)? } else { vec![self.select_literal(source)?] };
        // A file is left out by its own name; what is below a directory, while it is walked.
        found.retain(|s| s.stat.kind == Kind::Dir || !self.exclude.is_some_and(|e| e.excludes(&base_name(&s.name))));
        Ok(found)
    }

    /// What is at the path `source`, whatever characters are in it.
    pub fn select_literal(&self, source: &str) -> Result<Selected, SourceError> {
        let path: PathBuf = clean_parts(source).into_iter().collect();
        self.named(&path)?.ok_or_else(|| self.not_found(source, &path))
    }

    fn matching(&self, source: &str) -> Result<Vec<Selected>, SourceError> {
        let parts = clean_parts(source);
        // Up to the first part that is a pattern, a path is a path.
        let literal = parts.iter().take_while(|p| !is_pattern(p)).count();
        let globs: Vec<Glob> = parts[literal..]
            .iter()
            .map(|p| Glob::new(p, false).ok_or_else(|| SourceError::BadPattern(source.to_string())))
            .collect::<Result<_, _>>()?;
        let start = parts[..literal].iter().collect::<PathBuf>();
        let mut found: Vec<PathBuf> = self.visible(&start)?.into_iter().collect();
        for glob in &globs {
            let mut next = Vec::new();
            for dir in &found {
                if !dir.as_os_str().is_empty() && !self.root.stat(dir).is_ok_and(|stat| stat.kind == Kind::Dir) {
                    continue;
                }
                for entry in self.root.sub(dir)?.entries()? {
                    // Bytes that are no text count as one character each.
                    if glob.matches(&entry.name.to_string_lossy()) {
                        next.push(dir.join(&entry.name));
                    }
                }
            }
            found = next;
        }
        let mut selected = Vec::new();
        for path in &found {
            match self.named(path)? {
                Some(found) => selected.push(found),
                // Whoever names a link asks for what it leads to.
                None if self.link_target(path).is_some()
                    && !self.exclude.is_some_and(|e| e.excludes(&base_name(path))) =>
                {
                    return Err(self.not_found(&path.to_string_lossy(), path));
                }
                None => {}
            }
        }
        Ok(selected)
    }

    /// Where a link that is not left out leads.
    fn link_target(&self, path: &Path) -> Option<PathBuf> {
        let (dir, name) = (path.parent().unwrap_or(Path::new("")), path.file_name()?);
        let real = self.visible(dir).ok()??.join(name);
        let is_link = !self.ignored(&real) && self.root.stat(&real).is_ok_and(|stat| stat.kind == Kind::Symlink);
        is_link.then(|| self.root.resolve(&real).ok()).flatten()
    }

    fn named(&self, path: &Path) -> Result<Option<Selected>, SourceError> {
        let Some(real) = self.visible(path)? else { return Ok(None) };
        let name = PathBuf::from(path.file_name().unwrap_or_default());
        let stat = match self.root.stat(&real) {
            Ok(stat) if stat.is_whiteout() => return Ok(None),
            Ok(stat) => stat,
            Err(e) if e.is_not_found() || e.kind() == std::io::ErrorKind::NotADirectory => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        // A directory that is left out is there for what is taken back in, and without any of that it is not.
        let there = !self.ignored(&real) || (stat.kind == Kind::Dir && self.holds_anything(&real)?);
        Ok(there.then_some(Selected { path: real, name, take: Take::Content, stat }))
    }

    /// Where a path leads, relative to the root; `None` by way of a link that is left out: it is not there to be followed.
    pub(crate) fn visible(&self, path: &Path) -> Result<Option<PathBuf>, SourceError> {
        let real = self.root.resolve_by(path, |link| !self.ignored(link))?;
        Ok(real.map(|real| real.strip_prefix("/").map(Path::to_path_buf).unwrap_or(real)))
    }

    /// Whether anything below an ignored directory is taken back in.
    fn holds_anything(&self, dir: &Path) -> Result<bool, SourceError> {
        enum Stop {
            Found,
            Failed(SourceError),
        }
        impl From<SourceError> for Stop {
            fn from(e: SourceError) -> Stop {
                Stop::Failed(e)
            }
        }
        if !self.ignore.is_some_and(Ignore::has_negations) {
            return Ok(false);
        }
        match (SourceTree { exclude: None, ..*self }).walk(dir, |_, _, _| Err(Stop::Found)) {
            Ok(()) => Ok(false),
            Err(Stop::Found) => Ok(true),
            Err(Stop::Failed(e)) => Err(e),
        }
    }

    pub(crate) fn ignored(&self, path: &Path) -> bool {
        match self.ignore {
            Some(ignore) if !ignore.is_empty() && !path.as_os_str().is_empty() => {
                ignore.excludes(&path.to_string_lossy())
            }
            _ => false,
        }
    }

    pub(crate) fn not_found(&self, source: &str, path: &Path) -> SourceError {
        // It is there for who does not ask the ignore file.
        let seen = |tree: &SourceTree<'_>| tree.named(path).is_ok_and(|found| found.is_some());
        let ignored = !seen(self) && seen(&SourceTree { ignore: None, ..*self });
        if let Some(target) = self.link_target(path).filter(|_| !ignored) {
            return SourceError::DeadLink { path: source.to_string(), target };
        }
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

/// Whether a source is a pattern: it has `*`, `?` or `[` that no backslash stands before.
pub fn is_pattern(source: &str) -> bool {
    let mut chars = source.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => drop(chars.next()),
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

fn base_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The parts of a source path: relative to the root, never above it.
pub(crate) fn clean_parts(source: &str) -> Vec<String> {
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
