//! The verbs `pull` and `push`: images from and to registries.

use std::fs::File;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use rbuild_dockerfile::Help;
use rbuild_engine::Warning;
use rbuild_image::{BlobDigest, ManifestDigest, Platform, Reference, SourceUrl, human_size};
use rbuild_linux::parallel::try_map;
use rbuild_registry::Client;
use rbuild_remedy::{RegistryAction, Remedy, ServerRemedy, sentence};
use rbuild_store::{Artifact, Download, Image, NamedImage, Store, StoreError};
use rbuild_transport::{
    BlobOrigin, DownloadRequest, EarlyPush, EarlyUploads, KeptIndex, LentLayer, ManifestFormat, NameUse, OtherPlatform,
    Outgoing, OutgoingForm, PulledImage, PulledPlatforms, PushFaults, TransferProgress, TransportError,
    UnlistedReferrer, WantedImage, check_name, outgoing, outgoing_lent,
};

use crate::args::{PullArgs, PushArgs, RegistryFlags};
use crate::commands::fetcher::ending::EndAtSignal;
use crate::commands::named::{self, Purpose};
use crate::exit::{Failure, code};
use crate::input::settings::Settings;
use crate::input::{flags, output, registry, value};
use crate::ui::hints::{self, Hint, ValueRemedy};
use crate::ui::terminal;
use crate::ui::transfer_bar::TransferBar;

/// The form of progress output on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransferDisplay {
    Nothing,
    /// A line for each blob and image.
    Lines,
    /// A line for each image, and a bar.
    Bar,
}

impl TransferDisplay {
    /// Returns the progress that suits the terminal.
    pub fn new(quiet: bool) -> TransferDisplay {
        match (quiet, terminal::redraws()) {
            (true, _) => TransferDisplay::Nothing,
            (false, true) => TransferDisplay::Bar,
            (false, false) => TransferDisplay::Lines,
        }
    }
}

