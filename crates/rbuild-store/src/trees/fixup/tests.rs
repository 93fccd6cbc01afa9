//! Tables of stacks of layers, their references to lower layers, and the fix-up trees that result.
//!
//! A tree is a list of lines, one for each entry:
//!
//! | line | entry |
//! |---|---|
//! | `d PATH MODE MTIME [opaque] [whiteouts]` | directory; `.` is the root; marks of overlayfs |
//! | `f PATH CONTENT` | regular file |
//! | `h PATH OTHER` | hard link to `OTHER` of the same tree |
//! | `s PATH TARGET` | symbolic link |
//! | `w PATH` | whiteout |
//!
//! A tree without a line for its root has [`ROOT`]. The time of a directory that no layer has is
//! `new`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};

use rbuild_layer::{LowerRefs, OPAQUE, ORIGIN};
use rbuild_linux::{FileKind, RootDir, Timestamp};
use rbuild_testkit::{Scratch, assert_recorded, message_row};

use crate::ids::BuildId;
use crate::session::Session;
use crate::store::Store;
use crate::trees::id::TreeId;
use crate::trees::notes::LOWER_REFS;
use crate::workspace::Workspace;

const ROOT: &str = "d . 755 1";

type Lines<'a> = &'a [&'a str];

fn write(dir: &RootDir, lines: Lines<'_>) {
    for line in lines {
        let fields: Vec<&str> = line.split(' ').collect();
        let (parent, name) = match fields[1] {
            "." => continue,
            path => dir.parent(Path::new(path)).unwrap(),
        };
        match fields[0] {
            "d" => parent.create_dir(&name, 0o755).unwrap(),
            "f" => parent.create_file(&name, 0o644).unwrap().write_all(fields[2].as_bytes()).unwrap(),
            "h" => {
                let (old_dir, old) = dir.parent(Path::new(fields[2])).unwrap();
                parent.hard_link(&old_dir, &old, &name).unwrap();
            }
            "s" => parent.create_symlink(OsStr::new(fields[2]), &name).unwrap(),
            "w" => parent.create_whiteout(&name).unwrap(),
            _ => panic!("{line}"),
        }
    }
    let has_root = lines.first().is_some_and(|line| line.starts_with("d . "));
    let lines = if has_root { lines.to_vec() } else { [&[ROOT], lines].concat() };
    // Parents come first, and get their times last.
    for line in lines.iter().rev().filter(|line| line.starts_with("d ")) {
        let fields: Vec<&str> = line.split(' ').collect();
        let of = if fields[1] == "." { dir.try_clone().unwrap() } else { dir.sub(fields[1]).unwrap() };
        for mark in &fields[4..] {
            let (attribute, value) = if *mark == "opaque" { (OPAQUE, &b"y"[..]) } else { (ORIGIN, &b""[..]) };
            of.set_xattr(OsStr::new(""), OsStr::new(attribute), value).unwrap();
        }
        let own = rbuild_linux::credentials::own_ids();
        let mode = u32::from_str_radix(fields[2], 8).unwrap();
        of.set_own_meta(own, mode, Timestamp { sec: fields[3].parse().unwrap(), nsec: 0 }).unwrap();
    }
}

/// Returns the lines of a tree, sorted by path.
fn read(dir: &RootDir) -> Vec<String> {
    fn below(dir: &RootDir, path: &Path, links: &mut BTreeMap<u64, PathBuf>, lines: &mut Vec<String>) {
        let stat = dir.stat_self().unwrap();
        let marks = dir.xattrs(OsStr::new("")).unwrap();
        let has = |mark: &str, word| if marks.contains_key(OsStr::new(mark)) { word } else { "" };
        let shown = if path == Path::new("") { Path::new(".") } else { path };
        let (opaque, whiteouts) = (has(OPAQUE, " opaque"), has(ORIGIN, " whiteouts"));
        let mtime = if stat.mtime.sec > 99 { "new".to_string() } else { stat.mtime.sec.to_string() };
        lines.push(format!("d {} {:o} {mtime}{opaque}{whiteouts}", shown.display(), stat.mode));
        let mut names: Vec<_> = dir.entries().unwrap().into_iter().map(|entry| entry.name).collect();
        names.sort();
        for name in names {
            let (stat, here) = (dir.stat_name(&name).unwrap(), path.join(&name));
            let shown = here.display();
            if dir.is_whiteout(&name, &stat).unwrap() {
                lines.push(format!("w {shown}"));
            } else if stat.kind == FileKind::Dir {
                below(&dir.sub(&name).unwrap(), &here, links, lines);
            } else if let Some(first) = links.get(&stat.ino) {
                lines.push(format!("h {shown} {}", first.display()));
            } else if stat.kind == FileKind::Symlink {
                lines.push(format!("s {shown} {}", dir.read_link(&name).unwrap().display()));
            } else {
                links.insert(stat.ino, here.clone());
                lines.push(format!("f {shown} {}", String::from_utf8(dir.read(&name, 100).unwrap()).unwrap()));
            }
        }
    }
    let mut lines = Vec::new();
    below(dir, Path::new(""), &mut BTreeMap::new(), &mut lines);
    lines
}

struct Scene {
    store: Store,
    made: usize,
    path: Scratch,
}

impl Scene {
    fn new() -> Scene {
        let path = Scratch::new();
        let store = Store::open(&path).unwrap();
        Scene { store, made: 0, path }
    }

    /// Makes the tree of a layer, with a note about its references if there are any.
    fn layer(&mut self, lines: Lines<'_>, lower_refs: &LowerRefs) -> TreeId {
        self.made += 1;
        let id = TreeId::of_dir(&format!("l{:064x}", self.made));
        let dir = self.store.root.create_dir_all(Path::new("trees").join(id.name()), 0o700, None, |_| ()).unwrap();
        dir.create_dir(OsStr::new("fs"), 0o755).unwrap();
        write(&dir.sub("fs").unwrap(), lines);
        if *lower_refs != LowerRefs::default() {
            self.store.trees().put_note(&dir, LOWER_REFS, &lower_refs.to_bytes()).unwrap();
        }
        id
    }

    fn with_fixups(&self, layers: &[TreeId]) -> crate::Result<Vec<TreeId>> {
        let work = Workspace::open(&self.store).unwrap();
        let build = BuildId::of_command("build");
        let session = Session::new(&self.store, &work, &build, 0);
        self.store.image_trees().with_fixups(session, layers.to_vec())
    }

    fn read(&self, tree: &TreeId) -> Vec<String> {
        read(&self.store.trees().tree(tree).unwrap())
    }
}

/// A stack of layers, of which the last refers to the others.
struct Case<'a> {
    name: &'a str,
    /// The lower layers, lowest first.
    lower: &'a [Lines<'a>],
    layer: Lines<'a>,
    /// Directories that the layer uses without describing.
    dirs: Lines<'a>,
    /// Hard links to files outside the layer, as `LINK TARGET`.
    links: Lines<'a>,
    /// True if the layer does not describe its root.
    root: bool,
    /// The fix-up tree; empty if there is none.
    fixup: Lines<'a>,
}

