//! Errors with the place in the Dockerfile that they are about.

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use rbuild_dockerfile::{Diagnostic, Span};
use rbuild_engine::{BuildError, StepFailure};

/// The Dockerfile as errors show it.
pub struct Source<'a> {
    pub name: &'a str,
    pub text: &'a str,
}

/// All of an error, ready to print.
pub fn build_error(e: &BuildError, source: &Source<'_>, colours: bool) -> String {
    match e {
        BuildError::Dockerfile(list) | BuildError::Unmet(list) => {
            list.iter().map(|d| diagnostic(d, source, colours)).collect::<Vec<_>>().join("\n")
        }
        BuildError::Step(failure) => step_failure(failure, source, colours),
        other => {
            let mut text = title(&other.message(), colours);
            if let Some(help) = other.help() {
                text.push_str(&format!("  help: {help}\n"));
            }
            text
        }
    }
}

fn title(message: &str, colours: bool) -> String {
    let (on, off) = if colours { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
    format!("{on}error{off}: {message}\n")
}

fn step_failure(f: &StepFailure, source: &Source<'_>, colours: bool) -> String {
    let mut text = String::new();
    if !f.log.is_empty() {
        text.push_str(&format!("------\n > [{}] {}:\n", f.label, first_line(&f.text)));
        for line in &f.log {
            text.push_str(line);
            text.push('\n');
        }
        text.push_str("------\n");
    }
    let mut d = Diagnostic::new(f.span, f.reason.clone());
    d.help = f.help.clone();
    text.push_str(&diagnostic(&d, source, colours));
    text
}

pub fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or("")
}

/// One error with an excerpt and a caret under the very word.
pub fn diagnostic(d: &Diagnostic, source: &Source<'_>, colours: bool) -> String {
    excerpt(d, Level::ERROR, source, colours)
}

/// As [`diagnostic`], for what is only likely wrong.
pub fn warning(d: &Diagnostic, source: &Source<'_>, colours: bool) -> String {
    excerpt(d, Level::WARNING, source, colours)
}

fn excerpt(d: &Diagnostic, level: Level<'_>, source: &Source<'_>, colours: bool) -> String {
    let span = inside(d.span, source.text);
    let snippet =
        Snippet::source(source.text).path(source.name).annotation(AnnotationKind::Primary.span(span.start..span.end));
    let mut group = level.primary_title(d.message.as_str()).element(snippet);
    if let Some(help) = &d.help {
        group = group.element(Level::HELP.message(help.as_str()));
    }
    let renderer = if colours { Renderer::styled() } else { Renderer::plain() };
    let mut text = renderer.render(&[group]);
    text.push('\n');
    text
}

/// The span as one that lies in the text, on character boundaries.
fn inside(span: Span, text: &str) -> Span {
    let mut start = span.start.min(text.len());
    let mut end = span.end.clamp(start, text.len());
    while !text.is_char_boundary(start) {
        start -= 1;
    }
    while !text.is_char_boundary(end) {
        end += 1;
    }
    // Several lines of one instruction: the first is enough to find it.
    if let Some(line) = text[start..end].find('\n') {
        end = start + line;
    }
    Span::new(start, end)
}
