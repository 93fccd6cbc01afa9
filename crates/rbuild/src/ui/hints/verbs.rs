//! Words of hints about the arguments and the results of single commands.

use std::borrow::Cow;

use crate::ui::hints::hint::Hint;

/// An action that a command suggests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VerbRemedy {
    /// Continue a process that is stopped.
    Continue { process: u32 },
    /// Start a container before files are copied into it, or mount them.
    StartFirst { name: String },
    /// Start a container.
    StartContainer { name: String },
    /// Copy files into an image by a build.
    UseCopy,
    /// Write the path of a file in an image.
    WritePath { image: String, path: String },
    /// List the lint rules.
    ListExplanations,
    /// Read the page of a lint rule.
    ExplainRule { rule: &'static str },
    /// Correct or omit the check directive.
    CheckDirective,
    /// Close or escape the bracket of a pattern.
    CloseBracket,
    /// List the fields of a template.
    ListFields,
    /// Use the form of a template.
    TemplateForm,
    /// Remove a login from its file.
    RemoveLogin,
    /// Remove the volumes that no container mounts.
    PruneVolumes,
    /// Remove the imported steps of a cache without anything else.
    PruneOrigin,
    /// Remove the login that is used in place of a new one.
    RemoveOtherLogin,
    /// Pass user and password without a prompt.
    PassUser,
    /// Pass the password without a prompt.
    PassPassword,
    /// Pass the password on standard input.
    HidePassword,
    /// Configure a credential helper.
    ConfigureHelper,
    /// List builds, or containers.
    ListLogs,
    /// Select a step of a build.
    SelectStep,
    /// Pass the complete ID of a build.
    PassBuildId,
    /// List containers.
    ListContainers,
    /// List running containers.
    ListRunning,
    /// Run rbuild in a control group that is delegated to the user.
    DelegateGroup,
    /// Raise the limit on the memory of a container.
    RaiseMemory,
    /// Continue a container.
    Unpause { name: String },
    /// Show the output of a container.
    ShowOutput { name: String },
    /// Start another container.
    StartAnother,
    /// Attach to one container at a time.
    StartEach,
    /// Follow the output of a container.
    FollowOutput { name: String },
    /// List the published ports of a container.
    ListPorts { name: String },
    /// Stop a container before it is removed.
    StopFirst { name: String },
    /// Use a valid name for a container.
    ContainerName,
    /// Copy files while the container runs.
    CopyWhileRunning,
    /// Unpack an archive by a command in the container.
    UnpackInContainer,
    /// List volumes.
    ListVolumes,
    /// Repeat a removal in another isolation mode.
    RemoveByUserns,
    /// List images.
    ListImages,
    /// List images, or pull one.
    ListOrPull { image: String },
    /// Run without a terminal.
    OmitTerminal,
    /// Filter by time.
    CacheFilter,
    /// Use the form of a duration.
    DurationForm,
    /// Repair the store.
    RepairStore,
    /// Obtain images again.
    ObtainAgain,
    /// Confirm a removal.
    AnswerYes,
    /// Run the command again.
    RunAgain,
    /// End the program in the foreground, and run it again.
    EndAndRun,
    /// Start the container in the background.
    RunDetached,
    /// Omit one of two flags.
    OmitRmOrRestart,
    /// Omit the flags of one of two kinds.
    OmitHealthFlags,
    /// Clamp all times of the image.
    ClampTimes,
    /// Make a command deterministic.
    BeDeterministic,
}

impl From<VerbRemedy> for Hint {
    fn from(remedy: VerbRemedy) -> Hint {
        Hint(remedy.words())
    }
}

