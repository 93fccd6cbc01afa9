//! Verbs on volumes.

use rbuild_image::human_size;
use rbuild_linux::Timestamp;
use rbuild_plan::ContainerMount;
use rbuild_sandbox::enter;
use rbuild_store::{RunSettings, Store, StoreError, StoredVolume};
use serde_json::{Map, Value, json};

use crate::args::{VolumeCreateArgs, VolumeInspectArgs, VolumeListArgs, VolumePruneArgs, VolumeRemoveArgs};
use crate::commands::containers::command::{VariableSource, merged, pairs};
use crate::commands::images::bad_format;
use crate::commands::in_builder::{exit_code, store_config, store_in_builder};
use crate::exit::{Failure, code};
use crate::input::mounts;
use crate::input::settings::Settings;
use crate::template;
use crate::ui::hints::{self, ValueRemedy, VerbRemedy};
use crate::ui::terminal;

pub fn list(settings: &Settings, args: VolumeListArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let filters: Vec<VolumeFilter> = args.filter.iter().map(|f| VolumeFilter::parse(f)).collect::<Result<_, _>>()?;
    let used = store.volumes().used()?;
    let mut volumes = store.volumes().list()?;
    volumes.retain(|volume| filters.iter().all(|filter| filter.passes(volume, &used)));
    let rows: Vec<Value> = volumes.iter().map(|volume| row(&store, volume)).collect();
    let headings = json!({
        "Driver": "DRIVER", "Name": "VOLUME NAME", "Mountpoint": "MOUNTPOINT", "Labels": "LABELS", "Scope": "SCOPE",
    });
    const USUAL: &str = "table {{.Driver}}\t{{.Name}}";
    let format = if args.quiet { "{{.Name}}" } else { args.format.as_deref().unwrap_or(USUAL) };
    terminal::out(&template::rows_or_table(format, USUAL, &headings, &rows).map_err(bad_format)?);
    Ok(code::OK)
}

fn row(store: &Store, volume: &StoredVolume) -> Value {
    let labels: Vec<String> = volume.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    json!({
        "Driver": "local",
        "Name": volume.name,
        "Mountpoint": store.volumes().path(&volume.name).display().to_string(),
        "Labels": labels.join(","),
        "Scope": "local",
    })
}

/// A `--filter` of `volume ls`.
enum VolumeFilter {
    Name(String),
    Label(String, Option<String>),
    Dangling(bool),
}

impl VolumeFilter {
    fn parse(text: &str) -> Result<VolumeFilter, Failure> {
        Ok(match text.split_once('=') {
            Some(("name", part)) => VolumeFilter::Name(part.into()),
            Some(("label", label)) => match label.split_once('=') {
                Some((name, value)) => VolumeFilter::Label(name.into(), Some(value.into())),
                None => VolumeFilter::Label(label.into(), None),
            },
            Some(("dangling", value)) if rbuild_dockerfile::parse_bool(value).is_some() => {
                VolumeFilter::Dangling(rbuild_dockerfile::parse_bool(value) == Some(true))
            }
            _ => {
                let failure = Failure::usage(format!("--filter {text}: unknown filter"));
                return Err(failure.help(hints::use_one_of(&["name=PART", "label=NAME", "dangling=true"])));
            }
        })
    }

    fn passes(&self, volume: &StoredVolume, used: &[String]) -> bool {
        match self {
            VolumeFilter::Name(part) => volume.name.contains(part.as_str()),
            VolumeFilter::Label(name, value) => volume
                .labels
                .iter()
                .any(|(known, has)| known == name && value.as_ref().is_none_or(|value| value == has)),
            VolumeFilter::Dangling(dangling) => used.contains(&volume.name) != *dangling,
        }
    }
}

pub fn create(settings: &Settings, args: VolumeCreateArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let anonymous = args.name.is_none();
    let name = args.name.unwrap_or_else(|| mounts::generated_name(&format!("{:?}", Timestamp::now())));
    if !mounts::is_volume_name(&name) {
        let failure = Failure::usage(format!("`{name}` is not the name of a volume"));
        return Err(failure.help(ValueRemedy::VolumeName));
    }
    let labels = merged(pairs(&VariableSource::LABEL, &[], &args.label)?);
    store.volumes().create(&name, &labels, anonymous)?;
    terminal::out(&format!("{name}\n"));
    Ok(code::OK)
}

pub fn inspect(settings: &Settings, args: VolumeInspectArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let (mut found, mut missing) = (Vec::new(), code::OK);
    for name in &args.volumes {
        match store.volumes().find(name)? {
            Some(volume) => found.push(properties(&store, &volume)),
            None => missing = missing.max(no_volume(&store, name).report()),
        }
    }
    let text = match args.format.as_deref().filter(|format| *format != "json") {
        Some(format) => template::rows(format, &json!({}), &found).map_err(bad_format)?,
        None => serde_json::to_string_pretty(&found).unwrap_or_default() + "\n",
    };
    terminal::out(&text);
    Ok(missing)
}

