//! The tasks of contributors, as `cargo xtask TASK`. Each one runs programs that can be run by
//! hand as well, and prints them.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const HELP: &str = "\
cargo xtask TASK

  check                   formatting, clippy, scripts/tidy and documentation: before each commit
  test [FILTER]           tests of the libraries, snapshots and the end-to-end test of the tiny
                          image, as you
  e2e [FILTER...]         end-to-end tests on busybox, as you; needs busybox-static
  all [quick|security]    scripts/test: everything, in all isolation modes; needs root
  ci                      what CI runs on a clean checkout; needs root
  bless                   records the snapshots of messages again, and shows the difference
  fuzz [SECONDS [TARGET]] scripts/fuzz: 60 seconds for each target, or for one
  bench [NAME [ARGS...]]  a program of benches/ on a release build; without a name, the planner

Without privileges: check, test, bless, bench without a name, and e2e once busybox-static is there.
";

/// A failed task. The program that failed has printed the reason.
struct Failed;

type Result = std::result::Result<(), Failed>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let task = match args.split_first() {
        None | Some((&("help" | "-h" | "--help"), _)) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Some((task, rest)) => run(task, rest),
    };
    match task {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(Failed)) => ExitCode::FAILURE,
        None => {
            eprint!("error: unknown task `{}`\n\n{HELP}", args[0]);
            ExitCode::from(2)
        }
    }
}

/// Runs a task. Returns `None` if no task has that name.
fn run(task: &str, args: &[&str]) -> Option<Result> {
    Some(match task {
        "check" => check(),
        "test" => test(args),
        "e2e" => e2e(args),
        "all" => call(&script("scripts/test"), args),
        "ci" => call(&script(".ci/run"), args),
        "bless" => bless(),
        "fuzz" => call(&script("scripts/fuzz"), if args.is_empty() { &["60"] } else { args }),
        "bench" => bench(args),
        _ => return None,
    })
}

fn check() -> Result {
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])?;
    // All targets are those that `cargo test` runs.
    let own = ["--test", "e2e", "--test", "differential"];
    cargo(&[&["clippy", "-p", "rbuild"], &own[..], &["--locked", "--", "-D", "warnings"]].concat())?;
    call(&script("scripts/tidy"), &[])?;
    let mut doc = cargo_command(&["doc", "--workspace", "--no-deps", "--locked"]);
    execute(doc.env("RUSTDOCFLAGS", "-D warnings"))
}

/// Runs the tests that need neither privileges nor packages, and counts those that were skipped.
fn test(filter: &[&str]) -> Result {
    let notes = std::env::temp_dir().join(format!("rbuild-skipped-{}", std::process::id()));
    let targets = [
        &["--workspace", "--exclude", "rbuild", "--tests"][..],
        &["-p", "rbuild", "--bins", "--test", "snapshots", "--test", "tiny"],
    ];
    let ran = targets.into_iter().try_for_each(|target| {
        let mut command = cargo_command(&[&["test", "--locked"], target, &["--"], filter].concat());
        execute(command.env("RBUILD_TEST_SKIPPED", &notes))
    });
    let skipped = std::fs::read_to_string(&notes).unwrap_or_default();
    let _ = std::fs::remove_file(&notes);
    println!("{} tests skipped", skipped.lines().count());
    print!("{skipped}");
    ran
}

fn e2e(filter: &[&str]) -> Result {
    let base = target_dir().join("test-bases/busybox.tar");
    call(&script("scripts/busybox-rootfs"), &[&base.to_string_lossy()])?;
    cargo(&[&["test", "--locked", "-p", "rbuild", "--test", "e2e", "--", "--skip", "root_"], filter].concat())
}

fn bless() -> Result {
    let mut record = cargo_command(&["test", "--locked", "-p", "rbuild", "--test", "snapshots"]);
    execute(record.env("INSTA_UPDATE", "always"))?;
    let mut record = cargo_command(&["test", "--locked", "--workspace", "--lib", "--bins", "as_recorded"]);
    execute(record.env("INSTA_UPDATE", "always"))?;
    execute(Command::new("git").args(["--no-pager", "diff", "--stat", "--", "*.snap"]))
}

fn bench(args: &[&str]) -> Result {
    let Some((name, rest)) = args.split_first() else { return cargo(&["bench", "-p", "rbuild-plan"]) };
    cargo(&["build", "--release", "--locked"])?;
    call(&script(&format!("benches/{name}")), rest)
}

/// Returns the path of a script of the repository.
fn script(path: &str) -> PathBuf {
    top().join(path)
}

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Returns the target directory of cargo, which the environment or a configuration file may have
/// moved.
fn target_dir() -> PathBuf {
    let answer = cargo_command(&["metadata", "--no-deps", "--format-version", "1"]).current_dir(top()).output();
    let text = answer.map(|answer| String::from_utf8_lossy(&answer.stdout).into_owned()).unwrap_or_default();
    let dir = text.split_once("\"target_directory\":\"").and_then(|(_, rest)| rest.split('"').next());
    dir.map_or_else(|| top().join("target"), PathBuf::from)
}

fn cargo_command(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.args(args);
    command
}

fn cargo(args: &[&str]) -> Result {
    execute(&mut cargo_command(args))
}

fn call(program: &Path, args: &[&str]) -> Result {
    execute(Command::new(program).args(args))
}

/// Prints a command and runs it at the top of the repository.
fn execute(command: &mut Command) -> Result {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    let line: Vec<_> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    eprintln!("> {}", line.join(" "));
    match command.current_dir(top()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(Failed),
        Err(e) => {
            eprintln!("error: {}: {e}", line[0]);
            Err(Failed)
        }
    }
}
