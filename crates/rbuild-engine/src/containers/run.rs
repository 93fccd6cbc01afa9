//! `run`: runs one command in a container of an image. Changes to files are discarded.

use rbuild_image::{DEFAULT_PATH, RunConfig};
use rbuild_linux::{ControlGroup, RootDir};
use rbuild_plan::{NetworkMode, SecurityMode, Ulimit, Volume, VolumeId};
use rbuild_remedy::{BuildRemedy, CommandRemedy, Remedy};
use rbuild_sandbox::{
    Builder, Cancel, CommandOutcome, Input, MountRequest, MountSource, RootFiles, RunRequest, run_attached,
};
use rbuild_store::{BuildId, Image, Session, SnapshotBackend, Store, TreeId, Workspace};

use crate::builder_paths::BindPoint;
use crate::error::{BuildError, Result};
use crate::error_context::ErrorContext;
use crate::ops::container::{DEFAULT_SHM, hosts_file, is_set};
use crate::ops::users::{self, UnknownUser};
use crate::rootfs::snapshots;

/// The command to run, and settings that override those of the image.
pub struct Invocation {
    /// Replaces CMD. If empty, CMD applies unless `entrypoint` is given.
    pub args: Vec<String>,
    pub entrypoint: Option<Vec<String>>,
    /// Variables that precede the image's own in the environment.
    pub env: Vec<(String, String)>,
    /// Variables of proxies. They may contain logins, and are not recorded.
    pub proxies: Vec<(String, String)>,
    pub user: Option<String>,
    pub cwd: Option<String>,
    pub hostname: String,
    /// Additional entries of `/etc/hosts`: names and their addresses.
    pub hosts: Vec<(String, String)>,
    /// Volumes. The builder must have the bind mounts that [`crate::volume_binds`] returns.
    pub volumes: Vec<Volume>,
    pub network: NetworkMode,
    pub shm_size: Option<u64>,
    pub ulimits: Vec<Ulimit>,
    /// The control group of the command.
    pub group: Option<ControlGroup>,
    pub input: Input,
    /// The current time in seconds since the Unix epoch.
    pub now: i64,
    /// Content of `/etc/resolv.conf` in the container.
    pub resolv_conf: String,
}

/// Runs the command to its end on the standard streams of this process.
///
/// # Errors
///
/// Fails if the container cannot be prepared, or if one of its supervising processes is killed.
pub fn invoke(
    store: &Store,
    image: &Image,
    invocation: &Invocation,
    builder: &Builder,
    cancel: &Cancel,
) -> Result<CommandOutcome> {
    let group = invocation.group.as_ref();
    let work = Workspace::open(store)?;
    let request = request(place(store, &work, image, builder, invocation.now)?, image, invocation, builder)?;
    Ok(run_attached(&builder.zygote, &request, cancel, group)?)
}

/// The file system of a container.
pub(super) struct Place {
    files: RootFiles,
    /// Receives new files.
    upper: RootDir,
    /// The files of the image.
    view: RootDir,
}

/// Unpacks the image, and creates the directories of a container in the workspace. `now` is in
/// seconds since the Unix epoch.
pub(super) fn place(store: &Store, work: &Workspace, image: &Image, builder: &Builder, now: i64) -> Result<Place> {
    let id = BuildId::of_command("run");
    let (trees, _) = store.trees().unpack_image(Session::new(store, work, &id, now), image)?;
    let snapshots = snapshots(builder, work)?;
    let (files, upper) = root_files(store, work, &trees, snapshots)?;
    Ok(Place { files, upper, view: snapshots.view(store, work, &trees)? })
}

/// Returns the request for the command of a container.
pub(super) fn request(
    Place { files, upper, view }: Place,
    image: &Image,
    invocation: &Invocation,
    builder: &Builder,
) -> Result<RunRequest> {
    let config = &image.config.config;
    let cwd = invocation.cwd.clone().unwrap_or_else(|| config.working_dir.clone());
    let cwd = if cwd.is_empty() { "/".into() } else { cwd };
    let fail = || BuildError::kernel(ErrorContext::ImageFiles);
    if !view.exists(&cwd).map_err(fail())? {
        upper.create_dir_all(cwd.trim_start_matches('/'), 0o755, None, |_| ()).map_err(fail())?;
    }
    let who = identity(&view, invocation.user.as_ref().unwrap_or(&config.user), builder)?;
    let mount = |(i, volume): (usize, &Volume)| MountRequest {
        target: volume.target.clone(),
        source: MountSource::Machine(builder.path(&BindPoint::Volume(VolumeId::new(i)).path())),
        read_only: volume.read_only,
    };
    Ok(RunRequest {
        files,
        mode: builder.isolation.runner_mode(),
        args: command(invocation, config)?,
        env: environment(invocation, &config.env, who.home.as_deref()),
        cwd,
        uid: who.uid,
        gid: who.gid,
        groups: who.groups,
        hostname: invocation.hostname.clone(),
        mounts: invocation.volumes.iter().enumerate().map(mount).collect(),
        network: invocation.network,
        security: SecurityMode::Sandbox,
        shm_size: invocation.shm_size.unwrap_or(DEFAULT_SHM),
        ulimits: invocation.ulimits.clone(),
        input: invocation.input,
        announced: false,
        hosts: hosts_file(&invocation.hostname, &invocation.hosts),
        resolv_conf: invocation.resolv_conf.clone(),
    })
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

/// Looks up a user in the files of the image.
fn identity(view: &RootDir, user: &str, builder: &Builder) -> Result<users::Identity> {
    let who = users::identity(&users::in_root(view), user).map_err(|e| {
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

fn command(invocation: &Invocation, config: &RunConfig) -> Result<Vec<String>> {
    let args = command_line(config, invocation.entrypoint.as_deref(), &invocation.args);
    if args.is_empty() {
        return Err(BuildError::Other {
            message: "no command given, and the image sets neither ENTRYPOINT nor CMD".into(),
            help: Some(Remedy::Build(BuildRemedy::GiveCommand)),
        });
    }
    Ok(args)
}

fn environment(invocation: &Invocation, image: &[String], home: Option<&str>) -> Vec<String> {
    let Invocation { hostname, input, env, proxies, .. } = invocation;
    variables(image, &[&proxies[..], env].concat(), home, hostname, *input)
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
        let invocation = Invocation {
            args: Vec::new(),
            entrypoint: None,
            env: Vec::new(),
            proxies: Vec::new(),
            user: None,
            cwd: None,
            hostname: String::new(),
            hosts: Vec::new(),
            volumes: Vec::new(),
            network: NetworkMode::Host,
            shm_size: None,
            ulimits: Vec::new(),
            group: None,
            input: Input::Nothing,
            resolv_conf: String::new(),
            now: 0,
        };
        let errors = [command(&invocation, &RunConfig::default()).unwrap_err()];
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
