//! The verb `inspect`: shows the properties of images and containers.

use rbuild_store::{Container, Store};
use serde_json::Value;

use crate::args::InspectArgs;
use crate::commands::named;
use crate::commands::{containers, images, referrers};
use crate::exit::{Failure, code};
use crate::input::settings::Settings;
use crate::input::value::ObjectType;
use crate::template;
use crate::ui::terminal;

pub fn inspect(settings: &Settings, args: InspectArgs) -> Result<u8, Failure> {
    if args.referrers {
        terminal::out(&text_of(&referrers::of(&args)?, args.format.as_deref())?);
        return Ok(code::OK);
    }
    let store = settings.open()?;
    let (mut all, mut missing) = (Vec::new(), Vec::new());
    for wanted in &args.names {
        if let Some(container) = container(&store, wanted, args.kind)? {
            all.push(containers::inspect::inspected(&store, &container)?);
            continue;
        }
        if args.kind == Some(ObjectType::Container) {
            missing.push(containers::lookup::missing(&store, wanted));
            continue;
        }
        // As in Docker, existing objects are printed, followed by errors for the others.
        let found = match named::find_entry(&store, wanted) {
            Ok(found) => found,
            Err(failure) => {
                missing.push(failure);
                continue;
            }
        };
        if args.verify {
            store.gc().verify_image(&found.image)?;
        }
        all.push(images::inspected_entry(&store, &found)?);
    }
    if args.format.as_deref().is_some_and(|format| format != "json") {
        all.iter_mut().for_each(images::fill_in);
    }
    terminal::out(&text_of(&all, args.format.as_deref())?);
    Ok(missing.iter().map(Failure::report).max().unwrap_or(code::OK))
}

/// Returns the documents in the requested format.
fn text_of(all: &[Value], format: Option<&str>) -> Result<String, Failure> {
    match format {
        Some("json") => Ok(all.iter().map(|i| format!("{i}\n")).collect()),
        Some(format) => template::rows(format, &Value::Null, all).map_err(images::bad_format),
        None => Ok(serde_json::to_string_pretty(all).map_err(|e| Failure::new(e.to_string()))? + "\n"),
    }
}

/// Returns the container that `wanted` names, unless an image is requested. A container hides an
/// image with the same name, as in docker.
fn container(store: &Store, wanted: &str, kind: Option<ObjectType>) -> Result<Option<Container>, Failure> {
    match kind {
        Some(ObjectType::Image) => Ok(None),
        Some(ObjectType::Container) | None => Ok(store.containers().find_container(wanted)?),
    }
}
