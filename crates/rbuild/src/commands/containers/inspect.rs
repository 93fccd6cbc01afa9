//! Properties of containers, which the verb `inspect` shows in docker's form.

use rbuild_engine::DEFAULT_SHM;
use rbuild_linux::signal_name;
use rbuild_plan::{Capabilities, ContainerMount, NamedVolume, TmpfsMount, Volume};
use rbuild_sandbox::RunnerMode;
use rbuild_store::{
    Container, ContainerState, Ended, Health, HealthResult, RestartPolicy, RunSettings, Started, Store,
};
use serde_json::{Map, Value, json};

use crate::commands::containers::command::merged;
use crate::commands::containers::list::{PAUSED, health_of, is_paused, state_word};
use crate::commands::containers::lookup::image_name;
use crate::commands::containers::signals::KILLED;
use crate::exit::Failure;

/// Returns the properties of a container.
pub fn inspected(store: &Store, container: &Container) -> Result<Value, Failure> {
    let state = store.containers().state(&container.id)?;
    let started = store.containers().start_of(&container.id)?;
    let settings = store.containers().settings(&container.id)?;
    let image = store.images().image(&container.image).ok();
    let name = image_name(&store.images().list()?, container);
    let command = container.command.clone().unwrap_or_default();
    let health = health_of(store, container, &state, settings.as_ref());
    Ok(json!({
        "Id": container.id.hex(),
        "Created": time(container.created.unwrap_or(0)),
        "Path": command.first().cloned().unwrap_or_default(),
        "Args": command.get(1..).unwrap_or_default(),
        "State": with_health(state_of(&state, started.as_ref(), is_paused(store, container, &state)), health.as_ref()),
        "Image": image.as_ref().map_or_else(|| container.image.to_string(), |image| image.id.to_string()),
        "Name": format!("/{}", container.name),
        "RestartCount": store.containers().restart_files(&container.id).last_end().map_or(0, |end| end.restarts),
        "Platform": "linux",
        "HostConfig": host_config(settings.as_ref()),
        "Mounts": mounts(store, settings.as_ref(), started.as_ref()),
        "Config": config(settings.as_ref(), &command, &name, image.as_ref().map(|image| &image.config.config)),
        "NetworkSettings": network(settings.as_ref(), state.is_running()),
    }))
}

/// Formats a time, in seconds since the Unix epoch, as docker does.
fn time(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| String::new(), |time| time.to_string())
}

fn state_of(state: &ContainerState, started: Option<&Started>, is_paused: bool) -> Value {
    const NEVER: &str = "0001-01-01T00:00:00Z";
    let pid = if state.is_running() { started.map_or(0, |started| started.pid) } else { 0 };
    let exceeded = matches!(state, ContainerState::Exited(Ended { memory_exceeded: true, .. }));
    let (code, error, finished) = match state {
        ContainerState::Exited(Ended { code, error, at, .. }) => (*code, error.clone(), time(*at)),
        ContainerState::Restarting(end) => (end.code, None, time(end.at)),
        ContainerState::Dead => (KILLED, Some("the container's supervisor was killed".to_string()), NEVER.into()),
        _ => (0, None, NEVER.into()),
    };
    json!({
        "Status": if is_paused { PAUSED } else { state_word(state) },
        "Running": matches!(state, ContainerState::Running(_)),
        "Paused": is_paused,
        "Restarting": matches!(state, ContainerState::Restarting(_)),
        "OOMKilled": exceeded,
        "Dead": matches!(state, ContainerState::Dead),
        "Pid": pid,
        "ExitCode": code,
        "Error": error.unwrap_or_default(),
        "StartedAt": started.map_or_else(|| NEVER.into(), |started| time(started.at)),
        "FinishedAt": finished,
    })
}

/// Adds the health of a container to its state; a container without a check has none.
fn with_health(mut state: Value, health: Option<&Health>) -> Value {
    let time = |(sec, nsec): (i64, u32)| {
        jiff::Timestamp::new(sec, nsec.cast_signed()).map_or_else(|_| String::new(), |time| time.to_string())
    };
    let result = |result: &HealthResult| {
        json!({
            "Start": time(result.start), "End": time(result.end), "ExitCode": result.code, "Output": result.output,
        })
    };
    if let (Value::Object(state), Some(health)) = (&mut state, health) {
        let log: Vec<Value> = health.log.iter().map(result).collect();
        let health = json!({"Status": health.status.name(), "FailingStreak": health.failing_streak, "Log": log});
        state.insert("Health".into(), health);
    }
    state
}

