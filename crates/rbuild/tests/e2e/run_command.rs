//! Interactive commands: `run`, and terminals.

use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::{Lab, base};

const IMAGE: &str =
    "FROM busybox\nENV A=1 B=2\nWORKDIR /srv/w\nUSER web\nENTRYPOINT [\"echo\"]\nCMD [\"the\", \"default\"]\n";

#[test]
fn run_combines_image_configuration_and_arguments() {
    let lab = Lab::new();
    lab.build(IMAGE, &["-t", "x"]).ok();
    let run = |args: &[&str]| lab.rbuild(["run", "--rm"].into_iter().chain(args.iter().copied()));
    assert_eq!(run(&["x"]).ok().stdout, "the default\n");
    assert_eq!(run(&["x", "something", "-else"]).ok().stdout, "something -else\n");
    let sh =
        |script: &str, more: &[&str]| run(&[&["--entrypoint", "sh"], more, &["x", "-c", script]].concat()).ok().stdout;
    assert_eq!(sh("echo $A$B $(pwd) $(id -u):$(id -g) $HOME", &["-e", "B=3"]), "13 /srv/w 33:33 /srv\n");
    assert_eq!(sh("id -u; pwd; hostname", &["-u", "0", "-w", "/tmp", "--hostname", "h"]), "0\n/tmp\nh\n");
    assert_eq!(sh("cat /etc/hosts | grep -c 10.9.8.7", &["--add-host", "a:10.9.8.7"]), "1\n");
    assert_eq!(sh("ls /sys/class/net 2>/dev/null; ip -o link | wc -l", &["--network", "none"]), "lo\n1\n");
    lab.write("v/f", "shared");
    let volume = format!("{}/v:/v", lab.ctx().display());
    assert_eq!(sh("cat /v/f", &["-v", &volume]), "shared");
    // The exit status is that of the command.
    assert_eq!(run(&["--entrypoint", "sh", "x", "-c", "exit 42"]).code, Some(42));
    assert_eq!(run(&["--entrypoint", "sh", "x", "-c", "sh -c 'kill -9 $$'; exit $?"]).code, Some(137));
    run(&["--entrypoint", "nothing", "x"]).fails(127, &["no program `nothing`"]);
    run(&["nowhere"]).fails(125, &["image `nowhere` not found"]);
    // Files written by the command are discarded, and the image is unchanged.
    sh("echo x > /tmp/y", &[]);
    assert_eq!(sh("ls /tmp", &[]), "");
    assert_eq!(std::fs::read_dir(lab.store().join("tmp")).unwrap().count(), 0);
}

#[test]
fn run_passes_standard_input_only_on_request() {
    let lab = Lab::new();
    let feed = |args: &[&str]| {
        let mut command = lab.command(["run"].into_iter().chain(args.iter().copied()));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let _ = stdin.write_all(b"from outside\n");
        drop(stdin);
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    };
    assert_eq!(feed(&["-i", "busybox", "cat"]), "from outside\n");
    assert_eq!(feed(&["busybox", "cat"]), "");
}

/// Runs a command that prints `ready`, and then sends signals to rbuild, with this time between
/// them. Returns the output and the exit code. Fails if that takes 5 s.
fn send_signals(lab: &Lab, words: &[&str], signals: &[Signal], interval: Duration) -> (String, Option<i32>) {
    let mut command = lab.signaled_command(["run", "--rm"].into_iter().chain(words.iter().copied()));
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut text = vec![0; "ready\n".len()];
    output.read_exact(&mut text).unwrap();
    let asked = Instant::now();
    for signal in signals {
        kill(Pid::from_raw(child.id() as i32), *signal).unwrap();
        std::thread::sleep(interval);
    }
    output.read_to_end(&mut text).unwrap();
    let code = child.wait().unwrap().code();
    assert!(asked.elapsed() < Duration::from_secs(5), "{words:?}, {signals:?}: {:?}", asked.elapsed());
    (String::from_utf8(text).unwrap(), code)
}

