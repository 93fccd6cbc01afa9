//! RUN: runs a command in a container; its changes fill a new tree, which the caller commits.

use std::path::Path;
use std::time::Duration;

use rbuild_dockerfile::Diagnostic;
use rbuild_image::DEFAULT_PATH;
use rbuild_linux::parallel::locked;
use rbuild_linux::{OwnerMode, UidGid};
use rbuild_plan::{RunAgent, RunSecret, RunStep, VertexId};
use rbuild_remedy::{CommandRemedy, DiskRemedy, IsolationRemedy, MachineRemedy, Remedy};
use rbuild_sandbox::{
    CommandEnd, CommandOutcome, CommandRequest, Input, MountRequest, MountSource, Privileges, RootFiles, RunRequest,
    SandboxError, Stream, remove_mount_points, restored_files,
};
use rbuild_source::Selection;
use rbuild_store::{Baseline, SnapshotBackend, TreeId, cut_links};

use crate::env::StepEnv;
use crate::error::{BuildError, NotStarted, Result};
use crate::error_context::ErrorContext;
use crate::ops::container::{DEFAULT_SHM, hosts_file, is_set, limit_remedy};
use crate::ops::copy_step::unknown_user;
use crate::ops::run_mounts::{ContextPart, agents, mounts};
use crate::ops::ssh_agent::Agent;
use crate::ops::step_error::Attempt;
use crate::ops::users;
use crate::prepare::demands::{missing_secret, not_given};
use crate::record::log_tail::LogTail;
use crate::redact::Mask;

/// Returns the root file system for a command. Without overlays, also returns a record of its
/// files, for finding the changes afterwards.
fn files(env: &StepEnv<'_>, trees: &[TreeId], path: &Path) -> Result<(RootFiles, Option<Baseline>)> {
    let (scratch, _) = env.rootfs.work.new_dir()?;
    let snapshots = env.rootfs.snapshots()?;
    if snapshots == SnapshotBackend::Overlay {
        let lowers = env.store.trees().lower_dirs(&env.rootfs.work, trees)?;
        return Ok((RootFiles::Overlay { lowers, upper: path.join("fs"), scratch }, None));
    }
    let (root, dir) = snapshots.merged(env.store, &env.rootfs.work, trees, rbuild_store::MergedFiles::Copied)?;
    let before = Baseline::of(&dir, false).map_err(BuildError::kernel(ErrorContext::StepFiles))?;
    // The kernel's clock for file times is coarse. After a tick, a change is visible in the times
    // of a file.
    std::thread::sleep(TICK);
    Ok((RootFiles::Directory { root, scratch }, Some(before)))
}

/// Moves the changes that a command made into the step's tree.
fn take_changes(
    env: &StepEnv<'_>,
    request: &RunRequest,
    before: Option<Baseline>,
    trees: &[TreeId],
    path: &Path,
) -> Result<()> {
    let fail = || BuildError::kernel(ErrorContext::StepFiles);
    let work = env.rootfs.work.dir();
    let (RootFiles::Directory { root, scratch }, Some(mut before)) = (&request.files, before) else {
        let upper = work.open_alike(path.join("fs")).map_err(fail())?;
        return Ok(env.store.trees().renew_placeholders(trees, &upper)?);
    };
    let dir = work.open_alike(root).map_err(fail())?;
    let scratch = work.open_alike(scratch).map_err(fail())?;
    for path in restored_files(&scratch).map_err(fail())? {
        before.accept_moved(&dir, path.strip_prefix("/").unwrap_or(&path));
    }
    remove_mount_points(&scratch, &dir, &|path| before.contained(path)).map_err(fail())?;
    let tree = work.open_alike(path.join("fs")).map_err(fail())?;
    before.changes(&dir, &tree).map_err(fail())?;
    env.rootfs.remove(root);
    // Where mounts are plain directories, the command may have created hard links to files in
    // them.
    cut_links(&tree).map_err(fail())?;
    Ok(())
}

