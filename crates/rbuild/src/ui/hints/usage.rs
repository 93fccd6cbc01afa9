//! Words of hints about the parts of a command line: commands, flags and their order.

use std::borrow::Cow;

use crate::ui::hints::hint::Hint;

/// A correction of a command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UsageRemedy {
    /// List the commands.
    ListCommands,
    /// Read the help page of this command.
    ShowOptions { command: String },
    /// Use the form of the command.
    UseForm { form: String },
    /// Put the verb before everything else.
    PutFirst { verb: String },
    /// Write flags of `run` before the image.
    PutFlagsFirst,
    /// Write flags of `exec` before the container.
    PutExecFlagsFirst,
    /// Write the value of a flag after an equals sign.
    AttachValue { flag: String, value: String },
    /// Pass the value of a flag.
    PassOne { form: String },
    /// Pass a value for a flag, before the word that was taken as its value.
    PassValue { flag: String, word: String },
    /// Pass a flag to the command that has it.
    FlagOf { flag: String, verb: String },
    /// Repeat a flag for each of its values.
    RepeatFlag { flag: String, value: String },
    /// Name the container whose output is followed.
    NameContainer,
    /// Use a command of the group.
    UseWordOfGroup { group: String, words: Vec<String> },
    /// Run another command.
    RunInstead { command: String },
    /// Read the page of a group of commands that rbuild does not have.
    ListSubstitutes { group: String },
    /// Pass the archive as the value of a flag.
    PassArchive { file: String },
    /// Pass a Dockerfile, or a directory with one.
    PassDockerfile,
    /// Check the path of the store.
    CheckStorePath,
    /// Pass the path of the store.
    GiveStorePath,
}

impl From<UsageRemedy> for Hint {
    fn from(remedy: UsageRemedy) -> Hint {
        Hint(remedy.words())
    }
}

impl UsageRemedy {
    fn words(&self) -> Cow<'static, str> {
        match self {
            UsageRemedy::ListCommands => "run `rbuild --help` to list the commands".into(),
            UsageRemedy::ShowOptions { command } => format!("run `{command} --help` for the options").into(),
            UsageRemedy::UseForm { form } => format!("use the form: {form}").into(),
            UsageRemedy::PutFirst { verb } => format!("put the command first: rbuild {verb} …").into(),
            UsageRemedy::PutFlagsFirst => "write the flags of `rbuild run` before the image".into(),
            UsageRemedy::PutExecFlagsFirst => "write the flags of `rbuild exec` before the container".into(),
            UsageRemedy::AttachValue { flag, value } => format!("write {flag}={value}").into(),
            UsageRemedy::PassOne { form } => format!("pass one: {form}").into(),
            UsageRemedy::PassValue { flag, word } => {
                format!("pass a value before `{word}`, which {flag} took as its own").into()
            }
            UsageRemedy::FlagOf { flag, verb } => format!("use {flag} with `rbuild {verb}`").into(),
            UsageRemedy::RepeatFlag { flag, value } => format!("repeat the flag for each value: {flag} {value}").into(),
            UsageRemedy::NameContainer => "name a container: rbuild logs -f CONTAINER".into(),
            UsageRemedy::UseWordOfGroup { group, words } => {
                format!("use `{group}` with one of {}", words.join(", ")).into()
            }
            UsageRemedy::RunInstead { command } => format!("run `{command}`").into(),
            UsageRemedy::ListSubstitutes { group } => {
                format!("run `rbuild help {group}` for the commands that replace it").into()
            }
            UsageRemedy::PassArchive { file } => format!("pass the file with -i {file}").into(),
            UsageRemedy::PassDockerfile => "pass a directory with one, or a file with -f FILE".into(),
            UsageRemedy::CheckStorePath => "check the path of --root or RBUILD_ROOT".into(),
            UsageRemedy::GiveStorePath => "pass --root DIR".into(),
        }
    }
}
