//! Generates random Dockerfiles and the test cases that use them.

use std::path::Path;

use crate::mutate::{beginning, changes, text};
use crate::random::Random;
use crate::script::{Case, Copy, Dockerfile, Kind, Op, Output, Round, Stage, Step, Way};
use crate::tree;

const SOURCES: &[&str] = &[
    "a", "b", "d", "d/", "d/.", ".", "x", "x/f", "d/f", "d/s", "d/s/t", "d/e", "l", "d/l", "d/s/l", "d/*", "*/f", "?",
    "d/[fg]", "x/*", "nothing*", "r", "r/", "d/[[]i]", "d/sp ace", "./d/../x", "/d/g", "[a-b]", "t.tar", "x/l",
    "d/l/f", "l/f", "d/k", "*.t*", "d/s/../f",
];
const PARENTS: &[&str] = &[
    "d/s/f",
    "d/./s/f",
    "./d/s",
    "**/f",
    "d/**/h",
    "d/./s/*",
    "x/./f",
    "l/f",
    "d/l",
    "*/./f",
    "d/s/./t",
    "**/l",
    "none/*",
    "x/e",
    "d/*/./t/h",
    "d/l/./f",
];
const STAGE_SOURCES: &[&str] = &[
    "/dst",
    "/dst/",
    "/dst/a",
    "/dst/*",
    "/real",
    "/ln",
    "/ln/q",
    "/new",
    "/",
    "/dst/d",
    "/usr/bin/f",
    "/etc/passwd",
    "/dst/./d",
    "dst/f",
    "/bin/f",
];
const DESTS: &[&str] = &[
    "/dst",
    "/dst/",
    "/dst/a",
    "/dst/d/",
    "/dst/d",
    "/new/x/y/",
    "/ln/",
    "/ln/q",
    "rel",
    "rel/",
    ".",
    "/dst/b",
    "/dst/b/",
    "/usr/bin/",
    "/bin/",
    "/",
    "/dst/f",
    "/ls/",
    "/dst/s/",
    "/dang/",
    "/dang",
    "/lf",
    "/new",
];
const RUNS: &[&str] = &[
    "mkdir -p /dst/a/b && echo one > /dst/a/b/f",
    "rm -rf /dst/d",
    "rm -rf /dst && mkdir /dst",
    "rm -f /dst/f /dst/a",
    "ln -sfn a /dst/b",
    "ln -sfn /real /dst/d",
    "mv /dst /dst2; mkdir -p /dst; true",
    "chmod 4755 /dst/f; chmod 700 /dst/d; true",
    "touch -d @1000000000 /dst/* ; true",
    "mkdir -p /dst/c && ln /etc/passwd /dst/c/p; true",
    "cp -a /dst /copy; true",
    "echo $V > /v",
    "cp /dst/f /dst/g; true",
    "ln -f /dst/f /dst/hard; true",
    "ln -sfn /real/sub/new /lf",
    "chown -R 5:6 /dst",
    "rmdir /dst/e /dst/d/e; true",
    "mkfifo /dst/fifo; true",
    "echo same > /n; sleep 0.1",
];
const OUTPUTS: &[Output] = &[
    Output::Tag,
    Output::Tag,
    Output::Tag,
    Output::Local,
    Output::Tar,
    Output::Oci,
    Output::OciWithTimes,
    Output::Docker,
    Output::TagAndTar,
];
/// Lists all metadata and content of a directory except times and link counts.
const SEE: &str = "find DIR -exec stat -c '%n %F %a %u:%g' {} + 2>&1 | sort > OUT; find DIR -type f -exec md5sum {} + 2>&1 | sort >> OUT; find DIR -type l -exec readlink {} \\; 2>&1 | sort >> OUT; true";
const PLAIN: &[&str] = &[
    "WORKDIR /dst",
    "WORKDIR /w/v",
    "WORKDIR rel",
    "WORKDIR /ln/w",
    "USER 7:8",
    "USER web",
    "USER 0",
    "ENV E=1",
    "ENV V=env",
    "ARG V=1",
    "VOLUME /vol",
    "LABEL l=1",
    "ARG W=2",
];

struct Writer<'a> {
    random: &'a mut Random,
    next: usize,
    /// The files of the current round, so that most generated names exist.
    files: &'a Path,
    /// True if the stage being written has a shell and user names.
    shell: bool,
}

