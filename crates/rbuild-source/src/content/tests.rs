use std::ffi::OsStr;

use rbuild_linux::RootDir;

use super::*;
use crate::{Ignore, StoreDir};
use rbuild_paths::SourcePattern;
use rbuild_testkit::Scratch;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

struct Temp(Scratch);
impl Temp {
    fn new() -> Temp {
        let dir = Scratch::new();
        std::fs::create_dir_all(dir.join("d/e")).unwrap();
        for (path, text) in [("a.go", "1"), ("b.go", "2"), ("d/x", "x"), ("d/e/y", "y"), (".dockerignore", "")] {
            std::fs::write(dir.join(path), text).unwrap();
        }
        Temp(dir)
    }
    fn digest(&self, source: &str, ignore: &str) -> Result<SelectionHash, SourceError> {
        let root = RootDir::open(&self.0).unwrap();
        let ignore = Ignore::parse(ignore).unwrap();
        let tree = SourceTree { ignore: Some(&ignore), ..SourceTree::whole(&root, Owner::Root) };
        content(&tree, &tree.select(&SourcePattern::parse(source))?).map(|content| content.digest)
    }
    fn names(&self, source: &str, ignore: &str) -> Vec<String> {
        let root = RootDir::open(&self.0).unwrap();
        let ignore = Ignore::parse(ignore).unwrap();
        let tree = SourceTree { ignore: Some(&ignore), ..SourceTree::whole(&root, Owner::Root) };
        let mut names = Vec::new();
        for item in tree.select(&SourcePattern::parse(source)).unwrap() {
            names.push(item.path.to_string_lossy().into_owned());
            if item.stat.kind == FileKind::Dir {
                tree.walk::<SourceError>(&item.path, |_, p, _| {
                    let _: () = names.push(p.to_string_lossy().into_owned());
                    Ok(())
                })
                .unwrap();
            }
        }
        names
    }
}

#[test]
fn exactly_the_relevant_fields_change_the_digest() {
    let t = Temp::new();
    let before = t.digest(".", "").unwrap();
    let file = t.0.join("d/x");
    std::fs::File::options().write(true).open(&file).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(t.digest(".", "").unwrap(), before, "time");
    let mut seen = vec![before];
    let mut changed = |field: &str| {
        let now = t.digest(".", "").unwrap();
        assert!(!seen.contains(&now), "{field}");
        seen.push(now);
    };
    std::fs::write(&file, "z").unwrap();
    changed("bytes");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o700)).unwrap();
    changed("mode");
    std::fs::rename(&file, t.0.join("d/w")).unwrap();
    changed("name");
    symlink("w", &file).unwrap();
    changed("link");
    std::fs::remove_file(&file).unwrap();
    symlink("v", &file).unwrap();
    changed("target");
    let root = RootDir::open(&t.0).unwrap();
    root.set_xattr(OsStr::new("a.go"), OsStr::new("user.x"), b"1").unwrap();
    changed("attribute");
    // Files that are not selected have no effect.
    let only = t.digest("b.go", "").unwrap();
    std::fs::write(t.0.join("a.go"), "other").unwrap();
    assert_eq!(t.digest("b.go", "").unwrap(), only);
}

#[test]
fn ignore_rules_apply_to_patterns_and_directories() {
    let t = Temp::new();
    assert_eq!(t.names("*.go", ""), ["a.go", "b.go"]);
    assert_eq!(t.names("*.go", "a.*"), ["b.go"]);
    assert_eq!(t.names("*.nothing", ""), Vec::<String>::new());
    assert_eq!(t.names("d", ""), ["d", "e", "e/y", "x"]);
    assert_eq!(t.names("d", "**/y"), ["d", "e", "x"]);
    assert_eq!(t.names("d", "d\n!d/e/y"), ["d", "e", "e/y"]);
    assert_eq!(t.names("../../d/./e", ""), ["d/e", "y"]);
    symlink("d/e", t.0.join("link")).unwrap();
    assert_eq!(t.names("link", ""), ["d/e", "y"]);
}

