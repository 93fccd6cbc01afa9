//! The image verbs that list and change what the store holds.

use std::path::Path;

use rbuild_image::{Digest, Reference, ReferenceError, human_duration, human_size};
use rbuild_sandbox::{World, enter};
use rbuild_store::{Freed, Image, Store};
use serde_json::{Value, json};

use crate::args::{HistoryArgs, ImagesArgs, InspectArgs, PruneArgs, RmiArgs, TagArgs};
use crate::exit::{Failure, code};
use crate::print;

fn now() -> i64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs() as i64)
}

fn ago(created: Option<&str>) -> String {
    match created.and_then(|c| c.parse::<jiff::Timestamp>().ok()) {
        Some(t) => format!("{} ago", human_duration(now() - t.as_second())),
        None => "N/A".into(),
    }
}

fn id_text(id: &Digest, whole: bool) -> String {
    if whole { id.to_string() } else { id.short() }
}

/// Bytes of all layers before compression.
fn image_size(store: &Store, image: &Image) -> Result<u64, Failure> {
    let mut size = 0;
    for (layer, _) in image.layers()? {
        size += layer_size(store, &layer)?;
    }
    Ok(size)
}

fn layer_size(store: &Store, layer: &rbuild_image::Descriptor) -> Result<u64, Failure> {
    let digest = rbuild_image::digest_of(layer).map_err(|e| Failure::new(e.to_string()))?;
    Ok(store.unpacked_size(&digest)?)
}

pub fn images(root: &Path, args: ImagesArgs) -> Result<u8, Failure> {
    let store = Store::open(root)?;
    let mut rows = Vec::new();
    for entry in store.images()? {
        let wanted = match (&args.name, &entry.name) {
            (Some(wanted), Some(name)) => name.familiar_name() == *wanted || name.familiar() == *wanted,
            (Some(_), None) => false,
            (None, name) => args.all || name.is_some(),
        };
        if !wanted {
            continue;
        }
        let image = store.image(&entry.manifest)?;
        let none = || "<none>".to_string();
        let mut row = vec![
            entry.name.as_ref().map_or_else(none, Reference::familiar_name),
            entry.name.as_ref().and_then(|n| n.tag().map(str::to_string)).unwrap_or_else(none),
        ];
        if args.digests {
            row.push(entry.manifest.to_string());
        }
        let size = human_size(image_size(&store, &image)?);
        row.extend([id_text(&image.id, args.no_trunc), ago(image.config.created.as_deref()), size]);
        rows.push(row);
    }
    if args.quiet {
        let id = if args.digests { 3 } else { 2 };
        rows.iter().for_each(|r| print::out(&format!("{}\n", r[id])));
        return Ok(code::OK);
    }
    let mut headings = vec!["REPOSITORY", "TAG"];
    if args.digests {
        headings.push("DIGEST");
    }
    headings.extend(["IMAGE ID", "CREATED", "SIZE"]);
    print::out(&print::table(&headings, &rows));
    Ok(code::OK)
}

pub fn history(root: &Path, args: HistoryArgs) -> Result<u8, Failure> {
    let store = Store::open(root)?;
    let (_, image) = store.find_image(&args.image)?;
    let mut layers = image.layers()?.into_iter();
    let mut rows = Vec::new();
    for entry in &image.config.history {
        let size = match entry.empty_layer {
            true => 0,
            false => layers.next().map(|(layer, _)| layer_size(&store, &layer)).transpose()?.unwrap_or(0),
        };
        let mut text = entry.created_by.replace('\t', " ");
        if !args.no_trunc && text.chars().count() > 45 {
            text = text.chars().take(44).collect::<String>() + "…";
        }
        let (when, size) = match args.human {
            true => (ago(entry.created.as_deref()), human_size(size)),
            false => (entry.created.clone().unwrap_or_default(), size.to_string()),
        };
        rows.push(vec!["<missing>".to_string(), when, text, size, entry.comment.clone()]);
    }
    rows.reverse();
    if let Some(top) = rows.first_mut() {
        top[0] = id_text(&image.id, args.no_trunc);
    }
    if args.quiet {
        rows.iter().for_each(|r| print::out(&format!("{}\n", r[0])));
    } else {
        print::out(&print::table(&["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"], &rows));
    }
    Ok(code::OK)
}

