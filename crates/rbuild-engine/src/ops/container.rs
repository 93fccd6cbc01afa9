//! Properties of a container that RUN and `rbuild run` share.

use rbuild_plan::Network;
use rbuild_sandbox::Network as SandboxNetwork;

/// Default size of `/dev/shm` in bytes, the same as Docker's.
pub(crate) const DEFAULT_SHM: u64 = 64 << 20;

/// Returns `/etc/hosts` of a container with this host name.
pub(crate) fn hosts_file(own: &str, more: &[(String, String)]) -> String {
    let mut text = format!("127.0.0.1\tlocalhost {own}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for (name, address) in more {
        text.push_str(&format!("{address}\t{name}\n"));
    }
    text
}

/// Returns true if a variable counts as set. Runtimes treat an empty HOME as unset and use the home
/// directory of the user.
pub(crate) fn is_set(name: &str, value: &str) -> bool {
    name != "HOME" || !value.is_empty()
}

/// Converts the plan's network mode to the sandbox's.
pub(crate) fn network(network: Network) -> SandboxNetwork {
    match network {
        Network::Host => SandboxNetwork::Host,
        Network::Isolated => SandboxNetwork::Isolated,
        Network::None => SandboxNetwork::None,
    }
}
