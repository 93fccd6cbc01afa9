//! Annotations of a workflow of GitHub with the errors of a build.

use rbuild_dockerfile::{Diagnostic, Span};
use rbuild_engine::BuildError;
use rbuild_remedy::sentence;

use crate::ui::diagnostics::{MAX_SHOWN, SourceText, first_line};
use crate::ui::plain::plain;
use crate::ui::workflow_commands;

/// Returns the lines that annotate a build with its errors, at their places in the Dockerfile.
/// `hide` removes secrets and logins from the messages.
pub fn errors(e: &BuildError, source: &SourceText<'_>, hide: &dyn Fn(String) -> String) -> String {
    match e {
        BuildError::Dockerfile(list) | BuildError::Unmet(list) => diagnostics(list, source, hide),
        BuildError::Step(f) => {
            let text = format!("[{}] {}: {}", f.label, first_line(&f.text), sentence(&*f.reason));
            error(Some(f.span), text, source, hide)
        }
        other => error(None, other.message(), source, hide),
    }
}

/// Returns the lines for those diagnostics that are shown.
pub fn diagnostics(list: &[Diagnostic], source: &SourceText<'_>, hide: &dyn Fn(String) -> String) -> String {
    list.iter().take(MAX_SHOWN).map(|d| error(Some(d.span), d.message.clone(), source, hide)).collect()
}

/// Returns the line for one error. Without a file, it has no place.
fn error(span: Option<Span>, text: String, source: &SourceText<'_>, hide: &dyn Fn(String) -> String) -> String {
    let span = span.filter(|span| span.start < span.end && source.is_file());
    let place = span.map(|span| (source.name, source.line(span.start).0));
    workflow_commands::error(place, &plain(&hide(text)))
}

#[cfg(test)]
mod tests {
    use rbuild_engine::StepFailure;

    use super::*;
    use crate::ui::diagnostics::STDIN_NAME;

    #[test]
    fn annotations_of_errors_are_as_recorded() {
        let source = SourceText::new("a,b:c/Dockerfile", "FROM base\nRUN make \\\n  all\n");
        let at = |start, end| Diagnostic::new(Span::new(start, end), "100 %\n::sure");
        let step = StepFailure {
            span: Span::new(10, 26),
            label: "linux/arm64 build 2/3".into(),
            of_several: true,
            text: "RUN make all\nmore".into(),
            word: Some("all".into()),
            reason: "the command failed with exit code 2".into(),
            help: None,
            log: vec!["::error::no command".into()],
            more: None,
            at: 0,
        };
        let errors = [
            BuildError::Dockerfile(vec![at(5, 9), at(10, 13), at(0, 0)]),
            BuildError::Step(Box::new(step)),
            BuildError::Canceled,
        ];
        let hide = |text: String| text.replace("sure", "****");
        let mut text = errors.map(|e| super::errors(&e, &source, &hide)).concat();
        let unnamed = SourceText::new(STDIN_NAME, source.text);
        text += &diagnostics(&vec![at(5, 9); MAX_SHOWN + 1], &unnamed, &hide);
        rbuild_testkit::assert_recorded!("annotations", text);
    }
}
