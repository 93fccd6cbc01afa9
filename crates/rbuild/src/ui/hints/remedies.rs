//! Words of the remedies of libraries.

use rbuild_linux::quoted;
use rbuild_remedy::{
    BuildRemedy, CommandRemedy, DiskRemedy, DockerfileRemedy, ExcludingRule, FileAccess, FileRemedy, IdRangeToGrant,
    ImageRemedy, IsolationRemedy, MachineRemedy, MountRemedy, NetworkObstacle, RegistryAction, Remedy, ServerRemedy,
    SessionLimit, StoreRemedy, SubIdGrant, SubIdObstacle,
};

const RESTORE_STORE: &str =
    "copy it again as root with `cp -a` or `rsync -aHXU`, or empty the cache with `rbuild prune -a`";
const REPAIR_STORE: &str =
    "run `rbuild fsck --repair` to remove damaged entries, then load, pull or build the image again";
const UNMASK_PROC: &str =
    "start the container with --security-opt systempaths=unconfined, or in Kubernetes with procMount: Unmasked";
const UNCONFINE_SECCOMP: &str =
    "start the container with --security-opt seccomp=unconfined (Kubernetes: seccompProfile type Unconfined)";
const INSTALL_EMULATOR: &str =
    "install an emulator registered with binfmt_misc (Debian: apt-get install qemu-user-static binfmt-support)";
const INSTALL_SUB_ID_HELPERS: &str =
    "install it: sudo apt-get install uidmap (Debian, Ubuntu) or sudo dnf install shadow-utils (Fedora)";
const CHECK_SUB_IDS: &str = "check that newuidmap and newgidmap are set-uid root, and /etc/subuid and /etc/subgid \
     grant what `rbuild doctor` shows";

/// Returns the words of a remedy.
pub(super) fn words(remedy: &Remedy) -> String {
    match remedy {
        Remedy::DidYouMean { word } => format!("did you mean `{word}`?"),
        Remedy::UseOneOf { words } => match &words[..] {
            [] => String::new(),
            [word] => format!("use `{word}`"),
            [others @ .., last] => format!("use {} or {last}", others.join(", ")),
        },
        Remedy::Disk(remedy) => disk_words(remedy),
        Remedy::File(remedy) => file_words(remedy),
        Remedy::Mount(remedy) => mount_words(remedy),
        Remedy::Machine(remedy) => machine_words(remedy),
        Remedy::Isolation(remedy) => isolation_words(remedy),
        Remedy::Store(remedy) => store_words(remedy),
        Remedy::Image(remedy) => image_words(remedy),
        Remedy::Server(remedy) => server_words(remedy),
        Remedy::Build(remedy) => build_words(remedy),
        Remedy::Command(remedy) => command_words(remedy),
        Remedy::Dockerfile(remedy) => dockerfile_words(remedy),
    }
}

fn disk_words(remedy: &DiskRemedy) -> String {
    match remedy {
        DiskRemedy::FreeSpace => "free some space; `rbuild prune -a` empties the build cache".into(),
        DiskRemedy::FreeStore => {
            "free some space on the disk of the store, which is full, with `rbuild prune`, or use another disk with \
             --root DIR"
                .into()
        }
        DiskRemedy::FreeSpaceAt { place } => {
            format!("free some space on the disk of {}, or use another disk", quoted(place))
        }
        DiskRemedy::FreeOutput => "free some space on the disk of the output, or redirect it to another disk".into(),
    }
}

