//! Decoding of system calls from registers and untrusted bytes of the caller's memory. Pure
//! functions: nothing here has access to anything else.

use rbuild_linux::UidGid;
use rustix::fs::{OFlags, ResolveFlags};

use crate::id_emulation::calls::{
    DROP_FROM_BOUND, EmulatedCall, KEEP_CAPABILITIES, SECURE_BITS, is_of_sibling, of_number,
};

/// `AT_FDCWD`: the working directory.
pub const HERE: i32 = -100;

/// `AT_SYMLINK_NOFOLLOW` and `AT_EMPTY_PATH` (include/uapi/linux/fcntl.h).
pub const NO_FOLLOW: u32 = 0x100;
pub const EMPTY_PATH: u32 = 0x1000;

/// The flags of the calls that change a file's owner or times or list its attributes.
pub const NAMING: u32 = NO_FOLLOW | EMPTY_PATH;

/// The flags of statx(2): also `AT_NO_AUTOMOUNT`, and at most one bit of `AT_STATX_SYNC_TYPE`.
pub const QUERYING: u32 = NAMING | 0x800 | SYNCHRONIZING;
pub const SYNCHRONIZING: u32 = 0x6000;

/// `AT_EXECVE_CHECK` (Linux 6.14): only checks whether a program may be executed.
pub const CHECK_ONLY: u32 = 0x10000;

/// `O_CREAT | O_WRONLY | O_TRUNC`, the flags implied by creat(2).
const CREATE: u32 = 0o100 | 0o1 | 0o1000;

/// A path in the caller's memory, and the directory that it is relative to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathArg {
    /// A descriptor of the caller, or [`HERE`].
    pub dir: i32,
    /// Address of the path.
    pub path: u64,
}

/// A file by path, with flags of the `*at` calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathAt {
    pub at: PathArg,
    pub flags: u32,
}

/// The file that a call is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// A descriptor that is not `O_PATH`.
    Open(i32),
    Named(PathAt),
}

/// The kind of ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdKind {
    Users,
    Groups,
}

/// A change of IDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdChange {
    One(u32),
    Two(u32, u32),
    Three([u32; 3]),
}

/// The memory layout of a pair of times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeForm {
    Seconds,
    Microseconds,
    Nanoseconds,
}

/// The integer type of times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// 32 bits.
    Short,
    /// 64 bits.
    Long,
    /// 64 bits. The upper half of the nanoseconds is ignored, because it is padding in 32-bit
    /// programs.
    Padded,
}

/// A pair of times in the caller's memory. A null address means the current time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimesAt {
    pub form: TimeForm,
    pub width: Width,
    pub address: u64,
}

/// A decoded system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    OwnId {
        of: IdKind,
        effective: bool,
    },
    /// Writes the real, effective and saved ID to these addresses.
    OwnIds {
        of: IdKind,
        to: [u64; 3],
    },
    Groups {
        size: i32,
        to: u64,
    },
    SetGroups {
        count: u32,
        from: u64,
    },
    SetIds {
        of: IdKind,
        change: IdChange,
    },
    SetFileId {
        of: IdKind,
        id: u32,
    },
    Stat {
        file: PathAt,
        to: u64,
    },
    StatX {
        file: PathAt,
        mask: u32,
        to: u64,
    },
    ChangeOwner {
        file: Subject,
        /// `u32::MAX` for an ID that does not change.
        owner: UidGid,
    },
    MakeNode {
        at: PathArg,
        mode: u32,
        /// Device number; the kernel ignores the upper 32 bits of the argument.
        device: u32,
    },
    MakeDir {
        at: PathArg,
        mode: u32,
    },
    SymLink {
        target: u64,
        at: PathArg,
    },
    Open {
        at: PathArg,
        flags: u32,
        mode: u32,
    },
    /// The remaining parameters are in a structure at that address, of that size.
    OpenHow {
        at: PathArg,
        how: u64,
        size: u64,
    },
    Execute {
        file: PathAt,
    },
    KeepCapabilities(u64),
    SetSecureBits(u64),
    DropFromBound,
    /// Addresses of a header and of the sets (capget(2)).
    GetCapabilities {
        header: u64,
        sets: u64,
    },
    SetCapabilities {
        header: u64,
        sets: u64,
    },
    /// Not relevant to the supervisor.
    Other,
    SetLimit,
    ChangeLimit {
        new: u64,
        old: u64,
    },
    ChangeRoot {
        path: u64,
    },
    ChangeMode {
        file: Subject,
        mode: u32,
    },
    ListAttributes {
        file: Subject,
        to: u64,
        size: u64,
    },
    SetAttribute {
        file: Subject,
        name: u64,
        value: u64,
        size: u64,
        flags: u32,
    },
    RemoveAttribute {
        file: Subject,
        name: u64,
    },
    SetTimes {
        file: Subject,
        times: TimesAt,
    },
}

