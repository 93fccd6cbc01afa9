//! Mounts of a container: the system's mount points and those requested.
//!
//! The system's mounts are created here and not by libcontainer, which resolves every path with
//! dozens of calls: /dev with its terminals and shared memory, and the files of /etc. /proc shows
//! the container's own processes, so it is mounted from inside the container's pid namespace.

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime as oci;
use rbuild_linux::Forbidden::{Devices, Programs, SetId, Writing};
use rbuild_linux::{Kind, RootDir, bind_clone, detached_overlay, new_filesystem};

use crate::namespace::network::{made_in_a_network_of_its_own, own_namespace};
use crate::protocol::{MountRequest, RunRequest, Source};
use crate::runner::container::text;
use crate::runner::mount_points::{PointKind, Stubs};
use crate::runner::obstacles::outside_of_the_kernels;
use crate::runner::surroundings::Proc;

/// Files that the runner creates for the container.
pub(crate) const FILES: &str = "/run/files";
const MOUNTS: &str = "/run/mounts";

/// Path of the sysfs in the builder's root, if one could be mounted.
pub(crate) const SYSFS: &str = "/sysfs";

/// Mounts a sysfs while the caller still sees the host's /sys, as the kernel requires. It shows a
/// network namespace of its own, because only the owner of a network namespace may mount its sysfs.
/// Returns `None` if the host covers parts of its own /sys; containers then have no /sys.
pub(crate) fn new_sysfs() -> Option<Sysfs> {
    let make = || Ok([new_filesystem("sysfs", &[], &[SetId, Devices, Programs, Writing])?, own_namespace()?]);
    let [mount, network] = made_in_a_network_of_its_own(make).ok()?;
    Some(Sysfs { mount, network })
}

pub(crate) struct Sysfs {
    pub mount: OwnedFd,
    /// Keeps the network namespace alive; without it, the sysfs would show no networks.
    pub network: OwnedFd,
}

/// Paths of the system's mount points in a root file system, with links resolved.
pub(crate) struct Points {
    proc: PathBuf,
    sys: Option<PathBuf>,
    dev: PathBuf,
    hosts: PathBuf,
    resolv_conf: PathBuf,
}

impl Points {
    pub(crate) fn find(stubs: &mut Stubs<'_>) -> Result<Points, String> {
        let has_sysfs = Path::new(SYSFS).exists();
        Ok(Points {
            proc: stubs.ensure(Path::new("/proc"), PointKind::Dir)?,
            sys: has_sysfs.then(|| stubs.ensure(Path::new("/sys"), PointKind::Dir)).transpose()?,
            dev: stubs.ensure(Path::new("/dev"), PointKind::Dir)?,
            hosts: stubs.ensure(Path::new("/etc/hosts"), PointKind::File)?,
            resolv_conf: stubs.ensure(Path::new("/etc/resolv.conf"), PointKind::File)?,
        })
    }

    /// Mounts them. libcontainer adds the device nodes to /dev.
    pub(crate) fn mount(&self, request: &RunRequest, proc: Proc, rootfs: &RootDir) -> Result<(), String> {
        let over = |point: &Path| -> Result<(RootDir, OsString), String> { rootfs.parent(point).map_err(text) };
        if proc == Proc::Outer {
            let (above, name) = over(&self.proc)?;
            above.attach(&bind_clone(Path::new("/proc")).map_err(text)?, &name).map_err(text)?;
        }
        if let Some(sys) = &self.sys {
            let (above, name) = over(sys)?;
            above.attach(&bind_clone(Path::new(SYSFS)).map_err(text)?, &name).map_err(text)?;
        }
        let (above, name) = over(&self.dev)?;
        let files = new_filesystem("tmpfs", &[("mode", "755"), ("size", "65536k")], &[SetId]).map_err(text)?;
        above.attach(&files, &name).map_err(text)?;
        let dev = above.sub(&name).map_err(text)?;
        let size = request.shm_size.to_string();
        let shared = [("mode", "1777"), ("size", &size)];
        for (name, kind, options, forbidden) in [
            ("pts", "devpts", &[("ptmxmode", "0666"), ("mode", "0620")][..], &[SetId, Programs][..]),
            ("shm", "tmpfs", &shared, &[SetId, Devices, Programs]),
            ("mqueue", "mqueue", &[], &[SetId, Devices, Programs]),
        ] {
            dev.create_dir(name.as_ref(), 0o755).map_err(text)?;
            let made = new_filesystem(kind, options, forbidden).map_err(text)?;
            dev.attach(&made, name).map_err(text)?;
        }
        let files = RootDir::open(FILES).map_err(text)?;
        for (point, name, content) in
            [(&self.hosts, "hosts", &request.hosts), (&self.resolv_conf, "resolv.conf", &request.resolv_conf)]
        {
            let path = Path::new(FILES).join(name);
            let mut file = files.create_file(name.as_ref(), 0o644).map_err(text)?;
            file.write_all(content.as_bytes()).map_err(|e| format!("{}: {e}", path.display()))?;
            let (above, name) = over(point)?;
            above.attach(&bind_clone(&path).map_err(text)?, &name).map_err(text)?;
        }
        Ok(())
    }
}

