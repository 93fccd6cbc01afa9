//! Parses logical lines into the syntax tree.

mod arguments;
mod healthcheck;
mod instructions;

use crate::ast::*;
use crate::diagnostic::{Diagnostic, Help, Span};
use crate::flags::{self, Arity, Flags};
use crate::lines::{self, Logical, Placement};
use crate::parse::healthcheck::{healthcheck, is_none};
use crate::parse::instructions::{KEYWORDS, flags_of, form_of, is_instruction};
use crate::text::Text;
use crate::words::{self, split_keyword, whole};

const START: &str = "start with `FROM image`";

/// Parses a whole Dockerfile.
///
/// Bytes that are not UTF-8 are only allowed in comments.
///
/// # Errors
///
/// Returns all errors, in no particular order. The vector is never empty.
pub fn parse(source: &[u8]) -> Result<Dockerfile, Vec<Diagnostic>> {
    let (source, replaced) = crate::text::readable(source);
    let source = source.as_ref();
    if source.is_empty() {
        return Err(vec![Diagnostic::new(Span::default(), "the Dockerfile is empty").help(START)]);
    }
    let lines = lines::split(source)?;
    if lines.logical.is_empty() {
        let d = Diagnostic::new(Span::default(), "the Dockerfile contains no instructions");
        return Err(vec![d.help(START)]);
    }
    let mut parser = DockerfileParser::new(lines.escape);
    let mut file = Dockerfile {
        directives: lines.directives,
        escape: lines.escape,
        global_args: Vec::new(),
        stages: Vec::new(),
        empty_continuations: lines.empty_continuations,
    };
    for logical in lines.logical {
        match parser.item(logical) {
            None => {}
            Some(ParsedLine::Stage(stage)) => file.stages.push(stage),
            Some(ParsedLine::Instruction(i)) => match file.stages.last_mut() {
                Some(stage) => stage.instructions.push(i),
                None if matches!(i.op, Op::Arg(_)) => file.global_args.push(i),
                None if parser.has_wrong_from => {}
                None => parser.errors.push(
                    Diagnostic::new(i.keyword.span, format!("{} before the first FROM", i.keyword.text))
                        .help("move it below FROM; only ARG may come before it"),
                ),
            },
        }
    }
    if !parser.knows_instruction {
        parser.is_other_file();
    }
    if parser.errors.is_empty() && file.stages.is_empty() {
        let span = file.global_args.last().map_or(Span::default(), |i| i.span);
        parser.errors.push(Diagnostic::new(span, "the Dockerfile contains no FROM").help("add `FROM image`"));
    }
    parser.errors.extend(
        replaced
            .into_iter()
            .find(|at| !is_in_comment(source, &file, *at))
            .map(|at| Diagnostic::new(Span::new(at, at + 1), "invalid UTF-8").help("save the file as UTF-8")),
    );
    if parser.errors.is_empty() { Ok(file) } else { Err(parser.errors) }
}

/// Returns true if the byte at offset `at` is in a comment.
fn is_in_comment(source: &str, file: &Dockerfile, at: usize) -> bool {
    let start = source[..at].rfind('\n').map_or(0, |end| end + 1);
    let instructions = file.global_args.iter().chain(file.stages.iter().flat_map(|stage| &stage.instructions));
    let mut bodies = instructions.flat_map(|i| heredocs(&i.op)).map(|doc| doc.body_span);
    source[start..].trim_start_matches('\u{feff}').trim_start().starts_with('#')
        && !bodies.any(|body| body.start <= at && at < body.end)
}

fn heredocs(op: &Op) -> &[Heredoc] {
    match op {
        Op::Run(run) => &run.heredocs,
        Op::Copy(copy) => &copy.heredocs,
        Op::Onbuild { inner, .. } => heredocs(&inner.op),
        _ => &[],
    }
}