/// A case without references.
const NONE: Case<'_> = Case { name: "", lower: &[], layer: &[], dirs: &[], links: &[], root: false, fixup: &[] };

impl Case<'_> {
    fn lower_refs(&self) -> LowerRefs {
        let link = |link: &&str| link.split_once(' ').map(|(link, target)| (link.into(), target.into())).unwrap();
        LowerRefs {
            dirs: self.dirs.iter().map(PathBuf::from).collect(),
            links: self.links.iter().map(link).collect(),
            root: self.root,
        }
    }

    /// Makes the trees of the case and the fix-up tree.
    fn run(&self, scene: &mut Scene) -> (Vec<TreeId>, crate::Result<Vec<TreeId>>) {
        let mut layers: Vec<_> = self.lower.iter().map(|lines| scene.layer(lines, &LowerRefs::default())).collect();
        layers.push(scene.layer(self.layer, &self.lower_refs()));
        let with_fixups = scene.with_fixups(&layers);
        (layers, with_fixups)
    }

    fn check(&self) {
        let mut scene = Scene::new();
        let (layers, with_fixups) = self.run(&mut scene);
        let before: Vec<_> = layers.iter().map(|tree| scene.read(tree)).collect();
        let with_fixups = with_fixups.unwrap();
        let (stack, fixups) = with_fixups.split_at(layers.len());
        assert_eq!(stack, layers, "{}: the trees of the layers keep their order", self.name);
        let fixup = fixups.iter().map(|tree| scene.read(tree)).collect::<Vec<_>>();
        assert_eq!(fixup.concat(), self.fixup, "{}", self.name);
        assert_eq!(scene.with_fixups(&layers).unwrap(), with_fixups, "{}: the second time", self.name);
        let after: Vec<_> = layers.iter().map(|tree| scene.read(tree)).collect();
        assert_eq!(after, before, "{}: trees of layers never change", self.name);
    }
}

