//! Outputs of a build, and the images and files that they require.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use rbuild_image::{ImageId, ManifestDigest, Reference};
use rbuild_layer::LayerForm;
use rbuild_linux::{Destination, Directory};
use rbuild_store::{CacheKey, CachedStep, Image};
use rbuild_transport::{ArchiveFormat, LentLayer};

/// The result of a finished build.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BuildReport {
    /// The image, if one was requested; for several platforms, that of the preferred one.
    pub image: Option<FinishedImage>,
    /// Manifests of the images of all platforms, in the order of the request.
    pub platforms: Vec<ManifestDigest>,
    /// The index of the images, if there are several.
    pub index: Option<FinishedIndex>,
    /// The steps for the caches that the build writes.
    pub cached: ReportedSteps,
    /// The layers of the image that the store lacks. The image is only pushed. A builder process
    /// does not report them; they are those of the base ([`Prepared::lent_base`]).
    ///
    /// [`Prepared::lent_base`]: crate::Prepared::lent_base
    #[serde(skip)]
    pub lent: Vec<LentLayer>,
    pub steps: StepCounts,
    pub duration: Duration,
    /// The image that the result is built on.
    pub base: Option<ManifestDigest>,
    /// Upper bound of the times in the result (SOURCE_DATE_EPOCH), in seconds since the Unix epoch.
    pub epoch: Option<i64>,
    /// Places in the Dockerfile of the instructions that made the image's own layers, lowest first:
    /// offsets of the first byte, and of the byte after the last one. Empty for a squashed image,
    /// several platforms, and a build that was answered from the cache.
    pub layer_places: Vec<(usize, usize)>,
    /// Numbers of the entries that were written to each directory ([`Export::Files`]), in the order
    /// of the request.
    pub written: Vec<u64>,
}

/// Numbers of the steps of a build, including the images that it starts from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StepCounts {
    /// Steps that were completed, cached or not.
    pub done: usize,
    pub cached: usize,
}

/// A cache that the steps of a build are written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheExport {
    /// Form of the layers.
    pub form: LayerForm,
    pub mode: CacheMode,
    /// Name of the cache, if it is in a registry.
    pub registry: Option<Reference>,
    /// Cache mounts that are written, too.
    pub mounts: MountChoice,
    /// Maximum size of a cache mount in bytes, compressed.
    pub max_mount: u64,
}

/// A choice of cache mounts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum MountChoice {
    #[default]
    None,
    All,
    /// Those with these IDs.
    Named(Vec<String>),
}

impl CacheExport {
    /// Returns true if it is written to the repository of that name.
    pub(crate) fn is_in_repository_of(&self, name: &Reference) -> bool {
        let repository = |name: &Reference| (name.registry().to_string(), name.path().to_string());
        self.registry.as_ref().is_some_and(|own| repository(own) == repository(name))
    }

    /// Returns true if cache mounts with that ID are written.
    pub(crate) fn takes_mount(&self, id: &str) -> bool {
        self.mounts.takes(id)
    }
}

impl MountChoice {
    /// Returns true if cache mounts with that ID are chosen.
    pub(crate) fn takes(&self, id: &str) -> bool {
        match self {
            MountChoice::None => false,
            MountChoice::All => true,
            MountChoice::Named(names) => names.iter().any(|name| name == id),
        }
    }

    /// Returns the IDs of the mounts that are chosen by name.
    pub(crate) fn named(&self) -> impl Iterator<Item = &str> {
        let names = match self {
            MountChoice::None | MountChoice::All => &[],
            MountChoice::Named(names) => names.as_slice(),
        };
        names.iter().map(String::as_str)
    }
}

/// The steps that are written to a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheMode {
    /// Those of the result.
    #[default]
    Min,
    /// Those of all stages.
    Max,
}

/// The steps of a build for the caches that it writes.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ReportedSteps {
    pub steps: Vec<ReportedStep>,
    /// Keys of the steps of other stages than those of the result.
    pub of_other_stages: BTreeSet<CacheKey>,
    /// The reason why some of the steps are missing.
    pub failure: Option<String>,
}

/// A step for the caches that a build writes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ReportedStep {
    pub step: CachedStep,
    /// True if its layer is part of the result.
    pub is_in_result: bool,
    /// True if it was run although the cache may have had it (`--no-cache`).
    pub is_refreshed: bool,
    /// The ID of the cache mount whose content this is. It is no step.
    pub mount: Option<String>,
}

