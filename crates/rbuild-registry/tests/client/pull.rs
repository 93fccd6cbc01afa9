use std::io::Read;
use std::time::Duration;

use rbuild_image::BlobDigest;
use rbuild_registry::{RegistryError, RegistryProblem, RemoteAction, Repository, ResolvedTag, RetryMode, Secret};
use rbuild_remedy::{RegistryAction, Remedy};

use crate::Scene;
use crate::registry::{Access, Fault, Registry};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const TEXT: &[u8] = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}"#;

fn open() -> Registry {
    let registry = Registry::start(Access::Open);
    registry.add_manifest("x", "1", MANIFEST, TEXT);
    registry
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 % 251) as u8).collect()
}

fn read(repository: &Repository, digest: &BlobDigest, size: u64) -> Result<Vec<u8>, RegistryError> {
    let (mut reader, mut all) = (repository.blob(digest, size), Vec::new());
    match reader.read_to_end(&mut all) {
        Ok(_) => Ok(all),
        Err(e) => Err(rbuild_linux::into_carried(e).unwrap()),
    }
}

#[test]
fn a_tag_costs_one_request() {
    let (registry, scene) = (open(), Scene::new());
    let repository = scene.repository(&registry, "x");
    let ResolvedTag::Digest(digest) = repository.resolve("1").unwrap() else { panic!() };
    assert_eq!(digest, BlobDigest::of(TEXT));
    assert_eq!(registry.requests(), ["HEAD /v2/x/manifests/1"]);
    registry.fault("HEAD", "", Fault::Without("docker-content-digest"), 1);
    assert!(matches!(repository.resolve("1").unwrap(), ResolvedTag::Manifest(d) if d.bytes == TEXT));
    registry.fault("HEAD", "", Fault::Status(405, None), 1);
    assert!(matches!(repository.resolve("1").unwrap(), ResolvedTag::Manifest(_)));
}