#[test]
fn missing_files_are_reported_with_similar_names() {
    let t = Temp::new();
    let Err(SourceError::NotFound { similar, ignored, .. }) = t.digest("A.GO", "") else { panic!() };
    assert_eq!((similar.as_deref(), ignored), (Some("a.go"), None));
    let Err(SourceError::NotFound { ignored, .. }) = t.digest("a.go", "*.go") else { panic!() };
    assert_eq!(ignored.map(|rule| (rule.line, rule.pattern)), Some((1, "*.go".into())));
    symlink("/etc/passwd", t.0.join("out")).unwrap();
    assert!(matches!(t.digest("out", ""), Err(SourceError::DeadLink { .. })));
}

#[test]
fn a_selected_link_must_not_dangle() {
    let t = Temp::new();
    symlink("/nope/x", t.0.join("dead")).unwrap();
    symlink("a.go", t.0.join("left-out")).unwrap();
    for source in ["dead", "d*", "dead/"] {
        let Err(SourceError::DeadLink { path, target }) = t.digest(source, "") else { panic!("{source}") };
        assert_eq!((path.trim_end_matches('/').replace('*', "ead"), target), ("dead".into(), "/nope/x".into()));
    }
    let Err(SourceError::NotFound { ignored: Some(_), .. }) = t.digest("left*", "a.go") else { panic!() };
    // Ignored links, and links inside a directory, may dangle.
    t.digest("d*", "dead").unwrap();
    t.digest(".", "").unwrap();
}

/// Pins the digests. A change invalidates all caches: it must be intended, and requires a new
/// number in "content 5".
#[test]
fn content_digests_are_stable() {
    let t = Temp::new();
    for (path, mode) in [("a.go", 0o644), ("b.go", 0o600), ("d/x", 0o755), ("d/e/y", 0o644), (".dockerignore", 0o644)] {
        std::fs::set_permissions(t.0.join(path), PermissionsExt::from_mode(mode)).unwrap();
    }
    for dir in ["", "d", "d/e"] {
        std::fs::set_permissions(t.0.join(dir), PermissionsExt::from_mode(0o755)).unwrap();
    }
    std::fs::write(t.0.join("large"), vec![7u8; 9_000_000]).unwrap();
    std::fs::set_permissions(t.0.join("large"), PermissionsExt::from_mode(0o644)).unwrap();
    symlink("a.go", t.0.join("link")).unwrap();
    let named = |source: &str| t.digest(source, "").unwrap().hex()[..16].to_string();
    assert_eq!(
        [named("."), named("d"), named("*.go"), named("large"), named("link")],
        ["5fffb37573a69129", "1943a8838e6eabd9", "287079a6065f36b7", "e70188ebe409c7b5", "d9712f38b5c49af3"]
    );
}

/// Selects a source (`=` precedes a literal path) under an ignore file, whose lines `;` separates.
/// Returns the selected items as text, or the error.
fn selection_or_error(dir: &Path, source: &str, ignore: &str) -> String {
    let root = RootDir::open(dir).unwrap();
    let ignore = Ignore::parse(&ignore.replace(';', "\n")).unwrap();
    let tree = SourceTree { ignore: Some(&ignore), ..SourceTree::whole(&root, Owner::Root) };
    let found = match source.strip_prefix('=') {
        Some(literal) => tree.select_literal(literal).map(|item| vec![item]),
        None => tree.select(&SourcePattern::parse(source)),
    };
    match found {
        Ok(items) => {
            items.iter().map(|i| format!("{} {}", i.name.display(), i.path.display())).collect::<Vec<_>>().join(", ")
        }
        Err(SourceError::NotFound { ignored: Some(_), .. }) => "ignored".into(),
        Err(SourceError::NotFound { .. }) => "not found".into(),
        Err(e) => e.to_string().split(':').next().unwrap().to_string(),
    }
}

