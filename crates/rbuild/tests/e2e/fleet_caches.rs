//! One cache in a registry for a fleet of machines: requests, signatures.

use std::sync::Arc;

use serde_json::json;

use crate::lab::Ran;
use crate::registries::Scene;
use crate::registries::server::{Access, Fault};
use crate::remote_caches::{Machine, paths};

pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A registry with the image `base:1`, and the flags of a build that pushes and has a cache.
pub struct Fleet {
    pub scene: Arc<Scene>,
    pub file: String,
    pub cache: String,
}

impl Fleet {
    pub fn new() -> Fleet {
        let scene = Scene::new(Access::Open);
        let (base, name) = (crate::lab::base("busybox.tar"), scene.name("base:1"));
        scene.rbuild(&["import", base.to_str().unwrap(), &name]).ok();
        scene.rbuild(&["push", &name]).ok();
        let file = format!(
            "FROM {name}\nRUN head -c 16 /dev/urandom > /r\nRUN --mount=type=cache,target=/c cp /r /c/r\n\
            COPY src /w/\nRUN cat /w/a > /made\n"
        );
        let cache = format!("type=registry,ref={},scope=main", scene.name("app"));
        Fleet { scene: Arc::new(scene), file, cache }
    }

    /// Returns the same fleet with other options of the cache.
    fn with_cache(&self, cache: &str) -> Fleet {
        Fleet { scene: self.scene.clone(), file: self.file.clone(), cache: cache.to_string() }
    }

    /// Builds and pushes on a machine with that name, and returns the requests, too.
    pub fn build(&self, machine: &Machine, name: &str, tag: &str, more: &[&str]) -> (Ran, Vec<String>) {
        let (app, to) = (self.scene.name(&format!("app:{tag}")), format!("{},mode=max", self.cache));
        let args = ["-t", &app, "--push", "--cache-from", &self.cache, "--cache-to", &to];
        self.scene.registry.requests();
        let ran = machine.build_as(name, &self.file, &[&args[..], more].concat()).ok();
        (ran, self.scene.registry.requests())
    }
}

/// The second machine of a fleet runs nothing, downloads no layer, and makes few requests, however
/// many machines have written the cache, and whatever else the repository has.
#[test]
fn a_second_machine_makes_at_most_six_requests() {
    let fleet = Fleet::new();
    let (first, _) = fleet.build(&Machine::bare(), "one", "1", &[]);
    assert_eq!(first.steps(), (4, 0), "{}", first.stderr);
    let second = |tag: &str, most: usize| {
        let machine = Machine::bare();
        let (ran, requests) = fleet.build(&machine, "two", tag, &[]);
        assert_eq!(ran.steps(), (0, 4), "{}", ran.stderr);
        assert!(requests.len() <= most, "{requests:?}");
        // The configuration of the base.
        assert_eq!(paths(&requests, "GET", "/blobs/"), 1, "{requests:?}");
        assert!(ran.stderr.contains("is unchanged: 4 steps"), "{}", ran.stderr);
        machine
    };
    let machine = second("1", 5);
    second("other", 5);
    // Nothing has changed: the cache costs one request. The store has no image.
    let (ran, requests) = fleet.build(&machine, "two", "1", &[]);
    assert_eq!((ran.steps(), requests.len()), ((0, 4), 5), "{requests:?}");
    assert_eq!(paths(&requests, "GET", "/manifests/cache-main"), 1, "{requests:?}");
    // A base for several platforms.
    let manifest = fleet.scene.registry.state().manifests[&("base".to_string(), "1".to_string())].1.clone();
    let digest =
        fleet.scene.registry.add_manifest("base", "image", "application/vnd.oci.image.manifest.v1+json", &manifest);
    let config = fleet.scene.document("base", "image")["config"]["digest"].as_str().unwrap().to_string();
    let config = fleet.scene.registry.state().blobs[&("base".to_string(), config.parse().unwrap())].clone();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    let entry = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest.to_string(), "size": manifest.len(),
        "platform": {"os": config["os"], "architecture": config["architecture"]},
    });
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).to_string();
    fleet.scene.registry.add_manifest("base", "1", INDEX, index.as_bytes());
    second("1", 6);
    // Other machines have written other steps, and the repository has other tags.
    for name in ["a", "b", "c", "d", "e", "f"] {
        let machine = Machine::bare();
        machine.lab.write("src/a", format!("{name}\n"));
        let (ran, _) = fleet.build(&machine, name, name, &[]);
        assert_eq!(ran.steps(), (2, 2), "{}", ran.stderr);
    }
    for number in 0..1000 {
        fleet.scene.registry.add_manifest("app", &format!("cache-{number}"), INDEX, index.as_bytes());
    }
    second("1", 6);
}

