//! Pulls of several platforms, and pushes in another format or of all tags.

use rbuild_image::BlobDigest;
use serde_json::{Value, json};

use crate::registries::Scene;
use crate::registries::server::{Access, Fault};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const FILE: &str = "FROM scratch\nARG TARGETARCH\nCOPY file /$TARGETARCH\n";

/// A scene whose registry has `multi:1` for these architectures, and whose store is empty.
fn scene(architectures: &[&str]) -> (Scene, String) {
    let scene = Scene::new(Access::Open);
    scene.lab.write("file", "content");
    let name = scene.name("multi:1");
    let platforms: Vec<String> = architectures.iter().map(|arch| format!("linux/{arch}")).collect();
    scene.build(FILE, &["--platform", &platforms.join(","), "-t", &name, "--push"]).ok();
    scene.forget(&name);
    (scene, name)
}

/// Returns the architectures of an index of the registry.
fn architectures(scene: &Scene, repository: &str, tag: &str) -> Vec<String> {
    let index = scene.document(repository, tag);
    let entries = index["manifests"].as_array().unwrap_or_else(|| panic!("{index}"));
    entries.iter().map(|entry| entry["platform"]["architecture"].as_str().unwrap().to_string()).collect()
}

#[test]
fn a_name_that_was_pulled_for_several_platforms_is_an_index() {
    let (scene, name) = scene(&["s390x", "amd64", "arm64"]);
    let digest = scene.registry.state().manifests[&("multi".to_string(), "1".to_string())].1.clone();
    let digest = rbuild_image::BlobDigest::of(&digest).to_string();
    let pulled = scene.rbuild(&["pull", "--platform", "linux/amd64,linux/s390x", &name]).ok();
    assert!(pulled.stderr.contains(&digest) && pulled.stderr.contains("Downloaded newer image"), "{}", pulled.stderr);
    assert_eq!(pulled.stdout, format!("{name}\n"));
    let tree = scene.rbuild(&["images", "--tree"]).ok().stdout;
    assert!(tree.contains("linux/amd64") && tree.contains("linux/s390x") && !tree.contains("arm64"), "{tree}");
    // Nothing new: the digest and the index.
    scene.registry.requests();
    let again = scene.rbuild(&["pull", "--platform", "linux/amd64,linux/s390x", &name]).ok();
    assert!(again.stderr.contains("Image is up to date"), "{}", again.stderr);
    assert!(scene.registry.requests().iter().all(|request| !request.contains("/blobs/")));
    // All commands know both.
    scene.rbuild(&["tag", &name, &scene.name("team/copy:2")]).ok();
    scene.rbuild(&["prune"]).ok();
    scene.rbuild(&["push", &scene.name("team/copy:2")]).ok();
    assert_eq!(architectures(&scene, "team/copy", "2"), ["amd64", "s390x"]);
    let layout = scene.lab.path("layout");
    scene.rbuild(&["save", "--format", "oci", "-o", layout.to_str().unwrap(), &name]).ok();
    let saved: Value = serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    assert_eq!(saved["manifests"][0]["mediaType"], INDEX);
    let digests = scene.rbuild(&["inspect", "-f", "{{.RepoDigests}}", &name]).ok().stdout;
    assert!(digests.contains(&digest), "{digests}");
    for arch in ["amd64", "s390x"] {
        let out = scene.lab.path(arch);
        let file = format!("FROM --platform=linux/{arch} {name}\nLABEL a=b\n");
        scene.build(&file, &["-o", out.to_str().unwrap(), "."]).ok();
        assert!(out.join(arch).exists(), "{arch}");
    }
    scene.rbuild(&["fsck"]).ok();
    scene
        .rbuild(&["pull", "--platform", "linux/amd64,linux/riscv64", &name])
        .fails(1, &["no image for linux/riscv64, only for linux/amd64, linux/arm64, linux/s390x"]);
}

