//! The system calls whose answers depend on who somebody pretends to be.

/// A call, whichever way an architecture spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
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
    Control,
    SetLimit,
    ChangeLimit,
}

use Asked::*;

/// The numbers on x86_64, on i386 and on aarch64 (arch/x86/entry/syscalls/syscall_64.tbl and syscall_32.tbl,
/// include/uapi/asm-generic/unistd.h); -1 where there is no such call. Of i386, the calls with ids of 32 bits and sizes of 64: C
/// libraries know no others any more. 32-bit programs of aarch64 see themselves as what they are: root.
const NUMBERS: [(Asked, [i32; 3]); 41] = [
    (SetUid, [105, 213, 146]),
    (SetGid, [106, 214, 144]),
    (SetReUid, [113, 203, 145]),
    (SetReGid, [114, 204, 143]),
    (SetResUid, [117, 208, 147]),
    (SetResGid, [119, 210, 149]),
    (SetFsUid, [122, 215, 151]),
    (SetFsGid, [123, 216, 152]),
    (SetGroups, [116, 206, 159]),
    (GetGroups, [115, 205, 158]),
    (GetUid, [102, 199, 174]),
    (GetEffectiveUid, [107, 201, 175]),
    (GetGid, [104, 200, 176]),
    (GetEffectiveGid, [108, 202, 177]),
    (GetResUid, [118, 209, 148]),
    (GetResGid, [120, 211, 150]),
    (Chown, [92, 212, -1]),
    (LinkChown, [94, 198, -1]),
    (FileChown, [93, 207, 55]),
    (ChownAt, [260, 298, 54]),
    (Stat, [4, 195, -1]),
    (LinkStat, [6, 196, -1]),
    (FileStat, [5, 197, 80]),
    (StatAt, [262, 300, 79]),
    (StatX, [332, 383, 291]),
    (MakeNode, [133, 14, -1]),
    (MakeNodeAt, [259, 297, 33]),
    (MakeDir, [83, 39, -1]),
    (MakeDirAt, [258, 296, 34]),
    (SymLink, [88, 83, -1]),
    (SymLinkAt, [266, 304, 36]),
    (Open, [2, 5, -1]),
    (OpenAt, [257, 295, 56]),
    (OpenAt2, [437, 437, 437]),
    (Create, [85, 8, -1]),
    (Execute, [59, 11, 221]),
    (ExecuteAt, [322, 358, 281]),
    (ChangeRoot, [161, 61, 51]),
    (Control, [157, 172, 167]),
    (SetLimit, [160, 75, 164]),
    (ChangeLimit, [302, 340, 261]),
];

/// `AUDIT_ARCH_I386` (linux/audit.h).
pub const I386: u32 = 0x4000_0003;

/// The columns of this architecture and of its 32-bit sibling.
fn columns() -> (Option<usize>, Option<usize>) {
    match std::env::consts::ARCH {
        "x86_64" => (Some(0), Some(1)),
        "aarch64" => (Some(2), None),
        _ => (None, None),
    }
}

/// The call of that number on an architecture that this machine runs.
pub fn of_number(number: i32, architecture: u32) -> Option<Asked> {
    let (native, sibling) = columns();
    let column = if architecture == I386 { sibling? } else { native? };
    NUMBERS.iter().find(|(_, numbers)| numbers[column] == number).map(|(asked, _)| *asked)
}

/// When a call counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Always,
    /// The argument (from 0) has one of these bits.
    AnyBit(u8, u32),
    /// The lower half of the argument is this.
    Is(u8, u32),
}

/// All numbers of this architecture, and of its 32-bit sibling.
pub fn numbers() -> [Vec<(u32, When)>; 2] {
    let when = |asked: &Asked| match asked {
        Open => When::AnyBit(1, CREATES),
        OpenAt => When::AnyBit(2, CREATES),
        SetLimit => When::Is(0, OUR_LIMIT),
        ChangeLimit => When::Is(1, OUR_LIMIT),
        _ => When::Always,
    };
    let of = |column: Option<usize>| {
        let number = |numbers: &[i32; 3]| u32::try_from(numbers[column?]).ok();
        NUMBERS.iter().filter_map(|(asked, numbers)| Some((number(numbers)?, when(asked)))).collect()
    };
    let (native, sibling) = columns();
    [of(native), of(sibling)]
}

/// `RLIMIT_MSGQUEUE`.
const OUR_LIMIT: u32 = 12;

/// `O_CREAT` and the bit of `O_TMPFILE` that is its own (include/uapi/asm-generic/fcntl.h).
pub const CREATES: u32 = 0o100 | 0o20_000_000;
