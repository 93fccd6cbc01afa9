//! Claims on steps of a cache in a registry: who waits for whom, and what a claim may cost.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::fleet_caches::{Fleet, INDEX};
use crate::lab::Ran;
use crate::registries::server::Fault;
use crate::remote_caches::{Machine, paths};

/// A path of a manifest with a claim.
const CLAIM: &str = "/manifests/cache-main-c";
/// A build with a claim that is on its own has to begin within that time, besides its own time.
const MOST: Duration = Duration::from_millis(2500);

impl Fleet {
    /// Builds to the cache only, on a machine of its own, and returns the time, too.
    fn fill(&self, name: &str, file: &str, more: &[&str]) -> (Ran, Duration) {
        let to = format!("{},mode=max", self.cache);
        let args = ["-o", "type=cacheonly", "--cache-from", &self.cache, "--cache-to", &to];
        let start = Instant::now();
        let ran = Machine::bare().build_as(name, file, &[&args[..], more].concat());
        (ran, start.elapsed())
    }

    /// Returns the tags with claims, and their texts.
    fn claims(&self) -> Vec<(String, Value)> {
        let state = self.scene.registry.state();
        let tags = state.manifests.iter().filter(|((_, tag), _)| tag.starts_with("cache-main-c"));
        let text = |bytes: &[u8]| {
            let document: Value = serde_json::from_slice(bytes).ok()?;
            serde_json::from_str(document["annotations"]["io.rbuild.claim"].as_str()?).ok()
        };
        tags.filter_map(|((_, tag), (_, bytes))| Some((tag.clone(), text(bytes)?))).collect()
    }

    fn put_claim(&self, tag: &str, claim: &Value) {
        let document = json!({
            "schemaVersion": 2, "mediaType": INDEX, "manifests": [],
            "annotations": {"io.rbuild.claim": claim.to_string()},
        });
        self.scene.registry.add_manifest("app", tag, INDEX, document.to_string().as_bytes());
    }

    /// Removes the cache, and leaves the claims.
    fn forget_cache(&self) {
        let is_cache = |tag: &str| tag.starts_with("cache-main") && !tag.starts_with("cache-main-c");
        self.scene.registry.state().manifests.retain(|(_, tag), _| !is_cache(tag));
    }

    fn released(&self) -> bool {
        self.claims().iter().all(|(_, claim)| claim["is_released"] == true)
    }
}

/// A machine that builds alone pays for its claim with one request more than without it.
#[test]
fn a_claim_costs_one_request() {
    let count = |more: &[&str]| {
        let fleet = Fleet::new();
        let (ran, requests) = fleet.build(&Machine::bare(), "one", "1", more);
        assert_eq!(ran.steps(), (4, 0), "{}", ran.stderr);
        assert!(!ran.stderr.contains("warning: --cache-claim"), "{}", ran.stderr);
        (requests.len(), paths(&requests, "PUT", CLAIM), paths(&requests, "GET", CLAIM))
    };
    let (without, with) = (count(&["--cache-claim=false"]), count(&["--cache-claim"]));
    assert_eq!((without.1, with.1, with.2), (0, 1, 2));
    assert!(with.0 <= without.0 + 1, "{without:?} {with:?}");
    // By default, a slow moment of this machine costs one more request, or the claim.
    let by_default = count(&[]);
    assert!(by_default.0 <= without.0 + 2 && by_default.1 <= 1, "{without:?} {by_default:?}");
}

/// Machines that begin at the same moment run each step once, or twice if two of them miss each
/// other's claim.
#[test]
fn machines_that_begin_at_once_do_not_all_run_the_steps() {
    let fleet = Fleet::new();
    let file = format!("{}RUN sleep 1\n", fleet.file);
    let build = |name: &str| {
        let (ran, _) = fleet.fill(name, &file, &[]);
        ran.ok().steps()
    };
    let mut steps: Vec<(usize, usize)> = std::thread::scope(|scope| {
        let machines = ["a", "b", "c"].map(|name| scope.spawn(move || build(name)));
        machines.map(|machine| machine.join().unwrap()).to_vec()
    });
    steps.sort_unstable();
    assert_eq!((steps[0], steps[2]), ((0, 5), (5, 0)), "{steps:?}");
}

