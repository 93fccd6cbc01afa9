//! A scratch directory with a store, in which the program runs.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rbuild_testkit::Scratch;
use serde_json::{Value, json};

pub struct Lab {
    dir: Scratch,
}

impl Lab {
    /// Returns a directory with an empty store.
    pub fn empty() -> Lab {
        let dir = Scratch::new();
        std::fs::create_dir_all(dir.join("cwd/context")).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_rbuild"), dir.join("docker")).unwrap();
        Lab { dir }
    }

    /// Returns a lab with the images `base`, `demo:1`, `demo:latest` and one without a name, and
    /// with some files in the working directory.
    pub fn with_images() -> Lab {
        let lab = Lab::empty();
        lab.write_bytes("images.tar", &archive());
        let answer = lab.run(&words("rbuild load -i images.tar"));
        assert!(answer.contains("Loaded image: demo:1"), "{answer}");
        lab.write_bytes("context/a", b"a\n");
        lab.write_bytes("context/App.py", b"print()\n");
        lab.write_bytes("context/key.pem", b"key\n");
        lab.write_bytes("context/.dockerignore", b"# keys\n*.pem\n");
        lab.write_bytes("context/sp ace", b"blank\n");
        lab.write_bytes("context/dir/file", b"file\n");
        lab.write_bytes("junk", b"this is no archive\n");
        lab.write_bytes("empty", b"");
        lab.write_bytes("Dockerfile", b"FROM base\nCMD [\"true\"]\n");
        lab
    }

    /// Writes a file below the working directory. Digests do not depend on the caller's umask.
    pub fn write_bytes(&self, path: &str, content: &[u8]) {
        let path = self.dir.join("cwd").join(path);
        let dir = path.parent().unwrap();
        std::fs::create_dir_all(dir).unwrap();
        std::fs::set_permissions(dir, Permissions::from_mode(0o755)).unwrap();
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    }

    /// Returns the verbs of the program, including the hidden ones, from the completion.
    pub fn verbs(&self) -> Vec<String> {
        let page = self.run(&words("rbuild completion elvish"));
        let page = page.split("&'rbuild'= {").nth(1).unwrap().split("\n        }").next().unwrap();
        let listed =
            page.lines().map(str::trim).filter(|line| line.starts_with("cand ") && !line.starts_with("cand -"));
        let verb = |line: &str| line.split(' ').nth(1).unwrap().to_string();
        listed.map(verb).filter(|verb| verb != "help").collect()
    }

    /// Runs a command line and returns the exit code, if it is not zero, standard output and
    /// standard error. Texts that differ between runs are replaced.
    pub fn run(&self, line: &[String]) -> String {
        self.run_with(line, b"not an archive, and not a Dockerfile\n")
    }

    /// Runs a command line with that standard input, with variables that precede it as in a shell.
    /// `sh SCRIPT` runs a shell.
    pub fn run_with(&self, line: &[String], input: &[u8]) -> String {
        let is_variable = |word: &&String| {
            let is_known = |name: &str| name.starts_with("RBUILD_") || name == "DOCKER_DEFAULT_PLATFORM";
            word.split_once('=').is_some_and(|(name, _)| is_known(name))
        };
        let (variables, line) = line.split_at(line.iter().take_while(is_variable).count());
        let (program, options) = match line[0].as_str() {
            "docker" => (self.dir.join("docker"), &[][..]),
            "sh" => (PathBuf::from("/bin/sh"), &["-c"][..]),
            _ => (PathBuf::from(env!("CARGO_BIN_EXE_rbuild")), &[][..]),
        };
        let mut child = Command::new(program);
        child.args(options).args(&line[1..]).current_dir(self.dir.join("cwd")).env_clear();
        child.env("PATH", "/usr/bin:/bin").env("HOME", &*self.dir).env("RBUILD_ROOT", self.dir.join("store"));
        child.env("XDG_RUNTIME_DIR", self.dir.join("run"));
        child.env("COLUMNS", "100").env("SOURCE_DATE_EPOCH", "86400");
        // Help pages show the values of variables.
        if !line.iter().any(|word| word == "--help") {
            child.env("RBUILD_PULL", "never");
        }
        child.envs(variables.iter().filter_map(|word| word.split_once('=')));
        child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = child.spawn().unwrap();
        // The program may end without reading it.
        let _ = child.stdin.take().unwrap().write_all(input);
        let output = child.wait_with_output().unwrap();
        let mut text = match output.status.code() {
            Some(0) => String::new(),
            Some(code) => format!("exit {code}\n"),
            None => format!("{}\n", output.status),
        };
        text += &String::from_utf8_lossy(&output.stdout);
        text += &String::from_utf8_lossy(&output.stderr);
        self.without_variation(&text)
    }

