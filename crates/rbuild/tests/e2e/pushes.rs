//! Pushes: early uploads, transfers after interrupted ones, and layers that are not pushed.

use std::time::Duration;

use rbuild_image::{BlobDigest, DiffId};
use serde_json::json;

use crate::caches;
use crate::foreign::load_archive;
use crate::forge::{Blob, Forged, Layer};
use crate::lab::Lab;
use crate::lazy_trees::stores_as_layers;
use crate::registries::Scene;
use crate::registries::server::{Access, Fault, Registry};

/// Returns bytes that cannot be compressed, and differ for each seed.
pub fn noise(seed: u32, size: usize) -> Vec<u8> {
    let next = |x: &mut u32| {
        *x = x.wrapping_mul(1664525).wrapping_add(1013904223);
        Some((*x >> 24) as u8)
    };
    (0..size).scan(seed, |x, _| next(x)).collect()
}

/// Whichever way an image is pushed, its layers are compressed with gzip, and it has one digest.
#[test]
fn a_build_with_push_and_a_later_push_give_the_same_digest() {
    let scene = Scene::with_image();
    scene.lab.write("file", "content");
    let host = rbuild_image::Platform::host().to_string();
    let platforms = format!("{host},linux/s390x");
    let base = format!("FROM {}\nRUN echo one > /one\nCOPY file /\n", scene.name("busybox:1"));
    for (case, file, flags) in [
        ("one", base.as_str(), &[][..]),
        ("several", "FROM scratch\nARG TARGETARCH\nCOPY file /$TARGETARCH\n", &["--platform", &platforms]),
    ] {
        let [built, later] = ["built", "later"].map(|how| scene.name(&format!("{case}/{how}:1")));
        scene.build(file, &[&["-t", &later, "."][..], flags].concat()).ok();
        scene.build(file, &[&["-t", &built, "--push", "."][..], flags].concat()).ok();
        scene.rbuild(&["push", &later]).ok();
        let [built, later] = ["built", "later"].map(|how| {
            let key = (format!("{case}/{how}"), "1".to_string());
            scene.registry.state().manifests[&key].clone()
        });
        assert_eq!(built, later, "{case}");
    }
}

#[test]
fn large_layers_are_uploaded_while_they_are_packed() {
    let scene = Scene::new(Access::Open);
    let file = "FROM scratch\nCOPY big /\nCOPY small /\n";
    scene.lab.write("small", "s");
    let patches = |requests: &[String]| requests.iter().filter(|line| line.starts_with("PATCH ")).count();
    for (seed, steps) in [
        (1, &[&["build", "-t", "IMAGE", "--push", "."][..]][..]),
        (2, &[&["build", "-t", "IMAGE", "--push", "--squash", "."]]),
        (3, &[&["build", "-t", "IMAGE", "-o", "type=image,push=true,compression=zstd", "."]]),
        (4, &[&["build", "-t", "IMAGE", "."], &["push", "IMAGE"]]),
    ] {
        let path = format!("app{seed}");
        let name = scene.name(&format!("{path}:1"));
        scene.lab.write("big", noise(seed, 10 << 20)).write("Dockerfile", file);
        scene.registry.requests();
        for args in steps {
            let args: Vec<&str> = args.iter().map(|arg| if *arg == "IMAGE" { &*name } else { arg }).collect();
            scene.rbuild(&args).ok();
        }
        let requests = scene.registry.requests();
        assert_eq!(patches(&requests), 1, "{seed}: {requests:?}");
        let layers = scene.document(&path, "1")["layers"].clone();
        let large = layers[0]["digest"].as_str().unwrap();
        assert!(requests.iter().all(|line| !line.contains(large)), "it is not pushed again: {requests:?}");
        scene.forget(&name);
        scene.rbuild(&["pull", &name]).ok();
        let out = scene.lab.path("big");
        scene.rbuild(&["cp", &format!("{name}:/big"), out.to_str().unwrap()]).ok();
        assert!(std::fs::read(out).unwrap() == noise(seed, 10 << 20), "{seed}");
        std::fs::remove_file(scene.lab.path("big")).unwrap();
    }
    // A registry that does not support it gets the layer afterwards.
    scene.lab.write("big", noise(9, 10 << 20));
    scene.registry.fault("PATCH", "/blobs/uploads/", Fault::Status(405, None), 9);
    let name = scene.name("other:1");
    scene.rbuild(&["build", "-t", &name, "--push", "."]).ok();
    let requests = scene.registry.requests();
    let layers = scene.document("other", "1")["layers"].clone();
    let large = layers[0]["digest"].as_str().unwrap();
    assert!(requests.iter().any(|line| line.starts_with("HEAD") && line.contains(large)), "{requests:?}");
    scene.forget(&name);
    scene.rbuild(&["pull", &name]).ok();
    scene.rbuild(&["fsck"]).ok();
}