/// Decodes a call. Returns `None` if the supervisor does not handle it.
pub fn decode(number: i32, architecture: u32, args: [u64; 6]) -> Option<Request> {
    let asked = of_number(number, architecture)?;
    let width = if is_of_sibling(architecture) { Width::Short } else { Width::Long };
    Some(ids(asked, args).unwrap_or_else(|| files(asked, args, width)))
}

/// Decodes calls about processes.
fn ids(asked: EmulatedCall, args: [u64; 6]) -> Option<Request> {
    use EmulatedCall::*;
    let id = |i: usize| args[i] as u32;
    let of = match asked {
        SetUid | SetReUid | SetResUid | SetFsUid | GetUid | GetEffectiveUid | GetResUid => IdKind::Users,
        _ => IdKind::Groups,
    };
    Some(match asked {
        GetUid | GetGid => Request::OwnId { of, effective: false },
        GetEffectiveUid | GetEffectiveGid => Request::OwnId { of, effective: true },
        GetResUid | GetResGid => Request::OwnIds { of, to: [args[0], args[1], args[2]] },
        GetGroups => Request::Groups { size: args[0] as i32, to: args[1] },
        SetGroups => Request::SetGroups { count: id(0), from: args[1] },
        SetUid | SetGid => Request::SetIds { of, change: IdChange::One(id(0)) },
        SetReUid | SetReGid => Request::SetIds { of, change: IdChange::Two(id(0), id(1)) },
        SetResUid | SetResGid => Request::SetIds { of, change: IdChange::Three([id(0), id(1), id(2)]) },
        SetFsUid | SetFsGid => Request::SetFileId { of, id: id(0) },
        Control => match id(0) {
            KEEP_CAPABILITIES => Request::KeepCapabilities(args[1]),
            SECURE_BITS => Request::SetSecureBits(args[1]),
            DROP_FROM_BOUND => Request::DropFromBound,
            _ => Request::Other,
        },
        SetLimit => Request::SetLimit,
        ChangeLimit => Request::ChangeLimit { new: args[2], old: args[3] },
        GetCapabilities => Request::GetCapabilities { header: args[0], sets: args[1] },
        SetCapabilities => Request::SetCapabilities { header: args[0], sets: args[1] },
        ChangeRoot => Request::ChangeRoot { path: args[0] },
        _ => return None,
    })
}

/// Returns the three possible meanings of a call's first arguments: a path, a path relative to a
/// directory, a descriptor.
fn starts(args: [u64; 6]) -> (PathArg, PathArg, Subject) {
    let here = PathArg { dir: HERE, path: args[0] };
    (here, PathArg { dir: args[0] as i32, path: args[1] }, Subject::Open(args[0] as i32))
}

