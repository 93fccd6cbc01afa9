//! Safe wrappers around Linux system calls.
//!
//! Every path inside a root file system is resolved by [`RootDir`] and by nothing else; every mount
//! is a file descriptor before it is attached; every error has the operation, its object and the
//! errno. This crate has no notion of images, layers or builds, and prints nothing.
//!
//! It is the only crate of the workspace that may contain `unsafe`, which is confined to
//! [`process`], [`seccomp`] and `syscalls`.

#![warn(missing_docs)]

mod atomic_file;
pub mod clock;
mod container_processes;
mod control_group;
mod copy;
mod copy_entry;
pub mod credentials;
pub mod descendants;
mod destination;
mod echo;
mod error;
pub mod fd_passing;
mod file_stamp;
mod growing_file;
mod idmap;
mod init;
mod limited_output;
mod lock;
mod meta;
mod mount;
pub mod namespaces;
pub mod parallel;
mod pinned_entry;
pub mod process;
mod process_stamp;
mod program;
mod random;
mod recorded_owners;
pub mod resource_limits;
mod rootdir;
pub mod seccomp;
pub mod signal_forwarding;
mod signal_names;
mod stop_signals;
mod syscalls;
pub mod terminal;
pub mod umask;
mod withheld;

pub use container_processes::{ContainerProcess, container_processes, continue_processes, stop_processes};
pub use control_group::{ControlGroup, GroupProblem, join_group_of, memory_of_group};
pub use copy::{copy_contents, copy_file, copy_file_while, set_file_mode_and_time, set_file_owner, set_file_time};
pub use copy_entry::{EntryCopy, SocketCopies, copy_entry};
pub use destination::{Destination, DestinationError, Directory};
pub use echo::HiddenInput;
pub use error::{
    Error, KernelProblem, Object, Result, UnmappedId, carried, described, into_carried, is_disk_full, quoted,
    remedy_of, shown_path,
};
pub use file_stamp::FileStamp;
pub use growing_file::read_up_to;
pub use idmap::{
    IdMaps, IdRange, SubIds, USUAL_COUNT, enter_nested_user_namespace, free_range, held_ranges, mapped_without_holes,
    subordinate_ranges, unmapped,
};
pub use init::continue_below_init;
pub use limited_output::{LimitedOutput, limited_output};
pub use lock::{Conflict, KeyLock, LockHolder, LockKind, lock_holders};
pub use meta::{FileKind, Inode, Stat, Timestamp, UidGid, Xattrs, file_stat, file_xattr, file_xattrs, set_file_xattr};
pub use mount::{
    Forbidden, MOUNT_POINTS, MiniRoot, attach_mount, bind_clone, detached_dir, detached_overlay, enter_root,
    mount_tmpfs, new_filesystem, new_procfs, private_mount_namespace, private_namespaces,
};
pub use pinned_entry::PinnedEntry;
pub use withheld::{accept_withheld, drop_withheld, execute_withholding, withheld};

pub use atomic_file::{
    AtomicFile, is_unpublished, remove_tree, sync_filesystem, temporary_name, write_atomic, write_durable,
};
pub use nix::sys::signal::Signal;
pub use process_stamp::ProcessStamp;
pub use program::sealed_program;
pub use random::random_bytes;
pub use recorded_owners::{OwnerKey, OwnerMode, OwnerRecords, Recorded, latest_modification, record_in_times};
pub use rootdir::{DirEntry, DirStack, MAX_DEPTH, MAX_SYMLINKS, RootDir, walk};
pub use signal_names::{signal_name, signal_number};
pub use stop_signals::{AwaitedLine, StopProtection, StopRequest, StopSignals, end_request, request_end};
pub use syscalls::{
    has_free_descriptor, join_new_session_keyring, make_read_only, queue_limit, read_memory, set_queue_limit,
    share_directories, write_memory,
};

pub use rustix::fs::{Gid, Uid};
