//! Compares the merged content of a stack with the result of applying its trees one after the other
//! to a list of paths.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rbuild_layer::OPAQUE;
use rbuild_linux::{FileKind, RootDir};
use rbuild_testkit::Scratch;

use super::distinct;
use crate::trees::copies::{MergedFiles, MergedWhiteouts, merge};
use crate::trees::id::TreeId;
use crate::trees::merged::MergedTree;

/// An entry of a tree, in overlay form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    File(u8),
    /// A hard link to the file `a` of the same tree, if that is a file.
    Link,
    Dir,
    Opaque,
    Whiteout,
}

const PATHS: [&str; 8] = ["a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "d/e/b"];

type Tree = BTreeMap<&'static str, Node>;

fn tree() -> impl Strategy<Value = Tree> {
    let node = prop_oneof![
        2 => any::<u8>().prop_map(Node::File),
        1 => Just(Node::Link),
        3 => Just(Node::Dir),
        1 => Just(Node::Opaque),
        2 => Just(Node::Whiteout),
    ];
    let nodes = prop::collection::vec(prop::option::weighted(0.6, node), PATHS.len());
    nodes.prop_map(|nodes| {
        let all: Tree = PATHS.into_iter().zip(nodes).filter_map(|(path, node)| Some((path, node?))).collect();
        let is_dir = |path: &str| matches!(all.get(path), Some(Node::Dir | Node::Opaque));
        let fits =
            |path: &str| Path::new(path).ancestors().skip(1).all(|p| p == Path::new("") || is_dir(p.to_str().unwrap()));
        all.iter().filter(|(path, _)| fits(path)).map(|(path, node)| (*path, *node)).collect()
    })
}

fn content(tree: &Tree, path: &str) -> Option<u8> {
    match (tree.get(path)?, tree.get("a")) {
        (Node::File(content), _) | (Node::Link, Some(Node::File(content))) => Some(*content),
        (Node::Link, _) => Some(0),
        _ => None,
    }
}

fn write(tree: &Tree, dir: &RootDir) {
    for (path, node) in tree {
        let (parent, name) = dir.parent(Path::new(path)).unwrap();
        match node {
            Node::Link if *path != "a" && matches!(tree.get("a"), Some(Node::File(_))) => {
                parent.hard_link(dir, OsStr::new("a"), &name).unwrap();
            }
            Node::File(_) | Node::Link => {
                parent.create_file(&name, 0o644).unwrap().write_all(&[content(tree, path).unwrap()]).unwrap();
            }
            Node::Whiteout => parent.create_whiteout(&name).unwrap(),
            Node::Dir | Node::Opaque => {
                parent.create_dir(&name, 0o755).unwrap();
                if *node == Node::Opaque {
                    parent.set_xattr(&name, OsStr::new(OPAQUE), b"y").unwrap();
                }
            }
        }
    }
}

/// The resulting paths: files with their content, directories without.
type Shown = BTreeMap<String, Option<u8>>;

fn applied(trees: &[&Tree]) -> Shown {
    let mut shown = Shown::new();
    for tree in trees {
        for (path, node) in tree.iter() {
            let below = format!("{path}/");
            let is_dir = matches!(node, Node::Dir | Node::Opaque);
            if !is_dir || *node == Node::Opaque || shown.get(*path) != Some(&None) {
                shown.retain(|p, _| p != path && !p.starts_with(&below));
            }
            if *node != Node::Whiteout {
                shown.insert(path.to_string(), content(tree, path));
            }
        }
    }
    shown
}

fn seen(dir: &RootDir) -> Shown {
    let mut shown = Shown::new();
    let mut stack = vec![(PathBuf::new(), dir.try_clone().unwrap())];
    while let Some((path, dir)) = stack.pop() {
        for entry in dir.entries().unwrap() {
            let here = path.join(&entry.name);
            let name = here.to_str().unwrap().to_string();
            if dir.stat_name(&entry.name).unwrap().kind == FileKind::Dir {
                stack.push((here, dir.sub(&entry.name).unwrap()));
                shown.insert(name, None);
            } else {
                let mut content = Vec::new();
                dir.open_name(&entry.name).unwrap().read_to_end(&mut content).unwrap();
                shown.insert(name, content.first().copied());
            }
        }
    }
    shown
}

/// Returns the paths that the stack shows where it is read in place.
fn seen_in_place(tree: &MergedTree) -> Shown {
    let mut shown = Shown::new();
    let mut stack = vec![tree.top()];
    while let Some(at) = stack.pop() {
        let dir = tree.open(at).unwrap();
        for entry in dir.entries().unwrap() {
            let name = dir.path().join(&entry.name).to_str().unwrap().to_string();
            if entry.stat.kind == FileKind::Dir {
                stack.push(dir.below(&entry));
                shown.insert(name, None);
            } else {
                let mut content = Vec::new();
                dir.holder(&entry).open_name(&entry.name).unwrap().read_to_end(&mut content).unwrap();
                shown.insert(name, content.first().copied());
            }
        }
    }
    shown
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_stack_without_repeated_trees_is_the_same_merged_or_read_in_place(
        trees in prop::collection::vec(tree(), 3),
        stack in prop::collection::vec(0..3usize, 1..7),
    ) {
        let temp = Scratch::new();
        for (i, tree) in trees.iter().enumerate() {
            std::fs::create_dir(temp.join(i.to_string())).unwrap();
            write(tree, &RootDir::open(temp.join(i.to_string())).unwrap());
        }
        let ids: Vec<TreeId> = stack.iter().map(|i| TreeId::of_dir(&i.to_string())).collect();
        let kept = distinct(&ids);
        let number = |id: &&TreeId| id.name().parse::<usize>().unwrap();
        let open: Vec<RootDir> = kept.iter().map(|id| RootDir::open(temp.join(id.name())).unwrap()).collect();
        std::fs::create_dir(temp.join("merged")).unwrap();
        let merged = RootDir::open(temp.join("merged")).unwrap();
        merge(&open, &merged, MergedFiles::Copied, MergedWhiteouts::Applied).unwrap();
        let all = applied(&stack.iter().map(|i| &trees[*i]).collect::<Vec<_>>());
        let few = applied(&kept.iter().map(|id| &trees[number(id)]).collect::<Vec<_>>());
        let found = seen(&merged);
        let in_place = seen_in_place(&MergedTree::stacked(open));
        prop_assert_eq!(&few, &all);
        prop_assert_eq!(found, all.clone());
        prop_assert_eq!(in_place, all);
        prop_assert!(kept.iter().enumerate().all(|(i, id)| !kept[..i].contains(id)));
    }
}
