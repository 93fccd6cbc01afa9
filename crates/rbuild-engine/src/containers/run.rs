//! `run`: runs one command in a container of an image. Changes to files are discarded.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rbuild_image::{DEFAULT_PATH, RunConfig};
use rbuild_linux::{ControlGroup, RootDir};
use rbuild_plan::{ContainerMount, NamedVolume, NetworkMode, SecurityMode, TmpfsMount, Volume, VolumeId};
use rbuild_remedy::{BuildRemedy, CommandRemedy, MountRemedy, Remedy};
use rbuild_sandbox::{
    Attachments, Builder, Cancel, CommandOutcome, CommandRequest, Input, MountRequest, MountSource, OutputCopy,
    Privileges, RootFiles, RunRequest, Stream, run_attached,
};
use rbuild_store::{
    BuildId, ContainerId, Image, OutputStream, RunSettings, SecuritySettings, Session, SnapshotBackend, Store, TreeId,
    Workspace,
};

use crate::builder_paths::BindPoint;
use crate::containers::network_files;
use crate::error::{BuildError, Result};
use crate::error_context::ErrorContext;
use crate::ops::container::{DEFAULT_SHM, hosts_file, is_set};
use crate::ops::users::{self, UnknownUser};
use crate::rootfs::snapshots;

/// A container to run, and the circumstances of its start.
pub struct Invocation {
    /// Settings. The builder must have the bind mounts that [`crate::volume_binds`] returns for the
    /// bind mounts among its mounts.
    pub settings: RunSettings,
    /// Variables of proxies. They may contain logins, and are not recorded.
    pub proxies: Vec<(String, String)>,
    /// The control group of the command.
    pub group: Option<ControlGroup>,
    pub input: Input,
    /// The current time in seconds since the Unix epoch.
    pub now: i64,
    /// Content of `/etc/resolv.conf` in the container.
    pub resolv_conf: String,
}

impl Invocation {
    /// Returns the bind mounts.
    pub fn volumes(&self) -> Vec<Volume> {
        let bind = |mount: &ContainerMount| match mount {
            ContainerMount::Bind(volume) => Some(volume.clone()),
            ContainerMount::Tmpfs(_) | ContainerMount::Named(_) => None,
        };
        self.settings.mounts.iter().filter_map(bind).collect()
    }
}

/// The command of a container.
#[derive(Clone, Copy)]
pub struct ContainerCommand<'a> {
    /// ID of the container, which exists in the store.
    pub container: &'a ContainerId,
    /// The image of the container.
    pub image: &'a Image,
    /// The settings of the container, and the circumstances of its start.
    pub invocation: &'a Invocation,
}

/// Runs the command to its end on the standard streams of this process, and keeps a copy of its
/// output in the store. `started` is called with a pidfd of its first process once it is started.
/// Afterwards, the container uses its files without a lock of the store.
///
/// # Errors
///
/// Fails if the container cannot be prepared, or if one of its supervising processes is killed.
pub fn invoke(
    store: Store,
    command: ContainerCommand<'_>,
    builder: &Builder,
    cancel: &Cancel,
    started: impl FnOnce(OwnedFd),
) -> Result<CommandOutcome> {
    let work = Workspace::open(&store)?;
    let request = prepared(&store, &work, command, builder)?;
    let output: OutputCopy = Arc::new(Mutex::new(kept_output(&store, command.container)?));
    let mut started = Some((started, store));
    let mut started = |process| {
        if let Some((started, store)) = started.take() {
            started(process);
            release(store);
        }
    };
    let group = command.invocation.group.as_ref();
    let attachments = Attachments { group, started: Some(&mut started), output: Some(output) };
    Ok(run_attached(&builder.zygote, &request, cancel, attachments)?)
}

