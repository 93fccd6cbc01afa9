//! Runs a case in a store that is kept for the whole case and in a new store for each round.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::compare;
use crate::lab::{Scratch, base, rbuild_path};
use crate::script::{Case, Output, Round};
use crate::tree;

/// Later than all file times in cases with fixed times, earlier than the time of the test.
const EPOCH: &str = "1500000000";

/// Age at which a file's metadata proves that its content is unchanged.
const AGE: Duration = Duration::from_millis(3010);

/// The number of successful builds in an empty store.
pub static SUCCEEDED: AtomicUsize = AtomicUsize::new(0);

/// The working directory of one case.
pub struct Scene {
    dir: Scratch,
}

impl Drop for Scene {
    fn drop(&mut self) {
        for store in ["store", "fresh"] {
            self.wipe(store);
        }
    }
}

/// The result of a build: its lines, or the error.
type Built = Result<Vec<String>, String>;

/// Runs a case and returns the first difference, if any.
pub fn play(case: &Case, image: &Path) -> Option<String> {
    let scene = Scene::new(image);
    for (number, round) in case.rounds.iter().enumerate() {
        if let Some(difference) = scene.round(case, round, number) {
            return Some(difference);
        }
    }
    None
}

impl Scene {
    fn new(image: &Path) -> Scene {
        let dir = Scratch::new();
        for name in ["files/c", "files/n"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        fs::hard_link(image, dir.join("base.tar")).unwrap();
        fs::write(dir.join("secret"), "a secret value\n").unwrap();
        let scene = Scene { dir };
        scene.load("store");
        scene
    }

    fn rbuild(&self, store: &str) -> Command {
        let mut command = Command::new(rbuild_path());
        command.current_dir(&self.dir).env("RBUILD_ROOT", self.dir.join(store)).env("SOURCE_DATE_EPOCH", EPOCH);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    fn load(&self, store: &str) {
        succeed(self.rbuild(store).args(["load", "-i", "base.tar"]));
    }

    /// Removes a store. Files of sub-IDs can be removed only inside the user namespace.
    fn wipe(&self, store: &str) {
        let _ = self.rbuild(store).args(["prune", "-a"]).output();
        let dir = self.dir.join(store);
        if dir.exists() {
            let _ = Command::new("chmod").args(["-R", "u+rwX"]).arg(&dir).stderr(Stdio::null()).status();
            let _ = fs::remove_dir_all(&dir);
        }
    }

    fn round(&self, case: &Case, round: &Round, number: usize) -> Option<String> {
        let files = self.dir.join("files");
        tree::apply(&files, &round.ops);
        if case.fixed_times {
            tree::fix_times(&files);
        }
        fs::write(self.dir.join("Dockerfile"), round.file.to_string()).unwrap();
        if case.aged {
            std::thread::sleep(AGE);
        }
        if round.prune {
            let _ = self.rbuild("store").arg("prune").output();
        }
        if !round.racing.is_empty() {
            self.race(case, round);
        }
        let (incremental, twin) = std::thread::scope(|scope| {
            let twin = round.twin.map(|output| scope.spawn(move || self.build("store", round, output, "twin")));
            (self.build("store", round, round.output, "inc"), twin.map(|t| t.join().unwrap()))
        });
        self.load("fresh");
        let fresh = self.build("fresh", round, round.output, "new");
        if fresh.is_ok() {
            SUCCEEDED.fetch_add(1, Ordering::Relaxed);
        }
        let mut found = differ(&incremental, &fresh, round, "");
        if let (None, Some(output), Some(twin)) = (&found, round.twin, &twin) {
            self.wipe("fresh");
            self.load("fresh");
            found = differ(twin, &self.build("fresh", round, output, "new"), round, " of the build beside it");
        }
        self.wipe("fresh");
        let found = found?;
        let listing = [tree::listing(&files.join("c")), tree::listing(&files.join("n"))];
        let ignored = fs::read_to_string(files.join("c/.dockerignore")).unwrap_or_default();
        Some(format!(
            "round {number}: {found}\ncontext:\n  {}\nnamed:\n  {}\nignore file: {ignored:?}",
            listing[0].join("\n  "),
            listing[1].join("\n  ")
        ))
    }

    /// Changes the files while a build runs. Its result may reflect either state.
    fn race(&self, case: &Case, round: &Round) {
        let files = self.dir.join("files");
        std::thread::scope(|scope| {
            let build = scope.spawn(|| self.build("store", round, round.output, "race"));
            std::thread::sleep(Duration::from_millis(round.delay));
            tree::apply(&files, &round.racing);
            if case.fixed_times {
                tree::fix_times(&files);
            }
            let _ = build.join().unwrap();
        });
    }

    fn build(&self, store: &str, round: &Round, output: Output, name: &str) -> Built {
        let out = self.dir.join(format!("out-{name}"));
        let dest = |kind: &str| format!("type={kind},dest={}", out.display());
        let mut command = self.rbuild(store);
        command.args(["build", "-f", "Dockerfile", "--build-context", "named=files/n"]);
        // A build with secrets stores every copy as files, because it searches them.
        if round.file.to_string().contains("type=secret") {
            command.args(["--secret", "id=s,src=secret"]);
        }
        command.args(["--build-context", "image=docker-image://base"]).args(&round.args);
        match output {
            Output::Tag => command.args(["-t", name]),
            Output::Local => command.args(["-o", &dest("local")]),
            Output::Tar => command.args(["-o", &dest("tar")]),
            Output::Oci => command.args(["-o", &(dest("oci") + ",compression=uncompressed")]),
            Output::OciWithTimes => {
                let oci = dest("oci") + ",compression=uncompressed,rewrite-timestamp=false";
                command.args(["-o", &oci])
            }
            Output::Docker => command.args(["-o", &(dest("docker") + ",compression=uncompressed")]),
            Output::TagAndTar => command.args(["-t", name, "-o", &dest("tar")]),
        };
        let ran = patiently(command.arg("files/c"));
        if let Err(reason) = ran {
            self.clear(&out);
            return Err(reason);
        }
        let mut lines = Vec::new();
        match output {
            Output::Local => lines = tree::listing(&out),
            Output::Tar | Output::TagAndTar => lines = compare::entries(&fs::read(&out).unwrap()),
            Output::Oci | Output::Docker => lines = compare::image(&fs::read(&out).unwrap()),
            Output::OciWithTimes => lines = compare::without_times(compare::image(&fs::read(&out).unwrap())),
            Output::Tag => {}
        }
        if matches!(output, Output::Tag | Output::TagAndTar) {
            self.clear(&out);
            succeed(self.rbuild(store).arg("save").arg("-o").arg(&out).arg(name));
            let image = compare::image(&fs::read(&out).unwrap());
            // The index contains the image name.
            lines.extend(image.into_iter().filter(|l| !l.starts_with("index")));
        }
        self.clear(&out);
        Ok(lines)
    }

    fn clear(&self, out: &Path) {
        if out.is_dir() {
            let _ = Command::new("chmod").args(["-R", "u+rwX"]).arg(out).stderr(Stdio::null()).status();
            fs::remove_dir_all(out).unwrap();
        } else {
            let _ = fs::remove_file(out);
        }
    }
}

/// Runs a build; one that takes longer than a minute counts as stuck.
fn patiently(command: &mut Command) -> Result<(), String> {
    let mut child = command.spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = std::io::Read::read_to_end(&mut stderr, &mut text);
        text
    });
    let begun = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if begun.elapsed() > Duration::from_secs(60) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err("stuck".into());
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let text = String::from_utf8_lossy(&reader.join().unwrap()).into_owned();
    if status.success() { Ok(()) } else { Err(text.find("error").map_or(text.clone(), |at| text[at..].to_string())) }
}