#[test]
fn signals_are_forwarded_to_commands_that_handle_them() {
    let lab = Lab::new();
    let send = |script: &str, signals: &[Signal]| {
        send_signals(&lab, &["busybox", "sh", "-c", script], signals, Duration::from_millis(20))
    };
    let run = |script: &str, signal| send(script, &[signal]);
    let run_twice = |script: &str, signal| send(script, &[signal, signal]);
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let name = signal.as_str().trim_start_matches("SIG");
        let handler = format!("trap 'echo {name}; exit 3' {name}; echo ready; while :; do sleep 0.05; done");
        assert_eq!(run(&handler, signal), (format!("ready\n{name}\n"), Some(3)));
        // timeout(1) sends the signal to its child and to the process group.
        let twice = format!("trap 'sleep 0.1; echo {name}; exit 3' {name}; echo ready; while :; do sleep 0.05; done");
        assert_eq!(run_twice(&twice, signal), (format!("ready\n{name}\n"), Some(3)));
        // As the first process of its PID namespace, the command would ignore the signal.
        assert_eq!(
            run("echo ready; while :; do sleep 0.05; done", signal),
            ("ready\n".into(), Some(128 + signal as i32))
        );
    }
}

/// As a web server, which reads its configuration again.
#[test]
fn sighup_does_not_end_a_command_that_handles_it() {
    let lab = Lab::new();
    let script = "trap 'echo again' HUP; trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    let signals = [Signal::SIGHUP, Signal::SIGTERM];
    let ended = send_signals(&lab, &["busybox", "sh", "-c", script], &signals, Duration::from_millis(300));
    assert_eq!(ended, ("ready\nagain\n".into(), Some(3)));
}

#[test]
fn nohup_excludes_sighup() {
    let lab = Lab::new();
    let script = "$RB run busybox sh -c 'sleep 1; echo over' & sleep 0.5; kill -HUP $!; wait $!; echo $?";
    let ran = lab.sh(&format!("trap '' HUP; {script}")).ok();
    assert_eq!(ran.stdout, "over\n0\n", "{}", ran.stderr);
}

#[test]
fn a_command_that_does_not_end_by_a_signal_is_announced() {
    let lab = Lab::new();
    let script = "trap : TERM; echo ready; while :; do sleep 0.05; done";
    let mut command = lab.command(["run", "busybox", "sh", "-c", script]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0; 6]).unwrap();
    let pid = Pid::from_raw(child.id() as i32);
    kill(pid, Signal::SIGTERM).unwrap();
    let mut note = vec![0; "note: the command has 10 s to end; another signal ends it at once\n".len()];
    child.stderr.take().unwrap().read_exact(&mut note).unwrap();
    assert_eq!(String::from_utf8(note).unwrap(), "note: the command has 10 s to end; another signal ends it at once\n");
    kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

/// As systemd does with `SendSIGHUP=yes`.
#[test]
fn sighup_after_sigterm_belongs_to_the_same_request() {
    let lab = Lab::new();
    let script = "trap 'sleep 0.3; echo cleaned; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    let signals = [Signal::SIGTERM, Signal::SIGHUP];
    let ended = send_signals(&lab, &["busybox", "sh", "-c", script], &signals, Duration::ZERO);
    assert_eq!(ended, ("ready\ncleaned\n".into(), Some(3)));
}

#[test]
fn a_second_signal_kills_a_command_that_handles_the_first() {
    let lab = Lab::new();
    let script = "trap : INT TERM HUP; echo ready; while :; do sleep 0.05; done";
    for (signals, interval) in [
        ([Signal::SIGINT, Signal::SIGINT], 150),
        ([Signal::SIGINT, Signal::SIGTERM], 150),
        ([Signal::SIGINT, Signal::SIGTERM], 20),
    ] {
        let ended = send_signals(&lab, &["busybox", "sh", "-c", script], &signals, Duration::from_millis(interval));
        assert_eq!(ended, ("ready\n".into(), Some(130)), "{signals:?} after {interval} ms");
    }
}

#[test]
fn signals_are_forwarded_to_commands_that_wait_for_them() {
    let lab = Lab::new();
    lab.rbuild(["import", base("debian.tar").to_str().unwrap(), "debian"]).ok();
    let block = "use POSIX; $| = 1; sigprocmask(SIG_BLOCK, POSIX::SigSet->new(SIGTERM)); my $set = pack 'Q', 1 << 14; \
                 my ($bytes, $fd) = ('x' x 128, syscall(289, -1, $set, 8, 0)); print \"ready\\n\";";
    // Calls of sigwait(3) and of read(2) on a descriptor of signalfd(2), at once and with a signal
    // that is pending.
    let (waits, reads) = ("syscall(128, $set, 0, 0, 8)", "syscall(0, $fd, $bytes, 128)");
    for (before, receive) in [("", waits), ("", reads), ("select(undef, undef, undef, 0.5);", waits)] {
        let script = format!("{block} {before} {receive}; print \"received\\n\"; exit 3");
        let ended = send_signals(&lab, &["debian", "perl", "-e", &script], &[Signal::SIGTERM], Duration::ZERO);
        assert_eq!(ended, ("ready\nreceived\n".into(), Some(3)), "{script}");
    }
}