fn store_words(remedy: &StoreRemedy) -> String {
    match remedy {
        StoreRemedy::OtherStore => "choose a directory that you can write to, with --root DIR or RBUILD_ROOT".into(),
        StoreRemedy::EmptyDirectory => {
            "pass the path of a store, or of a new or empty directory, with --root DIR or RBUILD_ROOT".into()
        }
        StoreRemedy::LoadLayout { dir } => {
            format!("load the images of {} into a store in another directory with `rbuild load -i`", quoted(dir))
        }
        StoreRemedy::BecomeOwner { user } => {
            format!("run this as user {user}, or choose another store with --root DIR or RBUILD_ROOT")
        }
        StoreRemedy::OwnStore => {
            "correct the owner and the modes of the store's files, or use another one: --root DIR".into()
        }
        StoreRemedy::NewerProgram => "use a newer rbuild, or another directory with --root DIR".into(),
        StoreRemedy::RemoveFormat { file } => {
            format!("remove {}, which is then written again, and run `rbuild fsck --repair`", quoted(file))
        }
        StoreRemedy::RestoreStore => RESTORE_STORE.into(),
        StoreRemedy::RepairStore => REPAIR_STORE.into(),
        StoreRemedy::EndLockHolder { lock } => format!(
            "end that program (`fuser {lock}` in the store names it), or wait longer with RBUILD_LOCK_TIMEOUT=SECONDS"
        ),
        StoreRemedy::AwaitBuilds => "try again when the other builds have finished".into(),
        StoreRemedy::RelaxAccessTimes => {
            "mount the file system with relatime or noatime, or move the store to another one".into()
        }
        StoreRemedy::ListVolumes => "run `rbuild volume ls` to list the volumes".into(),
        StoreRemedy::RemoveUsers => "run `rbuild ps -a`, and remove the containers that mount it".into(),
        StoreRemedy::UseIsolation { mode } => format!("pass --isolation {mode}, or use another volume"),
    }
}

fn isolation_words(remedy: &IsolationRemedy) -> String {
    match remedy {
        IsolationRemedy::GrantIds { file } => {
            format!("grant more IDs in {file}, or use --isolation=single-id, which records owners")
        }
        IsolationRemedy::LowerId { most } => format!("use an ID of at most {most}"),
        IsolationRemedy::OmitNetwork => "omit --network".into(),
        IsolationRemedy::PermitNamespaces { setting } => format!("permit user namespaces: sudo sysctl -w {setting}"),
        IsolationRemedy::UnmaskProc => UNMASK_PROC.into(),
        IsolationRemedy::UnconfineSeccomp => UNCONFINE_SECCOMP.into(),
        IsolationRemedy::FindDenial => {
            "permit it in the security module or the seccomp profile, and check with `rbuild doctor`".into()
        }
        IsolationRemedy::CheckSubIds => CHECK_SUB_IDS.into(),
        IsolationRemedy::MountProc => {
            "mount it: mount -t proc proc /proc (before a chroot: mount --bind /proc DIR/proc)".into()
        }
    }
}

fn build_words(remedy: &BuildRemedy) -> String {
    match remedy {
        BuildRemedy::TimeOfCommit => {
            "use the time of a commit in seconds, as printed by `git log -1 --format=%ct`".into()
        }
        BuildRemedy::GiveCommand => "add a command: rbuild run IMAGE COMMAND".into(),
        BuildRemedy::SetArgument => "set a default on the ARG before FROM, or pass --build-arg NAME=VALUE".into(),
        BuildRemedy::DeclareArgument { name } => format!("declare it with a default before FROM: ARG {name}=VALUE"),
        BuildRemedy::Allow { entitlement } => format!("pass --allow {entitlement} if you trust the Dockerfile"),
        BuildRemedy::KeepSecretOut => {
            "read it from its mount in each command, or pass --allow secret-in-image to keep it in the image".into()
        }
        BuildRemedy::IgnoreSecretFile => {
            "exclude the file in .dockerignore, or pass --allow secret-in-image to keep it in the image".into()
        }
        BuildRemedy::PassSecret { id } => format!("pass --secret id={id},src=FILE or --secret id={id},env=NAME"),
        BuildRemedy::PassAgent { id } => format!("pass --ssh {id} or --ssh {id}=SOCKET-OR-KEY"),
        BuildRemedy::PassMissing { secrets, agents } => missing_words(secrets, agents),
        BuildRemedy::PassContext => "pass a context directory".into(),
    }
}

