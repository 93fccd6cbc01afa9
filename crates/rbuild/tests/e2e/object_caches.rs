//! Caches in object stores: requests, several machines, damage, logins.

use rbuild_image::BlobDigest;
use serde_json::Value;

use crate::lab::is_bare;
use crate::remote_caches::{FILE, Machine};

#[allow(dead_code)]
#[path = "../../../rbuild-registry/tests/client/object_server.rs"]
mod server;

use server::{ACCOUNT_KEY, Fault, KEY_ID, ObjectServer, SAS, SECRET, TOKEN_END, job_token};

/// Returns the values of `--cache-from` for all services, with the bucket `bucket`.
fn places(server: &ObjectServer) -> [String; 3] {
    let address = &server.address;
    let azure = format!("type=azblob,container=bucket,account_url=http://{address}/account,account_name=account");
    [
        format!(
            "type=s3,bucket=bucket,region=eu-west-1,endpoint_url=http://{address},access_key_id={KEY_ID},secret_access_key={SECRET}"
        ),
        format!("{azure},secret_access_key={ACCOUNT_KEY}"),
        format!("type=azblob,container=bucket,account_url=http://{address}/account?{SAS}"),
    ]
}

fn count(requests: &[String], method: &str, part: &str) -> usize {
    requests.iter().filter(|line| line.starts_with(method) && line.contains(part)).count()
}

/// Returns the manifest of a cache.
fn manifest(server: &ObjectServer, name: &str) -> Value {
    let state = server.state();
    serde_json::from_slice(&state.objects[&format!("bucket/rbuild/v1/manifests/{name}")].bytes).unwrap()
}

#[test]
fn a_cold_machine_reads_one_object_and_the_layers_it_needs() {
    let one = Machine::new();
    one.build(FILE, &["-t", "x"]).ok();
    let expected = one.files(&[]).1;
    let server = ObjectServer::start();
    for place in places(&server) {
        server.state().objects.clear();
        let two = Machine::new();
        let none = one.build(FILE, &["-t", "x", "--cache-from", &place]).ok();
        assert!(none.stderr.contains("/manifests/cache` yet"), "{}", none.stderr);
        server.requests();
        let wrote = one.build(FILE, &["-t", "x", "--cache-to", &format!("{place},mode=max")]).ok();
        assert!(wrote.stderr.contains("5 steps, 5 new layers"), "{}", wrote.stderr);
        let requests = server.requests();
        // The manifest, and for each layer a question and an upload.
        assert_eq!((count(&requests, "PUT", ""), count(&requests, "HEAD", "")), (6, 5), "{requests:?}");
        assert_eq!(manifest(&server, "cache")["artifactType"], "application/vnd.rbuild.cache.v1+json");
        let again = one.build(FILE, &["-t", "x", "--cache-to", &format!("{place},mode=max")]).ok();
        assert!(again.stderr.contains("is unchanged: 5 steps"), "{}", again.stderr);
        assert_eq!(server.requests().len(), 1);
        let filled = two.build(FILE, &["-o", "type=cacheonly", "--cache-from", &place]).ok();
        assert_eq!(filled.steps(), (0, 5), "{}", filled.stderr);
        assert_eq!(server.requests().len(), 1, "hits need no layers");
        let (ran, files) = two.files(&["--cache-from", &place]);
        assert_eq!((ran.steps(), files), ((0, 5), expected.clone()), "{}", ran.stderr);
        let requests = server.requests();
        assert_eq!((requests.len(), count(&requests, "GET", "/blobs/")), (5, 4), "{requests:?}");
        two.lab.rbuild(["fsck"]).ok();
    }
}

