//! Remedies for errors of commands, builds and Dockerfiles.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// A change of a step, or of the files that its command needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandRemedy {
    /// Give the account a valid ID in an earlier step.
    ValidAccountId,
    /// Use a numeric ID, or add the account in an earlier step.
    AddAccount,
    /// Use a numeric ID, or an image with that account.
    OtherAccount,
    /// Correct the JSON form, or use the shell form.
    CorrectJson {
        /// The mistake.
        mistake: String,
    },
    /// Make the program executable (exit code 126).
    MakeExecutable,
    /// Install the program, or correct its path or its script (exit code 127).
    InstallProgram,
    /// Use an image with a shell, or the form of the command that needs none.
    UseImageWithShell,
    /// Install a program that does not exist, or correct its name or PATH.
    ProvideProgram,
    /// Use a program that the image of a container contains.
    OtherProgram,
    /// Check if the machine ran out of memory (exit code 137).
    CheckMemoryOfCode,
    /// Find the cause of the signal that the exit code stands for.
    FindSignal {
        /// The exit code.
        code: i32,
    },
    /// Pass the number of a stage.
    PassStageNumber,
    /// Add the key to an SSH agent and pass its socket.
    AddKeyToAgent,
    /// Convert a key to the format of OpenSSH.
    ConvertKey,
    /// Open a shell in the container of the command that failed.
    InspectFailure,
    /// Raise the resource limits of the command.
    RaiseUlimits {
        /// The limits that were set.
        limits: String,
    },
}

/// A change of the request of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BuildRemedy {
    /// Use the time of a commit, in seconds since 1970.
    TimeOfCommit,
    /// Give a command to run.
    GiveCommand,
    /// Give the argument a default value, or a value for this build.
    SetArgument,
    /// Declare the argument.
    DeclareArgument {
        /// Name of the argument.
        name: String,
    },
    /// Grant an entitlement to the Dockerfile.
    Allow {
        /// Name of the entitlement.
        entitlement: Cow<'static, str>,
    },
    /// Read the secret from its mount, or allow its value in the image.
    KeepSecretOut,
    /// Exclude the file with the secret from the build context, or allow its value in the image.
    IgnoreSecretFile,
    /// Pass a secret to the build.
    PassSecret {
        /// ID of the secret.
        id: String,
    },
    /// Pass an SSH agent to the build.
    PassAgent {
        /// ID of the agent.
        id: String,
    },
    /// Pass the optional secrets and agents that a command was run without.
    PassMissing {
        /// IDs of the secrets.
        secrets: Vec<String>,
        /// IDs of the agents.
        agents: Vec<String>,
    },
    /// Pass a build context.
    PassContext,
}

/// A change of the Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DockerfileRemedy {
    /// Move a stage above its use.
    MoveStage,
    /// Move a stage above its use, or give it another name than that of the image that is meant.
    MoveOrRenameStage,
    /// Remove the option of a RUN that names a device.
    RemoveDevice,
    /// Remove the directive that names another frontend.
    RemoveSyntax,
    /// Write a flag with two dashes.
    WriteFlag,
    /// Use ADD for a URL.
    UseAdd,
    /// Use the JSON form for a name with spaces.
    UseJsonForm {
        /// The name.
        name: String,
    },
    /// Separate the items of the JSON form, or escape the bracket of a pattern.
    SeparateItems,
    /// Escape the bracket of a pattern.
    EscapeBracket,
    /// Name the path that a link leads to.
    NameLinkTarget,
}