/// Returns the requested mounts, in the request's order: later ones may lie below earlier ones.
pub(crate) fn mounts_of(
    request: &RunRequest,
    proc: Proc,
    stubs: &mut Stubs<'_>,
    root: &RootDir,
    scratch: &RootDir,
) -> Result<Vec<oci::Mount>, String> {
    let mut mounts = Vec::new();
    if proc == Proc::Own {
        mounts.push(mount(Path::new("/proc"), "proc", Some(Path::new("proc")), &["nosuid", "noexec", "nodev"])?);
    }
    for (i, wanted) in request.mounts.iter().enumerate() {
        mounts.push(extra_mount(i, (wanted, request.insecure), stubs, root, scratch)?);
    }
    Ok(mounts)
}

/// Ensures that a requested mount point exists, and returns its resolved path.
fn ensure(stubs: &mut Stubs<'_>, target: &Path, kind: PointKind) -> Result<PathBuf, String> {
    outside_of_the_kernels(target, &|path| Path::new(SYSFS).join(path).exists())?;
    stubs.ensure(target, kind)
}

fn extra_mount(
    index: usize,
    (wanted, insecure): (&MountRequest, bool),
    stubs: &mut Stubs<'_>,
    root: &RootDir,
    scratch: &RootDir,
) -> Result<oci::Mount, String> {
    let target = Path::new(&wanted.target);
    let access = if wanted.read_only { "ro" } else { "rw" };
    match &wanted.source {
        Source::Tmpfs { size } => {
            let at = ensure(stubs, target, PointKind::Dir)?;
            let size = size.map(|s| format!("size={s}"));
            let mut options = vec!["nosuid", "nodev", "mode=1777"];
            options.extend(size.as_deref());
            mount(&at, "tmpfs", Some(Path::new("tmpfs")), &options)
        }
        Source::File { content, mode, uid, gid } => {
            let name = format!("mount-{index}");
            let files = RootDir::open(FILES).map_err(text)?;
            let mut file = files.create_file(name.as_ref(), 0o600).map_err(text)?;
            file.write_all(content).map_err(|e| format!("the file for {}: {e}", wanted.target))?;
            files.chown(name.as_ref(), *uid, *gid).map_err(text)?;
            files.chmod(name.as_ref(), *mode).map_err(text)?;
            // In /dev, which belongs to the container, the mount point is created together with the
            // mount.
            let in_dev = target.starts_with("/dev");
            let at = if in_dev { target.to_path_buf() } else { ensure(stubs, target, PointKind::File)? };
            mount(&at, "bind", Some(&Path::new(FILES).join(name)), &["bind", access])
        }
        // A command that may mount could remount a bind read-write; it cannot do so with an overlay
        // that has no upper directory.
        Source::Machine(source) if wanted.read_only && insecure => {
            let stat = std::fs::symlink_metadata(source).map_err(|e| format!("{}: {e}", source.display()))?;
            if !stat.is_dir() {
                let (why, help) =
                    ("cannot be kept read-only for RUN --security=insecure", "mount its directory instead");
                return Err(format!("the volume at {} is a single file, which {why}; {help}", wanted.target));
            }
            let source = trees_mount(index, std::slice::from_ref(source), true, root, scratch)?;
            let at = ensure(stubs, target, PointKind::Dir)?;
            mount(&at, "bind", Some(&source), &["bind", access])
        }
        Source::Bind(source) | Source::Machine(source) => {
            let is_dir = std::fs::symlink_metadata(source).map_err(|e| format!("{}: {e}", source.display()))?.is_dir();
            let at = ensure(stubs, target, if is_dir { PointKind::Dir } else { PointKind::File })?;
            mount(&at, "bind", Some(source), &["bind", access])
        }
        Source::BindBelow { dir, path } => {
            let below = RootDir::open(dir).and_then(|dir| dir.sub(path)?.detached()).map_err(text)?;
            let at = ensure(stubs, target, PointKind::Dir)?;
            let (place, name) = own_place(index, root)?;
            place.attach(&below, &name).map_err(text)?;
            mount(&at, "bind", Some(&Path::new(MOUNTS).join(name)), &["bind", access])
        }
        Source::Trees { lowers, path } => {
            let source = trees_mount(index, lowers, wanted.read_only, root, scratch)?;
            part_mount(&source, path, target, access, stubs)
        }
        Source::Part { dir, path } => part_mount(dir, path, target, access, stubs),
    }
}

