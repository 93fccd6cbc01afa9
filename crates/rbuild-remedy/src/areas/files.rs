//! Remedies for errors of files, mounts and disks.

use std::borrow::Cow;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The rule of an ignore file that excludes a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExcludingRule {
    /// Path of the ignore file, as shown in messages; empty if the rules are not from a file.
    pub file: PathBuf,
    /// Line of the file, or index of the pattern, counted from 1.
    pub line: usize,
    /// The cleaned pattern.
    pub pattern: String,
}

/// A change of files, or another choice of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileRemedy {
    /// Remove the symbolic link that refers to itself.
    RemoveLinkLoop,
    /// Shorten the name.
    ShortenName,
    /// Rename or remove a file that has the name of a whiteout.
    RenameOrRemove,
    /// Rename a file that would be read as a whiteout, if it is meant as a file.
    RenameWhiteout,
    /// Permit the user an operation on a file.
    Permit {
        /// The operation.
        access: FileAccess,
        /// The file.
        path: PathBuf,
    },
    /// Permit the user to execute a program.
    PermitProgram {
        /// The program.
        program: String,
    },
    /// Check the permissions of a file and of its directories.
    CheckPermissions,
    /// Use a file on a writable file system.
    WritableFileSystem,
    /// Correct the content.
    Correct {
        /// The file or the variable, as messages name it.
        place: String,
    },
    /// End the program that keeps the file locked, or try again later.
    AwaitLock,
    /// Choose another directory.
    OtherDirectory,
    /// Create the directory, or remove the trailing slash.
    CreateDirectory,
    /// Pass a directory, existing or new.
    PassDirectory,
    /// Pass the path of the special file itself, or choose another destination.
    PassSpecialFile,
    /// Choose another destination.
    ChooseDestination,
    /// End the destination with a slash if it is a directory.
    EndWithSlash,
    /// Correct a pattern of an ignore file.
    CorrectPattern,
    /// Remove or narrow the pattern of the ignore file that excludes a file.
    RemovePattern(Box<ExcludingRule>),
    /// Exclude the store from the build context.
    IgnoreStore {
        /// Path in the context.
        path: String,
    },
    /// Use a store outside the build context.
    MoveStore,
    /// Permit the user to read a file of the build context, or exclude it.
    PermitOrIgnore {
        /// The file.
        path: PathBuf,
    },
    /// Copy a file into the root that its link leads out of.
    CopyInto {
        /// The root, as messages name it.
        root: String,
    },
    /// Correct a link, or remove it from the instruction.
    CorrectLink,
    /// Wait until nothing writes to the files.
    AwaitWriters,
    /// Correct a path that does not exist.
    CorrectPath {
        /// The root that the path is relative to.
        root: String,
    },
    /// Remove what is in the way of an output, or use another output directory.
    OtherOutput {
        /// The kind of file that is in the way.
        obstacle: Cow<'static, str>,
    },
}

/// An operation on a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FileAccess {
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Locking.
    Lock,
}

/// A change of mounts, or of what they cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MountRemedy {
    /// Give each mount its own target.
    OwnTarget,
    /// Use another target, or remove the file from the image.
    RemoveFile,
    /// Replace the link in the image.
    ReplaceLink,
    /// Mount the directory of the file instead.
    MountDirectory,
    /// Use another target for a mount.
    OtherTarget,
    /// Mount the volume read-only.
    ReadOnlyVolume,
    /// Mount another directory of a cache, or all of it.
    OtherCacheDirectory,
}

/// Space on a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskRemedy {
    /// Free space on the disk of the store.
    FreeSpace,
    /// Free space on the disk of the store, which is full, or use another disk.
    FreeStore,
    /// Free space on another disk, or use another disk.
    FreeSpaceAt {
        /// A path on the full disk.
        place: PathBuf,
    },
    /// Free space on the disk to which standard output or standard error goes.
    FreeOutput,
}