fn differ(incremental: &Built, fresh: &Built, round: &Round, which: &str) -> Option<String> {
    match (incremental, fresh) {
        (Ok(incremental), Ok(fresh)) => {
            compare::difference(incremental, fresh).map(|d| format!("the results{which} differ\n{d}"))
        }
        (Err(one), Err(other)) => {
            // Stages run concurrently, so another one may have failed first.
            let same = one.lines().next() == other.lines().next() || round.file.stages.len() > 1 && one != "stuck";
            (!same).then(|| format!("the errors{which} differ\nincremental: {one}\nfresh: {other}"))
        }
        (Ok(_), Err(reason)) => Some(format!("only the fresh build{which} fails: {reason}")),
        (Err(reason), Ok(_)) => Some(format!("only the incremental build{which} fails: {reason}")),
    }
}

fn succeed(command: &mut Command) {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Creates an archive of the base image.
pub fn base_image(to: &Path) {
    let work = to.with_extension("d");
    fs::create_dir_all(&work).unwrap();
    base_tree(&work.join("tree.tar"));
    let rbuild = || {
        let mut command = Command::new(rbuild_path());
        command.current_dir(&work).env("RBUILD_ROOT", work.join("store")).stdin(Stdio::null());
        command
    };
    // The configuration contains the time of the import, so all stores load the same archive.
    succeed(rbuild().args(["import", "tree.tar", "base"]));
    succeed(rbuild().args(["save", "base", "-o"]).arg(to));
    succeed(rbuild().args(["prune", "-a"]));
    let _ = fs::remove_dir_all(work);
}

/// Returns the program of the base image.
fn busybox() -> Vec<u8> {
    let bytes = fs::read(base("busybox.tar")).unwrap();
    for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
        let mut entry = entry.unwrap();
        let is_busybox = entry.path().unwrap().file_name().is_some_and(|name| name == "busybox");
        if is_busybox && entry.header().entry_type().is_file() {
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
            return content;
        }
    }
    panic!("the base image has no busybox");
}