/// Runs a transfer and shows its progress.
fn shown<T>(display: TransferDisplay, doing: &str, done: &str, transfer: impl FnOnce(&TransferProgress<'_>) -> T) -> T {
    let bar: OnceLock<TransferBar> = OnceLock::new();
    let moved: Arc<AtomicU64> = Arc::default();
    let total = |total: u64| {
        if display == TransferDisplay::Bar {
            bar.get_or_init(|| TransferBar::with_counter(doing, Some(total), moved.clone()));
        }
    };
    let finished = |digest: &BlobDigest, size: u64, origin: BlobOrigin| {
        if display == TransferDisplay::Lines {
            terminal::err(&format!("{}: {}\n", digest.short(), arrival(done, size, origin)));
        }
    };
    transfer(&TransferProgress { moved: moved.clone(), total: &total, done: &finished })
}

/// Describes a completed blob. `done` is the participle for a blob that was transferred, such as
/// "downloaded".
fn arrival(done: &str, size: u64, origin: BlobOrigin) -> String {
    match origin {
        BlobOrigin::Source => format!("{done} ({})", human_size(size)),
        BlobOrigin::Sink => "already exists".into(),
        BlobOrigin::OtherRepository => "mounted from another repository".into(),
    }
}

/// Returns the name of an image that is pulled, with its platform if that is not the one of this
/// machine.
pub fn shown_name(name: &Reference, platform: &Platform) -> String {
    if platform == &Platform::host() { name.familiar() } else { format!("{} ({platform})", name.familiar()) }
}

/// Pulls an image and reports the result.
pub fn pull_one(
    store: &Store,
    client: &Client,
    image: &WantedImage<'_>,
    display: TransferDisplay,
) -> Result<PulledImage, TransportError> {
    let doing = format!("pulling {}", shown_name(image.name, image.platform));
    if display != TransferDisplay::Nothing {
        terminal::err(&format!("{doing}\n"));
    }
    let pulled = shown(display, &doing, "pulled", |progress| rbuild_transport::pull(store, client, image, progress))?;
    pulled.warnings.iter().for_each(|warning| terminal::warning(warning.as_str()));
    if display != TransferDisplay::Nothing {
        pulled.lost.iter().for_each(|lost| terminal::note(&lost.to_string()));
    }
    Ok(pulled)
}

/// Downloads a file, unless the stored one is current, and reports that.
pub fn download_one(
    store: &Store,
    client: &Client,
    request: &DownloadRequest<'_>,
    display: TransferDisplay,
) -> Result<Download, TransportError> {
    shown(display, &format!("downloading {}", request.url), &format!("downloaded {}", request.url), |progress| {
        rbuild_transport::download(store, client, request, progress)
    })
}

/// Downloads a file that is used once.
pub fn download_once(store: &Store, url: &SourceUrl, quiet: bool) -> Result<File, Failure> {
    let display = TransferDisplay::new(quiet);
    let client = registry::client_of(&RegistryFlags::default(), &[], false)?;
    Ok(shown(display, &format!("downloading {url}"), "downloaded", |progress| {
        rbuild_transport::download_once(store, &client, url, progress)
    })?)
}

/// Pulls the images of several platforms, or of all if `wanted` is empty, and reports the result.
fn pull_several(
    store: &Store,
    client: &Client,
    name: &Reference,
    wanted: &[Platform],
    display: TransferDisplay,
) -> Result<PulledPlatforms, TransportError> {
    let platforms: Vec<String> = wanted.iter().map(Platform::to_string).collect();
    let platforms = if platforms.is_empty() { "all platforms".to_string() } else { platforms.join(", ") };
    let doing = format!("pulling {} ({platforms})", name.familiar());
    if display != TransferDisplay::Nothing {
        terminal::err(&format!("{doing}\n"));
    }
    let pulled = shown(display, &doing, "pulled", |progress| {
        rbuild_transport::pull_platforms(store, client, name, wanted, progress)
    })?;
    pulled.warnings.iter().for_each(|warning| terminal::warning(warning.as_str()));
    if display != TransferDisplay::Nothing {
        pulled.lost.iter().for_each(|lost| terminal::note(&lost.to_string()));
    }
    Ok(pulled)
}

/// Returns the platforms of a pull of several, an empty list for all; `None` for a pull of one.
fn several_platforms(args: &PullArgs) -> Result<Option<Vec<Platform>>, Failure> {
    match args.platform.as_ref().filter(|list| list.contains(',')) {
        Some(list) => flags::platforms(std::slice::from_ref(list), None).map(Some),
        None => Ok(args.all_platforms.then(Vec::new)),
    }
}

pub fn pull(settings: &Settings, args: PullArgs) -> Result<u8, Failure> {
    if let Some(wanted) = several_platforms(&args)? {
        return pull_with(settings, &args, |store, client, name, display| {
            let pulled = pull_several(store, client, name, &wanted, display)?;
            Ok((pulled.is_new, pulled.resolved))
        });
    }
    let platform = flags::platform(args.platform.as_deref())?;
    let other = if platform.is_some() { OtherPlatform::Refuse } else { OtherPlatform::Accept };
    let platform = platform.unwrap_or_else(Platform::host);
    pull_with(settings, &args, |store, client, name, display| {
        let image = WantedImage { name, platform: &platform, other, name_use: NameUse::ThisImage };
        let pulled = pull_one(store, client, &image, display)?;
        Ok((pulled.is_new, pulled.resolved))
    })
}

/// Pulls each image with `pull`, which returns true if anything was downloaded, and the digest in
/// the registry.
fn pull_with(
    settings: &Settings,
    args: &PullArgs,
    pull: impl Fn(&Store, &Client, &Reference, TransferDisplay) -> Result<(bool, ManifestDigest), TransportError>,
) -> Result<u8, Failure> {
    if args.all_tags {
        args.images.iter().try_for_each(|name| check_repository(name))?;
    }
    let names = args.images.iter().map(|name| registry::full_name(name)).collect::<Result<Vec<_>, _>>()?;
    let store = settings.open()?;
    let client = registry::client_of(&args.registry, &names, args.quiet)?;
    let display = TransferDisplay::new(args.quiet);
    let names = if args.all_tags { all_tags(&client, &names)? } else { names };
    let mut code = code::OK;
    for name in &names {
        let (is_new, resolved) = match pull(&store, &client, name, display) {
            Ok(pulled) => pulled,
            Err(TransportError::Artifact { place, kind }) if args.all_tags => {
                let tag = name.tag().unwrap_or_default();
                terminal::note(&format!("tag {tag} of {place} is an artifact of type {kind}, not an image"));
                continue;
            }
            // Such as a cache, or a claim on one.
            Err(TransportError::NoImage { place, .. }) if args.all_tags => {
                let tag = name.tag().unwrap_or_default();
                terminal::note(&format!("tag {tag} of {place} is an index that lists no image"));
                continue;
            }
            // The other tags may be wanted as well.
            Err(e) if args.all_tags => {
                code = Failure::from(e).report();
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        if display != TransferDisplay::Nothing {
            terminal::err(&status(is_new, &resolved.to_string(), &name.familiar()));
        }
        terminal::out(&format!("{name}\n"));
    }
    Ok(code)
}

/// Returns a name for each tag of the repositories, except for those of lists of referrers.
fn all_tags(client: &Client, repositories: &[Reference]) -> Result<Vec<Reference>, Failure> {
    let mut names = Vec::new();
    for repository in repositories {
        let is_list = |tag: &str| tag.replacen('-', ":", 1).parse::<BlobDigest>().is_ok();
        for tag in rbuild_registry::tags(&client.repository(repository)?)?.into_iter().filter(|tag| !is_list(tag)) {
            names.push(value::image_name(&format!("{}/{}:{tag}", repository.registry(), repository.path()))?);
        }
    }
    Ok(names)
}

/// Formats the result of a pull like docker.
fn status(is_new: bool, digest: &str, name: &str) -> String {
    let news = if is_new { "Downloaded newer image for" } else { "Image is up to date for" };
    format!("Digest: {digest}\nStatus: {news} {name}\n")
}

/// Formats the result of a push like docker: with the size of the manifest in bytes.
fn sent(tag: &str, digest: &str, size: usize) -> String {
    format!("{tag}: digest: {digest} size: {size}\n")
}

/// Returns the warning about the digest of a push that the store does not know.
fn unnoted_digest(name: &Reference, e: &StoreError) -> Warning<Help> {
    let text = format!("the digest of `{}` in the registry cannot be noted: {}", name.familiar(), sentence(e));
    Warning { text, help: e.remedy().as_ref().map(|remedy| Hint::from(remedy).into()) }
}

/// Returns the warning about a manifest that is not listed as a referrer of its subject.
fn unlisted_referrer(name: &Reference, unlisted: &UnlistedReferrer) -> String {
    let UnlistedReferrer { tag, subject } = unlisted;
    format!(
        "`{}` cannot be listed as a referrer of {subject}: the tag {tag} of its repository is not an image index",
        name.familiar()
    )
}

/// The layers of an image that is pushed.
pub enum PushedLayers<'a> {
    /// Those that are not compressed are compressed, and uploaded meanwhile.
    Compressed,
    /// Pushed as they are.
    Stored,
    /// Pushed as they are, and the repository of the first name has these already.
    Built(Vec<BlobDigest>),
    /// Pushed as they are, and other repositories have those that the store lacks.
    Lent(&'a [LentLayer]),
}

/// An image that is pushed.
pub struct PushedImage<'a> {
    /// The image of each platform.
    pub platforms: &'a [Image],
    pub layers: PushedLayers<'a>,
    pub format: ManifestFormat,
    /// The stored index of several platforms.
    pub index: Option<KeptIndex>,
    /// True if layers that must not be distributed are pushed as well.
    pub nondistributable: bool,
}

/// Prepares an image that is pushed under several names.
fn prepare(
    store: &Store,
    client: &Client,
    image: PushedImage<'_>,
    names: &[Reference],
    display: TransferDisplay,
) -> Result<Outgoing, TransportError> {
    let PushedImage { platforms, layers, format, index, nondistributable } = image;
    let form = |as_is| OutgoingForm { as_is, format, index, nondistributable };
    match (layers, names.first()) {
        (PushedLayers::Compressed, Some(first)) => {
            names.iter().try_for_each(check_name)?;
            let (early, doing) = (EarlyPush::new(client, first)?, format!("pushing {}", first.familiar()));
            let moved = early.moved().clone();
            let _bar = (display == TransferDisplay::Bar).then(|| TransferBar::with_counter(&doing, None, moved));
            outgoing(store, platforms, form(false), Some(early))
        }
        (PushedLayers::Built(uploaded), Some(first)) => {
            let early = EarlyUploads::of(client, first, uploaded)?;
            Ok(outgoing(store, platforms, form(true), None)?.with_early(early))
        }
        (PushedLayers::Lent(lent), _) => outgoing_lent(store, platforms, lent),
        (layers, _) => outgoing(store, platforms, form(!matches!(layers, PushedLayers::Compressed)), None),
    }
}

/// Pushes an image under several names; prints each with its digest. Returns the digest. The names
/// of one registry are pushed one after another, and registries side by side. After a failure, no
/// further name is begun.
pub fn push_all(
    store: &Store,
    client: &Client,
    image: PushedImage<'_>,
    names: &[Reference],
    display: TransferDisplay,
) -> Result<ManifestDigest, Failure> {
    let failed = |e| not_pushed(e, names);
    let image = prepare(store, client, image, names, display).map_err(failed)?;
    let push = NamePush { store, client, image: &image, display };
    match &by_registry(names)[..] {
        [] | [_] => names.iter().try_for_each(|name| {
            push.announce(name);
            let doing = format!("pushing {}", name.familiar());
            shown(display, &doing, "pushed", |progress| push.run(name, progress)).map_err(failed)
        })?,
        registries => push.side_by_side(registries, names.len()).map_err(failed)?,
    }
    Ok(image.digest)
}

/// Returns the failure of a push. If the login or the connection to Docker Hub failed for a name
/// without a registry and a user, another registry was probably meant.
pub fn not_pushed(e: TransportError, names: &[Reference]) -> Failure {
    const HUB: [&str; 2] = ["docker.io", "registry-1.docker.io"];
    let remedy = match &e {
        TransportError::Registry(e) if HUB.contains(&e.place.registry.as_str()) => e.remedy(),
        _ => None,
    };
    let is_access = match remedy {
        Some(Remedy::Server(ServerRemedy::CheckNetwork)) => true,
        Some(Remedy::Server(ServerRemedy::Registry { action, .. })) => {
            matches!(action, RegistryAction::LogIn | RegistryAction::CheckLogin)
        }
        _ => false,
    };
    let bare = |name: &&Reference| name.registry() == HUB[0] && !name.familiar_name().contains('/');
    let failure = Failure::from(e);
    match names.iter().find(bare).filter(|_| is_access) {
        Some(name) => failure.help(Remedy::from(ServerRemedy::NameRegistry { name: name.shortest() })),
        None => failure,
    }
}

/// Returns the names of each registry, in the order in which they occur.
fn by_registry(names: &[Reference]) -> Vec<Vec<&Reference>> {
    let mut all: Vec<Vec<&Reference>> = Vec::new();
    for name in names {
        match all.iter_mut().find(|group| group[0].registry() == name.registry()) {
            Some(group) => group.push(name),
            None => all.push(vec![name]),
        }
    }
    all
}

/// Maximum number of registries that an image is pushed to at once.
const MAX_REGISTRIES: usize = 8;

/// The push of an image under one of its names.
struct NamePush<'a> {
    store: &'a Store,
    client: &'a Client,
    image: &'a Outgoing,
    display: TransferDisplay,
}

impl NamePush<'_> {
    fn announce(&self, name: &Reference) {
        // The message about the end is the last one.
        if self.display != TransferDisplay::Nothing && !registry::uploads().is_ending() {
            terminal::err(&format!("pushing {}\n", name.familiar()));
        }
    }

    fn run(&self, name: &Reference, progress: &TransferProgress<'_>) -> Result<(), TransportError> {
        let PushFaults { unnoted, unlisted } =
            rbuild_transport::push(self.store, self.client, self.image, name, progress)?;
        if let Some(e) = unnoted {
            terminal::warning(unnoted_digest(name, &e));
        }
        unlisted.iter().for_each(|unlisted| terminal::warning(unlisted_referrer(name, unlisted)));
        if self.display != TransferDisplay::Nothing {
            let tag = name.tag().unwrap_or("latest");
            terminal::err(&sent(tag, &self.image.digest.to_string(), self.image.document_size()));
        }
        Ok(())
    }

    /// Pushes to several registries at once. `count` is the number of all names.
    fn side_by_side(&self, registries: &[Vec<&Reference>], count: usize) -> Result<(), TransportError> {
        let moved: Arc<AtomicU64> = Arc::default();
        let total = self.image.size().saturating_mul(count as u64);
        let doing = format!("pushing to {} registries", registries.len());
        let _bar = (self.display == TransferDisplay::Bar)
            .then(|| TransferBar::with_counter(&doing, Some(total), moved.clone()));
        let pushed = try_map(MAX_REGISTRIES, registries, |names| {
            names.iter().try_for_each(|name| {
                self.announce(name);
                let done = |digest: &BlobDigest, size: u64, origin: BlobOrigin| {
                    if self.display == TransferDisplay::Lines {
                        let arrival = arrival("pushed", size, origin);
                        terminal::err(&format!("{}: {}: {arrival}\n", name.registry(), digest.short()));
                    }
                };
                self.run(name, &TransferProgress { moved: moved.clone(), total: &|_| {}, done: &done })
            })
        });
        pushed.map(drop)
    }
}

