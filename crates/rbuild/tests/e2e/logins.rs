//! Logins: which servers get them, and where they do not appear.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::lab::Lab;
use crate::registries::server::{Access, Registry};
use crate::registries::{Scene, family};

#[test]
fn logins_are_stored_and_used_and_not_leaked() {
    for access in [Access::Basic("joe", "hunter2"), Access::Token("joe", "hunter2", 50)] {
        let scene = Scene::new(access);
        let name = scene.name("busybox:1");
        scene.rbuild(&["import", crate::lab::base("busybox.tar").to_str().unwrap(), &name]).ok();
        scene.rbuild(&["push", &name]).fails(1, &["refused to push", "rbuild login"]);
        let address = scene.registry.address.as_str();
        scene.rbuild(&["login", "-u", "joe", "-p", "wrong", address]).fails(1, &["refused to"]);
        let ran = scene.rbuild(&["login", "-u", "joe", "-p", "hunter2", address]).ok();
        assert!(ran.stdout.contains("Login Succeeded"));
        scene.rbuild(&["push", &name]).ok();
        scene.forget(&name);
        let built = scene.build(&format!("FROM {name}\nRUN ! env | grep 'hunter[2]'\n"), &[]).ok();
        let config = scene.lab.path("other");
        let logout = |program: &str| {
            scene.lab.sh(&format!("HOME=$LAB/home DOCKER_CONFIG={} {program} logout {address}", config.display()))
        };
        let ran = logout("$RB").ok();
        let left = format!("another login for {address} is in ");
        // With `DOCKER_CONFIG`, Docker's file in the home directory is not used, but Podman's is.
        assert!(ran.stdout.starts_with("Not logged in to ") && !ran.stderr.contains(&left), "{}", ran.stderr);
        std::fs::create_dir_all(scene.lab.path("home/.config/containers")).unwrap();
        let podman = scene.lab.path("home/.config/containers/auth.json");
        std::fs::copy(scene.lab.path("home/.docker/config.json"), &podman).unwrap();
        let ran = logout("env -u XDG_CONFIG_HOME $RB").ok();
        assert!(ran.stdout.is_empty() && ran.stderr.contains(&format!("{left}{}", podman.display())), "{}", ran.stderr);
        scene.rbuild(&["logout", address]).ok();
        assert!(!std::fs::read_to_string(podman).unwrap().contains(address));
        scene.forget(&name);
        let refused = scene.rbuild(&["pull", &name]).fails(1, &["refused to pull", "no login for"]);
        let messages = built.stderr + &refused.stderr;
        assert!(!messages.contains("hunter2") && !messages.contains("am9lOmh1bnRlcjI"), "{messages}");
        let found = scene.lab.sh(r#"grep -rlE 'hunter2|am9lOmh1bnRlcjI|token-[0-9]' "$LAB/store" "$LAB/home""#);
        assert_eq!(found.stdout, "");
    }
}

#[test]
fn a_push_without_permission_fails_before_the_build() {
    let scene = Scene::new(Access::Basic("joe", "hunter2"));
    scene.rbuild(&["import", crate::lab::base("busybox.tar").to_str().unwrap(), "busybox"]).ok();
    let ran = scene.build("FROM busybox\nRUN true\n", &["-t", &scene.name("x:1"), "--push"]);
    assert_eq!(ran.fails(1, &["refused to push", "rbuild login"]).steps(), (0, 0));
    scene.build("FROM busybox\n", &["--push"]).fails(2, &["requires a name", "add -t"]);
}

#[test]
fn no_log_contains_a_credential() {
    let scene = Scene::new(Access::Token("joe", "hunter2", 50));
    let name = scene.name("busybox:1");
    scene.rbuild(&["import", crate::lab::base("busybox.tar").to_str().unwrap(), &name]).ok();
    let mut command = scene.lab.command(["-D", "push", &name]);
    let env = [("RBUILD_CREDS", "joe:hunter2"), ("RBUILD_LOG", "trace"), ("RBUILD_DEBUG_LOG", "log.json")];
    let ran = scene.lab.run_with(&mut command, &env).ok();
    let log = std::fs::read_to_string(scene.lab.ctx().join("log.json")).unwrap();
    for text in [ran.stdout, ran.stderr, log] {
        assert!(!text.contains("hunter2") && !text.contains("am9lOmh1bnRlcjI") && !text.contains("token-"), "{text}");
    }
}

/// A CI system passes an unset secret as an empty variable.
#[test]
fn an_empty_login_variable_counts_as_unset() {
    let lab = Lab::new();
    lab.write("Dockerfile", "FROM busybox\n");
    let check = |args: &[&str], login| lab.run_with(&mut lab.command(args.iter().copied()), &[("RBUILD_CREDS", login)]);
    check(&["build", "--check", "."], "").ok();
    check(&["build", "--check", "."], "joe:").fails(2, &["RBUILD_CREDS: the value is not of the form USER:PASSWORD"]);
    check(&["build", "--check", "--creds", "", "."], "").fails(2, &["--creds: the value is not of the form"]);
}

#[test]
fn credentials_for_the_push_are_not_sent_to_base_registries() {
    let scene = Scene::with_image();
    let other = Registry::start(Access::Basic("joe", "hunter2"));
    let file = format!("FROM {}/x:1\n", other.address);
    let app = scene.name("app:1");
    for args in [&["-t", &app, "--push", "--creds", "joe:hunter2"][..], &["--creds=joe:hunter2"]] {
        scene.build(&file, args).fails(1, &["no login for", "the command line (whose login is for"]);
        let asked = other.requests();
        assert!(!asked.is_empty() && asked.iter().all(|request| !request.ends_with('+')), "{asked:?}");
    }
    let elsewhere = format!("{}/app:1", other.address);
    scene
        .build("FROM scratch\nLABEL a=b\n", &["-t", &app, "-t", &elsewhere, "--push", "--creds=joe:hunter2"])
        .fails(2, &["--creds is a login for one registry", "rbuild login"]);
}

#[test]
fn the_builder_has_no_credentials() {
    let scene = Scene::with_image();
    scene.lab.write("Dockerfile", format!("FROM {}\nRUN echo $$ > /pid && sleep 60\n", scene.name("busybox:1")));
    let (home, app) = (scene.lab.path("home"), scene.name("app:1"));
    let auths = r#"{"auths":{"b.io":{"username":"ann","password":"swordfish"}}}"#;
    let mut command = scene.lab.command(["build", "-t", &app, "--push", "--creds", "joe:hunter2"]);
    command.env("RBUILD_PULL", "missing").env("HOME", home).env("RBUILD_CREDS", "joe:hunter3");
    command.env("DOCKER_AUTH_CONFIG", auths).stderr(Stdio::null());
    let mut launcher = command.spawn().unwrap();
    let runs_sleep =
        |pid: &u32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|text| text == b"sleep\x0060\0");
    let deadline = Instant::now() + Duration::from_secs(30);
    while !family(launcher.id()).iter().any(runs_sleep) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    let family = family(launcher.id());
    let mut seen = 0;
    for pid in &family {
        for file in ["environ", "cmdline"] {
            let Ok(bytes) = std::fs::read(format!("/proc/{pid}/{file}")) else { continue };
            let text = String::from_utf8_lossy(&bytes);
            assert!(!text.contains("hunter") && !text.contains("swordfish"), "{file} of {pid}: {text}");
            seen += 1;
        }
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let links = descriptors.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        let held = links.filter(|link| link.to_string_lossy().contains("rbuild-withheld")).count();
        assert!(held == 0 || *pid == launcher.id(), "the process {pid} has the credentials");
    }
    assert!(family.iter().any(runs_sleep), "the command runs: {family:?}");
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    assert!(seen >= 4, "launcher and builder were looked at");
}

/// A file of logins that cannot be written or read is not an invalid one.
#[test]
fn a_login_that_cannot_be_stored_is_reported_with_its_cause() {
    let scene = Scene::new(Access::Open);
    let address = &scene.registry.address;
    let login = format!("$RB login -u joe -p hunter2 --authfile t/auth.json {address}");
    let full = format!(
        "mkdir -p t; mount -t tmpfs -o size=64k x t; touch t/.auth.json.lock; \
         dd if=/dev/zero of=t/fill bs=4k count=16 2>/dev/null || true; {login}"
    );
    let ran = crate::errors::in_namespace(&scene.lab, &full);
    let ran = ran.fails(1, &["cannot write `t/auth.json`: no space left", "hint: free some space on the disk of `"]);
    assert!(!ran.stderr.contains("hunter2"), "{}", ran.stderr);
    let read_only = format!("mkdir -p t; mount -t tmpfs x t; mount -o remount,ro,bind t; {login}");
    crate::errors::in_namespace(&scene.lab, &read_only)
        .fails(1, &["cannot write `t/.auth.json.lock`: read-only file system", "hint: use a file on a writable"]);
}
