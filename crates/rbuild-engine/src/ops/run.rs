//! Execution of single steps: RUN, COPY and ADD, WORKDIR. Each fills a new tree, which the caller
//! commits.

use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Duration;

use rbuild_dockerfile::Diagnostic;
use rbuild_image::DEFAULT_PATH;
use rbuild_layer::{ExternalFiles, LayerError, LayerForm};
use rbuild_linux::{Kind, RootDir, Timestamp};
use rbuild_plan::{AgentStep, CopyStep, RunStep, SecretStep, Security, Step, Ulimit, VertexId, WorkdirStep};
use rbuild_remedy::Remedy;
use rbuild_sandbox::{
    Ended, Files, Input, MountRequest, Outcome, RunRequest, SandboxError, Source, Stream, remove_points, restored_files,
};
use rbuild_source::{Changes, Content, Listing, SourceError, SourceTree};
use rbuild_store::{Baseline, LISTING, Snapshots, StoreError, TreeId, Working, cut_links};

use crate::cache::key::{self, StageFiles, copy_source_error};
use crate::error::{BuildError, Result};
use crate::event::{Event, Warning};
use crate::exports::Squash;
use crate::ops::container::{DEFAULT_SHM, hosts_file, is_set, network};
use crate::ops::copy::{Terms, copy};
use crate::ops::copy_error::{CopyError, Reason};
use crate::ops::incremental_copy::Track;
use crate::ops::redact::Mask;
use crate::ops::run_mounts::ContextPart;
use crate::ops::ssh_agent::Agent;
use crate::ops::users;
use crate::prepare::demands::{missing_secret, not_given};
use crate::record::log_tail::LogTail;
use crate::solve::executor::Executor;

