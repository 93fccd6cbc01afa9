//! Errors and warnings with excerpts of the Dockerfile.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use rbuild_dockerfile::{Diagnostic, Help, Span};
use rbuild_engine::{BuildError, StepFailure};
use rbuild_remedy::counted;

use crate::exit;
use crate::ui::columns::{self, ELLIPSIS};
use crate::ui::hints::Hint;
use crate::ui::plain::plain;
use crate::ui::terminal;
use rbuild_engine::push_colored;

/// Name of a Dockerfile that is read from standard input.
pub const STDIN_NAME: &str = "Dockerfile (standard input)";

/// A Dockerfile and its line index.
pub struct SourceText<'a> {
    pub name: &'a str,
    pub text: &'a str,
    /// Byte offsets of the starts of lines.
    lines: Vec<usize>,
}

impl<'a> SourceText<'a> {
    pub fn new(name: &'a str, text: &'a str) -> SourceText<'a> {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(i, _)| i + 1)).collect();
        SourceText { name, text, lines }
    }

    /// Returns true if the name is that of a file.
    pub fn is_file(&self) -> bool {
        self.name != STDIN_NAME
    }

    /// Returns the number (from 1) of the line that contains a byte, and the offset of its start.
    pub fn line(&self, at: usize) -> (usize, usize) {
        let number = self.lines.partition_point(|start| *start <= at);
        (number, self.lines[number.saturating_sub(1)])
    }

    /// Returns the lines of a span with the number and the offset of the first. Only these lines
    /// are passed to the renderer, because its time grows with the length of the text.
    pub fn excerpt(&self, span: Span) -> (usize, usize, &'a str) {
        let (number, start) = self.line(span.start);
        let (last, _) = self.line(span.end.saturating_sub(1).max(span.start));
        let end = self.lines.get(last).copied().unwrap_or(self.text.len());
        (number, start, &self.text[start..end])
    }
}

/// Maximum number of errors of a Dockerfile that are shown. A file that is not a Dockerfile has an
/// error in each line.
pub const MAX_SHOWN: usize = 20;

/// Formats a build error for the terminal.
pub fn build_error(e: &BuildError, source: &SourceText<'_>, colors: bool) -> String {
    match e {
        BuildError::Dockerfile(list) | BuildError::Unmet(list) => {
            let mut shown: Vec<_> = list.iter().take(MAX_SHOWN).map(|d| diagnostic(d, source, colors)).collect();
            let more = list.len() - shown.len();
            shown.extend((more > 0).then(|| terminal::error_text(&counted(more as u64, "more error"), None, colors)));
            shown.join("\n")
        }
        BuildError::Step(failure) => step_failure(failure, source, colors),
        other => terminal::error_text(&other.message(), exit::help_of(other).as_ref(), colors),
    }
}

/// Formats the failure of a step. The last lines of its command are the last ones of all, because
/// they often state the reason.
fn step_failure(f: &StepFailure, source: &SourceText<'_>, colors: bool) -> String {
    let word = f.word.as_deref().and_then(|word| word_within(word, f.span, source.text));
    let mut d = Diagnostic::new(word.unwrap_or(f.span), f.message());
    d.help = f.help.clone().map(Help::from);
    let mut text = diagnostic(&d, source, colors);
    if let Some(build) = &f.more {
        text.push_str(&format!(
            "last {}; for the whole log, run: rbuild logs {build} \"{}\"\n",
            counted(f.log.len() as u64, "line"),
            f.label
        ));
    }
    if !f.log.is_empty() {
        text.push_str(&format!("------\n > output of [{}]:\n", f.label));
        for line in &f.log {
            push_colored(&mut text, line);
            text.push('\n');
        }
        text.push_str("------\n");
    }
    text
}

/// Returns the span of the first occurrence of a word within a span.
fn word_within(word: &str, span: Span, text: &str) -> Option<Span> {
    let part = text.get(span.start..span.end)?;
    let is_part_of_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    let found = part.match_indices(word).find(|(at, _)| {
        let (before, after) = (&part[..*at], &part[at + word.len()..]);
        !before.ends_with(is_part_of_word) && !after.starts_with(is_part_of_word)
    });
    found.map(|(at, _)| Span::new(span.start + at, span.start + at + word.len()))
}

/// Returns the first line of a text.
pub fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or("")
}

/// Formats an error with an excerpt of the Dockerfile that marks the word in question.
pub fn diagnostic(d: &Diagnostic, source: &SourceText<'_>, colors: bool) -> String {
    excerpt(d, Level::ERROR, source, colors, terminal::columns())
}

