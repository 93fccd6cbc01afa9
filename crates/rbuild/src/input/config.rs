//! The configuration file, `~/.config/rbuild/config.toml`. Flags and environment variables take
//! precedence over it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use rbuild_dockerfile::Help;
use rbuild_engine::Warning;
use rbuild_layer::Limits;
use rbuild_linux::quoted;
use rbuild_registry::ServerSettings;
use rbuild_remedy::{FileRemedy, Remedy, sentence};
use rbuild_sandbox::IsolationRequest;
use toml::Value;

use crate::args::{BuildArgs, ProgressMode, Verb};
use crate::exit::Failure;
use crate::input::cache;
use crate::input::server_settings;
use crate::input::toml_value::{absolute_path, list, number, text};
use crate::input::value::{self, BadValue};
use crate::ui::hints::{self, Hint, ValueRemedy};
use crate::ui::terminal;

/// Defaults of flags.
#[derive(Debug, Default)]
pub struct Config {
    /// Absolute path of the store.
    pub root: Option<PathBuf>,
    pub limits: Limits,
    pub isolation: Option<IsolationRequest>,
    /// Settings of registries.
    pub servers: ServerSettings,
    cache_limit: Option<u64>,
    jobs: Option<usize>,
    progress: Option<ProgressMode>,
    context_modes: Option<bool>,
}

impl Config {
    /// Reads the file of the calling user. Returns the default if there is none.
    pub fn of_user() -> Result<Config, Failure> {
        let env = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let home = || env("HOME").map(|home| (home.clone(), home.join(".config")));
        let Some((base, dir)) = env("XDG_CONFIG_HOME").map(|dir| (dir.clone(), dir)).or_else(home) else {
            return Ok(Config::default());
        };
        let path = dir.join("rbuild/config.toml");
        match std::fs::read_to_string(&path) {
            Ok(text) => Config::parse(&path, &text),
            Err(e) => {
                let is_own = belongs_to_caller(&base);
                match unsearchable(&path).filter(|_| is_own) {
                    Some(dir) => {
                        terminal::warning(unsearched(dir, &e));
                        Ok(Config::default())
                    }
                    None => Config::unread(&path, &e, is_own),
                }
            }
        }
    }

    /// Returns the default if the file does not exist, or fails. `is_own` is true if the directory
    /// in HOME or XDG_CONFIG_HOME belongs to the caller. That of another user, for example after
    /// `su` without a login shell, has no settings for the caller.
    fn unread(path: &Path, e: &std::io::Error, is_own: bool) -> Result<Config, Failure> {
        use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
        match e.kind() {
            NotFound | NotADirectory => Ok(Config::default()),
            PermissionDenied if !is_own => Ok(Config::default()),
            _ => Err(Failure::usage(format!("cannot read the configuration file {}: {}", quoted(path), sentence(e)))
                .because(e)),
        }
    }

    fn parse(path: &Path, text: &str) -> Result<Config, Failure> {
        let failed = |e: String| Failure::usage(format!("{}: {}", quoted(path), e.trim_end()));
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
            let line = e.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            failed(format!("line {line}: {}", e.message())).help(ValueRemedy::CorrectLine { line })
        })?;
        let mut config = Config::default();
        for (name, value) in &table {
            match value {
                Value::Table(tables) if name == REGISTRY => server_settings::add(&mut config.servers, tables),
                _ => config.set(name, value).map_err(|bad| (format!("{name} = {value}"), bad)),
            }
            .map_err(|(setting, bad)| bad.of(format!("{}: {setting}", quoted(path))))?;
        }
        Ok(config)
    }

    /// Sets the default of the flag with that name.
    fn set(&mut self, name: &str, value: &Value) -> Result<(), BadValue> {
        match name {
            "root" => self.root = Some(absolute_path(text(value)?)?),
            "limit" => {
                for limit in list(value)? {
                    self.limits = value::limit(self.limits, text(limit)?)?;
                }
            }
            "isolation" => self.isolation = Some(value::isolation(text(value)?)?),
            "cache-limit" => self.cache_limit = Some(value::size(text(value)?)?),
            "jobs" => self.jobs = Some(value::jobs(&number(value)?.to_string())?),
            "progress" => self.progress = Some(progress(text(value)?)?),
            "context-modes" => self.context_modes = Some(value::context_modes(text(value)?)?),
            REGISTRY => {
                return Err(BadValue { problem: "not a table".into(), hint: ValueRemedy::RegistryTable.into() });
            }
            _ => return Err(BadValue { problem: "unknown setting".into(), hint: hints::suggestion(name, &NAMES) }),
        }
        Ok(())
    }

    /// Fills in the flags of a verb that neither the command line nor the environment sets.
    pub fn fill(&self, verb: &mut Verb) {
        match verb {
            Verb::Build(args) => {
                self.fill_build(args);
                args.registry.servers = self.servers.clone();
                for host in cache::insecure_registries(&args.cache_from, &args.cache_to) {
                    if let Some(setting) = args.registry.servers.of_host_mut(&host) {
                        setting.insecure = Some(true);
                    }
                }
            }
            Verb::Pull(args) => args.registry.servers = self.servers.clone(),
            Verb::Push(args) => args.registry.servers = self.servers.clone(),
            Verb::Inspect(args) => args.registry.servers = self.servers.clone(),
            Verb::Run(args) => args.container.registry.servers = self.servers.clone(),
            Verb::Create(args) => args.container.registry.servers = self.servers.clone(),
            Verb::Login(args) => args.servers = self.servers.clone(),
            _ => {}
        }
    }

    fn fill_build(&self, args: &mut BuildArgs) {
        args.cache_limit = args.cache_limit.or(self.cache_limit);
        args.jobs = args.jobs.or(self.jobs);
        args.progress = args.progress.or(self.progress);
        args.context_modes = args.context_modes.or(self.context_modes);
    }
}