/// Decodes calls about files. `width` is that of the caller's integers.
fn files(asked: EmulatedCall, args: [u64; 6], width: Width) -> Request {
    use EmulatedCall::*;
    let id = |i: usize| args[i] as u32;
    let (here, at, opened) = starts(args);
    let named = |at, flags| PathAt { at, flags };
    match asked {
        Stat => Request::Stat { file: named(here, 0), to: args[1] },
        LinkStat => Request::Stat { file: named(here, NO_FOLLOW), to: args[1] },
        FileStat => Request::Stat { file: named(PathArg { path: 0, ..at }, EMPTY_PATH), to: args[1] },
        StatAt => Request::Stat { file: named(at, id(3)), to: args[2] },
        StatX => Request::StatX { file: named(at, id(2)), mask: id(3), to: args[4] },
        Chown => Request::ChangeOwner { file: Subject::Named(named(here, 0)), owner: UidGid::new(id(1), id(2)) },
        LinkChown => {
            Request::ChangeOwner { file: Subject::Named(named(here, NO_FOLLOW)), owner: UidGid::new(id(1), id(2)) }
        }
        FileChown => Request::ChangeOwner { file: opened, owner: UidGid::new(id(1), id(2)) },
        ChownAt => Request::ChangeOwner { file: Subject::Named(named(at, id(4))), owner: UidGid::new(id(2), id(3)) },
        MakeNode => Request::MakeNode { at: here, mode: id(1), device: id(2) },
        MakeNodeAt => Request::MakeNode { at, mode: id(2), device: id(3) },
        MakeDir => Request::MakeDir { at: here, mode: id(1) },
        MakeDirAt => Request::MakeDir { at, mode: id(2) },
        SymLink => Request::SymLink { target: args[0], at: PathArg { dir: HERE, path: args[1] } },
        SymLinkAt => Request::SymLink { target: args[0], at: PathArg { dir: args[1] as i32, path: args[2] } },
        Open => Request::Open { at: here, flags: id(1), mode: id(2) },
        OpenAt => Request::Open { at, flags: id(2), mode: id(3) },
        Create => Request::Open { at: here, flags: CREATE, mode: id(1) },
        OpenAt2 => Request::OpenHow { at, how: args[2], size: args[3] },
        Execute => Request::Execute { file: named(here, 0) },
        ExecuteAt => Request::Execute { file: named(at, id(4)) },
        SetSeconds | SetMicroseconds => {
            let form = if asked == SetSeconds { TimeForm::Seconds } else { TimeForm::Microseconds };
            let times = TimesAt { form, width, address: args[1] };
            Request::SetTimes { file: Subject::Named(named(here, 0)), times }
        }
        SetMicrosecondsAt | SetNanosecondsAt | SetWideNanosecondsAt => {
            let micro = asked == SetMicrosecondsAt;
            let flags = if micro { 0 } else { id(3) };
            // A null path means the descriptor itself, without flags (utimensat(2)).
            let file = if at.path == 0 && flags == 0 { opened } else { Subject::Named(named(at, flags)) };
            let form = if micro { TimeForm::Microseconds } else { TimeForm::Nanoseconds };
            let width = if asked == SetWideNanosecondsAt { Width::Padded } else { width };
            Request::SetTimes { file, times: TimesAt { form, width, address: args[2] } }
        }
        _ => attributes(asked, args),
    }
}

/// Decodes calls about the modes and extended attributes of files.
fn attributes(asked: EmulatedCall, args: [u64; 6]) -> Request {
    use EmulatedCall::*;
    let id = |i: usize| args[i] as u32;
    let (here, at, opened) = starts(args);
    let named = |at, flags| PathAt { at, flags };
    match asked {
        ChangeMode => Request::ChangeMode { file: Subject::Named(named(here, 0)), mode: id(1) },
        FileChangeMode => Request::ChangeMode { file: opened, mode: id(1) },
        ChangeModeAt => Request::ChangeMode { file: Subject::Named(named(at, 0)), mode: id(2) },
        ChangeModeAt2 => Request::ChangeMode { file: Subject::Named(named(at, id(3))), mode: id(2) },
        SetAttribute | LinkSetAttribute | FileSetAttribute => Request::SetAttribute {
            file: attributed(asked, here, opened),
            name: args[1],
            value: args[2],
            size: args[3],
            flags: id(4),
        },
        RemoveAttribute | LinkRemoveAttribute | FileRemoveAttribute => {
            Request::RemoveAttribute { file: attributed(asked, here, opened), name: args[1] }
        }
        ListAttributes | LinkListAttributes => {
            let flags = if asked == ListAttributes { 0 } else { NO_FOLLOW };
            Request::ListAttributes { file: Subject::Named(named(here, flags)), to: args[1], size: args[2] }
        }
        FileListAttributes => Request::ListAttributes { file: opened, to: args[1], size: args[2] },
        _ => Request::Other,
    }
}

