//! Names of the members of archives.

/// Returns the name of an archive's member without `.` and `..`, relative to the archive's root.
pub(crate) fn clean(path: &str) -> String {
    rbuild_paths::in_root(path).join("/")
}