/// Prepares the files of a container, and returns the request for its command. From then on, others
/// keep the trees that the container uses.
pub(super) fn prepared(
    store: &Store,
    work: &Workspace,
    command: ContainerCommand<'_>,
    builder: &Builder,
) -> Result<RunRequest> {
    let ContainerCommand { container, image, invocation } = command;
    let place = place(store, work, image, builder, invocation.now)?;
    let mounts = possible_mounts(&invocation.settings, builder);
    let volumes = named_volumes(store, work, &mounts, &place.view, builder)?;
    let mounts = requested_mounts(&mounts, &volumes, builder);
    let request = request(place, image, invocation, mounts, builder)?;
    if let RootFiles::Overlay { lowers, upper, .. } = &request.files {
        store.containers().pin_trees(container, lowers)?;
        store.containers().record_changes(container, upper)?;
    }
    Ok(request)
}

/// Releases the lock of the store while a container runs. Without it, other processes remove
/// content that nothing uses.
pub(super) fn release(store: Store) {
    // If it stays, others only report that the store is in use.
    if let Err(e) = store.release_lock() {
        tracing::debug!(target: "engine", error = rbuild_remedy::sentence(&e), "the store stays locked");
    }
}

/// Returns a function that keeps output of a container in the store.
pub(super) fn kept_output(store: &Store, container: &ContainerId) -> Result<impl FnMut(Stream, &[u8]) + Send + use<>> {
    let mut log = store.containers().create_output(container)?;
    Ok(move |stream, bytes: &[u8]| {
        let stream = match stream {
            Stream::Stdout => OutputStream::Stdout,
            Stream::Stderr => OutputStream::Stderr,
        };
        // Output is lost if the disk is full; the command goes on, as under docker.
        let _ = log.append(stream, bytes);
    })
}

/// The file system of a container.
struct Place {
    files: RootFiles,
    /// Receives new files.
    upper: RootDir,
    /// The files of the image.
    view: RootDir,
}

/// Unpacks the image, and creates the directories of a container in the workspace. `now` is in
/// seconds since the Unix epoch.
fn place(store: &Store, work: &Workspace, image: &Image, builder: &Builder, now: i64) -> Result<Place> {
    let id = BuildId::of_command("run");
    let (trees, _) = store.trees().unpack_image(Session::new(store, work, &id, now), image)?;
    let snapshots = snapshots(builder, work)?;
    let (files, upper) = root_files(store, work, &trees, snapshots)?;
    Ok(Place { files, upper, view: snapshots.view(store, work, &trees)? })
}

/// Returns the request for the command of a container.
fn request(
    Place { files, upper, view }: Place,
    image: &Image,
    invocation: &Invocation,
    mut mounts: Vec<MountRequest>,
    builder: &Builder,
) -> Result<RunRequest> {
    let config = &image.config.config;
    let settings = &invocation.settings;
    let cwd = if settings.cwd.is_empty() { "/".into() } else { settings.cwd.clone() };
    let fail = || BuildError::kernel(ErrorContext::ImageFiles);
    if !view.exists(&cwd).map_err(fail())? {
        upper.create_dir_all(cwd.trim_start_matches('/'), 0o755, None, |_| ()).map_err(fail())?;
    }
    let hosts = hosts_file(&settings.hostname, &settings.hosts);
    let of_network = [("/etc/hosts", &hosts[..]), ("/etc/resolv.conf", &invocation.resolv_conf)];
    mounts.extend(network_files::on_top(&mounts, &view, &of_network));
    let who = identity(&view, settings, builder)?;
    let command = CommandRequest {
        mode: builder.isolation.runner_mode(),
        args: command(settings, config)?,
        env: variables(
            &config.env,
            &[&invocation.proxies[..], &settings.env].concat(),
            who.home.as_deref(),
            &settings.hostname,
            invocation.input,
        ),
        cwd,
        uid: who.uid,
        gid: who.gid,
        groups: who.groups,
        ulimits: settings.ulimits.clone(),
        input: invocation.input,
        privileges: privileges(&settings.security),
        init: settings.init,
    };
    Ok(RunRequest {
        command,
        files,
        read_only: settings.security.read_only,
        hostname: settings.hostname.clone(),
        mounts,
        network: NetworkMode::of_name(&settings.network).unwrap_or(NetworkMode::Host),
        shm_size: settings.shm_size.unwrap_or(DEFAULT_SHM),
        announced: true,
        hosts,
        resolv_conf: invocation.resolv_conf.clone(),
    })
}

