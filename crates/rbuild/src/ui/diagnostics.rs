//! Errors and warnings with excerpts of the Dockerfile.

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use rbuild_dockerfile::{Diagnostic, Span};
use rbuild_engine::{BuildError, StepFailure};

use crate::ui::plain::plain;
use crate::ui::{hints, terminal};

/// A Dockerfile and its line index.
pub struct Source<'a> {
    pub name: &'a str,
    pub text: &'a str,
    /// Byte offsets of the starts of lines.
    lines: Vec<usize>,
}

impl<'a> Source<'a> {
    pub fn new(name: &'a str, text: &'a str) -> Source<'a> {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(i, _)| i + 1)).collect();
        Source { name, text, lines }
    }

    /// Returns the number (from 1) of the line that contains a byte, and the offset of its start.
    pub fn line(&self, at: usize) -> (usize, usize) {
        let number = self.lines.partition_point(|start| *start <= at);
        (number, self.lines[number.saturating_sub(1)])
    }

    /// Returns the number, offset and text of the line that contains a byte.
    fn excerpt(&self, at: usize) -> (usize, usize, &'a str) {
        let (number, start) = self.line(at.min(self.text.len()));
        let end = self.lines.get(number).copied().unwrap_or(self.text.len());
        (number, start, &self.text[start..end])
    }
}

/// Formats a build error for the terminal.
pub fn build_error(e: &BuildError, source: &Source<'_>, colours: bool) -> String {
    match e {
        BuildError::Dockerfile(list) | BuildError::Unmet(list) => {
            list.iter().map(|d| diagnostic(d, source, colours)).collect::<Vec<_>>().join("\n")
        }
        BuildError::Step(failure) => step_failure(failure, source, colours),
        other => {
            let help = other.help().as_ref().map(hints::words);
            terminal::error_text(&other.message(), help.as_deref(), colours)
        }
    }
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
    if let Some(build) = &f.more {
        text.push_str(&format!(
            "last {} lines; for the whole log, run: rbuild logs {build} \"{}\"\n",
            f.log.len(),
            f.label
        ));
    }
    let mut d = Diagnostic::new(f.span, f.reason.clone());
    d.help = f.help.clone();
    text.push_str(&diagnostic(&d, source, colours));
    text
}

/// Returns the first line of a text.
pub fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or("")
}

/// Formats an error with an excerpt of the Dockerfile that marks the word in question.
pub fn diagnostic(d: &Diagnostic, source: &Source<'_>, colours: bool) -> String {
    excerpt(d, Level::ERROR, source, colours)
}

/// Formats a warning like [`diagnostic`].
pub fn warning(d: &Diagnostic, source: &Source<'_>, colours: bool) -> String {
    excerpt(d, Level::WARNING, source, colours)
}

fn excerpt(d: &Diagnostic, level: Level<'_>, source: &Source<'_>, colours: bool) -> String {
    let span = inside(d.span, source.text);
    // Pass only one line to the renderer, whose time grows with the length of the text.
    let (number, start, line) = source.excerpt(span.start);
    let range = span.start - start..(span.end - start).min(line.len()).max(span.start - start);
    let annotation = AnnotationKind::Primary.span(range);
    let snippet = Snippet::source(line).line_start(number).path(source.name).annotation(annotation);
    let message = plain(&d.message);
    let group = level.primary_title(message.as_ref()).element(snippet);
    let renderer = if colours { Renderer::styled() } else { Renderer::plain() };
    let mut text = renderer.render(&[group]);
    text.push('\n');
    if let Some(help) = &d.help {
        text.push_str(&hints::line(&hints::words(help), colours));
    }
    text
}

/// Clamps a span to the first line that it covers, on character boundaries.
fn inside(span: Span, text: &str) -> Span {
    let mut start = span.start.min(text.len());
    let mut end = span.end.clamp(start, text.len());
    while !text.is_char_boundary(start) {
        start -= 1;
    }
    while !text.is_char_boundary(end) {
        end += 1;
    }
    // Of an instruction with several lines, mark only the first.
    if let Some(line) = text[start..end].find('\n') {
        end = start + line;
    }
    Span::new(start, end)
}