impl ReportedSteps {
    /// Returns the keys of the steps that were run although the cache may have had them.
    pub fn refreshed(&self) -> BTreeSet<CacheKey> {
        self.steps.iter().filter(|step| step.is_refreshed).map(|step| step.step.key).collect()
    }

    /// Returns the number of steps that a cache does not get because of its mode.
    pub fn left_out_of(&self, export: &CacheExport) -> usize {
        let is_written = |key: &&CacheKey| self.steps.iter().any(|step| step.is_in_result && step.step.key == **key);
        match export.mode {
            CacheMode::Min => self.of_other_stages.iter().filter(|key| !is_written(key)).count(),
            CacheMode::Max => 0,
        }
    }

    /// Returns the cache mounts, with their sizes, that a cache does not get because of these.
    pub fn large_mounts(&self, export: &CacheExport) -> Vec<(&str, u64)> {
        let mounts = self.steps.iter().filter_map(|step| Some((step.mount.as_deref()?, step.step.layer.size)));
        mounts.filter(|(id, size)| export.takes_mount(id) && *size > export.max_mount).collect()
    }

    /// Returns the steps that belong in a cache. A step that was read from another cache has the
    /// form that it has there.
    pub fn of(&self, export: &CacheExport) -> Vec<CachedStep> {
        let mut found: BTreeMap<CacheKey, &CachedStep> = BTreeMap::new();
        let belongs = |step: &&ReportedStep| match &step.mount {
            Some(id) => export.takes_mount(id) && step.step.layer.size <= export.max_mount,
            None => step.is_in_result || export.mode == CacheMode::Max,
        };
        for ReportedStep { step, .. } in self.steps.iter().filter(belongs) {
            if step.layer.form == export.form.name() || !found.contains_key(&step.key) {
                found.insert(step.key, step);
            }
        }
        // The day of the use is that of this build.
        found.into_values().map(|step| CachedStep { used: 0, ..step.clone() }).collect()
    }
}

/// The index of the images of several platforms.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FinishedIndex {
    pub digest: ManifestDigest,
    /// Size in bytes.
    pub size: u64,
}

/// The image of a finished build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FinishedImage {
    /// Digest of its configuration.
    pub id: ImageId,
    /// Digest of its manifest.
    pub manifest: ManifestDigest,
    /// Size of its manifest in bytes.
    pub manifest_size: u64,
    /// False if it was written to an archive or a layout only.
    pub is_stored: bool,
}

impl FinishedImage {
    /// Returns the description of an image of the store.
    pub fn stored(image: &Image) -> FinishedImage {
        FinishedImage {
            id: image.id,
            manifest: image.manifest_digest,
            manifest_size: image.manifest_size,
            is_stored: true,
        }
    }
}

/// An output of a build. Files and directories are kept open, so they are accessible from any mount
/// namespace.
pub enum Export {
    /// The files of the result, in a directory.
    Files {
        to: Directory,
        /// Deletes files in the directory that the result does not have.
        delete: bool,
        split: Split,
    },
    /// The files of the result, as a tar archive.
    Tar { to: Destination, split: Split },
    /// The image, as an archive. The caller, which opened it, publishes it when the build has
    /// ended.
    Archive { format: ArchiveFormat, to: Destination, form: ImageForm },
    /// The image, as an OCI image layout in a directory.
    Layout { to: Directory, form: ImageForm },
    /// The image, in the local store.
    Store { form: ImageForm },
    /// No output: only the build cache receives the results of the steps.
    CacheOnly,
}

/// Distribution of the files of several platforms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Split {
    /// A directory for each platform, if there are several.
    #[default]
    Several,
    /// A directory for each platform.
    Always,
    /// No directories for platforms.
    Never,
}

impl Split {
    /// Returns true if each of the platforms gets its own directory.
    pub(crate) fn applies(self, platforms: usize) -> bool {
        match self {
            Split::Several => platforms > 1,
            Split::Always => true,
            Split::Never => false,
        }
    }
}

