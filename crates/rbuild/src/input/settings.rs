//! Settings of all verbs: path of the store, limits for unpacked archives, isolation, lock timeout.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rbuild_engine::Warning;
use rbuild_layer::Limits;
use rbuild_linux::{IdMaps, quoted};
use rbuild_sandbox::{Isolation, IsolationRequest, isolation};
use rbuild_store::{LockWaiting, OwnerMode, Store};

use crate::exit::Failure;
use crate::input::config::Config;
use crate::input::value;
use crate::ui::hints::{Hint, UsageRemedy};
use crate::ui::terminal;

pub struct Settings {
    /// Absolute path of the store.
    pub root: PathBuf,
    limits: Limits,
    /// Requested isolation of commands.
    pub isolation: IsolationRequest,
    lock_timeout: Option<u64>,
    /// Warns if the store does not exist yet.
    expects_store: bool,
}

impl Settings {
    /// Resolves each setting from flags, else the environment, else the configuration file. Limits
    /// from all three are combined.
    pub fn new(
        root: Option<PathBuf>,
        limits: &[String],
        isolation: Option<IsolationRequest>,
        config: &Config,
    ) -> Result<Settings, Failure> {
        let from_env = std::env::var("RBUILD_LIMIT").unwrap_or_default();
        let mut all = config.limits;
        for (setting, text) in
            [("RBUILD_LIMIT=", &from_env)].into_iter().chain(limits.iter().map(|text| ("--limit ", text)))
        {
            for part in text.split(',').filter(|part| !part.is_empty()) {
                all = value::limit(all, part).map_err(|bad| bad.of(format!("{setting}{part}")))?;
            }
        }
        Ok(Settings {
            root: store_root(root, config)?,
            limits: all,
            isolation: isolation.or(config.isolation).unwrap_or_default(),
            lock_timeout: None,
            expects_store: false,
        })
    }

    /// Warns if the store does not exist yet. It is created nevertheless.
    pub fn expecting_store(self) -> Settings {
        Settings { expects_store: true, ..self }
    }

    /// Sets the seconds to wait for a program other than rbuild that holds a lock of the store.
    pub fn with_lock_timeout(self, seconds: Option<u64>) -> Settings {
        Settings { lock_timeout: seconds, ..self }
    }

    fn waiting(&self) -> LockWaiting {
        let usual = LockWaiting::default();
        let foreign = self.lock_timeout.map_or(usual.foreign, Duration::from_secs);
        LockWaiting { foreign, notify: Arc::new(|text| terminal::warning(text)) }
    }

    /// Opens the store, and creates it if it does not exist.
    pub fn open(&self) -> Result<Store, Failure> {
        let is_unexpected = self.expects_store && !self.root.exists();
        let store = Store::open_with(&self.root, self.waiting())?.with_limits(self.limits);
        if is_unexpected {
            terminal::warning(Warning {
                text: format!("created a new, empty store in {}", quoted(&self.root)),
                help: Some(Hint::from(UsageRemedy::CheckStorePath).into()),
            });
        }
        Ok(store)
    }

    /// Opens the store for lookups of results that builders with the requested isolation made.
    pub fn open_for_builds(&self) -> Result<Store, Failure> {
        let isolation = isolation(self.isolation).ok();
        let owners = isolation.as_ref().map_or(OwnerMode::Given, Isolation::owner_mode);
        let highest_ids = isolation.as_ref().and_then(Isolation::maps).map(IdMaps::without_holes);
        let takes_devices = matches!(isolation, Some(Isolation::Chroot));
        Ok(self.open()?.with_builder_owners(owners, highest_ids).with_device_nodes(takes_devices))
    }
}

fn store_root(flag: Option<PathBuf>, config: &Config) -> Result<PathBuf, Failure> {
    let env = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let path = flag
        .or_else(|| env("RBUILD_ROOT"))
        .or_else(|| config.root.clone())
        .or_else(|| env("XDG_DATA_HOME").map(|d| d.join("rbuild")))
        .or_else(|| env("HOME").map(|d| d.join(".local/share/rbuild")));
    absolute(path)
}

fn absolute(path: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let path =
        path.ok_or_else(|| Failure::new("the store has no path: HOME is not set").help(UsageRemedy::GiveStorePath))?;
    std::path::absolute(&path).map_err(|e| Failure::caused(format!("cannot find the store {}", quoted(&path)), &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_without_a_path_is_refused_as_recorded() {
        let text = [None, Some(PathBuf::new())].map(|path| absolute(path).expect_err("no path").text());
        rbuild_testkit::assert_recorded!("store-path", text.concat());
    }
}
