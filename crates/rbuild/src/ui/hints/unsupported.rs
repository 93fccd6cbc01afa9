//! Flags and commands of docker and podman that rbuild does not have.

use crate::ui::hints::hint::Hint;

/// Names of flags or commands, the reason why rbuild lacks them, and the words of a hint.
type Unsupported = (&'static [&'static str], &'static str, &'static str);

/// Flags of `docker build`, `buildx build` and `podman build`.
const BUILD: [Unsupported; 24] = [
    (&["--os", "--arch", "--variant"], "platforms are selected with --platform", "pass --platform OS/ARCH[/VARIANT]"),
    (
        &["--from"],
        "the Dockerfile sets the base image",
        "use `ARG BASE` and `FROM $BASE`, and pass --build-arg BASE=IMAGE",
    ),
    (
        &["--env", "--unsetenv", "--unsetlabel", "-e"],
        "the Dockerfile sets variables and labels",
        "add ENV or LABEL to the Dockerfile, or pass --build-arg or --label",
    ),
    (
        &["--cap-add", "--cap-drop", "--privileged"],
        "capabilities are fixed",
        "use `RUN --security=insecure` and pass --allow security.insecure",
    ),
    (
        &["--device"],
        "devices cannot be passed",
        "remove the flag; commands have /dev/null, zero, full, random, urandom and tty",
    ),
    (
        &["--dns", "--dns-option", "--dns-search"],
        "commands use the name servers of this machine",
        "set them in /etc/resolv.conf, or name hosts with --add-host",
    ),
    (&["--manifest"], "manifest lists are not kept", "pass several --platform values with -o type=oci or --push"),
    (&["--policy"], "policies are not supported", "remove the flag"),
    (&["--retry", "--retry-delay"], "downloads are always retried", "remove the flag"),
    (
        &["--logfile", "--logsplit"],
        "logs are kept in the store",
        "run `rbuild logs` after the build, or redirect standard error",
    ),
    (&["--all-platforms"], "platforms are selected with --platform", "pass --platform OS/ARCH,OS/ARCH"),
    (&["--os-feature", "--os-version"], "they concern images of Windows", "remove the flag"),
    (
        &["--pid", "--ipc", "--uts", "--userns", "--cgroupns"],
        "a container always has its own namespaces",
        "remove the flag; --isolation selects the isolation mode",
    ),
    (
        &["--userns-uid-map", "--userns-gid-map", "--userns-uid-map-user", "--userns-gid-map-group"],
        "IDs are mapped by the sub-IDs of this user",
        "remove the flag; /etc/subuid and /etc/subgid define the sub-IDs",
    ),
    (&["--cache-ttl"], "results of the cache have no age", "pass --no-cache, or remove old ones with `rbuild prune`"),
    (&["--cpp-flag"], "a Dockerfile is not preprocessed", "run cpp, and pass its output with -f -"),
    (
        &["--decryption-key", "--sign-by"],
        "images are neither encrypted nor signed",
        "use skopeo or cosign after the build",
    ),
    (&["--hooks-dir", "--runtime-flag"], "rbuild has no other runtimes", "remove the flag"),
    (&["--http-proxy"], "variables of proxies are build arguments", "pass --build-arg HTTP_PROXY=URL"),
    (&["--no-hosts"], "commands always have an /etc/hosts", "remove the flag"),
    (&["--omit-history", "--identity-label"], "the history and the labels of an image are fixed", "remove the flag"),
    (
        &["--disable-compression"],
        "layers are compressed when they leave the store",
        "pass -o type=oci,dest=FILE,compression=uncompressed",
    ),
    (&["--skip-unused-stages"], "stages that the result does not need are always skipped", "remove the flag"),
    (&["--stdin"], "commands have no standard input", "pass files with COPY or RUN --mount"),
];

/// Flags of `docker run` and `podman run`.
const RUN: [Unsupported; 5] = [
    (
        &["--gpus"],
        "the libraries of a GPU are not found and mounted",
        "pass its device nodes with --device, and its libraries with -v",
    ),
    (
        &["--pid", "--ipc", "--uts", "--userns", "--cgroupns"],
        "a container always has its own namespaces",
        "remove the flag",
    ),
    (
        &["--sysctl", "--device-cgroup-rule"],
        "kernel settings and rules for devices are fixed",
        "remove the flag, or use podman run",
    ),
    (
        &["--volumes-from", "--link"],
        "containers share neither files nor networks",
        "mount the same directory in both: -v DIR:PATH",
    ),
    (
        &["--health-on-failure"],
        "an unhealthy container goes on",
        "remove the flag; `rbuild ps -f health=unhealthy` lists such containers",
    ),
];

