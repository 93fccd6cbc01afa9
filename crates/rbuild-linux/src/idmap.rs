//! User and group ID ranges of user namespaces, and writing of their maps.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result, UnmappedId, described};
use crate::meta::UidGid;
use crate::process::{self, Cloned, Exit};

/// A range of `count` IDs beginning at `start`, in the numbering of the parent namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// The first ID.
    pub start: u32,
    /// Number of IDs.
    pub count: u32,
}

/// The sub-IDs granted to one user by /etc/subuid and /etc/subgid (subuid(5)).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubIds {
    /// Ranges of user IDs.
    pub uids: Vec<IdRange>,
    /// Ranges of group IDs.
    pub gids: Vec<IdRange>,
}

/// Parses the ranges of `user` (by name or number) from the text of a subuid(5) file. Lines that do
/// not parse are skipped, as newuidmap does.
pub fn subordinate_ranges(text: &str, user: Option<&str>, uid: u32) -> Vec<IdRange> {
    let number = uid.to_string();
    text.lines()
        .filter_map(|line| {
            let mut parts = line.trim().split(':');
            let name = parts.next()?;
            let start = parts.next()?.parse().ok()?;
            let count = parts.next()?.parse().ok()?;
            (count > 0 && (Some(name) == user || name == number)).then_some(IdRange { start, count })
        })
        .collect()
}

/// Number of IDs that images expect: all 16-bit IDs, root included.
pub const USUAL_COUNT: u32 = 65536;

/// First ID not assigned to a real user on current systems (login.defs(5), SUB_UID_MIN).
const FIRST_SUBORDINATE: u32 = 100_000;

/// Returns the lowest range of [`USUAL_COUNT`] IDs that is not granted in the given text of a
/// subuid(5) file, or `None` if there is none.
pub fn free_range(text: &str) -> Option<IdRange> {
    let mut granted: Vec<(u64, u64)> = text
        .lines()
        .filter_map(|line| {
            let mut numbers = line.trim().split(':').skip(1).map(|number| number.parse::<u32>().ok());
            let (start, count) = (u64::from(numbers.next()??), u64::from(numbers.next()??));
            Some((start, start + count))
        })
        .collect();
    granted.sort_unstable();
    let mut start = u64::from(FIRST_SUBORDINATE);
    for (first, end) in granted {
        if first >= start + u64::from(USUAL_COUNT) {
            break;
        }
        start = start.max(end);
    }
    // The highest number, (uid_t) -1, is not a valid ID.
    (start + u64::from(USUAL_COUNT) <= u64::from(u32::MAX))
        .then_some(IdRange { start: start as u32, count: USUAL_COUNT })
}

/// Parses the IDs that a namespace holds from the text of its /proc/PID/uid_map, for a caller who
/// is root in it. Returns one range per line, as the kernel does not accept a range that spans two;
/// empty if ID 0 is not mapped. A full range is shortened by one ID, so that a namespace with these
/// IDs is not mistaken for the initial one.
pub fn held_ranges(map: &str) -> Vec<IdRange> {
    let read = |line: &str| {
        let mut numbers = line.split_whitespace();
        let (start, count): (u32, u32) = (numbers.next()?.parse().ok()?, numbers.nth(1)?.parse().ok()?);
        (count > 0).then_some(IdRange { start, count: count.min(u32::MAX - 1 - start) })
    };
    let ranges: Vec<IdRange> = map.lines().filter_map(read).collect();
    if ranges.iter().any(|range| range.start == 0) { ranges } else { Vec::new() }
}

/// The maps of a new user namespace, as lines of (inside, outside, count).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMaps {
    /// The map of user IDs.
    pub uids: Vec<(u32, u32, u32)>,
    /// The map of group IDs.
    pub gids: Vec<(u32, u32, u32)>,
    writer: MapWriter,
}

/// The way in which maps are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MapWriter {
    /// By newuidmap and newgidmap.
    Helpers,
    /// To /proc directly, which requires CAP_SETUID and CAP_SETGID.
    Privileged,
    /// To /proc directly, mapping the caller only. This requires no privileges, but setgroups(2)
    /// must be given up.
    Single,
}