/// Each case is an ignore file (`;` separates lines), a source, and the selection.
#[test]
fn sources_select_files_that_are_not_ignored() {
    let t = Temp::new();
    for (link, target) in [("link", "a.go"), ("deep", "d/e"), ("chain", "link"), ("out", "/etc"), ("d/up", "../b.go")] {
        symlink(target, t.0.join(link)).unwrap();
    }
    std::fs::write(t.0.join("[i]"), "").unwrap();
    std::fs::write(t.0.join("b\\q"), "").unwrap();
    for (ignore, source, want) in [
        ("", "link", "link a.go"),
        ("a.go", "link", "ignored"),
        ("a.go", "chain", "ignored"),
        ("link", "chain", "ignored"),
        ("a.go", "lin*", "ignored"),
        // The directory before a pattern must exist.
        ("", "none/*", "not found"),
        ("", "d/none/*/x", "not found"),
        ("", "a.go/none/*", "not found"),
        ("", "a.go/*", ""),
        ("", "d/none*", ""),
        ("d", "d/*", "ignored"),
        ("d;!d/x", "d/*", "x d/x"),
        ("a.go", "*.go", "b.go b.go"),
        ("d", "deep", "ignored"),
        ("d/e", "deep/y", "ignored"),
        ("deep", "deep/y", "ignored"),
        ("b.go", "d/up", "ignored"),
        ("d;!d/e/y", "deep/y", "y d/e/y"),
        ("d;!d/e/y", "deep/z", "not found"),
        ("", "out", "`out` is a symbolic link to `/etc`, which does not exist"),
        ("", "o*", "`out` is a symbolic link to `/etc`, which does not exist"),
        // An ignored directory exists only if a negated rule re-includes something in it.
        ("d", "d", "ignored"),
        ("d/*", "d", "d d"),
        ("d/**", "d", "d d"),
        ("d;!d/none", "d", "ignored"),
        ("d;!d/e/y", "d", "d d"),
        ("*;!d/e/y", "d/e", "e d/e"),
        ("*;!d/x", "d/e", "ignored"),
        ("*", ".", " "),
        // Wildcards do not match through links; the literal path before them may contain links.
        ("", "dee*/y", ""),
        ("", "deep/*", "y d/e/y"),
        ("", "d*", "d d, deep d/e"),
        // Literal paths and escapes.
        ("", "=[i]", "[i] [i]"),
        ("", "[[]i]", "[i] [i]"),
        ("", "[i]", ""),
        ("", "=a.*", "not found"),
        ("", "b\\q", "b\\q b\\q"),
        ("", "b\\[q", "not found"),
        ("", "[]a]", "invalid pattern `[]a]`"),
        ("", "d/[a-b-c]", "invalid pattern `d/[a-b-c]`"),
        ("", "nothing/[-]", "invalid pattern `nothing/[-]`"),
    ] {
        assert_eq!(selection_or_error(&t.0, source, ignore), want, "{source} without {ignore}");
    }
}

/// Uses the directory `d` as the store. Returns the selected entries, with those below them, or the
/// error, and the path at which the store was skipped.
fn without_store(dir: &Path, source: &SourcePattern) -> (String, Option<PathBuf>) {
    let root = RootDir::open(dir).unwrap();
    let store = StoreDir::new(root.stat(Path::new("d")).unwrap().inode());
    let tree = SourceTree { store: Some(&store), ..SourceTree::whole(&root, Owner::Root) };
    let mut found = Vec::new();
    let selected = tree.select(source).map(|items| {
        for item in &items {
            found.push(item.path.clone());
            if item.stat.kind == FileKind::Dir && item.take != CopiedPart::Above {
                let below = tree.walk_selected::<SourceError>(item, |_, path, _| {
                    found.push(item.path.join(path));
                    Ok(())
                });
                below.unwrap();
            }
        }
    });
    let found = match selected {
        Ok(()) => found.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" "),
        Err(e) => e.to_string(),
    };
    (found, store.skipped_path().map(Path::to_path_buf))
}

