//! Verbs that list, inspect, name and remove images, and that maintain the store.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use rbuild_engine::Warning;
use rbuild_image::{ImageId, ManifestDigest, Reference, ReferenceError, human_duration, human_size};
use rbuild_linux::Timestamp;
use rbuild_sandbox::enter;
use rbuild_store::{Artifact, Budget, Checked, Freed, Image, NamedImage, Store, StoreError};
use serde_json::{Value, json};

use crate::args::{
    DfArgs, FsckArgs, HistoryArgs, ImagePruneArgs, ImagesArgs, InspectArgs, PruneArgs, RmiArgs, TagArgs,
};
use crate::commands::in_builder::{exit_code, moved_store, store_only};
use crate::commands::named::{self, Purpose};
use crate::exit::{Failure, code};
use crate::input::settings::Settings;
use crate::template::{self, TemplateError};
use crate::ui::terminal;

/// Formats the time since a moment, which is in seconds since the Unix epoch.
pub fn ago(moment: i64) -> String {
    format!("{} ago", human_duration(Timestamp::now().sec - moment))
}

fn since(created: Option<&str>) -> String {
    match created.and_then(|c| c.parse::<jiff::Timestamp>().ok()) {
        Some(t) => ago(t.as_second()),
        None => "N/A".into(),
    }
}

fn id_text(id: &ImageId, whole: bool) -> String {
    if whole { id.to_string() } else { id.short() }
}

/// Returns the uncompressed size of all layers in bytes.
fn image_size(store: &Store, image: &Image) -> Result<u64, Failure> {
    let (mut size, mut known) = (0u64, HashMap::new());
    for (layer, diff_id) in image.layers()? {
        // An image may contain the same layer several times.
        let layer_size = match known.get(layer.digest()) {
            Some(known) => *known,
            None => store.layers().layer_size(&layer, &diff_id)?,
        };
        size = size.saturating_add(layer_size);
        known.insert(layer.digest().clone(), layer_size);
    }
    Ok(size)
}

/// A row of `images`.
struct Listed {
    name: Option<Reference>,
    image: Rc<Image>,
    artifact: Artifact,
    size: u64,
}

impl Listed {
    fn repository(&self) -> String {
        self.name.as_ref().map_or("<none>".into(), Reference::familiar_name)
    }

    fn tag(&self) -> String {
        self.name.as_ref().and_then(|n| n.tag().map(str::to_string)).unwrap_or("<none>".into())
    }

    /// Returns the fields for templates.
    fn fields(&self, whole_ids: bool) -> Value {
        let size = human_size(self.size);
        json!({
            "Containers": "N/A",
            "CreatedAt": self.image.config.created.clone().unwrap_or_default(),
            "CreatedSince": since(self.image.config.created.as_deref()),
            "Digest": self.artifact.digest().to_string(),
            "ID": id_text(&self.image.id, whole_ids),
            "Repository": self.repository(),
            "SharedSize": "N/A",
            "Size": size,
            "Tag": self.tag(),
            "UniqueSize": "N/A",
            "VirtualSize": size,
        })
    }
}

pub fn images(settings: &Settings, args: ImagesArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let listed = list(&store, &args)?;
    let format = args.format.as_deref().filter(|format| !args.quiet && format.trim() != "table");
    terminal::out(&match format {
        Some(format) => formatted(format, &listed, args.no_trunc)?,
        None if args.quiet => listed.iter().map(|l| id_text(&l.image.id, args.no_trunc) + "\n").collect(),
        None if args.tree => tree(&store, &listed, args.no_trunc)?,
        None => table(&listed, &args),
    });
    Ok(code::OK)
}

/// Returns the images that the arguments select, the newest first.
fn list(store: &Store, args: &ImagesArgs) -> Result<Vec<Listed>, Failure> {
    let filters: Vec<Filter> = args.filter.iter().map(|f| Filter::parse(store, f)).collect::<Result<_, _>>()?;
    let wanted = args.name.as_deref().map(Wanted::parse).transpose()?;
    let (mut listed, mut known) = (Vec::new(), HashMap::new());
    let entries = store.images().list()?;
    let named = ids_of_named(store, &entries);
    for entry in entries {
        if wanted.as_ref().is_some_and(|wanted| !entry.name.as_ref().is_some_and(|name| wanted.matches(name))) {
            continue;
        }
        // An image may have several names.
        let image = match known.get(&entry.manifest) {
            Some((image, _)) => Rc::clone(image),
            None => Rc::new(store.images().image(&entry.manifest)?),
        };
        if !args.all && entry.name.is_none() && named.contains(&image.id) {
            continue;
        }
        if filters.iter().all(|f| f.passes(entry.name.as_ref(), &image)) {
            let size = match known.get(&entry.manifest) {
                Some((_, size)) => *size,
                None => image_size(store, &image)?,
            };
            known.insert(entry.manifest, (image.clone(), size));
            listed.push(Listed { name: entry.name, image, artifact: entry.artifact, size });
        }
    }
    // Docker: the newest first. The sort keeps the order of the store among equals.
    listed.sort_by_key(|l| std::cmp::Reverse(seconds(&l.image).unwrap_or(i64::MIN)));
    Ok(listed)
}

