//! Facts about a build that a Dockerfile does not contain.

/// External facts for lint rules.
pub struct Facts<'a> {
    /// Returns the role of the stage at that position.
    pub role: &'a dyn Fn(usize) -> StageRole,
    /// Returns a base image by its expanded name and the expanded value of `FROM --platform`;
    /// `None` if the image is unknown.
    pub base: &'a dyn Fn(&str, Option<&str>) -> Option<BaseFacts>,
    /// Returns true for a path that the ignore file excludes from the context.
    pub ignored: &'a dyn Fn(&str) -> bool,
    /// Returns the value of a build argument, if the caller gave one. It overrides the default of
    /// the ARG.
    pub build_arg: &'a dyn Fn(&str) -> Option<String>,
    /// Predefined variables of the global scope, with their values.
    pub automatic: &'a [(String, String)],
}

/// The role of a stage in a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StageRole {
    /// Built: the instructions are carried out.
    Built,
    /// The target does not need it.
    Unused,
    /// A named context replaces it; `None` if the context's image is unknown.
    Replaced(Option<BaseFacts>),
}

/// Facts about a base image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BaseFacts {
    /// Environment, as `NAME=VALUE`.
    pub env: Vec<String>,
    /// True if the configuration names a shell.
    pub has_shell: bool,
    /// ONBUILD triggers, as written.
    pub triggers: Vec<String>,
    /// Platform, if that is not the one that the stage is built for.
    pub foreign: Option<String>,
}
