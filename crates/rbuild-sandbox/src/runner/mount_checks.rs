//! Detection of image paths that cannot be mount points, with the same messages in every isolation
//! mode.

use std::path::{Path, PathBuf};

use rbuild_linux::{FileKind, RootDir};

use crate::error::{FileOrigin, MountError, MountProblem, RunnerProblem};
use crate::runner::devices::device_entry;

/// Path of the sysfs in the builder's root, if one could be mounted.
pub(crate) const SYSFS: &str = "/sysfs";

/// Mount points of kernel file systems. If one is a link, the mount would cover its target instead.
const SYSTEM: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Mount points that are already decided, with links resolved.
#[derive(Default)]
pub(crate) struct ResolvedMountPoints(Vec<(PathBuf, FileKind)>);

impl ResolvedMountPoints {
    pub(crate) fn add(&mut self, at: PathBuf, kind: FileKind) {
        self.0.push((at, kind));
    }

    /// Returns the topmost mount at or above `path`.
    fn topmost_at_or_above(&self, path: &Path) -> Option<&(PathBuf, FileKind)> {
        self.0.iter().rev().find(|(at, _)| path.starts_with(at))
    }

    /// Returns true if `path` is below a mount point, so that the image does not decide what is
    /// there.
    pub(crate) fn covers(&self, path: &Path) -> bool {
        self.0.iter().any(|(at, _)| path.starts_with(at) && path != at)
    }

    /// Fails if a mount at `target`, which is `real` without links, contradicts an earlier one.
    pub(crate) fn allows(&self, target: &Path, real: &Path, needs: FileKind) -> Result<(), MountError> {
        match self.topmost_at_or_above(real) {
            Some((at, _)) if at == real && at == Path::new("/proc") => Err(MountProblem::OverProcesses.at(target)),
            Some((at, kind)) if at == real && (*kind == FileKind::Dir) != (needs == FileKind::Dir) => {
                Err(MountProblem::in_the_way(FileOrigin::Mount, *kind, needs).at(target))
            }
            Some((at, kind)) if at != real && *kind != FileKind::Dir => {
                Err(MountProblem::below_a_file(FileOrigin::Mount, at, kind.noun()).at(target))
            }
            None if needs != FileKind::Dir && self.0.iter().any(|(at, _)| at.starts_with(real)) => {
                Err(MountProblem::in_the_way(FileOrigin::Mount, FileKind::Dir, needs).at(target))
            }
            _ => Ok(()),
        }
    }
}

/// Returns `target` with links resolved. Fails if nothing can be mounted there, or if the image
/// lacks something that the mount requires. Returns `None` if the path leads into an earlier mount,
/// whose files are not known yet.
pub(crate) fn resolve_mount_point(
    image: &RootDir,
    target: &Path,
    needs: FileKind,
    resolved: &ResolvedMountPoints,
) -> Result<Option<PathBuf>, RunnerProblem> {
    let may_follow = |link: &Path| !resolved.covers(&Path::new("/").join(link));
    let Some(real) = image.resolve_by(target, may_follow).map_err(|e| RunnerProblem::of_mount_point(target, e))? else {
        return Ok(None);
    };
    check_kernel_file_systems(target, &real)?;
    resolved.allows(target, &real, needs)?;
    if resolved.covers(&real) {
        return Ok(None);
    }
    check_mount_point(image, target, &real, needs, FileOrigin::Image)?;
    Ok(Some(real))
}

/// Returns true for paths, absolute and without `..`, at which every container has mounts of its
/// own, so that no volume can be there.
pub fn is_of_every_container(target: &Path) -> bool {
    let own = ["/proc", "/sys", "/dev/pts", "/dev/mqueue", "/etc/hosts", "/etc/resolv.conf"];
    own.iter().any(|place| target.starts_with(place)) || device_entry(target).is_some()
}

