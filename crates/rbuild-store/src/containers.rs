//! Named containers: an image, settings and, once they are started, a process and output.

mod changes;
mod documents;
mod health;
mod output;
mod restarts;
mod runs;
mod small_file;

pub use changes::{ContainerChanges, NameChange, StartAttempt};
pub use documents::{Container, Containers, NewContainer};
pub use health::{Health, HealthCheck, HealthFile, HealthResult, HealthStatus, MAX_HEALTH_OUTPUT};
pub use output::{OutputFrame, OutputReader, OutputStream, OutputWriter};
pub use restarts::{EndRequest, LastEnd, PendingRequest, RestartFiles, RestartPolicy};
pub use runs::{ContainerState, DnsSettings, Ended, RunLock, RunSettings, RunWatch, SecuritySettings, Started};

#[cfg(test)]
mod tests;
