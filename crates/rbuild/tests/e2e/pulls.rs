//! Layers that are unpacked while they are downloaded.

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rbuild_image::{Checksum, ChecksumAlgorithm};

use crate::registries::server::{Access, Fault};
use crate::registries::{Scene, family};

/// Size in bytes of the larger file of the image.
const LARGE: usize = 6 << 20;

/// Returns bytes that cannot be compressed.
fn noise() -> Vec<u8> {
    let next = |x: &mut u32| {
        *x = x.wrapping_mul(1664525).wrapping_add(1013904223);
        Some((*x >> 24) as u8)
    };
    (0..LARGE).scan(1u32, |x, _| next(x)).collect()
}

/// A scene whose registry has `base:1`, an image of two layers: a small one, and a large one that
/// begins with the file `first`. The store is empty.
pub fn scene() -> (Scene, String) {
    let scene = Scene::new(Access::Open);
    let name = scene.name("base:1");
    scene.lab.write("small", "s").write("d/first", "f").write("d/second", noise());
    scene.build("FROM scratch\nCOPY small /\nCOPY d /\n", &["-t", &name, "--push", "."]).ok();
    scene.forget(&name);
    (scene, name)
}

pub fn digest_of_layer(scene: &Scene, at: usize) -> String {
    scene.document("base", "1")["layers"][at]["digest"].as_str().unwrap().to_string()
}

/// A Dockerfile that needs all files of the image, and runs nothing.
pub fn copy_all(name: &str) -> String {
    format!("FROM {name} AS base\nFROM scratch\nCOPY --from=base /fir* /smal* /\n")
}

/// Starts a build of the files of the image.
fn start(scene: &Scene, name: &str) -> Child {
    scene.lab.write("Dockerfile", copy_all(name));
    let out = format!("type=local,dest={}", scene.lab.path("out").display());
    start_command(scene, &["build", "-o", &out, "."])
}