fn file_words(remedy: &FileRemedy) -> String {
    match remedy {
        FileRemedy::RemoveLinkLoop => "remove the symbolic link that refers to itself".into(),
        FileRemedy::ShortenName => "shorten the name".into(),
        FileRemedy::RenameOrRemove => "rename or remove it".into(),
        FileRemedy::RenameWhiteout => "rename it if it is meant as a file".into(),
        FileRemedy::Permit { access, path } => {
            let verb = match access {
                FileAccess::Read => "read",
                FileAccess::Write => "write",
                FileAccess::Lock => "lock",
            };
            format!("permit this user to {verb} {}", quoted(path))
        }
        FileRemedy::PermitProgram { program } => format!("permit this user to execute {program}"),
        FileRemedy::CheckPermissions => "check the permissions of the file and of its directories".into(),
        FileRemedy::WritableFileSystem => "use a file on a writable file system".into(),
        FileRemedy::Correct { place } => format!("correct {place}"),
        FileRemedy::AwaitLock => "end that program, or try again later".into(),
        FileRemedy::OtherDirectory => "choose another directory".into(),
        FileRemedy::CreateDirectory => "create it, or remove the trailing slash".into(),
        FileRemedy::PassDirectory => "pass a directory, existing or new".into(),
        FileRemedy::PassSpecialFile => "pass its own path to write to it, or choose another destination".into(),
        FileRemedy::ChooseDestination => "choose another destination".into(),
        FileRemedy::EndWithSlash => "end the destination with a slash if it is a directory".into(),
        FileRemedy::RemovePattern(place) => {
            let ExcludingRule { pattern, file, line } = &**place;
            format!("remove or narrow the pattern `{pattern}` in line {line} of {}, which excludes it", quoted(file))
        }
        FileRemedy::IgnoreStore { path } => format!("add `{path}` to the ignore file"),
        FileRemedy::MoveStore => "use a store outside the build context: --root DIR".into(),
        FileRemedy::PermitOrIgnore { path } => {
            format!("permit this user to read {}, or exclude it in .dockerignore", quoted(path))
        }
        FileRemedy::CopyInto { root } => format!("copy the file into {root}; paths and links cannot lead out of it"),
        FileRemedy::CorrectLink => "correct the link, or remove it from the instruction".into(),
        FileRemedy::AwaitWriters => "wait until nothing writes to the files, then build again".into(),
        FileRemedy::CorrectPattern => {
            "correct that line, for example `*.log` or `!keep.log`; write `[[]` for a bracket".into()
        }
        FileRemedy::CorrectPath { root } => format!("correct the path; it is relative to the root of {root}"),
        FileRemedy::OtherOutput { obstacle } => {
            format!("remove that {obstacle}, or choose another output directory")
        }
    }
}

fn mount_words(remedy: &MountRemedy) -> String {
    match remedy {
        MountRemedy::OwnTarget => "give each mount its own target".into(),
        MountRemedy::RemoveFile => "mount it on another target, or remove the file from the image".into(),
        MountRemedy::ReplaceLink => "replace the link in the image".into(),
        MountRemedy::MountDirectory => "mount its directory instead".into(),
        MountRemedy::OtherTarget => "mount it on another target".into(),
        MountRemedy::ReadOnlyVolume => "add :ro to the --volume".into(),
        MountRemedy::OtherCacheDirectory => {
            "mount another directory of the cache, or all of it without `source`".into()
        }
    }
}

fn machine_words(remedy: &MachineRemedy) -> String {
    match remedy {
        MachineRemedy::CreateDevice { name, major, minor } => {
            format!("create it: mknod -m 666 /dev/{name} c {major} {minor}")
        }
        MachineRemedy::RaiseQueueLimit => {
            "as root, raise the hard limit on message queues of this shell to 819200".into()
        }
        MachineRemedy::LeaveInterceptor => {
            "give the user sub-IDs, or start rbuild outside that program or container".into()
        }
        MachineRemedy::OtherMode => "choose another isolation mode, or run rbuild as root of a container".into(),
        MachineRemedy::BecomeRoot => "run rbuild as root of a container, or permit user namespaces".into(),
        MachineRemedy::GrantCapability => {
            "grant the container that capability, or run rbuild as an ordinary user".into()
        }
        MachineRemedy::BecomeOrdinary => {
            "run rbuild as an ordinary user with sub-IDs, or in a namespace that maps ID 0".into()
        }
        MachineRemedy::GrantSubIds(grant) => format!("grant sub-IDs: {}", granting(grant)),
        MachineRemedy::GrantMoreSubIds { count, grant } => {
            format!("grant {count} more, so that images with higher IDs can be unpacked: {}", granting(grant))
        }
        MachineRemedy::InstallSubIdHelpers => INSTALL_SUB_ID_HELPERS.into(),
        MachineRemedy::RestoreSetUid { program } => {
            let program = program.display();
            format!("restore the set-uid bit: sudo chown root {program} && sudo chmod u+s {program}")
        }
        MachineRemedy::PermitClone => "use Linux 5.12 or newer, and a seccomp profile that permits clone3".into(),
        MachineRemedy::InstallEmulator => {
            format!("{INSTALL_EMULATOR}, {}", machine_words(&MachineRemedy::BuildOnPlatform))
        }
        MachineRemedy::BuildOnPlatform => "build on a machine of that platform, or use only COPY in this stage".into(),
        MachineRemedy::UpgradeKernel => "upgrade to Linux 5.12 or newer".into(),
        MachineRemedy::OrSingleId(obstacle) => {
            let action = match obstacle {
                SubIdObstacle::NoNewPrivileges => {
                    "start rbuild without no_new_privs (Kubernetes: allowPrivilegeEscalation: true)"
                }
                SubIdObstacle::NoSetUid => "mount that file system without nosuid (sudo mount -o remount,suid MOUNT)",
            };
            format!("{action}, or build without sub-IDs: --isolation=single-id")
        }
        MachineRemedy::OrOtherNetwork(obstacle) => network_words(*obstacle),
        MachineRemedy::RaiseSessionLimit { limit: SessionLimit::Files } => "raise the limit with `ulimit -n`".into(),
        MachineRemedy::RaiseSessionLimit { limit: SessionLimit::Processes } => {
            "raise the limit of processes: `ulimit -u`, or the container's pids limit".into()
        }
        MachineRemedy::CheckMemory => "check dmesg; the kernel kills processes when memory runs out".into(),
    }
}

