//! The verb `ps`: lists containers.

use rbuild_image::{Reference, human_duration, quote};
use rbuild_linux::Timestamp;
use rbuild_plan::ContainerMount;
use rbuild_store::{Container, ContainerState, Health, HealthStatus, RunSettings, Store};
use serde_json::{Value, json};

use crate::args::ContainersArgs;
use crate::commands::containers::lookup::image_name;
use crate::commands::containers::ports::shown_ports;
use crate::commands::images::{ago, bad_format};
use crate::exit::{Failure, code};
use crate::input::settings::Settings;
use crate::input::value;
use crate::template;
use crate::ui::hints;
use crate::ui::terminal;

/// Number of characters of a command in a table.
const MAX_COMMAND: usize = 20;

/// A container with everything that a row shows.
struct Listed {
    container: Container,
    state: ContainerState,
    settings: Option<RunSettings>,
    /// `None` for a container whose health is not checked.
    health: Option<HealthStatus>,
    is_paused: bool,
    image: String,
}

impl Listed {
    /// Returns the word for the state.
    fn state_word(&self) -> &'static str {
        if self.is_paused { PAUSED } else { state_word(&self.state) }
    }
}

/// Lists containers, those created last first. As in docker, only running ones unless a flag
/// requests others.
pub fn list(settings: &Settings, args: ContainersArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let filters: Vec<ContainerFilter> =
        args.filter.iter().map(|text| ContainerFilter::parse(text)).collect::<Result<_, _>>()?;
    let last = if args.latest { Some(1) } else { args.last };
    let selects_states = filters.iter().any(|f| matches!(f, ContainerFilter::Status(_) | ContainerFilter::Exited(_)));
    let all = args.all || last.is_some() || selects_states;
    let mut listed = listed(&store)?;
    listed.sort_by_key(|row| std::cmp::Reverse((row.container.created, row.container.created_nanos)));
    listed.retain(|row| (all || row.state.is_running()) && ContainerFilter::all_pass(&filters, row));
    listed.truncate(last.unwrap_or(usize::MAX));
    let rows: Vec<Value> = listed.iter().map(|row| row_of(row, args.no_trunc)).collect();
    let headings = json!({
        "ID": "CONTAINER ID", "Image": "IMAGE", "Command": "COMMAND", "RunningFor": "CREATED",
        "CreatedAt": "CREATED AT", "Status": "STATUS", "State": "STATE", "Health": "HEALTH", "Ports": "PORTS",
        "Names": "NAMES", "Labels": "LABELS", "Networks": "NETWORKS", "Mounts": "MOUNTS",
        "LocalVolumes": "LOCAL VOLUMES",
    });
    const USUAL: &str = "table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}";
    let format = if args.quiet { "{{.ID}}" } else { args.format.as_deref().unwrap_or(USUAL) };
    terminal::out(&template::rows_or_table(format, USUAL, &headings, &rows).map_err(bad_format)?);
    Ok(code::OK)
}

fn listed(store: &Store) -> Result<Vec<Listed>, Failure> {
    let images = store.images().list()?;
    let row = |container: Container| {
        let containers = store.containers();
        let (state, settings) = (containers.state(&container.id)?, containers.settings(&container.id)?);
        let image = image_name(&images, &container);
        let health = health_of(store, &container, &state, settings.as_ref()).map(|health| health.status);
        let is_paused = is_paused(store, &container, &state);
        Ok(Listed { container, state, settings, health, is_paused, image })
    };
    store.containers().list()?.into_iter().map(row).collect()
}

fn row_of(listed: &Listed, whole: bool) -> Value {
    let Listed { container, state, settings, health, is_paused, image } = listed;
    let created = container.created.and_then(|time| jiff::Timestamp::from_second(time).ok());
    let command = container.command.as_ref().map(|command| shown_command(command, whole));
    let ports = settings.as_ref().filter(|_| state.is_running()).map(|settings| shown_ports(&settings.ports));
    let mounted = settings.iter().flat_map(|settings| &settings.mounts).filter_map(|mount| match mount {
        ContainerMount::Bind(volume) => Some(volume.source.display().to_string()),
        ContainerMount::Named(volume) => Some(volume.name.clone()),
        ContainerMount::Tmpfs(_) => None,
    });
    let volumes = settings.iter().flat_map(|settings| &settings.mounts).filter(|mount| mount.volume().is_some());
    let labels = settings.iter().flat_map(|settings| &settings.labels).map(|(name, value)| format!("{name}={value}"));
    json!({
        "ID": if whole { container.id.hex() } else { container.id.short() },
        "Image": image,
        "Command": command.unwrap_or_default(),
        "CreatedAt": created.map(|time| time.to_string()).unwrap_or_default(),
        "RunningFor": container.created.map(ago).unwrap_or_default(),
        "Status": status(state, *health, *is_paused, Timestamp::now().sec),
        "Health": health.map_or("", HealthStatus::name),
        "State": listed.state_word(),
        "Ports": ports.unwrap_or_default(),
        "Names": container.name,
        "Labels": labels.collect::<Vec<_>>().join(","),
        "Networks": settings.as_ref().map_or("", |settings| settings.network.as_str()),
        "Mounts": mounted.collect::<Vec<_>>().join(","),
        "LocalVolumes": volumes.count().to_string(),
    })
}

