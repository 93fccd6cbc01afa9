//! Containers whose supervisors were killed.

use rbuild_store::Store;

use crate::commands::volumes;
use crate::exit::Failure;
use crate::input::settings::Settings;

/// Removes the containers that their supervisors would have removed, but were killed before, and
/// their anonymous volumes.
pub fn remove_abandoned(settings: &Settings, store: &Store) -> Result<(), Failure> {
    let removed = store.container_changes()?.remove_abandoned()?;
    removed.iter().for_each(|run| volumes::remove_anonymous(settings, store, run));
    Ok(())
}