/// The claim on a step that does not reach the cache is released, so that nobody waits for it.
#[test]
fn claims_on_steps_that_are_not_written_are_released() {
    let fleet = Fleet::new();
    let failing = format!("{}RUN false\n", fleet.file);
    let short = "FROM base\nRUN --mount=type=secret,id=s cat /run/secrets/s; echo 1 > /a\nRUN echo 2 > /b\n";
    let short = short.replace("base", &fleet.scene.name("base:1"));
    let secret = rbuild_testkit::Scratch::new();
    std::fs::write(secret.join("s"), "1234").unwrap();
    let secret = format!("id=s,src={}", secret.join("s").display());
    let to = format!("{},mode=max", fleet.cache);
    for (name, file, more, code) in [
        ("a failing build", failing.as_str(), vec!["--cache-claim"], 1),
        ("too large", &fleet.file, vec!["--cache-claim", "--cache-to", &format!("{to},max-size=1")], 0),
        ("a short secret", &short, vec!["--cache-claim", "--secret", &secret], 0),
    ] {
        fleet.scene.registry.state().manifests.retain(|(_, tag), _| !tag.starts_with("cache-main"));
        let (ran, _) = if name == "too large" {
            let args = ["-o", "type=cacheonly", "--cache-from", &fleet.cache];
            (Machine::bare().build_as("one", file, &[&args[..], &more].concat()), Duration::ZERO)
        } else {
            fleet.fill("one", file, &more)
        };
        assert_eq!(ran.code, Some(code), "{name}: {}", ran.stderr);
        assert!(fleet.released(), "{name}: {:?}", fleet.claims());
        let (ran, _) = fleet.fill("two", file, &more);
        assert!(!ran.stderr.contains("waiting for steps"), "{name}: {}", ran.stderr);
    }
    // A cache that cannot be written.
    fleet.forget_cache();
    fleet.scene.registry.fault("PUT", "/manifests/cache-main-s", Fault::Status(403, None), 99);
    let to = format!("{to},ignore-error=true");
    let args = ["-o", "type=cacheonly", "--cache-from", &fleet.cache, "--cache-claim", "--cache-to", &to];
    let ran = Machine::bare().build_as("one", &fleet.file, &args).ok();
    assert!(ran.stderr.contains("cannot update the cache"), "{}", ran.stderr);
    assert!(fleet.released(), "{:?}", fleet.claims());
}

/// An interrupted build releases its claim, even if the registry does not answer any more.
#[test]
fn an_interrupted_build_ends_its_claim() {
    let fleet = Fleet::new();
    let file = format!("{}RUN sleep 30\n", fleet.file);
    let to = format!("{},mode=max", fleet.cache);
    for is_silent in [false, true] {
        let machine = Machine::bare();
        machine.lab.write("Dockerfile", &file);
        let args = ["build", "-o", "type=cacheonly", "--cache-claim", "--cache-from", &fleet.cache, "--cache-to", &to];
        let mut command = machine.lab.signaled_command(args);
        let output = machine.lab.path("stderr");
        command.envs(machine.variables("one")).stderr(std::fs::File::create(&output).unwrap());
        let mut child = command.spawn().unwrap();
        let start = Instant::now();
        while fleet.released() && start.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(500));
        assert!(!fleet.released(), "there is no claim: {}", std::fs::read_to_string(output).unwrap());
        if is_silent {
            fleet.scene.registry.fault("GET", CLAIM, Fault::Stall(Duration::from_secs(20)), 9);
        }
        let asked = Instant::now();
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
        child.wait().unwrap();
        assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
        assert_eq!(fleet.released(), !is_silent);
        fleet.scene.registry.behave();
    }
}

/// A registry that answers slowly, with errors or not at all delays a build without concurrent ones
/// by a bounded time, says nothing, and gets no claim.
#[test]
fn a_registry_that_is_slow_for_claims_delays_nothing() {
    let mut fleet = Fleet::new();
    fleet.file = format!("FROM {}\nRUN echo 1 > /one\n", fleet.scene.name("base:1"));
    let (_, usual) = fleet.fill("one", &fleet.file, &["--cache-claim=false"]);
    for (name, fault) in [
        ("100 ms", Fault::Stall(Duration::from_millis(100))),
        ("10 s", Fault::Stall(Duration::from_secs(10))),
        ("byte by byte", Fault::Trickle(Duration::from_millis(200))),
        ("busy", Fault::Status(503, Some(30))),
        ("limited", Fault::Status(429, Some(30))),
        ("refused", Fault::Status(403, None)),
    ] {
        fleet.forget_cache();
        fleet.scene.registry.requests();
        fleet.scene.registry.fault("GET", CLAIM, fault, 99);
        let (ran, took) = fleet.fill("one", &fleet.file, &[]);
        let ran = ran.ok();
        assert!(took < usual + MOST, "{name}: {took:?}, usually {usual:?}");
        assert!(!ran.stderr.contains("trying again") && !ran.stderr.contains("waiting"), "{name}: {}", ran.stderr);
        let requests = fleet.scene.registry.requests();
        assert_eq!(paths(&requests, "PUT", CLAIM), 0, "{name}: {requests:?}");
        assert!(paths(&requests, "GET", CLAIM) <= 2, "{name}: {requests:?}");
        fleet.scene.registry.behave();
    }
}