impl IdMaps {
    /// Maps root inside to the caller, and the IDs from 1 on to all granted sub-IDs.
    pub fn subordinate(caller: UidGid, sub: &SubIds) -> IdMaps {
        let lines = |own: u32, ranges: &[IdRange]| {
            let mut lines = vec![(0, own, 1)];
            let mut next = 1u32;
            for r in ranges {
                lines.push((next, r.start, r.count));
                next = next.saturating_add(r.count);
            }
            lines
        };
        IdMaps { uids: lines(caller.uid, &sub.uids), gids: lines(caller.gid, &sub.gids), writer: MapWriter::Helpers }
    }

    /// Maps root inside to the caller and nothing else.
    pub fn single(caller: UidGid) -> IdMaps {
        IdMaps { uids: vec![(0, caller.uid, 1)], gids: vec![(0, caller.gid, 1)], writer: MapWriter::Single }
    }

    /// Maps every ID inside to the same ID outside.
    pub fn identity(uids: &[IdRange], gids: &[IdRange]) -> IdMaps {
        let lines = |ranges: &[IdRange]| ranges.iter().map(|r| (r.start, r.start, r.count)).collect();
        IdMaps { uids: lines(uids), gids: lines(gids), writer: MapWriter::Privileged }
    }

    /// Returns the highest user and group ID mapped inside.
    pub fn highest(&self) -> UidGid {
        let top = |lines| mapped(lines).last().map_or(0, |(_, last)| *last);
        UidGid { uid: top(&self.uids), gid: top(&self.gids) }
    }

    /// Returns true if the user and the group ID are mapped inside.
    pub fn has(&self, ids: UidGid) -> bool {
        contain(&mapped(&self.uids), ids.uid) && contain(&mapped(&self.gids), ids.gid)
    }

    /// Returns the highest user and group ID that are mapped inside together with all below them.
    pub fn without_holes(&self) -> UidGid {
        UidGid { uid: end_of_first(&mapped(&self.uids)), gid: end_of_first(&mapped(&self.gids)) }
    }

    /// Writes the maps of process `pid`, which must have just entered its user namespace.
    pub fn write(&self, pid: u32) -> Result<()> {
        if self.writer == MapWriter::Helpers {
            let mut uid = helper("newuidmap", pid, &self.uids)?;
            let mut gid = helper("newgidmap", pid, &self.gids)?;
            finish("newuidmap", &mut uid)?;
            return finish("newgidmap", &mut gid);
        }
        if self.writer == MapWriter::Single {
            let path = format!("/proc/{pid}/setgroups");
            std::fs::write(&path, "deny").map_err(|e| Error::new("write", Path::new(&path), e))?;
        }
        self.write_into(Path::new(&format!("/proc/{pid}")))
    }

    /// Writes the maps of the process whose /proc directory is given.
    fn write_into(&self, process: &Path) -> Result<()> {
        let text =
            |lines: &[(u32, u32, u32)]| lines.iter().map(|(i, o, n)| format!("{i} {o} {n}\n")).collect::<String>();
        for (name, lines) in [("uid_map", &self.uids), ("gid_map", &self.gids)] {
            let path = process.join(name);
            std::fs::write(&path, text(lines)).map_err(|e| Error::new("write", path, e))?;
        }
        Ok(())
    }
}

/// Moves the calling process, which must be single-threaded, into a new user namespace that holds
/// the IDs of the current one. The process keeps all capabilities there, and has none over
/// processes of the namespace it leaves or of other namespaces created this way.
pub fn enter_nested_user_namespace() -> Result<()> {
    let held = |file: &str| -> Result<Vec<IdRange>> {
        let text = std::fs::read_to_string(file).map_err(|e| Error::new("open", Path::new(file), e))?;
        Ok(held_ranges(&text))
    };
    let maps = IdMaps::identity(&held("/proc/self/uid_map")?, &held("/proc/self/gid_map")?);
    // The process that writes the maps may be in a PID namespace that numbers this process
    // differently.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let process = rustix::fs::open("/proc/self", flags, Mode::empty())
        .map_err(|e| Error::new("open", Path::new("/proc/self"), e))?;
    let (mut reader, writer) = std::io::pipe().map_err(|e| Error::new("pipe2", described("a pipe"), e))?;
    match process::fork()? {
        Cloned::Child => {
            drop(writer);
            // A failed read means that the other process is gone.
            let written = reader.read_exact(&mut [0]).is_ok()
                && maps.write_into(Path::new(&format!("/proc/self/fd/{}", process.as_raw_fd()))).is_ok();
            std::process::exit(if written { 0 } else { 1 });
        }
        Cloned::Parent { child } => {
            drop(reader);
            let entered = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER)
                .map_err(|e| Error::new("unshare", described("a user namespace"), std::io::Error::from(e)));
            let reader = entered
                .and_then(|()| (&writer).write_all(&[0]).map_err(|e| Error::new("write", described("a pipe"), e)));
            drop(writer);
            match (process::wait(child)?, reader) {
                (_, Err(e)) => Err(e),
                (Exit::Code(0), Ok(())) => Ok(()),
                _ => Err(Error::new("write", Path::new("/proc/self/uid_map"), Errno::PERM)),
            }
        }
    }
}

