//! Containers whose supervisors were killed.

use rbuild_store::{NameChange, Store};

use crate::commands::volumes;
use crate::exit::Failure;
use crate::input::settings::Settings;

/// Removes the containers that their supervisors would have removed, but were killed before, and
/// their anonymous volumes.
pub fn remove_abandoned(settings: &Settings, store: &Store) -> Result<(), Failure> {
    let removed = store.container_changes()?.remove_abandoned();
    without_volumes(settings, store, removed)
}

/// Removes the anonymous volumes of abandoned containers that a change has removed, and returns its
/// result.
pub fn without_volumes<T>(settings: &Settings, store: &Store, change: NameChange<T>) -> Result<T, Failure> {
    change.abandoned.iter().for_each(|run| volumes::remove_anonymous(settings, store, run));
    Ok(change.result?)
}