/// Runs a command. `parts` are its mounts of contexts; `selected_files` are the files that it reads
/// from contexts.
pub(crate) fn run_step(
    env: &StepEnv<'_>,
    id: VertexId,
    run: &RunStep,
    parts: Vec<ContextPart>,
    selected_files: &[Selection],
    path: &Path,
) -> Attempt<()> {
    let user = user_of(env, id, run)?;
    let trees = env.rootfs.trees_below(id)?;
    let (mounts, caches) = mounts(env, id, run, parts, selected_files)?;
    let (files, before) = files(env, &trees, path)?;
    let secrets = secrets_of(env, run)?;
    let agents = agents(env, &run.agents)?;
    let request = run_request(env, run, RunInputs { user, files, mounts, secrets: &secrets, agents: &agents });
    let (ended, log) = run_command(env, id, &request);
    // A shell may inspect the files of a failed command.
    let again = !matches!(&ended, Ok(CommandEnd { outcome: CommandOutcome::Exited(0), .. }));
    let brought = if ended.is_ok() { caches.return_caches(env.store, &env.rootfs.work, again) } else { Ok(()) };
    drop(agents);
    let ended = match ended {
        // Killed when the build was canceled.
        Err(_) if env.cancel.is_canceled() => return Err(BuildError::Canceled.into()),
        Ok(CommandEnd { outcome: CommandOutcome::Exited(0), .. }) if env.cancel.is_canceled() => {
            return Err(BuildError::Canceled.into());
        }
        Err(e @ SandboxError::Killed(_)) => {
            let failure = run_failure(env, id, run, CommandFailure::NotCompleted(e), log);
            return Err(failure.with_help(killed_help(SIGKILL)).into());
        }
        ended => ended?,
    };
    if !matches!(ended.outcome, CommandOutcome::Exited(0) | CommandOutcome::NotStarted(_)) {
        note_failed_run(env, ended.at, request);
    } else if ended.outcome == CommandOutcome::Exited(0) {
        brought?;
        for mount in &request.mounts {
            if let MountSource::Part { dir, .. } = &mount.source {
                env.rootfs.remove(dir);
            }
        }
        take_changes(env, &request, before, &trees, path)?;
        env.rootfs.remove_later(request.files.scratch());
    }
    outcome_of_run(env, id, run, ended.outcome, log).map_err(|e| e.happened(ended.at).into())
}

/// The prepared files, mounts and credentials of a command.
struct RunInputs<'a> {
    user: users::Identity,
    files: RootFiles,
    mounts: Vec<MountRequest>,
    secrets: &'a [(&'a RunSecret, &'a [u8])],
    agents: &'a [(Agent, &'a RunAgent)],
}

fn run_request(env: &StepEnv<'_>, run: &RunStep, inputs: RunInputs<'_>) -> RunRequest {
    let RunInputs { user, files, mut mounts, secrets, agents } = inputs;
    let mut variables = Vec::new();
    for (name, secret) in run.secrets.iter().filter_map(|secret| Some((secret.env.as_ref()?, secret))) {
        // As in BuildKit, the variable of a missing secret is empty.
        let value = secrets.iter().find(|(given, _)| given.id == secret.id).map_or(&[][..], |(_, value)| value);
        variables.push(format!("{name}={}", String::from_utf8_lossy(value)));
    }
    for (secret, value) in secrets {
        mounts.extend(secret.target.as_ref().map(|target| MountRequest {
            target: target.clone(),
            source: MountSource::File { content: value.to_vec(), mode: secret.mode, uid: secret.uid, gid: secret.gid },
            read_only: true,
        }));
    }
    mounts.extend(agents.iter().map(|(agent, step)| agent.mount(&step.target)));
    // As in BuildKit, the variable is set even if no agent is given.
    if let (Some(first), None) = (run.agents.first(), run.env.get("SSH_AUTH_SOCK")) {
        variables.push(format!("SSH_AUTH_SOCK={}", first.target));
    }
    mounts.extend(run.script.as_ref().map(|script| MountRequest {
        target: format!("/dev/pipes/{}", script.name),
        source: MountSource::File { content: script.content.clone().into(), mode: 0o755, uid: 0, gid: 0 },
        read_only: true,
    }));
    let home = user.home.clone().unwrap_or_else(|| "/".into());
    let command = CommandRequest {
        mode: env.builder.isolation.runner_mode(),
        args: run.args.clone(),
        env: [environment(run, &home), variables].concat(),
        cwd: run.cwd.clone(),
        uid: user.uid,
        gid: user.gid,
        groups: user.groups,
        ulimits: run.ulimits.clone(),
        input: Input::Nothing,
        privileges: Privileges::of_step(run.security),
        init: false,
    };
    RunRequest {
        command,
        files,
        read_only: false,
        hostname: run.hostname.clone(),
        mounts,
        network: run.network,
        shm_size: run.shm_size.unwrap_or(DEFAULT_SHM),
        announced: false,
        hosts: hosts_file(&run.hostname, &run.hosts),
        resolv_conf: env.request.resolv_conf.clone(),
    }
}