/// Returns the IDs of the images with a name. An image may also be stored in another form, for
/// example compressed, which is no image of its own for those who list them.
fn ids_of_named(store: &Store, entries: &[NamedImage]) -> HashSet<ImageId> {
    if entries.iter().all(|entry| entry.name.is_some()) {
        return HashSet::new();
    }
    let named = entries.iter().filter(|entry| entry.name.is_some()).flat_map(|entry| entry.artifact.images());
    named.filter_map(|manifest| Some(store.images().image(manifest).ok()?.id)).collect()
}

/// Returns the images as a template of `--format` shows them.
fn formatted(format: &str, listed: &[Listed], whole_ids: bool) -> Result<String, Failure> {
    let headings = json!({
        "CreatedAt": "CREATED AT", "CreatedSince": "CREATED", "Digest": "DIGEST", "ID": "IMAGE ID",
        "Repository": "REPOSITORY", "Size": "SIZE", "Tag": "TAG", "VirtualSize": "SIZE",
        "Containers": "CONTAINERS", "SharedSize": "SHARED SIZE", "UniqueSize": "UNIQUE SIZE",
    });
    let fields: Vec<Value> = listed.iter().map(|l| l.fields(whole_ids)).collect();
    template::rows(format, &headings, &fields).map_err(bad_format)
}

fn table(listed: &[Listed], args: &ImagesArgs) -> String {
    let mut headings = vec!["REPOSITORY", "TAG"];
    headings.extend(args.digests.then_some("DIGEST"));
    headings.extend(["IMAGE ID", "CREATED", "SIZE"]);
    let row = |l: &Listed| {
        let mut row = vec![l.repository(), l.tag()];
        row.extend(args.digests.then(|| l.artifact.digest().to_string()));
        let created = since(l.image.config.created.as_deref());
        row.extend([id_text(&l.image.id, args.no_trunc), created, human_size(l.size)]);
        row
    };
    terminal::table(&headings, &listed.iter().map(row).collect::<Vec<_>>())
}

/// Returns a table of images with a line for each of their platforms.
fn tree(store: &Store, listed: &[Listed], whole_ids: bool) -> Result<String, Failure> {
    let mut rows = Vec::new();
    for l in listed {
        let name = l.name.as_ref().map_or("<untagged>".into(), Reference::familiar);
        let digest = l.artifact.digest();
        rows.push(vec![name, if whole_ids { digest.to_string() } else { digest.short() }, String::new()]);
        let images = l.artifact.images();
        for (at, manifest) in images.iter().enumerate() {
            let image = store.images().image(manifest)?;
            let branch = if at + 1 == images.len() { "└─" } else { "├─" };
            let size = human_size(image_size(store, &image)?);
            rows.push(vec![format!("{branch} {}", image.config.platform()), id_text(&image.id, whole_ids), size]);
        }
    }
    Ok(terminal::table(&["IMAGE", "ID", "SIZE"], &rows))
}

/// The name that `images` lists.
enum Wanted<'a> {
    Name(&'a str),
    Pattern(rbuild_paths::Glob),
}

impl Wanted<'_> {
    fn parse(text: &str) -> Result<Wanted<'_>, Failure> {
        if !text.contains(['*', '?', '[']) {
            return Ok(Wanted::Name(text));
        }
        rbuild_paths::Glob::new(text, false).map(Wanted::Pattern).ok_or_else(|| bad_pattern(text))
    }

    fn matches(&self, name: &Reference) -> bool {
        match self {
            Wanted::Name(wanted) => is_called(name, wanted),
            Wanted::Pattern(glob) => matches(glob, name),
        }
    }
}

/// Returns true if `name` matches `wanted`: the same reference, or any reference of the same
/// repository if `wanted` has no tag.
fn is_called(name: &Reference, wanted: &str) -> bool {
    let Ok(reference) = wanted.parse::<Reference>() else { return false };
    // Appending a tag parses only if `wanted` has neither tag nor digest.
    let any_tag = format!("{wanted}:latest").parse::<Reference>().is_ok();
    reference == *name || (any_tag && reference.familiar_name() == name.familiar_name())
}

