//! Writes the files that a copy deferred.

use std::collections::BTreeMap;
use std::path::Path;

use rbuild_layer::{ExternalFile, keep_in_layer};
use rbuild_linux::parallel::{MAX_FILE_THREADS, cores, try_map};
use rbuild_linux::{RootDir, Timestamp};
use rbuild_sandbox::Cancel;

use crate::ops::copy_error::CopyProblem;
use crate::ops::copy_file::{copy_file, unchanged};
use crate::ops::incremental_copy::changes::{ChangePlan, CopiedFrom, EarlierDirs};
use crate::ops::incremental_copy::state::{CopyGroup, IncrementalCopy};

impl IncrementalCopy {
    /// Writes all deferred files into the tree, or only those that `plan` selects. The times of
    /// directories are preserved.
    pub fn finish(
        &self,
        plan: Option<&ChangePlan>,
        source: &RootDir,
        tree: &RootDir,
        cancel: &Cancel,
    ) -> Result<(), CopyProblem> {
        let writes =
            |number: &usize| plan.is_none_or(|plan| plan.origins[*number].iter().any(|o| *o != CopiedFrom::Base));
        let groups: Vec<usize> = (0..self.groups.len()).filter(writes).collect();
        let mut times: BTreeMap<&Path, Timestamp> = BTreeMap::new();
        let dirs = groups.iter().map(|number| &*self.groups[*number].dir);
        for dir in dirs.chain(plan.into_iter().flat_map(ChangePlan::deletes_in)) {
            if !times.contains_key(dir) {
                times.insert(dir, tree.stat(dir)?.mtime);
            }
        }
        try_map(cores().min(MAX_FILE_THREADS), &groups, |number| {
            let planned = plan.map(|plan| &plan.origins[*number][..]);
            self.place(&self.groups[*number], planned, source, tree, cancel)
        })?;
        plan.map_or(Ok(()), |plan| plan.delete(tree))?;
        for (path, time) in times {
            tree.sub(path)?.set_own_mtime(time)?;
        }
        Ok(())
    }

    /// Writes the files of a group, or only those that are not kept in the base.
    fn place(
        &self,
        group: &CopyGroup,
        planned: Option<&[CopiedFrom]>,
        source: &RootDir,
        tree: &RootDir,
        cancel: &Cancel,
    ) -> Result<(), CopyProblem> {
        let (from, to) = (source.sub(&group.source)?, tree.sub(&group.dir)?);
        let earlier = EarlierDirs::of(self, &group.dir)?;
        for (number, file) in group.files.iter().enumerate() {
            let Some(file) = file else { continue };
            if cancel.is_canceled() {
                return Err(CopyProblem::Canceled);
            }
            let origin = planned.map_or_else(|| earlier.origin(group, file), |origins| origins[number]);
            match (origin, &earlier.base, &earlier.changes) {
                (CopiedFrom::Base, ..) if planned.is_some() => {}
                (CopiedFrom::Base, Some(earlier), _) | (CopiedFrom::Changes, _, Some(earlier)) => {
                    to.hard_link(earlier, &file.name, &file.name)?
                }
                _ => {
                    write(&from, &to, file, cancel)?;
                    if !self.source_stays {
                        unchanged(&from, &file.source, &file.stat)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn write(from: &RootDir, to: &RootDir, file: &ExternalFile, cancel: &Cancel) -> Result<(), CopyProblem> {
    let ExternalFile { source, name, stat, owner, mode, .. } = file;
    let read = from.open_name(source)?;
    let new = to.create_file(name, 0o600)?;
    copy_file(&read, stat, &new, cancel)?;
    rbuild_linux::set_file_owner(&new, to.owners(), *owner, *mode)?;
    for (attr, value) in from.xattrs(source)?.iter().filter(|(attr, _)| keep_in_layer(attr)) {
        to.set_xattr(name, attr, value)?;
    }
    Ok(rbuild_linux::set_file_time(&new, to.owners(), stat.mtime)?)
}
