//! Splits the source into logical lines: directives, comments, continuations, here-documents.

use std::collections::HashMap;

use crate::ast::{Comment, Directive, Heredoc, Word};
use crate::diagnostic::{Diagnostic, Span};
use crate::text::Text;
use crate::words;

/// Maximum length of a physical line in bytes. BuildKit's scanner has the same limit.
pub(crate) const MAX_LINE: usize = 64 * 1024 - 1;

/// An instruction with its continuation lines joined.
#[derive(Debug, Clone)]
pub struct Logical {
    pub text: Text,
    pub heredocs: Vec<Heredoc>,
    /// Range from the keyword to the end of the last line or here-document.
    pub span: Span,
    /// Comment lines directly above, after the last empty comment.
    pub comments: Vec<Comment>,
    pub placement: Placement,
}

/// Placement of an instruction relative to the one before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// First in the file, or after FROM, a here-document, a comment or a blank line.
    Separate,
    /// On the line after an instruction that a line continuation could extend.
    NextLine,
    /// As [`Placement::NextLine`], and indented.
    IndentedNextLine,
    /// Next after a here-document whose opener, such as `<< 2`, may be meant as a shift in an
    /// arithmetic expression.
    AfterShift(String),
}

/// A source split into logical lines.
pub struct LogicalLines {
    pub directives: Vec<Directive>,
    pub escape: char,
    pub logical: Vec<Logical>,
    /// Blank lines inside continued instructions.
    pub empty_continuations: Vec<Span>,
}

/// A physical line without its line ending.
#[derive(Clone, Copy)]
struct PhysicalLine<'a> {
    text: &'a str,
    start: usize,
    /// Text with the line ending, for the bodies of here-documents.
    raw: &'a str,
}

impl<'a> PhysicalLine<'a> {
    fn span(&self) -> Span {
        Span::new(self.start, self.start + self.text.len())
    }
    fn is_comment(&self) -> bool {
        self.text.trim_start().starts_with('#')
    }

    /// Returns the text of a comment. As in BuildKit, the first character of the line is cut off,
    /// so that an indented comment keeps its `#`.
    fn comment(&self) -> &'a str {
        let mut chars = self.text.chars();
        chars.next();
        chars.as_str().trim()
    }
}

fn physical(source: &str, from: usize) -> Vec<PhysicalLine<'_>> {
    let mut start = from;
    source[from..]
        .split_inclusive('\n')
        .map(|raw| {
            let text = raw.strip_suffix('\n').unwrap_or(raw);
            let text = text.strip_suffix('\r').unwrap_or(text);
            let line = PhysicalLine { text, start, raw };
            start += raw.len();
            line
        })
        .collect()
}

/// Splits a source into logical lines.
///
/// # Errors
///
/// Returns all errors that prevent splitting: overlong lines, invalid or repeated directives,
/// unterminated here-documents.
pub fn split(source: &str) -> Result<LogicalLines, Vec<Diagnostic>> {
    let bom = if source.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let lines = physical(source, bom);
    check_lengths(&lines).map_err(|d| vec![d])?;
    let mut errors = Vec::new();
    let (directives, first) = match lines.split_first() {
        // To BuildKit's parser, a shebang is a comment, which ends the directives. Only the look-up
        // of `syntax` and `check` skips it.
        Some((first, rest)) if first.text.starts_with("#!") => {
            let (mut found, _) = read_directives(rest, &mut errors);
            found.retain(|directive| directive.name != "escape");
            (found, 0)
        }
        _ => read_directives(&lines, &mut errors),
    };
    let escape = escape_of(&directives, &mut errors);
    let mut out = LogicalLines { directives, escape, logical: Vec::new(), empty_continuations: Vec::new() };
    let mut reader = LineReader { lines: &lines, at: first, escape, last: None, possible_shift: None };
    let mut comments: Vec<Comment> = Vec::new();
    let mut can_continue = false;
    while let Some(line) = reader.next() {
        if line.is_comment() {
            can_continue = false;
            match line.comment() {
                "" => comments.clear(),
                text => comments.push(Comment { text: text.to_string(), span: line.span() }),
            }
        } else if line.text.trim().is_empty() {
            can_continue = false;
            comments.clear();
        } else {
            let comments = std::mem::take(&mut comments);
            let placement = match reader.possible_shift.take() {
                Some(opener) => Placement::AfterShift(opener),
                None if !can_continue => Placement::Separate,
                None if line.text.starts_with([' ', '\t']) => Placement::IndentedNextLine,
                None => Placement::NextLine,
            };
            match reader.instruction(line, comments, &mut out.empty_continuations) {
                Ok(logical) => {
                    can_continue = logical.heredocs.is_empty() && !is_from(&logical.text);
                    out.logical.push(Logical { placement, ..logical });
                }
                Err(d) => errors.push(d),
            }
        }
    }
    if errors.is_empty() { Ok(out) } else { Err(errors) }
}