/// Returns the IDs that a map has inside the namespace: first and last of each range, in ascending
/// order, with adjacent ranges joined.
fn mapped(lines: &[(u32, u32, u32)]) -> Vec<(u32, u32)> {
    let range = |(inside, _, count): &(u32, u32, u32)| Some((*inside, inside.saturating_add(count.checked_sub(1)?)));
    let mut ranges: Vec<(u32, u32)> = lines.iter().filter_map(range).collect();
    ranges.sort_unstable();
    ranges.dedup_by(|next, range| {
        let joins = range.1.checked_add(1) == Some(next.0);
        range.1 = if joins { next.1 } else { range.1 };
        joins
    });
    ranges
}

fn contain(ranges: &[(u32, u32)], id: u32) -> bool {
    ranges.iter().any(|(first, last)| (*first..=*last).contains(&id))
}

/// Returns the last ID of the range that begins with 0.
fn end_of_first(ranges: &[(u32, u32)]) -> u32 {
    ranges.first().filter(|(first, _)| *first == 0).map_or(0, |(_, last)| *last)
}

/// Parses a map as `/proc/PID/uid_map` shows it (user_namespaces(7)).
fn parse(map: &str) -> Vec<(u32, u32, u32)> {
    let line = |line: &str| {
        let mut numbers = line.split_whitespace().map(|number| number.parse().ok());
        Some((numbers.next()??, numbers.next()??, numbers.next()??))
    };
    map.lines().filter_map(line).collect()
}

/// Returns the highest user and group ID that the user namespace of this process maps together with
/// all below them; `None` if the maps cannot be read.
pub fn mapped_without_holes() -> Option<UidGid> {
    let top = |file: &str| Some(end_of_first(&mapped(&parse(&std::fs::read_to_string(file).ok()?))));
    Some(UidGid { uid: top("/proc/self/uid_map")?, gid: top("/proc/self/gid_map")? })
}

/// Explains a failed chown(2) if the user namespace of this process does not map one of the IDs.
pub(crate) fn unmapped_owner(e: Errno, owner: UidGid) -> Option<UnmappedId> {
    (e == Errno::INVAL).then(|| unmapped(owner)).flatten()
}

/// Returns the user or the group ID that the user namespace of this process does not map. Returns
/// `None` if both are mapped, or if the maps cannot be read.
pub fn unmapped(ids: UidGid) -> Option<UnmappedId> {
    let text = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    missing_id("user", "/etc/subuid", ids.uid, &text("/proc/self/uid_map"))
        .or_else(|| missing_id("group", "/etc/subgid", ids.gid, &text("/proc/self/gid_map")))
}

/// Returns the ID if it is not in the map.
fn missing_id(kind: &'static str, file: &'static str, id: u32, map: &str) -> Option<UnmappedId> {
    let ranges = mapped(&parse(map));
    if ranges.is_empty() || contain(&ranges, id) {
        return None;
    }
    Some(UnmappedId { kind, id, mapped: ranges, file })
}

fn helper(name: &'static str, pid: u32, lines: &[(u32, u32, u32)]) -> Result<std::process::Child> {
    let mut command = Command::new(name);
    command.arg(pid.to_string());
    for (inside, outside, count) in lines {
        command.args([inside.to_string(), outside.to_string(), count.to_string()]);
    }
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    command.stderr(std::process::Stdio::piped());
    command.spawn().map_err(|e| Error::new("execve", Path::new(name), e))
}

