//! Workflow commands of GitHub: lines of a log that begin with `::`, which the service executes.

use rbuild_dockerfile::Span;
use rbuild_engine::BuildError;
use rbuild_remedy::sentence;

use crate::ui::diagnostics::{SourceText, first_line};
use crate::ui::plain::plain;

/// Prefix of lines that would be executed otherwise. The service ignores leading spaces.
const QUOTE: &str = "| ";

/// Returns the line that annotates a build with a warning.
pub fn warning(text: &str) -> String {
    format!("::warning::{}\n", escaped(text))
}

/// Returns the line that begins a group.
pub fn group(title: &str) -> String {
    format!("::group::{}\n", escaped(title))
}

/// Returns the lines that annotate a build with its errors, at their places in the Dockerfile.
/// `hide` removes secrets and logins from the messages.
pub fn errors(e: &BuildError, source: &SourceText<'_>, hide: &dyn Fn(String) -> String) -> String {
    let error = |span: Option<Span>, text: String| {
        let line = span.filter(|span| span.start < span.end).map(|span| source.line(span.start).0);
        let place = line.map(|line| format!(" file={},line={line}", escaped_property(source.name)));
        format!("::error{}::{}\n", place.unwrap_or_default(), escaped(&plain(&hide(text))))
    };
    match e {
        BuildError::Dockerfile(list) | BuildError::Unmet(list) => {
            list.iter().map(|d| error(Some(d.span), d.message.clone())).collect()
        }
        BuildError::Step(f) => {
            let text = format!("[{}] {}: {}", f.label, first_line(&f.text), sentence(&*f.reason));
            error(Some(f.span), text)
        }
        other => error(None, other.message()),
    }
}

/// Returns a text of which no line is a workflow command.
pub fn quoted_commands(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive(['\n', '\r']) {
        if line.trim_start().starts_with("::") {
            out.push_str(QUOTE);
        }
        out.push_str(line);
    }
    out
}

/// Escapes the message of a command, which must be one line.
fn escaped(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// Escapes the value of a property, which also must not end the property.
fn escaped_property(text: &str) -> String {
    escaped(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use rbuild_dockerfile::Diagnostic;
    use rbuild_engine::StepFailure;

    use super::*;

    #[test]
    fn annotations_of_errors_are_as_recorded() {
        let source = SourceText::new("a,b:c/Dockerfile", "FROM base\nRUN make \\\n  all\n");
        let at = |start, end| Diagnostic::new(Span::new(start, end), "100 %\n::sure");
        let step = StepFailure {
            span: Span::new(10, 26),
            label: "build 2/3".into(),
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
        let text = errors.map(|e| super::errors(&e, &source, &hide)).concat();
        rbuild_testkit::assert_recorded!("workflow-commands", text);
    }

    #[test]
    fn no_line_of_a_quoted_text_is_a_command() {
        for (text, want) in [
            ("::warning::x\n", "| ::warning::x\n"),
            ("a\n \t::error::x\nb::c\n", "a\n|  \t::error::x\nb::c\n"),
            ("50%\r::add-mask::x", "50%\r| ::add-mask::x"),
            ("a\n\n1 | ::x\n", "a\n\n1 | ::x\n"),
        ] {
            assert_eq!(quoted_commands(text), want);
        }
    }
}