/// Returns an error for the first line that is too long.
fn check_lengths(lines: &[PhysicalLine<'_>]) -> Result<(), Diagnostic> {
    let length = |line: &PhysicalLine<'_>| line.raw.strip_suffix('\n').unwrap_or(line.raw).len();
    let Some(long) = lines.iter().find(|line| length(line) > MAX_LINE) else { return Ok(()) };
    let message = format!("line of {} bytes exceeds the limit of {MAX_LINE}", length(long));
    let d = Diagnostic::new(Span::new(long.start, long.start + 40), message);
    Err(d.help("split it with line continuations, or move it into a script"))
}

/// Returns the escape character that the directives set, or else the default.
fn escape_of(directives: &[Directive], errors: &mut Vec<Diagnostic>) -> char {
    let mut escape = '\\';
    for d in directives.iter().filter(|d| d.name == "escape") {
        match d.value.text.as_str() {
            "\\" => {}
            "`" => escape = '`',
            other => errors
                .push(Diagnostic::new(d.value.span, format!("invalid escape character `{other}`")).help("use \\ or `")),
        }
    }
    escape
}

fn is_from(text: &Text) -> bool {
    words::split_keyword(text).0.text.eq_ignore_ascii_case("FROM")
}

/// Parses the directives at the top of the file. Returns them and the index of the first other
/// line.
fn read_directives(lines: &[PhysicalLine<'_>], errors: &mut Vec<Diagnostic>) -> (Vec<Directive>, usize) {
    let mut found: Vec<Directive> = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let Some(directive) = directive(line) else { return (found, i) };
        if !["syntax", "escape", "check"].contains(&directive.name.as_str()) {
            return (found, i);
        }
        if found.iter().any(|d| d.name == directive.name) {
            errors.push(Diagnostic::new(line.span(), format!("duplicate directive `{}`", directive.name)));
        }
        found.push(directive);
    }
    (found, lines.len())
}

fn directive(line: &PhysicalLine<'_>) -> Option<Directive> {
    let (name, value) = name_and_value(line.text.trim_start().strip_prefix('#')?)?;
    let start = line.start + line.text.len() - value.len();
    let value = Word { text: value.trim().to_string(), span: Span::new(start, start + value.trim().len()) };
    Some(Directive { name, value })
}

/// Returns the name of a directive in lower case and its value, with blanks at its end, from the
/// text of a comment.
pub(crate) fn name_and_value(comment: &str) -> Option<(String, &str)> {
    let (name, value) = comment.split_once('=')?;
    let (name, value) = (name.trim(), value.trim_start());
    let mut chars = name.chars();
    let is_name = chars.next().is_some_and(|c| c.is_ascii_alphabetic()) && chars.all(|c| c.is_ascii_alphanumeric());
    (is_name && !value.is_empty()).then(|| (name.to_ascii_lowercase(), value))
}

struct LineReader<'a> {
    lines: &'a [PhysicalLine<'a>],
    at: usize,
    escape: char,
    /// Created when it is needed.
    last: Option<LastLines<'a>>,
    /// Opener of a here-document of the last instruction, if it may be meant as a shift.
    possible_shift: Option<String>,
}

/// The index of the last line with each text.
struct LastLines<'a> {
    exact: HashMap<&'a str, usize>,
    /// By the text without leading tabs.
    chomped: HashMap<&'a str, usize>,
}