/// A write on a condition that does not hold is repeated with the steps of both.
#[test]
fn machines_add_to_one_cache_at_the_same_time() {
    let server = ObjectServer::start();
    let file = |name: &str| format!("FROM busybox\nRUN head -c 16 /dev/urandom > /r\nRUN echo {name} > /n\n");
    let names = ["a", "b", "c", "d"];
    for place in &places(&server)[..2] {
        server.state().objects.clear();
        let to = format!("{place},mode=max,scope=feature/a");
        Machine::new().build(&file("a"), &["-t", "x", "--cache-to", &to]).ok();
        server.fault("PUT", "/manifests/", Fault::Status(412), 2);
        let from = format!("{place},scope=none;feature/a");
        std::thread::scope(|scope| {
            for name in names {
                let (to, from, file) = (&to, &from, file(name));
                scope.spawn(move || {
                    let ran = Machine::new().build(&file, &["-t", "x", "--cache-from", from, "--cache-to", to]).ok();
                    assert_eq!(ran.steps(), if name == "a" { (0, 2) } else { (1, 1) }, "{}", ran.stderr);
                });
            }
        });
        let reader = Machine::new();
        for name in names {
            let from = format!("{from},required");
            let ran = reader.build(&file(name), &["-o", "type=cacheonly", "--cache-from", &from]).ok();
            assert_eq!(ran.steps(), (0, 2), "{name}: {}", ran.stderr);
        }
        let tags: Vec<String> =
            server.state().objects.keys().filter(|key| key.contains("/manifests/")).cloned().collect();
        assert_eq!(tags.len(), 1, "no shards: {tags:?}");
        assert!(tags[0].contains("/manifests/cache-feature-a-"), "{tags:?}");
        let other = format!("{place},scope=other,required");
        reader.build(&file("a"), &["--cache-from", &other]).fails(1, &["there is no cache with the tag"]);
    }
}

#[test]
fn a_lost_or_damaged_layer_is_a_miss_and_the_next_build_repairs_the_cache() {
    let (server, one) = (ObjectServer::start(), Machine::new());
    one.build(FILE, &["-t", "x"]).ok();
    let expected = one.files(&[]).1;
    for (number, place) in places(&server)[..2].iter().enumerate() {
        let max = format!("{place},mode=max");
        for is_damaged in [false, true] {
            server.state().objects.clear();
            one.build(FILE, &["-t", "x", "--cache-to", &max]).ok();
            let digest = manifest(&server, "cache")["layers"][2 + number]["digest"].as_str().unwrap().to_string();
            let key = format!("bucket/rbuild/v1/blobs/{digest}");
            if is_damaged {
                server.state().objects.get_mut(&key).unwrap().bytes[20] ^= 1;
            } else {
                server.state().objects.remove(&key);
            }
            let two = Machine::new();
            let (ran, files) = two.files(&["--cache-from", place, "--cache-to", &max]);
            assert_eq!(files, expected);
            let warnings = ran.stderr.matches("so its step runs").count();
            assert!(warnings == 1 || (warnings == 0 && ran.steps() == (0, 5)), "{}", ran.stderr);
            let (ran, files) = Machine::new().files(&["--cache-from", place]);
            assert_eq!((files, ran.stderr.contains("warning: the layer")), (expected.clone(), false), "{}", ran.stderr);
        }
    }
}

/// Layers that were written long ago are touched once a day, so that rules of the bucket keep them.
#[test]
fn old_layers_of_s3_are_touched_and_lost_ones_replaced() {
    let (server, one) = (ObjectServer::start(), Machine::new());
    let [place, ..] = places(&server);
    let max = format!("{place},mode=max");
    one.build(FILE, &["-t", "x", "--cache-to", &max]).ok();
    let old = "Mon, 02 Jan 2006 15:04:05 GMT";
    let gone = {
        let mut state = server.state();
        let blobs: Vec<String> = state.objects.keys().filter(|key| key.contains("/blobs/")).cloned().collect();
        blobs[1..].iter().for_each(|key| state.objects.get_mut(key).unwrap().modified = old.into());
        state.objects.remove(&blobs[0]);
        blobs[0].clone()
    };
    // The records of another day.
    let key = "bucket/rbuild/v1/manifests/cache";
    let today = manifest(&server, "cache");
    let records = today["layers"][0].clone();
    let digest: BlobDigest = records["digest"].as_str().unwrap().parse().unwrap();
    server.requests();
    let again = one.build(FILE, &["-t", "x", "--cache-to", &max]).ok();
    assert!(again.stderr.contains("is unchanged"), "{}", again.stderr);
    assert_eq!(server.requests().len(), 1, "the layers were used today");
    let text = server.state().objects[key].bytes.clone();
    assert!(String::from_utf8_lossy(&text).contains(&digest.to_string()));
    let fresh = format!("{place},mode=max,name=other");
    server.requests();
    one.build(FILE, &["-t", "x", "--cache-to", &fresh]).ok();
    let requests = server.requests();
    assert!(server.state().objects.contains_key(&gone));
    assert!(server.state().objects.values().all(|object| object.modified != old), "{requests:?}");
    assert_eq!(count(&requests, "PUT", "/blobs/"), 5, "one upload and four copies: {requests:?}");
}