/// Runs a command, and displays and records its output. Also returns the last lines of the output.
fn run_command(
    env: &StepEnv<'_>,
    id: VertexId,
    request: &RunRequest,
) -> (std::result::Result<CommandEnd, SandboxError>, Vec<String>) {
    let mut tail = LogTail::new();
    // All secrets are masked: a cache may contain those of another step.
    let mut mask = Mask::new(&env.request.secret_values());
    let mut log = None;
    let mut show = |stream, bytes: Vec<u8>| {
        if !bytes.is_empty() {
            tail.push(stream, &bytes);
            let number = env.log_number(id);
            let log = log.get_or_insert_with(|| env.store.logs().new_step_log(&env.request.build_id, number).ok());
            // Output that cannot be recorded is still displayed.
            let _ = log.as_mut().map(|log| log.keep(&bytes));
            env.events.output(id.position(), stream, bytes);
        }
    };
    let ended = rbuild_sandbox::run(&env.builder.zygote, request, &env.cancel, |stream, bytes| {
        show(stream, mask.push(stream, bytes));
    });
    for stream in [Stream::Stdout, Stream::Stderr] {
        show(stream, mask.finish(stream));
    }
    (ended, tail.finish())
}

fn outcome_of_run(
    env: &StepEnv<'_>,
    id: VertexId,
    run: &RunStep,
    outcome: CommandOutcome,
    log: Vec<String>,
) -> Result<()> {
    match outcome {
        CommandOutcome::Exited(0) => Ok(()),
        CommandOutcome::Exited(code) => {
            // A missing program is not the consequence of a missing secret, unless the program or
            // its name would have been in the secret.
            let missing = missing_program(&log);
            let relevant = |secret: &RunSecret| code != PROGRAM_NOT_FOUND || may_name_program(run, secret, missing);
            let absent = not_given(run, env.request, code != PROGRAM_NOT_FOUND, relevant);
            let help = absent.or_else(|| json_help(run)).or_else(|| owner_help(env, &log)).or_else(|| exit_help(code));
            let help = help
                .or_else(|| full_help(env))
                .or_else(|| (!env.request.shell_on_error).then_some(Remedy::Command(CommandRemedy::InspectFailure)));
            let missing = missing.filter(|_| code == PROGRAM_NOT_FOUND).map(str::to_string);
            let mut error = run_failure(env, id, run, CommandFailure::Exited(code), log).with_help(help);
            if let BuildError::Step(failure) = &mut error {
                failure.word = missing;
            }
            Err(error)
        }
        CommandOutcome::Signaled(signal) => {
            let help = limit_remedy(signal, &run.ulimits).or_else(|| killed_help(signal));
            Err(run_failure(env, id, run, CommandFailure::Killed(signal), log).with_help(help))
        }
        CommandOutcome::NotStarted(error) => {
            // The file of a secret may be the program, or its interpreter.
            let is_program = |secret: &RunSecret| run.args.first() == secret.target.as_ref();
            let help = not_given(run, env.request, false, is_program).or_else(|| error.remedy());
            Err(env.failure(id, NotStarted(error), log).with_help(help))
        }
    }
}

/// Records the first command that failed by itself. A shell is started in its container, if
/// requested.
fn note_failed_run(env: &StepEnv<'_>, at: u64, request: RunRequest) {
    let mut failed = locked(&env.failed_run);
    if failed.as_ref().is_none_or(|(first, _)| at < *first) {
        *failed = Some((at, request));
    }
}

/// Returns the secrets of a command that the build was given, with their values.
fn secrets_of<'s>(env: &'s StepEnv<'_>, run: &'s RunStep) -> Result<Vec<(&'s RunSecret, &'s [u8])>> {
    let value = |step| Ok(secret(env, step)?.map(|value| (step, value)));
    run.secrets.iter().filter_map(|secret| value(secret).transpose()).collect()
}

