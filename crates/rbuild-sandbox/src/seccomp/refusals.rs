//! Calls that no command may make, whatever its rights.

use rbuild_linux::process::FilterStep;

use crate::seccomp::bpf::{
    AND, EINVAL, ENOSYS, EPERM, FIRST_ARGUMENT, JUMP_IF_ANY_BIT, JUMP_IF_EQUAL, LOAD, NUMBER, X32, answer, fail, step,
};
use crate::seccomp::calls::{ARCHITECTURES, KEYS, MKNOD, MKNODAT, RENAMEAT2};

/// The bits of a mode that hold the type of file, and the type of a character device.
const FILE_TYPE: u32 = 0o170_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
/// The flag of renameat2(2) that leaves a whiteout, `RENAME_WHITEOUT`.
const LEAVE_WHITEOUT: u32 = 4;

/// The way in which calls about kernel keyrings (keyrings(7)) fail. Keyrings are the user's, not
/// the namespace's: through them, a command would read the keys of the caller's session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// They are not permitted, as in the profile.
    Forbidden,
    /// They do not exist, as on a kernel without keyrings: container runtimes make a keyring if
    /// they can, and such a runtime may run in a command with all capabilities.
    Missing,
}

/// Returns the instructions that refuse calls about keyrings. They expect the call number in the
/// accumulator and leave it there, for other calls.
pub fn no_keys(architecture: usize, keys: Keys) -> Vec<FilterStep> {
    let refusal = answer(fail(if keys == Keys::Forbidden { EPERM } else { ENOSYS }));
    let has_x32 = ARCHITECTURES[architecture] == "x86_64";
    let numbers = KEYS.iter().filter_map(|call| u32::try_from(call[architecture]).ok());
    numbers
        .flat_map(|number| [Some(number), has_x32.then_some(X32 | number)])
        .flatten()
        .flat_map(|number| [step(JUMP_IF_EQUAL, number, 0, 1), refusal])
        .collect()
}

/// Returns the instructions that refuse whiteouts (character devices 0:0), which an overlay refuses
/// and a directory below it takes for a removal. They expect the call number in the accumulator and
/// leave it there, for calls that they do not refuse.
pub fn no_whiteouts(architecture: usize) -> Vec<FilterStep> {
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