/// Formats a warning like [`diagnostic`].
pub fn warning(d: &Diagnostic, source: &SourceText<'_>, colors: bool) -> String {
    excerpt(d, Level::WARNING, source, colors, terminal::columns())
}

/// The longest excerpt, in lines.
const MAX_LINES: usize = 20;

/// Formats a message with an excerpt of a Dockerfile, for a terminal of that width if there is one.
fn excerpt(d: &Diagnostic, level: Level<'_>, source: &SourceText<'_>, colors: bool, columns: Option<usize>) -> String {
    let span = inside(d.span, source.text);
    let message = plain(&d.message);
    let title = level.primary_title(message.as_ref());
    let group = if d.span == Span::default() {
        Group::with_title(title)
    } else {
        let (number, start, lines) = source.excerpt(span);
        let range = marked(lines, span.start - start..(span.end - start).min(lines.len()));
        let (lines, range) = match columns {
            Some(columns) => cut_lines(lines, range, columns.saturating_sub(MARGIN)),
            None => (lines.to_string(), range),
        };
        let annotation = AnnotationKind::Primary.span(range);
        title.element(Snippet::source(lines).line_start(number).path(source.name).annotation(annotation).fold(false))
    };
    let renderer = if colors { Renderer::styled() } else { Renderer::plain() };
    let mut text = renderer.render(&[group]);
    text.push('\n');
    if let Some(help) = &d.help {
        text.push_str(&Hint::from(help).line(colors));
    }
    text
}

/// Columns that precede the source text in an excerpt of a Dockerfile of up to 9999 lines: the
/// number of the line, and the mark of a span of several lines.
const MARGIN: usize = 10;
/// Maximum width of a mark in an excerpt, in columns.
const MAX_MARK: usize = 60;

/// Returns the part of a range that is marked: at most [`MAX_MARK`] columns of the last line.
fn marked(lines: &str, range: Range<usize>) -> Range<usize> {
    let text = &lines[range.clone()];
    let last = text.rfind('\n').map_or(0, |at| at + 1);
    range.start..range.start + last + columns::prefix(&text[last..], MAX_MARK).len()
}

/// Cuts lines to that width. Returns them with the marked range in them, whose first character is
/// not cut off.
fn cut_lines(lines: &str, marked: Range<usize>, columns: usize) -> (String, Range<usize>) {
    let (mut text, mut cut_mark) = (String::new(), marked.clone());
    let mut at = 0;
    for line in lines.split_inclusive('\n') {
        let whole = line.trim_end_matches('\n');
        let cut = columns::cut(whole, columns);
        let shown = if cut == whole { whole.len() } else { cut.len() - ELLIPSIS.len_utf8() };
        let begins_later = (at..=at + whole.len()).contains(&marked.start) && marked.start - at >= shown;
        let (kept, shown) = if begins_later { (whole, whole.len()) } else { (&*cut, shown) };
        // What is cut off is marked by the ellipsis.
        let in_kept = |place: usize| if place <= shown { place } else { kept.len() };
        let within = |place: usize| (at..=at + whole.len()).contains(&place).then(|| in_kept(place - at));
        cut_mark.start = within(marked.start).map_or(cut_mark.start, |place| text.len() + place);
        cut_mark.end = within(marked.end).map_or(cut_mark.end, |place| text.len() + place);
        text.push_str(kept);
        text.push_str(&line[whole.len()..]);
        at += line.len();
    }
    // The empty line after the last line break.
    let after_all = |place: usize, cut: usize| if place >= at { text.len() } else { cut };
    let cut_mark = after_all(marked.start, cut_mark.start)..after_all(marked.end, cut_mark.end);
    (text, cut_mark)
}

/// Clamps a span to the text and to the longest excerpt, on character boundaries.
pub fn inside(span: Span, text: &str) -> Span {
    let mut start = span.start.min(text.len());
    let mut end = span.end.clamp(start, text.len());
    while !text.is_char_boundary(start) {
        start -= 1;
    }
    while !text.is_char_boundary(end) {
        end += 1;
    }
    if let Some((line, _)) = text[start..end].match_indices('\n').nth(MAX_LINES - 1) {
        end = start + line;
    }
    Span::new(start, start + text[start..end].trim_end().len())
}

#[cfg(test)]
mod tests {
    use rbuild_remedy::{FileRemedy, Remedy};

