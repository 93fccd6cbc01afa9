//! The clap command of the program: switches as in docker, and help pages.

use std::ffi::OsString;

use clap::builder::{ValueParser, ValueRange};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, CommandFactory};

use crate::args::{BuildArgs, Cli, CommonFlags, RunArgs};
use crate::input::value;

/// Groups of verbs on the help page of the program.
const VERBS: [(&str, &[&str]); 4] = [
    ("Build", &["build", "prune", "cache-export", "cache-import", "explain"]),
    ("Images", &["images", "pull", "push", "tag", "rmi", "history", "inspect", "import", "save", "load"]),
    (
        "Containers",
        &[
            "run", "ps", "logs", "exec", "stop", "restart", "kill", "wait", "port", "rm", "create", "start", "cp",
            "diff", "commit", "export", "rename", "pause", "unpause", "top", "stats",
        ],
    ),
    ("System", &["doctor", "df", "fsck", "login", "logout", "completion", "man", "debug"]),
];

/// Groups of flags on the help page of `build`, by name.
const HEADINGS: [(&str, &[&str]); 7] = [
    ("Inputs", &["file", "target", "build_arg", "build_context", "context_modes", "ignorefile", "secret", "ssh"]),
    (
        "Result",
        &[
            "tag",
            "output",
            "push",
            "platform",
            "label",
            "annotation",
            "squash",
            "iidfile",
            "metadata_file",
            "quiet",
            "verify",
        ],
    ),
    ("Cache", &["no_cache", "no_cache_filter", "cache_from", "cache_to", "cache_claim", "cache_limit"]),
    ("Registries", &["pull", "tls_verify", "creds", "authfile", "cert_dir"]),
    ("Commands", &["network", "add_host", "shm_size", "ulimit", "volume", "allow", "on_error", "jobs"]),
    ("Progress", &["progress", "explain", "timings"]),
    ("Checks", &["check", "call"]),
];

/// Verbs that unpack archives, and verbs that enter a builder process. Only their help pages show
/// the flags for that.
const UNPACK: [&str; 5] = ["build", "import", "load", "pull", "cache-import"];
const ENTER: [&str; 16] = [
    "build",
    "run",
    "start",
    "restart",
    "cp",
    "prune",
    "builder-prune",
    "system-prune",
    "volume-rm",
    "volume-prune",
    "diff",
    "commit",
    "export",
    "doctor",
    "cache-export",
    "cache-import",
];

/// Verbs without a store.
const NO_STORE: [&str; 7] = ["login", "logout", "completion", "man", "debug", "explain", "help"];

const EXAMPLES: [(&str, &str); 11] = [
    (
        "build",
        "  rbuild -t app .                           build ./Dockerfile and name the image\n  \
           rbuild --target test                      build up to the stage `test`\n  \
           rbuild -o out                             write the files of the result to ./out\n  \
           rbuild -o type=oci,dest=app.tar           write an OCI archive\n  \
           rbuild --secret id=npm,src=.npmrc         pass a secret\n  \
           rbuild -t ghcr.io/me/app --push           build and push",
    ),
    (
        "run",
        "  rbuild run app\n  rbuild run -d --name web -p 8080:80 nginx\n  rbuild run -it debian sh\n  rbuild run -v ./data:/data -e MODE=test app make check",
    ),
    (
        "import",
        "  rbuild import rootfs.tar.gz debian:bookworm\n  mmdebstrap bookworm - | rbuild import - debian:bookworm",
    ),
    ("save", "  rbuild save app -o app.tar\n  rbuild save --format oci-archive app | ssh host 'podman load'"),
    ("cp", "  rbuild cp app:/usr/bin/app .\n  rbuild cp app:/etc - | tar -t"),
    ("cache-export", "  rbuild cache export cache\n  rbuild cache export --mounts all cache.tar"),
    ("cache-import", "  rbuild cache import cache"),
    (
        "prune",
        "  rbuild prune --filter until=24h    what was not used for a day\n  rbuild prune --keep-storage 10g    what was used least recently\n  rbuild prune --all                 the whole build cache",
    ),
    (
        "completion",
        "  rbuild completion bash > ~/.local/share/bash-completion/completions/rbuild\n  rbuild completion fish > ~/.config/fish/completions/rbuild.fish\n  rbuild completion zsh > ~/.zfunc/_rbuild     with fpath+=~/.zfunc before compinit",
    ),
    (
        "explain",
        "  rbuild explain StageNameCasing\n  rbuild explain 127\n  rbuild explain image not found in the local store\n  rbuild build . 2>&1 | rbuild explain -",
    ),
    ("man", "  rbuild man build | man -l -\n  rbuild man --output ~/.local/share/man/man1"),
];

