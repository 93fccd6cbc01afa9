//! What this machine allows, tried and not guessed.

use rbuild_sandbox::{Builder, SandboxError, World, checks, enter};
use rbuild_store::{Snapshots, Workspace};

use crate::exit::{Failure, code};
use crate::place::Place;
use crate::print;

pub fn doctor(place: &Place) -> Result<u8, Failure> {
    let mut ok = true;
    let mut line = |good: bool, name: &str, found: &str, remedy: Option<&str>| {
        ok &= good;
        let mark = if good { "ok " } else { "NO " };
        let remedy = remedy.map_or(String::new(), |r| format!("      {r}\n"));
        print::out(&format!("{mark} {name}: {found}\n{remedy}"));
    };
    for check in checks() {
        line(check.remedy.is_none(), check.name, &check.found, check.remedy.as_deref());
    }
    match place.open() {
        Ok(store) => line(true, "store", &store.path().display().to_string(), None),
        Err(e) => {
            line(false, "store", &e.message, e.help.as_deref());
            return Ok(code::FAILED);
        }
    }
    match trial(place) {
        Ok(snapshots) => {
            line(true, "userns", "a namespace with its own root and /proc works", None);
            let found = match snapshots {
                Snapshots::Overlay => "the kernel mounts overlays of the store's files",
                Snapshots::Copies => {
                    "no overlays on the store's file system: files are copied for each step, which takes time"
                }
            };
            line(true, "snapshots", found, None);
        }
        Err(e) => {
            let failure = Failure::from(e);
            line(false, "userns", &failure.message, failure.help.as_deref());
        }
    }
    line(true, "networks", "host, none", None);
    Ok(if ok { code::OK } else { code::REFUSED })
}

/// Enters the namespace and puts file systems together in the store, as a build does.
fn trial(place: &Place) -> Result<Snapshots, SandboxError> {
    let world = World { store: place.root.clone(), binds: Vec::new() };
    let (mut reader, mut writer) = std::io::pipe().map_err(|e| SandboxError::Runner(e.to_string()))?;
    enter(&world, place.rung, |builder| {
        use std::io::Write;
        let result = builder.and_then(|builder| snapshots(place, &builder));
        let text = match &result {
            Ok(Snapshots::Overlay) => String::new(),
            Ok(Snapshots::Copies) => COPIES.into(),
            Err(e) => e.to_string(),
        };
        let _ = writer.write_all(text.as_bytes());
        i32::from(result.is_err())
    })?;
    drop(writer);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut reader, &mut text).map_err(|e| SandboxError::Runner(e.to_string()))?;
    match text.as_str() {
        "" => Ok(Snapshots::Overlay),
        COPIES => Ok(Snapshots::Copies),
        _ => Err(SandboxError::Runner(text)),
    }
}

/// What the process in the namespace says if there are no overlays.
const COPIES: &str = "copies";

fn snapshots(place: &Place, builder: &Builder) -> Result<Snapshots, SandboxError> {
    let other = |e: rbuild_store::StoreError| SandboxError::Runner(e.to_string());
    let store = place.inside(builder).map_err(other)?;
    Snapshots::probe(&Workspace::open(&store).map_err(other)?).map_err(other)
}