/// Machines that write at the same moment add to the same tag. A machine that comes later reads all
/// of them at once, and joins them. Machines with different numbers of shards may share a cache.
#[test]
fn machines_that_write_at_once_lose_nothing() {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    for shards in [&["", ""], &["", ",shards=1"], &[",shards=3", ",shards=64"]] {
        let fleet = Fleet::new();
        let cache = fleet.cache.clone();
        fleet.build(&Machine::bare(), "first", "1", &[]);
        fleet.scene.registry.requests();
        let build = |fleet: &Fleet, name: &str| {
            let machine = Machine::bare();
            machine.lab.write("src/a", format!("{name}\n"));
            fleet.build(&machine, name, name, &["--cache-claim=false"]).0
        };
        let fleets = [0, 1].map(|number| fleet.with_cache(&format!("{cache}{}", shards[number])));
        std::thread::scope(|scope| {
            let (build, fleets) = (&build, &fleets);
            let machines = names.iter().enumerate();
            let machines = machines.map(|(number, name)| scope.spawn(move || build(&fleets[number % 2], name)));
            let machines: Vec<_> = machines.collect();
            machines.into_iter().for_each(|machine| assert_eq!(machine.join().unwrap().steps(), (2, 2)));
        });
        // Each shard that the tag names is read once, in parallel.
        for name in names {
            assert_eq!(build(&fleet, name).steps(), (0, 4), "{name} {shards:?}");
        }
        // The next one that writes has the tag name no shards any more.
        build(&fleet, "last");
        assert!(fleet.scene.document("app", "cache-main")["annotations"].is_null());
        for name in names.iter().chain(&["last"]) {
            assert_eq!(build(&fleet, name).steps(), (0, 4), "{name} {shards:?}");
        }
    }
}

/// A writer that cannot read a shard leaves it named, whatever its own number of shards is.
#[test]
fn a_shard_that_cannot_be_read_stays_named() {
    for shards in ["", ",shards=1", ",shards=2"] {
        let fleet = Fleet::new();
        fleet.build(&Machine::bare(), "first", "1", &[]);
        let mut top = fleet.scene.document("app", "cache-main");
        let bytes = fleet.scene.registry.state().manifests[&("app".to_string(), "cache-main".to_string())].1.clone();
        let digest = rbuild_image::BlobDigest::of(&bytes).to_string();
        top["layers"][0]["mediaType"] = json!("application/octet-stream");
        top["annotations"] = json!({"io.rbuild.cache.shards": json!({"40": digest}).to_string()});
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        fleet.scene.registry.add_manifest("app", "cache-main", media_type, top.to_string().as_bytes());
        fleet.scene.registry.fault("GET", &digest, Fault::Status(403, None), 99);
        let mut other = fleet.with_cache(&format!("{}{shards}", fleet.cache));
        other.file = format!("FROM {}\nRUN echo other > /other\n", fleet.scene.name("base:1"));
        let (ran, _) = other.build(&Machine::bare(), "other", "other", &[]);
        assert!(ran.steps() == (1, 0) && ran.stderr.contains("cannot read a part of the cache"), "{}", ran.stderr);
        fleet.scene.registry.behave();
        for fleet in [&fleet, &other] {
            let (ran, _) = fleet.build(&Machine::bare(), "last", "last", &[]);
            assert_eq!(ran.steps().0, 0, "{shards}: {}", ran.stderr);
        }
    }
}

