//! The verb `doctor`: tests what this machine allows by doing it.

use rbuild_engine::BuildError;
use rbuild_remedy::Remedy;
use rbuild_sandbox::{Builder, Carrier, IsolationRequest, RunnerError, RunnerMode, checks, enter};
use rbuild_store::{Snapshots, Store, Workspace};
use serde::{Deserialize, Serialize};

use crate::commands::in_builder::{moved_store, store_only};
use crate::exit::{Failure, code};
use crate::input::settings::Settings;
use crate::ui::{hints, terminal};

pub fn doctor(settings: &Settings) -> Result<u8, Failure> {
    for check in checks() {
        line(check.remedy.is_none(), check.name, &check.found, check.remedy.as_ref().map(hints::words).as_deref());
    }
    match settings.open() {
        Ok(store) => line(true, "store", &store.path().display().to_string(), None),
        Err(e) => {
            line(false, "store", &e.message, e.help.as_deref());
            return Ok(code::FAILED);
        }
    }
    // The checks above show what a better mode lacks; the exit code depends only on whether one
    // works.
    match trial(settings) {
        Ok(found) => {
            found.print();
            networks(found.mode);
            Ok(code::OK)
        }
        Err(failure) => {
            line(false, requested(settings.isolation), &failure.message, failure.help.as_deref());
            networks(RunnerMode::Container);
            Ok(code::REFUSED)
        }
    }
}

/// Returns the name of the mode that was tried last.
fn requested(isolation: IsolationRequest) -> &'static str {
    match isolation {
        IsolationRequest::Auto | IsolationRequest::Userns => "userns",
        IsolationRequest::SingleId => "single-id",
        IsolationRequest::Chroot => "chroot",
    }
}

/// Prints the networks that commands can have in a mode.
fn networks(mode: RunnerMode) {
    let reach = "commands can reach this machine's loopback ports and abstract Unix sockets";
    if mode == RunnerMode::Chroot {
        line(true, "networks", &format!("host only; {reach}"), None);
        line(false, "isolated", "--network none and isolated require namespaces, which this mode lacks", None);
        return;
    }
    line(true, "networks", &format!("host (the default) and none; with host, {reach}"), None);
    match Carrier::find() {
        Ok(carrier) => line(true, "isolated", &format!("--network isolated uses {}", carrier.name()), None),
        Err(why) => line(false, "isolated", &rbuild_remedy::sentence(&why), Some(&hints::words(&why.remedy))),
    }
}

fn line(good: bool, name: &str, found: &str, remedy: Option<&str>) {
    let mark = if good { "ok " } else { "NO " };
    let remedy = remedy.map_or(String::new(), |r| format!("      {r}\n"));
    terminal::out(&format!("{mark} {name}: {found}\n{remedy}"));
}

/// Findings of the builder process.
#[derive(Debug, Serialize, Deserialize)]
struct Findings {
    mode: RunnerMode,
    copies: bool,
    outer_processes: bool,
    /// The reason why commands cannot run in a mode that intercepts their system calls.
    obstacle: Option<RunnerError>,
}

impl Findings {
    fn print(&self) {
        let found = match self.mode {
            RunnerMode::Chroot => {
                "commands have their own root directory but no other isolation: neither namespaces nor mounts are permitted"
            }
            RunnerMode::Emulated => {
                "a user namespace with one ID works; owners are recorded, so images are identical, but sub-IDs isolate better"
            }
            RunnerMode::Container if rbuild_linux::process::own_ids().uid == 0 => {
                "a user namespace works; root's IDs are not mapped, so a command that escapes is root on this machine"
            }
            RunnerMode::Container => "a user namespace with sub-IDs works",
        };
        line(true, self.mode.name(), found, None);
        if let Some(obstacle) = &self.obstacle {
            let remedy = obstacle.remedy().map(|remedy| hints::words(&remedy));
            line(false, "commands", &obstacle.to_string(), remedy.as_deref());
        }
        if self.outer_processes {
            let found = "parts of /proc are masked, so commands use this container's /proc and can see its processes";
            line(false, "proc", found, Some(&hints::words(&Remedy::UnmaskProc)));
        } else if self.mode != RunnerMode::Chroot {
            line(true, "proc", "commands can see only their own processes", None);
        }
        let found = if self.mode == RunnerMode::Chroot {
            "this mode cannot mount overlays, so files are copied for each step, which is slower"
        } else if self.copies {
            "the store's file system does not support overlays, so files are copied for each step, which is slower"
        } else {
            "overlay mounts work on the store's file system"
        };
        line(true, "snapshots", found, None);
    }
}

/// Enters a builder process and assembles a snapshot in the store, as a build does.
fn trial(settings: &Settings) -> Result<Findings, Failure> {
    let store = settings.open()?;
    let fail = |e: std::io::Error| Failure::new(format!("cannot read the builder's answer: {e}")).because(&e);
    let (mut reader, mut writer) = std::io::pipe().map_err(fail)?;
    enter(&store_only(&store), settings.isolation, |builder| {
        use std::io::Write;
        let result = builder.map_err(BuildError::from).and_then(|builder| {
            let copies = snapshots(&store, &builder)? == Snapshots::Copies;
            let mode = builder.isolation.runner_mode();
            let obstacle = builder.check_interception().err();
            Ok(Findings { mode, copies, outer_processes: builder.shows_outer_processes(), obstacle })
        });
        let answer = result.map_err(Failure::from);
        let _ = writer.write_all(&serde_json::to_vec(&answer).unwrap_or_default());
        i32::from(answer.is_err())
    })?;
    drop(writer);
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut reader, &mut text).map_err(fail)?;
    serde_json::from_slice(&text).map_err(|_| Failure::new("the builder process ended without an answer"))?
}

fn snapshots(store: &Store, builder: &Builder) -> Result<Snapshots, BuildError> {
    let store = moved_store(builder, store)?;
    let work = Workspace::open(&store)?;
    rbuild_engine::snapshots(builder, &work)
}
