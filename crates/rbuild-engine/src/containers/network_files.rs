//! The files of the network in a container whose mounts cover them.

use std::path::Path;

use rbuild_linux::{FileKind, RootDir};
use rbuild_sandbox::{MountRequest, MountSource};

/// Returns additional mounts for those of `files` (pairs of path and content) that one of `mounts`
/// would hide. With them, a container has its host names even if a volume is mounted at `/etc`.
/// Paths are resolved in `image`, the root directory of the image.
///
/// A mount at the path of the file itself replaces the file, so it gets no additional one. Nothing
/// is created in directories of the machine or in read-only mounts: there, a file is shown only if
/// the mount contains a file to mount it on.
pub(super) fn on_top(mounts: &[MountRequest], image: &RootDir, files: &[(&str, &str)]) -> Vec<MountRequest> {
    let real = |path: &str| image.resolve(path).unwrap_or_else(|_| path.into());
    let is_hidden = |file: &Path| {
        let mut all = mounts.iter().rev().map(|mount| (mount, real(&mount.target)));
        let Some((mount, target)) = all.find(|(_, target)| file.starts_with(target)) else { return false };
        match file.strip_prefix(&target) {
            Ok(below) => !below.as_os_str().is_empty() && can_show(mount, below),
            Err(_) => false,
        }
    };
    let shown = files.iter().filter(|(path, _)| is_hidden(&real(path)));
    let request = |(path, content): &(&str, &str)| {
        let source = MountSource::File { content: content.as_bytes().to_vec(), mode: 0o644, uid: 0, gid: 0 };
        MountRequest { target: path.to_string(), source, read_only: false }
    };
    shown.map(request).collect()
}

/// Returns true if a file can be mounted at a path below a mount.
fn can_show(mount: &MountRequest, below: &Path) -> bool {
    match &mount.source {
        MountSource::Machine(dir) => {
            RootDir::open(dir).and_then(|dir| dir.stat(below)).is_ok_and(|stat| stat.kind == FileKind::File)
        }
        // A directory of that name in a volume cannot be covered by a file.
        MountSource::Bind(dir) if !mount.read_only => {
            RootDir::open(dir).and_then(|dir| dir.stat(below)).map_or(true, |stat| stat.kind != FileKind::Dir)
        }
        _ => !mount.read_only,
    }
}

#[cfg(test)]
mod tests {
    use rbuild_plan::TmpfsOptions;
    use rbuild_testkit::Scratch;

    use super::*;

    #[test]
    fn files_of_the_network_lie_on_top_of_the_mounts_that_cover_them() {
        let [image, full, empty, other] = [(); 4].map(|()| Scratch::new());
        std::fs::create_dir(other.join("hosts")).unwrap();
        std::fs::create_dir(image.join("etc")).unwrap();
        std::os::unix::fs::symlink("etc", image.join("link")).unwrap();
        std::fs::write(full.join("hosts"), "").unwrap();
        let view = RootDir::open(&*image).unwrap();
        let mount = |target: &str, source, read_only| MountRequest { target: target.into(), source, read_only };
        let volume = |target| mount(target, MountSource::Bind(empty.to_path_buf()), false);
        let machine = |target, dir: &Scratch| mount(target, MountSource::Machine(dir.to_path_buf()), true);
        let tmpfs = |read_only| mount("/etc", MountSource::Tmpfs(TmpfsOptions::default()), read_only);
        let both = ["/etc/hosts", "/etc/resolv.conf"];
        for (mounts, expected) in [
            (vec![], &both[..0]),
            (vec![volume("/var"), volume("/etc/hosts.d")], &both[..0]),
            (vec![volume("/etc/")], &both),
            (vec![volume("/link")], &both),
            (vec![mount("/etc", MountSource::Bind(other.to_path_buf()), false)], &both[1..]),
            (vec![volume("/etc"), volume("/etc/resolv.conf")], &both[..1]),
            (vec![tmpfs(false)], &both),
            (vec![tmpfs(true)], &both[..0]),
            (vec![machine("/etc", &full)], &both[..1]),
            (vec![machine("/etc", &empty)], &both[..0]),
        ] {
            let shown = on_top(&mounts, &view, &[("/etc/hosts", "h"), ("/etc/resolv.conf", "r")]);
            let targets: Vec<&str> = shown.iter().map(|mount| &mount.target[..]).collect();
            assert_eq!(targets, expected, "{mounts:?}");
        }
    }
}
