//! Blobs with several sources: URLs of the manifest, mirrors, the registry.

use std::io::Read;

use rbuild_image::BlobDigest;
use rbuild_registry::{RegistryError, RegistryProblem, Repository};

use crate::Scene;
use crate::files::{FileServer, ServedFile, Trouble};
use crate::registry::{Access, Fault, Registry};

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 % 251) as u8).collect()
}

/// Reads a blob as a pull does: again after a wrong digest, as long as that may help.
fn received(
    repository: &Repository,
    digest: &BlobDigest,
    size: u64,
    urls: &[String],
) -> Result<Vec<u8>, RegistryError> {
    for _ in 0..20 {
        let (mut reader, mut all) = (repository.blob(digest, size).with_urls(urls), Vec::new());
        reader.read_to_end(&mut all).map_err(|e| -> RegistryError { rbuild_linux::into_carried(e).unwrap() })?;
        let found = BlobDigest::of(&all);
        if found == *digest {
            return Ok(all);
        }
        if !reader.note_wrong(&found) {
            return Err(reader.wrong_digest(found));
        }
    }
    panic!("the blob is read again and again");
}

/// Returns the settings of a registry with these mirrors.
fn mirrors(registry: &str, mirrors: &[String]) -> String {
    let mirrors = mirrors.iter().map(|mirror| format!("[[registry.mirror]]\nlocation = \"{mirror}\"\n"));
    format!("[[registry]]\nlocation = \"{registry}\"\n{}", mirrors.collect::<String>())
}

