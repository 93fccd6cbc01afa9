//! Paths in images, which are native to the image's operating system.

use rbuild_dockerfile::{Diagnostic, Span, is_windows};
use rbuild_image::ImageConfig;

/// Returns the working directory with forward slashes on every operating system.
pub(super) fn cwd(config: &ImageConfig) -> String {
    match &config.config.working_dir {
        dir if is_windows(&config.os) => dir.replace('\\', "/"),
        dir => dir.clone(),
    }
}

/// Converts a path of the image's operating system to forward slashes. A Windows path may name
/// drive C:, the only drive of an image.
pub(super) fn native_path(config: &ImageConfig, path: &str, span: Span) -> Result<String, Diagnostic> {
    if !is_windows(&config.os) {
        return Ok(path.to_string());
    }
    let path = path.replace('\\', "/");
    let refused = |problem: &str| Err(Diagnostic::new(span, format!("`{path}` {problem}")));
    match path.split_once(':') {
        _ if path.starts_with("//") => refused("is a network share, which an image cannot contain"),
        None => Ok(path),
        Some((drive, _)) if !drive.eq_ignore_ascii_case("c") => {
            refused("is not on drive C:, the only drive of an image")
        }
        Some((_, "")) => refused("names a drive but no path"),
        Some((_, rest)) => Ok(rest.to_string()),
    }
}

/// Resolves `path` against `base` lexically: the result is absolute, without `.`, `..` and `//`.
pub(super) fn join(base: &str, path: &str) -> String {
    let whole = if path.starts_with('/') { path.to_string() } else { format!("{base}/{path}") };
    format!("/{}", rbuild_paths::in_root(&whole).join("/"))
}
