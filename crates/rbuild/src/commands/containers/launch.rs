//! The start of a container: its record in the store, and all that its settings require of this
//! machine.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rbuild_engine::{Invocation, volume_binds};
use rbuild_linux::fd_passing::{receive_with_bytes, send_with_bytes};
use rbuild_linux::{ControlGroup, ProcessStamp, StopSignals, Timestamp, end_request};
use rbuild_plan::{GroupLimits, NetworkMode};
use rbuild_sandbox::{BuilderConfig, GRACE, Input};
use rbuild_store::{
    Container, ContainerId, Ended, Image, NewContainer, RunLock, RunSettings, StartAttempt, Started, Store,
};

use crate::commands::containers::abandoned::without_volumes;
use crate::commands::containers::command::STOP_TIME;
use crate::commands::containers::id_file::IdFile;
use crate::commands::containers::{limits, lookup};
use crate::exit::Failure;
use crate::input::settings::Settings;
use crate::input::{network, ports, proxies};
use crate::ui::hints::VerbRemedy;

/// A container to start.
pub struct Launch<'a> {
    /// The verb that starts it.
    pub verb: &'static str,
    pub origin: ContainerOrigin<'a>,
    pub image: &'a Image,
    pub invocation: Invocation,
    pub builder: BuilderConfig,
    /// Receives the ID of the container.
    pub id_file: Option<IdFile>,
}

impl<'a> Launch<'a> {
    /// Prepares a start: finds the program that connects the network, and creates the control
    /// group.
    ///
    /// # Errors
    ///
    /// Fails if the network cannot be connected, or if a port is in use.
    pub fn new(
        settings: &Settings,
        store: &Store,
        origin: ContainerOrigin<'a>,
        image: &'a Image,
        run: RunSettings,
        input: Input,
    ) -> Result<Launch<'a>, Failure> {
        ports::check(&run.ports)?;
        let network = NetworkMode::of_name(&run.network).unwrap_or(NetworkMode::Host);
        let carrier = network::carrier(network, !run.ports.is_empty())?;
        let resolv_conf = network::resolv_conf_with(carrier.as_ref(), &run.dns);
        let group = limits::group(run.limits);
        let limits = if group.is_some() { run.limits } else { GroupLimits::default() };
        let run = RunSettings { limits, ..run };
        let proxies = proxies::beside(&run.env)?;
        let invocation = Invocation { settings: run, proxies, group, input, now: Timestamp::now().sec, resolv_conf };
        let builder = BuilderConfig {
            store: settings.root.clone(),
            owners: store.owner_records().clone(),
            binds: volume_binds(&invocation.volumes()),
            carrier,
            ports: invocation.settings.ports.clone(),
            commands: true,
            grace: STOP_TIME + GRACE,
            forwards_hangup: true,
            expendable: Vec::new(),
            kept: Vec::new(),
        };
        let verb = match origin {
            ContainerOrigin::New(_) => "run",
            ContainerOrigin::Created(_) => "start",
        };
        Ok(Launch { verb, origin, image, invocation, builder, id_file: None })
    }

    /// Begins the start as [`ContainerOrigin::begin`] does, and writes the ID. Without a start, the
    /// container has no control group. `signals` are blocked meanwhile: one that arrives before the
    /// end of these preparations is for this process, and there is no start.
    pub fn begin(&self, settings: &Settings, store: &Store, signals: &StopSignals) -> Result<Option<RunLock>, Failure> {
        let begun = self.origin.begin(settings, store, &self.invocation.settings).and_then(|begun| {
            if let Some(lock) = &begun {
                self.confirm(signals).inspect_err(|_| self.clean_up(store, lock, false))?;
            }
            Ok(begun)
        });
        if !matches!(begun, Ok(Some(_))) {
            self.remove_group();
        }
        begun
    }

    /// Fails if a signal has requested the end of this process, or if the ID cannot be written.
    fn confirm(&self, signals: &StopSignals) -> Result<(), Failure> {
        // The processes that have removed abandoned volumes may have taken the signal before.
        if signals.arrived() || end_request().is_some() {
            return Err(Failure::interrupted());
        }
        self.id_file.as_ref().map_or(Ok(()), |file| file.write(&self.origin.id()))
    }

    /// Records the end of the container, and removes its control group. Readers of the end treat a
    /// container without one as dead.
    pub fn record_end(&self, lock: &RunLock, code: i32, error: Option<String>) {
        let memory_exceeded = self.invocation.group.as_ref().is_some_and(|group| group.memory_kills() > 0);
        self.remove_group();
        let _ = lock.record_end(&Ended { code, error, memory_exceeded, at: Timestamp::now().sec });
    }

    /// Removes the control group of the container, if it has one.
    pub fn remove_group(&self) {
        self.invocation.group.iter().for_each(ControlGroup::remove);
    }

    /// Removes a container that has ended, if its settings specify it, or that was not started. A
    /// process that cannot remove it leaves that to the next one.
    pub fn clean_up(&self, store: &Store, lock: &RunLock, is_started: bool) {
        let removed = store.container_changes().and_then(|changes| match &self.origin {
            ContainerOrigin::Created(container) if !is_started => changes.revert_start(&container.id, lock),
            _ => changes.remove_own(&self.origin.id(), lock),
        });
        if let Err(e) = removed {
            tracing::debug!(target: "engine", error = rbuild_remedy::sentence(&e), "the container stays");
        }
    }
}