#[test]
fn a_store_that_fails_is_no_obstacle_unless_the_cache_is_required() {
    let server = ObjectServer::start();
    let machine = Machine::new();
    let build = |args: &[&str]| machine.build("FROM busybox\nRUN true\n", args);
    for place in places(&server) {
        server.state().objects.clear();
        let ran = build(&["-t", "x", "--cache-from", &place]).ok();
        assert_eq!(ran.stderr.matches("warning").count(), usize::from(is_bare()), "{}", ran.stderr);
        build(&["--cache-from", &format!("{place},required")]).fails(1, &["there is no cache with the tag"]);
        server.fault("GET", "", Fault::Status(403), 2);
        let ran = build(&["--cache-from", &place]).ok();
        assert!(ran.stderr.contains("cannot read the cache, so it is not used"), "{}", ran.stderr);
        build(&["--cache-from", &format!("{place},required")]).fails(1, &["cannot read the cache", "InjectedFault"]);
        server.fault("PUT", "", Fault::Status(403), 2);
        build(&["--cache-to", &place]).fails(1, &["cannot update the cache", "refused to accept the object"]);
        build(&["--cache-to", &format!("{place},ignore-error=true")]).ok();
        // A temporary failure is only a wait.
        server.fault("PUT", "", Fault::Status(503), 1);
        build(&["--cache-to", &place]).ok();
        server.state().objects.values_mut().for_each(|object| object.bytes = b"{}".to_vec());
        build(&["--cache-to", &place]).fails(1, &["it is not a cache of rbuild"]);
    }
}

/// Returns the options of a cache as messages show them.
fn masked(options: &str) -> String {
    let secret = |field: &str| {
        let (key, value) = field.split_once('=').unwrap();
        match (key, value.split_once('?')) {
            ("access_key_id" | "secret_access_key", _) => format!("{key}=***"),
            (_, Some((url, _))) => format!("{key}={url}?***"),
            _ => field.to_string(),
        }
    };
    options.split(',').map(secret).collect::<Vec<_>>().join(",")
}

/// The builder, its commands, the messages and the files of a build contain no login.
#[test]
fn logins_stay_in_the_fetcher() {
    let server = ObjectServer::start();
    let machine = Machine::new();
    let [s3, azure, sas] = places(&server);
    let file =
        "FROM busybox\nRUN cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n'; env; ls -la /proc/1/fd\n";
    let secrets = [SECRET, ACCOUNT_KEY, "sIgNaTuRe"];
    let log = machine.lab.path("debug.log");
    let log_file = log.to_str().unwrap();
    let mut said = String::new();
    for place in [s3, azure, sas] {
        let args = [
            "--progress",
            "plain",
            "--no-cache",
            "--debug-log",
            log_file,
            "--cache-from",
            &place,
            "--cache-to",
            &place,
        ];
        let ran = machine.build(file, &args).ok();
        said += &(ran.stderr + &ran.stdout);
        let unknown = format!("{place},unknown=x");
        let bad = machine.build(file, &["--cache-to", &unknown]).fails(2, &["unknown option", &masked(&unknown)]);
        said += &bad.stderr;
        // A server that fails is reported with the options as they were written.
        for (method, flag) in [("GET", "--cache-from"), ("PUT", "--cache-to")] {
            server.fault(method, "", Fault::Status(403), 99);
            let name = format!("{place},name=fails,ignore-error=true");
            let name = if flag == "--cache-to" { name } else { format!("{place},name=fails") };
            let ran = machine.build(file, &["-t", "x", flag, &name, "--debug-log", log_file]).ok();
            let warning = format!("warning: {flag} {}: cannot", masked(&name));
            assert!(ran.stderr.contains(&warning), "{warning}: {}", ran.stderr);
            said += &ran.stderr;
            said += &std::fs::read_to_string(&log).unwrap();
            server.behave();
        }
        let ran = Machine::new().build(file, &["-t", "x", "--explain", "--cache-from", &place]).ok();
        said += &ran.stderr;
        said += &std::fs::read_to_string(&log).unwrap();
    }
    // Variables.
    machine.lab.write("Dockerfile", file);
    let place = format!("type=s3,bucket=bucket,region=r,endpoint_url=http://{}", server.address);
    let args = ["build", "--progress", "plain", "--no-cache", "--cache-from", &place, "--cache-to", &place];
    let mut command = machine.lab.command(args);
    let home = machine.home.as_str();
    let variables = [("HOME", home), ("AWS_ACCESS_KEY_ID", KEY_ID), ("AWS_SECRET_ACCESS_KEY", SECRET)];
    let ran = machine.lab.run_with(&mut command, &variables).ok();
    assert!(ran.stderr.contains("wrote the cache `s3://bucket/rbuild/v1/manifests/cache`"), "{}", ran.stderr);
    said += &(ran.stderr + &ran.stdout);
    for log in ["logs", "inspect", "history"].map(|verb| machine.lab.rbuild([verb, "x"])) {
        said += &(log.stderr + &log.stdout);
    }
    let line = said.lines().find(|line| line.contains("login=") && !line.contains("tr '"));
    assert_eq!(line, None, "the internal form of the options");
    for secret in secrets {
        assert!(!said.contains(secret), "{said}");
        let found =
            std::process::Command::new("grep").args(["-rlF", secret]).arg(machine.lab.path(".")).output().unwrap();
        assert!(found.stdout.is_empty(), "{}", String::from_utf8_lossy(&found.stdout));
    }
}

