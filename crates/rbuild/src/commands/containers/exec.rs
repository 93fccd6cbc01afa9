//! The verb `exec`: runs a command in a running container.

use rbuild_engine::{InnerCommand, invoke_inside};
use rbuild_linux::join_group_of;
use rbuild_remedy::sentence;
use rbuild_sandbox::{CommandOutcome, FirstProcess, RunnerMode};
use rbuild_store::OwnerMode;

use crate::args::ExecArgs;
use crate::commands::containers::command::{input, not_started, variables};
use crate::commands::containers::lookup;
use crate::exit::Failure;
use crate::input::proxies;
use crate::input::settings::Settings;
use crate::ui::hints::{UsageRemedy, VerbRemedy};
use crate::ui::terminal;

pub fn exec(settings: &Settings, args: ExecArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let container = lookup::find(&store, &args.words[0])?;
    let started = lookup::running(&store, &container)?;
    let not_running = || {
        let failure = Failure::new(format!("container `{}` is not running", container.name));
        failure.help(VerbRemedy::ShowOutput { name: container.name.clone() })
    };
    let process = started.open().ok_or_else(not_running)?;
    let image = store.images().image(&container.image)?;
    let mut run = store.containers().settings(&container.id)?.ok_or_else(not_running)?;
    let input = input(args.interactive, args.tty)?;
    let mode = RunnerMode::of_name(&started.isolation).unwrap_or(RunnerMode::Container);
    let owners = store.owner_records().with_mode(match mode {
        RunnerMode::Emulated => OwnerMode::Recorded,
        RunnerMode::Container | RunnerMode::Chroot => OwnerMode::Given,
    });
    let words = args.words[1..].to_vec();
    run.env = proxies::with(run.env)?;
    run.env.extend(variables(&args.env_file, &args.env)?);
    run.user = args.user.unwrap_or(run.user);
    run.cwd = args.workdir.map_or(run.cwd, |dir| if dir.starts_with('/') { dir } else { format!("/{dir}") });
    let command = InnerCommand { args: words.clone(), settings: run, input, mode };
    // The command may run for long, and uses only files that the container keeps.
    store.release_lock()?;
    if let Err(e) = join_group_of(started.pid) {
        terminal::warning(format!("the limits of the container do not apply to this command: {}", sentence(&e)));
    }
    let first = FirstProcess { pidfd: &process, pid: started.pid };
    let outcome = invoke_inside(first, &image.config.config, command, &owners)?;
    Ok(match outcome {
        CommandOutcome::Exited(code) => code as u8,
        CommandOutcome::Signaled(signal) => (128 + signal) as u8,
        CommandOutcome::NotStarted(error) => not_started(&error, &words, UsageRemedy::PutExecFlagsFirst).report(),
    })
}
