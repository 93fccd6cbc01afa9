//! The system calls whose results depend on apparent identities and recorded owners.

/// A call, independent of its variants on different architectures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmulatedCall {
    SetUid,
    SetGid,
    SetReUid,
    SetReGid,
    SetResUid,
    SetResGid,
    SetFsUid,
    SetFsGid,
    SetGroups,
    GetGroups,
    GetUid,
    GetEffectiveUid,
    GetGid,
    GetEffectiveGid,
    GetResUid,
    GetResGid,
    Chown,
    LinkChown,
    FileChown,
    ChownAt,
    Stat,
    LinkStat,
    FileStat,
    StatAt,
    StatX,
    MakeNode,
    MakeNodeAt,
    MakeDir,
    MakeDirAt,
    SymLink,
    SymLinkAt,
    Open,
    OpenAt,
    OpenAt2,
    Create,
    Execute,
    ExecuteAt,
    ChangeRoot,
    GetCapabilities,
    SetCapabilities,
    ChangeMode,
    FileChangeMode,
    ChangeModeAt,
    ChangeModeAt2,
    Control,
    SetLimit,
    ChangeLimit,
    ListAttributes,
    LinkListAttributes,
    FileListAttributes,
    SetAttribute,
    LinkSetAttribute,
    FileSetAttribute,
    RemoveAttribute,
    LinkRemoveAttribute,
    FileRemoveAttribute,
    SetSeconds,
    SetMicroseconds,
    SetMicrosecondsAt,
    SetNanosecondsAt,
    SetWideNanosecondsAt,
}

use EmulatedCall::*;

/// System call numbers on x86_64, i386, aarch64 and arm (arch/x86/entry/syscalls/syscall_64.tbl and
/// syscall_32.tbl, include/uapi/asm-generic/unistd.h, arch/arm/tools/syscall.tbl); -1 if the
/// architecture has no such call. For i386, the calls with 32-bit IDs and 64-bit sizes; C libraries
/// no longer use others. 32-bit programs on aarch64 see themselves as root, which they are, but
/// like all others are denied access to owner records.
const NUMBERS: [(EmulatedCall, [i32; 4]); 61] = [
    (SetUid, [105, 213, 146, -1]),
    (SetGid, [106, 214, 144, -1]),
    (SetReUid, [113, 203, 145, -1]),
    (SetReGid, [114, 204, 143, -1]),
    (SetResUid, [117, 208, 147, -1]),
    (SetResGid, [119, 210, 149, -1]),
    (SetFsUid, [122, 215, 151, -1]),
    (SetFsGid, [123, 216, 152, -1]),
    (SetGroups, [116, 206, 159, -1]),
    (GetGroups, [115, 205, 158, -1]),
    (GetUid, [102, 199, 174, -1]),
    (GetEffectiveUid, [107, 201, 175, -1]),
    (GetGid, [104, 200, 176, -1]),
    (GetEffectiveGid, [108, 202, 177, -1]),
    (GetResUid, [118, 209, 148, -1]),
    (GetResGid, [120, 211, 150, -1]),
    (Chown, [92, 212, -1, -1]),
    (LinkChown, [94, 198, -1, -1]),
    (FileChown, [93, 207, 55, -1]),
    (ChownAt, [260, 298, 54, -1]),
    (Stat, [4, 195, -1, -1]),
    (LinkStat, [6, 196, -1, -1]),
    (FileStat, [5, 197, 80, -1]),
    (StatAt, [262, 300, 79, -1]),
    (StatX, [332, 383, 291, -1]),
    (MakeNode, [133, 14, -1, -1]),
    (MakeNodeAt, [259, 297, 33, -1]),
    (MakeDir, [83, 39, -1, -1]),
    (MakeDirAt, [258, 296, 34, -1]),
    (SymLink, [88, 83, -1, -1]),
    (SymLinkAt, [266, 304, 36, -1]),
    (Open, [2, 5, -1, -1]),
    (OpenAt, [257, 295, 56, -1]),
    (OpenAt2, [437, 437, 437, -1]),
    (Create, [85, 8, -1, -1]),
    (Execute, [59, 11, 221, -1]),
    (ExecuteAt, [322, 358, 281, -1]),
    (ChangeRoot, [161, 61, 51, -1]),
    (GetCapabilities, [125, 184, 90, -1]),
    (SetCapabilities, [126, 185, 91, 185]),
    (ChangeMode, [90, 15, -1, -1]),
    (FileChangeMode, [91, 94, 52, -1]),
    (ChangeModeAt, [268, 306, 53, -1]),
    (ChangeModeAt2, [452, 452, 452, -1]),
    (Control, [157, 172, 167, 172]),
    (SetLimit, [160, 75, 164, -1]),
    (ChangeLimit, [302, 340, 261, -1]),
    (ListAttributes, [194, 232, 11, 232]),
    (LinkListAttributes, [195, 233, 12, 233]),
    (FileListAttributes, [196, 234, 13, 234]),
    (SetAttribute, [188, 226, 5, -1]),
    (LinkSetAttribute, [189, 227, 6, -1]),
    (FileSetAttribute, [190, 228, 7, -1]),
    (RemoveAttribute, [197, 235, 14, -1]),
    (LinkRemoveAttribute, [198, 236, 15, -1]),
    (FileRemoveAttribute, [199, 237, 16, -1]),
    (SetSeconds, [132, 30, -1, -1]),
    (SetMicroseconds, [235, 271, -1, 269]),
    (SetMicrosecondsAt, [261, 299, -1, 326]),
    (SetNanosecondsAt, [280, 320, 88, 348]),
    (SetWideNanosecondsAt, [-1, 412, -1, 412]),
];

