//! The state of the copy of one step.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use rbuild_layer::Limits;
use rbuild_linux::{RootDir, Timestamp, UidGid};
use rbuild_plan::{Chmod, CopyStep};
use rbuild_sandbox::Cancel;
use rbuild_source::Fingerprint;
use rbuild_store::Store;

use crate::downloads::DownloadedFiles;
use crate::ops::copy::destination::{DestDir, Links};
use crate::ops::copy_error::CopyProblem;
use crate::ops::incremental_copy::IncrementalCopy;

/// The downloaded files of a build, and the store that contains them.
#[derive(Clone, Copy)]
pub struct StoredDownloads<'a> {
    pub store: &'a Store,
    pub downloads: &'a DownloadedFiles,
}

/// Settings of a copy that are not part of its step.
#[derive(Clone, Copy)]
pub struct CopySettings<'a> {
    /// Modification time of files and directories that have none in the source; seconds since 1970.
    pub now: i64,
    /// Limits on archives that ADD unpacks.
    pub limits: Limits,
    /// Files that were downloaded for the step.
    pub downloaded: StoredDownloads<'a>,
    /// Cancels the copy.
    pub cancel: &'a Cancel,
}

impl CopySettings<'_> {
    pub(super) fn check(&self) -> Result<(), CopyProblem> {
        if self.cancel.is_canceled() { Err(CopyProblem::Canceled) } else { Ok(()) }
    }
}

/// State of one copy. All stored paths are resolved and relative to the root, because symbolic
/// links in the image can lead from several names to the same place.
pub(super) struct Copier<'a> {
    pub(super) step: &'a CopyStep,
    pub(super) root: &'a RootDir,
    pub(super) chown: Option<UidGid>,
    pub(super) settings: CopySettings<'a>,
    /// Modification times of directories, set after their contents have been written.
    pub(super) times: HashMap<PathBuf, Timestamp>,
    pub(super) links: Links,
    /// Directories that this copy created.
    pub(super) made: HashSet<PathBuf>,
    pub(super) incremental: Option<&'a mut IncrementalCopy>,
    pub(super) defers: Defers,
    /// Files written to the destination path itself.
    pub(super) at_dest: usize,
}

/// The files whose writing may be deferred.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Defers {
    Nothing,
    /// Files without tracking of their destination paths. The step copies a single item, and there
    /// has been no symbolic link of the image below the destination, so no two entries have the
    /// same destination path.
    Plain,
    /// Files with tracked destination paths. A later entry may have the same destination path and
    /// replace the earlier one.
    Tracked,
}

impl Copier<'_> {
    /// Returns the mode of directories created for the destination path. A symbolic `--chmod` does
    /// not apply to them; of an octal one, only the permission bits apply.
    pub(super) fn parent_mode(&self) -> u32 {
        match self.step.chmod {
            Some(Chmod::Octal(mode)) => mode & 0o777,
            _ => 0o755,
        }
    }

    pub(super) fn mode(&self, mode: u32, is_dir: bool) -> u32 {
        self.step.chmod.as_ref().map_or(mode, |c| c.apply(mode, is_dir))
    }

    pub(super) fn now(&self) -> Timestamp {
        Timestamp { sec: self.settings.now, nsec: 0 }
    }

    /// Sets the time of a directory to that of the build: a file was written into it, so the time
    /// of its source no longer applies.
    pub(super) fn written_to(&mut self, dir: &DestDir) {
        let now = self.now();
        if let Some(time) = self.times.get_mut(&dir.real) {
            *time = now;
        }
    }

    /// Adds to the fingerprint of the source.
    pub(super) fn add_fingerprint(&mut self, fingerprint: Fingerprint) {
        self.incremental.iter_mut().for_each(|incremental| incremental.fingerprint += fingerprint);
    }
}
