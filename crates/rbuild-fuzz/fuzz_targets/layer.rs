//! Unpacks arbitrary bytes as a layer into a directory. Nothing outside of that directory may
//! change.
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use rbuild_layer::{Limits, Owners, Unpacking, unpack};
use rbuild_linux::RootDir;

/// Returns a directory of this process, with a file that represents everything outside.
fn scene() -> &'static PathBuf {
    static SCENE: OnceLock<PathBuf> = OnceLock::new();
    SCENE.get_or_init(|| {
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        let scene = base.join(format!("rbuild-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&scene).unwrap();
        std::fs::write(scene.join("witness"), "untouched").unwrap();
        scene
    })
}

fuzz_target!(|bytes: &[u8]| {
    let scene = scene();
    let root = RootDir::open(scene).unwrap();
    root.remove_all("inside".as_ref()).unwrap();
    root.create_dir("inside".as_ref(), 0o755).unwrap();
    let inside = root.sub("inside").unwrap();
    let own = rbuild_linux::credentials::own_ids();
    let limits = Limits { entries: 1000, path: 4096, depth: 100, bytes: 1 << 20, ..Limits::default() };
    for options in [Unpacking::archive(Owners::Always(own), limits), Unpacking::layer(limits)] {
        let _ = unpack(bytes, &inside, options);
    }
    let mut names: Vec<String> =
        std::fs::read_dir(scene).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    assert_eq!(names, ["inside", "witness"]);
    assert_eq!(std::fs::read(scene.join("witness")).unwrap(), b"untouched");
    assert_eq!(scene.join("witness").symlink_metadata().map(|m| m.len()).unwrap(), 9);
});