/// Parses the format of manifests.
fn manifest_format(text: Option<&str>) -> Result<ManifestFormat, Failure> {
    match text {
        None => Ok(ManifestFormat::Stored),
        Some("oci") => Ok(ManifestFormat::Oci),
        // The name that podman uses.
        Some("docker" | "v2s2") => Ok(ManifestFormat::Docker),
        Some(other) => {
            let failure = Failure::usage(format!("--format {other}: unknown format of manifests"));
            Err(failure.help(hints::use_one_of(&["oci", "docker"])))
        }
    }
}

/// An image of the store, and the names under which it is pushed.
struct Pushed {
    artifact: Artifact,
    names: Vec<Reference>,
}

/// Returns the image of a push without `--all-tags`.
fn pushed_image(store: &Store, args: &PushArgs, names: &[Reference]) -> Result<Pushed, Failure> {
    let found = named::find_entry(store, &args.image)?;
    Ok(Pushed { artifact: found.artifact, names: names.to_vec() })
}

/// Returns the images of a repository with their tags.
fn tagged_images(store: &Store, args: &PushArgs, repository: &Reference) -> Result<Vec<Pushed>, Failure> {
    let mut all: Vec<Pushed> = Vec::new();
    let same = |name: &Reference| name.registry() == repository.registry() && name.path() == repository.path();
    for NamedImage { name, artifact, .. } in store.images().list()? {
        let Some(name) = name.filter(|name| same(name) && !name.is_pinned()) else { continue };
        match all.iter_mut().find(|pushed| pushed.artifact == artifact) {
            Some(pushed) => pushed.names.push(name),
            None => all.push(Pushed { artifact, names: vec![name] }),
        }
    }
    if all.is_empty() {
        return Err(named::no_image(store, &args.image, Purpose::Manage));
    }
    Ok(all)
}

