//! A store, a build context and helpers to run rbuild with them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::archive::{contents, listing, unzipped};
use crate::scratch::Scratch;
use crate::tiny::tiny_image;

/// Returns the path of the binary under test: `RBUILD_TEST_BIN`, or the one that cargo built with
/// the tests.
pub fn rbuild_path() -> PathBuf {
    std::env::var_os("RBUILD_TEST_BIN").map_or_else(|| target_dir().join("rbuild"), PathBuf::from)
}

/// Returns the directory of the profile, in which cargo places programs. That of tests is below it.
fn target_dir() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(Path::parent).unwrap().to_path_buf()
}

/// Returns true if the tests run in the isolation mode `chroot`.
pub fn is_bare() -> bool {
    std::env::var_os("RBUILD_ISOLATION").is_some_and(|mode| mode == "chroot")
}

/// Returns the path of a base image archive made by scripts/test: `busybox.tar`, `debian.tar`, or
/// the latter compressed (`debian.tar.gz`).
///
/// # Panics
///
/// Panics if the archive is neither in `RBUILD_TEST_BASES` nor in `test-bases` of cargo's target
/// directory.
pub fn base(name: &str) -> PathBuf {
    let here = || target_dir().with_file_name("test-bases");
    let path = std::env::var_os("RBUILD_TEST_BASES").map_or_else(here, PathBuf::from).join(name);
    assert!(path.exists(), "there is no {}: run scripts/test, or scripts/busybox-rootfs FILE", path.display());
    path
}

/// A scratch directory with a build context and a store.
pub struct Lab {
    dir: Scratch,
}

