//! Candidates for the values of flags and for arguments.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Arg, Command, ValueHint};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate, ValueCompleter};
use rbuild_dockerfile::ast::Op;
use rbuild_dockerfile::parse;
use rbuild_image::Reference;
use rbuild_store::{ContainerId, Store};

use crate::cli::completion::line::NamedFiles;
use crate::commands::explain;
use crate::input::config::Config;
use crate::input::settings::Settings;

/// Flags with a few words as values.
const WORDS: [(&str, &[&str]); 9] = [
    ("network", &["host", "isolated", "none"]),
    ("isolation", &["auto", "userns", "single-id", "chroot"]),
    ("pull", &["missing", "always", "never"]),
    ("context_modes", &["as-is", "git"]),
    ("call", &["build", "check", "outline", "targets"]),
    ("on_error", &["shell"]),
    ("platform", &["linux/amd64", "linux/arm64", "linux/arm/v7", "linux/386", "linux/riscv64"]),
    ("allow", &["network.host", "security.insecure", "local.delete", "secret-in-image"]),
    ("kind", &["image", "container"]),
];

const OUTPUTS: [&str; 7] = [
    "type=local,dest=",
    "type=tar,dest=",
    "type=oci,dest=",
    "type=docker,dest=",
    "type=image,name=",
    "type=registry,name=",
    "type=cacheonly",
];
const ARCHIVES: [&str; 3] = ["docker-archive", "oci-archive", "oci"];
const FORMATS: [&str; 2] = ["json", "table"];

/// A kind of candidates.
#[derive(Clone, Copy)]
enum CandidateKind {
    Words(&'static [&'static str]),
    /// Names of the stages of the Dockerfile.
    Stages,
    /// Names of the build arguments of the Dockerfile, with an equals sign.
    BuildArgs,
    Rules,
    Images,
    /// Images, for the first word only: those after it are a command.
    Image,
    Containers,
    /// Containers that run.
    Running,
    /// Containers that run, for the first word only: those after it are a command.
    RunningFirst,
    /// Images and containers.
    Objects,
    /// Containers and builds.
    Logs,
}

/// Adds candidates to the arguments of a command and of those below it. `words` are those of the
/// line.
pub fn with_values(command: Command, words: &[OsString]) -> Command {
    let words: Vec<String> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    of_command(command, &Arc::new(NamedFiles::of(&words)))
}

fn of_command(command: Command, named: &Arc<NamedFiles>) -> Command {
    let verb = command.get_name().to_string();
    let names: Vec<String> = command.get_subcommands().map(|below| below.get_name().to_string()).collect();
    let command = command.mut_args(|arg| of_arg(arg, &verb, named));
    names.iter().fold(command, |command, name| command.mut_subcommand(name, |below| of_command(below, named)))
}

fn of_arg(arg: Arg, verb: &str, named: &Arc<NamedFiles>) -> Arg {
    let id = arg.get_id().to_string();
    match (verb, id.as_str()) {
        ("rbuild" | "build" | "b", "file" | "ignorefile") | (_, "iidfile" | "metadata_file" | "cidfile" | "since") => {
            return arg.value_hint(ValueHint::FilePath);
        }
        ("rbuild" | "build" | "b", "context") | (_, "root") => return arg.value_hint(ValueHint::DirPath),
        ("import", "file") | ("cp", "dest") | ("save" | "load" | "export", "input" | "output") => {
            return arg.value_hint(ValueHint::AnyPath);
        }
        _ => {}
    }
    match kind(verb, &id, arg.is_positional()) {
        Some(kind) => arg.add(ArgValueCompleter::new(ValuesOf { kind, named: named.clone() })),
        None => arg,
    }
}

fn kind(verb: &str, id: &str, is_positional: bool) -> Option<CandidateKind> {
    if let Some((_, words)) = WORDS.iter().find(|(name, _)| *name == id) {
        return Some(CandidateKind::Words(words));
    }
    Some(match (verb, id) {
        (_, "target") if !is_positional && verb != "push" => CandidateKind::Stages,
        (_, "no_cache_filter") => CandidateKind::Stages,
        (_, "build_arg") => CandidateKind::BuildArgs,
        ("rbuild" | "build" | "b", "output") => CandidateKind::Words(&OUTPUTS),
        ("save", "format") => CandidateKind::Words(&ARCHIVES),
        (_, "format") => CandidateKind::Words(&FORMATS),
        ("explain", "text") => CandidateKind::Rules,
        ("run" | "create", "words") => CandidateKind::Image,
        ("exec", "words") => CandidateKind::RunningFirst,
        (
            "stop" | "kill" | "wait" | "port" | "pause" | "unpause" | "top" | "stats" | "diff" | "commit",
            "containers" | "container",
        ) => CandidateKind::Running,
        ("inspect", "names") => CandidateKind::Objects,
        ("cp", "source") => CandidateKind::Objects,
        ("logs", "name") => CandidateKind::Logs,
        ("images" | "ls" | "list", "name") | (_, "images" | "image" | "exclude") => CandidateKind::Images,
        (_, "containers" | "container") => CandidateKind::Containers,
        _ => return None,
    })
}

