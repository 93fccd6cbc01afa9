//! The umask of the calling process.

/// The umask that the program was started with; empty until it is first needed.
static INITIAL_UMASK: std::sync::OnceLock<u32> = std::sync::OnceLock::new();

/// Applies the umask that the program was started with to `mode`. For the program's own files,
/// which are also created while the umask is cleared. The first call must happen while the process
/// is single-threaded.
pub fn by_umask(mode: u32) -> u32 {
    let umask = INITIAL_UMASK.get_or_init(|| {
        let umask = rustix::process::umask(rustix::fs::Mode::empty());
        rustix::process::umask(umask);
        umask.as_raw_mode()
    });
    mode & !umask
}

/// Clears the umask permanently: files get exactly the modes that they are created with.
pub fn clear_umask() {
    by_umask(0);
    rustix::process::umask(rustix::fs::Mode::empty());
}

/// Runs `work` with a umask of zero: files get exactly the modes that they are created with. The
/// umask is per process, so no other thread may create files at the same time.
pub fn without_umask<T>(work: impl FnOnce() -> T) -> T {
    by_umask(0);
    let old = rustix::process::umask(rustix::fs::Mode::empty());
    let result = work();
    rustix::process::umask(old);
    result
}
