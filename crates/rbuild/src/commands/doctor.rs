//! The verb `doctor`: tests the capabilities of this machine by using them.

use rbuild_engine::BuildError;
use rbuild_linux::{ControlGroup, GroupProblem};
use rbuild_plan::GroupLimits;
use rbuild_remedy::{IsolationRemedy, Remedy};
use rbuild_sandbox::{Builder, Carrier, Check, IsolationRequest, RunnerError, RunnerMode, checks, enter};
use rbuild_store::{SnapshotBackend, Store, Workspace};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::args::DoctorArgs;
use crate::commands::in_builder::{read_answer, store_config, store_in_builder, unread};
use crate::exit::{Failure, code};
use crate::input::settings::Settings;
use crate::ui::hints::{Hint, VerbRemedy};
use crate::ui::terminal;

pub fn doctor(settings: &Settings, args: DoctorArgs) -> Result<u8, Failure> {
    let report = report(settings);
    terminal::out(&match args.format {
        Some(_) => report.json(),
        None => report.text(),
    });
    Ok(report.code)
}

/// Findings about the machine.
struct DoctorReport {
    lines: Vec<ReportLine>,
    /// The mode in which this machine can build.
    mode: Option<RunnerMode>,
    code: u8,
}

fn report(settings: &Settings) -> DoctorReport {
    let of_check = |check: Check| {
        let hint = check.remedy.as_ref().map(Hint::from);
        ReportLine { good: hint.is_none(), name: check.name, found: check.found, hint }
    };
    let mut lines: Vec<ReportLine> = checks().into_iter().map(of_check).collect();
    match settings.open() {
        Ok(store) => lines.push(ReportLine::good("store", store.path().display().to_string())),
        Err(e) => {
            lines.push(ReportLine { good: false, name: "store", found: e.message, hint: e.help });
            return DoctorReport { lines, mode: None, code: code::FAILED };
        }
    }
    // The checks above show obstacles to better modes. The exit code depends only on the mode that
    // is tried here.
    match trial(settings) {
        Ok(found) => {
            let is_root = rbuild_linux::credentials::own_ids().uid == 0;
            lines.extend(found.lines(is_root));
            lines.extend(networks(found.mode, isolated()));
            lines.push(limits(try_limit));
            let mode = found.obstacle.is_none().then_some(found.mode);
            DoctorReport { lines, mode, code: code::OK }
        }
        Err(failure) => {
            let name = requested(settings.isolation);
            lines.push(ReportLine { good: false, name, found: failure.message, hint: failure.help });
            lines.extend(networks(RunnerMode::Container, isolated()));
            DoctorReport { lines, mode: None, code: code::REFUSED }
        }
    }
}

impl DoctorReport {
    fn text(&self) -> String {
        let lines: String = self.lines.iter().map(ReportLine::text).collect();
        summary(self.mode) + &lines
    }

    fn json(&self) -> String {
        let line = |line: &ReportLine| {
            let hint = line.hint.as_ref().map(Hint::to_string);
            json!({"name": line.name, "ok": line.good, "found": line.found, "hint": hint})
        };
        let checks: Vec<Value> = self.lines.iter().map(line).collect();
        format!("{}\n", json!({"mode": self.mode.map(RunnerMode::name), "checks": checks}))
    }
}

