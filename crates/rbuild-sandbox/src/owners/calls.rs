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

/// The numbers on x86_64 and on aarch64 (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h); -1 where
/// there is no such call. 32-bit programs see themselves as what they are: root.
const NUMBERS: [(Asked, [i32; 2]); 41] = [
    (SetUid, [105, 146]),
    (SetGid, [106, 144]),
    (SetReUid, [113, 145]),
    (SetReGid, [114, 143]),
    (SetResUid, [117, 147]),
    (SetResGid, [119, 149]),
    (SetFsUid, [122, 151]),
    (SetFsGid, [123, 152]),
    (SetGroups, [116, 159]),
    (GetGroups, [115, 158]),
    (GetUid, [102, 174]),
    (GetEffectiveUid, [107, 175]),
    (GetGid, [104, 176]),
    (GetEffectiveGid, [108, 177]),
    (GetResUid, [118, 148]),
    (GetResGid, [120, 150]),
    (Chown, [92, -1]),
    (LinkChown, [94, -1]),
    (FileChown, [93, 55]),
    (ChownAt, [260, 54]),
    (Stat, [4, -1]),
    (LinkStat, [6, -1]),
    (FileStat, [5, 80]),
    (StatAt, [262, 79]),
    (StatX, [332, 291]),
    (MakeNode, [133, -1]),
    (MakeNodeAt, [259, 33]),
    (MakeDir, [83, -1]),
    (MakeDirAt, [258, 34]),
    (SymLink, [88, -1]),
    (SymLinkAt, [266, 36]),
    (Open, [2, -1]),
    (OpenAt, [257, 56]),
    (OpenAt2, [437, 437]),
    (Create, [85, -1]),
    (Execute, [59, 221]),
    (ExecuteAt, [322, 281]),
    (ChangeRoot, [161, 51]),
    (Control, [157, 167]),
    (SetLimit, [160, 164]),
    (ChangeLimit, [302, 261]),
];

fn column() -> Option<usize> {
    ["x86_64", "aarch64"].iter().position(|name| *name == std::env::consts::ARCH)
}

/// The call of that number on this architecture.
pub fn of_number(number: i32) -> Option<Asked> {
    let column = column()?;
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

/// All numbers of this architecture.
pub fn numbers() -> Vec<(u32, When)> {
    let Some(column) = column() else { return Vec::new() };
    let number = |numbers: &[i32; 2]| u32::try_from(numbers[column]).ok();
    let when = |asked: &Asked| match asked {
        Open => When::AnyBit(1, CREATES),
        OpenAt => When::AnyBit(2, CREATES),
        SetLimit => When::Is(0, OUR_LIMIT),
        ChangeLimit => When::Is(1, OUR_LIMIT),
        _ => When::Always,
    };
    NUMBERS.iter().filter_map(|(asked, numbers)| Some((number(numbers)?, when(asked)))).collect()
}

/// `RLIMIT_MSGQUEUE`.
const OUR_LIMIT: u32 = 12;

/// `O_CREAT` and the bit of `O_TMPFILE` that is its own (include/uapi/asm-generic/fcntl.h).
pub const CREATES: u32 = 0o100 | 0o20_000_000;