/// Returns the privileges of commands in a container. Capabilities that would give the command
/// power over other processes of its user namespace require a namespace of its own.
pub(super) fn privileges(settings: &SecuritySettings) -> Privileges {
    let needs_namespace = settings.privileged || !settings.capabilities.is_harmless();
    Privileges {
        security: if needs_namespace { SecurityMode::Insecure } else { SecurityMode::Sandbox },
        capabilities: Some(settings.capabilities),
        no_new_privileges: settings.no_new_privileges,
    }
}

/// Returns the mounts of a container. Without mounts, those that the image declares are omitted:
/// its files at these paths are writable, and dropped with all others.
fn possible_mounts(settings: &RunSettings, builder: &Builder) -> Vec<ContainerMount> {
    let is_possible = |mount: &&ContainerMount| !(builder.is_bare() && mount.is_of_image());
    settings.mounts.iter().filter(is_possible).cloned().collect()
}

/// Returns the paths of the volumes with names, in the order of the mounts. New ones get the files
/// that the image has at their target.
fn named_volumes(
    store: &Store,
    work: &Workspace,
    mounts: &[ContainerMount],
    view: &RootDir,
    builder: &Builder,
) -> Result<Vec<PathBuf>> {
    let mode = builder.isolation.runner_mode().name();
    let open = |mount: &ContainerMount| {
        let ContainerMount::Named(volume) = mount else { return None };
        let NamedVolume { name, target, read_only, origin: _ } = volume;
        if builder.is_bare() && !read_only {
            let message = "a volume cannot be writable: that requires mounts, which this machine does not permit";
            let help = Some(MountRemedy::ReadOnlyVolume.into());
            return Some(Err(BuildError::Other { message: message.into(), help }));
        }
        let opened = store.volumes().create(name, &[], volume.is_anonymous()).and_then(|_| {
            let initial = view.sub(target.trim_start_matches('/')).ok();
            store.volumes().open(work, name, mode, initial.as_ref())
        });
        Some(opened.map_err(BuildError::from))
    };
    mounts.iter().filter_map(open).collect()
}

fn requested_mounts(mounts: &[ContainerMount], volumes: &[PathBuf], builder: &Builder) -> Vec<MountRequest> {
    let mut volumes = volumes.iter();
    let mut binds = 0;
    let mut request = |mount: &ContainerMount| match mount {
        ContainerMount::Bind(Volume { target, read_only, .. }) => {
            let path = BindPoint::Volume(VolumeId::new(binds)).path();
            binds += 1;
            let source = MountSource::Machine(builder.path(&path));
            MountRequest { target: target.clone(), source, read_only: *read_only }
        }
        ContainerMount::Named(NamedVolume { target, read_only, .. }) => {
            let path = volumes.next().cloned().unwrap_or_default();
            let is_bound = builder.is_bare() || *read_only;
            let source = if is_bound { MountSource::Machine(path) } else { MountSource::Bind(path) };
            MountRequest { target: target.clone(), source, read_only: *read_only }
        }
        ContainerMount::Tmpfs(TmpfsMount { target, options, read_only }) => {
            MountRequest { target: target.clone(), source: MountSource::Tmpfs(*options), read_only: *read_only }
        }
    };
    mounts.iter().map(&mut request).collect()
}

/// Returns the files of the container, and the directory that receives new files.
fn root_files(
    store: &Store,
    work: &Workspace,
    trees: &[TreeId],
    snapshots: SnapshotBackend,
) -> Result<(RootFiles, RootDir)> {
    let (scratch, _) = work.new_dir()?;
    match snapshots {
        SnapshotBackend::Overlay => {
            let (upper, upper_dir) = work.new_dir()?;
            let mut lowers = store.trees().lower_dirs(work, trees)?;
            if lowers.is_empty() {
                lowers.push(work.new_dir()?.0);
            }
            Ok((RootFiles::Overlay { lowers, upper, scratch }, upper_dir))
        }
        SnapshotBackend::Copies => {
            let (root, dir) = snapshots.merged(store, work, trees, rbuild_store::MergedFiles::Copied)?;
            Ok((RootFiles::Directory { root, scratch }, dir))
        }
    }
}

