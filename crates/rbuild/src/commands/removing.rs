//! Verbs that remove images and cache entries, and that measure and check the store.

use std::collections::HashSet;

use rbuild_engine::Warning;
use rbuild_image::{ManifestDigest, Reference, human_size};
use rbuild_remedy::counted;
use rbuild_sandbox::enter;
use rbuild_store::{
    Budget, CheckFailure, Checked, Container, DanglingImages, Freed, Image, NamedImage, Store, StoreError, Usage,
};
use serde_json::json;

use crate::args::{ContainersArgs, DfArgs, FsckArgs, ImagePruneArgs, ImagesArgs, PruneArgs, RmiArgs, SystemPruneArgs};
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
        if is_recent(&container, before) {
            continue;
        }
        let Some(bytes) = store.container_changes()?.remove(&container.id)? else { continue };
        freed += bytes;
        text += &format!("{}\n", container.id.hex());
    }
    Ok((text, freed))
}

/// Returns true if a container was created later than a time in seconds since the Unix epoch.
fn is_recent(container: &Container, time: Option<i64>) -> bool {
    time.is_some_and(|time| container.created.is_none_or(|created| created >= time))
}

/// Returns the containers that [`remove_stopped`] keeps.
fn remaining(store: &Store, before: Option<i64>) -> Result<Vec<Container>, Failure> {
    let mut kept = Vec::new();
    for container in store.containers().list()? {
        if is_recent(&container, before) || store.containers().state(&container.id)?.is_running() {
            kept.push(container);
        }
    }
    Ok(kept)
}

/// Removes images that no container uses: dangling ones, or all with `--all`. Keeps the build
/// cache.
pub fn image_prune(settings: &Settings, args: ImagePruneArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let filters: Vec<PruneFilter> = args.filter.iter().map(|f| PruneFilter::parse(f)).collect::<Result<_, _>>()?;
    remove_abandoned(settings, &store)?;
    let removed = remove_images(&store, args.all, &filters)?;
    let freed = store.gc().sweep_blobs()?;
    terminal::out(&removed_text(DELETED_IMAGES, &removed.text, freed.bytes));
    Ok(code::OK)
}

/// Images that were removed.
#[derive(Default)]
struct RemovedImages {
    /// Their names and IDs, one on each line.
    text: String,
    /// Number of images.
    count: u64,
}

/// Removes images as above.
fn remove_images(store: &Store, all: bool, filters: &[PruneFilter]) -> Result<RemovedImages, Failure> {
    let gone = unused_images(store, &store.containers().list()?, all, filters)?;
    let names = gone.iter().filter_map(|entry| entry.name.as_ref());
    let mut text: String = names.map(|name| format!("untagged: {}\n", name.familiar())).collect();
    let removed = image_ids(store, &gone);
    store.images().forget(&gone)?;
    let left = image_ids(store, &store.images().list()?);
    let mut told = HashSet::new();
    let deleted = removed.iter().filter(|id| !left.contains(id) && told.insert(*id));
    deleted.for_each(|id| text += &format!("deleted: {id}\n"));
    Ok(RemovedImages { text, count: told.len() as u64 })
}

/// Returns the images that none of these containers uses and that pass the filters: dangling ones,
/// or all.
fn unused_images(
    store: &Store,
    containers: &[Container],
    all: bool,
    filters: &[PruneFilter],
) -> Result<Vec<NamedImage>, Failure> {
    let held: Vec<ManifestDigest> = containers.iter().map(|container| container.image).collect();
    let pulled = store.images().pulled_by_name()?;
    let mut unused = store.images().list()?;
    unused.retain(|entry| {
        let is_held = entry.artifact.images().iter().any(|image| held.contains(image));
        // The creation time and the labels of a damaged image are unknown, so it matches only if
        // there are no filters.
        let image = store.images().image(&entry.manifest).ok();
        let passes = |f: &PruneFilter| image.as_ref().is_some_and(|image| f.passes(image));
        !is_held && (all || entry.is_dangling(&pulled)) && filters.iter().all(passes)
    });
    Ok(unused)
}

