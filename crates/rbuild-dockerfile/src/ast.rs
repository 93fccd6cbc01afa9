//! What a Dockerfile says, before any expansion.

use crate::diagnostic::Span;
use crate::lines::Directive;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    pub text: String,
    pub span: Span,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comment {
    pub text: String,
    pub span: Span,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dockerfile {
    pub directives: Vec<Directive>,
    pub escape: char,
    /// Global ARGs before the first FROM.
    pub global_args: Vec<Instruction>,
    pub stages: Vec<Stage>,
    pub empty_continuations: Vec<Span>,
    /// All instructions before interpretation, in order.
    pub raw: Vec<Node>,
}

/// An instruction as it is written: lower-case keyword, flags, words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub keyword: String,
    pub flags: Vec<String>,
    pub words: Vec<String>,
    /// What ONBUILD triggers.
    pub inner: Option<Box<Node>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// `FROM`, as written.
    pub keyword: Word,
    pub from: From,
    /// The whole FROM instruction.
    pub span: Span,
    pub comments: Vec<Comment>,
    pub instructions: Vec<Instruction>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct From {
    pub platform: Option<Word>,
    pub image: Word,
    /// The word between image and name, as written.
    pub as_word: Option<Word>,
    /// As written; names compare in lower case.
    pub name: Option<Word>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    /// As written.
    pub keyword: Word,
    pub span: Span,
    pub comments: Vec<Comment>,
    pub op: Op,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Run(Run),
    Copy(Copy),
    Env(Vec<Pair>),
    Label(Vec<Pair>),
    Arg(Vec<ArgDecl>),
    Workdir(Word),
    User(Word),
    Expose(Vec<Word>),
    Volume(Vec<Word>),
    Shell(Vec<String>),
    Stopsignal(Word),
    Healthcheck(Healthcheck),
    Cmd(Command),
    Entrypoint(Command),
    Maintainer(Word),
    Onbuild {
        /// The trigger as it is stored in the image: the text after ONBUILD, heredoc bodies included.
        text: String,
        inner: Box<Instruction>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    pub name: Word,
    pub value: Word,
    /// Written in the old way, `ENV name value`.
    pub legacy: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArgDecl {
    pub name: Word,
    pub default: Option<Word>,
}

/// The shell form or the JSON form of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Shell(Word),
    Exec(Vec<String>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub mounts: Vec<Word>,
    pub network: Option<Word>,
    pub security: Option<Word>,
    pub devices: Vec<Word>,
    pub command: Command,
    pub heredocs: Vec<Heredoc>,
}

/// COPY and ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    pub add: bool,
    pub from: Option<Word>,
    pub chown: Option<Word>,
    pub chmod: Option<Word>,
    pub link: Option<Word>,
    pub parents: Option<Word>,
    pub exclude: Vec<Word>,
    pub checksum: Option<Word>,
    pub keep_git_dir: Option<Word>,
    pub unpack: Option<Word>,
    /// Without the heredocs.
    pub sources: Vec<Word>,
    pub dest: Word,
    pub heredocs: Vec<Heredoc>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Healthcheck {
    None,
    Check {
        /// In nanoseconds; 0 where not given.
        interval: i64,
        timeout: i64,
        start_period: i64,
        start_interval: i64,
        retries: i64,
        command: Command,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    /// The word without quotes.
    pub name: String,
    /// File descriptor number before `<<`, if any.
    pub fd: Option<u32>,
    /// The word was not quoted, so that COPY and ADD expand the body.
    pub expand: bool,
    /// `<<-`: leading tabs are taken away (already done in `body`).
    pub chomp: bool,
    pub body: String,
    pub opener: Span,
    pub body_span: Span,
    /// Where the terminator ends in the source.
    pub end: usize,
}

impl Heredoc {
    /// Reads `3<<-"EOF"`; `None` if the word does not open a heredoc.
    pub(crate) fn from_word(word: &str, opener: Span) -> Option<Heredoc> {
        let digits = word.bytes().take_while(u8::is_ascii_digit).count();
        let rest = word[digits..].strip_prefix("<<")?;
        let (chomp, raw) = match rest.strip_prefix('-') {
            Some(raw) => (true, raw),
            None => (false, rest),
        };
        if raw.is_empty() || raw.contains('<') {
            return None;
        }
        let lexer = crate::expand::Lexer { escape: '\\', raw_quotes: false, skip_unset: true };
        let name = lexer.word(raw, &|_| None).ok()?.text;
        if name.is_empty() {
            return None;
        }
        let fd = if digits == 0 { None } else { Some(word[..digits].parse().ok()?) };
        Some(Heredoc {
            expand: name == raw,
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
