//! Random changes to the files that a build reads.

use crate::random::Random;
use crate::script::{Op, Way};

/// Few names, so that changes and instructions often refer to the same path. `c/` is the context,
/// `n/` the directory of a named context.
const DIRS: &[&[u8]] = &[
    b"c/d",
    b"c/d/s",
    b"c/d/s/t",
    b"c/d/e",
    b"c/x",
    b"c/x/e",
    b"c/r/bin",
    b"c/r/usr/bin",
    b"c/d/[i]",
    b"n/d",
    b"n/x/e",
];
const FILES: &[&[u8]] = &[
    b"c/a",
    b"c/b",
    b"c/d/f",
    b"c/d/g",
    b"c/d/s/f",
    b"c/d/s/t/h",
    b"c/x/f",
    b"c/x/g",
    b"c/d/i",
    b"c/d/sp ace",
    b"c/d/new\nline",
    b"c/d/\xff\xfe",
    b"c/d/\xc3\xa9",
    b"c/d/*s",
    b"c/-dash",
    b"c/d/.hid",
    b"c/r/bin/f",
    b"c/r/usr/bin/f",
    b"c/r/bin/g",
    b"c/d/[i]/f",
    b"c/d/i/f",
    b"n/d/f",
    b"n/d/g",
    b"n/a",
    b"n/x/f",
];
const LINKS: &[&[u8]] = &[b"c/l", b"c/d/l", b"c/d/s/l", b"c/x/l", b"c/d/k", b"n/l", b"n/d/l"];
const TARGETS: &[&str] = &[
    "f",
    "g",
    "../a",
    "/a",
    "/d",
    "d",
    "s",
    "..",
    "nowhere",
    "l",
    "/nowhere/x",
    "../../../../etc/passwd",
    "x/f",
    "../x",
    "/d/f",
    "/dst/a",
];
const ARCHIVES: &[&[u8]] = &[b"c/t.tar", b"c/d/t.tgz", b"n/t.tar"];
const FILE_MODES: &[u32] = &[0o644, 0o755, 0o600, 0o640, 0o4755, 0o2711, 0o444, 0o777];
const DIR_MODES: &[u32] = &[0o755, 0o700, 0o711, 0o2775, 0o1777, 0o750];
const IGNORED: &[&str] = &[
    "d/s",
    "**/f",
    "!d/s/f",
    "x/*",
    "!x/g",
    "*.tar",
    "d/e",
    "/a",
    "l",
    "**",
    "!d",
    "!x",
    "d/*",
    "!d/s",
    "# d",
    "**/t",
    "!**/h",
    "d/s/t",
    ".dockerignore",
    "*/l",
];

/// Returns one of few texts, including those of here-documents, with few distinct sizes.
pub fn text(random: &mut Random) -> String {
    let letter = random.pick(&["a", "b", "c", "d"]);
    match random.below(10) {
        0 => String::new(),
        1 => letter.repeat(5000) + "\n",
        2 => letter.repeat(70_000),
        3 => letter.to_string(),
        4 | 5 => letter.repeat(2) + "\n",
        _ => letter.repeat(3) + "\n",
    }
}

fn path(random: &mut Random, of: &[&[u8]]) -> Vec<u8> {
    random.pick(of).to_vec()
}

fn any(random: &mut Random) -> Vec<u8> {
    match random.below(10) {
        0..=4 => path(random, FILES),
        5..=7 => path(random, DIRS),
        _ => path(random, LINKS),
    }
}

/// Returns the operations that create the tree of the first round.
pub fn beginning(random: &mut Random) -> Vec<Op> {
    let mut ops = Vec::new();
    for (names, chance) in [(DIRS, 60), (FILES, 45), (LINKS, 30), (ARCHIVES, 40)] {
        for name in names.iter().filter(|_| random.percent(chance)).collect::<Vec<_>>() {
            let path = name.to_vec();
            ops.push(match () {
                () if std::ptr::eq(names, DIRS) => Op::Dir { path },
                () if std::ptr::eq(names, FILES) => Op::Write { path, text: text(random), way: Way::InPlace },
                () if std::ptr::eq(names, LINKS) => Op::Link { path, target: random.pick(TARGETS) },
                () => Op::Archive { gzip: path.ends_with(b"tgz"), path, seed: random.below(1000) as u64 },
            });
        }
    }
    for _ in 0..random.below(6) {
        ops.push(change(random));
    }
    ops
}

/// Returns one to four changes.
pub fn changes(random: &mut Random) -> Vec<Op> {
    (0..random.within(1..=4)).map(|_| change(random)).collect()
}

fn change(random: &mut Random) -> Op {
    match random.below(100) {
        0..=24 => {
            let way = random.pick(&[Way::InPlace, Way::Replace, Way::SetBack, Way::SetBack]);
            Op::Write { path: path(random, FILES), text: text(random), way }
        }
        25..=30 => Op::Write { path: any(random), text: text(random), way: Way::Replace },
        31..=34 => Op::Dir { path: any(random) },
        35..=42 => Op::Link { path: path(random, LINKS), target: random.pick(TARGETS) },
        43..=45 => Op::Link { path: any(random), target: random.pick(TARGETS) },
        46..=52 => Op::HardLink { from: path(random, FILES), path: path(random, FILES) },
        53..=57 => {
            let path = path(random, ARCHIVES);
            Op::Archive { gzip: path.ends_with(b"tgz"), path, seed: random.below(1000) as u64 }
        }
        58..=61 => Op::Attribute { path: any(random), value: random.pick(&[None, Some("one"), Some("two")]) },
        62..=66 => Op::Chmod { path: path(random, FILES), mode: random.pick(FILE_MODES) },
        67..=71 => Op::Chmod { path: path(random, DIRS), mode: random.pick(DIR_MODES) },
        72..=79 => Op::Remove { path: any(random) },
        80..=84 => Op::Rename { from: any(random), to: any(random) },
        85..=86 => Op::Rename { from: path(random, DIRS), to: path(random, DIRS) },
        87..=91 => Op::Swap { one: any(random), other: any(random) },
        92..=94 => Op::Touch { path: any(random) },
        95 => Op::Sparse { path: path(random, FILES), len: 200_000 },
        _ => Op::Ignore { lines: (0..random.below(4)).map(|_| random.pick(IGNORED)).collect() },
    }
}
