//! `--verify`: builds twice and reports the first difference between the results.

use rbuild_engine::{BuildRequest, Difference, Export, FinishedImage, ImageForm, first_difference};
use rbuild_image::ImageId;
use rbuild_plan::NoCache;
use rbuild_store::{NamedImage, Store};

use crate::args::BuildArgs;
use crate::commands::build_once::{BuildOnce, Ended, Reports, conclude};
use crate::exit::{Failure, code};
use crate::input::request::BuildInput;
use crate::progress::Mode;
use crate::ui::terminal;

/// Seconds by which the clock of the second build is behind that of the first. Behind, not ahead:
/// files that look recently modified are then trusted less, never more.
const BEHIND: i64 = 100_000;

/// Builds the request twice without cache, the second time one step at a time and with another
/// clock, and compares the images. If they are equal, outputs and names get the first result;
/// otherwise nothing is named or written.
pub fn verify(
    once: &BuildOnce<'_>,
    args: &BuildArgs,
    mut request: BuildRequest,
    reports: &Reports,
) -> Result<Ended, Failure> {
    let trials = Trials::of(args, &request, once.store)?;
    let before = once.store.images().list()?;
    let mut made = Vec::new();
    let compared = trials.compare(once, &mut made);
    forget_new(once.store, &before, &made)?;
    let image = match compared? {
        Compared::Equal(image) => image,
        Compared::Failed(code) => return Ok(Ended::Failed(code)),
    };
    if once.mode != Mode::Quiet {
        terminal::err("verified: two builds without cache produced identical images\n");
    }
    // The first build answers this one from the cache.
    request.salt.clone_from(&trials.first.salt);
    request.parameters.no_cache = NoCache::None;
    let quiet = BuildOnce { mode: Mode::Quiet, explain: false, ..*once };
    let Ended::Made(finished) = quiet.build(&request)? else { return Ok(Ended::Failed(code::FAILED)) };
    if finished.image.is_some_and(|found| found.id != image) {
        let failure = Failure::new("the build context changed after the two builds were compared");
        return Err(failure.help("run the command again"));
    }
    conclude(args, &request, &finished, reports)?;
    Ok(Ended::Made(finished))
}

/// The two builds whose results are compared. Both keep their image in the store, without a name.
struct Trials {
    first: BuildRequest,
    second: BuildRequest,
}

enum Compared {
    Equal(ImageId),
    /// The exit code. The error has been printed.
    Failed(u8),
}

impl Trials {
    fn of(args: &BuildArgs, request: &BuildRequest, store: &Store) -> Result<Trials, Failure> {
        let unset = ImageForm { squash: request.squash, ..ImageForm::of_store() };
        let form = request.wants().images.first().copied().unwrap_or(unset);
        let trial = |number: &str| {
            let mut trial = BuildInput::read(args, store)?.request;
            trial.build_id = format!("{}-{number}", request.build_id);
            trial.salt = Some(format!("{} {number}", request.build_id));
            trial.now = request.now;
            trial.exports = vec![Export::Store { form }];
            trial.tags.clear();
            // The result of the first build must stay until it is written.
            trial.cache_limit = None;
            Ok::<_, Failure>(trial)
        };
        let (first, mut second) = (trial("first")?, trial("second")?);
        second.jobs = 1;
        second.now -= BEHIND;
        Ok(Trials { first, second })
    }

    /// Builds both and compares them. Appends their images to `images`.
    fn compare(&self, once: &BuildOnce<'_>, images: &mut Vec<FinishedImage>) -> Result<Compared, Failure> {
        let store = once.store;
        for request in [&self.first, &self.second] {
            match once.build(request)? {
                Ended::Made(finished) => images.extend(finished.image),
                Ended::Failed(code) => return Ok(Compared::Failed(code)),
            }
        }
        let [a, b] = images[..] else {
            return Err(Failure::new("the two builds produced no images to compare"));
        };
        let (a, b) = (store.images().image(&a.manifest)?, store.images().image(&b.manifest)?);
        let Some(difference) = first_difference(store, &a, &b).map_err(|e| Failure::new(e.message()))? else {
            return Ok(Compared::Equal(a.id));
        };
        let (text, help) = message(&difference);
        terminal::error(&text, help);
        Ok(Compared::Failed(code::FAILED))
    }
}

/// Removes the nameless images that were `made` and not there `before`.
fn forget_new(store: &Store, before: &[NamedImage], made: &[FinishedImage]) -> Result<(), Failure> {
    let is_made = |image: &NamedImage| made.iter().any(|found| found.manifest == image.manifest);
    let is_new = |image: &NamedImage| image.name.is_none() && is_made(image) && !before.contains(image);
    let new: Vec<NamedImage> = store.images().list()?.into_iter().filter(is_new).collect();
    Ok(store.images().forget(&new)?)
}

/// Fails if the Dockerfile or the context comes from standard input.
pub fn refuse_standard_input(args: &BuildArgs) -> Result<(), Failure> {
    if args.context == "-" || args.file.as_deref() == Some("-") {
        let failure =
            Failure::usage("--verify reads the Dockerfile and the context twice, but standard input only once");
        return Err(failure.help("pass the Dockerfile and the context as paths"));
    }
    Ok(())
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
