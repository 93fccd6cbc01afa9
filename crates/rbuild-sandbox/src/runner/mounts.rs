//! Mounts of a container: the system's mount points and those requested.
//!
//! They are attached here one after the other and not by libcontainer, which resolves every path
//! with dozens of calls and does not follow links of an image to paths that do not exist. Only
//! /proc is mounted by libcontainer: it shows the container's own processes, so it is mounted from
//! inside the container's PID namespace.

use std::collections::HashSet;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime as oci;
use rbuild_container::TmpfsOptions;
use rbuild_linux::Forbidden::{Devices, Programs, SetId, Writing};
use rbuild_linux::{
    FileKind, Forbidden, RootDir, UidGid, attach_mount, bind_clone, detached_dir, detached_overlay, make_read_only,
    new_filesystem,
};

use crate::error::{FileOrigin, MountProblem, RunnerProblem, library};
use crate::namespace::network::{make_in_new_network, own_namespace};
use crate::protocol::{MountRequest, MountSource, RunRequest};
use crate::runner::mount_checks::{SYSFS, check_devices, check_kernel_file_systems, check_mount_point};
use crate::runner::mount_points::{MountPointKind, MountPoints, TMPFS_MODE};
use crate::runner::runner_context::ProcView;

/// Files that the runner creates for the container.
pub(crate) const FILES: &str = "/run/files";
const MOUNTS: &str = "/run/mounts";

/// Mounts a sysfs while the caller still sees the host's /sys, as the kernel requires. It shows a
/// network namespace of its own, because only the owner of a network namespace may mount its sysfs.
/// Returns `None` if the host covers parts of its own /sys; containers then have no /sys.
pub(crate) fn new_sysfs() -> Option<Sysfs> {
    let make = || Ok([new_filesystem("sysfs", &[], &[SetId, Devices, Programs, Writing])?, own_namespace()?]);
    let [mount, network] = make_in_new_network(make).ok()?;
    Some(Sysfs { mount, network })
}

pub(crate) struct Sysfs {
    /// The detached mount.
    pub mount: OwnedFd,
    /// Keeps the network namespace alive; without it, the sysfs would show no networks.
    pub network: OwnedFd,
}

/// A mount, and its place in the container.
pub(crate) struct PlannedMount<'a> {
    target: &'a Path,
    kind: MountPointKind,
    content: PlannedContent,
    role: Role,
}

/// The content of a planned mount.
enum PlannedContent {
    /// A detached mount.
    Made(OwnedFd),
    /// A tmpfs. It is made when it is attached: only then is it known which directory it covers,
    /// because links can lead into earlier mounts and out of them.
    Tmpfs { options: TmpfsOptions, read_only: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The container's /dev, which holds file systems of its own.
    Devices,
    /// Another mount that every container has.
    System,
    Requested,
}

impl PlannedMount<'_> {
    /// Mounts it in the root file system, as it is with the mounts before this one, and returns its
    /// path with links resolved. `is_created` returns true for directories that exist only as mount
    /// points.
    fn attach(&self, rootfs: &RootDir, is_created: impl Fn(&Path) -> bool) -> Result<PathBuf, RunnerProblem> {
        let fail = |e: rbuild_linux::Error| RunnerProblem::of_mount_point(self.target, e);
        let real = rootfs.resolve(self.target).map_err(fail)?;
        check_kernel_file_systems(self.target, &real)?;
        if self.role == Role::Requested {
            check_devices(self.target, &real)?;
        }
        check_mount_point(rootfs, self.target, &real, self.kind.needs(), FileOrigin::Mount)?;
        let (above, name) = match (real.parent(), real.file_name()) {
            (Some(above), Some(name)) => (above, name),
            _ => return Err(MountProblem::OverRoot.at(self.target).into()),
        };
        // Before the mount point is made.
        let covered = match &self.content {
            PlannedContent::Tmpfs { .. } => rootfs.stat(&real).ok(),
            PlannedContent::Made(_) => None,
        };
        let covered = covered.filter(|stat| stat.kind == FileKind::Dir && !is_created(&real));
        let point = || -> rbuild_linux::Result<RootDir> {
            let above = rootfs.create_dir_all(above, 0o755, None, |_| ())?;
            match (above.exists(name)?, self.kind) {
                (true, _) => {}
                (false, MountPointKind::Dir) => above.create_dir(name, 0o755)?,
                (false, MountPointKind::File) => drop(above.create_file(name, 0o644)?),
            }
            Ok(above)
        };
        // The image is writable here, but a mount above it is not.
        let above = point().map_err(|e| match e.kind() {
            std::io::ErrorKind::ReadOnlyFilesystem => MountProblem::ReadOnly.at(self.target).into(),
            _ => fail(e),
        })?;
        match &self.content {
            PlannedContent::Made(made) => attach_mount(made, &above, name).map_err(fail)?,
            PlannedContent::Tmpfs { options, read_only } => {
                let made = new_tmpfs(*options, covered.map(|stat| stat.mode))?;
                if *read_only {
                    make_read_only(&made)?;
                }
                attach_mount(&made, &above, name).map_err(fail)?;
            }
        }
        Ok(real)
    }
}