/// Flags of `docker run` and `podman run` about other resources than `--memory`, `--cpus` and
/// `--pids-limit`.
const RUN_RESOURCES: [Unsupported; 3] = [
    (
        &[
            "--cpu-count",
            "--cpu-percent",
            "--cpu-period",
            "--cpu-quota",
            "--cpu-rt-period",
            "--cpu-rt-runtime",
            "--cpuset-mems",
        ],
        "processor time is limited by a number of processors",
        "pass --cpus NUMBER",
    ),
    (
        &["--kernel-memory", "--memory-reservation", "--memory-swappiness", "--oom-kill-disable", "--oom-score-adj"],
        "memory has one limit",
        "pass --memory SIZE",
    ),
    (
        &[
            "--blkio-weight",
            "--blkio-weight-device",
            "--device-read-bps",
            "--device-read-iops",
            "--device-write-bps",
            "--device-write-iops",
            "--io-maxbandwidth",
            "--io-maxiops",
            "--storage-opt",
            "--cgroup-parent",
            "--cgroups",
            "--cgroup-conf",
        ],
        "of the resources of a container, memory, processor time and the number of processes are limited",
        "pass --memory, --cpus or --pids-limit, or run rbuild in systemd-run with other limits",
    ),
];

/// Other flags of `docker run` and `podman run`.
const RUN_OTHERS: [Unsupported; 14] = [
    (
        &["--domainname", "--ip", "--ip6", "--link-local-ip", "--mac-address", "--network-alias"],
        "containers have no names and addresses in a network of their own",
        "publish ports with -p, or name hosts with --add-host",
    ),
    (&["--no-hosts"], "a container always has an /etc/hosts", "remove the flag; --add-host adds entries"),
    (&["--os", "--arch", "--variant"], "platforms are selected with --platform", "pass --platform OS/ARCH[/VARIANT]"),
    (
        &["--uidmap", "--gidmap", "--subuidname", "--subgidname", "--hostuser", "--passwd", "--passwd-entry"],
        "IDs are mapped by the sub-IDs of this user, and accounts are those of the image",
        "remove the flag; -u selects a user of the image",
    ),
    (
        &["--volume-driver", "--image-volume", "--rootfs", "--read-only-tmpfs", "--chrootdirs"],
        "the files of a container are those of its image and of mounted directories",
        "mount a directory: -v DIR:PATH",
    ),
    (&["--secret"], "a container in the foreground or background has no secrets", "mount the file: -v FILE:PATH:ro"),
    (&["--replace"], "a container with the same name is not replaced", "run `rbuild rm -f NAME` first"),
    (&["--rmi"], "images are kept", "run `rbuild rmi IMAGE` afterwards"),
    (&["--timeout"], "containers have no maximum time", "use timeout(1): timeout 60 rbuild run IMAGE"),
    (
        &["--pod", "--pod-id-file", "--requires", "--sdnotify", "--systemd"],
        "containers are independent of each other and of systemd",
        "start each with its own `rbuild run`",
    ),
    (
        &["--env-host", "--env-merge", "--unsetenv", "--unsetenv-all", "--http-proxy", "--tz"],
        "variables are those of the image and of --env",
        "pass --env NAME=VALUE, or --env NAME to pass a variable on",
    ),
    (&["--annotation"], "containers have labels", "pass --label NAME=VALUE"),
    (
        &["--detach-keys"],
        "a terminal is not detached from its container",
        "start the container with -dit, and run `rbuild exec -it CONTAINER sh`",
    ),
    (
        &[
            "--runtime",
            "--init-path",
            "--conmon-pidfile",
            "--pidfile",
            "--personality",
            "--preserve-fds",
            "--seccomp-policy",
            "--umask",
            "--use-api-socket",
            "--disable-content-trust",
        ],
        "rbuild has neither other runtimes nor a daemon",
        "remove the flag",
    ),
];

/// Flags of `docker run` and `podman run` about the output and the signals of containers.
const RUN_OUTPUT: [Unsupported; 2] = [
    (&["--log-driver", "--log-opt"], "the output of a container is kept in the store", "run `rbuild logs CONTAINER`"),
    (
        &["--sig-proxy", "-a", "--attach"],
        "a container in the foreground has the streams and signals of this process",
        "remove the flag; -i connects standard input",
    ),
];