/// Parses an ONBUILD trigger as stored in an image configuration. Spans are ranges of `text`.
///
/// # Errors
///
/// Returns the errors in the trigger, or an error if it is not exactly one instruction.
pub fn parse_trigger(text: &str) -> Result<Instruction, Vec<Diagnostic>> {
    let lines = lines::split(text)?;
    let mut parser = DockerfileParser::new('\\');
    let mut found = lines.logical.into_iter().filter_map(|l| parser.item(l)).collect::<Vec<_>>();
    match (found.pop(), found.is_empty()) {
        (Some(ParsedLine::Instruction(i)), true) if parser.errors.is_empty() => Ok(i),
        _ if !parser.errors.is_empty() => Err(parser.errors),
        _ => Err(vec![Diagnostic::new(
            Span::new(0, text.len()),
            "a trigger must be exactly one instruction other than FROM",
        )]),
    }
}

enum ParsedLine {
    Stage(Stage),
    Instruction(Instruction),
}

struct DockerfileParser {
    escape: char,
    errors: Vec<Diagnostic>,
    /// True if the file contains an instruction that exists.
    knows_instruction: bool,
    /// True if a FROM with errors, which are reported, begins a stage.
    has_wrong_from: bool,
}

impl DockerfileParser {
    fn new(escape: char) -> DockerfileParser {
        DockerfileParser { escape, errors: Vec::new(), knows_instruction: false, has_wrong_from: false }
    }

    fn error(&mut self, d: Diagnostic) {
        self.errors.push(d);
    }

    fn item(&mut self, logical: Logical) -> Option<ParsedLine> {
        let Logical { text, heredocs, span, comments, placement } = logical;
        let (keyword, rest) = split_keyword(&text);
        self.knows_instruction |= keyword.text.eq_ignore_ascii_case("FROM") || is_instruction(&keyword.text);
        if keyword.text.eq_ignore_ascii_case("FROM") {
            let from = self.from(&keyword, &rest);
            self.has_wrong_from |= from.is_none();
            let from = from?;
            return Some(ParsedLine::Stage(Stage { keyword, from, span, comments, instructions: Vec::new() }));
        }
        if !is_instruction(&keyword.text) {
            self.unknown(&keyword, placement);
            return None;
        }
        let op = self.op(&keyword, &rest, heredocs)?;
        Some(ParsedLine::Instruction(Instruction { keyword, span, comments, op }))
    }

    /// Reports a file without any instruction as one that is no Dockerfile, unless a word resembles
    /// an instruction.
    fn is_other_file(&mut self) {
        let is_suggestion = |d: &Diagnostic| matches!(d.help, Some(Help::Remedy(_)));
        if self.errors.is_empty() || self.errors.iter().any(is_suggestion) {
            return;
        }
        self.errors.truncate(1);
        let first = self.errors.remove(0);
        self.errors.push(first.help("pass a Dockerfile with -f FILE; this file contains no instruction"));
    }

    /// Reports an unknown instruction. It may be the continuation of the instruction on the
    /// previous line, or the rest of a here-document that an earlier one ended.
    fn unknown(&mut self, keyword: &Word, placement: Placement) {
        let d = Diagnostic::new(keyword.span, format!("unknown instruction `{}`", keyword.text));
        if let Some(help) = words::false_blank_help(&keyword.text, is_instruction) {
            self.knows_instruction = true;
            return self.error(d.help(help));
        }
        // Words of commands, such as `copy` or `add`, are often arguments on an indented line,
        // or in a here-document.
        let is_written_as_instruction = keyword.text.bytes().all(|b| b.is_ascii_uppercase());
        let d = match placement {
            Placement::IndentedNextLine | Placement::AfterShift(_) if !is_written_as_instruction => d,
            _ => d.suggest(&keyword.text.to_ascii_uppercase(), KEYWORDS),
        };
        self.error(match placement {
            Placement::NextLine | Placement::IndentedNextLine if d.help.is_none() => {
                d.help(format!("end the line above with {} if this line continues it", self.escape))
            }
            Placement::AfterShift(opener) if d.help.is_none() => d.help(format!(
                "remove all blanks from the arithmetic expression with `{opener}` above if it is no here-document"
            )),
            _ => d,
        });
    }