/// Mounts the file or directory that `path` resolves to inside `source`.
fn part_mount(
    source: &Path,
    path: &Path,
    target: &Path,
    access: &str,
    stubs: &mut Stubs<'_>,
) -> Result<oci::Mount, String> {
    let dir = RootDir::open(source).map_err(text)?;
    let real = dir.resolve(path).map_err(text)?;
    let stat = dir.stat(&real).map_err(|_| format!("the mount source {} does not exist", path.display()))?;
    let kind = if stat.kind == Kind::Dir { PointKind::Dir } else { PointKind::File };
    let at = ensure(stubs, target, kind)?;
    let source = source.join(real.strip_prefix("/").unwrap_or(&real));
    mount(&at, "bind", Some(&source), &["bind", access])
}

/// Creates one of the runner's mount points, and returns its directory and name.
fn own_place(index: usize, root: &RootDir) -> Result<(RootDir, String), String> {
    let name = format!("mount-{index}");
    let place = root.create_dir_all(MOUNTS.trim_start_matches('/'), 0o755, None, |_| ()).map_err(text)?;
    place.create_dir_all(&name, 0o755, None, |_| ()).map_err(text)?;
    Ok((place, name))
}

/// Mounts a stack of trees in the runner's own namespace and returns the mount point. Always an
/// overlay, even for a single read-only tree: a command that may mount could remount a plain bind
/// read-write, and thereby write to the store.
fn trees_mount(
    index: usize,
    lowers: &[PathBuf],
    read_only: bool,
    root: &RootDir,
    scratch: &RootDir,
) -> Result<PathBuf, String> {
    let (place, name) = own_place(index, root)?;
    let path = Path::new(MOUNTS).join(&name);
    let mut lowers = lowers.to_vec();
    if lowers.is_empty() {
        lowers.push(empty(scratch)?);
    }
    let overlay = if read_only {
        // An overlay without an upper directory requires two lower ones.
        if lowers.len() == 1 {
            lowers.push(empty(scratch)?);
        }
        detached_overlay(&lowers, None, Path::new("/mnt"))
    } else {
        let (upper, work) = (format!("upper-{index}"), format!("work-{index}"));
        for dir in [&upper, &work] {
            scratch.create_dir_all(dir, 0o755, None, |_| ()).map_err(text)?;
        }
        let (upper, work) = (scratch.label().join(upper), scratch.label().join(work));
        detached_overlay(&lowers, Some((&upper, &work)), Path::new("/mnt"))
    };
    place.attach(&overlay.map_err(text)?, &name).map_err(text)?;
    Ok(path)
}

/// Returns an empty directory.
fn empty(scratch: &RootDir) -> Result<PathBuf, String> {
    scratch.create_dir_all("empty", 0o755, None, |_| ()).map_err(text)?;
    Ok(scratch.label().join("empty"))
}

fn mount(at: &Path, kind: &str, source: Option<&Path>, options: &[&str]) -> Result<oci::Mount, String> {
    let mut builder = oci::MountBuilder::default()
        .destination(at)
        .typ(kind)
        .options(options.iter().map(|s| s.to_string()).collect::<Vec<_>>());
    if let Some(source) = source {
        builder = builder.source(source);
    }
    builder.build().map_err(text)
}
