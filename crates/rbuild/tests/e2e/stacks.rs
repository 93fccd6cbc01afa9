//! Random stacks of layers, compared with an independent flattener that applies entry after entry
//! to a list of nodes and shares no code with rbuild.
//!
//! Runs for 5 seconds, for `RBUILD_STACKS_SECONDS` with new seeds, or once with the seed
//! `RBUILD_STACKS_SEED`. The seed of a stack is printed when the test fails.

use std::ffi::OsStr;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

mod oracle;

use crate::forge::{Blob, Forged, Layer, Meta};
use crate::lab::{Lab, Ran};
use oracle::{Entry, Node, Tree, Xattrs};

/// Pseudo-random numbers, reproducible from a seed (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

/// File names without line feeds, which the crate that reads the results does not support.
const NAMES: [&[u8]; 7] = [b"a", b"b", b"c", b"a b", b".d", b"\xc3\xbc", b"x\xffy"];

fn path(random: &mut Random) -> PathBuf {
    let depth = 1 + random.below(3);
    let names = if depth > 1 { &NAMES[..3] } else { &NAMES[..] };
    (0..depth).map(|_| OsStr::from_bytes(random.pick::<&[u8]>(names))).collect()
}

fn meta(random: &mut Random, dir: bool) -> Meta {
    let modes: &[u32] = if dir { &[0o755, 0o700, 0o1777, 0o2755] } else { &[0o644, 0o600, 0o755, 0o4755] };
    let ids = [0, 0, 1, 1000, 65534];
    let mtime = 1_000_000 + random.below(1000);
    Meta { mode: *random.pick(modes), uid: *random.pick(&ids), gid: *random.pick(&ids), mtime }
}

fn xattrs(random: &mut Random) -> Xattrs {
    if random.one_in(4) {
        vec![("user.note".into(), vec![b'=', 0x80 | random.below(128) as u8, 0])]
    } else {
        Vec::new()
    }
}

/// Returns a layer that is valid above these layers and may refer to their paths.
fn layer(random: &mut Random, below: &Tree) -> Vec<Entry> {
    let mut entries = Vec::new();
    // The layer's own entries determine which later entries are valid, as in the oracle's state.
    for _ in 0..random.below(9) {
        let path = path(random);
        let entry = match random.below(12) {
            0..=3 => {
                let content = (b'a' + random.below(26) as u8, random.below(3) as usize * 40_000 + 1);
                Entry::File(path, content, meta(random, false), xattrs(random))
            }
            4 | 5 => Entry::Dir(path, meta(random, true), xattrs(random)),
            6 => {
                let target: PathBuf = if random.one_in(2) {
                    OsStr::from_bytes(random.pick::<&[u8]>(&NAMES[..3])).into()
                } else {
                    Path::new("/").join(OsStr::from_bytes(random.pick::<&[u8]>(&NAMES[..3])))
                };
                Entry::Symlink(path, target)
            }
            7 => match below.files().get(random.below(8) as usize) {
                Some(file) => Entry::HardLink(path, file.clone()),
                None => continue,
            },
            8 | 9 => match below.paths().get(random.below(10) as usize) {
                Some(path) => Entry::Whiteout(path.clone()),
                None => Entry::Whiteout(path),
            },
            10 => Entry::Opaque(path),
            _ => match below.dirs().get(random.below(6) as usize) {
                Some(dir) => Entry::File(dir.join("in"), (b'i', 1), meta(random, false), Vec::new()),
                None => continue,
            },
        };
        let mut more = entries.clone();
        more.push(entry);
        // Only entries that an archive of a file system could contain: nothing below a file, no
        // hard link without a target.
        if below.clone().apply(&more).is_some() {
            entries = more;
        }
    }
    entries
}

