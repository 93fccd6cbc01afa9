//! Formats that a store may have.

use rbuild_testkit::Scratch;
use serde_json::{Value, json};

use super::*;

/// Opens a store with this `format.json`. Returns the document thereafter, or the message.
fn opened(format: Value) -> std::result::Result<Value, String> {
    let scratch = Scratch::new();
    let path = scratch.join("store");
    drop(Store::open(&path).unwrap());
    let file = path.join("format.json");
    std::fs::write(&file, format.to_string()).unwrap();
    let opened = Store::open(&path).map(drop).map_err(|e| rbuild_remedy::sentence(&e));
    let found = std::fs::read(&file).unwrap();
    opened.map(|()| serde_json::from_slice(&found).unwrap())
}

fn format(version: u32, [compatible, read_only, incompatible]: [&[&str]; 3]) -> Value {
    json!({
        "version": version,
        "compatible": compatible,
        "read_only_compatible": read_only,
        "incompatible": incompatible,
    })
}

#[test]
fn unknown_compatible_entries_survive_an_upgrade() {
    let old = format(1, [&["later"], &[], &[]]);
    let new = format(1, [&["later"], &[], &FEATURES]);
    assert_eq!(opened(old.clone()), Ok(new.clone()));
    let with_field = |mut format: Value| {
        format["note"] = json!({"a": [1, 2]});
        format
    };
    assert_eq!(opened(with_field(old)), Ok(with_field(new)));
}

#[test]
fn stores_that_must_not_be_written_are_refused() {
    let error = opened(format(1, [&[], &["holograms"], &FEATURES])).unwrap_err();
    assert!(error.contains("newer rbuild (version 1, features: holograms)"), "{error}");
    let error = opened(format(2, [&[], &[], &[]])).unwrap_err();
    assert!(error.contains("newer rbuild (version 2)"), "{error}");
}

#[test]
fn a_store_of_another_user_is_refused_to_root() {
    let scratch = Scratch::new();
    let path = scratch.join("store");
    assert!(refuse_store_of_user(&path, 0).is_ok(), "there is no store yet");
    drop(Store::open(&path).unwrap());
    let own = rbuild_linux::credentials::own_ids().uid;
    if own == 0 {
        std::os::unix::fs::chown(path.join("format.json"), Some(1234), None).unwrap();
    }
    let refused = refuse_store_of_user(&path, 0).unwrap_err();
    assert!(matches!(&refused, StoreError::OfUser { path: found, .. } if *found == path), "{refused}");
    assert!(refuse_store_of_user(&path, 1234).is_ok(), "other users have the errors of the kernel");
}

/// A directory that was not created completely has `blobs`.
#[test]
fn a_directory_with_other_files_does_not_become_a_store() {
    for (names, is_accepted) in [
        (&[][..], true),
        (&["lost+found"], true),
        (&["blobs/sha256", "trees"], true),
        (
            &[
                "blobs/sha256",
                "trees",
                "layers",
                "records",
                "results",
                "builds",
                "mounts",
                "tmp",
                "owners.key",
                "other",
            ],
            true,
        ),
        // Stores that were copied without format.json and without empty directories.
        (&["blobs/sha256", "index.json", "oci-layout", "trees", "records"], true),
        (&["blobs/sha256", "index.json", "oci-layout", "owners.key"], true),
        (&["blobs/sha256", "index.json", "oci-layout", "steps.lock"], true),
        (&["blobs/sha256", "logs", "containers"], true),
        (&["blobs/sha256", "trees", "records", "index.lock", "alone.lock", "secrets.key"], true),
        // Names that users give to their directories, too.
        (&["blobs", "trees/oak", "records/2024", "thesis"], false),
        (&["blobs", "trees", "records", "index.json", "oci-layout", "thesis"], false),
        (&["trees", "records", "layers", "results", "builds", "mounts", "tmp", "blobs", "thesis"], false),
        // An OCI layout.
        (&["blobs/sha256", "index.json", "oci-layout"], false),
        (&["blobs", "notes"], false),
        (&["notes"], false),
        (&["trees"], false),
    ] {
        let path = Scratch::new();
        for name in names {
            match *name {
                "oci-layout" | "index.json" | "steps.lock" => std::fs::write(path.join(name), "{}").unwrap(),
                "owners.key" => std::fs::write(path.join(name), [7; 32]).unwrap(),
                dir => std::fs::create_dir_all(path.join(dir)).unwrap(),
            }
        }
        let opened = Store::open(&path).map(drop);
        let is_layout = names.contains(&"oci-layout");
        let is_refused = match &opened {
            Err(StoreError::OtherDirectory { path: refused, .. }) => *refused == *path && !is_layout,
            Err(StoreError::OciLayout(refused)) => *refused == *path && is_layout,
            _ => false,
        };
        assert!(opened.is_ok() == is_accepted && is_refused != is_accepted, "{names:?}: {opened:?}");
        let left = std::fs::read_dir(&path).unwrap().count();
        assert!(is_accepted || left == names.len(), "{names:?} was changed");
    }
}