fn properties(store: &Store, volume: &StoredVolume) -> Value {
    let created = jiff::Timestamp::from_second(volume.created).map_or_else(|_| String::new(), |time| time.to_string());
    let labels: Map<String, Value> = volume.labels.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    json!({
        "CreatedAt": created,
        "Driver": "local",
        "Labels": labels,
        "Mountpoint": store.volumes().path(&volume.name).display().to_string(),
        "Name": volume.name,
        "Options": {},
        "Scope": "local",
    })
}

/// Returns the failure for a volume that does not exist.
fn no_volume(store: &Store, name: &str) -> Failure {
    let failure = Failure::new(StoreError::NoVolume(name.into()).to_string());
    let names = store.volumes().list().unwrap_or_default();
    match rbuild_dockerfile::closest(name, names.iter().map(|volume| volume.name.as_str())) {
        Some(close) => failure.help(hints::did_you_mean(close)),
        None => failure.help(VerbRemedy::ListVolumes),
    }
}

pub fn remove(settings: &Settings, args: VolumeRemoveArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let (mut names, mut missing) = (Vec::new(), code::OK);
    for name in args.volumes {
        match store.volumes().find(&name)? {
            Some(_) => names.push(name),
            None if args.force => {}
            None => missing = missing.max(no_volume(&store, &name).report()),
        }
    }
    let removed = remove_all(settings, &store, &names, |name, _| terminal::out(&format!("{name}\n")))?;
    Ok(removed.max(missing))
}

/// Removes the volumes that no container uses: those with a generated name, or all.
pub fn prune(settings: &Settings, args: VolumePruneArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let used = store.volumes().used()?;
    let mut volumes = store.volumes().list()?;
    volumes.retain(|volume| (args.all || volume.anonymous) && !used.contains(&volume.name));
    let names: Vec<String> = volumes.into_iter().map(|volume| volume.name).collect();
    if names.is_empty() {
        terminal::out("Total reclaimed space: 0B\n");
        return Ok(code::OK);
    }
    terminal::out("Deleted Volumes:\n");
    let mut freed = 0;
    // The builder process prints the sum: this process does not know the sizes.
    let count = names.len();
    let mut done = 0;
    remove_all(settings, &store, &names, |name, bytes| {
        terminal::out(&format!("{name}\n"));
        freed += bytes;
        done += 1;
        if done == count {
            terminal::out(&format!("\nTotal reclaimed space: {}\n", human_size(freed)));
        }
    })
}

/// Removes the anonymous volumes of a container that was removed. Failures leave them for `volume
/// prune`.
pub fn remove_anonymous(settings: &Settings, store: &Store, container: &RunSettings) {
    let name = |mount: &ContainerMount| match mount {
        ContainerMount::Named(volume) if volume.is_anonymous() => Some(volume.name.clone()),
        _ => None,
    };
    let mut names: Vec<String> = container.mounts.iter().filter_map(name).collect();
    names.retain(|name| matches!(store.volumes().find(name), Ok(Some(_))));
    if let Err(failure) = remove_all(settings, store, &names, |_, _| ()) {
        tracing::debug!(target: "engine", error = failure.message, "anonymous volumes stay");
    }
}

/// Removes volumes in a builder process, because files that belong to sub-IDs can be removed only
/// by root of their user namespace. `removed` is called for each volume with its size in bytes.
fn remove_all(
    settings: &Settings,
    store: &Store,
    names: &[String],
    mut removed: impl FnMut(&str, u64),
) -> Result<u8, Failure> {
    if names.is_empty() {
        return Ok(code::OK);
    }
    let ended = enter(&store_config(store), settings.isolation, |builder| {
        let store = match builder.map_err(Failure::from).and_then(|b| Ok(store_in_builder(&b, store)?)) {
            Ok(store) => store,
            Err(failure) => return i32::from(failure.report()),
        };
        let mut worst = code::OK;
        for name in names {
            let bytes = store.volumes().bytes(name).unwrap_or_default();
            match store.volumes().remove(name) {
                Ok(true) => removed(name, bytes),
                Ok(false) => {
                    let failure = Failure::new(format!("volume `{name}` contains files of other users"));
                    worst = worst.max(failure.help(VerbRemedy::RemoveByUserns).report());
                }
                Err(e) => worst = worst.max(Failure::from(e).report()),
            }
        }
        i32::from(worst)
    })?;
    Ok(exit_code(ended.code, ended.stopped))
}