#[test]
fn the_store_is_not_part_of_a_context() {
    let t = Temp::new();
    std::fs::create_dir_all(t.0.join("up/in")).unwrap();
    std::fs::rename(t.0.join("d"), t.0.join("up/d")).unwrap();
    std::fs::write(t.0.join("up/in/z"), "").unwrap();
    for (link, target) in [("lnk", "d"), ("inside", "d/x")] {
        symlink(target, t.0.join("up").join(link)).unwrap();
    }
    let up = t.0.join("up");
    for (source, want, left_out) in [
        (".", " in in/z inside lnk", true),
        ("in", "in in/z", false),
        ("*", "in in/z", true),
        ("*/x", "", true),
        ("*/z", "in/z", true),
        ("d", "`d` is in the store of this build", true),
        ("d/e/y", "`d/e/y` is in the store of this build", false),
        ("d/none", "`d/none` is in the store of this build", false),
        ("d/*", "`d` is in the store of this build", false),
        ("lnk", "`lnk` is in the store of this build", true),
        ("inside", "`inside` is in the store of this build", false),
    ] {
        let (found, left) = without_store(&up, &SourcePattern::parse(source));
        assert_eq!((found.as_str(), left.is_some()), (want, left_out), "{source}");
        assert!(left.is_none_or(|path| path == Path::new("d")), "{source}");
    }
    for (source, want) in [
        (".", " in in/z inside lnk"),
        ("**/z", " in in/z"),
        ("**/y", ""),
        ("d/e/y", "`d/e/y` is in the store of this build"),
        ("d/./e", "`d/./e` is in the store of this build"),
    ] {
        assert_eq!(without_store(&up, &SourcePattern::with_parents(source)).0, want, "{source} with --parents");
    }
}

/// Sources of `--parents`: `name` is copied with its content, `(name)` is a parent directory.
#[test]
fn parent_directories_are_selected_with_parents() {
    let t = Temp::new();
    for (link, target) in [("lib.so", "lib.so.1"), ("lib.so.1", "lib.so.1.2"), ("lnk", "d")] {
        symlink(target, t.0.join(link)).unwrap();
    }
    std::fs::write(t.0.join("lib.so.1.2"), "").unwrap();
    let select = |source: &str, ignore: &str, exclude: &str| {
        let root = RootDir::open(&t.0).unwrap();
        let (ignore, exclude) = (Ignore::parse(ignore).unwrap(), Ignore::parse(exclude).unwrap());
        let exclude = Some(&exclude);
        let tree = SourceTree { ignore: Some(&ignore), exclude, ..SourceTree::whole(&root, Owner::Root) };
        match tree.select(&SourcePattern::with_parents(source)) {
            Ok(items) => items
                .iter()
                .map(|i| {
                    if i.take == CopiedPart::Above {
                        format!("({})", i.name.display())
                    } else {
                        i.name.display().to_string()
                    }
                })
                .collect::<Vec<_>>()
                .join(" "),
            Err(e) => e.to_string(),
        }
    };
    for (source, ignore, exclude, want) in [
        ("d/e/y", "", "", "() (d) (d/e) d/e/y"),
        ("d/./e/y", "", "", "() (e) e/y"),
        ("/d/e", "", "", "() (d) d/e"),
        ("**/y", "", "", "() (d) (d/e) d/e/y"),
        ("d/*", "", "", "() (d) d/e d/x"),
        ("*/./x", "", "", "() x () x"),
        (".", "", "", ""),
        ("none*", "", "", "()"),
        ("none*/./x", "", "", ""),
        ("d/none", "", "", "`d/none` not found"),
        ("none/./x", "", "", "`none/./x` not found"),
        // Links are copied as links.
        ("lib.so*", "", "", "() lib.so lib.so.1 lib.so.1.2"),
        ("lnk", "", "", "() lnk"),
        ("lnk/x", "", "", "`lnk/x` crosses the symbolic link `lnk`, which --parents does not follow"),
        ("lnk/*", "", "", "()"),
        ("lnk/./x", "", "", "() x"),
        // Exclusions are relative to the pivot.
        ("d", "", "x", "() d"),
        ("d/*", "", "d/x", "() (d) d/e"),
        ("d/*", "", "x", "() (d) d/e d/x"),
        ("d/./*", "", "x", "() e"),
        ("d/e", "", "d/e\n!d/e/y", "() (d) (d/e) d/e/y"),
        ("d/x", "d\n!d/x", "", "() (d) d/x"),
        ("d/x", "d/x", "", "`d/x` not found"),
        ("d/[-]", "", "", "invalid pattern `d/[-]`: a class `[…]` is empty, unclosed, or has a `-` without both ends"),
    ] {
        assert_eq!(select(source, ignore, exclude), want, "{source}, ignore {ignore:?}, exclude {exclude:?}");
    }
}