/// Packs a shell with few commands, and directories and links at destinations of copies.
fn base_tree(to: &Path) {
    let mut tar = tar::Builder::new(fs::File::create(to).unwrap());
    const NAMES: &[&str] = &[
        "sh", "find", "stat", "sort", "md5sum", "readlink", "cat", "cp", "rm", "mv", "ln", "mkdir", "rmdir", "chmod",
        "chown", "touch", "echo", "ls", "wc", "mkfifo", "sleep", "true", "busybox",
    ];
    let header = |kind, mode, size| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_200_000_000);
        header
    };
    for (dir, mode) in [
        ("dst/", 0o700),
        ("dst/a/", 0o755),
        ("real/sub/", 0o755),
        ("usr/bin/", 0o755),
        ("etc/", 0o755),
        ("tmp/", 0o1777),
    ] {
        tar.append_data(&mut header(tar::EntryType::Directory, mode, 0), dir, &[][..]).unwrap();
    }
    let links = [
        ("bin", "usr/bin"),
        ("dst/b", "a"),
        ("ln", "/real"),
        ("ls", "real/sub"),
        ("dang", "/nowhere/x"),
        ("lf", "/etc/passwd"),
        ("dst/k", "/ln"),
    ];
    for (path, target) in links {
        tar.append_link(&mut header(tar::EntryType::Symlink, 0o777, 0), path, target).unwrap();
    }
    for (path, text) in [
        ("etc/passwd", "root:x:0:0::/:/bin/sh\nweb:x:33:33::/:/bin/sh\n"),
        ("etc/group", "root:x:0:\nextra:x:50:web\n"),
        ("dst/a/f", "bas\n"),
    ] {
        tar.append_data(&mut header(tar::EntryType::Regular, 0o644, text.len() as u64), path, text.as_bytes()).unwrap();
    }
    let shell = busybox();
    let mut of_shell = header(tar::EntryType::Regular, 0o755, shell.len() as u64);
    tar.append_data(&mut of_shell, "usr/bin/busybox", &shell[..]).unwrap();
    for name in NAMES.iter().filter(|n| **n != "busybox") {
        tar.append_link(&mut header(tar::EntryType::Symlink, 0o777, 0), format!("usr/bin/{name}"), "busybox").unwrap();
    }
    tar.into_inner().unwrap();
}