fn network_words(obstacle: NetworkObstacle) -> String {
    let action = match obstacle {
        NetworkObstacle::NoCarrier => {
            "install passt: sudo apt-get install passt (Debian, Ubuntu) or sudo dnf install passt (Fedora)"
        }
        NetworkObstacle::NoTun => "load the kernel module (sudo modprobe tun), pass the device to the container",
        NetworkObstacle::DeniedTun => "restore its usual mode: sudo chmod 666 /dev/net/tun",
    };
    format!("{action}, or use --network host or none")
}

/// Returns the command that grants a user IDs.
pub(super) fn granting(SubIdGrant { user, uids, gids }: &SubIdGrant) -> String {
    let option = |name: &str, range: &Option<IdRangeToGrant>| match range {
        None => String::new(),
        Some(IdRangeToGrant::Free(first, last)) => format!(" {name} {first}-{last}"),
        Some(IdRangeToGrant::Unknown) => format!(" {name} FIRST-LAST"),
    };
    format!("sudo usermod{}{} {user}", option("--add-subuids", uids), option("--add-subgids", gids))
}

fn server_words(remedy: &ServerRemedy) -> String {
    match remedy {
        ServerRemedy::TryAgain => "try again".into(),
        ServerRemedy::AwaitRegistry => "try again later, or contact the operator of the registry".into(),
        ServerRemedy::AwaitServer => "try again later, or contact the operator of the server".into(),
        ServerRemedy::CheckTag => "check the name and the tag".into(),
        ServerRemedy::CreateRepository => "check the name, or create the repository".into(),
        ServerRemedy::CreateBucket => "check the name and the region, or create the bucket".into(),
        ServerRemedy::CheckObjectLogin => "check the access key and its permissions".into(),
        ServerRemedy::UseCacheTag => "use another tag for the cache, for example NAME:cache".into(),
        ServerRemedy::PushAgain => "use another tag, or have the image pushed again".into(),
        ServerRemedy::PushToTag => "push to a tag".into(),
        ServerRemedy::CheckRegistry => "check the address of the registry".into(),
        ServerRemedy::CheckAddress => "check the address".into(),
        ServerRemedy::CheckPassword => "check the user name and the password".into(),
        ServerRemedy::CheckLogin => "check the login for this server".into(),
        ServerRemedy::TrustAuthority { host } => {
            format!("put its authority's certificate into /etc/containers/certs.d/{host}/ca.crt")
        }
        ServerRemedy::RemoveRule { file } => format!("remove the rule from {file} to permit this registry"),
        ServerRemedy::ConvertImage => "convert the image, for example with skopeo copy".into(),
        ServerRemedy::InstallHelper => "install the credential helper, or remove it from the file".into(),
        ServerRemedy::CheckHelper => "check the credential helper, or log in again".into(),
        ServerRemedy::RemoveLogin { place } => format!("remove the login from {place}"),
        ServerRemedy::SetHome => "set HOME".into(),
        ServerRemedy::CorrectRegistries => "correct registries.conf".into(),
        ServerRemedy::CorrectProxy => "correct the variable, for example http://proxy:3128".into(),
        ServerRemedy::UseHost => "use its host, with the port if it has one".into(),
        ServerRemedy::WriteRegistry { example } => format!("write the name with its registry, for example {example}"),
        ServerRemedy::NameRegistry { name } => {
            format!("write the registry before the name, for example HOST/{name}; without one, it is docker.io")
        }
        ServerRemedy::CheckNetwork => {
            "check the network, the host name and the proxy (http_proxy, https_proxy, no_proxy)".into()
        }
        ServerRemedy::CheckPort => "check the port, and that the server is running".into(),
        ServerRemedy::LogInOrCorrectName { registry, name } => {
            format!("log in with `rbuild login {registry}`, or correct the name to `{name}`")
        }
        ServerRemedy::Registry { registry, action } => registry_words(registry, *action),
    }
}