/// Checks that every change that changes the digest also changes the fingerprint.
#[test]
fn the_fingerprint_detects_all_relevant_changes() {
    let t = Temp::new();
    symlink("a.go", t.0.join("link")).unwrap();
    symlink("d", t.0.join("dirs")).unwrap();
    std::fs::create_dir(t.0.join("d/empty")).unwrap();
    std::fs::create_dir(t.0.join("left-out")).unwrap();
    let look = |source: &str, parents: bool| {
        let root = RootDir::open(&t.0).unwrap();
        let ignore = Ignore::parse("left-out/*").unwrap();
        let tree = SourceTree { ignore: Some(&ignore), ..SourceTree::whole(&root, Owner::Root) };
        let selected = if parents {
            tree.select(&SourcePattern::with_parents(source))
        } else {
            tree.select(&SourcePattern::parse(source))
        };
        content(&tree, &selected.unwrap()).unwrap()
    };
    let all = || [look(".", false), look("d/e", true), look("*", false), look("dirs", false)];
    let mut before = all();
    assert_eq!(before, all());
    let mut change = |name: &str, does: &dyn Fn(), seen: [bool; 4]| {
        does();
        let after = all();
        for i in 0..4 {
            assert_eq!(after[i].fingerprint != before[i].fingerprint, seen[i], "{name}, {i}");
            assert!(seen[i] || after[i].digest == before[i].digest, "{name}, {i}");
        }
        before = after;
    };
    let at = |name: &str| t.0.join(name);
    let mode = |name: &str, mode| std::fs::set_permissions(at(name), PermissionsExt::from_mode(mode)).unwrap();
    change("a name in an ignored directory", &|| std::fs::write(at("left-out/x"), "").unwrap(), [false; 4]);
    change("a directory renamed", &|| std::fs::rename(at("d/empty"), at("d/void")).unwrap(), [true, false, true, true]);
    change("an empty directory removed", &|| std::fs::remove_dir(at("d/void")).unwrap(), [true, false, true, true]);
    change(
        "a link to a file retargeted",
        &|| {
            std::fs::remove_file(at("link")).unwrap();
            symlink("b.go", at("link")).unwrap();
        },
        [true, false, true, false],
    );
    change("a directory's mode", &|| mode("d/e", 0o700), [true, true, true, true]);
    change("the mode of a parent directory", &|| mode("d", 0o711), [true, true, false, false]);
    change("a file's mode", &|| mode("d/e/y", 0o600), [true, true, true, true]);
    change("a file's bytes", &|| std::fs::write(at("d/x"), "y").unwrap(), [true, false, true, true]);
    change("a new file", &|| std::fs::write(at("d/e/z"), "").unwrap(), [true, true, true, true]);
    change("a file removed", &|| std::fs::remove_file(at("a.go")).unwrap(), [true, false, true, false]);
    let root = RootDir::open(&t.0).unwrap();
    let attribute = || root.sub("d").unwrap().set_xattr(OsStr::new("e"), OsStr::new("user.x"), b"1").unwrap();
    change("a directory's attribute", &attribute, [true, true, true, true]);
    change(
        "a link to a directory retargeted",
        &|| {
            std::fs::remove_file(at("dirs")).unwrap();
            symlink("d/e", at("dirs")).unwrap();
        },
        [true, false, true, true],
    );
}

