use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use rbuild_layer::{OPAQUE, ORIGIN, keep_in_tree, marks_opaque};
use rbuild_linux::{Kind, Result, RootDir, Stat, copy_file};

/// What files become in a merged directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// Further names of the files of the trees: for those who only read, or replace and never write in place.
    Linked,
    /// Files of their own.
    Copied,
}

/// What becomes of the trees' deletions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marks {
    /// They are done: the directory stands alone.
    Done,
    /// And marked again, for what is below the trees: the directory is a tree itself.
    Kept,
}

/// One directory on the way: where its files come from, where they go, and what is left of them.
struct Level {
    from: RootDir,
    to: RootDir,
    path: PathBuf,
    names: Vec<OsString>,
}

/// Makes the empty directory `dest` what an overlay of the trees (the lowest first) would show. Directories are new in
/// any case.
pub fn merge(trees: &[RootDir], dest: &RootDir, files: Files, marks: Marks) -> Result<()> {
    for tree in trees {
        // A layer may hide all that is below it, the root directory's own entries included.
        if marks_opaque(&tree.xattrs(OsStr::new(""))?) {
            for entry in dest.entries()? {
                dest.remove_all(&entry.name)?;
            }
        }
        let mut links = HashMap::new();
        let mut stack = vec![level(tree.try_clone()?, dest.try_clone()?, PathBuf::new())?];
        while let Some(top) = stack.last_mut() {
            let Some(name) = top.names.pop() else {
                let done = stack.pop();
                if let Some(done) = done {
                    let stat = done.from.stat_self()?;
                    done.to.set_own_meta(stat.uid, stat.gid, stat.mode, stat.mtime)?;
                }
                continue;
            };
            let stat = top.from.stat_name(&name)?;
            if top.from.is_whiteout(&name, &stat)? {
                top.to.remove_all(&name)?;
                if marks == Marks::Kept {
                    top.to.set_xattr(OsStr::new(""), OsStr::new(ORIGIN), b"")?;
                    top.to.create_whiteout(&name)?;
                }
            } else if stat.kind == Kind::Dir {
                let next = enter(top, &name, marks)?;
                stack.push(next);
            } else {
                place(top, &name, &stat, files, dest, &mut links)?;
            }
        }
    }
    Ok(())
}

fn level(from: RootDir, to: RootDir, path: PathBuf) -> Result<Level> {
    let names = from.entries()?.into_iter().map(|e| e.name).collect();
    Ok(Level { from, to, path, names })
}

fn enter(top: &Level, name: &OsStr, marks: Marks) -> Result<Level> {
    let from = top.from.sub(name)?;
    let attributes = from.xattrs(OsStr::new(""))?;
    let hides = marks_opaque(&attributes);
    let before = top.to.stat_name(name).ok();
    let deleted = before.as_ref().map_or(Ok(false), |stat| top.to.is_whiteout(name, stat))?;
    if hides || before.is_none_or(|stat| stat.kind != Kind::Dir) {
        top.to.remove_all(name)?;
        top.to.create_dir(name, 0o700)?;
        if marks == Marks::Kept && (hides || deleted) {
            top.to.set_xattr(name, OsStr::new(OPAQUE), b"y")?;
        }
    }
    for (attr, value) in attributes.iter().filter(|(attr, _)| keep_in_tree(attr)) {
        top.to.set_xattr(name, attr, value)?;
    }
    level(from, top.to.sub(name)?, top.path.join(name))
}

fn place(
    top: &Level,
    name: &OsStr,
    stat: &Stat,
    files: Files,
    dest: &RootDir,
    links: &mut HashMap<(u32, u32, u64), PathBuf>,
) -> Result<()> {
    top.to.remove_all(name)?;
    // Too many names, or a file system that has none.
    if files == Files::Linked && top.to.hard_link(&top.from, name, name).is_ok() {
        return Ok(());
    }
    if stat.nlink > 1 {
        if let Some(first) = links.get(&stat.inode()) {
            let (dir, first) = dest.parent(first)?;
            return top.to.hard_link(&dir, &first, name);
        }
        links.insert(stat.inode(), Path::new("/").join(&top.path).join(name));
    }
    copy_entry(&top.from, name, stat, &top.to, name)
}

/// Copies one entry, which is no directory and whose metadata these are, to a name that is free.
pub(crate) fn copy_entry(from: &RootDir, name: &OsStr, stat: &Stat, to: &RootDir, to_name: &OsStr) -> Result<()> {
    match stat.kind {
        Kind::File => {
            let file = to.create_file(to_name, 0o600)?;
            copy_file(&from.open_name(name)?, stat, &file)?;
        }
        Kind::Symlink => to.create_symlink(&from.read_link(name)?, to_name)?,
        kind => to.create_node(to_name, kind, stat.mode, stat.rdev)?,
    }
    to.chown(to_name, stat.uid, stat.gid)?;
    if stat.kind != Kind::Symlink {
        to.chmod(to_name, stat.mode)?;
    }
    if stat.kind == Kind::File {
        for (attr, value) in from.xattrs(name)?.iter().filter(|(attr, _)| keep_in_tree(attr)) {
            to.set_xattr(to_name, attr, value)?;
        }
    }
    to.set_mtime(to_name, stat.mtime)
}