impl<'a> LastLines<'a> {
    fn new(lines: &[PhysicalLine<'a>]) -> LastLines<'a> {
        let texts = || lines.iter().enumerate().map(|(i, line)| (line.text, i));
        LastLines {
            exact: texts().collect(),
            chomped: texts().map(|(text, i)| (text.trim_start_matches('\t'), i)).collect(),
        }
    }

    /// Returns true if the line at `from` or a later one ends the here-document.
    fn ends(&self, doc: &Heredoc, from: usize) -> bool {
        let last = if doc.chomp { &self.chomped } else { &self.exact };
        last.get(doc.name.as_str()).is_some_and(|line| *line >= from)
    }
}

impl<'a> LineReader<'a> {
    fn next(&mut self) -> Option<PhysicalLine<'a>> {
        let line = self.lines.get(self.at).copied();
        self.at += 1;
        line
    }

    /// Removes the continuation character at the end of a line. Returns the rest, and true if there
    /// is one. A doubled escape character does not continue the line.
    fn strip_continuation(&self, text: &'a str) -> (&'a str, bool) {
        let bare = text.trim_end_matches([' ', '\t']);
        match bare.strip_suffix(self.escape) {
            Some(rest) if !rest.ends_with(self.escape) => (rest, true),
            _ => (text, false),
        }
    }

    fn instruction(
        &mut self,
        first: PhysicalLine<'a>,
        comments: Vec<Comment>,
        empty: &mut Vec<Span>,
    ) -> Result<Logical, Diagnostic> {
        let mut text = Text::default();
        let indent = first.text.len() - first.text.trim_start().len();
        let (piece, mut more) = self.strip_continuation(&first.text[indent..]);
        text.push(piece, first.start + indent);
        let mut end = first.span().end;
        while more {
            let Some(line) = self.next() else { break };
            if line.is_comment() {
                continue;
            }
            if line.text.trim().is_empty() {
                empty.push(line.span());
                continue;
            }
            let (piece, again) = self.strip_continuation(line.text);
            text.push(piece, line.start);
            end = line.span().end;
            more = again;
        }
        let text = text.without_indent();
        let mut heredocs = Vec::new();
        for HeredocOpener { doc, has_blanks, possible_shift } in heredoc_openers(&text, self.escape) {
            let may_be_shift = possible_shift.is_some();
            if may_be_shift && has_blanks && !self.is_terminated(&doc) {
                continue;
            }
            let heredoc = self.heredoc(doc, may_be_shift)?;
            end = heredoc.end;
            heredocs.push(heredoc);
            self.possible_shift = possible_shift.or(self.possible_shift.take());
        }
        let start = text.source(0);
        let span = Span::new(start, end.max(start));
        Ok(Logical { text, heredocs, span, comments, placement: Placement::Separate })
    }

    /// Returns true if a line below ends the here-document.
    fn is_terminated(&mut self, doc: &Heredoc) -> bool {
        let lines = self.lines;
        self.last.get_or_insert_with(|| LastLines::new(lines)).ends(doc, self.at)
    }

    fn heredoc(&mut self, mut doc: Heredoc, may_be_shift: bool) -> Result<Heredoc, Diagnostic> {
        let body_start = self.lines.get(self.at).map_or(doc.opener.end, |l| l.start);
        while let Some(line) = self.next() {
            if doc.is_ended_by(line.text) {
                doc.body_span = Span::new(body_start, line.start);
                doc.end = line.span().end;
                return Ok(doc);
            }
            doc.body.push_str(line.raw);
        }
        let d = Diagnostic::new(doc.opener, format!("here-document `{}` is not terminated", doc.name));
        let mut help = format!("add a line that contains only `{}` after its text", doc.name);
        if may_be_shift {
            help += ", or remove all blanks from the arithmetic expression if `<<` is a shift";
        }
        Err(d.help(help))
    }
}

/// The start of a here-document.
struct HeredocOpener {
    /// The here-document, with an empty body.
    doc: Heredoc,
    /// True if blanks separate the delimiter from `<<`.
    has_blanks: bool,
    /// The opener as written, if it may be a shift in an arithmetic expression instead, such as
    /// `$((1 << 2))`.
    possible_shift: Option<String>,
}

/// Returns the here-documents that a logical line opens. Only the shell forms of RUN, COPY and ADD
/// have here-documents, also after ONBUILD.
fn heredoc_openers(text: &Text, escape: char) -> Vec<HeredocOpener> {
    let mut rest = text.text.as_str();
    loop {
        let (keyword, arguments) = rest.split_at(words::keyword_end(rest));
        rest = arguments.trim_start();
        match keyword.to_ascii_uppercase().as_str() {
            "ONBUILD" => continue,
            "RUN" | "COPY" | "ADD" => break,
            _ => return Vec::new(),
        }
    }
    if rest.starts_with('[') && words::json_strings(rest).is_ok() {
        return Vec::new();
    }
    let offset = text.text.len() - rest.len();
    let mut words = words::split_quoted(rest, escape).into_iter().peekable();
    let mut arithmetic = ArithmeticScan::default();
    let mut scanned = 0;
    let mut openers = Vec::new();
    while let Some((start, mut end)) = words.next() {
        if !rest[start..end].contains("<<") {
            continue;
        }
        arithmetic.advance(&rest[scanned..start]);
        scanned = start;
        // The delimiter may be separate from `<<`.
        let has_blanks = rest[start..end].ends_with("<<");
        if has_blanks {
            let delimiter = words.next_if(|(next, _)| rest[end..*next].chars().all(|c| " \t\r".contains(c)));
            end = delimiter.map_or(end, |(_, end)| end);
        }
        let word = &rest[start..end];
        let doc = Heredoc::from_word(word, text.span(offset + start, offset + end));
        let possible_shift = arithmetic.is_inside().then(|| word.to_string());
        openers.extend(doc.map(|doc| HeredocOpener { doc, has_blanks, possible_shift }));
    }
    openers
}

/// Finds arithmetic expressions of a shell: `((`, up to its closing parentheses. Parentheses in
/// quotes count as well.
#[derive(Default)]
struct ArithmeticScan {
    /// Number of open parentheses since `((`.
    depth: usize,
}

impl ArithmeticScan {
    /// Continues with the next part of a command, which does not begin within `((`.
    fn advance(&mut self, part: &str) {
        let mut bytes = part.bytes().peekable();
        while let Some(byte) = bytes.next() {
            self.depth = match (byte, self.depth) {
                (b'(', 0) => 2 * usize::from(bytes.next_if_eq(&b'(').is_some()),
                (b'(', depth) => depth + 1,
                (b')', depth) => depth.saturating_sub(1),
                (_, depth) => depth,
            };
        }
    }

    fn is_inside(&self) -> bool {
        self.depth > 0
    }
}