const ETC: Lines<'_> = &["d etc 700 5", "f etc/a A"];

const LAYER: Lines<'_> = &["d etc 755 9", "f etc/b B"];

const UNDESCRIBED: &[Case<'_>] = &[
    Case { name: "nothing is undescribed", lower: &[ETC], layer: LAYER, ..NONE },
    Case {
        name: "the root, which lower layers have alike",
        lower: &[ETC],
        layer: &["d . 755 2", "f b B"],
        root: true,
        ..NONE
    },
    Case {
        name: "the root, which lower layers have otherwise",
        lower: &[&["d . 711 4"]],
        layer: &["d . 755 2", "f b B"],
        root: true,
        fixup: &["d . 711 4"],
        ..NONE
    },
    Case {
        name: "a directory of a lower layer",
        lower: &[ETC],
        layer: LAYER,
        dirs: &["etc"],
        fixup: &[ROOT, "d etc 700 5"],
        ..NONE
    },
    Case {
        name: "a directory of two lower layers: the higher one describes it",
        lower: &[ETC, &["d etc 750 6"]],
        layer: LAYER,
        dirs: &["etc"],
        fixup: &[ROOT, "d etc 750 6"],
        ..NONE
    },
    Case {
        name: "a directory below a described one, which keeps its own metadata",
        lower: &[&["d etc 700 5", "d etc/x 711 6"]],
        layer: &["d etc 750 9", "d etc/x 755 9", "f etc/x/b B"],
        dirs: &["etc/x"],
        fixup: &[ROOT, "d etc 750 9", "d etc/x 711 6"],
        ..NONE
    },
    Case { name: "a directory that no lower layer has", lower: &[&["f a A"]], layer: LAYER, dirs: &["etc"], ..NONE },
    Case {
        name: "a directory that a lower layer deletes",
        lower: &[ETC, &["w etc"]],
        layer: LAYER,
        dirs: &["etc"],
        ..NONE
    },
    Case {
        name: "a directory that an opaque directory of a lower layer hides",
        lower: &[&["d etc 700 5", "d etc/x 711 6"], &["d etc 750 7 opaque"]],
        layer: &["d etc 755 9", "d etc/x 755 9", "f etc/x/b B"],
        dirs: &["etc", "etc/x"],
        fixup: &[ROOT, "d etc 750 7"],
        ..NONE
    },
    Case {
        name: "a directory in an opaque directory of the layer itself",
        lower: &[&["d etc 700 5", "d etc/x 711 6"]],
        layer: &["d etc 755 9 opaque", "d etc/x 755 9", "f etc/x/b B"],
        dirs: &["etc/x"],
        ..NONE
    },
    Case {
        name: "an opaque directory",
        lower: &[ETC],
        layer: &["d etc 755 9 opaque", "f etc/b B"],
        dirs: &["etc"],
        fixup: &[ROOT, "d etc 700 5"],
        ..NONE
    },
    Case { name: "a directory in place of a file", lower: &[&["f etc A"]], layer: LAYER, dirs: &["etc"], ..NONE },
    Case { name: "the lowest layer", layer: LAYER, dirs: &["etc"], root: true, ..NONE },
];

#[test]
fn undescribed_directories_take_the_metadata_of_lower_layers() {
    UNDESCRIBED.iter().for_each(Case::check);
}

const LIB: Lines<'_> = &["s lib usr/lib", "d usr 711 3", "d usr/lib 700 5", "f usr/lib/a A"];