/// Fails if the name of a repository has a tag or a digest.
fn check_repository(text: &str) -> Result<(), Failure> {
    let last = text.rsplit('/').next().unwrap_or(text);
    if !last.contains([':', '@']) {
        return Ok(());
    }
    let failure = Failure::usage(format!("`{text}` has a tag or a digest, but --all-tags requires a repository"));
    Err(failure.help(ValueRemedy::OmitTag))
}

pub fn push(settings: &Settings, args: PushArgs) -> Result<u8, Failure> {
    if args.all_tags {
        check_repository(&args.image)?;
    }
    let mut names = match &args.target[..] {
        [] => vec![value::image_name(&args.image)?],
        targets => targets.iter().map(|name| value::image_name(name)).collect::<Result<Vec<_>, _>>()?,
    };
    let format = manifest_format(args.format.as_deref())?;
    let digest_file = args.digestfile.as_ref().map(|path| output::file("the digest file", path)).transpose()?;
    let store = settings.open()?;
    if args.target.is_empty() && !args.all_tags {
        names = named::pulled_name(&store, &args.image).map_or(names, |name| vec![name]);
    }
    let pushed = if args.all_tags {
        tagged_images(&store, &args, &names[0])?
    } else {
        vec![pushed_image(&store, &args, &names)?]
    };
    let client = registry::client_of(&args.registry, &names, args.quiet)?;
    // Until the last push, a signal cancels the open uploads.
    let _end = EndAtSignal::of_command().map_err(|e| Failure::caused("cannot watch signals", &e))?;
    for Pushed { artifact, names } in &pushed {
        let images = store.images().images_of(artifact)?;
        let layers = if args.as_is { PushedLayers::Stored } else { PushedLayers::Compressed };
        let index = KeptIndex::of(&store, artifact)?;
        let nondistributable = args.allow_nondistributable_artifacts;
        let image = PushedImage { platforms: &images, layers, format, index, nondistributable };
        let digest = push_all(&store, &client, image, names, TransferDisplay::new(args.quiet))?;
        for name in names {
            terminal::out(&format!("{}@{digest}\n", name.familiar_name()));
        }
        if let Some(dest) = &digest_file {
            let written = dest.write(digest.to_string().as_bytes());
            written.map_err(|e| output::unwritten("the digest file", &dest.path(), e))?;
        }
    }
    Ok(code::OK)
}

