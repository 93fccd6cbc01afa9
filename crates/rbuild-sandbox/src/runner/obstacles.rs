//! Detection of image paths that nothing can be mounted on, with the same messages in every
//! isolation mode.

use std::path::{Path, PathBuf};

use rbuild_linux::{Kind, RootDir, shown_path};

/// Path of the sysfs in the builder's root, if one could be mounted.
pub(crate) const SYSFS: &str = "/sysfs";

/// Mount points of kernel file systems. If one is a link, the mount would cover its target instead.
const SYSTEM: [&str; 3] = ["/proc", "/sys", "/dev"];

/// The owner of files in an error message.
#[derive(Clone, Copy)]
pub(crate) enum Holder {
    Image,
    /// Another mount of the same command.
    Mount,
}

impl Holder {
    /// The beginning of a sentence about a file that is in the way.
    fn has(self) -> &'static str {
        match self {
            Holder::Image => "the image has",
            Holder::Mount => "another mount has",
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Holder::Image => "have it replaced where the image is made",
            Holder::Mount => "give the mounts targets of their own",
        }
    }
}

/// Mount points that are already decided, with links resolved.
#[derive(Default)]
pub(crate) struct Taken(Vec<(PathBuf, Kind)>);

impl Taken {
    pub(crate) fn add(&mut self, at: PathBuf, kind: Kind) {
        self.0.push((at, kind));
    }

    /// Returns the last mount that decides about the content of `path`: `path` lies in it or is its
    /// mount point.
    fn over(&self, path: &Path) -> Option<&(PathBuf, Kind)> {
        self.0.iter().rev().find(|(at, _)| path.starts_with(at))
    }

    /// Returns true if `path` lies below a mount point, so that the image does not decide what is
    /// there.
    pub(crate) fn covers(&self, path: &Path) -> bool {
        self.0.iter().any(|(at, _)| path.starts_with(at) && path != at)
    }

    /// Fails if a mount at `target`, which is `real` without links, contradicts an earlier one.
    pub(crate) fn allows(&self, target: &Path, real: &Path, needs: Kind) -> Result<(), String> {
        match self.over(real) {
            Some((at, _)) if at == real && at == Path::new("/proc") => Err(format!(
                "{} is where the command sees its processes, which nothing else is mounted over; mount it elsewhere",
                shown_path(target)
            )),
            Some((at, kind)) if at == real && (*kind == Kind::Dir) != (needs == Kind::Dir) => {
                Err(in_the_way(Holder::Mount, target, *kind, needs))
            }
            Some((at, kind)) if at != real && *kind != Kind::Dir => Err(below(Holder::Mount, target, at, kind.noun())),
            None if needs != Kind::Dir && self.0.iter().any(|(at, _)| at.starts_with(real)) => {
                Err(in_the_way(Holder::Mount, target, Kind::Dir, needs))
            }
            _ => Ok(()),
        }
    }
}

/// Returns `target` with links resolved. Fails if nothing can be mounted there, or if the image
/// lacks something that the mount requires. Returns `None` if the path leads into an earlier mount,
/// whose files are not known yet.
pub(crate) fn free_place(
    image: &RootDir,
    target: &Path,
    needs: Kind,
    taken: &Taken,
) -> Result<Option<PathBuf>, String> {
    let may_follow = |link: &Path| !taken.covers(&Path::new("/").join(link));
    let Some(real) = image.resolve_by(target, may_follow).map_err(|e| cannot(target, &e))? else { return Ok(None) };
    outside_of_the_kernels(target, &real)?;
    taken.allows(target, &real, needs)?;
    if taken.covers(&real) {
        return Ok(None);
    }
    fitting_place(image, target, (&real, needs), Holder::Image)?;
    Ok(Some(real))
}