/// The mount points of the system, in the order in which they are mounted.
const SYSTEM: [(&str, MountPointKind); 5] = [
    ("/proc", MountPointKind::Dir),
    ("/sys", MountPointKind::Dir),
    ("/dev", MountPointKind::Dir),
    ("/etc/hosts", MountPointKind::File),
    ("/etc/resolv.conf", MountPointKind::File),
];

/// The directories in which a runner makes mounts.
#[derive(Clone, Copy)]
pub(crate) struct RunnerDirs<'a> {
    /// The root directory of its mount namespace.
    pub root: &'a RootDir,
    /// The scratch directory of the command.
    pub scratch: &'a RootDir,
}

/// Makes the mounts of a command, and ensures that their mount points exist in the image.
/// Requested mounts are in the request's order: later ones may be below earlier ones.
pub(crate) fn mounts_of<'a>(
    request: &'a RunRequest,
    proc: ProcView,
    points: &mut MountPoints<'_>,
    dirs: RunnerDirs<'_>,
) -> Result<Vec<PlannedMount<'a>>, RunnerProblem> {
    let mut mounts = Vec::new();
    for (target, kind) in SYSTEM {
        let target = Path::new(target);
        let made = system_mount(request, proc, target, dirs.scratch)?;
        if made.is_some() || target == Path::new("/proc") {
            points.ensure(target, kind)?;
        }
        let role = if target == Path::new("/dev") { Role::Devices } else { Role::System };
        mounts.extend(made.map(|made| PlannedMount { target, kind, content: PlannedContent::Made(made), role }));
    }
    for (i, wanted) in request.mounts.iter().enumerate().filter(|(_, wanted)| !wanted.is_of_dev()) {
        let target = Path::new(&wanted.target);
        let (content, kind) = requested_mount(i, wanted, request.command.is_insecure(), dirs)?;
        if let (PlannedContent::Made(made), true) = (&content, wanted.read_only) {
            make_read_only(made)?;
        }
        points.ensure(target, kind)?;
        mounts.push(PlannedMount { target, kind, content, role: Role::Requested });
    }
    Ok(mounts)
}

/// Makes one of the mounts that every container has. Returns `None` for those that the container
/// lacks, or that are mounted by libcontainer.
fn system_mount(
    request: &RunRequest,
    proc: ProcView,
    target: &Path,
    scratch: &RootDir,
) -> Result<Option<OwnedFd>, RunnerProblem> {
    let made = match target.to_str() {
        // Settings of a process in it, such as oom_score_adj, are protected only by the process's
        // user ID.
        Some("/proc") if proc == ProcView::Outer => {
            bind_clone(Path::new("/proc")).and_then(|mount| make_read_only(&mount).map(|()| mount))
        }
        Some("/sys") if Path::new(SYSFS).exists() => bind_clone(Path::new(SYSFS)),
        Some("/dev") => new_filesystem("tmpfs", &[("mode", "755"), ("size", "65536k")], &[SetId]),
        Some("/etc/hosts") => return file("hosts", request.hosts.as_bytes(), 0o644, UidGid::ROOT, scratch).map(Some),
        Some("/etc/resolv.conf") => {
            return file("resolv.conf", request.resolv_conf.as_bytes(), 0o644, UidGid::ROOT, scratch).map(Some);
        }
        _ => return Ok(None),
    };
    Ok(made.map(Some)?)
}