/// Returns the value of a secret, `None` if it is optional and was not given.
fn secret<'e>(env: &'e StepEnv<'_>, wanted: &RunSecret) -> Result<Option<&'e [u8]>> {
    let found = env.request.secrets.iter().find(|(id, _)| *id == wanted.id).map(|(_, value)| value.as_slice());
    if found.is_none() && wanted.required {
        return Err(BuildError::Unmet(vec![missing_secret(wanted)]));
    }
    Ok(found)
}

/// Returns the user of a command. Reads the account files from the trees without mounting the
/// root file system.
fn user_of(env: &StepEnv<'_>, id: VertexId, run: &RunStep) -> Result<users::Identity> {
    let stack = env.store.image_trees().files(&env.rootfs.trees_below(id)?)?;
    let files = |path: &str| stack.read(Path::new(path), users::MAX_FILE).ok().flatten().unwrap_or_default();
    let who = users::identity(&files, &run.user).map_err(|e| unknown_user(env, id, e))?;
    match who.unavailable(&env.builder.isolation) {
        Some(unmapped) => {
            let vertex = &env.graph().vertices[id];
            let span = vertex.word_spans.owner.unwrap_or(vertex.span);
            let d = Diagnostic::new(span, users::unavailable(&run.user, &unmapped));
            Err(BuildError::Unmet(vec![d.help(unmapped.remedy())]))
        }
        None => Ok(who),
    }
}

fn run_failure(
    env: &StepEnv<'_>,
    id: VertexId,
    run: &RunStep,
    context: CommandFailure,
    log: Vec<String>,
) -> BuildError {
    let command = env.request.secret_values().mask(run.args.join(" "));
    // The excerpt of the Dockerfile shows other commands.
    let is_inherited = env.graph().vertices[id].text.starts_with("ONBUILD ");
    env.failure(id, context.message(is_inherited.then_some(&command)), log)
}

/// The failure of a command that was started.
#[derive(Debug)]
enum CommandFailure {
    Exited(i32),
    /// Killed by that signal.
    Killed(i32),
    /// One of rbuild's own processes was killed.
    NotCompleted(SandboxError),
}

impl CommandFailure {
    /// Returns the message about a command line, which is `None` if it is shown otherwise.
    fn message(&self, command: Option<&String>) -> String {
        let command = command.map_or("the command".into(), |command| format!("the command `{}`", shortened(command)));
        match self {
            CommandFailure::Exited(code) => format!("{command} exited with code {code}"),
            CommandFailure::Killed(signal) => format!("{command} was killed by signal {signal}"),
            CommandFailure::NotCompleted(e) => format!("{command} could not be completed: {e}"),
        }
    }
}

/// Returns a command on one line, of at most 100 characters. Newlines are shown as `\n`.
fn shortened(command: &str) -> String {
    const MAX_LENGTH: usize = 100;
    let lines = command.trim().lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    let line = lines.collect::<Vec<_>>().join("\\n");
    match line.char_indices().nth(MAX_LENGTH) {
        Some((end, _)) => format!("{}…", &line[..line[..end].rfind(' ').unwrap_or(end)]),
        None => line,
    }
}

/// Returns the name of the program that the shell did not find, according to its last message.
fn missing_program(log: &[String]) -> Option<&str> {
    let name = |line: &String| {
        let line = line.trim_end();
        line.strip_suffix(": not found").or_else(|| line.strip_suffix(": command not found")).map(str::len)
    };
    let (line, end) = log.iter().rev().find_map(|line| Some((line, name(line)?)))?;
    line[..end].rsplit(": ").next().filter(|name| !name.is_empty())
}

/// Returns true if the program that a shell did not find may be the file of a secret, or may be
/// named by the variable of a secret. `missing` is the name of the program, if the shell printed
/// it.
fn may_name_program(run: &RunStep, secret: &RunSecret, missing: Option<&str>) -> bool {
    let texts = || run.args.iter().chain(run.script.as_ref().map(|script| &script.content));
    let is_file = secret.target.as_deref().is_some_and(|target| match missing {
        Some(missing) => missing == target,
        None => texts().any(|text| text.contains(target)),
    });
    is_file || secret.env.as_deref().is_some_and(|name| texts().any(|text| names_by_variable(text, name, missing)))
}

