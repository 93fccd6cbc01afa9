//! Completion of command lines by shells.
//!
//! The script of a shell runs this program with [`VARIABLE`] set, which answers with candidates for
//! the word at the cursor. They depend on the store and on the Dockerfile that the line names.

mod line;
mod values;

use std::ffi::{OsStr, OsString};
use std::io::Write;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_complete::engine::{CompletionCandidate, complete};
use clap_complete::env::{EnvCompleter, Fish, Zsh};

use crate::args::Cli;
use crate::cli::completion::line::{escaped, split};
use crate::cli::completion::values::with_values;
use crate::cli::{clap_command, topics, verb_groups};
use crate::exit::code;

/// Variable with the name of the shell that requests candidates.
pub const VARIABLE: &str = "RBUILD_COMPLETE";

/// Variables with the line of bash up to the cursor, and with the characters at which it divides
/// words.
const LINE: &str = "RBUILD_COMPLETE_LINE";
const BREAKS: &str = "RBUILD_COMPLETE_BREAKS";

/// The script for bash. Bash divides words at colons, so that the program divides the line itself.
const BASH: &str = r#"_rbuild() {
    mapfile -t COMPREPLY < <(
        RBUILD_COMPLETE=bash RBUILD_COMPLETE_LINE="${COMP_LINE:0:COMP_POINT}" \
            RBUILD_COMPLETE_BREAKS="$COMP_WORDBREAKS" rbuild 2>/dev/null
    )
    if [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *[=:/,] ]]; then
        compopt -o nospace
    fi
}
complete -o bashdefault -o default -o nosort -F _rbuild rbuild
"#;

/// Returns the completion script for a shell.
pub fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    let register = |shell: &dyn EnvCompleter, script: &mut Vec<u8>| {
        // A vector accepts all that is written.
        let _ = shell.write_registration(VARIABLE, "rbuild", "rbuild", "rbuild", script);
    };
    match shell {
        Shell::Bash => script.extend_from_slice(BASH.as_bytes()),
        Shell::Zsh => register(&Zsh, &mut script),
        Shell::Fish => register(&Fish, &mut script),
        other => clap_complete::generate(other, &mut with_build_flags(Cli::command()), "rbuild", &mut script),
    }
    String::from_utf8_lossy(&script).into_owned()
}

/// Prints candidates for a shell, and returns the exit code. `argv` are the arguments of this
/// process: for other shells than bash, the words of the line follow `--`.
pub fn answer(shell: &OsStr, argv: Vec<OsString>) -> u8 {
    let mut out = Vec::new();
    let words: Vec<OsString> = argv.into_iter().skip_while(|word| word != "--").skip(1).collect();
    let here = std::env::current_dir().ok();
    let answered = match shell.to_str() {
        Some("bash") => {
            let text = |name| std::env::var(name).unwrap_or_default();
            out.extend_from_slice(of_bash(&text(LINE), &text(BREAKS)).as_bytes());
            Ok(())
        }
        Some("zsh") => Zsh.write_complete(&mut command(&words), words, here.as_deref(), &mut out),
        Some("fish") => Fish.write_complete(&mut command(&words), words, here.as_deref(), &mut out),
        _ => return code::USAGE,
    };
    match answered.and_then(|()| std::io::stdout().write_all(&out)) {
        Ok(()) => code::OK,
        Err(_) => code::FAILED,
    }
}

/// Returns candidates for the end of a line of bash, one per line: each without the part of its
/// word that bash keeps.
fn of_bash(line: &str, breaks: &str) -> String {
    let words: Vec<OsString> = split(line).into_iter().map(OsString::from).collect();
    let current = words.last().and_then(|word| word.to_str()).unwrap_or_default().to_string();
    let kept = current.rfind(|c| "=:".contains(c) && breaks.contains(c)).map_or(0, |at| at + 1);
    let here = std::env::current_dir().ok();
    let at = words.len().saturating_sub(1);
    let found = complete(&mut command(&words), words, at, here.as_deref()).unwrap_or_default();
    let value = |candidate: &CompletionCandidate| candidate.get_value().to_str().map(str::to_string);
    let texts = found.iter().filter_map(value).filter(|text| text.starts_with(&current));
    texts.map(|text| escaped(&text[kept..]) + "\n").collect()
}

/// Returns the command line with candidates for values, for the line with these words.
fn command(words: &[OsString]) -> Command {
    let command = with_build_flags(Cli::command());
    let grouped = verb_groups::groups().map(|(group, words)| {
        let verbs =
            words.filter_map(|(word, verb)| Some(command.find_subcommand(verb)?.clone().name(word).hide(false)));
        Command::new(group).about("Commands of docker").subcommands(verbs.collect::<Vec<_>>())
    });
    let grouped: Vec<Command> = grouped.collect();
    let help = help_of(&command);
    let command = without_internal_names(command).disable_help_subcommand(true);
    let command = with_values(command.subcommands(grouped).subcommand(help), words);
    let current = words.get(index(words)).map(|word| word.to_string_lossy()).unwrap_or_default();
    if current.starts_with('-') { command } else { without_flags(command) }
}

