//! A command in another root directory and nothing more: for root in a container that may neither make namespaces nor
//! mount.
//!
//! What would be mounted is put into the root directory before the command runs and taken out afterwards. What the command
//! leaves running is killed: this process adopts it (PR_SET_CHILD_SUBREAPER).

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rbuild_linux::process::{self, Cloned, Exit};
use rbuild_linux::{Kind, RootDir, copy_file};

use crate::command::Environment;
use crate::request::{Files, Input, MountRequest, Network, Report, RunRequest, Source};
use crate::stubs::{PointKind, Stubs, plant_points};
use crate::zygote::send_fds;

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

/// Runs the command of the request to its end, which is reported as soon as it is there.
pub fn run(request: &RunRequest, input: Option<OwnedFd>, socket: &UnixStream) -> Result<(), String> {
    let Files::Directory { root, scratch } = &request.files else {
        return Err("a root directory of layers cannot be entered without mounts".into());
    };
    if request.network != Network::Host {
        return Err(
            "a network of its own takes namespaces, which this machine does not allow; leave --network out".into()
        );
    }
    process::adopt_orphans().map_err(text)?;
    let files = RootDir::open(root).map_err(text)?;
    let scratch = RootDir::open(scratch).map_err(text)?;
    let mut stand_ins = StandIns { root: &files, scratch: &scratch, placed: Vec::new(), devices: Vec::new() };
    let put = stand_ins.put(request);
    let exit = put.and_then(|()| started(request, root, input, socket));
    let reported = exit.and_then(|exit| Report::of_end(exit).send(socket).map_err(text));
    process::kill_children();
    stand_ins.take_back().and(reported)
}

fn started(request: &RunRequest, root: &Path, mut input: Option<OwnedFd>, socket: &UnixStream) -> Result<Exit, String> {
    let environment = Environment::new(request)?;
    if request.input == Input::Terminal {
        // One of the machine's: the command finds it as its streams, and no name for it in its /dev.
        let (ours, theirs) = process::new_terminal().map_err(text)?;
        send_fds(socket, &[ours.as_fd()]).map_err(|e| format!("the terminal: {e}"))?;
        input = Some(theirs);
    }
    // Whether the command came to run, and if not, why.
    let (mut said, saying) = std::io::pipe().map_err(text)?;
    let runner = process::own_pidfd().map_err(text)?;
    match process::fork().map_err(text)? {
        Cloned::Child => {
            drop(said);
            let why = match become_command(request, root, input, &runner) {
                Ok(()) => environment.execute(),
                Err(why) => why,
            };
            let mut saying = saying;
            let _ = saying.write_all(why.as_bytes());
            std::process::exit(126);
        }
        Cloned::Parent { child } => {
            drop(saying);
            let mut why = String::new();
            std::io::Read::read_to_string(&mut said, &mut why).map_err(text)?;
            let exit = process::wait(child).map_err(text)?;
            if why.is_empty() { Ok(exit) } else { Err(why) }
        }
    }
}

fn become_command(request: &RunRequest, root: &Path, input: Option<OwnedFd>, runner: &OwnedFd) -> Result<(), String> {
    let input = match input {
        Some(input) => input,
        // A pipe at its end: the machine's /dev/null would be the command's to change the mode of.
        None => std::io::pipe().map_err(text)?.0.into(),
    };
    rustix::stdio::dup2_stdin(&input).map_err(text)?;
    let _ = rustix::process::setsid();
    if request.input == Input::Terminal {
        rustix::process::ioctl_tiocsctty(&input).map_err(|e| format!("the terminal: {e}"))?;
        rustix::stdio::dup2_stdout(&input).and_then(|()| rustix::stdio::dup2_stderr(&input)).map_err(text)?;
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    rustix::process::chroot(root).map_err(|e| format!("chroot: {e}"))?;
    std::env::set_current_dir(&request.cwd).map_err(|e| format!("the working directory {}: {e}", request.cwd))?;
    for limit in &request.ulimits {
        process::set_limit(limit.name.trim_start_matches("RLIMIT_"), limit.soft, limit.hard).map_err(text)?;
    }
    crate::rights::bound_capabilities(request.insecure)?;
    process::become_user(request.uid, request.gid, &request.groups).map_err(text)?;
    process::die_with(runner).map_err(text)?;
    process::reset_signals().map_err(text)
}

/// What stands in the root directory for mounts.
struct StandIns<'a> {
    root: &'a RootDir,
    scratch: &'a RootDir,
    /// The latest last.
    placed: Vec<Placed>,
    devices: Vec<PathBuf>,
}

struct Placed {
    /// In the root directory, links resolved.
    at: PathBuf,
    /// The name in the scratch directory of what it covers.
    covered: String,
    /// A directory that takes what is there afterwards, in the place of what it held.
    home: Option<RootDir>,
}

pub(crate) const DEVICES: [(&str, (u32, u32)); 6] =
    [("null", (1, 3)), ("zero", (1, 5)), ("full", (1, 7)), ("random", (1, 8)), ("urandom", (1, 9)), ("tty", (5, 0))];

