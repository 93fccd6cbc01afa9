//! Object stores: signatures, conditions, parts, and connections that break.

use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use rbuild_image::BlobDigest;
use rbuild_registry::{
    ActionsCache, ActionsPlace, AzureContainer, Client, EntryContent, NewestEntry, ObjectLogin, ObjectPlace,
    ObjectStore, OpenUploads, Options, PartPolicy, ProcessEnvironment, RetryPolicy, S3Bucket, Secret, UploadObject,
    WriteCondition, WriteOutcome,
};

use crate::object_server::{ACCOUNT_KEY, Fault, KEY_ID, ObjectServer, SAS, SECRET, SESSION, job_token};

/// The services and logins that are tested.
const SERVICES: [&str; 4] = ["s3", "s3 with a session", "azure", "azure with sas"];

fn secret(text: &str) -> Option<Secret> {
    Some(Secret::new(text))
}

fn store_with(server: &ObjectServer, service: &str, login: ObjectLogin) -> ObjectStore {
    store_of(server, service, &client(login))
}

fn store_of(server: &ObjectServer, service: &str, client: &Client) -> ObjectStore {
    let place = if service.starts_with("s3") {
        ObjectPlace::S3(S3Bucket {
            bucket: "bucket".into(),
            region: "eu-west-1".into(),
            endpoint: Some(format!("http://{}", server.address)),
            path_style: None,
            touch_refresh: Duration::ZERO,
            parallelism: 2,
        })
    } else {
        let account_url = format!("http://{}/account", server.address);
        ObjectPlace::Azure(AzureContainer {
            account_url,
            account_name: Some("account".into()),
            container: "bucket".into(),
        })
    };
    ObjectStore::open(client, &place, Some(0)).unwrap()
}

fn client(login: ObjectLogin) -> Client {
    client_with(login, &OpenUploads::default())
}

fn client_with(login: ObjectLogin, uploads: &OpenUploads) -> Client {
    let retry_policy = RetryPolicy { first_wait: Duration::from_millis(1), ..RetryPolicy::default() };
    let (parts, uploads) = (PartPolicy { large: 1000, part: 300 }, uploads.clone());
    let options = Options { retry_policy, parts, uploads, object_logins: vec![login], ..Options::default() };
    let environment = ProcessEnvironment::of([], Path::new("/nosuch"));
    Client::new(environment, options, |_| {})
}

fn store(server: &ObjectServer, service: &str) -> ObjectStore {
    let login = match service {
        "s3" => ObjectLogin { id: secret(KEY_ID), key: secret(SECRET), token: None },
        "s3 with a session" => ObjectLogin { id: secret(KEY_ID), key: secret(SECRET), token: secret(SESSION) },
        "azure" => ObjectLogin { key: secret(ACCOUNT_KEY), ..ObjectLogin::default() },
        _ => ObjectLogin { token: secret(SAS), ..ObjectLogin::default() },
    };
    store_with(server, service, login)
}

