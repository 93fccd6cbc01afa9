//! Applies changes to the disk.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use crate::random::Random;
use crate::script::{Op, Way};

/// Applies the changes that fit the existing tree below `root`.
pub fn apply(root: &Path, ops: &[Op]) {
    for op in ops {
        // A change that does not fit is skipped.
        let _ = change(root, op);
    }
}

fn at(root: &Path, path: &[u8]) -> PathBuf {
    root.join(OsStr::from_bytes(path))
}

fn change(root: &Path, op: &Op) -> std::io::Result<()> {
    match op {
        Op::Write { path, text, way } => write(&at(root, path), text.as_bytes(), *way),
        Op::Sparse { path, len } => {
            let path = at(root, path);
            write(&path, b"", Way::InPlace)?;
            let file = File::options().write(true).open(&path)?;
            file.set_len(*len)?;
            std::os::unix::fs::FileExt::write_all_at(&file, b"x", len / 2)
        }
        Op::Dir { path } => {
            let path = at(root, path);
            if path.symlink_metadata().is_ok_and(|m| !m.is_dir()) {
                fs::remove_file(&path)?;
            }
            fs::create_dir_all(path)
        }
        Op::Link { path, target } => {
            let path = at(root, path);
            room(&path)?;
            symlink(target, path)
        }
        Op::HardLink { from, path } => {
            let (from, path) = (at(root, from), at(root, path));
            if !from.symlink_metadata()?.is_file() || from == path {
                return Ok(());
            }
            room(&path)?;
            fs::hard_link(from, path)
        }
        Op::Archive { path, seed, gzip } => write(&at(root, path), &archive(*seed, *gzip), Way::Replace),
        Op::Attribute { path, value } => attribute(&at(root, path), *value),
        Op::Chmod { path, mode } => {
            let path = at(root, path);
            let meta = path.symlink_metadata()?;
            // Such a mode would lock the owner out of a directory.
            if meta.is_symlink() || meta.is_dir() && mode & 0o700 != 0o700 {
                return Ok(());
            }
            fs::set_permissions(path, Permissions::from_mode(*mode))
        }
        Op::Remove { path } => remove(&at(root, path)),
        Op::Rename { from, to } => {
            let (from, to) = (at(root, from), at(root, to));
            from.symlink_metadata()?;
            if to.starts_with(&from) || from.starts_with(&to) {
                return Ok(());
            }
            room(&to)?;
            fs::rename(from, to)
        }
        Op::Swap { one, other } => swap(root, one, other),
        Op::Touch { path } => touch(&at(root, path), TimeSpec::UTIME_NOW),
        Op::Ignore { lines } => fs::write(root.join("c/.dockerignore"), lines.join("\n") + "\n"),
    }
}

/// Exchanges two entries, neither of which contains the other.
fn swap(root: &Path, one: &[u8], other: &[u8]) -> std::io::Result<()> {
    let (one, other, aside) = (at(root, one), at(root, other), root.join("aside"));
    one.symlink_metadata()?;
    other.symlink_metadata()?;
    if one.starts_with(&other) || other.starts_with(&one) {
        return Ok(());
    }
    fs::rename(&one, &aside)?;
    fs::rename(&other, &one)?;
    fs::rename(&aside, &other)
}

