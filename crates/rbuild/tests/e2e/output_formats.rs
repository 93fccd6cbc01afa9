//! All outputs of a build agree: generated builds are exported as a tar, as layers and as a
//! directory, squashed, saved and loaded, and used as a copy source. The layers are merged by an
//! independent flattener in this file.
//!
//! `RBUILD_OUTPUTS_SECONDS` sets a duration and uses new seeds; `RBUILD_OUTPUTS_SEED` repeats a
//! single build.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::lab::{Lab, base, contents, unzipped};

struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % most
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}

/// One entry of a result.
#[derive(Debug, Clone, PartialEq, Default)]
struct Node {
    kind: &'static str,
    mode: u32,
    owner: (u64, u64),
    /// The modification time of files and links. That of a directory depends on the last change in
    /// it and is not compared.
    mtime: u64,
    size: u64,
    content: Vec<u8>,
    attributes: Vec<(String, Vec<u8>)>,
    /// All names of a file with several hard links.
    names: Vec<Vec<u8>>,
}

type Tree = BTreeMap<Vec<u8>, Node>;

/// Indices of nodes by path; hard links share a node.
#[derive(Default)]
struct Flat {
    paths: BTreeMap<Vec<u8>, usize>,
    nodes: Vec<Node>,
}

impl Flat {
    /// Applies one layer, or a tar of the whole file system.
    fn apply(&mut self, tar: &[u8]) {
        let mut here: Vec<Vec<u8>> = Vec::new();
        let mut archive = tar::Archive::new(tar);
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = clean(&entry.path_bytes());
            let at = path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
            let (above, name) = path.split_at(at);
            if name == b".wh..wh..opq" {
                self.paths.retain(|known, _| !known.starts_with(above) || here.contains(known));
                continue;
            }
            if let Some(hidden) = name.strip_prefix(b".wh.") {
                self.remove(&[above, hidden].concat());
                continue;
            }
            if path.is_empty() {
                continue;
            }
            let header = entry.header().clone();
            if header.entry_type() != tar::EntryType::Directory {
                self.remove(&path);
            }
            let index = if header.entry_type() == tar::EntryType::Link {
                self.paths[&clean(&entry.link_name_bytes().unwrap())]
            } else {
                self.nodes.push(node_of(&header, &mut entry));
                self.nodes.len() - 1
            };
            self.paths.insert(path.clone(), index);
            here.push(path);
        }
    }

    fn remove(&mut self, path: &[u8]) {
        let below = [path, b"/"].concat();
        self.paths.retain(|known, _| known != path && !known.starts_with(&below));
    }

    fn tree(self) -> Tree {
        let mut names: BTreeMap<usize, Vec<Vec<u8>>> = BTreeMap::new();
        self.paths.iter().for_each(|(path, index)| names.entry(*index).or_default().push(path.clone()));
        let node = |index: usize| {
            let names = if names[&index].len() > 1 { names[&index].clone() } else { Vec::new() };
            Node { names, ..self.nodes[index].clone() }
        };
        self.paths.iter().map(|(path, index)| (path.clone(), node(*index))).collect()
    }
}

fn clean(path: &[u8]) -> Vec<u8> {
    let path = path.strip_prefix(b"./").unwrap_or(path);
    let path = path.strip_prefix(b"/").unwrap_or(path);
    path.strip_suffix(b"/").unwrap_or(path).to_vec()
}

fn node_of(header: &tar::Header, entry: &mut tar::Entry<'_, &[u8]>) -> Node {
    let mut node = Node {
        mode: header.mode().unwrap() & 0o7777,
        owner: (header.uid().unwrap(), header.gid().unwrap()),
        mtime: header.mtime().unwrap(),
        ..Node::default()
    };
    if let Ok(Some(extensions)) = entry.pax_extensions() {
        for extension in extensions.flatten() {
            if let Some(name) = extension.key().ok().and_then(|k| k.strip_prefix("SCHILY.xattr.")) {
                node.attributes.push((name.to_string(), extension.value_bytes().to_vec()));
            }
        }
    }
    node.attributes.sort();
    match header.entry_type() {
        tar::EntryType::Directory => (node.kind, node.mtime) = ("directory", 0),
        tar::EntryType::Symlink => {
            (node.kind, node.mode) = ("link", 0o777);
            node.content = entry.link_name_bytes().unwrap().to_vec();
        }
        tar::EntryType::Fifo => node.kind = "fifo",
        tar::EntryType::Char => node.kind = "device",
        _ => {
            node.kind = "file";
            entry.read_to_end(&mut node.content).unwrap();
            node.size = node.content.len() as u64;
        }
    }
    node
}

