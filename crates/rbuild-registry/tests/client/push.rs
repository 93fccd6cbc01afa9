use std::io::{Cursor, Read, Seek, SeekFrom};
use std::sync::atomic::{AtomicU32, Ordering};

use rbuild_image::BlobDigest;
use rbuild_registry::{GrowingUpload, PushOutcome, RegistryProblem, Repository, Result, UploadBlob};
use rbuild_remedy::{RegistryAction, Remedy};

use crate::Scene;
use crate::registry::{Access, Fault, Registry};

fn push(repository: &Repository, data: &[u8], mount_from: Option<&str>) -> Result<PushOutcome> {
    let data = data.to_vec();
    let open = |at| {
        let mut source = Cursor::new(data.clone());
        source.seek(SeekFrom::Start(at))?;
        Ok(Box::new(source) as Box<dyn Read>)
    };
    repository.push_blob(&UploadBlob {
        digest: BlobDigest::of(&data),
        size: data.len() as u64,
        open: &open,
        mount_from,
        is_remote: false,
    })
}

fn has(registry: &Registry, repository: &str, data: &[u8]) -> bool {
    registry.state().blobs.get(&(repository.to_string(), BlobDigest::of(data))).is_some_and(|bytes| bytes == data)
}

#[test]
fn blobs_are_uploaded_mounted_or_already_present() {
    let (registry, scene) = (Registry::start(Access::Open), Scene::new());
    let (repository, data) = (scene.repository(&registry, "x"), vec![7; 9000]);
    assert_eq!(push(&repository, &data, None).unwrap(), PushOutcome::Uploaded);
    assert!(has(&registry, "x", &data));
    assert_eq!(push(&repository, &data, None).unwrap(), PushOutcome::AlreadyPresent);
    let other = scene.repository(&registry, "y");
    assert_eq!(push(&other, &data, Some("x")).unwrap(), PushOutcome::Mounted);
    assert_eq!(push(&other, b"new", Some("x")).unwrap(), PushOutcome::Uploaded);
    assert!(has(&registry, "y", &data) && has(&registry, "y", b"new"));
    registry.fault("POST", "uploads", Fault::Status(403, None), 1);
    assert_eq!(push(&scene.repository(&registry, "z"), &data, Some("x")).unwrap(), PushOutcome::Uploaded);
    assert_eq!(push(&repository, b"", None).unwrap(), PushOutcome::Uploaded);
}

/// A read error of the local file is not a network error: it keeps its errno and is not retried.
#[test]
fn data_that_cannot_be_read_fails_the_push_at_once() {
    struct Failing(u64);
    impl Read for Failing {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            let n = buf.len().min(self.0 as usize);
            self.0 -= n as u64;
            if n == 0 { Err(std::io::Error::from_raw_os_error(5)) } else { Ok(n) }
        }
    }
    let (registry, scene) = (Registry::start(Access::Open), Scene::new());
    let repository = scene.repository(&registry, "x");
    for (size, pieces) in [(300_000, false), (9_000_000, true)] {
        if pieces {
            registry.fault("PATCH", "uploads", Fault::Most(4_000_000), 99);
        }
        let opened = AtomicU32::new(0);
        let open = |at| {
            opened.fetch_add(1, Ordering::Relaxed);
            Ok(Box::new(Failing(if pieces { 8_900_000 - at } else { 100_000 })) as Box<dyn Read>)
        };
        let blob = UploadBlob { digest: BlobDigest::of(b"x"), size, open: &open, mount_from: None, is_remote: false };
        let e = repository.push_blob(&blob).unwrap_err();
        assert!(
            matches!(&*e.problem, RegistryProblem::Local { source, .. } if source.raw_os_error() == Some(5)),
            "{e:?}"
        );
        assert!(pieces || opened.into_inner() == 1, "it was tried again");
        // The registry has counted the bytes of the small one, and may keep them.
        assert!(registry.open_uploads() <= 1);
    }
}

