//! Syntax tree of a Dockerfile, before any expansion.
//!
//! Every [`Word`] holds the text as written, quotes and variables included, and its range in the
//! source.

use std::borrow::Cow;

use crate::diagnostic::Span;

/// A piece of text and its range in the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// Text as written; line continuations are removed.
    pub text: String,
    /// Range in the source.
    pub span: Span,
}

/// A comment line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comment {
    /// Text after `#`, without surrounding whitespace.
    pub text: String,
    /// Range of the whole line.
    pub span: Span,
}

/// A parser directive, `# name=value`, from the top of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    /// Name in lower case: `syntax`, `escape` or `check`.
    pub name: String,
    /// Value without surrounding whitespace.
    pub value: Word,
}

/// A whole Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dockerfile {
    /// Parser directives, in order.
    pub directives: Vec<Directive>,
    /// Escape character: a backslash or a backtick.
    pub escape: char,
    /// ARG instructions before the first FROM.
    pub global_args: Vec<Instruction>,
    /// Stages, in order; at least one.
    pub stages: Vec<Stage>,
    /// Blank lines inside continued instructions.
    pub empty_continuations: Vec<Span>,
}

/// A stage: FROM and the instructions up to the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// `FROM`, as written.
    pub keyword: Word,
    /// Arguments of FROM.
    pub from: From,
    /// Range of the FROM instruction.
    pub span: Span,
    /// Comment lines directly above FROM, after the last empty comment.
    pub comments: Vec<Comment>,
    /// Instructions after FROM, in order.
    pub instructions: Vec<Instruction>,
}

/// Arguments of FROM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct From {
    /// Value of `--platform`.
    pub platform: Option<Word>,
    /// Image, earlier stage or named context.
    pub image: Word,
    /// `AS`, as written.
    pub as_word: Option<Word>,
    /// Name of the stage, as written. Names are compared in lower case.
    pub name: Option<Word>,
}

/// An instruction other than FROM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    /// Keyword, as written.
    pub keyword: Word,
    /// Range from the keyword to the end of the last line or here-document.
    pub span: Span,
    /// Comment lines directly above, after the last empty comment.
    pub comments: Vec<Comment>,
    /// Keyword and arguments, parsed.
    pub op: Op,
}

/// A parsed instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// RUN.
    Run(Run),
    /// COPY or ADD.
    Copy(Copy),
    /// ENV.
    Env(Vec<Pair>),
    /// LABEL.
    Label(Vec<Pair>),
    /// ARG.
    Arg(Vec<ArgDecl>),
    /// WORKDIR.
    Workdir(Word),
    /// USER.
    User(Word),
    /// EXPOSE.
    Expose(Vec<Word>),
    /// VOLUME.
    Volume(Vec<Word>),
    /// SHELL; at least one word.
    Shell(Vec<String>),
    /// STOPSIGNAL.
    Stopsignal(Word),
    /// HEALTHCHECK.
    Healthcheck(Healthcheck),
    /// CMD.
    Cmd(Command),
    /// ENTRYPOINT.
    Entrypoint(Command),
    /// MAINTAINER.
    Maintainer(Word),
    /// ONBUILD.
    Onbuild {
        /// Trigger as stored in the image: the text after ONBUILD, including here-documents.
        text: String,
        /// Deferred instruction.
        inner: Box<Instruction>,
    },
}

/// A pair of ENV or LABEL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Text before the equals sign.
    pub name: Word,
    /// Text after the equals sign.
    pub value: Word,
    /// True for the deprecated form without an equals sign, `ENV name value`.
    pub legacy: bool,
}

/// A variable declared by ARG.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArgDecl {
    /// Name of the variable.
    pub name: Word,
    /// Default value.
    pub default: Option<Word>,
}

/// Command of RUN, CMD, ENTRYPOINT or HEALTHCHECK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Shell form: a script for the shell of the stage.
    Shell(Word),
    /// Exec form: a JSON array of arguments.
    Exec(Vec<String>),
}

/// Arguments of RUN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Values of `--mount`, as written.
    pub mounts: Vec<Word>,
    /// Value of `--network`.
    pub network: Option<Word>,
    /// Value of `--security`.
    pub security: Option<Word>,
    /// Values of `--device`.
    pub devices: Vec<Device>,
    /// Command.
    pub command: Command,
    /// Here-documents, in the order of their openers.
    pub heredocs: Vec<Heredoc>,
}