/// Adds an attestation of the first image of `multi:1` in the form of BuildKit. Returns the bytes
/// of the new index.
fn attest(scene: &Scene) -> Vec<u8> {
    let (manifest, mut index) = ("application/vnd.oci.image.manifest.v1+json", scene.document("multi", "1"));
    let part = |media_type: &str, bytes: &[u8]| {
        let digest = scene.registry.add_blob("multi", bytes);
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    };
    let layer = part("application/vnd.in-toto+json", br#"{"_type": "https://in-toto.io/Statement/v1"}"#);
    let attestation = serde_json::to_vec(&json!({
        "schemaVersion": 2, "mediaType": manifest, "layers": [layer],
        "config": part("application/vnd.oci.empty.v1+json", b"{}"),
    }));
    let attestation = attestation.unwrap();
    let digest = scene.registry.add_manifest("multi", "attestation", manifest, &attestation);
    let subject = index["manifests"][0]["digest"].clone();
    index["manifests"].as_array_mut().unwrap().push(json!({
        "mediaType": manifest, "digest": digest, "size": attestation.len(),
        "platform": {"os": "unknown", "architecture": "unknown"},
        "annotations": {
            "vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": subject,
        },
    }));
    let bytes = serde_json::to_vec_pretty(&index).unwrap();
    scene.registry.add_manifest("multi", "1", INDEX, &bytes);
    bytes
}

/// Signatures and policies refer to the digest of the index with its attestations.
#[test]
fn attestations_are_kept_by_pulls_pushes_and_archives() {
    let (scene, name) = scene(&["amd64", "s390x"]);
    let index = attest(&scene);
    assert_kept(&scene, &name, &index);
    // An index of that index.
    let entry = json!({"mediaType": INDEX, "digest": BlobDigest::of(&index), "size": index.len()});
    let outer = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry], "annotations": {"a": "b"}});
    let outer = serde_json::to_vec_pretty(&outer).unwrap();
    scene.forget(&name);
    scene.registry.add_manifest("multi", "1", INDEX, &outer);
    assert_kept(&scene, &name, &outer);
    assert!(scene.registry.state().manifests.contains_key(&("copy".into(), BlobDigest::of(&index).to_string())));
}

/// Pulls an index with an attestation as a whole, and asserts that its digest stays the same.
fn assert_kept(scene: &Scene, name: &str, index: &[u8]) {
    let digest = BlobDigest::of(index).to_string();
    scene.rbuild(&["pull", "--all-platforms", name]).ok();
    let tree = scene.rbuild(&["images", "--tree"]).ok().stdout;
    assert!(tree.contains("├─ linux/s390x") && tree.contains("└─ attestation of linux/amd64"), "{tree}");
    let kinds = scene.rbuild(&["inspect", "-f", "{{range .Manifests}}{{.Kind}} {{end}}", name]).ok().stdout;
    assert_eq!(kinds, "image image attestation \n");
    scene.rbuild(&["prune", "-a"]).ok();
    scene.rbuild(&["fsck"]).ok();
    let pushed = |copy: &str| {
        let copy = scene.name(copy);
        scene.rbuild(&["tag", name, &copy]).ok();
        let pushed = scene.rbuild(&["push", &copy]).ok().stdout;
        assert!(pushed.contains(&digest), "{pushed}");
    };
    pushed("copy:1");
    let requests = scene.registry.requests();
    assert!(requests.iter().any(|request| request.starts_with("PUT /v2/copy/manifests/sha256:")), "{requests:?}");
    assert_eq!(scene.document("copy", "1"), scene.document("multi", "1"));
    // An image of the index is used, never the attestation.
    scene.build(&format!("FROM --platform=linux/s390x {name}\nCOPY --from={name} /amd64 /\n"), &["."]).ok();
    for (format, file) in [("docker-archive", "a.tar"), ("oci-archive", "b.tar"), ("oci", "c"), ("oci-dir", "d")] {
        let file = scene.lab.path(file);
        let file = file.to_str().unwrap();
        scene.rbuild(&["save", "--format", format, "-o", file, name]).ok();
        scene.rbuild(&["rmi", "-f", name]).ok();
        for copy in ["copy:1", "docker-archive", "oci-archive"] {
            scene.rbuild(&["rmi", "-f", &scene.name(copy)]).ok();
        }
        scene.rbuild(&["prune", "-a"]).ok();
        let loaded = scene.rbuild(&["load", "-i", file]).ok();
        assert_eq!((loaded.stdout.as_str(), loaded.stderr.as_str()), (&*format!("Loaded image: {name}\n"), ""));
        pushed(format);
        // One platform on request.
        scene.rbuild(&["load", "--platform", "linux/s390x", "-i", file]).ok();
        let inspected = scene.rbuild(&["inspect", name]).ok().stdout;
        assert!(inspected.contains("\"s390x\"") && !inspected.contains("Manifests"), "{inspected}");
        scene.rbuild(&["load", "-i", file]).ok();
        scene.rbuild(&["fsck"]).ok();
    }
}

