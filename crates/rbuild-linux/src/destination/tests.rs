use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

use rbuild_testkit::Scratch;

use super::*;

/// A scratch directory.
struct Scene(Scratch);

impl Scene {
    fn new() -> Scene {
        Scene(Scratch::new())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn a_new_file_appears_only_when_it_is_published() {
    let scene = Scene::new();
    let dest = Destination::open(&scene.path("a/b/f")).unwrap();
    assert!(scene.names().is_empty(), "{:?}", scene.names());
    dest.begin().unwrap().write_all(b"twice as long").unwrap();
    dest.begin().unwrap().write_all(b"short").unwrap();
    dest.publish().unwrap();
    assert_eq!(text(&scene.path("a/b/f")), "short");
    drop(Destination::open(&scene.path("never")).unwrap());
    assert_eq!(scene.names(), ["a"]);
}

#[test]
fn a_path_that_ends_with_a_slash_is_no_file() {
    let scene = Scene::new();
    let refused = Destination::open(&scene.path("new/")).unwrap_err();
    assert!(matches!(refused, DestinationError::EndsWithSlash(_)), "{refused}");
    assert!(scene.names().is_empty(), "{:?}", scene.names());
}

#[test]
fn an_existing_file_keeps_mode_and_content_until_publication() {
    let scene = Scene::new();
    std::fs::write(scene.path("f"), "old").unwrap();
    std::fs::set_permissions(scene.path("f"), PermissionsExt::from_mode(0o640)).unwrap();
    let dest = Destination::open(&scene.path("f")).unwrap();
    dest.begin().unwrap().write_all(b"new").unwrap();
    assert_eq!(text(&scene.path("f")), "old");
    dest.publish().unwrap();
    assert_eq!(text(&scene.path("f")), "new");
    assert_eq!(scene.path("f").metadata().unwrap().mode() & 0o7777, 0o640);
    assert_eq!(scene.names(), ["f"]);
}

#[test]
fn a_symlink_is_followed_and_kept() {
    let scene = Scene::new();
    std::fs::create_dir(scene.path("d")).unwrap();
    std::fs::write(scene.path("d/there"), "old").unwrap();
    symlink("d/there", scene.path("one")).unwrap();
    symlink(scene.path("d/made/late"), scene.path("two")).unwrap();
    symlink("two", scene.path("three")).unwrap();
    symlink("d", scene.path("dir")).unwrap();
    for (name, target) in [("one", "d/there"), ("three", "d/made/late"), ("dir/x", "d/x")] {
        Destination::open(&scene.path(name)).unwrap().write(name.as_bytes()).unwrap();
        assert_eq!(text(&scene.path(target)), name);
    }
    for link in ["one", "two", "three"] {
        assert!(scene.path(link).symlink_metadata().unwrap().is_symlink(), "{link}");
    }
    symlink("round", scene.path("round")).unwrap();
    assert!(matches!(Destination::open(&scene.path("round")), Err(DestinationError::LinkLoop(_))));
}

#[test]
fn a_fifo_is_written_in_place() {
    let scene = Scene::new();
    let fifo = scene.path("p");
    rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let reader = std::thread::spawn({
        let fifo = fifo.clone();
        move || text(&fifo)
    });
    let dest = Destination::open(&fifo).unwrap();
    dest.write(b"through").unwrap();
    drop(dest);
    assert_eq!(reader.join().unwrap(), "through");
    assert!(fifo.symlink_metadata().unwrap().file_type().is_fifo());
}

#[test]
fn a_descriptor_of_this_process_is_written_in_place() {
    let scene = Scene::new();
    let mut file = File::create(scene.path("f")).unwrap();
    file.write_all(b"before ").unwrap();
    let path = format!("/dev/fd/{}", file.as_raw_fd());
    symlink(&path, scene.path("l")).unwrap();
    Destination::open(Path::new(&path)).unwrap().write(b"within").unwrap();
    Destination::open(&scene.path("l")).unwrap().write(b" through").unwrap();
    file.write_all(b" after").unwrap();
    assert_eq!(text(&scene.path("f")), "before within through after");
    let reading = File::open(scene.path("f")).unwrap();
    let path = format!("/proc/self/fd/{}", reading.as_raw_fd());
    assert!(matches!(Destination::open(Path::new(&path)), Err(DestinationError::NotForWriting(_))));
}

#[test]
fn unwritable_destinations_fail_on_open() {
    let scene = Scene::new();
    std::fs::write(scene.path("f"), "").unwrap();
    assert!(matches!(Destination::open(&scene.0), Err(DestinationError::IsDirectory(_))));
    assert!(matches!(Destination::open(&scene.path("f/x")), Err(DestinationError::NotDirectory(_))));
    assert!(matches!(Directory::find(&scene.path("f")), Err(DestinationError::NotDirectory(_))));
    assert!(Destination::open(&scene.path("no/../x")).is_err());
    std::os::unix::net::UnixListener::bind(scene.path("s")).unwrap();
    assert!(matches!(Destination::open(&scene.path("s")), Err(DestinationError::Socket(_))));
    // Root can write to any directory.
    if !rustix::process::geteuid().is_root() {
        std::fs::create_dir(scene.path("d")).unwrap();
        std::fs::write(scene.path("d/old"), "old").unwrap();
        std::fs::set_permissions(scene.path("d"), PermissionsExt::from_mode(0o555)).unwrap();
        assert!(matches!(Destination::open(&scene.path("d/new")), Err(DestinationError::NotWritable(..))));
        assert!(matches!(Directory::find(&scene.path("d/new")), Err(DestinationError::NotWritable(..))));
        Destination::open(&scene.path("d/old")).unwrap().write(b"n").unwrap();
        assert_eq!(text(&scene.path("d/old")), "n");
        std::fs::set_permissions(scene.path("d"), PermissionsExt::from_mode(0o755)).unwrap();
    }
}

#[test]
fn a_file_created_meanwhile_is_not_replaced() {
    let scene = Scene::new();
    let dest = Destination::open(&scene.path("f")).unwrap();
    rustix::fs::mknodat(CWD, scene.path("f"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    assert!(dest.write(b"x").is_err());
    assert!(scene.path("f").symlink_metadata().unwrap().file_type().is_fifo());
}
