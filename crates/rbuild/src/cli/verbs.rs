//! Resolves the verb on the command line: one of rbuild, a word of a group of docker's verbs, or an
//! error for a verb that rbuild does not have.

use std::ffi::OsString;
use std::path::Path;

use crate::cli::verb_groups::{GroupWord, INFO, INFO_NOTE};
use crate::cli::{description, substitutes, topics, verb_groups};
use crate::exit::{Failure, code};
use crate::ui::hints::{self, UsageRemedy, unsupported};

const VERBS: [&str; 54] = [
    "system-prune",
    "export",
    "pause",
    "rename",
    "stats",
    "top",
    "unpause",
    "diff",
    "commit",
    "volume-ls",
    "volume-create",
    "volume-rm",
    "volume-inspect",
    "volume-prune",
    "restart",
    "man",
    "exec",
    "start",
    "stop",
    "kill",
    "wait",
    "port",
    "cache-export",
    "cache-import",
    "builder-prune",
    "image-prune",
    "container-prune",
    "ps",
    "login",
    "logout",
    "logs",
    "run",
    "completion",
    "build",
    "cp",
    "create",
    "rm",
    "fsck",
    "explain",
    "import",
    "save",
    "load",
    "images",
    "history",
    "inspect",
    "tag",
    "rmi",
    "prune",
    "pull",
    "push",
    "df",
    "doctor",
    "debug",
    "help",
];

/// Global flags with a value.
const VALUED: [&str; 5] = ["--root", "--limit", "--isolation", "--lock-timeout", "--debug-log"];

/// Global flags without a value.
const SWITCHES: [&str; 2] = ["-D", "--debug"];

/// A command line with its verb resolved.
#[derive(Debug, PartialEq, Eq)]
pub enum CommandLine {
    /// Arguments to parse. The verb is at `verb`.
    Arguments { argv: Vec<OsString>, verb: usize },
    /// Help for a verb, or for the program.
    Help { verb: Option<String>, long: bool },
    /// A command without effect: text for standard output, and a note.
    Answer { text: String, note: String },
}

impl CommandLine {
    fn page(text: String) -> CommandLine {
        CommandLine::Answer { text, note: String::new() }
    }

    fn answer(text: &str, note: &str) -> CommandLine {
        CommandLine::Answer { text: text.into(), note: note.into() }
    }
}

/// Inserts the default verb if the command line has none, and replaces long forms (`image ls`,
/// `buildx build`) by verbs of rbuild. `as_docker` is true if rbuild was started under the name
/// docker.
pub fn with_verb(argv: Vec<OsString>, as_docker: bool) -> Result<CommandLine, Failure> {
    resolve(argv, as_docker).map_err(|failure| {
        if !as_docker {
            return failure;
        }
        let message = format!("`docker` is rbuild {}: {}", env!("CARGO_PKG_VERSION"), failure.message);
        Failure { code: code::DOCKER_USAGE, message, ..failure }
    })
}