#[test]
fn errors_of_files_in_the_root_of_the_store_name_them() {
    for name in ["format.json", "index.json", "owners.key", "secrets.key", "steps.lock"] {
        let path = Scratch::new();
        let use_it = || -> Result<()> {
            let store = Store::open(&path)?;
            store.images().list()?;
            keys::key(&store.root, "secrets.key")?;
            store.try_key([0; 8], LockKind::Shared).map(drop)
        };
        use_it().unwrap();
        std::fs::remove_file(path.join(name)).unwrap();
        std::fs::create_dir(path.join(name)).unwrap();
        let text = rbuild_remedy::sentence(&use_it().unwrap_err());
        assert!(text.contains(&format!("{name} in the store `{}`", path.display())), "{text}");
    }
}

#[test]
fn a_store_that_cannot_be_opened_names_the_file_and_has_a_remedy() {
    for (name, problem) in [("lock", "cannot read `lock`"), ("oci-layout", "cannot write to `oci-layout`")] {
        let path = Scratch::new();
        // The store was not created completely.
        for dir in ["blobs", "trees", "records", name] {
            std::fs::create_dir_all(path.join(dir)).unwrap();
        }
        let e = Store::open(&path).map(drop).unwrap_err();
        let want = format!("cannot use the store `{}`: {problem}: is a directory", path.display());
        assert_eq!(rbuild_remedy::sentence(&e), want);
        assert_eq!(e.remedy(), Some(rbuild_remedy::Remedy::Store(rbuild_remedy::StoreRemedy::OtherStore)));
    }
}

/// Formats the error of opening a store, or of a directory of one, that `break_it` has damaged.
fn broken(name: &str, dir: &str, break_it: &dyn Fn(&Path)) -> String {
    let place = Scratch::new();
    drop(Store::open(&place).unwrap());
    break_it(&place);
    let e = Store::open(&place).and_then(|store| store.dir(dir).map(drop)).unwrap_err();
    let row = rbuild_testkit::message_row(name, &e, e.remedy());
    row.replace(&*place.to_string_lossy(), "[store]")
}

#[test]
fn stores_that_cannot_be_used_are_refused_as_recorded() {
    let with_format = |name: &str, text: String| {
        broken(name, ".", &|place| std::fs::write(place.join("format.json"), &text).unwrap())
    };
    let without = |dir: &str| {
        let remove = |place: &Path| std::fs::remove_dir_all(place.join(dir)).unwrap();
        broken(&format!("without {}", dir.replace('/', " ")), dir, &remove)
    };
    let dir_instead = |name: &str| {
        broken(&format!("a directory instead of {name}"), ".", &|place| {
            std::fs::remove_file(place.join(name)).unwrap();
            std::fs::create_dir(place.join(name)).unwrap();
        })
    };
    let formats = [
        with_format("a later version", format(2, [&[], &[], &[]]).to_string()),
        with_format("an unknown feature", format(1, [&[], &["holograms"], &FEATURES]).to_string()),
        with_format("version zero", format(0, [&[], &[], &FEATURES]).to_string()),
        with_format("a format that is not JSON", "{".into()),
    ];
    let files = ["format.json", "lock"].map(dir_instead);
    let dirs = ["blobs/sha256", "trees", "layers", "mounts", "records"].map(without);
    rbuild_testkit::assert_recorded!("unusable-stores", [&formats[..], &files, &dirs].concat().concat());
}