const AT_LINKS: &[Case<'_>] = &[
    Case {
        name: "files, whiteouts and directories",
        lower: &[LIB],
        layer: &["d lib 755 9", "f lib/b B", "s lib/c b", "d lib/d 751 8 opaque", "f lib/d/e E", "w lib/a"],
        dirs: &["lib"],
        fixup: &[
            ROOT,
            "s lib usr/lib",
            "d usr 711 3",
            "d usr/lib 700 5 whiteouts",
            "w usr/lib/a",
            "f usr/lib/b B",
            "s usr/lib/c b",
            "d usr/lib/d 751 8 opaque",
            "f usr/lib/d/e E",
        ],
        ..NONE
    },
    Case {
        name: "a target that the layer describes",
        lower: &[LIB],
        layer: &["d lib 755 9", "f lib/b B", "d usr 755 9", "d usr/lib 750 8", "f usr/lib/c C"],
        dirs: &["lib", "usr"],
        fixup: &[ROOT, "s lib usr/lib", "d usr 711 3", "d usr/lib 750 8", "f usr/lib/b B"],
        ..NONE
    },
    Case {
        name: "an undescribed directory below",
        lower: &[&["s lib usr/lib", "d usr 711 3", "d usr/lib 700 5", "d usr/lib/x 710 6"]],
        layer: &["d lib 755 9", "d lib/x 755 9", "f lib/x/b B"],
        dirs: &["lib", "lib/x"],
        fixup: &[ROOT, "s lib usr/lib", "d usr 711 3", "d usr/lib 700 5", "d usr/lib/x 710 6", "f usr/lib/x/b B"],
        ..NONE
    },
    Case {
        name: "a target that does not exist",
        lower: &[&["s lib usr/lib"]],
        layer: &["d lib 750 9", "f lib/b B"],
        dirs: &["lib"],
        fixup: &[ROOT, "s lib usr/lib", "d usr 755 new", "d usr/lib 750 9", "f usr/lib/b B"],
        ..NONE
    },
    Case {
        name: "an absolute link through another link",
        lower: &[&["s lib /u/lib", "s u usr", "d usr 711 3", "d usr/lib 700 5"]],
        layer: &["d lib 755 9", "f lib/b B"],
        dirs: &["lib"],
        fixup: &[ROOT, "s lib /u/lib", "d usr 711 3", "d usr/lib 700 5", "f usr/lib/b B"],
        ..NONE
    },
    Case {
        name: "a hard link of the layer to a file of a lower layer",
        lower: &[LIB],
        layer: &["d lib 755 9"],
        dirs: &["lib"],
        links: &["lib/b lib/a"],
        fixup: &[ROOT, "s lib usr/lib", "d usr 711 3", "d usr/lib 700 5", "f usr/lib/a A", "h usr/lib/b usr/lib/a"],
        ..NONE
    },
    Case {
        name: "a described directory replaces the link",
        lower: &[LIB],
        layer: &["d lib 755 9", "f lib/b B"],
        ..NONE
    },
];

#[test]
fn content_at_a_symlink_of_lower_layers_moves_to_its_target() {
    AT_LINKS.iter().for_each(Case::check);
}

const BIN: Lines<'_> = &["d bin 711 3", "f bin/a A"];

const HARD_LINKS: &[Case<'_>] = &[
    Case {
        name: "a link beside the file",
        lower: &[BIN],
        layer: &["d bin 755 9"],
        links: &["bin/b bin/a"],
        fixup: &[ROOT, "d bin 755 9", "f bin/a A", "h bin/b bin/a"],
        ..NONE
    },
    Case {
        name: "a link in a directory that the layer does not describe",
        lower: &[BIN],
        layer: &["d bin 755 9"],
        dirs: &["bin"],
        links: &["bin/b bin/a"],
        fixup: &[ROOT, "d bin 711 3", "f bin/a A", "h bin/b bin/a"],
        ..NONE
    },
    Case {
        name: "a chain of links",
        lower: &[BIN],
        layer: &["d bin 755 9"],
        links: &["bin/c bin/b", "bin/b bin/a"],
        fixup: &[ROOT, "d bin 755 9", "f bin/a A", "h bin/b bin/a", "h bin/c bin/a"],
        ..NONE
    },
    Case {
        name: "a link to a file that the layer deletes",
        lower: &[BIN],
        layer: &["d bin 755 9 whiteouts", "w bin/a"],
        links: &["bin/b bin/a"],
        fixup: &[ROOT, "d bin 755 9", "f bin/b A"],
        ..NONE
    },
    Case {
        name: "a link in place of a directory of a lower layer",
        lower: &[&["d bin 711 3", "f bin/a A", "d bin/b 755 4", "f bin/b/x X"]],
        layer: &["d bin 755 9"],
        links: &["bin/b bin/a"],
        fixup: &[ROOT, "d bin 755 9", "f bin/a A", "h bin/b bin/a"],
        ..NONE
    },
    Case {
        name: "a link to a symbolic link",
        lower: &[&["d bin 711 3", "f bin/a A", "s bin/l a"]],
        layer: &["d bin 755 9"],
        links: &["bin/b bin/l"],
        fixup: &[ROOT, "d bin 755 9", "s bin/b a", "s bin/l a"],
        ..NONE
    },
    Case {
        name: "a target in a directory that lower layers have as a symbolic link",
        lower: &[&["s sbin bin", "d bin 711 3", "f bin/a A"]],
        layer: &["f x X"],
        links: &["b sbin/a"],
        fixup: &[ROOT, "f b A", "d bin 711 3", "h bin/a b"],
        ..NONE
    },
    Case {
        name: "the file of the highest layer that has it",
        lower: &[BIN, &["d bin 711 3", "f bin/a NEW"]],
        layer: &["d bin 755 9"],
        links: &["bin/b bin/a"],
        fixup: &[ROOT, "d bin 755 9", "f bin/a NEW", "h bin/b bin/a"],
        ..NONE
    },
];