/// A device of RUN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Value of `--device`, as written.
    pub word: Word,
    /// True if the command cannot run without it.
    pub required: bool,
}

/// Arguments of COPY or ADD. Flags that the instruction does not have are `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// True for ADD.
    pub add: bool,
    /// Value of `--from`.
    pub from: Option<Word>,
    /// Value of `--chown`.
    pub chown: Option<Word>,
    /// Value of `--chmod`.
    pub chmod: Option<Word>,
    /// `--link`, if it is on.
    pub link: Option<Word>,
    /// `--parents`, if it is on.
    pub parents: Option<Word>,
    /// Values of `--exclude`.
    pub exclude: Vec<Word>,
    /// Value of `--checksum`.
    pub checksum: Option<Word>,
    /// Value of `--keep-git-dir`; `true` if given without a value.
    pub keep_git_dir: Option<Word>,
    /// Value of `--unpack`; `true` if given without a value.
    pub unpack: Option<Word>,
    /// Sources other than here-documents.
    pub sources: Vec<Word>,
    /// Destination.
    pub dest: Word,
    /// Sources that are here-documents, in order.
    pub heredocs: Vec<Heredoc>,
}

/// Arguments of HEALTHCHECK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Healthcheck {
    /// `HEALTHCHECK NONE`.
    None,
    /// `HEALTHCHECK CMD`. Durations are in nanoseconds; 0 if not given.
    Check {
        /// Value of `--interval`.
        interval: i64,
        /// Value of `--timeout`.
        timeout: i64,
        /// Value of `--start-period`.
        start_period: i64,
        /// Value of `--start-interval`.
        start_interval: i64,
        /// Value of `--retries`; 0 if not given.
        retries: i64,
        /// Command.
        command: Command,
    },
}

/// A here-document of RUN, COPY or ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    /// Delimiter without quotes.
    pub name: String,
    /// Number of the file descriptor before `<<`.
    pub fd: Option<u32>,
    /// True for a delimiter without quotes: COPY and ADD expand variables of the body.
    pub expand: bool,
    /// True for `<<-`, which removes leading tabs from the content.
    pub chomp: bool,
    /// Text between the line of the opener and the terminator, as written.
    pub body: String,
    /// Range of the opener.
    pub opener: Span,
    /// Range of the body.
    pub body_span: Span,
    /// Offset after the terminator.
    pub end: usize,
}

impl Heredoc {
    /// Returns the body without the tabs that `<<-` removes.
    pub fn content(&self) -> Cow<'_, str> {
        if !self.chomp {
            return Cow::Borrowed(&self.body);
        }
        self.body.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }

    /// Returns true if a line is the delimiter.
    pub(crate) fn is_ended_by(&self, line: &str) -> bool {
        self.name == if self.chomp { line.trim_start_matches('\t') } else { line }
    }

    /// Parses an opener such as `3<<-"EOF"` or `<< EOF`. Returns `None` for any other text.
    pub(crate) fn from_word(word: &str, opener: Span) -> Option<Heredoc> {
        let digits = word.bytes().take_while(u8::is_ascii_digit).count();
        let rest = word[digits..].strip_prefix("<<")?;
        let (chomp, raw) = match rest.strip_prefix('-') {
            Some(raw) => (true, raw),
            None => (false, rest.trim_start()),
        };
        if raw.is_empty() || raw.contains('<') {
            return None;
        }
        let delimiter = |raw_quotes| {
            let lexer = crate::expand::Lexer { escape: '\\', raw_quotes, skip_unset: true };
            lexer.word(raw, &|_| None).ok().map(|word| word.text)
        };
        let name = delimiter(false)?;
        if name.is_empty() {
            return None;
        }
        let fd = if digits == 0 { None } else { Some(word[..digits].parse().ok()?) };
        Some(Heredoc {
            // A backslash in the delimiter quotes it for a shell, but not here, as in BuildKit.
            expand: delimiter(true)? == name,
            name,
            fd,
            chomp,
            body: String::new(),
            opener,
            body_span: opener,
            end: opener.end,
        })
    }
}
