use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use rbuild_remedy::{Remedy, sentence};
use rbuild_testkit::Scratch;

use super::*;
use crate::config_error::{ConfigError, FileAction};
use crate::secret::Secret;

const EISDIR: i32 = 21;

struct Scene(Scratch);

impl Scene {
    fn new() -> Scene {
        let dir = Scratch::new();
        std::fs::create_dir_all(dir.join("home/.docker")).unwrap();
        Scene(dir)
    }

    fn environment(&self, more: &[(&str, &str)]) -> ProcessEnvironment {
        let (home, path) = (self.0.join("home"), format!("{}:/usr/bin:/bin", self.0.display()));
        let own = [("HOME", home.to_str().unwrap()), ("PATH", &path)];
        ProcessEnvironment::of(own.into_iter().chain(more.iter().copied()), &self.0)
    }

    fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.0.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    fn helper(&self, name: &str, script: &str) {
        let path = self.write(&format!("docker-credential-{name}"), &format!("#!/bin/sh\n{script}\n"));
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn find(&self, registry: &str, repository: &str) -> Option<Credential> {
        found(&self.environment(&[]), registry, repository).unwrap().map(|login| login.credential)
    }
}

fn found(environment: &ProcessEnvironment, registry: &str, repository: &str) -> Result<Option<Login>, ConfigError> {
    find(
        environment,
        &CommandLineCredentials::default(),
        LoginTarget { registry, repository, role: EndpointRole::Registry },
    )
}

fn password(user: &str, password: &str) -> Option<Credential> {
    Some(Credential::Password { user: user.into(), password: Secret::new(password) })
}

#[test]
fn the_longest_key_wins_and_urls_count_as_hosts() {
    let scene = Scene::new();
    // joe:a, joe:b:c and joe:d
    scene.write(
        "home/.docker/config.json",
        r#"{"auths": {
            "a.io": {"auth": "am9lOmE="},
            "a.io/team/x": {"username": "team", "password": "x"},
            "a.io/team": {},
            "https://b.io/v1/": {"auth": "am9lOmI6Yw=="},
            "https://index.docker.io/v1/": {"auth": "am9lOmQ="},
            "t.io": {"identitytoken": "T"}, "r.io": {"registrytoken": "R"}}}"#,
    );
    assert_eq!(scene.find("a.io", "team/x/y"), password("team", "x"));
    assert_eq!(scene.find("a.io", "team/z"), password("joe", "a"), "an empty entry counts as none");
    assert_eq!(scene.find("b.io", "x"), password("joe", "b:c"));
    assert_eq!(scene.find("docker.io", "library/x"), password("joe", "d"));
    assert_eq!(scene.find("t.io", "x"), Some(Credential::Identity(Secret::new("T"))));
    assert_eq!(scene.find("r.io", "x"), Some(Credential::Registry(Secret::new("R"))));
    assert_eq!(scene.find("c.io", "x"), None);
}