fn matches(glob: &rbuild_paths::Glob, name: &Reference) -> bool {
    glob.matches(&name.familiar()) || glob.matches(&name.familiar_name())
}

fn bad_pattern(text: &str) -> Failure {
    Failure::usage(format!("the pattern {text} has an unclosed bracket"))
        .help("close it, or escape it with a backslash")
}

pub fn bad_format(e: TemplateError) -> Failure {
    Failure::usage(format!("--format: {e}")).help("use `--format json` to see all fields")
}

/// A `--filter` of `images`.
enum Filter {
    Dangling(bool),
    Reference(rbuild_paths::Glob),
    Label(String, Option<String>),
    /// Seconds since the Unix epoch.
    Before(i64),
    Since(i64),
}

impl Filter {
    fn parse(store: &Store, text: &str) -> Result<Filter, Failure> {
        let bad = |what: &str| Failure::usage(format!("--filter {text}: {what}"));
        let (key, value) = text.split_once('=').ok_or_else(|| bad("not of the form NAME=VALUE"))?;
        let created = || -> Result<i64, Failure> {
            let (_, image) = named::find(store, value, Purpose::Manage)?;
            Ok(seconds(&image).unwrap_or(0))
        };
        Ok(match (key, value) {
            ("dangling", "true" | "1") => Filter::Dangling(true),
            ("dangling", "false" | "0") => Filter::Dangling(false),
            ("reference", pattern) => {
                let glob = rbuild_paths::Glob::new(pattern, false);
                Filter::Reference(glob.ok_or_else(|| bad("the pattern has an unclosed bracket"))?)
            }
            ("label", label) => match label.split_once('=') {
                Some((name, value)) => Filter::Label(name.into(), Some(value.into())),
                None => Filter::Label(label.into(), None),
            },
            ("before", _) => Filter::Before(created()?),
            ("since", _) => Filter::Since(created()?),
            _ => return Err(bad("unknown filter").help("use dangling, reference, label, before or since")),
        })
    }

    fn passes(&self, name: Option<&Reference>, image: &Image) -> bool {
        match self {
            Filter::Dangling(wanted) => name.is_none() == *wanted,
            Filter::Reference(glob) => name.is_some_and(|name| matches(glob, name)),
            Filter::Label(key, value) => {
                let found = image.config.config.labels.get(key);
                found.is_some_and(|f| value.as_ref().is_none_or(|v| v == f))
            }
            Filter::Before(time) => seconds(image).is_some_and(|s| s < *time),
            Filter::Since(time) => seconds(image).is_some_and(|s| s > *time),
        }
    }
}

fn seconds(image: &Image) -> Option<i64> {
    Some(image.config.created.as_deref()?.parse::<jiff::Timestamp>().ok()?.as_second())
}

pub fn history(settings: &Settings, args: HistoryArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let (_, image) = named::find(&store, &args.image, Purpose::Manage)?;
    let mut layers = image.layers()?.into_iter();
    let mut rows = Vec::new();
    for entry in &image.config.history {
        let size = if entry.empty_layer {
            0
        } else {
            layers.next().map(|(layer, diff_id)| store.layers().layer_size(&layer, &diff_id)).transpose()?.unwrap_or(0)
        };
        let mut text = entry.created_by.replace('\t', " ");
        if !args.no_trunc && text.chars().count() > 45 {
            text = text.chars().take(44).collect::<String>() + "…";
        }
        let at = entry.created.clone().unwrap_or_default();
        rows.push(json!({
            "ID": "<missing>",
            "CreatedAt": at,
            "CreatedSince": if args.human { since(entry.created.as_deref()) } else { at.clone() },
            "CreatedBy": text,
            "Size": if args.human { human_size(size) } else { size.to_string() },
            "Comment": entry.comment,
        }));
    }
    rows.reverse();
    if let Some(top) = rows.first_mut() {
        top["ID"] = id_text(&image.id, args.no_trunc).into();
    }
    let headings = json!({
        "ID": "IMAGE", "CreatedAt": "CREATED AT", "CreatedSince": "CREATED", "CreatedBy": "CREATED BY",
        "Size": "SIZE", "Comment": "COMMENT",
    });
    const USUAL: &str = "table {{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}";
    let format = if args.quiet { "{{.ID}}" } else { args.format.as_deref().unwrap_or(USUAL) };
    terminal::out(&template::rows_or_table(format, USUAL, &headings, &rows).map_err(bad_format)?);
    Ok(code::OK)
}

