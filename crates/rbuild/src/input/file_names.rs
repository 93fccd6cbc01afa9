//! Suggestions for paths of files that do not exist.

use std::path::Path;

use crate::ui::hints::{self, Hint};

/// Returns the names in the directory of a file of this machine.
pub fn beside(file: &Path) -> Vec<String> {
    let found = std::fs::read_dir(directory(file)).into_iter().flatten().flatten();
    found.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Returns the hint for a file that does not exist: the most similar of the names in its directory,
/// or else `otherwise`.
pub fn instead_of(file: &Path, names: &[String], otherwise: impl Into<Hint>) -> Hint {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    match rbuild_dockerfile::closest(name, names.iter().map(String::as_str)) {
        Some(close) => hints::did_you_mean(directory(file).join(close).display().to_string().trim_start_matches("./")),
        None => otherwise.into(),
    }
}

fn directory(file: &Path) -> &Path {
    file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
