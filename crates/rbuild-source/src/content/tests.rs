use super::*;
use crate::Ignore;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

struct Temp(PathBuf);
impl Temp {
    fn new(name: &str) -> Temp {
        let dir = std::env::temp_dir().join(format!("rbuild-source-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("d/e")).unwrap();
        for (path, text) in [("a.go", "1"), ("b.go", "2"), ("d/x", "x"), ("d/e/y", "y"), (".dockerignore", "")] {
            std::fs::write(dir.join(path), text).unwrap();
        }
        Temp(dir)
    }
    fn digest(&self, source: &str, ignore: &str) -> Result<Digest, SourceError> {
        let root = RootDir::open(&self.0).unwrap();
        let ignore = Ignore::parse(ignore).unwrap();
        let tree = SourceTree { root: &root, ignore: Some(&ignore), exclude: None, owner: Owner::Root, hashes: None };
        content(&tree, &tree.select(source)?).map(|content| content.digest)
    }
    fn names(&self, source: &str, ignore: &str) -> Vec<String> {
        let root = RootDir::open(&self.0).unwrap();
        let ignore = Ignore::parse(ignore).unwrap();
        let tree = SourceTree { root: &root, ignore: Some(&ignore), exclude: None, owner: Owner::Root, hashes: None };
        let mut names = Vec::new();
        for item in tree.select(source).unwrap() {
            names.push(item.path.to_string_lossy().into_owned());
            if item.stat.kind == Kind::Dir {
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
impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn each_counted_field_changes_the_digest_and_nothing_else_does() {
    let t = Temp::new("fields");
    let before = t.digest(".", "").unwrap();
    let file = t.0.join("d/x");
    std::fs::File::options().write(true).open(&file).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(t.digest(".", "").unwrap(), before, "time");
    let mut seen = vec![before];
    let mut changed = |what: &str| {
        let now = t.digest(".", "").unwrap();
        assert!(!seen.contains(&now), "{what}");
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
    // Only what is selected counts.
    let only = t.digest("b.go", "").unwrap();
    std::fs::write(t.0.join("a.go"), "other").unwrap();
    assert_eq!(t.digest("b.go", "").unwrap(), only);
}

#[test]
fn patterns_and_ignores_select_together() {
    let t = Temp::new("select");
    assert_eq!(t.names("*.go", ""), ["a.go", "b.go"]);
    assert_eq!(t.names("*.go", "a.*"), ["b.go"]);
    assert_eq!(t.names("*.nothing", ""), Vec::<String>::new());
    assert_eq!(t.names("d", ""), ["d", "e", "e/y", "x"]);
    assert_eq!(t.names("d", "**/y"), ["d", "e", "x"]);
    assert_eq!(t.names("d", "d\n!d/e/y"), ["d", "e/y"]);
    assert_eq!(t.names("../../d/./e", ""), ["d/e", "y"]);
    symlink("d/e", t.0.join("link")).unwrap();
    assert_eq!(t.names("link", ""), ["d/e", "y"]);
}

#[test]
fn what_is_missing_is_named_with_what_is_similar() {
    let t = Temp::new("missing");
    let Err(SourceError::NotFound { similar, ignored, .. }) = t.digest("A.GO", "") else { panic!() };
    assert_eq!((similar.as_deref(), ignored), (Some("a.go"), false));
    let Err(SourceError::NotFound { ignored, .. }) = t.digest("a.go", "*.go") else { panic!() };
    assert!(ignored);
    symlink("/etc/passwd", t.0.join("out")).unwrap();
    assert!(matches!(t.digest("out", ""), Err(SourceError::NotFound { .. })));
}

/// Caches are worth something as long as this stays: change it on purpose, and the number in "content 3" with it.
#[test]
fn content_is_named_as_it_was() {
    let t = Temp::new("pinned");
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
        ["03914dac6f2d7eb5", "67c8c875985c79f0", "ae39a89fc58300d1", "280e63280364daab", "9fef4cc861790353"]
    );
}