fn resolve(mut argv: Vec<OsString>, as_docker: bool) -> Result<CommandLine, Failure> {
    let at = after_globals(&argv)?;
    let (first, second) = (word_at(&argv, at), word_at(&argv, at + 1));
    let verb = match first.as_str() {
        "" if as_docker => return Ok(CommandLine::Help { verb: None, long: false }),
        "" if argv.len() == 1 && !has_dockerfile() => {
            crate::ui::terminal::err(&crate::cli::clap_command::help(None, false));
            return Err(Failure::usage("no Dockerfile in this directory").help(UsageRemedy::PassDockerfile));
        }
        "help" => return help(&argv, at + 1),
        "-h" | "--help" => return Ok(CommandLine::Help { verb: None, long: first == "--help" }),
        "version" | "info" if argv.len() > at + 1 => {
            return description::answer(&first, &argv[at + 1..]).map(CommandLine::page);
        }
        "version" | "-V" | "--version" => "--version",
        "-v" if as_docker => "--version",
        "info" => return Ok(CommandLine::answer(INFO, INFO_NOTE)),
        "bud" => "build",
        verb if VERBS.contains(&verb) => return Ok(CommandLine::Arguments { argv, verb: at }),
        "buildx" if let Some(answer) = substitutes::answer(&second, argv.get(at + 2..).unwrap_or(&[])) => {
            return answer.map(CommandLine::page);
        }
        group if let Some(answer) = substitutes::answer(group, argv.get(at + 1..).unwrap_or(&[])) => {
            return answer.map(CommandLine::page);
        }
        group if verb_groups::is_group(group) => match word_of_group(group, &second)? {
            GroupWord::Verb(verb) => {
                argv.remove(at);
                verb
            }
            GroupWord::VerbWith(verb, flag) => {
                argv[at + 1] = flag.into();
                verb
            }
            GroupWord::Nothing(..) if second == "info" && argv.len() > at + 2 => {
                return description::answer("system info", &argv[at + 2..]).map(CommandLine::page);
            }
            GroupWord::Nothing("", note) if second.is_empty() || is_help(&second) => {
                return Ok(CommandLine::Answer { text: verb_groups::page_of_group(group), note: note.into() });
            }
            GroupWord::Nothing(text, note) => return Ok(CommandLine::answer(text, note)),
        },
        // As in docker. With a value, it is a flag of `build`.
        "-v" if argv.len() == at + 1 => "--version",
        flag if flag.starts_with('-') && unsupported::global_flag(flag).is_some() => {
            return Err(unsupported_flag(flag));
        }
        verb if is_meant_as_verb(verb) || as_docker && !verb.starts_with('-') => return Err(unknown(verb)),
        _ => {
            argv.insert(at, "build".into());
            "build"
        }
    };
    argv[at] = verb.into();
    Ok(CommandLine::Arguments { argv, verb: at })
}

/// Resolves a request for a help page: `help`, followed by the words from `at` on.
fn help(argv: &[OsString], at: usize) -> Result<CommandLine, Failure> {
    let (name, word) = (word_at(argv, at), word_at(argv, at + 1));
    match name.as_str() {
        "version" | "info" => {
            no_more_words(argv, at + 1)?;
            description::answer(&name, &["-h".into()]).map(CommandLine::page)
        }
        topic if let Some(page) = topics::page(topic) => {
            no_more_words(argv, at + 1)?;
            Ok(CommandLine::page(page.into()))
        }
        "topic" | "topics" => {
            no_more_words(argv, at + 1)?;
            Ok(CommandLine::page(topics::list()))
        }
        "buildx" if is_substituted(&word) => help_of_substitute(&word),
        command if is_substituted(command) => help_of_substitute(command),
        group if verb_groups::is_group(group) => {
            no_more_words(argv, at + 2)?;
            match word_of_group(group, &word)? {
                GroupWord::Verb(verb) | GroupWord::VerbWith(verb, _) if VERBS.contains(&verb) => {
                    Ok(CommandLine::Help { verb: Some(verb.into()), long: true })
                }
                _ => Ok(CommandLine::page(verb_groups::page_of_group(group))),
            }
        }
        verb if verb.is_empty() || verb.starts_with('-') || is_verb(verb) => {
            no_more_words(argv, at + 1)?;
            Ok(CommandLine::Help { verb: Some(name).filter(|name| VERBS.contains(&name.as_str())), long: true })
        }
        other => {
            let beginning = topics::with_prefix(other).filter(|_| other.len() >= 3);
            Err(match beginning.or_else(|| rbuild_dockerfile::closest(other, topics::names())) {
                Some(close) => Failure::usage(format!("no help page for `{other}`"))
                    .help(hints::did_you_mean(&format!("rbuild help {close}"))),
                None => unknown(other),
            })
        }
    }
}

fn is_substituted(command: &str) -> bool {
    substitutes::names().any(|name| name == command)
}

fn help_of_substitute(command: &str) -> Result<CommandLine, Failure> {
    let page = substitutes::answer(command, &["--help".into()]).unwrap_or_else(|| Err(unknown(command)));
    page.map(CommandLine::page)
}

/// Returns an argument; an empty text if there is none, or if it is not UTF-8.
fn word_at(argv: &[OsString], at: usize) -> String {
    argv.get(at).and_then(|word| word.to_str()).unwrap_or_default().to_string()
}