#[test]
fn signals_that_a_command_does_not_receive_end_it_at_once() {
    let lab = Lab::new();
    lab.rbuild(["import", base("debian.tar").to_str().unwrap(), "debian"]).ok();
    // A shell blocks all signals around a fork. Without a PID namespace, it does not ignore them
    // afterwards.
    let script = "echo ready; while :; do /bin/true; done";
    for signal in [Signal::SIGTERM; 8] {
        let (text, code) = send_signals(&lab, &["debian", "sh", "-c", script], &[signal], Duration::ZERO);
        assert!(text == "ready\n" && code == Some(143), "{text} {code:?}");
    }
    // Before the command is executed, the mask is that of rbuild.
    let began = Instant::now();
    lab.rbuild(["run", "--rm", "busybox", "true"]).ok();
    let whole = began.elapsed();
    for step in 0..20 {
        let mut child = lab.command(["run", "--rm", "busybox", "sleep", "30"]).spawn().unwrap();
        std::thread::sleep(whole * step / 16);
        let asked = Instant::now();
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
        child.wait().unwrap();
        assert!(asked.elapsed() < Duration::from_secs(5), "step {step} of {whole:?}: {:?}", asked.elapsed());
    }
}

/// Runs rbuild on a terminal of 30 rows and 100 columns (with script(1) of util-linux) and types
/// these lines. A line `wait:TEXT` waits until the terminal has shown TEXT; `^C` and `^D` are these
/// characters.
pub fn on_terminal(lab: &Lab, command: &str, typed: &str) -> (Option<i32>, String) {
    let line = format!("stty rows 30 cols 100; {command}");
    let mut script = std::process::Command::new("env");
    script
        .args(["--default-signal=HUP,INT", "script", "-qec", &line, "/dev/null"])
        .current_dir(lab.ctx())
        .env("RBUILD_ROOT", lab.store())
        .env("TERM", "xterm");
    script.env("RB", crate::lab::rbuild_path());
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let shown = Arc::new(Mutex::new(String::new()));
    let hearing = shown.clone();
    let listener = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n) = stdout.read(&mut buffer) {
            if n == 0 {
                return;
            }
            hearing.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..n]).replace('\r', ""));
        }
    });
    let mut seen = 0;
    for line in typed.lines() {
        match line.strip_prefix("wait:") {
            Some(text) => {
                let deadline = Instant::now() + Duration::from_secs(20);
                loop {
                    let so_far = shown.lock().unwrap().clone();
                    if let Some(at) = so_far[seen..].find(text) {
                        seen += at + text.len();
                        break;
                    }
                    assert!(Instant::now() < deadline, "{text:?} does not come after {:?}", &so_far[..seen]);
                    std::thread::sleep(Duration::from_millis(20));
                }
                // After its output, the shell needs a moment to reach its prompt or to start the
                // command.
                std::thread::sleep(Duration::from_millis(300));
            }
            None if line == "^C" => stdin.write_all(b"\x03").unwrap(),
            None if line == "^D" => stdin.write_all(b"\x04").unwrap(),
            None => stdin.write_all(format!("{line}\r").as_bytes()).unwrap(),
        }
    }
    let code = child.wait().unwrap().code();
    drop(stdin);
    listener.join().unwrap();
    let shown = shown.lock().unwrap().clone();
    (code, shown)
}

#[test]
fn a_terminal_has_a_size_and_ctrl_c_goes_to_the_command() {
    let lab = Lab::new();
    let typed = "wait:# \nstty size\nwait:30 100\ntty\nwait:/dev/pts/0\necho g''o; sleep 100\nwait:go\n^C\nwait:# \n\
                 echo still $((40 + 2)) here\nwait:still 42\nexit 7\n";
    let (code, shown) = on_terminal(&lab, "$RB run -it busybox sh", typed);
    assert_eq!(code, Some(7), "{shown}");
    for text in ["30 100", "/dev/pts/0", "still 42 here"] {
        assert!(shown.contains(text), "{text}: {shown}");
    }
    let (code, shown) = on_terminal(&lab, "$RB run -t busybox tty; stty -a", "");
    assert!(code == Some(0) && shown.contains("/dev/pts/0") && shown.contains(" icanon"), "{shown}");
}

