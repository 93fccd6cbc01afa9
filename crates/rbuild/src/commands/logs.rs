//! The verb `logs`: prints the output of containers and of the steps of builds, and lists recent
//! builds.

use std::collections::BTreeSet;
use std::io::{Read, Write};

use rbuild_dockerfile::Help;
use rbuild_engine::Warning;
use rbuild_remedy::Remedy;
use rbuild_store::{BuildLog, StepLog, Store, StoreError};
use serde_json::{Value, json};

use crate::args::LogsArgs;
use crate::commands::containers;
use crate::commands::images::{ago, bad_format};
use crate::exit::{Failure, code};
use crate::input::settings::Settings;
use crate::template;
use crate::ui::hints::{Hint, UsageRemedy, VerbRemedy};
use crate::ui::terminal;

pub fn logs(settings: &Settings, args: LogsArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let all = store.logs().build_logs()?;
    let container = args.name.as_deref().map(|name| store.containers().find_container(name)).transpose()?.flatten();
    if let (Some(container), Some(wanted)) = (container, &args.name)
        && !all.iter().any(|build| build.id.as_str() == wanted)
    {
        if !matches!(find(&all, wanted), Ok(None)) {
            terminal::warning(ambiguous(wanted));
        }
        if args.format.is_some() {
            return Err(Failure::usage("--format applies to builds, but not to containers"));
        }
        return containers::output::show(store, &container, &args);
    }
    let Some(wanted) = &args.name else {
        if args.follow {
            let failure = Failure::usage("`rbuild logs -f` requires a container");
            return Err(failure.help(UsageRemedy::NameContainer));
        }
        let most = args.tail.and_then(|lines| lines.0).unwrap_or(usize::MAX);
        let rows: Vec<Value> =
            all.iter().filter(|build| is_within(build, &args)).take(most).map(row_of_build).collect();
        print_rows(args.format.as_deref().unwrap_or(BUILDS), BUILDS, &rows)?;
        return Ok(code::OK);
    };
    if args.since.is_some() || args.until.is_some() {
        let problem = "--since and --until apply to containers and to the list of builds, but not to the output of one";
        return Err(Failure::usage(problem).help(VerbRemedy::SelectStep));
    }
    let Some(build) = find(&all, wanted)? else {
        return Err(Failure::new(format!("no container or build `{wanted}` has a log")).help(VerbRemedy::ListLogs));
    };
    let steps = steps(build, args.step.as_deref())?;
    if let Some(format) = &args.format {
        let rows = steps.into_iter().map(|step| row_of_step(&store, build, step)).collect::<Result<Vec<_>, _>>()?;
        print_rows(format, STEPS, &rows)?;
        return Ok(code::OK);
    }
    for step in steps {
        show(&store, build, step)?;
    }
    Ok(code::OK)
}

/// Columns of the tables of builds and of steps.
const BUILDS: &str = "table {{.Build}}\t{{.Started}}\t{{.Status}}\t{{.Duration}}\t{{.Result}}";
const STEPS: &str = "table {{.Step}}\t{{.Outcome}}\t{{.Duration}}\t{{.Instruction}}";

fn print_rows(format: &str, usual: &str, rows: &[Value]) -> Result<(), Failure> {
    let headings = json!({
        "Build": "BUILD", "Started": "STARTED", "StartedAt": "STARTED AT", "Status": "STATUS", "Result": "RESULT",
        "Step": "STEP", "Instruction": "INSTRUCTION", "Outcome": "OUTCOME", "Duration": "DURATION", "Why": "WHY",
        "Output": "OUTPUT",
    });
    terminal::out(&template::rows_or_table(format, usual, &headings, rows).map_err(bad_format)?);
    Ok(())
}

fn row_of_build(build: &BuildLog) -> Value {
    json!({
        "Build": build.id.to_string(), "Started": ago(build.started),
        "StartedAt": jiff::Timestamp::from_second(build.started).unwrap_or_default().to_string(),
        "Status": build.status.word(), "Duration": format!("{:.1}s", build.seconds), "Result": build.result,
    })
}

fn row_of_step(store: &Store, build: &BuildLog, step: &StepLog) -> Result<Value, Failure> {
    let mut output = Vec::new();
    if let Some(mut log) = store.logs().step_log(&build.id, step.step)? {
        log.read_to_end(&mut output).map_err(|e| Failure::caused("cannot read the log", &e))?;
    }
    Ok(json!({
        "Build": build.id.to_string(), "Step": step.label, "Instruction": step.text, "Outcome": step.outcome.word(),
        "Duration": format!("{:.1}s", step.seconds), "Why": step.reason, "Output": String::from_utf8_lossy(&output),
    }))
}

/// Returns true if a build was started in the time of `--since` and `--until`.
fn is_within(build: &BuildLog, args: &LogsArgs) -> bool {
    let started = i128::from(build.started) * 1_000_000_000;
    args.since.is_none_or(|since| started >= since.0) && args.until.is_none_or(|until| started <= until.0)
}

/// Returns the build with that ID or prefix of an ID, or the last one; `None` if there is none.
///
/// # Errors
///
/// Fails if several builds have the prefix.
fn find<'a>(all: &'a [BuildLog], wanted: &str) -> Result<Option<&'a BuildLog>, Failure> {
    if wanted == "latest" {
        return Ok(all.first());
    }
    if let Some(exact) = all.iter().find(|build| build.id.as_str() == wanted) {
        return Ok(Some(exact));
    }
    match all.iter().filter(|build| build.id.as_str().starts_with(wanted)).collect::<Vec<_>>()[..] {
        [] => Ok(None),
        [only] => Ok(Some(only)),
        ref several => {
            let found: Vec<&str> = several.iter().map(|build| build.id.as_str()).collect();
            let name = wanted.to_string();
            Err(StoreError::Ambiguous { name, found: found.join(", ") }.into())
        }
    }
}

