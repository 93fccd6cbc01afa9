//! The state of a copy with its earlier version, and the files that it deferred.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use rbuild_layer::{ExternalFile, ExternalFiles};
use rbuild_linux::{FileKind, FileStamp, RootDir};
use rbuild_source::{Changes, Fingerprint, Listing};
use rbuild_store::{EarlierFiles, TreeId};

use crate::ops::copy_error::CopyProblem;

/// Maximum link count for sharing a file. ext4 has the lowest limit, 65,000; some links are
/// reserved for other users of the tree.
const MAX_HARD_LINKS: u32 = 60_000;
/// Number of files that a thread takes at a time.
const GROUP: usize = 300;

/// A copy compared with an earlier one from the same context.
#[derive(Default)]
pub struct IncrementalCopy {
    /// True if the writing of files may be deferred.
    pub defers: bool,
    pub listing: Listing,
    /// True if the source is immutable during the build.
    pub source_stays: bool,
    /// Fingerprint of the entries of the source that have been read so far.
    pub fingerprint: Fingerprint,
    earlier: Listing,
    pub(super) earlier_files: Option<EarlierFiles>,
    pub(super) groups: Vec<CopyGroup>,
    /// Group and index of each deferred file that a later entry may replace, by destination.
    places: HashMap<PathBuf, (usize, usize)>,
}

/// Files to be copied from one directory to another.
pub(super) struct CopyGroup {
    /// Resolved paths, in the source and in the tree.
    pub source: PathBuf,
    pub dir: PathBuf,
    /// `None` if a later entry replaced the file.
    pub files: Vec<Option<ExternalFile>>,
}

impl CopyGroup {
    /// Returns the files that no later entry replaced.
    pub fn files(&self) -> impl Iterator<Item = &ExternalFile> {
        self.files.iter().flatten()
    }
}

impl IncrementalCopy {
    /// Starts tracking relative to an earlier copy.
    pub fn since(earlier: Listing, earlier_files: Option<EarlierFiles>) -> IncrementalCopy {
        IncrementalCopy {
            listing: Listing::as_large_as(&earlier),
            earlier,
            earlier_files,
            ..IncrementalCopy::default()
        }
    }

    /// Defers a file from the directory `source` to `dir`, a resolved path in the root. Returns
    /// true if it is the first of its directory. Unless `tracked`, no other entry may have the same
    /// destination.
    pub fn later(&mut self, source: &Path, dir: &Path, file: ExternalFile, tracked: bool) -> bool {
        let place = tracked.then(|| dir.join(&file.name));
        let last = self.groups.last_mut();
        let first = last.as_ref().is_none_or(|group| group.dir.as_os_str() != dir.as_os_str());
        match last {
            Some(group) if !first && group.source.as_os_str() == source.as_os_str() && group.files.len() < GROUP => {
                group.files.push(Some(file))
            }
            _ => self.groups.push(CopyGroup { source: source.into(), dir: dir.into(), files: vec![Some(file)] }),
        }
        if let (Some(place), Some(group)) = (place, self.groups.last()) {
            self.places.insert(place, (self.groups.len() - 1, group.files.len() - 1));
        }
        first
    }

    /// Starts tracking the files that were deferred untracked.
    pub fn note_places(&mut self) {
        for (number, group) in self.groups.iter().enumerate() {
            for (at, file) in group.files.iter().enumerate() {
                self.places.extend(file.iter().map(|file| (group.dir.join(&file.name), (number, at))));
            }
        }
    }

    /// Returns true if a tracked file has this destination, a resolved path in the root.
    pub fn has_destination(&self, place: &Path) -> bool {
        self.places.contains_key(place)
    }

    /// Drops the tracked file with this destination.
    pub fn drop_destination(&mut self, place: &Path) {
        if let Some((group, file)) = self.places.remove(place) {
            self.groups[group].files[file] = None;
        }
    }

    /// Returns the tree that the earlier copy's files are in.
    pub fn base(&self) -> Option<&TreeId> {
        self.earlier_files.as_ref().map(|earlier| &earlier.base)
    }

    /// Returns true if any files were deferred.
    pub fn has_later(&self) -> bool {
        !self.groups.is_empty()
    }

    /// Takes the deferred files, for packing from the source or from the earlier copy's `layer`.
    pub fn take_external(&mut self, source: &RootDir, layer: Option<File>) -> Result<ExternalFiles, CopyProblem> {
        let mut external = ExternalFiles::of(source.try_clone()?, layer);
        for mut group in std::mem::take(&mut self.groups) {
            let files = std::mem::take(&mut group.files).into_iter().flatten();
            let files = files.map(|file| ExternalFile { unchanged: self.is_unchanged(&group, &file), ..file });
            external.add(&group.dir, &group.source, files);
        }
        Ok(external)
    }

    /// Returns true if the earlier copy still has this file at this path, with the same metadata.
    pub(super) fn has(&self, earlier: &RootDir, group: &CopyGroup, file: &ExternalFile) -> bool {
        let ExternalFile { name, stat, owner, mode, .. } = file;
        self.is_unchanged(group, file)
            && earlier.stat_name(name).is_ok_and(|there| {
                there.kind == FileKind::File
                    && (there.owner(), there.mode) == (*owner, *mode)
                    && (there.size, there.mtime) == (stat.size, stat.mtime)
                    && there.nlink < MAX_HARD_LINKS
            })
    }

    /// Returns true if the earlier copy took this file from the same source to the same path, and
    /// the file has not been modified since.
    fn is_unchanged(&self, group: &CopyGroup, file: &ExternalFile) -> bool {
        self.earlier.get(&group.dir.join(&file.name)).is_some_and(|known| {
            known.stamp == Some(FileStamp::of(&file.stat))
                && known.source.as_os_str() == group.source.join(&file.source).as_os_str()
        })
    }

    /// Returns the changes since the earlier copy, `None` if there was none.
    pub fn changes(&self) -> Option<Changes> {
        self.changes_to(&self.listing)
    }

    /// Returns true if the earlier copy was made of the same files. Its layer is the same, unless
    /// the step gives the files other owners.
    pub fn is_repeated(&self) -> bool {
        self.changes().is_some_and(|changes| changes.is_empty())
    }

    /// Returns the changes from the earlier copy to another, later one.
    pub fn changes_to(&self, later: &Listing) -> Option<Changes> {
        (!self.earlier.is_empty()).then(|| later.changes_since(&self.earlier))
    }
}