/// Parses a command line whose verb is known.
///
/// The tree of all verbs takes a millisecond to make, as long as a small cached build: the verbs
/// that are run most often are first parsed without the others. Errors come from the whole tree,
/// because their texts refer to it.
pub fn parse(line: &[OsString], verb: &str) -> Result<ArgMatches, clap::Error> {
    let alone = match verb {
        "build" => Some(parser_of::<BuildArgs>("build")),
        "run" => Some(parser_of::<RunArgs>("run")),
        _ => None,
    };
    match alone.and_then(|parser| parser.try_get_matches_from(line).ok()) {
        Some(matches) => Ok(matches),
        None => parser().try_get_matches_from(line),
    }
}

/// Returns a parser of one verb, which accepts the same lines as [`parser`] and yields the same
/// values.
fn parser_of<A: Args>(verb: &'static str) -> Command {
    let verb = A::augment_args(Command::new(verb));
    with_switches(CommonFlags::augment_args(Command::new("rbuild")).subcommand_required(true).subcommand(verb))
}

/// Returns the parser of the command line. As in docker, switches also accept `=true` and `=false`,
/// and the last occurrence of a flag with a single value applies.
pub fn parser() -> Command {
    with_switches(Cli::command())
}

fn with_switches(command: Command) -> Command {
    let mut command = command.args_override_self(true);
    command.build();
    let names: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_string()).collect();
    let command = command.mut_args(switch);
    names.into_iter().fold(command, |command, name| {
        command.mut_subcommand(name, |verb| verb.args_override_self(true).mut_args(switch))
    })
}

fn switch(arg: Arg) -> Arg {
    if !matches!(arg.get_action(), ArgAction::SetTrue) || matches!(arg.get_id().as_str(), "help" | "version") {
        return arg;
    }
    arg.action(ArgAction::Set)
        .num_args(ValueRange::from(0..=1))
        .require_equals(true)
        .default_value("false")
        .default_missing_value("true")
        .value_parser(ValueParser::new(value::switch))
}

/// Returns the command line for help pages: flags are in groups, and each page shows only those
/// common flags that have an effect there.
pub fn pages() -> Command {
    let command = Cli::command();
    let common: Vec<Arg> = command.get_arguments().filter(|arg| arg.is_global_set()).cloned().collect();
    let list = verbs(&command);
    let names: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_string()).collect();
    let command = names.into_iter().fold(command, |command, name| {
        let common = common.iter().filter(|arg| is_relevant(arg.get_id().as_str(), &name)).cloned();
        command.mut_subcommand(&name, |verb| page(verb, common.collect()))
    });
    command
        .mut_args(|arg| arg.global(false))
        .disable_help_subcommand(true)
        .override_usage("rbuild [build] [OPTIONS] [CONTEXT]\n       rbuild COMMAND …")
        .help_template(format!(
            "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{list}Options:\n{{options}}{{after-help}}"
        ))
        .after_help(
            "The groups of docker have these commands, too: `rbuild image ls`, `rbuild container rm`,\n\
             `rbuild system df`. `rbuild volume` and the like list those of a group.\n\n\
             Run `rbuild COMMAND --help` for the options of a command, and `rbuild help TOPIC` for caches,\n\
             compatibility, containers, environment, errors, outputs, registries or sources.\n\
             In a directory with a Dockerfile, run `rbuild -t app` to build it.",
        )
}

/// Returns the verbs on the help page of the program.
pub fn listed_verbs() -> impl Iterator<Item = &'static str> {
    VERBS.iter().flat_map(|(_, names)| names.iter().copied())
}

/// Returns the list of verbs, in groups.
fn verbs(command: &Command) -> String {
    let mut text = String::new();
    for (group, names) in VERBS {
        text += &format!("{group}:\n");
        for verb in names.iter().filter_map(|name| command.find_subcommand(name)) {
            let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
            text += &format!("  {:14}{about}\n", written(verb.get_name()));
        }
        text += "\n";
    }
    text
}

fn is_relevant(flag: &str, verb: &str) -> bool {
    match flag {
        "root" => !NO_STORE.contains(&verb),
        "limit" => UNPACK.contains(&verb),
        "isolation" => ENTER.contains(&verb),
        "lock_timeout" => verb == "build",
        _ => matches!(verb, "build" | "run"),
    }
}

/// Returns a verb in the form in which users write it: `image prune`.
pub fn written(verb: &str) -> &str {
    match verb {
        "cache-export" => "cache export",
        "cache-import" => "cache import",
        "builder-prune" => "builder prune",
        "image-prune" => "image prune",
        "container-prune" => "container prune",
        "system-prune" => "system prune",
        "volume-ls" => "volume ls",
        "volume-create" => "volume create",
        "volume-rm" => "volume rm",
        "volume-inspect" => "volume inspect",
        "volume-prune" => "volume prune",
        verb => verb,
    }
}

