//! The monotonic clock, and the identity of the current boot.

/// Returns the time of the monotonic clock in nanoseconds. All processes of the machine share that
/// clock (CLOCK_MONOTONIC).
pub fn monotonic_nanoseconds() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Returns the kernel's ID of this boot. A different ID means that unsynced writes may be lost.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_string()
}