impl Executor<'_> {
    /// Creates the tree for a vertex; returns its directory, which contains `fs`.
    pub(crate) fn new_tree(&self, id: VertexId) -> Result<(PathBuf, RootDir)> {
        let (path, dir) = self.store.new_tree(&self.work)?;
        self.prepare_root(&self.trees_below(id)?, &dir)?;
        Ok((path, dir))
    }

    /// Returns the trees that a vertex builds on. A linked copy starts from nothing; its tree
    /// covers the ones below like any other.
    fn trees_below(&self, id: VertexId) -> Result<Vec<TreeId>> {
        let vertex = &self.prepared.graph.vertices[id];
        let linked = matches!(&vertex.step, Step::Copy(step) if step.link);
        vertex.parent.filter(|_| !linked).map_or(Ok(Vec::new()), |parent| self.trees(parent))
    }

    /// Gives the root of the new tree the owner and mode of the root that it covers.
    pub(crate) fn prepare_root(&self, trees: &[TreeId], dir: &RootDir) -> Result<()> {
        let fail = || BuildError::kernel("the step's directory");
        let fs = dir.sub("fs").map_err(fail())?;
        let (uid, gid, mode) = match trees.last() {
            Some(top) => {
                let stat = self.store.tree(top)?.stat_self().map_err(fail())?;
                (stat.uid, stat.gid, stat.mode)
            }
            None => (0, 0, 0o755),
        };
        fs.set_own_meta(uid, gid, mode, Timestamp { sec: self.request.now, nsec: 0 }).map_err(fail())
    }

    /// Returns the step's root file system for writing: the trees below with its own tree on top.
    fn writable(&self, trees: &[TreeId], path: &Path) -> Result<Working> {
        Ok(self.snapshots()?.working(self.store, &self.work, trees, &path.join("fs"))?)
    }

    /// Returns the root file system for a command. Without overlays, also returns a record of its
    /// files, for finding the changes afterwards.
    fn files(&self, trees: &[TreeId], path: &Path) -> Result<(Files, Option<Baseline>)> {
        let (scratch, _) = self.work.new_dir()?;
        let snapshots = self.snapshots()?;
        if snapshots == Snapshots::Overlay {
            let lowers = self.store.lower_dirs(&self.work, trees)?;
            return Ok((Files::Overlay { lowers, upper: path.join("fs"), scratch }, None));
        }
        let (root, dir) = snapshots.merged(self.store, &self.work, trees, rbuild_store::Files::Copied)?;
        let before = Baseline::of(&dir, false).map_err(BuildError::kernel("the step's files"))?;
        // The kernel's clock for file times is coarse. Wait for a tick, so that changes show.
        std::thread::sleep(TICK);
        Ok((Files::Directory { root, scratch }, Some(before)))
    }

    /// Moves the changes that a command made to the step's tree.
    fn take_changes(
        &self,
        request: &RunRequest,
        before: Option<Baseline>,
        trees: &[TreeId],
        path: &Path,
    ) -> Result<()> {
        let fail = || BuildError::kernel("the step's files");
        let (Files::Directory { root, scratch }, Some(mut before)) = (&request.files, before) else {
            let upper = RootDir::open(path.join("fs")).map_err(fail())?;
            return Ok(self.store.renew_stand_ins(trees, &upper)?);
        };
        let dir = RootDir::open(root).map_err(fail())?;
        let scratch = RootDir::open(scratch).map_err(fail())?;
        for path in restored_files(&scratch).map_err(fail())? {
            before.forgive(&dir, path.strip_prefix("/").unwrap_or(&path));
        }
        remove_points(&scratch, &dir, &|path| before.had(path)).map_err(fail())?;
        let tree = RootDir::open(path.join("fs")).map_err(fail())?;
        before.changes(&dir, &tree).map_err(fail())?;
        self.throw_away(root);
        // Where mounts are plain directories, the command may have created hard links to files in
        // them.
        cut_links(&tree).map_err(fail())?;
        Ok(())
    }

    fn throw_away(&self, path: &Path) {
        if let Some(name) = path.file_name() {
            let _ = self.work.dir().remove_all(name);
        }
    }

    pub(crate) fn terms(&self) -> Terms<'_> {
        Terms { now: self.request.now, limits: self.store.limits(), cancel: &self.cancel }
    }

    /// Copies files into a new tree, from a context or from `stage`. Returns the changes since the
    /// last time the step was executed here, if known.
    pub(crate) fn copy_step(
        &self,
        id: VertexId,
        step: &CopyStep,
        taken: &[Content],
        stage: Option<&StageFiles>,
        (path, dir): (&Path, &RootDir),
    ) -> Result<Option<Changes>> {
        let working = self.writable(&self.trees_below(id)?, path)?;
        let root = &working.root;
        let terms = self.terms();
        let exclude = key::exclusions(step)?;
        let source = match (stage, step.from) {
            (Some(stage), _) => Some(SourceTree { exclude: Some(&exclude), ..stage.tree() }),
            (None, _) if step.sources.is_empty() => None,
            (None, from) => {
                let context = self.contexts.of(from, step.source_spans[0])?;
                context.map(|c| SourceTree { exclude: Some(&exclude), ..c.tree() })
            }
        };
        let earlier = self.nearest_tree(id);
        let mut track = earlier.as_ref().map_or(Ok(Track::default()), |tree| self.track(tree))?;
        track.defers = working.takes_files();
        let fail = |e| self.copy_error(id, step, e);
        if copy(step, source.as_ref(), root, terms, Some(&mut track)).map_err(fail)? > 1 {
            let text = format!("{} is one file, the last of several that were copied to it", step.dest);
            let help = Some("end the destination with a slash if it is a directory".into());
            self.events.send(Event::Warning(Warning { text, help }));
        }
        working.finish(&path.join("fs"))?;
        if let Some(source) = &source {
            let general = |reason| fail(CopyError { index: None, reason });
            match self.folds(id).filter(|_| track.has_later()) {
                Some(form) => {
                    let layer = earlier.map_or(Ok(None), |tree| self.store.plain_layer(&tree))?;
                    self.fold(id, dir, track.take_loose(source.root, layer).map_err(general)?, form)?
                }
                None => {
                    let fs = dir.sub("fs").map_err(BuildError::kernel("the step's directory"))?;
                    track.finish(source.root, &fs, &self.cancel).map_err(general)?;
                }
            }
        }
        if taken.iter().any(|content| content.sight != track.sight) {
            return Err(BuildError::Moved);
        }
        if source.is_some() {
            self.store.put_note(dir, LISTING, &track.listing.to_bytes())?;
        }
        Ok(track.changes())
    }

    /// Returns the layer form in which a copy can be stored directly, without unpacked files: only
    /// if nothing will read its files.
    fn folds(&self, id: VertexId) -> Option<LayerForm> {
        let request = self.request;
        let looked_at = request.weigh || request.salt.is_some() || !request.secrets.is_empty();
        let form = self.wants.images.first().copied().filter(|form| form.squash == Squash::None)?;
        let clamped = self.prepared.graph.epoch.is_some() && !form.late_times;
        (self.is_only_in_images(id) && !looked_at && !clamped).then_some(form.layers)
    }

    /// Stores a copy as its layer. The deferred files are packed straight from their source.
    fn fold(&self, id: VertexId, dir: &RootDir, external: ExternalFiles, form: LayerForm) -> Result<()> {
        let stop = || self.cancel.is_cancelled();
        self.store.fold_tree(&self.work, dir, external, form, &stop).map_err(|e| match e {
            StoreError::Layer(LayerError::Changed(_)) => BuildError::Moved,
            StoreError::Layer(LayerError::Deletion(_)) => self.failure(id, e.to_string(), Vec::new()),
            _ if self.cancel.is_cancelled() => BuildError::Cancelled,
            e => e.into(),
        })
    }

    /// Returns the tracking data of an earlier copy, including its files.
    pub(crate) fn track(&self, tree: &TreeId) -> Result<Track> {
        let listing = Listing::from_bytes(&self.store.tree_note(tree, LISTING)?);
        Ok(Track::since(listing, self.store.tree_if_here(tree)?))
    }

    pub(crate) fn copy_error(&self, id: VertexId, step: &CopyStep, e: CopyError) -> BuildError {
        let span = e.index.and_then(|i| step.source_spans.get(i).copied());
        match (e.reason, span) {
            (Reason::Source(SourceError::Changed(_)), _) => BuildError::Moved,
            (Reason::Stopped, _) => BuildError::Cancelled,
            (Reason::Source(e), Some(span)) => copy_source_error(e, span, step),
            (Reason::Text(text), Some(span)) => BuildError::Unmet(vec![Diagnostic::new(span, text)]),
            (Reason::Layer(e), Some(span)) if !e.is_disk_full() => {
                let d = Diagnostic::new(span, format!("the archive cannot be unpacked: {e}"));
                BuildError::Unmet(vec![Diagnostic { help: e.remedy(), ..d }])
            }
            (Reason::Kernel(source), _) => BuildError::Kernel { what: format!("copying into {}", step.dest), source },
            (Reason::Layer(source), _) => BuildError::Layer { what: format!("unpacking into {}", step.dest), source },
            (Reason::Source(e), None) => self.failure(id, e.to_string(), Vec::new()),
            (Reason::Text(text), None) => self.failure(id, text, Vec::new()),
            (Reason::User(e), _) => self.unknown_user(id, &e),
        }
    }

    fn unknown_user(&self, id: VertexId, e: &users::UnknownUser) -> BuildError {
        let mut failure = self.failure(id, e.to_string(), Vec::new());
        if let BuildError::Step(failure) = &mut failure {
            failure.help = Some(e.remedy());
        }
        failure
    }

    pub(crate) fn workdir_step(&self, id: VertexId, step: &WorkdirStep, path: &Path) -> Result<()> {
        let working = self.writable(&self.trees_below(id)?, path)?;
        let root = &working.root;
        // The user is resolved only if a directory must be created.
        let owner = match root.stat_follow(&step.path) {
            Ok(there) if there.kind == Kind::Dir => (0, 0),
            _ => users::owner(&users::in_root(root), &step.user).map_err(|e| self.unknown_user(id, &e))?,
        };
        let now = Timestamp { sec: step.time.unwrap_or(self.request.now), nsec: 0 };
        let mut made = Vec::new();
        // Resolves dangling links, too.
        let real = root.resolve(&step.path).map_err(BuildError::kernel(format!("making {}", step.path)))?;
        let result = root.create_dir_all(&real, 0o755, Some(owner), |p| made.push(p.to_path_buf()));
        result.map_err(|e| match e.kind() {
            std::io::ErrorKind::NotADirectory | std::io::ErrorKind::AlreadyExists => self.failure(
                id,
                format!("{} is not a directory in the image; choose another one", step.path),
                Vec::new(),
            ),
            _ => BuildError::Kernel { what: format!("making {}", step.path), source: e },
        })?;
        for path in made.iter().rev() {
            let fail = || BuildError::kernel(format!("dating {}", path.display()));
            let (dir, name) = root.parent(path).map_err(fail())?;
            dir.set_mtime(&name, now).map_err(fail())?;
        }
        Ok(working.finish(&path.join("fs"))?)
    }

    /// Runs a command. `parts` are its mounts of contexts, `taken` is the content of everything
    /// that it takes from contexts.
    pub(crate) fn run_step(
        &self,
        id: VertexId,
        run: &RunStep,
        (parts, taken): (Vec<ContextPart>, &[Content]),
        path: &Path,
    ) -> Result<()> {
        let who = self.user_of(id, run)?;
        let trees = self.trees_below(id)?;
        let (mounts, caches) = self.mounts(run, parts, taken)?;
        let (files, before) = self.files(&trees, path)?;
        let secrets = self.secrets_of(run)?;
        let agents = self.agents(&run.agents)?;
        let request = self.run_request(run, who, files, mounts, &secrets, &agents);
        let (ended, log) = self.run_command(id, &request);
        // A shell may inspect the files of a failed command.
        let again = !matches!(&ended, Ok(Ended { outcome: Outcome::Exited(0), .. }));
        let brought = if ended.is_ok() { caches.bring_home(self.store, &self.work, again) } else { Ok(()) };
        drop(agents);
        let ended = match ended {
            // Killed when the build was cancelled.
            Err(_) if self.cancel.is_cancelled() => return Err(BuildError::Cancelled),
            Ok(Ended { outcome: Outcome::Exited(0), .. }) if self.cancel.is_cancelled() => {
                return Err(BuildError::Cancelled);
            }
            Err(e @ SandboxError::Killed(_)) => {
                return Err(self.run_failure(id, run, format!("could not be finished: {e}"), killed_help(), log));
            }
            ended => ended?,
        };
        if !matches!(ended.outcome, Outcome::Exited(0) | Outcome::NotStarted(_)) {
            self.note_failed_run(ended.at, request);
        } else if ended.outcome == Outcome::Exited(0) {
            brought?;
            for mount in &request.mounts {
                if let Source::Part { dir, .. } = &mount.source {
                    self.throw_away(dir);
                }
            }
            self.take_changes(&request, before, &trees, path)?;
            self.throw_away(request.files.scratch());
        }
        self.outcome_of_run(id, run, ended.outcome, log).map_err(|e| e.happened(ended.at))
    }

    fn run_request(
        &self,
        run: &RunStep,
        who: users::Identity,
        files: Files,
        mut mounts: Vec<MountRequest>,
        secrets: &[(&SecretStep, &[u8])],
        agents: &[(Agent, &AgentStep)],
    ) -> RunRequest {
        let mut env = Vec::new();
        for (secret, value) in secrets {
            env.extend(secret.env.as_ref().map(|name| format!("{name}={}", String::from_utf8_lossy(value))));
            mounts.extend(secret.target.as_ref().map(|target| MountRequest {
                target: target.clone(),
                source: Source::File { content: value.to_vec(), mode: secret.mode, uid: secret.uid, gid: secret.gid },
                read_only: true,
            }));
        }
        mounts.extend(agents.iter().map(|(agent, step)| agent.mount(&step.target)));
        if let (Some((_, first)), false) = (agents.first(), run.env.get("SSH_AUTH_SOCK").is_some()) {
            env.push(format!("SSH_AUTH_SOCK={}", first.target));
        }
        mounts.extend(run.script.as_ref().map(|script| MountRequest {
            target: format!("/dev/pipes/{}", script.name),
            source: Source::File { content: script.content.clone().into(), mode: 0o755, uid: 0, gid: 0 },
            read_only: true,
        }));
        let home = who.home.clone().unwrap_or_else(|| "/".into());
        RunRequest {
            files,
            bare: self.builder.is_bare(),
            recorded: self.builder.isolation.records_owners(),
            args: run.args.clone(),
            env: [environment(run, &home), env].concat(),
            cwd: run.cwd.clone(),
            uid: who.uid,
            gid: who.gid,
            groups: who.groups,
            hostname: run.hostname.clone(),
            mounts,
            network: network(run.network),
            insecure: run.security == Security::Insecure,
            shm_size: run.shm_size.unwrap_or(DEFAULT_SHM),
            ulimits: run.ulimits.iter().map(ulimit).collect(),
            input: Input::Nothing,
            hosts: hosts_file(&run.hostname, &run.hosts),
            resolv_conf: self.request.resolv_conf.clone(),
        }
    }

    /// Runs a command, and displays and records its output. Returns the last lines of the output,
    /// too.
    fn run_command(
        &self,
        id: VertexId,
        request: &RunRequest,
    ) -> (std::result::Result<Ended, SandboxError>, Vec<String>) {
        let mut tail = LogTail::new();
        // All secrets are masked: a cache may contain those of another step.
        let mut mask = Mask::new(&self.request.secret_values());
        let mut log = None;
        let mut show = |stream, bytes: Vec<u8>| {
            if !bytes.is_empty() {
                tail.push(stream, &bytes);
                let number = self.log_number(id);
                let log = log.get_or_insert_with(|| self.store.new_step_log(&self.request.build_id, number).ok());
                // Output that cannot be recorded is still displayed.
                let _ = log.as_mut().map(|log| log.keep(&bytes));
                self.events.output(id, stream, bytes);
            }
        };
        let ended = rbuild_sandbox::run(&self.builder.zygote, request, &self.cancel, |stream, bytes| {
            show(stream, mask.push(stream, bytes));
        });
        for stream in [Stream::Stdout, Stream::Stderr] {
            show(stream, mask.finish(stream));
        }
        (ended, tail.finish())
    }

    fn outcome_of_run(&self, id: VertexId, run: &RunStep, outcome: Outcome, log: Vec<String>) -> Result<()> {
        match outcome {
            Outcome::Exited(0) => Ok(()),
            Outcome::Exited(code) => {
                let help = not_given(run, self.request).or_else(|| exit_help(code));
                Err(self.run_failure(id, run, format!("exited with code {code}"), help, log))
            }
            Outcome::Signaled(signal) => {
                let help = if signal == SIGKILL { killed_help() } else { None };
                Err(self.run_failure(id, run, format!("was killed by signal {signal}"), help, log))
            }
            Outcome::NotStarted(why) => Err(self.failure(id, format!("the command could not be started: {why}"), log)),
        }
    }

    /// Records the first command that failed by itself, which a shell is started for.
    fn note_failed_run(&self, at: u64, request: RunRequest) {
        let mut failed = self.failed_run.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.as_ref().is_none_or(|(first, _)| at < *first) {
            *failed = Some((at, request));
        }
    }

    /// Returns those secrets of a command that were given, with their values.
    fn secrets_of<'s>(&'s self, run: &'s RunStep) -> Result<Vec<(&'s SecretStep, &'s [u8])>> {
        let value = |secret| Ok(self.secret(secret)?.map(|value| (secret, value)));
        run.secrets.iter().filter_map(|secret| value(secret).transpose()).collect()
    }

    /// Returns the value of a secret, `None` if it is optional and was not given.
    fn secret(&self, wanted: &SecretStep) -> Result<Option<&[u8]>> {
        let found = self.request.secrets.iter().find(|(id, _)| *id == wanted.id).map(|(_, value)| value.as_slice());
        if found.is_none() && wanted.required {
            return Err(BuildError::Unmet(vec![missing_secret(wanted)]));
        }
        Ok(found)
    }

    /// Returns the user of a command. Reads the account files from the trees without mounting the
    /// root file system.
    fn user_of(&self, id: VertexId, run: &RunStep) -> Result<users::Identity> {
        let trees = self.trees_below(id)?;
        let files = |path: &str| {
            let found = self.store.read_in_trees(&trees, Path::new(path), users::MAX_FILE);
            found.ok().flatten().unwrap_or_default()
        };
        users::identity(&files, &run.user).map_err(|e| self.unknown_user(id, &e))
    }

    fn run_failure(
        &self,
        id: VertexId,
        run: &RunStep,
        what: String,
        help: Option<Remedy>,
        log: Vec<String>,
    ) -> BuildError {
        let command = self.request.secret_values().mask(run.args.join(" "));
        let command: String = command.chars().take(200).collect();
        let mut error = self.failure(id, format!("the command `{}` {what}", command.trim_end()), log);
        if let BuildError::Step(failure) = &mut error {
            failure.help = help;
        }
        error
    }
}