/// Returns true if the processes of a container are paused.
pub fn is_paused(store: &Store, container: &Container, state: &ContainerState) -> bool {
    matches!(state, ContainerState::Running(started) if store.containers().is_paused(&container.id, started))
}

/// The word for the state of a container that is paused.
pub const PAUSED: &str = "paused";

/// Returns the word for a state.
pub fn state_word(state: &ContainerState) -> &'static str {
    match state {
        ContainerState::Created | ContainerState::Starting => "created",
        ContainerState::Running(_) => "running",
        ContainerState::Restarting(_) => "restarting",
        ContainerState::Exited(_) => "exited",
        ContainerState::Dead => "dead",
    }
}

/// Returns the health of a container; `None` if it is not checked. As in docker, one that has ended
/// is unhealthy.
pub fn health_of(
    store: &Store,
    container: &Container,
    state: &ContainerState,
    settings: Option<&RunSettings>,
) -> Option<Health> {
    settings?.health.as_ref()?;
    let health = match state {
        ContainerState::Created => return None,
        _ => store.containers().health_file(&container.id).read(),
    };
    Some(if state.is_running() { health } else { Health { status: HealthStatus::Unhealthy, ..health } })
}

/// Describes a state as `docker ps` does. `now` is in seconds since the Unix epoch.
fn status(state: &ContainerState, health: Option<HealthStatus>, is_paused: bool, now: i64) -> String {
    let shown = match health {
        _ if is_paused => " (Paused)".into(),
        Some(HealthStatus::Starting) => " (health: starting)".into(),
        Some(health) => format!(" ({})", health.name()),
        None => String::new(),
    };
    match state {
        ContainerState::Created => "Created".into(),
        ContainerState::Starting => "Starting".into(),
        ContainerState::Running(started) => format!("Up {}{shown}", human_duration(now - started.at)),
        ContainerState::Restarting(end) => format!("Restarting ({}) {} ago", end.code, human_duration(now - end.at)),
        ContainerState::Exited(ended) => format!("Exited ({}) {} ago", ended.code, human_duration(now - ended.at)),
        ContainerState::Dead => "Dead".into(),
    }
}

/// Formats a command as `docker ps` does: in quotes, and shortened unless it is shown as a whole.
fn shown_command(command: &[String], whole: bool) -> String {
    let argument =
        |(at, word): (usize, &String)| if at > 0 && word.contains(' ') { format!("'{word}'") } else { word.clone() };
    let text = command.iter().enumerate().map(argument).collect::<Vec<_>>().join(" ");
    quote(&if whole || text.chars().count() <= MAX_COMMAND {
        text
    } else {
        text.chars().take(MAX_COMMAND - 1).collect::<String>() + "…"
    })
}

/// A `--filter` of `ps`.
#[derive(Debug, PartialEq, Eq)]
enum ContainerFilter {
    Id(String),
    Name(NamePattern),
    Status(String),
    Exited(i32),
    Health(Option<HealthStatus>),
    Ancestor(String),
    Label(String, Option<String>),
}

