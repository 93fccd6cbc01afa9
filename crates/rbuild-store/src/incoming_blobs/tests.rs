use std::io::Write;
use std::thread::{scope, sleep};

use rbuild_testkit::Scratch;

use super::*;

const PULL: PullId = PullId(1);

struct Scene {
    dir: Scratch,
    incoming: IncomingBlobs,
    image: ManifestDigest,
    layer: BlobDigest,
}

impl Scene {
    /// A scene with an image of one requested layer.
    fn new() -> Scene {
        let scene = Scene {
            dir: Scratch::new(),
            incoming: IncomingBlobs::default(),
            image: ManifestDigest::of(b"image"),
            layer: BlobDigest::of(b"layer"),
        };
        scene.incoming.request(PULL, &scene.image, vec![scene.layer]);
        scene
    }

    /// Begins an attempt. Returns the file to write to.
    fn begin(&self) -> File {
        let path = self.dir.join("blob");
        let file = File::create(&path).unwrap();
        self.incoming.begun(PULL, &self.layer, File::open(&path).unwrap());
        file
    }

    fn read(&self) -> Result<String> {
        let mut text = String::new();
        let mut blob = self.incoming.open(&self.layer, &|| false)?.expect("it was requested");
        let read = blob.read_to_string(&mut text);
        blob.confirm()?;
        read.unwrap();
        Ok(text)
    }

    fn failure() -> ReportedError {
        ReportedError::new("no route")
    }
}

#[test]
fn a_reader_waits_for_bytes_and_for_the_verification() {
    let scene = Scene::new();
    scope(|threads| {
        let reader = threads.spawn(|| scene.read());
        let mut file = scene.begin();
        for (text, size) in [("la", 2), ("yer", 5)] {
            sleep(Duration::from_millis(20));
            file.write_all(text.as_bytes()).unwrap();
            scene.incoming.grown(PULL, &scene.layer, size);
        }
        sleep(Duration::from_millis(100));
        assert!(!reader.is_finished(), "the digest has not been compared");
        scene.incoming.verified(PULL, &scene.layer);
        assert_eq!(reader.join().unwrap().unwrap(), "layer");
    });
    scene.incoming.ended(PULL, Ok(()));
    scene.incoming.wait_for_image(&scene.image, &|| false).unwrap();
    assert_eq!(scene.read().unwrap(), "layer", "the file can still be read");
    let stored = BlobDigest::of(b"stored");
    scene.incoming.stored(&stored);
    assert!(scene.incoming.open(&stored, &|| false).unwrap().is_none());
}

/// An image may be pulled under two names at once.
#[test]
fn readers_follow_one_of_two_pulls() {
    let scene = Scene::new();
    let other = PullId(2);
    scene.incoming.request(other, &scene.image, vec![scene.layer]);
    scene.begin().write_all(b"layer").unwrap();
    scene.incoming.begun(other, &scene.layer, File::open("/dev/null").unwrap());
    scene.incoming.grown(other, &scene.layer, 3);
    scene.incoming.verified(other, &scene.layer);
    scope(|threads| {
        let reader = threads.spawn(|| scene.read());
        sleep(Duration::from_millis(50));
        scene.incoming.grown(PULL, &scene.layer, 5);
        scene.incoming.verified(PULL, &scene.layer);
        assert_eq!(reader.join().unwrap().unwrap(), "layer");
    });
    scene.incoming.ended(PULL, Ok(()));
    assert!(matches!(scene.incoming.wait_for_image(&scene.image, &|| true), Err(StoreError::Canceled)));
    scene.incoming.ended(other, Ok(()));
    scene.incoming.wait_for_image(&scene.image, &|| true).unwrap();
}

#[test]
fn bytes_of_two_attempts_are_never_mixed() {
    let scene = Scene::new();
    scope(|threads| {
        let reader = threads.spawn(|| retry_restarted(|| scene.read()));
        let mut file = scene.begin();
        file.write_all(b"wrong").unwrap();
        scene.incoming.grown(PULL, &scene.layer, 5);
        sleep(Duration::from_millis(50));
        std::fs::remove_file(scene.dir.join("blob")).unwrap();
        scene.begin().write_all(b"layer").unwrap();
        scene.incoming.grown(PULL, &scene.layer, 5);
        scene.incoming.verified(PULL, &scene.layer);
        assert_eq!(reader.join().unwrap().unwrap(), "layer");
    });
}

