//! Diagnostics about files that a step cannot select.

use std::io;
use std::path::Path;

use rbuild_dockerfile::{Diagnostic, Span};
use rbuild_remedy::{DockerfileRemedy, FileRemedy, Remedy};
use rbuild_source::{IgnoreError, SourceError};

use crate::error::BuildError;

/// Converts a selection error to a diagnostic at the source in the Dockerfile. `from` is the stage,
/// context or image as written; `None` for the build context.
pub fn source_error(e: SourceError, span: Span, from: Option<&str>) -> BuildError {
    let root = from.map_or("the build context".to_string(), |from| format!("`{from}`"));
    let message = match (&e, from) {
        (SourceError::NotFound { .. }, Some(from)) => format!("{e} in `{from}`"),
        (SourceError::DeadLink { path, target }, _) => {
            format!("`{path}` is a symbolic link to `{}`, which does not exist in {root}", target.display())
        }
        _ => e.to_string(),
    };
    let d = Diagnostic::new(span, message);
    BuildError::Unmet(vec![match e {
        SourceError::NotFound { ignored: Some(rule), .. } => d.help(Remedy::from(FileRemedy::RemovePattern(rule))),
        SourceError::NotFound { similar: Some(name), .. } if name.contains(' ') => {
            d.help(Remedy::from(DockerfileRemedy::UseJsonForm { name }))
        }
        SourceError::NotFound { similar: Some(name), path, .. } => {
            let root = if path.starts_with('/') { "/" } else { "" };
            d.help(Remedy::did_you_mean(format!("{root}{name}")))
        }
        SourceError::NotFound { path, .. } if path.starts_with("-") => {
            d.help(Remedy::from(DockerfileRemedy::WriteFlag))
        }
        SourceError::NotFound { path, .. } if path.contains("://") => d.help(Remedy::from(DockerfileRemedy::UseAdd)),
        SourceError::NotFound { path, .. } if Path::new(&path).starts_with("..") && from.is_none() => {
            d.help(Remedy::from(FileRemedy::CopyInto { root }))
        }
        SourceError::NotFound { .. } => d.help(Remedy::File(FileRemedy::CorrectPath { root })),
        SourceError::DeadLink { target, .. } if target.is_absolute() => {
            d.help(Remedy::from(FileRemedy::CopyInto { root }))
        }
        SourceError::DeadLink { .. } => d.help(Remedy::from(FileRemedy::CorrectLink)),
        SourceError::Changed(_) => d.help(Remedy::from(FileRemedy::AwaitWriters)),
        SourceError::BadPattern(text) if text.starts_with('[') => d.help(Remedy::from(DockerfileRemedy::SeparateItems)),
        SourceError::BadPattern(_) => d.help(Remedy::from(DockerfileRemedy::EscapeBracket)),
        SourceError::CrossesLink { .. } => d.help(Remedy::from(DockerfileRemedy::NameLinkTarget)),
        SourceError::InStore(_) => d.help(Remedy::from(FileRemedy::MoveStore)),
        // A path of the context; those of stages are always readable.
        SourceError::Kernel(e) if e.kind() == io::ErrorKind::PermissionDenied && from.is_none() => {
            match e.object().path() {
                Some(path) => d.help(Remedy::from(FileRemedy::PermitOrIgnore { path: path.components().collect() })),
                None => d,
            }
        }
        SourceError::Kernel(_) | SourceError::TooDeep(_) => d,
    }])
}

/// Returns the diagnostic about an invalid pattern of `--exclude`.
pub fn bad_exclusion(e: &IgnoreError, span: Span) -> Diagnostic {
    Diagnostic::new(span, format!("--exclude: {}", e.reason))
}

#[cfg(test)]
mod tests {
    use rbuild_source::Ignore;
    use rbuild_testkit::assert_recorded;

    use rbuild_remedy::ExcludingRule;

    use super::*;

    #[test]
    fn sources_that_cannot_be_copied_are_reported_as_recorded() {
        let not_found = |path: &str, similar: Option<&str>, ignored| SourceError::NotFound {
            path: path.into(),
            similar: similar.map(str::to_string),
            ignored,
        };
        let rule = Box::new(ExcludingRule { file: ".dockerignore".into(), line: 3, pattern: "*.pem".into() });
        let dead_link = |target: &str| SourceError::DeadLink { path: "a".into(), target: target.into() };
        let kernel = rbuild_linux::Error::new("openat", Path::new("a"), std::io::Error::from_raw_os_error(13));
        let errors = [
            not_found("a", None, None),
            not_found("a", None, Some(rule)),
            not_found("a", Some("b"), None),
            not_found("/a", Some("b"), None),
            not_found("a", Some("b c"), None),
            not_found("-a", None, None),
            not_found("git://a.io/b", None, None),
            not_found("../a", None, None),
            dead_link("/b"),
            dead_link("b"),
            SourceError::BadPattern("[a".into()),
            SourceError::BadPattern("a[".into()),
            SourceError::CrossesLink { path: "a/b".into(), link: "a".into() },
            SourceError::Changed("a".into()),
            SourceError::TooDeep("a".into()),
            SourceError::InStore("a".into()),
            SourceError::Kernel(kernel),
        ];
        let row = |e: SourceError, from| {
            let BuildError::Unmet(found) = source_error(e, Span::default(), from) else { panic!() };
            found.into_iter().map(|d| format!("{}\n  help: {:?}\n", d.message, d.help)).collect::<String>()
        };
        let of_stage = [not_found("a", None, None), not_found("../a", None, None), dead_link("/b")];
        let mut table: String = errors.into_iter().map(|e| row(e, None)).collect();
        table.extend(of_stage.map(|e| row(e, Some("build"))));
        let pattern = Ignore::from_patterns(&["[a".to_string()]).map(drop).unwrap_err();
        assert_recorded!("sources", table + &bad_exclusion(&pattern, Span::default()).message);
    }
}