#[cfg(test)]
mod tests {
    use rbuild_registry::{ConnectionFailure, RegistryError, RegistryProblem, RemoteRepository};

    use super::*;

    #[test]
    fn a_push_to_a_name_without_a_registry_suggests_one() {
        let failed = |registry: &str, name: &str| {
            let place = RemoteRepository { registry: registry.into(), repository: "library/p2".into() };
            let problem = RegistryProblem::Connection {
                host: registry.into(),
                request: "GET /v2/".into(),
                kind: ConnectionFailure::Lookup,
                source: "the host name does not exist".into(),
            };
            let e = TransportError::Registry(RegistryError::new(place, problem));
            not_pushed(e, &[name.parse().unwrap()]).text()
        };
        let hint = "hint: write the registry before the name, for example HOST/p2; without one, it is docker.io";
        assert!(failed("docker.io", "p2").contains(hint), "{}", failed("docker.io", "p2"));
        assert!(failed("registry-1.docker.io", "p2:1").contains("HOST/p2:1;"));
        for (registry, name) in [("docker.io", "me/p2"), ("a.io", "a.io/p2")] {
            assert!(failed(registry, name).contains("hint: check the network"), "{name}");
        }
    }

    #[test]
    fn faults_of_pushes_are_as_recorded() {
        let formats = [None, Some("oci"), Some("docker"), Some("v2s2")].map(|text| manifest_format(text).unwrap());
        let docker = ManifestFormat::Docker;
        assert_eq!(formats, [ManifestFormat::Stored, ManifestFormat::Oci, docker, docker]);
        for repository in ["a", "a.io:5000/b/c"] {
            check_repository(repository).unwrap();
        }
        let faults = [
            manifest_format(Some("v2s1")).unwrap_err(),
            check_repository("a.io:5000/b:1").unwrap_err(),
            check_repository("a@sha256:0").unwrap_err(),
        ];
        rbuild_testkit::assert_recorded!("pushes", faults.map(|failure| failure.text()).concat());
    }

    #[test]
    fn reports_are_as_recorded() {
        let origins = [BlobOrigin::Source, BlobOrigin::Sink, BlobOrigin::OtherRepository];
        let arrivals = origins.map(|origin| arrival("pulled", 1500, origin) + "\n");
        let statuses = [true, false].map(|is_new| status(is_new, "sha256:0", "demo:1"));
        let unlisted = UnlistedReferrer { tag: "sha256-0".into(), subject: BlobDigest::of(b"") };
        let unlisted = unlisted_referrer(&"a.io/b".parse().unwrap(), &unlisted);
        rbuild_testkit::assert_recorded!(
            "transfers",
            arrivals.concat() + &statuses.concat() + &sent("1", "sha256:0", 1500) + &unlisted
        );
    }
}