/// A registry may require the size of a blob, or may not support requests with parts of it.
#[test]
fn a_registry_that_accepts_no_parts_gets_the_whole_blob() {
    let (registry, scene) = (Registry::start(Access::Open), Scene::new());
    let (repository, data) = (scene.repository(&registry, "x"), vec![7; 9_000_000]);
    for status in [400, 405, 411, 501] {
        registry.state().blobs.clear();
        registry.fault("PATCH", "uploads", Fault::Status(status, None), 1);
        assert_eq!(push(&repository, &data, None).unwrap(), PushOutcome::Uploaded, "{status}");
        assert!(has(&registry, "x", &data) && registry.open_uploads() == 0, "{status}");
    }
}

#[test]
fn interrupted_uploads_are_restarted() {
    let (registry, scene) = (Registry::start(Access::Open), Scene::new());
    let (repository, data) = (scene.repository(&registry, "x"), vec![7; 90_000]);
    for fault in [Fault::Status(500, None), Fault::Cut(0), Fault::Status(503, Some(0))] {
        registry.state().blobs.clear();
        registry.fault("PUT", "uploads", fault.clone(), 1);
        assert_eq!(push(&repository, &data, None).unwrap(), PushOutcome::Uploaded, "{fault:?}");
        assert!(has(&registry, "x", &data));
    }
}

#[test]
fn chunks_shrink_and_continue_at_the_registrys_offset() {
    let (registry, scene) = (Registry::start(Access::Open), Scene::new());
    let (repository, data) =
        (scene.repository(&registry, "x"), (0..9_000_000).map(|i| (i % 251) as u8).collect::<Vec<_>>());
    registry.fault("PUT", "uploads", Fault::Most(4_000_000), 99);
    registry.fault("PATCH", "uploads", Fault::Most(4_000_000), 99);
    assert_eq!(push(&repository, &data, None).unwrap(), PushOutcome::Uploaded);
    assert!(has(&registry, "x", &data));
    registry.state().blobs.clear();
    // The answer to a chunk is lost, although the registry has it.
    registry.fault("PATCH", "uploads", Fault::Cut(0), 2);
    registry.fault("PATCH", "uploads", Fault::Status(502, None), 1);
    assert_eq!(push(&repository, &data, None).unwrap(), PushOutcome::Uploaded);
    assert!(has(&registry, "x", &data));
}

/// Pushes a blob whose last byte is written only after the registry has received a request for the
/// others.
fn push_growing(registry: &Registry, repository: &Repository, data: &[u8]) -> Result<(BlobDigest, u64)> {
    struct Growing<'a>(&'a Registry, Cursor<&'a [u8]>);
    impl Read for Growing<'_> {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            let left = self.1.get_ref().len() - self.1.position() as usize;
            let start = std::time::Instant::now();
            while left == 1 && !self.0.state().log.iter().any(|line| line.starts_with("POST")) {
                assert!(start.elapsed().as_secs() < 20, "the upload begins");
            }
            let most = buf.len().min(left.saturating_sub(1).max(1));
            self.1.read(&mut buf[..most])
        }
    }
    let open = |at| {
        let mut source = Cursor::new(data);
        source.seek(SeekFrom::Start(at))?;
        Ok(Box::new(Growing(registry, source)) as Box<dyn Read>)
    };
    let complete = || Ok((BlobDigest::of(data), data.len() as u64));
    repository.push_growing(&GrowingUpload { open: &open, complete: &complete })
}

#[test]
fn a_blob_is_uploaded_while_it_grows() {
    let registry = Registry::start(Access::Token("joe", "hunter2", 50));
    let scene = Scene::with_login(&registry, "joe", "hunter2");
    let repository = scene.repository(&registry, "x");
    for data in [&b""[..], b"1", &[7; 100_000]] {
        registry.requests();
        push_growing(&registry, &repository, data).unwrap();
        assert!(has(&registry, "x", data));
        let requests = registry.requests();
        let methods = requests.iter().filter(|line| line.ends_with('+')).map(|line| line.split(' ').next().unwrap());
        assert_eq!(methods.filter(|method| method.starts_with('P')).collect::<Vec<_>>(), ["POST", "PATCH", "PUT"]);
    }
}