impl ContainerFilter {
    fn parse(text: &str) -> Result<ContainerFilter, Failure> {
        const STATES: [&str; 6] = ["created", "running", PAUSED, "restarting", "exited", "dead"];
        let bad = |problem: &str| Failure::usage(format!("--filter {text}: {problem}"));
        let (name, wanted) = text.split_once('=').unwrap_or((text, ""));
        let owned = wanted.to_string();
        Ok(match name {
            "id" => ContainerFilter::Id(owned),
            "name" => {
                let pattern = NamePattern::parse(wanted);
                let hint = || hints::use_one_of(&["name=PART", "name=^BEGINNING", "name=END$", "name=^NAME$"]);
                ContainerFilter::Name(pattern.ok_or_else(|| bad("not a supported pattern of names").help(hint()))?)
            }
            "status" if STATES.contains(&wanted) => ContainerFilter::Status(owned),
            "status" => return Err(bad("unknown state").help(hints::suggestion(wanted, &STATES))),
            "exited" => {
                let number = wanted.parse().map_err(|_| bad("not an exit code").help(hints::use_one_of(&["exited=0"])));
                ContainerFilter::Exited(number?)
            }
            "health" => {
                let words = [
                    ("starting", Some(HealthStatus::Starting)),
                    ("healthy", Some(HealthStatus::Healthy)),
                    ("unhealthy", Some(HealthStatus::Unhealthy)),
                    ("none", None),
                ];
                let health = value::choice("state of health", &words, wanted);
                ContainerFilter::Health(health.map_err(|bad| bad.of(format!("--filter {text}")))?)
            }
            "ancestor" => ContainerFilter::Ancestor(owned),
            "label" => match wanted.split_once('=') {
                Some((name, value)) => ContainerFilter::Label(name.into(), Some(value.into())),
                None => ContainerFilter::Label(owned, None),
            },
            _ => {
                let known = ["id", "name", "status", "exited", "health", "ancestor", "label"];
                return Err(bad("unknown filter").help(hints::suggestion(name, &known)));
            }
        })
    }

    /// Returns true if a container passes. As in docker, one of several filters of a kind suffices,
    /// except for labels.
    fn all_pass(filters: &[ContainerFilter], row: &Listed) -> bool {
        let kind = |filter: &ContainerFilter| std::mem::discriminant(filter);
        filters.iter().all(|filter| match filter {
            ContainerFilter::Label(..) => filter.passes(row),
            filter => filters.iter().filter(|other| kind(other) == kind(filter)).any(|other| other.passes(row)),
        })
    }

    fn passes(&self, row: &Listed) -> bool {
        let Listed { container, state, settings, health, image, .. } = row;
        match self {
            ContainerFilter::Id(id) => container.id.hex().starts_with(id.as_str()),
            ContainerFilter::Name(pattern) => pattern.matches(&container.name),
            ContainerFilter::Status(word) => row.state_word() == word,
            ContainerFilter::Exited(code) => matches!(state, ContainerState::Exited(ended) if ended.code == *code),
            ContainerFilter::Health(wanted) => health.filter(|_| state.is_running()) == *wanted,
            ContainerFilter::Ancestor(name) => image == name || is_one_image(image, name),
            ContainerFilter::Label(name, value) => settings
                .iter()
                .flat_map(|settings| &settings.labels)
                .any(|(known, known_value)| known == name && value.as_ref().is_none_or(|value| value == known_value)),
        }
    }
}

/// Returns true if two texts are the same name of an image, for example with and without its tag.
fn is_one_image(a: &str, b: &str) -> bool {
    let reference = |text: &str| text.parse::<Reference>().ok();
    reference(a).is_some_and(|a| reference(b) == Some(a))
}

/// The names that a filter selects. In docker, it is a regular expression, which may match any part
/// of the name, with or without a leading slash. `^`, `$` and `.` are supported.
#[derive(Debug, PartialEq, Eq)]
struct NamePattern {
    at_start: bool,
    at_end: bool,
    /// A `.` stands for any byte.
    text: String,
}

impl NamePattern {
    /// Returns `None` if the expression is not supported.
    fn parse(expression: &str) -> Option<NamePattern> {
        let (at_start, rest) = expression.strip_prefix('^').map_or((false, expression), |rest| (true, rest));
        let (at_end, text) = rest.strip_suffix('$').map_or((false, rest), |rest| (true, rest));
        let is_supported = !text.contains(|c| "*+?()[]{}|\\^$".contains(c));
        is_supported.then(|| NamePattern { at_start, at_end, text: text.to_string() })
    }

    fn matches(&self, name: &str) -> bool {
        self.matches_bytes(name.as_bytes()) || self.matches_bytes(format!("/{name}").as_bytes())
    }

    fn matches_bytes(&self, name: &[u8]) -> bool {
        let text = self.text.as_bytes();
        let Some(last) = name.len().checked_sub(text.len()) else { return false };
        let first = if self.at_end { last } else { 0 };
        let last = if self.at_start { 0 } else { last };
        let is_at = |at: usize| name[at..].iter().zip(text).all(|(byte, wanted)| [byte, &b'.'].contains(&wanted));
        (first..=last).any(is_at)
    }
}

