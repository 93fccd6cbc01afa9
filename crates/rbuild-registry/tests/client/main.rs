//! The client against a registry with injectable faults.

mod download;
#[allow(dead_code)]
mod files;
mod http_request;
mod listing;
#[allow(dead_code)]
mod object_server;
mod objects;
mod pull;
mod push;
mod ranges;
mod registry;
mod sources;
mod tls;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rbuild_image::Reference;
use rbuild_registry::{
    Client, CommandLineCredentials, CommandLineLogin, Notice, Options, ProcessEnvironment, RangePolicy, Repository,
    RetryPolicy, Secret,
};
use rbuild_testkit::Scratch;

/// A client with its own home directory, and the notices that it sent.
struct Scene {
    client: Client,
    notices: Arc<Mutex<Vec<Notice>>>,
    dir: Scratch,
}

impl Scene {
    fn new() -> Scene {
        Scene::with_given(CommandLineCredentials::default())
    }

    /// A scene with a login for this registry.
    fn with_login(registry: &registry::Registry, user: &str, password: &str) -> Scene {
        let registry = Some(registry.address.clone());
        let login = Some(CommandLineLogin { user: user.into(), password: Secret::new(password), registry });
        Scene::with_given(CommandLineCredentials { login, file: None })
    }

    fn with_given(given: CommandLineCredentials) -> Scene {
        Scene::with_options(given, RangePolicy::default())
    }

    /// A scene whose client downloads blobs in ranges so.
    fn with_ranges(ranges: RangePolicy) -> Scene {
        Scene::with_options(CommandLineCredentials::default(), ranges)
    }

    fn with_options(given: CommandLineCredentials, ranges: RangePolicy) -> Scene {
        let dir = Scratch::new();
        let environment = ProcessEnvironment::of([("HOME", dir.to_str().unwrap())], &dir);
        let retry_policy = RetryPolicy {
            idle: Duration::from_millis(700),
            first_wait: Duration::from_millis(20),
            ..RetryPolicy::default()
        };
        let options = Options { given, retry_policy, ranges, ..Options::default() };
        let notices: Arc<Mutex<Vec<Notice>>> = Arc::default();
        let sink = notices.clone();
        let client = Client::new(environment, options, move |notice| sink.lock().unwrap().push(notice));
        Scene { client, notices, dir }
    }

    /// Writes the settings of registries.
    fn configure(&self, conf: &str) {
        std::fs::create_dir_all(self.dir.join(".config/containers")).unwrap();
        std::fs::write(self.dir.join(".config/containers/registries.conf"), conf).unwrap();
    }

    fn repository(&self, registry: &registry::Registry, path: &str) -> Repository {
        let name: Reference = format!("{}/{path}", registry.address).parse().unwrap();
        self.client.repository(&name).unwrap()
    }
}