fn written(entries: &[Entry]) -> Layer {
    let mark = |path: &Path, name: &[u8]| path.with_file_name(OsStr::from_bytes(&[b".wh.", name].concat()));
    let root = Meta { mode: 0, uid: 0, gid: 0, mtime: 0 };
    entries.iter().fold(Layer::new(), |layer, entry| match entry {
        Entry::File(path, content, meta, xattrs) => {
            layer.xattrs(xattrs).file_with(path, &vec![content.0; content.1], meta)
        }
        Entry::Dir(path, meta, xattrs) => layer.xattrs(xattrs).dir_with(path, meta),
        Entry::Symlink(path, to) => layer.symlink(path, to),
        Entry::HardLink(path, to) => layer.hard_link(path, to),
        Entry::Whiteout(path) => layer.file_with(mark(path, path.file_name().unwrap().as_bytes()), b"", &root),
        Entry::Opaque(path) => layer.file_with(path.join(".wh..wh..opq"), b"", &root),
    })
}

/// The same for a tar, in which `implied` directories have no time to compare.
fn tar_lines(bytes: &[u8], oracle: &Tree) -> Vec<String> {
    let mut tree = Tree::default();
    let mut archive = tar::Archive::new(bytes);
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path: PathBuf = entry.path().unwrap().components().filter(|c| matches!(c, Component::Normal(_))).collect();
        let header = entry.header();
        let (mode, mtime) = (header.mode().unwrap(), header.mtime().unwrap());
        let meta = Meta { mode, uid: header.uid().unwrap(), gid: header.gid().unwrap(), mtime };
        let kind = header.entry_type();
        let link = entry.link_name().unwrap().map(|l| l.into_owned());
        let mut xattrs = Xattrs::new();
        for record in entry.pax_extensions().unwrap().into_iter().flatten() {
            let record = record.unwrap();
            if let Some(name) = record.key().unwrap().strip_prefix("SCHILY.xattr.") {
                xattrs.push((name.to_string(), record.value_bytes().to_vec()));
            }
        }
        let node = if kind.is_dir() {
            let implied = matches!(oracle.nodes.get(&path), Some(Node::Dir(_, _, true)));
            Node::Dir(meta, xattrs, implied)
        } else if kind.is_symlink() {
            Node::Symlink(link.unwrap())
        } else if kind.is_hard_link() {
            tree.nodes[&link.unwrap()].clone()
        } else {
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
            tree.files += 1;
            Node::File(tree.files, (content[0], content.len()), meta, xattrs)
        };
        if !path.as_os_str().is_empty() {
            tree.nodes.insert(path, node);
        }
    }
    tree.lines()
}

struct Stack {
    seed: u64,
    layers: Vec<Vec<Entry>>,
    oracle: Tree,
}

impl Stack {
    fn new(seed: u64) -> Stack {
        let mut random = Random(seed);
        let (mut layers, mut oracle): (Vec<Vec<Entry>>, _) = (Vec::new(), Tree::default());
        for _ in 0..1 + random.below(5) {
            let again = (!layers.is_empty() && random.one_in(4)).then(|| random.pick(&layers).clone());
            // A repeated layer may refer to files that no longer exist.
            let next = again.filter(|again| oracle.clone().apply(again).is_some());
            let next = next.unwrap_or_else(|| layer(&mut random, &oracle));
            oracle.apply(&next).unwrap();
            layers.push(next);
        }
        Stack { seed, layers, oracle }
    }

    fn text(&self) -> String {
        let mut text = format!("seed {}\n", self.seed);
        for layer in &self.layers {
            text.push_str("layer\n");
            layer.iter().for_each(|entry| writeln!(text, "  {entry:?}").unwrap());
        }
        text
    }

    #[track_caller]
    fn compare(&self, way: &str, lab: &Lab, tar: &str) {
        let found = tar_lines(&std::fs::read(lab.path(tar)).unwrap(), &self.oracle);
        let want = self.oracle.lines();
        if found == want {
            return;
        }
        let mut text = format!("({way})\n{}", self.text());
        want.iter().filter(|line| !found.contains(line)).for_each(|line| writeln!(text, "missing {line}").unwrap());
        found.iter().filter(|line| !want.contains(line)).for_each(|line| writeln!(text, "instead {line}").unwrap());
        panic!("{text}");
    }

