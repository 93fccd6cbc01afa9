//! The client against a registry that misbehaves on order.

mod pull;
mod push;
mod registry;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rbuild_image::Reference;
use rbuild_registry::{Client, Environment, Given, Notice, Options, Patience, Repository, Secret, TlsVerify};

/// A client with a home directory of its own, and what it told.
struct Scene {
    client: Client,
    told: Arc<Mutex<Vec<Notice>>>,
    dir: PathBuf,
}

impl Scene {
    fn new(name: &str, login: Option<(&str, &str)>) -> Scene {
        let dir = std::env::temp_dir().join(format!("rbuild-registry-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Scene::in_dir(dir, login)
    }

    fn in_dir(dir: PathBuf, login: Option<(&str, &str)>) -> Scene {
        let environment = Environment::of([("HOME", dir.to_str().unwrap())], &dir);
        let login = login.map(|(user, password)| (user.to_string(), Secret::new(password)));
        let patience =
            Patience { idle: Duration::from_millis(700), first_wait: Duration::from_millis(20), ..Patience::default() };
        let options = Options { given: Given { login, file: None }, tls_verify: TlsVerify(None), patience };
        let told: Arc<Mutex<Vec<Notice>>> = Arc::default();
        let notices = told.clone();
        let client = Client::new(environment, options, move |notice| notices.lock().unwrap().push(notice));
        Scene { client, told, dir }
    }

    fn repository(&self, registry: &registry::Registry, path: &str) -> Repository {
        let name: Reference = format!("{}/{path}", registry.address).parse().unwrap();
        self.client.repository(&name).unwrap()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