/// The process that runs the command may have ended before its terminal is received.
#[test]
fn a_terminal_has_the_output_of_a_command_that_ends_at_once() {
    let lab = Lab::new();
    for round in 0..20 {
        let (code, shown) = on_terminal(&lab, "$RB run -t busybox tty", "");
        assert!(code == Some(0) && shown.contains("/dev/pts/0"), "round {round}: {shown}");
    }
}

#[test]
fn an_interrupted_login_restores_the_echo_of_the_terminal() {
    let lab = Lab::new();
    let login = "\"$RB\" login -u me 127.0.0.1:1";
    let report = "echo code=$?; stty -a";
    let (_, shown) = on_terminal(&lab, &format!("trap : INT; {login}; {report}"), "wait:Password: \n^C\n");
    assert!(shown.contains("code=130") && shown.contains(" echo "), "{shown}");
    for (signal, code) in [("TERM", 143), ("HUP", 129)] {
        // Sends the signal once the echo is off.
        let sender = format!("until stty -F /dev/tty -a | grep -q -- ' -echo '; do sleep 0.1; done; kill -{signal} $$");
        let script = format!("({sender}) & exec {login}");
        lab.write("script", script);
        let (_, shown) = on_terminal(&lab, &format!("sh script; {report}"), "");
        assert!(shown.contains(&format!("code={code}")) && shown.contains(" echo "), "{signal}: {shown}");
    }
    // A password is read as before; nothing listens at the address.
    let (_, shown) = on_terminal(&lab, &format!("{login}; {report}"), "wait:Password: \nhunter2\n");
    assert!(shown.contains("code=1\n") && shown.contains(" echo ") && !shown.contains("hunter2"), "{shown}");
}

/// The zygote is the first child of the builder, which is the only child of the process that was
/// started.
#[test]
fn a_command_ends_with_the_process_that_started_it() {
    let lab = Lab::new();
    let marker = format!("{}4", std::process::id());
    lab.write("Dockerfile", format!("FROM busybox\nRUN echo u''p; sleep 300 {marker} || sleep 300\n"));
    let killer = "below() { cat /proc/$1/task/$1/children | cut -d' ' -f1; }; until grep -q up out; do sleep 0.05; done; \
                  kill -9 $(below $(below $(cat pid))); timeout 5 tail --pid=$(cat pid) -f /dev/null || echo late";
    lab.write("killer", killer);
    let runs = format!("busybox sh -c \"echo u''p; sleep 300 {marker} || sleep 300\"");
    for command in ["build --no-cache --progress plain".into(), format!("run {runs}"), format!("run -t {runs}")] {
        let line = format!(
            "rm -f out; bash killer 2>&1 & sh -c 'echo $$ > pid; exec $RB {command}' > out 2>&1; echo ended $?; wait; cat out"
        );
        // `run -t` does not treat redirected output as a terminal either.
        let line = if command.contains("-t ") { line.replace("> out 2>&1", "2>&1 | tee out") } else { line };
        let (_, shown) = on_terminal(&lab, &line, "");
        assert!(shown.contains("was killed") && !shown.contains("late"), "{command}: {shown}");
        let left = std::process::Command::new("pgrep").args(["-f", &format!("sleep 300 {marker}")]).output().unwrap();
        assert!(left.stdout.is_empty(), "{command}: {}", String::from_utf8_lossy(&left.stdout));
    }
}

#[test]
fn on_error_shell_opens_a_shell_in_the_failed_container() {
    let lab = Lab::new();
    lab.write("token", "a-long-secret\n");
    lab.write(
        "Dockerfile",
        "FROM busybox\nENV WHO=me\nWORKDIR /w\nUSER web\nRUN --mount=type=secret,id=token,uid=33 --mount=type=cache,target=/c,uid=33 \
         echo half > /tmp/half; exit 9\n",
    );
    let typed = "wait:$ \ncat /tmp/half; id -un; pwd; echo $WHO; wc -c < /run/secrets/token; touch /c/x && echo ca''che\nwait:cache\nexit 0\n";
    let build = "$RB build --on-error shell --secret id=token,src=token -t x";
    for progress in ["plain", "tty"] {
        let (code, shown) = on_terminal(&lab, &format!("{build} --progress {progress}"), typed);
        assert_eq!(code, Some(1), "{shown}");
        for text in ["exited with code 9", "a shell in the failed step's container", "half\nweb\n/w\nme\n14\ncache\n"] {
            assert!(shown.contains(text), "{progress}: {text:?}: {shown}");
        }
    }
    assert_eq!(std::fs::read_dir(lab.store().join("tmp")).unwrap().count(), 0);
    lab.rbuild(["build", "--on-error", "shell", "."]).fails(2, &["standard input and output are not a terminal"]);
}