/// Returns the merged files of an image in an OCI archive, or in a docker-archive that is also an
/// OCI archive.
fn flattened(archive: &[u8]) -> Tree {
    let files = contents(archive);
    let json = |name: &str| -> serde_json::Value { serde_json::from_slice(&files[name]).unwrap() };
    let blob = |d: &serde_json::Value| format!("blobs/sha256/{}", &d["digest"].as_str().unwrap()["sha256:".len()..]);
    let manifest = json(&blob(&json("index.json")["manifests"][0]));
    let mut flat = Flat::default();
    for layer in manifest["layers"].as_array().unwrap() {
        let bytes = &files[&blob(layer)];
        if bytes.starts_with(&[0x1f, 0x8b]) { flat.apply(&unzipped(bytes)) } else { flat.apply(bytes) }
    }
    flat.tree()
}

fn of_tar(tar: &[u8]) -> Tree {
    let mut flat = Flat::default();
    flat.apply(tar);
    flat.tree()
}

fn of_directory(dir: &Path) -> Tree {
    let (mut flat, mut inodes) = (Flat::default(), BTreeMap::new());
    let mut stack = vec![PathBuf::new()];
    while let Some(below) = stack.pop() {
        for entry in std::fs::read_dir(dir.join(&below)).unwrap() {
            let path = below.join(entry.unwrap().file_name());
            let full = dir.join(&path);
            let meta = full.symlink_metadata().unwrap();
            let mut node = Node { mode: meta.mode() & 0o7777, mtime: meta.mtime() as u64, ..Node::default() };
            if meta.is_dir() {
                (node.kind, node.mtime) = ("directory", 0);
                stack.push(path.clone());
            } else if meta.is_symlink() {
                (node.kind, node.mode) = ("link", 0o777);
                node.content = std::fs::read_link(&full).unwrap().into_os_string().into_vec();
            } else if meta.file_type().is_fifo() {
                node.kind = "fifo";
            } else {
                (node.kind, node.size) = ("file", meta.len());
                node.content = std::fs::read(&full).unwrap();
            }
            flat.nodes.push(node);
            let index = flat.nodes.len() - 1;
            let index = if meta.is_dir() { index } else { *inodes.entry((meta.dev(), meta.ino())).or_insert(index) };
            flat.paths.insert(path.into_os_string().into_vec(), index);
        }
    }
    flat.tree()
}

/// Returns the first entry in which two trees differ. `blind` removes what one of them cannot
/// represent.
fn difference(a: &Tree, b: &Tree, blind: fn(&mut Node)) -> Option<String> {
    let seen = |tree: &Tree, path: &Vec<u8>| tree.get(path).cloned().map(|mut node| (blind(&mut node), node).1);
    let short = |node: Option<Node>| {
        format!("{:?}", node.map(|node| Node { content: node.content[..node.content.len().min(40)].to_vec(), ..node }))
    };
    a.keys().chain(b.keys()).find_map(|path| {
        let (x, y) = (seen(a, path), seen(b, path));
        (x != y).then(|| format!("{:?}:\n  {}\n  {}", String::from_utf8_lossy(path), short(x), short(y)))
    })
}

fn odd_name(random: &mut Random, number: u64) -> Vec<u8> {
    match random.below(6) {
        // The tar reader of this test does not support a line feed in an entry with PAX records. A
        // command below creates a name with a line feed and without PAX records.
        0 => format!("n{number}\ttab").into_bytes(),
        1 => [b"n\xff\xfe".as_slice(), number.to_string().as_bytes()].concat(),
        2 => format!("{number:0>255}").into_bytes(),
        3 => format!("n {number} ä").into_bytes(),
        _ => format!("n{number}").into_bytes(),
    }
}

/// Fills a directory of the context with all kinds of files.
fn grow(random: &mut Random, dir: &Path, depth: u64) {
    std::fs::create_dir_all(dir).unwrap();
    let mut files: Vec<PathBuf> = Vec::new();
    for number in 0..2 + random.below(6) {
        let path = dir.join(OsStr::from_bytes(&odd_name(random, number)));
        match random.below(8) {
            0 if depth > 0 => grow(random, &path, depth - 1),
            1 => std::fs::create_dir(&path).unwrap(),
            2 => symlink(random.one(&["n0", "../up", "/abs", "gone"]), &path).unwrap(),
            3 if !files.is_empty() => std::fs::hard_link(random.one(&files), &path).unwrap(),
            kind => {
                let content = vec![b'a' + number as u8; random.below(3000) as usize];
                std::fs::write(&path, content).unwrap();
                let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
                if kind == 4 {
                    file.set_len(1 << 20).unwrap();
                }
                file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(random.below(1 << 30))).unwrap();
                // On a file system without extended attributes, there are none in any output.
                rbuild_linux::set_file_xattr(&file, "user.way", b"out\0");
                let mode = *random.one(&[0o644, 0o600, 0o755, 0o4711, 0o2750, 0o444]);
                std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
                files.push(path);
            }
        }
    }
    let mode = *random.one(&[0o755, 0o700, 0o1777, 0o2775]);
    std::fs::set_permissions(dir, PermissionsExt::from_mode(mode)).unwrap();
}

