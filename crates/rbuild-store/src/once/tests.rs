use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use rbuild_testkit::Scratch;

use super::*;
use crate::ids::ResultId;

/// A store in a directory of its own.
pub(crate) struct Scene {
    pub store: Store,
    pub place: Scratch,
}

impl Scene {
    pub fn new() -> Scene {
        let place = Scratch::new();
        let store = Store::open(&place).unwrap();
        Scene { store, place }
    }
}

fn step(name: &str) -> Lock {
    Lock::Step(CacheKey::of(name.as_bytes()))
}

/// Returns once another thread has found the lock taken: it looks again every few milliseconds.
pub(crate) fn let_others_wait() {
    std::thread::sleep(Duration::from_millis(60));
}

#[test]
fn one_of_many_threads_does_the_work() {
    let scene = Scene::new();
    let (made, there, start) = (AtomicUsize::new(0), Mutex::new(None), Barrier::new(8));
    let made_by = std::thread::scope(|scope| {
        let one = || {
            start.wait();
            let find = || Ok::<_, StoreError>(*there.lock().unwrap());
            let make = || {
                let_others_wait();
                let number = made.fetch_add(1, Ordering::SeqCst);
                *there.lock().unwrap() = Some(number);
                Ok(number)
            };
            scene.store.once(step("a"), find, make).unwrap()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(made_by.iter().filter(|it| **it == Once::Made(0)).count(), 1, "{made_by:?}");
    assert_eq!(made_by.iter().filter(|it| **it == Once::Found(0)).count(), 7, "{made_by:?}");
}

#[test]
fn after_a_failure_the_next_waiter_does_the_work() {
    let scene = Scene::new();
    let there = Mutex::new(None);
    let failed = || StoreError::NoImage("x".into());
    let (locked, go_on) = (Barrier::new(2), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            let make = || {
                locked.wait();
                let_others_wait();
                go_on.store(true, Ordering::SeqCst);
                Err(failed())
            };
            scene.store.once(step("a"), || Ok(None::<u8>), make)
        });
        locked.wait();
        let make = || {
            assert!(go_on.load(Ordering::SeqCst), "nothing is made before the lock is free");
            *there.lock().unwrap() = Some(7);
            Ok::<_, StoreError>(7)
        };
        let second = scene.store.once(step("a"), || Ok(*there.lock().unwrap()), make);
        assert!(matches!(second, Ok(Once::Made(7))), "{second:?}");
        assert!(matches!(first.join().unwrap(), Err(StoreError::NoImage(_))));
    });
    let not_made = || -> Result<u8> { panic!("it is there") };
    assert_eq!(scene.store.once(step("a"), || Ok(*there.lock().unwrap()), not_made).unwrap(), Once::Found(7));
    let unreadable = scene.store.once(step("b"), || Err(failed()), not_made);
    assert!(matches!(unreadable, Err(StoreError::NoImage(_))), "what cannot be looked up is not made");
}

#[test]
fn a_wait_ends_when_the_build_is_stopped() {
    let scene = Scene::new();
    let stopped = Arc::new(AtomicBool::new(false));
    let stop = stopped.clone();
    let waiting = Store::open(&scene.place).unwrap().with_stop(move || stop.load(Ordering::SeqCst));
    let not_made = || -> Result<u8> { panic!("another one holds the lock") };
    std::thread::scope(|scope| {
        let held = scene.store.lock(step("a")).unwrap();
        let other = scope.spawn(|| waiting.once(step("a"), || Ok(None), not_made));
        let_others_wait();
        assert!(!other.is_finished());
        stopped.store(true, Ordering::SeqCst);
        assert!(matches!(other.join().unwrap(), Err(StoreError::Canceled)));
        drop(held);
    });
    assert!(matches!(waiting.once(step("a"), || Ok(None), not_made), Err(StoreError::Canceled)), "nothing is begun");
    assert_eq!(waiting.once(step("a"), || Ok(Some(1)), not_made).unwrap(), Once::Found(1));
}

#[test]
fn locks_are_taken_in_their_order() {
    let scene = Scene::new();
    let cache = |n: u8| Lock::Cache(CacheId::of(&[n]), CacheName::of(&[n]));
    let mut caches = [cache(1), cache(2)];
    caches.sort();
    let tree = scene.store.trees().step_tree(&ResultId::of(b"tree"));
    let order = [step("a"), caches[0], caches[1], Lock::Fixup(CacheKey::of(b"f")), Lock::materialize(&tree)];
    let held: Vec<_> = order.iter().map(|lock| scene.store.lock(*lock).unwrap()).collect();
    // Locks may be released in any order.
    held.into_iter().for_each(drop);
    drop(scene.store.lock(order[0]).unwrap());
    for (before, after) in [(1, 0), (2, 1), (4, 3), (0, 0)] {
        let held = scene.store.lock(order[before]).unwrap();
        let taken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check_order(&order[after])));
        assert_eq!(taken.is_err(), cfg!(debug_assertions), "{before} {after}");
        drop(held);
    }
}

#[test]
fn each_lock_has_the_byte_that_other_versions_use() {
    let bytes = |lock: Lock| lock.key();
    let id = |bytes: [u8; 32]| lock_key(&bytes);
    let key = CacheKey::of(b"key");
    for lock in [Lock::Step(key), Lock::Squash(key), Lock::ContextPart(key), Lock::ImageParts(key), Lock::Fixup(key)] {
        assert_eq!(bytes(lock), id(*key.bytes()));
    }
    let diff_id = DiffId::of(b"layer");
    assert_eq!(bytes(Lock::Layer(diff_id)), id(*diff_id.bytes()));
    let name = CacheName::of(b"cache");
    assert_eq!(bytes(Lock::Cache(CacheId::of(b"id"), name)), id(*name.bytes()));
    assert_eq!(bytes(Lock::pull("a linux/amd64")), id(*LockId::of(b"pull a linux/amd64").bytes()));
    let mut hasher = Hasher::new();
    hasher.field("making").field(name.bytes());
    assert_eq!(bytes(Lock::new_cache(&name)), id(*hasher.finish::<LockId>().bytes()));
}
