//! Detection of image paths that nothing can be mounted on, with the same messages in every
//! isolation mode.

use std::path::{Path, PathBuf};

use rbuild_linux::{Kind, RootDir, shown_path};

/// Mount points of kernel file systems. If one is a link, the mount would cover its target instead.
const SYSTEM: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Returns `target` with links resolved. Fails if nothing can be mounted there, or if the image
/// lacks something that the mount requires.
pub(crate) fn free_place(image: &RootDir, target: &Path, needs: Kind) -> Result<PathBuf, String> {
    let is_link = image.stat(target).is_ok_and(|stat| stat.kind == Kind::Symlink);
    if is_link && SYSTEM.iter().any(|place| Path::new(place) == target) {
        return Err(in_the_way(target, Kind::Symlink, needs));
    }
    let real = image.resolve(target).map_err(|e| cannot(target, &e))?;
    match image.stat(&real).map(|stat| stat.kind) {
        Ok(found) if (found == Kind::Dir) != (needs == Kind::Dir) => Err(in_the_way(target, found, needs)),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => Err(below_a_file(image, target, &real)),
        _ => Ok(real),
    }
}

/// Fails for paths inside the kernel's own file systems.
pub(crate) fn outside_of_the_kernels(at: &Path, has: &dyn Fn(&Path) -> bool) -> Result<(), String> {
    for place in ["/proc", "/sys", "/dev/pts", "/dev/mqueue"] {
        let Ok(inside) = at.strip_prefix(place) else { continue };
        if place == "/sys" && has(inside) || inside.as_os_str().is_empty() {
            continue;
        }
        let at = shown_path(at);
        return Err(format!("{at} lies in {place}, where nothing can be made to be mounted on; mount it elsewhere"));
    }
    Ok(())
}

pub(crate) fn cannot(target: &Path, e: &rbuild_linux::Error) -> String {
    format!("the mount point {}: {e}", shown_path(target))
}

fn in_the_way(target: &Path, has: Kind, needs: Kind) -> String {
    let (has, needs) = (has.noun(), needs.noun());
    let target = target.display();
    format!(
        "the image has {has} at {target}, where {needs} is needed to be mounted on; have it replaced where the image is made"
    )
}

/// Formats the error for a path with a component that exists and is not a directory.
fn below_a_file(image: &RootDir, target: &Path, real: &Path) -> String {
    let mut above: Vec<&Path> = real.ancestors().skip(1).collect();
    above.reverse();
    let found = above.into_iter().find_map(|path| {
        let kind = image.stat(path).ok()?.kind;
        (kind != Kind::Dir).then_some((path, kind))
    });
    let (path, has) = found.map_or((real, "something else than a directory"), |(path, kind)| (path, kind.noun()));
    let (path, target) = (shown_path(path), shown_path(target));
    format!(
        "the image has {has} at {path}, below which {target} cannot be mounted; mount it elsewhere, or have that replaced where the image is made"
    )
}
