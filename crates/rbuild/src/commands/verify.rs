//! `--verify`: builds twice and reports the first difference between the results.

use std::time::Duration;

use rbuild_dockerfile::{Diagnostic, Help, Span};
use rbuild_engine::{
    BuildReport, BuildRequest, Difference, EntryChange, Export, FinishedImage, ImageForm, first_difference,
};
use rbuild_image::{ImageId, Platform};
use rbuild_plan::NoCache;
use rbuild_store::{Image, NamedImage, Store};

use crate::args::BuildArgs;
use crate::commands::build_once::{BuildOnce, BuildOutcome, Reports, conclude};
use crate::exit::{Failure, code};
use crate::input::request::{BuildInput, InputReader};
use crate::progress::Mode;
use crate::ui::diagnostics::{self, SourceText};
use crate::ui::hints::{Hint, InputRemedy, VerbRemedy};
use crate::ui::terminal;

/// The reason why two builds cannot be compared, or why their result cannot be kept.
#[derive(Debug, Clone, Copy)]
enum NotVerified {
    ContextChanged,
    NoImages,
    /// The Dockerfile or the context is standard input.
    StandardInput,
}

impl From<NotVerified> for Failure {
    fn from(reason: NotVerified) -> Failure {
        match reason {
            NotVerified::ContextChanged => {
                Failure::new("the build context changed after the two builds were compared").help(VerbRemedy::RunAgain)
            }
            NotVerified::NoImages => Failure::new("the two builds produced no images to compare"),
            NotVerified::StandardInput => {
                Failure::usage("--verify reads the Dockerfile and the context twice, but standard input only once")
                    .help(InputRemedy::PassBothAsPaths)
            }
        }
    }
}

/// Seconds by which the clock of the second build is set back. It is not set forward: recently
/// modified files would then appear old enough to be cached.
const CLOCK_LAG: i64 = 100_000;

/// Time between the two builds. Commands see the real clock, and many of them write its seconds.
const PAUSE: Duration = Duration::from_secs(1);

/// Builds the request twice without cache, the second time one step at a time and with another
/// clock, and compares the images. If they are equal, the first result is written and named;
/// otherwise nothing is. Without SOURCE_DATE_EPOCH, times are limited to that of the second clock:
/// files that steps write would otherwise differ in their times.
pub fn verify(
    once: &BuildOnce<'_>,
    inputs: InputReader<'_>,
    mut request: BuildRequest,
    reports: &Reports,
) -> Result<BuildOutcome, Failure> {
    let trials = VerifyBuilds::of(inputs, &request)?;
    let before = once.store.images().list()?;
    let mut made = Vec::new();
    let compared = trials.compare(once, &mut made);
    let images: Vec<FinishedImage> = made.iter().filter_map(|report| report.image).collect();
    forget_new(once.store, &before, &images)?;
    let verified = match compared? {
        Compared::Equal(images) => images,
        Compared::Failed(code) => return Ok(BuildOutcome::Failed(code)),
    };
    let first = &made[0];
    if !matches!(once.mode, Mode::Quiet | Mode::RawJson) {
        terminal::err(&equal(first.epoch.filter(|_| first.epoch == Some(default_epoch(&request)))));
    }
    // With the salt of the first build, this build is answered from the cache.
    request.salt.clone_from(&trials.first.request.salt);
    request.parameters.no_cache = NoCache::None;
    request.parameters.default_epoch = Some(default_epoch(&request));
    let quiet = BuildOnce { mode: Mode::Quiet, explain: false, ..*once };
    let BuildOutcome::Made(finished) = quiet.build(&request)? else { return Ok(BuildOutcome::Failed(code::FAILED)) };
    let written = image_ids(once.store, &finished)?;
    if !written.is_empty() && written != verified {
        let failure = Failure::from(NotVerified::ContextChanged);
        record_failure(once.store, &request, &failure.message);
        return Err(failure);
    }
    let duration = made.iter().map(|report| report.duration).sum();
    let finished = BuildReport { steps: first.steps, duration, ..finished };
    conclude(once.store, inputs.args, &request, &finished, reports)?;
    Ok(BuildOutcome::Made(finished))
}

/// The two builds to compare. Both keep their images in the store, without a name.
struct VerifyBuilds {
    first: BuildInput,
    second: BuildInput,
}

