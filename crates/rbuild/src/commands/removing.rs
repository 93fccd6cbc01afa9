//! Verbs that remove images and cache entries, and that measure and check the store.

use rbuild_engine::Warning;
use rbuild_image::{ManifestDigest, human_size};
use rbuild_linux::Timestamp;
use rbuild_remedy::counted;
use rbuild_sandbox::enter;
use rbuild_store::{Budget, Checked, DanglingImages, Freed, Image, StoreError};
use serde_json::json;

use crate::args::{DfArgs, FsckArgs, ImagePruneArgs, PruneArgs, RmiArgs};
use crate::commands::images::{bad_format, seconds};
use crate::commands::in_builder::{exit_code, moved_store, store_only};
use crate::commands::named::{self, Purpose};
use crate::exit::{Failure, code};
use crate::input::settings::Settings;
use crate::template;
use crate::ui::{hints, terminal};

pub fn rmi(settings: &Settings, args: RmiArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let mut failed = false;
    for wanted in &args.images {
        let (names, gone) = match store.images().untag(wanted, args.force) {
            Ok(done) => done,
            // As in Docker, every name is tried, and with -f a missing image is ignored.
            Err(StoreError::NoImage(_)) if args.force => continue,
            Err(e) => {
                failed = true;
                match e {
                    StoreError::NoImage(_) => named::no_image(&store, wanted, Purpose::Manage).report(),
                    e => Failure::from(e).report(),
                };
                continue;
            }
        };
        names.iter().for_each(|n| terminal::out(&format!("Untagged: {n}\n")));
        if let Some(id) = gone {
            terminal::out(&format!("Deleted: {id}\n"));
        }
    }
    store.gc().sweep_blobs()?;
    Ok(if failed { code::FAILED } else { code::OK })
}

/// Removes images that no container uses: dangling ones, or all with `--all`. Keeps the build
/// cache.
pub fn image_prune(settings: &Settings, args: ImagePruneArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let filters: Vec<PruneFilter> = args.filter.iter().map(|f| PruneFilter::parse(f)).collect::<Result<_, _>>()?;
    let held: Vec<ManifestDigest> = store.containers().list()?.into_iter().map(|c| c.image).collect();
    let pulled = store.images().pulled_by_name()?;
    let mut gone = Vec::new();
    let mut text = String::new();
    for entry in store.images().list()? {
        if (!args.all && !entry.is_dangling(&pulled))
            || entry.artifact.images().iter().any(|image| held.contains(image))
        {
            continue;
        }
        // A damaged image has no creation time or labels, so it passes only if there are no
        // filters.
        let image = store.images().image(&entry.manifest).ok();
        let passes = |f: &PruneFilter| image.as_ref().is_some_and(|image| f.passes(image));
        if filters.iter().all(passes) {
            text += &entry.name.as_ref().map_or(String::new(), |n| format!("untagged: {}\n", n.familiar()));
            gone.push(entry);
        }
    }
    store.images().forget(&gone)?;
    let left: Vec<ManifestDigest> = store.images().list()?.into_iter().map(|e| *e.artifact.digest()).collect();
    gone.dedup_by_key(|e| *e.artifact.digest());
    let deleted = gone.iter().map(|e| e.artifact.digest()).filter(|digest| !left.contains(digest));
    deleted.for_each(|digest| text += &format!("deleted: {digest}\n"));
    let freed = store.gc().sweep_blobs()?;
    let list = if text.is_empty() { String::new() } else { format!("Deleted Images:\n{text}\n") };
    terminal::out(&format!("{list}Total reclaimed space: {}\n", human_size(freed.bytes)));
    Ok(code::OK)
}

/// A `--filter` of `image prune`.
enum PruneFilter {
    /// Created before this time, in seconds since the Unix epoch.
    Until(i64),
    Label(String, Option<String>),
}

impl PruneFilter {
    fn parse(text: &str) -> Result<PruneFilter, Failure> {
        match text.split_once('=') {
            Some(("until", span)) => Ok(PruneFilter::Until(until(text, span)?)),
            Some(("label", label)) => Ok(match label.split_once('=') {
                Some((name, value)) => PruneFilter::Label(name.into(), Some(value.into())),
                None => PruneFilter::Label(label.into(), None),
            }),
            _ => Err(Failure::usage(format!("--filter {text}: unknown filter")).help("use until=24h or label=NAME")),
        }
    }

    fn passes(&self, image: &Image) -> bool {
        match self {
            PruneFilter::Until(time) => seconds(image).is_some_and(|s| s < *time),
            PruneFilter::Label(key, value) => {
                let found = image.config.config.labels.get(key);
                found.is_some_and(|f| value.as_ref().is_none_or(|v| v == f))
            }
        }
    }
}

/// Returns the time a duration such as `24h` ago, in seconds since the Unix epoch.
fn until(filter: &str, span: &str) -> Result<i64, Failure> {
    let bad = |_| Failure::usage(format!("--filter {filter}: `{span}` is not a duration such as 24h"));
    let span: jiff::SignedDuration = span.parse().map_err(bad)?;
    Ok(Timestamp::now().sec - span.as_secs())
}