    fn without_variation(&self, text: &str) -> String {
        let text = text.replace(&*self.dir.to_string_lossy(), "[lab]");
        let text = text.replace(&format!("rbuild {}", env!("CARGO_PKG_VERSION")), "rbuild [version]");
        let text = without_times(&text);
        // The images are from 1970.
        let years = |word: &str| word.len() == 2 && word.bytes().all(|b| b.is_ascii_digit());
        let mut parts = text.split(" years ago");
        let mut out = parts.next().unwrap_or_default().to_string();
        for part in parts {
            if let Some(start) = out.len().checked_sub(2).filter(|start| years(&out[*start..])) {
                out.replace_range(start.., "NN");
            }
            out += " years ago";
            out += part;
        }
        let is_id = |line: &&str| line.len() == 64 && line.bytes().all(|b| b.is_ascii_hexdigit());
        let ids: Vec<String> = out.lines().filter(is_id).map(str::to_string).collect();
        ids.iter().for_each(|id| out = out.replace(id, "[ID of a container]"));
        out
    }
}

/// Replaces the times of steps, and omits the isolation mode, which depends on the machine.
fn without_times(text: &str) -> String {
    let is_time = |word: &str| word.trim_end_matches('s').parse::<f64>().is_ok() && word.contains('.');
    let line = |line: &str| match line.split_once(' ') {
        Some((step, rest)) if step.starts_with('#') => match rest.split_once(' ') {
            Some(("DONE", time)) if is_time(time) => format!("{step} DONE [time]"),
            Some((time, output)) if is_time(time) => format!("{step} [time] {output}"),
            _ => line.to_string(),
        },
        _ => line.to_string(),
    };
    let result = |line: &str| {
        let is_result = line.starts_with("Built ") || line.starts_with("Wrote ");
        let (begin, rest) = line.split_once(" in ").filter(|_| is_result)?;
        let (_, steps) = rest.split_once(": ").filter(|(time, _)| is_time(time))?;
        Some(format!("{begin} in [time]: {steps}"))
    };
    let kept = text.split('\n').filter(|line| !line.starts_with("isolation: "));
    kept.map(|text| result(text).unwrap_or_else(|| line(text))).collect::<Vec<_>>().join("\n")
}

/// Splits a command line into words at blanks; single quotes keep blanks and empty words.
pub fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut begun) = (Vec::new(), String::new(), false, false);
    for c in line.chars() {
        match c {
            '\'' => (quoted, begun) = (!quoted, true),
            ' ' if !quoted => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            c => {
                word.push(c);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    words
}

/// Splits a text into sections: a heading after `=== `, and the lines up to the next heading.
/// `<ff>` stands for that byte.
pub fn sections(text: &str) -> Vec<(&str, Vec<u8>)> {
    let mut all = Vec::new();
    for section in text.split("=== ").skip(1) {
        let (heading, body) = section.split_once('\n').unwrap_or((section, ""));
        let mut bytes = Vec::new();
        for (i, part) in body.split("<ff>").enumerate() {
            if i > 0 {
                bytes.push(0xff);
            }
            bytes.extend_from_slice(part.as_bytes());
        }
        all.push((heading, bytes));
    }
    all
}

/// Returns a docker archive of three images from 1970, which share a layer.
fn archive() -> Vec<u8> {
    let layer = tar(&[("etc/passwd", b"root:x:0:0::/root:/bin/sh\n"), ("hello", b"hello, world\n")]);
    let (base, demo, bare) = (config(&["/bin/sh"], &layer), config(&["/hello"], &layer), config(&[], &layer));
    let entry = |name: &str, tags: Value| json!({"Config": name, "RepoTags": tags, "Layers": ["layer.tar"]});
    let manifest = json!([
        entry("base.json", json!(["base:latest"])),
        entry("demo.json", json!(["demo:1", "demo:latest"])),
        entry("bare.json", json!([])),
    ]);
    tar(&[
        ("manifest.json", manifest.to_string().as_bytes()),
        ("base.json", base.as_bytes()),
        ("demo.json", demo.as_bytes()),
        ("bare.json", bare.as_bytes()),
        ("layer.tar", &layer),
    ])
}

fn config(command: &[&str], layer: &[u8]) -> String {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "created": "1970-01-02T00:00:00Z", "architecture": arch, "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": command, "Labels": {"maker": "lab"}},
        "rootfs": {"type": "layers", "diff_ids": [rbuild_image::DiffId::of(layer).to_string()]},
        "history": [{"created": "1970-01-02T00:00:00Z", "created_by": "ADD files / # a comment that is longer than a column", "comment": "lab"}],
    })
    .to_string()
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(86400);
        header.set_uid(0);
        header.set_gid(0);
        builder.append_data(&mut header, Path::new(path), *content).unwrap();
    }
    builder.into_inner().unwrap()
}
