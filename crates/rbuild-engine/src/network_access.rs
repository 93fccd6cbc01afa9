//! Network access before the commands of a build run: pulls of images and downloads of files.

use std::cell::RefCell;
use std::collections::HashMap;

use rbuild_dockerfile::{Diagnostic, Help, Span};
use rbuild_image::{ImageName, ManifestDigest, Platform, Reference};
use rbuild_plan::{PlatformImage, UrlSource};
use rbuild_remedy::ReportedError;
use rbuild_store::{Download, Image};

use crate::error::Result;

/// An image to pull.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageRequest {
    pub name: Reference,
    pub platform: Platform,
}

/// Converts an error of the fetcher to a diagnostic. `message` returns its message, given that of
/// the error.
pub(crate) fn reported(span: Span, error: ReportedError, message: impl FnOnce(&str) -> String) -> Diagnostic {
    let ReportedError { message: own, errno, remedy } = error;
    Diagnostic { help: remedy.map(Help::from), errno, ..Diagnostic::new(span, message(&own)) }
}

/// Pulls images. Returns one outcome for each image, in the same order: `None` if the image is in
/// the store, or else its documents. The layers of such an image are downloaded while the build is
/// executed.
pub type PullImages<'a> =
    dyn Fn(&[ImageRequest]) -> Result<Vec<std::result::Result<Option<Image>, ReportedError>>> + 'a;

/// Downloads files into the store. Returns one outcome for each file, in the same order.
pub type Fetch<'a> = dyn Fn(&[UrlSource]) -> Result<Vec<std::result::Result<Download, ReportedError>>> + 'a;

/// Returns the image that a name in a Dockerfile stands for, if that is another one than the name
/// by itself denotes.
pub type FullName<'a> = dyn Fn(&str) -> std::result::Result<Option<Reference>, ReportedError> + 'a;

/// The network access of a build before its commands run.
pub struct NetworkAccess<'a> {
    pull: &'a PullImages<'a>,
    fetch: &'a Fetch<'a>,
    full_name: Option<&'a FullName<'a>>,
    /// Files that were downloaded for this build. All of its platforms use the same content.
    pub(crate) fetched: RefCell<HashMap<UrlSource, Download>>,
    /// Images whose layers are downloaded later.
    incoming: RefCell<HashMap<PlatformImage, Image>>,
}

impl<'a> NetworkAccess<'a> {
    /// Creates the network access with these functions.
    pub fn new(pull: &'a PullImages<'a>, fetch: &'a Fetch<'a>) -> NetworkAccess<'a> {
        NetworkAccess { pull, fetch, full_name: None, fetched: RefCell::default(), incoming: RefCell::default() }
    }

    /// Sets the meaning of names of images that the store does not have.
    pub fn with_full_names(self, full_name: &'a FullName<'a>) -> NetworkAccess<'a> {
        NetworkAccess { full_name: Some(full_name), ..self }
    }

    /// Returns the image that a name stands for, as [`FullName`] does.
    pub(crate) fn full_name(&self, text: &str) -> std::result::Result<Option<Reference>, ReportedError> {
        self.full_name.map_or(Ok(None), |full_name| full_name(text))
    }

    /// Fetches files, as [`Fetch`] does.
    pub(crate) fn fetch(&self, files: &[UrlSource]) -> Result<Vec<std::result::Result<Download, ReportedError>>> {
        (self.fetch)(files)
    }

    /// Pulls images, and keeps the documents of those whose layers are downloaded later.
    pub(crate) fn pull(&self, wanted: &[ImageRequest]) -> Result<Vec<std::result::Result<(), ReportedError>>> {
        let keep = |(request, outcome): (&ImageRequest, std::result::Result<Option<Image>, ReportedError>)| {
            let ImageRequest { name, platform } = request.clone();
            let key = PlatformImage { name: ImageName::Reference(name), platform };
            outcome.map(|image| self.incoming.borrow_mut().extend(image.map(|image| (key, image))))
        };
        Ok(wanted.iter().zip((self.pull)(wanted)?).map(keep).collect())
    }

    /// Returns an image that this build is pulling, and that is not in the store yet.
    pub fn incoming(&self, wanted: &PlatformImage) -> Option<Image> {
        self.incoming.borrow().get(wanted).cloned()
    }

    /// Returns the name of an image that this build is pulling, and that is not in the store yet.
    pub(crate) fn origin(&self, manifest: &ManifestDigest) -> Option<Reference> {
        let incoming = self.incoming.borrow();
        let (key, _) = incoming.iter().find(|(_, image)| image.manifest_digest == *manifest)?;
        match &key.name {
            ImageName::Reference(name) => Some(name.clone()),
            _ => None,
        }
    }

    /// Forgets the images that arrived: they are in the store, or the build failed.
    pub fn arrived(&self) {
        self.incoming.borrow_mut().clear();
    }
}
