//! Supervisor of a container in which only one ID is mapped. It answers the system calls about
//! identity and ownership, so that processes appear to run as any user and files to belong to any
//! owner. File owners are stored as records ([`rbuild_linux::Recorded`]). Process credentials are
//! kept in a table here; a process's index in that table is encoded in a resource limit that no
//! program uses (the size of its message queues), because the kernel copies limits to children
//! atomically on fork and preserves them across exec.
//!
//! This provides accurate results, not a security boundary: to the kernel, all processes of the
//! container are its root.

mod caller;
mod caller_files;
mod caller_roots;
mod calls;
mod credentials;
mod decode;
mod file_ops;
mod pending_exec;
mod privileges;
mod supervisor;

pub(crate) use caller::SharedProc;
pub(crate) use calls::{InterceptCondition, numbers};
pub(crate) use credentials::Credentials;
pub(crate) use supervisor::{SupervisedContainer, Supervisor};