/// A shard that is damaged or lost costs one request each time, and the next build leaves it out,
/// even if it has nothing to add. One that fails now is requested twice, and stays.
#[test]
fn a_damaged_shard_is_left_out_and_a_failing_one_stays_named() {
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    for (fault, of_records, most, is_kept) in [
        (Fault::Flip, false, 1, false),
        (Fault::Flip, true, 1, false),
        (Fault::Status(404, None), false, 1, false),
        (Fault::Status(404, None), true, 1, false),
        (Fault::Status(503, None), false, 2, true),
        (Fault::Status(503, None), true, 2, true),
        (Fault::Status(429, Some(60)), false, 1, true),
    ] {
        for (shards, adds) in [("", false), ("", true), (",shards=1", true)] {
            let fleet = Fleet::new();
            fleet.build(&Machine::bare(), "first", "1", &[]);
            let registry = &fleet.scene.registry;
            let mut top = fleet.scene.document("app", "cache-main");
            let mut shard = top.clone();
            let records = shard["layers"][0]["digest"].as_str().unwrap().to_string();
            shard["layers"][0].as_object_mut().unwrap().remove("data");
            let shard = registry.add_manifest("app", "shard", media_type, shard.to_string().as_bytes()).to_string();
            top["annotations"] = json!({"io.rbuild.cache.shards": json!({"40": shard}).to_string()});
            registry.add_manifest("app", "cache-main", media_type, top.to_string().as_bytes());
            let part = if of_records { records } else { shard };
            registry.fault("GET", &part, fault.clone(), 99);
            let mut other = fleet.with_cache(&format!("{}{shards}", fleet.cache));
            if adds {
                other.file = format!("FROM {}\nRUN echo other > /other\n", fleet.scene.name("base:1"));
            }
            let case = format!("{fault:?} {of_records} {shards} {adds}");
            let start = std::time::Instant::now();
            let (ran, requests) = other.build(&Machine::bare(), "other", "other", &["--cache-claim=false"]);
            assert!(start.elapsed().as_secs() < 20, "{case}");
            let writes = adds || !is_kept;
            assert_eq!(paths(&requests, "GET", &part), most * if writes { 2 } else { 1 }, "{case}: {requests:?}");
            let is_noticed = of_records || !matches!(fault, Fault::Status(404, _));
            let is_warning = |line: &&str| line.starts_with("warning: --cache") || line.contains("were damaged");
            let warnings = ran.stderr.lines().filter(is_warning).count();
            assert_eq!(warnings, usize::from(is_noticed), "{case}: {}", ran.stderr);
            assert_eq!(fleet.scene.document("app", "cache-main")["annotations"].is_null(), !is_kept, "{case}");
            if !is_kept {
                let (ran, requests) = fleet.build(&Machine::bare(), "last", "last", &[]);
                assert_eq!((ran.steps().0, paths(&requests, "GET", &part)), (0, 0), "{case}: {}", ran.stderr);
            }
        }
    }
}

/// The store knows the cache, the machine and the time of an import, and can forget all that it has
/// from a cache.
#[test]
fn imported_steps_have_an_origin() {
    let fleet = Fleet::new();
    fleet.build(&Machine::bare(), "one", "1", &[]);
    let two = Machine::bare();
    let to = format!("{},ref={},mode=max", fleet.cache, fleet.scene.name("other"));
    let args = ["-t", "x", "--explain", "--cache-from", &fleet.cache, "--cache-to", &to];
    let cache = fleet.scene.name("app:cache-main");
    let ran = two.build_as("two", &fleet.file, &args).ok();
    assert_eq!(ran.steps(), (0, 4), "{}", ran.stderr);
    let reason = format!("; imported from the cache `{cache}`, made by one");
    assert!(ran.stderr.contains(&reason), "{}", ran.stderr);
    let inspected = |machine: &Machine| -> serde_json::Value {
        serde_json::from_str(&machine.lab.rbuild(["inspect", "x"]).ok().stdout).unwrap()
    };
    let image = &inspected(&two)[0];
    let origins = image["Origins"].as_array().unwrap();
    let layers = image["RootFS"]["Layers"].as_array().unwrap();
    assert_eq!(origins.len(), 4, "{image}");
    for origin in origins {
        assert!(
            layers.contains(&origin["Layer"]) && origin["Cache"] == *cache && origin["Runner"] == "one",
            "{origin}"
        );
        assert!(origin["Imported"].as_str().unwrap().starts_with("20"), "{origin}");
    }
    // A cache that has the steps from another one names the machine that made them.
    let three = Machine::bare();
    let from = to.replace(",mode=max", "");
    let ran = three.build_as("three", &fleet.file, &["-t", "x", "--explain", "--cache-from", &from]).ok();
    assert!(ran.stderr.contains(", made by one"), "{}", ran.stderr);
    let built = |more: &[&str]| two.build_as("two", &fleet.file, &[&["-t", "x"], more].concat()).ok();
    two.lab.rbuild(["prune", "--filter", "origin=other", "--keep-storage", "1k"]).ok();
    assert_eq!(built(&["--explain"]).steps(), (0, 4));
    two.lab.rbuild(["prune", "--filter", "origin=other", "--filter", "until=1h"]).ok();
    assert_eq!(built(&[]).steps(), (0, 4));
    two.lab.rbuild(["prune", "--filter", &format!("origin={cache}")]).ok();
    assert_eq!(built(&[]).steps(), (4, 0));
    assert!(inspected(&two)[0]["Origins"].is_null());
    two.lab.rbuild(["prune", "--filter", "source=x"]).fails(2, &["unknown filter", "origin="]);
    two.lab.rbuild(["system", "prune", "-af", "--filter", "origin=x"]).fails(2, &["has no filter `origin`"]);
    two.lab.rbuild(["fsck"]).ok();
}

