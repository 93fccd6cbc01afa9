//! The verb `logs`: lists recent builds and prints the output of their steps.

use std::io::Write;

use rbuild_remedy::Remedy;
use rbuild_store::{BuildLog, StepLog, Store};

use crate::args::LogsArgs;
use crate::commands::images::ago;
use crate::exit::{Failure, code};
use crate::input::settings::Settings;
use crate::ui::{hints, terminal};

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
                b.what.clone(),
            ]
        };
        let rows: Vec<Vec<String>> = all.iter().map(row).collect();
        terminal::out(&terminal::table(&["BUILD", "STARTED", "STATUS", "DURATION", "RESULT"], &rows));
        return Ok(code::OK);
    };
    let found =
        if wanted == "latest" { all.first() } else { all.iter().find(|b| b.id.as_str().starts_with(wanted.as_str())) };
    let Some(build) = found else {
        return Err(
            Failure::new(format!("build `{wanted}` has no log")).help("run `rbuild logs` to list recent builds")
        );
    };
    let steps: Vec<&StepLog> = match &args.step {
        None => build.steps.iter().collect(),
        Some(step) => {
            build.steps.iter().filter(|s| s.label == *step || s.label.ends_with(&format!(" {step}"))).collect()
        }
    };
    if let (Some(step), true) = (&args.step, steps.is_empty()) {
        let failure = Failure::new(format!("build {} has no step `{step}`", build.id));
        let labels: Vec<String> = build.steps.iter().map(|s| s.label.clone()).collect();
        return Err(match labels.is_empty() {
            true => failure,
            false => failure.help(hints::words(&Remedy::UseOneOf { words: labels })),
        });
    }
    for step in steps {
        show(&store, build, step)?;
    }
    Ok(code::OK)
}

fn show(store: &Store, build: &BuildLog, step: &StepLog) -> Result<(), Failure> {
    let StepLog { label, text, outcome, seconds, why, .. } = step;
    terminal::out(&format!(
        "[{label}] {} ({}, {seconds:.1}s)\n",
        text.lines().next().unwrap_or_default(),
        outcome.word()
    ));
    if let Some(why) = why {
        terminal::out(&format!("why: {why}\n"));
    }
    if let Some(mut log) = store.logs().step_log(&build.id, step.step)? {
        let mut out = std::io::stdout().lock();
        // A closed pipe is not an error.
        let _ = std::io::copy(&mut log, &mut out).and_then(|_| out.flush());
    }
    Ok(())
}