/// A removal of all images that no container uses.
pub enum ImageRemoval<'a> {
    /// That of `image prune -a`.
    Images(&'a ImagePruneArgs),
    /// That of `system prune -a`, which removes containers first.
    ContainersAndImages(&'a SystemPruneArgs),
}

/// Returns the names of the images that are removed; the short ID for an image without a name.
///
/// # Errors
///
/// Fails if a filter is invalid or the store cannot be read.
pub fn removed_images(settings: &Settings, removal: &ImageRemoval<'_>) -> Result<Vec<String>, Failure> {
    let store = settings.open()?;
    let images = match removal {
        ImageRemoval::Images(args) => {
            let filters = args.filter.iter().map(|f| PruneFilter::parse(f)).collect::<Result<Vec<_>, _>>()?;
            unused_images(&store, &store.containers().list()?, true, &filters)?
        }
        ImageRemoval::ContainersAndImages(args) => {
            let before = budget(&args.filter, None)?.and_then(|budget| budget.used_since);
            let filters: Vec<PruneFilter> = before.map(PruneFilter::Until).into_iter().collect();
            unused_images(&store, &remaining(&store, before)?, true, &filters)?
        }
    };
    let id =
        |entry: &NamedImage| store.images().image(&entry.manifest).map_or(entry.manifest.short(), |i| i.id.short());
    Ok(images.iter().map(|entry| entry.name.as_ref().map_or_else(|| id(entry), |name| name.familiar())).collect())
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

/// Removes build cache, and with `dangling` dangling images.
pub fn prune(settings: &Settings, args: PruneArgs, dangling: DanglingImages) -> Result<u8, Failure> {
    let store = settings.open()?;
    let budget = budget(&args.filter, args.keep_storage.as_deref())?;
    let origin = budget.and_then(|budget| budget.origin).map(|origin| stored_origin(&store, origin)).transpose()?;
    let budget = budget.map(|budget| Budget { origin: origin.as_deref(), ..budget });
    remove_abandoned(settings, &store)?;
    prune_cache(settings, &store, CachePrune { all: args.all, budget, dangling }, Freed::default())
}

/// Returns the name of a cache as the store has it, whose tag may be omitted. Prints a note if
/// nothing was imported from it.
fn stored_origin(store: &Store, name: &str) -> Result<String, Failure> {
    let known = store.gc().origins()?;
    let with_tag = name.parse::<Reference>().ok().map(|name| name.familiar());
    let found = [Some(name.to_string()), with_tag].into_iter().flatten().find(|name| known.contains(name));
    Ok(found.unwrap_or_else(|| {
        let list: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
        terminal::note(&match &list[..] {
            [] => format!("nothing was imported from `{name}`, or from another cache"),
            _ => format!("nothing was imported from `{name}`, but from {}", list.join(", ")),
        });
        name.to_string()
    }))
}

/// Removes containers that are not running, images and build cache.
pub fn system_prune(settings: &Settings, args: SystemPruneArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let budget = budget(&args.filter, args.keep_storage.as_deref())?;
    if budget.is_some_and(|budget| budget.origin.is_some()) {
        // Containers and images have no origin.
        let failure = Failure::usage("`rbuild system prune` has no filter `origin`");
        return Err(failure.help(VerbRemedy::PruneOrigin));
    }
    if args.volumes {
        let text = "--volumes has no effect: volumes are kept".into();
        terminal::warning(Warning { text, help: Some(Hint::from(VerbRemedy::PruneVolumes).into()) });
    }
    store.gc().check_idle()?;
    remove_abandoned(settings, &store)?;
    let before = budget.and_then(|budget| budget.used_since);
    let (containers, bytes) = remove_stopped(&store, before)?;
    let filters: Vec<PruneFilter> = before.map(PruneFilter::Until).into_iter().collect();
    let images = remove_images(&store, args.all, &filters)?;
    terminal::out(&(removed_list(DELETED, &containers) + &removed_list(DELETED_IMAGES, &images.text)));
    let removed = Freed { bytes, images: images.count, ..Freed::default() };
    prune_cache(settings, &store, CachePrune { all: args.all, budget, dangling: DanglingImages::Keep }, removed)
}

/// A removal of build cache.
#[derive(Clone, Copy)]
struct CachePrune<'a> {
    /// Includes what the next build can use.
    all: bool,
    budget: Option<Budget<'a>>,
    /// Treatment of dangling images without a budget; with one, they are kept.
    dangling: DanglingImages,
}

/// Removes cache entries in a builder process, because files owned by sub-IDs can be removed only
/// by root of their user namespace. Reports them together with what was `removed` before.
fn prune_cache(settings: &Settings, store: &Store, prune: CachePrune<'_>, removed: Freed) -> Result<u8, Failure> {
    let CachePrune { all, budget, dangling } = prune;
    let ended = enter(&store_config(store), settings.isolation, |builder| {
        let pruned = builder.map_err(Failure::from).and_then(|builder| {
            let store = store_in_builder(&builder, store)?;
            let freed = match budget {
                Some(budget) => store.gc().prune_within(budget)?,
                None => store.gc().prune(all, dangling)?,
            };
            let left = if all || budget.is_some() { 0 } else { store.disk_usage().reclaimable_cache()? };
            Ok((Freed { bytes: freed.bytes + removed.bytes, images: freed.images + removed.images, ..freed }, left))
        });
        match pruned {
            Ok((freed, left)) => {
                terminal::out(&freed_text(&freed));
                left_text(freed.bytes, left).iter().for_each(|text| terminal::note(text));
                i32::from(code::OK)
            }
            Err(failure) => i32::from(failure.report()),
        }
    })?;
    Ok(exit_code(ended.code, ended.stopped))
}

/// Size of the remaining build cache in bytes from which a removal suggests others.
const MUCH: u64 = 10 << 20;

/// Returns the note about the build cache of `left` bytes that remains, if it is much more than
/// what was freed.
fn left_text(freed: u64, left: u64) -> Option<String> {
    (left >= MUCH && left / 4 > freed).then(|| {
        format!(
            "{} of build cache remains, because the next build can use it; -a removes it, and --filter until=24h \
             the part that was not used for a day",
            human_size(left)
        )
    })
}

/// Returns the budget of `--filter` and `--keep-storage`; `None` if neither is set.
fn budget<'a>(filters: &'a [String], keep_storage: Option<&str>) -> Result<Option<Budget<'a>>, Failure> {
    let mut budget = Budget::default();
    for filter in filters {
        match filter.split_once('=') {
            Some(("until", text)) => budget.used_since = Some(value::until(filter, text)?),
            Some(("origin", cache)) => budget.origin = Some(cache),
            _ => {
                let failure = Failure::usage(format!("--filter {filter}: unknown filter"));
                return Err(failure.help(VerbRemedy::CacheFilter));
            }
        }
    }
    budget.bytes = keep_storage.map(|s| crate::input::flags::size("--keep-storage", s)).transpose()?;
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
        assert_eq!([(0, MUCH - 1), (MUCH, 2 * MUCH)].map(|(freed, left)| left_text(freed, left)), [None, None]);
        let left = left_text(1, 452_000_000).expect("much remains");
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
        let text = [pruned.join("\n"), left + "\n", removed.join("\n"), checked.concat().concat()];
        assert_recorded!("removing", text.join("\n"));
    }
}