/// Content of cache mounts is forgotten with the cache that it was restored from.
#[test]
fn imported_cache_mounts_have_an_origin() {
    let fleet = Fleet::new();
    let base = fleet.scene.name("base:1");
    let file =
        |say: &str| format!("FROM {base}\nRUN --mount=type=cache,target=/c touch /c/seen; cat /c/seen; echo {say}\n");
    let restored = |machine: &Machine, say: &str, more: &[&str]| {
        let file = format!("FROM {base}\nRUN --mount=type=cache,target=/c ls /c > /{say}\n");
        let to = format!("type=local,dest={}", machine.lab.path("out").display());
        machine.build_as("two", &file, &[&["-o", &to], more].concat()).ok();
        !machine.lab.read(&format!("out/{say}")).is_empty()
    };
    let to = format!("{},mode=max,mounts=all", fleet.cache);
    Machine::bare().build_as("one", &file("one"), &["-o", "type=cacheonly", "--cache-to", &to]).ok();
    let two = Machine::bare();
    assert!(restored(&two, "a", &["--cache-from", &fleet.cache]));
    let cache = fleet.scene.name("app:cache-main");
    let other = two.lab.rbuild(["prune", "--filter", "origin=x"]).ok();
    assert!(other.stderr.contains(&format!("nothing was imported from `x`, but from `{cache}`")), "{}", other.stderr);
    assert!(restored(&two, "b", &[]), "a filter protects what it does not select");
    let all = two.lab.rbuild(["prune", "--filter", &format!("origin={cache}")]).ok();
    assert!(all.stdout.contains("1 cache mount"), "{}", all.stdout);
    assert!(!restored(&two, "last", &[]));
}

/// A manifest that the tag names may have been removed, because its shard has a newer one.
#[test]
fn a_shard_that_was_written_meanwhile_is_read_by_its_tag() {
    let fleet = Fleet::new();
    let (_, requests) = fleet.build(&Machine::bare(), "first", "1", &[]);
    let shard =
        requests.iter().find(|line| line.starts_with("PUT") && line.contains("/manifests/cache-main-s")).unwrap();
    let shard = shard.rsplit('/').next().unwrap();
    let number = shard.strip_prefix("cache-main-s").unwrap();
    let mut top = fleet.scene.document("app", "cache-main");
    let missing = format!("sha256:{}", "0".repeat(64));
    let records = top["layers"][0].clone();
    top["layers"] = json!([records]);
    top["layers"][0]["mediaType"] = json!("application/octet-stream");
    top["annotations"] = json!({"io.rbuild.cache.shards": json!({number: missing}).to_string()});
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    fleet.scene.registry.add_manifest("app", "cache-main", media_type, top.to_string().as_bytes());
    let (ran, requests) = fleet.build(&Machine::bare(), "two", "1", &[]);
    assert_eq!(ran.steps(), (0, 4), "{}", ran.stderr);
    assert!(requests.iter().any(|line| line.ends_with(shard)), "{requests:?}");
}

/// A step that is made again replaces the one of the cache, and a layer that was lost is uploaded
/// again, although the cache has steps with the same keys.
#[test]
fn results_that_are_made_again_are_found_by_all() {
    let fleet = Fleet::new();
    let file = format!("FROM {}\nRUN head -c 8 /dev/urandom > /x\n", fleet.scene.name("base:1"));
    let to = format!("{},mode=max", fleet.cache);
    let args = ["-o", "out", "--cache-from", &fleet.cache, "--cache-to", &to];
    let result = |name: &str, more: &[&str]| {
        let machine = Machine::bare();
        machine.build_as(name, &file, &[&args[..], more].concat()).ok();
        std::fs::read(machine.lab.ctx().join("out/x")).unwrap()
    };
    let first = result("one", &[]);
    assert_eq!(result("two", &[]), first);
    for name in ["one", "three"] {
        let again = result(name, &["--no-cache"]);
        assert_ne!(again, first);
        assert_eq!(result("four", &[]), again, "{name}");
    }
    fleet.scene.registry.state().blobs.retain(|(path, _), blob| path != "app" || !blob.starts_with(&[0x1f, 0x8b]));
    let again = result("five", &[]);
    assert_eq!(result("six", &[]), again);
}

/// Keys in files, made with ssh-keygen and openssl.
pub struct Keys(rbuild_testkit::Scratch);

