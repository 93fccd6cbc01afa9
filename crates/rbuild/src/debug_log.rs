//! The debug log: `RBUILD_LOG` and `-D` on standard error, `--debug-log` as JSON lines in a file.
//!
//! The builder process inherits both by fork. Processes that it starts for commands send their
//! warnings back to it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rbuild_engine::Warning;
use rbuild_linux::quoted;
use rbuild_remedy::{DiskRemedy, Remedy, sentence};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry, fmt};

use crate::exit::Failure;
use crate::input::output;
use crate::ui::{hints, terminal};

/// Targets of rbuild's own spans and events. All others are libraries.
const TARGETS: [&str; 6] = ["engine", "store", "transport", "registry", "sandbox", "source"];

/// Flags and variables that enable a log.
pub struct DebugLog {
    /// `RBUILD_LOG`: a level, or levels by target as in `engine=debug,store=trace`.
    pub filter: Option<String>,
    /// `-D`: debug messages of rbuild and warnings of libraries.
    pub debug: bool,
    /// `--debug-log`.
    pub file: Option<PathBuf>,
}

/// Writes to standard error as other messages.
struct StandardError;

impl io::Write for StandardError {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        terminal::err(&String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl DebugLog {
    /// Starts logging. Does nothing if no log is enabled.
    ///
    /// # Errors
    ///
    /// Fails if the filter is invalid or the file cannot be written.
    pub fn start(&self) -> Result<(), Failure> {
        let filter = self.filter.as_deref().filter(|f| !f.trim().is_empty()).map(parse).transpose()?;
        let mut layers: Vec<Box<dyn Layer<Registry> + Send + Sync>> = Vec::new();
        if self.is_on_stderr() {
            let layer = fmt::layer().compact().with_ansi(false).with_writer(|| StandardError);
            let targets = filter.clone().unwrap_or_else(|| everything(LevelFilter::DEBUG));
            layers.push(layer.with_span_events(FmtSpan::CLOSE).with_filter(targets).boxed());
        }
        if let Some(path) = &self.file {
            let file = LogFile { file: open(path)?, path: path.clone(), is_whole: true };
            let layer = fmt::layer().json().with_writer(Mutex::new(file));
            let targets = filter.unwrap_or_else(|| everything(LevelFilter::TRACE));
            layers.push(layer.with_span_events(FmtSpan::CLOSE).with_filter(targets).boxed());
        }
        if layers.is_empty() {
            return Ok(());
        }
        tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layers))
            .map_err(|e| Failure::new(format!("cannot start the debug log: {e}")))
    }

    /// Returns true if the log is written to standard error, which it then shares with the progress
    /// output.
    pub fn is_on_stderr(&self) -> bool {
        self.debug || self.filter.as_deref().is_some_and(|f| !f.trim().is_empty())
    }
}

/// The file of `--debug-log`. A build does not fail because of its log: the first failure in each
/// process is reported as a warning.
struct LogFile {
    file: File,
    path: PathBuf,
    is_whole: bool,
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes);
        if let Err(e) = &written
            && std::mem::replace(&mut self.is_whole, false)
        {
            let help = rbuild_linux::is_disk_full(e).then(|| Remedy::Disk(DiskRemedy::FreeOutput).into());
            terminal::warning(Warning {
                text: format!("the debug log {} is incomplete: {}", quoted(&self.path), sentence(e)),
                help,
            });
        }
        written
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

fn open(path: &Path) -> Result<File, Failure> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    let failed = |e| rbuild_linux::Error::new("open", path, e);
    file.map_err(|e| output::unwritten("the debug log", path, failed(e)))
}

/// Returns a filter with one level for rbuild and warnings of libraries.
fn everything(level: LevelFilter) -> Targets {
    let own = TARGETS.map(|target| (target, level));
    Targets::new().with_default(level.min(LevelFilter::WARN)).with_targets(own)
}

fn parse(filter: &str) -> Result<Targets, Failure> {
    let wrong = |problem: String| Failure::usage(format!("RBUILD_LOG={filter}: {problem}"));
    let levels = hints::use_one_of(&["error", "warn", "info", "debug", "trace"]);
    if !filter.contains(['=', ',']) {
        let level = filter.trim().parse();
        return level.map(everything).map_err(|_| wrong(format!("`{filter}` is not a level")).help(levels));
    }
    for part in filter.split(',') {
        let Some((target, _)) = part.split_once('=') else { continue };
        let known = TARGETS.contains(&target.trim()) || target.starts_with("lib");
        if !known {
            return Err(wrong(format!("unknown part `{target}`")).help(hints::suggestion(target.trim(), &TARGETS)));
        }
    }
    filter.parse().map_err(|e| wrong(format!("{e}")).help(levels))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn filters_select_levels_and_parts() {
        for (filter, target, level, enabled) in [
            ("debug", "engine", Level::DEBUG, true),
            ("debug", "engine", Level::TRACE, false),
            ("debug", "libcontainer", Level::WARN, true),
            ("debug", "libcontainer", Level::INFO, false),
            ("engine=debug", "engine", Level::DEBUG, true),
            ("engine=debug", "store", Level::ERROR, false),
            ("engine=debug,store=trace", "store", Level::TRACE, true),
            ("warn,engine=debug", "libcontainer", Level::WARN, true),
        ] {
            let targets = parse(filter).unwrap_or_else(|e| panic!("{filter}: {}", e.message));
            assert_eq!(targets.would_enable(target, &level), enabled, "{filter} {target} {level}");
        }
    }

    #[test]
    fn invalid_filters_are_refused_as_recorded() {
        let text = ["loud", "engin=debug", "nosuch=debug", "engine=loud"]
            .map(|filter| parse(filter).expect_err(filter).text());
        rbuild_testkit::assert_recorded!("debug-log", text.concat());
    }
}