impl VerbRemedy {
    fn words(&self) -> Cow<'static, str> {
        match self {
            VerbRemedy::Continue { process } => format!("run `kill -CONT {process}` to continue it").into(),
            VerbRemedy::StartFirst { name } => {
                format!("start it first with `rbuild start {name}`, or mount the files with -v when it is created")
                    .into()
            }
            VerbRemedy::StartContainer { name } => format!("start it with `rbuild start {name}`").into(),
            VerbRemedy::UseCopy => "use COPY in a Dockerfile".into(),
            VerbRemedy::WritePath { image, path } => format!("write {image}:/{path}").into(),
            VerbRemedy::AnswerYes => "answer y, or pass -f to remove without a question".into(),
            VerbRemedy::ListExplanations => "run `rbuild explain` to list the rules and errors".into(),
            VerbRemedy::ExplainRule { rule } => {
                format!("run `rbuild explain {rule}` for the reason and examples").into()
            }
            VerbRemedy::CheckDirective => "write `# check=skip=RULE,RULE;error=true`, or omit it".into(),
            VerbRemedy::CloseBracket => "close it, or escape it with a backslash".into(),
            VerbRemedy::ListFields => "use `--format json` to see all fields".into(),
            VerbRemedy::TemplateForm => "use a Go template such as '{{.ID}}', or `json`".into(),
            VerbRemedy::RemoveLogin => "remove that login by hand".into(),
            VerbRemedy::PruneVolumes => "run `rbuild volume prune`".into(),
            VerbRemedy::PruneOrigin => "run `rbuild prune --filter origin=CACHE`".into(),
            VerbRemedy::RemoveOtherLogin => {
                "remove that login with `rbuild logout`, or store the new one there with --authfile FILE".into()
            }
            VerbRemedy::PassUser => "pass --username USER and --password-stdin".into(),
            VerbRemedy::PassPassword => "pass the password on standard input with --password-stdin".into(),
            VerbRemedy::HidePassword => "use --password-stdin".into(),
            VerbRemedy::ConfigureHelper => "configure a credential helper (credsStore)".into(),
            VerbRemedy::ListLogs => {
                "run `rbuild logs` to list recent builds, or `rbuild ps -a` to list the containers".into()
            }
            VerbRemedy::SelectStep => "omit them, or select a step: rbuild logs BUILD STEP".into(),
            VerbRemedy::PassBuildId => "pass the complete ID of the build to see its output".into(),
            VerbRemedy::ListRunning => "run `rbuild ps` to list the running containers".into(),
            VerbRemedy::Unpause { name } => format!("run `rbuild unpause {name}` to continue it").into(),
            VerbRemedy::ShowOutput { name } => format!("run `rbuild logs {name}` for its output").into(),
            VerbRemedy::StartAnother => "start another one: rbuild run -d --name NAME IMAGE".into(),
            VerbRemedy::StartEach => "run `rbuild start -a` for each container".into(),
            VerbRemedy::FollowOutput { name } => format!("run `rbuild logs -f {name}` to follow its output").into(),
            VerbRemedy::ListPorts { name } => format!("run `rbuild port {name}` to list its ports").into(),
            VerbRemedy::StopFirst { name } => format!("run `rbuild stop {name}` first, or pass -f").into(),
            VerbRemedy::ContainerName => {
                "use letters, digits, `_`, `.` and `-`, and begin with a letter or a digit".into()
            }
            VerbRemedy::ListContainers => "run `rbuild ps -a` to list the containers".into(),
            VerbRemedy::DelegateGroup => {
                "with systemd, run it in a group of yours: systemd-run --user --scope rbuild run …".into()
            }
            VerbRemedy::RaiseMemory => "raise the limit: --memory SIZE".into(),
            VerbRemedy::CopyWhileRunning => "copy them while it runs, or write them to a volume: -v NAME:PATH".into(),
            VerbRemedy::UnpackInContainer => "pass it to tar: rbuild exec -i CONTAINER tar -x -C DIR".into(),
            VerbRemedy::ListVolumes => "run `rbuild volume ls` to list the volumes".into(),
            VerbRemedy::RemoveByUserns => "repeat this with `--isolation=userns`".into(),
            VerbRemedy::ListImages => "run `rbuild images` to list the images".into(),
            VerbRemedy::ListOrPull { image } => {
                format!("run `rbuild images` to list the images, or `rbuild pull {image}`").into()
            }
            VerbRemedy::OmitTerminal => "omit -t".into(),
            VerbRemedy::CacheFilter => "use until=24h, or origin= with the name of a cache".into(),
            VerbRemedy::DurationForm => "use a duration such as 24h, 1h30m or 30d".into(),
            VerbRemedy::RepairStore => "run `rbuild fsck --repair` to remove damaged entries".into(),
            VerbRemedy::ObtainAgain => "pull, load or build the images again".into(),
            VerbRemedy::RunAgain => "run the command again".into(),
            VerbRemedy::EndAndRun => {
                "end it, and run it again, or start it in the background with `rbuild run -d`".into()
            }
            VerbRemedy::RunDetached => "pass -d".into(),
            VerbRemedy::OmitRmOrRestart => "omit --rm or --restart".into(),
            VerbRemedy::OmitHealthFlags => "omit --no-healthcheck, or the others".into(),
            VerbRemedy::ClampTimes => "set SOURCE_DATE_EPOCH to clamp all times in the result".into(),
            VerbRemedy::BeDeterministic => {
                "make the step's command deterministic: look for dates, random numbers, unordered lists and downloads"
                    .into()
            }
        }
    }
}