#[test]
fn manifests_are_checked() {
    let (registry, scene) = (open(), Scene::new());
    let repository = scene.repository(&registry, "x");
    registry.fault("GET", "manifests", Fault::Flip, 1);
    assert_eq!(repository.document(&BlobDigest::of(TEXT)).unwrap().bytes, TEXT, "asked for once more");
    registry.fault("GET", "manifests", Fault::Flip, 9);
    let error = repository.document(&BlobDigest::of(TEXT)).unwrap_err();
    assert!(matches!(*error.problem, RegistryProblem::Digest { .. }), "{error}");
    assert!(scene.notices.lock().unwrap().is_empty(), "a wrong digest is no reason to wait");
    registry.behave();
    registry.state().manifests.clear();
    let error = repository.tagged("1").unwrap_err();
    assert!(error.message().contains("has no manifest 1: test (MANIFEST_UNKNOWN)"), "{error}");
    assert_eq!(error.remedy(), Some(rbuild_remedy::ServerRemedy::CheckTag.into()));
    for (text, want) in [
        ("[]", "not a JSON document"),
        (r#"{"schemaVersion":1}"#, "schema 1"),
        (r#"{"mediaType":"application/x"}"#, "application/x"),
        (r#"{"mediaType":"application/vnd.oci.image.index.v1+json"}"#, "that it claims"),
    ] {
        registry.add_manifest("x", "bad", "text/plain; charset=utf-8", text.as_bytes());
        let error = repository.tagged("bad").unwrap_err().message();
        assert!(error.contains(want), "{error}");
    }
    registry.add_manifest("x", "long", MANIFEST, &vec![b' '; (4 << 20) + 1]);
    assert!(repository.tagged("long").unwrap_err().message().contains("larger than 4 MiB"));
}

/// Of content that the caller can do without, a temporary failure costs one more request, and
/// damage none.
#[test]
fn quick_requests_are_repeated_once_and_damaged_content_never() {
    let (registry, scene) = (open(), Scene::new());
    let (repository, data) = (scene.repository(&registry, "x").in_mode(RetryMode::Quick), bytes(5000));
    let (blob, manifest) = (registry.add_blob("x", &data), BlobDigest::of(TEXT));
    for (fault, requests) in [
        (Fault::Status(503, None), 2),
        (Fault::Status(429, Some(30)), 1),
        (Fault::Cut(10), 2),
        (Fault::Status(404, None), 1),
        (Fault::Flip, 1),
    ] {
        let start = std::time::Instant::now();
        registry.fault("GET", "", fault.clone(), 99);
        assert!(repository.document(&manifest).is_err());
        let found = read(&repository, &blob, 5000).map(|found| BlobDigest::of(&found));
        match &fault {
            Fault::Flip => {
                let (mut reader, found) = (repository.blob(&blob, 5000), found.unwrap());
                std::io::copy(&mut reader, &mut std::io::sink()).unwrap();
                assert!(found != blob && !reader.note_wrong(&found), "the next one is the last one");
                registry.requests();
                assert!(repository.document(&manifest).is_err());
                assert_eq!(registry.requests().len(), requests);
            }
            _ => {
                assert!(found.is_err());
                assert_eq!(registry.requests().len(), 2 * requests, "{fault:?}");
            }
        }
        assert!(start.elapsed() < Duration::from_secs(2), "{fault:?}");
        registry.behave();
    }
    registry.fault("GET", "", Fault::Status(503, None), 1);
    assert_eq!(repository.document(&manifest).unwrap().bytes, TEXT);
}

#[test]
fn interrupted_downloads_are_resumed() {
    let (registry, scene) = (open(), Scene::new());
    let (repository, data) = (scene.repository(&registry, "x"), bytes(3_000_000));
    let (digest, size) = (registry.add_blob("x", &data), data.len() as u64);
    for faults in [
        &[Fault::Cut(1_000_000)][..],
        &[Fault::Cut(10), Fault::NoRange],
        &[Fault::Cut(10), Fault::RefusedRange],
        &[
            Fault::Cut(10),
            Fault::Without("Content-Range"),
            Fault::Header("Content-Range", "bytes 20-29/3000000".into()),
        ],
        &[Fault::Status(503, None)],
        &[Fault::Stall(Duration::from_millis(1500))],
    ] {
        faults.iter().for_each(|fault| registry.fault("GET", "blobs", fault.clone(), 2));
        assert!(read(&repository, &digest, size).unwrap() == data, "{faults:?}");
        registry.behave();
    }
    assert!(!scene.notices.lock().unwrap().is_empty());
    // Seven failures do not end a download as long as there is progress.
    registry.fault("GET", "blobs", Fault::Cut(2_000_000), 1);
    registry.fault("GET", "blobs", Fault::Cut(100), 4);
    assert!(read(&repository, &digest, size).unwrap() == data);
}

#[test]
fn failures_are_reported_once_with_the_host() {
    let (registry, scene) = (open(), Scene::new());
    let (repository, data) = (scene.repository(&registry, "x"), bytes(5000));
    let (digest, size) = (registry.add_blob("x", &data), data.len() as u64);
    registry.fault("GET", "blobs", Fault::Cut(10), 5);
    let error = read(&repository, &digest, size).unwrap_err();
    let text = error.message();
    assert!(text.starts_with(&format!("{}/x: ", registry.address)) && text.contains("bytes before the end"), "{text}");
    assert_eq!(error.remedy(), Some(Remedy::Server(rbuild_remedy::ServerRemedy::CheckNetwork)));
    registry.fault("GET", "blobs", Fault::Trickle(Duration::from_millis(30)), 9);
    let error = read(&repository, &digest, size).unwrap_err().message();
    assert!(error.contains("fewer than 1024 bytes"), "{error}");
    let registry = Registry::start(Access::Open);
    let repository = scene.repository(&registry, "x");
    registry.add_blob("x", &data);
    for (wrong, want) in
        [(size - 1, "has 5000 bytes; the manifest states 4999"), (size + 1, "the manifest states 5001")]
    {
        let error = read(&repository, &digest, wrong).unwrap_err().message();
        assert!(error.contains(want), "{error}");
    }
    let error = read(&repository, &BlobDigest::of(b"other"), 1).unwrap_err();
    assert!(matches!(*error.problem, RegistryProblem::Missing { .. }));
}

#[test]
fn documents_sent_byte_by_byte_time_out() {
    let registry = Registry::start(Access::Token("joe", "hunter2", 99));
    registry.add_manifest("x", "1", MANIFEST, TEXT);
    let scene = Scene::with_login(&registry, "joe", "hunter2");
    let repository = scene.repository(&registry, "x");
    let slow = Fault::Trickle(Duration::from_millis(400));
    let start = std::time::Instant::now();
    for path in ["/token", "manifests"] {
        registry.fault("GET", path, slow.clone(), 99);
        let error = repository.tagged("1").unwrap_err().message();
        assert!(error.contains(&registry.address) && error.contains("fewer than 1024 bytes"), "{error}");
        registry.behave();
    }
    // The client does not wait for the text of a refusal that arrives slowly.
    registry.fault("GET", "manifests", Fault::Status(403, None), 99);
    registry.fault("GET", "manifests", slow, 99);
    assert!(matches!(*repository.tagged("1").unwrap_err().problem, RegistryProblem::Denied { .. }));
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn documents_that_are_cut_short_are_requested_again() {
    let (registry, scene) = (open(), Scene::new());
    let repository = scene.repository(&registry, "x");
    registry.fault("GET", "manifests", Fault::Cut(5), 2);
    assert_eq!(repository.tagged("1").unwrap().bytes, TEXT);
    assert_eq!(scene.notices.lock().unwrap().len(), 2);
    registry.fault("GET", "manifests", Fault::Cut(5), 99);
    let error = repository.tagged("1").unwrap_err();
    assert!(error.message().contains("the connection broke"), "{error}");
    assert_eq!(error.remedy(), Some(Remedy::Server(rbuild_remedy::ServerRemedy::CheckNetwork)));
}

#[test]
fn logins_need_a_token_that_the_registry_accepts() {
    let log_in = |uses| {
        let registry = Registry::start(Access::Token("joe", "hunter2", uses));
        Scene::new().client.log_in(&registry.address, "joe", &Secret::new("hunter2"))
    };
    assert!(log_in(99).is_ok());
    let error = log_in(1).unwrap_err();
    assert!(matches!(*error.problem, RegistryProblem::Denied { .. }), "{error}");
    assert_eq!(error.remedy(), Some(Remedy::Server(rbuild_remedy::ServerRemedy::CheckPassword)));
    let registry = Registry::start(Access::Token("joe", "hunter2", 99));
    registry.fault("GET", "/v2/", Fault::Forbid, 2);
    let error = Scene::new().client.log_in(&registry.address, "joe", &Secret::new("hunter2")).unwrap_err();
    assert!(matches!(*error.problem, RegistryProblem::Denied { action: RemoteAction::LogIn, .. }), "{error}");
    assert_eq!(registry.requests(), ["GET /v2/", "GET /token +", "GET /v2/ +"]);
}

#[test]
fn redirects_of_the_token_server_are_followed() {
    let registry = Registry::start(Access::Token("joe", "hunter2", 99));
    let log_in = || Scene::new().client.log_in(&registry.address, "joe", &Secret::new("hunter2"));
    registry.fault("GET", "/token", Fault::Redirect(registry.address.clone()), 1);
    log_in().unwrap();
    assert_eq!(registry.requests(), ["GET /v2/", "GET /token +", "GET /token +", "GET /v2/ +"]);
    let other = Registry::start(Access::Open);
    registry.fault("GET", "/token", Fault::Redirect(other.address.clone()), 1);
    // The server of the redirect has no tokens; the request is repeated with POST.
    log_in().unwrap();
    assert_eq!(other.requests(), ["GET /token"], "without the login");
    registry.fault("GET", "/token", Fault::Redirect(registry.address.clone()), 99);
    assert!(log_in().unwrap_err().message().contains("too many redirects"));
}

#[test]
fn a_login_is_for_the_host_that_the_settings_name() {
    let registry = Registry::start(Access::Basic("joe", "hunter2"));
    let settings = format!("[[registry]]\nprefix = \"reg.example\"\nlocation = \"{}\"\n", registry.address);
    let scene = Scene::new();
    scene.configure(&settings);
    let login = scene.client.log_in("reg.example", "joe", &Secret::new("hunter2")).unwrap();
    assert_eq!(login.registry, registry.address);
    assert_eq!(scene.client.login_name("reg.example").unwrap(), registry.address);
    assert_eq!(scene.client.login_name("docker.io").unwrap(), "docker.io");
}

#[test]
fn failed_token_requests_are_not_repeated() {
    let registry = Registry::start(Access::Token("joe", "hunter2", 99));
    let scene = Scene::with_login(&registry, "joe", "hunter2");
    registry.fault("GET", "/token", Fault::Status(503, None), 99);
    let error = scene.repository(&registry, "x").tagged("1").unwrap_err();
    assert!(matches!(*error.problem, RegistryProblem::Status { status: 503, .. }), "{error}");
    let asked = registry.requests().iter().filter(|r| r.starts_with("GET /token")).count();
    assert_eq!(asked, 5);
}

#[test]
fn invalid_urls_are_not_retried() {
    let (registry, scene) = (open(), Scene::new());
    let repository = scene.repository(&registry, "x");
    for to in ["127.0.0.1:99999", "[", "a b", "user@a"] {
        registry.fault("GET", "manifests", Fault::Redirect(to.into()), 1);
        let error = repository.tagged("1").unwrap_err().message();
        assert!(error.contains("invalid"), "{to}: {error}");
        registry.behave();
    }
    assert!(scene.notices.lock().unwrap().is_empty(), "{:?}", scene.notices.lock().unwrap());
}

#[test]
fn rate_limits_are_respected_and_reported() {
    let (registry, scene) = (open(), Scene::new());
    let repository = scene.repository(&registry, "x");
    registry.fault("GET", "manifests", Fault::Status(429, Some(1)), 1);
    let start = std::time::Instant::now();
    repository.tagged("1").unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert!(format!("{:?}", scene.notices.lock().unwrap()).contains("429"));
    registry.fault("GET", "manifests", Fault::Status(429, None), 9);
    let error = repository.tagged("1").unwrap_err();
    assert_eq!(
        error.remedy(),
        Some(Remedy::Server(rbuild_remedy::ServerRemedy::Registry {
            registry: registry.address.clone(),
            action: RegistryAction::RaiseRateLimit
        }))
    );
    assert!(error.message().contains("429: test (FAULT)"), "{error}");
}

#[test]
fn redirect_targets_receive_no_credentials() {
    let (registry, storage) = (Registry::start(Access::Basic("joe", "hunter2")), Registry::start(Access::Open));
    let scene = Scene::with_login(&registry, "joe", "hunter2");
    let digest = storage.add_blob("x", b"data");
    registry.fault("GET", "blobs", Fault::Redirect(storage.address.clone()), 9);
    let repository = scene.repository(&registry, "x");
    registry.add_manifest("x", "1", MANIFEST, TEXT);
    repository.tagged("1").unwrap();
    assert_eq!(read(&repository, &digest, 4).unwrap(), b"data");
    assert_eq!(storage.requests(), [format!("GET /v2/x/blobs/{digest}")]);
    assert!(registry.requests().contains(&format!("GET /v2/x/blobs/{digest} +")));
    registry.fault("GET", "manifests", Fault::Redirect(registry.address.clone()), 99);
    assert!(repository.tagged("1").unwrap_err().message().contains("too many redirects"));
}

#[test]
fn command_line_credentials_are_sent_to_their_registry_only() {
    let basic = || Registry::start(Access::Basic("joe", "hunter2"));
    let (registry, other, mirror) = (basic(), basic(), basic());
    for holder in [&registry, &other] {
        holder.add_manifest("x", "1", MANIFEST, TEXT);
    }
    mirror.add_manifest("x", "1", MANIFEST, TEXT);
    let scene = Scene::with_login(&registry, "joe", "hunter2");
    scene.configure(&format!(
        "[[registry]]\nlocation = \"{}\"\n[[registry.mirror]]\nlocation = \"{}\"\n",
        registry.address, mirror.address
    ));
    scene.repository(&registry, "x").tagged("1").unwrap();
    assert_eq!(mirror.requests(), ["GET /v2/x/manifests/1"], "and no login");
    let error = scene.repository(&other, "x").tagged("1").unwrap_err().message();
    assert!(other.requests().iter().all(|request| !request.ends_with('+')), "{error}");
    assert!(
        error.contains("no login for") && error.contains("the command line (whose login is for 127.0.0.1:"),
        "{error}"
    );
    // A mirror on the host of the registry does not get the registry's login either.
    let scene = Scene::with_login(&registry, "joe", "hunter2");
    registry.requests();
    scene.configure(&format!(
        "[[registry]]\nprefix = \"{0}/x\"\nlocation = \"{0}/x\"\n[[registry.mirror]]\nlocation = \"{0}/y\"\n",
        registry.address
    ));
    scene.repository(&registry, "x").tagged("1").unwrap();
    assert!(registry.requests().iter().all(|r| r.contains("/x/") || !r.ends_with('+')));
    // A mirror gets the login of its own entry.
    std::fs::create_dir_all(scene.dir.join(".docker")).unwrap();
    let auth = format!(r#"{{"auths":{{"{}":{{"auth":"am9lOmh1bnRlcjI="}}}}}}"#, mirror.address);
    std::fs::write(scene.dir.join(".docker/config.json"), auth).unwrap();
    scene.repository(&mirror, "x").tagged("1").unwrap();
}

#[test]
fn credentials_echoed_by_a_server_are_masked() {
    for access in [Access::Basic("joe", "hunter2"), Access::Token("joe", "hunter2", 9)] {
        let registry = Registry::start(access);
        registry.add_manifest("x", "1", MANIFEST, TEXT);
        let scene = Scene::with_login(&registry, "joe", "hunter2");
        let repository = scene.repository(&registry, "x");
        repository.tagged("1").unwrap();
        registry.fault("GET", "manifests", Fault::Echo("hunter2"), 9);
        let error = repository.tagged("1").unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains("did not like Authorization: ") && text.contains(" *** with ***"), "{text}");
        assert!(!text.contains("hunter2") && !text.contains("am9lOmh1bnRlcjI") && !text.contains('\u{1b}'), "{text}");
        let in_header = Fault::Header("Warning", "299 - \"Basic am9lOmh1bnRlcjI= or hunter2\"".into());
        registry.behave();
        registry.fault("GET", "manifests", in_header, 9);
        repository.tagged("1").unwrap();
        let notices = format!("{:?}", scene.notices.lock().unwrap());
        assert!(notices.contains("or ***") && !notices.contains("hunter2"), "{notices}");
    }
    // The same by a token server.
    let registry = Registry::start(Access::Token("joe", "hunter2", 9));
    let scene = Scene::with_login(&registry, "joe", "hunter2");
    registry.fault("GET", "/token", Fault::Echo("hunter2"), 9);
    let error = scene.repository(&registry, "x").tagged("1").unwrap_err().message();
    assert!(error.contains("with ***") && !error.contains("hunter2") && !error.contains("am9l"), "{error}");
}

#[test]
fn tokens_are_fetched_renewed_and_shared() {
    let registry = Registry::start(Access::Token("joe", "hunter2", 3));
    registry.add_manifest("x", "1", MANIFEST, TEXT);
    registry.add_manifest("public/x", "1", MANIFEST, TEXT);
    let scene = Scene::with_login(&registry, "joe", "hunter2");
    let repository = scene.repository(&registry, "x");
    for _ in 0..7 {
        repository.tagged("1").unwrap();
    }
    assert!(registry.state().scopes.iter().all(|scope| scope == "repository:x:pull"));
    assert!((3..=4).contains(&registry.state().scopes.len()), "expired tokens are renewed, others kept");
    let anonymous = Scene::new();
    anonymous.repository(&registry, "public/x").tagged("1").unwrap();
    let error = anonymous.repository(&registry, "x").tagged("1").unwrap_err();
    assert!(error.message().contains("no login for"), "{error}");
    assert_eq!(
        error.remedy(),
        Some(Remedy::Server(rbuild_remedy::ServerRemedy::Registry {
            registry: registry.address.clone(),
            action: RegistryAction::LogIn
        }))
    );
    registry.fault("GET", "token", Fault::Status(401, None), 9);
    let error = anonymous.repository(&registry, "x").tagged("1").unwrap_err();
    assert!(
        error.message().contains("refused to issue a token") && error.message().contains("no login for"),
        "{error}"
    );
    registry.behave();
    let wrong = Scene::with_login(&registry, "joe", "hunter3");
    let error = wrong.repository(&registry, "x").tagged("1").unwrap_err();
    assert!(!format!("{error} {error:?}").contains("hunter"), "{error}");
    assert_eq!(
        error.remedy(),
        Some(Remedy::Server(rbuild_remedy::ServerRemedy::Registry {
            registry: registry.address.clone(),
            action: RegistryAction::CheckLogin
        }))
    );
}

#[test]
fn failed_token_requests_are_retried() {
    let registry = Registry::start(Access::Token("joe", "hunter2", 9));
    registry.add_manifest("x", "1", MANIFEST, TEXT);
    registry.fault("GET", "/token", Fault::Status(502, None), 2);
    let scene = Scene::with_login(&registry, "joe", "hunter2");
    scene.repository(&registry, "x").tagged("1").unwrap();
}

#[test]
fn unavailable_mirrors_are_skipped() {
    let (registry, mirror) = (open(), Registry::start(Access::Open));
    let scene = Scene::new();
    let conf = format!(
        "[[registry]]\nlocation = \"{}\"\n[[registry.mirror]]\nlocation = \"127.0.0.1:1\"\n[[registry.mirror]]\nlocation = \"{}/hub\"\n",
        registry.address, mirror.address
    );
    scene.configure(&conf);
    let repository = scene.repository(&registry, "x");
    repository.tagged("1").unwrap();
    assert_eq!(registry.requests(), ["GET /v2/x/manifests/1"]);
    assert_eq!(mirror.requests(), ["GET /v2/hub/x/manifests/1"]);
    mirror.add_manifest("hub/x", "1", MANIFEST, TEXT);
    repository.tagged("1").unwrap();
    assert!(registry.requests().is_empty());
    // An image that no endpoint has: the error of the registry itself.
    let error = repository.tagged("2").unwrap_err().message();
    assert!(error.contains(&format!("{} has no manifest 2", registry.address)), "{error}");
}

#[test]
fn a_login_is_verified_with_the_headers_of_the_settings() {
    let (registry, scene) = (Registry::start(Access::Basic("joe", "hunter2")), Scene::new());
    let config = r#"{"HttpHeaders": {"X-Meta-Test": "a"}}"#;
    std::fs::create_dir_all(scene.dir.join(".docker")).unwrap();
    std::fs::write(scene.dir.join(".docker/config.json"), config).unwrap();
    scene.client.log_in(&registry.address, "joe", &Secret::new("hunter2")).unwrap();
    assert_eq!(registry.state().meta, ["a", "a"], "without and with the login");
}

#[test]
fn logins_are_verified_and_become_refresh_tokens() {
    use rbuild_registry::{Credential, Secret};
    let scene = Scene::new();
    let token = Registry::start(Access::Token("joe", "hunter2", 9));
    let stored = scene.client.log_in(&token.address, "joe", &Secret::new("hunter2")).unwrap();
    assert_eq!(stored.credential, Credential::Identity(Secret::new("refresh")));
    let basic = Registry::start(Access::Basic("joe", "hunter2"));
    let stored = scene.client.log_in(&basic.address, "joe", &Secret::new("hunter2")).unwrap();
    assert_eq!(stored.credential, Credential::Password { user: "joe".into(), password: Secret::new("hunter2") });
    for registry in [&token, &basic] {
        let error = scene.client.log_in(&registry.address, "joe", &Secret::new("wrong")).unwrap_err();
        assert!(matches!(*error.problem, RegistryProblem::Denied { action: RemoteAction::LogIn, .. }), "{error}");
    }
    let auth = format!(r#"{{"auths":{{"{}":{{"identitytoken":"refresh"}}}}}}"#, token.address);
    std::fs::create_dir_all(scene.dir.join(".docker")).unwrap();
    std::fs::write(scene.dir.join(".docker/config.json"), auth).unwrap();
    token.add_manifest("x", "1", MANIFEST, TEXT);
    scene.repository(&token, "x").tagged("1").unwrap();
}