enum Compared {
    /// The images of all platforms, in the order of the request.
    Equal(Vec<ImageId>),
    /// The exit code. The error has been printed.
    Failed(u8),
}

impl VerifyBuilds {
    fn of(inputs: InputReader<'_>, request: &BuildRequest) -> Result<VerifyBuilds, Failure> {
        let unset = ImageForm { squash: request.squash, ..ImageForm::of_store() };
        let form = request.requirements().images.first().copied().unwrap_or(unset);
        let trial = |number| {
            let mut input = inputs.read()?;
            let trial = &mut input.request;
            trial.build_id = request.build_id.part(number);
            trial.salt = Some(format!("{} {number}", request.build_id));
            trial.now = request.now;
            trial.parameters.default_epoch = Some(default_epoch(request));
            trial.exports = vec![Export::Store { form }];
            trial.tags.clear();
            // The result of the first build must stay until it is written.
            trial.cache_limit = None;
            Ok::<_, Failure>(input)
        };
        let (first, mut second) = (trial("first")?, trial("second")?);
        second.request.jobs = 1;
        second.request.now -= CLOCK_LAG;
        Ok(VerifyBuilds { first, second })
    }

    /// Builds both and compares them. Appends their reports to `made`.
    fn compare(&self, once: &BuildOnce<'_>, made: &mut Vec<BuildReport>) -> Result<Compared, Failure> {
        let store = once.store;
        for (number, (title, input)) in [("first", &self.first), ("second", &self.second)].into_iter().enumerate() {
            if number > 0 {
                std::thread::sleep(PAUSE);
            }
            if !matches!(once.mode, Mode::Quiet | Mode::RawJson) {
                terminal::err(&format!("{title} build\n"));
            }
            match once.build(&input.request)? {
                BuildOutcome::Made(finished) => made.push(finished),
                BuildOutcome::Failed(code) => return Ok(Compared::Failed(code)),
                BuildOutcome::Waited => return Ok(Compared::Failed(code::FAILED)),
            }
        }
        let images = made.iter().map(|report| images(store, report)).collect::<Result<Vec<_>, _>>()?;
        let (a, b) = match &images[..] {
            [a, b] if !a.is_empty() && a.len() == b.len() => (a, b),
            _ => {
                let failure = Failure::from(NotVerified::NoImages);
                record_failure(store, &self.second.request, &failure.message);
                return Err(failure);
            }
        };
        for (of_first, of_second) in a.iter().zip(b) {
            let found = first_difference(store, of_first, of_second).map_err(|e| Failure::new(e.message()))?;
            let Some(difference) = found else { continue };
            let place = made.first().and_then(|report| place(&difference, &report.layer_places));
            let platform = (a.len() > 1).then(|| of_first.platform());
            let error = VerifyError { difference: &difference, platform, place };
            record_failure(store, &self.second.request, &error.message().0);
            terminal::err(&error.text(once.source, terminal::colors()));
            return Ok(Compared::Failed(code::FAILED));
        }
        Ok(Compared::Equal(a.iter().map(|image| image.id).collect()))
    }
}

/// Returns the images of all platforms, in the order of the request.
fn images(store: &Store, report: &BuildReport) -> Result<Vec<Image>, Failure> {
    Ok(report.platforms.iter().map(|manifest| store.images().image(manifest)).collect::<Result<_, _>>()?)
}

/// Returns the IDs of the images of all platforms, in the order of the request. An image that was
/// only written to an archive need not be in the store.
fn image_ids(store: &Store, report: &BuildReport) -> Result<Vec<ImageId>, Failure> {
    match report.platforms.len() {
        0 | 1 => Ok(report.image.iter().map(|image| image.id).collect()),
        _ => Ok(images(store, report)?.iter().map(|image| image.id).collect()),
    }
}

/// Records in the log of a build that it differs from the one before. Without it, the log would
/// show two successful builds.
fn record_failure(store: &Store, request: &BuildRequest, message: &str) {
    let message = request.secret_values().mask(message.to_string());
    if let Err(e) = store.logs().record_failure(&request.build_id, &message) {
        tracing::debug!(target: "engine", error = rbuild_remedy::sentence(&e), "the failure is not in the log");
    }
}

