//! Facts about a build that a Dockerfile does not contain.

/// External facts for lint rules.
pub struct Facts<'a> {
    /// Returns the environment of a base image; `None` if the image is unknown.
    pub base_env: &'a dyn Fn(&str) -> Option<Vec<String>>,
    /// Returns the platform of a base image if it differs from the target platform.
    pub foreign_base: &'a dyn Fn(&str) -> Option<String>,
    /// Returns true for a path that the ignore file excludes from the context.
    pub ignored: &'a dyn Fn(&str) -> bool,
    /// Returns the value of a build argument, if the caller gave one. It overrides the default of
    /// the ARG.
    pub build_arg: &'a dyn Fn(&str) -> Option<String>,
    /// Predefined variables of the global scope, with their values.
    pub automatic: &'a [(String, String)],
}
