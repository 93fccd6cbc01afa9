//! Helpers for verbs that do their work in a builder process.

use std::io::{self, Read};
use std::path::Path;

use rbuild_remedy::{MachineRemedy, Remedy};
use rbuild_sandbox::{Builder, BuilderConfig, GRACE};
use rbuild_store::{Store, StoreError};
use serde::de::DeserializeOwned;

use crate::exit::{Failure, interrupted};

/// Returns the configuration of a builder that contains only the store and runs no commands.
pub fn store_config(store: &Store) -> BuilderConfig {
    let (path, owners) = (store.path().to_path_buf(), store.owner_records().clone());
    let (binds, ports, expendable, kept) = Default::default();
    BuilderConfig {
        store: path,
        owners,
        binds,
        carrier: None,
        ports,
        commands: false,
        grace: GRACE,
        forwards_hangup: false,
        expendable,
        kept,
    }
}

/// Returns the store at its path in the builder. Trees that are made through it have owners of the
/// kind that the builder's isolation mode uses.
pub fn store_in(builder: &Builder, store: &Store) -> Result<Store, StoreError> {
    let store = store_in_builder(builder, store)?.with_owners(builder.isolation.owner_mode())?;
    Ok(store.with_device_nodes(builder.is_bare()))
}

/// Returns the store at its path in the builder, for work that makes no trees.
pub fn store_in_builder(builder: &Builder, store: &Store) -> Result<Store, StoreError> {
    store.at_path(&builder.path(Path::new(rbuild_sandbox::STORE)), builder.isolation.owner_mode())
}

/// Returns the exit code of rbuild for a builder that ended with `code`; `stopped` is true if a
/// signal stopped it.
pub fn exit_code(code: i32, stopped: bool) -> u8 {
    if stopped { interrupted() } else { code as u8 }
}

/// Reads the JSON document that a builder wrote to a pipe before it ended.
pub fn read_answer<T: DeserializeOwned>(mut answer: impl Read) -> Result<T, Failure> {
    let mut text = Vec::new();
    answer.read_to_end(&mut text).map_err(unread)?;
    serde_json::from_slice(&text).map_err(|_| Failure::new("the builder process ended without an answer"))
}

/// Converts an error of the pipe from the builder.
pub fn unread(e: io::Error) -> Failure {
    Failure::caused("cannot read the builder's answer", &e)
}

/// Returns the failure for a builder that was killed by a signal.
pub fn killed(signal: i32) -> Failure {
    Failure::new(format!("the builder process was killed by signal {signal}"))
        .help(Remedy::Machine(MachineRemedy::CheckMemory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_the_builder_are_as_recorded() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::from_raw_os_error(5))
            }
        }
        let failures = [read_answer::<u8>(Broken).unwrap_err(), read_answer::<u8>(&b"["[..]).unwrap_err(), killed(9)];
        rbuild_testkit::assert_recorded!("builder", failures.map(|failure| failure.text()).concat());
        assert_eq!(read_answer::<u8>(&b"7"[..]).ok(), Some(7));
    }
}