/// Fails if there is a word at `from`, after a request for a help page.
fn no_more_words(argv: &[OsString], from: usize) -> Result<(), Failure> {
    match argv.get(from) {
        Some(word) => Err(Failure::usage(format!("unexpected argument `{}`", word.to_string_lossy()))
            .help(UsageRemedy::UseForm { form: "rbuild help [COMMAND|TOPIC]".into() })),
        None => Ok(()),
    }
}

/// Returns the index of the first argument that is not a global flag.
fn after_globals(argv: &[OsString]) -> Result<usize, Failure> {
    let mut at = 1;
    while let Some(arg) = argv.get(at) {
        match arg.to_str() {
            Some(flag) if VALUED.contains(&flag) && at + 1 == argv.len() => {
                let options = UsageRemedy::ShowOptions { command: "rbuild".into() };
                return Err(Failure::usage(format!("{flag} requires a value")).help(options));
            }
            Some(flag) if VALUED.contains(&flag) => at += 2,
            Some(flag) if SWITCHES.contains(&flag) => at += 1,
            Some(a) if a.split_once('=').is_some_and(|(flag, _)| VALUED.contains(&flag)) => at += 1,
            _ => break,
        }
    }
    Ok(at)
}

fn has_dockerfile() -> bool {
    ["Dockerfile", "dockerfile", "Containerfile"].iter().any(|name| Path::new(name).exists())
}

fn is_help(word: &str) -> bool {
    ["-h", "--help", "help"].contains(&word)
}

/// Returns true if a word is a verb of rbuild or a group of verbs.
pub fn is_verb(word: &str) -> bool {
    VERBS.contains(&word) || verb_groups::is_group(word)
}

/// Returns true if an unknown first word was probably meant as a verb: it is neither a path nor a
/// URL.
fn is_meant_as_verb(word: &str) -> bool {
    !word.is_empty() && !word.starts_with('-') && !word.contains(['/', '.', ':']) && !Path::new(word).exists()
}

fn word_of_group(group: &str, word: &str) -> Result<GroupWord, Failure> {
    let words = verb_groups::words_of_group(group);
    if let Some((_, found)) = words.iter().find(|(name, _)| *name == word) {
        return Ok(*found);
    }
    if word.is_empty() || is_help(word) {
        return Ok(GroupWord::Nothing("", ""));
    }
    if unsupported::command(word).is_some() {
        return Err(unknown(word));
    }
    let failure = Failure::usage(format!("`{group} {word}` is not a command of rbuild"));
    let known = words.iter().map(|(name, _)| *name);
    Err(match rbuild_dockerfile::closest(word, known.clone()) {
        Some(close) => failure.help(hints::did_you_mean(&format!("rbuild {group} {close}"))),
        None => failure
            .help(UsageRemedy::UseWordOfGroup { group: group.into(), words: known.map(str::to_string).collect() }),
    })
}

/// Returns the failure for a flag of docker before the command.
fn unsupported_flag(word: &str) -> Failure {
    match unsupported::global_flag(word) {
        Some((flag, reason, hint)) => Failure::usage(format!("unsupported flag `{flag}`: {reason}")).help(hint),
        None => Failure::usage(format!("unknown flag `{word}`")).help(UsageRemedy::ListCommands),
    }
}

