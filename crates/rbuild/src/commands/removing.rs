//! Verbs that remove images and cache entries, and that measure and check the store.

use std::collections::HashSet;

use rbuild_engine::Warning;
use rbuild_image::{ManifestDigest, human_size};
use rbuild_remedy::counted;
use rbuild_sandbox::enter;
use rbuild_store::{Budget, CheckFailure, Checked, DanglingImages, Freed, Image, NamedImage, Store, StoreError, Usage};
use serde_json::json;

use crate::args::{ContainersArgs, DfArgs, FsckArgs, ImagePruneArgs, ImagesArgs, PruneArgs, RmiArgs};
use crate::commands::containers::abandoned::remove_abandoned;
use crate::commands::containers::list;
use crate::commands::images::{self, bad_format, seconds};
use crate::commands::in_builder::{exit_code, store_config, store_in_builder};
use crate::commands::named::{self, Purpose};
use crate::exit::{Failure, code};
use crate::input::settings::Settings;
use crate::input::value;
use crate::template;
use crate::ui::hints::{self, Hint, VerbRemedy};
use crate::ui::terminal;

pub fn rmi(settings: &Settings, args: RmiArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    remove_abandoned(settings, &store)?;
    let mut failed = false;
    for wanted in &args.images {
        let (names, gone) = match named::with_full_name(wanted, |name| store.images().untag(name, args.force)) {
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

/// Heading of a list of containers that were removed.
pub const DELETED: &str = "Deleted Containers";
const DELETED_IMAGES: &str = "Deleted Images";

/// Removes all containers that are not running, or those of them that were created before a time in
/// seconds since the Unix epoch. Returns their IDs, one on each line, and the freed disk space in
/// bytes.
pub fn remove_stopped(store: &Store, before: Option<i64>) -> Result<(String, u64), Failure> {
    let (mut text, mut freed) = (String::new(), 0);
    for container in store.containers().list()? {
        let is_recent = before.is_some_and(|time| container.created.is_none_or(|created| created >= time));
        if is_recent {
            continue;
        }
        let Some(bytes) = store.container_changes()?.remove(&container.id)? else { continue };
        freed += bytes;
        text += &format!("{}\n", container.id.hex());
    }
    Ok((text, freed))
}

/// Removes images that no container uses: dangling ones, or all with `--all`. Keeps the build
/// cache.
pub fn image_prune(settings: &Settings, args: ImagePruneArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let filters: Vec<PruneFilter> = args.filter.iter().map(|f| PruneFilter::parse(f)).collect::<Result<_, _>>()?;
    remove_abandoned(settings, &store)?;
    let text = remove_images(&store, args.all, &filters)?;
    let freed = store.gc().sweep_blobs()?;
    terminal::out(&removed_text(DELETED_IMAGES, &text, freed.bytes));
    Ok(code::OK)
}

/// Removes images as above. Returns their names and IDs, one on each line.
fn remove_images(store: &Store, all: bool, filters: &[PruneFilter]) -> Result<String, Failure> {
    let held: Vec<ManifestDigest> = store.containers().list()?.into_iter().map(|c| c.image).collect();
    let pulled = store.images().pulled_by_name()?;
    let mut gone = Vec::new();
    let mut text = String::new();
    for entry in store.images().list()? {
        if (!all && !entry.is_dangling(&pulled)) || entry.artifact.images().iter().any(|image| held.contains(image)) {
            continue;
        }
        // The creation time and the labels of a damaged image are unknown, so it matches only if
        // there are no filters.
        let image = store.images().image(&entry.manifest).ok();
        let passes = |f: &PruneFilter| image.as_ref().is_some_and(|image| f.passes(image));
        if filters.iter().all(passes) {
            text += &entry.name.as_ref().map_or(String::new(), |n| format!("untagged: {}\n", n.familiar()));
            gone.push(entry);
        }
    }
    let removed = image_ids(store, &gone);
    store.images().forget(&gone)?;
    let left = image_ids(store, &store.images().list()?);
    let mut told = HashSet::new();
    let deleted = removed.iter().filter(|id| !left.contains(id) && told.insert(*id));
    deleted.for_each(|id| text += &format!("deleted: {id}\n"));
    Ok(text)
}

/// Returns the IDs of the images of all platforms of entries. An image that cannot be read is
/// identified by its manifest.
fn image_ids(store: &Store, entries: &[NamedImage]) -> Vec<String> {
    let id = |manifest: &ManifestDigest| match store.images().image(manifest) {
        Ok(image) => image.id.to_string(),
        Err(_) => manifest.to_string(),
    };
    entries.iter().flat_map(|entry| entry.artifact.images()).map(id).collect()
}

/// Formats the result of `image prune` and `container prune`: the removed entries, if any, and
/// their size.
pub fn removed_text(heading: &str, entries: &str, bytes: u64) -> String {
    let list = removed_list(heading, entries);
    format!("{list}Total reclaimed space: {}\n", human_size(bytes))
}

fn removed_list(heading: &str, entries: &str) -> String {
    if entries.is_empty() { String::new() } else { format!("{heading}:\n{entries}\n") }
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
            Some(("until", span)) => Ok(PruneFilter::Until(value::until(text, span)?)),
            Some(("label", label)) => Ok(match label.split_once('=') {
                Some((name, value)) => PruneFilter::Label(name.into(), Some(value.into())),
                None => PruneFilter::Label(label.into(), None),
            }),
            _ => Err(Failure::usage(format!("--filter {text}: unknown filter"))
                .help(hints::use_one_of(&["until=24h", "label=NAME"]))),
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

/// Removes cache entries in a builder process, because files owned by sub-IDs can be removed only
/// by root of their user namespace.
///
/// Without a budget, `dangling` determines whether dangling images are removed; with a budget, they
/// are kept.
pub fn prune(settings: &Settings, args: PruneArgs, dangling: DanglingImages) -> Result<u8, Failure> {
    let store = settings.open()?;
    let budget = budget(&args)?;
    remove_abandoned(settings, &store)?;
    let mut of_containers = 0;
    if args.system {
        let before = budget.and_then(|budget| budget.used_since);
        let (containers, bytes) = remove_stopped(&store, before)?;
        of_containers = bytes;
        let mut text = removed_list(DELETED, &containers);
        if args.all {
            let filters: Vec<PruneFilter> = before.map(PruneFilter::Until).into_iter().collect();
            text += &removed_list(DELETED_IMAGES, &remove_images(&store, true, &filters)?);
        }
        terminal::out(&text);
    }
    let ended = enter(&store_config(&store), settings.isolation, |builder| {
        let pruned = builder.map_err(Failure::from).and_then(|builder| {
            let store = store_in_builder(&builder, &store)?;
            let freed = match budget {
                Some(budget) => store.gc().collect(budget)?,
                None => store.gc().prune(args.all, dangling)?,
            };
            Ok(Freed { bytes: freed.bytes + of_containers, ..freed })
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

/// Returns the budget of `--filter` and `--keep-storage`; `None` if neither is set.
fn budget(args: &PruneArgs) -> Result<Option<Budget<'_>>, Failure> {
    let mut budget = Budget::default();
    for filter in &args.filter {
        match filter.split_once('=') {
            Some(("until", text)) => budget.used_since = Some(value::until(filter, text)?),
            Some(("origin", cache)) => budget.origin = Some(cache),
            _ => {
                let failure = Failure::usage(format!("--filter {filter}: unknown filter"));
                return Err(failure.help(VerbRemedy::CacheFilter));
            }
        }
    }
    budget.bytes = args.keep_storage.as_deref().map(|s| crate::input::flags::size("--keep-storage", s)).transpose()?;
    Ok((budget != Budget::default()).then_some(budget))
}

fn freed_text(freed: &Freed) -> String {
    let Freed { images, records, trees, blobs, mounts, unremovable, bytes } = freed;
    let kept = match unremovable {
        0 => String::new(),
        _ => format!(
            "Kept {} with files of other users; repeat this with `--isolation=userns` to remove them\n",
            counted(*unremovable, "directory tree")
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
    let row = |(kind, usage): (&str, Usage)| {
        let Usage { count, active, bytes, reclaimable } = usage;
        let share = (reclaimable * 100).checked_div(bytes).map_or(String::new(), |share| format!(" ({share}%)"));
        json!({
            "Type": kind,
            "TotalCount": count.to_string(),
            "Active": active.to_string(),
            "Size": human_size(bytes),
            "Reclaimable": human_size(reclaimable) + &share,
        })
    };
    let rows = store.disk_usage().by_kind()?.map(row);
    let headings = json!({
        "Type": "TYPE", "TotalCount": "TOTAL", "Active": "ACTIVE", "Size": "SIZE", "Reclaimable": "RECLAIMABLE",
    });
    const USUAL: &str = "table {{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}";
    let format = args.format.as_deref().unwrap_or(USUAL);
    terminal::out(&template::rows_or_table(format, USUAL, &headings, &rows).map_err(bad_format)?);
    if args.verbose {
        terminal::out("\nImages:\n");
        images::images(settings, ImagesArgs { all: true, ..ImagesArgs::default() })?;
        terminal::out("\nContainers:\n");
        list::list(settings, ContainersArgs { all: true, ..ContainersArgs::default() })?;
    }
    Ok(code::OK)
}

pub fn fsck(settings: &Settings, args: FsckArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let found = store.gc().check(args.repair)?;
    for damage in &found.damage {
        terminal::err(&format!("{damage}\n"));
    }
    for failure in found.unrepaired.iter().chain(&found.unread) {
        terminal::err(&format!("{failure}\n"));
    }
    terminal::out(&checked_text(&found, args.repair));
    if found.lost_images {
        let text = "the repair removed images, or names of images, from the store".into();
        terminal::warning(Warning { text, help: Some(Hint::from(VerbRemedy::ObtainAgain).into()) });
    }
    let Some((problem, hint)) = fault(&found, args.repair) else { return Ok(code::OK) };
    terminal::error(problem, hint.as_ref());
    Ok(code::FAILED)
}

/// Formats the counts of a check.
fn checked_text(found: &Checked, repair: bool) -> String {
    let Checked { blobs, bytes, images, records, damage, lost_images: _, unrepaired, unread } = found;
    format!(
        "Checked {} ({}), {}, {}: {}{}{}{}\n",
        counted(*blobs, "blob"),
        human_size(*bytes),
        counted(*images, "image"),
        counted(*records, "cache record"),
        counted(damage.len() as u64, "problem"),
        if repair && !damage.is_empty() { ", removed" } else { "" },
        if unrepaired.is_empty() { String::new() } else { format!("; {} not removed", unrepaired.len()) },
        if unread.is_empty() { String::new() } else { format!("; {} not verified", unread.len()) },
    )
}

/// Returns the error about problems that remain after a check, and its hint.
fn fault(found: &Checked, repair: bool) -> Option<(&'static str, Option<Hint>)> {
    if !found.damage.is_empty() && !repair {
        return Some(("the store is damaged", Some(VerbRemedy::RepairStore.into())));
    }
    let first = |failures: &[CheckFailure]| failures.iter().find_map(CheckFailure::remedy).map(|r| Hint::from(&r));
    if !found.unrepaired.is_empty() {
        return Some(("some of the damage cannot be removed", first(&found.unrepaired)));
    }
    (!found.unread.is_empty()).then(|| ("some of the store cannot be read", first(&found.unread)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rbuild_store::StoreDamage;
    use rbuild_testkit::assert_recorded;

    use super::*;

    #[test]
    fn reports_are_as_recorded() {
        let one = Freed { images: 1, records: 1, trees: 1, blobs: 1, mounts: 1, unremovable: 1, bytes: 1 };
        let many = Freed { images: 0, records: 2, trees: 3, blobs: 4, mounts: 5, unremovable: 2, bytes: 1 << 30 };
        let pruned = [Freed::default(), one, many].map(|freed| freed_text(&freed));
        let removed = [removed_text(DELETED_IMAGES, "", 0), removed_text(DELETED_IMAGES, "deleted: x\n", 1500)];
        let sound = || Checked { blobs: 1, bytes: 5000, images: 2, records: 3, ..Checked::default() };
        let damage = || vec![StoreDamage::MissingIndex.into(), StoreDamage::MissingDir("records").into()];
        let failed = |error| vec![CheckFailure::Unread(error)];
        let without_remedy = || StoreError::Canceled;
        let denied = std::io::Error::from_raw_os_error(13);
        let with_remedy =
            rbuild_linux::Error::new("openat", Path::new("/s/records/a"), denied).within("the store").into();
        let checked = [
            sound(),
            Checked { damage: damage(), ..sound() },
            Checked { unrepaired: failed(without_remedy()), ..sound() },
            Checked { unread: failed(with_remedy), ..sound() },
            Checked { damage: damage(), unread: failed(without_remedy()), ..sound() },
        ];
        let checked = checked.map(|found| {
            [false, true].map(|repair| {
                let problem =
                    fault(&found, repair).map(|(problem, hint)| terminal::error_text(problem, hint.as_ref(), false));
                format!("repair={repair}: {}{}", checked_text(&found, repair), problem.unwrap_or_default())
            })
        });
        let text = [pruned.join("\n"), removed.join("\n"), checked.concat().concat()];
        assert_recorded!("removing", text.join("\n"));
    }
}