#[test]
fn credential_sources_have_a_fixed_order() {
    let scene = Scene::new();
    let auth = |user: &str| format!(r#"{{"auths": {{"a.io": {{"username": "{user}", "password": "p"}}}}}}"#);
    scene.write("home/.docker/config.json", &auth("docker"));
    scene.write("home/.config/containers/auth.json", &auth("podman"));
    let file = scene.write("other.json", &auth("file"));
    scene.write("home/.dockercfg", r#"{"old.io": {"username": "old", "password": "p"}}"#);
    let (text, file) = (auth("variable"), file.to_str().unwrap().to_string());
    let user = |variables: &[(&str, &str)], registry: &str| {
        let found = found(&scene.environment(variables), registry, "x").unwrap();
        match found.map(|login| login.credential) {
            Some(Credential::Password { user, .. }) => user,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(user(&[], "a.io"), "podman");
    assert_eq!(user(&[("DOCKER_AUTH_CONFIG", &text)], "a.io"), "variable");
    assert_eq!(user(&[("DOCKER_AUTH_CONFIG", &text), ("REGISTRY_AUTH_FILE", &file)], "a.io"), "file");
    assert_eq!(user(&[], "old.io"), "old");
}

/// A place that the caller names is the only one of its kind that is read or changed.
#[test]
fn a_named_file_or_directory_replaces_that_of_the_home_directory() {
    let scene = Scene::new();
    let auth = r#"{"auths": {"a.io": {"username": "joe", "password": "p"}}}"#;
    let others = [("home/.docker/config.json", auth), ("home/.config/containers/auth.json", auth)];
    let own = scene.write("dir/config.json", auth);
    let file = |path: &str| scene.0.join(path).to_str().unwrap().to_string();
    let (dir, empty) = (file("dir"), file("empty"));
    std::fs::write(scene.0.join("home/.docker/config.json"), auth).unwrap();
    scene.write("home/.dockercfg", r#"{"a.io": {"username": "old", "password": "p"}}"#);
    let found = |variables: &[(&str, &str)]| found(&scene.environment(variables), "a.io", "x").unwrap().is_some();
    assert_eq!([found(&[]), found(&[("DOCKER_CONFIG", &empty)])], [true, false]);
    let own_text = own.to_str().unwrap();
    for (variables, given) in [
        (vec![], Some(&own)),
        (vec![("DOCKER_CONFIG", &*empty)], Some(&own)),
        (vec![("REGISTRY_AUTH_FILE", own_text)], None),
        (vec![("DOCKER_CONFIG", &*dir)], None),
    ] {
        std::fs::write(&own, auth).unwrap();
        others.iter().for_each(|(path, text)| drop(scene.write(path, text)));
        let given = CommandLineCredentials { file: given.cloned(), ..CommandLineCredentials::default() };
        let environment = scene.environment(&variables);
        let removed = forget(&environment, &given, "a.io").unwrap();
        assert_eq!((removed.from, removed.left.len()), (vec![own_text.to_string()], 0), "{variables:?}");
        // The logins that are still used. `DOCKER_CONFIG` replaces all files of Docker.
        let podman = file("home/.config/containers/auth.json");
        let expected = match variables.first() {
            Some(("DOCKER_CONFIG", _)) => vec![podman],
            _ => vec![podman, file("home/.docker/config.json"), file("home/.dockercfg")],
        };
        assert_eq!(removed.others, expected, "{variables:?}");
        for (path, text) in others {
            assert_eq!(std::fs::read_to_string(scene.0.join(path)).unwrap(), text, "{variables:?}: {path}");
        }
        assert!(!std::fs::read_to_string(&own).unwrap().contains("joe"), "{variables:?}");
    }
    let all = forget(&scene.environment(&[]), &CommandLineCredentials::default(), "a.io").unwrap();
    assert_eq!(all.from.len(), 3, "{all:?}");
}

#[test]
fn helpers_are_called_and_named_in_errors() {
    let scene = Scene::new();
    scene.write(
        "home/.docker/config.json",
        r#"{"credHelpers": {"a.io": "own", "b.io": "broken", "c.io": "../own", "d.io": "absent"}, "credsStore": "all"}"#,
    );
    scene.helper("own", r#"printf '{"ServerURL":"%s","Username":"<token>","Secret":"S"}' "$(cat)""#);
    scene.helper("broken", "echo the keychain is locked; exit 1");
    scene.helper("all", "echo credentials not found in native keychain; exit 1");
    assert_eq!(scene.find("a.io", "x"), Some(Credential::Identity(Secret::new("S"))));
    let fails = |registry| sentence(&found(&scene.environment(&[]), registry, "x").unwrap_err());
    assert_eq!(fails("b.io"), "docker-credential-broken failed: the keychain is locked");
    assert_eq!(fails("d.io"), "program docker-credential-absent not found in PATH");
    for (file, entry) in [
        (r#"{"credHelpers": {"a.io": "../own"}}"#, "`credHelpers` for a.io: `../own`"),
        (r#"{"credsStore": "own\n"}"#, "`credsStore`: `own\\n`"),
        (r#"{"credsStore": 7}"#, "`credsStore`: it is not a string"),
    ] {
        let path = scene.write("home/.docker/config.json", file);
        let error = fails("a.io");
        assert!(error.starts_with(&format!("`{}`: {entry}", path.display())), "{error}");
        let environment = scene.environment(&[]);
        let error = store(&environment, &CommandLineCredentials::default(), "a.io", &password("joe", "a").unwrap())
            .unwrap_err();
        assert!(sentence(&error).contains(entry), "{error}");
        assert!(
            sentence(&forget(&environment, &CommandLineCredentials::default(), "a.io").unwrap().left[0])
                .contains(entry)
        );
    }
    scene.write("home/.docker/config.json", r#"{"credHelpers": {"a.io": null, "b.io": ""}, "credsStore": ""}"#);
    assert_eq!((scene.find("a.io", "x"), scene.find("b.io", "x")), (None, None));
}

#[test]
fn background_processes_of_a_helper_are_not_waited_for() {
    let scene = Scene::new();
    scene.write("home/.docker/config.json", r#"{"credsStore": "agent"}"#);
    scene.helper("agent", r#"sleep 20 & printf '{"ServerURL":"a.io","Username":"joe","Secret":"S"}'"#);
    let start = std::time::Instant::now();
    assert_eq!(scene.find("a.io", "x"), password("joe", "S"));
    assert!(start.elapsed().as_secs() < 10);
}

#[test]
fn logins_are_stored_and_removed_and_other_members_kept() {
    let scene = Scene::new();
    let path = scene.write(
        "home/.docker/config.json",
        r#"{"z": 1.0e+2, "auths": {"b.io": {"auth": "am9lOmI="}}, "a": [2, 12345678901234567890123]}"#,
    );
    let environment = scene.environment(&[]);
    let login = password("joe", "a:b").unwrap();
    let stored = store(&environment, &CommandLineCredentials::default(), "docker.io", &login).unwrap();
    assert_eq!(stored, Stored::File(path.display().to_string()));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(scene.find("docker.io", "library/x"), Some(login));
    let removed = forget(&environment, &CommandLineCredentials::default(), "docker.io").unwrap();
    assert_eq!(removed.from, [path.display().to_string()]);
    assert_eq!(scene.find("docker.io", "library/x"), None);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("\"z\": 1.0e+2,") && text.contains("\"a\": [2, 12345678901234567890123]"), "{text}");
    let (z, auths, a) = (text.find("\"z\"").unwrap(), text.find("\"auths\"").unwrap(), text.find("\"a\"").unwrap());
    assert!(z < auths && auths < a && text.contains("am9lOmI="), "{text}");
    let again = forget(&environment, &CommandLineCredentials::default(), "docker.io").unwrap();
    assert!(again.from.is_empty() && again.left.is_empty(), "{again:?}");
    let variable = scene.environment(&[("DOCKER_AUTH_CONFIG", r#"{"auths": {"v.io": {"auth": "am9lOmI="}}}"#)]);
    assert_eq!(forget(&variable, &CommandLineCredentials::default(), "v.io").unwrap().left.len(), 1);
}

#[test]
fn concurrent_logins_are_all_stored() {
    let scene = Scene::new();
    std::fs::remove_dir(scene.0.join("home/.docker")).unwrap();
    let environment = scene.environment(&[]);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let environment = &environment;
            scope.spawn(move || {
                for i in 0..5 {
                    let registry = format!("r{i}.t{thread}.io");
                    store(
                        environment,
                        &CommandLineCredentials::default(),
                        &registry,
                        &password("joe", &registry).unwrap(),
                    )
                    .unwrap();
                }
            });
        }
    });
    for (thread, i) in (0..8).flat_map(|thread| (0..5).map(move |i| (thread, i))) {
        let registry = format!("r{i}.t{thread}.io");
        assert_eq!(scene.find(&registry, "x"), password("joe", &registry));
    }
    let mode = |path: &str| std::fs::metadata(scene.0.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("home/.docker"), mode("home/.docker/config.json")), (0o700, 0o600));
    let left: Vec<_> = std::fs::read_dir(scene.0.join("home/.docker")).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "the file without its lock: {left:?}");
}

#[test]
fn a_replaced_file_keeps_its_path_owner_and_mode() {
    use std::os::unix::fs::{MetadataExt, symlink};
    let scene = Scene::new();
    let (environment, login) = (scene.environment(&[]), password("joe", "a").unwrap());
    let link = scene.0.join("home/.docker/config.json");
    // Relative, through another link, and to a file that does not exist.
    symlink("../other", &link).unwrap();
    symlink(scene.0.join("real/config"), scene.0.join("home/other")).unwrap();
    store(&environment, &CommandLineCredentials::default(), "a.io", &login).unwrap();
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    let real = scene.0.join("real/config");
    assert!(std::fs::symlink_metadata(&real).unwrap().is_file());
    // Groups keep their access; others have none to a file with logins.
    for (before, after) in [(0o640, 0o640), (0o644, 0o600), (0o400, 0o600)] {
        std::fs::set_permissions(&real, std::fs::Permissions::from_mode(before)).unwrap();
        store(&environment, &CommandLineCredentials::default(), "a.io", &login).unwrap();
        assert_eq!(std::fs::metadata(&real).unwrap().mode() & 0o777, after);
    }
    if std::os::unix::fs::chown(&real, Some(1), Some(2)).is_ok() {
        store(&environment, &CommandLineCredentials::default(), "b.io", &login).unwrap();
        let found = std::fs::metadata(&real).unwrap();
        assert_eq!((found.uid(), found.gid()), (1, 2));
    }
    assert_eq!(scene.find("a.io", "x"), Some(login));
    std::fs::remove_file(&link).unwrap();
    symlink(&link, &link).unwrap();
    let error =
        store(&environment, &CommandLineCredentials::default(), "a.io", &password("joe", "a").unwrap()).unwrap_err();
    assert!(sentence(&error).contains("too many levels of symbolic links"), "{error}");
}

#[test]
fn broken_files_are_named_and_not_quoted() {
    let scene = Scene::new();
    for text in
        [r#"{"auths": {"a.io": {"auth": "%%%"}}}"#, r#"{"auths": {"a.io": {"auth": "am9l"}}}"#, "{\"secret\": hunter2"]
    {
        scene.write("home/.docker/config.json", text);
        let error = found(&scene.environment(&[]), "a.io", "x").unwrap_err();
        let error = format!("{} {error:?}", sentence(&error));
        assert!(error.contains("config.json") && !error.contains("hunter2"), "{error}");
    }
}

/// A file that cannot be read or written is not an invalid file.
#[test]
fn failed_operations_on_files_keep_their_cause() {
    let (path, kind) = (PathBuf::from("/h/config.json"), std::io::ErrorKind::PermissionDenied);
    let failed = |action, e: std::io::Error| ConfigError::file(action, &path)(e);
    let full = failed(FileAction::Write, std::io::ErrorKind::StorageFull.into());
    assert_eq!(full.remedy(), Some(Remedy::Disk(rbuild_remedy::DiskRemedy::FreeSpaceAt { place: path.clone() })));
    let denied = failed(FileAction::Read, kind.into());
    assert_eq!(
        denied.remedy(),
        Some(
            rbuild_remedy::FileRemedy::Permit {
                access: rbuild_remedy::FileAccess::Read,
                path: "/h/config.json".into()
            }
            .into()
        )
    );
    assert_eq!(sentence(&denied), "cannot read `/h/config.json`: permission denied");
    assert_eq!(failed(FileAction::Read, std::io::Error::from_raw_os_error(5)).remedy(), None);

    let scene = Scene::new();
    std::fs::create_dir(scene.0.join("home/.docker/config.json")).unwrap();
    let error = found(&scene.environment(&[]), "a.io", "x").unwrap_err();
    let cause = std::error::Error::source(&error).and_then(|e| e.downcast_ref::<std::io::Error>());
    assert_eq!(cause.and_then(std::io::Error::raw_os_error), Some(EISDIR), "{error:?}");
}

#[test]
fn sources_of_logins_are_as_recorded() {
    let scene = Scene::new();
    let given = |registry: Option<&str>| CommandLineCredentials {
        login: Some(CommandLineLogin {
            registry: registry.map(str::to_string),
            user: "joe".into(),
            password: Secret::new("hunter2"),
        }),
        ..CommandLineCredentials::default()
    };
    let environment = scene.environment(&[("DOCKER_AUTH_CONFIG", "{}")]);
    let lines = [CommandLineCredentials::default(), given(None), given(Some("r.io"))].map(|given| {
        let places: Vec<_> = other_login(&given).into_iter().chain(source_names(&environment, &given)).collect();
        let places = places.join(", ");
        format!("{}\n", places.replace(scene.0.to_str().unwrap(), ""))
    });
    rbuild_testkit::assert_recorded!("places", lines.concat());
}