#[test]
fn hard_links_to_lower_layers_have_both_names_in_the_fixup_tree() {
    HARD_LINKS.iter().for_each(Case::check);
}

#[test]
fn hard_links_without_a_file_are_refused() {
    let lower: Lines<'_> = &["d bin 711 3", "f bin/a A", "d bin/d 755 4"];
    let cases = [
        ("no such file", &[lower][..], &["b bin/none"][..]),
        ("no lower layer", &[], &["b bin/a"]),
        ("below a whiteout", &[lower, &["w bin"]], &["b bin/a"]),
        ("below an opaque directory", &[lower, &["d bin 755 4 opaque"]], &["b bin/a"]),
        ("a cycle", &[lower], &["b c", "c b"]),
        ("a directory", &[lower], &["b bin/d"]),
    ];
    let rows = cases.map(|(name, lower, links)| {
        let case = Case { lower, layer: &["f x X"], links, ..NONE };
        let e = case.run(&mut Scene::new()).1.unwrap_err();
        message_row(name, &e, e.remedy())
    });
    assert_recorded!("hard-links", rows.concat());
}

#[test]
fn an_opaque_root_drops_the_trees_below() {
    let mut scene = Scene::new();
    let rootless = LowerRefs { root: true, ..LowerRefs::default() };
    let lower = scene.layer(&["d . 711 4", "f a A"], &LowerRefs::default());
    let opaque = scene.layer(&["d . 755 5 opaque", "f b B"], &LowerRefs::default());
    let above = scene.layer(&["d . 755 5", "f c C"], &rootless);
    assert_eq!(scene.with_fixups(&[lower.clone(), opaque.clone(), above.clone()]).unwrap(), [opaque, above.clone()]);
    assert_eq!(scene.with_fixups(&[lower, above]).unwrap().len(), 3, "without it there is a fix-up tree");
}

#[test]
fn a_fixup_tree_belongs_to_one_stack() {
    let mut scene = Scene::new();
    let implied = LowerRefs { dirs: vec!["etc".into()], ..LowerRefs::default() };
    let lower = [700, 711].map(|mode| scene.layer(&[&format!("d etc {mode} 5")], &LowerRefs::default()));
    let layer = scene.layer(&["d etc 755 9", "f etc/b B"], &implied);
    let fixups = lower.map(|lower| scene.with_fixups(&[lower, layer.clone()]).unwrap().remove(2));
    assert_ne!(fixups[0], fixups[1]);
    assert_eq!(fixups.map(|tree| scene.read(&tree)[1].clone()), ["d etc 700 5", "d etc 711 5"]);
}

#[test]
fn an_unreadable_note_is_damage() {
    let mut scene = Scene::new();
    let layer = scene.layer(&[], &LowerRefs { root: true, ..LowerRefs::default() });
    std::fs::write(scene.path.join("trees").join(layer.name()).join(LOWER_REFS), "junk").unwrap();
    let error = scene.with_fixups(&[layer]).unwrap_err();
    assert_recorded!("lower-refs", message_row("an unreadable note", &error, error.remedy()));
}