    fn op(&mut self, keyword: &Word, rest: &Text, heredocs: Vec<Heredoc>) -> Option<Op> {
        let upper = keyword.text.to_ascii_uppercase();
        let name = upper.as_str();
        let written = rest;
        let (flags, rest) = flags::take(rest, self.escape);
        // As in BuildKit, flags of these have no effect.
        let ignores_flags = ["ARG", "STOPSIGNAL"].contains(&name) || (name == "HEALTHCHECK" && is_none(&rest));
        let flags = if ignores_flags { Vec::new() } else { flags };
        let flags = Flags::check(&upper, flags, flags_of(name), &mut self.errors);
        // Without arguments, these run the shell with an empty script.
        let may_be_empty = ["RUN", "CMD", "ENTRYPOINT"].contains(&name);
        if rest.text.is_empty() && !may_be_empty {
            let d = Diagnostic::new(keyword.span, format!("{name} requires an argument"));
            self.error(match form_of(name) {
                Some(form) => d.help(format!("use the form {form}")),
                None => d,
            });
            return None;
        }
        match name {
            "RUN" => self.run(flags, &rest, heredocs),
            "COPY" | "ADD" => self.copy(name == "ADD", flags, &rest, heredocs, keyword),
            "HEALTHCHECK" => healthcheck(flags, &rest, &mut self.errors).map(Op::Healthcheck),
            _ => self.plain_op(name, keyword, &rest, written, heredocs),
        }
    }

    /// Parses an instruction that has no flags. `written` is `rest` with the blanks at its end.
    fn plain_op(
        &mut self,
        name: &str,
        keyword: &Word,
        rest: &Text,
        written: &Text,
        heredocs: Vec<Heredoc>,
    ) -> Option<Op> {
        Some(match name {
            "ENV" => Op::Env(arguments::pairs(name, rest, self.escape, &mut self.errors)?),
            "LABEL" => Op::Label(arguments::pairs(name, rest, self.escape, &mut self.errors)?),
            "ARG" => Op::Arg(arguments::declarations(rest, self.escape, &mut self.errors)?),
            "WORKDIR" => Op::Workdir(whole(rest)),
            "USER" => Op::User(whole(rest)),
            "STOPSIGNAL" => Op::Stopsignal(arguments::single(name, rest, &mut self.errors)?),
            "MAINTAINER" => Op::Maintainer(whole(rest)),
            "EXPOSE" => Op::Expose(words::plain(rest)),
            "VOLUME" => match arguments::list(rest, &mut self.errors)? {
                items if items.is_empty() => {
                    let d = Diagnostic::new(whole(rest).span, "VOLUME requires at least one argument");
                    self.error(d.help("use the form VOLUME [\"/data\"]"));
                    return None;
                }
                items => Op::Volume(items),
            },
            "SHELL" => match words::json_strings(&rest.text) {
                Ok(argv) if !argv.is_empty() => Op::Shell(argv),
                _ => {
                    let d = Diagnostic::new(whole(rest).span, "SHELL requires a JSON array of strings");
                    self.error(d.help("use the form SHELL [\"/bin/bash\", \"-c\"]"));
                    return None;
                }
            },
            "CMD" => Op::Cmd(arguments::command(rest, &mut self.errors)?),
            "ENTRYPOINT" => Op::Entrypoint(arguments::command(rest, &mut self.errors)?),
            "ONBUILD" => return self.onbuild(keyword, rest, written, heredocs),
            _ => return None,
        })
    }