    fn check(&self) {
        let lab = Lab::bare();
        let mut random = Random(self.seed ^ 1);
        let blob = |random: &mut Random, entries: &Vec<Entry>| -> Blob {
            if random.one_in(2) { written(entries).gzip() } else { written(entries).plain() }
        };
        let image = Forged::new(self.layers.iter().map(|entries| blob(&mut random, entries)).collect());
        let file = lab.path("image.tar");
        if random.one_in(2) {
            image.write_docker(&file, "stack:latest");
        } else {
            image.write_oci_archive(&file, "stack:latest");
        }
        let succeed = |ran: Ran| assert_eq!(ran.code, Some(0), "{}{}", self.text(), ran.stderr);
        succeed(lab.rbuild(["load", "-q", "-i", file.to_str().unwrap()]));
        self.one_file(&lab, &mut random);
        let out = lab.path("out.tar").display().to_string();
        let tar = ["-o", &format!("type=tar,dest={out}")];
        succeed(lab.build("FROM stack\n", &tar));
        self.compare("FROM, type=tar", &lab, "out.tar");
        match random.below(4) {
            0 => {
                succeed(lab.sh("$RB cp stack:/ - > $LAB/cp.tar"));
                self.compare("cp", &lab, "cp.tar");
            }
            1 => {
                succeed(lab.build("FROM stack\n", &["--squash=all", "-t", "one"]));
                succeed(lab.build("FROM one\n", &tar));
                self.compare("--squash=all", &lab, "out.tar");
            }
            2 => {
                succeed(lab.rbuild(["save", "-o", &out, "stack"]));
                succeed(lab.rbuild(["rmi", "stack"]));
                succeed(lab.rbuild(["prune", "-a"]));
                succeed(lab.rbuild(["load", "-q", "-i", &out]));
                succeed(lab.build("FROM stack\n", &tar));
                self.compare("save and load", &lab, "out.tar");
            }
            _ => {}
        }
    }

    /// Copies a file from an image that is not unpacked.
    fn one_file(&self, lab: &Lab, random: &mut Random) {
        let plain =
            |path: &&PathBuf| path.to_str().is_some_and(|p| p.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'/'));
        let files = self.oracle.files();
        let files: Vec<&PathBuf> = files.iter().filter(plain).collect();
        if files.is_empty() {
            return;
        }
        let path = random.pick(&files);
        let Some(Node::File(_, content, ..)) = self.oracle.nodes.get(*path) else { return };
        let file = format!("FROM scratch\nCOPY --from=stack /{} /f\n", path.display());
        let ran = lab.build(&file, &["-o", "out"]);
        assert_eq!(ran.code, Some(0), "{path:?} {}{}", self.text(), ran.stderr);
        let out = lab.ctx().join("out");
        let found = std::fs::read(out.join("f")).unwrap();
        assert!(found == vec![content.0; content.1], "seed {}: another file at {path:?}", self.seed);
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn random_stacks_of_layers_match_the_oracle() {
    let time = Duration::from_secs(number("RBUILD_STACKS_SECONDS").unwrap_or(5));
    if let Some(seed) = number("RBUILD_STACKS_SEED") {
        return Stack::new(seed).check();
    }
    let clock = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    // The same stacks each time, unless a duration is given.
    let first = if number("RBUILD_STACKS_SECONDS").is_some() { clock } else { 1 };
    let (mut seeds, began) = (Random(first), Instant::now());
    while began.elapsed() < time {
        let seed = seeds.next();
        println!("RBUILD_STACKS_SEED={seed}");
        Stack::new(seed).check();
    }
}
