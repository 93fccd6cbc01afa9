//! System calls denied to every command, and those denied only where owners are emulated.

use rbuild_linux::seccomp::FilterStep;

use crate::seccomp::bpf::{
    AND, EINVAL, ENOSYS, EPERM, FIRST_ARGUMENT, JUMP_IF_ANY_BIT, JUMP_IF_AT_LEAST, JUMP_IF_EQUAL, LOAD, NUMBER, X32,
    answer, fail, step,
};
use crate::seccomp::calls::{ARCHITECTURES, ATTRIBUTES_AT, IO_URING, KEYS, MKNOD, MKNODAT, PRCTL, RENAMEAT2};

/// The bits of a mode that hold the type of file, and the type of a character device.
const FILE_TYPE: u32 = 0o170_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
/// The flag of renameat2(2) that leaves a whiteout, `RENAME_WHITEOUT`.
const LEAVE_WHITEOUT: u32 = 4;

/// The way in which calls about kernel keyrings (keyrings(7)) fail. Keyrings are the user's, not
/// the namespace's: through them, a command would read the keys of the caller's session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyringRefusal {
    /// Not permitted, as in the profile.
    Forbidden,
    /// Missing, as on a kernel without keyrings: container runtimes make a keyring if
    /// they can, and such a runtime may run in a command with all capabilities.
    Missing,
}

/// Returns the instructions that refuse calls about keyrings. They expect the call number in the
/// accumulator and leave it there, for other calls.
pub fn refuse_keyring_calls(architecture: usize, keys: KeyringRefusal) -> Vec<FilterStep> {
    let refusal = answer(fail(if keys == KeyringRefusal::Forbidden { EPERM } else { ENOSYS }));
    refusing(KEYS.iter().map(|call| call[architecture]), refusal)
}

fn refusing(numbers: impl IntoIterator<Item = i32>, refusal: FilterStep) -> Vec<FilterStep> {
    let numbers = numbers.into_iter().filter_map(|number| u32::try_from(number).ok());
    numbers.flat_map(|number| [step(JUMP_IF_EQUAL, number, 0, 1), refusal]).collect()
}

/// Returns the instructions that refuse calls that a filter cannot examine, with the error of a
/// kernel that lacks them: the x32 variants of calls, and io_uring, whose requests are in memory
/// and may be calls that are refused or answered here. They expect the call number in the
/// accumulator and leave it there, for other calls.
pub fn refuse_bypasses(architecture: usize) -> Vec<FilterStep> {
    let missing = answer(fail(ENOSYS));
    let mut steps = refusing(IO_URING, missing);
    if ARCHITECTURES[architecture] == "x86_64" {
        steps.extend([step(JUMP_IF_AT_LEAST, X32, 0, 1), missing]);
    }
    steps
}

/// The option of prctl(2) that changes what /proc shows of a process's memory, `PR_SET_MM`.
const SET_MEMORY: u32 = 35;

/// Returns the instructions that protect the state that the supervisor of emulated owners relies
/// on. They refuse recent calls on attributes, with the error of a kernel that lacks them, so that
/// programs use the older calls; and changes of the auxiliary vector, which proves that a program
/// was executed. They expect the call number in the accumulator and leave it there, for other
/// calls.
pub fn refuse_forgeries(architecture: usize) -> Vec<FilterStep> {
    let mut steps = refusing(ATTRIBUTES_AT, answer(fail(ENOSYS)));
    if let Ok(number) = u32::try_from(PRCTL[architecture]) {
        steps.extend([
            step(JUMP_IF_EQUAL, number, 0, 4),
            step(LOAD, FIRST_ARGUMENT, 0, 0),
            step(JUMP_IF_EQUAL, SET_MEMORY, 0, 1),
            answer(fail(EPERM)),
            step(LOAD, NUMBER, 0, 0),
        ]);
    }
    steps
}

/// Returns the instructions that refuse to create whiteouts (character devices 0:0): an overlay
/// refuses them, and a layer that contains one deletes a file of the layers below. They expect the
/// call number in the accumulator and leave it there, for calls that they do not refuse.
pub fn refuse_whiteouts(architecture: usize) -> Vec<FilterStep> {
    let argument = |i: u32| step(LOAD, FIRST_ARGUMENT + 8 * i, 0, 0);
    let mut steps = Vec::new();
    for (call, mode) in [(MKNOD, 1), (MKNODAT, 2)] {
        if let Ok(number) = u32::try_from(call[architecture]) {
            steps.extend([
                step(JUMP_IF_EQUAL, number, 0, 7),
                argument(mode),
                step(AND, FILE_TYPE, 0, 0),
                step(JUMP_IF_EQUAL, CHARACTER_DEVICE, 0, 3),
                argument(mode + 1),
                step(JUMP_IF_EQUAL, 0, 0, 1),
                answer(fail(EPERM)),
                step(LOAD, NUMBER, 0, 0),
            ]);
        }
    }
    if let Ok(number) = u32::try_from(RENAMEAT2[architecture]) {
        steps.extend([
            step(JUMP_IF_EQUAL, number, 0, 4),
            argument(4),
            step(JUMP_IF_ANY_BIT, LEAVE_WHITEOUT, 0, 1),
            answer(fail(EINVAL)),
            step(LOAD, NUMBER, 0, 0),
        ]);
    }
    steps
}