/// Checks that parents of re-included files keep their metadata.
#[test]
fn parents_of_reincluded_files_keep_their_mode() {
    let t = Temp::new();
    let mode = |name: &str, mode| std::fs::set_permissions(t.0.join(name), PermissionsExt::from_mode(mode)).unwrap();
    mode("d", 0o711);
    mode("d/e", 0o750);
    let root = RootDir::open(&t.0).unwrap();
    let ignore = Ignore::parse("*\n!d/e/y\n!gone/x").unwrap();
    let tree = SourceTree { ignore: Some(&ignore), ..SourceTree::whole(&root, Owner::Root) };
    let mut seen = Vec::new();
    tree.walk::<SourceError>(Path::new(""), |_, path, stat| {
        seen.push(format!("{} {:o}", path.display(), stat.mode & 0o777));
        Ok(())
    })
    .unwrap();
    assert_eq!(seen[..2], ["d 711", "d/e 750"]);
    let before = t.digest(".", "*\n!d/e/y").unwrap();
    mode("d", 0o755);
    assert_ne!(t.digest(".", "*\n!d/e/y").unwrap(), before);
}

#[test]
fn hard_links_are_identified_by_the_names_that_share_a_file() {
    let t = Temp::new();
    std::fs::write(t.0.join("d/twin"), "x").unwrap();
    let apart = t.digest("d", "").unwrap();
    std::fs::remove_file(t.0.join("d/twin")).unwrap();
    std::fs::hard_link(t.0.join("d/x"), t.0.join("d/twin")).unwrap();
    let linked = t.digest("d", "").unwrap();
    assert_ne!(apart, linked);
    // A name outside the selection has no effect.
    std::fs::remove_file(t.0.join("d/twin")).unwrap();
    let alone = t.digest("d", "").unwrap();
    std::fs::hard_link(t.0.join("d/x"), t.0.join("outside")).unwrap();
    assert_eq!(t.digest("d", "").unwrap(), alone);
}

/// Files that are renamed or replaced while they are read are reported as changed, without an error
/// of the kernel or a path of this machine.
#[test]
fn files_renamed_while_they_are_read_count_as_changed() {
    let t = Temp::new();
    for n in 0..30 {
        std::fs::create_dir_all(t.0.join(format!("d/e/{n}"))).unwrap();
        std::fs::write(t.0.join(format!("d/e/{n}/f")), "text").unwrap();
    }
    let stop = std::sync::atomic::AtomicBool::new(false);
    let root = RootDir::open(&t.0).unwrap();
    let tree = SourceTree::whole(&root, Owner::Root);
    let attempts = |source: &str, parents: bool| -> Result<(), SourceError> {
        let selected = if parents {
            tree.select(&SourcePattern::with_parents(source))?
        } else {
            tree.select(&SourcePattern::parse(source))?
        };
        content(&tree, &selected)?;
        for item in selected.iter().filter(|item| item.stat.kind == FileKind::Dir) {
            tree.walk_selected::<SourceError>(item, |_, _, _| Ok(()))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (here, there) = (t.0.join("d/e"), t.0.join("d/gone"));
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                std::fs::rename(&here, &there).unwrap();
                std::fs::write(&here, "a file").unwrap();
                std::fs::remove_file(&here).unwrap();
                std::fs::rename(&there, &here).unwrap();
            }
        });
        let mut changed = 0;
        for n in 0..1000 {
            let (source, parents) = [("d", false), ("d/*/*/f", false), ("d/**/f", true), ("d/*", false)][n % 4];
            match attempts(source, parents) {
                Ok(()) | Err(SourceError::NotFound { .. }) => {}
                Err(SourceError::Changed(path)) => {
                    assert!(path.starts_with("d"), "{path:?}");
                    changed += 1;
                }
                Err(e) => {
                    stop.store(true, std::sync::atomic::Ordering::Relaxed);
                    panic!("{source}: {e}");
                }
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(changed > 0, "nothing was moved at the right moment");
    });
}