fn image_words(remedy: &ImageRemedy) -> String {
    match remedy {
        ImageRemedy::CorrectName => {
            "use the form NAME[:TAG] with a name in lower case, for example team/app:1.0".into()
        }
        ImageRemedy::LongerPrefix => "use a longer prefix of the ID".into(),
        ImageRemedy::UseDigest => "use a digest".into(),
        ImageRemedy::CheckSource => {
            "check where the file comes from; if it may have changed, correct the checksum".into()
        }
        ImageRemedy::ConvertLayers => "convert the layers to tar, plain or compressed with gzip or zstd".into(),
        ImageRemedy::OtherLayout => "write to another directory, or remove this layout".into(),
        ImageRemedy::PassTar => "pass a tar archive, plain or compressed".into(),
        ImageRemedy::ReplaceImage => "remove the image, and load or pull it again from another source".into(),
        // No other command gives an image a name with a digest.
        ImageRemedy::ObtainImage { name } if name.contains('@') => format!("run `rbuild pull {name}`"),
        ImageRemedy::ObtainImage { name } => {
            format!(
                "run `rbuild pull {name}`, or bring it in with `rbuild import FILE {name}` or `rbuild load -i FILE`"
            )
        }
        ImageRemedy::WriteWholeId { id } => format!("write the whole ID: {id}"),
        ImageRemedy::ListImages => "run `rbuild images --no-trunc --digests` to list the images".into(),
        ImageRemedy::ListFiles => "list the files with `rbuild cp IMAGE:/ - | tar -t`".into(),
        ImageRemedy::FreeImage { container } => {
            format!("remove the container with `rbuild rm {container}`, or only the image's name with -f")
        }
        ImageRemedy::UntagEach => "remove them one by one, or all with -f".into(),
        ImageRemedy::RemoveContainer { name } => format!("remove it with `rbuild rm {name}`, or use another name"),
        ImageRemedy::LoadArchive => "run `rbuild load -i FILE` to load the image in it".into(),
        ImageRemedy::ImportFiles => "run `rbuild import FILE NAME` if it is a root file system".into(),
        ImageRemedy::PassArchive => "pass the file of an archive with -i FILE, or pipe one in".into(),
        ImageRemedy::TransferAgain => "write or transfer the archive again".into(),
        ImageRemedy::LoadBase => "load the base image first; the archive was saved without its layers".into(),
        ImageRemedy::SelectPlatform { platform } => {
            format!("select an available platform, for example --platform {platform}")
        }
        ImageRemedy::RaiseLimit { name } => format!("raise the limit with --limit {name}=N if you trust the archive"),
        ImageRemedy::UseStoredImage { first } => {
            let stored = "use the stored image with --pull=missing";
            first.as_ref().map_or(stored.into(), |first| format!("{}, or {stored}", words(first)))
        }
    }
}

