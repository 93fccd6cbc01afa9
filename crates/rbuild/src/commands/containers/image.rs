//! Images of containers: from the store, or pulled.

use rbuild_engine::{PullPolicy, with_similar_name};
use rbuild_image::{Platform, Reference};
use rbuild_remedy::{ImageRemedy, Remedy, ReportedError};
use rbuild_store::{Image, Store};
use rbuild_transport::{NameUse, OtherPlatform, WantedImage};

use crate::args::RegistryFlags;
use crate::commands::fetcher::{single_pull, unpacking_pull};
use crate::commands::named::{self, Purpose, StoredImage};
use crate::commands::transfer::TransferDisplay;
use crate::exit::Failure;
use crate::input::settings::Settings;
use crate::input::{flags, registry};
use crate::ui::hints::Hint;

/// The image of a container, as the command line specifies it.
pub struct ContainerImage<'a> {
    pub name: &'a str,
    pub platform: Option<&'a str>,
    pub policy: Option<PullPolicy>,
    /// True if a pull shows no progress.
    pub quiet: bool,
    pub registry: &'a RegistryFlags,
    /// The settings of the builder that unpacks the image while it is pulled; `None` if the
    /// container is not started now.
    pub unpack: Option<&'a Settings>,
}

impl ContainerImage<'_> {
    /// Returns the image. If the policy requires it, pulls the image before. The caller must have
    /// one thread.
    ///
    /// # Errors
    ///
    /// Fails if the image is neither in the store nor in its registry, or if it is not for the
    /// requested platform.
    pub fn obtain(&self, store: &Store) -> Result<Image, Failure> {
        registry::check(self.registry)?;
        let platform = flags::platform(self.platform)?;
        let stored = named::look_up(store, self.name, platform.as_ref())?;
        let name = match self.name_to_pull(&stored) {
            Some(name) => name?,
            None => return self.stored_only(store, stored, platform),
        };
        let host = Platform::host();
        let image = WantedImage {
            name: &name,
            platform: platform.as_ref().unwrap_or(&host),
            other: if platform.is_some() { OtherPlatform::Refuse } else { OtherPlatform::Accept },
            name_use: NameUse::PreferredImage,
        };
        let pulled = match self.unpack {
            Some(settings) => {
                let display = TransferDisplay::new(self.quiet);
                unpacking_pull::pull(settings, store, self.registry, &image, display)?
            }
            None => single_pull::pull(store, self.registry, &image, self.quiet)?,
        };
        match pulled {
            Ok(manifest) => Ok(store.images().image(&manifest)?),
            Err(error) => Err(unpulled(self.name, &stored, error, image.platform, || named::similar(store, self.name))),
        }
    }

    /// Returns the name under which the image is pulled; `None` if it is not pulled. Images that
    /// are specified by ID are not, because an ID always stands for the same image.
    fn name_to_pull(&self, stored: &StoredImage) -> Option<Result<Reference, Failure>> {
        let pulls = match (self.policy.unwrap_or_default(), stored) {
            (PullPolicy::Never, _) | (PullPolicy::Missing, StoredImage::Found { .. }) => false,
            (PullPolicy::Missing, StoredImage::Other { was_pulled, .. }) => *was_pulled,
            (PullPolicy::Missing, StoredImage::Missing) | (PullPolicy::Always, _) => true,
        };
        match stored {
            _ if !pulls => None,
            StoredImage::Found { name, .. } | StoredImage::Other { name, .. } => name.clone().map(Ok),
            StoredImage::Missing => {
                let is_name = self.name.parse::<Reference>().is_ok() && !self.name.starts_with("sha256:");
                is_name.then(|| registry::full_name(self.name))
            }
        }
    }

    fn stored_only(&self, store: &Store, stored: StoredImage, platform: Option<Platform>) -> Result<Image, Failure> {
        match stored {
            StoredImage::Found { image, .. } => Ok(*image),
            StoredImage::Missing => Err(named::no_image(store, self.name, Purpose::Use)),
            StoredImage::Other { platforms, .. } => {
                Err(named::other_platforms(self.name, &platform.unwrap_or_else(Platform::host), platforms))
            }
        }
    }
}

