//! Warnings of builds.

use std::path::Path;

use rbuild_dockerfile::Help;
use rbuild_image::human_size;
use rbuild_linux::quoted;
use rbuild_remedy::{FileRemedy, Remedy, Warning, sentence};
use rbuild_store::StoreError;

use crate::secret_scan::MIN_SEARCHED;

/// A problem that does not fail a build.
#[derive(Debug)]
pub(crate) enum BuildWarning<'a> {
    /// Commands are not isolated.
    NotIsolated,
    /// Commands see the machine's /proc.
    OuterProcesses,
    /// A pattern of a copy matches nothing.
    NoMatch { pattern: &'a str },
    /// Several sources were copied to one file.
    Overwritten { dest: &'a str },
    /// No command uses a secret, but one uses a secret with a similar ID.
    UnusedSecret { id: &'a str, similar: &'a str },
    /// The value of a secret is too short to search for. `is_masked` is true if output is masked.
    ShortSecret { id: &'a str, is_masked: bool },
    /// The store is in a build context and was skipped. `path` is relative to the context.
    StoreLeftOut { path: &'a Path },
    /// The cache could not be reduced to its limit.
    NotEvicted(StoreError),
    /// A layer of a cache besides the store cannot be used. Its step runs.
    LostLayer { cache: &'a str, cause: &'a str },
    /// The content of a cache mount in a cache besides the store cannot be used.
    LostMount { name: &'a str, cache: &'a str, cause: &'a str },
    /// A cache mount contains the value of a secret, and is not written to a cache.
    MountWithSecret { name: &'a str },
    /// A cache mount may contain secrets that are not known, and is not written to a cache.
    MountOfEarlierBuilds { name: &'a str },
    /// A layer of a cache that is imported cannot be used.
    NotImported { cache: &'a str, cause: &'a str },
    /// A cache mount that a build with secrets used is not written to a cache.
    MountOfBuildsWithSecrets { name: &'a str },
    /// A cache mount that a cache is to have is used by no command.
    UnusedMount { id: &'a str, similar: Option<&'a str> },
    /// A cache mount that is to be exported or imported does not exist.
    UnknownMount { id: &'a str, similar: Option<&'a str> },
    /// The image does not get the records of its steps.
    InlineWithoutEffect { reason: &'a str },
    /// A cache mount is too large to be written to a cache.
    LargeMount { name: &'a str, size: u64 },
    /// A cache mount cannot be written to a cache.
    NotPacked { name: &'a str, cause: &'a str },
}

impl BuildWarning<'_> {
    fn text(&self) -> String {
        match self {
            BuildWarning::NotIsolated => "commands share this machine's processes, network and devices, because it \
                                          permits neither namespaces nor mounts; run only what you would run without \
                                          rbuild"
                .into(),
            BuildWarning::OuterProcesses => "commands can see other processes, because /proc is masked on this \
                                             machine and no new one can be mounted; a program that looks itself up \
                                             by PID finds another process"
                .into(),
            BuildWarning::NoMatch { pattern } => format!("no file matches `{pattern}`; nothing was copied for it"),
            BuildWarning::Overwritten { dest } => {
                format!("`{dest}` was overwritten by every source; only the last one remains")
            }
            BuildWarning::UnusedSecret { id, similar: _ } => format!("no command uses the secret `{id}`"),
            BuildWarning::ShortSecret { id, is_masked } => {
                let output = if *is_masked { "" } else { ", nor is it masked in output" };
                format!(
                    "the secret `{id}` has fewer than {MIN_SEARCHED} bytes: results are not searched for it{output}"
                )
            }
            BuildWarning::StoreLeftOut { path } => {
                format!("{} in the build context is the store of this build and was left out", quoted(path))
            }
            BuildWarning::NotEvicted(e) => format!("cannot evict cache entries: {}", sentence(e)),
            BuildWarning::LostLayer { cache, cause } => {
                format!("a layer of the cache {cache} cannot be used, so its step runs: {cause}")
            }
            BuildWarning::LostMount { name, cache, cause } => {
                format!("the cache mount `{name}` of the cache {cache} cannot be used: {cause}")
            }
            BuildWarning::MountWithSecret { name } => {
                format!("the cache mount `{name}` contains the value of a secret, so no cache gets it")
            }
            BuildWarning::MountOfEarlierBuilds { name } => {
                format!(
                    "the cache mount `{name}` was made by an earlier build, whose secrets may be in it, so no cache \
                     gets it"
                )
            }
            BuildWarning::NotImported { cache, cause } => {
                format!("a layer of the cache {cache} cannot be used, so its step is not imported: {cause}")
            }
            BuildWarning::MountOfBuildsWithSecrets { name } => {
                format!("the cache mount `{name}` was used by a build with secrets, so it is not exported")
            }
            BuildWarning::UnusedMount { id, similar: _ } => {
                format!("no command of this build uses a cache mount `{id}`, so no cache gets it")
            }
            BuildWarning::UnknownMount { id, similar: _ } => {
                format!("there is no cache mount `{id}`")
            }
            BuildWarning::InlineWithoutEffect { reason } => {
                format!("the inline cache has no effect: {reason}")
            }
            BuildWarning::LargeMount { name, size } => {
                format!("the cache mount `{name}` is not exported: it has {} in compressed form", human_size(*size))
            }
            BuildWarning::NotPacked { name, cause } => {
                format!("the cache mount `{name}` cannot be packed, so no cache gets it: {cause}")
            }
        }
    }

    fn help(&self) -> Option<Remedy> {
        match self {
            BuildWarning::NotIsolated
            | BuildWarning::OuterProcesses
            | BuildWarning::NoMatch { .. }
            | BuildWarning::ShortSecret { .. } => None,
            BuildWarning::Overwritten { .. } => Some(FileRemedy::EndWithSlash.into()),
            BuildWarning::UnusedSecret { similar, .. } => Some(Remedy::did_you_mean(*similar)),
            BuildWarning::UnusedMount { similar, .. } | BuildWarning::UnknownMount { similar, .. } => {
                similar.map(Remedy::did_you_mean)
            }
            BuildWarning::StoreLeftOut { path } => {
                Some(FileRemedy::IgnoreStore { path: path.to_string_lossy().into_owned() }.into())
            }
            BuildWarning::NotEvicted(e) => e.remedy(),
            BuildWarning::LostLayer { .. }
            | BuildWarning::LostMount { .. }
            | BuildWarning::MountWithSecret { .. }
            | BuildWarning::MountOfEarlierBuilds { .. }
            | BuildWarning::NotImported { .. }
            | BuildWarning::MountOfBuildsWithSecrets { .. }
            | BuildWarning::InlineWithoutEffect { .. }
            | BuildWarning::LargeMount { .. }
            | BuildWarning::NotPacked { .. } => None,
        }
    }
}

impl From<BuildWarning<'_>> for Warning<Help> {
    fn from(warning: BuildWarning<'_>) -> Warning<Help> {
        Warning { text: warning.text(), help: warning.help().map(Help::from) }
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;

    #[test]
    fn warnings_are_as_recorded() {
        let full =
            rbuild_linux::Error::new("write", std::path::Path::new("trees/a"), std::io::Error::from_raw_os_error(28));
        let warnings = [
            BuildWarning::NotIsolated,
            BuildWarning::OuterProcesses,
            BuildWarning::NoMatch { pattern: "src/*.c" },
            BuildWarning::Overwritten { dest: "/app" },
            BuildWarning::UnusedSecret { id: "tokne", similar: "token" },
            BuildWarning::ShortSecret { id: "pin", is_masked: true },
            BuildWarning::ShortSecret { id: "pin", is_masked: false },
            BuildWarning::StoreLeftOut { path: Path::new(".local/share/rbuild") },
            BuildWarning::NotEvicted(full.into()),
            BuildWarning::LostLayer { cache: "`/cache`", cause: "it is missing" },
            BuildWarning::LostMount { name: "/root/.cache", cache: "`/cache`", cause: "it is missing" },
            BuildWarning::MountWithSecret { name: "/root/.cache" },
            BuildWarning::MountOfEarlierBuilds { name: "/root/.cache" },
            BuildWarning::NotImported { cache: "`/cache`", cause: "it is missing" },
            BuildWarning::MountOfBuildsWithSecrets { name: "/root/.cache" },
            BuildWarning::UnusedMount { id: "/root/.cach", similar: Some("/root/.cache") },
            BuildWarning::UnknownMount { id: "nosuch", similar: None },
            BuildWarning::InlineWithoutEffect { reason: "no output is an image" },
            BuildWarning::LargeMount { name: "/root/.cache", size: 3_000_000_000 },
            BuildWarning::NotPacked { name: "/root/.cache", cause: "`x` is a socket" },
        ];
        let variants = variants!(BuildWarning {
            NotIsolated,
            OuterProcesses,
            NoMatch,
            Overwritten,
            UnusedSecret,
            ShortSecret,
            StoreLeftOut,
            NotEvicted,
            LostLayer,
            LostMount,
            MountWithSecret,
            MountOfEarlierBuilds,
            NotImported,
            MountOfBuildsWithSecrets,
            UnusedMount,
            UnknownMount,
            InlineWithoutEffect,
            LargeMount,
            NotPacked,
        });
        let words = |warning: &BuildWarning| format!("{}\n  remedy: {:?}", warning.text(), warning.help());
        assert_recorded!("BuildWarning", variants.words(&warnings, words));
    }
}
