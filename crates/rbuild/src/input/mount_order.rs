//! Order of the mounts of a container.

use std::path::Path;

use rbuild_paths::in_root;
use rbuild_plan::ContainerMount;
use rbuild_sandbox::is_of_every_container;

use crate::exit::Failure;
use crate::input::mounts::image_volume;
use crate::ui::hints::ValueRemedy;

/// Sorts mounts by the depth of their targets, as docker does, so that none covers another one. Of
/// several mounts in memory with one target, the last one remains.
///
/// # Errors
///
/// Fails if two mounts have the same target.
fn in_order(mounts: Vec<ContainerMount>) -> Result<Vec<ContainerMount>, Failure> {
    let mut sorted: Vec<(Vec<String>, ContainerMount)> = Vec::new();
    for mount in mounts {
        let target: Vec<String> = in_root(mount.target()).into_iter().map(String::from).collect();
        let equal = sorted.iter_mut().find(|(other, _)| *other == target);
        match (equal, mount) {
            (None, mount) => sorted.push((target, mount)),
            (Some((_, other @ ContainerMount::Tmpfs(_))), mount @ ContainerMount::Tmpfs(_)) => *other = mount,
            (Some(_), mount) => {
                let failure = Failure::usage(format!("two mounts have the target `{}`", mount.target()));
                return Err(failure.help(ValueRemedy::OtherTarget));
            }
        }
    }
    sorted.sort_by_key(|(target, _)| target.len());
    Ok(sorted.into_iter().map(|(_, mount)| mount).collect())
}

/// Returns mounts in the order of their depth, with an anonymous volume for each path of
/// `declared`, the VOLUME paths of an image, that is not the target of one of them. As in docker,
/// such a path may be relative to `/`. `/` itself cannot be a volume, nor can the paths of the
/// mounts that every container has. `container` is the ID of the container.
///
/// # Errors
///
/// Fails as [`in_order`] does.
pub fn with_image_volumes<'a>(
    mut mounts: Vec<ContainerMount>,
    declared: impl Iterator<Item = &'a String>,
    container: &str,
) -> Result<Vec<ContainerMount>, Failure> {
    for path in declared {
        let target = in_root(path);
        let is_possible = !target.is_empty() && !is_of_every_container(&Path::new("/").join(target.join("/")));
        if is_possible && mounts.iter().all(|mount| in_root(mount.target()) != target) {
            mounts.push(image_volume(format!("/{}", target.join("/")), container));
        }
    }
    in_order(mounts)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rbuild_plan::{TmpfsMount, TmpfsOptions, Volume};

    use super::*;

    #[test]
    fn mounts_are_made_in_the_order_of_their_depth_and_once_for_each_target() {
        let bind = |target: &str| {
            ContainerMount::Bind(Volume { source: "/data".into(), target: target.into(), read_only: false })
        };
        let tmpfs = |target: &str, size| {
            let options = TmpfsOptions { size, ..TmpfsOptions::default() };
            ContainerMount::Tmpfs(TmpfsMount { target: target.into(), options, read_only: false })
        };
        let same = "two mounts have the target";
        for (mounts, expected) in [
            (vec![bind("/var/lib/app"), tmpfs("/var/lib", None)], Ok("/var/lib /var/lib/app")),
            (vec![bind("/b"), bind("/a"), tmpfs("/../c/./x/..", None)], Ok("/b /a /../c/./x/..")),
            (vec![tmpfs("/a", None), bind("/a/b"), tmpfs("/a/", Some(1))], Ok("/a/ /a/b")),
            (vec![bind("/a"), tmpfs("/a", None)], Err(format!("{same} `/a`"))),
            (vec![bind("/a"), bind("//a/b/../")], Err(format!("{same} `//a/b/../`"))),
        ] {
            let found = in_order(mounts).map_err(|failure| failure.message);
            let targets = found.map(|mounts| mounts.iter().map(ContainerMount::target).collect::<Vec<_>>().join(" "));
            assert_eq!(targets.as_deref(), expected.as_ref().map(|targets| *targets));
        }
    }
    #[test]
    fn paths_that_an_image_declares_are_volumes_unless_they_are_targets_of_mounts() {
        let tmpfs = |target: &str| {
            let options = TmpfsOptions::default();
            ContainerMount::Tmpfs(TmpfsMount { target: target.into(), options, read_only: false })
        };
        let declared = ["/", "/a", "/a/b", "/a/b/", "/c/../d/", "rel"].map(String::from);
        let own = ["/proc", "dev/", "/sys/fs", "/dev/null", "/etc/hosts", "/proc/../sys/"].map(String::from);
        assert_eq!(with_image_volumes(Vec::new(), own.iter(), "id").unwrap(), []);
        let mounts = with_image_volumes(vec![tmpfs("/d"), tmpfs("/a/b/c")], declared.iter(), "id").unwrap();
        let found: Vec<(&str, bool)> = mounts.iter().map(|mount| (mount.target(), mount.is_of_image())).collect();
        assert_eq!(found, [("/d", false), ("/a", true), ("/rel", true), ("/a/b", true), ("/a/b/c", false)]);
        let volumes = || mounts.iter().filter_map(ContainerMount::volume);
        assert!(volumes().all(|name| name.len() == 64) && volumes().collect::<BTreeSet<_>>().len() == 3);
    }
}