/// Claims that no machine renews, or that are none, delay a build by a bounded time.
#[test]
fn invented_claims_delay_nothing() {
    let fleet = Fleet::new();
    let file = format!("FROM {}\nRUN echo 1 > /one\n", fleet.scene.name("base:1"));
    let (_, usual) = fleet.fill("one", &file, &["--cache-claim"]);
    let [(tag, claim)] = &fleet.claims()[..] else { panic!("{:?}", fleet.claims()) };
    let mut claims = Vec::new();
    for (at, every) in [(i64::MAX, u64::MAX), (i64::MIN, 0), (4_000_000_000, 4)] {
        claims.push(json!({"key": claim["key"], "by": "you", "at": at, "every": every}));
    }
    claims.push(json!({"key": claim["key"], "by": "x".repeat(1000), "at": claim["at"], "every": 4}));
    claims.push(json!({"key": claim["key"], "by": "you\nerror: forged x", "at": claim["at"], "every": 4}));
    claims.push(json!({"key": 1, "by": [], "at": "now"}));
    claims.push(json!("claim"));
    for claim in claims {
        fleet.forget_cache();
        fleet.put_claim(tag, &claim);
        let (ran, took) = fleet.fill("one", &file, &["--cache-claim"]);
        assert!(took < usual + MOST, "{claim}: {took:?}, usually {usual:?}");
        let ran = ran.ok();
        assert_eq!(ran.steps(), (1, 0));
        assert!(!ran.stderr.contains("--cache-claim"), "{claim}: {}", ran.stderr);
        // It is replaced.
        assert!(fleet.claims()[0].1["by"].as_str().is_some_and(|by| by.starts_with("one ")), "{claim}");
    }
    fleet.scene.registry.add_manifest("app", tag, INDEX, b"[");
    let (ran, took) = fleet.fill("one", &file, &[]);
    assert!(took < usual + MOST && ran.ok().steps().0 + 1 > 0, "{took:?}");
    // One that looks fresh is taken over soon.
    fleet.forget_cache();
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let claim_of = |by: &str| json!({"key": claim["key"], "build": claim["build"], "by": by, "at": now, "every": 4});
    fleet.put_claim(tag, &claim_of("ci runner 5 x"));
    let (ran, took) = fleet.fill("one", &file, &[]);
    let ran = ran.ok();
    assert!(took < Duration::from_secs(20) && ran.steps() == (1, 0), "{took:?} {}", ran.stderr);
    assert!(ran.stderr.contains("waiting for steps that `ci runner 5` builds"), "{}", ran.stderr);
    // A build that only begins with the same step is not waited for.
    fleet.forget_cache();
    fleet.put_claim(tag, &json!({"key": claim["key"], "build": claim["key"], "by": "you x", "at": now, "every": 4}));
    let (ran, took) = fleet.fill("one", &file, &[]);
    let ran = ran.ok();
    assert!(took < usual + MOST && !ran.stderr.contains("waiting for steps"), "{took:?} {}", ran.stderr);
}

/// Builds that read a cache and write none, or not all steps, make no claims, nor do builds
/// without a missing command.
#[test]
fn builds_that_write_nothing_make_no_claims() {
    let fleet = Fleet::new();
    let to = format!("{},mode=max", fleet.cache);
    let min = fleet.cache.clone();
    let volume = ["--volume", "/tmp:/v"];
    let built = |args: &[&str]| {
        fleet.scene.registry.requests();
        let args = [&["-o", "type=cacheonly", "--cache-from", &fleet.cache], args].concat();
        Machine::bare().build_as("one", &fleet.file, &args).ok();
        let requests = fleet.scene.registry.requests();
        assert_eq!(paths(&requests, "", CLAIM), 0, "{args:?}: {requests:?}");
    };
    built(&[]);
    built(&["--cache-to", &min]);
    built(&["--cache-to", &to, "--no-cache"]);
    fleet.forget_cache();
    built(&[&volume[..], &["--cache-to", &to]].concat());
    fleet.forget_cache();
    built(&["--cache-to", &to, "--cache-claim=false"]);
    built(&["--cache-to", &to]);
}