/// The output and exit status of a command.
pub struct Ran {
    /// The exit code; `None` if a signal ended the command.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    fn new(out: Output) -> Ran {
        Ran {
            code: out.status.code(),
            stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
        }
    }

    /// Fails the test unless the command succeeded.
    #[track_caller]
    pub fn ok(self) -> Ran {
        assert_eq!(self.code, Some(0), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Fails the test unless the command exited with this code and its error output contains all of
    /// these texts.
    #[track_caller]
    pub fn fails(self, code: i32, texts: &[&str]) -> Ran {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        for text in texts {
            assert!(self.stderr.contains(text), "{text:?} is missing in\n{}", self.stderr);
        }
        self
    }

    /// Returns the number of steps that were run, and the number of cached ones, without images.
    pub fn steps(&self) -> (usize, usize) {
        let steps: Vec<&str> = self
            .stderr
            .lines()
            .filter(|l| l.starts_with('#') && l.contains(" [") && !l.contains("] FROM "))
            .filter_map(|l| l.split_whitespace().next())
            .collect();
        let count = |word: &str| {
            let of = |l: &&str| l.split_whitespace().nth(1) == Some(word);
            self.stderr
                .lines()
                .filter(of)
                .filter(|l| l.split_whitespace().next().is_some_and(|n| steps.contains(&n)))
                .count()
        };
        (count("DONE"), count("CACHED"))
    }
}

impl Lab {
    /// Returns a lab with an empty context and an empty store.
    pub fn bare() -> Lab {
        let dir = Scratch::new();
        std::fs::create_dir(dir.join("ctx")).unwrap();
        Lab { dir }
    }

    /// Returns a lab with the image `busybox` in its store.
    #[allow(clippy::new_without_default, reason = "it creates files")]
    pub fn new() -> Lab {
        let lab = Lab::bare();
        lab.rbuild(["import", base("busybox.tar").to_str().unwrap(), "busybox"]).ok();
        lab
    }

    /// Returns a lab with the image `tiny` in its store. The only program of the image is
    /// `/bin/tool`.
    ///
    /// # Errors
    ///
    /// Fails if the program cannot be compiled.
    pub fn tiny() -> Result<Lab, String> {
        let (lab, image) = (Lab::bare(), tiny_image()?);
        std::fs::write(lab.path("tiny.tar"), image).map_err(|e| e.to_string())?;
        lab.rbuild(["import", lab.path("tiny.tar").to_str().unwrap(), "tiny"]).ok();
        Ok(lab)
    }

    /// Returns the path of the build context.
    pub fn ctx(&self) -> PathBuf {
        self.dir.join("ctx")
    }

    /// Returns the path of the store.
    pub fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// Returns the path of a file of the scratch directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes a file of the build context, creating its parents.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) -> &Lab {
        let path = self.ctx().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
        self
    }

    /// Reads a text file of the scratch directory.
    pub fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.dir.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    /// Returns a command of rbuild with these arguments, which uses the store of the lab.
    pub fn command<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(rbuild_path());
        command.args(args);
        self.at_home(&mut command);
        command
    }

    /// Returns a command as [`Lab::command`] does, which receives signals even if the tests ignore
    /// them: nohup(1) ignores SIGHUP, and bash ignores SIGINT in the background.
    pub fn signaled_command<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new("env");
        command.args(["--default-signal=HUP", "--default-signal=INT"]).arg(rbuild_path()).args(args);
        self.at_home(&mut command);
        command
    }

    fn at_home(&self, command: &mut Command) {
        command.current_dir(self.ctx()).env("RBUILD_ROOT", self.store()).stdin(Stdio::null());
        // Tests of registries set the pull policy.
        command.env_remove("SOURCE_DATE_EPOCH").env("RBUILD_PULL", "never");
        // They select the form of the progress output.
        command.env_remove("GITHUB_ACTIONS").env_remove("GITLAB_CI").env_remove("FORCE_COLOR");
    }

    /// Runs a command of [`Lab::command`] with additional environment variables.
    pub fn run_with(&self, command: &mut Command, env: &[(&str, &str)]) -> Ran {
        Ran::new(command.envs(env.iter().copied()).output().unwrap())
    }

    /// Runs any command in the directory and environment of `rbuild`.
    pub fn run(&self, mut command: Command) -> Ran {
        self.at_home(&mut command);
        Ran::new(command.output().unwrap())
    }

    /// Runs rbuild with these arguments.
    pub fn rbuild<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Ran {
        Ran::new(self.command(args).output().unwrap())
    }

    /// Builds a Dockerfile with these arguments.
    pub fn build(&self, dockerfile: &str, args: &[&str]) -> Ran {
        self.write("Dockerfile", dockerfile);
        self.rbuild(["build"].into_iter().chain(args.iter().copied()))
    }

    /// Builds to the directory `out` and returns its path.
    #[track_caller]
    pub fn build_local(&self, dockerfile: &str, args: &[&str]) -> PathBuf {
        let out = self.dir.join("out");
        let _ = std::fs::remove_dir_all(&out);
        let dest = format!("type=local,dest={}", out.display());
        self.build(dockerfile, &[&["--output", &dest], args].concat()).ok();
        out
    }

    /// Returns true if unchanged files of a copy are hard links to those of the previous copy,
    /// which is the case if overlays are mounted.
    pub fn links_copies(&self) -> bool {
        std::env::var_os("RBUILD_SNAPSHOTS").is_none_or(|way| way != "copy") && !is_bare()
    }

    /// Builds to a tar and lists it: mode, owner, name and link of each entry.
    #[track_caller]
    pub fn build_listing(&self, dockerfile: &str) -> Vec<String> {
        let tar = self.dir.join("out.tar");
        self.build(dockerfile, &["--output", &format!("type=tar,dest={}", tar.display())]).ok();
        listing(&std::fs::read(&tar).unwrap())
    }

    /// Returns the listing of the topmost layer of a built image.
    #[track_caller]
    pub fn top_layer(&self, image: &str) -> Vec<String> {
        listing(&self.top_layer_tar(image))
    }

    /// Returns the topmost layer of a built image, as a tar.
    #[track_caller]
    pub fn top_layer_tar(&self, image: &str) -> Vec<u8> {
        let tar = self.dir.join("saved.tar");
        self.rbuild(["save", "-o", tar.to_str().unwrap(), image]).ok();
        let mut files = contents(&std::fs::read(&tar).unwrap());
        let manifest: serde_json::Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        let layer = manifest[0]["Layers"].as_array().unwrap().last().unwrap().as_str().unwrap().to_string();
        let bytes = files.remove(&layer).unwrap();
        if bytes.starts_with(&[0x1f, 0x8b]) { unzipped(&bytes) } else { bytes }
    }

    /// Runs a shell script in the build context. `RB` is the path of rbuild, `LAB` that of the
    /// scratch directory.
    pub fn sh(&self, script: &str) -> Ran {
        let mut command = Command::new("bash");
        command.args(["-c", script]).current_dir(self.ctx()).env("RBUILD_ROOT", self.store());
        command.env("RBUILD_PULL", "never").env("RB", rbuild_path()).env("LAB", &*self.dir).stdin(Stdio::null());
        Ran::new(command.output().unwrap())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Files of sub-IDs can be removed only inside the user namespace.
        let _ = self.command(["prune", "-a"]).output();
    }
}

/// Returns true if a path exists, even as a dangling link.
pub fn exists(path: impl AsRef<Path>) -> bool {
    path.as_ref().symlink_metadata().is_ok()
}