impl Keys {
    pub fn new() -> Keys {
        let keys = Keys(rbuild_testkit::Scratch::new());
        let run = |program: &str, args: &[&str]| {
            let status = std::process::Command::new(program).args(args).stderr(std::process::Stdio::null()).status();
            assert!(status.unwrap().success(), "{program} {args:?}");
        };
        for name in ["ours", "theirs"] {
            run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &keys.path(name)]);
        }
        run("openssl", &["genpkey", "-algorithm", "ed25519", "-out", &keys.path("pem")]);
        run("openssl", &["pkey", "-in", &keys.path("pem"), "-pubout", "-out", &keys.path("pem.pub")]);
        // Tests may run as a user that the key belongs to, who alone may read it.
        keys
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_string()
    }
}

/// Records that nobody has signed, or somebody else, are misses with one warning, in registries and
/// in directories.
#[test]
fn only_records_with_a_valid_signature_are_used() {
    let (scene, keys, place) = (Scene::new(Access::Open), Keys::new(), rbuild_testkit::Scratch::new());
    let file = "FROM busybox\nRUN head -c 16 /dev/urandom > /r\nRUN cp /r /s\n";
    let caches = |name: &str| {
        let dir = place.join(name);
        let registry = format!("type=registry,ref={}", scene.name(&format!("{name}:cache")));
        [
            (format!("type=local,src={}", dir.display()), format!("type=local,dest={}", dir.display())),
            (registry.clone(), registry.clone()),
            (format!("{registry}-one,shards=1"), format!("{registry}-one,shards=1")),
        ]
    };
    let (ours, theirs, pem) = (keys.path("ours"), keys.path("theirs"), keys.path("pem"));
    let verify = format!("verify={ours}.pub;{pem}.pub");
    let build = |args: &[&str]| Machine::new().build_as("m", file, &[&["-o", "type=cacheonly"], args].concat());
    for (number, (from, to)) in caches("app").iter().enumerate() {
        let read = |verify: &str| build(&["--cache-from", &format!("{from},{verify}")]).ok();
        // Nobody has signed it.
        build(&["--cache-to", &format!("{to},mode=max")]).ok();
        let ran = read(&verify);
        assert_eq!((ran.steps(), ran.stderr.matches("warning: ").count()), ((2, 0), 1), "{}", ran.stderr);
        let warning = "records without a valid signature are ignored\nhint: write the cache with sign=KEYFILE";
        assert!(ran.stderr.contains(warning), "{}", ran.stderr);
        // A writer who signs it drops what is not signed.
        let private = if number == 0 { &pem } else { &ours };
        let wrote = build(&["--cache-to", &format!("{to},mode=max,sign={private}")]).ok();
        assert!(
            wrote.stderr.contains("had records without a valid signature, so their steps were dropped"),
            "{}",
            wrote.stderr
        );
        assert_eq!(read(&verify).steps(), (0, 2));
        assert_eq!(read("required").steps(), (0, 2), "the signature is no obstacle");
        let stranger = read(&format!("verify={theirs}.pub"));
        assert_eq!(stranger.steps(), (2, 0), "{}", stranger.stderr);
        let required = format!("{from},required,verify={theirs}.pub");
        build(&["--cache-from", &required]).fails(1, &["records without a valid signature", "verify="]);
        // Two writers trust each other, and their steps stay.
        let both = format!("verify={theirs}.pub;{ours}.pub;{pem}.pub");
        let more = Machine::new();
        let file = format!("{file}RUN echo more > /more\n");
        let to = format!("{to},mode=max,sign={theirs},{both}");
        let ran =
            more.build_as("n", &file, &["-t", "x", "--cache-from", &format!("{from},{both}"), "--cache-to", &to]).ok();
        assert!(ran.steps() == (1, 2) && !ran.stderr.contains("warning: "), "{}", ran.stderr);
        let ran = Machine::new()
            .build_as("o", &file, &["-t", "x", "--cache-from", &format!("{from},verify={theirs}.pub")])
            .ok();
        assert_eq!(ran.steps(), (0, 3), "{}", ran.stderr);
    }
    // The signature of this machine must not reach steps of others.
    let (from, to) = &caches("other")[1];
    build(&["--cache-from", from, "--cache-to", &format!("{to},sign={ours}")])
        .fails(2, &["it is not verified", "verify="]);
    build(&["--cache-to", &format!("{to},sign={ours}.pub")]).fails(2, &["not an Ed25519 private key", "ssh-keygen"]);
    build(&["--cache-to", &format!("{to},sign=/missing")]).fails(2, &["cannot read the key", "no such file"]);
    build(&["--cache-to", &format!("{to},{verify}")]).fails(2, &["needs `sign`"]);
    build(&["--cache-from", &format!("{from},verify={ours}")]).fails(2, &["not an Ed25519 public key"]);
}
