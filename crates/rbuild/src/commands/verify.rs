//! `--verify`: the same build twice, and in what the results differ.

use rbuild_engine::{BuildError, BuildRequest, Difference, ImageForm, Output, OutputKind, Target, first_difference};
use rbuild_store::Store;

use crate::args::BuildArgs;
use crate::commands::build::{Ended, Reports, conclude, once};
use crate::exit::{Failure, code};
use crate::input::request::BuildInput;
use crate::input::settings::Settings;
use crate::progress::Mode;
use crate::ui::terminal;

/// Seconds between the clocks of the two builds. The second one is behind: what files looked like "just now" is then trusted
/// less, never more.
const BEHIND: i64 = 100_000;

/// Builds what was asked for, then once more with one step at a time and another clock, both without the cache, and
/// compares. The first result is the one that outputs and names get.
pub fn verify(
    settings: &Settings,
    args: &BuildArgs,
    mut first: BuildRequest,
    store: &Store,
    mode: Mode,
    reports: &Reports,
    report: &dyn Fn(&BuildError) -> u8,
) -> Result<Ended, Failure> {
    if args.context == "-" || args.file.as_deref() == Some("-") {
        let failure = Failure::usage("--verify reads what it builds twice, and standard input can be read once");
        return Err(failure.help("give the Dockerfile and the context as files"));
    }
    let mut second = BuildInput::read(args, store, first.recorded_owners)?.request;
    let form = first.forms().first().copied().unwrap_or(ImageForm { squash: first.squash, ..ImageForm::of_store() });
    let image = || Output { kind: OutputKind::Image, target: Target::Store, form, delete: false, split: None };
    first.salt = Some(format!("{} first", first.build_id));
    first.outputs.push(image());
    second.salt = Some(format!("{} second", first.build_id));
    second.outputs = vec![image()];
    second.tags.clear();
    second.jobs = 1;
    second.now = first.now - BEHIND;
    second.build_id = format!("{}-again", first.build_id);
    let mut manifests = Vec::new();
    for request in [&first, &second] {
        match once(settings, args, request, store, mode, report)? {
            Ended::Made(finished) => manifests.extend(finished.image.map(|(_, manifest)| manifest)),
            failed => return Ok(failed),
        }
        if manifests.len() == 1 {
            let image = manifests.first().map(|manifest| store.image(manifest)).transpose()?;
            let image = image.map(|image| (image.id, image.manifest_digest));
            conclude(args, &first, store, &rbuild_engine::Finished { image }, reports)?;
        }
    }
    let [a, b] = manifests[..] else { return Err(Failure::new("the two builds made no images to compare")) };
    let (a, b) = (store.image(&a)?, store.image(&b)?);
    let Some(difference) = first_difference(store, &a, &b).map_err(|e| Failure::new(e.message()))? else {
        if mode != Mode::Quiet {
            terminal::err("verified: two builds without cache gave the same bytes\n");
        }
        let image = Some((a.id, a.manifest_digest));
        return Ok(Ended::Made(rbuild_engine::Finished { image }));
    };
    let (text, help) = told(&difference);
    terminal::error(&text, help);
    Ok(Ended::Failed(code::FAILED))
}

fn told(difference: &Difference) -> (String, Option<&'static str>) {
    let epoch = "give SOURCE_DATE_EPOCH: no time in the result is later then";
    match difference {
        Difference::Configuration { what } => {
            let times = what.contains("created");
            (format!("two builds gave different configurations: {what}"), times.then_some(epoch))
        }
        Difference::Layer { number, of, made_by, path, what } => {
            let what = match what.strip_prefix("time ").and_then(|times| times.split_once(" and ")) {
                Some((a, b)) => format!("time {} and {}", date(a), date(b)),
                None => what.clone(),
            };
            let help = if what.starts_with("time ") {
                epoch
            } else {
                "the step's command does not do the same each time: look for dates, random numbers, lists in no order, and \
                 what comes from the network"
            };
            let made_by: String = made_by.chars().take(100).collect();
            (
                format!(
                    "two builds gave different files: /{path} in layer {number} of {of}, made by `{made_by}`: {what}"
                ),
                Some(help),
            )
        }
    }
}

fn date(seconds: &str) -> String {
    let time = seconds.parse().ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
    time.map_or(seconds.to_string(), |t| t.to_string())
}