/// Fails if the entry at `target`, which is `real` without links, cannot be mounted on.
pub(crate) fn check_mount_point(
    files: &RootDir,
    target: &Path,
    real: &Path,
    needs: FileKind,
    holder: FileOrigin,
) -> Result<(), MountError> {
    let is_link = files.stat(target).is_ok_and(|stat| stat.kind == FileKind::Symlink);
    if is_link && SYSTEM.iter().any(|place| Path::new(place) == target) {
        return Err(MountProblem::in_the_way(holder, FileKind::Symlink, needs).at(target));
    }
    match files.stat(real).map(|stat| stat.kind) {
        Ok(found) if (found == FileKind::Dir) != (needs == FileKind::Dir) => {
            Err(MountProblem::in_the_way(holder, found, needs).at(target))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => Err(below_a_file(files, real, holder).at(target)),
        _ => Ok(()),
    }
}

/// Fails for paths inside the kernel's own file systems, where no mount point can be made.
pub(crate) fn check_kernel_file_systems(target: &Path, real: &Path) -> Result<(), MountError> {
    for place in ["/proc", "/sys", "/dev/pts", "/dev/mqueue"] {
        let Ok(inside) = real.strip_prefix(place) else { continue };
        if inside.as_os_str().is_empty() || (place == "/sys" && Path::new(SYSFS).join(inside).exists()) {
            continue;
        }
        let link_to = (target != real).then(|| real.to_path_buf());
        return Err(MountProblem::InKernelFiles { place: place.into(), link_to }.at(target));
    }
    Ok(())
}

/// Fails for the devices of every container, which a requested mount would take away.
pub(crate) fn check_devices(target: &Path, real: &Path) -> Result<(), MountError> {
    device_entry(real).map_or(Ok(()), |place| Err(MountProblem::OverDevices { place }.at(target)))
}

/// Returns the problem with a path that has a component which exists and is not a directory.
fn below_a_file(files: &RootDir, real: &Path, holder: FileOrigin) -> MountProblem {
    let mut above: Vec<&Path> = real.ancestors().skip(1).collect();
    above.reverse();
    let found = above.into_iter().find_map(|path| {
        let kind = files.stat(path).ok()?.kind;
        (kind != FileKind::Dir).then_some((path, kind))
    });
    let (path, has) = found.map_or((real, "a file that is not a directory"), |(path, kind)| (path, kind.noun()));
    MountProblem::below_a_file(holder, path, has)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_that_contradict_each_other_are_refused() {
        let mut resolved = ResolvedMountPoints::default();
        for (at, kind) in [("/proc", FileKind::Dir), ("/d", FileKind::Dir), ("/n/f", FileKind::File)] {
            resolved.add(at.into(), kind);
        }
        let allows = |real: &str, needs| {
            resolved
                .allows(Path::new("/target"), Path::new(real), needs)
                .err()
                .map(|why| why.to_string().contains("/target"))
        };
        for (real, needs) in
            [("/d", FileKind::Dir), ("/d/x", FileKind::File), ("/n/f", FileKind::File), ("/n", FileKind::Dir)]
        {
            assert_eq!(allows(real, needs), None, "{real}");
        }
        for (real, needs) in [
            ("/proc", FileKind::Dir),
            ("/d", FileKind::File),
            ("/n/f", FileKind::Dir),
            ("/n/f/x", FileKind::Dir),
            ("/n", FileKind::File),
        ] {
            assert_eq!(allows(real, needs), Some(true), "{real}");
        }
    }

    #[test]
    fn mounts_over_devices_are_refused_and_other_paths_in_dev_are_not() {
        let place = |path: &str| device_entry(Path::new(path)).map(|place| place.display().to_string());
        assert_eq!(place("/dev/").as_deref(), Some("/dev"));
        assert_eq!(place("/dev/null").as_deref(), Some("/dev/null"));
        assert_eq!(place("/dev/null/x").as_deref(), Some("/dev/null"));
        assert_eq!(place("/dev/stdout").as_deref(), Some("/dev/stdout"));
        for path in ["/dev/shm", "/dev/x", "/dev/null2", "/x/dev/null", "/"] {
            assert_eq!(place(path), None, "{path}");
        }
        let link = check_devices(Path::new("/link"), Path::new("/dev/tty")).unwrap_err().to_string();
        assert_eq!(link, "cannot mount on `/link`: every command has its own `/dev/tty`");
    }
}