/// Returns the directory above a file in which the caller may not search for it.
fn unsearchable(path: &Path) -> Option<&Path> {
    let is_denied =
        |path: &Path| std::fs::symlink_metadata(path).is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied);
    if !is_denied(path) {
        return None;
    }
    path.ancestors().skip(1).find(|dir| !is_denied(dir))
}

fn unsearched(dir: &Path, e: &std::io::Error) -> Warning<Help> {
    let text = format!("cannot search {} for a configuration file: {}", quoted(dir), sentence(e));
    Warning { text, help: Some(Hint::from(Remedy::File(FileRemedy::CheckPermissions)).into()) }
}

/// Returns true if a directory belongs to the caller. One that cannot be examined does not.
fn belongs_to_caller(dir: &Path) -> bool {
    std::fs::metadata(dir).is_ok_and(|found| found.uid() == rbuild_linux::credentials::own_ids().uid)
}

/// The name of the table of registries.
const REGISTRY: &str = "registry";
/// The names of the settings.
const NAMES: [&str; 8] = ["root", "limit", "isolation", "cache-limit", "jobs", "progress", "context-modes", REGISTRY];

fn progress(text: &str) -> Result<ProgressMode, BadValue> {
    ProgressMode::from_str(text, false).map_err(|_| {
        let values: Vec<_> = ProgressMode::value_variants().iter().filter_map(ValueEnum::to_possible_value).collect();
        let names: Vec<&str> = values.iter().map(|value| value.get_name()).collect();
        BadValue { problem: "unknown style".into(), hint: hints::suggestion(text, &names) }
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rbuild_registry::{MirrorPlace, ServerSetting};

    use super::*;

    fn build_args(line: &[&str]) -> BuildArgs {
        match crate::args::Cli::parse_from([&["rbuild", "build"], line].concat()).verb {
            crate::args::Verb::Build(args) => *args,
            _ => unreachable!("the verb is given"),
        }
    }

    #[test]
    fn flags_take_precedence_over_the_file() {
        let text = "cache-limit = \"5g\"\njobs = 3\nprogress = \"plain\"\nlimit = [\"entries=5\"]\n";
        let mut config = Config::default();
        for (name, value) in &text.parse::<toml::Table>().unwrap() {
            config.set(name, value).unwrap();
        }
        let mut args = build_args(&["--jobs", "7"]);
        config.fill_build(&mut args);
        assert_eq!((args.jobs, args.cache_limit), (Some(7), Some(5 << 30)));
        assert!(args.progress == Some(ProgressMode::Plain));
        assert_eq!(config.limits.entries, 5);
    }

    #[test]
    fn registries_have_settings() {
        let text = "[registry.\"localhost:5000\"]\nmirrors = [\"m.io/hub\"]\ninsecure = false\nplain-http = true\n\
                    ca = \"/ca.crt\"\nconnections = 3\n";
        let mut config = Config::parse(Path::new("config.toml"), text).unwrap();
        let setting = config.servers.of_host_mut("localhost:5000").unwrap();
        let wanted = ServerSetting {
            mirrors: Some(vec![MirrorPlace::parse("m.io/hub").unwrap()]),
            insecure: Some(false),
            plain_http: Some(true),
            ca: Some("/ca.crt".into()),
            connections: Some(3),
        };
        assert_eq!(*setting, wanted);
    }

    #[test]
    fn errors_in_the_file_are_as_recorded() {
        let path = Path::new("[dir]/config.toml");
        let mut table = String::new();
        for text in [
            "jbos = 3\n",
            "jobs = \"4\"\n",
            "jobs = 0\n",
            "root = \"x\"\n",
            "root = 5\n",
            "progress = \"fancy\"\n",
            "limit = \"entries=5\"\n",
            "\njobs =\n",
            "limit = [\"bytes\"]\n",
            "isolation = \"usern\"\n",
            "cache-limit = \"5x\"\n",
            "limit = [\"byte=5\"]\n",
            "registry = 1\n",
            "[registry]\n\"a.io\" = 1\n",
            "[registry.myhub]\ninsecure = true\n",
            "[registry.\"a.io\"]\ninsecured = true\n",
            "[registry.\"a.io\"]\ninsecure = \"yes\"\n",
            "[registry.\"a.io\"]\nmirrors = [\"https://m.io\"]\n",
            "[registry.\"a.io\"]\nmirrors = \"m.io\"\n",
            "[registry.\"a.io\"]\nca = \"ca.crt\"\n",
            "[registry.\"a.io\"]\nconnections = 0\n",
        ] {
            table += &Config::parse(path, text).unwrap_err().text();
        }
        rbuild_testkit::assert_recorded!("config", table);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_an_error_unless_it_is_of_another_user() {
        use nix::errno::Errno::{EACCES, EISDIR, ENOENT, ENOTDIR};
        let mut table = String::new();
        for (errno, is_own, is_ignored) in [
            (ENOENT, true, true),
            (ENOTDIR, true, true),
            (EACCES, false, true),
            (EACCES, true, false),
            (EISDIR, true, false),
            (EISDIR, false, false),
        ] {
            let e = std::io::Error::from_raw_os_error(errno as i32);
            match Config::unread(Path::new("/h/.config/rbuild/config.toml"), &e, is_own) {
                Ok(config) => assert!(is_ignored && config.jobs.is_none(), "{errno}"),
                Err(failure) => table += &failure.text(),
            }
        }
        let denied = std::io::Error::from_raw_os_error(EACCES as i32);
        table += &terminal::warning_text(&unsearched(Path::new("/h/.config"), &denied), false);
        rbuild_testkit::assert_recorded!("unread-config", table);
    }
}
