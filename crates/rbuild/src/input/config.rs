//! The configuration file, `~/.config/rbuild/config.toml`. Flags and environment variables take
//! precedence over it.

use std::path::{Path, PathBuf};

use rbuild_linux::quoted;
use serde::Deserialize;

use crate::args::{BuildArgs, ProgressMode};
use crate::exit::Failure;

/// Defaults of flags, under the names of the flags.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Absolute path of the store.
    pub root: Option<PathBuf>,
    pub limit: Vec<String>,
    cache_limit: Option<String>,
    jobs: Option<usize>,
    progress: Option<ProgressMode>,
    context_modes: Option<String>,
    pub isolation: Option<String>,
}

impl Config {
    /// Reads the file of the calling user. Returns the default if there is none.
    pub fn of_user() -> Result<Config, Failure> {
        let env = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let dir = env("XDG_CONFIG_HOME").or_else(|| env("HOME").map(|home| home.join(".config")));
        dir.map_or_else(|| Ok(Config::default()), |dir| Config::read(&dir.join("rbuild/config.toml")))
    }

    fn read(path: &Path) -> Result<Config, Failure> {
        let failed = |e: String| Failure::usage(format!("{}: {}", quoted(path), e.trim_end()));
        use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            // Permission is denied if HOME is another user's, as after su without a login shell.
            Err(e) if matches!(e.kind(), NotFound | NotADirectory | PermissionDenied) => return Ok(Config::default()),
            Err(e) => return Err(failed(e.to_string()).because(&e)),
        };
        // The parser names types of Rust.
        let config: Config =
            toml::from_str(&text).map_err(|e| failed(e.to_string().replace("expected usize", "expected a number")))?;
        if config.root.as_ref().is_some_and(|root| root.is_relative()) {
            return Err(failed("root must be an absolute path".into()));
        }
        Ok(config)
    }

    /// Fills in flags of `build` that neither the command line nor the environment sets.
    pub fn fill(&self, args: &mut BuildArgs) {
        args.cache_limit = args.cache_limit.take().or_else(|| self.cache_limit.clone());
        args.jobs = args.jobs.or(self.jobs);
        args.progress = args.progress.or(self.progress);
        args.context_modes = args.context_modes.take().or_else(|| self.context_modes.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn build_args(line: &[&str]) -> BuildArgs {
        match crate::args::Cli::parse_from([&["rbuild", "build"], line].concat()).verb {
            crate::args::Verb::Build(args) => *args,
            _ => unreachable!("the verb is given"),
        }
    }

    #[test]
    fn flags_take_precedence_over_the_file() {
        let text = "cache-limit = \"5g\"\njobs = 3\nprogress = \"plain\"\nlimit = [\"entries=5\"]\n";
        let config: Config = toml::from_str(text).unwrap();
        let mut args = build_args(&["--jobs", "7"]);
        config.fill(&mut args);
        assert_eq!((args.jobs, args.cache_limit.as_deref()), (Some(7), Some("5g")));
        assert!(args.progress == Some(ProgressMode::Plain));
        assert_eq!(config.limit, ["entries=5"]);
    }

    #[test]
    fn errors_in_the_file_are_reported() {
        let dir = std::env::temp_dir().join(format!("rbuild-config-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("config.toml");
        for (text, want) in [
            ("jbos = 3\n", "unknown field `jbos`"),
            ("jobs = \"x\"\n", "expected a number"),
            ("root = \"x\"\n", "absolute"),
        ] {
            std::fs::write(&path, text).unwrap();
            let message = Config::read(&path).unwrap_err().message;
            assert!(message.contains(want) && message.contains("config.toml"), "{message}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(Config::read(&path).unwrap().jobs.is_none());
    }
}
