use std::ffi::OsStr;
use std::io::Write;
use std::path::PathBuf;

use rbuild_linux::{RootDir, remove_tree};
use rbuild_sandbox::Cancel;
use rbuild_testkit::Scratch;

use super::staged_dirs::StagedDirs;
use super::*;

fn new_dir(path: &Path) -> RootDir {
    std::fs::create_dir(path).unwrap();
    RootDir::open(path).unwrap()
}

fn put(dir: &RootDir, path: &str, content: &str) {
    let (dir, name) = {
        let path = Path::new(path);
        let dir = dir.create_dir_all(path.parent().unwrap(), 0o755, None, |_| ()).unwrap();
        (dir, path.file_name().unwrap().to_os_string())
    };
    dir.create_file(&name, 0o644).unwrap().write_all(content.as_bytes()).unwrap();
}

fn files(dir: &RootDir) -> Vec<String> {
    let mut all = Vec::new();
    let mut stack = vec![PathBuf::new()];
    while let Some(path) = stack.pop() {
        for entry in dir.sub(&path).unwrap().entries().unwrap() {
            let here = path.join(&entry.name);
            match dir.stat(&here).unwrap().kind {
                FileKind::Dir => stack.push(here),
                _ => {
                    let content = String::from_utf8(dir.read(&here, 100).unwrap()).unwrap();
                    all.push(format!("{}={content}", here.display()));
                }
            }
        }
    }
    all.sort();
    all
}

#[test]
fn new_directories_merge_into_those_of_a_concurrent_export() {
    let scratch = Scratch::new();
    let dest = new_dir(&scratch.join("out"));
    let mut staged = StagedDirs::new(&dest);
    let top = OutputDir { dir: dest.try_clone().unwrap(), place: PathBuf::new(), is_new: false, stop: None };
    for (name, other) in [("kept", None), ("both", Some("both/b/theirs")), ("file", Some("file"))] {
        let temp = staged.create(&top, Path::new(name)).unwrap();
        let own = dest.sub(&temp).unwrap();
        put(&own, "a", "ours");
        put(&own, "b/c", "ours");
        if let Some(other) = other {
            put(&dest, other, "theirs");
        }
    }
    put(&dest, "both/a", "theirs");
    staged.publish().unwrap();
    let want = [
        "both/a=ours",
        "both/b/c=ours",
        "both/b/theirs=theirs",
        "file/a=ours",
        "file/b/c=ours",
        "kept/a=ours",
        "kept/b/c=ours",
    ];
    assert_eq!(files(&dest), want);
}

#[test]
fn an_export_that_is_stopped_or_fails_leaves_no_temporary_names() {
    let scratch = Scratch::new();
    let (from, dest) = (new_dir(&scratch.join("tree")), new_dir(&scratch.join("out")));
    put(&from, "new/a", "1");
    put(&from, "old/a", "1");
    put(&from, "old/b/c", "1");
    put(&from, "replacing/a", "1");
    put(&dest, "replacing", "of the user");
    std::fs::create_dir_all(scratch.join("out/old/a/is-a-directory")).unwrap();
    let tree = MergedTree::from(from);
    let (cancel, moved) = (Cancel::default(), AtomicU64::new(0));
    let export = |stop: &Cancel| export(&tree, &dest, None, Some(stop), &moved);
    assert!(export(&cancel).unwrap_err().message().contains("`old/a` is a directory"));
    remove_tree(&scratch.join("out/old/a")).unwrap();
    cancel.cancel();
    assert!(matches!(export(&cancel), Err(BuildError::Canceled)));
    let names = |dir: &RootDir| dir.entries().unwrap().into_iter().map(|e| e.name).collect::<Vec<_>>();
    let mut left = names(&dest);
    left.sort();
    assert_eq!(left, [OsStr::new("old"), OsStr::new("replacing")]);
    assert_eq!(files(&dest), ["replacing=of the user"]);
    assert!(names(&dest.sub("old").unwrap()).is_empty());
    assert_eq!(export(&Cancel::default()).unwrap(), 4);
    assert_eq!(files(&dest), ["new/a=1", "old/a=1", "old/b/c=1", "replacing/a=1"]);
}