/// Returns true if a script may have named its missing program by an unset variable. In that case,
/// a name that the shell printed is the word after the variable.
fn names_by_variable(script: &str, name: &str, missing: Option<&str>) -> bool {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    script.match_indices('$').any(|(at, _)| {
        let rest = &script[at + 1..];
        let braced = rest.strip_prefix('{');
        let Some(after) = braced.unwrap_or(rest).strip_prefix(name).filter(|after| !after.starts_with(is_name)) else {
            return false;
        };
        let Some(missing) = missing else { return true };
        let after = if braced.is_some() { after.split_once('}').map_or("", |(_, after)| after) } else { after };
        let next = after.trim_start_matches(|c: char| c.is_whitespace() || c == '\\');
        let word = next.len() < after.len() && next.starts_with(missing);
        word && !next[missing.len()..].starts_with(|c| is_name(c) || matches!(c, '/' | '.' | '-'))
    })
}

/// Longer than the granularity of the kernel's clock for file times (CONFIG_HZ is at least 100).
const TICK: Duration = Duration::from_millis(11);

fn environment(run: &RunStep, home: &str) -> Vec<String> {
    let mut env: Vec<(String, String)> = run.env.iter().filter(|(name, value)| is_set(name, value)).cloned().collect();
    let mut default = |name: &str, value: &str| {
        if !env.iter().any(|(k, _)| k == name) {
            env.push((name.to_string(), value.to_string()));
        }
    };
    default("PATH", DEFAULT_PATH);
    default("HOME", home);
    // As in BuildKit, they replace variables of the image and of ARG.
    env.retain(|(name, _)| !run.proxies.iter().any(|(proxy, _)| proxy == name));
    env.extend(run.proxies.iter().cloned());
    env.into_iter().map(|(k, v)| format!("{k}={v}")).collect()
}

/// Free bytes below which a file system counts as full. A command may have removed a part of its
/// files when its write failed.
const ALMOST_NOTHING: u64 = 1 << 20;

/// Returns the remedy for a command that failed while the file system of its files is full.
fn full_help(env: &StepEnv<'_>) -> Option<Remedy> {
    let found = rustix::fs::fstatvfs(env.rootfs.work.dir().fd()).ok()?;
    // File systems without a fixed number of inodes report none.
    let lacks_inodes = found.f_files > 0 && found.f_favail == 0;
    let lacks_space = found.f_blocks > 0 && found.f_bavail.saturating_mul(found.f_frsize) < ALMOST_NOTHING;
    (lacks_inodes || lacks_space).then_some(Remedy::Disk(DiskRemedy::FreeStore))
}

const SIGKILL: i32 = 9;

fn killed_help(signal: i32) -> Option<Remedy> {
    (signal == SIGKILL).then_some(Remedy::Machine(MachineRemedy::CheckMemory))
}

/// Returns the remedy for a command in shell form that was meant to be in JSON form.
fn json_help(run: &RunStep) -> Option<Remedy> {
    let [_, flag, command] = &run.args[..] else { return None };
    let mistake = rbuild_dockerfile::lint::json_mistake(command).filter(|_| flag == "-c")?;
    Some(CommandRemedy::CorrectJson { mistake }.into())
}

/// Returns the remedy for a command that could not set an owner, if the namespace lacks IDs.
fn owner_help(env: &StepEnv<'_>, log: &[String]) -> Option<Remedy> {
    const HIGHEST: u32 = u32::MAX - 1;
    let isolation = &env.builder.isolation;
    let maps = isolation.maps().filter(|_| isolation.owner_mode() == OwnerMode::Given)?;
    let lacks_ids = !maps.has(UidGid::new(HIGHEST, HIGHEST));
    (lacks_ids && is_owner_refused(log)).then(|| IsolationRemedy::GrantIds { file: "/etc/subuid".into() }.into())
}

/// Returns true if a program printed that the kernel refuses an owner: chown(2) of an ID without a
/// mapping fails with EINVAL.
fn is_owner_refused(log: &[String]) -> bool {
    const CHANGES: [&str; 7] =
        ["chown", "chgrp", "ownership", "change owner", "set owner", "change group", "changing group"];
    let is_change = |line: &str| CHANGES.iter().any(|words| line.contains(words));
    let refused = |line: &str| line.ends_with(": invalid argument") && is_change(line);
    log.iter().any(|line| refused(line.trim_end().to_ascii_lowercase().as_str()))
}