/// A copy that only the image needs is stored as its layer, and never as files.
#[test]
fn large_copies_are_uploaded_while_they_are_packed() {
    let scene = Scene::new(Access::Open);
    scene.rbuild(&["import", crate::lab::base("busybox.tar").to_str().unwrap(), "busybox"]).ok();
    scene.lab.write("small", "s").write("token", "hunter2-hunter2");
    for (seed, file, more, early) in [
        (11, "FROM busybox\nCOPY big /\n", &[][..], 1),
        (12, "FROM busybox\nCOPY small /\nCOPY big /\n", &[], 1),
        (13, "FROM busybox\nCOPY big /\nRUN sleep 2\n", &[], 1),
        (14, "FROM busybox AS a\nCOPY big /\nFROM busybox\nCOPY --from=a /big /small\n", &[], 1),
        // Another stage is not part of the image.
        (15, "FROM busybox AS a\nCOPY big /\nFROM busybox\nRUN --mount=from=a,target=/a sleep 1\n", &[], 0),
        // The result is searched first, and has been packed by then.
        (16, "FROM busybox\nCOPY big /\nRUN sleep 2\n", &["--secret", "id=t,src=token"], 0),
    ] {
        let path = format!("copied{seed}");
        let name = scene.name(&format!("{path}:1"));
        scene.lab.write("big", noise(seed, 10 << 20));
        scene.registry.requests();
        scene.build(file, &[&["-t", &name, "--push", "."], more].concat()).ok();
        let requests = scene.registry.requests();
        // The push itself begins with the manifest.
        let is_of_push = |line: &&String| line.starts_with("HEAD ") && line.contains("/manifests/sha256:");
        let before = requests.iter().take_while(|line| !is_of_push(line));
        let patches = before.filter(|line| line.starts_with("PATCH ")).count();
        assert_eq!(patches, early, "{seed}: {requests:?}");
        let layers = scene.document(&path, "1")["layers"].clone();
        let digests: Vec<&str> = layers.as_array().unwrap().iter().filter_map(|l| l["digest"].as_str()).collect();
        let has = |digest: &&str| scene.registry.state().blobs.contains_key(&(path.clone(), digest.parse().unwrap()));
        assert!(digests.iter().all(has), "{seed}");
    }
    scene.rbuild(&["fsck"]).ok();
}

/// A step before it changed, so the copy runs again and its layer is packed again. A copy that is
/// stored as files is packed later, when it is no longer known that it is a repeated one. Another
/// repository lacks the layer.
#[test]
fn a_repeated_copy_is_not_uploaded_again() {
    let scene = Scene::new(Access::Open);
    scene.rbuild(&["import", crate::lab::base("busybox.tar").to_str().unwrap(), "busybox"]).ok();
    scene.lab.write("big", noise(21, 10 << 20));
    let repeated = if stores_as_layers() { 0 } else { 1 };
    for (version, repository, uploads) in [(1, "app", 1), (2, "app", repeated), (3, "other", 1), (4, "app", repeated)] {
        let name = scene.name(&format!("{repository}:1"));
        scene.registry.requests();
        let file = format!("FROM busybox\nRUN echo {version} > /version\nCOPY big /\n");
        scene.build(&file, &["-t", &name, "--push", "."]).ok();
        let requests = scene.registry.requests();
        let patches = requests.iter().filter(|line| line.starts_with("PATCH ")).count();
        assert_eq!(patches, uploads, "{version}: {requests:?}");
    }
}

