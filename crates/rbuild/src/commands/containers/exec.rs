//! The verb `exec`: runs a command in a running container.

use std::io::{Read, Write};

use rbuild_linux::process::{self, Cloned};
use rbuild_remedy::sentence;
use rbuild_sandbox::{CommandOutcome, Input};

use crate::args::ExecArgs;
use crate::commands::containers::background::leave_caller;
use crate::commands::containers::command::{input, not_started, variables};
use crate::commands::containers::inside::RunningContainer;
use crate::commands::containers::lookup;
use crate::commands::in_builder::killed;
use crate::exit::{Failure, code};
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
    if store.containers().is_paused(&container.id, &started) {
        let failure = Failure::new(format!("container `{}` is paused", container.name));
        return Err(failure.help(VerbRemedy::Unpause { name: container.name.clone() }));
    }
    let running = RunningContainer::of(&store, started).ok_or_else(not_running)?;
    let image = store.images().image(&container.image)?;
    let mut run = store.containers().settings(&container.id)?.ok_or_else(not_running)?;
    let input = if args.detach { Input::Nothing } else { input(args.interactive, args.tty)? };
    let words = args.words[1..].to_vec();
    run.env = proxies::with(run.env)?;
    run.env.extend(variables(&args.env_file, &args.env)?);
    run.user = args.user.unwrap_or(run.user);
    run.cwd = args.workdir.map_or(run.cwd, |dir| if dir.starts_with('/') { dir } else { format!("/{dir}") });
    // The command may run for long, and uses only files that the container keeps.
    store.release_lock()?;
    if let Err(e) = running.join_group() {
        terminal::warning(format!("the limits of the container do not apply to this command: {}", sentence(&e)));
    }
    let run = |started: &mut dyn FnMut()| {
        let outcome = running.run(&image.config.config, words.clone(), run, input, started)?;
        match outcome {
            CommandOutcome::Exited(code) => Ok(code as u8),
            CommandOutcome::Signaled(signal) => Ok((128 + signal) as u8),
            CommandOutcome::NotStarted(error) => Err(not_started(&error, &words, UsageRemedy::PutExecFlagsFirst)),
        }
    };
    if args.detach { in_background(run) } else { run(&mut || ()) }
}

/// Runs a command in another process, which goes on, and waits until it is started.
fn in_background(run: impl FnOnce(&mut dyn FnMut()) -> Result<u8, Failure>) -> Result<u8, Failure> {
    let failed = |e: std::io::Error| Failure::caused("cannot create a pipe", &e);
    let (mut answer, mut answer_writer) = std::io::pipe().map_err(failed)?;
    match process::fork().map_err(|e| Failure::caused("cannot start the command", &e))? {
        Cloned::Child => {
            drop(answer);
            let _ = leave_caller();
            let mut open = Some(&mut answer_writer);
            let ended = run(&mut || {
                let _ = open.take().map(|writer| writer.write_all(STARTED));
            });
            if let (Err(failure), Some(writer)) = (ended, open) {
                let _ = writer.write_all(&serde_json::to_vec(&failure).unwrap_or_default());
            }
            std::process::exit(i32::from(code::OK))
        }
        Cloned::Parent { .. } => drop(answer_writer),
    }
    let mut text = vec![0];
    let length = answer.read(&mut text).map_err(failed)?;
    if text == STARTED {
        return Ok(code::OK);
    }
    text.truncate(length);
    answer.take(MAX_FAILURE).read_to_end(&mut text).map_err(failed)?;
    Err(serde_json::from_slice(&text).unwrap_or_else(|_| killed(9)))
}

/// The answer of a process that has started its command. Another answer is a failure as JSON.
const STARTED: &[u8] = b"s";
/// Maximum length of a failure.
const MAX_FAILURE: u64 = 64 << 10;