/// Exit code of a shell for a program that does not exist.
const PROGRAM_NOT_FOUND: i32 = 127;

fn exit_help(code: i32) -> Option<Remedy> {
    match code {
        126 => Some(CommandRemedy::MakeExecutable.into()),
        PROGRAM_NOT_FOUND => Some(CommandRemedy::InstallProgram.into()),
        137 => Some(CommandRemedy::CheckMemoryOfCode.into()),
        129..=159 => Some(CommandRemedy::FindSignal { code }.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;

    #[test]
    fn failures_of_commands_are_as_recorded() {
        let failures = [
            CommandFailure::Exited(1),
            CommandFailure::Killed(SIGKILL),
            CommandFailure::NotCompleted(SandboxError::Killed("the process that runs the command")),
        ];
        let variants = variants!(CommandFailure { Exited, Killed, NotCompleted });
        let long = format!("/bin/sh -c make\n  {}", "check ".repeat(30));
        let words = |failure: &CommandFailure| format!("{}\n  {}", failure.message(None), failure.message(Some(&long)));
        let codes = [1, 126, 127, 137, 139].map(|code| format!("code {code}\n  remedy: {:?}\n", exit_help(code)));
        let signals = [9, 11].map(|signal| format!("signal {signal}\n  remedy: {:?}\n", killed_help(signal)));
        assert_recorded!("CommandFailure", variants.words(&failures, words) + &codes.concat() + &signals.concat());
    }

    #[test]
    fn commands_are_shown_on_one_line() {
        for (command, shown) in [
            ("/bin/sh -c set -e\nif true; then\n  false\nfi\n", "/bin/sh -c set -e\\nif true; then\\nfalse\\nfi"),
            ("/bin/sh -c a   b\tc", "/bin/sh -c a b c"),
        ] {
            assert_eq!(shortened(command), shown);
        }
    }

    #[test]
    fn refused_owners_are_recognized_in_messages_of_programs() {
        for (line, is_refused) in [
            ("chown: /a: Invalid argument\r", true),
            ("chown: changing ownership of '/a': Invalid argument", true),
            ("tar: a: Cannot change ownership to uid 70000, gid 70000: Invalid argument", true),
            ("lchown /a: invalid argument", true),
            ("install: cannot change owner and permissions of '/a': Invalid argument", true),
            ("chgrp: changing group of '/a': Invalid argument", true),
            ("cp: failed to preserve ownership for '/a': Invalid argument", true),
            ("mount: /a: Invalid argument", false),
            ("owner: invalid argument", false),
            ("app: the owner of the project: invalid argument", false),
            ("chown: /a: Operation not permitted", false),
        ] {
            assert_eq!(is_owner_refused(&["first".into(), line.into(), "last".into()]), is_refused, "{line}");
        }
    }

    #[test]
    fn variables_that_name_a_program_are_recognized() {
        for (script, missing, named) in [
            ("$TOOL x", Some("x"), true),
            ("\"$TOOL\" x", None, true),
            ("cd /x && ${TOOL} x", Some("x"), true),
            ("if true; then \"${TOOL:-}\"; fi", None, true),
            ("set -e\nexec $TOOL --all", Some("--all"), true),
            ("FOO=1 $TOOL \\\n  x", Some("x"), true),
            ("if $TOOL x; then y; fi", Some("x"), true),
            ("curl -H $TOOL http://host", Some("curl"), false),
            ("echo $(echo a | $TOOL) && nosuch", Some("nosuch"), false),
            ("$TOOL xy", Some("x"), false),
            ("$TOOLS x", Some("x"), false),
            ("echo '&' $TOOL", Some("echo"), false),
            ("TOOL x", Some("TOOL"), false),
        ] {
            assert_eq!(names_by_variable(script, "TOOL", missing), named, "{script}");
        }
    }

    #[test]
    fn the_program_that_a_shell_did_not_find_is_recognized() {
        for (line, program) in [
            ("/bin/sh: 1: foo: not found", Some("foo")),
            ("bash: line 1: foo: command not found", Some("foo")),
            ("sh: foo: not found\r", Some("foo")),
            ("foo: bar", None),
            (": not found", None),
        ] {
            assert_eq!(missing_program(&["last".into(), line.into()]), program, "{line}");
        }
    }
}