#[test]
fn attestations_that_the_registry_lacks_are_left_out() {
    let (scene, name) = scene(&["amd64", "s390x"]);
    let mut index = scene.document("multi", "1");
    let digest = format!("sha256:{}", "0".repeat(64));
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    index["manifests"].as_array_mut().unwrap().push(json!({
        "mediaType": media_type, "digest": digest, "size": 2,
        "platform": {"os": "unknown", "architecture": "unknown"},
    }));
    scene.registry.add_manifest("multi", "1", INDEX, &serde_json::to_vec(&index).unwrap());
    let pulled = scene.rbuild(&["pull", "--all-platforms", &name]).ok();
    let lacks = format!("the registry lacks the attestation {digest} of the index, which is stored without");
    assert!(pulled.stderr.contains(&lacks), "{}", pulled.stderr);
    scene.rbuild(&["push", &name, &scene.name("copy:1")]).ok();
    assert_eq!(architectures(&scene, "copy", "1"), ["amd64", "s390x"]);
    // An image of one platform is all there is.
    let single = scene.name("single:1");
    scene.build(FILE, &["--platform", "linux/s390x", "-t", &single, "--push"]).ok();
    scene.forget(&single);
    scene.rbuild(&["pull", "--all-platforms", &single]).ok();
    let arch = scene.rbuild(&["inspect", "-f", "{{.Architecture}}", &single]).ok().stdout;
    assert_eq!(arch, "s390x\n");
    scene
        .rbuild(&["pull", "--platform", "linux/s390x,linux/amd64", &single])
        .fails(1, &["is for linux/s390x, not for the requested linux/amd64"]);
    scene.rbuild(&["pull", "--all-platforms", "--platform", "linux/s390x", &single]).fails(2, &["cannot be used with"]);
}

/// An index keeps its digest, as tools that copy images expect: signatures refer to it.
#[test]
fn an_index_that_was_pulled_as_a_whole_is_pushed_unchanged() {
    for list in [INDEX, "application/vnd.docker.distribution.manifest.list.v2+json"] {
        for architectures in [&["amd64", "s390x"][..], &["arm64"]] {
            let (scene, name) = scene(&["amd64", "s390x", "arm64"]);
            let mut index = scene.document("multi", "1");
            index["mediaType"] = json!(list);
            index["annotations"] = json!({"a": "b"});
            index["manifests"]
                .as_array_mut()
                .unwrap()
                .retain(|entry| architectures.iter().any(|arch| entry["platform"]["architecture"] == *arch));
            // Not in the form in which rbuild writes it.
            let bytes = serde_json::to_vec_pretty(&index).unwrap();
            scene.registry.add_manifest("multi", "1", list, &bytes);
            scene.rbuild(&["pull", "--all-platforms", &name]).ok();
            let copy = scene.name("copy:1");
            scene.rbuild(&["tag", &name, &copy]).ok();
            let pushed = scene.rbuild(&["push", &copy]).ok().stdout;
            let digest = rbuild_image::BlobDigest::of(&bytes);
            assert!(pushed.contains(&digest.to_string()), "{pushed}");
            let state = scene.registry.state();
            let (media_type, stored) = &state.manifests[&("copy".to_string(), "1".to_string())];
            assert_eq!((media_type.as_str(), stored), (list, &bytes));
            drop(state);
            scene.rbuild(&["fsck"]).ok();
            // Another format is another index.
            scene.rbuild(&["push", "--format", "docker", &copy]).ok();
            let other = scene.document("copy", "1");
            assert!(other.get("annotations").is_none(), "{other}");
        }
    }
}

#[test]
fn commands_find_every_platform_that_was_pulled() {
    let (scene, name) = scene(&["amd64", "s390x", "arm64"]);
    for arch in ["s390x", "arm64"] {
        scene.rbuild(&["pull", "--platform", &format!("linux/{arch}"), &name]).ok();
    }
    for arch in ["s390x", "arm64"] {
        let platform = format!("linux/{arch}");
        scene.rbuild(&["create", "--name", arch, "--platform", &platform, &name, "x"]).ok();
        let out = scene.lab.path(arch);
        scene.rbuild(&["cp", &format!("{arch}:/{arch}"), out.to_str().unwrap()]).ok();
        assert_eq!(std::fs::read_to_string(out).unwrap(), "content");
    }
    scene
        .rbuild(&["create", "--pull=never", "--platform", "linux/amd64", &name, "x"])
        .fails(1, &["has no image for linux/amd64, only for linux/arm64"]);
    scene.rbuild(&["create", "--platform", "linux/amd64", &name, "x"]).ok();
    let riscv = ["is for linux/", "and pulling it for linux/riscv64 failed", "no image for linux/riscv64"];
    scene.rbuild(&["create", "--platform", "linux/riscv64", &name, "x"]).fails(1, &riscv);
}

