//! Text that must not be in the memory of the builder, which is forked from this process.
//!
//! Arguments and variables of a process, and copies of them on its heap, are in the memory of all
//! processes that are forked from it. So the program is executed again without them, and reads the
//! text from a file in memory. The builder closes the descriptor of that file.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Mutex, MutexGuard};

use rustix::fs::MemfdFlags;

use crate::parallel::locked;

/// The variable that names the descriptor and the process that it is for.
const VARIABLE: &str = "RBUILD_WITHHELD";
/// Maximum length of the text in bytes; arguments and variables cannot be as long.
const MAX_BYTES: usize = 4 << 20;

static WITHHELD: Mutex<Option<File>> = Mutex::new(None);

fn file() -> MutexGuard<'static, Option<File>> {
    locked(&WITHHELD)
}

/// Executes this program again with `argv` and without `variables`, from which the text is
/// withheld. Returns only on failure.
pub fn execute_withholding(text: &str, argv: &[OsString], variables: &[&str]) -> io::Error {
    let prepared = rustix::fs::memfd_create("rbuild-withheld", MemfdFlags::empty()).map_err(io::Error::from);
    let mut memory = match prepared {
        Ok(memory) => File::from(memory),
        Err(e) => return e,
    };
    if let Err(e) = memory.write_all(text.as_bytes()) {
        return e;
    }
    let mut command = Command::new("/proc/self/exe");
    if let Some((name, args)) = argv.split_first() {
        command.arg0(name).args(args);
    }
    for name in variables {
        command.env_remove(name);
    }
    command.env(VARIABLE, format!("{}:{}", memory.as_raw_fd(), std::process::id())).exec()
}

/// Takes over the text that was withheld from this process's arguments. Must be called before other
/// files are opened, and once.
pub fn accept_withheld() {
    let Ok(value) = std::env::var(VARIABLE) else { return };
    // A program that this one executes has the variable, too, but another number.
    let number = value.split_once(':').filter(|(_, pid)| *pid == std::process::id().to_string());
    let Some(number) = number.and_then(|(number, _)| number.parse::<i32>().ok()).filter(|number| *number > 2) else {
        return;
    };
    let link = std::fs::read_link(format!("/proc/self/fd/{number}")).unwrap_or_default();
    if !link.to_string_lossy().starts_with("/memfd:rbuild-withheld") {
        return;
    }
    *file() = crate::syscalls::take_inherited(number).ok().map(File::from);
}

/// Returns the withheld text; `None` if there is none, or if it was dropped.
pub fn withheld() -> io::Result<Option<String>> {
    let file = file();
    let Some(file) = file.as_ref() else { return Ok(None) };
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(MAX_BYTES).min(MAX_BYTES);
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    String::from_utf8(bytes).map(Some).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Closes the text in this process.
pub fn drop_withheld() {
    file().take();
}