/// Removes those of the untagged images `made` that did not exist `before`.
fn forget_new(store: &Store, before: &[NamedImage], made: &[FinishedImage]) -> Result<(), Failure> {
    let is_made = |image: &NamedImage| made.iter().any(|found| found.manifest == image.manifest);
    let is_new = |image: &NamedImage| image.name.is_none() && is_made(image) && !before.contains(image);
    let new: Vec<NamedImage> = store.images().list()?.into_iter().filter(is_new).collect();
    Ok(store.images().forget(&new)?)
}

/// Fails if the Dockerfile or the context comes from standard input.
pub fn refuse_standard_input(args: &BuildArgs) -> Result<(), Failure> {
    if args.context == "-" || args.file.as_deref() == Some("-") {
        return Err(NotVerified::StandardInput.into());
    }
    Ok(())
}

/// Returns the place of the instruction that made the layer with a difference. `places` are those
/// of the image's own layers, which are above the layers of its base.
fn place(difference: &Difference, places: &[(usize, usize)]) -> Option<Span> {
    let Difference::Layer { number, of, .. } = difference else { return None };
    let (start, end) = *places.get(places.len().checked_sub(of - number + 1)?)?;
    Some(Span::new(start, end))
}

/// The error for a difference.
struct VerifyError<'a> {
    difference: &'a Difference,
    /// The platform of the images, if the builds are for several.
    platform: Option<Platform>,
    /// The place of the instruction, if it is known.
    place: Option<Span>,
}

impl VerifyError<'_> {
    /// Formats the error, with an excerpt of the Dockerfile if the instruction is known.
    fn text(&self, source: &SourceText<'_>, colors: bool) -> String {
        let (text, help) = self.message();
        let help = help.map(Hint::from);
        match self.place {
            Some(span) => {
                let error = Diagnostic { help: help.map(Help::from), ..Diagnostic::new(span, text) };
                diagnostics::diagnostic(&error, source, colors)
            }
            None => terminal::error_text(&text, help.as_ref(), colors),
        }
    }

    /// Returns the message and the help. The instruction is quoted unless its place is known.
    fn message(&self) -> (String, Option<VerbRemedy>) {
        let platform = self.platform.as_ref().map_or(String::new(), |platform| format!(" for {platform}"));
        match self.difference {
            Difference::Manifest => (format!("two builds produced different manifests{platform}"), None),
            Difference::LayerCount(a, b) => {
                (format!("two builds produced images{platform} of {a} and {b} layers"), None)
            }
            Difference::Configuration { field, values: (a, b) } => {
                let is_time = field.name() == Some("created");
                let text = format!("two builds produced different configurations{platform}: {field} is {a} and {b}");
                (text, is_time.then_some(VerbRemedy::ClampTimes))
            }
            Difference::Layer { number, of, made_by, path, change } => {
                let made_by: String = made_by.chars().take(100).collect();
                let made_by = if self.place.is_some() { String::new() } else { format!(", made by `{made_by}`") };
                let (change, help) = change_words(change);
                let file = format!("/{path} in layer {number} of {of}{made_by}");
                (format!("two builds produced different files{platform}: {file}: {change}"), Some(help))
            }
        }
    }
}

/// Returns the bound for times in a build without SOURCE_DATE_EPOCH.
fn default_epoch(request: &BuildRequest) -> i64 {
    request.now - CLOCK_LAG
}

/// Returns the report of equal results. `epoch` is the bound for times if the user has set none.
fn equal(epoch: Option<i64>) -> String {
    let bound = epoch.map_or(String::new(), |epoch| {
        let date = date(epoch);
        format!("note: SOURCE_DATE_EPOCH is not set; no time in the image is later than {epoch} ({date})\n")
    });
    format!("verified: two builds without cache produced identical images\n{bound}")
}

fn change_words(change: &EntryChange) -> (String, VerbRemedy) {
    let words = match change {
        EntryChange::Time(a, b) => return (format!("time {} and {}", date(*a), date(*b)), VerbRemedy::ClampTimes),
        EntryChange::OnlyInFirst => "only in the first".into(),
        EntryChange::OnlyInSecond => "only in the second".into(),
        EntryChange::Property { name, values: (a, b) } => format!("{name} {a} and {b}"),
        EntryChange::Content(byte) => format!("content differs from byte {byte} on"),
        EntryChange::Padding => "bytes of the archive that belong to no file".into(),
    };
    (words, VerbRemedy::BeDeterministic)
}

