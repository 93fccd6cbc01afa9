//! A test case: rounds of changes and builds, as data that can be printed and reduced.

use std::fmt::{self, Display, Formatter};

/// A change to the files that a build reads. An operation that does not fit the tree (a removed
/// path, a file in place of a directory) is skipped. A case therefore stays valid when other
/// changes are omitted.
#[derive(Clone, Debug)]
pub enum Op {
    Write { path: Vec<u8>, text: String, way: Way },
    Sparse { path: Vec<u8>, len: u64 },
    Dir { path: Vec<u8> },
    Link { path: Vec<u8>, target: &'static str },
    HardLink { from: Vec<u8>, path: Vec<u8> },
    Archive { path: Vec<u8>, seed: u64, gzip: bool },
    Attribute { path: Vec<u8>, value: Option<&'static str> },
    Chmod { path: Vec<u8>, mode: u32 },
    Remove { path: Vec<u8> },
    Rename { from: Vec<u8>, to: Vec<u8> },
    Swap { one: Vec<u8>, other: Vec<u8> },
    Touch { path: Vec<u8> },
    Ignore { lines: Vec<&'static str> },
}

/// The way in which a file's content is replaced.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    /// Writes into the existing file.
    InPlace,
    /// Renames a new file over the old one.
    Replace,
    /// Writes into the existing file and resets its modification time.
    SetBack,
}

/// An instruction. Its ID stays the same through the rounds of a case.
#[derive(Clone, Debug)]
pub struct Step {
    pub id: usize,
    pub kind: Kind,
}

#[derive(Clone, Debug)]
pub enum Kind {
    Copy(Copy),
    Run { mounts: Vec<String>, command: String },
    Plain(String),
}

#[derive(Clone, Debug, Default)]
pub struct Copy {
    pub verb: &'static str,
    pub flags: Vec<String>,
    pub sources: Vec<String>,
    pub dest: String,
    pub documents: Vec<(&'static str, String)>,
}

#[derive(Clone, Debug)]
pub struct Stage {
    pub base: String,
    pub steps: Vec<Step>,
}

#[derive(Clone, Debug, Default)]
pub struct Dockerfile {
    pub stages: Vec<Stage>,
}

/// The requested output format.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Output {
    Tag,
    Local,
    Tar,
    Oci,
    /// With the modification times of the files, which are not compared.
    OciWithTimes,
    Docker,
    TagAndTar,
}

#[derive(Clone, Debug)]
pub struct Round {
    pub ops: Vec<Op>,
    /// Changes made during a separate build, before the build that is compared.
    pub racing: Vec<Op>,
    pub delay: u64,
    pub file: Dockerfile,
    pub args: Vec<String>,
    pub output: Output,
    /// Another output, requested by a concurrent second build.
    pub twin: Option<Output>,
    pub prune: bool,
}

#[derive(Clone, Debug)]
pub struct Case {
    pub seed: u64,
    /// If true, modification times are derived from sizes, so that they are the same in all builds.
    /// Otherwise they are the times of the changes, which are later than the build's
    /// SOURCE_DATE_EPOCH.
    pub fixed_times: bool,
    /// If true, the files are old enough at each build that unchanged ones are recognized by their
    /// metadata.
    pub aged: bool,
    pub rounds: Vec<Round>,
}

impl Display for Dockerfile {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (number, stage) in self.stages.iter().enumerate() {
            writeln!(f, "FROM {} AS s{number}", stage.base)?;
            for step in &stage.steps {
                writeln!(f, "{}", step.kind)?;
            }
        }
        Ok(())
    }
}

impl Display for Kind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Copy(copy) => write!(f, "{copy}"),
            Kind::Plain(text) => write!(f, "{text}"),
            Kind::Run { mounts, command } => {
                write!(f, "RUN ")?;
                for mount in mounts {
                    write!(f, "--mount={mount} ")?;
                }
                write!(f, "{command}")
            }
        }
    }
}

impl Display for Copy {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.verb)?;
        for flag in &self.flags {
            write!(f, " {flag}")?;
        }
        let words = self.sources.iter().chain([&self.dest]);
        if words.clone().any(|w| w.contains(' ')) && self.documents.is_empty() {
            let quoted: Vec<String> = words.map(|w| serde_json::to_string(w).unwrap()).collect();
            return write!(f, " [{}]", quoted.join(", "));
        }
        for source in self.sources.iter().filter(|s| !s.contains(' ')) {
            write!(f, " {source}")?;
        }
        for (name, _) in &self.documents {
            write!(f, " <<{name}")?;
        }
        write!(f, " {}", self.dest)?;
        for (name, text) in &self.documents {
            write!(f, "\n{text}{name}")?;
        }
        Ok(())
    }
}

impl Display for Case {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (times, age) = (if self.fixed_times { "fixed" } else { "late" }, if self.aged { "aged" } else { "new" });
        writeln!(f, "seed {}, {times} times, {age} files", self.seed)?;
        let mut before = String::new();
        for (number, round) in self.rounds.iter().enumerate() {
            writeln!(f, "--- round {number}: {:?}, twin {:?}, prune {}", round.output, round.twin, round.prune)?;
            round.ops.iter().try_for_each(|op| writeln!(f, "  {}", Shown(op)))?;
            for op in &round.racing {
                writeln!(f, "  after {} ms of a build: {}", round.delay, Shown(op))?;
            }
            writeln!(f, "  build {}", round.args.join(" "))?;
            let file = round.file.to_string();
            if file != before {
                write!(f, "{file}")?;
                before = file;
            }
        }
        Ok(())
    }
}

struct Shown<'a>(&'a Op);

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let name = |path: &[u8]| format!("\"{}\"", path.escape_ascii());
        match self.0 {
            Op::Write { path, text, way } => {
                let text = if text.len() > 20 {
                    format!("{} bytes of {}", text.len(), &text[..1])
                } else {
                    format!("{text:?}")
                };
                write!(f, "write {} {way:?} {text}", name(path))
            }
            Op::Sparse { path, len } => write!(f, "sparse {} {len}", name(path)),
            Op::Dir { path } => write!(f, "directory {}", name(path)),
            Op::Link { path, target } => write!(f, "link {} -> {target}", name(path)),
            Op::HardLink { from, path } => write!(f, "hard link {} = {}", name(path), name(from)),
            Op::Archive { path, seed, gzip } => write!(f, "archive {} of seed {seed}, gzip {gzip}", name(path)),
            Op::Attribute { path, value } => write!(f, "attribute of {}: {value:?}", name(path)),
            Op::Chmod { path, mode } => write!(f, "chmod {} {mode:o}", name(path)),
            Op::Remove { path } => write!(f, "remove {}", name(path)),
            Op::Rename { from, to } => write!(f, "rename {} to {}", name(from), name(to)),
            Op::Swap { one, other } => write!(f, "swap {} and {}", name(one), name(other)),
            Op::Touch { path } => write!(f, "touch {}", name(path)),
            Op::Ignore { lines } => write!(f, "ignore {lines:?}"),
        }
    }
}