/// A machine with a long name makes claims that other machines can read.
#[test]
fn a_machine_may_have_any_name() {
    let fleet = Fleet::new();
    for name in ["é".repeat(2000), "ci runner 5\nerror: forged".into()] {
        fleet.forget_cache();
        for _ in 0..2 {
            let (ran, _) = fleet.fill(&name, &format!("{}RUN false\n", fleet.file), &["--cache-claim"]);
            assert!(!ran.stderr.contains("--cache-claim"), "{}", ran.stderr);
            let claims = fleet.claims();
            let by = claims[0].1["by"].as_str().unwrap();
            assert!(by.len() <= 300 && !by.contains('\n') && claims.len() == 1, "{claims:?}");
            assert!(fleet.released());
        }
    }
}

/// A claim that was requested and cannot be made is worth a warning, others are not.
#[test]
fn a_requested_claim_that_is_refused_is_reported_once() {
    let fleet = Fleet::new();
    fleet.scene.registry.fault("PUT", CLAIM, Fault::Status(403, None), 99);
    for (more, count) in [(&["--cache-claim"][..], 1), (&[], 0)] {
        fleet.forget_cache();
        let (ran, _) = fleet.fill("one", &fleet.file, more);
        let ran = ran.ok();
        assert_eq!(ran.stderr.matches("warning: --cache-claim: cannot claim steps").count(), count, "{}", ran.stderr);
    }
}

/// A claim that the registry accepts after the client has given up is released all the same.
#[test]
fn a_claim_that_is_written_late_is_released() {
    let fleet = Fleet::new();
    let file = format!("{}RUN sleep 7; false\n", fleet.file);
    // By default, a slow moment of this machine costs the claim.
    for _ in 0..5 {
        fleet.scene.registry.requests();
        fleet.scene.registry.fault("PUT", CLAIM, Fault::Stall(Duration::from_secs(3)), 1);
        let (ran, _) = fleet.fill("one", &file, &[]);
        assert_eq!(ran.code, Some(1), "{}", ran.stderr);
        assert!(fleet.released(), "{:?}", fleet.claims());
        if paths(&fleet.scene.registry.requests(), "PUT", CLAIM) > 1 {
            return;
        }
        fleet.scene.registry.behave();
    }
    panic!("the registry gets no claim");
}

/// The number of shards does not matter for claims.
#[test]
fn claims_are_made_for_any_number_of_shards() {
    let fleet = Fleet::new();
    let to = format!("{},mode=max,shards=4", fleet.cache);
    let args = ["-o", "type=cacheonly", "--cache-from", &fleet.cache, "--cache-to", &to, "--cache-claim"];
    let ran = Machine::bare().build_as("one", &fleet.file, &args).ok();
    assert!(!ran.stderr.contains("--cache-claim"), "{}", ran.stderr);
    assert_eq!(fleet.claims().len(), 1);
}

/// After a wait, the caches are read again, and the notes about them are not repeated.
#[test]
fn a_note_is_not_repeated_after_a_wait() {
    let fleet = Fleet::new();
    let file = format!("FROM {}\nRUN echo 1 > /one\n", fleet.scene.name("base:1"));
    fleet.fill("one", &file, &["--cache-claim"]).0.ok();
    let (tag, mut claim) = fleet.claims().remove(0);
    fleet.forget_cache();
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    (claim["by"], claim["at"]) = (json!("you x"), json!(now));
    fleet.put_claim(&tag, &claim);
    let ran = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| fleet.fill("two", &file, &["--cache-claim"]).0.ok());
        std::thread::sleep(Duration::from_secs(3));
        claim["is_released"] = json!(true);
        fleet.put_claim(&tag, &claim);
        waiting.join().unwrap()
    });
    assert!(ran.stderr.contains("waiting for steps that `you` builds"), "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("there is no cache").count(), 1, "{}", ran.stderr);
}