#[test]
fn a_failed_download_ends_all_waits() {
    let scene = Scene::new();
    scope(|threads| {
        let reader = threads.spawn(|| scene.read());
        let waiter = threads.spawn(|| scene.incoming.wait_for_image(&scene.image, &|| false));
        scene.begin();
        sleep(Duration::from_millis(20));
        scene.incoming.ended(PULL, Err(Scene::failure()));
        let is_it = |e: StoreError| matches!(e, StoreError::DownloadFailed(failure) if failure == Scene::failure());
        assert!(is_it(reader.join().unwrap().unwrap_err()));
        assert!(is_it(waiter.join().unwrap().unwrap_err()));
    });
}

/// Another image has the same layer, and one of its own.
#[test]
fn a_failed_pull_is_that_of_its_image_only() {
    let scene = Scene::new();
    let (other, image, own) = (PullId(2), ManifestDigest::of(b"other image"), BlobDigest::of(b"own layer"));
    scene.incoming.request(other, &image, vec![scene.layer, own]);
    scope(|threads| {
        let reader = threads.spawn(|| retry_restarted(|| scene.read()));
        let opening = threads.spawn(|| scene.incoming.open(&own, &|| false).map(|blob| blob.is_some()));
        scene.begin().write_all(b"la").unwrap();
        scene.incoming.grown(PULL, &scene.layer, 2);
        sleep(Duration::from_millis(50));
        scene.incoming.ended(PULL, Err(Scene::failure()));
        let failed = scene.incoming.wait_for_image(&scene.image, &|| false);
        assert!(matches!(failed, Err(StoreError::DownloadFailed(failure)) if failure == Scene::failure()));
        sleep(Duration::from_millis(100));
        assert!(!reader.is_finished() && !opening.is_finished(), "the other pull goes on");
        let path = scene.dir.join("other");
        std::fs::write(&path, b"layer").unwrap();
        scene.incoming.begun(other, &scene.layer, File::open(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        scene.incoming.grown(other, &scene.layer, 5);
        scene.incoming.verified(other, &scene.layer);
        assert_eq!(reader.join().unwrap().unwrap(), "layer");
        scene.incoming.ended(other, Ok(()));
        assert!(!opening.join().unwrap().unwrap(), "it is in the store");
    });
    scene.incoming.wait_for_image(&image, &|| true).unwrap();
    // The image is the same under another name.
    let third = PullId(3);
    scene.incoming.request(third, &image, vec![own]);
    scene.incoming.ended(third, Err(Scene::failure()));
    assert!(matches!(scene.incoming.wait_for_image(&image, &|| true), Err(StoreError::DownloadFailed(_))));
}

#[test]
fn a_blob_that_no_pull_completes_fails_with_the_first_failure() {
    let scene = Scene::new();
    let other = PullId(2);
    scene.incoming.request(other, &ManifestDigest::of(b"other image"), vec![scene.layer]);
    scene.incoming.ended(other, Err(ReportedError::new("no name")));
    assert!(matches!(scene.incoming.open(&scene.layer, &|| true), Err(StoreError::Canceled)), "one is left");
    scene.incoming.ended(PULL, Err(Scene::failure()));
    let e = scene.incoming.open(&scene.layer, &|| true).map(drop).unwrap_err();
    assert!(matches!(e, StoreError::DownloadFailed(failure) if failure == Scene::failure()));
}

#[test]
fn one_thread_unpacks_a_layer_while_the_others_wait() {
    let scene = Scene::new();
    let layer = DiffId::of(b"layer");
    let first = scene.incoming.lock_unpacking(layer, &|| false).unwrap();
    assert!(matches!(scene.incoming.lock_unpacking(layer, &|| true), Err(StoreError::Canceled)));
    drop(scene.incoming.lock_unpacking(DiffId::of(b"other"), &|| true).unwrap());
    scope(|threads| {
        let second = threads.spawn(|| scene.incoming.lock_unpacking(layer, &|| false).map(drop));
        sleep(Duration::from_millis(20));
        assert!(!second.is_finished());
        drop(first);
        second.join().unwrap().unwrap();
    });
}

#[test]
fn a_stopped_build_waits_for_nothing() {
    let scene = Scene::new();
    assert!(matches!(scene.incoming.open(&scene.layer, &|| true), Err(StoreError::Canceled)));
    assert!(matches!(scene.incoming.wait_for_image(&scene.image, &|| true), Err(StoreError::Canceled)));
    let unknown = ManifestDigest::of(b"not requested");
    scene.incoming.wait_for_image(&unknown, &|| true).unwrap();
}
