//! `--verify`: builds twice and reports the first difference between the results.

use rbuild_engine::{BuildRequest, Difference, Export, Finished, FinishedImage, ImageForm, first_difference};

use crate::args::BuildArgs;
use crate::commands::build_once::{BuildOnce, Ended, Reports, conclude};
use crate::exit::{Failure, code};
use crate::input::request::BuildInput;
use crate::progress::Mode;
use crate::ui::terminal;

/// Seconds by which the clock of the second build is behind that of the first. Behind, not ahead:
/// files that look recently modified are then trusted less, never more.
const BEHIND: i64 = 100_000;

/// Builds the request, builds it again one step at a time with another clock, both without cache,
/// and compares the images. Outputs and names get the first result.
pub fn verify(
    once: &BuildOnce<'_>,
    args: &BuildArgs,
    mut first: BuildRequest,
    reports: &Reports,
) -> Result<Ended, Failure> {
    let store = once.store;
    if args.context == "-" || args.file.as_deref() == Some("-") {
        let failure =
            Failure::usage("--verify reads the Dockerfile and the context twice, but standard input only once");
        return Err(failure.help("pass the Dockerfile and the context as paths"));
    }
    let mut second = BuildInput::read(args, store)?.request;
    let form =
        first.wants().images.first().copied().unwrap_or(ImageForm { squash: first.squash, ..ImageForm::of_store() });
    first.salt = Some(format!("{} first", first.build_id));
    first.exports.push(Export::Store { form });
    second.salt = Some(format!("{} second", first.build_id));
    second.exports = vec![Export::Store { form }];
    second.tags.clear();
    second.jobs = 1;
    second.now = first.now - BEHIND;
    second.build_id = format!("{}-again", first.build_id);
    let mut manifests = Vec::new();
    for request in [&first, &second] {
        match once.build(request)? {
            Ended::Made(finished) => manifests.extend(finished.image.map(|image| image.manifest)),
            failed => return Ok(failed),
        }
        if manifests.len() == 1 {
            let image = manifests.first().map(|manifest| store.images().image(manifest)).transpose()?;
            let image = image.map(|image| FinishedImage::stored(&image));
            conclude(args, &first, &Finished { image, platforms: manifests.clone() }, reports)?;
        }
    }
    let [a, b] = manifests[..] else { return Err(Failure::new("the two builds produced no images to compare")) };
    let (a, b) = (store.images().image(&a)?, store.images().image(&b)?);
    let Some(difference) = first_difference(store, &a, &b).map_err(|e| Failure::new(e.message()))? else {
        if once.mode != Mode::Quiet {
            terminal::err("verified: two builds without cache produced identical images\n");
        }
        let image = Some(FinishedImage::stored(&a));
        return Ok(Ended::Made(Finished { image, platforms: vec![a.manifest_digest] }));
    };
    let (text, help) = message(&difference);
    terminal::error(&text, help);
    Ok(Ended::Failed(code::FAILED))
}

/// Returns the error for a difference, with its help.
fn message(difference: &Difference) -> (String, Option<&'static str>) {
    let epoch = "set SOURCE_DATE_EPOCH to clamp all times in the result";
    match difference {
        Difference::Configuration { what } => {
            let times = what.contains("created");
            (format!("two builds produced different configurations: {what}"), times.then_some(epoch))
        }
        Difference::Layer { number, of, made_by, path, what } => {
            let what = match what.strip_prefix("time ").and_then(|times| times.split_once(" and ")) {
                Some((a, b)) => format!("time {} and {}", date(a), date(b)),
                None => what.clone(),
            };
            let help = if what.starts_with("time ") {
                epoch
            } else {
                "make the step's command deterministic: look for dates, random numbers, unordered lists and downloads"
            };
            let made_by: String = made_by.chars().take(100).collect();
            (
                format!(
                    "two builds produced different files: /{path} in layer {number} of {of}, made by `{made_by}`: {what}"
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