impl Export {
    /// Returns the form of the image; `None` if the export has no image.
    pub fn form(&self) -> Option<ImageForm> {
        match self {
            Export::Files { .. } | Export::Tar { .. } | Export::CacheOnly => None,
            Export::Archive { form, .. } | Export::Layout { form, .. } | Export::Store { form } => Some(*form),
        }
    }

    /// Returns the absolute path of the file or directory that is written; `None` for the store,
    /// the build cache and standard output.
    pub fn path(&self) -> Option<PathBuf> {
        let path = match self {
            Export::Store { .. } | Export::CacheOnly => return None,
            Export::Files { to, .. } | Export::Layout { to, .. } => to.path(),
            Export::Tar { to, .. } | Export::Archive { to, .. } => to.path(),
        };
        path.is_absolute().then_some(path)
    }

    /// Returns true if new layers can be packed straight into the export.
    fn accepts_stream(&self) -> bool {
        let to_disk = match self {
            Export::Archive { to, .. } => matches!(to, Destination::Regular(_)),
            Export::Layout { .. } => true,
            Export::Files { .. } | Export::Tar { .. } | Export::Store { .. } | Export::CacheOnly => false,
        };
        let plain = |form: ImageForm| {
            let ImageForm { layers, force, late_times: _, squash, distributes: _ } = form;
            layers == LayerForm::Uncompressed && !force && squash == Squash::None
        };
        to_disk && self.form().is_some_and(plain)
    }
}

/// Properties of an image that do not change the files in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ImageForm {
    pub layers: LayerForm,
    /// Repacks layers of the base in this form as well. Otherwise they are kept unchanged.
    pub force: bool,
    /// Keeps modification times in new layers that are later than SOURCE_DATE_EPOCH.
    pub late_times: bool,
    pub squash: Squash,
    /// Gives layers of the base that must not be distributed the type of other layers, so that they
    /// are pushed with the image.
    pub distributes: bool,
}

impl ImageForm {
    /// Returns true if the layers of an image with that epoch are those of its steps.
    pub(crate) fn has_layers_of_steps(&self, epoch: Option<i64>) -> bool {
        self.squash == Squash::None && (self.late_times || epoch.is_none())
    }

    /// Returns the form of images in the local store. Their layers are compressed only on export.
    pub fn of_store() -> ImageForm {
        let layers = LayerForm::Uncompressed;
        ImageForm { layers, ..ImageForm::default() }
    }
}

/// The layers that are merged into one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Squash {
    #[default]
    None,
    /// The layers of the build's own steps.
    Steps,
    /// All layers, including those of the base.
    All,
}

impl Squash {
    /// Returns the number that represents this choice in keys. It must not change.
    pub(crate) fn number(self) -> u8 {
        match self {
            Squash::None => 0,
            Squash::Steps => 1,
            Squash::All => 2,
        }
    }
}

/// The images and files that a build must produce for its exports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirements {
    /// Forms of the images that are kept in the store. The first one is tagged.
    pub images: Vec<ImageForm>,
    /// The result's files are exported.
    pub files: bool,
    /// New layers are packed straight into the exports that support it, and the image is not
    /// stored.
    streams: bool,
}

impl Requirements {
    /// Returns the requirements of `exports`. `named` is true if the image gets a name in the
    /// store. `squash` applies to the image that is made if there is no export.
    pub fn of(exports: &[Export], named: bool, platforms: usize, squash: Squash) -> Requirements {
        let files = exports.iter().any(|export| matches!(export, Export::Files { .. } | Export::Tar { .. }));
        let mut required = Requirements { images: Vec::new(), files, streams: !named && platforms <= 1 };
        let mut kept: Vec<&Export> = exports.iter().filter(|export| !required.is_direct(export)).collect();
        kept.sort_by_key(|export| !matches!(export, Export::Store { .. }));
        for form in kept.into_iter().filter_map(Export::form) {
            if !required.images.contains(&form) {
                required.images.push(form);
            }
        }
        if required.images.is_empty() && (named || exports.is_empty()) {
            required.images.push(ImageForm { squash, ..ImageForm::of_store() });
        }
        required
    }

    /// Returns the same requirements, with no layers that are packed straight into an export.
    pub(crate) fn with_layers_in_store(mut self, exports: &[Export]) -> Requirements {
        self.streams = false;
        for form in exports.iter().filter_map(Export::form) {
            if !self.images.contains(&form) {
                self.images.push(form);
            }
        }
        self
    }

