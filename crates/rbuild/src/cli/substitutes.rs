//! Groups of docker commands that rbuild does not have: compose and bake. Each word is answered by
//! the command of rbuild that does its part.

use std::ffi::OsString;

use crate::exit::Failure;
use crate::ui::hints::UsageRemedy;

/// A group of commands that rbuild does not have.
struct Substitutes {
    name: &'static str,
    /// The reason, as a sentence.
    reason: &'static str,
    /// Sentences for the end of the help page.
    note: &'static str,
    /// Words of the group, each with the command that replaces it.
    words: &'static [(&'static str, &'static str)],
    /// The command that replaces all of them, if there is one.
    usual: Option<&'static str>,
    /// Flags of the group with a value.
    valued: &'static [&'static str],
}

const ALL: [Substitutes; 2] = [
    Substitutes {
        name: "compose",
        reason: "compose files are not supported yet",
        note: "Containers without published ports share the network of this machine: they reach each other\n\
               at localhost. `rbuild help containers` describes their flags.",
        words: &[
            ("build", "rbuild build -t NAME DIRECTORY"),
            ("up", "rbuild run -d --name NAME -p PORT:CONTAINER-PORT IMAGE"),
            ("ps", "rbuild ps"),
            ("logs", "rbuild logs -f NAME"),
            ("exec", "rbuild exec -it NAME COMMAND"),
            ("run", "rbuild run --rm -it IMAGE COMMAND"),
            ("stop", "rbuild stop NAME"),
            ("restart", "rbuild restart NAME"),
            ("kill", "rbuild kill NAME"),
            ("pause", "rbuild pause NAME"),
            ("unpause", "rbuild unpause NAME"),
            ("top", "rbuild top NAME"),
            ("stats", "rbuild stats"),
            ("port", "rbuild port NAME"),
            ("cp", "rbuild cp NAME:PATH ."),
            ("down", "rbuild rm -f NAME"),
            ("pull", "rbuild pull IMAGE"),
            ("push", "rbuild push IMAGE"),
            ("images", "rbuild images"),
        ],
        usual: None,
        valued: &["-f", "--file", "-p", "--project-name", "--profile", "--env-file", "--project-directory"],
    },
    Substitutes {
        name: "bake",
        reason: "bake files are not supported yet",
        note: "Targets of one Dockerfile share its stages in the build cache, so that a build of several\n\
               targets one after another does no step twice.",
        words: &[],
        usual: Some("rbuild build --target STAGE -t NAME DIRECTORY"),
        valued: &["-f", "--file", "--set", "--metadata-file", "--builder"],
    },
];

/// Returns the names of the groups.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|group| group.name)
}

/// Answers a command of such a group, with the words after its name: returns the help page. Returns
/// `None` if there is no such group.
///
/// # Errors
///
/// Fails unless the words request help: rbuild does not have the command.
pub fn answer(name: &str, words: &[OsString]) -> Option<Result<String, Failure>> {
    let group = ALL.iter().find(|group| group.name == name)?;
    let words: Vec<&str> = words.iter().filter_map(|word| word.to_str()).collect();
    let wants_help = words.iter().any(|word| matches!(*word, "-h" | "--help"));
    // Without a word, bake builds.
    let is_alone = !group.words.is_empty() && (words.is_empty() || words == ["help"]);
    Some(if wants_help || is_alone { Ok(group.page()) } else { Err(group.failure(&words)) })
}

impl Substitutes {
    fn page(&self) -> String {
        let Substitutes { name, reason, note, words, usual, .. } = self;
        let mut letters = reason.chars();
        let reason: String = letters.next().iter().flat_map(|c| c.to_uppercase()).chain(letters).collect();
        let usual = usual.map(|command| format!("  {command}\n"));
        let each = words.iter().map(|(word, command)| format!("  {name} {word:8}{command}\n"));
        let instead: String = usual.into_iter().chain(each).collect();
        format!("Usage: rbuild {name} …\n\n{reason}. Use instead:\n\n{instead}\n{note}\n")
    }

    fn failure(&self, words: &[&str]) -> Failure {
        let Substitutes { name, reason, words: known, usual, valued, .. } = self;
        let mut rest = words.iter().copied();
        let word = loop {
            match rest.next() {
                Some(flag) if valued.contains(&flag) => drop(rest.next()),
                Some(flag) if flag.starts_with('-') => {}
                word => break word,
            }
        };
        let found = word.and_then(|word| known.iter().find(|(name, _)| *name == word));
        let command = found.map_or(String::from(*name), |(word, _)| format!("{name} {word}"));
        let failure = Failure::usage(format!("unsupported command `{command}`: {reason}"));
        failure.help(match found.map(|(_, command)| *command).or(*usual) {
            Some(command) => UsageRemedy::RunInstead { command: command.into() },
            None => UsageRemedy::ListSubstitutes { group: (*name).into() },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_of_missing_groups_are_answered_as_recorded() {
        let mut text = String::new();
        for line in [
            "compose",
            "compose --help",
            "compose help",
            "compose up -d",
            "compose -f compose.yaml -p x --verbose down -v",
            "compose watch",
            "compose -f compose.yaml",
            "bake",
            "bake --help",
            "bake -f docker-bake.hcl app",
        ] {
            let words: Vec<&str> = line.split(' ').collect();
            let rest: Vec<OsString> = words[1..].iter().map(OsString::from).collect();
            let answered = match answer(words[0], &rest) {
                Some(Ok(page)) => page,
                Some(Err(failure)) => failure.text(),
                None => panic!("{line} has no answer"),
            };
            text += &format!("$ rbuild {line}\n{answered}");
        }
        rbuild_testkit::assert_recorded!("missing-groups", text);
        assert!(answer("build", &[]).is_none());
    }
}