    use super::*;

    #[test]
    fn marks_and_lines_are_cut() {
        let long = "RUN ".to_string() + &"x".repeat(200);
        assert_eq!(marked(&long, 0..204), 0..60);
        assert_eq!(marked(&long, 150..204), 150..204);
        let several = format!("RUN a \\\n  {long}");
        assert_eq!(marked(&several, 0..several.len()), 0..8 + 60);
        let cut = |text: &str, range, columns| cut_lines(text, range, columns);
        assert_eq!(cut("RUN abc\ndef\n", 4..7, 20), ("RUN abc\ndef\n".into(), 4..7));
        assert_eq!(cut("RUN abc\ndef\n", 0..11, 5), ("RUN …\ndef\n".into(), 0..11));
        assert_eq!(cut("RUN abc\ndef\n", 0..7, 5), ("RUN …\ndef\n".into(), 0..7));
        // The marked word must be visible.
        assert_eq!(cut("RUN abc def\n", 8..11, 5), ("RUN abc def\n".into(), 8..11));
        assert_eq!(cut("long line\nRUN abc\n", 14..17, 7), ("long l…\nRUN abc\n".into(), 14..17));
    }

    proptest::proptest! {
        #[test]
        fn marks_of_cut_lines_are_parts_of_the_text(
            words in proptest::collection::vec("[a-zé文 ]{0,30}", 1..4),
            start in 0..120usize,
            length in 0..120usize,
            columns in 0..60usize,
        ) {
            let text = words.join("\n");
            let span = inside(Span::new(start, start + length), &text);
            let range = marked(&text, span.start..span.end);
            let (cut, mark) = cut_lines(&text, range.clone(), columns);
            let shown = cut.get(mark.clone());
            proptest::prop_assert!(shown.is_some(), "{mark:?} of {cut:?}");
            if !range.is_empty() {
                proptest::prop_assert_eq!(shown.and_then(|shown| shown.chars().next()), text[range].chars().next());
            }
        }

        #[test]
        fn each_excerpt_has_its_line_and_fits_any_window(
            words in proptest::collection::vec("[a-zé文 \t]{0,200}", 1..4),
            start in 0..400usize,
            length in 1..400usize,
            columns in proptest::option::of(0..300usize),
        ) {
            let text = words.join("\n");
            let source = SourceText::new("Dockerfile", &text);
            let d = Diagnostic::new(Span::new(start, start + length), "the message");
            for colors in [false, true] {
                let shown = excerpt(&d, Level::ERROR, &source, colors, columns);
                proptest::prop_assert!(shown.contains("Dockerfile:"), "{shown}");
            }
        }
    }

    #[test]
    fn build_errors_are_as_recorded() {
        let source = SourceText::new("Dockerfile", "FROM base\nRUN make \\\n  all\n");
        let at = |start, end| Diagnostic::new(Span::new(start, end), "the message");
        let step = |log: &[&str], more: Option<&str>| StepFailure {
            span: Span::new(10, 26),
            label: "build 2/3".into(),
            of_several: false,
            text: "RUN make all\nmore".into(),
            word: Some("all".into()),
            reason: "the command failed with exit code 2".into(),
            help: Some(Remedy::File(FileRemedy::CheckPermissions)),
            log: log.iter().map(|line| line.to_string()).collect(),
            more: more.map(|id| id.parse().expect("a valid ID")),
            at: 0,
        };
        let errors = [
            ("an error in the Dockerfile", BuildError::Dockerfile(vec![at(10, 13)])),
            (
                "a span of several lines",
                BuildError::Dockerfile(vec![at(10, 26).help(Remedy::File(FileRemedy::ShortenName))]),
            ),
            ("more errors than are shown", BuildError::Dockerfile(vec![at(0, 0); MAX_SHOWN + 1])),
            ("a failed step", BuildError::Step(Box::new(step(&[], None)))),
            ("a failed step with output", BuildError::Step(Box::new(step(&["one", "two"], Some("abc"))))),
            (
                "a failed step of one of several platforms",
                BuildError::Step(Box::new(StepFailure {
                    label: "linux/arm64 build 2/3".into(),
                    of_several: true,
                    ..step(&["one"], Some("abc"))
                })),
            ),
            ("an interruption", BuildError::Canceled),
        ];
        let text = errors.map(|(title, e)| format!("=== {title}\n{}", build_error(&e, &source, false)));
        rbuild_testkit::assert_recorded!("build-errors", text.join("\n"));
    }
}
