//! Lexical rules of paths: cleaning of `.` and `..`, and patterns.
//!
//! No function accesses a file system. The functions differ only in the treatment of a `..` at the
//! beginning of a path, which has no parent to lead to.

#![warn(missing_docs)]

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

mod glob;
mod source;

pub use glob::Glob;
pub use source::{SourceForm, SourcePattern};

/// Treatment of a `..` that would leave the beginning of the path.
#[derive(Clone, Copy)]
enum LeadingDotDot {
    Drop,
    Keep,
    Refuse,
}

fn clean<P: AsRef<OsStr> + Copy>(parts: impl Iterator<Item = P>, leading: LeadingDotDot) -> Option<Vec<P>> {
    let mut clean: Vec<P> = Vec::new();
    for part in parts {
        match part.as_ref().as_encoded_bytes() {
            b"" | b"." | b"/" => {}
            b".." if clean.last().is_some_and(|last| last.as_ref() != "..") => drop(clean.pop()),
            b".." => match leading {
                LeadingDotDot::Drop => {}
                LeadingDotDot::Keep => clean.push(part),
                LeadingDotDot::Refuse => return None,
            },
            _ => clean.push(part),
        }
    }
    Some(clean)
}

/// Returns the components of a path relative to the root. `..` stops at the root, as it does for
/// the kernel.
///
/// ```
/// assert_eq!(rbuild_paths::in_root("/a//./b/../../../c/"), ["c"]);
/// ```
pub fn in_root(path: &str) -> Vec<&str> {
    clean(path.split('/'), LeadingDotDot::Drop).unwrap_or_default()
}

/// Like [`in_root`], for paths of any bytes.
pub fn os_in_root(path: &Path) -> Vec<&OsStr> {
    clean(path.components().map(|part| part.as_os_str()), LeadingDotDot::Drop).unwrap_or_default()
}

/// Normalizes a path like Go's `filepath.Clean`: the `..` at the beginning of a relative path are
/// kept, and an empty path is `.`.
///
/// ```
/// assert_eq!(rbuild_paths::as_go("../a/../../b/"), "../../b");
/// ```
pub fn as_go(path: &str) -> String {
    let rooted = path.starts_with('/');
    let leading = if rooted { LeadingDotDot::Drop } else { LeadingDotDot::Keep };
    let parts = clean(path.split('/'), leading).unwrap_or_default();
    match (rooted, parts.is_empty()) {
        (true, _) => format!("/{}", parts.join("/")),
        (false, true) => ".".to_string(),
        (false, false) => parts.join("/"),
    }
}

/// Returns the path relative to the root, or `None` if a `..` leads out of it.
///
/// ```
/// use std::path::PathBuf;
///
/// assert_eq!(rbuild_paths::inside("./a/../b".as_ref()), Some(PathBuf::from("b")));
/// assert_eq!(rbuild_paths::inside("a/../..".as_ref()), None);
/// ```
pub fn inside(path: &OsStr) -> Option<PathBuf> {
    let parts = Path::new(path).components().map(|part| part.as_os_str());
    clean(parts, LeadingDotDot::Refuse).map(|parts| parts.into_iter().collect())
}

/// Returns the components of a path that has not been resolved yet: names and `..`. A `..` cannot
/// be removed lexically, because a symbolic link may precede it.
///
/// ```
/// use std::path::Path;
///
/// let parts: Vec<_> = rbuild_paths::unresolved(Path::new("/a/./link//../b")).collect();
/// assert_eq!(parts, ["a", "link", "..", "b"]);
/// ```
pub fn unresolved(path: &Path) -> impl DoubleEndedIterator<Item = &OsStr> {
    let parts = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    parts.map(|part| part.as_os_str())
}

/// Returns true if a source is a pattern: it contains an unescaped `*`, `?` or `[`.
///
/// ```
/// assert!(rbuild_paths::is_pattern("src/*.rs"));
/// assert!(!rbuild_paths::is_pattern(r"literal\*"));
/// ```
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Each row has a path, and its forms: in a root, as Go cleans it, and inside of an archive.
    #[test]
    fn clean_functions_differ_only_in_leading_parent_components() {
        let table = [
            ("", "", ".", Some("")),
            ("/", "", "/", Some("")),
            (".", "", ".", Some("")),
            ("a", "a", "a", Some("a")),
            ("/a/b/", "a/b", "/a/b", Some("a/b")),
            ("./a//b/.", "a/b", "a/b", Some("a/b")),
            ("a/../b", "b", "b", Some("b")),
            ("a/b/../..", "", ".", Some("")),
            ("..", "", "..", None),
            ("../../a", "a", "../../a", None),
            ("a/../../b", "b", "../b", None),
            ("/../a", "a", "/a", None),
            ("..a/...", "..a/...", "..a/...", Some("..a/...")),
        ];
        for (path, root, go, archive) in table {
            assert_eq!(in_root(path).join("/"), root, "{path:?}");
            assert_eq!(os_in_root(Path::new(path)).join(OsStr::new("/")), root, "{path:?}");
            assert_eq!(as_go(path), go, "{path:?}");
            assert_eq!(inside(path.as_ref()), archive.map(PathBuf::from), "{path:?}");
        }
    }

    #[test]
    fn escaped_characters_make_no_pattern() {
        for (source, want) in
            [("a", false), ("a?", true), ("[a]", true), (r"\[a]", false), (r"\\*", true), (r"a\", false)]
        {
            assert_eq!(is_pattern(source), want, "{source}");
        }
    }
}