#[test]
fn an_interrupted_growing_upload_continues_in_chunks() {
    let (registry, scene) = (Registry::start(Access::Open), Scene::new());
    let (repository, data) =
        (scene.repository(&registry, "x"), (0..3_000_000).map(|i| (i % 251) as u8).collect::<Vec<_>>());
    for (fault, chunks) in [
        // The registry has all bytes, but its answer is lost.
        (Fault::Cut(0), 0),
        (Fault::Status(502, None), 1),
        (Fault::Most(2_000_000), 2),
    ] {
        registry.state().blobs.clear();
        registry.requests();
        let count = if chunks == 2 { 99 } else { 1 };
        registry.fault("PATCH", "uploads", fault.clone(), count);
        push_growing(&registry, &repository, &data).unwrap();
        assert!(has(&registry, "x", &data), "{fault:?}");
        let patches = registry.requests().iter().filter(|line| line.starts_with("PATCH")).count();
        assert!(patches > chunks, "{fault:?}: {patches}");
        registry.behave();
    }
    // The answer to the end is lost, or the end itself.
    for fault in [Fault::Cut(0), Fault::Status(502, None)] {
        registry.state().blobs.clear();
        registry.fault("PUT", "uploads", fault.clone(), 1);
        push_growing(&registry, &repository, &data).unwrap();
        assert!(has(&registry, "x", &data), "{fault:?}");
    }
    registry.fault("PATCH", "uploads", Fault::Status(405, None), 1);
    let e = push_growing(&registry, &repository, &data).unwrap_err();
    assert!(matches!(*e.problem, RegistryProblem::Status { status: 405, .. }), "{e:?}");
    assert!(registry.requests().last().unwrap().starts_with("DELETE "), "the upload is canceled");
}

#[test]
fn a_growing_blob_that_is_never_completed_is_not_pushed() {
    let (registry, scene) = (Registry::start(Access::Open), Scene::new());
    let repository = scene.repository(&registry, "x");
    let open = |_| Ok(Box::new(Cursor::new(vec![1u8; 1000])) as Box<dyn Read>);
    let complete = || Err(std::io::Error::from_raw_os_error(28));
    let e = repository.push_growing(&GrowingUpload { open: &open, complete: &complete }).unwrap_err();
    assert!(matches!(&*e.problem, RegistryProblem::Local { source, .. } if source.raw_os_error() == Some(28)), "{e:?}");
    assert!(registry.state().blobs.is_empty());
}

#[test]
fn contradictory_upload_answers_fail_the_push() {
    let (registry, scene) = (Registry::start(Access::Open), Scene::new());
    let (repository, data) = (scene.repository(&registry, "x"), vec![7; 9_000_000]);
    let more = || {
        registry.fault("PUT", "uploads", Fault::Most(1_000_000), 99);
        registry.fault("PATCH", "uploads", Fault::Status(502, None), 99);
    };
    more();
    registry.fault("GET", "uploads", Fault::Without("range"), 99);
    registry.fault("GET", "uploads", Fault::Header("Range", "0-99999999999".into()), 99);
    let error = push(&repository, &data, None).unwrap_err().message();
    assert!(
        error.contains(&registry.address) && error.contains("100000000000 bytes of an upload were acknowledged"),
        "{error}"
    );
    registry.behave();
    more();
    registry.fault("GET", "uploads", Fault::Status(404, None), 99);
    let error = push(&repository, &data, None).unwrap_err().message();
    assert!(error.contains("502"), "{error}");
}

