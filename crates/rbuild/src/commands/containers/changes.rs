//! The verbs `diff` and `commit`: changes of the files of running containers.

use std::io::Write;
use std::path::PathBuf;

use rbuild_engine::{BuildError, ChangeKind, ChangedFiles, Commit};
use rbuild_image::{ImageConfig, Reference};
use rbuild_linux::{Timestamp, signal_name, signal_number};
use rbuild_plan::ContainerMount;
use rbuild_sandbox::{Builder, enter};
use rbuild_store::{Container, ContainerState, Image, RunSettings, Store};
use serde_json::json;

use crate::args::{CommitArgs, DiffArgs};
use crate::commands::containers::command::merged;
use crate::commands::containers::lookup;
use crate::commands::containers::signals::TERM;
use crate::commands::in_builder::{exit_code, store_config, store_in};
use crate::exit::{Failure, code};
use crate::input::settings::Settings;
use crate::input::value;
use crate::ui::hints::VerbRemedy;
use crate::ui::plain::plain;
use crate::ui::terminal;

/// A running container whose changes are in a directory of their own.
struct Changed {
    container: Container,
    settings: RunSettings,
    image: Image,
    upper: PathBuf,
}

impl Changed {
    fn find(store: &Store, wanted: &str) -> Result<Changed, Failure> {
        let container = lookup::find(store, wanted)?;
        let id = &container.id;
        let state = store.containers().state(id)?;
        if matches!(state, ContainerState::Created) {
            let failure = Failure::new(format!("container `{wanted}` has not been started, so it has no files yet"));
            return Err(failure.help(VerbRemedy::StartContainer { name: wanted.into() }));
        }
        if !state.is_running() {
            let failure = Failure::new(format!("the files of container `{wanted}` were removed at its end"));
            return Err(failure.help(VerbRemedy::CopyWhileRunning));
        }
        let Some(upper) = store.containers().changes(id)? else {
            let problem = "its files are copies, because this machine does not permit overlays";
            let failure = Failure::new(format!("the changes of container `{wanted}` are not known: {problem}"));
            return Err(failure.help(VerbRemedy::CopyWhileRunning));
        };
        let image = store.images().image(&container.image)?;
        let settings = store.containers().settings(id)?.unwrap_or_default();
        Ok(Changed { container, settings, image, upper })
    }

    /// Calls `action` in a builder process.
    fn in_builder(
        &self,
        settings: &Settings,
        store: &Store,
        action: impl FnOnce(&Store, &Builder, ChangedFiles<'_>) -> Result<(), BuildError>,
    ) -> Result<u8, Failure> {
        let files = ChangedFiles { image: &self.image, upper: &self.upper };
        let ended = enter(&store_config(store), settings.isolation, |builder| {
            let done = builder.map_err(Failure::from).and_then(|builder| {
                let store = store_in(&builder, store)?;
                Ok(action(&store, &builder, files)?)
            });
            done.map_or_else(|failure| i32::from(failure.report()), |()| i32::from(code::OK))
        })?;
        Ok(exit_code(ended.code, ended.stopped))
    }

    /// Sets the properties of the container in the configuration of its image, as docker does.
    fn configure(&self, config: &mut ImageConfig) {
        let RunSettings { entrypoint, args, env, user, cwd, labels, exposed, stop_signal, mounts, .. } = &self.settings;
        let config = &mut config.config;
        let pair = |text: &String| text.split_once('=').map(|(name, value)| (name.to_string(), value.to_string()));
        let all = merged(config.env.iter().filter_map(pair).chain(env.iter().cloned()));
        config.env = all.iter().map(|(name, value)| format!("{name}={value}")).collect();
        if let Some(entrypoint) = entrypoint {
            config.entrypoint = Some(entrypoint.clone());
            config.cmd = None;
        }
        if !args.is_empty() {
            config.cmd = Some(args.clone());
        }
        (config.user, config.working_dir) = (user.clone(), cwd.clone());
        config.labels.extend(labels.iter().cloned());
        for port in exposed {
            config.exposed_ports.entry(port.to_string()).or_insert_with(|| json!({}));
        }
        for target in mounts.iter().filter_map(ContainerMount::anonymous_target) {
            config.volumes.entry(target.to_string()).or_insert_with(|| json!({}));
        }
        if signal_number(&config.stop_signal).unwrap_or(TERM) != *stop_signal {
            config.stop_signal = signal_name(*stop_signal);
        }
    }
}

pub fn diff(settings: &Settings, args: DiffArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let changed = Changed::find(&store, &args.container)?;
    changed.in_builder(settings, &store, |store, builder, files| {
        let changes = files.list(store, builder, Timestamp::now().sec)?;
        let line = |(path, kind): &(PathBuf, ChangeKind)| {
            let letter = match kind {
                ChangeKind::Added => 'A',
                ChangeKind::Changed => 'C',
                ChangeKind::Deleted => 'D',
            };
            format!("{letter} {}\n", plain(&path.to_string_lossy()).replace('\n', "\\n"))
        };
        terminal::out(&changes.iter().map(line).collect::<String>());
        Ok(())
    })
}

pub fn commit(settings: &Settings, args: CommitArgs) -> Result<u8, Failure> {
    let name: Option<Reference> = args.name.as_deref().map(value::new_image_name).transpose()?;
    let store = settings.open()?;
    let changed = Changed::find(&store, &args.container)?;
    let command = changed.container.command.clone().unwrap_or_default().join(" ");
    let change = |config: &mut ImageConfig| changed.configure(config);
    let commit = Commit {
        name: name.as_ref(),
        message: args.message.as_deref().unwrap_or_default(),
        author: args.author.as_deref(),
        command: &command,
        change: &change,
        now: Timestamp::now().sec,
    };
    let (answer, mut writer) = std::io::pipe().map_err(|e| Failure::caused("cannot create a pipe", &e))?;
    let code = changed.in_builder(settings, &store, |store, _, files| {
        let id = files.commit(store, &commit)?;
        let _ = writer.write_all(format!("{id}\n").as_bytes());
        Ok(())
    })?;
    drop(writer);
    terminal::out(&std::io::read_to_string(answer).unwrap_or_default());
    Ok(code)
}
