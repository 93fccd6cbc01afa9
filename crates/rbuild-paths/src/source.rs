//! Sources of COPY and ADD, parsed once: paths, patterns, and patterns of `--parents`.

use std::path::{Path, PathBuf};

use crate::glob::Glob;
use crate::{in_root, is_pattern};

/// A source as written, and its parsed form.
///
/// Parsing never fails: a pattern with a syntax error is [`SourceForm::Invalid`], which is
/// reported when files are selected by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourcePattern {
    text: String,
    form: SourceForm,
}

/// The parsed form of a source. All paths are relative to the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceForm {
    /// One path.
    Path(PathBuf),
    /// The paths below `start` that match one glob per component.
    Glob {
        /// The components before the first pattern.
        start: PathBuf,
        /// The remaining components.
        components: Vec<Glob>,
    },
    /// `--parents`: the paths below a pivot that a glob matches, with their parent directories.
    Parents {
        /// The directories that copied paths are relative to, written before `/./`; the root by
        /// default.
        pivot: Box<SourcePattern>,
        /// The pattern below each pivot; `**` matches across components.
        below: Glob,
        /// True if the pivots are copied as a whole, because nothing is written after `/./`.
        whole: bool,
        /// True if it is an error that nothing matches, because neither part is a pattern.
        required: bool,
    },
    /// A pattern with a syntax error.
    Invalid,
}

impl SourcePattern {
    /// Parses a source of COPY or ADD.
    pub fn parse(text: &str) -> SourcePattern {
        if !is_pattern(text) {
            return SourcePattern::literal(text);
        }
        let parts = in_root(text);
        let literal = parts.iter().take_while(|part| !is_pattern(part)).count();
        let start = parts[..literal].iter().collect();
        let components = parts[literal..].iter().map(|part| Glob::new(part, false)).collect::<Option<_>>();
        let form = components.map_or(SourceForm::Invalid, |components| SourceForm::Glob { start, components });
        SourcePattern { text: text.to_string(), form }
    }

    /// Parses a source of `COPY --parents`.
    pub fn with_parents(text: &str) -> SourcePattern {
        let (above, kept) = text.split_once("/./").unwrap_or(("", text));
        let pattern = in_root(kept).join("/");
        let whole = pattern.is_empty();
        let required = !is_pattern(above) && !is_pattern(kept) && !whole;
        let pivot = Box::new(SourcePattern::parse(above));
        let form = Glob::new(&pattern, true).map_or(SourceForm::Invalid, |below| SourceForm::Parents {
            pivot,
            below,
            whole,
            required,
        });
        SourcePattern { text: text.to_string(), form }
    }

    /// Returns a source that is a single path. No character of `text` is special.
    pub fn literal(text: &str) -> SourcePattern {
        SourcePattern { text: text.to_string(), form: SourceForm::Path(in_root(text).into_iter().collect()) }
    }

    /// Returns the source as written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the parsed form.
    pub fn form(&self) -> &SourceForm {
        &self.form
    }

    /// Returns the path, relative to the root, if the source is a single path.
    pub fn path(&self) -> Option<&Path> {
        match &self.form {
            SourceForm::Path(path) => Some(path),
            SourceForm::Glob { .. } | SourceForm::Parents { .. } | SourceForm::Invalid => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the parts of a form; `|` separates the start or the pivot from what is matched.
    fn shown(pattern: &SourcePattern) -> String {
        match pattern.form() {
            SourceForm::Path(path) => path.display().to_string(),
            SourceForm::Glob { start, components } => format!("{}|{}", start.display(), components.len()),
            SourceForm::Parents { pivot, below: _, whole, required } => {
                let mark = |on: bool, text: &'static str| if on { text } else { "" };
                format!("({})|{}{}", shown(pivot), mark(*whole, "whole"), mark(*required, "required"))
            }
            SourceForm::Invalid => "invalid".into(),
        }
    }

    #[test]
    fn sources_are_paths_or_patterns_of_components() {
        for (text, want) in [
            ("", ""),
            ("/", ""),
            ("./a//b/../c/", "a/c"),
            ("../../a", "a"),
            // Escapes are part of a path, and of the components before the first pattern.
            (r"a\*", r"a\*"),
            ("a/b/*.go", "a/b|1"),
            ("a/../b/*/c", "b|2"),
            ("*/../b*", "|1"),
            ("[a-c]/x", "|2"),
            ("a/[", "invalid"),
            ("a/[/..", "a|0"),
            (r"*\", "invalid"),
        ] {
            let pattern = SourcePattern::parse(text);
            assert_eq!(shown(&pattern), want, "{text}");
            assert_eq!(pattern.text(), text);
        }
    }

    #[test]
    fn sources_with_parents_have_a_pivot() {
        for (text, want) in [
            ("a/b", "()|required"),
            ("a/./b", "(a)|required"),
            ("a/./", "(a)|whole"),
            (".", "()|whole"),
            ("*/./b", "(|1)|"),
            ("a/./b*", "(a)|"),
            ("**/b", "()|"),
            ("[/./b", "(invalid)|"),
            ("a/[-]", "invalid"),
        ] {
            assert_eq!(shown(&SourcePattern::with_parents(text)), want, "{text}");
        }
    }

    #[test]
    fn patterns_are_not_paths() {
        assert_eq!(SourcePattern::parse("/a/b").path(), Some(Path::new("a/b")));
        assert_eq!(SourcePattern::literal("a*").path(), Some(Path::new("a*")));
        assert_eq!(SourcePattern::parse("a*").path(), None);
        assert_eq!(SourcePattern::with_parents("a").path(), None);
    }
}
