//! Formats that a store may have.

use serde_json::{Value, json};

use super::*;

/// Opens a store with this `format.json`. Returns the document thereafter, or the message.
fn opened(name: &str, format: Value) -> std::result::Result<Value, String> {
    let path = std::env::temp_dir().join(format!("rbuild-format-{name}-{}", std::process::id()));
    drop(Store::open(&path).unwrap());
    let file = path.join("format.json");
    std::fs::write(&file, format.to_string()).unwrap();
    let opened = Store::open(&path).map(drop).map_err(|e| e.to_string());
    let found = std::fs::read(&file).unwrap();
    std::fs::remove_dir_all(&path).unwrap();
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
    assert_eq!(opened("kept", old), Ok(format(1, [&["later"], &[], &FEATURES])));
}

#[test]
fn stores_that_must_not_be_written_are_refused() {
    let error = opened("read-only", format(1, [&[], &["holograms"], &FEATURES])).unwrap_err();
    assert!(error.contains("newer rbuild (version 1, features: holograms)"), "{error}");
    let error = opened("newer", format(2, [&[], &[], &[]])).unwrap_err();
    assert!(error.contains("newer rbuild (version 2)"), "{error}");
}

#[test]
fn version_zero_is_damage() {
    let error = opened("zero", format(0, [&[], &[], &FEATURES])).unwrap_err();
    assert!(error.contains("format.json is damaged: there is no version 0"), "{error}");
}