/// Returns the start of a container whose first process is `process`, in an isolation mode. A
/// command that has already ended has no process.
pub fn started(process: Option<OwnedFd>, mode: &str) -> Started {
    let stamp = process.and_then(|process| ProcessStamp::of(&process));
    let stamp = stamp.unwrap_or(ProcessStamp { pid: 0, start: 0, boot: String::new() });
    Started::new(stamp, mode, Timestamp::now().sec)
}

/// Maximum length of the name of an isolation mode.
const MAX_MODE: usize = 32;

/// Sends the start of a command: a descriptor of its first process, and the isolation mode.
pub fn send_start(socket: &UnixStream, process: &OwnedFd, mode: &str) {
    // Without the supervisor, this process has ended.
    let _ = send_with_bytes(socket, mode.as_bytes(), &[process.as_fd()]);
}

/// Receives the start of a command; `None` if there is none.
pub fn received_start(socket: &UnixStream) -> Option<Started> {
    let mut mode = [0; MAX_MODE];
    let (mut fds, length) = receive_with_bytes(socket, &mut mode).ok()?;
    Some(started(Some(fds.pop()?), &String::from_utf8_lossy(&mode[..length])))
}

/// The origin of a container that is started.
pub enum ContainerOrigin<'a> {
    /// Created by the start.
    New(NewContainer<'a>),
    /// Created before.
    Created(&'a Container),
}

impl ContainerOrigin<'_> {
    /// Returns the ID of the container.
    pub fn id(&self) -> ContainerId {
        match self {
            ContainerOrigin::New(new) => new.id(),
            ContainerOrigin::Created(container) => container.id,
        }
    }

    /// Creates the container unless it was created before, and its lock. This process becomes its
    /// supervisor. Returns `None` if the container runs.
    ///
    /// # Errors
    ///
    /// Fails if the name is in use, or if the container has ended or was removed.
    fn begin(&self, settings: &Settings, store: &Store, run: &RunSettings) -> Result<Option<RunLock>, Failure> {
        let changes = store.container_changes()?;
        match self {
            ContainerOrigin::New(new) => {
                let created = changes.create_running(new, run);
                drop(changes);
                without_volumes(settings, store, created).map(Some)
            }
            ContainerOrigin::Created(container) => match changes.start(&container.id)? {
                StartAttempt::Begun(lock) => Ok(Some(lock)),
                StartAttempt::Running => Ok(None),
                StartAttempt::Ended => Err(started_before(&container.name)),
                StartAttempt::Missing => Err(lookup::missing(store, &container.name)),
            },
        }
    }
}

/// Returns the failure for a container that cannot be started again.
pub fn started_before(name: &str) -> Failure {
    let failure = Failure::new(format!("container `{name}` has been started before, and its files are removed"));
    failure.help(VerbRemedy::StartAnother)
}