fn host_config(settings: Option<&RunSettings>) -> Value {
    let Some(settings) = settings else { return json!({"AutoRemove": false, "NetworkMode": "", "PortBindings": {}}) };
    let RunSettings { security, dns, .. } = settings;
    let changed = |of: Capabilities, from: Capabilities| {
        let names = of.names().filter(|name| !from.names().any(|known| known == *name));
        let names: Vec<String> = names.map(|name| format!("CAP_{name}")).collect();
        (!security.privileged && !names.is_empty()).then_some(names)
    };
    let in_memory: Map<String, Value> = settings.mounts.iter().filter_map(tmpfs).collect();
    let binds: Vec<String> = settings.mounts.iter().filter_map(bind).collect();
    json!({
        "AutoRemove": settings.remove,
        "Binds": (!binds.is_empty()).then_some(binds),
        "CapAdd": changed(security.capabilities, Capabilities::DOCKER),
        "CapDrop": changed(Capabilities::DOCKER, security.capabilities),
        "Dns": dns.servers,
        "DnsOptions": dns.options,
        "DnsSearch": dns.search,
        "ExtraHosts": settings.hosts.iter().map(|(name, address)| format!("{name}:{address}")).collect::<Vec<_>>(),
        "GroupAdd": (!settings.groups.is_empty()).then_some(&settings.groups),
        "Init": settings.init,
        "Privileged": security.privileged,
        "ReadonlyRootfs": security.read_only,
        "RestartPolicy": {"Name": settings.restart.name(), "MaximumRetryCount": retries(settings.restart)},
        "Tmpfs": (!in_memory.is_empty()).then_some(in_memory),
        "SecurityOpt": security.no_new_privileges.then_some(["no-new-privileges"]),
        "ShmSize": settings.shm_size.unwrap_or(DEFAULT_SHM),
        "Memory": settings.limits.memory.unwrap_or(0),
        "NanoCpus": settings.limits.milli_cpus.unwrap_or(0) * 1_000_000,
        "PidsLimit": settings.limits.processes,
        "NetworkMode": settings.network,
        "PortBindings": bindings(settings),
    })
}

fn retries(policy: RestartPolicy) -> u32 {
    match policy {
        RestartPolicy::OnFailure { max } => max.unwrap_or(0),
        _ => 0,
    }
}

/// Formats a bind mount as docker's `--volume` does. Anonymous volumes are not among them.
fn bind(mount: &ContainerMount) -> Option<String> {
    let (source, target, read_only) = match mount {
        ContainerMount::Bind(Volume { source, target, read_only }) => (source.display().to_string(), target, read_only),
        ContainerMount::Named(volume) if volume.is_anonymous() => return None,
        ContainerMount::Tmpfs(_) => return None,
        ContainerMount::Named(volume) => (volume.name.clone(), &volume.target, &volume.read_only),
    };
    Some(format!("{source}:{target}{}", if *read_only { ":ro" } else { "" }))
}

/// Formats a mount in memory as docker's `--tmpfs` does: its target and its options.
fn tmpfs(mount: &ContainerMount) -> Option<(String, Value)> {
    let ContainerMount::Tmpfs(TmpfsMount { target, options, read_only }) = mount else { return None };
    let options = [
        read_only.then(|| "ro".to_string()),
        (!options.no_programs).then(|| "exec".to_string()),
        options.size.map(|size| format!("size={size}")),
        options.mode.map(|mode| format!("mode={mode:o}")),
    ];
    Some((target.clone(), options.into_iter().flatten().collect::<Vec<_>>().join(",").into()))
}

/// Returns the mounts of a container. Without mounts, it has none that its image declares.
fn mounts(store: &Store, settings: Option<&RunSettings>, started: Option<&Started>) -> Vec<Value> {
    let is_bare = started.is_some_and(|started| RunnerMode::of_name(&started.isolation) == Some(RunnerMode::Chroot));
    let mount = |mount: &ContainerMount| match mount {
        ContainerMount::Bind(Volume { source, target, read_only }) => json!({
            "Type": "bind", "Source": source.display().to_string(), "Destination": target,
            "Mode": if *read_only { "ro" } else { "" }, "RW": !read_only, "Propagation": "rprivate",
        }),
        ContainerMount::Named(NamedVolume { name, target, read_only, .. }) => json!({
            "Type": "volume", "Name": name, "Source": store.volumes().path(name).display().to_string(),
            "Destination": target, "Driver": "local", "Mode": if *read_only { "ro" } else { "z" }, "RW": !read_only,
            "Propagation": "",
        }),
        ContainerMount::Tmpfs(TmpfsMount { target, read_only, .. }) => json!({
            "Type": "tmpfs", "Source": "", "Destination": target,
            "Mode": "", "RW": !read_only, "Propagation": "",
        }),
    };
    let all = settings.iter().flat_map(|settings| &settings.mounts);
    all.filter(|mount| !(is_bare && mount.is_of_image())).map(mount).collect()
}