/// Attaches all mounts. `created` contains the directories that exist only as mount points.
/// libcontainer adds the device nodes to /dev.
pub(crate) fn attach(
    mounts: &[PlannedMount<'_>],
    created: &HashSet<PathBuf>,
    request: &RunRequest,
    rootfs: &RootDir,
) -> Result<(), RunnerProblem> {
    let mut attached: Vec<PathBuf> = Vec::new();
    for mount in mounts {
        let is_in_mount = |real: &Path| attached.iter().any(|at| real.starts_with(at));
        let real = mount.attach(rootfs, |real| created.contains(real) && !is_in_mount(real))?;
        attached.push(real);
        if mount.role == Role::Devices {
            fill_dev(&rootfs.sub("/dev")?, request)?;
        }
    }
    Ok(())
}

/// Mounts the file systems below /dev.
fn fill_dev(dev: &RootDir, request: &RunRequest) -> rbuild_linux::Result<()> {
    let size = request.shm_size.to_string();
    let shared = [("mode", "1777"), ("size", &size)];
    for (name, kind, options, forbidden) in [
        ("pts", "devpts", &[("ptmxmode", "0666"), ("mode", "0620")][..], &[SetId, Programs][..]),
        ("shm", "tmpfs", &shared, &[SetId, Devices, Programs]),
        ("mqueue", "mqueue", &[], &[SetId, Devices, Programs]),
    ] {
        dev.create_dir(name.as_ref(), 0o755)?;
        attach_mount(&new_filesystem(kind, options, forbidden)?, dev, name)?;
    }
    Ok(())
}

/// The mounts that libcontainer makes: a procfs shows the PID namespace in which it is mounted.
pub(crate) fn mounts_inside(proc: ProcView) -> Result<Vec<oci::Mount>, RunnerProblem> {
    if proc == ProcView::Outer {
        return Ok(Vec::new());
    }
    let options = ["nosuid", "noexec", "nodev"].map(String::from).to_vec();
    let mount = oci::MountBuilder::default().destination("/proc").typ("proc").source("proc").options(options).build();
    Ok(vec![mount.map_err(library)?])
}

/// Creates a file in the container's own memory, with its owner represented as in `scratch`, and
/// returns a mount of it.
fn file(name: &str, content: &[u8], mode: u32, owner: UidGid, scratch: &RootDir) -> Result<OwnedFd, RunnerProblem> {
    let files = scratch.open_alike(FILES)?;
    let path = Path::new(FILES).join(name);
    let mut file = files.create_file(name.as_ref(), 0o600)?;
    file.write_all(content).map_err(RunnerProblem::of_call("write", &path))?;
    files.chown(name.as_ref(), owner).and_then(|()| files.chmod(name.as_ref(), mode))?;
    Ok(bind_clone(&path)?)
}

/// Makes a tmpfs. Without another mode, it has that of the directory that it covers, like runc's.
fn new_tmpfs(options: TmpfsOptions, covered_mode: Option<u32>) -> rbuild_linux::Result<OwnedFd> {
    let mode = format!("{:04o}", options.mode.or(covered_mode).unwrap_or(TMPFS_MODE));
    let size = options.size.map(|size| size.to_string());
    let settings: Vec<_> =
        [("mode", mode.as_str())].into_iter().chain(size.as_deref().map(|size| ("size", size))).collect();
    let forbidden: &[Forbidden] = if options.no_programs { &[SetId, Devices, Programs] } else { &[SetId, Devices] };
    new_filesystem("tmpfs", &settings, forbidden)
}

fn requested_mount(
    index: usize,
    wanted: &MountRequest,
    insecure: bool,
    dirs: RunnerDirs<'_>,
) -> Result<(PlannedContent, MountPointKind), RunnerProblem> {
    let (made, kind) = match &wanted.source {
        MountSource::Tmpfs(options) => {
            let content = PlannedContent::Tmpfs { options: *options, read_only: wanted.read_only };
            return Ok((content, MountPointKind::Dir));
        }
        MountSource::File { content, mode, uid, gid } => (
            file(&format!("mount-{index}"), content, *mode, UidGid::new(*uid, *gid), dirs.scratch)?,
            MountPointKind::File,
        ),
        // A command that may mount could remount a bind read-write; it cannot do so with an overlay
        // that has no upper directory.
        MountSource::Machine(source) if wanted.read_only && insecure => {
            if kind_of(source)? == MountPointKind::File {
                return Err(MountProblem::SingleFile.at(Path::new(&wanted.target)).into());
            }
            let source = trees_mount(index, std::slice::from_ref(source), true, dirs)?;
            (bind_clone(&source)?, MountPointKind::Dir)
        }
        MountSource::Bind(source) | MountSource::Machine(source) => (bind_clone(source)?, kind_of(source)?),
        MountSource::BindBelow { dir, path } => {
            let below = RootDir::open(dir).and_then(|dir| detached_dir(&dir.sub(path)?))?;
            (below, MountPointKind::Dir)
        }
        MountSource::Trees { lowers, path } => {
            let source = trees_mount(index, lowers, wanted.read_only, dirs)?;
            part_mount(&source, path)?
        }
        MountSource::Part { dir, path } => part_mount(dir, path)?,
    };
    Ok((PlannedContent::Made(made), kind))
}

fn kind_of(source: &Path) -> Result<MountPointKind, RunnerProblem> {
    let stat = std::fs::symlink_metadata(source).map_err(RunnerProblem::of_call("lstat", source))?;
    Ok(if stat.is_dir() { MountPointKind::Dir } else { MountPointKind::File })
}

/// Clones the file or directory that `path` resolves to inside `source`.
fn part_mount(source: &Path, path: &Path) -> Result<(OwnedFd, MountPointKind), RunnerProblem> {
    let dir = RootDir::open(source)?;
    let real = dir.resolve(path)?;
    let stat = dir.stat(&real).map_err(|e| {
        if e.is_not_found() { RunnerProblem::NoMountSource(path.display().to_string()) } else { e.into() }
    })?;
    let kind = if stat.kind == FileKind::Dir { MountPointKind::Dir } else { MountPointKind::File };
    let made = bind_clone(&source.join(real.strip_prefix("/").unwrap_or(&real)))?;
    Ok((made, kind))
}

/// Creates one of the runner's mount points, and returns its directory and name.
fn scratch_mount_point(index: usize, root: &RootDir) -> Result<(RootDir, String), RunnerProblem> {
    let name = format!("mount-{index}");
    let place = root.create_dir_all(MOUNTS.trim_start_matches('/'), 0o755, None, |_| ())?;
    place.create_dir_all(&name, 0o755, None, |_| ())?;
    Ok((place, name))
}

/// Mounts a stack of trees in the runner's own namespace and returns the mount point. Always an
/// overlay, even for a single read-only tree: a command that may mount could remount a plain bind
/// read-write, and thereby write to the store.
fn trees_mount(
    index: usize,
    lowers: &[PathBuf],
    read_only: bool,
    dirs: RunnerDirs<'_>,
) -> Result<PathBuf, RunnerProblem> {
    let RunnerDirs { root, scratch } = dirs;
    let (place, name) = scratch_mount_point(index, root)?;
    let path = Path::new(MOUNTS).join(&name);
    let mut lowers = lowers.to_vec();
    if lowers.is_empty() {
        lowers.push(empty(scratch, "empty")?);
    }
    let overlay = if read_only {
        // An overlay without an upper directory requires two lower ones.
        if lowers.len() == 1 {
            lowers.push(empty(scratch, "other-empty")?);
        }
        detached_overlay(&lowers, None, Path::new("/mnt"))
    } else {
        let (upper, work) = (format!("upper-{index}"), format!("work-{index}"));
        for dir in [&upper, &work] {
            scratch.create_dir_all(dir, 0o755, None, |_| ())?;
        }
        let (upper, work) = (scratch.label().join(upper), scratch.label().join(work));
        detached_overlay(&lowers, Some((&upper, &work)), Path::new("/mnt"))
    };
    attach_mount(&overlay?, &place, &name)?;
    Ok(path)
}

/// Returns an empty directory of that name. An overlay accepts a directory only once (ELOOP).
fn empty(scratch: &RootDir, name: &str) -> Result<PathBuf, RunnerProblem> {
    scratch.create_dir_all(name, 0o755, None, |_| ())?;
    Ok(scratch.label().join(name))
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::Scratch;

    use super::*;

    #[test]
    fn only_a_missing_source_is_reported_as_missing() {
        let dir = Scratch::new();
        std::fs::write(dir.join("file"), "").unwrap();
        let problem = |path: &str| part_mount(&dir, Path::new(path)).err();
        assert!(matches!(problem("missing"), Some(RunnerProblem::NoMountSource(path)) if path == "missing"));
        let below = problem("file/below");
        assert!(
            matches!(&below, Some(RunnerProblem::System(e)) if e.to_string().contains("not a directory")),
            "{below:?}"
        );
    }
}