fn page(verb: Command, common: Vec<Arg>) -> Command {
    let name = verb.get_name().to_string();
    let heading = |id: &str| HEADINGS.iter().find(|(_, ids)| ids.contains(&id)).map(|(heading, _)| *heading);
    let mut verb = if name == "build" {
        verb.mut_args(|arg| match heading(arg.get_id().as_str()) {
            Some(heading) => arg.help_heading(heading),
            None => arg,
        })
    } else {
        verb
    };
    for arg in common {
        let id = arg.get_id().to_string();
        verb = verb.arg(arg.global(false).help_heading("Common options").display_order(900)).mut_arg(id, |arg| arg);
    }
    let verb = verb.bin_name(format!("rbuild {}", written(&name)));
    match EXAMPLES.iter().find(|(of, _)| *of == name) {
        Some((_, examples)) => verb.after_help(format!("Examples:\n{examples}")),
        None => verb,
    }
}

/// Returns the help page of a verb, or of the program for `None`; long if it was requested with
/// `--help`.
pub fn help(verb: Option<&str>, long: bool) -> String {
    let mut command = pages();
    let page = match verb.and_then(|verb| command.find_subcommand_mut(verb)) {
        Some(verb) => verb,
        None => &mut command,
    };
    let text = if long { page.render_long_help() } else { page.render_help() };
    let text = text.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::FromArgMatches;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        Cli::from_arg_matches(&super::parse(&words, &words[1].to_string_lossy())?)
    }

    fn build(line: &str) -> crate::args::BuildArgs {
        match parse(line).unwrap().verb {
            crate::args::Verb::Build(args) => *args,
            _ => unreachable!("the line is a build"),
        }
    }

    #[test]
    fn switches_accept_boolean_values_of_go() {
        for (line, want) in [
            ("rbuild build .", false),
            ("rbuild build --no-cache .", true),
            ("rbuild build --no-cache=true .", true),
            ("rbuild build --no-cache=1 .", true),
            ("rbuild build --no-cache=False .", false),
            ("rbuild build --no-cache --no-cache=false .", false),
        ] {
            assert_eq!(build(line).no_cache, want, "{line}");
        }
        assert!(build("rbuild build -q .").quiet && build("rbuild build -q=true .").quiet);
        assert!(parse("rbuild build --no-cache=maybe .").is_err());
    }

    #[test]
    fn the_last_value_of_a_repeated_flag_applies() {
        assert_eq!(build("rbuild build -f a --target x --target y -f b .").file.as_deref(), Some("b"));
        assert_eq!(build("rbuild build --target x --target y .").target.as_deref(), Some("y"));
        assert_eq!(build("rbuild build -t a -t b .").tag, ["a", "b"]);
        assert_eq!(build("rbuild build --network none --network host .").network, rbuild_plan::NetworkMode::Host);
    }

    /// Checks that a parser of one verb has the same flags as the whole tree, with the same
    /// properties: a line that it accepts means the same to both.
    #[test]
    fn parsers_of_one_verb_equal_the_whole_tree() {
        let whole = parser();
        let described = |command: &Command, verb: &str| {
            let mut lines: Vec<String> = [command, command.find_subcommand(verb).unwrap()]
                .iter()
                .flat_map(|command| command.get_arguments())
                .filter(|arg| arg.get_id() != "version")
                .map(|arg| format!("{arg:?}"))
                .collect();
            lines.sort();
            lines
        };
        for (verb, alone) in [("build", parser_of::<BuildArgs>("build")), ("run", parser_of::<RunArgs>("run"))] {
            assert_eq!(described(&alone, verb), described(&whole, verb), "{verb}");
        }
    }

    #[test]
    fn clustered_switches_and_commands_are_not_rewritten() {
        let crate::args::Verb::Run(args) = parse("rbuild run -it -e A=b x -c -it --rm=false").unwrap().verb else {
            unreachable!("the line is a run")
        };
        assert!(args.container.interactive && args.container.tty);
        assert_eq!(args.container.words, ["x", "-c", "-it", "--rm=false"]);
    }

    #[test]
    fn every_verb_and_flag_that_is_shown_has_a_description() {
        let pages = pages();
        let listed: Vec<&str> = VERBS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        for verb in pages.get_subcommands() {
            assert!(verb.get_about().is_some(), "{} has no description", verb.get_name());
            let shown = listed.contains(&verb.get_name()) || verb.is_hide_set() || verb.get_name() == "help";
            assert!(shown, "{} is on no page", verb.get_name());
            for arg in verb.get_arguments().filter(|arg| !arg.is_hide_set()) {
                assert!(arg.get_help().is_some(), "{} {} has no description", verb.get_name(), arg.get_id());
            }
        }
        let build = pages.find_subcommand("build").unwrap();
        for arg in build.get_arguments().filter(|arg| !arg.is_hide_set() && !arg.is_positional()) {
            assert!(arg.get_help_heading().is_some() || arg.get_id() == "help", "{} has no heading", arg.get_id());
        }
    }
}