fn unknown(word: &str) -> Failure {
    if let Some((reason, hint)) = unsupported::command(word) {
        return Failure::usage(format!("unsupported command `{word}`: {reason}")).help(hint);
    }
    let failure = Failure::usage(format!("`{word}` is neither a command of rbuild nor a directory to build"));
    let close = match word {
        "ls" | "list" => Some("images"),
        _ => {
            rbuild_dockerfile::closest(word, VERBS.into_iter().chain(verb_groups::names()).chain(substitutes::names()))
        }
    };
    match close {
        Some(close) => failure.help(hints::did_you_mean(&format!("rbuild {close}"))),
        None => failure.help(UsageRemedy::ListCommands),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(words: &str, docker: bool) -> Result<String, Failure> {
        let argv = words.split_whitespace().map(OsString::from).collect();
        with_verb(argv, docker).map(|line| match line {
            CommandLine::Arguments { argv, .. } => {
                argv.iter().map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ")
            }
            CommandLine::Help { verb, .. } => format!("help {}", verb.unwrap_or_default()),
            CommandLine::Answer { text, .. } => text,
        })
    }

    #[test]
    fn the_verb_is_optional_and_has_long_forms() {
        for (typed, want) in [
            ("rbuild .", "rbuild build ."),
            ("rbuild src -t a", "rbuild build src -t a"),
            ("rbuild --output type=local,dest=bin", "rbuild build --output type=local,dest=bin"),
            ("rbuild --root /x images", "rbuild --root /x images"),
            ("rbuild -D images", "rbuild -D images"),
            ("rbuild --debug -t a .", "rbuild --debug build -t a ."),
            ("rbuild --root=/x -t a .", "rbuild --root=/x build -t a ."),
            ("rbuild buildx build -t a .", "rbuild build -t a ."),
            ("rbuild builder build -t a .", "rbuild build -t a ."),
            ("rbuild bud -t a .", "rbuild build -t a ."),
            ("rbuild image ls -q", "rbuild images -q"),
            ("rbuild image rm x", "rbuild rmi x"),
            ("rbuild image pull x", "rbuild pull x"),
            ("rbuild image prune -a", "rbuild image-prune -a"),
            ("rbuild --root /x container ls", "rbuild --root /x ps"),
            ("rbuild container prune -f", "rbuild container-prune -f"),
            ("rbuild container rm x", "rbuild rm x"),
            ("rbuild container inspect -f x y", "rbuild inspect --type=container -f x y"),
            ("rbuild image inspect x", "rbuild inspect --type=image x"),
            ("rbuild container stop -t 1 x", "rbuild stop -t 1 x"),
            ("rbuild system df", "rbuild df"),
            ("rbuild buildx du", "rbuild df"),
            ("rbuild builder prune -af", "rbuild builder-prune -af"),
            ("rbuild buildx prune -f", "rbuild builder-prune -f"),
            ("rbuild system prune -af", "rbuild system-prune -af"),
            ("rbuild buildx version", "rbuild --version"),
            ("rbuild buildx create --use", "rbuild\n"),
            ("rbuild --help", "help "),
            ("rbuild help save", "help save"),
            ("rbuild help images", "help images"),
            ("rbuild version", "rbuild --version"),
            ("docker version", "docker --version"),
            ("rbuild version --format {{.Client.Version}}", concat!(env!("CARGO_PKG_VERSION"), "\n")),
            ("rbuild version -f {{.Client.Version}}", concat!(env!("CARGO_PKG_VERSION"), "\n")),
            ("rbuild info --format={{.ClientInfo.Version}}", concat!(env!("CARGO_PKG_VERSION"), "\n")),
            ("rbuild system info -f {{.OSType}}", "linux\n"),
            ("rbuild help version", "Usage: rbuild version [--format FORMAT]\n"),
            ("rbuild ./save", "rbuild build ./save"),
            ("rbuild --version", "rbuild --version"),
            ("rbuild -v", "rbuild --version"),
            ("rbuild -v a:/b", "rbuild build -v a:/b"),
        ] {
            assert_eq!(run(typed, false).unwrap(), want);
        }
    }

    #[test]
    fn help_for_a_word_of_a_group_is_that_of_its_command() {
        for (typed, want) in [
            ("rbuild help buildx build", "help build"),
            ("rbuild help image ls", "help images"),
            ("rbuild help image prune", "help image-prune"),
        ] {
            assert_eq!(run(typed, false).unwrap(), want);
        }
        let group = run("rbuild help buildx", false).unwrap();
        for word in ["create", "version", "--help"] {
            assert_eq!(run(&format!("rbuild help buildx {word}"), false).unwrap(), group, "{word}");
        }
        for (typed, message, help) in [
            (
                "rbuild help buildx biuld",
                "`buildx biuld` is not a command of rbuild",
                "did you mean `rbuild buildx build`?",
            ),
            ("rbuild help buildx build x", "unexpected argument `x`", "use the form: rbuild help [COMMAND|TOPIC]"),
            ("rbuild help save x", "unexpected argument `x`", "use the form: rbuild help [COMMAND|TOPIC]"),
        ] {
            let failure = run(typed, false).unwrap_err();
            assert_eq!((failure.message.as_str(), failure.help.unwrap().to_string().as_str()), (message, help));
        }
    }

    #[test]
    fn flags_of_docker_before_the_command_are_as_recorded() {
        let flags = unsupported::all_global_flags().map(|flag| format!("rbuild {flag} x build ."));
        let attached = ["rbuild --host=tcp://x build .", "rbuild -Htcp://x build ."].map(str::to_string);
        let failures = flags.chain(attached).map(|line| {
            let failure = run(&line, false).expect_err(&line);
            format!("$ {line}\n{}", failure.text())
        });
        rbuild_testkit::assert_recorded!("unsupported-global-flags", failures.collect::<String>());
    }

    #[test]
    fn topics_are_listed_and_found_by_their_beginning() {
        let list = run("rbuild help topics", false).unwrap();
        assert!(list.contains("\n  compatibility  Compatibility with"), "{list}");
        for (word, topic) in [("compat", "compatibility"), ("env", "environment"), ("ouptuts", "outputs")] {
            let failure = run(&format!("rbuild help {word}"), false).unwrap_err();
            let help = failure.help.unwrap().to_string();
            assert_eq!(
                (failure.message, help),
                (format!("no help page for `{word}`"), format!("did you mean `rbuild help {topic}`?"))
            );
        }
    }

    #[test]
    fn help_for_a_group_lists_its_commands() {
        for group in verb_groups::names() {
            let text = run(&format!("rbuild help {group}"), false).unwrap();
            assert_eq!(text, run(&format!("rbuild {group} --help"), false).unwrap());
            assert!(text.starts_with(&format!("Usage: rbuild {group} COMMAND")), "{text}");
        }
    }

    #[test]
    fn unknown_verbs_are_named_regardless_of_the_rest() {
        for (typed, message, help) in [
            (
                "rbuild imagse",
                "`imagse` is neither a command of rbuild nor a directory to build",
                "did you mean `rbuild images`?",
            ),
            (
                "rbuild biuld .",
                "`biuld` is neither a command of rbuild nor a directory to build",
                "did you mean `rbuild build`?",
            ),
            (
                "rbuild ls -a",
                "`ls` is neither a command of rbuild nor a directory to build",
                "did you mean `rbuild images`?",
            ),
            (
                "rbuild xyzzy -a",
                "`xyzzy` is neither a command of rbuild nor a directory to build",
                "run `rbuild --help` to list the commands",
            ),
            ("rbuild image tga a b", "`image tga` is not a command of rbuild", "did you mean `rbuild image tag`?"),
            (
                "rbuild attach x",
                "unsupported command `attach`: the terminal of a container is not shared",
                "rbuild exec -it CONTAINER sh",
            ),
        ] {
            let failure = run(typed, false).unwrap_err();
            assert!(failure.message.starts_with(message), "{typed}: {failure:?}");
            assert!(failure.text().contains(help), "{typed}: {failure:?}");
            assert_eq!(failure.code, code::USAGE);
        }
        assert_eq!(run("docker", true).unwrap(), "help ");
        assert_eq!(run("docker -v", true).unwrap(), "docker --version");
        for typed in ["docker swarm init", "docker container tag a b", "docker search debian"] {
            let failure = run(typed, true).unwrap_err();
            assert_eq!(failure.code, code::DOCKER_USAGE);
            assert!(failure.message.starts_with("`docker` is rbuild "), "{failure:?}");
        }
    }

    #[test]
    fn unsupported_commands_are_as_recorded() {
        let failures = unsupported::all_commands().map(|word| {
            // A word of a group may also be a command by itself: `buildx history`.
            let line = format!("rbuild {}{word}", if is_verb(word) { "buildx " } else { "" });
            format!("$ {line}\n{}", run(&line, false).expect_err(word).text())
        });
        rbuild_testkit::assert_recorded!("unsupported-commands", failures.collect::<String>());
    }
}