/// Returns the value of `--cache-from` for the cache service of GitHub.
fn job(server: &ObjectServer) -> String {
    format!("type=gha,url_v2=http://{}/,token={}", server.address, job_token())
}

/// Small layers are one entry, and a hit needs none of them.
#[test]
fn jobs_of_github_share_a_cache_with_few_requests() {
    let (server, one, two) = (ObjectServer::start(), Machine::new(), Machine::new());
    let place = job(&server);
    let wrote = one.build(FILE, &["-t", "x", "--cache-to", &format!("{place},mode=max")]).ok();
    assert!(wrote.stderr.contains("wrote the cache `gha:buildkit`: 5 steps, 5 new layers"), "{}", wrote.stderr);
    let requests = server.requests();
    // Of each entry, a start, its content and an end; before, a question.
    assert_eq!((requests.len(), server.state().entries.len()), (7, 2), "{requests:?}");
    let again = one.build(FILE, &["-t", "x", "--cache-to", &format!("{place},mode=max")]).ok();
    assert!(again.stderr.contains("is unchanged: 5 steps"), "{}", again.stderr);
    server.requests();
    let filled = two.build(FILE, &["-o", "type=cacheonly", "--cache-from", &place]).ok();
    assert_eq!(filled.steps(), (0, 5), "{}", filled.stderr);
    let requests = server.requests();
    assert_eq!(
        (requests.len(), count(&requests, "GET", "")),
        (3, 1),
        "two scopes, of which one has an index: {requests:?}"
    );
    let (ran, files) = two.files(&["--cache-from", &place]);
    assert_eq!((ran.steps(), files), ((0, 5), one.files(&[]).1), "{}", ran.stderr);
    // Another one adds to it.
    let file = "FROM busybox\nRUN echo more > /more; head -c 2000000 /dev/urandom > /large\n";
    let to = format!("{place},mode=max");
    let wrote = two.build(file, &["-t", "y", "--cache-from", &place, "--cache-to", &to]).ok();
    assert!(wrote.stderr.contains("6 steps, 1 new layer"), "{}", wrote.stderr);
    let keys: Vec<String> = server.state().entries.keys().cloned().collect();
    let kinds = ["rbuild-blob-1-sha256:", "rbuild-index-buildkit-1-", "rbuild-index-buildkit-1-", "rbuild-pack-1-"];
    assert!(keys.iter().zip(kinds).all(|(key, kind)| key.starts_with(kind)) && keys.len() == 4, "{keys:?}");
    assert!(keys[1].ends_with("#1") && keys[2].ends_with("#2"), "{keys:?}");
    assert_eq!(Machine::new().files(&["--cache-from", &place]).0.steps(), (0, 5));
    assert_eq!(Machine::new().build(file, &["-t", "y", "--cache-from", &place]).ok().steps(), (0, 1));
    let other = format!("{place},scope=other,required");
    two.build(file, &["--cache-from", &other]).fails(1, &["there is no cache with the tag"]);
}