/// Fails if the entry at `target`, which is `real` without links, cannot be mounted on.
pub(crate) fn fitting_place(
    files: &RootDir,
    target: &Path,
    (real, needs): (&Path, Kind),
    holder: Holder,
) -> Result<(), String> {
    let is_link = files.stat(target).is_ok_and(|stat| stat.kind == Kind::Symlink);
    if is_link && SYSTEM.iter().any(|place| Path::new(place) == target) {
        return Err(in_the_way(holder, target, Kind::Symlink, needs));
    }
    match files.stat(real).map(|stat| stat.kind) {
        Ok(found) if (found == Kind::Dir) != (needs == Kind::Dir) => Err(in_the_way(holder, target, found, needs)),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => Err(below_a_file(files, target, real, holder)),
        _ => Ok(()),
    }
}

/// Fails for paths inside the kernel's own file systems, where no mount point can be made.
pub(crate) fn outside_of_the_kernels(target: &Path, real: &Path) -> Result<(), String> {
    for place in ["/proc", "/sys", "/dev/pts", "/dev/mqueue"] {
        let Ok(inside) = real.strip_prefix(place) else { continue };
        if inside.as_os_str().is_empty() || (place == "/sys" && Path::new(SYSFS).join(inside).exists()) {
            continue;
        }
        let (lies, remedy) = match target == real {
            true => ("lies".to_string(), "mount it elsewhere"),
            false => (format!("is a link that leads to {}", shown_path(real)), "have the link replaced"),
        };
        let target = shown_path(target);
        return Err(format!("{target} {lies} in {place}, where nothing can be made to be mounted on; {remedy}"));
    }
    Ok(())
}

pub(crate) fn cannot(target: &Path, e: &rbuild_linux::Error) -> String {
    format!("the mount point {}: {e}", shown_path(target))
}

fn in_the_way(holder: Holder, target: &Path, has: Kind, needs: Kind) -> String {
    let (has, needs) = (has.noun(), needs.noun());
    let (target, holder, remedy) = (shown_path(target), holder.has(), holder.remedy());
    format!("{holder} {has} at {target}, where {needs} is needed to be mounted on; {remedy}")
}

/// Formats the error for a path with a component that exists and is not a directory.
fn below_a_file(files: &RootDir, target: &Path, real: &Path, holder: Holder) -> String {
    let mut above: Vec<&Path> = real.ancestors().skip(1).collect();
    above.reverse();
    let found = above.into_iter().find_map(|path| {
        let kind = files.stat(path).ok()?.kind;
        (kind != Kind::Dir).then_some((path, kind))
    });
    let (path, has) = found.map_or((real, "something else than a directory"), |(path, kind)| (path, kind.noun()));
    below(holder, target, path, has)
}

fn below(holder: Holder, target: &Path, path: &Path, has: &str) -> String {
    let (path, target) = (shown_path(path), shown_path(target));
    let remedy = match holder {
        Holder::Image => "mount it elsewhere, or have that replaced where the image is made",
        Holder::Mount => holder.remedy(),
    };
    let holder = holder.has();
    format!("{holder} {has} at {path}, below which {target} cannot be mounted; {remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_that_contradict_each_other_are_refused() {
        let mut taken = Taken::default();
        for (at, kind) in [("/proc", Kind::Dir), ("/d", Kind::Dir), ("/n/f", Kind::File)] {
            taken.add(at.into(), kind);
        }
        let allows = |real: &str, needs| {
            taken.allows(Path::new("/target"), Path::new(real), needs).err().map(|why| why.contains("/target"))
        };
        for (real, needs) in [("/d", Kind::Dir), ("/d/x", Kind::File), ("/n/f", Kind::File), ("/n", Kind::Dir)] {
            assert_eq!(allows(real, needs), None, "{real}");
        }
        for (real, needs) in
            [("/proc", Kind::Dir), ("/d", Kind::File), ("/n/f", Kind::Dir), ("/n/f/x", Kind::Dir), ("/n", Kind::File)]
        {
            assert_eq!(allows(real, needs), Some(true), "{real}");
        }
    }
}
