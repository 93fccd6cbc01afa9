//! Resolves image names, in the store or by pulling.

use std::collections::HashSet;

use rbuild_dockerfile::Diagnostic;
use rbuild_image::{ImageName, Platform, Reference};
use rbuild_plan::{ImageNeed, PlatformImage};
use rbuild_remedy::{DockerfileRemedy, ImageRemedy, RegistryAction, Remedy, ReportedError, ServerRemedy};
use rbuild_store::{Image, Store, StoreError};

use crate::error::{BuildError, Result};
use crate::network_access::{ImageRequest, NetworkAccess, reported};
use crate::request::PullPolicy;

/// Resolves the images of one build.
pub(super) struct Resolver<'a> {
    store: &'a Store,
    policy: PullPolicy,
    network: &'a NetworkAccess<'a>,
    /// Images that were requested in this build.
    requested: HashSet<ImageRequest>,
}

/// An image of the store that a name may refer to.
struct Candidate {
    image: Image,
    /// False if the image does not match the platform, but its registry may have one that does.
    fits: bool,
}

impl<'a> Resolver<'a> {
    pub(super) fn new(store: &'a Store, policy: PullPolicy, network: &'a NetworkAccess<'a>) -> Resolver<'a> {
        Resolver { store, policy, network, requested: HashSet::new() }
    }

    /// Resolves the images that are needed. All missing ones are reported together.
    pub(super) fn resolve(&mut self, needs: Vec<ImageNeed>) -> Result<Vec<(ImageNeed, Image)>> {
        let mut wanted: Vec<(usize, ImageRequest)> = Vec::new();
        let mut failures: Vec<Option<ReportedError>> = vec![None; needs.len()];
        let mut keys = Vec::new();
        for (at, need) in needs.iter().enumerate() {
            let key = match self.key(need)? {
                Ok(key) => {
                    wanted.extend(self.to_pull(need, &key)?.map(|request| (at, request)));
                    key
                }
                Err(e) => {
                    failures[at] = Some(e);
                    need.key()
                }
            };
            keys.push(key);
        }
        if !wanted.is_empty() {
            let list: Vec<ImageRequest> = wanted.iter().map(|(_, request)| request.clone()).collect();
            for ((at, _), outcome) in wanted.iter().zip(self.network.pull(&list)?) {
                failures[*at] = outcome.err();
            }
            self.requested.extend(list);
        }
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for ((need, key), failure) in needs.into_iter().zip(keys).zip(failures) {
            if let Some(image) = self.network.incoming(&key) {
                found.push((need, image));
                continue;
            }
            match (candidate(self.store, &key)?, failure) {
                (Some(candidate), None) => found.push((need, candidate.image)),
                (Some(candidate), Some(failure)) if candidate.fits => missing.push(stale_image(&need, failure)),
                (Some(candidate), Some(failure)) => {
                    missing.push(foreign_image(&need, &candidate.image.config.platform(), failure));
                }
                (None, failure) => missing.push(missing_image(self.store, &need, failure)),
            }
        }
        if missing.is_empty() { Ok(found) } else { Err(BuildError::Unmet(missing)) }
    }

    /// Returns the image that a need stands for. A short name may stand for an image of another
    /// registry, unless the store has an image of that name.
    fn key(&self, need: &ImageNeed) -> Result<std::result::Result<PlatformImage, ReportedError>> {
        let own = need.key();
        let is_reference = matches!(own.name, ImageName::Reference(_)) && !need.later_stage;
        if !is_reference || candidate(self.store, &own)?.is_some() {
            return Ok(Ok(own));
        }
        let named = |full: Option<Reference>| match full {
            Some(full) => PlatformImage { name: ImageName::Reference(full), ..own },
            None => own,
        };
        Ok(self.network.full_name(&need.image.text).map(named))
    }

    /// Returns the image to pull for a need, if any.
    fn to_pull(&self, need: &ImageNeed, key: &PlatformImage) -> Result<Option<ImageRequest>> {
        let ImageName::Reference(name) = &key.name else { return Ok(None) };
        let request = ImageRequest { name: name.clone(), platform: need.platform.clone() };
        let pulls = match self.policy {
            PullPolicy::Never => false,
            _ if need.later_stage || self.network.incoming(key).is_some() => false,
            PullPolicy::Always => !self.requested.contains(&request),
            PullPolicy::Missing => !candidate(self.store, key)?.is_some_and(|candidate| candidate.fits),
        };
        Ok(pulls.then_some(request))
    }
}

/// Returns the image of the store that a build with this policy uses for a name and a platform;
/// `None` if there is none, or if the build would pull another one.
///
/// # Errors
///
/// Fails if the store cannot be read.
pub fn stored_image(store: &Store, wanted: &PlatformImage, policy: PullPolicy) -> Result<Option<Image>> {
    let found = candidate(store, wanted)?;
    Ok(found.filter(|candidate| candidate.fits || policy == PullPolicy::Never).map(|candidate| candidate.image))
}

/// Returns the image of the store for a name and a platform. Images that exist on this machine only
/// are used for any platform.
fn candidate(store: &Store, PlatformImage { name, platform }: &PlatformImage) -> Result<Option<Candidate>> {
    let named = match store.images().named_image_for(name, platform) {
        Ok(image) => Some(image),
        Err(StoreError::NoImage(_)) => None,
        Err(e) => return Err(e.into()),
    };
    let ImageName::Reference(name) = name else {
        return Ok(named.map(|image| Candidate { image, fits: true }));
    };
    if let Some(image) = named.as_ref().filter(|image| platform.accepts(&image.config.platform())) {
        return Ok(Some(Candidate { image: image.clone(), fits: true }));
    }
    if let Some((_, image)) = store.images().pulled_image(name, platform)? {
        return Ok(Some(Candidate { image, fits: true }));
    }
    let Some(image) = named else { return Ok(None) };
    let fits = !store.images().was_pulled(name, &image.manifest_digest)?;
    Ok(Some(Candidate { image, fits }))
}

/// Returns the error for a stored image that may be outdated, because its registry could not be
/// contacted.
fn stale_image(need: &ImageNeed, failure: ReportedError) -> Diagnostic {
    let ReportedError { message, errno, remedy } = failure;
    let text = &need.image.text;
    let d = Diagnostic::new(need.span, format!("could not check the registry for a newer `{text}`: {message}"));
    let d = Diagnostic { errno, ..d };
    d.help(Remedy::Image(ImageRemedy::UseStoredImage { first: remedy.map(Box::new) }))
}

/// Returns the error for an image that is stored for another platform only, and could not be pulled
/// for the requested one.
fn foreign_image(need: &ImageNeed, own: &Platform, failure: ReportedError) -> Diagnostic {
    let (text, wanted) = (&need.image.text, &need.platform);
    reported(need.span, failure, |message| {
        format!("the image `{text}` in the local store is for {own}, and pulling it for {wanted} failed: {message}")
    })
}

fn missing_image(store: &Store, need: &ImageNeed, failure: Option<ReportedError>) -> Diagnostic {
    let text = &need.image.text;
    // A stage that FROM may name comes earlier. The image of a later stage's name is not pulled.
    if need.later_stage || need.stages.iter().any(|stage| stage.eq_ignore_ascii_case(text)) {
        let message = format!("stage `{text}` is defined after its use, and no image in the local store has that name");
        return Diagnostic::new(need.span, message).help(Remedy::from(DockerfileRemedy::MoveOrRenameStage));
    }
    if !matches!(need.image.name, ImageName::Reference(_)) {
        let d = Diagnostic::new(need.span, format!("no image with the ID or digest `{text}` in the local store"));
        return d.help(Remedy::Image(ImageRemedy::ListImages));
    }
    let absent = if need.stages.is_empty() {
        format!("image `{text}` not found in the local store")
    } else {
        format!("`{text}` is neither a stage nor an image in the local store")
    };
    let (message, errno, remedy) = match failure {
        Some(ReportedError { message, errno, remedy }) => {
            (format!("{absent}, and pulling it failed: {message}"), errno, remedy)
        }
        None => (absent, None, None),
    };
    let d = Diagnostic { errno, ..Diagnostic::new(need.span, message) };
    // Image commands accept an ID prefix here; FROM does not.
    if let Ok((None, image)) = store.images().find_image(text) {
        return d.help(Remedy::Image(ImageRemedy::WriteWholeId { id: image.id.to_string() }));
    }
    match (similar(store, need), remedy) {
        (Some(close), Some(remedy)) => d.help(with_similar_name(remedy, close)),
        (Some(close), None) => d.help(Remedy::did_you_mean(close)),
        (None, Some(remedy)) => d.help(remedy),
        (None, None) => d.help(Remedy::Image(ImageRemedy::ObtainImage { name: text.clone() })),
    }
}

/// Returns the remedy of a failed pull, given a similar name that may have been meant.
pub fn with_similar_name(remedy: Remedy, name: String) -> Remedy {
    match remedy {
        // Registries also refuse the names of images that do not exist.
        Remedy::Server(ServerRemedy::Registry { registry, action: RegistryAction::LogIn }) => {
            ServerRemedy::LogInOrCorrectName { registry, name }.into()
        }
        // The name is not the reason.
        Remedy::Disk(_)
        | Remedy::Store(_)
        | Remedy::Machine(_)
        | Remedy::Server(ServerRemedy::Registry { .. } | ServerRemedy::TrustAuthority { .. }) => remedy,
        _ => Remedy::did_you_mean(name),
    }
}

/// Returns the name of the stage or stored image that was most likely meant: a similar name, or
/// else the same image with another tag. Images of other registries are not considered.
fn similar(store: &Store, need: &ImageNeed) -> Option<String> {
    let ImageName::Reference(reference) = &need.image.name else { return None };
    // A digest identifies exactly one image, so there is no similar one.
    if reference.is_pinned() {
        return None;
    }
    // Ignore a common host, which would make any two names similar.
    let host = need.image.text.split_once('/').map(|(host, _)| host).filter(|host| host.contains(['.', ':']));
    let path = |name: String| match host {
        Some(host) => name.strip_prefix(host)?.strip_prefix('/').map(str::to_string),
        None => Some(name),
    };
    let listed = store.images().list().unwrap_or_default().into_iter().filter_map(|image| image.name);
    let names: Vec<Reference> = listed.filter(|name| path(name.familiar()).is_some()).collect();
    let whole: Vec<String> = names.iter().filter_map(|name| path(name.familiar())).collect();
    let bare: Vec<String> = names.iter().filter_map(|name| path(name.familiar_name())).collect();
    let near = |wanted: &str, list: &[String]| {
        let close = rbuild_dockerfile::closest(wanted, list.iter().map(String::as_str))?;
        names.get(list.iter().position(|name| name == close)?)
    };
    let text = path(need.image.text.clone())?;
    let stages = need.stages.iter().map(String::as_str).filter(|_| host.is_none());
    if let Some(stage) = rbuild_dockerfile::closest(&text, stages) {
        return Some(stage.to_string());
    }
    let wanted = reference.familiar_name();
    let same = || names.iter().find(|name| name.familiar_name() == wanted);
    let found = near(&text, &whole).or_else(same).or_else(|| near(&path(wanted.clone())?, &bare));
    let empty = || rbuild_dockerfile::closest(&text, ["scratch"]).filter(|_| host.is_none()).map(str::to_string);
    found.map(Reference::shortest).or_else(empty)
}

#[cfg(test)]
mod tests {
    use rbuild_remedy::DiskRemedy;
    use rbuild_testkit::{Scratch, assert_recorded};

