//! The tables `[registry."HOST"]` of the configuration file.

use std::path::PathBuf;

use rbuild_registry::{MirrorPlace, ServerSetting, ServerSettings};
use toml::{Table, Value};

use crate::input::toml_value::{absolute_path, list, number, text};
use crate::input::value::BadValue;
use crate::ui::hints::{self, ValueRemedy};

/// The names of the settings of a registry.
const NAMES: [&str; 5] = ["mirrors", "insecure", "plain-http", "ca", "connections"];

/// Adds the settings of all tables. An error comes with the setting, as the user wrote it.
pub fn add(settings: &mut ServerSettings, tables: &Table) -> Result<(), (String, BadValue)> {
    for (host, table) in tables {
        let key = format!("registry.\"{host}\"");
        let bad = |problem: &str, remedy: ValueRemedy| {
            let bad = BadValue { problem: problem.into(), hint: remedy.into() };
            (key.clone(), bad)
        };
        let table = table.as_table().ok_or_else(|| bad("not a table", ValueRemedy::RegistryTable))?;
        let setting = settings.of_host_mut(host).ok_or_else(|| bad("not a host", ValueRemedy::RegistryTable))?;
        for (name, value) in table {
            set(setting, name, value).map_err(|bad| (format!("{key}.{name} = {value}"), bad))?;
        }
    }
    Ok(())
}

fn set(setting: &mut ServerSetting, name: &str, value: &Value) -> Result<(), BadValue> {
    match name {
        "mirrors" => setting.mirrors = Some(mirrors(value)?),
        "insecure" => setting.insecure = Some(choice(value)?),
        "plain-http" => setting.plain_http = Some(choice(value)?),
        "ca" => setting.ca = Some(path(value)?),
        "connections" => setting.connections = Some(connections(value)?),
        _ => return Err(BadValue { problem: "unknown setting".into(), hint: hints::suggestion(name, &NAMES) }),
    }
    Ok(())
}

fn mirrors(value: &Value) -> Result<Vec<MirrorPlace>, BadValue> {
    let bad = |problem: &str| BadValue { problem: problem.into(), hint: ValueRemedy::MirrorForm.into() };
    let list = list(value).map_err(|e| bad(&e.problem))?;
    list.iter()
        .map(|place| MirrorPlace::parse(text(place)?).ok_or_else(|| bad("not hosts, perhaps with paths")))
        .collect()
}

fn choice(value: &Value) -> Result<bool, BadValue> {
    let bad = || BadValue { problem: "neither true nor false".into(), hint: ValueRemedy::TrueOrFalse.into() };
    value.as_bool().ok_or_else(bad)
}

fn path(value: &Value) -> Result<PathBuf, BadValue> {
    absolute_path(text(value)?)
}

fn connections(value: &Value) -> Result<usize, BadValue> {
    let bad = || BadValue { problem: "not a number of connections".into(), hint: ValueRemedy::AtLeastOne.into() };
    usize::try_from(number(value)?).ok().filter(|count| *count > 0).ok_or_else(bad)
}