/// A layer of a cache cannot be unpacked, so the build is repeated. The fetcher of the first
/// attempt completes its uploads, which take longer than the second one.
#[test]
fn a_repeated_build_continues_the_uploads_of_the_first_attempt() {
    let scene = Scene::new(Access::Open);
    scene.rbuild(&["import", crate::lab::base("busybox.tar").to_str().unwrap(), "busybox"]).ok();
    let cache = scene.lab.path("cache");
    let tools = "FROM busybox AS tools\nRUN echo made > /made\n";
    Lab::new().build(tools, &["-t", "x", "--cache-to", &caches::to(&cache, ",compression=uncompressed")]).ok();
    let layer = caches::layers(&cache).remove(0);
    let size = std::fs::metadata(&layer).unwrap().len() as usize;
    caches::forge(&cache, layer.file_name().unwrap().to_str().unwrap(), size, &caches::refused_layer());
    scene.lab.write("big", noise(31, 10 << 20));
    let name = scene.name("app:1");
    let file = format!("{tools}FROM busybox\nCOPY big /\nRUN sleep 2\nCOPY --from=tools /made /made\n");
    scene.registry.fault("PATCH", "", Fault::Stall(Duration::from_secs(8)), 9);
    scene.registry.requests();
    let ran = scene.build(&file, &["-t", &name, "--push", "--cache-from", &caches::from(&cache, ""), "."]).ok();
    assert!(ran.stderr.contains("note: the build is repeated"), "{}", ran.stderr);
    let requests = scene.registry.requests();
    assert_eq!(requests.iter().filter(|line| line.starts_with("PATCH ")).count(), 1, "{requests:?}");
    let layers = scene.document("app", "1")["layers"].clone();
    let large = layers[1]["digest"].as_str().unwrap();
    assert!(requests.iter().all(|line| !line.contains(large)), "it is not pushed again: {requests:?}");
    scene.rbuild(&["fsck"]).ok();
}

#[test]
fn nothing_is_uploaded_before_the_result_was_searched_for_secrets() {
    let scene = Scene::new(Access::Open);
    scene.lab.write("big", noise(5, 10 << 20)).write("token", "hunter2-hunter2");
    let name = scene.name("app:1");
    let args = ["-t", &name, "--push", "--secret", "id=t,src=token", "."];
    let file = "FROM scratch\nCOPY big /\nLABEL a=hunter2-hunter2\n";
    scene.build(file, &args).fails(1, &["the result contains the secret `t`"]);
    let requests = scene.registry.requests();
    assert!(requests.iter().all(|line| !line.starts_with("PATCH") && !line.starts_with("PUT")), "{requests:?}");
    assert!(scene.registry.state().blobs.is_empty());
}