    use super::*;

    #[test]
    fn the_errno_of_a_failed_pull_is_kept() {
        let dir = Scratch::new();
        let store = Store::open(&dir).unwrap();
        let need = ImageNeed {
            image: rbuild_plan::WrittenImage::parse("debian").unwrap(),
            platform: "linux/amd64".parse().unwrap(),
            span: Default::default(),
            stages: Vec::new(),
            later_stage: false,
        };
        let failure = || ReportedError { errno: Some(28), ..ReportedError::new("no space left on device") };
        for found in [
            stale_image(&need, failure()),
            foreign_image(&need, &"linux/arm64".parse().unwrap(), failure()),
            missing_image(&store, &need, Some(failure())),
        ] {
            assert_eq!(found.errno, Some(28), "{}", found.message);
        }
    }

    #[test]
    fn images_that_are_missing_or_stale_are_reported_as_recorded() {
        let dir = Scratch::new();
        let store = Store::open(&dir).unwrap();
        let need = |text: &str, stages: &[&str], later_stage| ImageNeed {
            image: rbuild_plan::WrittenImage::parse(text).unwrap(),
            platform: "linux/amd64".parse().unwrap(),
            span: Default::default(),
            stages: stages.iter().map(|stage| stage.to_string()).collect(),
            later_stage,
        };
        let failure = || ReportedError {
            remedy: Some(ServerRemedy::CheckNetwork.into()),
            ..ReportedError::new("GET /v2/ at r.io")
        };
        let full =
            ReportedError { remedy: Some(Remedy::Disk(DiskRemedy::FreeSpace)), ..ReportedError::new("no space left") };
        let refused = |action| ReportedError {
            remedy: Some(ServerRemedy::Registry { registry: "r.io".into(), action }.into()),
            ..ReportedError::new("r.io refuses to pull")
        };
        let id = format!("sha256:{}", "0".repeat(64));
        let found = [
            stale_image(&need("debian", &[], false), failure()),
            foreign_image(&need("debian", &[], false), &"linux/arm64".parse().unwrap(), failure()),
            missing_image(&store, &need("builder", &[], true), None),
            missing_image(&store, &need("builder", &["Builder"], false), None),
            missing_image(&store, &need(&id, &[], false), None),
            missing_image(&store, &need("debian", &[], false), None),
            missing_image(&store, &need("debian", &["build"], false), None),
            missing_image(&store, &need("biuld", &["build"], false), None),
            missing_image(&store, &need("debian", &[], false), Some(failure())),
            missing_image(&store, &need("biuld", &["build"], false), Some(failure())),
            missing_image(&store, &need("biuld", &["build"], false), Some(full)),
            missing_image(&store, &need("biuld", &["build"], false), Some(refused(RegistryAction::LogIn))),
            missing_image(&store, &need("biuld", &["build"], false), Some(refused(RegistryAction::CheckLogin))),
        ];
        let lines = found.iter().map(|d| format!("{}\n  remedy: {:?}\n", d.message, d.help));
        assert_recorded!("missing-images", lines.collect::<String>());
    }
}