/// Returns the first line of the report.
fn summary(mode: Option<RunnerMode>) -> String {
    match mode {
        Some(mode) => format!("this machine can build images, in the isolation mode {}\n", mode.name()),
        None => "this machine cannot run the commands of a build\n".into(),
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

/// Returns the lines about networks of commands in a mode.
fn networks(mode: RunnerMode, isolated: ReportLine) -> [ReportLine; 2] {
    let reach = "commands can reach this machine's loopback ports and abstract Unix sockets";
    if mode == RunnerMode::Chroot {
        let isolated = "--network none and isolated require namespaces, which this mode lacks";
        return [
            ReportLine::good("networks", format!("host only; {reach}")),
            ReportLine::bad("isolated", isolated.into(), None),
        ];
    }
    [ReportLine::good("networks", format!("host (the default) and none; with host, {reach}")), isolated]
}

/// Returns the line about the program that connects isolated networks.
fn isolated() -> ReportLine {
    match Carrier::find(false) {
        Ok(carrier) => carried_by(carrier.name()),
        Err(error) => ReportLine::bad("isolated", rbuild_remedy::sentence(&error), Some(&error.remedy)),
    }
}

fn carried_by(program: &str) -> ReportLine {
    ReportLine::good("isolated", format!("--network isolated uses {program}"))
}

/// Returns the line about limits on the resources of containers. `try_limit` tries them.
fn limits(try_limit: impl Fn(GroupLimits) -> Result<(), GroupProblem>) -> ReportLine {
    const ENOUGH: Option<u64> = Some(1 << 20);
    let none = GroupLimits::default();
    let all = [
        ("--memory", GroupLimits { memory: ENOUGH, ..none }),
        ("--cpus", GroupLimits { milli_cpus: ENOUGH, ..none }),
        ("--pids-limit", GroupLimits { processes: ENOUGH, ..none }),
    ];
    let refused: Vec<(&str, GroupProblem)> =
        all.into_iter().filter_map(|(flag, limits)| Some((flag, try_limit(limits).err()?))).collect();
    let Some((_, problem)) = refused.first() else {
        return ReportLine::good("limits", "--memory, --cpus and --pids-limit apply to `rbuild run`".into());
    };
    let flags = refused.iter().map(|(flag, _)| *flag).collect::<Vec<_>>().join(", ");
    let found = format!("no effect of {flags}: {}", rbuild_remedy::sentence(problem));
    let hint = matches!(problem, GroupProblem::NotDelegated).then(|| VerbRemedy::DelegateGroup.into());
    ReportLine { good: false, name: "limits", found, hint }
}

/// Creates a control group with these limits, and removes it.
fn try_limit(limits: GroupLimits) -> Result<(), GroupProblem> {
    ControlGroup::create(limits).map(|group| group.remove())
}

/// A line of the report: a property of the machine, and a hint for its improvement.
struct ReportLine {
    good: bool,
    name: &'static str,
    found: String,
    hint: Option<Hint>,
}

impl ReportLine {
    fn good(name: &'static str, found: String) -> ReportLine {
        ReportLine { good: true, name, found, hint: None }
    }

    fn bad(name: &'static str, found: String, remedy: Option<&Remedy>) -> ReportLine {
        ReportLine { good: false, name, found, hint: remedy.map(Hint::from) }
    }

    fn text(&self) -> String {
        let mark = if self.good { "ok " } else { "NO " };
        let hint = self.hint.as_ref().map_or(String::new(), |hint| format!("      {hint}\n"));
        format!("{mark} {}: {}\n{hint}", self.name, self.found)
    }
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
    /// Returns the findings. `is_root` is true if the caller of the builder is root.
    fn lines(&self, is_root: bool) -> Vec<ReportLine> {
        let found = match self.mode {
            RunnerMode::Chroot => {
                "commands have their own root directory but no other isolation: neither namespaces nor mounts are permitted"
            }
            RunnerMode::Emulated => {
                "a user namespace with one ID works; owners are recorded, so images are identical, but sub-IDs isolate better"
            }
            RunnerMode::Container if is_root => {
                "a user namespace works; root's IDs are not mapped, so a command that escapes is root on this machine"
            }
            RunnerMode::Container => "a user namespace with sub-IDs works",
        };
        let mut lines = vec![ReportLine::good(self.mode.name(), found.into())];
        if let Some(obstacle) = &self.obstacle {
            lines.push(ReportLine::bad("commands", rbuild_remedy::sentence(obstacle), obstacle.remedy().as_ref()));
        }
        if self.outer_processes {
            let found = "parts of /proc are masked, so commands use this container's /proc and can see its processes";
            lines.push(ReportLine::bad("proc", found.into(), Some(&Remedy::Isolation(IsolationRemedy::UnmaskProc))));
        } else if self.mode != RunnerMode::Chroot {
            lines.push(ReportLine::good("proc", "commands can see only their own processes".into()));
        }
        let found = if self.mode == RunnerMode::Chroot {
            "this mode cannot mount overlays, so files are copied for each step, which is slower"
        } else if self.copies {
            "the store's file system does not support overlays, so files are copied for each step, which is slower"
        } else {
            "overlay mounts work on the store's file system"
        };
        lines.push(ReportLine::good("snapshots", found.into()));
        lines
    }
}

/// Enters a builder process and assembles a snapshot in the store, as a build does.
fn trial(settings: &Settings) -> Result<Findings, Failure> {
    let store = settings.open()?;
    let (reader, mut writer) = std::io::pipe().map_err(unread)?;
    enter(&store_config(&store), settings.isolation, |builder| {
        use std::io::Write;
        let result = builder.map_err(BuildError::from).and_then(|builder| {
            let copies = snapshots(&store, &builder)? == SnapshotBackend::Copies;
            let mode = builder.isolation.runner_mode();
            let obstacle = builder.check_interception().err();
            Ok(Findings { mode, copies, outer_processes: builder.shows_outer_processes(), obstacle })
        });
        let answer = result.map_err(Failure::from);
        let _ = writer.write_all(&serde_json::to_vec(&answer).unwrap_or_default());
        i32::from(answer.is_err())
    })?;
    drop(writer);
    read_answer::<Result<Findings, Failure>>(reader)?
}

fn snapshots(store: &Store, builder: &Builder) -> Result<SnapshotBackend, BuildError> {
    let store = store_in_builder(builder, store)?;
    let work = Workspace::open(&store)?;
    rbuild_engine::snapshots(builder, &work)
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::assert_recorded;

    use super::*;

    #[test]
    fn findings_are_as_recorded() {
        let modes = [
            ("root", RunnerMode::Container, true),
            ("an ordinary user", RunnerMode::Container, false),
            ("a user without sub-IDs", RunnerMode::Emulated, false),
            ("chroot", RunnerMode::Chroot, true),
        ];
        let mut text = String::new();
        for (title, mode, is_root) in modes {
            for (with, limited) in [("", false), (", in a container that masks /proc, on an overlay", true)] {
                let found = Findings { mode, copies: limited, outer_processes: limited, obstacle: None };
                let lines: String = found.lines(is_root).iter().map(ReportLine::text).collect();
                let networks: String = networks(mode, carried_by("pasta")).iter().map(ReportLine::text).collect();
                text += &format!("=== {title}{with}\n{}{lines}{networks}", summary(Some(mode)));
            }
        }
        text += "=== limits\n";
        let tried: [fn(GroupLimits) -> Result<(), GroupProblem>; 3] = [
            |_| Ok(()),
            |_| Err(GroupProblem::NotDelegated),
            |limits| limits.processes.map_or(Ok(()), |_| Err(GroupProblem::NoController("pids"))),
        ];
        text += &tried.map(|try_limit| limits(try_limit).text()).concat();
        let lines = vec![ReportLine::bad("isolated", "no program".into(), Some(&IsolationRemedy::UnmaskProc.into()))];
        let report = DoctorReport { lines, mode: None, code: code::REFUSED };
        assert_recorded!("doctor", format!("{text}=== none\n{}=== JSON\n{}", report.text(), report.json()));
    }
}