fn command_words(remedy: &CommandRemedy) -> String {
    match remedy {
        CommandRemedy::ValidAccountId => "give the account an ID below 4294967295 in an earlier step".into(),
        CommandRemedy::AddAccount => "use a numeric ID, or add the account in an earlier step".into(),
        CommandRemedy::OtherAccount => "use a numeric ID, or an image with that account".into(),
        CommandRemedy::CorrectJson { mistake } => {
            format!("correct the JSON array, or remove the brackets to use the shell: {mistake}")
        }
        CommandRemedy::MakeExecutable => {
            "make the program executable: code 126 means that it was found but could not be executed".into()
        }
        CommandRemedy::InstallProgram => {
            "install the program, correct PATH, or correct the #! line and line endings of the script".into()
        }
        CommandRemedy::UseImageWithShell => {
            "use an image with a shell, or the JSON form with a program of the image: [\"/PROGRAM\", \"ARGUMENT\"]"
                .into()
        }
        CommandRemedy::OtherProgram => "correct its name, or use an image that contains the program".into(),
        CommandRemedy::ProvideProgram => "install the program in an earlier step, or correct its name or PATH".into(),
        CommandRemedy::CheckMemoryOfCode => {
            "check dmesg: code 137 means signal 9, which the kernel sends when memory runs out".into()
        }
        CommandRemedy::FindSignal { code } => {
            format!("find the cause of signal {}: code {code} is 128 plus its number", code - 128)
        }
        CommandRemedy::PassStageNumber => "pass a stage number, counted from 0: the Dockerfile names no stages".into(),
        CommandRemedy::ConvertKey => {
            "pass a key in that format; `ssh-keygen -p -f KEY` converts a key in another one".into()
        }
        CommandRemedy::AddKeyToAgent => "add the key to an ssh-agent and pass its socket".into(),
        CommandRemedy::InspectFailure => "inspect the container with --on-error shell".into(),
        CommandRemedy::RaiseUlimits { limits } => format!("raise the limits of --ulimit: {limits}"),
    }
}

fn dockerfile_words(remedy: &DockerfileRemedy) -> String {
    match remedy {
        DockerfileRemedy::MoveStage => "move that stage above this one".into(),
        DockerfileRemedy::MoveOrRenameStage => {
            "move that stage above this one, or rename it if you mean an image".into()
        }
        DockerfileRemedy::RemoveDevice => {
            "remove `--device`; commands have /dev/null, zero, full, random, urandom and tty".into()
        }
        DockerfileRemedy::RemoveSyntax => {
            "remove the syntax directive; the language of docker/dockerfile is built in".into()
        }
        DockerfileRemedy::WriteFlag => "write flags with two dashes: --NAME=VALUE".into(),
        DockerfileRemedy::UseAdd => "use ADD with an http or https URL".into(),
        DockerfileRemedy::UseJsonForm { name } => {
            format!("use the JSON form for a name with spaces: [\"{name}\", …]")
        }
        DockerfileRemedy::SeparateItems => {
            format!(
                "separate the items of the JSON form by commas, or {}",
                dockerfile_words(&DockerfileRemedy::EscapeBracket)
            )
        }
        DockerfileRemedy::EscapeBracket => "write `[[]` for a bracket that is part of a name".into(),
        DockerfileRemedy::NameLinkTarget => "name the path that the link leads to".into(),
    }
}

fn missing_words(secrets: &[String], agents: &[String]) -> String {
    let secrets = secrets.iter().map(|id| format!("secret `{id}` (--secret id={id},src=FILE)"));
    let agents = agents.iter().map(|id| format!("SSH agent `{id}` (--ssh {id})"));
    let missing: Vec<String> = secrets.chain(agents).collect();
    match &missing[..] {
        [one] => format!("pass the {one}"),
        all => format!("pass the missing secrets and agents: {}", all.join(", ")),
    }
}

fn registry_words(registry: &str, action: RegistryAction) -> String {
    match action {
        RegistryAction::LogIn => format!("check the name, or log in with `rbuild login {registry}`"),
        RegistryAction::CheckLogin => {
            format!("check the permissions of this login, or log in as another user with `rbuild login {registry}`")
        }
        RegistryAction::RaiseRateLimit => {
            format!("log in with `rbuild login {registry}` for a higher limit, or set a mirror in registries.conf")
        }
        RegistryAction::TrustAuthority => format!(
            "put its authority's certificate into /etc/containers/certs.d/{registry}/ca.crt, or pass --tls-verify=false"
        ),
        RegistryAction::AllowPlainHttp => {
            format!(
                "pass --tls-verify=false for plain HTTP, or set `insecure = true` for {registry} in registries.conf"
            )
        }
    }
}
