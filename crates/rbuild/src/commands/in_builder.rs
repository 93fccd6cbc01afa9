//! Helpers for verbs that do their work in a builder process.

use std::path::Path;

use rbuild_sandbox::{Builder, World};
use rbuild_store::{Store, StoreError};

use crate::exit::code;

/// Returns a world that contains only the store and runs no commands.
pub fn store_only(store: &Store) -> World {
    let (path, owners) = (store.path().to_path_buf(), store.owner_records().clone());
    World { store: path, owners, binds: Vec::new(), carrier: None, commands: false, expendable: Vec::new() }
}

/// Returns the store under the path at which the builder sees it. Trees made through it have owners
/// as the builder's isolation gives them.
pub fn store_in(builder: &Builder, store: &Store) -> Result<Store, StoreError> {
    let store = moved_store(builder, store)?.with_owners(builder.isolation.owner_mode())?;
    Ok(store.taking_devices(builder.is_bare()))
}

/// Returns the store under the path at which the builder sees it, for work that makes no trees.
pub fn moved_store(builder: &Builder, store: &Store) -> Result<Store, StoreError> {
    store.moved(&builder.path(Path::new(rbuild_sandbox::STORE)), builder.isolation.owner_mode())
}

/// Returns the exit code of rbuild for a builder that ended with `code`; `stopped` is true if a
/// signal stopped it.
pub fn exit_code(code: i32, stopped: bool) -> u8 {
    if stopped { code::INTERRUPTED } else { code as u8 }
}