/// Failures are warnings. A number that an interrupted job has taken is skipped.
#[test]
fn the_cache_service_of_github_never_fails_a_build() {
    let (server, machine) = (ObjectServer::start(), Machine::new());
    let place = job(&server);
    let file = "FROM busybox\nRUN true\n";
    server.fault("POST", "/CreateCacheEntry", Fault::Status(403), 1);
    let ran = machine.build(file, &["-t", "x", "--cache-from", &place, "--cache-to", &place]).ok();
    assert!(ran.stderr.contains("warning: --cache-to type=gha"), "{}", ran.stderr);
    machine.build(file, &["-t", "x", "--cache-to", &place]).ok();
    {
        let mut state = server.state();
        let index = state.entries.keys().find(|key| key.ends_with("#1")).unwrap().replace("#1", "#2");
        let number = state.entries.len();
        state.entries.insert(index, (number, false));
    }
    let more = "FROM busybox\nRUN echo more > /more\n";
    let ran = machine.build(more, &["-t", "x", "--cache-to", &place]).ok();
    assert!(ran.stderr.contains("2 steps, 1 new layer"), "{}", ran.stderr);
    assert!(server.state().entries.iter().any(|(key, (_, done))| key.ends_with("#3") && *done));
    // A lost entry is a miss.
    server.state().entries.retain(|key, _| key.contains("index"));
    let ran = Machine::new().build(more, &["-t", "x", "--cache-from", &place]).ok();
    assert_eq!((ran.steps(), ran.stderr.matches("so its step runs").count()), ((1, 0), 1), "{}", ran.stderr);
    let old = "type=gha,version=1,url=http://127.0.0.1:9/,token=t";
    machine.build(file, &["--cache-to", old]).fails(2, &["version 1 of GitHub's cache service is not supported"]);
}

/// Outside of a job, the same command has a warning.
#[test]
fn variables_of_a_job_are_used_and_withheld() {
    let (server, machine) = (ObjectServer::start(), Machine::new());
    let file = "FROM busybox\nRUN cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n'; env\n";
    let ran = machine.build(file, &["-t", "x", "--cache-from", "type=gha", "--cache-to", "type=gha"]).ok();
    assert!(ran.stderr.contains("warning: --cache-to type=gha has no effect: ACTIONS_RESULTS_URL"), "{}", ran.stderr);
    let args = ["build", "--progress", "plain", "--no-cache", "-t", "x", "--cache-to", "type=gha,scope=main"];
    let mut command = machine.lab.command(args);
    let (url, token) = (format!("http://{}/", server.address), job_token());
    let variables = [("HOME", machine.home.as_str()), ("ACTIONS_RESULTS_URL", &url), ("ACTIONS_RUNTIME_TOKEN", &token)];
    let ran = machine.lab.run_with(&mut command, &variables).ok();
    assert!(ran.stderr.contains("wrote the cache `gha:main`"), "{}", ran.stderr);
    assert!(!(ran.stderr + &ran.stdout).contains(TOKEN_END));
}

