//! What this machine allows, tried and not guessed.

use std::path::Path;

use rbuild_linux::detached_overlay;
use rbuild_sandbox::{SandboxError, World, checks, enter};
use rbuild_store::Workspace;

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
        Ok(()) => line(true, "userns", "a namespace with its own root, /proc and overlay works", None),
        Err(e) => {
            let failure = Failure::from(e);
            line(false, "userns", &failure.message, failure.help.as_deref());
        }
    }
    line(true, "networks", "host, none", None);
    Ok(if ok { code::OK } else { code::REFUSED })
}

/// Enters the namespace and mounts an overlay in the store, as a build does.
fn trial(place: &Place) -> Result<(), SandboxError> {
    let world = World { store: place.root.clone(), binds: Vec::new() };
    let (mut reader, mut writer) = std::io::pipe().map_err(|e| SandboxError::Runner(e.to_string()))?;
    enter(&world, |builder| {
        use std::io::Write;
        let result = builder.and_then(|_| overlay(place));
        if let Err(e) = &result {
            let _ = writer.write_all(e.to_string().as_bytes());
        }
        i32::from(result.is_err())
    })?;
    drop(writer);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut reader, &mut text).map_err(|e| SandboxError::Runner(e.to_string()))?;
    if text.is_empty() { Ok(()) } else { Err(SandboxError::Runner(text)) }
}

fn overlay(place: &Place) -> Result<(), SandboxError> {
    let other = |e: rbuild_store::StoreError| SandboxError::Runner(e.to_string());
    let store = place.inside().map_err(other)?;
    let work = Workspace::open(&store).map_err(other)?;
    let mut dirs = Vec::new();
    for _ in 0..3 {
        dirs.push(work.new_dir().map_err(other)?.0);
    }
    detached_overlay(&dirs[..1], Some((&dirs[1], &dirs[2])), Path::new("/mnt"))?;
    Ok(())
}
