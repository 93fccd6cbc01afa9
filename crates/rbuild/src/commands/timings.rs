//! `--timings`: collects the facts for the page of a build, and writes it.

use std::io::{Read, Seek, SeekFrom};

use rbuild_engine::{BuildReport, BuildRequest};
use rbuild_image::{ManifestDigest, hide_logins, human_size};
use rbuild_linux::Destination;
use rbuild_sandbox::isolation;
use rbuild_store::{BuildLog, StepLog, Store};

use crate::commands::build_once::BuildOnce;
use crate::commands::images::image_size;
use crate::exit::Failure;
use crate::input::output;
use crate::ui::timings_html::TimingsPage;
use rbuild_engine::without_escapes;

/// Maximum size in bytes of the output of a step on the page. The last lines are shown.
const MAX_OUTPUT: u64 = 32 << 10;

/// Writes the page of the build that has just ended, whether it succeeded or failed.
pub fn write(
    once: &BuildOnce<'_>,
    request: &BuildRequest,
    report: Option<&BuildReport>,
    dest: &Destination,
) -> Result<(), Failure> {
    let logs = once.store.logs().build_logs()?;
    let Some(build) = logs.iter().find(|log| log.id == request.build_id) else { return Ok(()) };
    let secrets = request.secret_values();
    let facts = facts(once, request, report, build).into_iter();
    let page = TimingsPage {
        build,
        source: once.source,
        facts: facts.map(|(name, value)| (name, secrets.mask(value))).collect(),
        hide: &|text| hide_logins(&secrets.mask(text.to_string())).to_string(),
        output: build.steps.iter().filter_map(|step| Some((step.step, output_of(once.store, build, step)?))).collect(),
    };
    dest.write(page.html().as_bytes()).map_err(|e| output::unwritten("the timings", &dest.path(), e))
}

/// Returns the facts about a build that are listed at the top of the page.
fn facts(
    once: &BuildOnce<'_>,
    request: &BuildRequest,
    report: Option<&BuildReport>,
    build: &BuildLog,
) -> Vec<(&'static str, String)> {
    let context = request.context.as_ref().map(|context| context.path.display().to_string());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|name| name.trim().to_string());
    let isolation = isolation(once.settings.isolation).ok().map(|isolation| isolation.name().to_string());
    let facts = [
        ("Size", report.and_then(|report| sizes(once.store, report))),
        ("Started", started(build.started)),
        ("Dockerfile", Some(request.dockerfile_name.clone())),
        ("Context", context),
        ("Host", host),
        ("Isolation", isolation),
        ("Jobs", Some(request.jobs.to_string())),
        ("Build", Some(build.id.to_string())),
        ("Version", Some(format!("rbuild {}", env!("CARGO_PKG_VERSION")))),
    ];
    facts.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// Returns the size of the image, and that of the image that it is built on.
fn sizes(store: &Store, report: &BuildReport) -> Option<String> {
    let size = |manifest: &ManifestDigest| image_size(store, &store.images().image(manifest).ok()?).ok();
    let whole = size(&report.image.filter(|image| image.is_stored)?.manifest)?;
    let base = report.base.as_ref().and_then(size).map(|base| format!(", {} of it from its base", human_size(base)));
    Some(format!("{}{}", human_size(whole), base.unwrap_or_default()))
}

/// Formats a time of day in the time zone of this machine.
fn started(seconds: i64) -> Option<String> {
    let time = jiff::Timestamp::from_second(seconds).ok()?.to_zoned(jiff::tz::TimeZone::system());
    Some(time.strftime("%Y-%m-%d %H:%M:%S %:z").to_string())
}

/// Returns the last lines of the output of a step, if it printed any.
fn output_of(store: &Store, build: &BuildLog, step: &StepLog) -> Option<String> {
    let mut log = store.logs().step_log(&build.id, step.step).ok()??;
    let length = log.seek(SeekFrom::End(0)).ok()?;
    log.seek(SeekFrom::Start(length.saturating_sub(MAX_OUTPUT))).ok()?;
    let mut bytes = Vec::new();
    log.read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<String> = text.lines().map(last_version).collect();
    if length > MAX_OUTPUT {
        // The first one is incomplete.
        lines[0] = "…".into();
    }
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// Returns a line as a terminal finally shows it: the part after the last carriage return.
fn last_version(line: &str) -> String {
    without_escapes(line.rsplit('\r').find(|part| !part.is_empty()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_shown_as_on_a_terminal() {
        assert_eq!(last_version("10 %\r\u{1b}[31m99 %\u{1b}[0m\r"), "99 %");
        assert_eq!(last_version(""), "");
        assert!(started(0).is_some_and(|time| time.starts_with("19") && time.contains(':')), "{:?}", started(0));
    }
}