fn finish(name: &'static str, child: &mut std::process::Child) -> Result<()> {
    let mut text = String::new();
    if let Some(mut err) = child.stderr.take() {
        use std::io::Read;
        let _ = err.read_to_string(&mut text);
    }
    let status = child.wait().map_err(|e| Error::new("wait4", Path::new(name), e))?;
    if status.success() {
        return Ok(());
    }
    if let Some(signal) = status.signal() {
        text = format!("was killed by signal {signal}");
    }
    Err(Error::new("execve", Path::new(name), std::io::Error::other(text.trim().to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let text = "alice:100000:65536\nbob:1:2\n1000:300000:10\nbroken\nalice:x:1\nalice:900000:0\n";
        let got = subordinate_ranges(text, Some("alice"), 1000);
        assert_eq!(got, [IdRange { start: 100000, count: 65536 }, IdRange { start: 300000, count: 10 }]);
        assert!(subordinate_ranges(text, None, 7).is_empty());
    }

    #[test]
    fn an_unassigned_id_range_is_found() {
        let start = |text: &str| free_range(text).map(|range| range.start);
        for (text, want) in [
            ("", 100_000),
            ("a:1000:10\nbroken\nb:x:5\n", 100_000),
            ("a:100000:65536\n", 165_536),
            ("b:165536:65536\na:100000:65536\n", 231_072),
            ("a:100000:65536\nb:231072:65536\n", 165_536),
            ("a:100000:65536\nb:231071:65536\n", 296_607),
            ("a:90000:10001\nb:100500:1\nc:100000:1000000\n", 1_100_000),
        ] {
            assert_eq!(start(text), Some(want), "{text}");
        }
        assert_eq!(start("a:100000:4294967295\n"), None);
        assert_eq!(start("a:100000:4294801760\n"), None);
    }

    #[test]
    fn sub_id_ranges_are_mapped_after_root() {
        let sub = SubIds {
            uids: vec![IdRange { start: 100, count: 10 }, IdRange { start: 500, count: 5 }],
            gids: vec![IdRange { start: 200, count: 3 }],
        };
        let maps = IdMaps::subordinate(UidGid::new(1000, 1001), &sub);
        assert_eq!(maps.uids, [(0, 1000, 1), (1, 100, 10), (11, 500, 5)]);
        assert_eq!(maps.gids, [(0, 1001, 1), (1, 200, 3)]);
        assert_eq!(maps.highest(), UidGid::new(15, 3));
        assert_eq!(maps.without_holes(), UidGid::new(15, 3));
    }

    #[test]
    fn ids_between_mapped_ranges_are_unmapped() {
        let uids = [(0, 1000), (2000, 100), (65534, 1)].map(|(start, count)| IdRange { start, count });
        let maps = IdMaps::identity(&uids, &[IdRange { start: 0, count: u32::MAX }]);
        assert_eq!(maps.without_holes(), UidGid::new(999, u32::MAX - 1));
        for (uid, has) in [(0, true), (999, true), (1000, false), (1999, false), (2099, true), (2100, false)] {
            assert_eq!(maps.has(UidGid::new(uid, 7)), has, "{uid}");
        }
        assert!(unmapped(mapped_without_holes().unwrap()).is_none());
    }

    #[test]
    fn an_unmapped_id_is_reported_with_the_mapped_ones() {
        let map = "         0       1000          1\n         1     100000      65536\n";
        let missing = |id, map| missing_id("user", "/etc/subuid", id, map).map(|unmapped| unmapped.to_string());
        let text = "user ID 70000 is not mapped; mapped IDs: 0 to 65536";
        assert_eq!(missing(70_000, map).as_deref(), Some(text));
        assert_eq!(missing(65_536, map), None);
        assert!(missing(5, "0 1 1\n7 9 2\n").unwrap().ends_with("0, 7 to 8"));
        assert_eq!(missing(5, ""), None);
    }

    #[test]
    fn the_initial_namespace_is_never_mapped_completely() {
        let all = held_ranges("         0          0 4294967295\n");
        assert_eq!(all, [IdRange { start: 0, count: u32::MAX - 1 }]);
        assert_eq!(held_ranges("5 5 5\n"), []);
    }

    #[test]
    fn a_nested_namespace_maps_all_held_ids() {
        let held = held_ranges("         0       1000          1\n         1     100000      65536\n");
        let maps = IdMaps::identity(&held, &held);
        assert_eq!(maps.uids, [(0, 0, 1), (1, 1, 65536)]);
        assert_eq!(maps.highest(), UidGid::new(65536, 65536));
    }
}