#[test]
fn tokens_expire_during_a_push() {
    let registry = Registry::start(Access::Token("joe", "hunter2", 2));
    let scene = Scene::with_login(&registry, "joe", "hunter2");
    let repository = scene.repository(&registry, "x");
    for i in 0..5u8 {
        let data = vec![i; 9000];
        push(&repository, &data, None).unwrap();
        assert!(has(&registry, "x", &data));
    }
    repository.push_document("1", "application/vnd.oci.image.manifest.v1+json", b"{}").unwrap();
    assert!(registry.state().scopes.iter().all(|scope| scope == "repository:x:pull,push"));
}

#[test]
fn permission_is_checked_without_leaving_an_upload() {
    let registry = Registry::start(Access::Token("joe", "hunter2", 9));
    let scene = Scene::with_login(&registry, "joe", "hunter2");
    scene.repository(&registry, "x").check_push().unwrap();
    assert!(registry.requests().last().unwrap().starts_with("DELETE /v2/x/blobs/uploads/"));
    let anonymous = Scene::new();
    let error = anonymous.repository(&registry, "public/x").check_push().unwrap_err();
    assert_eq!(
        error.remedy(),
        Some(Remedy::Server(rbuild_remedy::ServerRemedy::Registry {
            registry: registry.address.clone(),
            action: RegistryAction::LogIn
        }))
    );
    assert!(error.message().contains("refused to push"), "{error}");
}

#[test]
fn rejected_manifests_are_reported_with_the_reason() {
    let (registry, scene) = (Registry::start(Access::Open), Scene::new());
    let repository = scene.repository(&registry, "x");
    registry.fault("PUT", "manifests", Fault::Status(400, None), 1);
    let error = repository.push_document("1", "application/x", b"{}").unwrap_err();
    assert!(matches!(*error.problem, RegistryProblem::Status { status: 400, .. }));
    assert!(error.message().contains("PUT of manifest 1") && error.message().contains("FAULT"), "{error}");
    let other = BlobDigest::of(b"other").to_string();
    registry.fault("PUT", "manifests", Fault::Without("docker-content-digest"), 1);
    registry.fault("PUT", "manifests", Fault::Header("Docker-Content-Digest", other), 1);
    let error = repository.push_document("1", "application/x", b"{}").unwrap_err();
    assert!(matches!(*error.problem, RegistryProblem::Digest { .. }), "{error}");
}

/// Whichever request fails, and however often.
#[test]
fn a_failed_push_leaves_no_open_upload() {
    let registry = Registry::start(Access::Token("joe", "hunter2", 50));
    let scene = Scene::with_login(&registry, "joe", "hunter2");
    let (repository, small, large) = (scene.repository(&registry, "x"), vec![7; 9000], vec![7; 3_000_000]);
    let status = |status| Fault::Status(status, None);
    for (case, faults) in [
        &[("PUT", status(500))][..],
        &[("PUT", status(400))],
        &[("PUT", Fault::Most(2000))],
        &[("PUT", Fault::Most(2000)), ("PATCH", status(403))],
        &[("PUT", Fault::Most(2000)), ("PATCH", status(502)), ("GET", status(403))],
        &[("PUT", Fault::Most(2000)), ("PATCH", status(502)), ("GET", Fault::Header("Location", "ftp://a".into()))],
        &[("PATCH", status(502)), ("PUT", status(500))],
    ]
    .into_iter()
    .enumerate()
    {
        for (method, fault) in faults {
            registry.fault(method, "uploads", fault.clone(), 99);
        }
        registry.requests();
        let _ = push(&repository, &small, None);
        let _ = push(&repository, &large, Some("y"));
        let _ = push_growing(&registry, &repository, &large);
        let requests = registry.requests();
        assert_eq!(registry.open_uploads(), 0, "{case}: {requests:?}");
        registry.behave();
        registry.state().blobs.clear();
    }
    // The server does not answer.
    registry.fault("PUT", "uploads", status(403), 9);
    registry.fault("DELETE", "uploads", Fault::Stall(std::time::Duration::from_secs(9)), 9);
    let start = std::time::Instant::now();
    push(&repository, &small, None).unwrap_err();
    assert!(start.elapsed().as_secs() < 3, "{:?}", start.elapsed());
}