#[test]
fn the_index_of_a_pull_has_the_platforms_and_media_types_of_the_registry() {
    let (scene, name) = scene(&["amd64", "s390x"]);
    scene.rbuild(&["pull", "--all-platforms", &name]).ok();
    let docker = scene.name("multi:docker");
    scene.rbuild(&["push", "--format", "docker", &name, &docker]).ok();
    scene.forget(&name);
    let mut index = scene.document("multi", "docker");
    index["manifests"][0]["platform"]["os.version"] = json!("10.0.1");
    index["manifests"][1]["platform"]["variant"] = json!("v1");
    let list = index["mediaType"].as_str().unwrap().to_string();
    scene.registry.add_manifest("multi", "docker", &list, &serde_json::to_vec(&index).unwrap());
    scene.rbuild(&["pull", "--all-platforms", &docker]).ok();
    let parts = |index: &Value| -> Vec<Value> {
        let entries = index["manifests"].as_array().unwrap_or_else(|| panic!("{index}"));
        let part = |entry: &Value| json!([entry["mediaType"], entry["digest"], entry["size"], entry["platform"]]);
        entries.iter().map(part).collect()
    };
    let layout = scene.lab.path("layout");
    scene.rbuild(&["save", "--format", "oci", "-o", layout.to_str().unwrap(), &docker]).ok();
    let read = |path: &str| -> Value { serde_json::from_slice(&std::fs::read(layout.join(path)).unwrap()).unwrap() };
    let digest = read("index.json")["manifests"][0]["digest"].as_str().unwrap().replace(':', "/");
    assert_eq!(parts(&read(&format!("blobs/{digest}"))), parts(&index));
    scene.rbuild(&["push", "--as-is", &docker, &scene.name("copy:1")]).ok();
    assert_eq!(parts(&scene.document("copy", "1")), parts(&index));
    // The images are kept and used.
    scene.rbuild(&["prune"]).ok();
    scene.rbuild(&["fsck"]).ok();
    let out = scene.lab.path("s390x");
    scene.rbuild(&["create", "--name", "c", "--platform", "linux/s390x/v1", &docker, "x"]).ok();
    scene.rbuild(&["cp", "c:/s390x", out.to_str().unwrap()]).ok();
}

#[test]
fn a_build_for_another_platform_keeps_the_index_while_the_registry_is_unchanged() {
    let (scene, name) = scene(&["s390x", "amd64", "arm64"]);
    let build = || {
        scene.build(&format!("FROM --platform=linux/amd64 {name}\nLABEL a=b\n"), &["--pull", "."]).ok();
    };
    scene.rbuild(&["pull", "--platform", "linux/s390x,linux/arm64", &name]).ok();
    let pushed = || {
        scene.rbuild(&["push", &name, &scene.name("copy:1")]).ok();
        scene.document("copy", "1")
    };
    let index = pushed();
    assert_eq!(architectures(&scene, "copy", "1"), ["s390x", "arm64"]);
    build();
    build();
    assert_eq!(pushed(), index);
    scene.rbuild(&["prune"]).ok();
    let create =
        |arch: &str| scene.rbuild(&["create", "--pull=never", "--platform", &format!("linux/{arch}"), &name, "x"]);
    for arch in ["s390x", "arm64", "amd64"] {
        create(arch).ok();
    }
    // The registry has another index.
    let mut changed = scene.document("multi", "1");
    changed["annotations"] = json!({"a": "b"});
    scene.registry.add_manifest("multi", "1", INDEX, &serde_json::to_vec(&changed).unwrap());
    build();
    assert!(pushed().get("manifests").is_none(), "the name refers to the new image");
    create("amd64").ok();
    create("s390x").fails(1, &["has no image for linux/s390x, only for linux/amd64"]);
}