fn upload(store: &ObjectStore, key: &str, bytes: &[u8]) -> BlobDigest {
    let digest = BlobDigest::of(bytes);
    let open = |at: u64| Ok(Box::new(&bytes[at as usize..]) as Box<dyn Read + '_>) as io::Result<_>;
    store.upload(&UploadObject { key, digest: Some(digest), size: bytes.len() as u64, open: &open }).unwrap();
    digest
}

fn content(store: &ObjectStore, key: &str, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut read = Vec::new();
    store.blob(key, &BlobDigest::of(bytes), bytes.len() as u64).read_to_end(&mut read)?;
    Ok(read)
}

#[test]
fn documents_are_replaced_on_conditions() {
    for service in SERVICES {
        let server = ObjectServer::start();
        let store = store(&server, service);
        let key = "a prefix/manifests/größe:1";
        assert_eq!(store.read(key, 99).unwrap(), None, "{service}");
        assert_eq!(store.write(key, b"one", WriteCondition::Unchanged("\"v9\"")).unwrap(), WriteOutcome::Conflict);
        assert_eq!(store.write(key, b"one", WriteCondition::Absent).unwrap(), WriteOutcome::Written);
        assert_eq!(store.write(key, b"two", WriteCondition::Absent).unwrap(), WriteOutcome::Conflict);
        let found = store.read(key, 99).unwrap().unwrap();
        assert_eq!(found.bytes, b"one");
        assert_eq!(store.write(key, b"two", WriteCondition::Unchanged(&found.etag)).unwrap(), WriteOutcome::Written);
        assert_eq!(store.write(key, b"x", WriteCondition::Unchanged(&found.etag)).unwrap(), WriteOutcome::Conflict);
        assert_eq!(store.read(key, 99).unwrap().unwrap().bytes, b"two");
        assert!(store.read(key, 2).unwrap_err().message().contains("larger than"));
    }
}

#[test]
fn blobs_are_uploaded_whole_or_in_parts() {
    for service in SERVICES {
        let server = ObjectServer::start();
        let store = store(&server, service);
        for (size, parts) in [(0, 0), (1000, 0), (1001, 4), (1200, 4)] {
            let bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            let key = format!("blobs/{}", BlobDigest::of(&bytes));
            assert_eq!(store.state(&key).unwrap(), None);
            server.requests();
            upload(&store, &key, &bytes);
            let sent = server
                .requests()
                .iter()
                .filter(|line| line.contains("?partNumber") || line.contains("?blockid"))
                .count();
            assert_eq!(sent, parts, "{service} {size}");
            assert_eq!(store.state(&key).unwrap().unwrap().size, size);
            assert_eq!(content(&store, &key, &bytes).unwrap(), bytes);
        }
        if service.starts_with("s3") {
            upload(&store, "a b", b"touched");
            let before = server.state().objects["bucket/a b"].etag.clone();
            store.touch("a b").unwrap();
            assert_ne!(server.state().objects["bucket/a b"].etag, before);
        }
    }
}

#[test]
fn transfers_survive_temporary_failures_and_broken_connections() {
    for service in SERVICES {
        let server = ObjectServer::start();
        let store = store(&server, service);
        let bytes: Vec<u8> = (0..900_000u32).map(|i| (i % 253) as u8).collect();
        server.fault("PUT", "blob", Fault::Status(503), 2);
        upload(&store, "blob", &bytes);
        server.fault("GET", "blob", Fault::Cut(1000), 2);
        server.fault("GET", "blob", Fault::Status(500), 1);
        server.requests();
        assert_eq!(content(&store, "blob", &bytes).unwrap(), bytes, "{service}");
        assert_eq!(server.requests().len(), 4, "{service}");
        server.fault("GET", "blob", Fault::Cut(1), 1);
        assert_eq!(store.read("blob", 1 << 20).unwrap().unwrap().bytes, bytes);
        server.fault("GET", "blob", Fault::Flip, 1);
        let mut reader = store.blob("blob", &BlobDigest::of(&bytes), bytes.len() as u64);
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        assert_ne!(read, bytes);
        assert!(reader.note_wrong() && !reader.note_wrong());
        reader.start_at(0);
        read.clear();
        reader.read_to_end(&mut read).unwrap();
        assert_eq!(read, bytes);
        server.fault("GET", "blob", Fault::Status(500), 9);
        let e = store.read("blob", 99).unwrap_err().message();
        assert!(e.ends_with("GET of blob at 127.0.0.1") || e.contains("failed with HTTP status 500"), "{e}");
    }
}

#[test]
fn refusals_name_the_login_and_contain_no_secret() {
    let server = ObjectServer::start();
    let wrong = ObjectLogin { id: secret(KEY_ID), key: secret("not/the-key"), token: None };
    let e = store_with(&server, "s3", wrong).read("a", 9).unwrap_err();
    let place = format!("{0}/bucket: {0} refused to send the object", server.address);
    assert_eq!(
        e.message(),
        format!("{place}: the reason (SignatureDoesNotMatch) (with the access key of the options)")
    );
    let e = store_with(&server, "s3", ObjectLogin::default()).read("a", 9).unwrap_err().message();
    assert!(e.contains("no access key in the options, AWS_ACCESS_KEY_ID or ~/.aws/credentials"), "{e}");
    let wrong = ObjectLogin { token: secret("sig=wrong-signature"), ..ObjectLogin::default() };
    let e = store_with(&server, "azure", wrong).read("a", 9).unwrap_err().message();
    assert!(e.contains("with a shared access signature") && !e.contains("wrong-signature"), "{e}");
    server.state().buckets.push("other".into());
    let e = store(&server, "s3").read("a", 9).unwrap_err().message();
    assert!(e.contains("has no bucket or container bucket"), "{e}");
    // A container is created by the first write.
    let azure = store(&server, "azure");
    assert_eq!(azure.read("a", 9).unwrap(), None);
    upload(&azure, "a", b"x");
    assert_eq!(azure.read("a", 9).unwrap().unwrap().bytes, b"x");
}

fn service(server: &ObjectServer, token: &str) -> ActionsCache {
    let place = ActionsPlace { url: format!("http://{}/", server.address), version: "0".repeat(64) };
    let login = ObjectLogin { token: secret(token), ..ObjectLogin::default() };
    ActionsCache::open(&client(login), &place, Some(0)).unwrap()
}

fn create(service: &ActionsCache, key: &str, bytes: &[u8]) -> bool {
    let open = |at: u64| Ok(Box::new(&bytes[at as usize..]) as Box<dyn Read + '_>) as io::Result<_>;
    service.create(key, &EntryContent { size: bytes.len() as u64, open: &open }).unwrap()
}

/// S3 keeps the parts of an upload until it is completed or canceled.
#[test]
fn parts_of_an_upload_that_ends_early_are_removed() {
    let canceled = |server: &ObjectServer| server.requests().iter().filter(|line| line.starts_with("DELETE")).count();
    let server = ObjectServer::start();
    let (bytes, uploads) = ([7u8; 1500], OpenUploads::default());
    let login = || ObjectLogin { id: secret(KEY_ID), key: secret(SECRET), token: None };
    let store = store_of(&server, "s3", &client_with(login(), &uploads));
    let open = |at: u64| Ok(Box::new(&bytes[at as usize..]) as Box<dyn Read + '_>) as io::Result<_>;
    let blob = UploadObject { key: "blob", digest: None, size: bytes.len() as u64, open: &open };
    server.fault("PUT", "blob", Fault::Status(403), 1);
    store.upload(&blob).unwrap_err();
    assert_eq!(canceled(&server), 1);
    server.fault("PUT", "blob", Fault::Stall(Duration::from_secs(1)), 1);
    std::thread::scope(|scope| {
        let uploading = scope.spawn(|| store.upload(&blob).is_ok());
        while !server.state().log.iter().any(|line| line.starts_with("PUT")) {
            std::thread::sleep(Duration::from_millis(5));
        }
        uploads.cancel_all();
        assert_eq!(canceled(&server), 1);
        assert!(!uploading.join().unwrap());
    });
    assert!(store.read("blob", 99).is_err() && server.requests().is_empty(), "nothing is requested at the end");
}

/// Whichever request does not end.
#[test]
fn the_requests_to_github_are_limited_together() {
    let server = ObjectServer::start();
    let bytes = [7u8; 900];
    assert!(create(&service(&server, &job_token()), "index#1", &bytes));
    for (method, path) in [("POST", "GetCacheEntry"), ("GET", "/gha/")] {
        server.fault(method, path, Fault::Stall(Duration::from_secs(20)), 9);
        let start = std::time::Instant::now();
        let limited = service(&server, &job_token()).within(Duration::from_secs(1));
        let errors = [limited.newest("index#", 2000).unwrap_err().message(), {
            let mut reader = limited.blob("index#1", 0, &BlobDigest::of(&bytes), 900);
            reader.read_to_end(&mut Vec::new()).unwrap_err().to_string()
        }];
        assert!(start.elapsed().as_secs() < 4, "{method}: {:?}", start.elapsed());
        assert!(errors[0].contains("within 1 s"), "{errors:?}");
    }
}

/// A pause that the service requests, or one between attempts, never exceeds the time.
#[test]
fn the_waits_for_github_are_limited_with_the_requests() {
    let server = ObjectServer::start();
    let bytes = [7u8; 900];
    assert!(create(&service(&server, &job_token()), "index#1", &bytes));
    for (method, path) in [("POST", "GetCacheEntry"), ("GET", "/gha/"), ("POST", "CreateCacheEntry")] {
        for (fault, most) in [(Fault::Throttle(60), 1), (Fault::Throttle(1), 3), (Fault::Cut(0), 5)] {
            server.requests();
            server.fault(method, path, fault, 99);
            let start = std::time::Instant::now();
            let limited = service(&server, &job_token()).within(Duration::from_millis(2500));
            let failed = match method {
                "POST" if path == "CreateCacheEntry" => {
                    let open = |_| Ok(Box::new(&bytes[..]) as Box<dyn Read + '_>) as io::Result<_>;
                    limited.create("index#2", &EntryContent { size: 900, open: &open }).is_err()
                }
                _ => limited.newest("index#", 2000).is_err(),
            };
            assert!(failed && start.elapsed().as_secs_f64() < 2.9, "{path}: {:?}", start.elapsed());
            let requests = server.requests().iter().filter(|line| line.contains(path)).count();
            assert!((1..=most).contains(&requests), "{path}: {requests}");
            server.behave();
        }
    }
}

#[test]
fn entries_of_github_are_created_once_and_found_by_the_beginning_of_their_keys() {
    let server = ObjectServer::start();
    let service = service(&server, &job_token());
    assert_eq!(service.scopes(), ["refs/heads/x", "refs/heads/main"]);
    assert_eq!(service.newest("index#", 99).unwrap(), None);
    assert!(create(&service, "index#1", b"one") && create(&service, "index#2", &[7; 1500]));
    assert!(!create(&service, "index#2", b"other"));
    let newest = |content| Some(NewestEntry { key: "index#2".to_string(), content });
    assert_eq!(service.newest("index#", 2000).unwrap(), newest(Some(vec![7; 1500])));
    assert_eq!(service.read("index#1", 99).unwrap().as_deref(), Some(&b"one"[..]));
    assert!(service.has("index#1").unwrap() && !service.has("index#3").unwrap());
    server.state().objects.clear();
    assert_eq!(service.newest("index#", 2000).unwrap(), newest(None));
}

/// The URL of an entry is requested again once it has expired, and after a broken connection.
#[test]
fn signed_urls_expire() {
    let server = ObjectServer::start();
    let service = service(&server, &job_token());
    let bytes: Vec<u8> = (0..300_000u32).map(|i| (i % 253) as u8).collect();
    assert!(create(&service, "pack", &bytes));
    let mut first = Vec::new();
    service.blob("pack", 0, &BlobDigest::of(&bytes[..9]), 9).read_to_end(&mut first).unwrap();
    assert_eq!(first, bytes[..9]);
    let part = &bytes[100..250_000];
    let mut reader = service.blob("pack", 100, &BlobDigest::of(part), part.len() as u64);
    let mut first = vec![0; 50_000];
    reader.read_exact(&mut first).unwrap();
    // That URL expires, and the next one is accepted.
    server.state().expired = 3;
    reader.start_at(50_000);
    let mut rest = first.clone();
    reader.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, part);
    server.state().expired = 1000;
    reader.start_at(0);
    let e = reader.read_to_end(&mut rest).unwrap_err().to_string();
    assert!(!e.contains("sIgNeD"), "{e}");
    server.state().expired = 0;
    server.fault("GET", "/gha/", Fault::Cut(1000), 1);
    server.fault("GET", "/gha/", Fault::Status(403), 1);
    let mut reader = service.blob("pack", 100, &BlobDigest::of(part), part.len() as u64);
    let mut whole = Vec::new();
    reader.read_to_end(&mut whole).unwrap();
    assert_eq!(whole, part);
}

#[test]
fn the_service_of_github_refuses_without_secrets() {
    let server = ObjectServer::start();
    let e = service(&server, "tOkEn-of-another").newest("index#", 9).unwrap_err().message();
    assert!(e.contains("refused to send the object: bad token (with the token of the job)"), "{e}");
    let e = service(&server, "").newest("index#", 9).unwrap_err().message();
    assert!(e.contains("(without ACTIONS_RUNTIME_TOKEN)"), "{e}");
    server.fault("POST", "/twirp/", Fault::Status(429), 9);
    let e = service(&server, &job_token()).newest("index#", 9).unwrap_err().message();
    assert!(e.contains("failed with HTTP status 429") && !e.contains("sIgNaTuRe"), "{e}");
}