/// Returns a case; equal seeds yield equal cases. `files` is an empty directory to which the
/// changes are applied.
pub fn case(seed: u64, files: &Path) -> Case {
    let mut random = Random::new(seed);
    let fixed_times = random.percent(60);
    let aged = random.percent(12);
    let mut writer = Writer { random: &mut random, next: 0, files, shell: false };
    let mut file = Dockerfile::default();
    let mut rounds = Vec::new();
    for number in 0..writer.random.within(3..=7) {
        let mut ops = match number {
            0 => beginning(writer.random),
            _ if writer.random.percent(20) => Vec::new(),
            _ => changes(writer.random),
        };
        tree::apply(files, &ops);
        if number == 0 {
            file = writer.dockerfile();
        } else if writer.random.percent(45) {
            writer.edit(&mut file);
        }
        ops.extend(writer.missing(&file));
        rounds.push(writer.round(&file, ops));
    }
    Case { seed, fixed_times, aged, rounds }
}

impl Writer<'_> {
    fn round(&mut self, file: &Dockerfile, ops: Vec<Op>) -> Round {
        let random = &mut *self.random;
        let racing = if random.percent(12) { changes(random) } else { Vec::new() };
        tree::apply(self.files, &racing);
        let mut args = Vec::new();
        if random.percent(30) {
            args.extend(["--build-arg".to_string(), format!("V={}", random.below(3))]);
        }
        if random.percent(8) {
            args.extend(["--target".to_string(), format!("s{}", random.below(file.stages.len()))]);
        }
        args.extend(random.percent(5).then(|| "--squash".to_string()));
        args.extend(random.percent(3).then(|| "--no-cache".to_string()));
        Round {
            ops,
            racing,
            delay: random.below(150) as u64,
            file: file.clone(),
            args,
            output: random.pick(OUTPUTS),
            twin: random.percent(8).then(|| random.pick(OUTPUTS)),
            prune: random.percent(4),
        }
    }

    /// Returns operations that create most of the missing paths that instructions refer to.
    fn missing(&mut self, file: &Dockerfile) -> Vec<Op> {
        let mut ops = Vec::new();
        for step in file.stages.iter().flat_map(|s| &s.steps) {
            let Kind::Copy(copy) = &step.kind else { continue };
            let root = match copy.flags.iter().find(|f| f.starts_with("--from")).map(String::as_str) {
                None => "c",
                Some("--from=named") => "n",
                Some(_) => continue,
            };
            for source in copy.sources.iter().filter(|s| !s.contains(['*', '?', '['])) {
                if !self.exists(root, source) && self.random.percent(90) {
                    let path = format!("{root}/{}", source.trim_start_matches('/')).into_bytes();
                    ops.push(Op::Write { path, text: text(self.random), way: Way::InPlace });
                }
            }
        }
        tree::apply(self.files, &ops);
        ops
    }

    fn exists(&self, root: &str, source: &str) -> bool {
        self.files.join(root).join(source.trim_start_matches('/')).exists()
    }

    fn dockerfile(&mut self) -> Dockerfile {
        let mut file = Dockerfile::default();
        for number in 0..self.random.pick(&[1, 1, 2, 2, 3, 4]) {
            let base = match self.random.below(10) {
                0..=1 => "scratch".to_string(),
                2..=3 if number > 0 => format!("s{}", self.random.below(number)),
                _ => "base".to_string(),
            };
            let mut stage = Stage { base, steps: Vec::new() };
            self.shell = has_shell(&file, &stage.base);
            for _ in 0..self.random.within(1..=5) {
                let step = self.step(number);
                stage.steps.push(step);
            }
            if number > 0 && self.random.percent(70) {
                let step = self.copy_from(number);
                stage.steps.push(step);
            }
            file.stages.push(stage);
        }
        file
    }

    fn edit(&mut self, file: &mut Dockerfile) {
        let number = self.random.below(file.stages.len());
        self.shell = has_shell(file, &file.stages[number].base);
        let steps = &mut file.stages[number].steps;
        let at = self.random.below(steps.len().max(1));
        let choice = self.random.below(10);
        match steps.get(at).map(|s| s.kind.clone()) {
            Some(_) if choice < 2 => drop(steps.remove(at)),
            Some(_) if choice < 3 && at > 0 => steps.swap(at, at - 1),
            Some(Kind::Copy(mut copy)) if choice < 8 => {
                self.edit_copy(&mut copy);
                steps[at].kind = Kind::Copy(copy);
            }
            Some(_) if choice < 9 => steps[at].kind = self.step(number).kind,
            _ => steps.insert(at, self.step(number)),
        }
    }

    fn edit_copy(&mut self, copy: &mut Copy) {
        match self.random.below(7) {
            0 => copy.documents.clear(),
            1 if copy.verb == "COPY" || !copy.sources.is_empty() => self.document(copy),
            2 => copy.dest = self.random.pick(DESTS).to_string(),
            3 if copy.sources.len() > 1 => drop(copy.sources.pop()),
            4 => copy.flags.retain(|f| f.starts_with("--from") || f == "--parents"),
            5 if !copy.flags.iter().any(|f| f.starts_with("--ch") || f == "--link") => self.owners_and_modes(copy),
            _ => {
                let from = copy.flags.iter().find(|f| f.starts_with("--from")).cloned();
                copy.sources.push(self.source(from.as_deref(), copy.flags.iter().any(|f| f == "--parents")));
            }
        }
        if copy.sources.is_empty() && copy.documents.is_empty() {
            copy.sources.push("a".into());
        }
    }

    fn new_step(&mut self, kind: Kind) -> Step {
        self.next += 1;
        Step { id: self.next, kind }
    }

    fn step(&mut self, stage: usize) -> Step {
        let kind = match self.random.below(100) {
            0..=54 => return self.copy(stage),
            55..=72 if self.shell => Kind::Run { mounts: Vec::new(), command: self.random.pick(RUNS).to_string() },
            73..=76 if self.shell => Kind::Run { mounts: Vec::new(), command: see("/dst", self.next) },
            77..=90 if self.shell => self.run_with_mounts(stage),
            91..=99 => Kind::Plain(self.random.pick(PLAIN).to_string()),
            _ => return self.copy(stage),
        };
        self.new_step(kind)
    }

    fn copy(&mut self, stage: usize) -> Step {
        if stage > 0 && self.random.percent(25) {
            return self.copy_from(stage);
        }
        let verb = if self.random.percent(20) { "ADD" } else { "COPY" };
        let mut copy = Copy { verb, dest: self.random.pick(DESTS).to_string(), ..Copy::default() };
        let from = (verb == "COPY").then(|| self.random.below(20));
        let from = match from {
            Some(0) => Some("--from=base"),
            Some(1) => Some("--from=image"),
            Some(2..=4) => Some("--from=named"),
            _ => None,
        };
        copy.flags.extend(from.map(str::to_string));
        self.flags(&mut copy);
        let parents = copy.flags.iter().any(|f| f == "--parents");
        for _ in 0..self.random.pick(&[1, 1, 1, 1, 2, 2, 3]) {
            copy.sources.push(self.source(from, parents));
        }
        if verb == "ADD" && self.random.percent(60) {
            copy.sources.push(self.random.pick(&["t.tar", "d/t.tgz"]).to_string());
        }
        if from.is_none() && self.random.percent(15) {
            self.document(&mut copy);
        }
        if copy.sources.len() + copy.documents.len() > 1 && !copy.dest.ends_with('/') && self.random.percent(93) {
            copy.dest.push('/');
        }
        self.new_step(Kind::Copy(copy))
    }

    fn source(&mut self, from: Option<&str>, parents: bool) -> String {
        let list = match from {
            _ if parents => PARENTS,
            None | Some("--from=named") => SOURCES,
            Some(_) => STAGE_SOURCES,
        };
        let root = match from {
            None => "c",
            Some("--from=named") => "n",
            Some(_) => return self.random.pick(list).to_string(),
        };
        // Prefer existing names.
        for _ in 0..6 {
            let source = self.random.pick(list);
            if source.contains(['*', '?', '[']) || self.exists(root, source) {
                return source.to_string();
            }
        }
        self.random.pick(list).to_string()
    }

    fn copy_from(&mut self, stage: usize) -> Step {
        let from = self.random.below(stage);
        let from = if self.random.percent(70) { format!("--from=s{from}") } else { format!("--from={from}") };
        let mut copy =
            Copy { verb: "COPY", dest: self.random.pick(DESTS).to_string(), flags: vec![from], ..Copy::default() };
        self.flags(&mut copy);
        copy.flags.retain(|f| f != "--parents");
        copy.sources.push(self.random.pick(STAGE_SOURCES).to_string());
        self.new_step(Kind::Copy(copy))
    }

    fn flags(&mut self, copy: &mut Copy) {
        if self.random.percent(35) {
            self.owners_and_modes(copy);
        }
        if self.random.percent(12) && copy.verb == "COPY" {
            copy.flags.push("--parents".into());
        }
        if self.random.percent(10) {
            copy.flags.push(
                self.random
                    .pick(&["--exclude=**/f", "--exclude=s", "--exclude=d/s", "--exclude=*l", "--exclude=d/*"])
                    .into(),
            );
        }
    }

    fn owners_and_modes(&mut self, copy: &mut Copy) {
        let all = [
            "--link",
            "--chown=5:6",
            "--chown=7",
            "--chown=web:extra",
            "--chmod=755",
            "--chmod=0640",
            "--chmod=4755",
            "--chmod=u=rwX,go=rX",
            "--chmod=+x",
            "--chmod=go-w",
        ];
        let flag = self.random.pick(&all);
        let flag = if flag.contains("web") && !self.shell { "--chown=9" } else { flag };
        copy.flags.push(flag.into());
        if self.random.percent(30) && flag != "--link" && !flag.contains("web") {
            copy.flags.push("--link".into());
        }
    }

    fn document(&mut self, copy: &mut Copy) {
        let mut text = text(self.random);
        if text.len() > 100 || !text.ends_with('\n') {
            text = "zzz\n".into();
        }
        copy.documents.push((self.random.pick(&["f", "g", "a", "i"]), text));
        copy.sources.retain(|s| !s.contains(' '));
        copy.documents.dedup_by_key(|d| d.0);
        if copy.documents.len() > 1 {
            copy.documents.truncate(1);
        }
    }

    fn run_with_mounts(&mut self, stage: usize) -> Kind {
        let out = self.next;
        let mut mounts = Vec::new();
        let rw = self.random.pick(&["", ",rw"]);
        let from = match self.random.below(6) {
            0..=1 => String::new(),
            2 => ",from=named".into(),
            _ if stage > 0 => format!(",from=s{}", self.random.below(stage)),
            _ => String::new(),
        };
        let of_stage = from.starts_with(",from=s");
        let source = if of_stage {
            self.random.pick(&["", ",source=/dst", ",source=/dst/a", ",source=/ln"]).to_string()
        } else {
            self.random
                .pick(&["", ",source=d", ",source=d/s", ",source=x/f", ",source=l", ",source=.", ",source=d/l"])
                .to_string()
        };
        let mut command = match self.random.below(8) {
            0 => {
                mounts.push("type=cache,id=c1,target=/cache".into());
                return Kind::Run { mounts, command: "echo x > /cache/x; cat /cache/x > /cached".into() };
            }
            1 => {
                mounts.push("type=tmpfs,target=/dst/t".into());
                "echo x > /dst/t/x; ls /dst/t > /listed".to_string()
            }
            2 => {
                mounts.push("type=secret,id=s".into());
                "cat /run/secrets/s | wc -c > /size".to_string()
            }
            3 if !rw.is_empty() => "rm -rf /m/f /m/d; echo more > /m/more; mkdir -p /m/s; true".to_string(),
            _ => String::new(),
        };
        mounts.push(format!("type=bind,target=/m{from}{source}{rw}"));
        if command.is_empty() || self.random.percent(60) {
            let dir = if of_stage && source.is_empty() { "/m/dst" } else { "/m" };
            command = format!("{command}{}{}", if command.is_empty() { "" } else { "; " }, see(dir, out));
        }
        if self.random.percent(20) {
            command += "; cp -a /m /dst/m; true";
        }
        Kind::Run { mounts, command }
    }
}

fn see(dir: &str, number: usize) -> String {
    SEE.replace("DIR", dir).replace("OUT", &format!("/seen{number}"))
}

/// Returns true if the stage is based, directly or not, on the image with a shell.
fn has_shell(file: &Dockerfile, base: &str) -> bool {
    match base.strip_prefix('s').and_then(|n| n.parse::<usize>().ok()) {
        Some(number) => has_shell(file, &file.stages[number].base),
        None => base == "base",
    }
}