/// Returns the network of a container. Its address is not known: the program that connects an
/// isolated network chooses it.
fn network(settings: Option<&RunSettings>, is_running: bool) -> Value {
    let networks: Map<String, Value> =
        settings.iter().map(|settings| (settings.network.clone(), json!({"IPAddress": "", "Gateway": ""}))).collect();
    json!({"Ports": ports(settings.filter(|_| is_running)), "IPAddress": "", "Gateway": "", "Networks": networks})
}

fn config(
    settings: Option<&RunSettings>,
    command: &[String],
    image: &str,
    of_image: Option<&rbuild_image::RunConfig>,
) -> Value {
    let pair = |text: &String| text.split_once('=').map(|(name, value)| (name.to_string(), value.to_string()));
    let env = of_image.iter().flat_map(|config| config.env.iter().filter_map(pair));
    let given = settings.iter().flat_map(|settings| settings.env.iter().cloned());
    let env: Vec<String> = merged(env.chain(given)).iter().map(|(name, value)| format!("{name}={value}")).collect();
    let labels = settings.iter().flat_map(|settings| settings.labels.iter());
    let labels: Map<String, Value> = labels.map(|(name, value)| (name.clone(), json!(value))).collect();
    let own = |settings: &RunSettings| settings.entrypoint.clone();
    let entrypoint = settings.and_then(own).or_else(|| of_image.and_then(|config| config.entrypoint.clone()));
    let arguments = &command[entrypoint.as_ref().map_or(0, Vec::len).min(command.len())..];
    let exposed = settings.iter().flat_map(|settings| settings.exposed.iter());
    let exposed: Map<String, Value> = exposed.map(|port| (port.to_string(), json!({}))).collect();
    let volumes: Map<String, Value> = of_image.iter().flat_map(|config| config.volumes.clone()).collect();
    let anonymous = settings.iter().flat_map(|settings| &settings.mounts).filter_map(ContainerMount::anonymous_target);
    let volumes: Map<String, Value> =
        volumes.into_iter().chain(anonymous.map(|t| (t.to_string(), json!({})))).collect();
    let health = settings.and_then(|settings| settings.health.as_ref()).map(|health| json!(health));
    let mut config = json!({
        "Hostname": settings.map_or("", |settings| settings.hostname.as_str()),
        "User": settings.map_or("", |settings| settings.user.as_str()),
        "ExposedPorts": exposed,
        "OpenStdin": settings.is_some_and(|settings| settings.interactive),
        "Tty": settings.is_some_and(|settings| settings.terminal),
        "Env": env,
        "Entrypoint": entrypoint,
        "Cmd": arguments,
        "Image": image,
        "Volumes": (!volumes.is_empty()).then_some(volumes),
        "WorkingDir": settings.map_or("", |settings| settings.cwd.as_str()),
        "Labels": labels,
        "StopSignal": settings.map_or_else(String::new, |settings| signal_name(settings.stop_signal)),
        "StopTimeout": settings.map_or(0, |settings| settings.stop_timeout),
    });
    // As in docker, it is absent without a check.
    if let (Value::Object(config), Some(health)) = (&mut config, health) {
        config.insert("Healthcheck".into(), health);
    }
    config
}

/// Returns the published ports, by the port of the container.
fn bindings(settings: &RunSettings) -> Map<String, Value> {
    let mut bindings = Map::new();
    for port in &settings.ports {
        let list = bindings.entry(port.target.to_string()).or_insert_with(|| json!([]));
        if let Value::Array(list) = list {
            list.push(json!({"HostIp": port.address.to_string(), "HostPort": port.port.to_string()}));
        }
    }
    bindings
}

/// Returns the published ports, and the exposed ones without an address.
fn ports(settings: Option<&RunSettings>) -> Map<String, Value> {
    let Some(settings) = settings else { return Map::new() };
    let mut ports = bindings(settings);
    for port in &settings.exposed {
        ports.entry(port.to_string()).or_insert(Value::Null);
    }
    ports
}