#[test]
fn a_manifest_with_a_subject_is_listed_as_its_referrer() {
    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    let scene = Scene::with_image();
    let subject = BlobDigest::of(b"subject");
    let tag = format!("sha256-{}", subject.hex());
    let mut manifest = scene.document("busybox", "1");
    manifest["subject"] = json!({"mediaType": MANIFEST, "digest": subject.to_string(), "size": 7});
    manifest["annotations"] = json!({"a": "b"});
    let bytes = serde_json::to_vec(&manifest).unwrap();
    scene.registry.add_manifest("busybox", "2", MANIFEST, &bytes);
    let source = scene.name("busybox:2");
    scene.rbuild(&["pull", &source]).ok();
    let push = |name: &str| scene.rbuild(&["push", &source, &scene.name(name)]).ok().stderr;
    // This registry lists it itself.
    let header = ("OCI-Subject", subject.to_string());
    scene.registry.fault("PUT", "/manifests/", Fault::Header(header.0, header.1), 1);
    push("own:1");
    let has_list = |path: &str| scene.registry.state().manifests.contains_key(&(path.to_string(), tag.clone()));
    assert!(!has_list("own"));
    let entry = json!({"mediaType": MANIFEST, "digest": BlobDigest::of(&bytes).to_string(), "size": bytes.len(),
        "artifactType": "application/vnd.oci.image.config.v1+json", "annotations": {"a": "b"}});
    for name in ["copy:1", "copy:1", "copy:2"] {
        push(name);
        assert_eq!(scene.document("copy", &tag)["manifests"], json!([entry]), "{name}");
    }
    // The tag has another use.
    scene.registry.add_manifest("other", &tag, MANIFEST, &bytes);
    let warned = push("other:1");
    let text = format!("/other:1` cannot be listed as a referrer of {subject}: the tag {tag} of its repository");
    assert!(warned.contains(&text), "{warned}");
    assert_eq!(scene.document("other", &tag), manifest);
    assert_eq!(scene.document("other", "1"), manifest);
    // The list is shown, for a tag or a digest.
    let copy = scene.name("copy");
    let shown = scene.rbuild(&["inspect", "--referrers", &format!("{copy}@{subject}")]).ok().stdout;
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown[0]["Referrers"], json!([entry]));
    let types = "{{.Digest}}{{range .Referrers}} {{.artifactType}}{{end}}";
    let shown =
        scene.rbuild(&["inspect", "--referrers", "-f", types, &format!("{copy}:1"), &format!("{copy}@{subject}")]);
    let digest = BlobDigest::of(&bytes);
    assert_eq!(shown.ok().stdout, format!("{digest}\n{subject} application/vnd.oci.image.config.v1+json\n"));
    scene.rbuild(&["inspect", "--referrers", &scene.name("copy:nosuch")]).fails(1, &["has no manifest nosuch"]);
}

/// The first registry refuses the image when the second one has it.
#[test]
fn registries_are_pushed_to_side_by_side() {
    let (scene, second) = (Scene::new(Access::Open), Registry::start(Access::Open));
    scene.rbuild(&["import", crate::lab::base("busybox.tar").to_str().unwrap(), "busybox"]).ok();
    let names = |tag: &str| {
        [scene.name(&format!("a:{tag}")), format!("{}/b:{tag}", second.address), scene.name(&format!("c:{tag}"))]
    };
    let push = |tag: &str| {
        let names = names(tag);
        scene.rbuild(&[&["push", "busybox"][..], &names.each_ref().map(String::as_str)].concat())
    };
    let ran = push("1").ok();
    let printed: Vec<&str> = ran.stdout.lines().map(|line| line.split('@').next().unwrap()).collect();
    assert_eq!(printed, names("1").each_ref().map(|name| &name[..name.len() - 2]));
    let pushed = format!("{}: ", second.address);
    assert!(ran.stderr.lines().any(|line| line.starts_with(&pushed) && line.contains(": pushed (")), "{}", ran.stderr);
    scene.registry.fault("HEAD", "/v2/a/manifests/", Fault::Stall(std::time::Duration::from_secs(2)), 1);
    scene.registry.fault("PUT", "/v2/a/manifests/", Fault::Status(403, None), 9);
    scene.registry.requests();
    push("2").fails(1, &["refused to push"]);
    let has = |registry: &Registry, path: &str| registry.state().manifests.contains_key(&(path.into(), "2".into()));
    assert!(has(&second, "b") && !has(&scene.registry, "a"));
    let requests = scene.registry.requests();
    assert!(requests.iter().all(|request| !request.contains("/v2/c/")), "nothing begins after a failure: {requests:?}");
}