fn dockerfile(random: &mut Random) -> String {
    const STEPS: [&str; 16] = [
        "COPY t0 /w/",
        "COPY t1 /w",
        "COPY --chown=33:50 t0 /own/deep",
        "COPY --link t1 /linked/",
        "COPY --chmod=750 t1 /mode",
        "RUN rm -rf /w && mkdir /w && echo new > /w/new",
        "RUN rm -f /w/n1 /w/n2 /mode/n1; rm -rf /own/deep; true",
        "RUN [ -d /r/a ] || rm -f /r/a; mkdir -p /r/a/b /r/empty && echo 1 > /r/a/1 && ln -f /r/a/1 /r/a/b/2 && ln -sf 1 /r/a/l",
        "RUN chown -R 33:33 /w 2>/dev/null; chmod -R g+w /r 2>/dev/null; true",
        "RUN test -p /p || mkfifo -m 620 /p; echo more >> /r/a/1 2>/dev/null; true",
        "RUN touch \"/tmp/$(printf 'new\\nline')\" && truncate -s 3000000 /tmp/holes && echo end >> /tmp/holes",
        "RUN mv /w /moved-$RANDOM_NUMBER 2>/dev/null; mkdir -p /w; true",
        "RUN rm -rf /srv && ln -s /r /srv",
        "VOLUME /vol\nRUN mkdir -p /vol/x && echo v > /vol/x/v",
        "WORKDIR /made/of/it",
        "RUN rm -rf /r/a && mkdir -p /r && echo file > /r/a; rm -rf /r/a/b; true",
    ];
    let mut text = "FROM busybox\n".to_string();
    for number in 0..3 + random.below(7) {
        text += &random.one(&STEPS).replace("$RANDOM_NUMBER", &number.to_string());
        text.push('\n');
    }
    text
}

/// Builds once and checks all outputs.
fn one(seed: u64) {
    let mut random = Random(seed);
    let lab = Lab::new();
    for name in ["t0", "t1"] {
        grow(&mut random, &lab.ctx().join(name), 2);
    }
    let text = dockerfile(&mut random);
    let compression = random.one(&["gzip", "uncompressed"]);
    let assert_none = |way: &str, found: Option<String>| {
        assert!(found.is_none(), "seed {seed}, {way}: {}\n{text}", found.unwrap_or_default());
    };
    let at = |name: &str| lab.path(name).display().to_string();
    let [tar, oci, dir, docker] = ["tar", "oci", "dir", "docker"].map(at);
    lab.build(
        &text,
        &[
            "-t",
            "made",
            "-o",
            &format!("type=tar,dest={tar}"),
            "-o",
            &format!("type=local,dest={dir}"),
            "-o",
            &format!("type=oci,dest={oci},compression={compression}"),
            "-o",
            &format!("type=docker,dest={docker}"),
        ],
    )
    .ok();
    let read = |path: &str| std::fs::read(path).unwrap();
    let want = of_tar(&read(&tar));
    assert_none("oci", difference(&want, &flattened(&read(&oci)), |_| ()));
    assert_none("docker", difference(&want, &flattened(&read(&docker)), |_| ()));
    let blind = |node: &mut Node| {
        // In a local export, the caller owns all files, and the time of a link depends on the file
        // system.
        (node.owner, node.attributes) = ((0, 0), Vec::new());
        node.mtime = if node.kind == "file" { node.mtime } else { 0 };
    };
    assert_none("local", difference(&want, &of_directory(Path::new(&dir)), blind));
    let squashed = at("squashed");
    lab.build(&text, &["--squash", "-o", &format!("type=oci,dest={squashed}")]).ok();
    assert_none("squash", difference(&want, &flattened(&read(&squashed)), |_| ()));
    let saved = at("saved");
    lab.rbuild(["save", "-o", &saved, "made"]).ok();
    assert_none("save", difference(&want, &flattened(&read(&saved)), |_| ()));
    let other = Lab::bare();
    other.rbuild(["load", "-q", "-i", &saved]).ok();
    let again = other.path("tar").display().to_string();
    let output = format!("type=tar,dest={again}");
    other.build("FROM made\n", &["-o", &output]).ok();
    assert_none("load", difference(&want, &of_tar(&read(&again)), |_| ()));
    other.build("FROM scratch\nCOPY --from=made / /\n", &["-o", &output]).ok();
    assert_none("copy", difference(&want, &of_tar(&read(&again)), |node| node.names.clear()));
}

#[test]
fn all_output_types_agree() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    assert!(base("busybox.tar").exists());
    if let Some(seed) = number("RBUILD_OUTPUTS_SEED") {
        return one(seed);
    }
    // Without a given duration, the builds are the same each time; each suite of scripts/test runs
    // a part for half a minute.
    let (seconds, first) = match number("RBUILD_OUTPUTS_SECONDS") {
        Some(seconds) => (seconds, std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()),
        None => (6, 1),
    };
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut seed = first;
    while Instant::now() < end {
        // Printed only if the test fails.
        println!("seed {seed}");
        one(seed);
        seed += 1;
    }
    println!("{} builds from seed {first} on", seed - first);
}
