//! Resource limits of the calling process (setrlimit(2)).

use rbuild_container::{Resource, Ulimit};

use crate::error::{Error, Result, described};

/// Sets a resource limit of the calling process.
///
/// # Errors
///
/// Fails if the hard limit would be raised without CAP_SYS_RESOURCE.
pub fn set_limit(limit: &Ulimit) -> Result<()> {
    let value = |n: u64| (n != u64::MAX).then_some(n);
    let value = rustix::process::Rlimit { current: value(limit.soft), maximum: value(limit.hard) };
    rustix::process::setrlimit(kernel_resource(limit.resource), value)
        .map_err(|e| Error::new("setrlimit", described(format!("the limit `{}`", limit.resource.name())), e))
}

/// Raises the limit on open files of the calling process to its hard limit. Errors are ignored.
pub fn raise_open_files() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised);
}

/// Returns the hard limit of the calling process in the resource's own unit; `None` if it is
/// unlimited.
pub fn hard_limit(resource: Resource) -> Option<u64> {
    rustix::process::getrlimit(kernel_resource(resource)).maximum
}

fn kernel_resource(resource: Resource) -> rustix::process::Resource {
    use rustix::process::Resource as Kernel;
    match resource {
        Resource::Core => Kernel::Core,
        Resource::Cpu => Kernel::Cpu,
        Resource::Data => Kernel::Data,
        Resource::Fsize => Kernel::Fsize,
        Resource::Locks => Kernel::Locks,
        Resource::Memlock => Kernel::Memlock,
        Resource::Msgqueue => Kernel::Msgqueue,
        Resource::Nice => Kernel::Nice,
        Resource::Nofile => Kernel::Nofile,
        Resource::Nproc => Kernel::Nproc,
        Resource::Rss => Kernel::Rss,
        Resource::Rtprio => Kernel::Rtprio,
        Resource::Rttime => Kernel::Rttime,
        Resource::Sigpending => Kernel::Sigpending,
        Resource::Stack => Kernel::Stack,
    }
}