/// Looks up the user and groups of a container in the files of its image.
fn identity(view: &RootDir, settings: &RunSettings, builder: &Builder) -> Result<users::Identity> {
    let (files, user) = (users::in_root(view), &settings.user);
    let who = users::identity(&files, user).and_then(|who| users::with_groups(&files, who, &settings.groups));
    let who = who.map_err(|e| {
        let help = match &e {
            UnknownUser::User(_) | UnknownUser::Group(_) => CommandRemedy::OtherAccount.into(),
            UnknownUser::LargeId { .. } | UnknownUser::NoId { .. } => e.remedy(),
        };
        BuildError::Other { message: e.to_string(), help: Some(help) }
    })?;
    match who.unavailable(&builder.isolation) {
        Some(id) => Err(BuildError::Other { message: users::unavailable(user, &id), help: Some(id.remedy()) }),
        None => Ok(who),
    }
}

/// Returns the command of a container with its arguments; empty if there is none. `entrypoint`
/// replaces that of the image, whose CMD then does not apply.
pub fn command_line(config: &RunConfig, entrypoint: Option<&[String]>, given: &[String]) -> Vec<String> {
    let arguments = match (given, entrypoint) {
        ([], None) => config.cmd.as_deref().unwrap_or_default(),
        (given, _) => given,
    };
    let program = entrypoint.or(config.entrypoint.as_deref()).unwrap_or_default();
    [program, arguments].concat()
}

fn command(settings: &RunSettings, config: &RunConfig) -> Result<Vec<String>> {
    let args = command_line(config, settings.entrypoint.as_deref(), &settings.args);
    if args.is_empty() {
        return Err(BuildError::Other {
            message: "no command given, and the image sets neither ENTRYPOINT nor CMD".into(),
            help: Some(Remedy::Build(BuildRemedy::GiveCommand)),
        });
    }
    Ok(args)
}

/// Returns the environment of a command: the variables of the image, those of the command line, and
/// defaults for the home directory, the host name and the input.
pub(super) fn variables(
    image: &[String],
    given: &[(String, String)],
    home: Option<&str>,
    hostname: &str,
    input: Input,
) -> Vec<String> {
    let mut env: Vec<(String, String)> = Vec::new();
    let of_image = image.iter().map(|e| e.split_once('=').unwrap_or((e, "")));
    for (name, value) in of_image.chain(given.iter().map(|(k, v)| (k.as_str(), v.as_str()))) {
        env.retain(|(known, _)| known != name);
        env.push((name.to_string(), value.to_string()));
    }
    env.retain(|(name, value)| is_set(name, value));
    let home = home.filter(|h| !h.is_empty()).unwrap_or("/");
    let mut defaults = vec![("PATH", DEFAULT_PATH), ("HOME", home), ("HOSTNAME", hostname)];
    if input == Input::Terminal {
        defaults.push(("TERM", "xterm"));
    }
    for (name, value) in defaults {
        if !env.iter().any(|(known, _)| known == name) {
            env.push((name.to_string(), value.to_string()));
        }
    }
    env.into_iter().map(|(k, v)| format!("{k}={v}")).collect()
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;

    #[test]
    fn a_missing_command_is_reported_as_recorded() {
        let errors = [command(&RunSettings::default(), &RunConfig::default()).unwrap_err()];
        assert_recorded!("no-command", variants!(BuildError).table(&errors, |e| e, BuildError::help));
    }

    #[test]
    fn flags_and_arguments_replace_the_command_of_an_image_as_in_docker() {
        let words = |text: &str| text.split_whitespace().map(String::from).collect::<Vec<_>>();
        let config =
            RunConfig { entrypoint: Some(words("/entry -x")), cmd: Some(words("default")), ..RunConfig::default() };
        for (entrypoint, given, expected) in [
            (None, "", "/entry -x default"),
            (None, "own words", "/entry -x own words"),
            (Some("/bin/sh"), "", "/bin/sh"),
            (Some("/bin/sh"), "-c x", "/bin/sh -c x"),
            (Some(""), "true", "true"),
        ] {
            let entrypoint = entrypoint.map(words);
            assert_eq!(command_line(&config, entrypoint.as_deref(), &words(given)), words(expected), "{expected}");
        }
    }
}