/// Candidates for a value.
#[derive(Clone)]
struct ValuesOf {
    kind: CandidateKind,
    named: Arc<NamedFiles>,
}

impl ValueCompleter for ValuesOf {
    fn complete(&self, current: &OsStr) -> Vec<CompletionCandidate> {
        self.complete_at(0, current)
    }

    fn complete_at(&self, at: usize, current: &OsStr) -> Vec<CompletionCandidate> {
        let current = current.to_string_lossy();
        let is_first = at == 0;
        let texts: Vec<String> = match self.kind {
            CandidateKind::Words(words) => words.iter().map(|word| word.to_string()).collect(),
            CandidateKind::Stages => self.stages(),
            CandidateKind::BuildArgs => self.build_args(),
            CandidateKind::Rules => explain::rules().chain(explain::errors()).map(str::to_string).collect(),
            CandidateKind::Image | CandidateKind::RunningFirst if !is_first => Vec::new(),
            CandidateKind::Images | CandidateKind::Image => self.of_store(images),
            CandidateKind::Containers => self.of_store(containers),
            CandidateKind::Running | CandidateKind::RunningFirst => self.of_store(running),
            CandidateKind::Objects => [self.of_store(containers), self.of_store(images)].concat(),
            CandidateKind::Logs => [self.of_store(containers), self.of_store(builds)].concat(),
        };
        texts.into_iter().filter(|text| text.starts_with(&*current)).map(CompletionCandidate::new).collect()
    }
}

impl ValuesOf {
    /// Returns names from the store, if it exists.
    fn of_store(&self, names: fn(&Store) -> Vec<String>) -> Vec<String> {
        let root = self.named.root.as_ref().map(PathBuf::from);
        let settings = Config::of_user().and_then(|config| Settings::new(root, &[], None, &config));
        let store = settings.ok().filter(|settings| settings.root.exists()).and_then(|settings| settings.open().ok());
        store.as_ref().map(names).unwrap_or_default()
    }

    fn dockerfile(&self) -> Option<rbuild_dockerfile::Dockerfile> {
        let context = self.named.context.as_deref().map_or(Path::new("."), Path::new);
        let usual = ["Dockerfile", "dockerfile", "Containerfile"].map(|name| context.join(name));
        let path = match &self.named.file {
            Some(file) => PathBuf::from(file),
            None => usual.into_iter().find(|path| path.exists())?,
        };
        parse(&std::fs::read(path).ok()?).ok()
    }

    fn stages(&self) -> Vec<String> {
        let file = self.dockerfile();
        let names = file.iter().flat_map(|file| &file.stages).filter_map(|stage| stage.from.name.as_ref());
        names.map(|name| name.text.to_string()).collect()
    }

    fn build_args(&self) -> Vec<String> {
        let file = self.dockerfile();
        let instructions = file
            .iter()
            .flat_map(|file| file.global_args.iter().chain(file.stages.iter().flat_map(|stage| &stage.instructions)));
        let mut names: Vec<String> = Vec::new();
        for declared in instructions.filter_map(|instruction| match &instruction.op {
            Op::Arg(declared) => Some(declared),
            _ => None,
        }) {
            names.extend(declared.iter().map(|arg| format!("{}=", arg.name.text)));
        }
        names.sort();
        names.dedup();
        names
    }
}

fn images(store: &Store) -> Vec<String> {
    let all = store.images().list().unwrap_or_default();
    all.iter().filter_map(|image| image.name.as_ref()).map(Reference::familiar).collect()
}

fn containers(store: &Store) -> Vec<String> {
    store.containers().list().unwrap_or_default().into_iter().map(|container| container.name).collect()
}

fn running(store: &Store) -> Vec<String> {
    let is_running = |id: &ContainerId| store.containers().state(id).is_ok_and(|state| state.is_running());
    let all = store.containers().list().unwrap_or_default().into_iter();
    all.filter(|container| is_running(&container.id)).map(|container| container.name).collect()
}

fn builds(store: &Store) -> Vec<String> {
    let all = store.logs().build_logs().unwrap_or_default();
    std::iter::once("latest".to_string()).chain(all.iter().map(|build| build.id.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::Scratch;

    use super::*;

    #[test]
    fn stages_and_arguments_are_those_of_the_dockerfile() {
        let dir = Scratch::new();
        let text = "ARG BASE=a\nFROM $BASE AS one\nARG VERSION DEBUG=1\nFROM one AS two\nARG VERSION\n";
        std::fs::write(dir.join("Other"), text).unwrap();
        let file = dir.join("Other").to_str().map(str::to_string);
        let named = Arc::new(NamedFiles { file, ..NamedFiles::default() });
        let of = |kind, current: &str| {
            let found = ValuesOf { kind, named: named.clone() }.complete(OsStr::new(current));
            let texts = found.iter().map(|candidate| candidate.get_value().to_str().unwrap().to_string());
            texts.collect::<Vec<_>>()
        };
        assert_eq!(of(CandidateKind::Stages, ""), ["one", "two"]);
        assert_eq!(of(CandidateKind::Stages, "t"), ["two"]);
        assert_eq!(of(CandidateKind::BuildArgs, ""), ["BASE=", "DEBUG=", "VERSION="]);
        assert!(of(CandidateKind::Rules, "").len() > 10);
    }
}
