//! Tests of the changes of containers, and their helpers.

use rbuild_linux::ProcessStamp;
use rbuild_testkit::Scratch;

use super::*;
use crate::durability::Durability;
use crate::error::StoreError;
use crate::ids::ContainerId;
use crate::store::Store;

/// The settings that older versions wrote.
pub(super) fn settings() -> RunSettings {
    let text = r#"{"ports": [], "exposed": [], "terminal": false, "remove": false, "stop_signal": 15,
        "stop_timeout": 10, "labels": [], "env": [], "user": "", "cwd": "", "hostname": "", "network": ""}"#;
    serde_json::from_str(text).unwrap()
}

fn new(name: &str) -> NewContainer<'_> {
    static IMAGE: std::sync::OnceLock<rbuild_image::ManifestDigest> = std::sync::OnceLock::new();
    let image = IMAGE.get_or_init(|| rbuild_image::ManifestDigest::of(b"{}"));
    let created = rbuild_linux::Timestamp { sec: 1, nsec: 0 };
    let durability = Durability::Crash;
    NewContainer { name: Some(name), image, image_name: "x", created, command: &[], salt: name, durability }
}

pub(super) fn create_running(store: &Store, name: &str, settings: &RunSettings) -> (ContainerId, RunLock) {
    let new = new(name);
    (new.id(), changes(store).create_running(&new, settings).result.unwrap())
}

pub(super) fn started() -> Started {
    Started::new(ProcessStamp { pid: 1, start: 2, boot: "3".into() }, "userns", 4).restartable()
}

fn changes(store: &Store) -> ContainerChanges<'_> {
    store.container_changes().unwrap()
}

fn end() -> Ended {
    Ended { code: 0, error: None, memory_exceeded: false, at: 5 }
}

/// Names of the containers of a store, in order.
fn names(store: &Store) -> Vec<String> {
    let mut names: Vec<String> = store.containers().list().unwrap().into_iter().map(|c| c.name).collect();
    names.sort();
    names
}

#[test]
fn a_container_gets_a_name_that_no_other_has() {
    let place = Scratch::new();
    let store = Store::open(&place).unwrap();
    let one = changes(&store).create(&new("one"), &settings()).result.unwrap().id;
    changes(&store).create(&new("two"), &settings()).result.unwrap();
    assert!(matches!(changes(&store).rename(&one, "two").result, Err(StoreError::NameTaken(_))));
    let rename = |name: &str| changes(&store).rename(&one, name).result.unwrap();
    assert!(rename("three") && rename("three"));
    assert_eq!(names(&store), ["three", "two"]);
    changes(&store).remove(&one).unwrap();
    assert!(!rename("four"));
}

#[test]
fn a_pause_is_that_of_one_start() {
    let place = Scratch::new();
    let store = Store::open(&place).unwrap();
    let (id, _lock) = create_running(&store, "a", &settings());
    let (containers, started) = (store.containers(), started());
    assert!(!containers.is_paused(&id, &started));
    containers.record_pause(&id, Some(&started)).unwrap();
    assert!(containers.is_paused(&id, &started));
    assert!(!containers.is_paused(&id, &Started { at: 9, ..started.clone() }));
    containers.record_pause(&id, None).unwrap();
    assert!(!containers.is_paused(&id, &started));
}

#[test]
fn a_container_is_started_or_removed_but_not_both() {
    let place = Scratch::new();
    let store = Store::open(&place).unwrap();
    let made = changes(&store).create(&new("made"), &settings()).result.unwrap().id;
    let state = || store.containers().state(&made).unwrap();
    assert!(matches!(changes(&store).create(&new("made"), &settings()).result, Err(StoreError::NameTaken(_))));
    let start = || changes(&store).start(&made).unwrap();
    let StartAttempt::Begun(lock) = start() else { panic!("it is only created") };
    // A command that has looked at the state before the start removes nothing.
    assert_eq!(changes(&store).remove(&made).unwrap(), None);
    assert!(matches!(start(), StartAttempt::Running));
    changes(&store).revert_start(&made, &lock).unwrap();
    drop(lock);
    assert_eq!(state(), ContainerState::Created);
    let StartAttempt::Begun(lock) = start() else { panic!("the start was reverted") };
    store.containers().record_start(&made, &started()).unwrap();
    assert!(matches!(start(), StartAttempt::Running));
    let usage = || {
        let all = store.disk_usage().by_kind().unwrap();
        all.into_iter().find(|(kind, _)| *kind == "Containers").map(|(_, usage)| usage).unwrap()
    };
    std::fs::write(store.containers().file_of(&made, "output"), [0; 9000]).unwrap();
    let used = usage();
    assert!((used.count, used.active, used.reclaimable) == (1, 1, 0) && used.bytes >= 9000, "{used:?}");
    lock.record_end(&end()).unwrap();
    drop(lock);
    assert_eq!(usage(), crate::Usage { active: 0, reclaimable: used.bytes, ..used });
    assert!(matches!(start(), StartAttempt::Ended));
    assert!(changes(&store).remove(&made).unwrap().is_some_and(|bytes| bytes >= 9000));
    assert!(matches!(start(), StartAttempt::Missing));
    // Another process has removed it before.
    assert_eq!(changes(&store).remove(&made).unwrap(), Some(0));
    assert_eq!(std::fs::read_dir(place.join("runs")).unwrap().count(), 0);
}