/// Flags of other verbs, with the verb.
const OTHER: [(&str, &[&str], &str, &str); 12] = [
    ("images", &["--sort", "--noheading", "-n"], "the list is sorted by age", "use --format, and sort its lines"),
    ("import", &["--os", "--arch", "--variant"], "platforms are selected with --platform", "pass --platform OS/ARCH"),
    ("save", &["--compress", "-m", "--multi-image-archive"], "one archive holds all the images", "remove the flag"),
    (
        "save",
        &["--platform"],
        "all platforms of an image are saved",
        "pass the ID of one platform's image, from `rbuild images --tree`",
    ),
    (
        "rm",
        &["-l", "--link", "-a", "--all"],
        "containers have no links, and are removed by name",
        "pass the containers, or remove all that are not running with `rbuild container prune`",
    ),
    ("prune", &["--min-free-space", "--reserved-space"], "the cache has one limit", "pass --keep-storage SIZE"),
    (
        "commit",
        &["-c", "--change"],
        "the configuration is that of the container",
        "change it with a Dockerfile: FROM the image, and the instructions",
    ),
    ("exec", &["--privileged"], "privileges are fixed", "remove the flag"),
    ("logs", &["--details"], "the output of containers has no attributes", "remove the flag"),
    (
        "inspect",
        &["-s", "--size"],
        "the files of containers are not measured",
        "run `rbuild images` for the size of an image, or `rbuild diff CONTAINER` for changed files",
    ),
    ("ps", &["-s", "--size"], "the files of containers are not measured", "remove the flag"),
    ("cp", &["--overwrite"], "a directory never replaces a file", "remove the destination first"),
];

/// Flags of docker and podman before the command.
const GLOBAL: [Unsupported; 5] = [
    (
        &["--context", "--host", "-H", "--connection", "--url", "--remote"],
        "rbuild has no daemon to connect to",
        "remove the flag; --root DIR selects another store",
    ),
    (&["--log-level", "-l"], "the environment selects the level of the log", "pass --debug, or set RBUILD_LOG=LEVEL"),
    (&["--config"], "the environment selects the directory of logins", "set DOCKER_CONFIG=DIR"),
    (&["--tls", "--tlscacert", "--tlscert", "--tlskey", "--tlsverify"], "rbuild has no daemon", "remove the flag"),
    (
        &["--storage-driver", "--storage-opt", "--runroot", "--runtime", "--cgroup-manager"],
        "rbuild has neither storage drivers nor other runtimes",
        "remove the flag; --root DIR selects another store",
    ),
];

/// Commands of docker and podman.
const COMMANDS: [Unsupported; 25] = [
    (&["search"], "rbuild does not search registries", "search on the registry's website"),
    (
        &["attach"],
        "the terminal of a container is not shared",
        "run `rbuild logs -f CONTAINER`, or `rbuild exec -it CONTAINER sh`",
    ),
    (
        &["update"],
        "a container keeps its settings",
        "remove it, and start another one: rbuild run -d --name NAME IMAGE",
    ),
    (&["auto-update"], "rbuild does not update containers", "pull the image, and start another container"),
    (
        &["healthcheck"],
        "the health of a container is checked while it runs",
        "show it: rbuild inspect -f '{{json .State.Health}}' CONTAINER",
    ),
    (&["init"], "rbuild has no state to prepare", "run `rbuild doctor` to check this machine"),
    (&["untag"], "a name is removed with `rmi`", "run `rbuild rmi NAME`"),
    (
        &["mount", "umount", "unmount"],
        "the files of containers are visible to their processes only",
        "copy them: rbuild cp CONTAINER:PATH ., or `rbuild export CONTAINER`",
    ),
    (&["events", "monitor"], "rbuild has no daemon", "follow a build with --progress rawjson or --debug-log FILE"),
    (&["history"], "builds are listed by `logs`", "run `rbuild logs`"),
    (
        &["from", "add", "copy", "config"],
        "rbuild builds images from Dockerfiles",
        "add the instruction to a Dockerfile",
    ),
    (&["imagetools", "manifest"], "rbuild does not edit manifests", "use skopeo or crane"),
    (&["network"], "rbuild has no networks", "use --network host, isolated or none"),
    (&["unshare"], "rbuild enters its namespaces itself", "run `rbuild doctor` to check this machine"),
    (&["context"], "rbuild has no daemons to choose from", "pass --root DIR to use another store"),
    (
        &["machine"],
        "containers run on this machine, without a virtual one",
        "run `rbuild doctor` to check this machine",
    ),
    (
        &["swarm", "stack", "service", "node"],
        "rbuild runs containers on this machine only",
        "push the image with `rbuild push`, and run it with Kubernetes or Nomad",
    ),
    (
        &["pod"],
        "containers are independent of each other",
        "start each with `rbuild run -d`: without -p, they reach each other at localhost",
    ),
    (
        &["kube", "play", "generate"],
        "rbuild does not read or write Kubernetes files",
        "run the containers with `rbuild run -d`, or use podman kube",
    ),
    (&["plugin"], "rbuild has no plugins", "mount directories of this machine: rbuild run -v DIR:PATH IMAGE"),
    (
        &["secret"],
        "secrets are passed to each build",
        "use RUN --mount=type=secret, and pass --secret id=NAME,src=FILE",
    ),
    (&["trust"], "images are not signed", "use cosign, and show signatures with `rbuild inspect --referrers NAME`"),
    (&["scout"], "images are not analyzed", "use trivy or grype on the archive of `rbuild save -o FILE IMAGE`"),
    (&["model"], "rbuild has no models", "run the server of a model as a container: rbuild run -d IMAGE"),
    (&["checkpoint"], "containers cannot be stored and continued", "use podman container checkpoint"),
];