#[cfg(test)]
mod tests {
    use rbuild_store::{Ended, LastEnd, Started};

    use super::*;

    #[test]
    fn commands_are_shown_as_in_docker() {
        let words = |text: &str| text.split_whitespace().map(String::from).collect::<Vec<_>>();
        let shell = ["sh".to_string(), "-c".to_string(), "echo a b && sleep 10".to_string()];
        assert_eq!(shown_command(&shell, true), "\"sh -c 'echo a b && sleep 10'\"");
        assert_eq!(shown_command(&shell, false), "\"sh -c 'echo a b && …\"");
        assert_eq!(shown_command(&words("sleep 100"), false), "\"sleep 100\"");
    }

    #[test]
    fn states_are_described_as_in_docker() {
        let stamp = rbuild_linux::ProcessStamp { pid: 1, start: 1, boot: String::new() };
        let started = Started::new(stamp, "userns", 100);
        for (state, text) in [
            (ContainerState::Created, "Created"),
            (ContainerState::Running(started.clone()), "Up 3 minutes"),
            (
                ContainerState::Exited(Ended { code: 3, error: None, memory_exceeded: false, at: 275 }),
                "Exited (3) 5 seconds ago",
            ),
            (ContainerState::Restarting(LastEnd { code: 1, at: 278, restarts: 2 }), "Restarting (1) 2 seconds ago"),
            (ContainerState::Dead, "Dead"),
        ] {
            assert_eq!(status(&state, None, false, 280), text);
        }
        let running = ContainerState::Running(started);
        for (health, text) in [
            (HealthStatus::Starting, "Up 3 minutes (health: starting)"),
            (HealthStatus::Healthy, "Up 3 minutes (healthy)"),
            (HealthStatus::Unhealthy, "Up 3 minutes (unhealthy)"),
        ] {
            assert_eq!(status(&running, Some(health), false, 280), text);
        }
        assert_eq!(status(&running, Some(HealthStatus::Healthy), true, 280), "Up 3 minutes (Paused)");
    }

    #[test]
    fn names_are_matched_as_in_docker() {
        for (expression, matching, others) in [
            ("p1", &["p1", "ap12"][..], &["p2", "p"][..]),
            ("^p1$", &["p1"], &["p12", "ap1"]),
            ("^/p1$", &["p1"], &["p12", "ap1"]),
            ("/p1", &["p1", "p12"], &["ap1"]),
            ("^p1", &["p1", "p12"], &["ap1"]),
            ("p1$", &["p1", "ap1"], &["p12"]),
            ("^p.2$", &["p12", "p.2"], &["p2", "p122"]),
            ("", &["p1"], &[]),
            ("^longer-than-it$", &[], &["it"]),
        ] {
            let pattern = NamePattern::parse(expression).unwrap();
            assert!(matching.iter().all(|name| pattern.matches(name)), "{expression}");
            assert!(!others.iter().any(|name| pattern.matches(name)), "{expression}");
        }
        for expression in ["a*", "(a)", "[ab]", "a|b", "a^b", "a\\.b", "a+", "a?"] {
            assert_eq!(NamePattern::parse(expression), None, "{expression}");
        }
    }

    #[test]
    fn names_of_images_are_compared_with_their_tags() {
        for (a, b) in [("busybox", "busybox:latest"), ("docker.io/library/a:1", "a:1")] {
            assert!(is_one_image(a, b) && is_one_image(b, a) && is_one_image(a, a), "{a} {b}");
        }
        for (a, b) in [("a:1", "a:2"), ("a", "b"), ("host:1/a", "a"), ("A", "A")] {
            assert!(!is_one_image(a, b), "{a} {b}");
        }
    }

    #[test]
    fn filters_are_parsed() {
        let parse = |text| ContainerFilter::parse(text);
        assert_eq!(parse("status=exited").unwrap(), ContainerFilter::Status("exited".into()));
        assert_eq!(parse("health=none").unwrap(), ContainerFilter::Health(None));
        assert_eq!(parse("label=a=b=c").unwrap(), ContainerFilter::Label("a".into(), Some("b=c".into())));
        let refused = ["status=up", "exited=x", "name=a*", "nam=x", "x", "health=helthy"]
            .map(|text| parse(text).unwrap_err().text());
        rbuild_testkit::assert_recorded!("container-filters", refused.concat());
    }
}
