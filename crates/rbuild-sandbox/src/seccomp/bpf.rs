//! Instructions of filter programs (bpf(4), seccomp(2)).

use rbuild_linux::seccomp::FilterStep;

// Classic BPF (linux/bpf_common.h): class, size and mode, or class, operation and operand.
pub const LOAD: u16 = 0x20;
pub const JUMP: u16 = 0x05;
pub const JUMP_IF_EQUAL: u16 = 0x15;
pub const JUMP_IF_GREATER: u16 = 0x25;
pub const JUMP_IF_AT_LEAST: u16 = 0x35;
pub const JUMP_IF_ANY_BIT: u16 = 0x45;
pub const RETURN: u16 = 0x06;
pub const AND: u16 = 0x54;

// Offsets in struct seccomp_data, little-endian.
pub const NUMBER: u32 = 0;
pub const ARCHITECTURE: u32 = 4;
pub const FIRST_ARGUMENT: u32 = 16;

pub const ALLOW: u32 = 0x7fff_0000;
/// Returns the result of a filter that fails the call with `errno`.
pub const fn fail(errno: u32) -> u32 {
    0x0005_0000 | errno
}
pub const EPERM: u32 = 1;
pub const EINVAL: u32 = 22;
pub const ENOSYS: u32 = 38;

/// First call number of the x32 ABI.
pub const X32: u32 = 0x4000_0000;

/// Returns an instruction.
pub fn step(code: u16, k: u32, yes: u8, no: u8) -> FilterStep {
    FilterStep { code, yes, no, k }
}

/// Returns an instruction that ends the filter with the result `value`.
pub fn answer(value: u32) -> FilterStep {
    step(RETURN, value, 0, 0)
}