pub fn inspect(settings: &Settings, args: InspectArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let (mut all, mut missing) = (Vec::new(), Vec::new());
    for wanted in &args.images {
        // Docker: what exists is printed, and errors for the rest follow.
        let (_, image) = match named::find(&store, wanted, Purpose::Manage) {
            Ok(found) => found,
            Err(failure) => {
                missing.push(failure);
                continue;
            }
        };
        if args.verify {
            store.gc().verify_image(&image)?;
        }
        all.push(inspected(&store, &image)?);
    }
    let text = match args.format.as_deref() {
        Some("json") => all.iter().map(|i| format!("{i}\n")).collect(),
        Some(format) => {
            all.iter_mut().for_each(fill_in);
            template::rows(format, &Value::Null, &all).map_err(bad_format)?
        }
        None => serde_json::to_string_pretty(&all).map_err(|e| Failure::new(e.to_string()))? + "\n",
    };
    terminal::out(&text);
    Ok(missing.iter().map(Failure::report).max().unwrap_or(code::OK))
}

fn inspected(store: &Store, image: &Image) -> Result<Value, Failure> {
    let names: Vec<String> = store
        .images()
        .list()?
        .into_iter()
        .filter(|e| e.artifact.images().contains(&image.manifest_digest))
        .filter_map(|e| e.name.map(|n| n.familiar()))
        .collect();
    let c = &image.config;
    Ok(json!({
        "Id": image.id.to_string(),
        "RepoTags": names,
        "RepoDigests": [],
        "Parent": "",
        "Comment": c.history.last().map_or("", |h| h.comment.as_str()),
        "Created": c.created,
        "DockerVersion": "",
        "Author": c.author.clone().unwrap_or_default(),
        "Config": c.config,
        "Architecture": c.architecture,
        "Variant": c.variant.clone().unwrap_or_default(),
        "Os": c.os,
        "Size": image_size(store, image)?,
        "RootFS": {"Type": "layers", "Layers": c.rootfs.diff_ids},
    }))
}

/// Adds the fields that the printed document omits when empty, so that templates can use them.
fn fill_in(image: &mut Value) {
    let empty = json!({
        "Hostname": "", "Domainname": "", "User": "", "ExposedPorts": null, "Env": null, "Cmd": null,
        "Healthcheck": null, "ArgsEscaped": false, "Image": "", "Volumes": null, "WorkingDir": "", "Entrypoint": null,
        "OnBuild": null, "Labels": null, "StopSignal": "", "Shell": null,
    });
    if let (Value::Object(empty), Some(Value::Object(config))) = (empty, image.get_mut("Config")) {
        for (key, value) in empty {
            config.entry(key).or_insert(value);
        }
    }
}

pub fn tag(settings: &Settings, args: TagArgs) -> Result<u8, Failure> {
    let name: Reference = args.name.parse().map_err(|e: ReferenceError| Failure::usage(e.to_string()))?;
    let store = settings.open()?;
    let found = store.images().find(&args.image).map_err(named::missing(&store, &args.image, Purpose::Manage))?;
    store.images().tag(found.artifact.digest(), Some(&name))?;
    Ok(code::OK)
}

pub fn rmi(settings: &Settings, args: RmiArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let mut failed = false;
    for wanted in &args.images {
        let (names, gone) = match store.images().untag(wanted, args.force) {
            Ok(done) => done,
            // Docker: every name is tried, and with -f a missing image is nothing to mention.
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
    let mut gone = Vec::new();
    let mut text = String::new();
    for entry in store.images().list()? {
        if (entry.name.is_some() && !args.all) || entry.artifact.images().iter().any(|image| held.contains(image)) {
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
pub fn prune(settings: &Settings, args: PruneArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let budget = budget(&args)?;
    let ended = enter(&store_only(&store), settings.rung, |builder| {
        let pruned = builder.map_err(Failure::from).and_then(|builder| {
            let store = moved_store(&builder, &store)?;
            drop(rbuild_store::Workspace::open(&store)?);
            Ok(match budget {
                Some(budget) => store.gc().collect(budget)?,
                None => store.gc().prune(args.all)?,
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

/// Returns a number and its noun, in the plural unless the number is one.
pub fn counted(number: u64, noun: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{ending}")
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
    for problem in &found.problems {
        terminal::err(&format!("{problem}\n"));
    }
    let Checked { blobs, bytes, images, records, problems } = &found;
    terminal::out(&format!(
        "Checked {} ({}), {}, {}: {}{}\n",
        counted(*blobs, "blob"),
        human_size(*bytes),
        counted(*images, "image"),
        counted(*records, "cache record"),
        counted(problems.len() as u64, "problem"),
        if args.repair && !problems.is_empty() { ", removed" } else { "" }
    ));
    if !problems.is_empty() && !args.repair {
        terminal::error("the store is damaged", Some("run `rbuild fsck --repair` to remove damaged entries"));
        return Ok(code::FAILED);
    }
    Ok(code::OK)
}