/// `AUDIT_ARCH_I386` (linux/audit.h).
pub const I386: u32 = 0x4000_0003;
/// `AUDIT_ARCH_ARM`.
const ARM: u32 = 0x4000_0028;

/// Returns the table columns of this architecture and of its 32-bit sibling.
fn columns() -> (Option<usize>, Option<usize>) {
    match std::env::consts::ARCH {
        "x86_64" => (Some(0), Some(1)),
        "aarch64" => (Some(2), Some(3)),
        _ => (None, None),
    }
}

/// Returns the call with that number on an architecture that this machine runs.
pub fn of_number(number: i32, architecture: u32) -> Option<EmulatedCall> {
    let (native, sibling) = columns();
    let column = if is_of_sibling(architecture) { sibling? } else { native? };
    NUMBERS.iter().find(|(_, numbers)| numbers[column] == number).map(|(asked, _)| *asked)
}

/// Returns true if an architecture is the 32-bit sibling of another.
pub fn is_of_sibling(architecture: u32) -> bool {
    matches!(architecture, I386 | ARM)
}

/// The condition under which a call is sent to the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterceptCondition {
    Always,
    /// The argument (counted from 0) has at least one of these bits.
    AnyBit(u8, u32),
    /// The lower 32 bits of the argument have one of these values.
    OneOf(u8, &'static [u32]),
}

/// Returns the numbers of all calls on this architecture and on its 32-bit sibling.
pub fn numbers() -> [Vec<(u32, InterceptCondition)>; 2] {
    let when = |asked: &EmulatedCall| match asked {
        Open => InterceptCondition::AnyBit(1, CREATES),
        OpenAt => InterceptCondition::AnyBit(2, CREATES),
        Control => InterceptCondition::OneOf(0, &[KEEP_CAPABILITIES, DROP_FROM_BOUND, SECURE_BITS]),
        SetLimit => InterceptCondition::OneOf(0, &[OUR_LIMIT]),
        ChangeLimit => InterceptCondition::OneOf(1, &[OUR_LIMIT]),
        _ => InterceptCondition::Always,
    };
    let of = |column: Option<usize>| {
        let number = |numbers: &[i32; 4]| u32::try_from(numbers[column?]).ok();
        NUMBERS.iter().filter_map(|(asked, numbers)| Some((number(numbers)?, when(asked)))).collect()
    };
    let (native, sibling) = columns();
    [of(native), of(sibling)]
}

/// `PR_SET_KEEPCAPS`, `PR_CAPBSET_DROP` and `PR_SET_SECUREBITS` (prctl(2)).
pub const KEEP_CAPABILITIES: u32 = 8;
pub const DROP_FROM_BOUND: u32 = 24;
pub const SECURE_BITS: u32 = 28;

/// `RLIMIT_MSGQUEUE`.
const OUR_LIMIT: u32 = 12;

/// `O_CREAT`, and the bit that distinguishes `O_TMPFILE` (include/uapi/asm-generic/fcntl.h).
pub const CREATES: u32 = 0o100 | 0o20_000_000;