/// A branch reads the cache of the default branch as well as its own.
#[test]
fn a_damaged_index_of_one_scope_does_not_affect_the_others() {
    let (server, one) = (ObjectServer::start(), Machine::new());
    let place = job(&server);
    let file = "FROM busybox\nRUN echo own > /own\n";
    one.build(file, &["-t", "x", "--cache-to", &place]).ok();
    {
        let mut state = server.state();
        let own = state.entries.keys().find(|key| key.contains("index")).unwrap().clone();
        let name = own.rsplit_once('-').unwrap().0.to_string();
        let main = &BlobDigest::of(b"refs/heads/main").to_string()["sha256:".len()..][..8];
        let number = 1000;
        state.entries.insert(format!("{name}-{main}#1"), (number, true));
        let damaged = state.objects.values().next().unwrap().clone();
        let damaged = server::Object { bytes: b"{\"manifest\":".to_vec(), ..damaged };
        state.objects.insert(format!("gha/{number}"), damaged.clone());
        state.objects.insert(number.to_string(), damaged);
    }
    let ran = Machine::new().build(file, &["-t", "x", "--cache-from", &place]).ok();
    assert_eq!(ran.steps(), (0, 1), "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("warning: --cache-from").count(), 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("cannot read a part of the cache: refs/heads/main: "), "{}", ran.stderr);
    let required = format!("{place},required");
    one.build(file, &["-t", "x", "--cache-from", &required]).fails(1, &["refs/heads/main"]);
}

/// A damaged index has no steps, and the next build that writes the cache adds another one.
#[test]
fn a_damaged_index_of_github_is_followed_by_another_one() {
    let file = |name: &str| format!("FROM busybox\nRUN echo {name} > /n\n");
    let none = br#"{"manifest":{"artifactType":"application/x"}}"#;
    for content in [Some(&b"{\"manifest\":"[..]), Some(&b""[..]), Some(&none[..]), None] {
        for more in [&[][..], &["--cache-from"][..]] {
            let (server, one) = (ObjectServer::start(), Machine::new());
            let place = job(&server);
            let to = ["-t", "x", "--cache-to", &place];
            one.build(&file("a"), &to).ok();
            {
                let mut state = server.state();
                let number = state.entries.iter().find(|(key, _)| key.ends_with("#1")).unwrap().1.0.to_string();
                match content {
                    Some(bytes) => state.objects.get_mut(&number).unwrap().bytes = bytes.to_vec(),
                    None => drop(state.objects.remove(&number)),
                }
            }
            let from: Vec<&str> = more.iter().flat_map(|flag| [*flag, &place]).collect();
            let ran = one.build(&file("b"), &[&to[..], &from].concat()).ok();
            let warnings =
                ["was damaged, so its earlier steps were dropped", "cannot read the cache, so it is not used"];
            assert_eq!(warnings.map(|text| ran.stderr.matches(text).count()), [1, more.len()], "{}", ran.stderr);
            let numbers: Vec<String> = {
                let state = server.state();
                let indexes = state.entries.iter().filter(|(key, (_, done))| key.contains("index") && *done);
                indexes.map(|(key, _)| key.rsplit('#').next().unwrap().to_string()).collect()
            };
            assert_eq!(numbers, ["1", "2"], "{}", ran.stderr);
            let again = Machine::new().build(&file("b"), &["-t", "x", "--cache-from", &place]).ok();
            assert_eq!((again.steps(), again.stderr.contains("--cache-from")), ((0, 1), false), "{}", again.stderr);
        }
    }
}

/// Neither for an answer nor for the time that it requests, whatever the build does with the cache.
#[test]
fn a_slow_cache_service_of_github_is_not_waited_for() {
    let (server, machine) = (ObjectServer::start(), Machine::new());
    let (place, file) = (format!("{},timeout=1s", job(&server)), "FROM busybox\nRUN true\n");
    for fault in [Fault::Stall(std::time::Duration::from_secs(20)), Fault::Throttle(20)] {
        for (flag, path) in [("--cache-from", "/GetCacheEntry"), ("--cache-to", "/CreateCacheEntry")] {
            server.fault("POST", path, fault, 9);
            let start = std::time::Instant::now();
            let ran = machine.build(file, &["-t", "x", flag, &place]).ok();
            assert!(start.elapsed().as_secs() < 10, "{}", ran.stderr);
            assert_eq!(ran.stderr.matches(&format!("warning: {flag}")).count(), 1, "{}", ran.stderr);
            server.behave();
        }
    }
}

#[test]
fn records_in_object_stores_are_signed_and_verified() {
    const KEY: &str = include_str!("../../../rbuild-transport/src/cache/signature/test-key");
    const PUBLIC: &str = include_str!("../../../rbuild-transport/src/cache/signature/test-key.pub");
    let (server, one) = (ObjectServer::start(), Machine::new());
    let (key, public) = (one.lab.path("key"), one.lab.path("key.pub"));
    std::fs::write(&key, KEY).unwrap();
    std::fs::write(&public, PUBLIC).unwrap();
    let file = "FROM busybox\nRUN echo a > /a\n";
    let [s3, azure, _] = places(&server);
    for (number, place) in [s3, azure, job(&server)].into_iter().enumerate() {
        let name = if place.starts_with("type=gha") { "scope" } else { "name" };
        let verified = |name: &str| format!("{name},verify={}", public.display());
        for (kind, signs, hits) in [("signed", true, 1), ("plain", false, 0)] {
            let place = format!("{place},{name}={kind}{number}");
            let sign = if signs { format!(",sign={}", key.display()) } else { String::new() };
            one.build(file, &["-t", "x", "--cache-to", &format!("{place},mode=max{sign}")]).ok();
            let ran = Machine::new().build(file, &["-t", "x", "--cache-from", &verified(&place)]).ok();
            assert_eq!(ran.steps(), (1 - hits, hits), "{place}: {}", ran.stderr);
            let text = "records without a valid signature are ignored";
            assert_eq!(ran.stderr.matches(text).count(), 1 - hits, "{place}: {}", ran.stderr);
        }
    }
}