/// Returns the file of a call that sets or removes an extended attribute.
fn attributed(asked: EmulatedCall, at: PathArg, opened: Subject) -> Subject {
    match asked {
        EmulatedCall::FileSetAttribute | EmulatedCall::FileRemoveAttribute => opened,
        EmulatedCall::LinkSetAttribute | EmulatedCall::LinkRemoveAttribute => {
            Subject::Named(PathAt { at, flags: NO_FOLLOW })
        }
        _ => Subject::Named(PathAt { at, flags: 0 }),
    }
}

/// Seconds and nanoseconds; [`NOW`] or [`OMIT`] may replace the latter.
pub type Time = (i64, i64);

/// `UTIME_NOW` and `UTIME_OMIT`.
pub const NOW: i64 = 0x3fff_ffff;
pub const OMIT: i64 = 0x3fff_fffe;

impl TimeForm {
    fn numbers(self) -> usize {
        if self == TimeForm::Seconds { 2 } else { 4 }
    }

    /// Returns the size of both times in bytes.
    pub fn size(self, width: Width) -> usize {
        self.numbers() * if width == Width::Short { 4 } else { 8 }
    }

    /// Decodes the access and modification time; `None` if the bytes are not valid times.
    pub fn read(self, width: Width, bytes: &[u8]) -> Option<[Time; 2]> {
        let number = |i: usize| match width {
            Width::Short => Some(i64::from(i32::from_ne_bytes(bytes.get(i * 4..i * 4 + 4)?.try_into().ok()?))),
            _ => Some(i64::from_ne_bytes(bytes.get(i * 8..i * 8 + 8)?.try_into().ok()?)),
        };
        let half = |number: i64| if width == Width::Padded { number & 0xffff_ffff } else { number };
        let time = |i: usize| {
            Some(match self {
                TimeForm::Seconds => (number(i)?, 0),
                TimeForm::Microseconds => {
                    let micro = number(2 * i + 1)?;
                    (number(2 * i)?, (0..1_000_000).contains(&micro).then(|| micro * 1000)?)
                }
                TimeForm::Nanoseconds => {
                    let nano = half(number(2 * i + 1)?);
                    (
                        number(2 * i)?,
                        ((0..1_000_000_000).contains(&nano) || nano == NOW || nano == OMIT).then_some(nano)?,
                    )
                }
            })
        };
        Some([time(0)?, time(1)?])
    }
}

/// Size of the first version of `struct open_how`, and the largest size that the kernel takes.
pub const OPEN_HOW: std::ops::RangeInclusive<u64> = 24..=4096;

/// The flags of open(2) that openat2(2) accepts.
const OPEN_FLAGS: OFlags = OFlags::RWMODE
    .union(OFlags::CREATE.union(OFlags::EXCL).union(OFlags::NOCTTY).union(OFlags::TRUNC).union(OFlags::APPEND))
    .union(OFlags::NONBLOCK.union(OFlags::DSYNC).union(OFlags::SYNC).union(OFlags::ASYNC).union(OFlags::DIRECT))
    .union(OFlags::LARGEFILE.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::NOATIME))
    .union(OFlags::CLOEXEC.union(OFlags::TMPFILE));

const RESOLVE_FLAGS: ResolveFlags = ResolveFlags::NO_XDEV
    .union(ResolveFlags::NO_MAGICLINKS.union(ResolveFlags::NO_SYMLINKS))
    .union(ResolveFlags::BENEATH.union(ResolveFlags::IN_ROOT));

/// Returns flags, mode and resolution flags of a call of openat2(2) that may create a file, from
/// the bytes of its structure. Returns `None` if the call cannot create a file, or if the kernel
/// refuses it.
pub fn open_how(bytes: &[u8]) -> Option<(OFlags, u32, ResolveFlags)> {
    let (words, unknown) = bytes.split_at_checked(24)?;
    let mut words = words.chunks(8).map(|word| word.try_into().map_or(u64::MAX, u64::from_ne_bytes));
    let (flags, mode, resolve) = (words.next()?, words.next()?, words.next()?);
    let flags = OFlags::from_bits_retain(u32::try_from(flags).ok()?);
    let resolve = ResolveFlags::from_bits_retain(resolve);
    let makes_unnamed = flags.contains(OFlags::TMPFILE);
    let contradicts = flags.contains(OFlags::CREATE | OFlags::DIRECTORY)
        || resolve.contains(ResolveFlags::BENEATH | ResolveFlags::IN_ROOT);
    let fits = OPEN_FLAGS.bits() & flags.bits() == flags.bits() && RESOLVE_FLAGS.contains(resolve);
    let creates = flags.contains(OFlags::CREATE) || makes_unnamed;
    (creates && fits && !contradicts && mode <= 0o7777 && unknown.iter().all(|byte| *byte == 0)).then_some((
        flags,
        mode as u32,
        resolve,
    ))
}