/// A signal ends a build that pushes, both during the push and during the last early upload.
#[test]
fn an_interrupted_build_does_not_push() {
    use nix::sys::signal::{Signal, kill, killpg};
    use std::os::unix::process::CommandExt;
    let scene = Scene::new(Access::Open);
    let has_request = |method: &str, path: &str| {
        let state = scene.registry.state();
        state.log.iter().any(|line| line.starts_with(method) && line.contains(path))
    };
    for (seed, size, method, signal) in [
        (1, 10, "PUT", Signal::SIGTERM),
        (2, 10, "PUT", Signal::SIGINT),
        (3, 10 << 20, "PATCH", Signal::SIGTERM),
        (4, 10 << 20, "PATCH", Signal::SIGHUP),
    ] {
        let path = format!("app{seed}");
        scene.lab.write("data", noise(seed, size)).write("Dockerfile", "FROM scratch\nCOPY data /\n");
        scene.registry.requests();
        scene.registry.fault(method, "/blobs/uploads/", Fault::Stall(std::time::Duration::from_secs(3)), 9);
        let name = scene.name(&format!("{path}:1"));
        let mut command = scene.lab.signaled_command(["build", "-t", &name, "--push", "."]);
        let (errors, home) = (scene.lab.path("stderr"), scene.lab.path("home"));
        command.env("HOME", home).stdout(std::process::Stdio::null()).process_group(0);
        command.stderr(std::fs::File::create(&errors).unwrap());
        let mut child = command.spawn().unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        let stderr = || std::fs::read_to_string(&errors).unwrap();
        let start = std::time::Instant::now();
        while !(stderr().contains("\nBuilt ") && has_request(method, "/blobs/uploads/")) {
            assert!(start.elapsed().as_secs() < 20, "{seed}: {}", stderr());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        // The launcher waits.
        std::thread::sleep(std::time::Duration::from_millis(200));
        let start = std::time::Instant::now();
        kill(pid, signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(128 + signal as i32), "{seed}: {}", stderr());
        assert!(start.elapsed().as_secs() < 2, "{seed}: it does not wait for the answer");
        assert!(stderr().ends_with("error: interrupted\n"), "{seed}: {}", stderr());
        assert_eq!(killpg(pid, None), Err(nix::errno::Errno::ESRCH), "{seed}: a process is left");
        std::thread::sleep(std::time::Duration::from_secs(3));
        assert!(!has_request("PUT", "/manifests/"), "{seed}");
        assert!(scene.registry.state().manifests.is_empty(), "{seed}");
        scene.registry.behave();
    }
}

#[test]
fn a_push_succeeds_even_if_its_digest_cannot_be_noted() {
    let scene = Scene::with_image();
    let name = scene.name("app:1");
    scene.rbuild(&["import", crate::lab::base("busybox.tar").to_str().unwrap(), &name]).ok();
    let notes = scene.lab.store().join("pushed");
    let _ = std::fs::remove_dir_all(&notes);
    std::fs::write(&notes, "").unwrap();
    let ran = scene.rbuild(&["push", &name]).ok();
    assert!(
        ran.stderr.contains(&format!("warning: the digest of `{name}` in the registry cannot be noted: ")),
        "{}",
        ran.stderr
    );
    scene.build("FROM scratch\nCOPY Dockerfile /\n", &["-t", &name, "--push", "."]).ok();
}

#[test]
fn a_transfer_after_an_interrupted_one_succeeds() {
    use std::os::unix::process::ExitStatusExt;
    let scene = Scene::with_image();
    let (name, copy) = (scene.name("busybox:1"), scene.name("copy:1"));
    let interrupted = |method: &'static str, path: &str, args: &[&str]| {
        scene.registry.requests();
        scene.registry.fault(method, path, Fault::Stall(std::time::Duration::from_secs(2)), 99);
        let mut command = scene.lab.command(args.iter().copied());
        command.env("HOME", scene.lab.path("home")).stderr(std::process::Stdio::null());
        let mut child = command.spawn().unwrap();
        let reached = |r: &String| r.starts_with(method) && r.contains(path);
        let start = std::time::Instant::now();
        while !scene.registry.state().log.iter().any(reached) && start.elapsed().as_secs() < 20 {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        // A shell's background commands ignore SIGINT.
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGTERM)
            .unwrap();
        let status = child.wait().unwrap();
        assert!(start.elapsed().as_secs() < 20, "{args:?} made no request");
        assert!(status.signal() == Some(15) || status.code() == Some(143), "{status:?}");
        scene.registry.behave();
    };
    interrupted("GET", "/blobs/", &["pull", &name]);
    assert_eq!(scene.lab.sh(r#"ls "$LAB/store/blobs/sha256""#).stdout, "");
    scene.rbuild(&["pull", &name]).ok();
    scene.rbuild(&["tag", &name, &copy]).ok();
    interrupted("PUT", "/blobs/uploads/", &["push", &copy]);
    assert!(!scene.registry.state().manifests.contains_key(&("copy".to_string(), "1".to_string())));
    scene.rbuild(&["push", &copy]).ok();
    assert_eq!(scene.document("copy", "1"), scene.document("busybox", "1"));
    scene.rbuild(&["fsck"]).ok();
    assert_eq!(scene.lab.sh(r#"ls "$LAB/store/tmp""#).stdout, "");
}

/// Neither the registry nor the source of the image caused the failure, so the hint is about the
/// store.
#[test]
fn a_damaged_layer_of_the_store_is_never_pushed() {
    let scene = Scene::with_image();
    let (name, elsewhere) = (scene.name("busybox:1"), Registry::start(Access::Open));
    for (damage, expected) in [
        ("truncate -s -1 $f", "is damaged: its digest is "),
        ("printf X | dd of=$f bs=1 seek=200 conv=notrunc status=none", "is damaged: its digest is "),
        ("rm $f; mkdir $f", "is damaged: it is not a regular file"),
        ("rm $f", "the store has no blob sha256:"),
    ] {
        scene.rbuild(&["pull", &name]).ok();
        let layers = "for f in *; do head -c 2 $f | od -An -tx1 | grep -q '1f 8b' || continue; echo $f; DAMAGE; done";
        let damaged = scene.lab.sh(&format!("cd $RBUILD_ROOT/blobs/sha256; {}", layers.replace("DAMAGE", damage))).ok();
        assert_eq!(damaged.stdout.lines().count(), 1, "{damage}");
        let ran = scene.rbuild(&["push", &name, &format!("{}/x:1", elsewhere.address)]);
        let digest = format!("blob sha256:{}", damaged.stdout.trim());
        ran.fails(1, &[&digest, expected, "hint: run `rbuild fsck --repair`", "then load, pull or build"]);
        assert!(elsewhere.state().manifests.is_empty(), "{damage}");
        scene.rbuild(&["fsck"]).fails(1, &["image ", "is incomplete", "hint: run `rbuild fsck --repair`"]);
        scene.rbuild(&["fsck", "--repair"]).ok();
        scene.rbuild(&["fsck"]).ok();
    }
    scene.rbuild(&["pull", &name]).ok();
    scene.rbuild(&["push", &name, &format!("{}/x:1", elsewhere.address)]).ok();
}

/// A layer whose diffID does not match is pushed to no registry: neither by `push`, nor in the
/// result of steps that were cached on another image with this diffID.
#[test]
fn a_layer_with_a_wrong_diff_id_is_never_pushed() {
    let scene = Scene::new(Access::Open);
    let good = Layer::new().file("f", "good").bytes();
    let evil = Blob { diff_id: DiffId::of(&good), ..Blob::gzip_of(&Layer::new().file("f", "evil").bytes()) };
    let lab = &scene.lab;
    lab.write("g", "1");
    load_archive(lab, &Forged::new(vec![Blob::gzip_of(&good)]), "good:latest").ok();
    scene.build("FROM good\nCOPY g /g\n", &["-t", "built"]).ok();
    let name = scene.name("evil:1");
    load_archive(lab, &Forged::new(vec![evil]), &name).ok();
    scene.rbuild(&["push", &name]).fails(1, &["has diffID"]);
    let result = scene.name("result:1");
    for args in [&["-t", &result, "--push"][..], &["-t", &result], &["-t", &result, "--squash"]] {
        let file = format!("FROM {name}\nCOPY g /g\n");
        scene.build(&file, &[&["--pull=never"], args].concat()).fails(1, &["has diffID", "Dockerfile:1"]);
    }
    assert!(scene.registry.state().manifests.is_empty());
    scene.rbuild(&["inspect", &result]).fails(1, &[]);
}
