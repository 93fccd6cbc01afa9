//! Downloads of large blobs in ranges.

use std::io::Read;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use rbuild_image::BlobDigest;
use rbuild_registry::{RangePolicy, Repository};

use crate::Scene;
use crate::registry::{Access, Fault, Registry};

/// A blob of more than 8192 bytes is large, and one connection is always slow.
const RANGES: RangePolicy =
    RangePolicy { large: 8192, measured: 4096, fast: u64::MAX, range: 2048, connections: 4, total: 6 };

fn bytes() -> Vec<u8> {
    (0..50_000u32).map(|i| (i * 31 % 251) as u8).collect()
}

fn open(ranges: RangePolicy) -> (Registry, Scene, BlobDigest) {
    let registry = Registry::start(Access::Open);
    let digest = registry.add_blob("x", &bytes());
    (registry, Scene::with_ranges(ranges), digest)
}

fn read(repository: &Repository, digest: &BlobDigest, at: u64) -> Vec<u8> {
    let mut reader = repository.blob(digest, bytes().len() as u64);
    reader.start_at(at);
    let mut all = Vec::new();
    reader.read_to_end(&mut all).unwrap();
    all
}

/// Returns the first and last bytes of the ranges that were requested since the last call, and
/// whether the end was requested.
fn requested(registry: &Registry) -> Vec<(u64, Option<u64>)> {
    let parsed = |range: String| {
        let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        (first.parse().unwrap(), last.parse().ok())
    };
    std::mem::take(&mut registry.state().ranges).into_iter().map(parsed).collect()
}

#[test]
fn a_large_blob_is_downloaded_over_several_connections() {
    let (registry, scene, digest) = open(RANGES);
    let repository = scene.repository(&registry, "x");
    let held = scene.dir.join("release");
    for at in [0, 1000] {
        let mut reader = repository.blob(&digest, 50_000);
        reader.start_at(at);
        let mut all = vec![0; 4096];
        reader.read_exact(&mut all).unwrap();
        // The next range, which is the first of several.
        registry.fault("GET", "blobs", Fault::Hold(held.clone()), 1);
        std::thread::scope(|threads| {
            let rest = threads.spawn(|| reader.read_to_end(&mut all).unwrap());
            let start = Instant::now();
            while registry.state().ranges.len() < 4 {
                assert!(start.elapsed().as_secs() < 30, "the others are requested");
                std::thread::sleep(Duration::from_millis(5));
            }
            assert!(!rest.is_finished());
            std::fs::write(&held, "").unwrap();
            rest.join().unwrap();
        });
        std::fs::remove_file(&held).unwrap();
        assert!(all == bytes()[at as usize..]);
        let mut ranges = requested(&registry);
        ranges.sort_unstable();
        assert_eq!(ranges.remove(0), (at, Some(at + 4095)));
        let wanted = (at + 4096..50_000).step_by(2048).map(|start| (start, Some((start + 2047).min(49_999))));
        assert!(ranges.into_iter().eq(wanted));
    }
    assert!(scene.notices.lock().unwrap().is_empty());
}

#[test]
fn one_connection_is_enough_if_it_is_fast_or_the_blob_small() {
    for (name, ranges, want) in [
        ("fast", RangePolicy { fast: 0, ..RANGES }, &[(0, Some(4095)), (4096, None)][..]),
        ("small", RangePolicy { large: 50_001, ..RANGES }, &[]),
        // As long as no other connection is free, its rate is measured again.
        (
            "busy",
            RangePolicy { measured: 20_000, total: 1, ..RANGES },
            &[(0, Some(19_999)), (20_000, Some(39_999)), (40_000, Some(49_999))],
        ),
    ] {
        let (registry, scene, digest) = open(ranges);
        assert!(read(&scene.repository(&registry, "x"), &digest, 0) == bytes(), "{name}");
        assert_eq!(requested(&registry), want, "{name}");
    }
}

#[test]
fn a_download_in_ranges_falls_back_to_one_connection() {
    for (at, fault, count) in [
        (0, Fault::NoRange, 99),
        (10, Fault::NoRange, 99),
        // Of the third request, and then of some that follow.
        (0, Fault::NoRange, 1),
        (0, Fault::Cut(100), 2),
        (0, Fault::Status(404, None), 1),
        (0, Fault::Header("Content-Range", "bytes 0-9/50000".into()), 1),
        (0, Fault::Stall(Duration::from_millis(1500)), 1),
    ] {
        let (registry, scene, digest) = open(RANGES);
        let repository = scene.repository(&registry, "x");
        let mut reader = repository.blob(&digest, 50_000);
        reader.start_at(at);
        let mut all = vec![0; 4096];
        if count < 99 {
            reader.read_exact(&mut all).unwrap();
        } else {
            all.clear();
        }
        registry.fault("GET", "blobs", fault.clone(), count);
        reader.read_to_end(&mut all).unwrap();
        assert!(all == bytes()[at as usize..], "{fault:?}");
        registry.behave();
    }
}

#[test]
fn a_redirect_is_used_until_it_expires() {
    let (registry, scene, digest) = open(RANGES);
    let storage = Registry::start(Access::Open);
    storage.add_blob("x", &bytes());
    let repository = scene.repository(&registry, "x");
    registry.fault("GET", "blobs", Fault::Redirect(storage.address.clone()), 99);
    assert!(read(&repository, &digest, 0) == bytes());
    assert_eq!(registry.requests().len(), 1, "the following requests go to the storage");
    let mut reader = repository.blob(&digest, 50_000);
    let mut all = vec![0; 4096];
    reader.read_exact(&mut all).unwrap();
    storage.fault("GET", "blobs", Fault::Status(403, None), 1);
    reader.read_to_end(&mut all).unwrap();
    assert!(all == bytes());
    assert_eq!(registry.requests().len(), 2, "once more");
}

#[test]
fn several_readers_share_the_connections() {
    // A reader has at most four connections, and always one.
    for (readers, total, expected) in [(1, 6, 2..=4), (2, 3, 3..=3), (4, 6, 5..=6), (4, 3, 4..=4)] {
        let (registry, scene, digest) = open(RangePolicy { total, ..RANGES });
        let repository = scene.repository(&registry, "x");
        registry.fault("GET", "blobs", Fault::Stall(Duration::from_millis(50)), 999);
        // All readers have their connections before one of them gets another.
        let measured = Barrier::new(readers);
        let read = || {
            let mut reader = repository.blob(&digest, 50_000);
            let mut all = vec![0; 4096];
            reader.read_exact(&mut all).unwrap();
            measured.wait();
            reader.read_to_end(&mut all).unwrap();
            all
        };
        std::thread::scope(|threads| {
            let started: Vec<_> = (0..readers).map(|_| threads.spawn(read)).collect();
            assert!(started.into_iter().all(|reader| reader.join().unwrap() == bytes()));
        });
        let most = registry.state().most_open;
        assert!(expected.contains(&most), "{readers} readers, {total} connections: {most}");
    }
}
