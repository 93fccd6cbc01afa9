//! Completion scripts for shells.

use clap::{Command, CommandFactory};
use clap_complete::Shell;

use crate::args::Cli;

/// Returns the completion script for a shell.
pub fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut with_build_flags(Cli::command()), "rbuild", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Adds the flags of `build` to the program, because a line without a verb is a build.
fn with_build_flags(command: Command) -> Command {
    let known: Vec<_> = command.get_arguments().map(|arg| arg.get_id().clone()).collect();
    let build = command.find_subcommand("build").into_iter().flat_map(Command::get_arguments);
    let flags = build.filter(|arg| !arg.is_positional() && !known.contains(arg.get_id()));
    let flags: Vec<_> = flags.cloned().collect();
    command.args(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each row contains a shell, the beginning and the end of the part of its script that
    /// completes words before a verb, and a flag of `build` in that part.
    #[test]
    fn flags_of_builds_are_completed_without_a_verb() {
        for (shell, begin, end, flag) in [
            (Shell::Bash, "\n        rbuild)\n", "COMPREPLY=", " --secret "),
            (Shell::Zsh, "\n_rbuild() {\n", "&& ret=0", "'*--secret="),
            (Shell::Fish, "-n \"__fish_rbuild_needs_command\" -l secret ", "\n", " -r"),
        ] {
            let script = script(shell);
            let at = script.find(begin).unwrap_or_else(|| panic!("{shell}: {script}"));
            let part = script[at..].split(end).next().unwrap();
            assert!(part.contains(flag), "{shell}: {part}");
        }
    }
}