impl StandIns<'_> {
    fn put(&mut self, request: &RunRequest) -> Result<(), String> {
        self.scratch.create_dir_all("covered", 0o755, None, |_| ()).map_err(text)?;
        let mut stubs = Stubs::new(self.root, self.scratch);
        let point = |stubs: &mut Stubs<'_>, target: &Path, kind| {
            stubs.ensure(target, kind).map_err(|e| format!("the mount point {}: {e}", target.display()))
        };
        for dir in ["/proc", "/dev", "/dev/shm"] {
            point(&mut stubs, Path::new(dir), PointKind::Dir)?;
        }
        let mut points = Vec::new();
        let files = [("hosts", &request.hosts), ("resolv.conf", &request.resolv_conf)];
        for (name, content) in files {
            points.push((
                point(&mut stubs, &Path::new("/etc").join(name), PointKind::File)?,
                What::Text(content.as_bytes(), 0o644, 0, 0),
            ));
        }
        for wanted in &request.mounts {
            let what = what(wanted)?;
            let kind = if what.is_dir()? { PointKind::Dir } else { PointKind::File };
            points.push((point(&mut stubs, Path::new(&wanted.target), kind)?, what));
        }
        if let Some(made) = stubs.finish().map_err(text)? {
            plant_points(&made, self.root).map_err(text)?;
        }
        self.make_devices()?;
        for (at, what) in points {
            self.place(at, what)?;
        }
        Ok(())
    }

    /// The devices that the root directory lacks; without the right to make them, it goes without.
    fn make_devices(&mut self) -> Result<(), String> {
        let dev = self.root.sub("/dev").map_err(text)?;
        let mtime = dev.stat_self().map_err(text)?.mtime;
        for (name, number) in DEVICES {
            let name = OsStr::new(name);
            if !dev.exists(name).map_err(text)? && dev.create_node(name, Kind::CharDevice, 0o666, number).is_ok() {
                dev.chmod(name, 0o666).map_err(text)?;
                self.devices.push(Path::new("/dev").join(name));
            }
        }
        dev.set_own_mtime(mtime).map_err(text)
    }

    fn place(&mut self, at: PathBuf, what: What<'_>) -> Result<(), String> {
        let fail = |e: rbuild_linux::Error| format!("{} in the container: {e}", at.display());
        let (dir, name) = self.root.parent(&at).map_err(fail)?;
        let mtime = dir.stat_self().map_err(fail)?.mtime;
        let covered = format!("covered/{}", self.placed.len());
        let (kept, kept_name) = self.scratch.parent(&covered).map_err(fail)?;
        dir.rename(&name, &kept, &kept_name).map_err(fail)?;
        let mut home = None;
        match what {
            What::Text(content, mode, uid, gid) => {
                let mut file = dir.create_file(&name, 0o600).map_err(fail)?;
                file.write_all(content).map_err(|e| format!("{}: {e}", at.display()))?;
                dir.chown(&name, uid, gid).map_err(fail)?;
                dir.chmod(&name, mode).map_err(fail)?;
            }
            What::Empty => {
                dir.create_dir(&name, 0o777).map_err(fail)?;
                dir.chmod(&name, 0o1777).map_err(fail)?;
            }
            What::Moved((from, old)) => {
                from.rename(&old, &dir, &name).map_err(fail)?;
            }
            What::Copied((from, old)) => {
                copy_tree(&from, &old, &dir, &name).map_err(fail)?;
            }
            What::Shared((from, old)) => {
                if from.stat_name(&old).map_err(fail)?.kind == Kind::Dir {
                    let shared = from.sub(&old).map_err(fail)?;
                    dir.create_dir(&name, 0o700).map_err(fail)?;
                    link_tree(&shared, &dir.sub(&name).map_err(fail)?).map_err(fail)?;
                    home = Some(shared);
                } else {
                    dir.hard_link(&from, &old, &name).map_err(fail)?;
                }
            }
        }
        dir.set_own_mtime(mtime).map_err(fail)?;
        self.placed.push(Placed { at, covered, home });
        Ok(())
    }

    fn take_back(&mut self) -> Result<(), String> {
        while let Some(Placed { at, covered, home }) = self.placed.pop() {
            let fail = |e: rbuild_linux::Error| format!("{} in the container: {e}", at.display());
            let (dir, name) = self.root.parent(&at).map_err(fail)?;
            let mtime = dir.stat_self().map_err(fail)?.mtime;
            if let Some(home) = home {
                bring_home(&dir.sub(&name).map_err(fail)?, &home)?;
            }
            dir.remove_all(&name).map_err(fail)?;
            let (kept, kept_name) = self.scratch.parent(&covered).map_err(fail)?;
            kept.rename(&kept_name, &dir, &name).map_err(fail)?;
            dir.set_own_mtime(mtime).map_err(fail)?;
        }
        for device in self.devices.drain(..) {
            // The command may have taken it away, and its directory with it.
            let Ok((dir, name)) = self.root.parent(&device) else { continue };
            let Ok(here) = dir.stat_self() else { continue };
            let _ = dir.remove_file(&name);
            let _ = dir.set_own_mtime(here.mtime);
        }
        Ok(())
    }
}

