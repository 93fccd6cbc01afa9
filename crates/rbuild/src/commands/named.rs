//! Looks up images that the command line names.

use rbuild_image::{Platform, Reference};
use rbuild_remedy::{ImageRemedy, Remedy};
use rbuild_store::{FoundImage, Image, Store, StoreError};

use crate::exit::Failure;
use crate::input::registry;
use crate::ui::hints::{self, VerbRemedy};

/// Purpose of a lookup, which determines the hint if there is no such image.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The image is used. The hint suggests to pull it.
    Use,
    /// The image is removed or compared with others of the store. The hint suggests to list images.
    Manage,
}

/// Returns the image that `wanted` names, and the name if it is one.
///
/// # Errors
///
/// Fails if there is no such image, with the nearest name as the hint.
pub fn find(store: &Store, wanted: &str, purpose: Purpose) -> Result<(Option<Reference>, Image), Failure> {
    with_full_name(wanted, |name| store.images().find_image(name)).map_err(missing(store, wanted, purpose))
}

/// The result of a lookup of an image for a platform.
pub enum StoredImage {
    /// The store has no image of that name.
    Missing,
    Found {
        /// The name by which it was found, if it was not found by its ID.
        name: Option<Reference>,
        image: Box<Image>,
    },
    /// The name has images for other platforms only.
    Other {
        name: Option<Reference>,
        /// The platforms. There is at least one.
        platforms: Vec<String>,
        /// True if an image was pulled under the name, so that its registry may have others.
        was_pulled: bool,
    },
}

/// Looks up the image that `wanted` names: that of `platform`, or if that is `None`, that of this
/// machine's platform or else the first one.
///
/// # Errors
///
/// Fails if the store cannot be read.
pub fn look_up(store: &Store, wanted: &str, platform: Option<&Platform>) -> Result<StoredImage, Failure> {
    let found = match with_full_name(wanted, |name| store.images().find(name)) {
        Err(StoreError::NoImage(_)) => return Ok(StoredImage::Missing),
        found => found?,
    };
    let FoundImage { name, artifact, .. } = found;
    let Some(platform) = platform else { return Ok(StoredImage::Found { name, image: Box::new(found.image) }) };
    let mut platforms = Vec::new();
    for image in store.images().images_of(&artifact)? {
        let own = image.platform();
        if platform.accepts(&own) {
            return Ok(StoredImage::Found { name, image: Box::new(image) });
        }
        platforms.push(own.to_string());
    }
    let mut was_pulled = false;
    if let Some(name) = &name {
        let resolutions = store.images().resolutions(name)?;
        was_pulled = artifact.images().iter().any(|manifest| resolutions.contains_key(manifest));
        // The name refers to the images that were pulled last. Others were pulled at the same time
        // if the name resolved to the same digest.
        if let Some((pulled, image)) = store.images().pulled_image(name, platform)?
            && platform.accepts(&image.config.platform())
        {
            let of_image = |manifest| resolutions.get(manifest).is_some_and(|known| known.contains(&pulled.resolved));
            if artifact.images().iter().any(of_image) {
                return Ok(StoredImage::Found { name: Some(name.clone()), image: Box::new(image) });
            }
        }
    }
    Ok(StoredImage::Other { name, platforms, was_pulled })
}

/// Returns the failure for an image that exists for other platforms only.
pub fn other_platforms(wanted: &str, platform: &Platform, others: Vec<String>) -> Failure {
    let only = others.join(", ");
    let failure = Failure::new(format!("`{wanted}` has no image for {platform}, only for {only}"));
    match others.into_iter().next() {
        Some(platform) => failure.help(Remedy::Image(ImageRemedy::SelectPlatform { platform })),
        None => failure,
    }
}

/// Returns the entry of the image that `wanted` names, which is used.
///
/// # Errors
///
/// Fails as [`find`] does.
pub fn find_entry(store: &Store, wanted: &str) -> Result<FoundImage, Failure> {
    with_full_name(wanted, |name| store.images().find(name)).map_err(missing(store, wanted, Purpose::Use))
}

/// Looks up an image by name. If a short name is not found, the settings may determine its
/// registry, under which it was pulled.
///
/// # Errors
///
/// Fails with the error for `wanted` if neither name is found.
pub fn with_full_name<T>(
    wanted: &str,
    mut look_up: impl FnMut(&str) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let missing = match look_up(wanted) {
        Err(e @ StoreError::NoImage(_)) => e,
        other => return other,
    };
    match registry::configured_name(wanted).map(|full| look_up(&full)) {
        Some(Err(StoreError::NoImage(_))) | None => Err(missing),
        Some(found) => found,
    }
}

/// Returns the full name of the image that a short name names, if the store has it only under the
/// full name.
pub fn pulled_name(store: &Store, wanted: &str) -> Option<Reference> {
    let full: Reference = registry::configured_name(wanted)?.parse().ok()?;
    match store.images().find(wanted) {
        Err(StoreError::NoImage(_)) => Some(full),
        _ => None,
    }
}

/// Returns a conversion of the errors of a lookup, with the hint of [`find`].
pub fn missing(store: &Store, wanted: &str, purpose: Purpose) -> impl Fn(StoreError) -> Failure {
    move |e| match e {
        StoreError::NoImage(_) => no_image(store, wanted, purpose),
        e => e.into(),
    }
}

/// Returns the failure for an image that the store does not have.
pub fn no_image(store: &Store, wanted: &str, purpose: Purpose) -> Failure {
    let failure = Failure::new(StoreError::NoImage(wanted.to_string()).to_string());
    match similar(store, wanted) {
        Some(near) => failure.help(hints::did_you_mean(&near)),
        None if purpose == Purpose::Use && wanted.parse::<Reference>().is_ok() && !wanted.starts_with("sha256:") => {
            failure.help(VerbRemedy::ListOrPull { image: wanted.into() })
        }
        None => failure.help(VerbRemedy::ListImages),
    }
}

/// Returns the name of the stored image that was most likely meant.
pub fn similar(store: &Store, wanted: &str) -> Option<String> {
    let names: Vec<Reference> = store.images().list().unwrap_or_default().into_iter().filter_map(|e| e.name).collect();
    let reference = wanted.parse::<Reference>().ok();
    // A digest identifies exactly one image, so there is no similar one.
    let names = if reference.as_ref().is_some_and(Reference::is_pinned) { Vec::new() } else { names };
    let same_name = |name: &&Reference| reference.as_ref().is_some_and(|w| w.familiar_name() == name.familiar_name());
    let whole: Vec<String> = names.iter().map(Reference::familiar).collect();
    let bare: Vec<String> = names.iter().map(Reference::familiar_name).collect();
    let near = |list: &[String]| {
        let close = rbuild_dockerfile::closest(wanted, list.iter().map(String::as_str))?;
        names.get(list.iter().position(|name| name == close)?)
    };
    names.iter().find(same_name).or_else(|| near(&bare)).or_else(|| near(&whole)).map(Reference::shortest)
}
