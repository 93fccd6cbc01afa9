//! Properties of a container that RUN and `rbuild run` share.

use rbuild_plan::Ulimit;
use rbuild_remedy::{CommandRemedy, Remedy};
use rustix::process::Signal;

/// Default size of `/dev/shm` in bytes, the same as Docker's.
pub const DEFAULT_SHM: u64 = 64 << 20;

/// Returns `/etc/hosts` of a container with this host name.
pub(crate) fn hosts_file(own: &str, more: &[(String, String)]) -> String {
    let mut text = format!("127.0.0.1\tlocalhost {own}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for (name, address) in more {
        text.push_str(&format!("{address}\t{name}\n"));
    }
    text
}

/// Returns true if a variable is set. As in other runtimes, an empty HOME counts as unset; the home
/// directory of the user is used instead.
pub(crate) fn is_set(name: &str, value: &str) -> bool {
    name != "HOME" || !value.is_empty()
}

/// Returns the remedy for a command that was killed by `signal`, if there are `limits` and the
/// kernel sends this signal when a resource limit is reached.
pub fn limit_remedy(signal: i32, limits: &[Ulimit]) -> Option<Remedy> {
    const OF_LIMITS: [Signal; 6] = [Signal::ABORT, Signal::BUS, Signal::KILL, Signal::SEGV, Signal::XCPU, Signal::XFSZ];
    if limits.is_empty() || !OF_LIMITS.iter().any(|of_limit| of_limit.as_raw() == signal) {
        return None;
    }
    let limits = limits.iter().map(|limit| format!("{}={}", limit.resource.name(), limit.soft)).collect::<Vec<_>>();
    Some(Remedy::Command(CommandRemedy::RaiseUlimits { limits: limits.join(", ") }))
}

#[cfg(test)]
mod tests {
    use rbuild_plan::Resource;

    use super::*;

    #[test]
    fn signals_caused_by_a_limit_name_the_limit() {
        let limits = [Ulimit { resource: Resource::Data, soft: 0, hard: 1 }];
        assert_eq!(
            limit_remedy(11, &limits),
            Some(Remedy::Command(CommandRemedy::RaiseUlimits { limits: "data=0".into() }))
        );
        assert_eq!(limit_remedy(15, &limits), None);
        assert_eq!(limit_remedy(11, &[]), None);
    }
}
