use super::*;
use crate::once::tests::{Scene, let_others_wait};

#[test]
fn a_record_that_appears_during_the_wait_is_used() {
    let scene = Scene::new();
    let (key, work) = (CacheKey::of(b"parts"), Workspace::open(&scene.store).unwrap());
    let other = Store::open(&scene.place).unwrap();
    let others_work = Workspace::open(&other).unwrap();
    let fill = |dir: &RootDir| {
        drop(dir.sub("fs")?.create_file("f".as_ref(), 0o644)?);
        Ok::<_, StoreError>(())
    };
    let tree = std::thread::scope(|scope| {
        let held = scene.store.lock(Lock::Squash(key)).unwrap();
        let waiting = scope.spawn(|| {
            let not_made = |_: &RootDir| -> Result<()> { panic!("another one makes it") };
            Session::new(&other, &others_work, &BuildId::of_command("second"), 2)
                .tree_once(Lock::Squash, &key, not_made)
                .unwrap()
        });
        let_others_wait();
        assert!(!waiting.is_finished());
        let id = BuildId::of_command("first");
        let session = Session::new(&scene.store, &work, &id, 1);
        let made = scene.store.trees().new_tree(&work).unwrap();
        fill(&made.dir).unwrap();
        let tree = session.publish(&made.path, &key).unwrap();
        drop(held);
        assert_eq!(waiting.join().unwrap(), Once::Found(tree.clone()));
        tree
    });
    let record = scene.store.records().record(&key).unwrap().unwrap();
    assert_eq!((&record.tree, record.result, record.created), (&tree, ResultId::from(key), 1));
    let second = CacheKey::of(b"other parts");
    let id = BuildId::of_command("first");
    let made = Session::new(&scene.store, &work, &id, 3).tree_once(Lock::Squash, &second, fill).unwrap();
    assert!(matches!(&made, Once::Made(made) if scene.store.trees().tree(made).unwrap().exists("f").unwrap()));
}

#[test]
fn a_failed_fill_publishes_no_tree() {
    let scene = Scene::new();
    let (key, work) = (CacheKey::of(b"fixup"), Workspace::open(&scene.store).unwrap());
    let id = BuildId::of_command("build");
    let session = Session::new(&scene.store, &work, &id, 0);
    let failed = session.tree_once(Lock::Fixup, &key, |_| Err(StoreError::Canceled));
    assert!(failed.is_err() && scene.store.records().record(&key).unwrap().is_none());
    assert_eq!(scene.store.dir("trees").unwrap().entries().unwrap(), []);
    assert!(matches!(session.tree_once(Lock::Fixup, &key, |_| Ok::<_, StoreError>(())), Ok(Once::Made(_))));
}