/// Returns the flags that a verb lacks.
fn of_verb(verb: &str) -> impl Iterator<Item = Unsupported> {
    let is_run = matches!(verb, "run" | "create");
    let table: &[Unsupported] = match verb {
        "build" => &BUILD,
        "run" | "create" => &RUN,
        _ => &[],
    };
    let of_run: [&[Unsupported]; 3] = [&RUN_OUTPUT, &RUN_RESOURCES, &RUN_OTHERS];
    let of_run = of_run.into_iter().filter(move |_| is_run).flatten();
    let verb = if matches!(verb, "builder-prune" | "system-prune") { "prune" } else { verb }.to_string();
    let other =
        OTHER.iter().filter(move |(of, ..)| *of == verb).map(|(_, flags, reason, hint)| (*flags, *reason, *hint));
    table.iter().chain(of_run).copied().chain(other)
}

/// Returns the names of the flags that a verb lacks.
pub fn flags_of(verb: &str) -> impl Iterator<Item = &'static str> {
    of_verb(verb).flat_map(|(flags, ..)| flags.iter().copied())
}

/// Returns the reason why a verb lacks a flag, and the alternative.
pub fn flag(verb: &str, flag: &str) -> Option<(&'static str, Hint)> {
    find(of_verb(verb), flag)
}

/// Returns the name of a flag before the command that rbuild lacks, the reason, and the
/// alternative. A value may be attached to the flag.
pub fn global_flag(word: &str) -> Option<(&'static str, &'static str, Hint)> {
    let is_word_of = |flag: &str| match word.strip_prefix(flag) {
        Some(rest) if flag.starts_with("--") => rest.is_empty() || rest.starts_with('='),
        Some(_) => !word.starts_with("--"),
        None => false,
    };
    GLOBAL.iter().find_map(|(flags, reason, hint)| {
        let flag = flags.iter().find(|flag| is_word_of(flag))?;
        Some((*flag, *reason, Hint((*hint).into())))
    })
}

/// Returns the reason why rbuild lacks a command, and the alternative.
pub fn command(word: &str) -> Option<(&'static str, Hint)> {
    find(COMMANDS.iter().copied(), word)
}

fn find(mut table: impl Iterator<Item = Unsupported>, word: &str) -> Option<(&'static str, Hint)> {
    table.find(|(words, ..)| words.contains(&word)).map(|(_, reason, hint)| (reason, Hint(hint.into())))
}

/// Returns all flags of the tables, each with its verb.
#[cfg(test)]
pub fn all_flags() -> impl Iterator<Item = (&'static str, &'static str)> {
    let tables = BUILD.iter().map(|(flags, ..)| ("build", *flags)).chain(
        RUN.iter().chain(&RUN_OUTPUT).chain(&RUN_RESOURCES).chain(&RUN_OTHERS).map(|(flags, ..)| ("run", *flags)),
    );
    let tables = tables.chain(OTHER.iter().map(|(verb, flags, ..)| (*verb, *flags)));
    tables.flat_map(|(verb, flags)| flags.iter().map(move |flag| (verb, *flag)))
}

/// Returns all flags before the command.
#[cfg(test)]
pub fn all_global_flags() -> impl Iterator<Item = &'static str> {
    GLOBAL.iter().flat_map(|(flags, ..)| flags.iter().copied())
}

/// Returns all commands of the table.
#[cfg(test)]
pub fn all_commands() -> impl Iterator<Item = &'static str> {
    COMMANDS.iter().flat_map(|(words, ..)| words.iter().copied())
}
