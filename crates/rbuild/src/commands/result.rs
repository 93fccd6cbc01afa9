//! The lines about the result of a successful build.

use std::path::{Component, Path, PathBuf};

use rbuild_engine::{BuildReport, BuildRequest, Export};
use rbuild_image::{ManifestDigest, Reference, human_size};
use rbuild_remedy::{counted, sentence};
use rbuild_store::{Store, StoreError};

use crate::commands::images::image_size;
use crate::ui::plain::plain;

/// Returns the lines: the image or the files, and the time and the steps of the build in the first
/// line.
pub fn lines(store: &Store, request: &BuildRequest, finished: &BuildReport) -> String {
    let mut lines: Vec<String> = built(store, request, finished).into_iter().collect();
    let mut counts = finished.written.iter();
    for export in &request.exports {
        let Some(path) = export.path() else { continue };
        lines.push(match export {
            Export::Files { .. } => wrote_files(counts.next().copied().unwrap_or_default(), &path),
            Export::Layout { .. } => format!("Wrote an OCI layout to {}", shown(&path)),
            _ => wrote_archive(&path),
        });
    }
    if lines.is_empty() {
        lines.push("Built".into());
    }
    lines[0] += &course(finished);
    lines.into_iter().map(|line| line + "\n").collect()
}

/// Returns the text about an image.
fn built(store: &Store, request: &BuildRequest, finished: &BuildReport) -> Option<String> {
    let image = finished.image.as_ref()?;
    if let Some(index) = &finished.index {
        let images = counted(finished.platforms.len() as u64, "image");
        let properties = format!("{}, {images}", index.digest.short());
        return Some(named(&request.tags, || other_names(store, index.digest), &properties));
    }
    if !finished.lent.is_empty() && finished.platforms.len() > 1 {
        let images = counted(finished.platforms.len() as u64, "image");
        return Some(format!("Built {images} (they are in the registry only: their layers were not downloaded)"));
    }
    if !finished.lent.is_empty() {
        let place = "it is in the registry only: its layers were not downloaded";
        return Some(format!("Built the image {} ({place})", image.id.short()));
    }
    if !image.is_stored {
        return Some(format!("Built the image {}", image.id.short()));
    }
    let size = store.images().image(&image.manifest).ok().and_then(|image| image_size(store, &image).ok());
    let size = size.map_or(String::new(), |size| format!(", {}", human_size(size)));
    let properties = format!("{}{size}", image.id.short());
    Some(named(&request.tags, || other_names(store, image.manifest), &properties))
}

/// Returns the names that a stored result had before.
fn other_names(store: &Store, digest: ManifestDigest) -> Result<Vec<Reference>, StoreError> {
    let entries = store.images().list()?.into_iter().filter(|entry| *entry.artifact.digest() == digest);
    Ok(entries.filter_map(|entry| entry.name).collect())
}

fn wrote_files(count: u64, path: &Path) -> String {
    format!("Wrote {} to {}", counted(count, "file"), shown(path))
}

fn wrote_archive(path: &Path) -> String {
    let size = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file);
    let size = size.map_or(String::new(), |size| format!(" ({})", human_size(size.len())));
    format!("Wrote {}{size}", shown(path))
}

fn shown(path: &Path) -> String {
    let has_parent = path.components().any(|part| part == Component::ParentDir);
    // After a symbolic link, only the file system knows what `..` is.
    let clean = has_parent.then(|| path.canonicalize().ok()).flatten();
    // Components have no slash at the end.
    let clean = clean.unwrap_or_else(|| path.components().collect::<PathBuf>());
    plain(&clean.to_string_lossy()).into_owned()
}

/// Returns the time and the steps of a build, at the end of a sentence.
fn course(finished: &BuildReport) -> String {
    let steps = counted(finished.steps.done as u64, "step");
    let cached = match finished.steps.cached {
        0 => String::new(),
        cached => format!(", {cached} cached"),
    };
    format!(" in {:.1}s: {steps}{cached}", finished.duration.as_secs_f64())
}

/// Returns the text about a stored result with the names that the build gave it; without any, with
/// those that `others` returns. The build has succeeded even if they cannot be read.
fn named(names: &[Reference], others: impl FnOnce() -> Result<Vec<Reference>, StoreError>, properties: &str) -> String {
    let list = |names: &[Reference]| names.iter().map(Reference::familiar).collect::<Vec<_>>().join(", ");
    if !names.is_empty() {
        return format!("Built {} ({properties})", list(names));
    }
    match others() {
        Ok(others) if others.is_empty() => format!("Built an image without a name ({properties}; give one with -t)"),
        Ok(others) => format!("Built an image without a new name ({properties}; it has the name {})", list(&others)),
        Err(e) => format!("Built an image ({properties}) whose names cannot be read ({})", sentence(&e)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rbuild_engine::StepCounts;

    use super::*;

    #[test]
    fn names_that_cannot_be_read_do_not_fail_a_build() {
        let list = |list: &[&str]| -> Vec<Reference> { list.iter().map(|name| name.parse().unwrap()).collect() };
        let named_before = |names| named(&[], || Ok(list(names)), "1");
        let given = named(&list(&["a:1", "b.io/c"]), || Ok(Vec::new()), "1, 2MB");
        assert_eq!(given, "Built a:1, b.io/c:latest (1, 2MB)");
        assert_eq!(named_before(&[]), "Built an image without a name (1; give one with -t)");
        let want = "Built an image without a new name (1; it has the name a:1, b:latest)";
        assert_eq!(named_before(&["a:1", "b"]), want);
        let e = StoreError::NoImage("x".into());
        let want = format!("Built an image (1) whose names cannot be read ({})", sentence(&e));
        assert_eq!(named(&[], || Err(e), "1"), want);
    }

    #[test]
    fn the_course_of_a_build_is_one_phrase() {
        let report = |done, cached| BuildReport {
            steps: StepCounts { done, cached },
            duration: Duration::from_millis(13_440),
            ..BuildReport::default()
        };
        assert_eq!(course(&report(10, 4)), " in 13.4s: 10 steps, 4 cached");
        assert_eq!(course(&report(1, 0)), " in 13.4s: 1 step");
        assert_eq!(wrote_files(1, Path::new("/out/")), "Wrote 1 file to /out");
        assert_eq!(wrote_files(2, Path::new("/dev/pts/../")), "Wrote 2 files to /dev");
        assert_eq!(wrote_archive(Path::new("/dev/null")), "Wrote /dev/null");
    }
}