fn remove(path: &Path) -> std::io::Result<()> {
    if path.symlink_metadata()?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// Creates the parent directory of a path and removes an existing entry at the path.
fn room(path: &Path) -> std::io::Result<()> {
    fs::create_dir_all(path.parent().unwrap())?;
    if path.symlink_metadata().is_ok() {
        remove(path)?;
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8], way: Way) -> std::io::Result<()> {
    let before = path.symlink_metadata().ok();
    let is_file = before.as_ref().is_some_and(|m| m.is_file());
    if !is_file {
        room(path)?;
    }
    if matches!(way, Way::Replace) {
        let part = path.with_file_name(".part");
        fs::write(&part, bytes)?;
        return fs::rename(part, path);
    }
    let mode = before.filter(|_| is_file).map_or(0o644, |m| m.mode() & 0o7777);
    let old = is_file.then(|| path.metadata()).transpose()?;
    fs::set_permissions(path, Permissions::from_mode(0o644)).ok();
    fs::write(path, bytes)?;
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    match (way, old) {
        (Way::SetBack, Some(old)) => touch(path, TimeSpec::new(old.mtime(), old.mtime_nsec())),
        _ => Ok(()),
    }
}

fn touch(path: &Path, time: TimeSpec) -> std::io::Result<()> {
    let now = nix::fcntl::AT_FDCWD;
    utimensat(now, path, &TimeSpec::UTIME_OMIT, &time, UtimensatFlags::NoFollowSymlink).map_err(Into::into)
}

fn attribute(path: &Path, value: Option<&str>) -> std::io::Result<()> {
    let mut command = Command::new("setfattr");
    match value {
        Some(value) => command.args(["-h", "-n", "user.net", "-v", value, "--"]),
        None => command.args(["-h", "-x", "user.net", "--"]),
    };
    command.arg(path).stderr(Stdio::null()).status().map(drop)
}

/// Sets all modification times below `dir` to a function of type and size: equal content has equal
/// times, and a change that keeps the size keeps the time.
pub fn fix_times(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(meta) = entry.path().symlink_metadata() else { continue };
        if meta.is_dir() {
            fix_times(&entry.path());
        }
        let size = if meta.is_dir() { 0 } else { meta.size() as i64 };
        let time = 1_000_000_000 + size;
        if (meta.mtime(), meta.mtime_nsec()) != (time, 0) {
            touch(&entry.path(), TimeSpec::new(time, 0)).unwrap();
        }
    }
}

/// Returns a small archive whose names overlap with other sources.
fn archive(seed: u64, gzip: bool) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut tar = tar::Builder::new(Vec::new());
    let mut names: Vec<&str> = ["d/", "d/f", "f", "g", "s/f", "d/e/", "l", "h", "dst/f", "a/b/c", "e"].into();
    names.retain(|_| random.percent(55));
    for name in names {
        let mut header = tar::Header::new_gnu();
        header.set_mode(random.pick(&[0o644, 0o755, 0o700, 0o4755]));
        header.set_uid(random.pick(&[0, 0, 5, 33]));
        header.set_gid(0);
        header.set_mtime(1_100_000_000);
        header.set_size(0);
        if name.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
            tar.append_data(&mut header, name, &[][..]).unwrap();
        } else if name == "l" {
            header.set_entry_type(tar::EntryType::Symlink);
            tar.append_link(&mut header, name, random.pick(&["f", "d", "nowhere", "/etc"])).unwrap();
        } else {
            let text = random.pick(&["a", "b", "zzz"]).repeat(3) + "\n";
            header.set_size(text.len() as u64);
            tar.append_data(&mut header, name, text.as_bytes()).unwrap();
        }
    }
    let bytes = tar.into_inner().unwrap();
    if !gzip {
        return bytes;
    }
    let mut child = Command::new("gzip").args(["-nc"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // The archive is smaller than a pipe's buffer.
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    child.wait_with_output().unwrap().stdout
}

/// Returns one line for each entry below `dir`.
pub fn listing(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    list(dir, Path::new(""), &mut lines);
    lines.sort();
    lines
}

fn list(root: &Path, below: &Path, lines: &mut Vec<String>) {
    for entry in fs::read_dir(root.join(below)).into_iter().flatten().flatten() {
        let name = below.join(entry.file_name());
        let path = entry.path();
        let Ok(meta) = path.symlink_metadata() else { continue };
        let kind = if meta.is_dir() {
            list(root, &name, lines);
            "dir".to_string()
        } else if meta.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().as_os_str().as_bytes().escape_ascii())
        } else if meta.is_file() {
            fs::read(&path).map_or("unreadable".into(), |bytes| crate::compare::shown(&bytes))
        } else {
            "special".into()
        };
        let mode = meta.mode() & 0o7777;
        lines.push(format!("{} {mode:o} {kind}", name.as_os_str().as_bytes().escape_ascii()));
    }
}