/// Removes cache entries in a builder process: files owned by sub-IDs can be removed only by root
/// of their user namespace.
///
/// Without a budget, `dangling` decides on dangling images; with one, they are kept.
pub fn prune(settings: &Settings, args: PruneArgs, dangling: DanglingImages) -> Result<u8, Failure> {
    let store = settings.open()?;
    let budget = budget(&args)?;
    let ended = enter(&store_only(&store), settings.isolation, |builder| {
        let pruned = builder.map_err(Failure::from).and_then(|builder| {
            let store = moved_store(&builder, &store)?;
            drop(rbuild_store::Workspace::open(&store)?);
            Ok(match budget {
                Some(budget) => store.gc().collect(budget)?,
                None => store.gc().prune(args.all, dangling)?,
            })
        });
        match pruned {
            Ok(freed) => {
                terminal::out(&freed_text(&freed));
                i32::from(code::OK)
            }
            Err(failure) => i32::from(failure.report()),
        }
    })?;
    Ok(exit_code(ended.code, ended.stopped))
}

/// Returns the budget of `--filter until=` and `--keep-storage`; `None` if neither is set.
fn budget(args: &PruneArgs) -> Result<Option<Budget>, Failure> {
    let mut budget = Budget::default();
    for filter in &args.filter {
        let Some(("until", text)) = filter.split_once('=') else {
            return Err(Failure::usage(format!("--filter {filter}: unknown filter")).help("use until=24h"));
        };
        budget.used_since = Some(until(filter, text)?);
    }
    budget.bytes = args.keep_storage.as_deref().map(|s| crate::input::flags::size("--keep-storage", s)).transpose()?;
    Ok((budget != Budget::default()).then_some(budget))
}

fn freed_text(freed: &Freed) -> String {
    let Freed { images, records, trees, blobs, mounts, beyond_reach, bytes } = freed;
    let kept = match beyond_reach {
        0 => String::new(),
        _ => format!(
            "Kept {} with files of other users; repeat this with `--isolation=userns`, or as root, to remove them\n",
            counted(*beyond_reach, "directory tree")
        ),
    };
    format!(
        "Removed {}, {}, {}, {}, {}\n{kept}Total reclaimed space: {}\n",
        counted(*images, "image"),
        counted(*records, "cache record"),
        counted(*trees, "file tree"),
        counted(*blobs, "blob"),
        counted(*mounts, "cache mount"),
        human_size(*bytes)
    )
}

pub fn df(settings: &Settings, args: DfArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    if args.verbose {
        terminal::warning(Warning {
            text: "--verbose has no effect: only totals are known".into(),
            help: Some("run `rbuild images` for the sizes of images".into()),
        });
    }
    let images = store.images().list()?.len();
    let row = |kind: &str, total: String, size: String| json!({"Type": kind, "TotalCount": total, "Size": size});
    let mut rows = vec![row("Images", images.to_string(), String::new())];
    for (name, usage) in store.gc().usage()? {
        rows.push(row(name, usage.count.to_string(), human_size(usage.bytes)));
    }
    let headings = json!({"Type": "TYPE", "TotalCount": "TOTAL", "Size": "SIZE"});
    const USUAL: &str = "table {{.Type}}\t{{.TotalCount}}\t{{.Size}}";
    let format = args.format.as_deref().unwrap_or(USUAL);
    terminal::out(&template::rows_or_table(format, USUAL, &headings, &rows).map_err(bad_format)?);
    Ok(code::OK)
}

pub fn fsck(settings: &Settings, args: FsckArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let found = store.gc().check(args.repair)?;
    let Checked { blobs, bytes, images, records, damage, unrepaired, unread } = &found;
    for problem in damage.iter().chain(unrepaired.iter().chain(unread).map(|failure| &failure.text)) {
        terminal::err(&format!("{problem}\n"));
    }
    terminal::out(&format!(
        "Checked {} ({}), {}, {}: {}{}{}{}\n",
        counted(*blobs, "blob"),
        human_size(*bytes),
        counted(*images, "image"),
        counted(*records, "cache record"),
        counted(damage.len() as u64, "problem"),
        if args.repair && !damage.is_empty() { ", removed" } else { "" },
        if unrepaired.is_empty() { String::new() } else { format!("; {} not removed", unrepaired.len()) },
        if unread.is_empty() { String::new() } else { format!("; {} not verified", unread.len()) },
    ));
    if !damage.is_empty() && !args.repair {
        terminal::error("the store is damaged", Some("run `rbuild fsck --repair` to remove damaged entries"));
        return Ok(code::FAILED);
    }
    if !unrepaired.is_empty() {
        let remedy = unrepaired.iter().find_map(|failure| failure.remedy.as_ref());
        terminal::error("some of the damage cannot be removed", remedy.map(hints::words).as_deref());
        return Ok(code::FAILED);
    }
    if !unread.is_empty() {
        let remedy = unread.iter().find_map(|failure| failure.remedy.as_ref());
        terminal::error("some of the store cannot be read", remedy.map(hints::words).as_deref());
        return Ok(code::FAILED);
    }
    Ok(code::OK)
}