/// Returns the failure for an image that cannot be pulled. `similar` returns the name of a stored
/// image that may have been meant.
fn unpulled(
    name: &str,
    stored: &StoredImage,
    error: ReportedError,
    platform: &Platform,
    similar: impl FnOnce() -> Option<String>,
) -> Failure {
    let ReportedError { message, remedy, .. } = error;
    let (message, remedy) = match stored {
        StoredImage::Found { .. } => (
            format!("could not check the registry for a newer `{name}`: {message}"),
            Some(Remedy::Image(ImageRemedy::UseStoredImage { first: remedy.map(Box::new) })),
        ),
        StoredImage::Other { platforms, .. } => {
            let own = platforms.join(", ");
            let fault = format!("the image `{name}` in the local store is for {own}");
            (format!("{fault}, and pulling it for {platform} failed: {message}"), remedy)
        }
        StoredImage::Missing => {
            let remedy = match (similar(), remedy) {
                (Some(near), Some(remedy)) => Some(with_similar_name(remedy, near)),
                (Some(near), None) => Some(Remedy::did_you_mean(near)),
                (None, remedy) => remedy,
            };
            (format!("image `{name}` not found in the local store, and pulling it failed: {message}"), remedy)
        }
    };
    Failure { help: remedy.as_ref().map(Hint::from), ..Failure::new(message) }
}

#[cfg(test)]
mod tests {
    use rbuild_image::{ImageConfig, ImageId, ManifestDigest, MediaType, descriptor, manifest};
    use rbuild_remedy::ServerRemedy;

    use super::*;

    fn stored(platforms: Option<&[&str]>, was_pulled: bool) -> StoredImage {
        let name = Some("debian".parse().unwrap());
        let config = ImageConfig::empty(&Platform::host());
        let id = ImageId::of(b"");
        let image = || Image {
            manifest_digest: ManifestDigest::of(b""),
            manifest_size: 0,
            manifest: manifest(descriptor(MediaType::ImageConfig, &id.blob(), 0), Vec::new()),
            id,
            config,
            entry: None,
        };
        match platforms {
            None => StoredImage::Found { name, image: Box::new(image()) },
            Some([]) => StoredImage::Missing,
            Some(platforms) => {
                StoredImage::Other { name, platforms: platforms.iter().map(|p| p.to_string()).collect(), was_pulled }
            }
        }
    }

    #[test]
    fn images_are_pulled_by_the_rules_of_docker() {
        use PullPolicy::{Always, Missing, Never};
        let pulled = |name: &str, policy, stored: &StoredImage| {
            let registry = &RegistryFlags::default();
            let image = ContainerImage { name, platform: None, policy, quiet: false, registry, unpack: None };
            image.name_to_pull(stored).map(|name| name.unwrap().to_string())
        };
        let full = Some("docker.io/library/debian:latest".to_string());
        for (policy, stored, want) in [
            (None, stored(Some(&[]), false), full.clone()),
            (None, stored(None, false), None),
            (None, stored(Some(&["linux/s390x"]), true), full.clone()),
            // An image of this machine only.
            (None, stored(Some(&["linux/s390x"]), false), None),
            (Some(Missing), stored(Some(&[]), false), full.clone()),
            (Some(Always), stored(None, false), full.clone()),
            (Some(Always), stored(Some(&["linux/s390x"]), false), full.clone()),
            (Some(Never), stored(Some(&[]), false), None),
            (Some(Never), stored(Some(&["linux/s390x"]), true), None),
        ] {
            assert_eq!(pulled("debian", policy, &stored), want, "{policy:?}");
        }
        // An ID is not a name, and an image that was found by its ID is not pulled.
        let by_id = StoredImage::Other { name: None, platforms: vec!["linux/s390x".into()], was_pulled: false };
        assert_eq!(pulled("0123456789ab", Some(Always), &by_id), None);
        let id = format!("sha256:{}", "0".repeat(64));
        assert_eq!(pulled(&id, None, &StoredImage::Missing), None);
        assert_eq!(pulled("a b", None, &StoredImage::Missing), None);
    }

    #[test]
    fn images_that_cannot_be_pulled_are_reported_as_recorded() {
        let error = || ReportedError {
            remedy: Some(ServerRemedy::CheckNetwork.into()),
            ..ReportedError::new("cannot reach r.io")
        };
        let failures = [
            (stored(None, false), None),
            (stored(Some(&["linux/s390x", "linux/arm64"]), true), None),
            (stored(Some(&[]), false), None),
            (stored(Some(&[]), false), Some("debain")),
        ];
        let platform = "linux/amd64".parse().unwrap();
        let texts = failures.map(|(stored, similar)| {
            unpulled("debian", &stored, error(), &platform, || similar.map(str::to_string)).text()
        });
        rbuild_testkit::assert_recorded!("unpulled", texts.concat());
    }
}