/// Longer than the granularity of the kernel's clock for file times (CONFIG_HZ is at least 100).
const TICK: Duration = Duration::from_millis(11);

fn ulimit(limit: &Ulimit) -> rbuild_sandbox::Ulimit {
    rbuild_sandbox::Ulimit { name: limit.name.clone(), soft: limit.soft, hard: limit.hard }
}

fn environment(run: &RunStep, home: &str) -> Vec<String> {
    let mut env: Vec<(String, String)> = run.env.iter().filter(|(name, value)| is_set(name, value)).cloned().collect();
    let mut default = |name: &str, value: &str| {
        if !env.iter().any(|(k, _)| k == name) {
            env.push((name.to_string(), value.to_string()));
        }
    };
    default("PATH", DEFAULT_PATH);
    default("HOME", home);
    for (name, value) in &run.proxies {
        default(name, value);
    }
    env.into_iter().map(|(k, v)| format!("{k}={v}")).collect()
}

const SIGKILL: i32 = 9;

fn killed_help() -> Option<Remedy> {
    Some("the kernel may have run out of memory; see dmesg".into())
}

fn exit_help(code: i32) -> Option<Remedy> {
    match code {
        126 => Some("make the program executable: code 126 means that it was found and could not be executed".into()),
        127 => Some(
            "install the program in this stage, or add its directory to PATH: code 127 means that it was not found"
                .into(),
        ),
        137 => Some("check dmesg: code 137 means signal 9, which the kernel sends when memory runs out".into()),
        129..=159 => {
            Some(format!("look for the cause of signal {}: code {code} is 128 plus its number", code - 128).into())
        }
        _ => None,
    }
}