    fn from(&mut self, keyword: &Word, rest: &Text) -> Option<From> {
        let (flags, rest) = flags::take(rest, self.escape);
        let flags = Flags::check("FROM", flags, &[("platform", Arity::One)], &mut self.errors);
        let mut parts = words::plain(&rest);
        match parts.len() {
            1 => Some(From { platform: flags.one("platform"), image: parts.remove(0), as_word: None, name: None }),
            3 if parts[1].text.eq_ignore_ascii_case("AS") => {
                let name = parts.remove(2);
                let as_word = Some(parts.remove(1));
                let lower = name.text.to_lowercase();
                let valid = lower.starts_with(|c: char| c.is_ascii_lowercase())
                    && lower.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c));
                if !valid {
                    let d = Diagnostic::new(name.span, format!("invalid stage name `{}`", name.text));
                    self.error(d.help("use a letter followed by letters, digits, `-`, `_` or `.`"));
                    return None;
                }
                Some(From { platform: flags.one("platform"), image: parts.remove(0), as_word, name: Some(name) })
            }
            _ => {
                let span = if parts.is_empty() { keyword.span } else { parts[0].span.to(parts[parts.len() - 1].span) };
                let d = Diagnostic::new(span, "FROM requires an image and an optional `AS name`");
                let help = words::false_blank_help(&rest.text, |_| parts.len() < 3);
                self.error(d.help(help.unwrap_or_else(|| "use the form `FROM image` or `FROM image AS name`".into())));
                None
            }
        }
    }

    fn run(&mut self, flags: Flags, rest: &Text, heredocs: Vec<Heredoc>) -> Option<Op> {
        for mount in flags.many("mount") {
            // As in BuildKit, the values of options are checked only in stages that are built.
            if let Err(d) = crate::check_mount(&mount) {
                self.error(d);
            }
        }
        let mut devices = Vec::new();
        for word in flags.many("device") {
            match crate::device::device(word) {
                Ok(device) => devices.push(device),
                Err(d) => self.error(d),
            }
        }
        let command = arguments::command(rest, &mut self.errors)?;
        Some(Op::Run(Run {
            mounts: flags.many("mount"),
            network: flags.one("network"),
            security: flags.one("security"),
            devices,
            command,
            heredocs,
        }))
    }

    fn copy(&mut self, add: bool, flags: Flags, rest: &Text, heredocs: Vec<Heredoc>, keyword: &Word) -> Option<Op> {
        let name = if add { "ADD" } else { "COPY" };
        let mut sources = arguments::list(rest, &mut self.errors)?;
        let dest = sources.pop();
        let Some(dest) = dest.filter(|_| !sources.is_empty()) else {
            let span = whole(rest).span.to(keyword.span);
            let d = Diagnostic::new(span, format!("{name} requires a source and a destination"));
            let help = words::false_blank_help(&rest.text, |_| !rest.text.starts_with('['));
            self.error(d.help(help.unwrap_or_else(|| format!("use the form `{name} source destination`"))));
            return None;
        };
        if heredocs.iter().any(|h| h.opener == dest.span) {
            self.error(Diagnostic::new(dest.span, "a here-document cannot be the destination"));
            return None;
        }
        sources.retain(|s| !heredocs.iter().any(|h| h.opener == s.span));
        let only_copy = |f: &str| if add { None } else { flags.one(f) };
        Some(Op::Copy(Copy {
            add,
            from: only_copy("from"),
            chown: flags.one("chown"),
            chmod: flags.one("chmod"),
            link: flags.on("link"),
            parents: if add { None } else { flags.on("parents") },
            exclude: flags.many("exclude"),
            checksum: if add { flags.one("checksum") } else { None },
            keep_git_dir: if add { flags.boolean("keep-git-dir") } else { None },
            unpack: if add { flags.boolean("unpack") } else { None },
            sources,
            dest,
            heredocs,
        }))
    }

    fn onbuild(&mut self, keyword: &Word, rest: &Text, written: &Text, heredocs: Vec<Heredoc>) -> Option<Op> {
        let (inner_keyword, inner_rest) = split_keyword(rest);
        let upper = inner_keyword.text.to_ascii_uppercase();
        if ["FROM", "MAINTAINER", "ONBUILD"].contains(&upper.as_str()) {
            let d = Diagnostic::new(inner_keyword.span, format!("{upper} is not allowed in ONBUILD"));
            self.error(d.help("use any instruction other than FROM, MAINTAINER and ONBUILD"));
            return None;
        }
        let mut text = written.text.clone();
        for doc in &heredocs {
            text.push('\n');
            text.push_str(&doc.body);
            text.push_str(&doc.name);
        }
        if !is_instruction(&inner_keyword.text) {
            self.unknown(&inner_keyword, Placement::Separate);
            return None;
        }
        let op = self.op(&inner_keyword, &inner_rest, heredocs)?;
        let span = keyword.span.to(rest.span(0, rest.text.len()));
        let inner = Instruction { keyword: inner_keyword, span, comments: Vec::new(), op };
        Some(Op::Onbuild { text, inner: Box::new(inner) })
    }
}

#[cfg(test)]
mod tests;
