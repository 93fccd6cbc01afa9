//! Errors with the place in the Dockerfile that they are about.

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use rbuild_dockerfile::{Diagnostic, Span};
use rbuild_engine::{BuildError, StepFailure};

/// The Dockerfile as errors show it.
pub struct Source<'a> {
    pub name: &'a str,
    pub text: &'a str,
    /// Where each line starts.
    lines: Vec<usize>,
}

impl<'a> Source<'a> {
    pub fn new(name: &'a str, text: &'a str) -> Source<'a> {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(i, _)| i + 1)).collect();
        Source { name, text, lines }
    }

    /// The line of a byte, counted from 1, and where it starts.
    pub fn line(&self, at: usize) -> (usize, usize) {
        let number = self.lines.partition_point(|start| *start <= at);
        (number, self.lines[number.saturating_sub(1)])
    }

    /// The line of a byte with its number and where it starts; the last line without text is the one before it.
    fn excerpt(&self, at: usize) -> (usize, usize, &'a str) {
        let (number, start) = self.line(at.min(self.text.len()));
        let end = self.lines.get(number).copied().unwrap_or(self.text.len());
        (number, start, &self.text[start..end])
    }
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
    if let Some(build) = &f.more {
        text.push_str(&format!("the last {} lines; all of them: rbuild logs {build} \"{}\"\n", f.log.len(), f.label));
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
    // The line alone: drawing must not take the longer the longer the file is.
    let (number, start, line) = source.excerpt(span.start);
    let range = span.start - start..(span.end - start).min(line.len()).max(span.start - start);
    let annotation = AnnotationKind::Primary.span(range);
    let snippet = Snippet::source(line).line_start(number).path(source.name).annotation(annotation);
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

#[cfg(test)]
mod tests {
    use super::*;
    use rbuild_image::{Digest, ImageConfig, Platform};
    use rbuild_plan::{BaseImage, Parameters, Plan, plan};

    /// What a Dockerfile's errors look like; nothing if it plans.
    fn shown(text: &[u8]) -> String {
        let params = Parameters::new(Platform::host());
        let config = ImageConfig::empty(&Platform::host());
        let images = [("base".to_string(), BaseImage { manifest: Digest::of(b""), config })].into();
        let planned = rbuild_dockerfile::parse(text).and_then(|file| plan(&file, &params, &images));
        let source = String::from_utf8_lossy(text);
        let source = Source::new("Dockerfile", &source);
        match planned {
            Err(errors) => build_error(&BuildError::Dockerfile(errors), &source, false),
            Ok(Plan::Graph(_)) => String::new(),
            Ok(Plan::Needs(needs)) => format!("{needs:?}"),
        }
    }

    fn unescape(text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        let mut bytes = text.bytes();
        while let Some(b) = bytes.next() {
            match b {
                b'\\' => match bytes.next() {
                    Some(b'n') => out.push(b'\n'),
                    Some(b'x') => {
                        let hex: String = bytes.by_ref().take(2).map(char::from).collect();
                        out.extend(u8::from_str_radix(&hex, 16).ok());
                    }
                    Some(other) => out.push(other),
                    None => {}
                },
                b => out.push(b),
            }
        }
        out
    }

    /// The file holds `=== name`, the Dockerfile on one line (`\n` and `\xNN` escaped), `---`, and what is shown.
    /// With UPDATE_SNAPSHOTS set it is written anew; read what changed before you commit it.
    #[test]
    fn every_error_looks_as_recorded() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/errors.txt");
        let recorded = std::fs::read_to_string(path).unwrap();
        let mut now = String::new();
        let mut count = 0;
        for case in recorded.split("=== ").skip(1) {
            let (name, rest) = case.split_once('\n').unwrap();
            let (source, _) = rest.split_once("\n---").unwrap();
            let text = shown(&unescape(source));
            assert!(text.starts_with("error: "), "{name} is no error any more: {text}");
            now.push_str(&format!("=== {name}\n{source}\n---\n{text}\n"));
            count += 1;
        }
        if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
            std::fs::write(path, now).unwrap();
        } else {
            let mut pairs = recorded.lines().zip(now.lines());
            let first = pairs.find(|(a, b)| a != b);
            assert!(recorded == now, "first difference (recorded, now): {first:#?}");
        }
        assert!(count >= 60, "{count}");
    }
}
