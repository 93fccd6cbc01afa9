//! What this machine allows, tried and not guessed.

use rbuild_sandbox::{Builder, Carrier, SandboxError, World, checks, enter};
use rbuild_store::{Snapshots, Workspace};

use crate::exit::{Failure, code};
use crate::place::Place;
use crate::print;

pub fn doctor(place: &Place) -> Result<u8, Failure> {
    let line = |good: bool, name: &str, found: &str, remedy: Option<&str>| {
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
    // What is missing for a better rung is told above; what counts is that there is one.
    let trial = trial(place);
    let ok = trial.is_ok();
    match trial {
        Ok((rung, snapshots)) => {
            let found = match rung.as_str() {
                "chroot" => {
                    "commands get a root directory of their own and nothing else: neither namespaces nor mounts are allowed"
                }
                "single-id" => {
                    "a namespace of one user works: owners are written down, and the images are the same; sub-ids give the \
                     stronger isolation"
                }
                _ => "a namespace with its own root and /proc works",
            };
            line(true, &rung, found, None);
            let found = match snapshots {
                Snapshots::Overlay => "the kernel mounts overlays of the store's files",
                Snapshots::Copies => {
                    "files are copied for each step, which takes time: no overlays on the store's file system"
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
    match Carrier::find() {
        Ok(carrier) => line(true, "isolated", &format!("--network isolated goes through {}", carrier.name()), None),
        Err(why) => line(false, "isolated", &why.reason, Some(&why.remedy)),
    }
    Ok(if ok { code::OK } else { code::REFUSED })
}

/// Becomes a builder and puts file systems together in the store, as a build does; gives the rung.
fn trial(place: &Place) -> Result<(String, Snapshots), SandboxError> {
    let world = World { store: place.root.clone(), binds: Vec::new(), carrier: None, commands: false };
    let (mut reader, mut writer) = std::io::pipe().map_err(|e| SandboxError::Runner(e.to_string()))?;
    let ended = enter(&world, place.rung, |builder| {
        use std::io::Write;
        let result = builder.and_then(|builder| Ok((builder.isolation.rung, snapshots(place, &builder)?)));
        let text = match &result {
            Ok((rung, Snapshots::Overlay)) => rung.to_string(),
            Ok((rung, Snapshots::Copies)) => format!("{rung} copies"),
            Err(e) => e.to_string(),
        };
        let _ = writer.write_all(text.as_bytes());
        i32::from(result.is_err())
    })?;
    drop(writer);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut reader, &mut text).map_err(|e| SandboxError::Runner(e.to_string()))?;
    match (ended.code, text.split_once(' ')) {
        (0, Some((rung, _))) => Ok((rung.to_string(), Snapshots::Copies)),
        (0, None) => Ok((text, Snapshots::Overlay)),
        _ => Err(SandboxError::Runner(text)),
    }
}

fn snapshots(place: &Place, builder: &Builder) -> Result<Snapshots, SandboxError> {
    let other = |e: rbuild_store::StoreError| SandboxError::Runner(e.to_string());
    let store = place.inside(builder).map_err(other)?;
    let work = Workspace::open(&store).map_err(other)?;
    rbuild_engine::snapshots(builder, &work).map_err(|e| SandboxError::Runner(e.message()))
}
