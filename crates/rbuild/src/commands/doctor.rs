//! What this machine allows, tried and not guessed.

use std::path::Path;

use rbuild_sandbox::{Builder, Carrier, SandboxError, UNMASK, World, checks, enter};
use rbuild_store::{Snapshots, Store, Workspace};
use serde::{Deserialize, Serialize};

use crate::exit::{Failure, code};
use crate::input::settings::Settings;
use crate::ui::terminal;

pub fn doctor(settings: &Settings) -> Result<u8, Failure> {
    for check in checks() {
        line(check.remedy.is_none(), check.name, &check.found, check.remedy.as_deref());
    }
    match settings.open() {
        Ok(store) => line(true, "store", &store.path().display().to_string(), None),
        Err(e) => {
            line(false, "store", &e.message, e.help.as_deref());
            return Ok(code::FAILED);
        }
    }
    // What is missing for a better rung is told above; what counts is that there is one.
    let trial = trial(settings);
    let ok = trial.is_ok();
    match trial {
        Ok(found) => found.tell(),
        Err(failure) => line(false, "userns", &failure.message, failure.help.as_deref()),
    }
    let shared = "host, none; on host, the default, commands reach what listens for you: loopback ports and abstract unix sockets";
    line(true, "networks", shared, None);
    match Carrier::find() {
        Ok(carrier) => line(true, "isolated", &format!("--network isolated goes through {}", carrier.name()), None),
        Err(why) => line(false, "isolated", &why.reason, Some(&why.remedy)),
    }
    Ok(if ok { code::OK } else { code::REFUSED })
}

fn line(good: bool, name: &str, found: &str, remedy: Option<&str>) {
    let mark = if good { "ok " } else { "NO " };
    let remedy = remedy.map_or(String::new(), |r| format!("      {r}\n"));
    terminal::out(&format!("{mark} {name}: {found}\n{remedy}"));
}

/// What a builder found.
#[derive(Debug, Serialize, Deserialize)]
struct Found {
    rung: String,
    copies: bool,
    outer_processes: bool,
}

impl Found {
    fn tell(&self) {
        let found = match self.rung.as_str() {
            "chroot" => {
                "commands get a root directory of their own and nothing else: neither namespaces nor mounts are allowed"
            }
            "single-id" => {
                "a namespace of one user works: owners are written down, and the images are the same; sub-ids give the \
                 stronger isolation"
            }
            _ => "a namespace with its own root works",
        };
        line(true, &self.rung, found, None);
        if self.outer_processes {
            let found =
                "parts of /proc are covered, so commands get the /proc that is here and see this container's processes";
            line(false, "proc", found, Some(UNMASK));
        } else if self.rung != "chroot" {
            line(true, "proc", "commands see their own processes only", None);
        }
        let found = match self.copies {
            false => "the kernel mounts overlays of the store's files",
            true => "files are copied for each step, which takes time: no overlays on the store's file system",
        };
        line(true, "snapshots", found, None);
    }
}

/// Becomes a builder and puts file systems together in the store, as a build does.
fn trial(settings: &Settings) -> Result<Found, Failure> {
    let store = settings.open()?;
    let world = World { store: settings.root.clone(), binds: Vec::new(), carrier: None, commands: false };
    let fail = |e: std::io::Error| Failure::new(format!("the builder's answer: {e}"));
    let (mut reader, mut writer) = std::io::pipe().map_err(fail)?;
    enter(&world, settings.rung, |builder| {
        use std::io::Write;
        let result = builder.and_then(|builder| {
            let copies = snapshots(&store, &builder)? == Snapshots::Copies;
            let rung = builder.isolation.rung.to_string();
            Ok(Found { rung, copies, outer_processes: builder.shows_outer_processes() })
        });
        let answer = result.map_err(|e| {
            let Failure { message, help, .. } = e.into();
            (message, help)
        });
        let _ = writer.write_all(&serde_json::to_vec(&answer).unwrap_or_default());
        i32::from(answer.is_err())
    })?;
    drop(writer);
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut reader, &mut text).map_err(fail)?;
    let answer: Result<Found, (String, Option<String>)> =
        serde_json::from_slice(&text).map_err(|_| Failure::new("the builder process ended without an answer"))?;
    answer.map_err(|(message, help)| Failure { help, ..Failure::new(message) })
}

fn snapshots(store: &Store, builder: &Builder) -> Result<Snapshots, SandboxError> {
    let other = |e: rbuild_store::StoreError| SandboxError::Runner(e.to_string());
    let store = store.moved(&builder.path(Path::new(rbuild_sandbox::STORE))).map_err(other)?;
    let work = Workspace::open(&store).map_err(other)?;
    rbuild_engine::snapshots(builder, &work).map_err(|e| SandboxError::Runner(e.message()))
}