/// The ways in which the URL of a layer fails.
fn bad_files(data: &[u8]) -> [(&'static str, ServedFile, Vec<Trouble>); 5] {
    let wrong: Vec<u8> = data.iter().map(|byte| !byte).collect();
    let longer = [&wrong[..], b"more"].concat();
    let chunked = |body: Vec<u8>| ServedFile { chunked: true, ..ServedFile::new(body) };
    [
        ("a short page", chunked(b"<html>not here</html>".to_vec()), Vec::new()),
        ("wrong bytes that end early", ServedFile::new(wrong.clone()), vec![Trouble::Cut(40_000)]),
        ("right bytes that end early", ServedFile::new(data), vec![Trouble::Cut(40_000)]),
        ("wrong bytes", ServedFile::new(wrong), Vec::new()),
        ("too many wrong bytes", chunked(longer), Vec::new()),
    ]
}

#[test]
fn a_bad_url_does_not_harm_the_registry() {
    let data = bytes(100_000);
    for (case, file, troubles) in bad_files(&data) {
        let (registry, server, scene) = (Registry::start(Access::Open), FileServer::start(), Scene::new());
        let digest = registry.add_blob("x", &data);
        server.put("/layer", file);
        server.trouble(troubles);
        let repository = scene.repository(&registry, "x");
        let urls = [server.url("/layer")];
        assert!(received(&repository, &digest, data.len() as u64, &urls).unwrap() == data, "{case}");
        assert_eq!(server.requests().len(), 1, "{case}");
        // The registry is not counted as faulty: it may send a wrong blob once more.
        registry.fault("GET", "blobs", Fault::Flip, 1);
        assert!(received(&repository, &digest, data.len() as u64, &urls).unwrap() == data, "{case}");
    }
}

#[test]
fn a_url_that_sends_more_than_the_blob_is_used() {
    let (registry, server, scene) = (Registry::start(Access::Open), FileServer::start(), Scene::new());
    let data = bytes(100_000);
    let body = [&data[..], b"more"].concat();
    server.put("/layer", ServedFile { chunked: true, ..ServedFile::new(body) });
    let (digest, urls) = (BlobDigest::of(&data), [server.url("/layer")]);
    let repository = scene.repository(&registry, "x");
    assert!(received(&repository, &digest, data.len() as u64, &urls).unwrap() == data);
    assert_eq!(registry.requests(), Vec::<String>::new());
}

#[test]
fn a_mirror_that_sends_the_wrong_beginning_does_not_harm_the_registry() {
    let (registry, mirror, scene) = (Registry::start(Access::Open), Registry::start(Access::Open), Scene::new());
    let data = bytes(100_000);
    let (digest, size) = (registry.add_blob("x", &data), data.len() as u64);
    scene.configure(&mirrors(&registry.address, std::slice::from_ref(&mirror.address)));
    let repository = scene.repository(&registry, "x");
    for _ in 0..2 {
        mirror.add_blob("x", &data);
        mirror.fault("GET", "blobs", Fault::Flip, 1);
        mirror.fault("GET", "blobs", Fault::Cut(10), 1);
        let (mut reader, mut all) = (repository.blob(&digest, size), vec![0; 10]);
        reader.read_exact(&mut all).unwrap();
        mirror.state().blobs.clear();
        reader.read_to_end(&mut all).unwrap();
        let found = BlobDigest::of(&all);
        assert!(found != digest && reader.note_wrong(&found));
    }
    mirror.add_blob("x", &data);
    mirror.requests();
    assert!(received(&repository, &digest, size, &[]).unwrap() == data);
    assert_eq!(mirror.requests(), Vec::<String>::new(), "its bytes were wrong twice");
}

/// The reader of a small document starts again itself.
#[test]
fn a_reader_that_starts_again_skips_a_mirror_with_wrong_bytes() {
    let (registry, mirror, scene) = (Registry::start(Access::Open), Registry::start(Access::Open), Scene::new());
    let data = bytes(1000);
    let (digest, size) = (registry.add_blob("x", &data), data.len() as u64);
    mirror.add_blob("x", &data);
    scene.configure(&mirrors(&registry.address, std::slice::from_ref(&mirror.address)));
    mirror.fault("GET", "blobs", Fault::Flip, 99);
    let repository = scene.repository(&registry, "x");
    let mut reader = repository.blob(&digest, size);
    for number in 0.. {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        let found = BlobDigest::of(&all);
        if found == digest {
            assert_eq!((number, mirror.requests().len(), registry.requests().len()), (2, 2, 1));
            break;
        }
        assert!(reader.note_wrong(&found) && number < 5);
        reader.start_at(0);
    }
}

#[test]
fn mirrors_on_one_host_are_counted_separately() {
    let (registry, mirror, scene) = (Registry::start(Access::Open), Registry::start(Access::Open), Scene::new());
    let data = bytes(1000);
    let digest = BlobDigest::of(&data);
    for repository in ["bad/x", "good/x"] {
        mirror.add_blob(repository, &data);
    }
    let locations = ["bad", "good"].map(|path| format!("{}/{path}", mirror.address));
    scene.configure(&mirrors(&registry.address, &locations));
    mirror.fault("GET", "/bad/", Fault::Flip, 99);
    let repository = scene.repository(&registry, "x");
    assert!(received(&repository, &digest, data.len() as u64, &[]).unwrap() == data);
    let requests = ["bad", "bad", "good"].map(|path| format!("GET /v2/{path}/x/blobs/{digest}"));
    assert_eq!((mirror.requests(), registry.requests()), (requests.to_vec(), Vec::new()));
}

#[test]
fn a_corrupt_mirror_is_reported_if_the_registry_is_unreachable() {
    let (mirror, scene) = (Registry::start(Access::Open), Scene::new());
    let data = bytes(1000);
    let (digest, size) = (mirror.add_blob("x", &data), data.len() as u64);
    scene.configure(&mirrors("127.0.0.1:1", std::slice::from_ref(&mirror.address)));
    mirror.fault("GET", "blobs", Fault::Flip, 99);
    let repository = scene.client.repository(&"127.0.0.1:1/x".parse().unwrap()).unwrap();
    let error = received(&repository, &digest, size, &[]).unwrap_err();
    assert!(
        matches!(&*error.problem, RegistryProblem::Digest { host, .. } if *host == mirror.address),
        "{}",
        error.message()
    );
}

#[test]
fn urls_get_no_login_even_on_the_registry_itself() {
    let registry = Registry::start(Access::Basic("joe", "hunter2"));
    let scene = Scene::with_login(&registry, "joe", "hunter2");
    let config = r#"{"HttpHeaders": {"X-Meta-Test": "hunter2"}}"#;
    std::fs::create_dir_all(scene.dir.join(".docker")).unwrap();
    std::fs::write(scene.dir.join(".docker/config.json"), config).unwrap();
    let data = bytes(1000);
    let (digest, size) = (registry.add_blob("x", &data), data.len() as u64);
    registry.add_blob("private", &data);
    let server = FileServer::start();
    let own = format!("http://{}/v2/private/blobs/{digest}", registry.address);
    server.put("/moved", ServedFile { moved: Some(own.clone()), ..ServedFile::default() });
    let repository = scene.repository(&registry, "x");
    // The registry's challenge is known.
    assert!(received(&repository, &digest, size, &[]).unwrap() == data);
    registry.requests();
    registry.state().meta.clear();
    assert!(received(&repository, &digest, size, &[own, server.url("/moved")]).unwrap() == data);
    let foreign = format!("GET /v2/private/blobs/{digest}");
    assert_eq!(registry.requests(), [foreign.clone(), foreign, format!("GET /v2/x/blobs/{digest} +")]);
    assert_eq!(registry.state().meta, ["hunter2"], "for the registry's own blob");
}

#[test]
fn a_mirror_does_not_extend_the_trust_of_urls() {
    let (mirror, server, scene) = (Registry::start(Access::Open), FileServer::start(), Scene::new());
    let data = bytes(1000);
    let (digest, size) = (mirror.add_blob("x", &data), data.len() as u64);
    scene.configure(&mirrors("a.example", std::slice::from_ref(&mirror.address)));
    server.put("/layer", ServedFile::new(data.clone()));
    let repository = scene.client.repository(&"a.example/x".parse().unwrap()).unwrap();
    assert!(received(&repository, &digest, size, &[server.url("/layer")]).unwrap() == data);
    assert_eq!(server.requests(), Vec::<String>::new(), "plain HTTP");
}

#[test]
fn few_urls_are_tried_and_their_failure_is_reported() {
    let (registry, server, scene) = (Registry::start(Access::Open), FileServer::start(), Scene::new());
    let digest = BlobDigest::of(b"x");
    let urls: Vec<String> = (0..100).map(|at| server.url(&format!("/{at}?sig=hunter2"))).collect();
    let error = received(&scene.repository(&registry, "x"), &digest, 1, &urls).unwrap_err().message();
    assert_eq!(server.requests().len(), 8);
    let registry = &registry.address;
    let want = format!(
        "{registry}/x: the layer's URL at {server} failed ({server} has no blob {digest}), and so did the registry: \
         {registry} has no blob {digest}",
        server = server.address
    );
    assert!(error.starts_with(&want) && !error.contains("hunter2"), "{error}");
}