/// Warns that a name belongs to a container and to a build.
fn ambiguous(name: &str) -> Warning<Help> {
    Warning {
        text: format!("`{name}` is a container and a build; this is the output of the container"),
        help: Some(Hint::from(VerbRemedy::PassBuildId).into()),
    }
}

/// Returns the steps with a label, or all steps if `label` is `None`. The label may omit the
/// platform and the name of the stage if only one label ends like that.
///
/// # Errors
///
/// Fails if no step has that label, or if several labels end like that.
fn steps<'a>(build: &'a BuildLog, label: Option<&str>) -> Result<Vec<&'a StepLog>, Failure> {
    let Some(wanted) = label else { return Ok(build.steps.iter().collect()) };
    let exact: Vec<&StepLog> = build.steps.iter().filter(|step| step.label == wanted).collect();
    if !exact.is_empty() {
        return Ok(exact);
    }
    let suffix = format!(" {wanted}");
    let found: Vec<&StepLog> = build.steps.iter().filter(|step| step.label.ends_with(&suffix)).collect();
    let matches: BTreeSet<&String> = found.iter().map(|step| &step.label).collect();
    match matches.len() {
        0 => {
            let failure = Failure::new(format!("build {} has no step `{wanted}`", build.id));
            let words: Vec<String> = build.steps.iter().map(|step| step.label.clone()).collect();
            Err(if words.is_empty() { failure } else { failure.help(Remedy::UseOneOf { words }) })
        }
        1 => Ok(found),
        _ => {
            let failure = Failure::new(format!("build {} has several steps `{wanted}`", build.id));
            Err(failure.help(Remedy::UseOneOf { words: matches.into_iter().cloned().collect() }))
        }
    }
}

fn show(store: &Store, build: &BuildLog, step: &StepLog) -> Result<(), Failure> {
    let StepLog { label, text, outcome, seconds, reason, .. } = step;
    terminal::out(&format!(
        "[{label}] {} ({}, {seconds:.1}s)\n",
        text.lines().next().unwrap_or_default(),
        outcome.word()
    ));
    if let Some(reason) = reason {
        terminal::out(&format!("why: {reason}\n"));
    }
    if let Some(mut log) = store.logs().step_log(&build.id, step.step)? {
        let mut out = std::io::stdout().lock();
        // A closed pipe is not an error.
        let _ = std::io::copy(&mut log, &mut out).and_then(|_| out.flush());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rbuild_store::{BuildStatus, StepOutcome};

    use super::*;

    fn build(labels: &[&str]) -> BuildLog {
        let step = |(number, label): (usize, &&str)| StepLog {
            step: number,
            label: label.to_string(),
            text: "RUN x".into(),
            outcome: StepOutcome::Done,
            began: 0.0,
            seconds: 1.0,
            reason: None,
            inputs: Vec::new(),
        };
        BuildLog {
            id: "abc".parse().expect("a valid ID"),
            result: "x:latest".into(),
            started: 0,
            seconds: 1.0,
            status: BuildStatus::Done,
            steps: labels.iter().enumerate().map(step).collect(),
            phases: Vec::new(),
            layers: Vec::new(),
            failure: None,
        }
    }

    #[test]
    fn labels_select_steps_with_or_without_the_stage() {
        let selected = |labels: &[&str], label: Option<&str>| {
            let build = build(labels);
            steps(&build, label).map(|steps| steps.iter().map(|step| step.step).collect::<Vec<_>>()).ok()
        };
        let stages = ["base 1/2", "base 2/2", "test 1/2"];
        for (label, found) in [
            (None, Some(vec![0, 1, 2])),
            (Some("base 1/2"), Some(vec![0])),
            (Some("1/2"), None),
            (Some("2/2"), Some(vec![1])),
        ] {
            assert_eq!(selected(&stages, label), found, "{label:?}");
        }
        let platforms = ["linux/amd64 a 2/2", "linux/arm64 a 2/2", "linux/arm64 b 1/1"];
        for (label, found) in [
            ("linux/amd64 a 2/2", Some(vec![0])),
            ("linux/arm64 a 2/2", Some(vec![1])),
            ("a 2/2", None),
            ("2/2", None),
            ("b 1/1", Some(vec![2])),
        ] {
            assert_eq!(selected(&platforms, Some(label)), found, "{label}");
        }
        // A complete label is not ambiguous.
        assert_eq!(selected(&["2/2", "a 2/2"], Some("2/2")), Some(vec![0]));
    }

    #[test]
    fn unknown_steps_are_refused_as_recorded() {
        let text = [&["base 1/2", "base 2/2"][..], &[]]
            .map(|labels| steps(&build(labels), Some("3/2")).expect_err("no such step").text());
        let stepped = build(&["linux/amd64 a 2/2", "linux/arm64 a 2/2"]);
        let platforms = steps(&stepped, Some("a 2/2")).expect_err("two steps").text();
        let ambiguous = terminal::warning_text(&ambiguous("abc"), false);
        let several = ["6b0d1", "6b0d2", "6b0d22"].map(|id| BuildLog { id: id.parse().unwrap(), ..build(&[]) });
        let found = |wanted| find(&several, wanted).unwrap().map(|build| build.id.as_str());
        let [newest, exact, prefix, none] = ["latest", "6b0d2", "6b0d1", "7"].map(found);
        assert_eq!((newest, exact, prefix, none), (Some("6b0d1"), Some("6b0d2"), Some("6b0d1"), None));
        let several = find(&several, "6b0d").unwrap_err().text();
        rbuild_testkit::assert_recorded!("logs", text.concat() + &platforms + &ambiguous + &several);
    }
}