fn start_command(scene: &Scene, args: &[&str]) -> Child {
    let mut command = scene.lab.command(args.iter().copied());
    command.env("RBUILD_PULL", "missing").env("HOME", scene.lab.path("home"));
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until `is_met` returns true.
fn wait_until(condition: &str, is_met: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_met() {
        assert!(start.elapsed().as_secs() < 30, "{condition}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Returns true if the store has an unpacked file of that name, in a finished tree or not.
fn is_unpacked(scene: &Scene, name: &str) -> bool {
    !scene.lab.sh(&format!(r#"find "$LAB/store/tmp" "$LAB/store/trees" -name {name} 2>/dev/null"#)).stdout.is_empty()
}

/// Returns true if a process has ended, whether or not its parent has noticed.
fn is_gone(pid: &u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.map_or(true, |stat| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
}

fn release(scene: &Scene) -> PathBuf {
    scene.lab.path("release")
}

fn hold(scene: &Scene, layer: usize) {
    scene.registry.fault("GET", &digest_of_layer(scene, layer), Fault::Hold(release(scene)), 1);
}

/// Waits for the end of a build. Returns its exit code and standard error.
fn ended(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn assert_nothing_is_left(scene: &Scene) {
    let left = scene.lab.sh(r#"ls -A "$LAB/store/tmp" "$LAB/store/blobs/sha256" | grep -v : | grep ."#).stdout;
    assert_eq!(left, "", "files are left");
}

#[test]
fn a_pull_of_an_image_that_was_pushed_from_here_is_up_to_date() {
    let (scene, base) = scene();
    let app = scene.name("app:1");
    scene.lab.write("one", "1");
    scene.build(&format!("FROM {base}\nCOPY one /\n"), &["-t", &app, "--push", "."]).ok();
    let pulled = scene.rbuild(&["pull", &app]).ok();
    assert!(pulled.stderr.contains("Image is up to date"), "{}", pulled.stderr);
    scene.forget(&app);
    let pulled = scene.rbuild(&["pull", &app]).ok();
    assert!(pulled.stderr.contains("Downloaded newer image"), "{}", pulled.stderr);
}

#[test]
fn layers_are_unpacked_before_their_last_byte_has_arrived() {
    let (scene, name) = scene();
    hold(&scene, 1);
    let child = start(&scene, &name);
    wait_until("the small layer is unpacked", || is_unpacked(&scene, "small"));
    wait_until("the large layer is being unpacked", || is_unpacked(&scene, "first"));
    let names = scene.rbuild(&["images", "-q"]).ok().stdout;
    assert_eq!(names, "", "the image has no name before it is complete");
    std::fs::write(release(&scene), "").unwrap();
    let (code, text) = ended(child);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!((scene.lab.read("out/first"), scene.lab.read("out/small")), ("f".into(), "s".into()));
    scene.rbuild(&["inspect", &name]).ok();
    scene.rbuild(&["fsck"]).ok();
    scene.registry.requests();
    scene.build(&copy_all(&name), &["--no-cache", "."]).ok();
    assert!(scene.registry.requests().is_empty(), "the image is in the store");
}

#[test]
fn run_unpacks_layers_before_their_last_byte_has_arrived() {
    let (scene, name) = scene();
    let layers: Vec<String> = [0, 1].map(|at| digest_of_layer(&scene, at)).into();
    for is_interrupted in [true, false] {
        hold(&scene, 1);
        let child = start_command(&scene, &["run", &name, "/program"]);
        wait_until("the large layer is being unpacked", || is_unpacked(&scene, "first"));
        let processes = family(child.id());
        assert_eq!(scene.rbuild(&["images", "-q"]).ok().stdout, "", "the image has no name yet");
        if is_interrupted {
            kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
        } else {
            std::fs::write(release(&scene), "").unwrap();
        }
        let (code, text) = ended(child);
        wait_until("all processes end", || processes.iter().all(is_gone));
        if is_interrupted {
            assert_eq!(code, Some(130), "{text}");
            assert_nothing_is_left(&scene);
            scene.registry.behave();
        } else {
            // The image has no programs.
            assert!(code == Some(127) && text.contains("cannot start the command"), "{code:?} {text}");
            scene.rbuild(&["fsck"]).ok();
        }
    }
    layers.iter().for_each(|layer| scene.registry.fault("GET", layer, Fault::Status(404, None), 9));
    scene.forget(&name);
    scene.rbuild(&["run", &name, "/program"]).fails(125, &["not found in the local store, and pulling it failed"]);
}

#[test]
fn a_layer_that_is_downloaded_again_is_unpacked_again() {
    let (scene, name) = scene();
    for fault in [Fault::Cut(LARGE / 2), Fault::Flip, Fault::FlipLast] {
        scene.registry.fault("GET", &digest_of_layer(&scene, 1), fault.clone(), 1);
        let file = format!("FROM {name} AS base\nFROM scratch\nCOPY --from=base /firs* /secon* /\n");
        let out = format!("type=local,dest={}", scene.lab.path("out").display());
        scene.build(&file, &["--no-cache", "-o", &out, "."]).ok();
        assert!(std::fs::read(scene.lab.path("out/second")).unwrap() == noise(), "{fault:?}");
        scene.rbuild(&["fsck"]).ok();
        scene.forget(&name);
        scene.registry.behave();
    }
}

#[test]
fn a_layer_with_a_wrong_digest_fails_at_from_and_leaves_nothing() {
    let (scene, name) = scene();
    for fault in [Fault::Flip, Fault::FlipLast] {
        scene.registry.fault("GET", &digest_of_layer(&scene, 1), fault, 9);
        let ran = scene.build(&copy_all(&name), &["--no-cache", "."]);
        let ran = ran.fails(1, &["pulling `", "with the wrong digest", "Dockerfile:1:6"]);
        assert_eq!(ran.stderr.matches("error:").count(), 1, "{}", ran.stderr);
        assert_nothing_is_left(&scene);
        assert!(!is_unpacked(&scene, "second"), "wrong bytes are no tree");
        scene.registry.behave();
    }
    scene.build(&copy_all(&name), &["."]).ok();
}

#[test]
fn an_interrupted_build_ends_its_downloads() {
    let (scene, name) = scene();
    hold(&scene, 1);
    let child = start(&scene, &name);
    wait_until("the large layer is being unpacked", || is_unpacked(&scene, "first"));
    let processes = family(child.id());
    assert!(processes.len() >= 3, "launcher, fetcher and builder: {processes:?}");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let (code, text) = ended(child);
    assert_eq!(code, Some(130), "{text}");
    assert!(text.contains("interrupted") && !text.contains("pulling `"), "{text}");
    wait_until("all processes end", || processes.iter().all(is_gone));
    assert_nothing_is_left(&scene);
    std::fs::write(release(&scene), "").unwrap();
    scene.build(&copy_all(&name), &["."]).ok();
}

#[test]
fn a_killed_fetcher_fails_the_build_at_from() {
    let (scene, name) = scene();
    hold(&scene, 1);
    let child = start(&scene, &name);
    wait_until("the large layer is being unpacked", || is_unpacked(&scene, "first"));
    // The fetcher was forked first.
    let id = child.id();
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    let fetcher = children.split_whitespace().next().unwrap().parse().unwrap();
    kill(Pid::from_raw(fetcher), Signal::SIGKILL).unwrap();
    let (code, text) = ended(child);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("the fetcher ended unexpectedly") && text.contains("Dockerfile:1:6"), "{text}");
    assert_nothing_is_left(&scene);
    std::fs::write(release(&scene), "").unwrap();
    scene.build(&copy_all(&name), &["."]).ok();
}

/// A killed process leaves the bytes that it received, correct or not.
#[test]
fn a_download_of_a_killed_process_is_continued_by_the_next_one() {
    let (scene, name) = scene();
    let digest = digest_of_layer(&scene, 1);
    let part = scene.lab.store().join("partial").join(digest.strip_prefix("sha256:").unwrap());
    let interrupt = || {
        hold(&scene, 1);
        let mut child = start(&scene, &name);
        wait_until("most of the large layer is there", || {
            std::fs::metadata(&part).is_ok_and(|file| file.len() as usize > LARGE / 2)
        });
        let processes = family(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        wait_until("all processes end", || processes.iter().all(is_gone));
        scene.registry.behave();
        scene.registry.state().ranges.clear();
        std::fs::metadata(&part).unwrap().len()
    };
    let size = interrupt();
    scene.build(&copy_all(&name), &["--no-cache", "."]).ok();
    assert_eq!(scene.registry.state().ranges, [format!("bytes={size}-")]);
    assert!(!part.exists(), "the blob is complete");
    scene.rbuild(&["fsck"]).ok();
    scene.forget(&name);
    // A wrong beginning is downloaded again.
    let size = interrupt();
    std::fs::write(&part, vec![0; size as usize]).unwrap();
    scene.rbuild(&["pull", &name]).ok();
    assert_eq!(scene.registry.state().ranges, [format!("bytes={size}-")]);
    scene.rbuild(&["fsck"]).ok();
    scene.forget(&name);
    interrupt();
    scene.rbuild(&["prune"]).ok();
    assert!(!part.exists(), "removed");
}

#[test]
fn two_builds_download_an_image_once() {
    let (scene, name) = scene();
    hold(&scene, 1);
    let first = start(&scene, &name);
    wait_until("the large layer is being unpacked", || is_unpacked(&scene, "first"));
    let second = start(&scene, &name);
    let documents =
        || scene.registry.state().log.iter().filter(|r| r.starts_with("GET") && r.contains("/manifests/")).count();
    wait_until("the second build has resolved the name", || documents() >= 2);
    std::thread::sleep(Duration::from_millis(300));
    std::fs::write(release(&scene), "").unwrap();
    for child in [first, second] {
        let (code, text) = ended(child);
        assert_eq!(code, Some(0), "{text}");
    }
    for layer in [0, 1] {
        let digest = digest_of_layer(&scene, layer);
        let requests =
            scene.registry.state().log.iter().filter(|r| r.starts_with("GET") && r.contains(&digest)).count();
        assert_eq!(requests, 1, "layer {layer}");
    }
}

/// A base for two platforms, and one whose trigger copies from another image, are pulled by two
/// fetchers, one of which ends first.
#[test]
fn images_that_are_requested_one_after_another_are_pulled() {
    let (scene, name) = scene();
    let (both, trigger) = (scene.name("both:1"), scene.name("trigger:1"));
    let platforms = ["--platform", "linux/amd64,linux/arm64"];
    scene.lab.write("Dockerfile", "FROM scratch\nARG TARGETARCH\nCOPY small /$TARGETARCH\nCOPY d /\n");
    scene.rbuild(&[&["build", "-t", &both, "--push"], &platforms[..], &["."]].concat()).ok();
    scene.build(&format!("FROM {name}\nONBUILD COPY --from={both} /first /then\n"), &["-t", &trigger, "--push"]).ok();
    for (file, options) in
        [(format!("FROM {both}\nCOPY small /x\n"), &platforms[..]), (format!("FROM {trigger}\n"), &[])]
    {
        for name in [&name, &both, &trigger] {
            scene.forget(name);
        }
        scene.build(&file, &[&["-t", "app", "."], options].concat()).ok();
        scene.rbuild(&["fsck"]).ok();
        scene.rbuild(&["rmi", "-f", "app"]).ok();
    }
}

#[test]
fn pulling_a_base_for_several_platforms_keeps_the_name_of_the_host_image() {
    let (scene, _) = scene();
    let both = scene.name("both:1");
    scene.lab.write("Dockerfile", "FROM scratch\nARG TARGETARCH\nCOPY small /$TARGETARCH\nCOPY d /\n");
    scene.rbuild(&["build", "-t", &both, "--push", "--platform", "linux/amd64,linux/arm64", "."]).ok();
    let own = if cfg!(target_arch = "x86_64") { "amd64\n" } else { "arm64\n" };
    for platforms in ["linux/amd64,linux/arm64", "linux/arm64,linux/amd64"] {
        scene.forget(&both);
        // The second time, the images are in the store.
        for pull in ["--pull=missing", "--pull"] {
            scene.build(&format!("FROM {both}\nCOPY small /x\n"), &[pull, "--platform", platforms, "."]).ok();
            let named = || scene.rbuild(&["inspect", "-f", "{{.Architecture}}", &both]).ok().stdout;
            assert_eq!(named(), own, "{platforms}, {pull}");
            // `pull` itself gives the name to the image that it pulls.
            scene.rbuild(&["pull", "--platform", "linux/arm64", &both]).ok();
            assert_eq!(named(), "arm64\n");
        }
    }
}

#[test]
fn a_build_that_waits_for_its_registry_delays_no_other_build() {
    let (scene, name) = scene();
    let other = scene.name("other:1");
    scene.build(&format!("FROM {name}\nCOPY small /more\n"), &["-t", &other, "--push", "."]).ok();
    scene.forget(&other);
    scene.forget(&name);
    hold(&scene, 1);
    let first = start(&scene, &name);
    wait_until("the large layer is being unpacked", || is_unpacked(&scene, "first"));
    let second = std::cell::RefCell::new(start(&scene, &other));
    wait_until("the second build ends", || second.borrow_mut().try_wait().unwrap().is_some());
    let second = second.into_inner();
    let (code, text) = ended(second);
    assert_eq!(code, Some(0), "{text}");
    std::fs::write(release(&scene), "").unwrap();
    let (code, text) = ended(first);
    assert_eq!(code, Some(0), "{text}");
    scene.rbuild(&["fsck"]).ok();
}

#[test]
fn a_refused_download_leaves_nothing() {
    let (scene, name) = scene();
    scene.registry.fault("GET", &digest_of_layer(&scene, 1), Fault::Status(404, None), 9);
    scene.build(&copy_all(&name), &["."]).fails(1, &["pulling `"]);
    assert_nothing_is_left(&scene);
    assert_eq!(scene.lab.sh(r#"ls -A "$LAB/store/partial""#).stdout, "");
}

#[test]
fn a_failure_of_the_store_during_a_pull_is_reported_at_from() {
    let (scene, name) = scene();
    for (damage, says) in [
        // The fetcher cannot keep the layer.
        ("rm -rf partial; touch partial", "pulling `"),
        // The builder cannot keep its tree.
        ("rm -rf trees; touch trees", "unpacking `"),
    ] {
        scene.lab.sh(&format!("cd $RBUILD_ROOT; {damage}")).ok();
        let ran = scene.build(&copy_all(&name), &["--no-cache", "."]);
        let ran = ran.fails(1, &[says, "not a directory", "Dockerfile:1:6", "hint: "]);
        assert_eq!(ran.stderr.matches("error:").count(), 1, "{}", ran.stderr);
        scene.lab.sh("cd $RBUILD_ROOT; for d in partial trees; do test -d $d || { rm -f $d; mkdir $d; }; done").ok();
    }
}

#[test]
fn a_failed_pull_is_reported_at_its_own_instruction() {
    let (scene, name) = scene();
    let other = scene.name("other:1");
    scene.lab.write("small", "another");
    scene.build("FROM scratch\nCOPY small /\n", &["-t", &other, "--push", "."]).ok();
    scene.forget(&other);
    hold(&scene, 1);
    let layer = scene.document("other", "1")["layers"][0]["digest"].as_str().unwrap().to_string();
    scene.registry.fault("GET", &layer, Fault::Status(404, None), 9);
    let file = format!("FROM {name} AS base\nFROM {other}\nCOPY --from=base /firs* /x/\n");
    let ran = scene.build(&file, &["."]).fails(1, &[&format!("pulling `{other}` failed"), "Dockerfile:2:6"]);
    assert_eq!(ran.stderr.matches("error:").count(), 1, "{}", ran.stderr);
    std::fs::write(release(&scene), "").unwrap();
}

#[test]
fn a_digest_of_sha512_denotes_an_image() {
    let scene = Scene::with_image();
    let key = |reference: &str| ("busybox".to_string(), reference.to_string());
    let manifest = scene.registry.state().manifests[&key("1")].clone();
    let checksum = Checksum::of(ChecksumAlgorithm::Sha512, &manifest.1).to_string();
    let name = format!("{}@{checksum}", scene.name("busybox"));
    let file = format!("FROM {name}\nRUN true\n");
    scene.rbuild(&["pull", &scene.name("busybox:1")]).ok();
    scene.registry.requests();
    scene.build(&file, &[]).ok();
    assert!(scene.registry.requests().is_empty(), "the store has it");
    scene.forget(&scene.name("busybox:1"));
    scene.rbuild(&["pull", &name]).fails(1, &[&format!("has no manifest {checksum}")]);
    scene.registry.state().manifests.insert(key(&checksum), manifest.clone());
    scene.registry.requests();
    scene.build(&file, &[]).ok();
    assert_eq!(scene.registry.requests()[0], format!("GET /v2/busybox/manifests/{checksum}"));
    scene.build(&file, &[]).ok();
    scene.rbuild(&["run", "--pull=never", &name, "true"]).ok();
    assert!(scene.registry.requests().is_empty());
    scene.rbuild(&["push", &name]).fails(1, &["is a digest; an image can be pushed only to a tag"]);
    scene.rbuild(&["rmi", "-f", &name]).ok();
    scene.rbuild(&["prune", "-a"]).ok();
    // Other content is refused.
    let other = manifest.1.iter().copied().chain(*b" ").collect();
    scene.registry.state().manifests.insert(key(&checksum), (manifest.0, other));
    scene.build(&file, &[]).fails(1, &[&format!("manifest {checksum} has the digest sha512:")]);
}

#[test]
fn a_name_that_loses_platforms_is_reported_by_the_build_that_pulls_it() {
    let (scene, name) = scene();
    let note = format!("warning: {name} no longer has linux/s390x, linux/ppc64le\n");
    // The second time, the store has the image, and only the name changes.
    for _ in 0..2 {
        scene.build("FROM scratch\nLABEL a=b\n", &["--platform", "linux/s390x,linux/ppc64le", "-t", &name, "."]).ok();
        let ran = scene.build(&copy_all(&name), &["--pull", "--no-cache", "."]).ok();
        assert_eq!(ran.stderr.matches(&note).count(), 1, "{}", ran.stderr);
    }
}

#[test]
fn a_full_disk_during_a_pull_is_reported_once() {
    let (scene, name) = scene();
    scene.lab.write("Dockerfile", copy_all(&name));
    let script = format!(
        "mount -t tmpfs -o size=24m x $RBUILD_ROOT; fill=$RBUILD_ROOT/fill; export RBUILD_ROOT=$RBUILD_ROOT/store; \
         export RBUILD_PULL=missing HOME=$LAB/home; \
         printf 'FROM scratch\nCOPY <<E /x\nE\n' | $RB build -q -o type=cacheonly - >/dev/null; dd if=/dev/zero of=$fill bs=1M count=20 2>/dev/null; c=0; \
         $RB build . || c=$?; ls -A $RBUILD_ROOT/tmp $RBUILD_ROOT/blobs/sha256; rm $fill; \
         $RB pull -q {name} && $RB fsck >/dev/null && echo whole; exit $c"
    );
    let ran = crate::errors::in_namespace(&scene.lab, &script);
    // The disk is full for the fetcher or for the builder. The builder has used the store before,
    // because it could not begin on a full one.
    let ran = ran.fails(1, &["no space left on device", "Dockerfile:1:6", "hint: free some space; `rbuild prune -a`"]);
    assert_eq!(ran.stderr.matches("error:").count(), 1, "{}", ran.stderr);
    let lines: Vec<&str> = ran.stdout.lines().filter(|line| !line.is_empty() && !line.ends_with(':')).collect();
    assert_eq!(lines, [name.as_str(), "whole"], "left: {}", ran.stdout);
}

#[test]
fn a_refused_base_image_is_a_matter_of_the_login_even_if_a_similar_one_is_stored() {
    for access in [Access::Basic("joe", "hunter2"), Access::Token("joe", "hunter2", 50)] {
        let scene = Scene::new(access);
        let (name, stored) = (scene.name("busybox:1"), scene.name("busybox:2"));
        let (file, login) =
            (format!("FROM {name}\n"), format!("log in with `rbuild login {}`", scene.registry.address));
        scene.build(&file, &[]).fails(1, &["refused to pull", "no login for", "rbuild login"]);
        scene.rbuild(&["import", crate::lab::base("busybox.tar").to_str().unwrap(), &stored]).ok();
        let hint = format!("hint: {login}, or correct the name to `{stored}`");
        scene.build(&file, &["--creds=joe:hunter2"]).fails(1, &["the command line (whose login is for", &hint]);
    }
}