#[test]
fn all_tags_of_a_repository_are_pushed_and_pulled() {
    let scene = Scene::new(Access::Open);
    scene.lab.write("file", "content");
    let (one, two) = (scene.name("team/app:1"), scene.name("team/app:2"));
    scene.build(FILE, &["-t", &one, "-t", &two, "-t", &scene.name("team/app2:3")]).ok();
    scene.lab.write("file", "changed");
    scene.build(FILE, &["-t", &scene.name("team/app")]).ok();
    let pushed = scene.rbuild(&["push", "-a", &scene.name("team/app")]).ok().stdout;
    assert_eq!(pushed.lines().count(), 3, "{pushed}");
    let mut tags: Vec<String> = {
        let state = scene.registry.state();
        state.manifests.keys().filter(|(_, tag)| !tag.contains(':')).map(|(r, tag)| format!("{r}:{tag}")).collect()
    };
    tags.sort();
    assert_eq!(tags, ["team/app:1", "team/app:2", "team/app:latest"]);
    scene.rbuild(&["push", "--all-tags", &one]).fails(2, &["has a tag or a digest"]);
    scene.rbuild(&["push", "--all-tags", &scene.name("team/nosuch")]).fails(1, &["not found in the local store"]);
    for name in tags.iter().chain([&"team/app2:3".to_string()]) {
        scene.forget(&scene.name(name));
    }
    // The list comes in pages. Lists of referrers are no images.
    scene.registry.state().page = Some(2);
    let add = |tag: &str, kind: &str| {
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind, "layers": [],
            "config": {"mediaType": kind, "digest": format!("sha256:{}", "0".repeat(64)), "size": 2}});
        scene.registry.add_manifest("team/app", tag, MANIFEST, manifest.to_string().as_bytes());
    };
    add(&format!("sha256-{}", "a".repeat(64)), "example/list");
    add("chart", "example/\u{1b}[31mchart");
    // A claim on a cache is an index without entries.
    let claim = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []});
    scene.registry.add_manifest("team/app", "cache-c1", INDEX, claim.to_string().as_bytes());
    let pulled = scene.rbuild(&["pull", "-a", &scene.name("team/app")]).ok();
    let names: String = tags.iter().map(|name| scene.name(name) + "\n").collect();
    assert_eq!(pulled.stdout, names);
    for tag in ["chart", "cache-c1"] {
        assert!(pulled.stderr.contains(&format!("note: tag {tag} of ")), "{}", pulled.stderr);
    }
    assert!(!pulled.stderr.contains("sha256-") && !pulled.stderr.contains('\u{1b}'), "{}", pulled.stderr);
    // A tag that cannot be pulled does not keep the others.
    names.lines().for_each(|name| scene.forget(name));
    scene.registry.fault("HEAD", "/manifests/1", Fault::Status(404, None), 1);
    scene.registry.fault("GET", "/manifests/1", Fault::Status(404, None), 1);
    let ran = scene.rbuild(&["pull", "--all-tags", &scene.name("team/app")]).fails(1, &["has no manifest 1"]);
    assert_eq!(ran.stdout.lines().count(), 2, "{}", ran.stdout);
    scene.rbuild(&["pull", "-a", &one]).fails(2, &["has a tag or a digest"]);
    scene.rbuild(&["pull", "-a", &scene.name("team/nosuch")]).fails(1, &["has no repository of that name"]);
}

#[test]
fn manifests_are_pushed_in_the_requested_format() {
    let (scene, name) = scene(&["amd64", "s390x"]);
    let media_types = |tag: &str| {
        let index = scene.document("multi", tag);
        let first = index["manifests"][0]["digest"].as_str().unwrap().to_string();
        let manifest = scene.document("multi", &first);
        [&index["mediaType"], &index["manifests"][0]["mediaType"], &manifest["mediaType"]]
            .into_iter()
            .chain([&manifest["config"]["mediaType"], &manifest["layers"][0]["mediaType"]])
            .map(|value| value.as_str().unwrap().to_string())
            .collect::<Vec<_>>()
    };
    let oci = media_types("1");
    let docker = [
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.container.image.v1+json",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
    ];
    scene.rbuild(&["pull", "--all-platforms", &name]).ok();
    let (two, three) = (scene.name("multi:2"), scene.name("multi:3"));
    scene.rbuild(&["push", "--format", "docker", &name, &two]).ok();
    assert_eq!(media_types("2"), docker);
    scene.forget(&name);
    scene.rbuild(&["pull", "--all-platforms", &two]).ok();
    scene.build(&format!("FROM {two}\nCOPY file /\n"), &["--platform", "linux/s390x", "."]).ok();
    scene.rbuild(&["push", "--format", "oci", &two, &three]).ok();
    assert_eq!(media_types("3"), oci);
    let manifests = |tag: &str| scene.document("multi", tag);
    assert_eq!(manifests("3"), manifests("1"), "the same bytes again");
    scene.rbuild(&["push", "--format", "v1", &two]).fails(2, &["unknown format of manifests"]);
}
