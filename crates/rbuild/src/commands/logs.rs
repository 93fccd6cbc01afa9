//! The verb `logs`: lists recent builds and prints the output of their steps.

use std::io::Write;

use rbuild_remedy::Remedy;
use rbuild_store::{BuildLog, StepLog, Store};

use crate::args::LogsArgs;
use crate::commands::images::ago;
use crate::exit::{Failure, code};
use crate::input::settings::Settings;
use crate::ui::hints::VerbRemedy;
use crate::ui::terminal;

pub fn logs(settings: &Settings, args: LogsArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let all = store.logs().build_logs()?;
    let Some(wanted) = &args.build else {
        let row = |b: &BuildLog| {
            vec![
                b.id.to_string(),
                ago(b.started),
                b.status.word().to_string(),
                format!("{:.1}s", b.seconds),
                b.result.clone(),
            ]
        };
        let rows: Vec<Vec<String>> = all.iter().map(row).collect();
        terminal::out(&terminal::table(&["BUILD", "STARTED", "STATUS", "DURATION", "RESULT"], &rows));
        return Ok(code::OK);
    };
    let found =
        if wanted == "latest" { all.first() } else { all.iter().find(|b| b.id.as_str().starts_with(wanted.as_str())) };
    let Some(build) = found else {
        return Err(Failure::new(format!("build `{wanted}` has no log")).help(VerbRemedy::ListBuilds));
    };
    for step in steps(build, args.step.as_deref())? {
        show(&store, build, step)?;
    }
    Ok(code::OK)
}

/// Returns the steps with a label, or all steps if `label` is `None`. The label may omit the name
/// of the stage.
///
/// # Errors
///
/// Fails if no step has that label.
fn steps<'a>(build: &'a BuildLog, label: Option<&str>) -> Result<Vec<&'a StepLog>, Failure> {
    let Some(wanted) = label else { return Ok(build.steps.iter().collect()) };
    let is_wanted = |s: &&StepLog| s.label == wanted || s.label.ends_with(&format!(" {wanted}"));
    let found: Vec<&StepLog> = build.steps.iter().filter(is_wanted).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let failure = Failure::new(format!("build {} has no step `{wanted}`", build.id));
    let labels: Vec<String> = build.steps.iter().map(|s| s.label.clone()).collect();
    Err(if labels.is_empty() { failure } else { failure.help(Remedy::UseOneOf { words: labels }) })
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
        }
    }

    #[test]
    fn labels_select_steps_with_or_without_the_stage() {
        let build = build(&["base 1/2", "base 2/2", "test 1/2"]);
        for (label, found) in [(None, 3), (Some("base 1/2"), 1), (Some("1/2"), 2), (Some("2/2"), 1)] {
            assert_eq!(steps(&build, label).map(|steps| steps.len()).ok(), Some(found), "{label:?}");
        }
    }

    #[test]
    fn unknown_steps_are_refused_as_recorded() {
        let text = [&["base 1/2", "base 2/2"][..], &[]]
            .map(|labels| steps(&build(labels), Some("3/2")).expect_err("no such step").text());
        rbuild_testkit::assert_recorded!("logs", text.concat());
    }
}