pub fn inspect(root: &Path, args: InspectArgs) -> Result<u8, Failure> {
    let store = Store::open(root)?;
    let mut all = Vec::new();
    for wanted in &args.images {
        let (_, image) = store.find_image(wanted)?;
        let names: Vec<String> = store
            .images()?
            .into_iter()
            .filter(|e| e.manifest == image.manifest_digest)
            .filter_map(|e| e.name.map(|n| n.familiar()))
            .collect();
        let c = &image.config;
        all.push(json!({
            "Id": image.id.to_string(),
            "RepoTags": names,
            "RepoDigests": [],
            "Comment": c.history.last().map_or("", |h| h.comment.as_str()),
            "Created": c.created,
            "Author": c.author.clone().unwrap_or_default(),
            "Config": c.config,
            "Architecture": c.architecture,
            "Variant": c.variant.clone().unwrap_or_default(),
            "Os": c.os,
            "Size": image_size(&store, &image)?,
            "RootFS": {"Type": "layers", "Layers": c.rootfs.diff_ids},
        }));
    }
    let text = serde_json::to_string_pretty(&Value::Array(all)).map_err(|e| Failure::new(e.to_string()))?;
    print::out(&(text + "\n"));
    Ok(code::OK)
}

pub fn tag(root: &Path, args: TagArgs) -> Result<u8, Failure> {
    let name: Reference = args.name.parse().map_err(|e: ReferenceError| Failure::usage(e.to_string()))?;
    let store = Store::open(root)?;
    let (_, image) = store.find_image(&args.image)?;
    store.tag(&image.manifest_digest, Some(&name))?;
    Ok(code::OK)
}

pub fn rmi(root: &Path, args: RmiArgs) -> Result<u8, Failure> {
    let store = Store::open(root)?;
    for wanted in &args.images {
        let (names, gone) = store.untag(wanted, args.force)?;
        names.iter().for_each(|n| print::out(&format!("Untagged: {n}\n")));
        if let Some(id) = gone {
            print::out(&format!("Deleted: {id}\n"));
        }
    }
    store.sweep_blobs()?;
    Ok(code::OK)
}

/// Files of sub-ids can be removed only by who is root in their namespace, so this runs in a builder.
pub fn prune(root: &Path, args: PruneArgs) -> Result<u8, Failure> {
    drop(Store::open(root)?);
    let world = World { store: root.to_path_buf(), binds: Vec::new() };
    let ended = enter(&world, |builder| {
        let pruned = builder.map_err(Failure::from).and_then(|_| {
            let store = Store::open(Path::new(rbuild_sandbox::STORE))?;
            drop(rbuild_store::Workspace::open(&store)?);
            Ok(store.prune(args.all)?)
        });
        match pruned {
            Ok(freed) => {
                print::out(&freed_text(&freed));
                i32::from(code::OK)
            }
            Err(failure) => i32::from(failure.report()),
        }
    })?;
    Ok(if ended.stopped { code::INTERRUPTED } else { ended.code as u8 })
}

fn freed_text(freed: &Freed) -> String {
    let Freed { images, records, trees, blobs, mounts, bytes } = freed;
    format!(
        "Removed {images} images, {records} cache records, {trees} file trees, {blobs} blobs, {mounts} cache mounts\n\
         Total reclaimed space: {}\n",
        human_size(*bytes)
    )
}

pub fn df(root: &Path) -> Result<u8, Failure> {
    let store = Store::open(root)?;
    let images = store.images()?.len();
    let mut rows = vec![vec!["Images".to_string(), images.to_string(), String::new()]];
    for (name, usage) in store.usage()? {
        rows.push(vec![name.to_string(), usage.count.to_string(), human_size(usage.bytes)]);
    }
    print::out(&print::table(&["TYPE", "TOTAL", "SIZE"], &rows));
    Ok(code::OK)
}