fn date(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or(seconds.to_string(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use rbuild_engine::FieldPath;
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;

    fn error(difference: &Difference, place: Option<Span>) -> VerifyError<'_> {
        VerifyError { difference, platform: None, place }
    }

    #[test]
    fn only_differences_in_time_suggest_source_date_epoch() {
        let layer = |change| Difference::Layer { number: 1, of: 2, made_by: "RUN x".into(), path: "a".into(), change };
        let field =
            |name: &str| Difference::Configuration { field: FieldPath::of(name), values: ("1".into(), "2".into()) };
        let mode = EntryChange::Property { name: "mode", values: ("644".into(), "600".into()) };
        let files = "two builds produced different files: /a in layer 1 of 2, made by `RUN x`";
        let cases = [
            (
                layer(EntryChange::Time(0, 1)),
                format!("{files}: time 1970-01-01T00:00:00Z and 1970-01-01T00:00:01Z"),
                true,
            ),
            (layer(mode), format!("{files}: mode 644 and 600"), false),
            (field("created"), "two builds produced different configurations: created is 1 and 2".into(), true),
            (field("os"), "two builds produced different configurations: os is 1 and 2".into(), false),
            (Difference::LayerCount(1, 2), "two builds produced images of 1 and 2 layers".into(), false),
        ];
        for (difference, words, clamps) in cases {
            let (text, help) = error(&difference, None).message();
            assert_eq!((text, help == Some(VerbRemedy::ClampTimes)), (words, clamps));
        }
    }

    #[test]
    fn differences_are_as_recorded() {
        let changes = [
            EntryChange::Time(0, 1),
            EntryChange::OnlyInFirst,
            EntryChange::OnlyInSecond,
            EntryChange::Property { name: "mode", values: ("644".into(), "600".into()) },
            EntryChange::Content(7),
            EntryChange::Padding,
        ];
        let layer = |change| Difference::Layer { number: 1, of: 2, made_by: "RUN x".into(), path: "a".into(), change };
        let field =
            |name: &str| Difference::Configuration { field: FieldPath::of(name), values: ("1".into(), "2".into()) };
        let others = [Difference::Manifest, Difference::LayerCount(1, 2), field("created"), field("os")];
        let texts = changes.into_iter().map(layer).chain(others).map(|difference| {
            let (text, help) = error(&difference, None).message();
            help.map_or(text.clone(), |help| format!("{text}\n  hint: {}", Hint::from(help)))
        });
        let source = SourceText::new("Dockerfile", "FROM base\nRUN date > /a\nCMD x\n");
        let difference = layer(EntryChange::Content(7));
        let shown = error(&difference, Some(Span::new(10, 23))).text(&source, false);
        let several = [difference, Difference::Manifest, Difference::LayerCount(1, 2), field("os")];
        let several = several.each_ref().map(|difference| {
            let platform = Some("linux/arm64".parse().unwrap());
            VerifyError { platform, ..error(difference, None) }.text(&source, false)
        });
        assert_recorded!("verify", texts.collect::<Vec<_>>().join("\n") + "\n" + &shown + &several.concat());
    }

    #[test]
    fn the_instruction_of_a_layer_is_found_above_those_of_the_base() {
        let places = [(10, 23), (24, 30)];
        for (number, of, expected) in
            [(1, 2, Some(10)), (2, 2, Some(24)), (4, 4, Some(24)), (3, 4, Some(10)), (2, 4, None)]
        {
            let change = EntryChange::Padding;
            let difference = Difference::Layer { number, of, made_by: String::new(), path: "a".into(), change };
            assert_eq!(place(&difference, &places).map(|span| span.start), expected, "{number} of {of}");
        }
        assert_eq!(place(&Difference::Manifest, &places), None);
    }

    #[test]
    fn other_results_are_as_recorded() {
        let reasons = [NotVerified::ContextChanged, NotVerified::NoImages, NotVerified::StandardInput];
        let variants = variants!(NotVerified { ContextChanged, NoImages, StandardInput });
        let text = variants.words(&reasons, |reason| Failure::from(*reason).text());
        assert_recorded!("verify-results", text + &equal(None) + &equal(Some(86_400)));
    }
}