/// The directory that holds something, and its name there.
type Entry = (RootDir, OsString);

/// What a mount shows.
enum What<'a> {
    /// A file: content, mode and owner.
    Text(&'a [u8], u32, u32, u32),
    /// A directory of its own for everybody.
    Empty,
    /// Something that was made for this command alone.
    Moved(Entry),
    /// Something of the machine's that is only read.
    Copied(Entry),
    /// Something that stays: a cache, whose files are linked in and brought home, or a socket.
    Shared(Entry),
}

impl What<'_> {
    fn is_dir(&self) -> Result<bool, String> {
        match self {
            What::Text(..) => Ok(false),
            What::Empty => Ok(true),
            What::Moved((dir, name)) | What::Copied((dir, name)) | What::Shared((dir, name)) => {
                let stat = dir.stat_name(name).map_err(|e| format!("a mount source: {e}"))?;
                Ok(stat.kind == Kind::Dir)
            }
        }
    }
}

fn what(wanted: &MountRequest) -> Result<What<'_>, String> {
    Ok(match &wanted.source {
        Source::File { content, mode, uid, gid } => What::Text(content, *mode, *uid, *gid),
        Source::Tmpfs { .. } => What::Empty,
        Source::Bind(path) => What::Shared(outside(path)?),
        Source::BindBelow { dir, path } => What::Shared(inside(dir, path)?),
        Source::Part { dir, path } => What::Moved(inside(dir, path)?),
        Source::Trees { .. } => return Err("a mount of layers takes an overlay".into()),
        Source::Machine(path) if wanted.read_only => What::Copied(outside(path)?),
        Source::Machine(path) => {
            let shown = path.display();
            return Err(format!(
                "{shown} cannot be written to by a command where nothing can be mounted; add :ro to the --volume"
            ));
        }
    })
}

/// What is at a path inside of a directory, wherever links lead there.
fn inside(dir: &Path, path: &Path) -> Result<Entry, String> {
    let root = RootDir::open(dir).map_err(text)?;
    let real = root.resolve(path).map_err(text)?;
    match real.file_name() {
        Some(_) => root.parent(&real).map_err(text),
        None => outside(dir),
    }
}

fn outside(path: &Path) -> Result<Entry, String> {
    let above = path.parent().ok_or("the root of the machine is no mount source")?;
    let name = path.file_name().ok_or("the root of the machine is no mount source")?;
    Ok((RootDir::open(above).map_err(text)?, name.to_os_string()))
}

/// Further names for all files of a tree, in new directories that look like the old ones.
fn link_tree(from: &RootDir, to: &RootDir) -> rbuild_linux::Result<()> {
    for entry in from.entries()? {
        if from.stat_name(&entry.name)?.kind == Kind::Dir {
            to.create_dir(&entry.name, 0o700)?;
            link_tree(&from.sub(&entry.name)?, &to.sub(&entry.name)?)?;
        } else {
            to.hard_link(from, &entry.name, &entry.name)?;
        }
    }
    let stat = from.stat_self()?;
    to.set_own_meta(stat.uid, stat.gid, stat.mode, stat.mtime)
}

/// What is there under one name as files of their own under another; nodes are left out.
fn copy_tree(from: &RootDir, old: &OsStr, to: &RootDir, name: &OsStr) -> rbuild_linux::Result<()> {
    let stat = from.stat_name(old)?;
    match stat.kind {
        Kind::Dir => {
            to.create_dir(name, 0o700)?;
            let (inside, made) = (from.sub(old)?, to.sub(name)?);
            for entry in inside.entries()? {
                copy_tree(&inside, &entry.name, &made, &entry.name)?;
            }
        }
        Kind::File => {
            let file = to.create_file(name, 0o600)?;
            copy_file(&from.open_name(old)?, &stat, &file)?;
        }
        Kind::Symlink => return to.create_symlink(&from.read_link(old)?, name),
        _ => return Ok(()),
    }
    to.chown(name, stat.uid, stat.gid)?;
    to.chmod(name, stat.mode)?;
    to.set_mtime(name, stat.mtime)
}

/// A cache holds afterwards what the command left of it.
fn bring_home(from: &RootDir, to: &RootDir) -> Result<(), String> {
    for entry in to.entries().map_err(text)? {
        to.remove_all(&entry.name).map_err(text)?;
    }
    let stat = from.stat_self().map_err(text)?;
    for entry in from.entries().map_err(text)? {
        from.rename(&entry.name, to, &entry.name).map_err(text)?;
    }
    to.set_own_meta(stat.uid, stat.gid, stat.mode, stat.mtime).map_err(text)
}
