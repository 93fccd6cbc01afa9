//! Calls whose caller ends while they are answered, and whose ID is reused by another process.

use std::cell::Cell;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use rbuild_linux::OwnerMode;
use rbuild_linux::fd_passing::receive_fds;

use super::*;
use crate::id_emulation::credentials::Ids;
use crate::id_emulation::decode::HERE;
use crate::runner::privileges::filter_insecure;

/// Selects the part of a test that runs in a separate process.
const PART: &str = "RBUILD_TEST_REUSED_NUMBER";
const NAME: &str = "id_emulation::supervisor::tests::no_answer_is_sent_to_a_reused_thread_id";

fn own_program(part: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", NAME, "--test-threads=1"]).env(PART, part);
    command
}

#[test]
fn no_answer_is_sent_to_a_reused_thread_id() {
    match std::env::var(PART).as_deref() {
        Ok("caller") => {
            filter_insecure(Some(rustix::stdio::stdin())).unwrap();
            // Never answered: the process is killed first.
            let _ = rustix::process::getuid();
        }
        Ok(_) => answer_for_a_caller_that_is_gone(),
        // Process IDs can be chosen in a private PID namespace.
        Err(_) => {
            let own = own_program("supervisor");
            let mut command = Command::new("unshare");
            command.args(["--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]);
            command.arg(own.get_program()).args(own.get_args()).env(PART, "supervisor");
            let ended = command.output().unwrap();
            let errors = String::from_utf8_lossy(&ended.stderr);
            if !errors.starts_with("unshare: unshare failed") {
                let output = String::from_utf8_lossy(&ended.stdout);
                assert!(ended.status.success() && output.contains("1 passed"), "{errors}{output}");
            }
        }
    }
}

/// Starts a process with this PID.
fn process_with_pid(pid: u32) -> Child {
    for _ in 0..100 {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        if child.id() == pid {
            return child;
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    panic!("no process got the PID {pid}");
}

fn answer_for_a_caller_that_is_gone() {
    let (socket, theirs) = UnixStream::pair().unwrap();
    let mut caller = own_program("caller").stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).spawn().unwrap();
    let listener = receive_fds(&socket).unwrap().pop().unwrap();
    let call = seccomp::receive(listener.as_fd()).unwrap().unwrap();
    let proc = SharedProc { dir: std::fs::File::open("/proc").unwrap().into(), outer: false };
    let root = Credentials::default();
    let mut supervisor = Supervisor {
        listener: Arc::new(listener),
        proc: Arc::new(proc),
        owners: OwnerRecords::with_new_key(OwnerMode::Recorded),
        table: vec![root.clone()],
        places: HashMap::from([(root, 0)]),
        pending: HashMap::new(),
        roots: Roots::new(false).unwrap(),
        has_begun: true,
        has_dropped_capabilities: true,
        known: RecordCache::default(),
    };
    let (listener, proc) = (supervisor.listener.clone(), supervisor.proc.clone());
    let asking = Caller { call: &call, listener: listener.as_fd(), proc: &proc };
    let change = || Request::SetIds { of: IdKind::Users, change: IdChange::One(33) };
    let address = std::ptr::from_ref(&PART).addr() as u64;

    assert!(supervisor.decide(change(), &asking).is_ok(), "it waits");
    assert_eq!(supervisor.credentials(&asking).unwrap().users, Ids::all(33));
    assert!(asking.directory(HERE).is_ok());

    caller.kill().unwrap();
    caller.wait().unwrap();
    let mut other = process_with_pid(call.thread);
    let before = queue_limit(other.id()).unwrap();
    assert_eq!(supervisor.decide(change(), &asking).err(), Some(Errno::SRCH));
    assert_eq!(supervisor.credentials(&asking).err(), Some(Errno::SRCH));
    assert_eq!(supervisor.end_pending(&asking, &Credentials::default()), Ok(()));
    assert_eq!(asking.directory(HERE).err(), Some(Errno::SRCH));
    assert_eq!(asking.file(0).err(), Some(Errno::SRCH));
    assert_eq!(asking.root().err(), Some(Errno::SRCH));
    assert!(!asking.is_permitted(Capability::CAP_SETUID) && !supervisor.may(&asking, Capability::CAP_SETUID));
    assert!(asking.read(address, &mut [0; 8]).is_err() && asking.write(address, &[0; 8]).is_err());
    supervisor.reply(&call);
    assert_eq!(queue_limit(other.id()).unwrap(), before, "the other process is as it was");
    other.kill().unwrap();
    other.wait().unwrap();
}

/// A process whose PID is reused after its end.
struct ReusedId<'a>(&'a Child, Cell<u32>);

impl Thread for ReusedId<'_> {
    fn id(&self) -> u32 {
        self.0.id()
    }

    fn still_has_id(&self) -> Result<()> {
        self.1.set(self.1.get().saturating_sub(1));
        if self.1.get() > 0 { Ok(()) } else { Err(Errno::SRCH) }
    }
}

#[test]
fn a_limit_set_on_a_reused_thread_id_is_restored() {
    let mut child = Command::new("sleep").arg("100").spawn().unwrap();
    let before = queue_limit(child.id()).unwrap();
    for checks in [1, 2] {
        assert_eq!(store_index(&ReusedId(&child, Cell::new(checks)), 7), Err(Errno::SRCH));
        assert_eq!(queue_limit(child.id()).unwrap(), before);
    }
    store_index(&ReusedId(&child, Cell::new(3)), 7).unwrap();
    assert_eq!(queue_limit(child.id()).unwrap(), (before.1 - 7, before.1));
    child.kill().unwrap();
    child.wait().unwrap();
}
