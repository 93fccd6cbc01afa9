//! Clocks of the kernel, and the identity of the current boot.

use std::time::Duration;

/// Returns the time of the monotonic clock in nanoseconds. All processes of the machine share that
/// clock (CLOCK_MONOTONIC).
pub fn monotonic_nanoseconds() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Returns the time since the boot, including time in suspension (CLOCK_BOOTTIME).
pub fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Returns the number of clock ticks per second in files of /proc.
pub fn ticks_per_second() -> u64 {
    rustix::param::clock_ticks_per_second().max(1)
}

/// Returns the kernel's ID of this boot. A different ID means that unsynced writes may be lost.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_string()
}