#[test]
fn a_container_whose_supervisor_was_killed_stays_unless_it_was_to_be_removed() {
    let removed = RunSettings { remove: true, ..settings() };
    // The settings, and the points at which the supervisor is killed: before the command is
    // started, while it runs, and after its end.
    for (created_by_start, settings, killed_in_start, killed, ended) in [
        (true, settings(), "gone", "dead", "exited"),
        (true, removed.clone(), "gone", "gone", "gone"),
        (false, settings(), "created", "dead", "exited"),
        (false, removed, "created", "gone", "gone"),
    ] {
        for (point, expected) in [killed_in_start, killed, ended].into_iter().enumerate() {
            let place = Scratch::new();
            let store = Store::open(&place).unwrap();
            let (id, lock) = if created_by_start {
                create_running(&store, "it", &settings)
            } else {
                let id = changes(&store).create(&new("it"), &settings).result.unwrap().id;
                let StartAttempt::Begun(lock) = changes(&store).start(&id).unwrap() else { panic!("it is created") };
                (id, lock)
            };
            if point > 0 {
                store.containers().record_start(&id, &started()).unwrap();
            }
            if point > 1 {
                lock.record_end(&end()).unwrap();
            }
            // It still runs.
            changes(&store).remove_abandoned().result.unwrap();
            assert_eq!(names(&store), ["it"]);
            drop(lock);
            changes(&store).remove_abandoned().result.unwrap();
            let found = match store.containers().state(&id).unwrap() {
                _ if names(&store).is_empty() => "gone",
                ContainerState::Created => "created",
                ContainerState::Dead => "dead",
                ContainerState::Exited(_) => "exited",
                other => panic!("{other:?}"),
            };
            assert_eq!(found, expected, "by start: {created_by_start}, killed at {point}: {settings:?}");
            let is_startable = matches!(changes(&store).start(&id).unwrap(), StartAttempt::Begun(_));
            assert_eq!(is_startable, expected == "created");
        }
    }
}

#[test]
fn the_name_of_an_abandoned_container_is_free() {
    let place = Scratch::new();
    let store = Store::open(&place).unwrap();
    let (first, lock) = create_running(&store, "it", &settings());
    drop(lock);
    let again = NewContainer { salt: "another", ..new("it") };
    let made = changes(&store).create(&again, &settings());
    assert!(made.result.is_ok());
    assert_eq!(made.abandoned, [settings()]);
    assert_eq!((names(&store).len(), store.containers().document(&first).unwrap()), (1, None));
}

/// Their volumes are removed by the caller, which must know them even then.
#[test]
fn a_change_that_fails_reports_the_abandoned_containers_that_it_has_removed() {
    type Change = fn(&Store, &ContainerId) -> (bool, Vec<RunSettings>);
    fn of<T>(change: NameChange<T>) -> (bool, Vec<RunSettings>) {
        (matches!(change.result, Err(StoreError::NameTaken(_))), change.abandoned)
    }
    let changes_of_names: [Change; 3] = [
        |store, _| of(changes(store).create(&NewContainer { salt: "another", ..new("taken") }, &settings())),
        |store, _| of(changes(store).create_running(&NewContainer { salt: "another", ..new("taken") }, &settings())),
        |store, other| of(changes(store).rename(other, "taken")),
    ];
    for change in changes_of_names {
        let place = Scratch::new();
        let store = Store::open(&place).unwrap();
        changes(&store).create(&new("taken"), &settings()).result.unwrap();
        let other = changes(&store).create(&new("other"), &settings()).result.unwrap().id;
        drop(create_running(&store, "killed", &settings()));
        assert_eq!(change(&store, &other), (true, vec![settings()]));
        assert_eq!(names(&store), ["other", "taken"]);
    }
}