    /// Returns true if new layers are packed only into this export.
    pub fn is_direct(&self, export: &Export) -> bool {
        self.streams && export.accepts_stream()
    }

    /// Returns true if the result is needed as files, not only as the layers of its steps.
    pub(crate) fn needs_files(&self) -> bool {
        self.files || self.squashes_all()
    }

    /// Returns true if an image of the whole file system as one layer is required.
    pub(crate) fn squashes_all(&self) -> bool {
        self.images.iter().any(|form| form.squash == Squash::All)
    }
}

#[cfg(test)]
mod tests {
    use rbuild_linux::RootDir;

    use super::*;

    const GZIP: ImageForm = ImageForm {
        layers: LayerForm::GZIP,
        force: false,
        late_times: false,
        squash: Squash::None,
        distributes: false,
    };

    fn dir() -> Directory {
        Directory { base: RootDir::open("/").unwrap(), rest: "x".into() }
    }

    fn files() -> Export {
        Export::Files { to: dir(), delete: false, split: Split::Several }
    }

    #[test]
    fn exports_determine_which_images_are_packed() {
        let plain = ImageForm::of_store();
        let layout = |form| Export::Layout { to: dir(), form };
        for (exports, named, platforms, images, direct) in [
            // Without exports, the image goes into the store.
            (vec![], false, 1, vec![ImageForm { squash: Squash::All, ..plain }], 0),
            (vec![files()], false, 1, vec![], 0),
            (vec![Export::CacheOnly], false, 1, vec![], 0),
            (vec![files()], true, 1, vec![ImageForm { squash: Squash::All, ..plain }], 0),
            // An uncompressed layout is written directly, unless the image is kept as well.
            (vec![layout(plain)], false, 1, vec![], 1),
            (vec![layout(plain)], true, 1, vec![plain], 0),
            (vec![layout(plain)], false, 2, vec![plain], 0),
            (vec![layout(GZIP)], false, 1, vec![GZIP], 0),
            (
                vec![layout(ImageForm { squash: Squash::Steps, ..plain })],
                false,
                1,
                vec![ImageForm { squash: Squash::Steps, ..plain }],
                0,
            ),
            // The form of the store comes first, and no form occurs twice.
            (vec![layout(GZIP), layout(GZIP), Export::Store { form: plain }], false, 1, vec![plain, GZIP], 0),
        ] {
            let required = Requirements::of(&exports, named, platforms, Squash::All);
            assert_eq!(required.images, images, "{named} {platforms}");
            assert_eq!(exports.iter().filter(|export| required.is_direct(export)).count(), direct);
            assert_eq!(required.files, matches!(exports[..], [Export::Files { .. }]));
        }
    }

    /// Layers are packed from each step's own tree; files of the whole result are needed only for
    /// outputs of files and for images of one layer.
    #[test]
    fn files_of_the_whole_result_are_needed_for_few_exports() {
        let image = |squash| ImageForm { squash, ..ImageForm::of_store() };
        let store = |squash| Export::Store { form: image(squash) };
        let layout = |squash| Export::Layout { to: dir(), form: image(squash) };
        for (case, exports, squash, needs_files, whole) in [
            ("an image", vec![], Squash::None, false, false),
            ("an image of few layers", vec![], Squash::Steps, false, false),
            ("an image of one layer", vec![], Squash::All, true, true),
            ("files", vec![files()], Squash::None, true, false),
            ("the store", vec![store(Squash::None)], Squash::None, false, false),
            ("one layer in the store", vec![store(Squash::All)], Squash::None, true, true),
            ("a layout", vec![layout(Squash::None)], Squash::None, false, false),
            ("a layout of one layer", vec![layout(Squash::All)], Squash::None, true, true),
            ("files and a layout", vec![files(), layout(Squash::Steps)], Squash::None, true, false),
        ] {
            let required = Requirements::of(&exports, false, 1, squash);
            assert_eq!((required.needs_files(), required.squashes_all()), (needs_files, whole), "{case}");
        }
    }

    #[test]
    fn several_platforms_get_directories_by_default() {
        let all = [Split::Several, Split::Always, Split::Never];
        assert_eq!(all.map(|split| split.applies(1)), [false, true, false]);
        assert_eq!(all.map(|split| split.applies(2)), [true, true, false]);
    }
}