/// Decodes a list of consecutive IDs.
pub fn ids_of(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Removes one name from a list of zero-terminated attribute names.
pub fn without(names: &[u8], name: &[u8]) -> Vec<u8> {
    let others = names.split_inclusive(|byte| *byte == 0).filter(|one| one.strip_suffix(&[0]).unwrap_or(one) != name);
    others.flatten().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_decoded_in_every_form() {
        let wide = |numbers: &[i64]| -> Vec<u8> { numbers.iter().flat_map(|n| n.to_ne_bytes()).collect() };
        let narrow = |numbers: &[i32]| -> Vec<u8> { numbers.iter().flat_map(|n| n.to_ne_bytes()).collect() };
        use Width::{Long, Padded, Short};
        assert_eq!(TimeForm::Seconds.read(Long, &wide(&[1, -2])), Some([(1, 0), (-2, 0)]));
        assert_eq!(TimeForm::Microseconds.read(Short, &narrow(&[1, 2, 3, 4])), Some([(1, 2000), (3, 4000)]));
        assert_eq!(TimeForm::Nanoseconds.read(Long, &wide(&[1, 2, 3, NOW])), Some([(1, 2), (3, NOW)]));
        assert_eq!(TimeForm::Nanoseconds.read(Long, &wide(&[1, 1_000_000_000, 3, 4])), None);
        assert_eq!(TimeForm::Microseconds.read(Long, &wide(&[1, 2, 3, -1])), None);
        assert_eq!(TimeForm::Nanoseconds.read(Short, &narrow(&[1, 2, 3])), None);
        assert_eq!(TimeForm::Microseconds.read(Long, &wide(&[1, i64::MAX, 3, i64::MIN])), None);
        let padding = 7 << 32;
        assert_eq!(TimeForm::Nanoseconds.read(Padded, &wide(&[1, padding | 2, 3, padding])), Some([(1, 2), (3, 0)]));
        assert_eq!(TimeForm::Nanoseconds.read(Long, &wide(&[1, padding | 2, 3, padding])), None);
    }

    #[test]
    fn a_name_is_removed_from_an_attribute_list() {
        let list = b"user.a\0user.x\0user.xy\0";
        assert_eq!(without(list, b"user.x"), b"user.a\0user.xy\0");
        assert_eq!(without(list, b"user"), list);
        assert_eq!(without(b"user.x\0", b"user.x"), b"");
        assert_eq!(without(b"user.x", b"user.x"), b"");
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn both_variants_of_a_system_call_are_decoded() {
        const NATIVE: u32 = 0xC000_003E;
        const I386: u32 = crate::id_emulation::calls::I386;
        let args = [7, 8, 9, 0x100, 11, 12];
        let at = PathArg { dir: 7, path: 8 };
        let times = |file, width| {
            let times = TimesAt { form: TimeForm::Nanoseconds, width, address: 9 };
            Some(Request::SetTimes { file, times })
        };
        let named = Subject::Named(PathAt { at, flags: NO_FOLLOW });
        assert_eq!(decode(280, NATIVE, args), times(named, Width::Long));
        assert_eq!(decode(320, I386, args), times(named, Width::Short));
        assert_eq!(decode(412, I386, args), times(named, Width::Padded));
        assert_eq!(decode(280, NATIVE, [7, 0, 9, 0, 0, 0]), times(Subject::Open(7), Width::Long));
        assert_eq!(decode(196, NATIVE, args), Some(Request::ListAttributes { file: Subject::Open(7), to: 8, size: 9 }));
        assert_eq!(decode(0, NATIVE, args), None, "read");
        let at = PathArg { dir: HERE, path: 7 };
        let node = Request::MakeNode { at, mode: 0o020_600, device: 0x103 };
        assert_eq!(decode(133, NATIVE, [7, 0o020_600, 0x5_0000_0103, 0, 0, 0]), Some(node));
    }
}
