//! Verbs that list, inspect and name images.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::rc::Rc;

use rbuild_image::{
    BlobDigest, Descriptor, ImageId, ManifestDigest, MediaType, Reference, attested, digest_of, human_duration,
    human_size, is_attachment, parse_index, parse_manifest, platform_document,
};
use rbuild_linux::Timestamp;
use rbuild_store::{Artifact, FoundImage, Image, LayerOrigin, NamedImage, RepoDigest, Store};
use serde_json::{Value, json};

use crate::args::{HistoryArgs, ImagesArgs, TagArgs};
use crate::commands::named::{self, Purpose};
use crate::exit::{Failure, code};
use crate::input::settings::Settings;
use crate::input::value;
use crate::template::{self, TemplateError};
use crate::ui::hints::{self, VerbRemedy};
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
pub fn image_size(store: &Store, image: &Image) -> Result<u64, Failure> {
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
struct ImageRow {
    name: Option<Reference>,
    image: Rc<Image>,
    artifact: Artifact,
    /// Digest in the repository of the name.
    repo_digest: Option<ManifestDigest>,
    size: u64,
}

impl ImageRow {
    fn repository(&self) -> String {
        self.name.as_ref().map_or("<none>".into(), Reference::familiar_name)
    }

    fn tag(&self) -> String {
        self.name.as_ref().and_then(|n| n.tag().map(str::to_string)).unwrap_or("<none>".into())
    }

    fn digest(&self) -> String {
        self.repo_digest.map_or("<none>".into(), |digest| digest.to_string())
    }

    /// Returns the fields for templates.
    fn fields(&self, whole_ids: bool) -> Value {
        let size = human_size(self.size);
        json!({
            "Containers": "N/A",
            "CreatedAt": self.image.config.created.clone().unwrap_or_default(),
            "CreatedSince": since(self.image.config.created.as_deref()),
            "Digest": self.digest(),
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
fn list(store: &Store, args: &ImagesArgs) -> Result<Vec<ImageRow>, Failure> {
    let filters: Vec<Filter> = args.filter.iter().map(|f| Filter::parse(store, f)).collect::<Result<_, _>>()?;
    let wanted = args.name.as_deref().map(NameFilter::parse).transpose()?;
    let is_wanted = |entry: &NamedImage| {
        wanted.as_ref().is_none_or(|wanted| entry.name.as_ref().is_some_and(|name| wanted.matches(name)))
    };
    let entries: Vec<NamedImage> = store.images().list()?.into_iter().filter(is_wanted).collect();
    // An image may have several names.
    let mut known: HashMap<ManifestDigest, Rc<Image>> = HashMap::new();
    for entry in &entries {
        if let Entry::Vacant(unknown) = known.entry(entry.manifest) {
            unknown.insert(Rc::new(store.images().image(&entry.manifest)?));
        }
    }
    let named = if args.all { HashSet::new() } else { ids_of_named(store, &entries, &known) };
    let (mut listed, mut sizes) = (Vec::new(), HashMap::new());
    let repo_digests = store.repo_digests().list()?;
    for entry in entries {
        let image = &known[&entry.manifest];
        let is_other_form = entry.name.is_none() && named.contains(&image.id);
        if is_other_form || !filters.iter().all(|f| f.passes(entry.name.as_ref(), image)) {
            continue;
        }
        let size = match sizes.get(&entry.manifest) {
            Some(size) => *size,
            None => image_size(store, image)?,
        };
        sizes.insert(entry.manifest, size);
        let repo_digest = repo_digest(&repo_digests, &entry);
        listed.push(ImageRow { name: entry.name, image: image.clone(), artifact: entry.artifact, repo_digest, size });
    }
    // As in Docker, the newest image is first. The sort is stable: images of the same age keep the
    // order of the store.
    listed.sort_by_key(|l| std::cmp::Reverse(seconds(&l.image).unwrap_or(i64::MIN)));
    Ok(listed)
}

/// Returns the digest that an entry has in the repository of its name, or, without a name, in any.
fn repo_digest(known: &[RepoDigest], entry: &NamedImage) -> Option<ManifestDigest> {
    let is_same = |known: &&RepoDigest| match &entry.name {
        Some(name) => known.name.familiar_name() == name.familiar_name(),
        None => true,
    };
    let mut fitting: Vec<&RepoDigest> =
        known.iter().filter(|known| known.is_of(entry.artifact.images())).filter(is_same).collect();
    // The image may have been pushed to other tags in other forms.
    fitting.sort_by_key(|known| entry.name.as_ref() != Some(&known.name));
    fitting.first().map(|known| known.digest)
}

/// Returns the IDs of the images with a name. Another form of such an image in the store, for
/// example a compressed one, is not listed separately.
fn ids_of_named(store: &Store, entries: &[NamedImage], known: &HashMap<ManifestDigest, Rc<Image>>) -> HashSet<ImageId> {
    if entries.iter().all(|entry| entry.name.is_some()) {
        return HashSet::new();
    }
    let named = entries.iter().filter(|entry| entry.name.is_some()).flat_map(|entry| entry.artifact.images());
    let id = |manifest| match known.get(manifest) {
        Some(image) => Some(image.id),
        None => Some(store.images().image(manifest).ok()?.id),
    };
    named.filter_map(id).collect()
}

/// Formats the images by the template of `--format`.
fn formatted(format: &str, listed: &[ImageRow], whole_ids: bool) -> Result<String, Failure> {
    let headings = json!({
        "CreatedAt": "CREATED AT", "CreatedSince": "CREATED", "Digest": "DIGEST", "ID": "IMAGE ID",
        "Repository": "REPOSITORY", "Size": "SIZE", "Tag": "TAG", "VirtualSize": "SIZE",
        "Containers": "CONTAINERS", "SharedSize": "SHARED SIZE", "UniqueSize": "UNIQUE SIZE",
    });
    let fields: Vec<Value> = listed.iter().map(|l| l.fields(whole_ids)).collect();
    template::rows(format, &headings, &fields).map_err(bad_format)
}

fn table(listed: &[ImageRow], args: &ImagesArgs) -> String {
    let mut headings = vec!["REPOSITORY", "TAG"];
    headings.extend(args.digests.then_some("DIGEST"));
    headings.extend(["IMAGE ID", "CREATED", "SIZE"]);
    let row = |l: &ImageRow| {
        let mut row = vec![l.repository(), l.tag()];
        row.extend(args.digests.then(|| l.digest()));
        let created = since(l.image.config.created.as_deref());
        row.extend([id_text(&l.image.id, args.no_trunc), created, human_size(l.size)]);
        row
    };
    terminal::table(&headings, &listed.iter().map(row).collect::<Vec<_>>())
}

/// Formats a table of images with one line per platform.
fn tree(store: &Store, listed: &[ImageRow], whole_ids: bool) -> Result<String, Failure> {
    let mut rows = Vec::new();
    for l in listed {
        let name = l.name.as_ref().map_or("<untagged>".into(), Reference::familiar);
        let digest = l.artifact.digest();
        rows.push(vec![name, if whole_ids { digest.to_string() } else { digest.short() }, String::new()]);
        let mut below = Vec::new();
        for manifest in l.artifact.images() {
            let image = store.images().image(manifest)?;
            let size = human_size(image_size(store, &image)?);
            below.push((image.config.platform().to_string(), id_text(&image.id, whole_ids), size));
        }
        for entry in store.images().index_entries(&l.artifact)?.iter().filter(|entry| is_attachment(entry)) {
            let subject = attested(entry);
            let platform = l.artifact.images().iter().zip(&below).find(|(image, _)| Some(**image) == subject);
            let name = platform.map_or("artifact".into(), |(_, (platform, ..))| format!("attestation of {platform}"));
            let digest = digest_of(entry).map_err(|e| Failure::new(e.to_string()))?;
            let id = if whole_ids { digest.to_string() } else { digest.short() };
            below.push((name, id, human_size(attachment_size(store, &digest)?)));
        }
        let last = below.len();
        for (at, (name, id, size)) in below.into_iter().enumerate() {
            let branch = if at + 1 == last { "└─" } else { "├─" };
            rows.push(vec![format!("{branch} {name}"), id, size]);
        }
    }
    Ok(terminal::table(&["IMAGE", "ID", "SIZE"], &rows))
}

/// Returns the size in bytes of the blobs of an attestation.
fn attachment_size(store: &Store, manifest: &BlobDigest) -> Result<u64, Failure> {
    let manifest = parse_manifest(&store.blobs().read_document(manifest)?);
    let manifest = manifest.map_err(|e| Failure::new(format!("cannot read an attestation: {e}")))?;
    Ok(manifest.layers().iter().fold(0, |size, layer| layer.size().saturating_add(size)))
}

/// The name that `images` lists.
enum NameFilter<'a> {
    Name(&'a str),
    Pattern(rbuild_paths::Glob),
}

impl NameFilter<'_> {
    fn parse(text: &str) -> Result<NameFilter<'_>, Failure> {
        if !rbuild_paths::is_pattern(text) {
            return Ok(NameFilter::Name(text));
        }
        rbuild_paths::Glob::new(text, false).map(NameFilter::Pattern).ok_or_else(|| bad_pattern(text))
    }

    fn matches(&self, name: &Reference) -> bool {
        match self {
            NameFilter::Name(wanted) => is_called(name, wanted),
            NameFilter::Pattern(glob) => matches(glob, name),
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
    Failure::usage(format!("pattern `{text}` has an unclosed bracket")).help(VerbRemedy::CloseBracket)
}

pub fn bad_format(e: TemplateError) -> Failure {
    let failure = Failure::usage(format!("--format: {e}"));
    match e.remedy() {
        Some(remedy) => failure.help(remedy),
        None if e.is_unknown_field() => failure.help(VerbRemedy::ListFields),
        None => failure.help(VerbRemedy::TemplateForm),
    }
}

/// A `--filter` of `images`.
enum Filter {
    /// The manifests are those of [`rbuild_store::Images::pulled_by_name`], which are not dangling.
    Dangling(bool, HashSet<ManifestDigest>),
    Reference(rbuild_paths::Glob),
    Label(String, Option<String>),
    /// Seconds since the Unix epoch.
    Before(i64),
    Since(i64),
}

impl Filter {
    fn parse(store: &Store, text: &str) -> Result<Filter, Failure> {
        let setting = || format!("--filter {text}");
        let bad = |problem: &str| Failure::usage(format!("{}: {problem}", setting()));
        let no_value = || bad("not of the form NAME=VALUE").help(hints::use_one_of(&["dangling=true", "label=NAME"]));
        let (key, value) = text.split_once('=').ok_or_else(no_value)?;
        let created = || -> Result<i64, Failure> {
            let (_, image) = named::find(store, value, Purpose::Manage)?;
            Ok(seconds(&image).unwrap_or(0))
        };
        Ok(match (key, value) {
            ("dangling", value) => Filter::Dangling(
                value::switch(value).map_err(|bad| bad.of(setting()))?,
                store.images().pulled_by_name()?,
            ),
            ("reference", pattern) => {
                let glob = rbuild_paths::Glob::new(pattern, false);
                Filter::Reference(
                    glob.ok_or_else(|| bad("the pattern has an unclosed bracket").help(VerbRemedy::CloseBracket))?,
                )
            }
            ("label", label) => match label.split_once('=') {
                Some((name, value)) => Filter::Label(name.into(), Some(value.into())),
                None => Filter::Label(label.into(), None),
            },
            ("before", _) => Filter::Before(created()?),
            ("until", span) => Filter::Before(value::until(text, span)?),
            ("since", _) => Filter::Since(created()?),
            _ => {
                return Err(bad("unknown filter").help(hints::use_one_of(&[
                    "dangling",
                    "reference",
                    "label",
                    "before",
                    "since",
                    "until",
                ])));
            }
        })
    }

    fn passes(&self, name: Option<&Reference>, image: &Image) -> bool {
        match self {
            Filter::Dangling(wanted, pulled) => (name.is_none() && !pulled.contains(&image.manifest_digest)) == *wanted,
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

pub fn seconds(image: &Image) -> Option<i64> {
    Some(image.config.created.as_deref()?.parse::<jiff::Timestamp>().ok()?.as_second())
}

pub fn history(settings: &Settings, args: HistoryArgs) -> Result<u8, Failure> {
    let store = settings.open()?;
    let (_, image) = named::find(&store, &args.image, Purpose::Use)?;
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

/// Returns the properties of an image that was found by a name or an ID. If the name refers to an
/// index, these are the properties of one image, with the entries of the index as in docker.
pub fn inspected_entry(store: &Store, found: &FoundImage) -> Result<Value, Failure> {
    let mut properties = inspected(store, &found.image)?;
    let entries = store.images().index_entries(&found.artifact)?;
    if !entries.is_empty() {
        let (digest, bytes) = (found.artifact.digest(), store.blobs().read_document(&found.artifact.digest().blob())?);
        let media_type = parse_index(&bytes).ok().and_then(|index| index.media_type().clone());
        let media_type = media_type.unwrap_or(MediaType::ImageIndex).to_string();
        properties["Descriptor"] = json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()});
        properties["Manifests"] = entries.iter().map(manifest_of).collect();
    }
    Ok(properties)
}

/// Returns the summary of an entry of an index.
fn manifest_of(entry: &Descriptor) -> Value {
    let mut summary = json!({"ID": entry.digest().to_string(), "Descriptor": entry, "Available": true});
    if let Some(platform) = platform_document(entry) {
        summary["Descriptor"]["platform"] = platform;
    }
    match attested(entry) {
        Some(subject) => {
            summary["Kind"] = json!("attestation");
            summary["AttestationData"] = json!({"For": subject.to_string()});
        }
        None if is_attachment(entry) => summary["Kind"] = json!("unknown"),
        None => {
            summary["Kind"] = json!("image");
            summary["ImageData"] = json!({"Platform": summary["Descriptor"]["platform"]});
        }
    }
    summary
}

/// Returns the properties of an image.
pub fn inspected(store: &Store, image: &Image) -> Result<Value, Failure> {
    let names: Vec<String> = store
        .images()
        .list()?
        .into_iter()
        .filter(|e| e.artifact.images().contains(&image.manifest_digest))
        .filter_map(|e| e.name.map(|n| n.familiar()))
        .collect();
    let repo_digests = store.repo_digests().list()?;
    let repo_digests = repo_digests.iter().filter(|known| known.is_of(&[image.manifest_digest]));
    let repo_digests: BTreeSet<String> = repo_digests.map(RepoDigest::familiar).collect();
    let c = &image.config;
    let mut properties = json!({
        "Id": image.id.to_string(),
        "RepoTags": names,
        "RepoDigests": repo_digests,
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
    });
    let origins = store.records().origins(&c.rootfs.diff_ids)?;
    if !origins.is_empty() {
        properties["Origins"] = origins.iter().map(origin_document).collect();
    }
    Ok(properties)
}

/// Returns the origin of a layer that was imported from a cache.
fn origin_document(found: &LayerOrigin) -> Value {
    let LayerOrigin { layer, origin } = found;
    let mut document = json!({"Layer": layer, "Cache": origin.cache});
    if let Some(runner) = &origin.runner {
        document["Runner"] = json!(runner);
    }
    if origin.imported > 0 {
        document["Imported"] = json!(jiff::Timestamp::from_second(origin.imported).unwrap_or_default().to_string());
    }
    document
}

/// Adds the fields that the printed document omits when empty, so that templates can use them.
pub fn fill_in(image: &mut Value) {
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
    let name = value::new_image_name(&args.name)?;
    let store = settings.open()?;
    let found = named::find_entry(&store, &args.image)?;
    store.images().tag(found.artifact.digest(), Some(&name))?;
    Ok(code::OK)
}