/// Returns the command `help` with the names of commands, groups and topics.
fn help_of(command: &Command) -> Command {
    let word = |name: &'static str, verb: &str| {
        let about = command.find_subcommand(verb).and_then(Command::get_about).cloned();
        Command::new(name).about(about.unwrap_or_default())
    };
    let verbs = clap_command::listed_verbs().filter(|verb| !is_internal(verb)).map(|verb| word(verb, verb));
    let groups = verb_groups::groups().map(|(group, words)| {
        let words: Vec<Command> = words.map(|(name, verb)| word(name, verb)).collect();
        Command::new(group).about("Commands of docker").subcommands(words)
    });
    let topics = topics::names().map(|name| Command::new(name).about("Page of the reference"));
    let help = Command::new("help").about("Show a help page").disable_help_subcommand(true);
    help.subcommands(verbs.chain(groups).chain(topics).collect::<Vec<_>>())
}

/// Hides verbs that users write as two words: `cache export`.
fn without_internal_names(command: Command) -> Command {
    let names: Vec<String> = command.get_subcommands().map(|verb| verb.get_name().to_string()).collect();
    let internal = names.iter().filter(|name| is_internal(name));
    internal.fold(command, |command, name| command.mut_subcommand(name, |verb| verb.hide(true)))
}

fn is_internal(verb: &str) -> bool {
    clap_command::written(verb) != verb
}

/// Returns the index of the word at the cursor. Zsh passes all words, and the index in a variable.
fn index(words: &[OsString]) -> usize {
    let given = std::env::var("_CLAP_COMPLETE_INDEX").ok().and_then(|index| index.parse().ok());
    given.unwrap_or_else(|| words.len().saturating_sub(1))
}

/// Hides all flags, which are then candidates only if there are no others.
fn without_flags(command: Command) -> Command {
    let names: Vec<String> = command.get_subcommands().map(|below| below.get_name().to_string()).collect();
    let command = command.mut_args(|arg| if arg.is_positional() { arg } else { arg.hide(true) });
    let command = command.disable_help_flag(true).disable_version_flag(true);
    names.iter().fold(command, |command, name| command.mut_subcommand(name, without_flags))
}

/// Adds the flags and the context of `build` to the program, because a line without a verb is a
/// build.
fn with_build_flags(command: Command) -> Command {
    let known: Vec<_> = command.get_arguments().map(|arg| arg.get_id().clone()).collect();
    let build = command.find_subcommand("build").into_iter().flat_map(Command::get_arguments);
    let flags: Vec<_> = build.filter(|arg| !known.contains(arg.get_id())).cloned().collect();
    command.args(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(line: &str) -> Vec<String> {
        of_bash(line, " =:").lines().map(str::to_string).collect()
    }

    #[test]
    fn verbs_flags_and_values_are_completed() {
        for (line, expected) in [
            ("rbuild bui", &["build", "builder"][..]),
            ("rbuild help comp", &["completion", "compatibility"]),
            ("rbuild help cache e", &["export"]),
            ("A=1 rbuild image hist", &["history"]),
            ("rbuild --no-cache-f", &["--no-cache-filter"]),
            ("rbuild build --no-cache-f", &["--no-cache-filter"]),
            ("rbuild buildx build --network i", &["isolated"]),
            ("rbuild --network=i", &["isolated"]),
            ("rbuild run --isolation s", &["single-id"]),
            ("rbuild build --progress raw", &["rawjson"]),
            ("rbuild -o type=o", &["type=oci,dest="]),
            ("rbuild save --format docker-", &["docker-archive"]),
            ("rbuild ps --format t", &["table"]),
            ("rbuild explain ", &[]),
        ] {
            let found = candidates(line);
            let kept = line.rsplit([' ', '=']).next().unwrap_or_default();
            assert!(found.iter().all(|text| text.starts_with(kept) || line.contains("-o ")), "{line}: {found:?}");
            let expected: Vec<&str> = expected.iter().map(|text| text.trim_start_matches("type=")).collect();
            assert!(expected.iter().all(|text| found.iter().any(|found| found == text)), "{line}: {found:?}");
        }
    }

    #[test]
    fn names_that_users_do_not_write_are_not_offered() {
        for line in ["rbuild ", "rbuild help "] {
            let found = candidates(line);
            assert!(found.iter().any(|name| name == "cache"), "{line}: {found:?}");
            assert!(!found.iter().any(|name| name.contains('-') && !name.starts_with('-')), "{line}: {found:?}");
        }
    }

    #[test]
    fn flags_are_offered_for_a_dash_or_without_other_candidates() {
        for (line, flags, others) in [
            ("rbuild ", false, true),
            ("rbuild explain ", false, true),
            ("rbuild explain -", true, false),
            ("rbuild image ", false, true),
            ("rbuild login ", true, false),
            ("rbuild -", true, false),
        ] {
            let (dashed, plain): (Vec<String>, Vec<String>) =
                candidates(line).into_iter().partition(|text| text.starts_with('-'));
            assert_eq!((!dashed.is_empty(), !plain.is_empty()), (flags, others), "{line}: {dashed:?} {plain:?}");
        }
    }

    #[test]
    fn shells_have_scripts() {
        for (shell, text) in [
            (Shell::Bash, "complete -o bashdefault"),
            (Shell::Zsh, "#compdef rbuild"),
            (Shell::Fish, "--command rbuild"),
            (Shell::Elvish, "cand --secret"),
        ] {
            assert!(script(shell).contains(text), "{shell}: {}", script(shell));
        }
        assert_eq!(answer(OsStr::new("csh"), Vec::new()), code::USAGE);
    }
}
