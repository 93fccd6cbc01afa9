//! The name of this machine among those that share a cache.

/// Returns the name that the user has set.
pub fn given() -> Option<String> {
    std::env::var("RBUILD_RUNNER").ok().filter(|name| !name.is_empty())
}

/// Returns the name that the user has set, or else the host name.
pub fn given_or_host() -> String {
    let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    given().unwrap_or_else(|| host().trim().to_string())
}
